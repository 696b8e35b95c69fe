"""The largest one-run bound over all pairs of guesses: what there is to find, not what has been shown.

Uncorrected, it over-claims in about half of all audits at a nominal 5%. It is for looking: which guesses would have
been good, to be fixed before another run.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array

from core.types import EpsilonBound
from modules.dp_audit.bounds import ANY, checked_delta, error_of
from modules.dp_audit.guesses import Pair, Ranked, Ties, ranked
from modules.dp_audit.one_run import epsilon, p_value, pure_epsilon

BLOCK = 256  # rows that are looked at together
SEEDS = 40  # rows that are looked at first


def exploratory_maximum(
    scores: Shaped[Array, " m"],
    member: Bool[Array, " m"],
    rng: np.random.Generator,
    *,
    delta: float,
    level: float = 0.95,
    ties: Ties = "random",
) -> EpsilonBound:
    """The largest bound over all k_plus + k_minus <= m, exactly, of kind "exploratory"."""
    counts = ranked(scores, member, rng, ties=ties)
    eps, pair = best_pair(counts, delta=delta, level=level)
    r = sum(pair)
    return EpsilonBound(
        eps=eps,
        delta=delta,
        level=level,
        estimator="one run",
        family=ANY,
        m=counts.m,
        r=r,
        right=counts.right(pair) if r else 0,
        guesses=f"k_plus = {pair[0]}, k_minus = {pair[1]}, the best of all pairs in hindsight: not corrected for",
        analyses=1,
        largest=float(epsilon(counts.m, counts.m, counts.m, delta=delta, level=level)),
        kind="exploratory",
        doubts=("the guesses were picked after seeing which were right: this number over-claims, it is no bound",),
    )


def best_pair(counts: Ranked, *, delta: float, level: float = 0.95) -> tuple[float, Pair]:
    """(ε, (k_plus, k_minus)) of the largest bound over all pairs; (0, (0, 0)) if none is above 0.

    For one r = k_plus + k_minus the bound rises with the right guesses, so only their maximum over the pairs of
    that sum counts: O(m), a row. The concave hulls of the two counts bound it for all r at once (their
    sup-convolution merges their slopes), and the closed form at δ = 0 bounds ε from above. Rows are computed,
    most promising first, while any can still beat the best.
    """
    m, error = counts.m, error_of(level)
    checked_delta(delta)
    r = np.arange(1, m + 1)
    promise = pure_epsilon(r, _most_right(counts), error)
    best, pair = 0.0, (0, 0)

    def look(rows: np.ndarray) -> None:
        nonlocal best, pair
        while (rows := rows[promise[rows] > best]).size:
            splits = np.array([_row(counts, int(r[row])) for row in rows])  # k_plus and right guesses
            p = p_value(m, r[rows], splits[:, 1], best, delta)  # tells whether a row beats the best; most do not
            top = int(np.argmin(p))
            if p[top] >= error:
                return
            better = float(epsilon(m, r[rows[top]], splits[top, 1], delta=delta, level=level))
            if better <= best:
                return
            best, pair = better, (int(splits[top, 0]), int(r[rows[top]] - splits[top, 0]))
            rows = np.delete(rows[p < error], np.count_nonzero(p[:top] < error))

    look(np.unique(np.geomspace(1, m, SEEDS).astype(int)) - 1)  # a good one early spares most of the rest
    order = np.argsort(-promise, kind="stable")
    for start in range(0, m, BLOCK):
        rows = order[start : start + BLOCK]
        if promise[rows[0]] <= best:
            break
        look(rows)
    return best, pair


def _row(counts: Ranked, r: int) -> tuple[int, int]:
    """(k_plus, right guesses) with the most right guesses of all pairs with k_plus + k_minus = r."""
    right = counts.top[: r + 1] + counts.bottom[r::-1]
    plus = int(np.argmax(right))
    return plus, int(right[plus])


def _most_right(counts: Ranked) -> Int[Array, " m"]:
    """For r = 1 .. m an upper bound of the right guesses of any pair with that sum: their hulls' sup-convolution."""
    slopes = np.concatenate([_hull_slopes(counts.top), _hull_slopes(counts.bottom)])
    total = np.cumsum(np.sort(slopes)[::-1])[: counts.m]
    return np.minimum(np.floor(total + 1e-6), np.arange(1, counts.m + 1)).astype(np.int64)


def _hull_slopes(cumulative: Int[Array, " k"]) -> Float[Array, " m"]:
    """Slopes of the least concave majorant: the decreasing isotonic regression of the increments."""
    from scipy.optimize import isotonic_regression  # slow to import, and only needed here

    return isotonic_regression(np.diff(cumulative), increasing=False).x


def along_guesses(
    counts: Ranked, *, delta: float, level: float = 0.95, points: int = 60
) -> tuple[Int[Array, " points"], Float[Array, " points"]]:
    """(k, ε) for k guesses on each side, log-spaced: a curve to look at, uncorrected like the maximum."""
    k = np.unique(np.geomspace(1, max(1, counts.m // 2), points).round().astype(np.int64))
    return k, epsilon(counts.m, 2 * k, counts.top[k] + counts.bottom[k], delta=delta, level=level)
