"""What a DP audit found, written down: report/dp_audit/ and the section of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit import plots, tables, templates
from audit.dp_audit_runs import Arm
from audit.results import Section
from core.metrics import roc
from core.rng import stream
from core.rundir import write_atomic, write_text
from modules.dp_audit import along_guesses, ranked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from audit.dp_audit import Audited, Found
    from audit.dp_audit_setup import Setup


def write(setup: Setup, found: Sequence[Found], folder: Path) -> Section:
    """The CSV and PNG files, and the section of the report."""
    from audit.report import columns_to_csv, to_csv

    write_text(folder / "dp_audit.csv", to_csv([verdict_row(setup, one) for one in found]))
    write_text(folder / "bounds.csv", to_csv([row for one in found for row in bound_rows(one)]))
    for one in found:
        for arm, of_arm in one.arms:
            for t, audited in enumerate(of_arm):
                columns = {"member": audited.run.member.astype(int), "score": audited.run.scores}
                write_text(folder / f"canaries_{arm.name}_{t}.csv", columns_to_csv(columns))
    figures = {"epsilon_by_guesses": guesses_figure(setup, found), "ROC": roc_figure(setup, found)}
    for stem, figure in figures.items():
        image = plots.png(figure)
        write_atomic(folder / f"{stem}.png", lambda file, image=image: file.write(image))
    return Section("dp_audit", "Differential privacy (DP audit)", sentence(found), _html(setup, found, figures))


def sentence(found: Sequence[Found]) -> str:
    """`DP-SGD: ε ≥ 0.41 at δ = 1e-05 (95% confidence), the claim … is consistent …; without DP: ε ≥ 4.2 …`."""
    parts = []
    for one in found:
        assumed = "" if one.bound.family == "none" else f", {one.bound.family} family assumed"
        confidence = f"{one.bound.level:.0%} confidence{assumed}"
        text = f"{one.title}: ε ≥ {one.bound.eps:.2f} at δ = {one.bound.delta:g} ({confidence})"
        parts.append(f"{text}. {one.verdict.sentence}" if one.verdict else f"{text}.")
    return " ".join(parts)


def verdict_row(setup: Setup, one: Found) -> tables.Row:
    """A training algorithm in dp_audit.csv: what all its audits together show, and what was claimed."""
    return {
        "training": one.title,
        "epsilon_lower_bound": one.bound.eps,
        "delta": one.bound.delta,
        "level": one.bound.level,
        "family": one.bound.family,
        "epsilon_accounted": math.nan if one.accounted is None else one.accounted,
        "epsilon_claimed": setup.claim.epsilon if setup.claim else math.nan,
        "verdict": one.verdict.word if one.verdict else "no claim",
        "audits": sum(len(of_arm) for _, of_arm in one.arms),
        "largest_that_could_be_shown": one.bound.largest,
    }


def bound_rows(one: Found) -> list[tables.Row]:
    """A run in bounds.csv, at its share of the error."""
    return [
        {
            "training": one.title,
            "canaries": arm.kind,
            "score": arm.score,
            "run": t,
            "epsilon_lower_bound": audited.bound.eps,
            "delta": audited.bound.delta,
            "level": audited.bound.level,
            "estimator": audited.bound.estimator,
            "family": audited.bound.family,
            "m": audited.bound.m,
            "guesses": audited.bound.r,
            "right": audited.bound.right,
            "choice": audited.bound.guesses,
            "largest_that_could_be_shown": audited.bound.largest,
            "exploratory_maximum_no_bound": audited.exploratory.eps,
            "train_acc": audited.run.facts.get("train_acc", math.nan),
            "test_acc": audited.run.facts.get("test_acc", math.nan),
        }
        for arm, of_arm in one.arms
        for t, audited in enumerate(of_arm)
    ]


# --- figures -----------------------------------------------------------------------------------------------------


def _lines(found: Sequence[Found]) -> list[tuple[int, str, Arm, Audited]]:
    """The first run of each arm: order, label, arm, run."""
    arms = [(one, arm, of_arm[0]) for one in found for arm, of_arm in one.arms]
    return [
        (k, one.title if arm.mechanism else f"{one.title}, {arm.kind}", arm, audited)
        for k, (one, arm, audited) in enumerate(arms)
    ]


def guesses_figure(setup: Setup, found: Sequence[Found]) -> Figure:
    """One-run ε against the guesses on each side: what another number would have shown, which is no bound.

    Dots: the bounds, at the guesses that were made.
    """
    axes = plots.new_axes((7.4, 3.6), (0.09, 0.14, 0.88, 0.78))
    for order, label, arm, audited in _lines(found):
        colour, dash = plots.style(order)
        ties = stream(0, "figure", arm.name)
        counts = ranked(audited.run.scores, audited.run.member, ties)
        k, eps = along_guesses(counts, delta=setup.delta, level=audited.bound.level)
        axes.plot(2 * k, eps, color=colour, linestyle=dash, linewidth=1.3, alpha=0.75, label=label)
        axes.plot(audited.bound.r, audited.bound.eps, "o", color=colour, markersize=7)
    for one in found:
        if one.accounted is not None and math.isfinite(one.accounted):
            axes.axhline(one.accounted, color=plots.MUTED, linewidth=1, dashes=(4, 3))
            text = f"accounted, {one.title}" if setup.arms[0].mechanism is None else f"true ε, {one.title}"
            axes.text(
                0.99,
                one.accounted,
                text,
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="bottom",
                color=plots.INK,
            )
    axes.set(xscale="log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Guesses (half of them members, half non-members)")
    axes.set_ylabel(f"ε at δ = {setup.delta:g}")
    axes.grid(color=plots.MUTED, alpha=0.22, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=plots.INK)
    return axes.figure


def roc_figure(setup: Setup, found: Sequence[Found]) -> Figure:
    """ROC curves of the canaries, and above what TPR no attack on (ε, δ)-DP can come."""
    axes = plots.new_axes((5.4, 4.7), (0.16, 0.11, 0.8, 0.86))
    smallest = 1.0
    for order, label, _, audited in _lines(found):
        colour, dash = plots.style(order)
        curve = roc(audited.run.scores, audited.run.member)
        smallest = min(smallest, 1 / max(1, int((~audited.run.member).sum())))
        axes.step(curve.fpr, curve.tpr, where="post", color=colour, linestyle=dash, linewidth=1.4, label=label)
    for one in found:
        epsilon = setup.claim.epsilon if setup.claim else one.accounted
        if epsilon is not None and math.isfinite(epsilon):
            plots.draw_promise(axes, float(epsilon), setup.delta, 1e-4)
    axes.plot([1e-4, 1], [1e-4, 1], color=plots.MUTED, linewidth=1, dashes=(2, 2), label="chance")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1.15))
    axes.set_xlabel("False positive rate (canaries left out)")
    axes.set_ylabel("True positive rate (canaries put in)")
    axes.grid(color=plots.MUTED, alpha=0.22, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="lower right", labelcolor=plots.INK)
    return axes.figure


# --- the section -------------------------------------------------------------------------------------------------


def _html(setup: Setup, found: Sequence[Found], figures: dict[str, Any]) -> str:
    from markupsafe import Markup

    environment = templates.environment()
    about = {
        "epsilon_by_guesses": "epsilon against the number of guesses, exploratory",
        "ROC": "ROC curves of the canaries, with the line that the claim allows",
    }
    return environment.get_template("dp_audit.html.j2").render(
        setup=setup,
        found=found,
        figures={name: Markup(plots.svg(figure, f"dp_audit {name}", about[name])) for name, figure in figures.items()},
        doubts=list(dict.fromkeys(doubt for one in found for doubt in one.bound.doubts)),
        several=max(len(of_arm) for one in found for _, of_arm in one.arms) > 1,
        epsilon=lambda value: "–" if value is None else "none" if math.isinf(value) else f"{value:.2f}",
        accuracy=lambda facts, key: f"{100 * facts[key]:.1f}%" if key in facts else "–",
    )
