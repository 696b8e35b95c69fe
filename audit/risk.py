"""Who is at risk: every audited record by itself, and every group of records, under one attack.

The attack is the one that does best on rehearsals, where it is judged without the targets' memberships; so nothing
here is the best of several looks at the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from audit.gallery import exhibit
from audit.results import Exhibit, GroupRow, Risk, TargetResult, TargetRisk
from audit.session import Session
from core.config import Call
from core.log import quiet
from core.metrics import across_models, auc, tpr_at_fpr
from core.registry import ATTACKS
from core.types import Evidence
from modules.risk.calibrated import calibrated, tried
from modules.risk.groups import GroupRisk, group_risks
from modules.risk.records import flip_rate, named_members, record_p_values

FALSE_SHARE = 0.1  # of a list of names
REHEARSED = 32  # references whose OUT scores a record is compared with; more refine its p-value, at an attack each
NOMINAL_FPR = 0.1
CHECKED_FPR = 0.01  # at which calibration is tried on rehearsals
EXHIBITS = 12  # records in each gallery


def assess(session: Session, targets: Sequence[TargetResult], evidence: Callable[[int], Evidence]) -> Risk:
    """The risk of each record and group. Costs one attack for each rehearsal, see REHEARSED."""
    order, chosen = _strongest_on_rehearsals(session.config.attacks, evidence(targets[0].target))
    call = session.config.attacks[order]
    found = tuple(_of_target(session, call, order, target, evidence(target.target)) for target in targets)
    member = np.array([target.member for target in targets])
    guessed, below = (np.array(rows) for rows in zip(*(looked_at(target, order) for target in targets), strict=True))
    member_in, found_in = member.sum(axis=0), (guessed & member).sum(axis=0)
    exposure = np.divide(
        (below * member).sum(axis=0), member_in, out=np.full(len(member_in), np.nan), where=member_in > 0
    )
    risk = Risk(
        attack=targets[0].attacks[order].attack,
        order=order,
        chosen=chosen,
        targets=found,
        exposure=exposure,
        member_in=member_in,
        found_in=found_in,
        accused_in=(guessed & ~member).sum(axis=0),
        nominal_fpr=NOMINAL_FPR,
        flips=flip_rate(guessed, member) if len(targets) > 2 else None,
        groups={name: group_rows(targets, order, [c] * len(targets)) for name, c in group_columns(session).items()},
    )
    return replace(risk, **_galleries(session, risk))


def _of_target(session: Session, call: Call, order: int, target: TargetResult, seen: Evidence) -> TargetRisk:
    scores = target.attacks[order].scores
    rehearsed = _rehearsed(call, seen)
    own = None if rehearsed is None else calibrated(scores, *rehearsed)
    trial = None if rehearsed is None else tried(*rehearsed, CHECKED_FPR)
    helps = bool(trial and own and not np.isnan(own.z).any() and trial.calibrated_tpr >= trial.raw_tpr)
    return TargetRisk(
        target.target,
        scores,
        None if rehearsed is None else record_p_values(scores, *rehearsed),
        named_members(
            own.z if own and helps else scores,
            target.member,
            q=FALSE_SHARE,
            draw=session.stream("named members", target.target),
        ),
        None if own is None or np.isnan(own.p_values).all() else own.p_values,
        helps,
        trial,
    )


def looked_at(target: TargetResult, order: int) -> tuple[Bool[Array, " N"], Float[Array, " N"]]:
    """Which records are guessed to be members at NOMINAL_FPR, and the share of non-members below each (ties: half)."""
    scores = np.asarray(target.attacks[order].scores, dtype=np.float64)
    non_members = np.sort(scores[~target.member])
    below, not_above = (np.searchsorted(non_members, scores, side=side) for side in ("left", "right"))
    guessed = scores >= tpr_at_fpr(scores, target.member, NOMINAL_FPR).threshold
    return guessed, (below + not_above) / (2 * len(non_members))


def _galleries(session: Session, risk: Risk) -> dict[str, tuple[Exhibit, ...]]:
    judged = np.flatnonzero(risk.member_in)
    order = judged[np.lexsort((judged, -risk.exposure[judged]))]

    def show(rows: Array) -> tuple[Exhibit, ...]:
        redacted = session.config.audit.redact
        return tuple(
            exhibit(
                session.data,
                int(session.points[i]),
                float(risk.exposure[i]),
                f"found in {risk.found_in[i]} of {risk.member_in[i]} models that trained on it",
                redacted=redacted,
            )
            for i in rows
        )

    return {"most": show(order[:EXHIBITS]), "least": show(order[::-1][:EXHIBITS])}


def group_columns(session: Session) -> dict[str, Array]:
    """The class of each audited record, where there are several, and the dataset's own group columns."""
    pool = session.data.pool
    classes = not session.data.is_text and (session.given is None or session.given.labels_known)
    columns = {"class": pool.y} if classes else {}
    columns |= {name: np.asarray(column) for name, column in pool.groups.items()}
    return telling({name: column[session.points] for name, column in columns.items()})


def telling(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Those that divide the records into groups: several, and not one for nearly each record."""
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


def _rehearsed(call: Call, seen: Evidence) -> tuple[Float[Array, "R N"], Bool[Array, "R N"]] | None:
    """What the attack says of each reference, and who that trained on; None where it cannot be rehearsed."""
    rows, trained_on = [], []
    for rehearsal, member in seen.rehearsals(limit=REHEARSED):
        try:
            with quiet("modules"):
                rows.append(ATTACKS[call.name](rehearsal, **call.settings))
        except ValueError:
            return None
        if np.isnan(rows[-1]).any():  # the references were not asked what this attack reads of a target
            return None
        trained_on.append(member)
    return (np.array(rows), np.array(trained_on)) if rows else None


def group_rows(targets: Sequence[TargetResult], order: int, columns: Sequence[Array]) -> tuple[GroupRow, ...]:
    """Every group of a column, of which `columns` holds what each target's records say; the most exposed first."""
    found: dict[Any, list[GroupRisk]] = {}
    for target, column in zip(targets, columns, strict=True):
        for risk in group_risks(target.attacks[order].scores, target.member, column, nominal_fpr=NOMINAL_FPR):
            found.setdefault(risk.group, []).append(risk)
    overall = float(np.mean([target.attacks[order].summary.auc.value for target in targets]))
    level = 1 - (1 - targets[0].attacks[order].summary.level) / len(found)
    rows = [_row(found[group], overall, level) for group in sorted(found)]
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
