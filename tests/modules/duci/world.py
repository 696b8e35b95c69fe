"""Guesses of known rates about targets and rehearsals, where the share of the dataset that was used is known."""

from __future__ import annotations

import numpy as np

from core.rng import stream
from modules.duci.rates import Known


def halves(rng: np.random.Generator, models: int, n: int) -> np.ndarray:
    """Memberships (M, N): each model trained on a random half."""
    return np.argsort(rng.random((models, n)), axis=1) < n // 2


def used_part(rng: np.random.Generator, n: int, p: float) -> np.ndarray:
    return rng.permutation(n) < round(p * n)


def world(
    *seed: int | str,
    p: float = 0.4,
    models: int = 8,
    n: int = 500,
    tpr: float | np.ndarray = 0.7,
    fpr: float | np.ndarray = 0.3,
    spread: float = 0.0,
    used: np.ndarray | None = None,
) -> tuple[np.ndarray, Known, np.ndarray]:
    """Guesses about the target (M, N), the rehearsals, and who of the N records was used.

    spread: standard deviation of what a model adds to both of its rates.
    """
    rng = stream(0, "duci world", *seed)
    member = used_part(rng, n, p) if used is None else used
    trained_on = halves(rng, models, n)
    shift = spread * rng.standard_normal(models + 1)
    rate = np.where(np.vstack([member, trained_on]), tpr, fpr) + shift[:, None]
    guesses = rng.random((models + 1, n)) < rate
    return np.broadcast_to(guesses[0], (models, n)), Known(guesses[1:], trained_on), member
