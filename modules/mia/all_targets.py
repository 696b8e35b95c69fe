"""LiRA with every model as the target in turn: what leaving one pair out does to a Gaussian has a closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from modules.mia.lira import MANY, floored, known, log_ratio, z_score


def lira_all_targets(
    signals: Float[Array, "M N"],
    member: Bool[Array, "M N"],
    *,
    mode: Literal["online", "offline"] = "online",
    variance: Literal["auto", "global", "per_record"] = "auto",
    block: int = 512,
    out: Float[Array, "M N"] | None = None,
) -> Float[Array, "M N"]:
    """LiRA's scores of all M models, each attacked by the others without its twin, as `lira` would give them.

    Models 2p and 2p + 1 are twins: on each record, one of them is IN and the other OUT. Leaving the pair out
    takes one model from either side, so with n of a side, mean m, squares s and the pair's d = value - m,

        m' = m - d / (n - 1),    s' = s - d^2 n / (n - 1)

    One query; average the results of several. All arrays may be memory maps: `block` columns are read at a
    time, twice, in float64, and the scores are written into `out` where it is given.
    """
    models, points = signals.shape
    pairs = models // 2
    if models % 2 or pairs < 2:
        raise ValueError(f"need whole pairs of models, and at least two pairs, got {models} models")
    left = pairs - 1
    blocks = [slice(start, start + block) for start in range(0, points, block)]
    own = variance == "per_record" or (variance == "auto" and 2 * left >= MANY)

    totals = np.zeros((2, pairs))
    if left > 1:  # one model left on a side shows no variance
        for block_ in blocks:
            totals += [_without(side)[1].sum(axis=1) for side in _sides(signals, member, block_)]
    pooled = totals / max(points * (left - 1), 1)
    pooled_in, pooled_out = known(*pooled) if mode == "online" else (pooled[0], *known(pooled[1]))

    out = np.empty((models, points)) if out is None else out
    for block_ in blocks:
        (in_mean, in_var), (out_mean, out_var) = (
            _left_out(side, of[:, None], own)
            for side, of in zip(_sides(signals, member, block_), (pooled_in, pooled_out), strict=True)
        )
        for twin in (0, 1):
            value = signals[twin::2, block_].astype(np.float64)
            if mode == "offline":
                out[twin::2, block_] = z_score(value, out_mean, out_var)
            else:
                out[twin::2, block_] = log_ratio(value, in_mean, in_var, out_mean, out_var)
    return out


def _sides(signals: Array, member: Array, block: slice) -> Iterator[Float[Array, "pairs B"]]:
    """Each pair's IN value, then its OUT value, of a block of columns. ValueError unless twins are complementary."""
    even, odd = (signals[twin::2, block].astype(np.float64) for twin in (0, 1))
    is_in = np.asarray(member[0::2, block])
    if (is_in == member[1::2, block]).any():
        raise ValueError("models 2p and 2p + 1 must have trained on complementary halves of the points")
    yield np.where(is_in, even, odd)
    yield np.where(is_in, odd, even)


def _without(side: Float[Array, "pairs B"]) -> tuple[Float[Array, "pairs B"], Float[Array, "pairs B"]]:
    """Mean and sum of squared deviations of each column, without each row in turn."""
    n = len(side)
    mean = side.mean(axis=0)
    d = side - mean
    squares = np.square(d)
    # Rounding may leave a tiny negative where the others are equal; the floor of the variance hides the rest.
    return mean - d / (n - 1), np.maximum(squares.sum(axis=0) - squares * (n / (n - 1)), 0.0)


def _left_out(
    side: Float[Array, "pairs B"], pooled: Float[Array, "pairs 1"], own: bool
) -> tuple[Float[Array, "pairs B"], Float[Array, "pairs _"]]:
    """Mean and variance of each column without each row, by LiRA's rule."""
    mean, squares = _without(side)
    if not own:
        return mean, pooled
    return mean, floored(squares, np.full(squares.shape, len(side) - 2), pooled)
