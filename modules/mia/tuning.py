"""Parameters are chosen on rehearsals: references attacked by the other references, whose membership is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from core.types import Evidence
from modules.mia.moments import masked_mean

log = logging.getLogger(__name__)

REHEARSALS = (
    4  # each attacks all N points, so the AUC of a candidate is already known far better than candidates differ
)
UNTUNED_A = 0.3  # of RMIA, where there is nothing to learn it from; the paper's value for CIFAR-10

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


def fitted_slope(inside: Float[Array, "Q N"], out: Float[Array, "Q N"]) -> float:
    """`a` of mean IN = a (mean OUT) + 1 - a: least squares over the points, within 0 and 1."""
    of_in, of_out = 1.0 - inside, 1.0 - out  # the line passes through (1, 1)
    return float(np.clip((of_in * of_out).sum() / max(np.square(of_out).sum(), np.finfo(float).tiny), 0.0, 1.0))


def unrehearsed_a(attack: str, evidence: Evidence, p: Callable[[Float[Array, "Q N"]], Float[Array, "Q N"]]) -> float:
    """`a` where nothing can be rehearsed: the slope between the references' own IN and OUT means, or else 0.3.

    One pair of references already gives each point a model that trained on it and one that did not. The target is
    never looked at. p: from the stored signal to a probability.
    """
    both, _ = covered(evidence, np.zeros(evidence.target.shape[1], dtype=bool))
    if not both.target.shape[1]:
        log.warning("%s: a = %s, not tuned: no point has references that trained on it and others", attack, UNTUNED_A)
        return UNTUNED_A
    means = (masked_mean(both.references, where, p) for where in (both.trained_on, ~both.trained_on))
    a = round(fitted_slope(*means), 2)
    log.info("%s: a = %s, from the references' IN and OUT means: rehearsing needs 2 pairs of references", attack, a)
    return a
