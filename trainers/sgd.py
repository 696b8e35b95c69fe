"""Gradient descent in mini-batches on data that live on the device: a stack at once where that is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool
from numpy import ndarray as Array
from pydantic import BeforeValidator

from core.errors import UserError
from core.registry import TRAINERS
from trainers.schedule import batches, learning_rates

if TYPE_CHECKING:
    import torch

    from trainers.resident import Resident


def _spelling(name: object) -> object:
    """`sgd`, `Sgd`, `SGD` are all `SGD`; pydantic refuses what is none of them."""
    return next((known for known in ("SGD", "Adam", "AdamW") if known.casefold() == str(name).casefold()), name)


def _width(settings: Mapping[str, Any], build: Callable[[], torch.nn.Module], device: torch.device) -> tuple[int, str]:
    """How many models are trained at once, and why."""
    from trainers import stacking

    return stacking.width(settings, build(), device)


@TRAINERS.register(
    "sgd",
    summary="SGD, Adam or AdamW in mini-batches, with a learning rate schedule",
    width=_width,
    without_effect=("stack", "cuda_graphs"),  # on what is trained: they are in no stamp
)
def sgd(
    models: list[torch.nn.Module],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    *,
    epochs: Annotated[int, Ge(1)],
    learning_rate: Annotated[float, Gt(0)],
    batch_size: Annotated[int, Ge(1)] = 256,
    optimizer: Annotated[Literal["SGD", "Adam", "AdamW"], BeforeValidator(_spelling)] = "SGD",
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9,
    nesterov: bool = True,
    weight_decay: Annotated[float, Ge(0)] = 5e-4,
    schedule: Literal["cosine", "step", "constant"] = "cosine",
    warmup_epochs: Annotated[float, Ge(0)] = 0.0,
    milestones: tuple[Annotated[float, Interval(gt=0, lt=1)], ...] = (0.5, 0.75),
    step_factor: Annotated[float, Interval(gt=0, le=1)] = 0.1,
    augment: bool = False,
    augment_shift: Annotated[float, Interval(ge=0, le=0.5)] = 0.125,
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    ema: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    clip_norm: Annotated[float, Gt(0)] | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    record_losses: bool | Literal["all"] = False,
    stack: Annotated[int, Ge(1)] | Literal["auto"] = "auto",
    cuda_graphs: bool = False,
) -> list[torch.nn.Module]:
    """Train each model on its members by gradient descent; the trained models are in evaluation mode.

    Every epoch visits every member once, the last batch being smaller (a last batch of one record joins the
    one before: batch normalisation needs two). The order is a permutation of the whole pool, of which
    non-members are left out, so two models that differ in one record see the others in the same order.
    UserError where training diverges, with the epoch it happened in.

    - epochs: passes over the members
    - learning_rate: the peak of the schedule, reached at the end of the warm-up
    - batch_size: records per step
    - optimizer: SGD, Adam or AdamW
    - momentum: of SGD; Adam and AdamW use their usual betas
    - nesterov: Nesterov's form of the momentum, of SGD
    - weight_decay: L2 penalty on all weights (SGD, Adam), decoupled from the gradient in AdamW
    - schedule: after the warm-up, down to zero along a half cosine; down in steps; or constant
    - warmup_epochs: the learning rate rises linearly over these
    - milestones: where the schedule `step` goes down, as fractions of the training
    - step_factor: what the schedule `step` multiplies the learning rate by at each milestone
    - augment: mirror half of the images, and shift each, anew in every epoch
    - augment_shift: the largest shift, as a fraction of the image's height (0.125: 4 pixels of 32)
    - label_smoothing: share of the label spread evenly over all classes
    - ema: decay per step of the moving average of the weights that is kept in the end; 0 keeps the last weights
    - clip_norm: longer gradients are scaled down to this norm
    - precision: of products and convolutions; auto is bfloat16 on CUDA devices that support it, float32 elsewhere
    - record_losses: keep each member's loss after each epoch (models/model_<id>.losses.npy), for the report's
        LT-IQR: costs a forward pass an epoch, and models are trained one by one. all: keep the log-odds of the whole
        pool as well (model_<id>.trace.npy), for the attack TrainingTrajectory
    - stack: how many models are trained at once, to the same bytes; auto chooses for the device and the model
    - cuda_graphs: on a GPU, capture the steps of SGD without dropout as CUDA graphs, several models side by side; not
        yet run or measured on a GPU, so off
    """
    from trainers import graphs, loop
    from trainers import stack as stacks

    _check(models, data, members, streams, augment, warmup_epochs, epochs)
    layers = None if augment or record_losses else stacks.common_layers(models)
    chosen = loop.precision_of(precision, data.device)
    options = {
        "make_optimizer": loop.optimizer(optimizer, momentum, nesterov, weight_decay),
        "batch_size": batch_size,
        "label_smoothing": label_smoothing,
        "ema": ema,
        "clip_norm": clip_norm,
        "precision": chosen,
    }
    of_graphs = {"cuda_graphs": cuda_graphs, "optimizer": optimizer, "record_losses": record_losses}
    graphed = layers is None and all(graphs.suits(model, of_graphs, data.device) for model in models)
    shift = math.floor(augment_shift * data.x.shape[2]) if augment else None
    width = len(models) if layers is not None or graphed else 1
    for part in stacks.of_one_size(members, width):
        steps = len(batches(int(members[part[0]].sum()), batch_size))
        rates = learning_rates(
            epochs, steps, learning_rate, schedule, warmup_epochs, milestones=milestones, step_factor=step_factor
        )
        own = [models[k] for k in part]
        own_streams = [streams[k] for k in part]
        try:
            if layers is not None:
                stacks.train(own, layers, data, members[part], own_streams, rates=rates, **options)
            elif graphed:
                options |= {"shift": shift, "make_step": graphs.Captured}
                given = zip(own, members[part], own_streams, strict=True)
                graphs.train(
                    [loop.training(model, data, *of, rates=rates, **options) for model, *of in given], data.device
                )
            else:
                trace: list[np.ndarray] = []
                seen = None if record_losses == "all" else np.flatnonzero(members[part[0]])
                record = partial(_record, trace, *own, data, seen) if record_losses else None
                loop.train(
                    *own, data, members[part[0]], *own_streams, rates=rates, shift=shift, after_epoch=record, **options
                )
                if record_losses:
                    log_odds = np.stack(trace)
                    of_members = log_odds if seen is not None else log_odds[:, members[part[0]]]
                    own[0].loss_trace = np.logaddexp(0, -of_members)
                    own[0].log_odds_trace = None if seen is not None else log_odds
        except loop.Diverged as diverged:
            which = f"model {part[0]} of a stack of {len(models)}" if len(part) == 1 else f"a stack of {len(part)}"
            raise UserError(
                f"training diverged: {which}, epoch {diverged.epoch} of {epochs}, "
                f"train.learning_rate {learning_rate:g}. Lower train.learning_rate, or raise train.warmup_epochs "
                "or set train.clip_norm"
            ) from None
    for model in models:
        model.trained = {
            "precision": chosen,
            "method": "products" if layers else "graphs" if graphed else "loop",
        }  # what the stamp records
    return models


def _record(trace: list[np.ndarray], model: torch.nn.Module, data: Resident, index: np.ndarray | None) -> None:
    """Add the log-odds of the indexed records, of all if None, as the model is now: float32 (n,)."""
    from core.types import LOG_ODDS
    from trainers.evaluate import signals

    trace.append(signals(model, data, index, wanted=[LOG_ODDS])[0, 0])


def _check(
    models: list[torch.nn.Module],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    augment: bool,
    warmup_epochs: float,
    epochs: int,
) -> None:
    if members.shape != (len(models), len(data)) or len(streams) != len(models):
        raise ValueError(
            f"{len(models)} models and {len(data)} records need members of shape ({len(models)}, {len(data)}) and as "
            f"many streams as models, got {members.shape} and {len(streams)}"
        )
    if not members.any(axis=1).all():
        raise UserError(f"model {members.any(axis=1).argmin()} of the stack has no records to train on: use more data")
    if augment and not data.is_image:
        shape = tuple(data.x.shape[1:])
        raise UserError(f"train.augment mirrors and shifts images; records of shape {shape} are none: set it to false")
    if warmup_epochs > epochs:
        raise UserError(
            f"train.warmup_epochs {warmup_epochs:g} is more than train.epochs {epochs}: "
            "train.learning_rate would never be reached"
        )
