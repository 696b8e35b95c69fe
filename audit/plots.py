"""The figures of a report: ROC curves with bands, and score distributions; as PNG files and as inline SVG.

Curves are step functions: each is looked up, never interpolated, at FPRs finer than a pixel. A grid of fixed
size also keeps a curve of 50,000 points as light as one of 50.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from audit.results import AttackResult, TargetResult
from core.metrics import confidence_band, tpr_on_grid
from modules.dp_audit import most_tpr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2430"  # text and axes; inline SVG takes the page's colour instead, so that it is legible on dark pages
MUTED = "#7b8494"
MEMBER, NON_MEMBER = "#d55e00", "#0072b2"

# Blue, vermillion, green, purple, ochre, cyan, rose: apart for every common colour blindness, and against both
# white and dark. From the eighth attack on, the dashes differ.
COLOURS = ("#1773b8", "#d55e00", "#009e73", "#9a5fc0", "#b07d00", "#2799bb", "#c4507f")
DASHES = ("solid", (0, (5, 1.6)), (0, (1.5, 1.3)), (0, (6, 1.5, 1.5, 1.5)))
PLAIN_BOX = (0.175, 0.11, 0.765, 0.86)  # of a figure without a legend: left, bottom, width, height
LINEAR_START = -0.008  # of the linear axis of FPRs: a curve that rises at 0 is seen to do so
BANDS_FOR_ALL = 3  # more bands than this hide each other: then only the strongest attack has one


@dataclass(frozen=True)
class Curve:
    """One attack's ROC on a grid of FPRs, with a band (nan where there is none)."""

    attack: str
    order: int  # place in audit.algorithm: fixes colour and dash
    auc: float
    fpr: Float[Array, " G"]
    tpr: Float[Array, " G"]
    low: Float[Array, " G"]
    high: Float[Array, " G"]


def style(order: int) -> tuple[str, str | tuple]:
    """Colour and dash of the attack at place `order`: the same in every figure of a report."""
    return COLOURS[order % len(COLOURS)], DASHES[order // len(COLOURS) % len(DASHES)]


def fpr_grid(non_members: int, log: bool) -> Float[Array, " G"]:
    """FPRs to look curves up at: 0 to 1, or from the smallest that one false positive can make, 1/n, to 1."""
    return np.geomspace(1 / non_members, 1, 601) if log and non_members > 1 else np.linspace(0, 1, 601)


def curves(targets: Sequence[TargetResult], *, log: bool) -> list[Curve]:
    """Every attack's curve over the targets given, in the order of audit.algorithm.

    With several targets: the mean of their TPRs at each FPR (a vertical average), and a band of ± one standard
    deviation over the models. With one: its own curve, and the pointwise confidence band over its records.
    """
    aucs = [np.mean([target.attacks[k].summary.auc.value for target in targets]) for k in _orders(targets)]
    banded = _orders(targets) if len(aucs) <= BANDS_FOR_ALL else [int(np.argmax(aucs))]
    return [_curve(targets, k, float(aucs[k]), log, k in banded) for k in _orders(targets)]


def _orders(targets: Sequence[TargetResult]) -> range:
    return range(len(targets[0].attacks))


def _curve(targets: Sequence[TargetResult], order: int, auc: float, log: bool, band: bool) -> Curve:
    attacks = [target.attacks[order] for target in targets]
    fpr = fpr_grid(min(attack.summary.non_members for attack in attacks), log)
    tpr = np.stack([tpr_on_grid(attack.roc, fpr) for attack in attacks])
    mean = tpr.mean(axis=0)
    low = high = np.full_like(mean, math.nan)
    if band and len(targets) > 1:
        sd = tpr.std(axis=0, ddof=1)
        low, high = np.clip(mean - sd, 0, 1), np.clip(mean + sd, 0, 1)
    elif band:
        low, high = confidence_band(attacks[0].scores, targets[0].member, fpr, level=attacks[0].summary.level)
    return Curve(attacks[0].attack, order, auc, fpr, mean, low, high)


def roc_figure(
    targets: Sequence[TargetResult],
    *,
    log: bool,
    title: str = "",
    legend: bool = True,
    promises: Sequence[tuple[float, float]] = (),
) -> Figure:
    """All attacks in one figure, averaged over `targets`, with bands and the chance line.

    promises: (ε, δ) that the models were trained with; a line shows how far above chance each lets any attack come.
    On log axes the curves start at 1 / non_members, one false positive, and the region below 10 false positives
    is marked as not resolvable. Without a legend the page that shows the figure has to name the colours.
    """
    summaries = [attack.summary for target in targets for attack in target.attacks]
    members, non_members = (min(getattr(s, side) for s in summaries) for side in ("members", "non_members"))
    axes = new_axes((7.4, 4.9), (0.135, 0.11, 0.55, 0.82), title) if legend else new_axes((5.0, 4.7), PLAIN_BOX)
    start = 1 / non_members if log and non_members > 1 else 0.0
    axes.plot([start, 1], [start, 1], color=MUTED, linewidth=1, dashes=(4, 3), label="chance", zorder=1)
    if log:
        _mark_unresolvable(axes, start, min(10 / non_members, 1.0))
    for epsilon, delta in promises:
        draw_promise(axes, epsilon, delta, start)
    strongest_first = sorted(curves(targets, log=log), key=lambda curve: (math.isnan(curve.auc), -curve.auc))
    for depth, curve in enumerate(strongest_first):
        colour, dash = style(curve.order)
        band = axes.fill_between(curve.fpr, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0, step="post")
        (line,) = axes.step(
            *(_from_left(curve) if not log else (curve.fpr, curve.tpr)),
            where="post",
            color=colour,
            linestyle=dash,
            linewidth=1.8 if depth == 0 else 1.4,
            label=_legend(curve),
            zorder=20 - min(depth, 15),
        )
        band.set_gid(f"attack-{curve.order}")
        line.set_gid(f"attack-{curve.order}")
    if log:
        axes.set(xscale="log", yscale="log")
        axes.set(xlim=(start, 1), ylim=(start, 1.15))
    else:
        axes.set(xlim=(LINEAR_START, 1), ylim=(0, 1.008))
    axes.set_xlabel(f"False positive rate (of {non_members:,} non-members)")
    axes.set_ylabel(f"True positive rate (of {members:,} members)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda rate, _: f"{100 * rate:.6g}%")
    axes.grid(color=MUTED, alpha=0.22, linewidth=0.6)
    if legend:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[1:] + handles[:1],
            labels[1:] + labels[:1],
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
        )
    return axes.figure


def readable(targets: Sequence[TargetResult], *, log: bool) -> str:
    """The curves of `roc_figure` without a legend as JSON for the page's script: 201 points each, strongest first."""
    shown = sorted(curves(targets, log=log), key=lambda curve: -np.nan_to_num(curve.auc))
    left, _, width, _ = PLAIN_BOX
    start = float(shown[0].fpr[0]) if log else LINEAR_START
    attacks = [{"name": c.attack, "order": c.order, "tpr": c.tpr[::3].round(5).tolist()} for c in shown]
    fpr = [float(f"{x:.6g}") for x in shown[0].fpr[::3]]
    return json.dumps(
        {"log": log, "left": left, "width": width, "start": start, "end": 1, "fpr": fpr, "attacks": attacks}
    )


def draw_promise(axes: Axes, epsilon: float, delta: float, start: float = 0.0) -> None:
    """The largest TPR that (ε, δ)-DP allows at each FPR from `start` to 1."""
    fpr = np.geomspace(start, 1, 400) if start else np.linspace(0, 1, 400)
    allowed = most_tpr(fpr, epsilon=epsilon, delta=delta)
    label = f"(ε, δ)-DP allows,\nε = {epsilon:.3g}, δ = {delta:g}"
    axes.plot(fpr, allowed, color=INK, linewidth=1, dashes=(1.2, 1.6), label=label, zorder=2)


def score_figure(attack: AttackResult, member: Bool[Array, " N"]) -> Figure:
    """How the scores of members and of non-members are spread, each as a share of its own group.

    The range holds all but the outermost 0.1% of the finite scores on either side; the first and last bins hold
    what lies beyond, infinite scores too. Scores that are not a number are left out.
    """
    axes = new_axes((7.4, 3.1), (0.08, 0.155, 0.9, 0.74))
    edges = _bins(attack.scores)
    for mask, colour, name in ((~member, NON_MEMBER, "non-members"), (member, MEMBER, "members")):
        scores = attack.scores[mask].astype(float)
        scores = np.clip(scores[~np.isnan(scores)], edges[0], edges[-1])
        share = np.histogram(scores, edges)[0] / max(len(scores), 1)
        axes.stairs(share * 100, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(share * 100, edges, color=colour, linewidth=1.5, label=f"{name} ({mask.sum():,})")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"Score of {_short(attack.attack)} (larger = more likely a member)")
    axes.set_ylabel("Share of the group, %")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, frameon=False, labelcolor=INK)
    return axes.figure


def _bins(scores: Array) -> Float[Array, " B"]:
    finite = scores[np.isfinite(scores)].astype(float)
    low, high = np.quantile(finite, [0.001, 0.999]) if len(finite) else (0.0, 1.0)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size == 0:  # all alike: some width around the one value
        low, high = low - max(0.5, 0.01 * size), high + max(0.5, 0.01 * size)
    return np.linspace(low, high, 61)


def new_axes(size: tuple[float, float], box: tuple[float, float, float, float], title: str = "") -> Axes:
    """Empty axes on a figure of its own: no pyplot, so nothing global is touched and no window can open.

    size: inches. box: left, bottom, width and height of the axes as shares of it (a layout engine would take
    as long as the drawing).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = figure.add_axes(box)
    axes.set_title(title, loc="left", fontsize=12, color=INK, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(which="both", color=MUTED, labelcolor=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return axes


def _mark_unresolvable(axes: Axes, start: float, end: float) -> None:
    axes.axvspan(start, end, facecolor=MUTED, alpha=0.13, linewidth=0, zorder=0)
    middle = math.sqrt(start * end)
    text = "not resolvable:\nunder 10 false\npositives"
    axes.text(middle, 0.98, text, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=8, color=INK)


def _from_left(curve: Curve) -> tuple[Float[Array, " G1"], Float[Array, " G1"]]:
    """The curve from (0, 0): it rises at FPR 0 to what is reached without a false positive."""
    return np.insert(curve.fpr, 0, 0.0), np.insert(curve.tpr, 0, 0.0)


def _legend(curve: Curve) -> str:
    """Name and AUC, on two lines where the name is long."""
    return f"{_short(curve.attack)}{'  ' if len(curve.attack) <= 14 else chr(10)}AUC {curve.auc:.3f}"


def _short(name: str) -> str:
    """A name that fits a legend, with nothing that matplotlib would read as mathematics."""
    name = name if len(name) <= 30 else f"{name[:29]}…"
    return name.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """The figure as a PNG of 150 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element to put into a page; `name` keeps its ids apart from those of other figures.

    It has no size of its own, takes the text colour and font of the page, and loads nothing.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "path.simplify": False}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="attack-(\d+)"', r'<g data-attack="\1"', body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # the same in every figure, and nothing refers to them
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = re.sub(r"(\.\d\d)\d+", r"\1", body)  # a hundredth of a point is finer than any screen
    body = re.sub(r"\s*\n\s*", "\n", body).replace(INK, "currentColor")
    box = re.search(r'viewBox="([^"]*)"', text)[1]
    return f'<svg viewBox="{box}" fill="currentColor" role="img" aria-label="{escape(description, quote=True)}">{body}'
