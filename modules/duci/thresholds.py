"""From scores to guesses: `score >= threshold`, for target and rehearsals alike, so that ties count on both sides."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from core.metrics import roc


def threshold(scores: Float[Array, "M N"], trained_on: Bool[Array, "M N"], fpr: float | None = None) -> float:
    """The threshold with the largest TPR - FPR over all rehearsals (Youden), or the lowest whose FPR is at most `fpr`.

    +inf, which guesses nobody, where no threshold is better than guessing. ValueError without both kinds of records.
    """
    curve = roc(scores.ravel(), trained_on.ravel())
    if fpr is None:
        return float(curve.threshold[np.argmax(curve.tpr - curve.fpr)])
    return float(curve.threshold[np.searchsorted(curve.fpr, fpr, side="right") - 1])


def thresholds(
    scores: Float[Array, "M N"], trained_on: Bool[Array, "M N"], half: Bool[Array, " N"], fpr: float | None = None
) -> Float[Array, " N"]:
    """For the records of one half, the threshold chosen on those of the other.

    Rates measured on the records that chose the threshold look better than they are, by .03 in TPR - FPR with
    250 members (literature §3.4), and the estimated share would err as much.
    """
    first, second = (threshold(scores[:, part], trained_on[:, part], fpr) for part in (half, ~half))
    return np.where(half, second, first)


def guesses(scores: Float[Array, "M N"], thresholds: Float[Array, " N"]) -> Bool[Array, "M N"]:
    """Who is guessed to be a member."""
    return scores >= thresholds
