"""The `duci:` block: which share of a dataset X did each target train on? The method is in modules/duci."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from pydantic import ValidationError

from audit import plots, templates
from audit.report import rate, share, to_csv
from audit.results import Section, TargetResult
from audit.session import Session, device_of
from audit.signals import compute_missing, evidence, signals_of
from core.config import Call, min_pairs
from core.log import quiet
from core.registry import ATTACKS, MODULES
from core.rundir import digest, write_atomic, write_text
from core.types import Evidence, Plan
from modules.duci.answers import METHODS, Answer, drifts, means, method_errors
from modules.duci.groups import ENOUGH_FOR_RECORDS, vulnerability
from modules.duci.inference import Learnt, Method, answers, learn
from modules.duci.rehearse import restricted, with_target
from modules.duci.sampling import Sampling, training_set

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

ALL = "all of X"


def check(session: Session, **settings: Any) -> None:
    """Raises UserError, at its line, for what this audit cannot be done with."""
    task = _Task.of(session, settings)
    for proportion in task.proportions:
        _memberships(task, proportion, np.zeros(len(task.x)))


@MODULES.register(
    "duci", summary="which share of a dataset did the model train on, with an interval (Tong et al. 2025)", check=check
)
def duci(
    session: Session,
    targets: tuple[TargetResult, ...],
    *,
    attack: str | dict[str, Any] = {"name": "RMIA", "mode": "online"},  # noqa: B006  (read only)
    records: Path | None = None,
    size: Annotated[int, Ge(2)] | None = None,
    groups: dict[str, tuple[int, ...]] = {},  # noqa: B006  (read only)
    threshold: Literal["youden"] | Annotated[float, Interval(gt=0, lt=1)] = "youden",
    debias: Literal["dataset", "subgroups", "record"] = "dataset",
    subgroups: Annotated[int, Ge(2)] = 6,
    rehearsals: Annotated[int, Ge(1)] = 16,
    min_advantage: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
    level: Annotated[float, Interval(gt=0, lt=1)] = 0.95,
    proportions: tuple[Annotated[float, Interval(ge=0, le=1)], ...] = (),
    trials: Annotated[int, Ge(1)] = 1,
    sampling: Sampling = "uniform",
) -> Section:
    """Estimate how much of a dataset X each target used; X is all audited points, unless told otherwise.

    The default attack is the paper's: as many references that trained on a record as did not, in Pr(x), and a
    population that is disjoint from X, since no model trains on it.

    - attack: the membership attack whose guesses are counted; needs one pair of references more than by itself
    - records: a text file of pool indices, one a line: X is these; each must be an audited point
    - size: X is so many of those, drawn at random
    - groups: parts of X that get an estimate of their own, as name: [class labels]
    - threshold: youden has the largest TPR - FPR on rehearsals; a number is the FPR to keep there
    - debias: one TPR and FPR for X, for `subgroups` of X that leak alike, or for each record
    - subgroups: how many
    - rehearsals: at most so many pairs of references are held out in turn, to measure the rates
    - min_advantage: no answer where TPR - FPR may be smaller than this
    - level: of the intervals
    - proportions: train synthetic targets on these shares of X, to see the truth beside the estimate
    - trials: so many for each proportion
    - sampling: how the used part of X is drawn: uniform, poisson, most_vulnerable or least_vulnerable first
    """
    settings = {key: value for key, value in locals().items() if key not in ("session", "targets")}
    task = _Task.of(session, settings)
    return _report(task, *_answers(task))


@dataclass(frozen=True)
class _Task:
    """The settings, resolved."""

    session: Session  # with the attack among those whose signals are there
    attack: Call
    x: Int[Array, " N"]  # the dataset: indices into the pool, sorted
    parts: Mapping[str, Bool[Array, " N"]]
    method: Method
    proportions: tuple[float, ...]
    trials: int
    sampling: Sampling

    @classmethod
    def of(cls, session: Session, settings: Mapping[str, Any]) -> _Task:
        call = _attack(session, settings["attack"])
        x = _dataset(session, settings["records"], settings["size"])
        _check_references(session, call, settings["debias"], settings["rehearsals"])
        labels = session.data.pool.y[x]
        parts = {ALL: np.ones(len(x), dtype=bool)}
        for name, classes in settings["groups"].items():
            parts[name] = np.isin(labels, classes)
            if parts[name].sum() < 2:
                raise session.config.error(
                    f"duci.groups.{name}",
                    f"{parts[name].sum()} records of X have a label in {list(classes)}: 2 are needed",
                )
        config, threshold = session.config, settings["threshold"]
        if call not in config.attacks:
            config = replace(config, attacks=(*config.attacks, call))

        def attack(seen: Evidence) -> Float[Array, " N"]:
            try:
                return np.asarray(ATTACKS[call.name](seen, **call.settings), dtype=float)
            except ValueError as error:
                raise config.error("duci.attack", f"{call.label}: {error}") from error

        chosen = {key: settings[key] for key in ("debias", "subgroups", "rehearsals", "min_advantage", "level")}
        return cls(
            session=replace(session, config=config),
            attack=call,
            x=x,
            parts=parts,
            method=Method(attack, None if threshold == "youden" else float(threshold), **chosen),
            proportions=tuple(dict.fromkeys(settings["proportions"])),
            trials=settings["trials"],
            sampling=settings["sampling"],
        )


def _attack(session: Session, value: str | dict[str, Any]) -> Call:
    given = dict(value) if isinstance(value, dict) else {"name": value}
    name = given.pop("name", None)
    known = ATTACKS.find(name) if isinstance(name, str) else None
    if known is None:
        message = (
            ATTACKS.unknown(name) if isinstance(name, str) else "an attack with settings is {name: …, setting: value}"
        )
        raise session.config.error("duci.attack", message)
    try:
        return Call(known, ATTACKS.bind(known, given), given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise session.config.error("duci.attack", f"{known}: {wrong}") from None


def _dataset(session: Session, file: Path | None, size: int | None) -> Int[Array, " N"]:
    points, error = session.points, session.config.error
    if file is not None:
        try:
            listed = np.unique(np.array(file.read_text().split(), dtype=np.int64))
        except (OSError, ValueError, OverflowError) as problem:
            raise error("duci.records", f"{file} is no text file of pool indices, one a line ({problem})") from None
        missing = np.setdiff1d(listed, points)
        if len(missing):
            raise error(
                "duci.records",
                f"{len(missing)} of the {len(listed)} records are no audited points (first: {missing[0]}; the pool has "
                f"{len(session.data.pool)} records): raise audit.data_size, or leave it out",
            )
        points = listed
    if size is not None and size > len(points):
        raise error("duci.size", f"{size} is more than the {len(points)} records to draw from")
    if size is not None:
        points = np.sort(session.stream("duci", "records").choice(points, size, replace=False))
    if len(points) < 2:
        raise error("duci", f"the dataset has {len(points)} records: 2 are needed")
    return points


def _check_references(session: Session, call: Call, debias: str, rehearsals: int) -> None:
    needed, why = min_pairs(call) + 1, f"to attack references with {call.label}, one pair of them held out in turn"
    if debias == "subgroups" and needed < 2:
        needed, why = 2, "to find subgroups on other references than those that give their rates"
    if debias == "record" and needed < ENOUGH_FOR_RECORDS:
        needed, why = ENOUGH_FOR_RECORDS, "for rates of each record"
    there = session.config.audit.num_ref_models
    if there < needed:
        raise session.config.error(
            "audit.num_ref_models", f"duci needs at least {needed} pairs of references {why}, got {there}"
        )
    if debias == "record" and rehearsals < ENOUGH_FOR_RECORDS:
        raise session.config.error("duci.rehearsals", f"at least {ENOUGH_FOR_RECORDS} {why}, got {rehearsals}")
    if ATTACKS.fact(call.name, "needs_population") and not len(session.population):
        raise session.config.error(
            "duci.attack", f"{call.label} compares X with a population disjoint from it, and there is none left"
        )


# --- from references to rates, from rates to answers -----------------------------------------------------------


def _answers(task: _Task) -> tuple[list[Answer], list[Answer]]:
    """About the targets of the run, and about synthetic ones."""
    session = task.session
    own = signals_of([call for call in session.config.attacks if call is not task.attack])
    if not set(signals_of([task.attack])) <= set(own):
        compute_missing(session, device_of(session.config, "audit"))
    columns = np.searchsorted(session.points, task.x)
    half = session.stream("duci", "halves").permutation(len(task.x)) < len(task.x) // 2
    learnt: dict[tuple[int, ...], Learnt] = {}  # targets of one pair share their references
    found: list[Answer] = []
    with quiet("modules.mia"), _explained(task):
        for target, references in enumerate(session.plan.references):
            seen = restricted(evidence(session, target), columns)
            if references not in learnt:
                learnt[references] = learn(seen, task.method, half)
            member = session.plan.member[target, task.x]
            found += answers(seen, learnt[references], task.method, member, task.parts, model=f"target {target}")
    if task.proportions and found[0].usage.refused:
        log.warning("duci: no synthetic targets are trained, for there would be no answer about them either")
        return found, []
    first = learnt[session.plan.references[0]]
    return found, [answer for proportion in task.proportions for answer in _experiment(task, first, proportion)]


@contextmanager
def _explained(task: _Task) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise task.session.config.error("duci", f"{error}; take more records, or more references") from error


# --- synthetic targets -----------------------------------------------------------------------------------------


def _memberships(task: _Task, proportion: float, vulnerable: Float[Array, " N"]) -> Bool[Array, "trials D"]:
    session = task.session
    training_size = int(session.plan.member[0].sum())
    try:
        return np.stack(
            [
                training_set(
                    *(task.x, len(session.data.pool), training_size, proportion, task.sampling),
                    session.stream("duci", task.sampling, f"{proportion:g}", trial),
                    vulnerable,
                )
                for trial in range(task.trials)
            ]
        )
    except ValueError as error:
        way_out = f"lower duci.size to at most {len(session.data.pool) - training_size}, or leave this proportion out"
        raise session.config.error("duci.proportions", f"{proportion:g}: {error}: {way_out}") from None


def _experiment(task: _Task, learnt: Learnt, proportion: float) -> list[Answer]:
    """Train `trials` models on this share of X, and estimate it."""
    from audit.training import train_missing

    vulnerable = vulnerability(learnt.rehearsals.scores, learnt.rehearsals.trained_on)
    member = _memberships(task, proportion, vulnerable)
    # Another X, sampling or proportion is another folder: changing them makes nothing stale, more trials add.
    key = digest(task.x, *([np.argsort(vulnerable)] if "vulnerable" in task.sampling else []))[:8]
    name = f"duci/{task.sampling}_{proportion:g}_{key}"
    other = replace(task.session, name=name, plan=Plan(member, ((),) * task.trials), points=task.x)
    train_missing(other, device_of(other.config, "train"))
    compute_missing(other, device_of(other.config, "audit"))
    found: list[Answer] = []
    with quiet("modules.mia"), _explained(task):
        for trial in range(task.trials):
            seen = with_target(learnt.evidence, evidence(other, trial))
            label = {"model": f"synthetic {proportion:g} no. {trial}", "proportion": proportion, "trial": trial}
            found += answers(seen, learnt, task.method, member[trial, task.x], task.parts, **label)
    return found


# --- the report ------------------------------------------------------------------------------------------------


def _report(task: _Task, found: list[Answer], synthetic: list[Answer]) -> Section:
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


def _verdict(task: _Task, first: Answer, synthetic: list[Answer]) -> str:
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
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    return axes.figure


def _page(task: _Task, found: list[Answer], synthetic: list[Answer], figure: str) -> str:
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
