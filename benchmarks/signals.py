"""Asking many trained models: ours on the cores there are, against a plain loop that keeps softmax outputs.

python -m benchmarks.signals [--full] [--only NAME] [--seconds cpu]

The peer, written here, is what such tools do: one thread, one model after another, images in their usual memory
layout, ready float tensors in batches, softmax to the host for every class, then the log-odds of the true label in
float64. Ours starts from the stored bytes, on worker processes of one thread each; starting them counts. Both sides
give the same log-odds (checked). The peer asks one model in each round and its seconds are multiplied by M.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

from benchmarks.side_by_side import Row, header, last_line, one_thread, show, side_by_side
from benchmarks.training import CNN_8, CNN_32, MLP, PACKAGES, ROUNDS, WRN_8, WRN_32, Case, built, constants, records

POINTS = {MLP.name: 8192, CNN_8.name: 2048, WRN_8.name: 1024, CNN_32.name: 512, WRN_32.name: 256}
FLOORS = {WRN_32.name: 3.5}  # on two cores
SMALL = [(MLP, 16), (CNN_8, 16), (WRN_8, 16), (CNN_32, 16), (WRN_32, 8)]
FULL = [(case, 64) for case, _ in SMALL]
BATCH = 512


def asked(case: Case) -> Any:
    """The records that models are asked about."""
    from core.types import Records

    pool, n = records(case), POINTS[case.name]
    repeats = -(-n // len(pool))
    return Records(pool.x.repeat(repeats, 0)[:n], pool.y.repeat(repeats)[:n])


def ours(case: Case, count: int, workers: int) -> Callable[[], None]:
    """Ask `count` models on that many processes."""
    import torch

    from audit.workers import run_units

    networks = [built(case, k).eval() for k in range(count)]
    setup = functools.partial(_setup, case, asked(case), networks)
    return lambda: [None for _ in run_units(range(count), setup, torch.device("cpu"), workers)] and None


def _setup(case: Case, points: Any, networks: list[Any], device: Any) -> Callable[[int], None]:
    from core.types import LOG_ODDS
    from trainers.evaluate import signals
    from trainers.resident import Resident

    data = Resident.of(points, *constants(case), device)

    def ask(k: int) -> None:
        signals(networks[k], data, wanted=[LOG_ODDS], batch_size=BATCH)

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


def check(case: Case) -> None:
    """Both sides say the same of a model, to float32's rounding."""
    import numpy as np

    from core.types import LOG_ODDS
    from trainers.evaluate import signals
    from trainers.resident import Resident

    data = Resident.of(asked(case), *constants(case), "cpu")
    mine = signals(built(case, 0).eval(), data, wanted=[LOG_ODDS], batch_size=BATCH)[0, 0]
    np.testing.assert_allclose(mine, plain_loop(case)(), rtol=1e-3, atol=1e-3)


def compare(cases: list[tuple[Case, int]], clock: str, rounds: int) -> list[Row]:
    from audit.workers import cores

    processes = 1 if clock == "cpu" else cores()
    rows = []
    for case, count in cases:
        check(case)
        row = side_by_side(
            f"{case.name}, {POINTS[case.name]} points, M = {count}",
            ours(case, count, min(count, processes)),
            plain_loop(case),
            rounds=rounds,
            floor=FLOORS.get(case.name) if clock == "wall" and processes == 2 else None,
            part=1 / count,
            clock=clock,
            notes=f"peer: 1 model, its seconds times {count}",
            processes=min(count, processes),
        )
        show(row)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="M = 64 for every network")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seconds", choices=("wall", "cpu"), default="wall", help="cpu: of one process on each side")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    one_thread()
    import torch

    import models  # noqa: F401  (fills the registry)

    torch.set_num_threads(1)
    header(*PACKAGES)
    cases = [(case, count) for case, count in (FULL if options.full else SMALL) if options.only in case.name]
    print(last_line(compare(cases, options.seconds, options.rounds), *PACKAGES))


if __name__ == "__main__":
    main()
