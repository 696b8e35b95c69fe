"""Ghost clipping: the sum of clipped gradients without any record's gradient in memory (Li et al. 2022,
https://arxiv.org/abs/2110.05679; Goodfellow 2015). Imports torch: import it inside a function.

One pass gives every layer's inputs and output gradients, from which the norm of each record's gradient follows;
a second one gives the gradient of the losses weighted by what they are clipped to, which is the clipped sum.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from core.errors import UserError

KNOWN = (nn.Linear, nn.Conv2d, nn.GroupNorm)  # and no class derived from them: it may do something else


def check(model: torch.nn.Module) -> None:
    """UserError, naming the layer, where a record's norm is not known from inputs and output gradients."""
    seen: set[int] = set()
    for name, layer in model.named_modules():
        weights = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        plain = type(layer) in KNOWN
        if isinstance(layer, nn.Conv2d):
            plain &= layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if weights and (not plain or any(id(p) in seen for p in weights)):
            raise UserError(
                "ghost clipping is for linear, convolutional and group normalising layers, each with weights of its "
                f"own; {name} is {type(layer).__name__}: set clipping to per_record"
            )
        seen |= {id(p) for p in weights}


def clipped_sum(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor, clip: float
) -> list[torch.Tensor]:
    """The same as `dp_loop.clipped_sum`, from one forward and two backward passes of the whole batch."""
    from trainers.dp_loop import clip_factors

    records, views = x.shape[:2]
    inputs: list[tuple[nn.Module, torch.Tensor]] = []
    outputs: list[torch.Tensor] = []

    def keep(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> torch.Tensor:
        inputs.append((layer, given[0].detach()))
        outputs.append(made)
        return made.clone()  # what follows may work in place

    layers = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        logits = model(x.flatten(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    if len(outputs) != len(layers) or {id(layer) for layer, _ in inputs} != set(map(id, layers)):
        raise UserError("ghost clipping needs every layer to be used once for a record: set clipping to per_record")
    losses = F.cross_entropy(logits, y.repeat_interleave(views), reduction="none").view(records, views).mean(1)
    slopes = torch.autograd.grad(losses.sum(), outputs, retain_graph=True)
    squares = sum(_square_norms(*pair, slope, records) for pair, slope in zip(inputs, slopes, strict=True))
    factors = clip_factors(torch.as_tensor(squares).sqrt(), clip)
    return list(torch.autograd.grad((factors * losses).sum(), list(parameters.values())))


def _square_norms(layer: nn.Module, given: torch.Tensor, slope: torch.Tensor, records: int) -> torch.Tensor:
    """|gradient|² (b,) of each record's loss in the weights of a layer."""
    if isinstance(layer, nn.GroupNorm):
        return _of_scale(layer, given, slope, records)
    if isinstance(layer, nn.Conv2d):
        given = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
        slope = slope.flatten(2).transpose(1, 2)
    a, g = (part.reshape(records, -1, part.shape[-1]) for part in (given, slope))  # (b, places, width)
    places, size = a.shape[1], a.shape[2] * g.shape[2]
    if places * places <= size:  # |Σ g aᵀ|² = Σ over pairs of places of (a·a')(g·g')
        total = ((a @ a.mT) * (g @ g.mT)).flatten(1).sum(1)
    else:
        total = (g.mT @ a).flatten(1).square().sum(1)
    if getattr(layer, "bias", None) is not None:
        total = total + g.sum(1).square().sum(1)
    return total


def _of_scale(layer: nn.GroupNorm, given: torch.Tensor, slope: torch.Tensor, records: int) -> torch.Tensor:
    """Of group normalisation: its scales and shifts are few, so their gradients are made."""
    normalised = F.group_norm(given, layer.num_groups, eps=layer.eps)
    each = torch.cat([slope * normalised, slope], dim=1).flatten(2).sum(2)  # (b x views, 2 x channels)
    return each.view(records, -1, each.shape[1]).sum(1).square().sum(1)
