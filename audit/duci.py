"""The `duci:` block: which share of a dataset X did each target train on? The method is in modules/duci."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from pydantic import ValidationError

from audit.available import lacks
from audit.duci_dataset import Condition, Value, dataset_of, parts_of
from audit.results import More, Section, TargetResult
from audit.session import Session, device_of
from audit.signals import compute_missing, evidence, missing_signals, signals_of
from audit.training import missing_models, train_missing
from core.config import TRAINED, Call, min_pairs
from core.log import quiet
from core.registry import ATTACKS, MODULES
from core.rundir import digest
from core.types import Evidence, Plan
from modules.duci.answers import Answer
from modules.duci.groups import ENOUGH_FOR_RECORDS, vulnerability
from modules.duci.inference import Learnt, Method, answers, learn
from modules.duci.rehearse import restricted, with_target
from modules.duci.sampling import Sampling, training_set

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


RMIA = {"name": "RMIA", "mode": "online"}
REFERENCE_ATTACK = {"name": "Calibration", "on": "loss"}  # the paper's, for language models


def check(session: Session, **settings: Any) -> None:
    """Raises UserError, at its line, for what this audit cannot be done with."""
    if session.given is not None and settings["proportions"]:
        raise session.config.error("duci.proportions", "models would be trained, and signals were given: leave it out")
    task = Task.of(session, settings)
    for proportion in task.proportions:
        _memberships(task, proportion, np.zeros(len(task.x)))


def more(session: Session, **settings: Any) -> tuple[More, ...]:
    """The synthetic targets. Those drawn by vulnerability are known only once the references' signals are there."""
    task = Task.of(session, settings)
    if not task.proportions:
        return ()
    wanted = len(task.proportions) * task.trials
    if "vulnerable" in task.sampling and (missing_models(session) or missing_signals(task.session)):
        to_train = wanted
    else:
        vulnerable = np.zeros(len(task.x))
        if "vulnerable" in task.sampling:
            vulnerable = _vulnerable(_learnt(task, _seen(task, session.plan.targets[0])))
        to_train = sum(len(missing_models(_synthetic(task, p, vulnerable))) for p in task.proportions)
    points = len(task.x) + len(session.population)
    kept = points * session.config.audit.queries * len(signals_of(task.session.config.attacks))
    return (More("synthetic targets", wanted, to_train, signals=kept),)


@MODULES.register(
    "duci",
    summary="which share of a dataset did the model train on, with an interval (Tong et al. 2025)",
    check=check,
    more=more,
    sources=(TRAINED, "models", "signals"),
)
def duci(
    session: Session,
    targets: tuple[TargetResult, ...],
    *,
    attack: str | dict[str, Any] | None = None,
    records: Path | None = None,
    size: Annotated[int, Ge(2)] | None = None,
    where: Condition = {},  # noqa: B006  (read only)
    groups: str | dict[str, Value | tuple[Value, ...] | Condition] = {},  # noqa: B006  (read only)
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

    The default attack is the paper's: RMIA with as many references that trained on a record as did not, in Pr(x), and
    a population that is disjoint from X, since no model trains on it; of texts, their log-likelihood minus its mean
    over references that did not train on them.

    - attack: the membership attack whose guesses are counted; needs one pair of references more than by itself.
      {name: RMIA, mode: online} if left out, and {name: Calibration, on: loss} on texts
    - records: a text file of pool indices, one a line: X is these; each must be an audited point
    - where: X is only what has these values, as {column: value}, or {column: [values]}; columns are the dataset's
      groups, such as an owner, and `label`
    - size: X is so many of those, drawn at random
    - groups: parts of X that get an estimate of their own: a column, whose every value is a part, or name: [labels],
      or name: {column: [values]}
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
    task = Task.of(session, settings)
    from audit.duci_report import write

    return write(task, *_answers(task))


@dataclass(frozen=True)
class Task:
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
    def of(cls, session: Session, settings: Mapping[str, Any]) -> Task:
        of_data = REFERENCE_ATTACK if session.data.is_text else RMIA
        call = _attack(session, of_data if settings["attack"] is None else settings["attack"])
        x = dataset_of(session, settings["records"], settings["where"], settings["size"])
        _check_references(session, call, settings["debias"], settings["rehearsals"])
        config, threshold = session.config, settings["threshold"]
        if settings["proportions"] and config.train is None:
            message = "synthetic targets are trained here, which needs the blocks data and train: leave it out"
            raise config.error("duci.proportions", message)
        if lack := [lack.what for lack in lacks(replace(session, points=x), call)]:
            raise config.error("duci.attack", f"{call.label} lacks {' and '.join(lack)}")
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
            parts=parts_of(session, x, settings["groups"]),
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


def _check_references(session: Session, call: Call, debias: str, rehearsals: int) -> None:
    needed, why = min_pairs(call) + 1, f"to attack references with {call.label}, one pair of them held out in turn"
    if debias == "subgroups" and needed < 2:
        needed, why = 2, "to find subgroups on other references than those that give their rates"
    if debias == "record" and needed < ENOUGH_FOR_RECORDS:
        needed, why = ENOUGH_FOR_RECORDS, "for rates of each record"
    there = session.plan.reference_pairs
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


def _answers(task: Task) -> tuple[list[Answer], list[Answer]]:
    """About the targets of the run, and about synthetic ones."""
    session = task.session
    own = signals_of([call for call in session.config.attacks if call is not task.attack])
    if not set(signals_of([task.attack])) <= set(own):
        compute_missing(session, device_of(session.config, "audit"))
    learnt: dict[tuple[int, ...], Learnt] = {}  # targets of one pair share their references
    found: list[Answer] = []
    with quiet("modules.mia"), _explained(task):
        for target, references in zip(session.plan.targets, session.plan.references, strict=True):
            seen = _seen(task, target)
            if references not in learnt:
                learnt[references] = _learnt(task, seen)
            member = session.plan.member[target, task.x]
            found += answers(seen, learnt[references], task.method, member, task.parts, model=f"target {target}")
    if task.proportions and found[0].usage.refused:
        log.warning("duci: no synthetic targets are trained, for there would be no answer about them either")
        return found, []
    first = learnt[session.plan.references[0]]
    return found, [answer for proportion in task.proportions for answer in _experiment(task, first, proportion)]


def _seen(task: Task, target: int) -> Evidence:
    """What is known of a target of the run, about the records of X only."""
    return restricted(evidence(task.session, target), np.searchsorted(task.session.points, task.x))


def _learnt(task: Task, seen: Evidence) -> Learnt:
    half = task.session.stream("duci", "halves").permutation(len(task.x)) < len(task.x) // 2
    return learn(seen, task.method, half)


@contextmanager
def _explained(task: Task) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise task.session.config.error("duci", f"{error}; take more records, or more references") from error


# --- synthetic targets -----------------------------------------------------------------------------------------


def _memberships(task: Task, proportion: float, vulnerable: Float[Array, " N"]) -> Bool[Array, "trials D"]:
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


def _vulnerable(learnt: Learnt) -> Float[Array, " N"]:
    return vulnerability(learnt.rehearsals.scores, learnt.rehearsals.trained_on)


def _synthetic(task: Task, proportion: float, vulnerable: Float[Array, " N"]) -> Session:
    """The models that train on this share of X. Another X, sampling or proportion is another folder: changing them
    makes nothing stale, and more trials add."""
    member = _memberships(task, proportion, vulnerable)
    key = digest(task.x, *([np.argsort(vulnerable)] if "vulnerable" in task.sampling else []))[:8]
    name = f"duci/{task.sampling}_{proportion:g}_{key}"
    return replace(task.session, name=name, plan=Plan(member, ((),) * task.trials), points=task.x)


def _experiment(task: Task, learnt: Learnt, proportion: float) -> list[Answer]:
    """Train `trials` models on this share of X, and estimate it."""
    other = _synthetic(task, proportion, _vulnerable(learnt))
    member = other.plan.member
    train_missing(other, device_of(other.config, "train"))
    compute_missing(other, device_of(other.config, "audit"))
    found: list[Answer] = []
    with quiet("modules.mia"), _explained(task):
        for trial in range(task.trials):
            seen = with_target(learnt.evidence, evidence(other, trial))
            label = {"model": f"synthetic {proportion:g} no. {trial}", "proportion": proportion, "trial": trial}
            found += answers(seen, learnt, task.method, member[trial, task.x], task.parts, **label)
    return found
