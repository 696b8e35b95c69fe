"""How often do the bounds on ε over-claim, and how much do they show? `python -m benchmarks.dp_audit_coverage`

Every audit is simulated whole: memberships are drawn, a mechanism of known ε answers, guesses are chosen, the bound
is made. An over-claim is a bound above the true ε. Prints a table for documentation/dp_audit.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from benchmarks.side_by_side import device, one_thread, versions
from core.rng import stream
from modules.dp_audit import (
    Bonferroni,
    Calibrated,
    Choice,
    Fixed,
    MultiSplit,
    Split,
    StepWise,
    audit_one_run,
    audit_two_worlds,
    exploratory_maximum,
    mechanisms,
)
from modules.dp_audit.audit import BOUNDS, Estimator, TwoWorlds
from modules.dp_audit.f_dp import epsilon_of_mu
from modules.dp_audit.two_worlds import bayesian

LEVEL = 0.95
EPSILONS = (0.0, 0.5, 1.0, 2.0, 4.0)
CHOICES: dict[str, Choice] = {
    "Fixed": Fixed(),
    "Split": Split(),
    "MultiSplit, 5": MultiSplit(splits=5),
    "Bonferroni": Bonferroni(),
    "StepWise": StepWise(),
    "Calibrated": Calibrated(),
}


@dataclass(frozen=True)
class World:
    """A mechanism whose ε at `delta` is known."""

    name: str
    mechanism: mechanisms.Mechanism
    epsilon: float
    delta: float


def mu_of(epsilon: float, delta: float) -> float:
    """μ of the Gaussian mechanism with this ε at δ."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of_mu(middle, delta) < epsilon else (low, middle)
    return low


def worlds(epsilon: float) -> tuple[World, ...]:
    """Randomised response, the same with leaks that use up δ, the Gaussian mechanism, Laplace."""
    mu = mu_of(epsilon, 1e-5)
    return (
        World("response", lambda b, rng: mechanisms.randomised_response(b, rng, epsilon=epsilon), epsilon, 0.0),
        World("leaky", lambda b, rng: mechanisms.leaky_response(b, rng, epsilon=epsilon, delta=1e-4), epsilon, 1e-4),
        World("gaussian", lambda b, rng: mechanisms.gaussian(b, rng, mu=mu), epsilon, 1e-5),
        World("laplace", lambda b, rng: mechanisms.laplace(b, rng, epsilon=max(epsilon, 1e-9)), epsilon, 0.0),
    )


@dataclass(frozen=True)
class Cell:
    """What came of `trials` audits."""

    trials: int
    over: int
    median: float
    largest: float

    @property
    def share(self) -> float:
        return self.over / self.trials

    @property
    def holds(self) -> bool:
        """Over-claims within three standard deviations of the level."""
        error = 1 - LEVEL
        return self.share <= error + 3 * np.sqrt(error * (1 - error) / self.trials)


Audit = Callable[[np.ndarray, np.ndarray, np.random.Generator, float], float]


def simulate(world: World, audit: Audit, *, m: int, trials: int, name: str) -> Cell:
    """Audit `trials` independent runs of the world, each with its own memberships."""
    found = np.empty(trials)
    for trial in range(trials):
        rng = stream(0, "coverage", name, world.name, repr(world.epsilon), m, trial)
        member = rng.random(m) < 0.5
        found[trial] = audit(world.mechanism(member, rng), member, rng, world.delta)
    return Cell(trials, int((found > world.epsilon).sum()), float(np.median(found)), float(found.max()))


def one_run(estimator: Estimator, choice: Choice) -> Audit:
    return lambda scores, member, rng, delta: (
        audit_one_run(scores, member, rng, delta=delta, level=LEVEL, choice=choice, estimator=estimator).eps
    )


def two_worlds(estimator: TwoWorlds, threshold: float | tuple[float, ...] | Split | MultiSplit) -> Audit:
    return lambda scores, member, rng, delta: (
        audit_two_worlds(scores, member, rng, delta=delta, level=LEVEL, threshold=threshold, estimator=estimator).eps
    )


def credible(scores: np.ndarray, member: np.ndarray, rng: np.random.Generator, delta: float) -> float:
    """The lower end of the credible interval, which claims no coverage: measured, so that nobody need guess."""
    guessed = scores >= 0.5
    counts = (guessed & member).sum(), member.sum(), (guessed & ~member).sum(), (~member).sum()
    return _credible(*map(int, counts), delta)


@cache
def _credible(tp: int, n1: int, fp: int, n0: int, delta: float) -> float:
    return bayesian(tp, n1, fp, n0, delta=delta, level=LEVEL).eps


def uncorrected(scores: np.ndarray, member: np.ndarray, rng: np.random.Generator, delta: float) -> float:
    """The known-bad rule: the best pair in hindsight, at the full level."""
    return exploratory_maximum(scores, member, rng, delta=delta, level=LEVEL).eps


def audits() -> Iterator[tuple[str, str, Audit, tuple[str, ...]]]:
    """(estimator, rule, audit, the worlds it is said to be valid in)."""
    everywhere = ("response", "leaky", "gaussian")
    for rule, choice in CHOICES.items():
        yield "one run", rule, one_run("one_run", choice), everywhere
    for rule, choice in CHOICES.items():
        if rule != "Calibrated":
            yield "f-DP", rule, one_run("f_dp", choice), everywhere
    for rule, choice in CHOICES.items():
        if rule != "Calibrated":
            yield "Gaussian f-DP", rule, one_run("gaussian", choice), ("gaussian",)
    thresholds = {
        "fixed": 0.5,
        "Bonferroni of 5": (-1.0, 0.0, 0.5, 1.0, 2.0),
        "Split": Split(),
        "MultiSplit, 5": MultiSplit(splits=5),
    }
    for rule, threshold in thresholds.items():
        yield "two worlds", rule, two_worlds("clopper_pearson", threshold), everywhere
    for rule, threshold in thresholds.items():
        yield "Gaussian, two worlds", rule, two_worlds("gaussian", threshold), ("gaussian",)
    yield "Bayesian, two worlds (credible)", "fixed", credible, ("response",)
    yield "one run", "**uncorrected maximum**", uncorrected, ("response", "gaussian")
    yield "Gaussian f-DP", "**Fixed, wrong family**", _wrong_family(one_run("gaussian", Fixed())), ("laplace",)
    yield "Gaussian, two worlds", "**fixed, wrong family**", _wrong_family(two_worlds("gaussian", 0.5)), ("laplace",)


def _wrong_family(audit: Audit) -> Audit:
    """A Gaussian bound needs a δ > 0, which pure ε-DP satisfies too."""
    return lambda scores, member, rng, _: audit(scores, member, rng, 1e-5)


@contextmanager
def tabled() -> Iterator[None]:
    """Bounds of the same m and r are made for every number of right guesses at once: simulations ask for most."""
    kept = dict(BOUNDS)

    def remembered(bound: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        @cache
        def table(m: int, r: int, delta: float, level: float) -> np.ndarray:
            return bound(m, r, np.arange(r + 1), delta=delta, level=level)

        def of(m: Any, r: Any, right: Any, *, delta: float, level: float) -> np.ndarray:
            one = isinstance(r, int) and r <= 512
            return table(m, r, delta, level)[right] if one else bound(m, r, right, delta=delta, level=level)

        return of

    BOUNDS.update({name: remembered(bound) for name, bound in kept.items()})
    try:
        yield
    finally:
        BOUNDS.update(kept)


def controls(m: int) -> Iterator[tuple[str, World]]:
    """What one run cannot audit (Keinan et al. 2025), with its true ε at its δ: bounds must be loose."""
    yield "all or nothing, p = 4%", World("all", lambda b, rng: mechanisms.all_or_nothing(b, rng, p=0.04), 0.0, 0.04)
    yield "name and shame", World("named", mechanisms.name_and_shame, 0.0, 1 / m)
    yield "XOR", World("xor", mechanisms.xor, 0.0, 0.0)


def flagged(epsilon: float, world: str, *, m: int, trials: int) -> float:
    """The share of Gaussian bounds that carry a doubt about the family."""
    (asked,) = (one for one in worlds(epsilon) if one.name == world)
    doubted = 0
    for trial in range(trials):
        rng = stream(0, "flagged", world, repr(epsilon), m, trial)
        member = rng.random(m) < 0.5
        scores = asked.mechanism(member, rng)
        bound = audit_one_run(scores, member, rng, delta=1e-5, level=LEVEL, estimator="gaussian")
        doubted += any("not those of a Gaussian" in doubt for doubt in bound.doubts)
    return doubted / trials


def show_table(arguments: argparse.Namespace) -> int:
    """The rows of mechanisms of known ε. Returns how many over-claim that should not."""
    print("| estimator | guesses | world |", " | ".join(f"ε = {epsilon:g}" for epsilon in EPSILONS), "|", flush=True)
    print("|---|---|---|" + "---|" * len(EPSILONS))
    failed = 0
    by_epsilon = {epsilon: {world.name: world for world in worlds(epsilon)} for epsilon in EPSILONS}
    for estimator, rule, audit, valid in audits():
        for name in valid:
            if not f"{estimator}/{rule}/{name}".startswith(arguments.only):
                continue
            sizes = {"m": arguments.canaries, "trials": arguments.trials, "name": f"{estimator}/{rule}"}
            cells = [simulate(by_epsilon[epsilon][name], audit, **sizes) for epsilon in EPSILONS]
            failed += any(not cell.holds for cell in cells) and "**" not in rule
            shown = (f"{cell.share:.1%}{'' if cell.holds else '*'}; {cell.median:.2f}" for cell in cells)
            print(f"| {estimator} | {rule} | {name} |", " | ".join(shown), "|", flush=True)
    return failed


def show_controls(arguments: argparse.Namespace) -> int:
    print("\n| not auditable in one run | guesses | over-claims | median | largest |\n|---|---|---|---|---|")
    failed = 0
    for name, world in controls(arguments.canaries):
        for rule, choice in CHOICES.items():
            if isinstance(choice, Calibrated) and arguments.canaries * world.delta >= 1 - LEVEL:
                print(f"| {name} | {rule} | refused: m δ ≥ {1 - LEVEL:.2g} | | |")
                continue
            audit = one_run("one_run", choice)
            cell = simulate(world, audit, m=arguments.canaries, trials=arguments.trials, name=f"control/{rule}")
            failed += not cell.holds
            print(f"| {name} | {rule} | {cell.share:.1%} | {cell.median:.2f} | {cell.largest:.2f} |", flush=True)
    return failed


def show_flags(arguments: argparse.Namespace) -> None:
    print("\n| bounds that carry the doubt | world | m |", " | ".join(f"ε = {e:g}" for e in EPSILONS[1:]), "|")
    print("|---|---|---|" + "---|" * len(EPSILONS[1:]))
    for world, m in (("laplace", 300), ("laplace", 1000), ("laplace", 5000), ("gaussian", 1000)):
        shares = [flagged(epsilon, world, m=m, trials=arguments.trials) for epsilon in EPSILONS[1:]]
        print(f"| Gaussian f-DP, Fixed | {world} | {m} |", " | ".join(f"{s:.1%}" for s in shares), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--canaries", type=int, default=300)
    parser.add_argument("--only", default="", help="rows whose `estimator/guesses/world` starts with this; or controls")
    arguments = parser.parse_args()
    one_thread()
    print(device(), versions("numpy", "scipy"), f"m = {arguments.canaries}, T = {arguments.trials}", sep="; ")
    print("Each cell: share of over-claims; median bound. A star: beyond three standard deviations of the level.\n")
    start, failed = time.perf_counter(), 0
    with tabled():
        if arguments.only != "controls":
            failed += show_table(arguments)
        if arguments.only in ("", "controls"):
            failed += show_controls(arguments)
            show_flags(arguments)
    print(f"\n{failed} rows over-claim that should not; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
