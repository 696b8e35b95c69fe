"""Training many small models: ours on the cores there are, against a plain DataLoader loop.

python -m benchmarks.training [--full] [--profile] [--widths] [--only NAME] [--seconds cpu]

Two peers, written here: `strict` trains one model after another on one thread, with a DataLoader without workers and
without any evaluation; `shipped` is the same with four loader workers and a test pass after every epoch, as the
original tool runs it. As there, a step sets the learning rate and counts loss and right answers; a row of features
becomes a tensor when it is asked for, and images are decoded as torchvision's datasets do: PIL, ToTensor, Normalize.
A peer trains one model in each round and its seconds are multiplied by M: it trains one after another, so nothing
else could come out. Ours are M models on worker processes of one thread each; starting them and putting the data in
place counts. bfloat16 is timed on CPUs that have units for it.

--profile shows where a step's time goes, by operation. --widths: CPU seconds a model by how many are trained at once,
what `train.stack: auto` chooses by. --seconds cpu: CPU seconds of one process, ours too.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.side_by_side import Row, header, last_line, one_thread, seconds, show, side_by_side

ROUNDS = 7
PACKAGES = ("torch", "torchvision", "numpy", "pillow")


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    settings: dict[str, Any]
    shape: tuple[int, ...]
    classes: int
    members: int  # of each model; the pool is twice that
    batch_size: int
    floor: float | None  # asked for at M = 64, on two cores
    floor_bf16: float | None = None


MLP = Case("MLP 600-128-100", "mlp", {"hidden": (128,)}, (600,), 100, 4096, 256, 5.0, 8.0)
CNN_8 = Case("CNN 32-64, 8x8", "cnn", {"channels": (32, 64)}, (1, 8, 8), 10, 1024, 128, 4.5, 4.5)
WRN_8 = Case("WRN-28-1, 8x8", "wrn28-1", {}, (1, 8, 8), 10, 256, 128, 2.0, 2.0)
CNN_32 = Case("CNN 32-64, 32x32", "cnn", {"channels": (32, 64)}, (3, 32, 32), 10, 512, 128, 2.0, 2.0)
WRN_32 = Case("WRN-28-1, 32x32", "wrn28-1", {}, (3, 32, 32), 10, 128, 64, 2.2, 2.2)
SMALL = [(MLP, (1, 4, 16, 64)), (CNN_8, (1, 16, 64)), (WRN_8, (1, 64)), (CNN_32, (1, 64)), (WRN_32, (1, 64))]
MLP_64 = Case("MLP 64-32-10", "mlp", {"hidden": (32,)}, (64,), 10, 1024, 64, None)
FULL = [(case, (1, 4, 16, 64)) for case in (MLP, CNN_8, WRN_8, CNN_32, WRN_32)]
TRAINING = {"epochs": 1, "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def records(case: Case) -> Any:
    """A pool of random records: what is in them does not change the time."""
    import numpy as np

    from core.rng import stream
    from core.types import Records

    rng, n = stream(0, "benchmark", case.name), 2 * case.members
    y = rng.integers(0, case.classes, n)
    if len(case.shape) == 3:
        return Records(rng.integers(0, 256, (n, *case.shape), dtype=np.uint8), y)
    return Records((rng.random((n, *case.shape)) < 0.3).astype(np.float32), y)


# --- ours -----------------------------------------------------------------------------------------------------------


def ours(case: Case, count: int, workers: int, **settings: Any) -> Callable[[], None]:
    """Train `count` models: stacks as the pipeline would cut them, on that many processes."""
    import numpy as np
    import torch

    from audit.workers import run_units
    from core.registry import TRAINERS
    from core.rng import stream
    from trainers import stacking

    pool, bound = records(case), TRAINERS.bind("sgd", {**TRAINING, "batch_size": case.batch_size, **settings})
    device = torch.device("cpu")
    member = np.stack([stream(0, "half", k).permutation(len(pool)) < case.members for k in range(count)])
    width, _ = stacking.width(bound, built(case, 0), device)
    stacks = math.ceil(count / (width * workers)) * workers
    units = [part.tolist() for part in np.array_split(range(count), min(count, stacks))]
    setup = functools.partial(_setup, case, pool, member, bound)
    return lambda: [None for _ in run_units(units, setup, device, workers)] and None


def _setup(case: Case, pool: Any, member: Any, settings: dict[str, Any], device: Any) -> Callable[[list[int]], None]:
    from core.registry import TRAINERS
    from core.rng import stream
    from trainers.resident import Resident

    data = Resident.of(pool, *constants(case), device)

    def work(unit: list[int]) -> None:
        models = [built(case, k) for k in unit]
        TRAINERS["sgd"](models, data, member[unit], [stream(0, "train", k) for k in unit], **settings)

    return work


def built(case: Case, k: int) -> Any:
    import models
    from core.rng import stream

    return models.build(case.model, case.settings, case.shape, case.classes, stream(0, "init", k))


def constants(case: Case) -> tuple[tuple[float, ...], tuple[float, ...]]:
    images = len(case.shape) == 3
    return ((127.5,) * case.shape[0], (127.5,) * case.shape[0]) if images else ((0.0,), (1.0,))


# --- the peers ------------------------------------------------------------------------------------------------------


def dataset(case: Case, pool: Any, ready: bool) -> Any:
    """A map-style dataset, a record at a time, images through PIL as torchvision's are.

    ready: features are one tensor already, which spares the loader most of its work.
    """
    import torch

    if ready:
        return torch.utils.data.TensorDataset(torch.tensor(pool.x), torch.tensor(pool.y))

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pool)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor(pool.x[index]), torch.tensor(pool.y[index])

    if len(case.shape) == 1:
        return Rows()
    from PIL import Image
    from torchvision import transforms

    half = (0.5,) * case.shape[0]
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])
    pixels = pool.x.transpose(0, 2, 3, 1).squeeze() if case.shape[0] == 1 else pool.x.transpose(0, 2, 3, 1)

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pool)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(pixels[index])), int(pool.y[index])

    return Images()


def plain_loop(case: Case, loader_workers: int, evaluate: bool, ready: bool = False) -> Callable[[], Any]:
    """Train one model as a tutorial does."""
    import torch
    from torch.utils.data import DataLoader, Subset

    pool = records(case)
    everything = dataset(case, pool, ready)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    inside, outside = (Subset(everything, part.tolist()) for part in (order[: case.members], order[case.members :]))
    load = functools.partial(DataLoader, batch_size=case.batch_size, num_workers=loader_workers)

    def train() -> Any:
        model = built(case, 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        criterion = torch.nn.CrossEntropyLoss()
        train_loader, test_loader = load(inside, shuffle=True), load(outside)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING["epochs"] * len(train_loader))
        for _ in range(TRAINING["epochs"]):
            model.train()
            total, right = 0.0, 0
            for x, y in train_loader:
                optimizer.zero_grad(set_to_none=True)
                z = model(x)
                loss = criterion(z, y)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
                right += (z.argmax(1) == y).sum().item()
            if evaluate:
                model.eval()
                with torch.no_grad():
                    right = sum((model(x).argmax(1) == y).sum().item() for x, y in test_loader)
        return total, right

    return train


# --- what is compared -----------------------------------------------------------------------------------------------


def compare(cases: list[tuple[Case, tuple[int, ...]]], clock: str, rounds: int) -> list[Row]:
    from audit.workers import cores

    processes = 1 if clock == "cpu" else cores()
    precisions = ["float32"] + (["bfloat16"] if native_bfloat16() else [])
    rows: list[Row] = []

    def row(case: Case, count: int, precision: str, peer: str, train: Callable[[], Any], **given: Any) -> None:
        """One comparison, shown at once."""
        given = {"rounds": rounds, "notes": f"peer: 1 model, its seconds times {count}" if count > 1 else ""} | given
        crew = min(count, processes)
        mine, name = (
            ours(case, count, crew, precision=precision),
            f"{case.name}, M = {count}, {precision}, against {peer}",
        )
        rows.append(side_by_side(name, mine, train, part=1 / count, clock=clock, processes=crew, **given))
        show(rows[-1])

    for case, counts in cases:
        for count in counts:
            for precision in precisions:
                asked = case.floor if precision == "float32" else case.floor_bf16
                floor = asked if count == 64 and clock == "wall" and processes == 2 else None
                row(case, count, precision, "strict", plain_loop(case, 0, evaluate=False), floor=floor)
        if len(case.shape) == 1:
            ready = plain_loop(case, 0, evaluate=False, ready=True)
            row(case, counts[-1], "float32", "strict with features as one tensor", ready)
        if clock == "wall":  # CPU seconds of loader workers are not this process's
            why = "one short epoch: starting the four loaders weighs more than it would in a long training"
            shipped = plain_loop(case, 4, evaluate=True)
            row(case, counts[-1], "float32", "shipped", shipped, rounds=min(rounds, 3), notes=why)
    return rows


def native_bfloat16() -> bool:
    import torch

    from trainers.stacking import emulated

    return not emulated("bfloat16", torch.device("cpu"))


def profile(cases: list[Case]) -> None:
    """Where the time of one training goes, by operation."""
    import torch

    for case in cases:
        work = ours(case, 4, 1)
        work()
        with torch.profiler.profile() as seen:
            start = time.perf_counter()
            work()
            seconds = time.perf_counter() - start
        print(f"\n{case.name}: 4 models in {seconds:.2f} s")
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=45))


def widths(rounds: int) -> None:
    """CPU milliseconds a model on one thread, 64 perceptrons in stacks of each width, by turns."""
    tried = (1, 4, 8, 16, 32, 64)
    print(f"{'ms a model, in stacks of':<40}" + "".join(f"{width:>8}" for width in tried))
    for case in (MLP_64, MLP):
        for precision in ["float32"] + (["bfloat16"] if native_bfloat16() else []):
            work = {width: ours(case, 64, 1, precision=precision, stack=width) for width in tried}
            turns = [{width: seconds(call) for width, call in work.items()} for _ in range(rounds)]
            medians = (1000 / 64 * statistics.median(turn[width] for turn in turns) for width in tried)
            print(f"{case.name + ', ' + precision:<40}" + "".join(f"{median:>8.2f}" for median in medians), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="M = 1, 4, 16, 64 for every network")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--widths", action="store_true", help="how many perceptrons to train at once")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seconds", choices=("wall", "cpu"), default="wall", help="cpu: of one process on each side")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    one_thread()
    import torch

    import models  # noqa: F401  (these fill the registries)
    import trainers  # noqa: F401

    torch.set_num_threads(1)
    cases = [(case, counts) for case, counts in (FULL if options.full else SMALL) if options.only in case.name]
    if options.profile:
        profile([case for case, _ in cases])
        return
    header(*PACKAGES)
    if options.widths:
        widths(options.rounds)
        return
    rows = compare(cases, options.seconds, options.rounds)
    print(last_line(rows, *PACKAGES))


if __name__ == "__main__":
    main()
