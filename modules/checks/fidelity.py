"""Is the target a model like its references? What an attack learns from models unlike the target misleads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy.special import stdtrit


@dataclass(frozen=True)
class Compared:
    """One number of the target beside those of its references."""

    value: float
    low: float  # where another model of the references' kind lies, at the level asked for
    high: float
    mean: float

    @property
    def alike(self) -> bool:
        return bool(self.low <= self.value <= self.high)


def compared(target: float, references: Float[Array, " R"], *, level: float = 0.95) -> Compared | None:
    """The t prediction interval for one more model like the references; None with fewer than three of them.

    mean ± t(R - 1) s sqrt(1 + 1/R): exact where the number is normal over models. s is at least 1e-9, so that
    references that all agree (a training accuracy of 1) do not condemn a target for a rounding.
    """
    count = len(references)
    if count < 3:
        return None
    mean, spread = float(references.mean()), max(float(references.std(ddof=1)), 1e-9)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * spread * np.sqrt(1 + 1 / count)
    return Compared(target, mean - half, mean + half, mean)


def worst_fitted(
    target: Float[Array, " N"],
    references: Float[Array, "R N"],
    trained_on: Bool[Array, "R N"],
    member: Bool[Array, " N"],
) -> float:
    """How often the target fits a member worse than every reference that trained on it, over what chance gives.

    Among k IN references and a target like them, the target is the worst with probability 1 / (k + 1): the ratio
    is 1 on average. A far larger one: these are not the records it trained on, or it never fitted them. NaN where
    no member has an IN reference.
    """
    count = trained_on.sum(axis=0)
    judged = member & (count > 0)
    if not judged.any():
        return float("nan")
    lowest = np.where(trained_on, references, np.inf).min(axis=0)
    return float((target < lowest)[judged].sum() / (1 / (count[judged] + 1)).sum())


def worst_fitted_references(references: Float[Array, "R N"], trained_on: Bool[Array, "R N"]) -> Float[Array, " R"]:
    """The same ratio of each reference against the others: what is usual. NaN where it cannot be told."""
    rows = np.arange(len(references))
    return np.array(
        [worst_fitted(references[r], references[rows != r], trained_on[rows != r], trained_on[r]) for r in rows]
    )
