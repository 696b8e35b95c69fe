"""Signals that were brought along, in the place of models that could be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from core.errors import UserError
from core.types import LOG_ODDS, Signal

if TYPE_CHECKING:
    from audit.given_ranges import GivenRanges


# Kinds of signals that need more than answers about the records, and what that is.
ASKS = {
    "robust_label": "the models, to ask about altered records",
    "boundary": "the models, to ask about altered records",
    "trace": "what is recorded while the models are trained",
    "distilled": "the models, to ask about the population and to distil",
    "quantiles": "the records themselves, to learn how hard they are",
}


@dataclass(frozen=True)
class Answers:
    """What every model said of every record of a set: log-odds of the true label, and whole answers if known."""

    log_odds: Float[Array, "M Q n"]
    logits: Float[Array, "M Q n C"] | None = None
    labels: Int[Array, " n"] | None = None  # with logits

    def column(self, signal: Signal, model: int) -> Float[Array, "Q n"]:
        """One model's answers in one signal. UserError where it does not follow from what is known."""
        if signal == LOG_ODDS or not self.log_odds.shape[2]:  # about no records there is nothing to know
            return self.log_odds[model]
        if self.logits is None or self.labels is None:
            raise UserError(f"the signal {signal.name} does not follow from log-odds: it needs logits and labels")
        if signal.kind == "label":
            return (self.logits[model].argmax(axis=-1) == self.labels).astype(np.float32)
        import torch

        from trainers.evaluate import signal_columns

        of_queries = torch.tensor(self.logits[model])
        labels = torch.tensor(self.labels)
        return np.stack([signal_columns(z, labels, [signal])[0].numpy() for z in of_queries])


@dataclass(frozen=True)
class Given:
    """All that was given."""

    pool: Answers
    population: Answers
    models: tuple[Mapping[str, Any], ...]  # of each model, what is known of it: rows of the report
    labels_known: bool
    about: Mapping[str, str] = field(default_factory=dict)  # what the report says about where all this is from
    notes: tuple[str, ...] = ()  # what was assumed on reading it: warnings of the report
    ranges: GivenRanges | None = None  # samples of ranges, for RaMIA

    def answers(self, where: str) -> Answers:
        return self.pool if where == "points" else self.population

    def has(self, signal: Signal) -> bool:
        return signal == LOG_ODDS or (self.pool.logits is not None and signal.kind not in ASKS)
