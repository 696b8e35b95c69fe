"""Tighter bounds from one run, against a whole trade-off curve (Mahloujifar, Melis & Chaudhuri 2025,
https://arxiv.org/abs/2410.22235), and the (ε, δ) curve of the Gaussian mechanism.

A mechanism with trade-off curve f has false-negative rate at least f(x) at false-positive rate x, whatever the
attack. Curves of one family are ordered by one strength: μ for Gaussian, ε for (ε, δ)-DP. If c of at most c'
guesses were right too often for a strength, all smaller strengths are rejected with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_ndtr, ndtr, ndtri

from modules.dp_audit.bounds import checked_delta, error_of
from modules.dp_audit.search import largest_rejected

# Inverse of 1 - f: the least false-positive rate at which a true-positive rate y can be reached, by strength.
Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]

MOST = 64.0  # the largest strength looked for; 10^12 guesses, all right, show an ε of 31


def gaussian_curve(y: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """Of N(0, 1) against N(mu, 1): 1 - f(x) = Φ(Φ⁻¹(x) + mu), inverted."""
    return ndtr(ndtri(y) - mu)


def approximate_curve(y: np.ndarray, eps: np.ndarray, *, delta: float) -> np.ndarray:
    """Of (ε, delta)-DP, with no other assumption: 1 - f(x) = min(1, delta + e^ε x, 1 - e^-ε (1 - delta - x))."""
    return np.maximum(np.maximum((y - delta) * np.exp(-eps), 1 - delta - np.exp(eps) * (1 - y)), 0.0)


def rejected(
    m: ArrayLike, r: ArrayLike, v: ArrayLike, strength: ArrayLike, curve: Curve, *, level: float = 0.95
) -> np.ndarray:
    """Are `v` right of at most `r` guesses on `m` canaries too many for this curve? (Algorithm 3, binary game).

    For i = v - 1 .. 0: h' = max(h, curve(t)), t += i / (r - i) (h' - h), from t = error v / m, h = error (r - v) / m;
    rejected iff t + h >= r / m in the end.
    """
    error = error_of(level)
    m, r, v, strength = (np.asarray(x, dtype=float) for x in np.broadcast_arrays(m, r, v, strength))
    right, wrong = error * v / m, error * (r - v) / m
    first = int(v.min(initial=v.max(initial=0.0)))  # all are under way from here down
    for i in range(int(v.max(initial=0.0)) - 1, -1, -1):
        more = np.maximum(wrong, curve(np.minimum(right, 1.0), strength))
        if i >= first:
            more = np.where(i < v, more, wrong)
        step = more - wrong
        if i < first and not step.any():
            break  # what did not grow once never grows again
        right, wrong = right + i / np.maximum(r - i, 1.0) * step, more
    return np.asarray((right + wrong >= r / m) & (r > 0))


def strength(m: ArrayLike, r: ArrayLike, v: ArrayLike, curve: Curve, *, level: float = 0.95) -> np.ndarray:
    """The largest strength of the family that is rejected at confidence `level`; 0 if none."""
    m, r, v = (np.asarray(x, dtype=float) for x in np.broadcast_arrays(m, r, v))
    if not np.all((v >= 0) & (v <= r) & (r <= m)):
        raise ValueError("an audit needs 0 <= right guesses <= guesses <= canaries")
    m, r, v = m[..., None], r[..., None], v[..., None]
    return largest_rejected(lambda tried: rejected(m, r, v, tried, curve, level=level), np.full(v.shape[:-1], MOST))


def epsilon(m: ArrayLike, r: ArrayLike, v: ArrayLike, *, delta: float, level: float = 0.95) -> np.ndarray:
    """ε against the trade-off curve of (ε, delta)-DP: no family is assumed."""
    return strength(m, r, v, partial(approximate_curve, delta=checked_delta(delta)), level=level)


def gaussian_epsilon(m: ArrayLike, r: ArrayLike, v: ArrayLike, *, delta: float, level: float = 0.95) -> np.ndarray:
    """ε at `delta` of the Gaussian mechanism of the largest μ rejected: holds for the Gaussian family only."""
    return epsilon_of_mu(strength(m, r, v, gaussian_curve, level=level), delta)


# --- the Gaussian mechanism ------------------------------------------------------------------------------------


def delta_of_mu(mu: ArrayLike, eps: ArrayLike) -> np.ndarray:
    """δ(ε) of N(0, 1) against N(mu, 1): Φ(-ε/μ + μ/2) - e^ε Φ(-ε/μ - μ/2) (Balle & Wang 2018). 0 at mu = 0."""
    mu, eps = np.broadcast_arrays(np.asarray(mu, dtype=float), np.asarray(eps, dtype=float))
    safe = np.where(mu > 0, mu, 1.0)
    delta = ndtr(-eps / safe + safe / 2) - np.exp(eps + log_ndtr(-eps / safe - safe / 2))
    return np.where(mu > 0, np.maximum(delta, 0.0), 0.0)


def epsilon_of_mu(mu: ArrayLike, delta: float) -> np.ndarray:
    """ε at `delta` of the Gaussian mechanism with sensitivity over noise `mu`. Raises ValueError at delta = 0."""
    if checked_delta(delta) == 0:
        raise ValueError("a Gaussian mechanism has no finite epsilon at delta 0: audit at delta > 0")
    mu = np.asarray(mu, dtype=float)
    high = mu**2 / 2 + mu * np.sqrt(2 * np.log(1 / delta))  # δ(high) < delta, as Φ(-t) <= exp(-t²/2)
    return largest_rejected(lambda tried: delta_of_mu(mu[..., None], tried) > delta, np.asarray(high))
