"""LossTrajectory and TrainingTrajectory: not where the loss of x ends, but how it went there (Liu et al. 2022,
https://arxiv.org/abs/2208.14933)."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal
from modules.mia import joint

Mode = Literal["online", "offline"]
Variance = Literal["auto", "global", "per_record"]
Correlation = Literal["auto", "global", "shrunk", "none"]


def trace_of(settings: Settings) -> Signal:
    """Recorded while the model was trained; read in audit/trace_signals.py."""
    return Signal("trace", options=(("epochs", settings["epochs"]),))


def distilled_of(settings: Settings) -> Signal:
    """Of a student that copies the model; made in audit/trace_signals.py."""
    return Signal("distilled", options=tuple((key, settings[key]) for key in ("epochs", "learning_rate", "batch_size")))


def _rule(evidence: Evidence, settings: Settings) -> joint.Rule:
    return joint.Rule.of(len(evidence.references), settings["mode"], settings["variance"], settings["correlation"])


def _trained(evidence: Evidence, settings: Settings) -> list[joint.Part]:
    return [joint.Part(evidence.signal(trace_of(settings)))]


def _distilled(evidence: Evidence, settings: Settings) -> list[joint.Part]:
    if not evidence.population.shape[1]:
        raise ValueError("LossTrajectory distils on population points, and there are none: set audit.population_size")
    return [joint.Part(evidence.signal(distilled_of(settings))), joint.Part(evidence)]


def shared_of_training(evidence: Evidence, settings: Settings) -> tuple[joint.Side, ...]:
    """Pooled variances and correlations."""
    return joint.sides(_trained(evidence, settings), _rule(evidence, settings))


def shared_of_distilled(evidence: Evidence, settings: Settings) -> tuple[joint.Side, ...]:
    """Pooled variances and correlations."""
    return joint.sides(_distilled(evidence, settings), _rule(evidence, settings))


@ATTACKS.register(
    "LossTrajectory",
    needs_labels=True,
    needs_records=True,
    needs_references=True,
    needs_in=lambda settings: settings["mode"] == "online",
    needs_population=True,
    signals=lambda settings: (distilled_of(settings),),
    shared=shared_of_distilled,
    min_pairs=1,
    summary="log-odds of x while a student learns the target's answers, beside the target's own, jointly as in LiRA",
    access="classes",
    cost="all classes' probabilities of the population, and one answer per record; a student trained per model",
    fails="what a student learns from the population tells little of records unlike it; where LiRA's one number says "
    "all, more coordinates cost precision",
    source="Liu et al. 2022, arXiv 2208.14933; with LiRA's likelihood ratio in the place of a learnt classifier",
)
def loss_trajectory(
    evidence: Evidence,
    given: tuple[joint.Side, ...] | None = None,
    *,
    epochs: Annotated[int, Ge(1)] = 5,
    learning_rate: Annotated[float, Gt(0)] = 1e-3,
    batch_size: Annotated[int, Ge(1)] = 64,
    mode: Mode = "online",
    variance: Variance = "auto",
    correlation: Correlation = "auto",
) -> Float[Array, " N"]:
    """The likelihood ratio of a vector: the student's log-odds of x after each epoch, and the target's own.

    A student of the model's architecture is trained on the model's probabilities of population records; the paper's
    point is that its losses under way resemble those of the model's own training. Of target and references alike the
    student starts as the same network and sees records in the same order, so that only the teaching differs. The
    paper trains a classifier on trajectories of shadow models, one for all records; here each record has its own
    Gaussians, as in MultiLiRA.

    given: pooled variances and correlations, where they are those of other points than these (`shared`).
    epochs: of distillation, each of them a coordinate.
    learning_rate, batch_size: of distillation, by AdamW.
    mode, variance, correlation: as in MultiLiRA.
    """
    settings = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size}
    settings |= {"mode": mode, "variance": variance, "correlation": correlation}
    parts, rule = _distilled(evidence, settings), _rule(evidence, settings)
    return joint.score(parts, joint.sides(parts, rule) if given is None else given, rule)


@ATTACKS.register(
    "TrainingTrajectory",
    needs_labels=True,
    needs_records=True,
    needs_references=True,
    needs_in=lambda settings: settings["mode"] == "online",
    needs_population=False,
    signals=lambda settings: (trace_of(settings),),
    shared=shared_of_training,
    min_pairs=1,
    summary="log-odds of x after several epochs of the target's own training, jointly as in LiRA",
    access="training",
    cost="none beyond the recording: a forward pass over the pool after each epoch of every training",
    fails="only who trains the model has its trajectory: an upper bound for auditors, no attack from outside; with few "
    "references more coordinates cost precision",
    source="Liu et al. 2022, arXiv 2208.14933, whose distilled trajectories stand in for these",
)
def training_trajectory(
    evidence: Evidence,
    given: tuple[joint.Side, ...] | None = None,
    *,
    epochs: Annotated[int, Ge(1)] = 6,
    mode: Mode = "online",
    variance: Variance = "auto",
    correlation: Correlation = "auto",
) -> Float[Array, " N"]:
    """The likelihood ratio of a vector: the log-odds of x after each of some epochs, under target and references.

    Needs train.record_losses: all. With one epoch it is LiRA on the model as it was after the first.

    given: pooled variances and correlations, where they are those of other points than these (`shared`).
    epochs: how many of the recorded ones, evenly spread from the first to the last, are coordinates.
    mode, variance, correlation: as in MultiLiRA.
    """
    settings = {"epochs": epochs, "mode": mode, "variance": variance, "correlation": correlation}
    parts, rule = _trained(evidence, settings), _rule(evidence, settings)
    return joint.score(parts, joint.sides(parts, rule) if given is None else given, rule)
