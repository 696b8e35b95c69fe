"""How many models a minute a GPU trains, beside what its arithmetic and its launches allow at best.

python -m benchmarks.gpu [--peak 989] [--device cuda] [--models 1 4 16 64 256] [--only NAME] [--cuda-graphs]

Not yet run on a GPU: no figure of it is anywhere. Random records; one epoch of a half; M models in the stacks that
`train.stack: auto` makes, in one process; data and models are on the device before the clock starts, and one model is
trained before it, for libraries to choose their kernels. The floor is the greater of two: operations of forward and
backward pass, counted by torch's FlopCounterMode on the plain module, over the device's peak (TFLOP/s, --peak, from
its data sheet); and kernels of a model, counted by the profiler, times 2.5 microseconds, which a stack or graphs share.
With `--device cpu` the same code runs small, to see that it does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

from benchmarks.side_by_side import versions
from benchmarks.training import MLP, TRAINING, Case, built, constants, records

LAUNCH = 2.5e-6  # seconds a small kernel takes at least
CASES = (
    replace(MLP, members=25_000),
    Case("CNN 32-64, 32x32", "cnn", {"channels": (32, 64)}, (3, 32, 32), 10, 25_000, 256, None),
    Case("WRN-28-2, 32x32", "wrn28-2", {}, (3, 32, 32), 10, 25_000, 256, None),
    Case("speedyresnet, 32x32", "speedyresnet", {}, (3, 32, 32), 10, 25_000, 1024, None),
)


def settings_of(case: Case, cuda_graphs: bool) -> tuple[str, dict[str, Any]]:
    """The trainer, and its settings."""
    from core.registry import TRAINERS

    if case.model == "speedyresnet":
        return "speedyresnet", TRAINERS.bind("speedyresnet", {"epochs": 1, "batch_size": case.batch_size})
    given = {**TRAINING, "batch_size": case.batch_size, "cuda_graphs": cuda_graphs}
    return "sgd", TRAINERS.bind("sgd", given)


def operations(case: Case, bound: dict[str, Any]) -> float:
    """Of training one model: forward and backward pass of every batch, on the plain module."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainers.resident import Resident
    from trainers.schedule import batches

    data, model = Resident.of(records(replace(case, members=32)), *constants(case), "cpu"), built(case, 0)
    with FlopCounterMode(display=False) as counted:
        torch.nn.functional.cross_entropy(model(data.batch(torch.arange(32))), data.y[:32]).backward()
    steps = batches(case.members, case.batch_size)
    return counted.get_total_flops() / 32 * sum(step.stop - step.start for step in steps) * bound["epochs"]


def measure(case: Case, counts: list[int], device: Any, cuda_graphs: bool, peak: float) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    from core.registry import TRAINERS
    from core.rng import stream
    from trainers.resident import Resident

    trainer, bound = settings_of(case, cuda_graphs)
    data = Resident.of(records(case), *constants(case), device)
    member = np.stack([stream(0, "half", k).permutation(len(data)) < case.members for k in range(max(counts))])
    measured = TRAINERS.fact(trainer, "width")
    width, how = measured(bound, lambda: built(case, 0), device) if measured else (1, "one after another")
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def train(count: int) -> float:
        models = [built(case, k).to(device) for k in range(count)]
        wait()
        start = time.perf_counter()
        for part in range(0, count, width):
            chosen = slice(part, min(part + width, count))
            streams = [stream(0, "train", k) for k in range(chosen.start, chosen.stop)]
            TRAINERS[trainer](models[chosen], data, member[chosen], streams, **bound)
        wait()
        return time.perf_counter() - start

    train(1)
    with torch.profiler.profile() as seen:
        train(1)
    kernels = sum(event.count for event in seen.key_averages() if event.device_type.name == "CUDA")
    work = operations(case, bound)
    rows = []
    for count in counts:
        seconds = statistics.median(train(count) for _ in range(3))
        floor = max(count * work / (peak * 1e12), kernels * LAUNCH * -(-count // width))
        row = {"name": case.name, "M": count, "models a minute": 60 * count / seconds, "seconds": seconds}
        rows.append(row | {"floor, seconds": floor, "operations a model": work, "kernels a model": kernels, "how": how})
        print(
            f"{case.name:<22}{count:>5}{60 * count / seconds:>12.1f}{seconds:>10.3f}{floor:>12.4f}   {how}", flush=True
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the device in its precision; H100: 989")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--cuda-graphs", action="store_true", help="networks that are no perceptrons as CUDA graphs")
    options = parser.parse_args()
    import torch

    import models  # noqa: F401  (these fill the registries)
    import trainers  # noqa: F401

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: --device cpu runs the same code, small")
    small = device.type == "cpu"
    name = torch.cuda.get_device_name() if device.type == "cuda" else options.device
    print(name, versions("torch", "numpy"), time.strftime("%Y-%m-%d"), sep="; ")
    print(f"{'':<22}{'M':>5}{'a minute':>12}{'seconds':>10}{'floor, s':>12}")
    cases = [replace(case, members=64, batch_size=32) if small else case for case in CASES if options.only in case.name]
    rows = [row for case in cases for row in measure(case, options.models, device, options.cuda_graphs, options.peak)]
    print(json.dumps({"device": name, "versions": versions("torch", "numpy"), "rows": rows}))


if __name__ == "__main__":
    main()
