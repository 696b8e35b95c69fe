"""Which ranges hold training points of which model: every training point counts, not only a range's own record."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from core.types import Records
from dataset.ranges.base import Range, Together, inside_all
from dataset.ranges.base import rows as rows_of

BLOCK = 4_000_000  # (range, record) pairs looked at together


def others_inside(
    ranges: Range | Together,
    centers: Callable[[Int[Array, " n"]], Records],
    points: Int[Array, " N"],
    pool: Records,
    member: Bool[Array, "M D"],
) -> Int[Array, "M N"]:
    """How many training points of each model lie in each range, beside the record that the range was made from.

    centers: the centers of the ranges made from these records of the pool; asked for a block of them at a time.
    points: index into the pool of each range's own record. Labels count: a record of another label is in no range,
    however near. Works through blocks of ranges; nothing of size N x D is ever held.
    """
    found = np.zeros((len(member), len(points)), dtype=np.int64)
    labels = pool.y[points]
    for label in np.unique(labels):
        records = np.flatnonzero(pool.y == label)
        rows = np.flatnonzero(labels == label)
        inside, weights = rows_of(pool, records), member[:, records].astype(np.float32)
        size = max(1, BLOCK // len(records))
        for block in (rows[i : i + size] for i in range(0, len(rows), size)):
            near = inside_all(ranges, centers(points[block]), inside) & (records[None, :] != points[block][:, None])
            found[:, block] = _count(weights, near)
    return found


def _count(member: Float[Array, "M d"], near: Bool[Array, "n d"]) -> Int[Array, "M n"]:
    """Exact: float32 holds every count below 2^24."""
    return np.rint(member @ near.T.astype(np.float32)).astype(np.int64)
