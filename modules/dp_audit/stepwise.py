"""Several numbers of guesses, each responsible for one range of ε: all at the full level, none corrected for.

Before looking, [0, ∞) is cut into ranges in order, and each gets one pair of guesses. The pairs' bounds are asked
from the lowest range up: a bound that clears its whole range hands over to the next, one that does not is the end.

Why that holds: let the true ε lie in range j. Whatever the other ranges say, the result is above the true ε only if
the bound of pair j is: either pair j clears its range, or the walk ends there. Pair j was fixed before looking, so
that happens with probability at most the error. It is fixed-sequence testing of nested claims, for any estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.special import ndtr

from modules.dp_audit.guesses import Pair, default_k
from modules.dp_audit.one_run import pure_epsilon

Steps = tuple[tuple[Pair, float], ...]  # pairs, and up to which ε each is responsible; the last one to infinity
GROWTH = 1.5  # of the number of guesses from pair to pair
MUS = np.linspace(0.5, 8.0, 76)


def climb(bounds: Iterable[float], tops: Iterable[float]) -> tuple[float, int]:
    """(ε, the pair that decided it), from each pair's bound and the top of its range. Asks no bound too many."""
    floor, last = 0.0, 0
    for j, (bound, top) in enumerate(zip(bounds, tops, strict=True)):
        if bound < top:
            return (bound, j) if bound > floor else (floor, last)
        floor, last = top, j
    raise ValueError("the last range has no end: give it the top infinity")


def default_steps(m: int, bound: Callable[[np.ndarray, np.ndarray], np.ndarray], error: float) -> Steps:
    """`default_k` guesses on each side for weak mechanisms, then half as many again, and so on up to all.

    A range ends where the next pair begins to show more of a Gaussian mechanism: judged before looking, from m and
    the closed form at δ = 0. Others are audited as validly. bound: ε from (guesses, right guesses).
    """
    ks = _growing(default_k(m), m // 2)
    right = np.minimum(2 * _members_on_top(m, ks), 2 * ks - 1)
    shown = pure_epsilon(2 * ks, right, error)  # (mechanisms, pairs)
    here_is_better = shown[:, :-1] >= shown[:, 1:]
    last = len(MUS) - 1 - np.argmax(here_is_better[::-1], axis=0)
    at_its_end = np.floor(right[last, np.arange(len(ks) - 1)])
    tops = np.maximum.accumulate(bound(2 * ks[:-1], at_its_end))
    return tuple(((int(k), int(k)), float(top)) for k, top in zip(ks, [*tops, np.inf], strict=True))


def _growing(first: int, last: int) -> np.ndarray:
    """first, half as many again, ..., last."""
    count = max(1, round(np.log(last / first) / np.log(GROWTH)))
    return np.unique(np.geomspace(first, last, count + 1).round().astype(int))


def _members_on_top(m: int, ks: np.ndarray) -> np.ndarray:
    """Members expected among the k highest of m scores, half of them N(0, 1) and half N(μ, 1): (`MUS`, ks)."""
    x = np.linspace(15.0, -9.0, 4001)
    members = [m / 2 * ndtr(mu - x) for mu in MUS]
    return np.stack([np.interp(ks, of_mu + m / 2 * ndtr(-x), of_mu) for of_mu in members])
