"""An audit's numbers as rows: what is averaged over target models, what is written to the CSV and NPZ files.

Averages are over target models, one value each. Scores of different models are never pooled: each model has
its own offset, and a pooled ROC would measure the offsets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray as Array

from audit.results import AttackResult, AuditResult, TargetResult
from core.metrics import across_models, auc_interval, tpr_at_fpr
from core.registry import ATTACKS
from core.types import Estimate, OperatingPoint

Row = dict[str, Any]


@dataclass(frozen=True)
class Average:
    """One number over the target models: mean, standard deviation, and the interval that fits their count.

    With two models or more the interval is a t interval over models (`models`), the honest answer to "how
    would another model of this kind do". With one model it is that model's interval over records (`records`).
    """

    value: float
    sd: float  # nan with one model
    models: Estimate  # low and high are nan with one model
    records: Estimate | None  # None with several models, or where the number has no record-level interval

    @property
    def interval(self) -> Estimate:
        """Value and interval to show, kept inside [0, 1]."""
        shown = self.records or self.models
        return Estimate(self.value, _clip(shown.low), _clip(shown.high))


@dataclass(frozen=True)
class AveragePoint:
    """The largest TPR at an FPR of at most `nominal_fpr`, averaged over target models."""

    nominal_fpr: float
    tpr: Average
    fpr: Average  # achieved
    resolvable: bool  # in every target


@dataclass(frozen=True)
class AttackAverage:
    """One attack over all target models."""

    attack: str
    order: int  # place in audit.algorithm; it fixes the attack's colour
    targets: int
    members: int  # fewest of any target
    non_members: int
    level: float
    auc: Average
    balanced_accuracy: Average
    at_fpr: tuple[AveragePoint, ...]
    certified_fpr: float  # largest of any target
    seconds: float  # over all targets
    blind: Average | None = None  # the blind baseline's AUC, the same beside every attack


def averages(result: AuditResult) -> tuple[AttackAverage, ...]:
    """Every attack averaged over the target models, in the order of audit.algorithm."""
    by_attack = zip(*(target.attacks for target in result.targets), strict=True)
    found = [_average_attack(order, attacks) for order, attacks in enumerate(by_attack)]
    blind = [target.blind.auc for target in result.targets if target.blind and not target.blind.by_lot]
    of_all = len(blind) == len(result.targets)  # the quick look where lots were drawn stands in the checks alone
    return tuple(replace(row, blind=_average(blind, row.level)) if of_all else row for row in found)


def by_strength(rows: Sequence[AttackAverage]) -> list[AttackAverage]:
    """Strongest first, by AUC; attacks without an AUC last."""
    return sorted(rows, key=lambda row: (math.isnan(row.auc.value), -row.auc.value, row.order))


def headline(row: AttackAverage) -> tuple[AveragePoint, ...]:
    """The two lowest FPRs that can be resolved; with fewer of them, the two highest there are."""
    points = sorted((point for point in row.at_fpr if point.nominal_fpr > 0), key=lambda point: -point.nominal_fpr)
    resolvable = sum(point.resolvable for point in points)
    return tuple(points[max(resolvable - 2, 0) :][:2])


def _average_attack(order: int, attacks: Sequence[AttackResult]) -> AttackAverage:
    summaries = [attack.summary for attack in attacks]
    level = summaries[0].level
    points = zip(*(summary.at_fpr for summary in summaries), strict=True)
    accuracies = [Estimate(s.balanced_accuracy, math.nan, math.nan) for s in summaries]
    return AttackAverage(
        attack=attacks[0].attack,
        order=order,
        targets=len(attacks),
        members=min(summary.members for summary in summaries),
        non_members=min(summary.non_members for summary in summaries),
        level=level,
        auc=_average([summary.auc for summary in summaries], level),
        balanced_accuracy=_average(accuracies, level),
        at_fpr=tuple(_average_point(list(same), level) for same in points),
        certified_fpr=max(summary.certified_fpr for summary in summaries),
        seconds=sum(attack.seconds for attack in attacks),
    )


def _average_point(points: Sequence[OperatingPoint], level: float) -> AveragePoint:
    return AveragePoint(
        nominal_fpr=points[0].nominal_fpr,
        tpr=_average([point.tpr for point in points], level),
        fpr=_average([point.fpr for point in points], level),
        resolvable=all(point.resolvable for point in points),
    )


def _average(estimates: Sequence[Estimate], level: float) -> Average:
    values = np.array([estimate.value for estimate in estimates], dtype=float)
    several = len(values) > 1
    models = across_models(values, level=level)
    return Average(
        value=float(values.mean()),
        sd=float(values.std(ddof=1)) if several else math.nan,
        models=models,
        records=None if several or math.isnan(estimates[0].low) else estimates[0],
    )


@dataclass(frozen=True)
class Verdict:
    """What the audit says, in words: one line, then what a reader needs to weigh it."""

    leaks: bool
    headline: str
    tried: int  # attacks
    leaking: int  # targets whose strongest attack beats guessing, allowing for all attacks and targets tried
    corrected: (
        Estimate | None
    )  # of a single target: AUC of the strongest attack, with the interval that allows for them
    point: AveragePoint | None  # of the strongest attack, at the smallest FPR that can be resolved
    backwards: tuple[str, ...]  # attacks that are significantly worse than guessing


def verdict(result: AuditResult, ranked: Sequence[AttackAverage]) -> Verdict:
    """Whether something was found, judged by intervals that allow for the number of attacks and targets tried.

    Bonferroni: each of k looks gets the level 1 - (1 - level) / k, so that all hold together. Never says that a
    model is safe: attacks that find nothing bound those attacks, and no others.
    """
    looks = len(ranked) * len(result.targets)
    strongest = [
        auc_interval(t.attacks[best].scores, t.member, level=1 - (1 - ranked[0].level) / looks)
        for t, best in ((target, strongest_of(target)) for target in result.targets)
    ]
    leaking = sum(estimate.low > 0.5 for estimate in strongest)
    tail = leaking == 0 and _some_point_beats_guessing(result)
    if leaking:
        headline = "An attack can tell members from non-members better than guessing"
    elif tail:
        headline = "An attack singles out some members, though on the whole it ranks no better than guessing"
    else:
        headline = "None of the attacks tried did measurably better than guessing"
    return Verdict(
        leaks=leaking > 0 or tail,
        headline=headline,
        tried=len(ranked),
        leaking=leaking,
        corrected=strongest[0] if len(strongest) == 1 else None,
        point=min((p for p in ranked[0].at_fpr if p.resolvable), key=lambda p: p.nominal_fpr, default=None),
        backwards=tuple(row.attack for row in ranked if row.auc.interval.high < 0.5),
    )


OTHER_AUDITS = {
    "ramia": "whether near copies of training records can be recognised (ramia)",
    "duci": "how much of a dataset the model used (duci)",
    "dp_audit": "whether a promise of differential privacy is kept (dp_audit)",
}


def not_tested(result: AuditResult) -> list[str]:
    """What this audit does not speak of, in words: a reader must not take silence for an all-clear."""
    ran = {section.name for section in result.sections}
    attacks = {attack.attack.partition(" (")[0] for attack in result.targets[0].attacks}
    inside = any(name in ATTACKS and ATTACKS.fact(name, "access") in INSIDE for name in attacks)
    return [
        *([] if inside else ["attackers who see the model's weights, its gradients or its training"]),
        "whether records can be reconstructed, or unknown attributes of them inferred",
        *(said for name, said in OTHER_AUDITS.items() if name not in ran),
        "models trained in another way, or on other data, than those listed here",
    ]


INSIDE = ("training", "white box")


def strongest_of(target: TargetResult) -> int:
    """Place of the attack with the largest AUC on this target."""
    return int(np.argmax([attack.summary.auc.value for attack in target.attacks]))


def _some_point_beats_guessing(result: AuditResult) -> bool:
    """At some resolvable FPR the whole interval of a TPR lies above it, allowing for the number of such looks."""
    looks = [
        (attack, target.member, point.nominal_fpr)
        for target in result.targets
        for attack in target.attacks
        for point in attack.summary.at_fpr
        if point.resolvable
    ]
    return any(
        tpr_at_fpr(a.scores, member, fpr, level=1 - (1 - a.summary.level) / len(looks)).tpr.low > fpr
        for a, member, fpr in looks
    )


def agreement(result: AuditResult, nominal_fpr: float = 0.1) -> Float[Array, "A A"]:
    """[a, b]: of the members that attack a finds at this FPR, the share that attack b finds too; mean over targets.

    Attacks in the order of audit.algorithm. NaN where a finds none.
    """
    of_targets = []
    for target in result.targets:
        points = [tpr_at_fpr(a.scores, target.member, nominal_fpr).threshold for a in target.attacks]
        found = np.array([a.scores >= t for a, t in zip(target.attacks, points, strict=True)])[:, target.member]
        both = (found[:, None] & found[None, :]).sum(axis=2)
        with np.errstate(invalid="ignore"):
            of_targets.append(both / found.sum(axis=1)[:, None])
    return np.mean(of_targets, axis=0)


def average_rows(rows: Sequence[AttackAverage]) -> list[Row]:
    """Rows of attack_result_average.csv: one for each attack, in the order of audit.algorithm."""
    return [dict(_average_cells(row)) for row in rows]


def _average_cells(row: AttackAverage) -> Iterator[tuple[str, Any]]:
    yield from {"attack": row.attack, "targets": row.targets}.items()
    yield from {"members": row.members, "non_members": row.non_members, "level": row.level}.items()
    yield from _spread("auc", row.auc)
    yield from _spread("balanced_accuracy", row.balanced_accuracy)
    for point in row.at_fpr:
        name = at(point.nominal_fpr)
        yield from _spread(f"tpr_{name}", point.tpr)
        yield f"achieved_fpr_{name}", point.fpr.value
        yield f"resolvable_{name}", point.resolvable
    yield "certified_fpr", row.certified_fpr
    if row.blind:
        yield from _estimate("blind_baseline_auc", row.blind.interval)


def _spread(name: str, average: Average) -> Iterator[tuple[str, float]]:
    yield name, average.value
    yield f"{name}_sd", average.sd
    yield f"{name}_low", average.models.low
    yield f"{name}_high", average.models.high
    yield f"{name}_record_low", average.records.low if average.records else math.nan
    yield f"{name}_record_high", average.records.high if average.records else math.nan


def target_rows(target: TargetResult) -> list[Row]:
    """Rows of exp/attack_result_<t>.csv: everything in each attack's Summary."""
    told = target.blind if target.blind and not target.blind.by_lot else None
    blind = dict(_estimate("blind_baseline_auc", told.auc)) if told else {}
    return [dict(_target_cells(target.target, attack)) | blind for attack in target.attacks]


def _target_cells(target: int, attack: AttackResult) -> Iterator[tuple[str, Any]]:
    summary = attack.summary
    yield from {"attack": attack.attack, "target": target}.items()
    yield from {"members": summary.members, "non_members": summary.non_members, "level": summary.level}.items()
    yield from _estimate("auc", summary.auc)
    yield "balanced_accuracy", summary.balanced_accuracy
    for point in summary.at_fpr:
        name = at(point.nominal_fpr)
        yield from _estimate(f"tpr_{name}", point.tpr)
        yield from _estimate(f"achieved_fpr_{name}", point.fpr)
        yield f"threshold_{name}", point.threshold
        yield f"resolvable_{name}", point.resolvable
    yield "certified_fpr", summary.certified_fpr


def _estimate(name: str, estimate: Estimate) -> Iterator[tuple[str, float]]:
    yield from {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}.items()


def at(nominal_fpr: float) -> str:
    """The column suffix of an operating point: `at_fpr_0.01`, `at_fpr_0`."""
    return f"at_fpr_{np.format_float_positional(nominal_fpr, trim='-')}"


def record_columns(result: AuditResult, target: TargetResult) -> dict[str, Array]:
    """Columns of exp/records_<t>.csv: what is known of each record, membership (1 = member), each attack's score.

    Known are its index into the pool, and where they were given its id, its label and its groups. A score that is
    called like one of these columns is called `<name> (score)`.
    """
    columns = dict(_known(result) if target.records is None else target.records)
    columns["membership"] = target.member.astype(np.int8)
    for attack in target.attacks:
        columns[f"{attack.attack} (score)" if attack.attack in columns else attack.attack] = attack.scores
    return columns


def _known(result: AuditResult) -> Iterator[tuple[str, Array]]:
    yield "index", result.points
    if result.ids is not None:
        yield "id", result.ids
    if result.labels is not None:
        yield "label", result.labels
    for name, column in result.groups.items():
        yield (f"group {name}" if name in ("index", "id", "label", "membership") else name), column


def arrays(target: TargetResult, ids: Shaped[Array, " N"] | None = None) -> dict[str, Array]:
    """Arrays of exp/attack_result_<t>.npz.

    `fpr tpr auc one_fpr one_tenth_fpr zero_fpr scores memberships` are those of the first attack listed, as
    the original tool wrote them (the three `_fpr` are TPRs at an FPR of 1%, 0.1% and 0). `<attack>/fpr` and
    so on are there for every attack, and `ids` where records have names.
    """
    found = {f"{attack.attack}/{key}": value for attack in target.attacks for key, value in _arrays(attack).items()}
    named = {} if ids is None else {"ids": ids}
    return _arrays(target.attacks[0]) | {"memberships": target.member} | named | found


def _arrays(attack: AttackResult) -> dict[str, Array]:
    tpr = {point.nominal_fpr: point.tpr.value for point in attack.summary.at_fpr}
    return {
        "fpr": attack.roc.fpr,
        "tpr": attack.roc.tpr,
        "auc": np.array(attack.summary.auc.value),
        "one_fpr": np.array(tpr.get(0.01, math.nan)),
        "one_tenth_fpr": np.array(tpr.get(0.001, math.nan)),
        "zero_fpr": np.array(tpr.get(0.0, math.nan)),
        "scores": attack.scores,
    }


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else value
