"""Parameters are chosen on rehearsals: references attacked by the other references, whose membership is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from core.types import Evidence

REHEARSALS = (
    4  # each attacks all N points, so the AUC of a candidate is already known far better than candidates differ
)

Candidate = TypeVar("Candidate")
Prepared = TypeVar("Prepared")


def rehearsed(
    evidence: Evidence,
    candidates: Sequence[Candidate],
    prepare: Callable[[Evidence], Prepared],
    score: Callable[[Prepared, Candidate], Float[Array, " N"]],
    limit: int = REHEARSALS,
) -> Candidate | None:
    """The candidate with the best mean AUC over at most `limit` rehearsals; of equals, the first.

    `score` must be the very function that is applied afterwards; `prepare` does what no candidate changes.
    None where nothing can be rehearsed: fewer than two pairs, or audited points of one kind only. The target
    and its population signals are never read, so nothing about its membership can be learnt here.
    """
    from core.metrics import auc

    totals = np.zeros(len(candidates))
    count = 0
    for rehearsal, member in evidence.rehearsals(limit):
        rehearsal, member = covered(rehearsal, member)
        if member.any() and not member.all():
            prepared = prepare(rehearsal)
            totals += [auc(score(prepared, candidate), member) for candidate in candidates]
            count += 1
    return candidates[int(np.argmax(totals))] if count else None


def covered(rehearsal: Evidence, member: Bool[Array, " N"]) -> tuple[Evidence, Bool[Array, " n"]]:
    """The points that have an IN and an OUT reference in this rehearsal: of whole pairs that is all of them."""
    covered = np.asarray(rehearsal.trained_on.any(axis=0) & ~rehearsal.trained_on.all(axis=0))
    return (rehearsal, member) if covered.all() else (rehearsal.at(covered), member[covered])
