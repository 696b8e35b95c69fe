"""How many population points z does x dominate, x / z >= gamma? Sorted instead of pairwise, and exactly equal."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

BLOCK = 1 << 20  # (x, z) pairs held at a time by the majority vote


def dominated(x: Float[Array, " N"], z: Float[Array, " P"], gamma: float) -> Int[Array, " N"]:
    """For each x, the number of z with `x / z >= gamma`: `(x[:, None] / z >= gamma).sum(1)` in O((N + P) log P).

    The same to the last bit, in the dtype of x and z, which must be positive, finite and of one dtype.
    """
    if x.dtype != z.dtype or not all(np.isfinite(v).all() and (v > 0).all() for v in (x, z)):
        raise ValueError("ratios must be positive and finite, of x and z in one dtype")
    order = np.argsort(x)
    count = np.empty(len(x), dtype=np.int64)
    count[order] = _dominated(x[order], z, gamma)
    return count


def _dominated(x: Float[Array, " N"], z: Float[Array, " P"], gamma: float) -> Int[Array, " N"]:
    """The same of x in ascending order."""
    if gamma == 1.0:
        return _not_above(x, np.sort(z))  # the quotient rounds to >= 1 exactly if x >= z
    values, copies = np.unique(z, return_counts=True)
    below = np.concatenate([[0], np.cumsum(copies)])
    with np.errstate(over="ignore", under="ignore"):
        return below[_boundary(x, values, x.dtype.type(gamma))]


def _not_above(x: Float[Array, " N"], z: Float[Array, " P"]) -> Int[Array, " N"]:
    """For each x, the number of z <= x, both ascending. Searches for the fewer in the more."""
    if len(z) >= len(x):
        return np.searchsorted(z, x, side="right")  # equal ratios count
    first = np.searchsorted(x, z, side="left")  # z is beaten by the x from this rank on
    return np.cumsum(np.bincount(first, minlength=len(x) + 1)[:-1])


def _boundary(x: Float[Array, " N"], values: Float[Array, " V"], gamma: np.floating) -> Int[Array, " N"]:
    """For each x, the number of values v with `x / v >= gamma`; x ascending, v ascending and distinct."""
    k = _not_above(x / gamma, values)
    # x / gamma and x / v round separately: step to where the comparison itself turns, a few floats away.
    last = len(values) - 1
    while (up := (k <= last) & (x / values[np.minimum(k, last)] >= gamma)).any():
        k = k + up
    while (down := (k > 0) & (x / values[np.maximum(k - 1, 0)] < gamma)).any():
        k = k - down
    return k


def dominated_by_majority(x: Float[Array, "Q N"], z: Float[Array, "Q P"], gamma: float) -> Int[Array, " N"]:
    """For each x, the number of z with `x / z >= gamma` in more than half of the queries; a draw does not count.

    The vote joins the queries of one pair (x, z), so pairs are visited, in blocks, as one comparison of ranks.
    """
    queries, points = x.shape
    population = z.shape[1]
    beaten = np.stack([dominated(*ratios, gamma) for ratios in zip(x, z, strict=True)])
    rank = np.argsort(np.argsort(z, axis=1, kind="stable"), axis=1)
    small = np.min_scalar_type(population)
    beaten, rank = beaten.astype(small), rank.astype(small)
    count = np.empty(points, dtype=np.int64)
    step = max(1, BLOCK // population)
    for start in range(0, points, step):
        block = slice(start, start + step)
        votes = np.zeros((len(count[block]), population), dtype=np.min_scalar_type(queries))
        for q in range(queries):
            votes += (rank[q] < beaten[q, block, None]).view(np.uint8)
        count[block] = [np.count_nonzero(of_x) for of_x in votes > queries // 2]
    return count
