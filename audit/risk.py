"""Who is at risk: every audited record by itself, and every group of records, under one attack.

The attack is the one that does best on rehearsals, where it is judged without the targets' memberships; so nothing
here is the best of several looks at the truth.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from audit.results import TargetResult
from audit.session import Session
from core.config import Call
from core.log import quiet
from core.metrics import across_models, auc, tpr_at_fpr
from core.registry import ATTACKS
from core.types import Estimate, Evidence
from modules.risk.groups import GroupRisk, group_risks
from modules.risk.records import Named, flip_rate, named_members, record_p_values

log = logging.getLogger(__name__)

FALSE_SHARE = 0.1  # of a list of names
REHEARSED = 32  # references whose OUT scores a record is compared with; more refine its p-value, at an attack each
MOST_GROUPS = 100  # of one column: more are listed in the CSV file only
NOMINAL_FPR = 0.1


@dataclass(frozen=True)
class TargetRisk:
    """The records of one target under the attack."""

    target: int
    scores: Float[Array, " N"]
    p_values: Float[Array, " N"] | None  # each record against itself; None where nothing could be rehearsed
    named: Named


@dataclass(frozen=True)
class GroupRow:
    """A group over all targets: means of what was found in each, its intervals good for all groups of the column."""

    group: Any
    members: int  # over all targets
    non_members: int
    auc: Estimate | None
    tpr: float | None  # at the threshold for all records
    fpr: float | None
    own_tpr: float | None  # at the group's own threshold, where its non-members resolve it
    resolvable: bool
    exposed: bool  # its AUC is above that of all records with confidence


@dataclass(frozen=True)
class Risk:
    attack: str
    order: int  # its place in audit.algorithm
    chosen: str  # how, in words
    targets: tuple[TargetRisk, ...]
    flips: Float[Array, " N"] | None  # None with fewer than 3 targets
    groups: Mapping[str, tuple[GroupRow, ...]]  # by column

    @property
    def resolution(self) -> float | None:
        """The smallest p-value that the references can show a record to have."""
        known = [t.p_values for t in self.targets if t.p_values is not None]
        return float(np.nanmin([np.nanmin(p) for p in known])) if known else None


def assess(session: Session, targets: Sequence[TargetResult], evidence: Callable[[int], Evidence]) -> Risk:
    """The risk of each record and group. Costs one attack for each rehearsal, see REHEARSED."""
    order, chosen = _strongest_on_rehearsals(session.config.attacks, evidence(targets[0].target))
    call = session.config.attacks[order]
    found = tuple(
        TargetRisk(
            target.target,
            target.attacks[order].scores,
            _own_p_values(call, evidence(target.target), target.attacks[order].scores),
            named_members(
                target.attacks[order].scores,
                target.member,
                q=FALSE_SHARE,
                draw=session.stream("named members", target.target),
            ),
        )
        for target in targets
    )
    return Risk(
        attack=targets[0].attacks[order].attack,
        order=order,
        chosen=chosen,
        targets=found,
        flips=_flips(targets, order) if len(targets) > 2 else None,
        groups={name: _group_rows(targets, order, column) for name, column in group_columns(session).items()},
    )


def group_columns(session: Session) -> dict[str, Array]:
    """The class of each audited record, where there are several, and the dataset's own group columns."""
    if session.data is None:
        return {}
    pool = session.data.pool
    columns = {} if session.data.is_text else {"class": pool.y}
    columns |= {name: np.asarray(column) for name, column in pool.groups.items()}
    columns = {name: column[session.points] for name, column in columns.items()}
    return {name: column for name, column in columns.items() if 1 < len(np.unique(column)) <= len(column) // 2}


def _strongest_on_rehearsals(calls: Sequence[Call], seen: Evidence) -> tuple[int, str]:
    """Place of the attack with the best mean AUC over two rehearsals; the first one where none can be held."""
    totals, count = np.zeros(len(calls)), 0
    for rehearsal, member in seen.rehearsals(limit=2):
        if member.any() and not member.all():
            totals += [_auc_or_nothing(call, rehearsal, member) for call in calls]
            count += 1
    if not count:
        return 0, "the first attack listed: there are too few references to rehearse on"
    return int(np.argmax(totals)), f"the strongest on {count} rehearsals, which never look at a target's memberships"


def _auc_or_nothing(call: Call, rehearsal: Evidence, member: Bool[Array, " N"]) -> float:
    try:
        with quiet("modules"):
            return auc(ATTACKS[call.name](rehearsal, **call.settings), member)
    except ValueError:  # a rehearsal has a pair fewer than the target: too few for this attack
        return 0.0


def _own_p_values(call: Call, seen: Evidence, scores: Float[Array, " N"]) -> Float[Array, " N"] | None:
    rows, trained_on = [], []
    for rehearsal, member in seen.rehearsals(limit=REHEARSED):
        try:
            with quiet("modules"):
                rows.append(ATTACKS[call.name](rehearsal, **call.settings))
        except ValueError:
            return None
        trained_on.append(member)
    return record_p_values(scores, np.array(rows), np.array(trained_on)) if rows else None


def _flips(targets: Sequence[TargetResult], order: int) -> Float[Array, " N"]:
    guessed = []
    for target in targets:
        scores = target.attacks[order].scores
        guessed.append(scores >= tpr_at_fpr(scores, target.member, NOMINAL_FPR).threshold)
    return flip_rate(np.array(guessed), np.array([target.member for target in targets]))


def _group_rows(targets: Sequence[TargetResult], order: int, column: Array) -> tuple[GroupRow, ...]:
    of_targets = [
        group_risks(target.attacks[order].scores, target.member, column, nominal_fpr=NOMINAL_FPR) for target in targets
    ]
    overall = float(np.mean([target.attacks[order].summary.auc.value for target in targets]))
    level = targets[0].attacks[order].summary.level
    rows = [_row(of_group, overall, 1 - (1 - level) / len(of_targets[0])) for of_group in zip(*of_targets, strict=True)]
    return tuple(sorted(rows, key=lambda row: -(row.auc.value if row.auc else -1.0)))


def _row(of_group: Sequence[GroupRisk], overall: float, level: float) -> GroupRow:
    aucs = [risk.auc for risk in of_group if risk.auc]
    if len(aucs) == len(of_group) > 1:
        estimate = across_models(np.array([one.value for one in aucs]), level=level)
    else:
        estimate = aucs[0] if len(aucs) == 1 == len(of_group) else None
    resolvable = all(risk.resolvable for risk in of_group)
    return GroupRow(
        group=of_group[0].group,
        members=sum(risk.members for risk in of_group),
        non_members=sum(risk.non_members for risk in of_group),
        auc=estimate,
        tpr=_mean([risk.tpr.value for risk in of_group if risk.tpr]),
        fpr=_mean([risk.fpr.value for risk in of_group if risk.fpr]),
        own_tpr=_mean([risk.own.tpr.value for risk in of_group if risk.own]),
        resolvable=resolvable,
        exposed=bool(resolvable and estimate and estimate.low > overall),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
