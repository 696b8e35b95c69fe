"""The null test: scores against memberships drawn by lot. Whatever an attack does, there is nothing to find."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray as Array

from core.metrics import auc_interval
from core.types import Estimate


def null_auc(
    scores: Shaped[Array, " N"], member: Bool[Array, " N"], draw: np.random.Generator, *, level: float = 0.95
) -> Estimate:
    """AUC of the scores for a permutation of the memberships: its interval misses 0.5 in 1 - level of cases.

    It tests what stands between scores and verdict: the metric, its interval, ties, the join of scores with records.
    """
    return auc_interval(scores, draw.permutation(member), level=level)
