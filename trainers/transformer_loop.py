"""The training loop of a language model. Imports torch: import it inside a function."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from trainers import loop
from trainers.resident import Resident
from trainers.schedule import learning_rates
from trainers.text_batches import Buckets, grouped
from trainers.token_loss import TokenLoss

log = logging.getLogger(__name__)
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW, as everywhere


@dataclass(frozen=True)
class Recipe:
    """The settings of a training; see trainers/transformer.py."""

    epochs: int
    learning_rate: float
    batch_size: int
    accumulation: int
    weight_decay: float
    schedule: str
    warmup_epochs: float
    clip_norm: float | None
    checkpointing: bool
    halving: bool
    precision: str
    at_once: int = 0  # records computed at once; 0: the whole batch

    def rates(self, batches: int) -> Float[Array, "epochs steps"]:
        """The learning rate of each step of a model with so many batches in an epoch."""
        steps = -(-batches // self.accumulation)
        return learning_rates(self.epochs, steps, self.learning_rate, self.schedule, self.warmup_epochs)  # ty: ignore


class Diverged(Exception):
    """The loss or a weight of a model is no longer a finite number."""

    def __init__(self, number: int, epoch: int) -> None:
        super().__init__(f"model {number} diverged in epoch {epoch}")
        self.number, self.epoch = number, epoch


def fitting(recipe: Recipe, attempt: Callable[[Recipe], None]) -> None:
    """`attempt(recipe)`; where memory does not suffice, and the recipe allows it, again with half as much at once."""
    while True:
        try:
            return attempt(recipe)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            rows = recipe.at_once or recipe.batch_size
            if not (recipe.halving and rows > 1 and _out_of_memory(error)):
                raise
            recipe = replace(recipe, at_once=rows // 2)
        # Here, where the exception and the activations that its frames hold are gone.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.info("train.auto_find_batch_size: out of memory with %d records at once, now %d", rows, recipe.at_once)


def _out_of_memory(error: Exception) -> bool:
    text = str(error).casefold()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def train(
    model: torch.nn.Module,
    data: Resident,
    member: Bool[Array, " D"],
    rng: np.random.Generator,
    recipe: Recipe,
    number: int = 0,
) -> None:
    """Train the weights of `model` that require gradients, in place, and leave it in evaluation mode."""
    model.to(data.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().cpu().clone() for p in parameters] if recipe.halving else []

    def attempt(recipe: Recipe) -> None:
        _train(model, parameters, data, member, copy.deepcopy(rng), recipe, number)

    def again(recipe: Recipe) -> None:
        with torch.no_grad():
            for parameter, start in zip(parameters, before, strict=True):
                parameter.copy_(start)
        attempt(recipe)

    fitting(recipe, again if recipe.halving else attempt)
    model.eval()


def _train(
    model: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    data: Resident,
    member: Bool[Array, " D"],
    rng: np.random.Generator,
    recipe: Recipe,
    number: int,
) -> None:
    assert data.lengths is not None
    lengths = data.lengths.cpu().numpy()
    buckets = Buckets.of(lengths, recipe.batch_size)
    optimizer = _adamw(parameters, recipe.weight_decay)
    model.train()
    loss_of = TokenLoss.of(model, recipe.precision, data.device)
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # ty: ignore
    if recipe.checkpointing:
        checkpointed(inner, True)
    with loop.seeded(rng, data.device):
        for epoch, rates in enumerate(recipe.rates(buckets.steps(member, recipe.batch_size))):
            batches = buckets.batches(member, rng, recipe.batch_size)
            order = [slot for slot in map(tuple, buckets.order(epoch).tolist()) if slot in batches]
            total = torch.zeros((), device=data.device)
            for slots, rate in zip(grouped(order, recipe.accumulation), rates.tolist(), strict=True):
                tokens = sum(int((lengths[batches[slot]] - 1).sum()) for slot in slots)
                for slot in slots:
                    for part in grouped(batches[slot].tolist(), recipe.at_once or recipe.batch_size):
                        index = torch.tensor(part, device=data.device)
                        ids = data.x[index, : int(buckets.width[slot[0]])].long()
                        each = torch.full((len(part),), 1 / tokens, device=data.device)
                        loss = loss_of(ids, data.lengths[index], each, [len(part)])
                        loss.backward()
                        total += loss.detach()
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad()
            norms = torch.stack([p.detach().norm() for p in parameters])
            if not (total + norms.sum()).isfinite():
                raise Diverged(number, epoch + 1)
    if recipe.checkpointing:
        checkpointed(inner, False)


def checkpointed(network: Any, on: bool) -> None:
    """Whether activations are computed again for the gradient, instead of kept."""
    with warnings.catch_warnings():  # their newer names are not in every version that has these
        warnings.simplefilter("ignore", FutureWarning)
        if on:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            network.gradient_checkpointing_disable()


def _adamw(parameters: list[torch.nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=BETAS, eps=EPSILON, fused=fused)
