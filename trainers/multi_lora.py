"""LoRA adapters of several models, trained in one pass over the frozen base they share.

A batch holds G contiguous batches, one of each model. The base sees them as one; each adapter multiplies its own
part. Loss, clipping, learning rate and optimizer are each adapter's own, so that adapter k is what it would be
alone. All adapters are rows of one matrix (G, n): a step of the optimizer is a few operations on it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray as Array
from torch import nn

from trainers import loop
from trainers.resident import Resident
from trainers.text import losses
from trainers.text_batches import Buckets, grouped
from trainers.transformer_loop import BETAS, EPSILON, Diverged, Recipe, checkpointed, fitting

ALIGNED = 16  # floats: matrices that start at multiples of it are multiplied alike wherever they lie


def stackable(models: Sequence[nn.Module]) -> bool:
    """Whether these are plain LoRA adapters on one base that drops nothing out (its masks would be the stack's)."""
    return all(_plain(model) for model in models) and len({_base_weights(model) for model in models}) == 1


def _base_weights(model: nn.Module) -> tuple[int, ...]:
    return tuple(id(p) for p in model.parameters() if not p.requires_grad)


def _plain(model: Any) -> bool:
    from peft.tuners.lora import Linear, LoraLayer
    from transformers.pytorch_utils import Conv1D

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    own = {id(p) for layer in layers for part in (layer.lora_A, layer.lora_B) for p in part.parameters()}
    adapter = model.active_adapter
    dropping = [m for name, m in model.named_modules() if isinstance(m, nn.Dropout) and "lora_dropout" not in name]
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else {}
    # Attention drops out without a module; summaries and classifiers are parts that a causal model does not run.
    rates = [rate for key, rate in config.items() if "drop" in key and not key.startswith(("summary", "classifier"))]
    return (
        bool(layers)
        and all(
            type(layer) is Linear
            and isinstance(layer.base_layer, nn.Linear | Conv1D)
            and not (layer.use_dora.get(adapter) or layer.lora_bias.get(adapter))
            for layer in layers
        )
        and own == {id(p) for p in model.parameters() if p.requires_grad}
        and not any(rates)
        and not any(module.p for module in dropping)
    )


class StackedLoRA(nn.Module):
    """A frozen linear layer and G adapters: rows in G equal parts, of which each adapter adds to its own."""

    def __init__(self, layer: Any, adapter: str, a: nn.Parameter, b: nn.Parameter, masks: Masks) -> None:
        super().__init__()
        self.base_layer, self.a, self.b = layer.base_layer, a, b  # a (G, r, in), b (G, out, r)
        self.scaling = layer.scaling[adapter]
        drop = layer.lora_dropout[adapter]
        self.drop, self.masks = (drop.p if isinstance(drop, nn.Dropout) else 0.0), masks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, and B A x of each adapter's own part on top."""
        y = self.base_layer(x)
        parts = x.reshape(len(self.a), -1, x.shape[-1])
        if self.drop:
            parts = parts * self.masks.draw(parts, self.drop)
        return y + (parts @ self.a.mT @ self.b.mT).view(y.shape) * self.scaling


@dataclass
class Masks:
    """Dropout of each adapter from its own generator; those that have nothing to do in a slot draw nothing."""

    generators: list[torch.Generator]
    active: list[bool]

    def draw(self, like: torch.Tensor, rate: float) -> torch.Tensor:
        """Ones, of which a share `rate` is 0 and the rest scaled up."""
        masks = torch.ones_like(like)
        for mask, generator, active in zip(masks, self.generators, self.active, strict=True):
            if active:
                mask.bernoulli_(1 - rate, generator=generator)
        return masks / (1 - rate)


def train(
    models: Sequence[Any],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    recipe: Recipe,
) -> None:
    """Train the adapters of all models, in place, and leave the models in evaluation mode."""
    for model in models:
        model.to(data.device)
    fitting(recipe, lambda recipe: _train(models, data, members, copy.deepcopy(list(streams)), recipe))
    for model in models:
        model.eval()


@dataclass
class _Epoch:
    """Of one model: its batches by slot; how many tokens the step that a slot is part of has; slots that end a step."""

    batches: dict[tuple[int, int], Array]
    tokens: dict[tuple[int, int], int]
    ends: set[tuple[int, int]]

    @classmethod
    def of(
        cls, batches: dict[tuple[int, int], Array], order: list[tuple[int, int]], lengths: Array, size: int
    ) -> _Epoch:
        tokens, ends = {}, set()
        for slots in grouped([slot for slot in order if slot in batches], size):
            count = sum(int((lengths[batches[slot]] - 1).sum()) for slot in slots)
            tokens.update(dict.fromkeys(slots, count))
            ends.add(slots[-1])
        return cls(batches, tokens, ends)


def _train(
    models: Sequence[Any],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: list[np.random.Generator],
    recipe: Recipe,
) -> None:
    assert data.lengths is not None
    device, count = data.device, len(models)
    lengths = data.lengths.cpu().numpy()
    buckets = Buckets.of(lengths, recipe.batch_size)
    generators = [torch.Generator(device).manual_seed(int(rng.integers(2**63))) for rng in streams]
    masks = Masks(generators, [True] * count)
    network, stack = _stacked(models, masks)
    autocast = loop.autocast(recipe.precision, device)
    if recipe.checkpointing:
        checkpointed(network, True)
        network.train()
    rates = [recipe.rates(buckets.steps(member, recipe.batch_size)) for member in members]
    for epoch in range(recipe.epochs):
        order = list(map(tuple, buckets.order(epoch).tolist()))
        plans = [
            _Epoch.of(buckets.batches(member, rng, recipe.batch_size), order, lengths, recipe.accumulation)
            for member, rng in zip(members, streams, strict=True)
        ]
        steps = [0] * count
        totals = torch.zeros(count, device=device)
        for slot in order:
            masks.active = [slot in plan.batches for plan in plans]
            if not any(masks.active):
                continue
            index = np.zeros((count, recipe.batch_size), np.int64)
            weight = np.zeros((count, recipe.batch_size), np.float32)  # rows beyond a model's batch weigh nothing
            for k, plan in enumerate(plans):
                if masks.active[k]:
                    batch = plan.batches[slot]
                    index[k, : len(batch)], weight[k, : len(batch)] = batch, 1 / plan.tokens[slot]
            for part in grouped(list(range(recipe.batch_size)), recipe.at_once or recipe.batch_size):
                rows = torch.as_tensor(index[:, part].ravel(), device=device)
                ids = data.x[rows, : int(buckets.width[slot[0]])].long()
                with autocast():
                    logits = network(input_ids=ids).logits
                each = losses(logits, ids, data.lengths[rows]).sum(1).view(count, -1)
                loss = each * torch.as_tensor(weight[:, part], device=device)
                stack.gather(torch.autograd.grad(loss.sum(), stack.parameters))
                totals += loss.detach().sum(1)
            due = [slot in plan.ends for plan in plans]
            if any(due):
                rate = [float(rates[k][epoch, steps[k]]) if due[k] else 0.0 for k in range(count)]
                stack.step(due, rate, recipe.clip_norm, recipe.weight_decay)
                steps = [step + ready for step, ready in zip(steps, due, strict=True)]
        finite = (totals + stack.values.sum(1)).isfinite().tolist()
        if not all(finite):
            raise Diverged(finite.index(False), epoch + 1)
    stack.give_back()


def _stacked(models: Sequence[Any], masks: Masks) -> tuple[nn.Module, Stack]:
    """The base with all adapters on it, its tensors shared, and the adapters as one matrix."""
    from peft.tuners.lora import LoraLayer

    adapter = models[0].active_adapter
    first = models[0].get_base_model()
    network = copy.deepcopy(first, {id(t): t for t in (*first.parameters(), *first.buffers())})
    names = [name for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    stack = Stack.of(
        [
            [part[adapter].weight for name in names for part in _parts(model.get_base_model().get_submodule(name))]
            for model in models
        ]
    )
    parameters = iter(stack.parameters)
    for name in names:
        layer = network.get_submodule(name)
        network.set_submodule(name, StackedLoRA(layer, adapter, next(parameters), next(parameters), masks))
    return network, stack


def _parts(layer: Any) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    return layer.lora_A, layer.lora_B


@dataclass
class Stack:
    """The adapters of G models as the rows of `values` (G, n), their gradients `grads`, and AdamW on them."""

    of_models: list[list[nn.Parameter]]
    values: torch.Tensor
    grads: torch.Tensor
    parameters: list[nn.Parameter]  # (G, ...) each: views of `values`
    gradients: list[torch.Tensor]  # of each, views of `grads`
    mean: torch.Tensor
    square: torch.Tensor
    steps: list[int]

    @classmethod
    def of(cls, of_models: list[list[nn.Parameter]]) -> Stack:
        sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in of_models[0]]
        values = torch.zeros(len(of_models), sum(sizes), device=of_models[0][0].device)
        grads = torch.zeros_like(values)
        parameters, gradients = [], []
        for place, of_one in zip(np.cumsum([0, *sizes]).tolist(), zip(*of_models, strict=True), strict=False):
            like = of_one[0]
            view, grad = (tensor[:, place : place + like.numel()].view(-1, *like.shape) for tensor in (values, grads))
            with torch.no_grad():
                view.copy_(torch.stack([p.detach() for p in of_one]))
            parameters.append(nn.Parameter(view))
            gradients.append(grad)
        moments = torch.zeros_like(values), torch.zeros_like(values)
        return cls(of_models, values, grads, parameters, gradients, *moments, [0] * len(of_models))

    @torch.no_grad()
    def gather(self, gradients: Sequence[torch.Tensor]) -> None:
        """Add these gradients of the parameters to those that are waiting for a step."""
        torch._foreach_add_(self.gradients, list(gradients))

    @torch.no_grad()
    def step(self, due: list[bool], rates: list[float], clip_norm: float | None, weight_decay: float) -> None:
        """A step of AdamW for the adapters that are due, each with its own learning rate and gradient norm."""
        self.steps = [step + ready for step, ready in zip(self.steps, due, strict=True)]
        column = lambda numbers: torch.tensor(numbers, device=self.values.device)[:, None]  # noqa: E731
        on, rate = column(due), column(rates)
        grads = self.grads
        if clip_norm is not None:
            norm = torch.linalg.vector_norm(grads, dim=1, keepdim=True)
            grads = grads * (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        (b1, b2), done = BETAS, [max(step, 1) for step in self.steps]
        self.mean = torch.where(on, self.mean.lerp(grads, 1 - b1), self.mean)
        self.square = torch.where(on, self.square * b2 + (1 - b2) * grads * grads, self.square)
        denominator = self.square.sqrt() / column([(1 - b2**step) ** 0.5 for step in done]) + EPSILON
        change = rate * (self.mean / column([1 - b1**step for step in done]) / denominator)
        self.values.copy_(torch.where(on, self.values * (1 - rate * weight_decay) - change, self.values))
        self.grads.mul_(~on)  # those that are not due yet go on gathering theirs

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy each row back into the adapters of its model."""
        for k, of_one in enumerate(self.of_models):
            for parameter, stacked in zip(of_one, self.parameters, strict=True):
                parameter.copy_(stacked[k])
