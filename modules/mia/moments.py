"""Moments over the references that a mask selects: one row at a time, in float64, no zeros averaged in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array


@dataclass(frozen=True)
class Moments:
    """Of each query and point, over the selected references: the mean, and the squared deviations from it."""

    count: Int[Array, " N"]
    mean: Float[Array, "Q N"]
    squares: Float[Array, "Q N"]  # sum over references of (value - mean)^2

    def pooled_variance(self) -> Float[Array, " Q"]:
        """Within-record variance pooled over points, sum of squares / sum of (n - 1); 0 where nothing varies.

        Not the spread of all values: that one also holds how much records differ in difficulty.
        """
        freedom = np.maximum(self.count - 1, 0).sum()
        return self.squares.sum(axis=-1) / freedom if freedom else np.zeros(len(self.mean))


def masked_mean(
    values: Float[Array, "R Q N"],
    where: Bool[Array, "R N"],
    transform: Callable[[Float[Array, "Q N"]], Float[Array, "Q N"]] = np.asarray,
) -> Float[Array, "Q N"]:
    """Mean of `transform(values[r])` over the references r that `where` selects for each point."""
    count = counted(where)
    total = np.zeros(values.shape[1:])
    with np.errstate(invalid="ignore"):  # answered below, in words
        for row, selected in zip(values, where, strict=True):
            total += transform(row) * selected  # a sum may select by a product; several times faster than np.where
    if not np.isfinite(total).all():
        raise ValueError("a reference model's signals hold NaN or infinity: did a model diverge in training?")
    return total / count


def moments(values: Float[Array, "R Q N"], where: Bool[Array, "R N"]) -> Moments:
    """Count, mean and sum of squared deviations of each point, over the references that `where` selects."""
    mean = masked_mean(values, where)
    squares = np.zeros_like(mean)
    # A second pass, because mean(x^2) - mean(x)^2 loses the digits that matter.
    for row, selected in zip(values, where, strict=True):
        squares += np.square((row - mean) * selected)
    return Moments(counted(where), mean, squares)


def counted(where: Bool[Array, "R N"]) -> Int[Array, " N"]:
    """How many references `where` selects for each point. ValueError if none, for any point."""
    count = where.sum(axis=0)
    if not count.all():
        raise ValueError(
            f"{(count == 0).sum()} of {len(count)} points have no reference on the side that this attack compares "
            f"with ({len(where)} references in all); raise audit.num_ref_models or choose an attack without references"
        )
    return count
