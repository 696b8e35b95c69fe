"""A lower bound on ε from one training run (Steinke, Nasr & Jagielski 2023, https://arxiv.org/abs/2305.08846).

m canaries are each included with probability 1/2, independently. From the output the auditor guesses `r` of the
m bits and abstains on the others. Were the mechanism (ε, δ)-DP, the number of right guesses could not exceed that
of r coins of bias e^ε / (1 + e^ε) by much. Everything broadcasts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincinv, betaln, expit, logit, xlog1py, xlogy

from modules.dp_audit.bounds import checked_delta, error_of
from modules.dp_audit.search import largest_rejected

Numbers = np.ndarray | float  # numpy makes numbers of arrays without axes


def p_value(m: ArrayLike, r: ArrayLike, v: ArrayLike, eps: ArrayLike, delta: ArrayLike) -> np.ndarray:
    """The most likely that `v` of `r` guesses or more are right, of any (eps, delta)-DP mechanism (Theorem 5.2).

    min(1, P[W >= v] + 2 m delta max_{1 <= i <= v} P[v > W >= v - i] / i), with W ~ Bin(r, e^eps / (1 + e^eps)).
    """
    r, v, q = np.broadcast_arrays(_floats(r), _floats(v), expit(_floats(eps)))
    cost = 2 * _floats(m) * _floats(delta)
    beta = at_least(v, r, q)
    if not np.any(cost):
        return beta
    return np.asarray(np.minimum(1.0, beta + cost * _steepest(r, v, q)))


def epsilon(m: ArrayLike, r: ArrayLike, v: ArrayLike, *, delta: float, level: float = 0.95) -> np.ndarray:
    """The largest ε that `v` right of `r` guesses on `m` canaries reject at confidence `level`; 0 if none.

    Closed form for δ = 0, which bounds δ > 0 from above, where ε is then bisected from below: p_value dominates a
    function that rises with ε (the worst case over what fails with probability δ), so one rejected ε rejects all
    smaller ones. Raises ValueError unless 0 <= v <= r <= m.
    """
    error = error_of(level)
    m, r, v = np.broadcast_arrays(_floats(m), _floats(r), _floats(v))
    if not np.all((v >= 0) & (v <= r) & (r <= m)):
        raise ValueError("an audit needs 0 <= right guesses <= guesses <= canaries")
    high = pure_epsilon(r, v, error)
    if checked_delta(delta) == 0:
        return high
    eps = np.zeros_like(high)
    some = (high > 0) & (p_value(m, r, v, 0.0, delta) < error)
    m, r, v = (x[some][:, None] for x in (m, r, v))
    eps[some] = largest_rejected(lambda tried: p_value(m, r, v, tried, delta) < error, high[some])
    return eps


def pure_epsilon(r: ArrayLike, v: ArrayLike, error: ArrayLike) -> np.ndarray:
    """The same for δ = 0: logit of the Clopper-Pearson lower limit of the share of right guesses, at least 0."""
    r, v, error = np.broadcast_arrays(_floats(r), _floats(v), _floats(error))
    some = v > 0
    q = betaincinv(np.where(some, v, 1.0), r - v + 1, error)
    return np.where(some, np.maximum(logit(q), 0.0), 0.0)


def _floats(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=float)


def at_least(k: Numbers, r: Numbers, q: Numbers) -> np.ndarray:
    """P[Bin(r, q) >= k], for k from 0 to r + 1."""
    inside = (k > 0) & (k <= r)
    tail = betainc(np.where(inside, k, 1.0), np.where(inside, r - k + 1, 1.0), q)
    return np.where(inside, tail, np.where(k <= 0, 1.0, 0.0))


def pmf(k: Numbers, r: Numbers, q: Numbers) -> np.ndarray:
    """P[Bin(r, q) = k], 0 outside 0 <= k <= r."""
    inside = (k >= 0) & (k <= r)
    k = np.where(inside, k, 0.0)
    log_choose = -np.log1p(r) - betaln(r - k + 1, k + 1)
    return np.where(inside, np.exp(log_choose + xlogy(k, q) + xlog1py(r - k, -q)), 0.0)


def _steepest(r: np.ndarray, v: np.ndarray, q: np.ndarray) -> np.ndarray:
    """max over 1 <= i <= v of the mean of the i probabilities P[W = v - 1], ..., P[W = v - i]; 0 at v = 0."""
    # The probabilities have one peak. So this mean rises while the next one to the left is above it, then falls
    # for good: where that changes is found by halving.
    beta = at_least(v, r, q)
    low, high = np.ones_like(v), np.maximum(v, 1.0)
    for _ in range(int(np.ceil(np.log2(max(float(v.max(initial=1.0)), 1.0)))) + 1):
        i = np.floor((low + high) / 2)
        mean = (at_least(v - i, r, q) - beta) / i
        rising = (i < v) & (pmf(v - i - 1, r, q) > mean)
        low, high = np.where(rising, np.minimum(i + 1, high), low), np.where(rising, high, i)
    mean = (at_least(v - low, r, q) - beta) / low
    return np.where(v > 0, np.maximum(mean, 0.0), 0.0)
