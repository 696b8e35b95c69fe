"""The loop of DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133). Imports torch: import it inside a function.

Poisson batches, each record's gradient clipped by itself, Gaussian noise on their sum. Gradient canaries may be
put among the records: gradients of an auditor's choice, which go through the same draws, clipping and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray as Array
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from trainers.augment import mirror_and_shift
from trainers.dp_accounting import Mechanism
from trainers.loop import Diverged, MakeOptimizer, seeded
from trainers.resident import Resident


@dataclass
class GradientCanaries:
    """Gradients of an auditor's choice, and what the releases said of each (Nasr et al. 2023; Steinke et al. 2023).

    member (m,): which are in the data. A canary that is, is drawn into batches as a record is, and hands in
    its direction times `norm`, far above any clipping norm: so a missing clip shows. score (m,): the sum over
    steps of <release - what the other records put into it, direction>. An adversary against DP knows those.
    """

    member: Bool[Array, " m"]
    directions: Dirac | Dense
    norm: float
    score: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.score = np.zeros(len(self.member))


@dataclass(frozen=True)
class Dirac:
    """Each direction is one coordinate of the flat gradient, another for each canary."""

    coordinate: torch.Tensor  # int64 (m,)

    def add(self, flat: torch.Tensor, rows: torch.Tensor, factor: float) -> None:
        flat.index_add_(0, self.coordinate[rows], torch.full((len(rows),), factor, device=flat.device))

    def inner(self, flat: torch.Tensor) -> torch.Tensor:
        return flat[self.coordinate]


@dataclass(frozen=True)
class Dense:
    """Each direction is a unit vector: rows of (m, d)."""

    unit: torch.Tensor

    def add(self, flat: torch.Tensor, rows: torch.Tensor, factor: float) -> None:
        flat.add_(self.unit[rows].sum(0), alpha=factor)

    def inner(self, flat: torch.Tensor) -> torch.Tensor:
        return self.unit @ flat


def train(
    model: torch.nn.Module,
    data: Resident,
    member: Bool[Array, " D"],
    rng: np.random.Generator,
    *,
    mechanism: Mechanism,
    rates: np.ndarray,
    make_optimizer: MakeOptimizer,
    batch_size: int,
    physical_batch_size: int,
    augmentations: int = 0,
    shift: int = 0,
    canaries: GradientCanaries | None = None,
    summed: Summed | None = None,
) -> None:
    """Train `model` on its members, in place; it is left in evaluation mode on the data's device.

    rates: the learning rate of each step. batch_size: what sums are divided by, the expected size of a batch: the
    size it happens to have is private. augmentations: views of a record whose mean gradient is clipped (0: the
    record itself), mirrored at random and shifted by at most `shift` pixels. summed: how clipped gradients are summed;
    `clipped_sum` if None.
    """
    summed = summed or clipped_sum
    model.to(data.device, memory_format=torch.contiguous_format).train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(list(parameters.values()))
    noise = torch.Generator(data.device).manual_seed(int(rng.integers(2**63)))
    clip, sd = mechanism.max_grad_norm, noise_sd(mechanism)
    with seeded(rng, data.device):
        for rate in rates.tolist():
            index, views = poisson_batch(data, member, rng, mechanism.sampling_rate, augmentations, shift)
            total = [torch.zeros_like(p) for p in parameters.values()]
            for x, y in _in_parts(data, index, views, physical_batch_size):
                for part, new in zip(total, summed(model, parameters, x, y, clip), strict=True):
                    part.add_(new)
            if canaries is not None:
                of_records, total = total, _with_canaries(total, canaries, rng, mechanism)
            for p, part in zip(parameters.values(), total, strict=True):
                part.add_(torch.randn(p.shape, generator=noise, device=data.device), alpha=sd)
                p.grad = part / batch_size
            if canaries is not None:
                seen = _flat(total) - _flat(of_records)
                canaries.score += canaries.directions.inner(seen).double().cpu().numpy()
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
    optimizer.zero_grad()
    if not torch.stack([p.detach().norm() for p in parameters.values()]).sum().isfinite():
        raise Diverged(len(rates))
    model.eval()


# (model, its weights by name, records (b, ...), labels or lengths (b,), clipping norm) -> sum of clipped gradients
Summed = Callable[
    [torch.nn.Module, dict[str, torch.nn.Parameter], torch.Tensor, torch.Tensor, float], list[torch.Tensor]
]
Views = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def poisson_batch(
    data: Resident, member: Bool[Array, " D"], rng: np.random.Generator, rate: float, augmentations: int, shift: int
) -> tuple[torch.Tensor, Views | None]:
    """The members in this step's batch, each with probability `rate`, and how each of their views is made.

    All records of the pool draw, whoever is a member: what one draws does not depend on the others' membership.
    """
    drawn = np.flatnonzero(rng.random(len(data)) < rate)
    kept = member[drawn]
    views = None
    if augmentations:
        shape = (len(drawn), augmentations)
        draws = (rng.random(shape) < 0.5, *rng.integers(-shift, shift, (2, *shape), endpoint=True))
        views = tuple(torch.as_tensor(draw[kept], device=data.device) for draw in draws)
    return torch.as_tensor(drawn[kept], device=data.device), views


def _in_parts(
    data: Resident, index: torch.Tensor, views: Views | None, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batch in parts that fit in memory: each record's views (b, K, ...) as models see them, and labels (b,).

    Of text: token ids (b, L), and how many of them are the record's own (b,).
    """
    for start in range(0, len(index), size):
        part = index[start : start + size]
        if data.lengths is not None:
            lengths = data.lengths[part]
            yield data.x[part, : int(lengths.max())].long(), lengths
            continue
        x = data.x[part]
        if views is not None:
            mirrored, dy, dx = (draw[start : start + size] for draw in views)
            count = mirrored.shape[1]
            x = mirror_and_shift(x.repeat_interleave(count, 0), *(draw.flatten() for draw in (mirrored, dy, dx)))
        yield data.normalised(x).reshape(len(part), -1, *x.shape[1:]), data.y[part]


def clipped_sum(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor, clip: float
) -> list[torch.Tensor]:
    """The sum over records of their gradients, each scaled down to norm `clip` if it is longer.

    x (b, K, ...), y (b,): a record's gradient is that of its mean loss over its K views.
    """

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, weights, (x,)), y.expand(len(x)))

    return _clipped_each(loss, parameters, x, y, clip)


def clipped_text_sum(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor, clip: float
) -> list[torch.Tensor]:
    """The same of a language model: a record's gradient is that of the mean loss of its own tokens but the first.

    x (b, L): token ids. y (b,): how many are a record's own.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from trainers.text import losses

    def loss(weights: dict[str, torch.Tensor], ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model, weights, (), {"input_ids": ids[None]}).logits
        return losses(logits, ids[None], length[None]).sum() / (length - 1).clamp(min=1)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no batching rule: they would run one by one
        return _clipped_each(loss, parameters, x, y, clip)


def _clipped_each(
    loss: Callable[[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor],
    parameters: dict[str, torch.nn.Parameter],
    x: torch.Tensor,
    y: torch.Tensor,
    clip: float,
) -> list[torch.Tensor]:
    """Every record's gradient of `loss`, scaled down to norm `clip` if it is longer, summed."""
    weights = {name: p.detach() for name, p in parameters.items()}
    each = list(vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(weights, x, y).values())
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in each]).norm(dim=0)
    factors = clip_factors(norms, clip)
    return [torch.einsum("b,b...->...", factors, g) for g in each]


def clip_factors(norms: torch.Tensor, clip: float) -> torch.Tensor:
    """What gradients of these norms are multiplied by: min(1, clip / norm)."""
    return (clip / norms).clamp(max=1.0)


def noise_sd(mechanism: Mechanism) -> float:
    """Standard deviation of the noise in each coordinate of a clipped sum."""
    return mechanism.noise_multiplier * mechanism.max_grad_norm


def _with_canaries(
    total: list[torch.Tensor], canaries: GradientCanaries, rng: np.random.Generator, mechanism: Mechanism
) -> list[torch.Tensor]:
    """`total` and, on top of it, the clipped gradients of the member canaries that are drawn into this batch."""
    drawn = rng.random(len(canaries.member)) < mechanism.sampling_rate
    flat = _flat(total)
    factor = clip_factors(torch.tensor(canaries.norm), mechanism.max_grad_norm).item()
    rows = torch.as_tensor(np.flatnonzero(drawn & canaries.member), device=flat.device)
    canaries.directions.add(flat, rows, factor * canaries.norm)
    return [part.view_as(like) for part, like in zip(flat.split([t.numel() for t in total]), total, strict=True)]


def _flat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts])
