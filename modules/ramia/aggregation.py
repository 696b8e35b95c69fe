"""From the scores of a range's samples to the score of the range (Tao & Shokri 2025, https://arxiv.org/abs/2408.05131).

If the range holds one training point, most of its samples are near nothing that was trained on, and their scores
are noise: the mean drowns in it. The maximum hears only one sample, and takes the loudest noise of the others.
The best statistic for one leaking sample among K, N(d, 1) among N(0, 1), is log mean exp(d s); where leakage
decays slowly over the range, the mean is better. No single choice is best, so it is tuned on rehearsals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.special import logsumexp

from core.registry import Registry

AGGREGATIONS = Registry("aggregation")

Share = Annotated[float, Interval(ge=0, le=1)]


@AGGREGATIONS.register("mean", label="mean")
def mean(scores: Float[Array, "N K"]) -> Float[Array, " N"]:
    """Mean of each range's scores: right where all of a range leaks alike."""
    return scores.mean(axis=1)


@AGGREGATIONS.register("max", label="max")
def maximum(scores: Float[Array, "N K"]) -> Float[Array, " N"]:
    """Largest of each range's scores."""
    return scores.max(axis=1)


@AGGREGATIONS.register("top_k", label="mean of the top {k}")
def top_k(scores: Float[Array, "N K"], *, k: Annotated[int, Ge(1)]) -> Float[Array, " N"]:
    """Mean of each range's `k` largest scores. ValueError if there are fewer."""
    if k > scores.shape[1]:
        raise ValueError(f"the top {k} of {scores.shape[1]} samples cannot be taken: raise sample_size or lower k")
    return np.partition(scores, -k, axis=1)[:, -k:].mean(axis=1)


@AGGREGATIONS.register("trimmed_mean", label="mean from quantile {q_s:g} to {q_e:g}")
def trimmed_mean(scores: Float[Array, "N K"], *, q_s: Share = 0.4, q_e: Share = 1.0) -> Float[Array, " N"]:
    """Mean of each range's scores between their quantiles `q_s` and `q_e`, at least one score.

    In ascending order, so `q_s` drops the lowest scores: those of points that are near no training point.
    Of K sorted scores, those at the positions floor(q_s K) to floor(q_e K), the latter excluded.
    """
    if q_s > q_e:
        raise ValueError(f"a trimmed mean needs q_s <= q_e, got {q_s} and {q_e}")
    count = scores.shape[1]
    first, last = (math.floor(q * count + 1e-9) for q in (q_s, q_e))  # 0.29 * 100 is 28.999…
    first = min(first, count - 1)
    last = max(last, first + 1)
    return np.sort(scores, axis=1)[:, first:last].mean(axis=1)


@AGGREGATIONS.register("log_mean_exp", label="log-mean-exp of sharpness {sharpness:g}")
def log_mean_exp(scores: Float[Array, "N K"], *, sharpness: Annotated[float, Gt(0)] = 1.0) -> Float[Array, " N"]:
    """log mean exp(b s) / b of each range's scores: between the mean (b -> 0) and the maximum (b -> infinity).

    b = `sharpness` / the standard deviation of all scores given, so that it suits attacks of any scale.
    """
    if not np.isfinite(scores).all():
        raise ValueError("log-mean-exp needs finite scores: take max or top_k with this attack")
    spread = scores.std()
    if spread == 0:
        return scores.mean(axis=1)
    b = sharpness / spread
    return (logsumexp(b * scores, axis=1) - np.log(scores.shape[1])) / b


@dataclass(frozen=True)
class Aggregation:
    """A registered way to aggregate, with its settings. Tuning and the attack call this same object."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, scores: Float[Array, "N K"]) -> Float[Array, " N"]:
        return AGGREGATIONS[self.name](scores, **self.settings)

    @property
    def label(self) -> str:
        """In words, with every setting: `mean of the top 2`."""
        written = " ".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])
        return AGGREGATIONS.fact(self.name, "label", written).format(**self.settings)


UNTUNED = Aggregation("trimmed_mean", {"q_s": 0.4, "q_e": 1.0})  # where nothing can be rehearsed


def grid(samples: int) -> list[Aggregation]:
    """What is tried when the aggregation is tuned over ranges of K = `samples`: mean, max, every kind between."""
    tops = sorted({k for k in (2, 3, 4, 5, 8, samples // 4, samples // 2, 3 * samples // 4) if 1 < k < samples})
    return [
        Aggregation("mean"),
        Aggregation("max"),
        *(Aggregation("top_k", {"k": k}) for k in tops),
        *(Aggregation("trimmed_mean", {"q_s": q_s, "q_e": 0.8}) for q_s in (0.0, 0.2, 0.4)),
        *(Aggregation("log_mean_exp", {"sharpness": sharpness}) for sharpness in (0.5, 1.0, 2.0)),
    ]
