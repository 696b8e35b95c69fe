"""Do rates that were measured on models with half of the data hold for models with another share of it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from core.types import Estimate
from modules.duci.usage import Usage


@dataclass(frozen=True)
class Drift:
    """Mean error of the estimates at one true share. Where the rates hold, its interval has 0 inside."""

    proportion: float
    error: Estimate
    models: int

    @property
    def holds(self) -> bool:
        return self.error.low <= 0 <= self.error.high


def drift(proportion: float, estimates: Sequence[Usage], truth: Sequence[float], *, level: float, looks: int) -> Drift:
    """The mean of raw - truth over targets of one share, with an interval at `level` over all `looks` together.

    Each target's own variance is averaged away by further targets; that of the rates is not, for all share them.
    """
    errors = np.array([estimate.raw for estimate in estimates]) - np.asarray(truth)
    own = float(np.mean([estimate.own_variance for estimate in estimates])) / len(errors)
    shared = float(np.mean([estimate.rates_variance for estimate in estimates]))
    mean, half = float(errors.mean()), float(ndtri(1 - (1 - level) / (2 * looks)) * np.sqrt(own + shared))
    return Drift(proportion, Estimate(mean, mean - half, mean + half), len(errors))
