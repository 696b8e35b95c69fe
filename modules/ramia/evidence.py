"""What an attacker may see of a target at the samples of ranges."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from core.types import Evidence


@dataclass(frozen=True, kw_only=True)
class RangeEvidence(Evidence):
    """Evidence whose points are the K samples of N ranges, range by range, so of N K points.

    `trained_on` is of the range: a reference is IN for all samples of a range if it trained on any record in it.
    Samples are rarely training points themselves, and what an attack compares is how models that know something
    of the range behave there, against models that know nothing of it.

    Twins are told by `pair`, not by `trained_on`: the halves of two twins are complementary in records, but both may
    know one range, and then their rows no longer show that they are twins.
    """

    pair: Int[Array, " _"]  # of each reference, so (R,)

    def twins(self) -> Bool[Array, "R R"]:
        return self.pair[:, None] == self.pair[None, :]

    def _rehearse(self, r: int, others: Bool[Array, " R"]) -> Evidence:
        rehearsal = super()._rehearse(r, others)
        return replace(rehearsal, pair=self.pair[others])


REHEARSED_TWICE = 2  # pairs left out at most: in a rehearsal, and in the rehearsals of an attack that tunes itself


def decidable(held: Bool[Array, "R N"], pair: Int[Array, " R"]) -> Bool[Array, " N"]:
    """Which ranges have an IN and an OUT reference, whichever pairs a rehearsal leaves out.

    The others cannot be compared: all references know them, or none does. Without references all ranges are
    decidable. It looks at references only, so leaving ranges out by it tells nothing about the target.
    """
    pairs = np.unique(pair)
    if not len(pairs):
        return np.ones(held.shape[1], dtype=bool)
    left_out = min(REHEARSED_TWICE, len(pairs) - 1)
    with_in, with_out = (np.sum([side[pair == p].any(axis=0) for p in pairs], axis=0) for side in (held, ~held))
    return (with_in > left_out) & (with_out > left_out)
