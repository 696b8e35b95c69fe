"""Write down what an audit found: CSV, NPZ and PNG files, one self-contained HTML page, and a table for the terminal.

Every file appears whole or not at all, and the same result gives the same bytes (the log of timings apart, to
which each run adds).
"""

from __future__ import annotations

import csv
import io
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audit import plots, risk_report, tables, templates
from audit.results import AuditResult, TargetResult
from audit.summary import latex, summary
from core.config import Call, min_pairs
from core.metrics import ENOUGH_FALSE_POSITIVES, ppv
from core.registry import ATTACKS
from core.rundir import write_atomic, write_json, write_text
from core.types import Estimate

if TYPE_CHECKING:
    from rich.table import Table

PRIORS = (0.5, 0.1, 0.01)
MOST_GROUPS = 40  # of one column in the page; all are in groups.csv
FIGURES_IN_PAGE = 8  # with more targets, their figures are linked, not shown: each weighs about 0.1 MB a figure


def write_report(result: AuditResult, folder: Path, *, log_times: bool = True) -> None:
    """Write all of `<log_dir>/report`: see design.md §6. Files of the same name are replaced."""
    averages = tables.averages(result)
    write_text(folder / "attack_result_average.csv", to_csv(tables.average_rows(averages)))
    write_json(folder / "summary.json", summary(result, averages))
    write_text(folder / "tables.tex", latex(averages))
    for target in result.targets:
        _write_target(result, target, folder / "exp")
    if result.risk:
        write_text(folder / "records.csv", columns_to_csv(risk_report.record_columns(result, result.risk)))
        if rows := risk_report.group_rows(result.risk.groups):
            write_text(folder / "groups.csv", to_csv(rows))
    _write_plots(result, folder)
    write_text(folder / "index.html", page(result, averages))
    if result.timings and log_times:
        log = folder / "log_time_analysis.log"
        earlier = log.read_text() + "\n" if log.exists() else ""  # what a resumed run did before it was stopped
        write_text(log, earlier + time_analysis(result, datetime.now()))


def _write_target(result: AuditResult, target: TargetResult, folder: Path) -> None:
    t = target.target
    write_text(folder / f"attack_result_{t}.csv", to_csv(tables.target_rows(target)))
    arrays = tables.arrays(target, result.ids if target.records is None else target.records.get("id"))
    write_atomic(folder / f"attack_result_{t}.npz", lambda file: np.savez(file, allow_pickle=False, **arrays))
    columns = tables.record_columns(result, target)
    columns |= risk_report.target_columns(result.risk, t) if result.risk else {}
    for one in result.screening:
        if one.target == t and one.iqr is not None:
            columns["lt_iqr"] = one.iqr
    write_text(folder / f"records_{t}.csv", columns_to_csv(columns))


def _write_plots(result: AuditResult, folder: Path) -> None:
    for log, stem in ((False, "ROC"), (True, "ROC_log")):
        for target in result.targets:
            title = f"ROC, target model {target.target}"
            image = plots.png(plots.roc_figure([target], log=log, title=title, promises=_promises(result)))
            _write_image(folder / "exp" / f"{stem}_{target.target}.png", image)
        if len(result.targets) > 1:
            title = f"ROC, mean of {len(result.targets)} target models"
            image = plots.png(plots.roc_figure(result.targets, log=log, title=title, promises=_promises(result)))
        _write_image(folder / f"{stem}_average.png", image)  # of one target, its own


def _write_image(path: Path, image: bytes) -> None:
    write_atomic(path, lambda file: file.write(image))


def to_csv(rows: Sequence[tables.Row]) -> str:
    """Rows as CSV. Numbers in full precision; what is not known (nan) is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else float(value)
    return value


def columns_to_csv(columns: Mapping[str, np.ndarray]) -> str:
    """Columns as CSV, each number in the shortest form that its own type reads back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.astype(str).tolist() for column in columns.values()), strict=True))
    return text.getvalue()


def time_analysis(result: AuditResult, now: datetime) -> str:
    """Seconds of each stage, their total, and of each attack, aligned."""
    attacks = [(f"{a.attack}, target {t.target}", a.seconds) for t in result.targets for a in t.attacks]
    total = sum(seconds for _, seconds in result.timings)
    width = max(len(name) for name, _ in (*result.timings, *attacks, ("total", 0)))
    lines = [f"{now:%Y-%m-%d %H:%M:%S}  stages"]
    lines += [f"  {name:<{width}}  {seconds:>12.3f} s" for name, seconds in (*result.timings, ("total", total))]
    lines += ["  of which attacks"]
    lines += [f"  {name:<{width}}  {seconds:>12.3f} s" for name, seconds in attacks]
    return "\n".join(lines) + "\n"


# --- the page --------------------------------------------------------------------------------------------------


def page(result: AuditResult, averages: Sequence[tables.AttackAverage]) -> str:
    """index.html: everything inline, no network, every value escaped."""
    from markupsafe import Markup

    environment = templates.environment()
    environment.filters |= {
        "auc": auc_text,
        "auc_interval": auc_interval,
        "rate": rate,
        "rate_interval": rate_interval,
        "share": share,
        "about": lambda value: share(float(f"{value:.3g}")),
        "seconds": seconds_text,
        "count": lambda number: f"{number:,}",
    }
    ranked = tables.by_strength(averages)
    script, digest = _script()
    return environment.get_template("report.html.j2").render(
        result=result,
        script=Markup(script),
        script_digest=digest,
        curves=[plots.readable(result.targets, log=log) for log in (False, True)],
        ranked=ranked,
        best=ranked[0],
        headline=tables.headline(ranked[0]),
        verdict=tables.verdict(result, ranked),
        not_tested=tables.not_tested(result),
        several=len(result.targets) > 1,
        swatch={row.attack: _swatch(row.order) for row in ranked},
        traced=any(one.iqr is not None for one in result.screening),
        screened_attacks=[row.attack for row in ranked if _without_references(row.attack, result)],
        agreement=tables.agreement(result).tolist() if len(ranked) > 1 else None,
        accusations=_accusations(ranked[0]),
        priors=PRIORS,
        roles=_roles(result.models),
        figures=_figures(result, ranked[0]),
        promises=_promises(result),
        strongest={target.target: tables.strongest_of(target) for target in result.targets},
        environment=_flat(result.environment),
        total=sum(seconds for _, seconds in result.timings),
        resolvable_from=ENOUGH_FALSE_POSITIVES / ranked[0].non_members,
        enough=ENOUGH_FALSE_POSITIVES,
        q=result.risk.targets[0].named.q if result.risk else None,
        stability=risk_report.stability(result.risk) if result.risk else None,
        most_groups=MOST_GROUPS,
        redacted=result.redacted,
    )


def _without_references(label: str, result: AuditResult) -> bool:
    """Whether an attack of this report needs no reference models, in its settings."""
    name = label.partition(" (")[0]
    if name not in ATTACKS or ATTACKS.fact(name, "needs_references", True):
        return False
    settings = next(attack.settings for attack in result.targets[0].attacks if attack.attack == label)
    return min_pairs(Call(name, settings)) == 0


def _script() -> tuple[str, str]:
    """The page's own script, and its digest: the page lets no other one run."""
    text = (Path(templates.__file__).parent / "report.js").read_text()
    return text, b64encode(sha256(text.encode()).digest()).decode()


def _figures(result: AuditResult, best: tables.AttackAverage) -> dict[str, Any]:
    """Inline SVG of the page's figures: of the whole audit, and by target where there are several, but not many."""
    from markupsafe import Markup

    def rocs(targets: Sequence[TargetResult], name: str) -> list[Markup]:
        figures = []
        for log in (False, True):
            figure = plots.roc_figure(targets, log=log, legend=False, promises=_promises(result))
            about = f"ROC curves of all attacks, {name}, {'logarithmic' if log else 'linear'} axes"
            figures.append(Markup(plots.svg(figure, about, about)))
        return figures

    def scores(target: TargetResult, order: int, place: str) -> Markup:
        about = f"Scores of {target.attacks[order].attack} for members and non-members, target model {target.target}"
        return Markup(plots.svg(plots.score_figure(target.attacks[order], target.member), f"{place} {about}", about))

    shown = result.targets if 1 < len(result.targets) <= FIGURES_IN_PAGE else ()
    return {
        "roc": rocs(result.targets, "all target models"),
        "scores": scores(result.targets[0], best.order, "first"),
        "targets": {
            target.target: (
                *rocs([target], f"target model {target.target}"),
                scores(target, tables.strongest_of(target), "again"),
            )
            for target in shown
        },
    }


def _promises(result: AuditResult) -> list[tuple[float, float]]:
    """(ε, δ) of the targets that were trained with differential privacy, each once."""
    audited = {target.target for target in result.targets}
    said = {(row.get("epsilon"), row.get("delta")) for row in result.models if row.get("id") in audited}
    return sorted((float(e), float(d)) for e, d in said if e is not None and d is not None and math.isfinite(e))


def _swatch(order: int) -> dict[str, str]:
    colour, dash = plots.style(order)
    return {"colour": colour, "dash": "" if isinstance(dash, str) else " ".join(f"{1.6 * x:g}" for x in dash[1])}


def _accusations(best: tables.AttackAverage) -> list[dict[str, Any]]:
    """What an accusation by the strongest attack is worth, at each FPR that can be resolved."""
    points = [point for point in best.at_fpr if point.resolvable]
    return [
        {
            "nominal": point.nominal_fpr,
            "tpr": point.tpr.interval,
            "one_in": round(1 / point.nominal_fpr),
            "ppv": [float(ppv(point.tpr.value, point.nominal_fpr, prior)) for prior in PRIORS],
        }
        for point in points
    ]


def _roles(models: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each role: how many models, and mean and standard deviation of their accuracies."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for model in models:
        found.setdefault(str(model.get("role", "model")), []).append(model)
    return {role: {"count": len(rows), **_accuracies(rows)} for role, rows in found.items()}


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float] | None]:
    def spread(values: list[float]) -> tuple[float, float] | None:
        return (
            (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan) if values else None
        )

    both = [r for r in rows if r.get("train_acc") is not None and r.get("test_acc") is not None]
    return {
        "train_acc": spread([row["train_acc"] for row in rows if row.get("train_acc") is not None]),
        "test_acc": spread([row["test_acc"] for row in rows if row.get("test_acc") is not None]),
        "gap": spread([row["train_acc"] - row["test_acc"] for row in both]),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted names and plain text."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, str(value))]
    return found


# --- numbers as text -------------------------------------------------------------------------------------------


def rate(value: float) -> str:
    """A measured share, in percent with three digits: `25.2%`, `0.0183%`; never rounded to 0% or 100%."""
    if not math.isfinite(value):
        return "–"
    if 0 < value < 1e-5:
        return "<0.001%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return "0%" if value == 0 else f"{100 * value:#.3g}".removesuffix(".") + "%"


def share(value: float) -> str:
    """A given share, in percent: `1%`, `0.01%`."""
    return f"{100 * value:.10g}%"


def auc_text(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def auc_interval(estimate: Estimate) -> str:
    """`0.861 to 0.867`, or why there is none."""
    return _interval(estimate, auc_text)


def rate_interval(estimate: Estimate) -> str:
    return _interval(estimate, rate)


def _interval(estimate: Estimate, text: Any) -> str:
    known = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    return f"{text(estimate.low)} to {text(estimate.high)}" if known else "no interval"


def seconds_text(value: float) -> str:
    """`0.250 s`, `61.2 s`, `12 min 5 s`, `3 h 20 min`."""
    if value < 100:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


# --- the terminal ----------------------------------------------------------------------------------------------


def terminal_table(result: AuditResult) -> Table:
    """The attacks, strongest first: AUC with its interval, TPR at the lowest FPRs that these data resolve."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    ranked = tables.by_strength(tables.averages(result))
    shown = [point.nominal_fpr for point in tables.headline(ranked[0])]
    count = len(result.targets)
    title = f"Membership inference, mean of {count} target models" if count > 1 else "Membership inference"
    caption = f"n/r: not resolvable with {ranked[0].non_members:,} non-members"
    table = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    table.add_column("Attack", overflow="fold")
    blind = ranked[0].blind
    baseline = [f"{auc_text(blind.value)} ({auc_interval(blind.interval)})"] if blind else []
    headers = ["AUC", f"{ranked[0].level:.0%} interval", *(f"TPR at {share(fpr)} FPR" for fpr in shown)]
    for header in [*headers, *(["Blind baseline" for _ in baseline])]:
        table.add_column(header, justify="right", no_wrap=True)
    for row in ranked:
        points = {point.nominal_fpr: point for point in row.at_fpr}
        tprs = [rate(points[f].tpr.value) if f in points and points[f].resolvable else "n/r" for f in shown]
        table.add_row(Text(row.attack), auc_text(row.auc.value), auc_interval(row.auc.interval), *tprs, *baseline)
    return table


def print_summary(result: AuditResult, folder: Path) -> None:
    """The table and where the report is, on stdout; without colour or lines where that is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    table = terminal_table(result)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
        table.box = None
    console.print(table)
    for section in result.sections:
        console.print(f"{section.title}: {section.verdict}", markup=False, soft_wrap=True)
    console.print("Report:", str(folder / "index.html"), markup=False, soft_wrap=True)
