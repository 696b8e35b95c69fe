"""What RaMIA found, written down: everything in report/ramia/ is about ranges unless its name says `sample`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audit import plots, tables, templates
from audit.given_ranges import GivenRanges
from audit.ramia_samples import Setup
from audit.results import Section
from audit.session import Session
from core.metrics import across_models
from core.rundir import write_atomic, write_text
from core.types import Estimate

if TYPE_CHECKING:
    from audit.ramia import Found

CENTERS = {"record": "the audited record itself", "perturbed": "a random point of the record's range"}


def write(session: Session, setup: Setup, found: Sequence[Found], folder: Path) -> Section:
    """The CSV, NPZ and PNG files, and the section of the report."""
    from audit.report import columns_to_csv, to_csv

    write_text(folder / "ramia.csv", to_csv([row(setup, one) for one in found]))
    for one in found:
        t = one.result.target
        write_text(folder / f"attack_result_{t}.csv", to_csv(tables.target_rows(one.result)))
        write_text(folder / f"ranges_{t}.csv", columns_to_csv(range_columns(session, one)))
        arrays = tables.arrays(one.result) | {
            "ranges": session.points[one.ranges],
            "sample_scores": one.sample_scores,
        }
        write_atomic(folder / f"attack_result_{t}.npz", lambda file, arrays=arrays: np.savez(file, **arrays))
    for log, stem in ((False, "ROC"), (True, "ROC_log")):
        title = f"Ranges, {_targets(len(found))}"
        image = plots.png(plots.roc_figure([one.result for one in found], log=log, title=title))
        write_atomic(folder / f"{stem}.png", lambda file, image=image: file.write(image))
    return Section("ramia", "Range membership (RaMIA)", verdict(setup, found), _html(setup, found))


def row(setup: Setup, one: Found) -> tables.Row:
    """A target in ramia.csv: what was asked, and how well it was answered."""
    ours, at_center = (attack.summary for attack in one.result.attacks)
    return {
        "target": one.result.target,
        "ranges": len(one.ranges),
        "member_ranges": ours.members,
        "own_record_member": int(one.own.sum()),
        "hold_only_another_record": one.contested,
        "neighbours": setup.neighbours,
        "undecidable": one.undecidable,
        "range_function": setup.ranges.description,
        "sample_size": setup.samples,
        "include_center": setup.include_center,
        "center": setup.center,
        "attack": setup.base.label,
        "aggregation": one.aggregation.label,
        "aggregation_tuned": bool(one.rehearsed),
        **_estimate("auc_ramia", ours.auc),
        **_estimate("auc_center", at_center.auc),
        **_estimate("auc_difference", one.difference),
    }


def _estimate(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def range_columns(session: Session, one: Found) -> dict[str, np.ndarray]:
    """Columns of ranges_<t>.csv: the record each range was made from, what it holds, and the scores of the range."""
    index = session.points[one.ranges]
    over, at_center = one.result.attacks
    pool, given = session.data.pool, session.given
    return {
        "index": index,
        **({} if pool.ids is None else {"id": pool.ids[index]}),
        **({"label": pool.y[index]} if given is None or given.labels_known else {}),
        "range_membership": one.result.member.astype(np.int8),
        "own_record_membership": one.own.astype(np.int8),
        "other_training_points": one.others,
        over.attack: over.scores,
        at_center.attack: at_center.scores,
    }


def mean_of(estimates: Sequence[Estimate], pairs: Sequence[int]) -> Estimate:
    """Over target models: the mean, and a t interval over pairs of twins. For values in [-1, 1].

    pairs: of each target; twins trained on complementary halves of the same records, so they are one observation of
    how models differ, not two. Of a single pair the intervals say how well its own ranges tell: their mean half-width,
    which is enough however the two are related.
    """
    if len(set(pairs)) == 1:
        value = float(np.mean([e.value for e in estimates]))
        half = float(np.mean([(e.high - e.low) / 2 for e in estimates]))
        return estimates[0] if len(estimates) == 1 else Estimate(value, value - half, value + half)
    half = across_models(np.array([(1 + estimate.value) / 2 for estimate in estimates]), np.array(pairs))
    return Estimate(*(2 * value - 1 for value in (half.value, half.low, half.high)))


def means(found: Sequence[Found]) -> tuple[Estimate, Estimate, Estimate]:
    """Over targets: the AUC of RaMIA over the range, at the center, and their difference."""
    pairs = [one.pair for one in found]
    over, at_center = (mean_of([one.result.attacks[k].summary.auc for one in found], pairs) for k in (0, 1))
    return over, at_center, mean_of([one.difference for one in found], pairs)


def verdict(setup: Setup, found: Sequence[Found]) -> str:
    """One sentence: can ranges be told, and does that beat asking at the center?"""
    over, at_center, difference = means(found)
    center = "among them" if setup.include_center else "not among them"
    return (
        f"Whether a range ({setup.ranges.description}; {setup.samples} samples, the center {center}) holds a training "
        f"point is told with an AUC of {_auc(over)} by RaMIA with {setup.base.label}, and of {_auc(at_center)} by "
        f"{setup.base.label} at the center ({CENTERS[setup.center]}): {_compared(difference)} "
        f"({_targets(len(found))}, 95% intervals)."
    )


def _compared(difference: Estimate) -> str:
    text = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    if math.isnan(difference.low):
        return f"a difference of {difference.value:+.3f}, of unknown uncertainty"
    if difference.low > 0:
        return f"RaMIA tells more, by {text}"
    if difference.high < 0:
        return f"RaMIA tells less, by {text}"
    return f"no difference can be seen, {text}"


def _auc(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{max(estimate.low, 0):.3f}, {min(estimate.high, 1):.3f}]"


def _targets(count: int) -> str:
    return "one target model" if count == 1 else f"mean of {count} target models"


def _html(setup: Setup, found: Sequence[Found]) -> str:
    from markupsafe import Markup

    environment = templates.environment()
    results = [one.result for one in found]
    about = "ROC curves of RaMIA over the range and of its attack at the center, on the same ranges"
    figures: list[Any] = []
    for log in (False, True):
        figure = plots.roc_figure(results, log=log, legend=False)
        axes = "logarithmic" if log else "linear"
        figures.append(Markup(plots.svg(figure, f"ramia {axes}", f"{about}, {axes} axes")))
    return environment.get_template("ramia.html.j2").render(
        setup=setup,
        given=isinstance(setup.ranges, GivenRanges),
        rows=[row(setup, one) for one in found],
        found=found,
        figures=figures,
        colours=[plots.style(k)[0] for k in (0, 1)],
        labels=[attack.attack for attack in results[0].attacks],
        means=means(found)[:2],
        difference=means(found)[2],
        pairs=len({one.pair for one in found}),
        center=CENTERS[setup.center],
        auc=_auc,
        signed=lambda e: f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]" if e.low == e.low else f"{e.value:+.3f}",
    )
