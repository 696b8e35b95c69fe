"""The block `dp_audit:` resolved: what is audited, by which canaries, attack and guesses; every mistake at its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audit.dp_audit_canaries import ADVERSARIAL, check_adversarial
from audit.dp_audit_runs import GRADIENTS, Arm, check_size
from audit.session import Session
from core.config import Call, Config, min_pairs
from core.errors import UserError
from core.log import quiet
from core.registry import ATTACKS, TRAINERS, Registry
from core.types import AuditData, Evidence
from dataset.canaries import CANARIES, check_kind, with_canaries
from modules.dp_audit import (
    Bonferroni,
    Calibrated,
    Choice,
    Fixed,
    MultiSplit,
    Split,
    StepWise,
    audit_one_run,
    level_of_each,
)
from modules.dp_audit import mechanisms as known

SAME = {"none": "natural", "cifar10_canary": "mislabelled"}  # the original tool's names
Training = Literal["dp", "nondp"]
TITLES = {"dp": "DP-SGD", "nondp": "without DP"}

GUESSES = Registry("choice of guesses")
MECHANISMS = Registry("mechanism")


@GUESSES.register("fixed", summary="so many guesses on each side, said before looking")
def fixed(*, k_plus: Annotated[int, Ge(0)] | None = None, k_minus: Annotated[int, Ge(0)] | None = None) -> Choice:
    """Members guessed among the highest scores, and non-members among the lowest; 2 √m of each if left out."""
    return Fixed(k_plus, k_minus)


@GUESSES.register("split", summary="chosen on one part of the canaries, counted on the other")
def split(*, fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.5) -> Choice:
    """fraction: of the canaries, on which the number of guesses is chosen."""
    return Split(fraction)


@GUESSES.register("multi_split", summary="the median over several splits")
def multi_split(
    *, fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.5, splits: Annotated[int, Ge(1)] = 21
) -> Choice:
    return MultiSplit(fraction, splits)


@GUESSES.register("bonferroni", summary="the best of a few numbers of guesses, each at its share of the error")
def bonferroni() -> Choice:
    return Bonferroni()


@GUESSES.register("calibrated", summary="the best of nested numbers of guesses, calibrated for all of them")
def calibrated() -> Choice:
    return Calibrated()


@GUESSES.register("step_wise", summary="several numbers of guesses, each responsible for one range of epsilon")
def step_wise() -> Choice:
    """Shows what `fixed` shows of a weak mechanism and more of a strong one, with every estimator."""
    return StepWise()


@MECHANISMS.register(
    "gaussian", summary="each bit times mu, plus N(0, 1)", epsilon=lambda s, delta: _gaussian_epsilon(s["mu"], delta)
)
def gaussian(
    member: Bool[Array, " m"], rng: np.random.Generator, *, mu: Annotated[float, Gt(0)] = 1.0
) -> Float[Array, " m"]:
    return known.gaussian(member, rng, mu=mu)


@MECHANISMS.register(
    "laplace", summary="each bit plus Laplace noise of scale 1 / epsilon", epsilon=lambda s, delta: s["epsilon"]
)
def laplace(
    member: Bool[Array, " m"], rng: np.random.Generator, *, epsilon: Annotated[float, Gt(0)] = 1.0
) -> Float[Array, " m"]:
    return known.laplace(member, rng, epsilon=epsilon)


@MECHANISMS.register(
    "randomised_response",
    summary="each bit, told truly with odds e^epsilon",
    epsilon=lambda s, delta: s["epsilon"],
)
def randomised_response(
    member: Bool[Array, " m"], rng: np.random.Generator, *, epsilon: Annotated[float, Gt(0)] = 1.0
) -> Float[Array, " m"]:
    return known.randomised_response(member, rng, epsilon=epsilon)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    from modules.dp_audit.f_dp import epsilon_of_mu

    return float(epsilon_of_mu(mu, delta))


class Claim(BaseModel):
    """What is said of the training: (epsilon, delta)-DP. delta: that of the block, if left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epsilon: float = Field(gt=0)
    delta: float | None = Field(None, ge=0, lt=1)


@dataclass(frozen=True)
class Setup:
    """The block, resolved."""

    arms: tuple[Arm, ...]
    canaries: int
    delta: float
    level: float
    choice: Choice
    estimator: str
    claim: Claim | None


def setup_of(
    session: Session,
    *,
    canary_dataset: str | tuple[str, ...],
    canary_size: int,
    training_alg: str | tuple[str, ...],
    attack: str | dict[str, Any] | None,
    references: int | None,
    dp_sgd: dict[str, Any],
    delta: float,
    level: float,
    guesses: str | dict[str, Any],
    estimator: str,
    claim: Claim | None,
    mechanism: str | dict[str, Any] | None,
) -> Setup:
    """What the block asks for. Raises UserError at the line of what cannot be."""
    config = session.config
    choose = _call(config, GUESSES, "guesses", guesses)
    choice = GUESSES[choose.name](**choose.settings)
    if claim and claim.delta is not None and claim.delta > delta:
        raise config.error("dp_audit.claim.delta", f"{claim.delta:g} is more than dp_audit.delta {delta:g}: raise that")
    if mechanism is not None:
        call = _call(config, MECHANISMS, "mechanism", mechanism)
        truth = MECHANISMS.fact(call.name, "epsilon")
        arm = Arm("mechanism", "bits", call.label, mechanism=call, truth=truth)
        arms: tuple[Arm, ...] = (arm,)
    else:
        arms = _arms(session, canary_dataset, canary_size, training_alg, attack, references, dp_sgd, delta)
    most = max(sum(arm.title == title for arm in arms) for title in {arm.title for arm in arms})
    each = level_of_each(level, most * config.run.num_experiments)
    _check_counts(config, choice, canary_size, estimator, delta, each)
    return Setup(arms, canary_size, delta, level, choice, estimator, claim)


def _arms(
    session: Session,
    kinds: str | tuple[str, ...],
    count: int,
    trainings: str | tuple[str, ...],
    attack: str | dict[str, Any] | None,
    references: int | None,
    dp_sgd: Mapping[str, Any],
    delta: float,
) -> tuple[Arm, ...]:
    config = session.config
    kinds = _distinct(config, session.data, "canary_dataset", kinds)
    trainings = _distinct(config, session.data, "training_alg", trainings)
    call = config.attacks[0] if attack is None else _call(config, ATTACKS, "attack", attack)
    models = (references or max(config.audit.num_ref_models, 1)) if min_pairs(call) else 0
    if not session.data.is_text:
        _check_attack(config, call, models)
    arms: list[Arm] = []
    for training in trainings:
        for kind in kinds:
            gradient = kind in GRADIENTS
            if gradient and training == "nondp":
                if "dp" not in trainings:
                    raise config.error(
                        "dp_audit.canary_dataset", f"{kind} goes into DP-SGD: set training_alg to dp, or take others"
                    )
                continue
            fixed = _fixed(session, kind, count)
            trainer = config.trainer
            if training == "dp":
                trainer = dp_trainer(config, dp_sgd, delta, public_size=fixed + (count + 1) // 2)
            elif TRAINERS.find(trainer.name) == "dp_sgd":
                raise config.error("dp_audit.training_alg", "nondp trains as train.trainer says, and that is dp_sgd")
            of_attack = (None, 0) if gradient else (call, models)
            arms.append(Arm(training, kind, TITLES[training], trainer, *of_attack))
    return tuple(arms)


def _distinct(config: Config, data: AuditData, key: str, value: str | tuple[str, ...]) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if key == "canary_dataset":
        made = (*GRADIENTS, ADVERSARIAL)
        values = tuple(name if name in made else _kind(config, data, SAME.get(name, name)) for name in values)
    if not values or len(set(values)) < len(values):
        raise config.error(f"dp_audit.{key}", f"should be one or several different names, got {value!r}")
    return values


def _kind(config: Config, data: AuditData, name: str) -> str:
    found = CANARIES.find(name)
    if found is None:
        others = ", ".join((ADVERSARIAL, *GRADIENTS))
        raise config.error("dp_audit.canary_dataset", f"{CANARIES.unknown(name)}; not records of the data: {others}")
    try:
        check_kind(data, found)
    except UserError as error:
        raise config.error("dp_audit.canary_dataset", str(error)) from None
    return found


def _fixed(session: Session, kind: str, count: int) -> int:
    """How many records are members for certain."""
    if kind in GRADIENTS:
        return len(session.data.pool)
    try:
        if kind == ADVERSARIAL:  # made of the population, by a model that is not trained yet
            check_adversarial(session, count)
            return len(session.data.pool)
        return with_canaries(session.data, kind, count, session.stream("dp_audit", "canaries", kind)).fixed
    except UserError as error:
        raise session.config.error("dp_audit.canary_size", str(error)) from None


def dp_trainer(config: Config, given: Mapping[str, Any], delta: float, public_size: int) -> Call:
    """The trainer dp_sgd: the settings given, then what `train:` says in words that dp_sgd knows, then defaults.

    public_size: keeps batches and steps from depending on how many canaries are members.
    """
    from trainers.dp_sgd import check_noise

    if config.trainer.settings.get("peft"):
        raise config.error("train.peft", "DP-SGD here trains whole models, not adapters: leave it out")
    fields = TRAINERS.schema("dp_sgd").model_fields
    settings = {key: value for key, value in config.trainer.given.items() if key in fields}
    if {"noise_multiplier", "target_epsilon"} & given.keys():
        settings = {k: v for k, v in settings.items() if k not in ("noise_multiplier", "target_epsilon")}
    settings = {"delta": delta, "public_size": public_size, **settings, **given}
    try:
        bound = TRAINERS.bind("dp_sgd", settings)
        check_noise(bound)
    except ValidationError as error:
        first = error.errors()[0]
        raise config.error(
            ".".join(map(str, ("dp_audit", "dp_sgd", *first["loc"][:1]))),
            f"{first['msg'].removeprefix('Input ')}, got {first['input']!r}",
        ) from None
    except UserError as error:
        raise config.error("dp_audit.dp_sgd", str(error)) from None
    if bound["delta"] != delta:
        raise config.error("dp_audit.dp_sgd.delta", f"is {bound['delta']:g}, dp_audit.delta {delta:g}: audit at one")
    return Call("dp_sgd", bound, settings)


def _call(config: Config, registry: Registry, key: str, value: str | Mapping[str, Any]) -> Call:
    """`Name` or `{name: …, its settings}` as a call, or a mistake at the block's key."""
    name, given = (value, {}) if isinstance(value, str) else (value.get("name"), {**value})
    given.pop("name", None)
    known_as = registry.find(name) if isinstance(name, str) else None
    if known_as is None:
        raise config.error(f"dp_audit.{key}", registry.unknown(str(name)))
    try:
        return Call(known_as, registry.bind(known_as, given), given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][:1]))
        raise config.error(f"dp_audit.{key}", f"{where}: {first['msg']}, got {first['input']!r}") from None


def _check_counts(config: Config, choice: Choice, m: int, estimator: str, delta: float, level: float) -> None:
    """The very audit, on made-up scores: what it refuses for these numbers, it refuses now."""
    member = np.arange(m) % 2 == 0
    try:
        audit_one_run(
            np.arange(m, dtype=float),
            member,
            np.random.default_rng(0),
            delta=delta,
            level=level,
            choice=choice,
            estimator=estimator,
        )
    except ValueError as error:
        raise config.error("dp_audit.guesses", str(error)) from None


def _check_attack(config: Config, call: Call, references: int) -> None:
    """The very attack, on made-up evidence in which no reference knows a canary."""
    draw, points, others = np.random.default_rng(0), 40, 60
    signal = lambda *shape: draw.standard_normal((*shape[:-1], config.audit.queries, shape[-1])).astype(np.float32)  # noqa: E731
    nobody = np.zeros((references, points), dtype=bool)
    base = Evidence(signal(points), signal(references, points), nobody, signal(others), signal(references, others))
    also = ATTACKS.fact(call.name, "signals")
    names = [one.name for one in also(call.settings)] if also else []
    try:
        with np.errstate(all="ignore"), quiet("modules"):
            scores = ATTACKS[call.name](replace(base, also=dict.fromkeys(names, base)), **call.settings)
        wrong = "it gives no number for them" if np.isnan(scores).any() else ""
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise config.error(
            "dp_audit.attack",
            f"{call.label} cannot score canaries, on which no reference trains: {wrong}. Use its offline mode, e.g. "
            "{name: LiRA, mode: offline}, or LOSS",
        )


def check_model(session: Session, setup: Setup) -> None:
    import models
    from trainers.dp_sgd import refuse_batch_norm

    config, data = session.config, session.data
    network = models.build(
        config.model.name, config.model.settings, data.input_shape, data.num_classes, np.random.default_rng(0)
    )
    try:
        refuse_batch_norm(network)
    except UserError as error:
        raise config.error("train.model_name", str(error)) from None
    size = sum(p.numel() for p in network.parameters() if p.requires_grad)
    try:
        for arm in setup.arms:
            check_size(arm.kind, setup.canaries, size)
    except UserError as error:
        raise config.error("dp_audit.canary_size", str(error)) from None
