"""Two target models on the same records: how much more of its members does one give away than the other?

The records, and which of them are members, are the same for both; so what one model finds and the other misses is
counted record by record, and differences are known better than either number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray as Array
from scipy.special import bdtr, bdtrik, stdtrit

from core.metrics import clopper_pearson, tpr_at_fpr
from core.types import Estimate


@dataclass(frozen=True)
class TprDifference:
    """TPR of `b` minus TPR of `a`, each at its own threshold of the same nominal FPR."""

    a: float
    b: float
    difference: Estimate
    only_a: int  # members that are found in `a` and missed in `b`
    only_b: int
    p_value: float  # exact, two-sided, of McNemar's test; for these two thresholds, as if they were not estimated
    resolvable: bool


def tpr_difference(
    scores_a: Shaped[Array, " N"],
    scores_b: Shaped[Array, " N"],
    member: Bool[Array, " N"],
    nominal_fpr: float,
    *,
    level: float = 0.95,
) -> TprDifference:
    """How many more of the members `b` finds than `a`, at a true FPR of `nominal_fpr` in both; above 0.

    The interval allows for three things that are estimated: both thresholds, and who is found above them. A true
    threshold lies between two non-members of known ranks (order statistics); members found in one model only, between
    their Clopper-Pearson limits. Each of the four gets a quarter of the error of its side, so the interval holds for
    every distribution, however the two models' scores depend on each other; it is conservative.
    """
    a, b = (tpr_at_fpr(scores, member, nominal_fpr, level=level) for scores in (scores_a, scores_b))
    found_a, found_b = scores_a[member] >= a.threshold, scores_b[member] >= b.threshold
    only_a, only_b = int((found_a & ~found_b).sum()), int((found_b & ~found_a).sum())
    tail = (1 - level) / 8
    few_a, many_a = _found_between(scores_a, member, nominal_fpr, tail)
    few_b, many_b = _found_between(scores_b, member, nominal_fpr, tail)
    low, high = -_most(many_a, few_b, tail), _most(many_b, few_a, tail)
    value = b.tpr.value - a.tpr.value
    return TprDifference(
        a.tpr.value,
        b.tpr.value,
        Estimate(value, min(low, value), max(high, value)),
        only_a,
        only_b,
        mcnemar(only_a, only_b),
        a.resolvable and b.resolvable,
    )


def _found_between(
    scores: Shaped[Array, " N"], member: Bool[Array, " N"], nominal_fpr: float, tail: float
) -> tuple[Bool[Array, " m"], Bool[Array, " m"]]:
    """Members that are found surely, and possibly: at the lowest and the highest rank that the threshold may have.

    The number of non-members above the true threshold is Binomial; beyond each of the two ranks there is `tail`.
    """
    descending = np.sort(scores[~member])[::-1]
    n = len(descending)
    few, many = (int(np.ceil(max(bdtrik(q, n, nominal_fpr), 0.0))) for q in (tail, 1 - tail))
    ours = scores[member]
    surely = ours > descending[few - 1] if few else np.zeros(len(ours), dtype=bool)
    possibly = ours > descending[many] if many < n else np.ones(len(ours), dtype=bool)
    return surely, possibly


def _most(more: Bool[Array, " m"], less: Bool[Array, " m"], tail: float) -> float:
    """Upper limit of P(found by `more`) - P(found by `less`), from the members found by one of them only."""
    n = len(more)
    _, high = clopper_pearson(int((more & ~less).sum()), n, level=1 - tail, side="upper")
    low, _ = clopper_pearson(int((less & ~more).sum()), n, level=1 - tail, side="lower")
    return float(high - low)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value: of the members on which both disagree, each is as likely to be on either side."""
    n = only_a + only_b
    return float(min(1.0, 2 * bdtr(min(only_a, only_b), n, 0.5))) if n else 1.0


def mean_difference(differences: Float[Array, " T"], *, level: float = 0.95) -> Estimate:
    """Mean over targets with a t interval, inside [-1, 1]: each target of `b` is paired with the same one of `a`.

    low = high = NaN with one target, and where all targets differ by exactly the same amount.
    """
    count, mean = len(differences), float(differences.mean())
    if np.all(differences == differences[0]):
        return Estimate(mean, float("nan"), float("nan"))
    half = float(stdtrit(count - 1, (1 + level) / 2) * differences.std(ddof=1) / np.sqrt(count))
    return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0))
