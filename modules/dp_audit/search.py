"""The largest parameter that a test rejects: bisection, in more parts at a time where problems are few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

EXACT = 1e-8  # width of the interval that is left; its lower end is taken


def largest_rejected(
    rejects: Callable[[np.ndarray], np.ndarray], high: Float[Array, "*problems"]
) -> Float[Array, "*problems"]:
    """For each problem the largest value in [0, high] rejected with all tried below it, to `EXACT`; 0 if none.

    `rejects` gets values of the shape of `high` with one more axis at the end.
    """
    low, width = np.zeros(high.shape), np.array(high, dtype=float)
    parts = 16 if high.size <= 64 else 2  # numpy's overhead rules where there are few problems
    while width.max(initial=0.0) > EXACT:
        width = np.asarray(width / parts)
        no = rejects(low[..., None] + width[..., None] * np.arange(1, parts))
        low += width * np.logical_and.accumulate(no, axis=-1).sum(axis=-1)
    return low
