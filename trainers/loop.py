"""The training loop of one model. Imports torch: import it inside a function.

Nothing in an epoch waits for the device: batches are indices into resident data, the loss is summed where
it is, and one number comes back per epoch, to see that the training has not diverged.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from torch.nn import functional as F

from trainers.augment import mirror_and_shift
from trainers.resident import Resident
from trainers.schedule import batches

log = logging.getLogger(__name__)

MakeOptimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Diverged(Exception):
    """The loss or a weight is no longer a finite number."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"diverged in epoch {epoch}")
        self.epoch = epoch


def train(*arguments: Any, **options: Any) -> None:
    """Train a model on its members, in place: every step of `training`, which see."""
    for _ in training(*arguments, **options):
        pass


class Step:
    """A step of gradient descent on a batch, at a learning rate. The losses of all steps so far are in `total`."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        label_smoothing: float,
        clip_norm: float | None,
        precision: str,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.label_smoothing, self.clip_norm, self.precision = label_smoothing, clip_norm, precision
        self.total = torch.zeros((), device=device)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, rate: float | torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            z = self.model(x)
        loss = F.cross_entropy(z.float(), y, label_smoothing=self.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.total += loss.detach()


def training(
    model: torch.nn.Module,
    data: Resident,
    member: Bool[Array, " D"],
    rng: np.random.Generator,
    *,
    rates: Float[Array, "epochs steps"],
    make_optimizer: MakeOptimizer,
    batch_size: int,
    shift: int | None,
    label_smoothing: float,
    ema: float,
    clip_norm: float | None,
    precision: str,
    after_epoch: Callable[[], None] | None = None,
    make_step: Callable[..., Step] = Step,
) -> Iterator[None]:
    """Train `model` on its members, in place, a step each time the next one is asked for.

    At the end the model is in evaluation mode on the data's device.
    after_epoch: called at the end of each epoch; it may leave the model in any mode and draw nothing from torch.
    shift: augment images, with shifts of at most so many pixels; None for no augmentation.
    precision: float32, or bfloat16 (autocast: products and convolutions; weights stay float32).
    """
    # Convolutions are faster on channels_last memory on CPUs and CUDA; there are no figures for MPS.
    layout = torch.channels_last if data.is_image and data.device.type != "mps" else torch.contiguous_format
    model.to(device=data.device, memory_format=layout).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    step = make_step(model, make_optimizer(parameters), data.device, label_smoothing, clip_norm, precision)
    average = MovingAverage([v for v in model.state_dict().values() if v.is_floating_point()], ema) if ema else None
    with seeded(rng, data.device):
        for epoch, epoch_rates in enumerate(rates, start=1):
            step.total.zero_()
            epoch_batches = draw_epoch(data, member, rng, batch_size, shift)
            for (x, y), rate in zip(epoch_batches, epoch_rates.tolist(), strict=True):
                step(x, y, rate)
                if average:
                    average.update()
                yield
            norms = torch.stack([p.detach().norm() for p in parameters])
            if not (step.total + norms.sum()).isfinite():
                raise Diverged(epoch)
            if after_epoch:
                after_epoch()
                model.to(memory_format=layout).train()
    if average:
        average.keep()
    model.to(memory_format=torch.contiguous_format).eval()  # as it will be when it is loaded from a file


def draw_epoch(
    data: Resident, member: Bool[Array, " D"], rng: np.random.Generator, batch_size: int, shift: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each member once, in random order: batches of records, as models see them, and labels.

    Everything is drawn for all records of the pool, and used for the members: what one record draws does
    not depend on whether another is a member.
    """
    order = rng.permutation(len(data))
    order = order[member[order]]
    if shift is not None:
        mirrored = rng.random(len(data)) < 0.5
        dy, dx = rng.integers(-shift, shift, (2, len(data)), endpoint=True)
        mirrored, dy, dx = (torch.as_tensor(draw[order], device=data.device) for draw in (mirrored, dy, dx))
    index = torch.as_tensor(order, device=data.device)
    for batch in batches(len(order), batch_size):
        x = data.x[index[batch]]
        if shift is not None:
            x = mirror_and_shift(x, mirrored[batch], dy[batch], dx[batch])
        yield data.normalised(x), data.y[index[batch]]


def optimizer(name: str, momentum: float, nesterov: bool, weight_decay: float) -> MakeOptimizer:
    """The optimizer of that name, given parameters. Its learning rate is set before every step."""

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        fused = parameters[0].device.type in ("cpu", "cuda")  # one kernel for all weights
        if name == "SGD":
            return torch.optim.SGD(
                parameters,
                momentum=momentum,
                nesterov=nesterov and momentum > 0,
                weight_decay=weight_decay,
                fused=fused,
            )
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[name]
        return kind(parameters, weight_decay=weight_decay, fused=fused)

    return make


class MovingAverage:
    """An exponential moving average of weights and batch-normalisation statistics, which share the model's memory.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that short trainings forget the initial weights.
    """

    def __init__(self, current: list[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.current = current
        self.average = [v.clone() for v in self.current]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.current, 1 - decay)

    @torch.no_grad()
    def keep(self) -> None:
        """Give the model the averaged weights."""
        torch._foreach_copy_(self.current, self.average)


@contextlib.contextmanager
def seeded(rng: np.random.Generator, device: torch.device) -> Iterator[None]:
    """torch's own generators (dropout draws from them) seeded from `rng` within, and put back as they were."""
    seed = int(rng.integers(2**63))
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


def precision_of(precision: str, device: torch.device) -> str:
    """float32 or bfloat16: what was asked for, or where `auto` knows a gain."""
    return auto_precision(device) if precision == "auto" else precision


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """In which products are computed."""
    return torch.bfloat16 if precision_of(precision, device) == "bfloat16" else torch.float32


@cache  # logged once, not once per stack
def autocast(precision: str, device: torch.device) -> Callable[[], torch.autocast]:
    """The context of the forward pass: bfloat16 arithmetic where asked for, or where `auto` knows a gain."""
    chosen = precision_of(precision, device)
    log.info("training in %s on %s", chosen, device)
    return partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=chosen == "bfloat16")


def auto_precision(device: torch.device) -> str:
    """What `precision: auto` is on this device: bfloat16 where CUDA hardware has it, float32 elsewhere."""
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if supported else "float32"
