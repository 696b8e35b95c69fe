"""The aggregation is chosen on rehearsals: ranges scored for references, whose training points are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.types import Evidence
from modules.mia.tuning import REHEARSALS
from modules.ramia.aggregation import Aggregation
from modules.ramia.evidence import RangeEvidence


def tuned(
    evidence: RangeEvidence,
    attack: Callable[[Evidence], Float[Array, " NK"]],
    samples: int,
    candidates: Sequence[Aggregation],
    limit: int = REHEARSALS,
) -> tuple[Aggregation | None, Float[Array, " C"]]:
    """The candidate with the best mean AUC over ranges in at most `limit` rehearsals, and the AUC of each.

    Each rehearsal attacks the `samples` points of every range with `attack`, as the target is attacked, and
    aggregates with the very objects that are applied. Of equals, the first. Neither the target nor any twin of a
    rehearsed reference has a say. None, and NaNs, where nothing can be rehearsed: fewer than two pairs.
    """
    from core.metrics import auc

    found = []
    for rehearsal, trained_on in evidence.rehearsals(limit):
        member = trained_on.reshape(-1, samples)[:, 0]
        if member.any() and not member.all():
            scores = np.asarray(attack(rehearsal)).reshape(-1, samples)
            found.append([auc(candidate(scores), member) for candidate in candidates])
    if not found:
        return None, np.full(len(candidates), np.nan)
    aucs = np.mean(found, axis=0)
    return candidates[int(np.argmax(aucs))], aucs
