"""The share of a dataset that a model trained on, from membership guesses whose error rates are known.

If a share p of N records are members, guesses are positive at the rate p TPR + (1 - p) FPR, so

    p = (mean guess - FPR) / (TPR - FPR)                           (Tong et al. 2025, eq. 4; Rogan & Gladen 1978)

One pair of rates for the whole dataset is right where the used part was drawn at random. Where it was chosen by how
much its records leak, the estimate is off by Cov_i(TPR_i - FPR_i, used_i) / (TPR - FPR) (eq. 19); then it is made in
groups of records that leak alike, and averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.special import stdtrit

from core.types import Estimate
from modules.duci.groups import by_record
from modules.duci.rates import ENOUGH_MODELS, Known, Rates, deviations, gap_limits, rates

MANY = 1e6  # degrees of freedom: a normal distribution


@dataclass(frozen=True)
class Usage:
    """The estimated share, or why there is none: then every number of it is NaN."""

    raw: float  # may leave [0, 1], as noise does; errors and coverage are about it and its limits
    low: float
    high: float
    paper: Estimate  # raw, with the interval of eq. 8, which takes the rates as known
    own_variance: float  # the part of raw's variance that is this target's: its guesses, its training
    rates_variance: float  # the part that all targets share which use these rates
    refused: str  # in words; empty where there is an estimate
    tpr: float  # of all records, on rehearsals
    fpr: float
    advantage: Estimate  # TPR - FPR
    groups: int

    @property
    def clipped(self) -> Estimate:
        """The value and the headline interval within [0, 1], for people."""
        return Estimate(*(float(np.clip(v, 0, 1)) for v in (self.raw, self.low, self.high)))


def usage(
    target: Bool[Array, "M N"],
    known: Known,
    groups: Int[Array, "M N"] | None = None,
    *,
    record_rates: bool = False,
    level: float = 0.95,
    min_advantage: float = 0.1,
) -> Usage:
    """The share of the N records that the target trained on, with an interval that holds.

    target: guesses about the target; row m by the attack that rehearsal m met. All rows are alike where one attack
        serves all.
    known: guesses about the rehearsals, and the truth about them.
    groups: of the records, in which members and non-members are told apart equally well (`by_vulnerability`).
        None: all records are one group.
    record_rates: instead, every record has rates of its own (`by_record`).
    min_advantage: refuse where the lower limit of TPR - FPR (of any group) is below it: there the answer is noise.

    The variance has three parts, each over (TPR - FPR)^2. The target's guesses: p TPR (1 - TPR) + (1 - p) FPR (1 - FPR)
    over N. The rates: the same for the rehearsed records. And, from three rehearsals on, what models differ beyond
    that: it hits the target once, and the rates by 1 / M. It is not cut at zero (only the sum is, at half of the first
    two), for the intervals would be too wide where models do not differ; a t quantile with Satterthwaite's degrees of
    freedom allows for its being an estimate.
    """
    one = known.one_group()
    whole = rates(known, one)
    (lowest,) = gap_limits(known, one, whole, level)
    advantage = Estimate(float(whole.gap[0]), float(lowest), float(2 * whole.gap[0] - lowest))
    if record_rates:
        groups, of, limits = np.broadcast_to(np.arange(one.shape[1]), one.shape), by_record(known), None
    elif groups is None:
        groups, of, limits = one, whole, None
    else:
        of = rates(known, groups)
        limits = gap_limits(known, groups, of, level)
    common = {
        "tpr": float(whole.tpr[0]),
        "fpr": float(whole.fpr[0]),
        "advantage": advantage,
        "groups": len(of.tpr),
        "refused": _refusal(advantage, of.gap if limits is None else limits, min_advantage, level),
    }
    if common["refused"]:
        nan = float("nan")
        return Usage(nan, nan, nan, Estimate(nan, nan, nan), nan, nan, **common)

    size = np.bincount(groups.ravel(), minlength=len(of.tpr))
    of_group = (np.bincount(groups.ravel(), target.ravel(), len(of.tpr)) / size - of.fpr) / of.gap
    share = size / size.sum()
    raw = float(share @ of_group)
    # A record's own guess says nothing of its own rate of use: there the dataset's share stands for it.
    used = np.clip(np.full(len(share), raw) if record_rates else of_group, 0, 1)
    member, non_member = of.variances()
    guesses = float(share @ ((used * member + (1 - used) * non_member) / of.gap**2) / one.shape[1])
    seen, expected = deviations(known, groups, of, used / of.gap, (1 - used) / of.gap)
    own, shared, freedom = _added(guesses, expected, seen, known.models)
    half = float(stdtrit(freedom, (1 + level) / 2) * np.sqrt(own + shared))
    by_paper = _paper(target, of, groups, level)
    return Usage(raw, raw - half, raw + half, Estimate(raw, raw - by_paper, raw + by_paper), own, shared, **common)


def _added(guesses: float, expected: float, seen: float, models: int) -> tuple[float, float, float]:
    """The target's own variance, that of the rates, and the degrees of freedom of their sum."""
    if models < ENOUGH_MODELS:
        return guesses, expected / models, MANY
    independent = guesses + expected / models
    total = max(independent + (seen - expected) * (1 + 1 / models), independent / 2)
    shared = min(max(seen, expected / 2) / models, total / 2)
    measured = seen * (1 + 1 / models)
    return total - shared, shared, float(np.clip((models - 1) * (total / max(measured, 1e-300)) ** 2, models - 1, MANY))


def _paper(target: Bool[Array, "M N"], of: Rates, groups: Int[Array, "M N"], level: float) -> float:
    """Half the width of eq. 8: Student's interval of the mean of the N debiased guesses."""
    debiased = ((target - of.fpr[groups]) / of.gap[groups]).mean(axis=0)
    n = len(debiased)
    return float(stdtrit(n - 1, (1 + level) / 2) * debiased.std(ddof=1) / np.sqrt(n))


def _refusal(advantage: Estimate, gaps: Float[Array, " G"], floor: float, level: float) -> str:
    if not advantage.low >= floor:
        return (
            f"no answer: the attack hardly tells members of this dataset from non-members. Its TPR - FPR is "
            f"{advantage.value:.3f}, and at {100 * level:g}% confidence at least {advantage.low:.3f}, below the "
            f"{floor:g} that an estimate needs to be more than noise"
        )
    if weak := int((~(gaps >= floor)).sum()):
        return (
            f"no answer at this level of debiasing: in {weak} of {len(gaps)} groups of records the attack does not "
            f"tell members from non-members by {floor:g} (TPR - FPR); use fewer groups"
        )
    return ""
