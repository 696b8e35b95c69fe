"""`compare RUN_A RUN_B`: does one way of training leak less than another, on the same records?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audit.finished import Finished, FinishedTarget, same_records
from core.errors import UserError
from core.metrics import ENOUGH_FALSE_POSITIVES, NOMINAL_FPRS, auc, paired_auc_difference
from core.rundir import differences
from core.types import Estimate
from modules.compare.paired import mean_difference, tpr_difference

LEVEL = 0.95
NOT_COMPARED = ("run.log_dir", "run.workers", "run.time_log", "audit.report_log", "audit.redact", "audit.batch_size")


@dataclass(frozen=True)
class Measure:
    """One number of one attack in both runs, means over the targets."""

    attack: str
    measure: str  # "auc", "tpr@0.01"
    a: float
    b: float
    difference: Estimate  # b - a, paired; low = high = NaN where the targets show no spread
    corrected: Estimate  # the same at the level that allows for all numbers compared
    only_a: int | None  # of a TPR: members, over all targets, found in A alone
    only_b: int | None
    p_value: float | None  # of one target's TPR: McNemar's, exact for these thresholds

    @property
    def says(self) -> str:
        return _says(self.difference)


@dataclass(frozen=True)
class Comparison:
    a: str
    b: str
    targets: int
    members: int  # of the target with the fewest
    non_members: int
    measures: tuple[Measure, ...]
    changed: str  # settings that differ
    left_out: tuple[str, ...]  # attacks that only one of the runs has

    @property
    def verdict(self) -> str:
        """One sentence on B, allowing for the number of differences looked at."""
        judged = [(measure, _says(measure.corrected)) for measure in self.measures]
        less, more = ([m for m, says in judged if says == word] for word in ("less", "more"))
        looks = f"allowing for the {len(judged)} differences looked at"
        if less and more:
            return f"B leaks less by {_most(less)}, and more by {_most(more)} ({looks})"
        if less or more:
            return f"B leaks {'less' if less else 'more'}: {_most(less or more)} ({looks})"
        return f"A and B are not distinguishable by these attacks on these records ({looks}); that does not say equal"


def _says(difference: Estimate) -> str:
    if difference.high < 0:
        return "less"
    return "more" if difference.low > 0 else "not distinguishable"


def _most(measures: Sequence[Measure]) -> str:
    found = max(measures, key=lambda m: (m.measure == "auc", abs(m.difference.value)))
    value, low, high = (_signed(found, x) for x in (found.difference.value, found.corrected.low, found.corrected.high))
    return f"{found.attack}, {title(found.measure)} {value} [{low}, {high}]"


def _signed(measure: Measure, value: float) -> str:
    return f"{value:+.3f}" if measure.measure == "auc" else f"{100 * value:+.1f}%"


def title(measure: str) -> str:
    """`AUC`, `TPR at 1% FPR`."""
    return "AUC" if measure == "auc" else f"TPR at {100 * float(measure.partition('@')[2]):g}% FPR"


def compare(a: Finished, b: Finished) -> Comparison:
    """Paired differences of every attack that both runs have. Raises UserError where they cannot be paired."""
    pairs = [_paired(a, b, *targets) for targets in _matched(a, b)]
    attacks = [attack for attack in a.attacks if attack in b.attacks]
    if not attacks:
        raise UserError(f"no attack is in both: {a.name} has {_list(a.attacks)}, {b.name} has {_list(b.attacks)}")
    non_members = min(int((~one.member).sum()) for one, _ in pairs)
    fprs = [fpr for fpr in NOMINAL_FPRS if fpr * non_members >= ENOUGH_FALSE_POSITIVES]
    level = 1 - (1 - LEVEL) / (len(attacks) * (1 + len(fprs)))
    measures = [m for attack in attacks for m in _measures(attack, pairs, fprs, level)]
    changed = [{k: v for k, v in run.settings.items() if k not in NOT_COMPARED} for run in (a, b)]
    return Comparison(
        a=a.name,
        b=b.name,
        targets=len(pairs),
        members=min(int(one.member.sum()) for one, _ in pairs),
        non_members=non_members,
        measures=tuple(measures),
        changed=differences(*changed),
        left_out=tuple(sorted({*a.attacks} ^ {*b.attacks})),
    )


def _matched(a: Finished, b: Finished) -> Iterator[tuple[FinishedTarget, FinishedTarget]]:
    numbers = [[target.target for target in run.targets] for run in (a, b)]
    if numbers[0] != numbers[1]:
        raise UserError(
            f"{a.name} audits {_targets(numbers[0])}, {b.name} {_targets(numbers[1])}: a paired comparison needs the "
            "same (run.num_experiments); more targets can be added to a finished run"
        )
    if a.pool_digest and b.pool_digest and a.pool_digest != b.pool_digest:
        raise UserError(
            f"{a.name} and {b.name} were trained on other data: only audits of the same records can be compared pair "
            "by pair; use the same data: block and run.random_seed"
        )
    return zip(a.targets, b.targets, strict=True)


def _targets(numbers: Sequence[int]) -> str:
    return f"target{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _paired(
    a: Finished, b: Finished, one: FinishedTarget, other: FinishedTarget
) -> tuple[FinishedTarget, FinishedTarget]:
    """The same target in both runs, with its records in the same order."""
    seeds = [run.settings.get("run.random_seed") for run in (a, b)]
    why = f" (run.random_seed is {seeds[0]} in A, and {seeds[1]} in B)" if seeds[0] != seeds[1] else ""
    try:
        order = same_records(one, other)
    except UserError as error:
        raise UserError(f"{a.name} and {b.name} cannot be compared: {error}{why}") from None
    other = FinishedTarget(
        other.target,
        {name: column[order] for name, column in other.records.items()},
        other.member[order],
        {name: column[order] for name, column in other.scores.items()},
    )
    if unlike := int((one.member != other.member).sum()):
        raise UserError(
            f"{a.name} and {b.name} cannot be compared: {unlike:,} of {len(one.member):,} records are a member of "
            f"target {one.target} in one run and not in the other{why}. Change only what is to be compared, and keep "
            "run.random_seed: the same records are then members in both"
        )
    return one, other


def _measures(
    attack: str, pairs: Sequence[tuple[FinishedTarget, FinishedTarget]], fprs: Sequence[float], level: float
) -> Iterator[Measure]:
    scores = [(one.scores[attack], other.scores[attack], one.member) for one, other in pairs]
    aucs = np.array([[auc(s, member) for s in (a, b)] for a, b, member in scores])
    difference, corrected = (
        paired_auc_difference(b, a, member, level=which)
        if len(scores) == 1
        else mean_difference(aucs[:, 1] - aucs[:, 0], level=which)
        for which, (a, b, member) in ((LEVEL, scores[0]), (level, scores[0]))
    )
    yield Measure(attack, "auc", *map(float, aucs.mean(axis=0)), difference, corrected, None, None, None)
    for fpr in fprs:
        plain, strict = ([tpr_difference(*of, fpr, level=which) for of in scores] for which in (LEVEL, level))
        several = np.array([found.difference.value for found in plain])
        one = len(scores) == 1
        yield Measure(
            attack,
            f"tpr@{fpr:g}",
            float(np.mean([found.a for found in plain])),
            float(np.mean([found.b for found in plain])),
            plain[0].difference if one else mean_difference(several),
            strict[0].difference if one else mean_difference(several, level=level),
            sum(found.only_a for found in plain),
            sum(found.only_b for found in plain),
            plain[0].p_value if one else None,
        )


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Rows of compare.csv."""
    return [
        {
            "attack": m.attack,
            "measure": m.measure,
            "a": m.a,
            "b": m.b,
            "difference": m.difference.value,
            "low": m.difference.low,
            "high": m.difference.high,
            "b_leaks": m.says,
            "members_found_only_in_a": "" if m.only_a is None else m.only_a,
            "members_found_only_in_b": "" if m.only_b is None else m.only_b,
            "mcnemar_p_value": math.nan if m.p_value is None else m.p_value,
        }
        for m in comparison.measures
    ]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """compare.json; what is not known is null."""
    return {
        "schema": 1,
        "a": comparison.a,
        "b": comparison.b,
        "targets": comparison.targets,
        "level": LEVEL,
        "verdict": comparison.verdict,
        "changed": comparison.changed,
        "attacks_in_one_run_only": list(comparison.left_out),
        "measures": [
            {k: None if v == "" or (isinstance(v, float) and math.isnan(v)) else v for k, v in row.items()}
            for row in rows(comparison)
        ],
    }


def lines(comparison: Comparison) -> list[str]:
    """The table in the terminal."""
    header = ["Attack", "", "A", "B", "B - A", f"{LEVEL:.0%} interval", "B leaks"]
    cells = [header, *([*_numbers(m), m.says] for m in comparison.measures)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    align = [str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.rjust, str.ljust]
    table = ["  ".join(f(c, w) for f, c, w in zip(align, row, widths, strict=True)).rstrip() for row in cells]
    by = "a t interval over targets" if comparison.targets > 1 else "for this target model"
    counts = f"{comparison.members:,} members and {comparison.non_members:,} non-members"
    several = f"{comparison.targets} target models" if comparison.targets > 1 else "one target model"
    only = f"Only in one of the runs: {_list(comparison.left_out)}"
    return [
        f"A: {comparison.a}",
        f"B: {comparison.b}",
        f"Differ in: {comparison.changed or 'no setting that decides a result'}",
        "",
        *table,
        "",
        f"Paired differences on the same records: {several}, {counts}; intervals are {by}.",
        *([only] if comparison.left_out else []),
        f"{comparison.verdict}.",
    ]


def _numbers(m: Measure) -> list[str]:
    low, high = m.difference.low, m.difference.high
    a, b = (f"{x:.3f}" if m.measure == "auc" else f"{100 * x:.1f}%" for x in (m.a, m.b))
    interval = f"{_signed(m, low)} to {_signed(m, high)}" if math.isfinite(low) else "no interval"
    return [m.attack, title(m.measure), a, b, _signed(m, m.difference.value), interval]
