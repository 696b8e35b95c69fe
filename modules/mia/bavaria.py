"""BaVarIA: LiRA with a prior on each record's mean and variance (Brännvall 2026, https://arxiv.org/abs/2603.11799).

Only the paper's abstract was at hand: normal-inverse-gamma priors, and a Student-t (-t) or Gaussian (-n)
predictive. The formulas here are derived from that, with a prior fitted by moments; the paper's prior may differ.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings
from modules.mia.moments import Moments, moments

log = logging.getLogger(__name__)

MOST = 1e4  # largest shape a0 and strength k0 of a prior: records that differ less than this says are alike
LEAST = 1e-4  # smallest strength k0


def shared(evidence: Evidence, settings: Settings) -> tuple[Prior, ...]:
    """The priors: of OUT models, and in an online attack of IN models."""
    return _priors(*_sides(evidence, settings["mode"]))


@ATTACKS.register(
    "BaVarIA",
    needs_references=True,
    needs_in=lambda settings: settings["mode"] == "online",
    needs_population=False,
    shared=shared,
    min_pairs=1,
    summary="likelihood ratio per record, with means and variances shrunk towards those of all records",
    access="confidence",
    cost="one answer per record, query and model",
    fails="the prior pulls rare, unusual records towards the crowd when references are few",
    source="Brännvall 2026, arXiv 2603.11799 (from its abstract)",
)
def bavaria(
    evidence: Evidence,
    priors: tuple[Prior, ...] | None = None,
    *,
    mode: Literal["online", "offline"] = "online",
    predictive: Literal["t", "n"] = "t",
) -> Float[Array, " N"]:
    """log predictive(target | IN) - log predictive(target | OUT), mean over queries.

    On each side the log-odds of a record are N(mu, s2) over models, s2 ~ IG(a0, b0), mu ~ N(m0, s2 / k0),
    with m0, k0, a0 (at least 1) and b0 fitted to all records (empirical Bayes, per query). After n models:

        k = k0 + n, m = (k0 m0 + n mean) / k, a = a0 + n / 2,
        b = b0 + squares / 2 + k0 n (mean - m0)^2 / (2 k)

    and the next model's log-odds are Student-t with 2a degrees of freedom, location m, scale^2 = b (k + 1) / (a k).
    How far a record is trusted follows from the records, so there is no switch at 64 models as LiRA has.

    priors: where they are those of other points than these (`shared`).
    mode: "offline" scores (target - m) / scale of the OUT side, one-sided.
    predictive: "t", or "n" for the Gaussian of the same mean and variance.
    """
    out, inside = _sides(evidence, mode)
    priors = _priors(out, inside) if priors is None else priors
    log_out, z_out = _predict(evidence.target, out, priors[0], predictive)
    if inside is None:
        return z_out.mean(axis=0)
    log_in, _ = _predict(evidence.target, inside, priors[1], predictive)
    return (log_in - log_out).mean(axis=0)


def _sides(evidence: Evidence, mode: str) -> tuple[Moments, Moments | None]:
    out = moments(evidence.references, ~evidence.trained_on)
    return out, moments(evidence.references, evidence.trained_on) if mode == "online" else None


def _priors(out: Moments, inside: Moments | None) -> tuple[Prior, ...]:
    within_in, within_out = _within(inside, out)
    return (_fit(out, within_out), *((_fit(inside, within_in),) if inside is not None else ()))


@dataclass(frozen=True)
class Prior:
    """Normal-inverse-gamma: of each query, s2 ~ IG(a, b) and mu ~ N(m, s2 / k)."""

    m: Float[Array, "Q 1"]
    k: Float[Array, "Q 1"]
    a: Float[Array, "Q 1"]
    b: Float[Array, "Q 1"]


def _within(inside: Moments | None, out: Moments) -> tuple[Float[Array, " Q"], Float[Array, " Q"]]:
    """Mean variance within a record, IN and OUT; from the means alone where each record has one model a side."""
    sides = [side for side in (inside, out) if side is not None]
    pooled = np.stack([side.pooled_variance() for side in sides])
    if inside is not None:
        # A record's difficulty cancels in the difference of its means, which then varies by both sides' noise.
        noise = (1 / inside.count + 1 / out.count).mean()
        guess = (inside.mean - out.mean).var(axis=-1) / noise
    else:
        guess = out.mean.var(axis=-1) / 2  # as if records differed as much as the models of one record do
    if not pooled.any():
        log.info("BaVarIA: one model a side: the variance within records is inferred from the means")
    guess = np.where(guess > 0, guess, 1.0)
    shown = np.where(pooled.max(axis=0) > 0, pooled.max(axis=0), guess)
    filled = np.where(pooled > 0, pooled, shown)
    return filled[0], filled[-1]


def _fit(side: Moments, within: Float[Array, " Q"]) -> Prior:
    """The prior under which the records' means and variances have the moments they have.

    Shape and scale come from the mean and variance of log s2, as in Smyth (2004): s2 itself may have no variance.
    """
    from scipy.special import digamma, polygamma  # slow to import

    freedom = side.count - 1
    seen = (freedom > 0) & (side.squares > 0).all(axis=0)
    if seen.any():
        half = freedom[seen] / 2
        log_s2 = np.log(side.squares[:, seen] / 2) - digamma(half)  # unbiased for log s2
        a = np.maximum(_inverse_trigamma(log_s2.var(axis=-1) - polygamma(1, half).mean()), 1.0)
        b = np.exp(log_s2.mean(axis=-1) + digamma(a))
        variance = (b[:, None] + side.squares[:, seen] / 2) / (a[:, None] + half - 1)  # of each record, given squares
    else:
        seen = slice(None)
        a = np.full(len(within), MOST)
        b = within * (a - 1)
        variance = np.broadcast_to(within[:, None], side.mean.shape)
    mean = side.mean[:, seen]
    m = np.average(mean, axis=-1, weights=1 / variance)
    between = (np.square(mean - m[:, None]) / variance).mean(axis=-1) - (1 / side.count[seen]).mean()
    k = 1 / np.clip(between, 1 / MOST, 1 / LEAST)
    return Prior(m[:, None], k[:, None], a[:, None], b[:, None])


def _inverse_trigamma(x: Float[Array, " Q"]) -> Float[Array, " Q"]:
    """y with trigamma(y) = x, for y up to MOST. Newton's method on 1 / trigamma, which is convex (Smyth 2004)."""
    from scipy.special import polygamma

    x = np.maximum(x, 1 / MOST)
    y = 0.5 + 1 / x
    for _ in range(30):
        value = polygamma(1, y)
        y = y + value * (1 - value / x) / polygamma(2, y)
    return y


def _predict(
    value: Float[Array, "Q N"], side: Moments, prior: Prior, predictive: str
) -> tuple[Float[Array, "Q N"], Float[Array, "Q N"]]:
    """Log density of `value` under the posterior predictive of each record, and its z-score."""
    from scipy.special import gammaln

    n = side.count
    k, a = prior.k + n, prior.a + n / 2
    m = (prior.k * prior.m + n * side.mean) / k
    b = prior.b + side.squares / 2 + prior.k * n * np.square(side.mean - prior.m) / (2 * k)
    if predictive == "n":
        variance = b * (k + 1) / ((a - 1) * k)
        z = (value - m) / np.sqrt(variance)
        return -0.5 * (np.square(z) + np.log(2 * np.pi * variance)), z
    variance = b * (k + 1) / (a * k)
    z = (value - m) / np.sqrt(variance)
    constant = gammaln(a + 0.5) - gammaln(a) - 0.5 * np.log(2 * np.pi * a * variance)
    return constant - (a + 0.5) * np.log1p(np.square(z) / (2 * a)), z
