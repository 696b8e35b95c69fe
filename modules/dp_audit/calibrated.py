"""The best of several nested numbers of guesses, corrected for exactly the luck there was to be had.

Guesses are made in an order that the output fixes: surest first. Were the mechanism (ε, 0)-DP, each guess would be
right with probability at most q = e^ε / (1 + e^ε) whatever the other memberships are, so the row of right guesses
is dominated by independent coins of bias q (Steinke, Nasr & Jagielski 2023, Section 5), and so is every statistic
that only rises with right guesses. Ours is the least p-value over the nested numbers of guesses: its distribution
under coins is a random walk against a boundary, and is computed, not simulated.

Several ε are tested from below, each at the full level, until one is accepted. A test at ε with the boundary for
ε is also valid for any smaller ε (the coins are then less biased), so an over-claim needs the first grid point
above the true ε to be rejected. No more than one test has to hold, and none is corrected for the others.

delta > 0: in any fixed order of the canaries, and whatever came before, a guess of canary i is right with
probability at most q + e_i, where the (ε, δ)-DP of bit i bounds the mean of e_i by δ / (1 + e^ε). So right guesses
are dominated by coins of bias q, or-ed with failures of total probability at most m δ. That share of the error is
given up. It is more than Steinke's 2 m δ α costs; where m δ reaches the error, nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import expit

from modules.dp_audit.bounds import error_of
from modules.dp_audit.one_run import at_least, pmf, pure_epsilon

STEP = 0.005  # of the grid of ε that is tested from below; on average half of it is lost
NOTHING = 1e-20  # a probability that is dropped; it is counted as a crossing


def calibrated_epsilon(
    m: int, sizes: Sequence[int], right: Sequence[int], *, delta: float, level: float = 0.95
) -> float:
    """The largest ε of a grid that right[j] of the surest sizes[j] guesses reject, j = 1 .. G; 0 if none.

    Raises ValueError where m δ is not below the error: nothing can be shown then.
    """
    r, v = np.asarray(sizes, dtype=float), np.asarray(right, dtype=float)
    error = error_left(m, delta, level)
    # Below Bonferroni's bound the least p-value is below error / G, and the union bound rejects: no walk is needed.
    point = int(np.max(pure_epsilon(r, v, error / len(r))) / STEP)
    most = float(np.max(pure_epsilon(r, v, error)))  # above it even the least p-value is above the error
    while (point + 1) * STEP < most and _rejected(r, v, (point + 1) * STEP, error):
        point += 1
    return point * STEP


def error_left(m: int, delta: float, level: float) -> float:
    """The error that remains after m δ is given up."""
    error = error_of(level) - m * delta
    if error < 1e-12:  # 1 - 0.95 is not 0.05, and what rounding leaves is nothing
        raise ValueError(
            f"calibrated guesses give up m * delta = {m * delta:g} of an error of {error_of(level):g}, which leaves "
            "nothing: use Fixed, Split or Bonferroni guesses, or fewer canaries"
        )
    return error


def _rejected(r: np.ndarray, v: np.ndarray, eps: float, error: float) -> bool:
    q = np.asarray(expit(eps))
    least = float(np.min(at_least(v, r, q)))
    boundary = _boundary(r, q, least * (1 + 1e-9))
    return crossing(tuple(r.astype(int).tolist()), tuple(boundary.tolist()), float(q)) <= error


def _boundary(r: np.ndarray, q: np.ndarray, p: float) -> np.ndarray:
    """For each r the fewest right guesses with P[Bin(r, q) >= v] <= p; r + 1 where there is none."""
    low, high = np.zeros_like(r), r + 1  # P > p at low, P <= p at high
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        small = at_least(middle, r, q) <= p
        low, high = np.where(small, low, middle), np.where(small, middle, high)
    return high.astype(int)


@lru_cache(maxsize=1 << 14)
def crossing(sizes: tuple[int, ...], boundary: tuple[int, ...], q: float) -> float:
    """P[at least boundary[j] of the first sizes[j] coins of bias q show heads, for some j]. Exact."""
    alive, offset, done = np.ones(1), 0, 0
    for size, limit in zip(sizes, boundary, strict=True):
        n = size - done
        heads = np.asarray(pmf(np.arange(n + 1.0), float(n), q))
        likely = np.flatnonzero(heads > NOTHING)
        alive = np.convolve(alive, heads[likely[0] : likely[-1] + 1])
        offset, done = offset + int(likely[0]), size
        alive = alive[: max(limit - offset, 0)]
        kept = np.flatnonzero(alive > NOTHING)
        if not kept.size:
            return 1.0
        alive, offset = alive[kept[0] : kept[-1] + 1], offset + int(kept[0])
    return max(0.0, 1.0 - float(alive.sum()))
