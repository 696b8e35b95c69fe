"""What a cluster costs, measured on a real one of two nodes on this machine, and how far it scales, simulated.

python -m benchmarks.cluster [--full] [--plot FILE]

Measured: the wall time and the driver's CPU time of a unit that does nothing, and of one that trains nothing but writes
a real model with its stamp; the driver's memory as thousands of such models go by (10,000 with --full); the seconds
of real units, models of the quickstart's data trained one by one.

Simulated: 1 to 512 workers. Each starts after the measured time, takes a unit from a driver that serves one at a time
in its measured seconds, and works as long as a unit that is drawn from the measured ones, times 1, 10 or 100. No
network is in it, and no slow disk: two nodes on one machine have neither.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side import ROOT, Row, Spread, _status, header, last_line, one_thread, show

PACKAGES = ("ray", "torch", "numpy")
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TIMES = (1, 10, 100)
UNITS = 4096  # of the simulation
CONFIG = """
run: {{log_dir: {folder}, random_seed: 1, engine: ray}}
data: {{dataset: digits}}
train: {{model_name: {model}, {train}}}
audit: {{algorithm: [LOSS], num_ref_models: {pairs}}}
"""


@contextmanager
def two_nodes() -> Iterator[None]:
    """A cluster of two nodes of a core each, with this process as its driver."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    try:
        cluster.add_node(**each)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def session_of(folder: Path, *, pairs: int, model: str, train: str) -> Any:
    from audit.session import prepare
    from core import config

    file = folder / "x.yaml"
    file.write_text(CONFIG.format(folder=folder / "run", pairs=pairs, model=model, train=train))
    return prepare(config.load(file))


def nothing(session: Any, device: Any) -> Any:
    return do_nothing


def do_nothing(unit: Any) -> None:
    return None


def empty_units(session: Any, count: int) -> tuple[float, float, float]:
    """Seconds until the first answer; then wall and driver's CPU seconds of a unit, workers kept busy by turns."""
    from audit.engines import run_units
    from benchmarks import cluster  # by a name that workers can import, which __main__ is not

    start = time.perf_counter()
    units = run_units(session, list(range(count)), cluster.nothing, "train", what="nothing")
    next(units)
    began, wall, cpu = time.perf_counter() - start, time.perf_counter(), time.process_time()
    done = sum(1 for _ in units)
    return began, (time.perf_counter() - wall) / done, (time.process_time() - cpu) / done


def memory_by_models(session: Any, step: int) -> tuple[list[tuple[int, float]], float, float]:
    """(models, MiB of anonymous memory of the driver) as they are trained; wall and CPU seconds of a model."""
    from audit import training

    seen: list[tuple[int, float]] = []
    real, done = training.run_units, 0

    def counted(*arguments: Any, **more: Any) -> Iterator[Any]:
        nonlocal done
        for answer in real(*arguments, **more):
            yield answer
            done += 1
            if done % step == 0:
                gc.collect()
                seen.append((done, _status("RssAnon")))
                print(f"    {done} models: {seen[-1][1]:.0f} MiB", flush=True)

    training.run_units = counted
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        training.train_missing(session, None)
    finally:
        training.run_units = real
    count = len(session.plan.models)
    return seen, (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def seconds_of_units(folder: Path, count: int) -> list[float]:
    """Wall seconds of training real models here, one by one."""
    from audit import training

    session = session_of(folder, pairs=count // 2, model="cnn", train="epochs: 3, learning_rate: 0.05, batch_size: 64")
    run = session.config.run.model_copy(update={"engine": "local", "workers": 1})
    here = replace(session, config=replace(session.config, run=run))
    import torch

    training.train_missing(here, torch.device("cpu"))
    return [row["seconds"] for row in training.model_rows(here)][1:]  # the first one pays for imports


def simulate(units: Sequence[float], workers: int, *, start: float, driver: float, idle: float) -> float:
    """The makespan: units in order to whoever is free, through a driver that serves one at a time.

    start: seconds until a worker is there; driver: of its time, for a unit; idle: of a worker between two units, beside
    that.
    """
    free = [(start, worker) for worker in range(workers)]
    heapq.heapify(free)
    served = end = 0.0
    for seconds in units:
        ready, worker = heapq.heappop(free)
        served = max(served, ready) + driver  # the driver is busy with others before
        done = served + idle + seconds
        end = max(end, done)
        heapq.heappush(free, (done, worker))
    return end


def efficiencies(measured: Sequence[float], factor: float, count: int, **overhead: float) -> dict[int, float]:
    """Share of the workers' time that is work, by how many there are."""
    units = factor * np.random.default_rng(0).choice(np.asarray(measured), count)
    return {k: float(units.sum() / (k * simulate(units.tolist(), k, **overhead))) for k in WORKERS}


def plot(file: Path, curves: dict[str, dict[int, float]], count: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for (label, curve), style in zip(curves.items(), ("o-", "s-", "^-"), strict=True):
        axes.plot(list(curve), list(curve.values()), style, markersize=4, linewidth=1.3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(WORKERS, [str(k) for k in WORKERS])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("workers (GPUs or cores)")
    axes.set_ylabel("share of their time that is work")
    axes.set_title(f"Simulated: {count:,} models, overhead as measured on two nodes of one machine", fontsize=9)
    axes.legend(title="seconds of a model (mean)", fontsize=8, title_fontsize=8, loc="lower left")
    axes.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10,000 models, not 1,000")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the efficiency curves there")
    options = parser.parse_args()
    one_thread()
    import audit  # noqa: F401  (these fill the registries)
    import dataset  # noqa: F401
    import models  # noqa: F401
    import modules.mia  # noqa: F401
    import trainers  # noqa: F401
    from audit import on_ray
    from audit.session import make_reproducible
    from core import plugins

    make_reproducible(1)
    plugins.load(ROOT / "benchmarks/mock_trainer.py")
    header(*PACKAGES)
    count = 10_000 if options.full else 1_000
    rows: list[Row] = []

    def row(name: str, unit: str, values: Sequence[float], clock: str, notes: str = "", **facts: Any) -> None:
        rows.append(Row(name, None, None, unit, Spread.of(values), None, None, len(values), clock, notes, facts))
        show(rows[-1])

    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / part for part in ("empty", "mock", "real")]
        for folder in folders:
            folder.mkdir()
        real = seconds_of_units(folders[2], 32)
        row("a real model (cnn, digits, 3 epochs), one by one", "s", real, "wall")
        with two_nodes(), on_ray.closing():
            mock = {"model": "{name: mlp, hidden: [8]}", "train": "trainer: mock"}
            session = session_of(folders[0], pairs=4, **mock)
            (folders[0] / "run").mkdir()
            found = [empty_units(session, 500) for _ in range(5)]
            start, walls, cpus = found[0][0], [wall for _, wall, _ in found], [cpu for _, _, cpu in found]
            row("until the first answer of a worker", "s", [start], "wall")
            row("a unit that does nothing, two workers", "s", walls, "wall")
            row("same, of the driver", "s", cpus, "cpu")
        with two_nodes(), on_ray.closing():
            session = session_of(folders[1], pairs=count // 2, **mock)
            seen, wall, cpu = memory_by_models(session, count // 10)
            row(f"a model that is not trained but written, {count:,} of them", "s", [wall], "wall")
            row("same, of the driver (metadata included)", "s", [cpu], "cpu")
            slope = np.polyfit(*zip(*seen[1:], strict=True), 1)[0] * 1000
            row(
                "memory of the driver, by models done",
                "MiB",
                [mib for _, mib in seen],
                "",
                f"{slope:+.2f} MiB per 1,000 models",
                by_models=dict(seen),
                slope_mib_per_1000=slope,
            )
    # The driver serves a real unit in the CPU seconds of one that is written; a worker waits for it, and for the way.
    driver, idle = cpu, max(0.0, 2 * float(np.median(walls)) - float(np.median(cpus)))
    curves = {}
    for factor in TIMES:
        curve = efficiencies(real, factor, UNITS, start=start, driver=driver, idle=idle)
        mean = factor * float(np.mean(real))
        curves[f"{mean:.2g} s"] = curve
        spoken = ", ".join(f"{k}: {share:.0%}" for k, share in curve.items())
        row(
            f"SIMULATED efficiency, {UNITS} models of {mean:.2g} s",
            "",
            list(curve.values()),
            "",
            spoken,
            simulated=curve,
        )
    if options.plot:
        plot(options.plot, curves, UNITS)
    print(last_line(rows, *PACKAGES))


if __name__ == "__main__":
    main()
