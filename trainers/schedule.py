"""How an epoch is cut into batches, and the learning rate of every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


def batches(count: int, batch_size: int) -> list[slice]:
    """0 .. count - 1 in slices of `batch_size`; the last is smaller, but not a lone record (unless each is)."""
    starts = list(range(0, count, batch_size))
    if batch_size > 1 and len(starts) > 1 and count % batch_size == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


def learning_rates(
    epochs: int,
    steps: int,
    peak: float,
    schedule: Literal["cosine", "linear", "step", "constant"],
    warmup_epochs: float = 0.0,
    *,
    milestones: Sequence[float] = (),
    step_factor: float = 1.0,
) -> Float[Array, "epochs steps"]:
    """The learning rate of every step. Its largest value is `peak`, exactly.

    Step t of W = warmup_epochs * steps warm-up steps has peak * (t + 1) / W. The cosine, or the line, starts at the
    peak after that, and would be zero one step after the last. A milestone counts from the start of the training.
    """
    total = epochs * steps
    warmup = round(warmup_epochs * steps)
    t = np.arange(total)
    if schedule == "cosine":
        factor = (1 + np.cos(np.pi * (t - warmup) / max(total - warmup, 1))) / 2
    elif schedule == "linear":
        factor = 1 - (t - warmup) / max(total - warmup, 1)
    elif schedule == "step":
        passed = (t[:, None] >= np.asarray(milestones, dtype=float) * total).sum(axis=1)
        factor = step_factor**passed
    else:
        factor = np.ones(total)
    return peak * np.where(t < warmup, (t + 1) / max(warmup, 1), factor).reshape(epochs, steps)
