"""The training loop of speedyresnet. Imports torch: import it inside a function.

Images stay on the device in uint8; a batch is gathered, mirrored, moved and normalised there. Nothing in an
epoch waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from torch.nn import functional as F

from trainers.augment import mirror_and_shift
from trainers.loop import Diverged
from trainers.muon import Muon
from trainers.resident import Resident

MakeOptimizers = Callable[[torch.nn.Module, torch.dtype], list[torch.optim.Optimizer]]
LOOKAHEAD_STEPS = 5


def train(
    model: torch.nn.Module,
    data: Resident,
    member: Bool[Array, " D"],
    rng: np.random.Generator,
    *,
    batches: Sequence[slice],
    factors: Float[Array, "epochs steps"],
    make_optimizers: MakeOptimizers,
    lookahead: float,
    whiten_epsilon: float,
    whiten_bias_epochs: int,
    flip: bool,
    translate: int,
    label_smoothing: float,
    autocast: Callable[[], torch.autocast],
    compiled: bool,
) -> None:
    """Train `model` on its members, in place, and leave it in evaluation mode on the data's device.

    batches: of the members, in the order of an epoch. factors: of the learning rates, in each step.
    """
    layout = torch.channels_last if data.device.type != "mps" else torch.contiguous_format
    model.to(device=data.device, memory_format=layout)
    with torch.no_grad():
        moment = second_moment(data, np.flatnonzero(member))
        model.whiten.weight.copy_(whitening_filter(moment, whiten_epsilon).view_as(model.whiten.weight))
    network = (compiled_like(model, data) if compiled else model).train()
    with autocast():
        dtype = torch.bfloat16 if torch.is_autocast_enabled(data.device.type) else torch.float32
    optimizers = make_optimizers(network, dtype)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    slow = Lookahead(network, lookahead, factors.size) if lookahead and factors.size >= 4 * LOOKAHEAD_STEPS else None
    epochs = draw_epochs(data, member, rng, batches, flip=flip, translate=translate)
    for epoch, (epoch_factors, epoch_batches) in enumerate(zip(factors, epochs, strict=False), start=1):
        network.whiten.bias.requires_grad_(epoch <= whiten_bias_epochs)  # frozen, the first gradient is not computed
        total = torch.zeros((), device=data.device)
        for (x, y), factor in zip(epoch_batches, epoch_factors.tolist(), strict=True):
            for group, peak in groups:
                group["lr"] = peak * factor
            with autocast():
                z = network(x)
            loss = F.cross_entropy(z.float(), y, label_smoothing=label_smoothing)
            network.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            if slow:
                slow.step()
            total += loss.detach()
        norms = torch.stack([p.detach().norm() for p in network.parameters()])
        if not (total + norms.sum()).isfinite():
            raise Diverged(epoch)
    if slow:
        slow.keep()
    if network is not model:
        model.load_state_dict(network.state_dict())
    model.to(memory_format=torch.contiguous_format).eval()  # as it will be when it is loaded from a file


def second_moment(data: Resident, index: np.ndarray, block: int = 512) -> torch.Tensor:
    """Mean of p p' over all 2 x 2 patches p (d,) of the indexed records as models see them: float64 (d, d), on the CPU.

    About zero and not about the patches' mean: the whitening layer has no mean to subtract.
    """
    total, count = 0.0, 0
    for batch in torch.as_tensor(index, device=data.device).split(block):
        patches = F.unfold(data.batch(batch), kernel_size=2).transpose(0, 1).flatten(1)
        total = total + (patches @ patches.mT).double().cpu()
        count += patches.shape[1]
    return total / count


def whitening_filter(moment: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The directions (2 d, d) that turn patches of this second moment into white ones, and their negatives.

    An eigenvector each, over the root of its eigenvalue plus `epsilon`, largest eigenvalue first.
    """
    values, vectors = torch.linalg.eigh(moment)
    directions = (vectors / (values.clamp(min=0) + epsilon).sqrt()).mT.flip(0)
    return torch.cat([directions, -directions])


def draw_epochs(
    data: Resident,
    member: Bool[Array, " D"],
    rng: np.random.Generator,
    batches: Sequence[slice],
    *,
    flip: bool,
    translate: int,
) -> Iterator[Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """Epochs without end, each a pass over the members in random order: batches as models see them, and labels.

    Order, mirroring and moves have generators of their own, and are drawn for all records of the pool: what one
    record draws does not depend on whether another is a member, nor on the other settings.
    """
    orders, mirrors, moves = rng.spawn(3)
    mirrored = mirrors.random(len(data)) < 0.5
    while True:
        order = orders.permutation(len(data))
        dy, dx = moves.integers(-translate, translate, (2, len(data)), endpoint=True)
        draws = (draw[order[member[order]]] for draw in (np.arange(len(data)), mirrored & flip, dy, dx))
        yield _batches(data, batches, *(torch.as_tensor(draw, device=data.device) for draw in draws))
        mirrored = ~mirrored


def _batches(
    data: Resident,
    batches: Sequence[slice],
    index: torch.Tensor,
    mirrored: torch.Tensor,
    dy: torch.Tensor,
    dx: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in batches:
        x = mirror_and_shift(data.x[index[batch]], mirrored[batch], dy[batch], dx[batch])
        yield data.normalised(x), data.y[index[batch]]


def optimizers(
    name: str,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    bias_scale: float,
    muon_learning_rate: float,
    muon_momentum: float,
) -> MakeOptimizers:
    """The optimizers of a network, given the dtype of Muon's products. Their `lr` are peaks."""

    def make(network: torch.nn.Module, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
        named = dict(network.named_parameters())
        biases = [p for name, p in named.items() if "norm" in name]
        filters = [p for p in named.values() if p.ndim == 4]
        rest = [network.whiten.bias, network.head.weight]
        quick = {"lr": learning_rate * bias_scale, "weight_decay": weight_decay / bias_scale}
        muon = name == "Muon"
        groups = [{"params": biases, **quick}, {"params": rest if muon else rest + filters}]
        sgd = torch.optim.SGD(
            groups,
            lr=learning_rate,
            momentum=momentum,
            nesterov=momentum > 0,
            weight_decay=weight_decay,
            fused=filters[0].device.type in ("cpu", "cuda"),
        )
        return [sgd, Muon(filters, muon_learning_rate, muon_momentum, dtype)] if muon else [sgd]

    return make


class Lookahead:
    """Slow weights that follow the fast ones, which every few steps start again from them (Zhang et al. 2019,
    https://arxiv.org/abs/1907.08610), in hlb-CIFAR10's form: a moving average whose decay rises with the cube of time.
    """

    def __init__(self, network: torch.nn.Module, decay: float, steps: int) -> None:
        self.decay, self.steps, self.taken = decay**LOOKAHEAD_STEPS, steps, 0
        self.fast = [v for v in network.state_dict().values() if v.is_floating_point()]  # shares the network's memory
        self.slow = [v.clone() for v in self.fast]

    @torch.no_grad()
    def step(self) -> None:
        """Take note of a step; after every fifth, move the average and start again from it."""
        self.taken += 1
        if self.taken % LOOKAHEAD_STEPS == 0:
            torch._foreach_lerp_(self.slow, self.fast, 1 - self.decay * (self.taken / self.steps) ** 3)
            self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Give the network the average; what it learnt since the last one is forgotten."""
        torch._foreach_copy_(self.fast, self.slow)


_compiled: dict[tuple[str, torch.Size, torch.device], torch.nn.Module] = {}


def compiled_like(model: torch.nn.Module, data: Resident) -> torch.nn.Module:
    """A compiled network with the architecture and the weights of `model`: one per architecture in a process."""
    key = str(model), data.x.shape[1:], data.device
    if key not in _compiled:
        _compiled[key] = deepcopy(model)
        _compiled[key].compile()
    network = _compiled[key]
    network.load_state_dict(model.state_dict())
    return network
