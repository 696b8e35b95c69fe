"""The canaries of a DP audit beside the other records: registered kinds, and inputs optimised against a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.session import Session, device_of
from core import rundir
from core.errors import UserError
from core.registry import TRAINERS
from core.types import Records
from dataset.canaries import CanaryData, Drawn, beside, least_and_most, with_canaries

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ADVERSARIAL = "adversarial"
RADIUS = 0.25  # how far a value may be moved, as a share of the range of the data
STEPS = 20


def canaries_of(session: Session, kind: str, count: int) -> CanaryData:
    """The data with `count` canaries behind the pool: the same for every model of a run."""
    if kind == ADVERSARIAL:
        check_adversarial(session, count)
        return beside(session.data, Drawn(_adversarial(session, count), np.empty(0, dtype=np.int64)), kind)
    return with_canaries(session.data, kind, count, session.stream("dp_audit", "canaries", kind))


def is_made(session: Session, count: int) -> bool:
    """Whether the adversarial canaries are there."""
    return rundir.is_made(_kept(session), _stamp(session, count))


def _kept(session: Session) -> Path:
    return session.folder / "dp_audit" / "canaries_adversarial.npz"


def check_adversarial(session: Session, count: int) -> None:
    """UserError where there is nothing to optimise."""
    if session.data.is_text:
        raise UserError("adversarial canaries move the values of images and features, texts have none")
    if count > len(session.data.population):
        raise UserError(f"{count} canaries are more than the {len(session.data.population)} records in the population")


def _adversarial(session: Session, count: int) -> Records:
    """Population records with another label, moved to where a model of the population finds it least likely.

    Nothing in them depends on any model's members, nor on the pool (after Nasr et al. 2021, Section 4). Kept, so
    that a second run finds the same ones whatever the device.
    """
    path, stamp = _kept(session), _stamp(session, count)
    if not rundir.is_made(path, stamp):
        x, y, loss = _optimised(session, count)
        rundir.make(path, stamp, lambda file: np.savez(file, x=x, y=y), loss=loss)
        log.info("adversarial canaries: mean loss %.2f under a model of the population", loss)
    with np.load(path, allow_pickle=False) as made:
        return Records(made["x"], made["y"])


def _stamp(session: Session, count: int) -> dict[str, Any]:
    return {
        **session.config.settings(),
        "canaries": count,
        "radius": RADIUS,
        "steps": STEPS,
        "population records (sha256)": session.population_digest,
    }


def _optimised(session: Session, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Canaries x, their labels y, and the mean loss of the model that they were optimised against."""
    import torch

    from trainers.resident import Resident

    config, data, draw = session.config, session.data, session.stream("dp_audit", "adversarial")
    trainer = config.trainer
    assert trainer
    population = Resident.of(data.population, data.mean, data.std, device_of(config, "train"))
    everyone = np.ones((1, len(population)), dtype=bool)
    (model,) = TRAINERS[trainer.name]([_built(session)], population, everyone, [draw], **trainer.settings)
    model.to(population.device).eval()
    chosen = np.sort(draw.choice(len(population), count, replace=False))
    low, high = least_and_most(data)
    made, labels, losses = [], [], []
    for part in np.array_split(chosen, -(-count // 500)):
        start = population.x[torch.as_tensor(part, device=population.device)].to(torch.float32)
        other = (data.population.y[part] + draw.integers(1, data.num_classes, len(part))) % data.num_classes
        y = torch.as_tensor(other, device=population.device)
        x, loss = _least_likely(model, population, start, y, low, high)
        made.append(x.cpu().numpy()), labels.append(y.cpu().numpy()), losses.append(loss.cpu().numpy())
    x = np.concatenate(made)
    if np.issubdtype(data.pool.x.dtype, np.integer):
        x = np.rint(x)
    return x.astype(data.pool.x.dtype), np.concatenate(labels).astype(np.int64), float(np.concatenate(losses).mean())


def _built(session: Session) -> torch.nn.Module:
    import models

    model = session.config.model
    assert model
    shape, classes = session.data.input_shape, session.data.num_classes
    return models.build(
        model.name, model.settings, shape, classes, session.stream("dp_audit", "adversarial", "init")
    ).to(device_of(session.config, "train"))


def _least_likely(
    model: torch.nn.Module, data: Any, start: torch.Tensor, y: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`start` moved by signed gradient steps within `RADIUS` to where label y has the largest loss, and that loss."""
    import torch
    from torch.nn import functional as F

    reach = RADIUS * (high - low)
    x = start.clone()
    for _ in range(STEPS):
        x.requires_grad_()
        loss = F.cross_entropy(model((x - data.mean) / data.std), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, x)
        moved = x.detach() + reach / 8 * slope.sign()
        x = torch.minimum(torch.maximum(moved, start - reach), start + reach).clamp(low, high)
    with torch.no_grad():
        return x, F.cross_entropy(model((x - data.mean) / data.std), y, reduction="none")
