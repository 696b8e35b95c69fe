"""Many multi-layer perceptrons trained at once, in batched matrix products with the backward pass written out.

Imports torch: import it inside a function. Slice k of every tensor belongs to model k, and nothing mixes slices.
Feature dimensions are padded with zeros to a multiple of 16, so that each slice starts on a cache line: then a
product's bits do not depend on where in the stack it is (measured; the tests look at many shapes). Padding stays zero:
its weights get zero gradients. Against a loop over `nn.Module`s this saves the dispatch of small operations, and
the passes over memory that autograd makes.

torch gives float32 products on a CPU to MKL, which leaves half of the units idle on CPUs of other makers than Intel.
oneDNN does not, and applies bias and activation while results are in registers; there, larger products are its own,
one model after another (measured: documentation/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from torch import nn

from trainers.loop import Diverged, MakeOptimizer, MovingAverage
from trainers.resident import Resident, padded
from trainers.schedule import batches

TINY = 4096  # multiplications of a bfloat16 product that torch may not give to oneDNN
LARGE = 2_000_000  # of a float32 product, from which oneDNN gains more than a call for each model costs
ACTIVATIONS = {nn.Tanh: "tanh", nn.ReLU: "relu"}


@dataclass(frozen=True)
class Layer:
    """A linear layer of the network, and what is done to its outputs."""

    fan_in: int
    fan_out: int
    activation: str = ""  # "tanh", "relu", or nothing
    dropout: float = 0.0


def layers_of(model: nn.Module) -> tuple[Layer, ...] | None:
    """The layers of a plain multi-layer perceptron; None for any other model."""
    linears = linear_layers(model)
    layers: list[Layer] = []
    for module in _modules(model):
        last = layers[-1] if layers else None
        kind = type(module)
        if module in linears and module.bias is not None and module.weight.dtype == torch.float32:
            layers.append(Layer(module.in_features, module.out_features))
        elif kind is nn.Flatten and last is None and (module.start_dim, module.end_dim) == (1, -1):
            continue
        elif kind in ACTIVATIONS and last and not last.activation and not last.dropout:
            layers[-1] = Layer(last.fan_in, last.fan_out, ACTIVATIONS[kind])
        elif kind is nn.Dropout and last and last.activation and not last.dropout:
            layers[-1] = Layer(last.fan_in, last.fan_out, last.activation, module.p)
        else:
            return None
    plain = bool(layers) and not layers[-1].activation and all(p.requires_grad for p in model.parameters())
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    return tuple(layers) if plain and not hooked and len(set(linears)) == len(layers) else None


def common_layers(models: Sequence[nn.Module]) -> tuple[Layer, ...] | None:
    """The layers that all these models have; None if one is no plain perceptron, or they differ."""
    first, *others = (layers_of(model) for model in models)
    return first if all(layers == first for layers in others) else None


def of_one_size(members: Bool[Array, "G D"], width: int) -> list[list[int]]:
    """The rows of `members` in groups of at most `width` that have equally many members."""
    by_size: dict[int, list[int]] = {}
    for row, count in enumerate(members.sum(axis=1).tolist()):
        by_size.setdefault(count, []).append(row)
    return [rows[i : i + width] for rows in by_size.values() for i in range(0, len(rows), width)]


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether `by_onednn` is there and the faster way: in bfloat16, and in float32 on CPUs where MKL is slow."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    info = Path("/proc/cpuinfo")
    return dtype == torch.float32 and info.exists() and "AuthenticAMD" in info.read_text()


def by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "") -> torch.Tensor:
    """activation(x @ weight.T + bias), (B, in) and (out, in): the operation that torch.compile's CPU code calls."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, activation or "none", [], "")


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in _modules(model) if type(module) is nn.Linear]


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """In the order of the forward pass, of nested nn.Sequential; a model that is none is its own only module."""
    if type(model) is nn.Sequential:
        for child in model:
            yield from _modules(child)
    else:
        yield model


def train(
    models: Sequence[nn.Module],
    layers: tuple[Layer, ...],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    *,
    rates: Float[Array, "epochs steps"],
    make_optimizer: MakeOptimizer,
    batch_size: int,
    label_smoothing: float,
    ema: float,
    clip_norm: float | None,
    precision: str,
) -> None:
    """Train each model on its members, in place; each has as many. They are left in evaluation mode on the device.

    precision: of the matrix products. Weights, their updates and the softmax are float32.
    """
    stack = Stack(models, layers, data.device, getattr(torch, precision))
    # Dropout draws from these. They are taken first, as the loop of one model takes the seed of its generator.
    generators = [torch.Generator(data.device).manual_seed(int(rng.integers(2**63))) for rng in streams]
    optimizer = make_optimizer(stack.parameters)
    average = MovingAverage(stack.values, ema) if ema else None
    with torch.no_grad():
        for epoch, epoch_rates in enumerate(rates, start=1):
            index = draw_orders(data, members, streams)
            for batch, rate in zip(batches(index.shape[1], batch_size), epoch_rates.tolist(), strict=True):
                of_batch = index[:, batch]
                x, y = stack.inputs(data, of_batch), data.y[of_batch]
                stack.backward(stack.forward(x, generators), y, label_smoothing)
                if clip_norm is not None:
                    stack.clip(clip_norm)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                if average:
                    average.update()
            if not stack.finite().all():
                raise Diverged(epoch)
        if average:
            average.keep()
        stack.give_back(models)


def draw_orders(data: Resident, members: Bool[Array, "G D"], streams: Sequence[np.random.Generator]) -> torch.Tensor:
    """The order of an epoch for each model (G, n): a permutation of the pool, of which non-members are left out."""
    orders = [rng.permutation(len(data)) for rng in streams]
    chosen = [order[member[order]] for order, member in zip(orders, members, strict=True)]
    return torch.as_tensor(np.stack(chosen), device=data.device)


class Stack:
    """The weights of G perceptrons, (G, fan_out, fan_in) a layer, and the steps of their training."""

    def __init__(
        self, models: Sequence[nn.Module], layers: tuple[Layer, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.layers, self.dtype = layers, dtype
        self.weights = [
            torch.zeros(len(models), padded(layer.fan_out), padded(layer.fan_in), device=device) for layer in layers
        ]
        self.biases = [torch.zeros(len(models), 1, padded(layer.fan_out), device=device) for layer in layers]
        for k, model in enumerate(models):
            for layer, weight, bias, module in self._parts(model):
                weight[k, : layer.fan_out, : layer.fan_in] = module.weight.detach()
                bias[k, 0, : layer.fan_out] = module.bias.detach()
        self.values = [*self.weights, *self.biases]
        self.parameters = [nn.Parameter(value) for value in self.values]  # share the memory
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.seen: list[torch.Tensor] = []  # what each layer was given in the last forward pass
        self.active: list[torch.Tensor] = []  # the outputs of each activation, before dropout
        self.kept: list[torch.Tensor | None] = []  # the masks of dropout, scaled
        self.used: list[torch.Tensor] = []  # the weights of the last forward pass, in the type of the products
        self._buffer = cache(lambda name, *shape, kind: torch.empty(shape, device=device, dtype=kind))
        self._zero = cache(lambda name, *shape: torch.zeros(shape, device=device, dtype=dtype))

    def _parts(self, model: nn.Module) -> Iterator[tuple[Layer, torch.Tensor, torch.Tensor, nn.Linear]]:
        yield from zip(self.layers, self.weights, self.biases, linear_layers(model), strict=True)

    def buffer(self, name: str, *shape: int, kind: torch.dtype | None = None) -> torch.Tensor:
        """Memory that is used again in every step: fresh pages cost more than small products do."""
        return self._buffer(name, *shape, kind=kind or self.dtype)

    def inputs(self, data: Resident, index: torch.Tensor) -> torch.Tensor:
        """The records of `index` (G, B) as the first layer takes them (G, B, padded features)."""
        rows = data.flat(self.dtype)
        x = self.buffer("inputs", *index.shape, rows.shape[1])
        torch.index_select(rows, 0, index.flatten(), out=x.view(-1, rows.shape[1]))
        return x

    def forward(self, x: torch.Tensor, generators: Sequence[torch.Generator] | None) -> torch.Tensor:
        """Logits (G, B, padded classes) of x (G, B, padded features); dropout only where generators are given."""
        self.seen, self.active, self.kept = [], [], []
        self.used = [self._of(weight, f"weight {i}") for i, weight in enumerate(self.weights)]
        if self.dtype != torch.float32:
            torch._foreach_copy_(self.used, self.weights)
        for i, (layer, weight, bias) in enumerate(zip(self.layers, self.used, self.biases, strict=True)):
            self.seen.append(x)
            z = self.buffer(f"layer {i}", *x.shape[:2], weight.shape[1])
            self.active.append(self._product(x, weight.mT, z, bias, layer.activation))
            drops = bool(layer.dropout) and generators is not None
            self.kept.append(self._mask(i, z, layer.dropout, generators) if drops else None)
            x = z if self.kept[-1] is None else torch.mul(z, self.kept[-1], out=self.buffer(f"dropped {i}", *z.shape))
        return x

    def _mask(
        self, i: int, z: torch.Tensor, dropout: float, generators: Sequence[torch.Generator] | None
    ) -> torch.Tensor:
        """1 / (1 - p) with probability 1 - p, else 0: each model draws from its own generator."""
        assert generators is not None
        mask = self.buffer(f"mask {i}", *z.shape)
        for own, generator in zip(mask, generators, strict=True):
            own.bernoulli_(1 - dropout, generator=generator)
        return mask.div_(1 - dropout) if dropout < 1 else mask

    def backward(self, logits: torch.Tensor, y: torch.Tensor, smoothing: float) -> None:
        """The gradients of each model's mean cross-entropy at labels y (G, B) of its last forward pass."""
        classes, count = self.layers[-1].fan_out, y.shape[1]
        d = torch.softmax(logits[..., :classes].float(), dim=2)
        d.scatter_add_(2, y[..., None], torch.full((1,), smoothing - 1.0, device=d.device).expand(*y.shape, 1))
        if smoothing:
            d.sub_(smoothing / classes)
        gradient = self._zero("gradient", *logits.shape)
        gradient[..., :classes] = d.div_(count)
        of_weights, of_biases = self.gradients[: len(self.layers)], self.gradients[len(self.layers) :]
        for i in reversed(range(len(self.layers))):
            torch.sum(gradient, dim=1, keepdim=True, dtype=torch.float32, out=of_biases[i])
            update = self._product(gradient.mT, self.seen[i], self._of(of_weights[i], f"update {i}"))
            if update is not of_weights[i]:
                of_weights[i].copy_(update)
            if i == 0:
                return
            gradient = self._product(gradient, self.used[i], self.buffer(f"below {i}", *self.seen[i].shape))
            if (mask := self.kept[i - 1]) is not None:
                gradient.mul_(mask)
            if self.layers[i - 1].activation == "tanh":
                torch.ops.aten.tanh_backward.grad_input(gradient, self.active[i - 1], grad_input=gradient)
            elif self.layers[i - 1].activation == "relu":
                torch.ops.aten.threshold_backward.grad_input(gradient, self.active[i - 1], 0, grad_input=gradient)

    def _of(self, value: torch.Tensor, name: str) -> torch.Tensor:
        """`value` itself where products are float32, else memory like it in the type of the products."""
        return value if self.dtype == value.dtype else self.buffer(name, *value.shape)

    def _product(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str = "",
    ) -> torch.Tensor:
        """activation(a[k] @ b[k] (+ bias[k])) for each model k, into `out`."""
        size = a[0].numel() * b.shape[2]
        if self.dtype == torch.float32 and size >= LARGE and a.device.type == "cpu" and has_onednn(self.dtype):
            biases = [None] * len(a) if bias is None else bias[:, 0]
            for of_model in zip(a, b.mT, biases, out, strict=True):
                of_model[3].copy_(by_onednn(*of_model[:3], activation))
            return out
        if self.dtype == torch.float32:
            torch.bmm(a, b, out=out) if bias is None else torch.baddbmm(bias, a, b, out=out)
        else:
            if size > TINY:
                torch.bmm(a, b, out=out)
            else:  # torch chooses the kernel by the size of the whole stack there
                for of_model in zip(a, b, out, strict=True):
                    torch.mm(*of_model[:2], out=of_model[2])
            if bias is not None:
                out.add_(bias)
        if activation:
            out.tanh_() if activation == "tanh" else out.relu_()
        return out

    def clip(self, norm: float) -> None:
        """Scale each model's gradient down to this norm, where it is longer."""
        # A sum over rows takes another order of additions where there are four of them: so one product a model.
        squares = sum(torch.stack([torch.dot(own, own) for own in g.flatten(1)]) for g in self.gradients)
        factor = (norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for g in self.gradients:
            g.mul_(factor[:, None, None])

    def finite(self) -> torch.Tensor:
        """Which models have only finite weights (G,)."""
        return torch.stack([value.flatten(1).sum(1) for value in self.values]).sum(0).isfinite()

    def give_back(self, models: Sequence[nn.Module]) -> None:
        """Copy the weights into the models."""
        for k, model in enumerate(models):
            for layer, weight, bias, module in self._parts(model):
                module.weight.copy_(weight[k, : layer.fan_out, : layer.fan_in])
                module.bias.copy_(bias[k, 0, : layer.fan_out])
            model.eval()
