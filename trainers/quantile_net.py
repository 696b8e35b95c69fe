"""A small convolutional network that predicts how a model's signal is distributed, given an image and its label.

For QMIA (Bertran et al. 2023), whose regression is a ConvNeXt. Imports torch: import it inside a function.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import nn
from torch.nn import functional as F

from trainers.loop import seeded
from trainers.quantile import folds_of
from trainers.resident import Resident
from trainers.schedule import batches

FOLDS = 3
EPOCHS = 20  # at most: the epoch is kept that predicts the held-out fold best
BATCH = 64
WIDEST = 5.0  # |log| of a standard deviation, in units of that of all values


def convnet(
    data: Resident,
    value: Float[Array, " P"],
    ask: Resident,
    classes: int,
    draw: np.random.Generator,
    levels: Float[Array, " K"] | None = None,
) -> tuple[Float[Array, "rows N"], Float[Array, "rows P"]]:
    """Mean and standard deviation of `value` given an image, or its quantiles at `levels`, by their own losses.

    Of the images `ask` (mean over the networks of all folds), and held out, of the images of the fit: each fold's
    network starts as one prediction for all records, is trained on the others, and kept as it was after the epoch that
    predicts the fold best. In the end standard deviations are scaled, and quantiles moved, so that they are right for
    held-out images taken together.
    """
    centre, scale = float(value.mean()), float(value.std()) or 1.0
    target = torch.tensor((value - centre) / scale, dtype=torch.float32, device=data.device)
    start = [0.0, 0.0] if levels is None else np.quantile((value - centre) / scale, levels).tolist()
    wanted = None if levels is None else torch.tensor(levels, dtype=torch.float32, device=data.device)
    fold = folds_of(len(value), draw, FOLDS)
    held = np.empty((len(start), len(value)))
    found = np.zeros((len(start), len(ask)))
    with seeded(draw, data.device):
        for k in range(fold.max() + 1):
            own, rest = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            network = _Network(data, classes, start).to(data.device)
            _train(network, data, target, rest if len(rest) else own, own, wanted, draw)
            held[:, own] = _predicted(network, data, own)
            found += _predicted(network, ask, np.arange(len(ask)))
    found /= fold.max() + 1
    residual = (value - centre) / scale
    if levels is None:
        found[1], held[1] = np.exp(found[1]), np.exp(held[1])
        right = np.sqrt(np.square((residual - held[0]) / held[1]).mean())
        return tuple(np.stack([centre + scale * of[0], scale * right * of[1]]) for of in (found, held))  # type: ignore
    moved = np.array([np.quantile(residual - row, level) for row, level in zip(held, levels, strict=True)])[:, None]
    return centre + scale * (found + moved), centre + scale * (held + moved)


class _Network(nn.Module):
    """Two convolutions with pooling, then the label beside what they saw."""

    def __init__(self, data: Resident, classes: int, start: list[float]) -> None:
        super().__init__()
        self.classes = classes
        self.seen = nn.Sequential(
            nn.Conv2d(data.x.shape[1], 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.joined = nn.Sequential(nn.Linear(32 * 16 + classes, 64), nn.ReLU())
        self.last = nn.Linear(64, len(start))
        nn.init.zeros_(self.last.weight)
        self.last.bias.data = torch.tensor(start)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.last(self.joined(torch.cat([self.seen(x), F.one_hot(y, self.classes).float()], 1)))


def _loss(out: torch.Tensor, target: torch.Tensor, levels: torch.Tensor | None) -> torch.Tensor:
    """Mean over records: minus the Gaussian log-likelihood, or the sum of the pinball losses."""
    if levels is None:
        log_deviation = out[:, 1].clamp(-WIDEST, WIDEST)
        return (log_deviation + 0.5 * ((target - out[:, 0]) / log_deviation.exp()).square()).mean()
    d = target[:, None] - out
    return torch.maximum(levels * d, (levels - 1) * d).sum(1).mean()


def _train(
    network: _Network,
    data: Resident,
    target: torch.Tensor,
    rest: np.ndarray,
    own: np.ndarray,
    levels: torch.Tensor | None,
    draw: np.random.Generator,
) -> None:
    """Train on the records `rest`; the network of the epoch that predicts the records `own` best, 0 included."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    best, kept = np.inf, {}
    for epoch in range(EPOCHS + 1):
        if epoch:
            order = torch.as_tensor(draw.permutation(rest), device=data.device)
            for batch in batches(len(order), BATCH):
                index = order[batch]
                loss = _loss(network(data.batch(index), data.y[index]), target[index], levels)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
        out = torch.tensor(_predicted(network, data, own).T, dtype=torch.float32, device=data.device)
        judged = _loss(out, target[torch.as_tensor(own, device=data.device)], levels).item()
        if judged < best:
            best, kept = judged, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(kept)


@torch.no_grad()
def _predicted(network: _Network, data: Resident, index: np.ndarray) -> Float[Array, "rows n"]:
    """What the network puts out for the indexed records, in its own units; log deviations within their bounds."""
    parts = [network(data.batch(part), data.y[part]) for part in torch.as_tensor(index, device=data.device).split(1024)]
    out = torch.cat(parts).double().cpu().numpy().T
    if len(out) == 2:
        out[1] = out[1].clip(-WIDEST, WIDEST)
    return out
