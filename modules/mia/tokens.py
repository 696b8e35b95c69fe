"""What the attacks on language models share: log-likelihoods of records, references of tokens, the tokens they read."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from core.types import Evidence, Signal, Text
from modules.mia.moments import masked_mean

LOG_P = Signal("token_log_p")
MEAN = Signal("token_mean")
VARIANCE = Signal("token_variance")
RANK = Signal("token_rank")
DIVERGENCE = Signal("token_divergence")


def text_of(evidence: Evidence) -> Text:
    """Which token is of which record. ValueError where the audited model is none of language."""
    if evidence.text is None:
        raise ValueError("this attack reads tokens: it needs a text dataset and a language model")
    return evidence.text


def of_tokens(evidence: Evidence, signal: Signal) -> Float[Array, " U"]:
    """The target's signal of each token, mean over queries, in float64."""
    return evidence.signal(signal).target.mean(axis=0, dtype=np.float64)


def mean_log_p(log_odds: Float[Array, "Q N"]) -> Float[Array, " N"]:
    """The mean token log-likelihood of each record, from its log-odds; below 0. Mean over queries."""
    return np.minimum(-np.logaddexp(0.0, -log_odds.astype(np.float64)), -np.finfo(float).tiny).mean(axis=0)


def out_log_p(evidence: Evidence) -> Float[Array, " U"]:
    """Mean log-probability of each token over its record's OUT references."""
    chosen = evidence.signal(LOG_P)
    return masked_mean(chosen.references, ~chosen.trained_on).mean(axis=0)


def out_probability(evidence: Evidence) -> Float[Array, " U"]:
    """Mean probability of each token over its record's OUT references."""
    chosen = evidence.signal(LOG_P)
    return masked_mean(chosen.references, ~chosen.trained_on, lambda row: np.exp(row.astype(np.float64))).mean(axis=0)


def smallest(values: Float[Array, " U"], start: Int[Array, " N_and_1"], share: float) -> Bool[Array, " U"]:
    """Which tokens are among the `share` of their record with the smallest values; at least one of each record."""
    lengths = np.diff(start)
    record = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((values, record))
    keep = np.arange(len(values)) - start[:-1][record] < np.maximum((share * lengths).astype(int), 1)[record]
    chosen = np.zeros(len(values), dtype=bool)
    chosen[order[keep]] = True
    return chosen


def mean_where(text: Text, values: Float[Array, " U"], chosen: Bool[Array, " U"]) -> Float[Array, " N"]:
    """The mean of each record's chosen tokens; 0 where none is."""
    where = chosen.astype(np.float64)
    count = np.add.reduceat(where, text.start[:-1])
    return np.add.reduceat(np.where(chosen, values, 0.0), text.start[:-1]) / np.maximum(count, 1.0)
