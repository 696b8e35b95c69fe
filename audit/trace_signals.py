"""The signals of trajectories: log-odds after epochs of the model's own training, or of a student's that copies it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.model_files import build
from audit.session import Session
from audit.training import trace_path
from core.errors import UserError
from core.loading import read_array
from core.registry import MODELS
from core.rundir import digest
from core.types import Signal

if TYPE_CHECKING:
    import torch

TRACE, DISTILLED = "trace", "distilled"
KINDS = (TRACE, DISTILLED)
FEWEST = 20  # population records that a student can learn anything from


def check(session: Session, signals: Sequence[Signal]) -> None:
    """UserError for trajectories that these models cannot give; before anything is trained."""
    for signal in signals:
        if what := lack(session, signal):
            name = "TrainingTrajectory" if signal.kind == TRACE else "LossTrajectory"
            raise session.config.error("audit.algorithm", f"{name} lacks {what}")


def lack(session: Session, signal: Signal) -> str | None:
    """What a trajectory needs and the models do not have, in words."""
    trainer, model = session.config.trainer, session.config.model
    if signal.kind == TRACE and (session.brought or not trainer or trainer.settings.get("record_losses") != "all"):
        return "what is recorded in training: set train.record_losses: all (of models trained here, trainer sgd)"
    if signal.kind == DISTILLED and MODELS.fact(model.name, "kind") == "estimator":
        return f"a model that is trained in epochs: {model.name} is fitted at once"
    if signal.kind == DISTILLED and len(session.population) < FEWEST:
        return f"{FEWEST} population records to teach a student by; there are {len(session.population)}"
    return None


def stamp(session: Session, signal: Signal) -> dict[str, Any]:
    """What a trajectory is a function of, beside its model and the records asked about."""
    if signal.kind != DISTILLED:
        return {}
    config = session.config
    return {
        **dict(signal.options),
        "run.random_seed": config.run.random_seed,
        "student": {"name": config.model.name, **config.model.settings},
        "population (sha256)": digest(session.population_digest, session.population),
    }


def column(
    session: Session, model: int, network: torch.nn.Module, points: Any, population: Any, signal: Signal
) -> np.ndarray:
    """float32 (rows, N) of the audited records. points, population: the records, in their order, on the device."""
    options = dict(signal.options)
    if signal.kind == TRACE:
        return _recorded(session, model, options["epochs"])
    from trainers.distil import trajectory

    # The same student and the same order of records for every model: what differs is what they are taught.
    return trajectory(
        network,
        build(session, "student"),
        population,
        points,
        session.stream("distil"),
        **options,
        ask_batch_size=session.config.audit.batch_size,
    )


def _recorded(session: Session, model: int, epochs: int) -> np.ndarray:
    path = trace_path(session, model)
    trace = read_array(path)
    if trace.ndim != 2 or trace.shape[1] != len(session.data.pool):
        raise UserError(f"{path} has shape {trace.shape}, the pool has {len(session.data.pool)} records: delete it")
    kept = np.unique(np.linspace(0, len(trace) - 1, min(epochs, len(trace))).round().astype(int))
    return trace[kept][:, session.points].astype(np.float32)
