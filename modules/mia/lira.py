"""LiRA: a likelihood-ratio test per record (Carlini et al. 2022, https://arxiv.org/abs/2112.03570)."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings
from modules.mia.moments import Moments, moments

log = logging.getLogger(__name__)

MANY = 64  # reference models, IN and OUT together, from which "auto" trusts a record's own variance (Sec. VI)
FLOOR = 1e-2  # least standard deviation of a record, as a fraction of the pooled one


def shared(evidence: Evidence, settings: Settings) -> tuple[Float[Array, " Q"], ...]:
    """The pooled variances: OUT of an offline attack, IN and OUT of an online one."""
    return _pooled(_sides(evidence, settings["mode"]))


@ATTACKS.register(
    "LiRA",
    needs_references=True,
    needs_in=lambda settings: settings["mode"] == "online",
    needs_population=False,
    shared=shared,
    min_pairs=1,
    summary="likelihood ratio per record: was the target's fit drawn from the IN or the OUT models?",
    access="confidence",
    cost="one answer per record, query and model",
    fails="with few references the means are noise, and online suffers twice; references by another recipe mislead it",
    source="Carlini et al. 2022, arXiv 2112.03570, Alg. 1, eq. 4, Sec. VI",
)
def lira(
    evidence: Evidence,
    pooled: tuple[Float[Array, " Q"], ...] | None = None,
    *,
    mode: Literal["online", "offline"] = "online",
    variance: Literal["auto", "global", "per_record"] = "auto",
) -> Float[Array, " N"]:
    """How much better "it was trained on" explains the target's log-odds of each record than "it was not".

    A Gaussian is fitted to the log-odds of each record and query over the references that trained on it
    (IN), another over those that did not (OUT). Queries count as independent: their log ratios are averaged.

    pooled: the variances pooled over records, where they are those of other points than these (`shared`).
    mode: "online" is log N(target; IN) - log N(target; OUT) (Alg. 1). "offline" uses OUT models only, one-sided:
        the z-score (target - mean OUT) / std OUT; Phi of it is the paper's score (eq. 4), which saturates.
    variance: "per_record"; "global" pools the within-record variance over records, IN and OUT apart; "auto"
        is global below 64 references in all, per record from there on.

    A record's own standard deviation is at least 1% of the pooled one, and the pooled one where a single model is
    on its side. A side with one model per record has no pooled variance: it takes the other side's, and if both
    have one model, both variances are 1, which ranks by the means.
    """
    sides = _sides(evidence, mode)
    pooled = _pooled(sides) if pooled is None else pooled
    own = variance == "per_record" or (variance == "auto" and len(evidence.references) >= MANY)
    of_sides = [(side.mean, _variance(side, of, own)) for side, of in zip(sides, pooled, strict=True)]
    if mode == "offline":
        return z_score(evidence.target, *of_sides[0]).mean(axis=0)
    return log_ratio(evidence.target, *of_sides[0], *of_sides[1]).mean(axis=0)


def _sides(evidence: Evidence, mode: str) -> tuple[Moments, ...]:
    """IN, of an online attack, and OUT."""
    out = moments(evidence.references, ~evidence.trained_on)
    return (out,) if mode == "offline" else (moments(evidence.references, evidence.trained_on), out)


def _pooled(sides: tuple[Moments, ...]) -> tuple[Float[Array, " Q"], ...]:
    return known(*(side.pooled_variance() for side in sides))


def known(*pooled: Float[Array, " Q"]) -> tuple[Float[Array, " Q"], ...]:
    """The pooled variances, each unknown one (0) replaced by that of the other side, or else by 1."""
    fallback = np.maximum.reduce(pooled)
    if not fallback.all():
        log.info("LiRA: no variance between models can be seen; all are taken as 1, which ranks by the means")
    fallback = np.where(fallback > 0, fallback, 1.0)
    return tuple(np.where(side > 0, side, fallback) for side in pooled)


def floored(squares: np.ndarray, freedom: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Each record's own variance, `squares / freedom`, not below the floor; the pooled one without freedom."""
    own = np.divide(squares, freedom, out=np.zeros_like(squares), where=freedom > 0)
    return np.where(freedom > 0, np.maximum(own, FLOOR**2 * pooled), pooled)


def _variance(side: Moments, pooled: Float[Array, " Q"], own: bool) -> Float[Array, "Q _"]:
    if not own:
        return pooled[:, None]
    return floored(side.squares, np.broadcast_to(side.count - 1, side.squares.shape), pooled[:, None])


def z_score(value: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Standard deviations above the mean."""
    return (value - mean) / np.sqrt(variance)


def log_ratio(
    value: np.ndarray, in_mean: np.ndarray, in_variance: np.ndarray, out_mean: np.ndarray, out_variance: np.ndarray
) -> np.ndarray:
    """log N(value; IN) - log N(value; OUT)."""
    inside = np.square(value - in_mean) / in_variance + np.log(in_variance)
    return 0.5 * (np.square(value - out_mean) / out_variance + np.log(out_variance) - inside)
