"""The headline numbers for machines (summary.json) and for papers (tables.tex)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from audit.results import AuditResult
from audit.tables import AttackAverage, Average, at, not_tested, verdict

SCHEMA = 1  # raised when a key of summary.json changes its meaning or goes away


def summary(result: AuditResult, averages: Sequence[AttackAverage]) -> dict[str, Any]:
    """summary.json: every key is explained in documentation/report.md. What is not known is null, never NaN."""
    told = verdict(result, sorted(averages, key=lambda row: -row.auc.value))
    risk = result.risk
    return _plain(
        {
            "schema": SCHEMA,
            "dataset": result.dataset,
            "targets": [target.target for target in result.targets],
            "audited_records": len(result.points),
            "population": result.population,
            "verdict": {"leaks": told.leaks, "headline": told.headline},
            "not_tested": not_tested(result),
            "level": averages[0].level,
            "attacks": {row.attack: _attack(row) for row in averages},
            "checks": [{"name": c.name, "status": c.status, "finding": c.finding} for c in result.checks],
            "named_members": None
            if risk is None
            else {
                "attack": risk.attack,
                "false_share_at_most": risk.targets[0].named.q,
                "by_target": {
                    str(one.target): {"named": len(one.named.indices), "false": one.named.false} for one in risk.targets
                },
            },
            "exposed_groups": None
            if risk is None
            else {column: [row.group for row in rows if row.exposed] for column, rows in risk.groups.items()},
            "sections": {section.name: section.verdict for section in result.sections},
            "environment": result.environment,
        }
    )


def _attack(row: AttackAverage) -> dict[str, Any]:
    return {
        "auc": _average(row.auc),
        "balanced_accuracy": row.balanced_accuracy.value,
        "tpr": {at(point.nominal_fpr): {**_average(point.tpr), "resolvable": point.resolvable} for point in row.at_fpr},
    }


def _average(average: Average) -> dict[str, float]:
    return {"value": average.value, "low": average.interval.low, "high": average.interval.high}


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def latex(averages: Sequence[AttackAverage]) -> str:
    r"""A booktabs table of all attacks, strongest first: AUC and the TPRs that these data resolve, with intervals."""
    ranked = sorted(averages, key=lambda row: -row.auc.value)
    resolved = [i for i, point in enumerate(ranked[0].at_fpr) if point.resolvable]
    headers = ["Attack", "AUC", *(rf"TPR at {100 * ranked[0].at_fpr[i].nominal_fpr:g}\% FPR" for i in resolved)]
    lines = [
        rf"% {100 * ranked[0].level:g} percent intervals; needs \usepackage{{booktabs}}",
        rf"\begin{{tabular}}{{l{'r' * (len(headers) - 1)}}}",
        r"\toprule",
        " & ".join(headers) + r" \\",
        r"\midrule",
    ]
    for row in ranked:
        cells = [_cell(row.auc, 1), *(_cell(row.at_fpr[i].tpr, 100) for i in resolved)]
        lines.append(" & ".join([_escaped(row.attack), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _cell(average: Average, scale: int) -> str:
    digits, unit = (3, "") if scale == 1 else (1, r"\%")
    value, low, high = (scale * x for x in (average.value, average.interval.low, average.interval.high))
    text = f"{value:.{digits}f}{unit}"
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) and math.isfinite(high) else text


def _escaped(text: str) -> str:
    words = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum", "<": "textless", ">": "textgreater"}
    special = {c: rf"\{c}" for c in "&%$#_{}"} | {c: rf"\{word}{{}}" for c, word in words.items()}
    return "".join(special.get(c, c) for c in text)
