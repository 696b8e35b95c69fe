"""InfoRMIA: how many nats did the target learn about x, of a sequence or token by token? (Tao & Shokri 2025, https://arxiv.org/abs/2510.05582)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Interval, Le
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal
from modules.mia.moments import masked_mean
from modules.mia.probability import probability_of
from modules.mia.tokens import DIVERGENCE, LOG_P, mean_where, of_tokens, out_probability, smallest, text_of
from modules.mia.tuning import rehearsed, unrehearsed_a

log = logging.getLogger(__name__)

GRID = tuple(step / 10 for step in range(11))


def shared(evidence: Evidence, settings: Settings) -> tuple[float, float]:
    """What all points share: `a`, and the divergence over the population."""
    if not evidence.population.shape[1]:
        raise ValueError("InfoRMIA compares with population points, and there are none: set audit.population_size")
    chosen, a = evidence.signal(Signal(temperature=settings["temperature"])), settings["a"]
    if settings["mode"] == "online":
        a = 1.0
    elif a is None:
        a = _tuned_a(chosen)
    everyone = np.ones((len(chosen.population_references), chosen.population.shape[1]), dtype=bool)
    typical = masked_mean(chosen.population_references, everyone, probability_of)
    return a, _divergence(_line(typical, a), probability_of(chosen.population))


@ATTACKS.register(
    "InfoRMIA",
    needs_references=True,
    needs_population=True,
    needs_in=lambda settings: settings["mode"] == "online",
    signals=lambda settings: (Signal(temperature=settings["temperature"]),),
    min_pairs=1,
    shared=shared,
    summary="log ratio of the target's probability to the references', aligned across targets by a divergence",
    access="confidence",
    cost="one answer per record, query and model, and per population point",
    fails="as RMIA: records that every model fits well cannot be told apart",
    source="Tao & Shokri 2025, arXiv 2510.05582",
)
def info_rmia(
    evidence: Evidence,
    of_all: tuple[float, float] | None = None,
    *,
    mode: Literal["offline", "online"] = "offline",
    a: Annotated[float, Interval(ge=0, le=1)] | None = None,
    temperature: Annotated[float, Gt(0)] = 1.0,
) -> Float[Array, " N"]:
    """log[p_x / Pr(x)] + KL(Pr(z) || p_z) over the population z, each normalised over it; mean over queries.

    The divergence is one number a target: it aligns the scores of several targets, and changes no ROC of one. The
    score is continuous, so unlike RMIA's share of z it has no ties at the top.

    mode: of Pr(x), as in RMIA: "offline" is ((1 + a) mean OUT + 1 - a) / 2; "online" (mean IN + mean OUT) / 2.
    a: None tunes it on rehearsals; where nothing can be rehearsed it is that of the references' IN and OUT means.
    temperature: of the softmax that gives the probabilities.
    of_all: `a` and the divergence, where they are those of other points than these (`shared`).
    """
    ratios = _Ratios.of(evidence.signal(Signal(temperature=temperature)), mode == "online")
    used, divergence = of_all or shared(evidence, {"mode": mode, "a": a, "temperature": temperature})
    return ratios.log(used) + divergence


@dataclass(frozen=True)
class _Ratios:
    """What the log ratio needs and `a` does not change."""

    x: Float[Array, "Q N"]
    out: Float[Array, "Q N"]
    inside: Float[Array, "Q N"] | None  # online

    @classmethod
    def of(cls, evidence: Evidence, online: bool) -> _Ratios:
        out = masked_mean(evidence.references, ~evidence.trained_on, probability_of)
        inside = masked_mean(evidence.references, evidence.trained_on, probability_of) if online else None
        return cls(probability_of(evidence.target), out, inside)

    def log(self, a: float) -> Float[Array, " N"]:
        """log p_x - log Pr(x), mean over queries."""
        typical = _line(self.out, a) if self.inside is None else (self.inside + self.out) / 2
        return (np.log(self.x) - np.log(typical)).mean(axis=0)


def _tuned_a(evidence: Evidence) -> float:
    a = rehearsed(evidence, GRID, prepare=lambda e: _Ratios.of(e, False), score=lambda ratios, a: ratios.log(a))
    if a is None:
        return unrehearsed_a("InfoRMIA", evidence, probability_of)
    log.info("InfoRMIA: a = %s, tuned on rehearsals", a)
    return a


def _line(out: Float[Array, "Q n"], a: float) -> Float[Array, "Q n"]:
    return ((1.0 + a) * out + (1.0 - a)) / 2.0


def _divergence(p: Float[Array, "Q P"], q: Float[Array, "Q P"]) -> float:
    """KL(p || q) of probabilities normalised over the population, mean over queries."""
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    return float((p * np.log(p / q)).sum(axis=1).mean())


@ATTACKS.register(
    "TokenInfoRMIA",
    needs_text=True,
    shared=None,
    needs_references=True,
    needs_population=False,
    signals=lambda settings: (LOG_P, DIVERGENCE),
    min_pairs=1,
    summary="log ratio to the references of each token, aligned by the divergence of the next-token distributions",
    access="tokens",
    cost="one pass per text and model, the target side by side with its OUT references",
    fails="references of another tokenizer or of another base have nothing to compare with",
    source="Tao & Shokri 2025, arXiv 2510.05582",
)
def token_info_rmia(
    evidence: Evidence, *, aggregate: Literal["mean", "min_k"] = "mean", k: Annotated[float, Gt(0), Le(1)] = 0.2
) -> Float[Array, " N"]:
    """Mean over a record's tokens of `token_scores`, or over the share k of them with the smallest.

    Costs a pass of the target and its references side by side, because a divergence needs whole distributions.
    """
    text, scores = text_of(evidence), token_scores(evidence)
    every = np.ones(len(scores), dtype=bool)
    return mean_where(text, scores, smallest(scores, text.start, k) if aggregate == "min_k" else every)


def token_scores(evidence: Evidence) -> Float[Array, " U"]:
    """log p(x_t) - log p_ref(x_t) + KL(p_ref || p) of each token, p_ref the mean of its OUT references.

    The population of a token is the vocabulary, so the divergence is over all of it (the paper leaves out x_t).
    """
    typical = np.maximum(out_probability(evidence), np.finfo(float).tiny)
    return of_tokens(evidence, LOG_P) - np.log(typical) + of_tokens(evidence, DIVERGENCE)
