"""QMIA: is x fitted better than records like it that were not trained on? (Bertran et al. 2023, https://arxiv.org/abs/2307.03694)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal

FLOOR = 1e-2  # least predicted standard deviation, as a fraction of that of all population points
LARGEST_FPR = 0.9  # of the pinball head's quantiles
NEEDED = 5  # population points that should lie above the most extreme quantile that is fitted


def signal_of(settings: Settings) -> Signal:
    """What a regression on the population predicts of each record; made in audit/quantile_signals.py."""
    return Signal(
        "quantiles", options=tuple((key, settings[key]) for key in ("head", "of", "regressor", "count", "smallest_fpr"))
    )


def false_positive_rates(population: int, count: int, smallest_fpr: float) -> Float[Array, " K"]:
    """At which the pinball head's quantiles lie: descending, log-spaced (Bertran et al., Sec. 4)."""
    least = min(max(smallest_fpr, NEEDED / max(population, 1)), LARGEST_FPR / 2)
    return np.geomspace(LARGEST_FPR, least, count)


@ATTACKS.register(
    "QMIA",
    needs_records=True,
    needs_references=False,
    needs_population=True,
    signals=lambda settings: (signal_of(settings), *((Signal("hinge"),) if settings["of"] == "hinge" else ())),
    shared=None,
    min_pairs=0,
    summary="the target's fit of x, standardised by what a regression on population records predicts for a non-member",
    access="confidence",
    cost="one answer per record and population point, of the target alone; a regression per target on the population",
    fails="as far as the records do not tell how hard they are, it is LOSS; few population points teach it little; a "
    "population of another source gives wrong rates",
    source="Bertran et al. 2023, arXiv 2307.03694",
)
def qmia(
    evidence: Evidence,
    *,
    head: Literal["gaussian", "pinball"] = "gaussian",
    of: Literal["log_odds", "hinge"] = "log_odds",
    regressor: Literal["auto", "boosting", "convnet"] = "auto",
    count: Annotated[int, Ge(2)] = 11,
    smallest_fpr: Annotated[float, Gt(0), Lt(0.5)] = 0.01,
) -> Float[Array, " N"]:
    """The standard normal quantile of the predicted distribution function at the target's signal, mean over queries.

    Of population records, which are outside of every training set, a regression learns how the target's signal is
    distributed given the record; no reference model is needed. 1 - Phi(score) is the predicted false-positive rate of
    accusing x, and every threshold of the score is one rate for all records: the whole ROC.

    head: "gaussian" predicts mean and standard deviation, by maximum likelihood. "pinball" predicts quantiles, sorted
        so that they do not cross; the score is linear between them in normal scores, and beyond them.
    of: the signal, log-odds or the paper's hinge.
    regressor: a small convolutional network on pixels; boosted trees on features (of images pixels, of texts counts and
        hashed n-grams); "auto" is the network where the population has 2,000 images or more.
    count: quantiles of the pinball head, log-spaced in FPR from 0.9 to `smallest_fpr`, or where the population is
        small to 5 in its number.
    """
    if not evidence.population.shape[1]:
        raise ValueError("QMIA learns from population points, and there are none: set audit.population_size")
    settings = {"head": head, "of": of, "regressor": regressor, "count": count, "smallest_fpr": smallest_fpr}
    chosen = evidence if of == "log_odds" else evidence.signal(Signal("hinge"))
    predicted = evidence.signal(signal_of(settings)).target.astype(np.float64)
    if np.isnan(predicted).any():
        raise ValueError("QMIA's regressions are made for the targets of a run; this model has none")
    value = chosen.target.mean(axis=0, dtype=np.float64)
    if head == "gaussian":
        mean, deviation = predicted
        overall = chosen.population.mean(axis=0, dtype=np.float64).std()
        return (value - mean) / np.maximum(deviation, FLOOR * overall if overall > 0 else 1.0)
    return normal_score(value, predicted, false_positive_rates(evidence.population.shape[1], count, smallest_fpr))


def normal_score(
    value: Float[Array, " N"], quantiles: Float[Array, "K N"], rates: Float[Array, " K"]
) -> Float[Array, " N"]:
    """Phi^-1 of the distribution function with these quantiles at 1 - rates, at `value`.

    Linear between quantiles, and outside of them with the slope from the first to the last: no two values tie.
    """
    from scipy.special import ndtri

    z, q = -ndtri(rates), np.sort(quantiles, axis=0)
    width = q[-1] - q[0]
    slope = (z[-1] - z[0]) / np.where(width > 0, width, 1.0)
    found = z[0] + slope * (np.minimum(value - q[0], 0.0) + np.maximum(value - q[-1], 0.0))
    for k in range(len(z) - 1):
        gap = q[k + 1] - q[k]
        step = np.divide(value - q[k], gap, out=np.where(value >= q[k], 1.0, 0.0), where=gap > 0)
        found += (z[k + 1] - z[k]) * np.clip(step, 0.0, 1.0)
    return found
