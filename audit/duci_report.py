"""What DUCI found, written down: usage.csv, errors.csv, the figure, and the section of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from audit import plots, templates
from audit.duci_dataset import ALL
from audit.report import rate, share, to_csv
from audit.results import Section
from core.rundir import write_atomic, write_text
from modules.duci.answers import METHODS, Answer, drifts, means, method_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from audit.duci import Task


def write(task: Task, found: list[Answer], synthetic: list[Answer]) -> Section:
    folder = task.session.config.report_dir / "duci"
    write_text(folder / "usage.csv", to_csv([answer.row() for answer in (*found, *synthetic)]))
    synthetic = [a for a in synthetic if a.part == ALL]
    if errors := method_errors(synthetic):
        write_text(folder / "errors.csv", to_csv([vars(error) for error in errors]))
    figure = usage_figure(synthetic or [a for a in found if a.part == ALL], task.method.level)
    image = plots.png(figure)
    write_atomic(folder / "usage.png", lambda file: file.write(image))
    about = "Estimated against true share of the dataset that each model trained on"
    html = _page(task, found, synthetic, plots.svg(figure, "duci", about))
    return Section("duci", "How much of the dataset was used", _verdict(task, found[0], synthetic), html)


def _verdict(task: Task, first: Answer, synthetic: list[Answer]) -> str:
    """What is known of the first target, and how the same procedure did where the truth was set."""
    n, u = len(task.x), first.usage.clipped
    if first.usage.refused:
        return f"Of the {n:,} records of X, no share can be given for {first.model}: {first.usage.refused}."
    text = (
        f"{first.model.capitalize()} trained on {rate(u.value)} of the {n:,} records of X ({share(task.method.level)} "
        f"interval {rate(u.low)} to {rate(u.high)}; in truth {rate(first.truth)})."
    )
    if synthetic:
        errors = {error.method: error.largest for error in method_errors(synthetic)}
        low, high = share(min(task.proportions)), share(max(task.proportions))
        text += (
            f" Over {len(synthetic)} synthetic targets that used {low} to {high} of it, the mean absolute error is at "
            f"most {errors[METHODS['duci']]:.3f} at any share (direct aggregation: {errors[METHODS['direct']]:.3f}), "
            f"and the interval holds the truth in {sum(a.covered for a in synthetic)} of {len(synthetic)}."
        )
        if off := [d for d in drifts(synthetic, task.method.level) if not d.holds]:
            where = ", ".join(f"{share(d.proportion)} ({d.error.value:+.3f})" for d in off)
            text += f" It is off by more than its noise explains at {where}."
    return text


def usage_figure(shown: Sequence[Answer], level: float) -> Figure:
    """Estimate against truth, with the headline interval, and the baselines beside it."""
    axes = plots.new_axes((7.4, 4.9), (0.1, 0.11, 0.62, 0.85))
    axes.plot([0, 1], [0, 1], color=plots.MUTED, linewidth=1, dashes=(4, 3), label="truth", zorder=1)
    truth = np.array([a.truth for a in shown])
    trials = max((a.trial for a in shown), default=0) + 1
    apart = truth + 0.04 * (np.array([a.trial for a in shown]) - (trials - 1) / 2) / trials  # to be seen
    for k, (method, name) in enumerate((m, METHODS[m]) for m in ("direct", "score", "mle")):
        values = np.array([getattr(a, method) for a in shown])
        if not np.isnan(values).all():
            colour, _ = plots.style(k + 1)
            axes.plot(apart, values, "sD^"[k], markersize=3.5, alpha=0.55, color=colour, label=name, linewidth=0)
    given = [(at, a.usage) for at, a in zip(apart, shown, strict=True) if not a.usage.refused]
    if given:
        bars = np.array([(u.raw - u.low, u.high - u.raw) for _, u in given]).T
        look = {"fmt": "o", "markersize": 4, "elinewidth": 1, "color": plots.style(0)[0], "zorder": 9}
        label = f"DUCI, {share(level)} interval"
        axes.errorbar([at for at, _ in given], [u.raw for _, u in given], bars, label=label, **look)
    axes.set_xlim(-0.04, 1.04)
    axes.set_xlabel("Share of X that the model trained on")
    axes.set_ylabel("Estimated share")
    axes.grid(color=plots.MUTED, alpha=0.22, linewidth=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, labelcolor=plots.INK)
    return axes.figure


def _page(task: Task, found: list[Answer], synthetic: list[Answer], figure: str) -> str:
    from markupsafe import Markup

    environment = templates.environment()
    environment.filters |= {"rate": rate, "share": share, "count": lambda n: f"{n:,}", "three": _three}
    answered = [a for a in synthetic if not a.usage.refused]
    of_p = {p: [a for a in answered if a.proportion == p] for p in task.proportions}
    drifted = drifts(answered, task.method.level)
    return environment.get_template("duci.html.j2").render(
        task=task,
        found=found,
        synthetic=synthetic,
        answered=answered,
        by_proportion=[{"drift": d, "mean": means(of_p[d.proportion]), "answers": of_p[d.proportion]} for d in drifted],
        carries_over=all(d.holds for d in drifted),
        errors=method_errors(synthetic),
        figure=Markup(figure),
    )


def _three(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
