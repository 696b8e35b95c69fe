"""Several models trained side by side on a GPU: each one's step captured as a CUDA graph, on its own stream.

Not yet measured on a GPU, nor run on one: `train.cuda_graphs` is off by default.

A small convolutional network leaves most of a GPU idle while the host dispatches its operations. A graph launches a
whole step in one call, with the kernels of the model alone, and graphs on several streams run side by side; vmap and
grouped convolutions would need other kernels and stacked models. Captured steps want fixed memory and shapes: the batch
and the learning rate are copied in, the first steps and the epoch's smaller last batch are done step by step.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from trainers.loop import Step

log = logging.getLogger(__name__)

WARM = 3  # steps before the capture: they make the optimiser's state, and libraries choose their kernels
TOGETHER = 8  # models that `train.stack: auto` trains side by side: a guess

Capture = Callable[[Callable[[], None]], Callable[[], None]]  # a step on fixed memory -> what repeats it


def suits(model: torch.nn.Module, settings: Mapping[str, Any], device: torch.device) -> bool:
    """Whether such a training can be captured: SGD (the others count steps on the host), and no dropout, whose draws
    in graphs come from one generator for all models."""
    dropout = torch.nn.modules.dropout._DropoutNd
    draws = any(isinstance(module, dropout) and module.p > 0 for module in model.modules())
    plain = settings["optimizer"] == "SGD" and not settings["record_losses"]
    return bool(settings["cuda_graphs"]) and device.type == "cuda" and plain and not draws


class Captured(Step):
    """A step that is captured after its first calls, and from then on replayed wherever the shape is the same."""

    capture: Capture

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls = 0
        self.rate = torch.zeros((), device=self.device)
        self.replay: Callable[[], None] | None = None
        self.broken = False

    def __call__(self, x: torch.Tensor, y: torch.Tensor, rate: float | torch.Tensor) -> None:
        self.rate.fill_(rate)
        self.calls += 1
        if self.calls == 1:
            # preserve_format keeps the batch's channels_last layout
            self.x, self.y = torch.empty_like(x), torch.empty_like(y)
        if self.calls <= WARM or self.broken or x.shape != self.x.shape:
            super().__call__(x, y, self.rate)
            return
        if self.replay is None and not self._captured():
            super().__call__(x, y, self.rate)
            return
        assert self.replay is not None
        self.x.copy_(x)
        self.y.copy_(y)
        self.replay()

    def _captured(self) -> bool:
        step, fixed = super().__call__, (self.x, self.y, self.rate)
        self.optimizer.zero_grad()  # so that the backward pass makes gradients in the graph's own memory
        try:
            self.replay = self.capture(lambda: step(*fixed))
        except RuntimeError as error:
            self.broken = True
            reason = str(error).partition("\n")[0]
            log.warning("the step cannot be captured as a CUDA graph (%s): training goes on step by step", reason)
        return not self.broken

    @staticmethod
    def capture(step: Callable[[], None]) -> Callable[[], None]:
        """`step` as a CUDA graph of the current stream: nothing runs yet. Returns what runs it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            step()
        return graph.replay


def train(trainings: Sequence[Iterator[None]], device: torch.device) -> None:
    """Do these trainings side by side: a step of each in turn, each on its own stream of the device."""
    streams = [torch.cuda.Stream(device) if device.type == "cuda" else None for _ in trainings]
    here = torch.cuda.current_stream(device) if device.type == "cuda" else None
    # Each training puts torch's generators back as it found them, which is not as they were where they overlap.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for stream in streams:
            if stream:
                stream.wait_stream(here)
        going = list(zip(trainings, streams, strict=True))
        try:
            while going:
                going = [(steps, stream) for steps, stream in going if _step(steps, stream)]
        finally:
            for steps, stream in zip(trainings, streams, strict=True):
                steps.close()  # type: ignore[attr-defined]
                if stream:
                    here.wait_stream(stream)


def _step(steps: Iterator[None], stream: Any) -> bool:
    """The next step, on this stream; False after the last."""
    with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
        return next(steps, StopIteration) is None
