"""How many models are trained at once: chosen from measurements, and said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainers import graphs
from trainers.loop import precision_of
from trainers.stack import layers_of

# Measured: python -m benchmarks.training --widths, documentation/benchmarks.md. Small networks are bound by dispatch
# and gain from every further model; of larger ones 16 are about as fast as more, in less memory. On a GPU: a guess.
SMALL = 16_384  # weights
MOST = {"cpu": (64, 16), "cuda": (256, 256)}  # of networks with at most SMALL weights, and of larger ones


def width(settings: Mapping[str, Any], model: torch.nn.Module, device: torch.device) -> tuple[int, str]:
    """How many models like this one to train at once on this device, and a line that says so."""
    asked, precision = settings["stack"], precision_of(settings["precision"], device)
    how = f"in {precision}{emulated(precision, device)}"
    singly = [f"train.{key}" for key in ("augment", "record_losses") if settings.get(key)]
    layers = None if singly else layers_of(model)
    if layers is None and graphs.suits(model, settings, device):
        chosen = asked if asked != "auto" else graphs.TOGETHER
        return chosen, f"up to {chosen} side by side as CUDA graphs (train.stack: {asked}; not yet measured), {how}"
    if layers is None:
        why = " and ".join(singly) or "no plain perceptron"
        return 1, f"one after another ({why}), {how}"
    small, large = MOST.get(device.type, MOST["cpu"])
    weights = sum(layer.fan_in * layer.fan_out for layer in layers)
    chosen = asked if asked != "auto" else small if weights <= SMALL else large
    return chosen, f"up to {chosen} at once in batched products (train.stack: {asked}), {how}"


def emulated(precision: str, device: torch.device) -> str:
    """A warning where the CPU computes bfloat16 with float32 units: slower than float32, and less exact."""
    if precision == "float32" or device.type != "cpu":
        return ""
    info = Path("/proc/cpuinfo")
    native = not info.exists() or any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    return "" if native else ", which this CPU emulates: float32 is faster"
