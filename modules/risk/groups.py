"""The risk of groups: does the attack find more of some classes, or of some owners' records, than of others?

An average over all records hides a group that is fully exposed. The intervals of all groups hold together: with
many groups some would stand out by chance, so each gets its share of the error (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray as Array

from core.metrics import auc_interval, clopper_pearson, tpr_at_fpr
from core.types import Estimate, OperatingPoint

ENOUGH_RECORDS = 10  # members and non-members, each, for a group's numbers to say something about the group


@dataclass(frozen=True)
class GroupRisk:
    """One attack on one group. Intervals hold for all groups at once, at the level asked for."""

    group: Any
    members: int
    non_members: int
    auc: Estimate | None  # None where a side is empty
    tpr: Estimate | None  # share of the group's members found by the threshold for all records
    fpr: Estimate | None  # share of its non-members accused by that threshold
    own: OperatingPoint | None  # by a threshold of the group's own
    resolvable: bool  # enough members and non-members for the numbers to be about the group


def group_risks(
    scores: Shaped[Array, " N"],
    member: Bool[Array, " N"],
    group: Shaped[Array, " N"],
    *,
    nominal_fpr: float,
    level: float = 0.95,
) -> list[GroupRisk]:
    """Every group's AUC, and its TPR at a threshold for all records and at its own; in the order of group names.

    The global threshold is the loosest that accuses at most `nominal_fpr` of all non-members. It depends on
    non-members only, so the interval of a group's TPR there is exact (Clopper-Pearson); that of its FPR takes the
    threshold as given, of which the group's own non-members are a part. `own` is not None where the group's
    non-members can resolve `nominal_fpr`.
    """
    groups = np.unique(group)
    each = 1 - (1 - level) / len(groups)
    threshold = tpr_at_fpr(scores, member, nominal_fpr).threshold
    return [_risk(name, scores, member, group == name, threshold, nominal_fpr, each) for name in groups]


def _risk(
    name: Any,
    scores: Shaped[Array, " N"],
    member: Bool[Array, " N"],
    inside: Bool[Array, " N"],
    threshold: float,
    nominal_fpr: float,
    level: float,
) -> GroupRisk:
    s, m = scores[inside], member[inside]
    members, non_members = int(m.sum()), int((~m).sum())
    both = members > 0 and non_members > 0
    own = tpr_at_fpr(s, m, nominal_fpr, level=level) if both else None
    return GroupRisk(
        group=name.item() if hasattr(name, "item") else name,
        members=members,
        non_members=non_members,
        auc=auc_interval(s, m, level=level) if both else None,
        tpr=_share(s[m] >= threshold, level),
        fpr=_share(s[~m] >= threshold, level),
        own=own if own and own.resolvable else None,
        resolvable=min(members, non_members) >= ENOUGH_RECORDS,
    )


def _share(found: Bool[Array, " n"], level: float) -> Estimate | None:
    if not len(found):
        return None
    low, high = clopper_pearson(int(found.sum()), len(found), level=level)
    return Estimate(float(found.mean()), float(low), float(high))


def uneven(risks: list[GroupRisk], overall_auc: float) -> list[GroupRisk]:
    """The groups whose AUC is above that of all records with confidence, the most exposed first."""
    above = [r for r in risks if r.auc and r.resolvable and r.auc.low > overall_auc]
    return sorted(above, key=lambda r: -r.auc.value if r.auc else 0.0)
