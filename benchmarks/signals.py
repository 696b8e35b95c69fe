"""Asking many trained models: ours on the cores there are, against a plain loop that keeps softmax outputs.

python -m benchmarks.signals [--models 64] [--only NAME] [--seconds cpu]

The peer, written here, is what such tools do: one thread, one model after another, images in their usual memory
layout, ready float tensors in batches, softmax to the host for every class, then the log-odds of the true label in
float64. Ours starts from the stored bytes, on worker processes of one thread each; starting them counts. Both sides
give the same log-odds (checked: in float32 to its rounding, in bfloat16 within the tolerance that `audit.precision`
keeps). The peer asks one model in each round and its seconds are multiplied by M. bfloat16 is timed on CPUs that have
units for it; its floor is that of the setting that is fastest there.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

from benchmarks.side_by_side import Row, header, last_line, one_thread, show, side_by_side
from benchmarks.training import (
    CNN_8,
    CNN_32,
    MLP,
    PACKAGES,
    ROUNDS,
    WRN_8,
    WRN_32,
    Case,
    built,
    constants,
    native_bfloat16,
    records,
)

POINTS = {MLP.name: 8192, CNN_8.name: 4096, WRN_8.name: 2048, CNN_32.name: 1024, WRN_32.name: 1024}
FLOORS = {WRN_32.name: 3.5}  # on two cores
CASES = (MLP, CNN_8, WRN_8, CNN_32, WRN_32)
BATCH = 512


def asked(case: Case) -> Any:
    """The records that models are asked about."""
    from core.types import Records

    pool, n = records(case), POINTS[case.name]
    repeats = -(-n // len(pool))
    return Records(pool.x.repeat(repeats, 0)[:n], pool.y.repeat(repeats)[:n])


def ours(case: Case, count: int, workers: int, precision: str) -> Callable[[], None]:
    """Ask `count` models on that many processes."""
    import torch

    from audit.workers import run_units

    networks = [built(case, k).eval() for k in range(count)]
    setup = functools.partial(_setup, case, asked(case), networks, precision)
    return lambda: [None for _ in run_units(range(count), setup, torch.device("cpu"), workers)] and None


def _setup(case: Case, points: Any, networks: list[Any], precision: Any, device: Any) -> Callable[[int], None]:
    from core.types import LOG_ODDS
    from trainers.evaluate import precision_for, signals
    from trainers.resident import Resident

    data = Resident.of(points, *constants(case), device)

    def ask(k: int) -> None:
        chosen, _ = precision_for(networks[k], data, precision)  # the probe counts, as in a run
        signals(networks[k], data, wanted=[LOG_ODDS], batch_size=BATCH, precision=chosen)

    return ask


def plain_loop(case: Case) -> Callable[[], Any]:
    """Ask one model."""
    import numpy as np
    import torch

    points, (mean, std) = asked(case), constants(case)
    shape = (-1, 1, 1) if len(case.shape) == 3 else (-1,)
    x = (torch.tensor(points.x).float() - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    model = built(case, 0).eval()

    def ask() -> Any:
        with torch.no_grad():
            outputs = [torch.softmax(model(part), dim=1).numpy() for part in x.split(BATCH)]
        p = np.concatenate(outputs).astype(np.float64)[np.arange(len(points)), points.y]
        return np.log(p / (1 - p))

    return ask


def check(case: Case, precision: Any) -> None:
    """Both sides say the same of a model."""
    import numpy as np

    from core.types import LOG_ODDS
    from trainers.evaluate import TOLERANCE, signals
    from trainers.resident import Resident

    data, exact = Resident.of(asked(case), *constants(case), "cpu"), plain_loop(case)()
    mine = signals(built(case, 0).eval(), data, wanted=[LOG_ODDS], batch_size=BATCH, precision=precision)[0, 0]
    apart = 1e-3 if precision == "float32" else TOLERANCE
    np.testing.assert_allclose(mine, exact, rtol=apart, atol=apart)


def compare(cases: list[Case], count: int, clock: str, rounds: int) -> list[Row]:
    from audit.workers import cores

    processes = 1 if clock == "cpu" else min(count, cores())
    precisions = ["float32"] + (["bfloat16"] if native_bfloat16() else [])
    rows = []
    for case in cases:
        for precision in precisions:
            check(case, precision)
            row = side_by_side(
                f"{case.name}, {POINTS[case.name]} points, M = {count}, {precision}",
                ours(case, count, processes, precision),
                plain_loop(case),
                rounds=rounds,
                floor=FLOORS.get(case.name)
                if clock == "wall" and processes == 2 and precision == precisions[-1]
                else None,
                part=1 / count,
                clock=clock,
                notes=f"peer: 1 model, its seconds times {count}",
                processes=processes,
            )
            show(row)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=16, help="M, how many are asked")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seconds", choices=("wall", "cpu"), default="wall", help="cpu: of one process on each side")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    one_thread()
    import torch

    import models  # noqa: F401  (fills the registry)

    torch.set_num_threads(1)
    header(*PACKAGES)
    cases = [case for case in CASES if options.only in case.name]
    print(last_line(compare(cases, options.models, options.seconds, options.rounds), *PACKAGES))


if __name__ == "__main__":
    main()
