"""From the scores of an owner's records to one score of the owner, whatever their number.

Where every record of a member owner leaks alike, the mean is right: its noise falls with the number of records. Where
one in many leaks, the maximum or the top few are. Which it is, is found out on rehearsals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt
from jaxtyping import Float, Int, Shaped
from numpy import ndarray as Array

from core.registry import Registry

AGGREGATIONS = Registry("aggregation")


@dataclass(frozen=True)
class Holdings:
    """Which records are whose. Records in the order of owners: those of owner u are `order[start[u]:start[u + 1]]`."""

    names: Shaped[Array, " U"]
    order: Int[Array, " n"]  # places of records
    start: Int[Array, " U_and_1"]

    @classmethod
    def of(cls, owner: Shaped[Array, " n"]) -> Holdings:
        """Owners in the order of their names."""
        names, number, sizes = np.unique(owner, return_inverse=True, return_counts=True)
        return cls(names, np.argsort(number, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))

    @classmethod
    def of_some(cls, owner: Shaped[Array, " n"], kept: Int[Array, " k"]) -> Holdings:
        """The owners of the records at `kept` alone, whose places stay those among all records."""
        part = cls.of(owner[kept])
        return cls(part.names, kept[part.order], part.start)

    @property
    def size(self) -> Int[Array, " U"]:
        return np.diff(self.start)

    def owners(self) -> Int[Array, " n"]:
        """Of each place in `order`, whose record it is."""
        return np.repeat(np.arange(len(self.size)), self.size)

    def sums(self, values: Shaped[Array, "*rows n"]) -> Shaped[Array, "*rows U"]:
        """Sum over each owner's records."""
        return np.add.reduceat(np.asarray(values)[..., self.order], self.start[:-1], axis=-1)

    def ranked(self, scores: Float[Array, " n"]) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
        """Scores, owner by owner, each owner's largest first; and the rank of each, from 0."""
        of_order = scores[self.order]
        by_owner = np.lexsort((-of_order, self.owners()))
        return of_order[by_owner], np.arange(len(of_order)) - np.repeat(self.start[:-1], self.size)


@AGGREGATIONS.register("mean", label="mean")
def mean(scores: Float[Array, " n"], held: Holdings) -> Float[Array, " U"]:
    """Mean of each owner's scores: right where all of an owner's records leak alike."""
    return held.sums(scores) / held.size


@AGGREGATIONS.register("max", label="max")
def maximum(scores: Float[Array, " n"], held: Holdings) -> Float[Array, " U"]:
    """Largest of each owner's scores."""
    return np.maximum.reduceat(scores[held.order], held.start[:-1])


@AGGREGATIONS.register("top_k", label="mean of the top {k}")
def top_k(scores: Float[Array, " n"], held: Holdings, *, k: Annotated[int, Ge(1)]) -> Float[Array, " U"]:
    """Mean of each owner's `k` largest scores; of all of them where there are fewer."""
    ordered, rank = held.ranked(scores)
    return np.add.reduceat(np.where(rank < k, ordered, 0.0), held.start[:-1]) / np.minimum(held.size, k)


@AGGREGATIONS.register("log_mean_exp", label="log-mean-exp of sharpness {sharpness:g}")
def log_mean_exp(
    scores: Float[Array, " n"], held: Holdings, *, sharpness: Annotated[float, Gt(0)] = 1.0
) -> Float[Array, " U"]:
    """log mean exp(b s) / b of each owner's scores: between the mean (b -> 0) and the maximum (b -> infinity).

    b = `sharpness` / the standard deviation of all scores given, so that it suits attacks of any scale.
    """
    if not np.isfinite(scores).all():
        raise ValueError("log-mean-exp needs finite scores: take max or top_k with this attack")
    spread = scores[held.order].std()
    if spread == 0:
        return mean(scores, held)
    b, most = sharpness / spread, maximum(scores, held)
    lifted = np.exp(b * (scores[held.order] - most[held.owners()]))
    return most + np.log(np.add.reduceat(lifted, held.start[:-1]) / held.size) / b


@dataclass(frozen=True)
class Aggregation:
    """A registered way to aggregate, with its settings. Tuning and the audit call this same object."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, scores: Shaped[Array, " n"], held: Holdings) -> Float[Array, " U"]:
        return AGGREGATIONS[self.name](np.asarray(scores, dtype=np.float64), held, **self.settings)

    @property
    def label(self) -> str:
        """In words, with every setting: `mean of the top 2`."""
        return AGGREGATIONS.fact(self.name, "label", self.name).format(**self.settings)


UNTUNED = Aggregation("mean")  # where nothing can be rehearsed


def grid(largest: int) -> list[Aggregation]:
    """What is tried when the aggregation is tuned over owners of up to `largest` records."""
    tops = [k for k in (2, 3, 5, 10) if k < largest]
    kinds = [Aggregation("mean"), Aggregation("max")] if largest > 1 else [Aggregation("mean")]
    sharp = (0.5, 1.0, 2.0) if largest > 1 else ()
    return [
        *kinds,
        *(Aggregation("top_k", {"k": k}) for k in tops),
        *(Aggregation("log_mean_exp", {"sharpness": sharpness}) for sharpness in sharp),
    ]
