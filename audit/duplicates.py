"""Records that occur on both sides: copies, and near copies, of members among the non-members.

A non-member whose copy is a member was, for all that a model can show, trained on: an attack that says so counts as
wrong. With many of them no attack reaches a low false positive rate, and the audit understates the leak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from core.types import Records

NEAR = 0.1  # of the usual distance to the nearest member
ALIKE = 0.8  # cosine of the counts of word triples
LOOKED_AT = 1000  # non-members; distances to all members are looked at for so many


@dataclass(frozen=True)
class Duplicates:
    """Of the non-members looked at: how many have an equal, or a nearly equal, record among the members."""

    non_members: int
    equal: int
    looked_at: int  # for near copies
    near: int  # equal ones included

    @property
    def share(self) -> float:
        return max(self.equal / self.non_members, self.near / self.looked_at)


def duplicates(
    records: Records, points: Int[Array, " N"], member: Bool[Array, " N"], draw: np.random.Generator
) -> Duplicates:
    """Copies of members among the audited non-members, and near copies among a sample of them.

    Images and features: Euclidean distance at most a tenth of the median distance from a non-member to its
    nearest member, both measured on columns of equal spread. Text: cosine of the counts of word triples.
    """
    members, non_members = points[member], points[~member]
    keys = _keys(records, points)
    seen = set(keys[member].tolist())
    equal = sum(key in seen for key in keys[~member].tolist())
    some = np.sort(draw.permutation(non_members)[:LOOKED_AT])
    near = _near_texts(records, members, some) if records.texts is not None else _near_arrays(records, members, some)
    return Duplicates(len(non_members), equal, len(some), near)


def _keys(records: Records, points: Int[Array, " N"]) -> Array:
    if records.texts is not None:
        return np.array([hash(" ".join(records.texts[i].split()).casefold()) for i in points])
    rows = np.ascontiguousarray(records.x[points].reshape(len(points), -1))
    return np.array([hash(row.tobytes()) for row in rows])


def _near_arrays(records: Records, members: Int[Array, " m"], some: Int[Array, " s"]) -> int:
    theirs, ours = (_flat(records, index) for index in (members, some))
    centre, spread = theirs.mean(axis=0), theirs.std(axis=0)
    spread[spread == 0] = 1.0
    nearest = _nearest_distance((ours - centre) / spread, (theirs - centre) / spread)
    return int((nearest <= NEAR * np.median(nearest)).sum())


def _flat(records: Records, index: Int[Array, " k"]) -> Float[Array, "k d"]:
    return records.x[index].reshape(len(index), -1).astype(np.float32)


def _nearest_distance(ours: Float[Array, "s d"], theirs: Float[Array, "m d"], block: int = 4096) -> Float[Array, " s"]:
    """Distance of each of our rows to the nearest of theirs, in blocks of theirs."""
    best = np.full(len(ours), np.inf)
    square = np.einsum("ij,ij->i", ours, ours, dtype=np.float64)
    for start in range(0, len(theirs), block):
        rows = theirs[start : start + block]
        squares = square[:, None] + np.einsum("ij,ij->i", rows, rows, dtype=np.float64) - 2.0 * (ours @ rows.T)
        best = np.minimum(best, squares.min(axis=1))
    # float32 products leave an error of about 1e-6 of the squares: what is below it is a distance of 0
    best[best <= 1e-5 * np.maximum(square, 1e-30)] = 0.0
    return np.sqrt(best)


def _near_texts(records: Records, members: Int[Array, " m"], some: Int[Array, " s"]) -> int:
    from sklearn.feature_extraction.text import HashingVectorizer

    assert records.texts is not None
    triples = HashingVectorizer(ngram_range=(1, 3), n_features=2**20, alternate_sign=False, norm="l2")
    theirs, ours = (triples.transform([records.texts[i] for i in index]) for index in (members, some))
    return int(sum((ours[row] @ theirs.T).max() >= ALIKE for row in range(len(some))))
