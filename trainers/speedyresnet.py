"""The trainer of speedyresnet: a good CIFAR model in ten epochs.

In the line of hlb-CIFAR10 (Tysam& Balsam, https://github.com/tysam-code/hlb-CIFAR10) and airbench (Keller Jordan
2024, https://arxiv.org/abs/2404.00498, MIT licence), written anew for audits: on an arbitrary part of the data, and
with nothing of a non-member in the model.

Not yet measured on a GPU, nor on CIFAR-10. On a CPU, on small data: documentation/benchmarks.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from pydantic import BeforeValidator

from core.errors import UserError
from core.registry import TRAINERS

if TYPE_CHECKING:
    import torch

    from trainers.resident import Resident


def _spelling(name: object) -> object:
    return {"sgd": "SGD", "muon": "Muon"}.get(str(name).casefold(), name)


def even_batches(count: int, batch_size: int) -> list[slice]:
    """0 .. count - 1 in slices of nearly equal length, at most `batch_size` (or 3: none is a lone record).

    A small last batch would take a step as long as the others on few records.
    """
    number = max(1, min(math.ceil(count / batch_size), count // 2))
    ends = [count * i // number for i in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def triangle(steps: int, warmup: float, start: float, end: float) -> Float[Array, " steps"]:
    """What the learning rates are multiplied by: from `start` up to 1 at the fraction `warmup`, then down to `end`.

    Both legs are straight; step `steps`, which is not taken any more, would have `end`.
    """
    peak = int(warmup * steps)
    t = np.arange(steps)
    up = start + (1 - start) * t / max(peak, 1)
    down = 1 + (end - 1) * (t - peak) / max(steps - peak, 1)
    return np.where(t < peak, up, down)


def exposures(settings: Mapping[str, Any], members: int) -> dict[str, int]:
    """How often each member is seen, and in how many steps: every member equally often."""
    epochs = settings["epochs"]
    return {"exposures_per_member": epochs, "steps": epochs * len(even_batches(members, settings["batch_size"]))}


@TRAINERS.register(
    "speedyresnet",
    summary="the fast recipe of the CIFAR speed records, for the model speedyresnet",
    facts=exposures,
    models=("speedyresnet",),
)
def speedyresnet(
    models: list[torch.nn.Module],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    *,
    epochs: Annotated[int, Ge(1)] = 10,
    batch_size: Annotated[int, Ge(2)] = 1024,
    optimizer: Annotated[Literal["SGD", "Muon"], BeforeValidator(_spelling)] = "Muon",
    learning_rate: Annotated[float, Gt(0)] = 1.5,
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.85,
    weight_decay: Annotated[float, Ge(0)] = 0.00133,
    bias_scale: Annotated[float, Gt(0)] = 64.0,
    muon_learning_rate: Annotated[float, Gt(0)] = 0.24,
    muon_momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.6,
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.23,
    start_factor: Annotated[float, Interval(ge=0, le=1)] = 0.2,
    end_factor: Annotated[float, Interval(ge=0, le=1)] = 0.07,
    lookahead: Annotated[float, Interval(ge=0, lt=1)] = 0.95,
    whiten_epsilon: Annotated[float, Gt(0)] = 5e-4,
    whiten_bias_epochs: Annotated[int, Ge(0)] = 3,
    flip: bool = True,
    translate: Annotated[int, Ge(0)] = 2,
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    compile: bool = False,
) -> list[torch.nn.Module]:
    """Train each model on its members, one after another; the trained models are in evaluation mode.

    Every epoch visits every member once, in batches of nearly equal size; no record is dropped from a last batch.
    The order is a permutation of the whole pool, of which non-members are left out, and what a record draws does not
    depend on other records, so two models that differ in one record see the others alike. The whitening filter is
    computed from the model's own members. UserError where training diverges, with the epoch it happened in.

    - epochs: passes over the members; each mirrors what the one before did not
    - batch_size: records per step, at most
    - optimizer: Muon for the convolutions and SGD with Nesterov's momentum for the rest; or SGD for all
    - learning_rate: the peak of the schedule; 1.5 suits batches of 1024, smaller batches want proportionally less
    - momentum: of SGD
    - weight_decay: L2 penalty; that of normalisation's biases is divided by bias_scale
    - bias_scale: the learning rate of normalisation's biases, in multiples of learning_rate
    - muon_learning_rate: peak for the convolutions under Muon, by which a weight of length √channels turns
    - muon_momentum: of the convolutions under Muon
    - warmup: fraction of the steps in which the learning rates rise, linearly
    - start_factor: where the learning rates start, as a fraction of their peak
    - end_factor: where the learning rates end, as a fraction of their peak; the way down is linear
    - lookahead: every 5 steps the weights are pulled back to their average, whose decay rises to this to the power 5;
      0 switches it off, as do trainings of fewer than 20 steps
    - whiten_epsilon: added to the variance of each whitened direction
    - whiten_bias_epochs: the whitening layer's bias is trained in these first epochs, then frozen
    - flip: mirror every image in every second epoch, half of the images in the first of them
    - translate: move each image by up to so many pixels each way, anew in every epoch; borders are reflected
    - label_smoothing: share of the label spread evenly over all classes; blurs what an audit measures
    - precision: auto is bfloat16 (autocast, weights in float32) on CUDA devices that support it, float32 elsewhere
    - compile: torch.compile, once per architecture and process; pays for itself over many models on a GPU
    """
    from trainers import loop, speedy_loop

    _check(models, data, members, streams, translate)
    autocast = loop.autocast(precision, data.device)
    for number, (model, member, rng) in enumerate(zip(models, members, streams, strict=True)):
        batches = even_batches(int(member.sum()), batch_size)
        try:
            speedy_loop.train(
                model,
                data,
                member,
                rng,
                batches=batches,
                factors=triangle(epochs * len(batches), warmup, start_factor, end_factor).reshape(epochs, -1),
                make_optimizers=speedy_loop.optimizers(
                    optimizer, learning_rate, momentum, weight_decay, bias_scale, muon_learning_rate, muon_momentum
                ),
                lookahead=lookahead,
                whiten_epsilon=whiten_epsilon,
                whiten_bias_epochs=whiten_bias_epochs,
                flip=flip,
                translate=translate,
                label_smoothing=label_smoothing,
                autocast=autocast,
                compiled=compile,
            )
        except loop.Diverged as diverged:
            raise UserError(
                f"training diverged: model {number} of a stack of {len(models)}, epoch {diverged.epoch} of {epochs}, "
                f"train.learning_rate {learning_rate:g}, train.batch_size {batch_size}. Lower train.learning_rate "
                "(1.5 suits batches of 1024, smaller ones want proportionally less)"
            ) from None
    return models


def _check(
    models: list[torch.nn.Module],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    translate: int,
) -> None:
    if members.shape != (len(models), len(data)) or len(streams) != len(models):
        raise ValueError(
            f"{len(models)} models and {len(data)} records need members of shape ({len(models)}, {len(data)}) and as "
            f"many streams as models, got {members.shape} and {len(streams)}"
        )
    if not all(hasattr(model, "whiten") for model in models):
        raise UserError("the trainer speedyresnet trains the model speedyresnet only: leave train.trainer out")
    if members.sum(axis=1).min() < 2:
        raise UserError(f"model {members.sum(axis=1).argmin()} of the stack has fewer than 2 records: use more data")
    side = min(data.x.shape[2:])
    if translate >= side:
        raise UserError(f"train.translate {translate} is too far for images of {side} pixels: at most {side - 1}")
