"""DP-SGD: each record's gradient is clipped by itself and noise is added (Abadi et al. 2016, arXiv 1607.00133)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool
from numpy import ndarray as Array
from pydantic import BeforeValidator

from core.errors import UserError
from core.registry import TRAINERS
from trainers.dp_accounting import Mechanism, epsilon, noise_multiplier_for
from trainers.schedule import learning_rates
from trainers.sgd import _spelling

if TYPE_CHECKING:
    import torch

    from trainers.dp_loop import GradientCanaries
    from trainers.resident import Resident


def mechanism_of(settings: Mapping[str, Any], members: int) -> Mechanism:
    """Sampling rate, steps and noise of a training of `members` records under these settings of `dp_sgd`.

    UserError unless exactly one of noise_multiplier and target_epsilon is set.
    """
    check_noise(settings)
    noise, size = settings["noise_multiplier"], settings["public_size"] or members
    rate = min(1.0, settings["batch_size"] / size)
    steps = max(1, math.ceil(settings["epochs"] / rate - 1e-9))
    if noise is None:
        noise = noise_multiplier_for(settings["target_epsilon"], rate, steps, settings["delta"])
    return Mechanism(rate, steps, noise, settings["max_grad_norm"])


def check_noise(settings: Mapping[str, Any]) -> None:
    """UserError unless exactly one of noise_multiplier and target_epsilon is set."""
    given = [key for key in ("noise_multiplier", "target_epsilon") if settings[key] is not None]
    if len(given) != 1:
        raise UserError(
            f"dp_sgd needs noise_multiplier or target_epsilon, {'both are' if given else 'neither is'} set: "
            "give one of them, e.g. target_epsilon: 8"
        )


def privacy(settings: Mapping[str, Any], members: int) -> dict[str, float]:
    """What such a training spends: epsilon at delta by the accountant, and what it follows from."""
    m, delta = mechanism_of(settings, members), settings["delta"]
    return {
        "epsilon": epsilon(m.noise_multiplier, m.sampling_rate, m.steps, delta),
        "delta": delta,
        "noise_multiplier": m.noise_multiplier,
        "sampling_rate": m.sampling_rate,
        "steps": m.steps,
    }


@TRAINERS.register(
    "dp_sgd",
    summary="differentially private SGD: clipped gradients, noise, an accountant",
    facts=privacy,
    kinds=(None, "language"),
)
def dp_sgd(
    models: list[torch.nn.Module],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    *,
    epochs: Annotated[float, Gt(0)],
    learning_rate: Annotated[float, Gt(0)],
    batch_size: Annotated[int, Ge(1)] = 256,
    noise_multiplier: Annotated[float, Ge(0)] | None = None,
    target_epsilon: Annotated[float, Gt(0)] | None = None,
    delta: Annotated[float, Interval(gt=0, lt=1)] = 1e-5,
    max_grad_norm: Annotated[float, Gt(0)] = 1.0,
    public_size: Annotated[int, Ge(1)] | None = None,
    physical_batch_size: Annotated[int, Ge(1)] = 128,
    clipping: Literal["per_record", "ghost"] = "per_record",
    optimizer: Annotated[Literal["SGD", "Adam", "AdamW"], BeforeValidator(_spelling)] = "SGD",
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    schedule: Literal["cosine", "constant"] = "constant",
    augmentations: Annotated[int, Ge(0)] = 0,
    augment_shift: Annotated[float, Interval(ge=0, le=0.5)] = 0.125,
) -> list[torch.nn.Module]:
    """Train each model on its members with DP-SGD; the trained models are in evaluation mode.

    In each step every member is in the batch with probability batch_size / public_size, by its own draw. Its
    gradient is scaled down to max_grad_norm if it is longer; the sum, with Gaussian noise of standard deviation
    noise_multiplier x max_grad_norm in each coordinate, divided by batch_size, is what the optimizer sees.
    That is (epsilon, delta)-DP for the adding or removing of a record, by the PRV accountant of Opacus; the
    epsilon is in models_metadata.json. The noise comes from torch's generator, seeded by the run's stream so
    that runs can be repeated: it is no cryptographic generator, and who knows the seed can take the noise off
    again. UserError for models with batch normalisation, which mixes records before they can be clipped.

    - epochs: expected times that a record is in a batch; steps are epochs x public_size / batch_size, rounded up
    - learning_rate: of every step, or where the cosine starts
    - batch_size: expected records per step; large ones are better (and physical_batch_size limits the memory)
    - noise_multiplier: standard deviation of the noise over max_grad_norm; more is more private
    - target_epsilon: finds the noise multiplier that spends no more than this epsilon at delta, in its place
    - delta: of the accountant
    - max_grad_norm: longer gradients of a record are scaled down to this norm
    - public_size: the records that batch_size is a share of; the number of members if left out, which then counts
      as public knowledge
    - physical_batch_size: gradients in memory at a time; changes nothing but memory and speed
    - clipping: per_record keeps the gradient of each record of a physical batch; ghost needs no memory for them and
      gives the same sum, for models of linear, convolutional and group normalising layers
    - optimizer: SGD, Adam or AdamW on the noisy gradients
    - momentum: of SGD
    - weight_decay: L2 penalty on all weights (SGD, Adam), decoupled from the gradient in AdamW
    - schedule: constant, or down to zero along a half cosine
    - augmentations: mirrored and shifted views of each record whose gradients are averaged before clipping
      (De et al. 2022); costs no privacy. 0: the record itself
    - augment_shift: the largest shift, as a fraction of the image's height
    """
    settings = dict(locals())  # the keyword-only ones, as `mechanism_of` and `privacy` get them from a config
    if members.shape != (len(models), len(data)) or len(streams) != len(models):
        raise ValueError(
            f"{len(models)} models and {len(data)} records need members of shape ({len(models)}, {len(data)}) and as "
            f"many streams as models, got {members.shape} and {len(streams)}"
        )
    for model, member, rng in zip(models, members, streams, strict=True):
        train_one(model, data, member, rng, settings)
    return models


def train_one(
    model: torch.nn.Module,
    data: Resident,
    member: Bool[Array, " D"],
    rng: np.random.Generator,
    settings: Mapping[str, Any],
    canaries: GradientCanaries | None = None,
) -> None:
    """Train one model in place under the settings of `dp_sgd`, with an auditor's gradients among its records."""
    from trainers import dp_ghost, dp_loop, loop

    refuse_batch_norm(model)
    summed = dp_loop.clipped_sum if data.lengths is None else dp_loop.clipped_text_sum
    if settings["clipping"] == "ghost":
        dp_ghost.check(model)
        summed = dp_ghost.clipped_sum
    if settings["augmentations"] and not data.is_image:
        shape = tuple(data.x.shape[1:])
        raise UserError(
            f"dp_sgd.augmentations mirrors and shifts images; records of shape {shape} are none: set it to 0"
        )
    members = int(member.sum()) + (0 if canaries is None else int(canaries.member.sum()))
    mechanism = mechanism_of(settings, members)
    try:
        dp_loop.train(
            model,
            data,
            member,
            rng,
            mechanism=mechanism,
            rates=learning_rates(1, mechanism.steps, settings["learning_rate"], settings["schedule"])[0],
            make_optimizer=loop.optimizer(settings["optimizer"], settings["momentum"], False, settings["weight_decay"]),
            batch_size=settings["batch_size"] if mechanism.sampling_rate < 1 else settings["public_size"] or members,
            physical_batch_size=settings["physical_batch_size"],
            augmentations=settings["augmentations"],
            shift=math.floor(settings["augment_shift"] * data.x.shape[2]) if settings["augmentations"] else 0,
            canaries=canaries,
            summed=summed,
        )
    except loop.Diverged:
        raise UserError(
            f"training with dp_sgd diverged: learning_rate {settings['learning_rate']:g} is too high for noise "
            f"multiplier {mechanism.noise_multiplier:.3g}, batch_size {settings['batch_size']}: lower it"
        ) from None


def refuse_batch_norm(model: torch.nn.Module) -> None:
    """UserError, naming the layer, if the model mixes the records of a batch."""
    from torch import nn

    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or getattr(layer, "track_running_stats", False):
            raise UserError(
                f"dp_sgd cannot train a model with batch normalisation ({name}: {type(layer).__name__}): it mixes the "
                "records of a batch, so no record's gradient can be clipped by itself. Use a train.model_name "
                "without, e.g. mlp or cnn, or one with group normalisation"
            )
