"""Probability of the true label, from its log-odds."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

LARGEST = 300.0  # log-odds are clipped here: p > 1e-131 keeps ratios, and ratios of ratios, positive and finite


def clipped(log_odds: Float[Array, "Q n"]) -> Float[Array, "Q n"]:
    """In float64, within +- LARGEST."""
    return np.clip(log_odds.astype(np.float64), -LARGEST, LARGEST)


def probability_of(log_odds: Float[Array, "Q n"]) -> Float[Array, "Q n"]:
    """sigmoid(log_odds) in float64, never 0."""
    return 1.0 / (1.0 + np.exp(-clipped(log_odds)))
