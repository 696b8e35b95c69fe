"""How much do the bounds on ε show of mechanisms whose ε is known? `python -m benchmarks.dp_audit_power`

Three settings: the Gaussian mechanism with m = 1,000 canaries, the same with m = 5,000, and DP-SGD itself, trained in
full batches on scikit-learn's digits with 5,000 Dirac gradient canaries among its gradients: its ε is then exactly
that of a Gaussian mechanism. Prints the median bound of each estimator and choice of guesses, and the over-claims.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.dp_audit_coverage import one_run, tabled, two_worlds
from benchmarks.side_by_side import device, one_thread, versions
from core.rng import stream
from modules.dp_audit import Bonferroni, Calibrated, Fixed, MultiSplit, Split, StepWise, mechanisms
from modules.dp_audit.f_dp import epsilon_of_mu

DELTA = 1e-5
CHOICES = {
    "Fixed": Fixed(),
    "StepWise": StepWise(),
    "Bonferroni": Bonferroni(),
    "Calibrated": Calibrated(),
    "Split": Split(),
    "MultiSplit, 5": MultiSplit(splits=5),
}
Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]  # trial -> scores, member


def simulated(m: int, mu: float) -> Draw:
    """The Gaussian mechanism."""

    def draw(trial: int) -> tuple[np.ndarray, np.ndarray]:
        rng = stream(0, "power", m, repr(mu), trial)
        member = rng.random(m) < 0.5
        return mechanisms.gaussian(member, rng, mu=mu), member

    return draw


def trained(m: int, mu: float, *, steps: int = 4, seed: int = 0) -> Draw:
    """DP-SGD in full batches with m Dirac canaries: sqrt(steps) / noise multiplier = mu."""
    import torch

    import models
    from core.registry import DATASETS, MODELS
    from dataset import bundled  # noqa: F401  (registers digits)
    from trainers import dp_loop
    from trainers.dp_accounting import Mechanism
    from trainers.resident import Resident

    data = DATASETS["digits"](Path("."), 0, **DATASETS.bind("digits", {}))
    pool = Resident.of(data.pool, data.mean, data.std, "cpu")
    mechanism = Mechanism(1.0, steps, math.sqrt(steps) / mu, 1.0)

    def draw(trial: int) -> tuple[np.ndarray, np.ndarray]:
        rng = stream(seed, "power", "trained", m, repr(mu), trial)
        settings = MODELS.bind("mlp", {"hidden": [128]})
        model = models.build("mlp", settings, data.input_shape, data.num_classes, rng)
        size = sum(p.numel() for p in model.parameters())
        member = rng.random(m) < 0.5
        directions = dp_loop.Dirac(torch.as_tensor(rng.choice(size, m, replace=False)))
        canaries = dp_loop.GradientCanaries(member, directions, norm=10.0)
        dp_loop.train(
            model,
            pool,
            np.ones(len(pool), dtype=bool),
            rng,
            mechanism=mechanism,
            rates=np.full(steps, 0.5),
            make_optimizer=lambda parameters: torch.optim.SGD(parameters),
            batch_size=len(pool),
            physical_batch_size=256,
            canaries=canaries,
        )
        return canaries.score, member

    return draw


def rows(choices: Sequence[str], *, worlds: bool) -> Iterator[tuple[str, str, Callable[..., float]]]:
    """(estimator, guesses, audit)."""
    for estimator in ("one_run", "f_dp", "gaussian"):
        for name in choices:
            if name != "Calibrated" or estimator == "one_run":
                yield estimator, name, one_run(estimator, CHOICES[name])
    if worlds:
        for estimator in ("clopper_pearson", "gaussian"):
            yield f"two worlds, {estimator}", "threshold 2.0", two_worlds(estimator, 2.0)


def show(title: str, draw: Draw, mu: float, trials: int, choices: Sequence[str], *, worlds: bool) -> None:
    """A table of one setting; every audit sees the same draws."""
    truth = float(epsilon_of_mu(mu, DELTA))
    start = time.perf_counter()
    drawn = [draw(trial) for trial in range(trials)]
    print(f"\n{title}: true ε = {truth:.3f} at δ = {DELTA:g}; {trials} trials\n")
    print("| estimator | guesses | median ε | 10% to 90% | over-claims |\n|---|---|---|---|---|", flush=True)
    for estimator, name, audit in rows(choices, worlds=worlds):
        found = np.array(
            [audit(scores, member, stream(0, "audit", t), DELTA) for t, (scores, member) in enumerate(drawn)]
        )
        low, high = np.quantile(found, [0.1, 0.9])
        wrong = int((found > truth).sum())
        print(f"| {estimator} | {name} | {np.median(found):.2f} | {low:.2f} to {high:.2f} | {wrong} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more trials")
    arguments = parser.parse_args()
    one_thread()
    print(device(), versions("numpy", "scipy", "torch"), sep="; ")
    more = 3 if arguments.full else 1
    nested = ("Fixed", "StepWise", "Bonferroni")  # m δ = 5% refuses calibrated guesses at m = 5,000
    with tabled():
        every = list(CHOICES)
        show("Gaussian mechanism, μ = 1, m = 1000", simulated(1000, 1.0), 1.0, 100 * more, every, worlds=True)
        show("DP-SGD, 5000 Dirac canaries, μ = 1", trained(5000, 1.0), 1.0, 20 * more, nested, worlds=False)
        show("Gaussian mechanism, μ = 1, m = 5000", simulated(5000, 1.0), 1.0, 20 * more, nested, worlds=True)
        show("Gaussian mechanism, μ = 3, m = 1000", simulated(1000, 3.0), 3.0, 50 * more, nested, worlds=True)


if __name__ == "__main__":
    main()
