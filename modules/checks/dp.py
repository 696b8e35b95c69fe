"""Is what an attack recognised within what the stated differential privacy allows?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Shaped
from numpy import ndarray as Array

from core.metrics import tpr_at_fpr


@dataclass(frozen=True)
class Breach:
    """At this nominal FPR more members were recognised than (ε, δ)-DP allows, beyond the error of the sample."""

    nominal_fpr: float
    tpr_low: float
    allowed: float


def allowed_tpr(fpr: float, epsilon: float, delta: float) -> float:
    """The largest TPR of any test at this FPR against an (ε, δ)-DP mechanism (Kairouz et al. 2015, Theorem 2.1).

    min(e^ε FPR + δ, 1 - e^-ε (1 - δ - FPR)), inside [0, 1].
    """
    first = 1.0 if epsilon > 700 else math.exp(epsilon) * fpr + delta
    return min(first, max(1 - math.exp(-epsilon) * (1 - delta - fpr), 0.0), 1.0)


def breaches(
    scores: Shaped[Array, " N"],
    member: Bool[Array, " N"],
    *,
    epsilon: float,
    delta: float,
    nominal_fprs: Sequence[float],
    level: float = 0.95,
) -> list[Breach]:
    """The nominal FPRs where the lower limit of the TPR is above what (ε, δ)-DP allows.

    The level holds for all of them at once (Bonferroni). This is the ordinary attack held against the line: a
    canary audit (`dp_audit:`) is the test that is made for the purpose, and far sharper.
    """
    looks = [fpr for fpr in nominal_fprs if fpr > 0]
    found = []
    for fpr in looks:
        low = tpr_at_fpr(scores, member, fpr, level=1 - (1 - level) / len(looks)).tpr.low
        if low > (allowed := allowed_tpr(fpr, epsilon, delta)):
            found.append(Breach(fpr, low, allowed))
    return found
