"""`gate`: limits on what an audit may find, decided on the ends of intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from audit.finished import Finished, FinishedTarget
from core.errors import UserError
from core.gate import Gate, measure_of
from core.metrics import across_models, auc_interval, tpr_at_fpr
from core.types import Estimate

LEVEL = 0.95
FAILED, NOT_RESOLVED = 3, 4  # exit codes

Outcome = Literal["pass", "fail", "not resolvable"]


@dataclass(frozen=True)
class Judged:
    """One limit on one attack."""

    attack: str
    measure: str
    limit: float
    found: Estimate  # mean over the targets, with the interval that the decision rests on
    outcome: Outcome
    undecided: bool  # the limit lies within the interval


@dataclass(frozen=True)
class Ruling:
    gate: Gate
    judged: tuple[Judged, ...]
    targets: int
    level: float  # of the intervals

    @property
    def outcome(self) -> Outcome:
        """fail if a limit is broken, else not resolvable if one could not be judged, else pass."""
        outcomes = [one.outcome for one in self.judged]
        return "fail" if "fail" in outcomes else "not resolvable" if "not resolvable" in outcomes else "pass"

    @property
    def exit_code(self) -> int:
        return {"pass": 0, "fail": FAILED, "not resolvable": NOT_RESOLVED}[self.outcome]


def judge(run: Finished, gate: Gate) -> Ruling:
    """Every limit, on every attack that it is for.

    Not strict, a pass may be luck of no attack, but a failure must not be: its intervals allow for all attacks and
    limits looked at (Bonferroni). Strict, everything must be within its limit, each interval at its plain level.
    """
    attacks = run.attacks if gate.attack == "any" else [_named(run, gate.attack)]
    looks = len(attacks) * len(gate.max)
    level = LEVEL if gate.strict else 1 - (1 - LEVEL) / looks
    judged = tuple(
        _judge(run.targets, attack, measure, limit, gate.strict, level)
        for measure, limit in gate.max.items()
        for attack in attacks
    )
    return Ruling(gate, judged, len(run.targets), level)


def _named(run: Finished, name: str) -> str:
    found = [attack for attack in run.attacks if attack.casefold() == name.casefold()]
    if not found:
        raise UserError(f"gate.attack: {run.name} has no attack {name!r}; there are: {', '.join(run.attacks)}")
    return found[0]


def _judge(
    targets: Sequence[FinishedTarget], attack: str, measure: str, limit: float, strict: bool, level: float
) -> Judged:
    found, resolvable = _found(targets, attack, measure_of(measure), level)
    known = resolvable and math.isfinite(found.low) and math.isfinite(found.high)
    above, within = found.low > limit, found.high <= limit
    outcome: Outcome = "not resolvable" if not known else "fail" if (not within if strict else above) else "pass"
    return Judged(attack, measure, limit, found, outcome, known and not above and not within)


def _found(targets: Sequence[FinishedTarget], attack: str, fpr: float | None, level: float) -> tuple[Estimate, bool]:
    """Mean over targets with its interval (over records, of a single one), and whether the records resolve it."""
    if fpr is None:
        values, resolvable = [auc_interval(t.scores[attack], t.member, level=level) for t in targets], True
    else:
        points = [tpr_at_fpr(t.scores[attack], t.member, fpr, level=level) for t in targets]
        values, resolvable = [point.tpr for point in points], all(point.resolvable for point in points)
    if len(values) == 1:
        return values[0], resolvable
    return across_models(np.array([value.value for value in values]), level=level), resolvable


def as_json(ruling: Ruling) -> dict[str, Any]:
    """gate.json."""
    return {
        "schema": 1,
        "outcome": ruling.outcome,
        "exit_code": ruling.exit_code,
        "strict": ruling.gate.strict,
        "level": ruling.level,
        "limits": [
            {
                "attack": one.attack,
                "measure": one.measure,
                "limit": one.limit,
                "value": one.found.value,
                "low": one.found.low if math.isfinite(one.found.low) else None,
                "high": one.found.high if math.isfinite(one.found.high) else None,
                "outcome": one.outcome,
                "undecided": one.undecided,
            }
            for one in ruling.judged
        ],
    }


def lines(ruling: Ruling) -> list[str]:
    """The table in the terminal, and what it means."""
    header = ["Attack", "", "found", "interval", "limit", ""]
    cells = [header, *(_cells(one) for one in ruling.judged)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    align = [str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.ljust]
    table = ["  ".join(f(c, w) for f, c, w in zip(align, row, widths, strict=True)).rstrip() for row in cells]
    undecided = sum(one.undecided for one in ruling.judged)
    over = f"over {ruling.targets} targets" if ruling.targets > 1 else "of this target model"
    rule = "fail unless all of the interval is within" if ruling.gate.strict else "fail if all of the interval is above"
    return [
        *table,
        "",
        f"Intervals {over}, {100 * ruling.level:.4g}%. Rule: {rule} the limit.",
        _says(ruling, undecided),
    ]


def _says(ruling: Ruling, undecided: int) -> str:
    doubt = f"; {undecided} could not be decided: the limit is within the interval" if undecided else ""
    if ruling.outcome == "fail":
        return f"Gate: FAIL{doubt}."
    if ruling.outcome == "not resolvable":
        return f"Gate: NOT RESOLVABLE with these records: take more, or limit a higher false positive rate{doubt}."
    return f"Gate: pass{doubt}. It bounds the attacks that were tried, and no others."


def _cells(one: Judged) -> list[str]:
    text = (lambda x: f"{x:.3f}") if one.measure == "auc" else (lambda x: f"{100 * x:.3g}%")
    known = math.isfinite(one.found.low)
    interval = f"{text(one.found.low)} to {text(one.found.high)}" if known else "none"
    outcome = f"{one.outcome}{', undecided' if one.undecided else ''}"
    return [one.attack, one.measure, text(one.found.value), interval, text(one.limit), outcome]
