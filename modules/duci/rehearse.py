"""The attack as the target meets it, on models of known membership.

A rate is worth something only if it is the rate of the very attack that is applied. A reference can be attacked
only with references other than itself and its twin, so the target is attacked in the same layouts: once for each
pair, without that pair. Target and held-out pair then meet one and the same attack, made of all other references.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from core.types import Evidence

Attack = Callable[[Evidence], Float[Array, " N"]]


@dataclass(frozen=True)
class Rehearsals:
    """Scores of models of known membership. `layout` says which references each was attacked with."""

    scores: Float[Array, "M N"]
    trained_on: Bool[Array, "M N"]
    layout: Int[Array, " M"]  # row of `kept`
    kept: Bool[Array, "L R"]


def rehearse(evidence: Evidence, attack: Attack, limit: int | None = None) -> Rehearsals:
    """Attack every reference with the references that are not its twins; at most `limit` pairs, evenly spread.

    Raises ValueError without references.
    """
    if not len(evidence.references):
        raise ValueError("the rates of the attack are measured on references, and there are none")
    twins = evidence.twins()
    pairs = twins[np.sort(np.unique(twins.argmax(axis=1)))]  # of each pair, its first member's row
    if limit is not None and limit < len(pairs):
        pairs = pairs[np.unique(np.linspace(0, len(pairs) - 1, limit).round().astype(int))]
    models = [(layout, int(r)) for layout, pair in enumerate(pairs) for r in np.flatnonzero(pair)]
    scores = np.stack([attack(_seen(evidence, ~pairs[layout], r)) for layout, r in models])
    held_out = [r for _, r in models]
    return Rehearsals(scores, evidence.trained_on[held_out], np.array([layout for layout, _ in models]), ~pairs)


def attack_target(evidence: Evidence, rehearsals: Rehearsals, attack: Attack) -> Float[Array, "M N"]:
    """Scores of the target; row m by the attack that rehearsal m met: the same references, and as many."""
    by_layout = np.stack([attack(_seen(evidence, kept)) for kept in rehearsals.kept])
    return by_layout[rehearsals.layout]


def _seen(evidence: Evidence, kept: Bool[Array, " R"], model: int | None = None) -> Evidence:
    """The evidence with the references `kept`: of the target, or of reference `model` in its place."""
    return replace(
        evidence,
        target=evidence.target if model is None else evidence.references[model],
        references=evidence.references[kept],
        trained_on=evidence.trained_on[kept],
        population=evidence.population if model is None else evidence.population_references[model],
        population_references=evidence.population_references[kept],
        also={name: _seen(also, kept, model) for name, also in evidence.also.items()},
    )


def restricted(evidence: Evidence, columns: Int[Array, " n"]) -> Evidence:
    """The evidence about some of the points only."""
    return replace(
        evidence,
        target=evidence.target[:, columns],
        references=evidence.references[:, :, columns],
        trained_on=evidence.trained_on[:, columns],
        also={name: restricted(also, columns) for name, also in evidence.also.items()},
    )


def with_target(evidence: Evidence, other: Evidence) -> Evidence:
    """The references of `evidence` with the target of `other`, which has none of its own."""
    return replace(
        evidence,
        target=other.target,
        population=other.population,
        also={name: with_target(also, other.also[name]) for name, also in evidence.also.items()},
    )
