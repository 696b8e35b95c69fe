"""Does the fast recipe learn faster? `python -m benchmarks.speedyresnet [dataset]`

Test accuracy of a narrow speedyresnet under its trainer and of `cnn` under `sgd`, on a CPU: on random halves of the
same pool, for as many epochs, and the cnn once more for as many CPU-seconds. Neither augments: mirrored digits are no
digits, and the classes of synthetic_images differ from their mirror images. The learning rate of the cnn is the best
of three on a half that is not reported; ours is fixed. About two minutes of CPU a dataset.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dataset  # noqa: F401  (these fill the registries)
import models
import trainers  # noqa: F401
from benchmarks.side_by_side import Spread, device, one_thread, versions
from core.registry import DATASETS, MODELS, TRAINERS
from core.rng import stream
from core.types import AuditData

PACKAGES = ("numpy", "torch")
EPOCHS, BATCH, HALVES = 5, 64, 3
DATA: dict[str, dict[str, Any]] = {"synthetic_images": {"num_records": 3200}, "mnist5k": {}}
PLAIN = {"flip": False, "translate": 0}
CONTENDERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], tuple[float, ...]]] = {
    f"speedyresnet (16, 32, 32), {optimizer}": (
        *("speedyresnet", {"widths": (16, 32, 32)}, "speedyresnet", {"optimizer": optimizer, **PLAIN}),
        (0.2,),
    )
    for optimizer in ("Muon", "SGD")
} | {"cnn, sgd": ("cnn", {}, "sgd", {}, (0.02, 0.05, 0.1))}


def trained(data: AuditData, half: int, contender: str, learning_rate: float, epochs: int) -> tuple[float, float]:
    """Test accuracy of a model trained on a half of the pool, and the CPU-seconds of its training."""
    import torch

    from trainers.evaluate import accuracy_and_loss
    from trainers.resident import Resident

    torch.set_num_threads(1)
    model, shape, trainer, recipe, _ = CONTENDERS[contender]
    pool, population = (Resident.of(records, data.mean, data.std, "cpu") for records in (data.pool, data.population))
    member = stream(0, "half", half).permutation(len(pool)) < len(pool) // 2
    settings = MODELS.bind(model, shape)
    network = models.build(model, settings, data.input_shape, data.num_classes, stream(0, "init", half))
    recipe = TRAINERS.bind(trainer, {**recipe, "epochs": epochs, "batch_size": BATCH, "learning_rate": learning_rate})
    start = time.process_time()
    TRAINERS[trainer]([network], pool, member[None], [stream(0, "train", half)], **recipe)
    return accuracy_and_loss(network, population)[0], time.process_time() - start


def compare(name: str, settings: Mapping[str, Any], halves: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each contender on this dataset."""
    data = DATASETS[name](Path("data"), 0, **DATASETS.bind(name, settings))
    rows: list[dict[str, Any]] = []

    def row(contender: str, label: str, rate: float, epochs: int) -> None:
        accuracies, seconds = zip(*(trained(data, half, contender, rate, epochs) for half in halves), strict=True)
        spread, median = Spread.of(accuracies), Spread.of(seconds).median
        rows.append(
            {"name": f"{name}: {label}", "test accuracy": accuracies, "mean": float(np.mean(accuracies))}
            | {"learning_rate": rate, "epochs": epochs, "cpu_seconds": median, "n": len(halves), "ratio": None}
        )
        found = f"{np.mean(accuracies):.3f} ({spread.min:.3f} to {spread.max:.3f}, {len(halves)})"
        print(f"{rows[-1]['name']:<62} {found:<28} {rate:>6g} {epochs:>6} {median:>7.1f}", flush=True)

    for contender, (*_, rates) in CONTENDERS.items():
        tuned = (
            {rate: trained(data, 0, contender, rate, EPOCHS)[0] for rate in rates}
            if len(rates) > 1
            else {rates[0]: 1.0}
        )
        best = max(tuned, key=tuned.__getitem__)
        row(contender, contender, best, EPOCHS)
    longer = round(EPOCHS * rows[0]["cpu_seconds"] / rows[-1]["cpu_seconds"])
    row("cnn, sgd", "cnn, sgd, as many CPU-seconds", rows[-1]["learning_rate"], longer)
    for r in rows:
        r["ratio"] = (1 - r["mean"]) / (1 - rows[0]["mean"])  # of errors: how many times fewer the first row makes
        r["floor"] = 1.0 if "cnn" in r["name"] and r["epochs"] == EPOCHS else None
    return rows


def main() -> None:
    """Print a row for each contender, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", choices=list(DATA), help="both if left out")
    chosen = [name for name in DATA if parser.parse_args().dataset in (name, None)]
    one_thread()
    print(device(), versions(*PACKAGES), time.strftime("%Y-%m-%d"), sep="; ")
    print(f"{'':<62} {'test accuracy (range, n)':<28} {'rate':>6} {'epochs':>6} {'CPU-s':>7}")
    rows = [row for name in chosen for row in compare(name, DATA[name], range(1, 1 + HALVES))]
    print(json.dumps({"device": device(), "versions": versions(*PACKAGES), "rows": rows}))


if __name__ == "__main__":
    main()
