"""What can be learnt of a model that answers with a label and nothing else (Choquette-Choo et al. 2021).

Label-Only Membership Inference Attacks, https://arxiv.org/abs/2007.14321. Attacks are handed a `HardLabels`, through
which no confidence can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from trainers.augment import mirror_and_shift, views
from trainers.evaluate import Queries
from trainers.resident import Resident


class HardLabels:
    """A model of which only the predicted labels can be seen, and a count of what it was asked.

    The network is held by a closure alone: who has this object has no way to its logits.
    """

    def __init__(self, model: torch.nn.Module, data: Resident, batch_size: int = 1024) -> None:
        layout = torch.channels_last if data.is_image and data.device.type != "mps" else torch.contiguous_format
        model.to(data.device, memory_format=layout).eval()
        normalised = data.normalised

        @torch.inference_mode()
        def ask(x: torch.Tensor) -> torch.Tensor:
            return model(normalised(x)).argmax(1)

        self._ask = ask
        self.batch_size = batch_size
        self.asked = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Predicted labels int64 (B,) of records (B, ...) in the units they are stored in, `batch_size` at a time."""
        self.asked += len(x)
        if not len(x):
            return torch.empty(0, dtype=torch.int64, device=x.device)
        return torch.cat([self._ask(part) for part in x.split(self.batch_size)])


def kept_labels(
    ask: HardLabels, data: Resident, copies: Callable[[slice], torch.Tensor], *, queries: int
) -> np.ndarray:
    """Whether each of a record's copies gets the record's true label: 1.0 or 0.0, float32 (Q, N).

    copies: of a slice of the records, their `queries` copies (Q, B, ...), in the units that they are stored in.
    """
    kept = torch.empty(queries, len(data), device=data.device)
    step = max(1, ask.batch_size // queries)
    for start in range(0, len(data), step):
        part = slice(start, start + step)
        labels = data.y[part]
        answers = ask(copies(part).flatten(0, 1)).view(queries, len(labels))
        kept[:, part] = (answers == labels).float()
    return kept.cpu().numpy()


def plain(data: Resident, queries: Queries) -> Callable[[slice], torch.Tensor]:
    """The records as they are, or in the views of `audit.queries`."""
    return lambda part: torch.stack(views(data.x[part], queries))


def moved(data: Resident, translate: int, rotate: float) -> Callable[[slice], torch.Tensor]:
    """Each image, its translations by whole pixels with |i| + |j| = translate (4 · translate), its rotations by
    ± rotate degrees: `count_moved` copies. What moves in at a border is the image's reflection.
    """
    shifts = [(i, j) for i in range(-translate, translate + 1) for j in _both(translate - abs(i)) if translate]

    def copies(part: slice) -> torch.Tensor:
        x = data.x[part]
        every = lambda value: torch.full((len(x),), value, device=x.device)  # noqa: E731
        moved = [mirror_and_shift(x, every(False), every(i), every(j)).float() for i, j in shifts]
        turned = [rotated(x.float(), angle) for angle in ((-rotate, rotate) if rotate else ())]
        return torch.stack([x.float(), *moved, *turned])

    return copies


def _both(j: int) -> tuple[int, ...]:
    return (-j, j) if j else (0,)


def count_moved(translate: int, rotate: float) -> int:
    """How many copies `moved` makes, the record itself included."""
    return 1 + 4 * translate + (2 if rotate else 0)


def rotated(x: torch.Tensor, degrees: float) -> torch.Tensor:
    """Images (B, C, H, W) float32, turned about their middle, counter-clockwise; bilinear, borders reflected."""
    turn = np.deg2rad(degrees)
    cos, sin, ratio = float(np.cos(turn)), float(np.sin(turn)), x.shape[3] / x.shape[2]
    # Of a target pixel, the place in the source, in units of half the image's sides.
    matrix = torch.tensor([[cos, -sin / ratio, 0.0], [sin * ratio, cos, 0.0]], device=x.device)
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def disturbed(
    data: Resident,
    scale: np.ndarray,
    binary: np.ndarray,
    levels: Sequence[float],
    repeats: int,
    draws: Callable[[int], np.random.Generator],
) -> Callable[[slice], torch.Tensor]:
    """Each record of features, and `repeats` disturbed copies of it at each level.

    A binary column (d,) is drawn anew, by a fair coin, with probability `level`; to another Gaussian noise of `level`
    times its `scale` (d,) is added. draws: of a record's place, its own generator, so that every model is asked about
    the same copies.
    """
    level = np.repeat(np.asarray(levels, dtype=np.float64), repeats)[:, None]
    shape = (len(level), len(scale))

    def of_record(place: int) -> np.ndarray:
        draw, x = draws(place), data.x[place].cpu().numpy()
        again, coin = draw.random(shape) < level, draw.random(shape) < 0.5
        noisy = x + level * scale * draw.standard_normal(shape)
        return np.concatenate([x[None], np.where(binary, np.where(again, coin, x), noisy)]).astype(np.float32)

    def copies(part: slice) -> torch.Tensor:
        places = range(*part.indices(len(data)))
        return torch.tensor(np.stack([of_record(place) for place in places], axis=1)).to(data.device)

    return copies
