"""LoRA layers of several models on one frozen layer, and their AdamW. Imports torch.

A batch holds the rows of several adapters one after another, of each as many as it has. The frozen layer and an
adapter multiply an adapter's own rows and nothing else, so that no product depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

ALIGNED = 16  # floats: matrices that start at multiples of it are multiplied alike wherever they lie
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW, as everywhere


@dataclass
class Share:
    """Whose the rows of the current batch are: adapter k has `rows[k]` of them, after those of adapter k - 1."""

    generators: list[torch.Generator]  # of each adapter's dropout
    at_once: bool  # whether all adapters get equally many rows, and are multiplied in one batched product
    rows: list[int] = field(default_factory=list)
    records: list[int] = field(default_factory=list)  # how many of them are records; the others fill a place

    def take(self, records: list[int], most: int) -> None:
        """Make room for so many records of each adapter; at once, for `most` of each, whatever its neighbours have."""
        self.records, self.rows = records, [most] * len(records) if self.at_once else records

    def sizes(self, x: torch.Tensor) -> list[int]:
        """How many of the flattened rows of x (R, T, d) are each adapter's."""
        return [rows * x.shape[1] for rows in self.rows]

    def masks(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """Ones like x, of which a share `rate` is 0 and the rest scaled up, drawn by each adapter for its own part."""
        masks = torch.ones_like(x)
        for own, generator, records in zip(masks.split(self.rows), self.generators, self.records, strict=True):
            own[:records].bernoulli_(1 - rate, generator=generator)  # what fills a place draws nothing
        return masks.div_(1 - rate)


class StackedLoRA(nn.Module):
    """A frozen linear layer with the adapters of several models, of which each adds to its own rows."""

    def __init__(
        self, layer: Any, adapter: str, a: nn.Parameter, b: nn.Parameter, share: Share, dtype: torch.dtype
    ) -> None:
        super().__init__()
        base = layer.base_layer
        weight = base.weight.detach()
        self.weight = (weight.T if isinstance(base, nn.Linear) else weight).to(dtype)  # (in, out)
        self.bias = None if base.bias is None else base.bias.detach().to(dtype)
        self.a, self.b = a, b  # (G, r, in), (G, out, r)
        self.scaling = layer.scaling[adapter]
        drop = layer.lora_dropout[adapter]
        self.drop, self.share = (drop.p if isinstance(drop, nn.Dropout) else 0.0), share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W + bias, and scaling x A' B' of each adapter on its own rows; x is (R, T, in)."""
        mask = self.share.masks(x, self.drop) if self.drop else None
        return _Product.apply(x, mask, self.a, self.b, self.weight, self.bias, self.scaling, self.share)  # ty: ignore


class _Product(torch.autograd.Function):
    """The products and, by hand, their gradients: of x, A and B, not of the frozen weights; few passes over memory."""

    @staticmethod
    def forward(ctx, x, mask, a, b, weight, bias, scaling, share):
        parts, dtype = _Parts(share.sizes(x), share.at_once), weight.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        given = flat if mask is None else flat * mask.view_as(flat)
        a_, b_ = a.to(dtype), b.to(dtype)
        y, h = (flat.new_empty(len(flat), width) for width in (weight.shape[1], a.shape[1]))
        parts.same(flat, weight, y, bias)
        parts.own(given, a_.mT, h)
        parts.own(h, b_.mT, y, alpha=scaling, add=True)
        ctx.save_for_backward(given, mask, h, a, b, weight)
        ctx.scaling, ctx.parts, ctx.of = scaling, parts, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, slope):
        given, mask, h, a, b, weight = ctx.saved_tensors
        parts, dtype = ctx.parts, weight.dtype
        flat = slope.reshape(-1, slope.shape[-1]).to(dtype)
        of_a, of_b = (torch.empty_like(one, dtype=dtype) for one in (a, b))
        of_h = torch.empty_like(h)
        parts.own(flat, b.to(dtype), of_h, alpha=ctx.scaling)
        parts.outer(flat, h, of_b, alpha=ctx.scaling)
        parts.outer(of_h, given, of_a)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = flat.new_empty(len(flat), weight.shape[0])
            if mask is None:
                parts.same(flat, weight.T, of_x)
                parts.own(of_h, a.to(dtype), of_x, add=True)
            else:
                through = torch.empty_like(of_x)
                parts.own(of_h, a.to(dtype), through)
                parts.same(flat, weight.T, of_x)
                of_x.addcmul_(through, mask.view_as(of_x).to(dtype))
            of_x = of_x.view(*slope.shape[:-1], -1).to(ctx.of)
        return of_x, None, of_a.to(a.dtype), of_b.to(b.dtype), None, None, None, None


@dataclass(frozen=True)
class _Parts:
    """Products of each adapter's rows: one after another, or (`at_once`, all with equally many) in one batched call.

    One after another, an adapter's products have the shapes that they would have alone, and on a CPU their operands
    fit into its cache; in one call, a GPU has more to do at a time.
    """

    sizes: list[int]
    at_once: bool

    def same(self, x: torch.Tensor, m: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """out = x m + bias."""
        parts = [(x, out)] if self.at_once else zip(x.split(self.sizes), out.split(self.sizes), strict=True)
        for given, made in parts:
            if bias is None:
                torch.mm(given, m, out=made)
            else:
                torch.addmm(bias, given, m, out=made)

    def own(
        self, x: torch.Tensor, m: torch.Tensor, out: torch.Tensor, alpha: float = 1.0, *, add: bool = False
    ) -> None:
        """out[rows of k] = alpha x[rows of k] m[k], or added to what is there."""
        if self.at_once:
            out.view(len(m), -1, out.shape[1]).baddbmm_(x.view(len(m), -1, x.shape[1]), m, beta=int(add), alpha=alpha)
            return
        for given, by, made in zip(x.split(self.sizes), m.unbind(), out.split(self.sizes), strict=True):
            made.addmm_(given, by, beta=int(add), alpha=alpha)

    def outer(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor, alpha: float = 1.0) -> None:
        """out[k] = alpha x[rows of k]' y[rows of k]."""
        if self.at_once:
            x, y = (one.view(len(out), -1, one.shape[1]) for one in (x, y))
            out.baddbmm_(x.mT, y, beta=0, alpha=alpha)
            return
        for left, right, made in zip(x.split(self.sizes), y.split(self.sizes), out.unbind(), strict=True):
            made.addmm_(left.T, right, beta=0, alpha=alpha)


class Stack:
    """The adapters of G models as the rows of one matrix, and AdamW on each row."""

    def __init__(self, of_models: list[list[nn.Parameter]], weight_decay: float) -> None:
        self.of_models, like = of_models, of_models[0]
        sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in like]
        values = torch.zeros(len(of_models), sum(sizes), device=like[0].device)
        grads = torch.zeros_like(values)
        self.parameters, self._gradients = [], []  # (G, ...) each: views of `values` and `grads`
        for place, of_one in zip(np.cumsum([0, *sizes]).tolist(), zip(*of_models, strict=True), strict=False):
            size, shape = of_one[0].numel(), of_one[0].shape
            view, grad = (tensor[:, place : place + size].view(-1, *shape) for tensor in (values, grads))
            with torch.no_grad():
                view.copy_(torch.stack([p.detach() for p in of_one]))
            self.parameters.append(nn.Parameter(view))
            self._gradients.append(grad)
        self.rows = [nn.Parameter(row) for row in values]
        self._grads = list(grads)
        groups = [{"params": [row]} for row in self.rows]
        fused = values.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, fused=fused
        )

    @torch.no_grad()
    def gather(self, gradients: Sequence[torch.Tensor]) -> None:
        """Add these gradients of the parameters to those that are waiting for a step."""
        torch._foreach_add_(self._gradients, list(gradients))

    @torch.no_grad()
    def step(self, rates: dict[int, float], clip_norm: float | None) -> None:
        """A step of AdamW for these adapters, each with its own learning rate and gradient norm."""
        for k, rate in rates.items():
            gradient = self._grads[k]
            if clip_norm is not None:
                norm = torch.linalg.vector_norm(gradient)
                gradient.mul_((clip_norm / (norm + 1e-6)).clamp(max=1.0))
            self.rows[k].grad = gradient
            self.optimizer.param_groups[k]["lr"] = rate
        self.optimizer.step()  # of those that have a gradient
        for k in rates:
            self.rows[k].grad = None
            self._grads[k].zero_()

    def finite(self) -> list[bool]:
        """Of each adapter, whether all its weights are numbers."""
        return [bool(row.detach().sum().isfinite()) for row in self.rows]

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy each row back into the adapters of its model."""
        for k, of_one in enumerate(self.of_models):
            for parameter, stacked in zip(of_one, self.parameters, strict=True):
                parameter.copy_(stacked[k])
