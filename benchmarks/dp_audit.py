"""The largest one-run bound over all pairs of guesses: how fast? `python -m benchmarks.dp_audit [--full]`

The peer is the published search: a grid of pairs with step √m, and for each a bisection that sums the p-value term
by term. It is timed on a few pairs and scaled to its grid; ours looks at all m²/2 pairs, so it finds at least as much.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from scipy.stats import binom

from benchmarks.side_by_side import Row, header, last_line, one_thread, show, side_by_side
from core.rng import stream
from modules.dp_audit import mechanisms, one_run, ranked
from modules.dp_audit.exploratory import best_pair
from modules.dp_audit.guesses import Ranked

PACKAGES = ("numpy", "scipy")
LEVEL = 0.95


def printed_p_value(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """Theorem 5.2 of Steinke et al. (2023), one probability after the other."""
    q = 1 / (1 + np.exp(-eps))
    beta, alpha, total = binom.sf(v - 1, r, q), 0.0, 0.0
    if delta > 0:
        for i in range(1, v + 1):
            total += binom.pmf(v - i, r, q)
            alpha = max(alpha, total / i)
    return min(1.0, beta + 2 * m * delta * alpha)


def printed_epsilon(m: int, r: int, v: int, delta: float) -> float:
    """Bisection of the p-value, 30 halvings after doubling."""
    low, high = 0.0, 1.0
    if printed_p_value(m, r, v, 0.0, delta) >= 1 - LEVEL:
        return 0.0
    while printed_p_value(m, r, v, high, delta) < 1 - LEVEL:
        high += 1
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if printed_p_value(m, r, v, middle, delta) < 1 - LEVEL else (low, middle)
    return low


def world(m: int) -> Ranked:
    """Right guesses on the Gaussian mechanism with μ = 1."""
    rng = stream(0, "benchmark", "dp_audit", m)
    member = rng.random(m) < 0.5
    return ranked(mechanisms.gaussian(member, rng, mu=1.0), member, rng)


def row(m: int, delta: float, *, rounds: int, pairs: int, floor: float | None) -> Row:
    """Ours over all pairs, against `pairs` random ones of the peer's grid."""
    counts = world(m)
    step = int(np.sqrt(m))
    grid = [(a, b) for a in range(0, m + 1, step) for b in range(0, m + 1 - a, step) if a + b]
    some = [grid[i] for i in stream(0, "pairs", m).choice(len(grid), size=pairs, replace=False)]
    best, pair = best_pair(counts, delta=delta, level=LEVEL)
    for a, b in some:
        theirs = printed_epsilon(m, a + b, counts.right((a, b)), delta)
        ours = float(one_run.epsilon(m, a + b, counts.right((a, b)), delta=delta, level=LEVEL))
        if abs(theirs - ours) > 1e-6 or theirs > best + 1e-6:
            raise AssertionError(f"pair {(a, b)}: the peer finds {theirs}, ours {ours}, and the maximum is {best}")

    def peer() -> None:
        for a, b in some:
            printed_epsilon(m, a + b, counts.right((a, b)), delta)

    return side_by_side(
        f"largest bound of all pairs, m={m:,}, delta={delta:g}",
        lambda: best_pair(counts, delta=delta, level=LEVEL),
        peer,
        rounds=rounds,
        floor=floor,
        part=pairs / len(grid),
        notes=f"the peer's {len(grid):,} pairs scaled up from {pairs}; found {best:.4f} at {pair}",
        pairs=len(grid),
        epsilon=best,
    )


def measure(full: bool) -> Iterator[Row]:
    """Every row, as it is done."""
    yield row(1_000, 0.0, rounds=3, pairs=40, floor=None)
    yield row(1_000, 1e-5, rounds=3, pairs=3, floor=None)
    yield row(100_000, 0.0, rounds=3, pairs=40, floor=None)
    if full:
        yield row(10_000, 1e-5, rounds=3, pairs=2, floor=None)
        yield row(100_000, 1e-5, rounds=3, pairs=1, floor=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="m = 100,000 at delta > 0, whose peer is slow")
    arguments = parser.parse_args()
    one_thread()
    header(*PACKAGES)
    rows = []
    for found in measure(arguments.full):
        show(found)
        rows.append(found)
    print(last_line(rows, *PACKAGES))


if __name__ == "__main__":
    main()
