"""What DUCI is compared with: estimates that take guesses, scores or confidences as they are (Tong et al. 2025, §4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

GRID = np.linspace(0, 1, 21)  # shares that the likelihood is compared at, as in the paper


def direct_aggregation(target: Bool[Array, "M N"]) -> float:
    """The share of records guessed to be members ("MIA Guess")."""
    return float(target.mean())


def mean_score(scores: Float[Array, "M N"]) -> float:
    """The mean score ("MIA Score"); NaN where scores are no shares, as those of a likelihood ratio."""
    return float(scores.mean()) if scores.min() >= 0 and scores.max() <= 1 else float("nan")


def average_logit(target: Float[Array, " N"], references: Float[Array, "R N"], trained_on: Bool[Array, "R N"]) -> float:
    """The likeliest share on a grid of 21, given the target's mean log-odds ("MLE Avg-Logit").

    The paper trains models on each of the 21 shares and fits a Gaussian to their means. Here the references of the
    audit stand in: at share q the mean is q (mean IN) + (1 - q) (mean OUT), and its variance that of the same
    mixture over references. NaN with fewer than two models on either side of a record.
    """
    inside, outside = trained_on.sum(axis=0), (~trained_on).sum(axis=0)
    if min(inside.min(), outside.min()) < 2:
        return float("nan")
    mean_in = references.mean(axis=0, where=trained_on, dtype=float)
    mean_out = references.mean(axis=0, where=~trained_on, dtype=float)
    # Deviations from means that hold the model itself are too small by this factor.
    scale_in, scale_out = np.sqrt(inside / (inside - 1)), np.sqrt(outside / (outside - 1))
    away = np.where(trained_on, (references - mean_in) * scale_in, (references - mean_out) * scale_out)
    of_in, of_out = away.mean(axis=1, where=trained_on), away.mean(axis=1, where=~trained_on)
    q = GRID[:, None]
    variance = np.square(q * of_in + (1 - q) * of_out).mean(axis=1)
    expected = GRID * mean_in.mean() + (1 - GRID) * mean_out.mean()
    variance = np.maximum(variance, np.finfo(float).tiny)
    likelihood = -np.log(variance) / 2 - (target.mean(dtype=float) - expected) ** 2 / (2 * variance)
    return float(GRID[np.argmax(likelihood)])
