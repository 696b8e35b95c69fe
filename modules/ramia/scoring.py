"""Every sample of every range scored, one block of ranges after the other: for the target, and in rehearsals.

In memory are one block's evidence and one number a sample for the target and for each rehearsal, never the signals
of all references at all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from core.types import Evidence
from modules.ramia.evidence import RangeEvidence


@dataclass(frozen=True)
class PointAttack:
    """A point attack in two steps: `shared` finds what all points have in common, `score` then needs one at a time."""

    score: Callable[[Evidence, Any], Float[Array, " n"]]
    shared: Callable[[Evidence], Any]


@dataclass(frozen=True)
class Rehearsed:
    """The ranges as they were scored for a reference, whose training points are known."""

    scores: Float[Array, "N K"]
    member: Bool[Array, " N"]


def scored(
    blocks: Iterable[RangeEvidence],
    some: RangeEvidence,
    attack: PointAttack,
    shape: tuple[int, int],
    rehearsals: int = 0,
    shared: Any = None,
) -> tuple[Float[Array, "N K"], list[Rehearsed]]:
    """Scores of the target at the K samples of all N ranges, `shape`, and in at most `rehearsals` rehearsals.

    `shared` is the target's, found on `some` of the ranges; a rehearsal's is found on the same ranges, by the same
    function. The scores do not depend on how the ranges are divided into blocks.
    """
    of_rehearsals = [attack.shared(rehearsal) for rehearsal, _ in some.rehearsals(rehearsals)]
    target = np.empty(shape)
    found = [Rehearsed(np.empty(shape), np.empty(shape[0], dtype=bool)) for _ in of_rehearsals]
    start = 0
    for block in blocks:
        here = slice(start, start + block.target.shape[1] // shape[1])
        start = here.stop
        target[here] = attack.score(block, shared).reshape(-1, shape[1])
        for k, (rehearsal, trained_on) in enumerate(block.rehearsals(rehearsals)):
            found[k].scores[here] = attack.score(rehearsal, of_rehearsals[k]).reshape(-1, shape[1])
            found[k].member[here] = trained_on[:: shape[1]]
    return target, found
