"""How texts are cut into batches of about the same length, so that little padding is computed.

The pool is sorted by length and cut into buckets, members and non-members alike; a batch holds members of one
bucket, padded to the bucket's longest. So the shape of a batch is the same whoever the members are, and several
models can compute theirs in one go. Which bucket comes when is the same for all models, too; which member is in
which batch is drawn from a model's own stream, for the whole pool, of which non-members are then left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from core.rng import stream

MOST_BUCKETS = 32
PER_BUCKET = 8  # batches of pool records; of members about half as many


@dataclass(frozen=True)
class Buckets:
    """Which bucket each record of the pool is in, and how many tokens its batches have."""

    of_record: Int[Array, " D"]
    width: Int[Array, " B"]
    slots: Int[Array, " B"]  # the most batches of members there can be

    @classmethod
    def of(cls, lengths: Int[Array, " D"], batch_size: int) -> Buckets:
        """Records of similar length, in parts of equal size."""
        count = int(np.clip(len(lengths) // (PER_BUCKET * batch_size), 1, MOST_BUCKETS))
        parts = np.array_split(np.argsort(lengths, kind="stable"), count)
        of_record = np.empty(len(lengths), np.int64)
        for bucket, part in enumerate(parts):
            of_record[part] = bucket
        width = np.array([lengths[part].max() for part in parts])
        return cls(of_record, width, np.array([-(-len(part) // batch_size) for part in parts]))

    def order(self, epoch: int) -> Int[Array, "slots 2"]:
        """(bucket, number of the batch in it) of every slot of an epoch, in the order they come."""
        slots = np.array([(b, i) for b, slots in enumerate(self.slots.tolist()) for i in range(slots)])
        return slots[stream(0, "length buckets", epoch).permutation(len(slots))]

    def batches(
        self, member: Bool[Array, " D"], rng: np.random.Generator, batch_size: int
    ) -> dict[tuple[int, int], Int[Array, " b"]]:
        """An epoch of one model: the members in each slot that has any. Each is in one, once."""
        order = rng.permutation(len(member))
        order = order[member[order]]
        found = {}
        for bucket in range(len(self.width)):
            inside = order[self.of_record[order] == bucket]
            count = -(-len(inside) // batch_size)
            for number, batch in enumerate(np.array_split(inside, count) if count else ()):
                found[bucket, number] = batch
        return found

    def steps(self, member: Bool[Array, " D"], batch_size: int) -> int:
        """How many batches an epoch of these members has."""
        return int((-(-np.bincount(self.of_record[member], minlength=len(self.width)) // batch_size)).sum())


def grouped(items: list, size: int) -> Iterator[list]:
    """`items` in runs of `size`; the last may be shorter."""
    yield from (items[start : start + size] for start in range(0, len(items), size))
