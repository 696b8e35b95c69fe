"""Do our models learn and leak what a plain loop's do: test accuracies and attacks' AUC, trained side by side.

python -m benchmarks.parity [--models 8] [--seed 0] [--only NAME]

The plain loop, written here: a DataLoader that shuffles, `model(x)`, `loss.backward()`, torch.optim.SGD, cosine. Ours
is the trainer `sgd` in float32 (perceptrons in a stack) and in bfloat16, which CPUs without such units emulate; its
models of float32 are asked in bfloat16, too (`audit.precision`). The loop trained again with other orders is the
ruler: references are shared by all targets of a kind, so RMIA's AUC moves with them, and its interval over targets is
too short. All start from the same weights on the same random halves; only the order of records differs, so models are
compared in pairs: the mean difference over models, and its 95% t interval. Halves come with their complements.
Attacks see each model as the target, and as references the others of its kind but its twin, on all records of the
pool.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.side_by_side import device, one_thread, versions

if TYPE_CHECKING:
    import torch

    from core.types import AuditData, Records
    from trainers.resident import Resident

PACKAGES = ("torch", "numpy", "mlxtend")
RECORDS = 1200  # of the pool: half of them train a model
BATCH, MOMENTUM, DECAY = 64, 0.9, 5e-4
CASES: dict[str, tuple[str, str, dict[str, Any], int, float]] = {  # dataset, model, its settings, epochs, rate
    "mnist5k, MLP": ("mnist5k", "mlp", {"hidden": (64,)}, 20, 0.05),
    "mnist5k, CNN": ("mnist5k", "cnn", {}, 15, 0.02),
    "synthetic_images, CNN": ("synthetic_images", "cnn", {}, 15, 0.02),
}
AGAIN = "plain again"  # the ruler: how far two trainings by the same loop are apart
ASKED = "float32, asked in bfloat16"  # the models of `float32` again
OTHERS = (AGAIN, "float32", ASKED, "bfloat16")
MEASURES = ("test accuracy", "LOSS AUC", "RMIA AUC")


def data_of(dataset: str, seed: int) -> AuditData:
    """Some records of a dataset's pool, at random, and its whole population."""
    from dataclasses import replace

    import dataset as datasets  # noqa: F401  (fills the registry)
    from core.registry import DATASETS
    from core.rng import stream

    settings = {"num_records": 2 * RECORDS} if dataset == "synthetic_images" else {}
    data = DATASETS[dataset](Path("data"), seed, **DATASETS.bind(dataset, settings))
    return replace(data, pool=data.pool.select(stream(seed, "pool").permutation(len(data.pool))[:RECORDS]))


def plain_loop(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, rate: float, seed: int) -> None:
    """Train on these records as a tutorial does."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    shuffled = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, generator=shuffled)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    network.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def trained(
    case: str, how: str, data: AuditData, pool: Resident, member: np.ndarray, seed: int
) -> list[torch.nn.Module]:
    """The models of one kind: `plain`, or the precision of ours."""
    import torch

    import models
    import trainers  # noqa: F401  (fills the registry)
    from core.registry import TRAINERS
    from core.rng import stream

    _, model, settings, epochs, rate = CASES[case]
    shape, classes = data.input_shape, data.num_classes
    networks = [models.build(model, settings, shape, classes, stream(seed, "init", k)) for k in range(len(member))]
    if how in ("plain", AGAIN):
        for k, network in enumerate(networks):
            rows = torch.as_tensor(np.flatnonzero(member[k]))
            plain_loop(
                network,
                pool.batch(rows).contiguous(),
                pool.y[rows],
                epochs,
                rate,
                k + 1000 * (how == AGAIN) + 2000 * seed,
            )
        return networks
    recipe = {"epochs": epochs, "learning_rate": rate, "batch_size": BATCH, "momentum": MOMENTUM}
    recipe |= {"nesterov": True, "weight_decay": DECAY, "precision": how}
    stacks = [list(range(len(member)))] if model == "mlp" else [[k] for k in range(len(member))]
    for part in stacks:
        streams = [stream(seed, "train", k) for k in part]
        TRAINERS["sgd"]([networks[k] for k in part], pool, member[part], streams, **TRAINERS.bind("sgd", recipe))
    return networks


def measured(
    networks: list[torch.nn.Module], pool: Resident, population: Resident, member: np.ndarray, precision: Any
) -> np.ndarray:
    """Each model's test accuracy and the AUC of the attacks on it, from signals in this precision: (models, 3)."""
    from core.metrics import auc
    from core.types import LOG_ODDS, Evidence
    from modules.mia.loss import loss
    from modules.mia.rmia import rmia
    from trainers.evaluate import accuracy_and_loss, signals

    of_pool, of_population = (
        np.stack([signals(network, data, wanted=[LOG_ODDS], precision=precision)[0] for network in networks])
        for data in (pool, population)
    )
    rows = []
    for k, network in enumerate(networks):
        others = np.arange(len(networks)) // 2 != k // 2  # neither itself nor its twin
        seen = Evidence(of_pool[k], of_pool[others], member[others], of_population[k], of_population[others])
        aucs = [auc(attack(seen), member[k]) for attack in (loss, rmia)]
        rows.append([accuracy_and_loss(network, population)[0], *aucs])
    return np.array(rows)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean, and half the width of its 95% t interval."""
    from scipy.stats import t

    return float(values.mean()), float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def compare(case: str, count: int, seed: int) -> list[dict[str, Any]]:
    """A row for each way of training ours and each measure."""
    from core.rng import stream
    from trainers.resident import Resident

    def resident(records: Records) -> Resident:
        return Resident.of(records, data.mean, data.std, "cpu")

    data = data_of(CASES[case][0], seed)
    pool, population = resident(data.pool), resident(data.population)
    halves = [stream(seed, "half", k).permutation(RECORDS) < RECORDS // 2 for k in range(count // 2)]
    member = np.stack([side for half in halves for side in (half, ~half)])
    found, networks = {}, []
    for how in ("plain", *OTHERS):
        start = time.process_time()
        networks = networks if how == ASKED else trained(case, how, data, pool, member, seed)
        found[how] = measured(networks, pool, population, member, "bfloat16" if how == ASKED else "float32")
        print(f"    {case}, {how}: {time.process_time() - start:.0f} CPU-s", flush=True)
    rows = []
    for how in OTHERS:
        for column, measure in enumerate(MEASURES):
            plain, ours = found["plain"][:, column], found[how][:, column]
            difference, half = interval(ours - plain)
            row = {"name": f"{case}, {how}, {measure}", "plain": plain.mean(), "ours": ours.mean(), "n": len(member)}
            rows.append(row | {"difference": difference, "half width": half, "equal": abs(difference) <= half})
            verdict = "" if rows[-1]["equal"] else "   DIFFERS"
            print(f"{row['name']:<48}{plain.mean():>8.4f}{ours.mean():>8.4f}{difference:>+9.4f} ± {half:.4f}{verdict}")
    return rows


def main() -> None:
    """Print a row for each comparison, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=8, help="of each kind, an even number")
    parser.add_argument("--seed", type=int, default=0, help="records, halves, weights and orders are drawn by it")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    one_thread()
    import torch

    torch.set_num_threads(1)
    circumstances = {"device": device(), "versions": versions(*PACKAGES), "load": os.getloadavg()[0]}
    print(*circumstances.values(), time.strftime("%Y-%m-%d"), sep="; ")
    print(f"{'':<48}{'plain':>8}{'ours':>8}{'ours - plain, 95%':>18}")
    rows = [row for case in CASES if options.only in case for row in compare(case, options.models, options.seed)]
    print(json.dumps(circumstances | {"rows": rows}, default=float))


if __name__ == "__main__":
    main()
