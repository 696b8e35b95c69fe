"""RMIA: does x look more like a member than a random z? (Zarifzadeh et al. 2024, https://arxiv.org/abs/2312.03262)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval, MultipleOf
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal
from modules.mia.dominance import dominated, dominated_by_majority
from modules.mia.moments import masked_mean
from modules.mia.probability import probability_of
from modules.mia.ranks import share
from modules.mia.tuning import fitted_slope, rehearsed, unrehearsed_a

log = logging.getLogger(__name__)

GRID = tuple(step / 10 for step in range(11))  # of a, when it is tuned
VOTING_POPULATION = 1000  # z used while tuning with a vote of several queries, whose cost grows with N P Q


def signal_of(probability: str, temperature: float, margin: float, order: int) -> Signal:
    """The stored signal that a kind of probability is computed from. ValueError for an odd Taylor order."""
    if not probability.endswith("taylor"):
        return Signal(temperature=temperature)
    if order < 2 or order % 2:
        raise ValueError(
            f"order must be even and at least 2, got {order}: an odd truncation of the exponential is negative "
            "for very negative logits, so it yields no probability; use 4, or probability: softmax"
        )
    return Signal("taylor", temperature, margin if probability.startswith("soft_margin") else 0.0, order)


def signals(settings: Settings) -> tuple[Signal, ...]:
    """The signals that RMIA reads under these settings."""
    return (signal_of(*(settings[key] for key in ("probability", "temperature", "margin", "order"))),)


def shared(evidence: Evidence, settings: Settings) -> float:
    """`a`: as it is set, or tuned or fitted on these points."""
    if settings["a"] is not None:
        return settings["a"]
    (signal,) = signals(settings)
    names = ("mode", "gamma", "probability", "margin", "queries", "tie_break")
    options, chosen = _Options.of(*(settings[name] for name in names)), evidence.signal(signal)
    return fitted_a(_means(chosen, options)) if options.online else tuned_a(chosen, options)


@ATTACKS.register(
    "RMIA",
    needs_references=True,
    needs_in=lambda settings: settings["mode"] == "online",
    needs_population=True,
    signals=signals,
    shared=shared,
    min_pairs=1,
    summary="share of population points that x beats in a likelihood ratio against reference models",
    access="confidence",
    cost="one answer per record, query and model, and per population point",
    fails="records that every model fits well have p = 1 everywhere and cannot be told apart",
    source="Zarifzadeh et al. 2024, arXiv 2312.03262",
)
def rmia(
    evidence: Evidence,
    shared_a: float | None = None,
    *,
    mode: Literal["offline", "online"] = "offline",
    a: Annotated[float, Interval(ge=0, le=1)] | None = None,
    gamma: Annotated[float, Gt(0)] = 1.0,
    probability: Literal["softmax", "taylor", "soft_margin", "soft_margin_taylor"] = "softmax",
    temperature: Annotated[float, Gt(0)] = 1.0,
    margin: Annotated[float, Ge(0)] = 0.6,
    order: Annotated[int, Ge(2), MultipleOf(2)] = 4,
    queries: Literal["majority", "mean"] = "majority",
    tie_break: bool = True,
) -> Float[Array, " N"]:
    """Share of population points z with LR(x, z) = [p_x / Pr(x)] / [p_z / Pr(z)] >= gamma.

    p is the target's probability of the true label; Pr its mean over models that may have trained on the
    point or not. Of z, every reference is an OUT model, and z is treated as x is, in each mode:

    shared_a: the `a` of other points than these (`shared`).
    mode: "offline" assumes mean IN = a (mean OUT) + 1 - a, so Pr = ((1 + a) mean OUT + 1 - a) / 2, for x
        and z. "online" takes Pr(x) = (mean IN + mean OUT) / 2; z has no IN models, so its mean IN comes
        from the same line, with `a` fitted to the references' IN and OUT means of the audited points.
    a: None tunes it offline (`tuned_a`) or fits it online (`fitted_a`).
    gamma: how many times likelier x must be than z. With one query it moves only ties and the scale.
    probability: "soft_margin" subtracts `margin` from the true logit, "taylor" replaces exp by its Taylor
        polynomial of even `order`, at `temperature`. `margin` and `order` are unused elsewhere.
    queries: "majority" counts z beaten in more than half of the queries (a draw is not a win), as in the
        paper; "mean" averages the share over queries.
    tie_break: order points that beat equally many z by the mean log ratio of x; moves a score by at most
        1 / (P + 1), see `share`. Without it, all points above every z tie at 1 and TPR at low FPR collapses.
    """
    if not evidence.population.shape[1]:
        raise ValueError("RMIA compares with population points, and there are none: set audit.population_size")
    signal = signal_of(probability, temperature, margin, order)
    options = _Options.of(mode, gamma, probability, margin, queries, tie_break)
    chosen = evidence.signal(signal)
    means = _means(chosen, options)
    if shared_a is not None:
        a = shared_a
    elif a is None:
        a = fitted_a(means) if mode == "online" else tuned_a(chosen, options)
    return _score(means, a, options)


@dataclass(frozen=True)
class _Options:
    gamma: float = 1.0
    queries: str = "majority"
    tie_break: bool = True
    margin: float = 0.0  # subtracted from the log-odds: what a margin does to softmax
    online: bool = False

    @classmethod
    def of(cls, mode: str, gamma: float, probability: str, margin: float, queries: str, tie_break: bool) -> _Options:
        """From RMIA's settings."""
        return cls(gamma, queries, tie_break, margin if probability == "soft_margin" else 0.0, mode == "online")


@dataclass(frozen=True)
class _Means:
    """All that scoring needs and `a` does not change: probabilities of the target, and means over references."""

    x: Float[Array, "Q N"]
    x_in: Float[Array, "Q N"] | None
    x_out: Float[Array, "Q N"]
    z: Float[Array, "Q P"]
    z_out: Float[Array, "Q P"]


def _means(evidence: Evidence, options: _Options) -> _Means:
    def p(log_odds: np.ndarray) -> np.ndarray:
        return probability_of(log_odds - np.float64(options.margin))

    everywhere = np.ones((len(evidence.population_references), evidence.population.shape[1]), dtype=bool)
    return _Means(
        x=p(evidence.target),
        x_in=masked_mean(evidence.references, evidence.trained_on, p) if options.online else None,
        x_out=masked_mean(evidence.references, ~evidence.trained_on, p),
        z=p(evidence.population),
        z_out=masked_mean(evidence.population_references, everywhere, p),
    )


def _ratio(means: _Means, a: float) -> Float[Array, "Q N"]:
    return means.x / (_line(means.x_out, a) if means.x_in is None else (means.x_in + means.x_out) / 2)


def _ranked(means: _Means, a: float, options: _Options) -> Float[Array, " N"]:
    """What ranks points as `_score` does. Of one query with ties broken that is the ratio of x, whatever the z."""
    return _ratio(means, a)[0] if len(means.x) == 1 and options.tie_break else _score(means, a, options)


def _score(means: _Means, a: float, options: _Options) -> Float[Array, " N"]:
    x = _ratio(means, a)
    z = means.z / _line(means.z_out, a)
    if options.queries == "majority" and len(x) > 1:
        beaten, of = dominated_by_majority(x, z, options.gamma), z.shape[1]
    else:
        beaten, of = np.sum([dominated(*q, options.gamma) for q in zip(x, z, strict=True)], axis=0), z.size
    return share(beaten, of, by=np.log(x).mean(axis=0) if options.tie_break else None)


def _line(out: Float[Array, "Q n"], a: float) -> Float[Array, "Q n"]:
    """(mean IN + mean OUT) / 2, if mean IN = a (mean OUT) + 1 - a."""
    return ((1.0 + a) * out + (1.0 - a)) / 2.0


def tuned_a(evidence: Evidence, options: _Options = _Options()) -> float:
    """The `a` of 0, .1, ..., 1 with the best mean AUC over rehearsals, the smallest of equals.

    Rehearsals attack references by references, so neither the target nor its twin has a say. With fewer
    than two pairs there is nothing to rehearse: `unrehearsed_a` then.
    """
    if options.queries == "majority" and len(evidence.target) > 1:
        evidence = _thinned(evidence, VOTING_POPULATION)
    best = rehearsed(
        evidence,
        GRID,
        prepare=lambda rehearsal: _means(rehearsal, options),
        score=lambda means, a: _ranked(means, a, options),
    )
    if best is None:
        return unrehearsed_a("RMIA", evidence, lambda log_odds: probability_of(log_odds - np.float64(options.margin)))
    log.info("RMIA: a = %s, tuned on rehearsals", best)
    return best


def fitted_a(means: _Means) -> float:
    """The slope between the IN and OUT means of x."""
    assert means.x_in is not None
    return fitted_slope(means.x_in, means.x_out)


def _thinned(evidence: Evidence, most: int) -> Evidence:
    """The evidence with at most `most` population points, evenly spread."""
    population = evidence.population.shape[1]
    kept = np.unique(np.linspace(0, population - 1, min(most, population)).round().astype(int))
    return replace(
        evidence,
        population=evidence.population[:, kept],
        population_references=evidence.population_references[:, :, kept],
        also={},
    )
