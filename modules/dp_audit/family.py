"""Do the scores look like those of a Gaussian mechanism? A test that can refute the family, and cannot confirm it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray as Array
from scipy.special import chdtrc, ndtr

BINS = 20
MUS = np.concatenate([np.arange(0.0, 2.0, 0.05), np.arange(2.0, 12.0, 0.2)])
COARSE = 6  # every so many μ at first


def gaussian_fit(scores: Shaped[Array, " m"], member: Bool[Array, " m"]) -> float:
    """p-value of the hypothesis that the scores are a rising function of N(0, 1) OUT and N(μ, 1) IN, for some μ.

    The ranks are cut into bins; the members in each are compared with those expected at the μ that fits best
    (Pearson, one degree of freedom for μ and one for the total). 1 where there are too few scores to tell, or
    where too many are tied: a tie is split like the members of all that share it, which no curve does.
    Approximate, and without power against shapes between the bins: it warns, it does not license.
    """
    scores, member = np.asarray(scores), np.asarray(member, dtype=bool)
    n, n1 = len(scores), int(member.sum())
    bins = min(BINS, n // 20)
    if bins < 4 or not 0 < n1 < n:
        return 1.0
    order = np.argsort(scores, kind="stable")
    ordered, inside = scores[order], member[order]
    cuts = np.unique(np.searchsorted(ordered, ordered[np.arange(1, bins) * n // bins], side="left"))
    cuts = cuts[cuts > 0]
    if len(cuts) < 3:
        return 1.0
    edges = np.concatenate([[0], cuts, [n]])
    size = np.diff(edges).astype(float)
    found = np.diff(np.concatenate([[0], np.cumsum(inside)])[edges])
    tried = range(0, len(MUS), COARSE)  # the misfit has one minimum in μ: every so many first, then those around it
    for _ in range(2):
        misfit = {i: _pearson(found, size, _expected(float(MUS[i]), edges, n, n1)) for i in tried}
        near = min(misfit, key=misfit.__getitem__)
        tried = range(max(near - COARSE, 0), min(near + COARSE + 1, len(MUS)))
    return float(chdtrc(len(size) - 2, misfit[near]))


def _expected(mu: float, edges: np.ndarray, n: int, n1: int) -> np.ndarray:
    """Members expected between these ranks of the mixture of n - n1 N(0, 1) and n1 N(mu, 1)."""
    x = np.linspace(-9.0, 9.0 + mu, 1001)
    members = n1 * ndtr(x - mu)
    at = np.interp(edges.astype(float), members + (n - n1) * ndtr(x), members)
    at[0], at[-1] = 0.0, n1
    return np.diff(at)


def _pearson(found: np.ndarray, size: np.ndarray, expected: np.ndarray) -> float:
    expected = np.clip(expected, 0.5, size - 0.5)
    return float(((found - expected) ** 2 * (1 / expected + 1 / (size - expected))).sum())
