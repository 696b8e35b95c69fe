"""The aggregation is chosen on rehearsals: ranges scored for references, whose training points are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from modules.ramia.aggregation import Aggregation
from modules.ramia.scoring import Rehearsed


def tuned(
    rehearsed: Sequence[Rehearsed], candidates: Sequence[Aggregation]
) -> tuple[Aggregation | None, Float[Array, " C"]]:
    """The candidate with the best mean AUC over ranges in the rehearsals, and the AUC of each.

    In each rehearsal a reference was attacked at every sample as the target is, and the scores are aggregated with the
    very objects that are applied. Of equals, the first. Neither the target nor any twin of a rehearsed reference has
    a say. None, and NaNs, where nothing could be rehearsed: fewer than two pairs.
    """
    from core.metrics import auc

    found = [
        [auc(candidate(one.scores), one.member) for candidate in candidates]
        for one in rehearsed
        if one.member.any() and not one.member.all()
    ]
    if not found:
        return None, np.full(len(candidates), np.nan)
    aucs = np.mean(found, axis=0)
    return candidates[int(np.argmax(aucs))], aucs
