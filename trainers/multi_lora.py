"""LoRA adapters of several models, trained in one pass over the frozen base they share.

A batch holds G contiguous batches, one of each model, each of as many records as that model has in it. The base sees
them as one; each adapter multiplies its own part. Loss, clipping, learning rate and optimizer are each adapter's own,
so that adapter k is what it would be alone.
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
from trainers.stacked_lora import Share, Stack, StackedLoRA
from trainers.text_batches import Buckets, grouped
from trainers.token_loss import TokenLoss
from trainers.transformer_loop import Diverged, Recipe, checkpointed, fitting

EMPTY = np.empty(0, np.int64)
AT_ONCE = ("cuda",)  # devices on which one batched product beats a product for each adapter


def stackable(models: Sequence[nn.Module]) -> bool:
    """Whether these are plain LoRA adapters on one base that drops nothing out (its masks would be the stack's)."""
    same = len({_base_weights(model) for model in models}) == 1
    return same and all(_plain(model) for model in models) and _by_rows(models[0])


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
            and type(layer.base_layer) in (nn.Linear, Conv1D)
            and not (layer.use_dora.get(adapter) or layer.lora_bias.get(adapter))
            for layer in layers
        )
        and own == {id(p) for p in model.parameters() if p.requires_grad}
        and not any(rates)
        and not any(module.p for module in dropping)
    )


@torch.no_grad()
def _by_rows(model: Any) -> bool:
    """Whether all adapted layers see the records as rows; experts, for one, see tokens that were sent to them."""
    from peft.tuners.lora import LoraLayer

    seen, ids = [], torch.tensor([[0, 1, 2], [3, 2, 1]], device=next(model.parameters()).device)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    hooks = [layer.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[:-1]))) for layer in layers]
    was = model.training
    try:
        model.eval()(input_ids=ids)
    finally:
        model.train(was)
        for hook in hooks:
            hook.remove()
    return seen == [tuple(ids.shape)] * len(layers)


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
    device, size, most = data.device, recipe.batch_size, recipe.at_once or recipe.batch_size
    lengths = data.lengths.cpu().numpy()
    buckets = Buckets.of(lengths, size)
    generators = [torch.Generator(device).manual_seed(int(rng.integers(2**63))) for rng in streams]
    share = Share(generators, at_once=device.type in AT_ONCE)
    network, stack = _stacked(models, share, recipe, device)
    loss = TokenLoss.of(network, recipe.precision, device, models[0])
    rates = [recipe.rates(buckets.steps(member, size)) for member in members]
    for epoch in range(recipe.epochs):
        order = list(map(tuple, buckets.order(epoch).tolist()))
        plans = [
            _Epoch.of(buckets.batches(member, rng, size), order, lengths, recipe.accumulation)
            for member, rng in zip(members, streams, strict=True)
        ]
        steps = [0] * len(models)
        for slot in order:
            batches = [plan.batches.get(slot, EMPTY) for plan in plans]
            for start in range(0, size, most):
                rows = [batch[start : start + most] for batch in batches]
                if not any(map(len, rows)):
                    break
                share.take(list(map(len, rows)), most)
                index, weights = _padded(rows, [plan.tokens.get(slot, 1) for plan in plans], share.rows)
                index, weights = (torch.as_tensor(of_all, device=device) for of_all in (index, weights))
                ids = data.x[index, : int(buckets.width[slot[0]])].long()
                total = loss(ids, data.lengths[index], weights, share.rows)
                stack.gather(torch.autograd.grad(total, stack.parameters))
            due = [k for k, plan in enumerate(plans) if slot in plan.ends]
            stack.step({k: float(rates[k][epoch, steps[k]]) for k in due}, recipe.clip_norm)
            for k in due:
                steps[k] += 1
        finite = stack.finite()
        if not all(finite):
            raise Diverged(finite.index(False), epoch + 1)
    stack.give_back()


def _padded(rows: list[Array], tokens: list[int], places: list[int]) -> tuple[Array, Array]:
    """The records of all adapters, and what each weighs: a record that only fills a place weighs nothing."""
    index = [np.pad(own, (0, size - len(own))) for own, size in zip(rows, places, strict=True)]
    weights = [(np.arange(size) < len(own)) / n for own, n, size in zip(rows, tokens, places, strict=True)]
    return np.concatenate(index), np.concatenate(weights).astype(np.float32)


def _stacked(models: Sequence[Any], share: Share, recipe: Recipe, device: torch.device) -> tuple[nn.Module, Stack]:
    """The base with all adapters on it, its tensors shared, and the adapters as one matrix."""
    from peft.tuners.lora import LoraLayer

    adapter = models[0].active_adapter
    dtype = loop.dtype_of(recipe.precision, device)
    first = models[0].get_base_model()
    network = copy.deepcopy(first, {id(t): t for t in (*first.parameters(), *first.buffers())})
    names = [name for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    of_models = [
        [part[adapter].weight for name in names for part in _parts(model.get_base_model().get_submodule(name))]
        for model in models
    ]
    stack = Stack(of_models, recipe.weight_decay)
    parameters = iter(stack.parameters)
    for name in names:
        layer = network.get_submodule(name)
        stacked = StackedLoRA(layer, adapter, next(parameters), next(parameters), share, dtype)
        network.set_submodule(name, stacked)
    if recipe.checkpointing:
        checkpointed(network, True)
        network.train()
    return network, stack


def _parts(layer: Any) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    return layer.lora_A, layer.lora_B
