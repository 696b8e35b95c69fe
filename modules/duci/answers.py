"""Estimates beside the truth: what each method answered about a target, and how far off it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modules.duci.transport import Drift, drift
from modules.duci.usage import Usage

METHODS = {"duci": "DUCI", "direct": "Direct aggregation", "score": "Mean score", "mle": "MLE on average logits"}


@dataclass(frozen=True)
class Answer:
    """One target and one part of the dataset: the estimates, and the truth."""

    model: str
    part: str
    proportion: float  # that a synthetic target was asked to use; NaN for a target of the run
    trial: int
    records: int
    truth: float  # the share of the records that it did train on
    usage: Usage
    direct: float
    score: float
    mle: float
    tpr: float  # of the guesses about this target; NaN where it used none
    fpr: float  # NaN where it used all

    def error(self, method: str) -> float:
        """Estimate minus truth, of the value that may leave [0, 1]: cutting it would hide noise at the ends."""
        return (self.usage.raw if method == "duci" else getattr(self, method)) - self.truth

    @property
    def covered(self) -> bool:
        return self.usage.low <= self.truth <= self.usage.high

    @property
    def covered_by_paper(self) -> bool:
        return self.usage.paper.low <= self.truth <= self.usage.paper.high

    def row(self) -> dict[str, str | int | float]:
        """A line of usage.csv."""
        u = self.usage
        return {
            "model": self.model,
            "part": self.part,
            "records": self.records,
            "proportion": self.proportion,
            "trial": self.trial,
            "truth": self.truth,
            "estimate": u.clipped.value,
            "low": u.clipped.low,
            "high": u.clipped.high,
            "raw": u.raw,
            "raw_low": u.low,
            "raw_high": u.high,
            "paper_low": u.paper.low,
            "paper_high": u.paper.high,
            "direct_aggregation": self.direct,
            "mean_score": self.score,
            "mle_average_logit": self.mle,
            "target_tpr": self.tpr,
            "target_fpr": self.fpr,
            "rehearsal_tpr": u.tpr,
            "rehearsal_fpr": u.fpr,
            "advantage_low": u.advantage.low,
            "groups": u.groups,
            "refused": u.refused,
        }


@dataclass(frozen=True)
class MethodError:
    """Absolute errors of one method over synthetic targets."""

    method: str
    largest: float  # over proportions, of the means over trials: the paper's figure
    at: float  # the proportion it is found at
    mean: float
    worst: float  # of any single model


def method_errors(answers: Sequence[Answer]) -> list[MethodError]:
    """Of each method that has a value for every target; DUCI first."""
    found = []
    proportion = np.array([a.proportion for a in answers])
    for method, name in METHODS.items():
        errors = np.array([abs(a.error(method)) for a in answers])
        if not len(errors) or np.isnan(errors).any():
            continue
        of_p = {float(p): float(errors[proportion == p].mean()) for p in np.unique(proportion)}
        at = max(of_p, key=of_p.__getitem__)
        found.append(MethodError(name, of_p[at], at, float(errors.mean()), float(errors.max())))
    return found


def drifts(answers: Sequence[Answer], level: float) -> list[Drift]:
    """By proportion, whether rates measured at one half hold there; at `level` over all proportions together."""
    proportions = sorted({a.proportion for a in answers})
    by_p = [[a for a in answers if a.proportion == p] for p in proportions]
    return [
        drift(p, [a.usage for a in of_p], [a.truth for a in of_p], level=level, looks=len(proportions))
        for p, of_p in zip(proportions, by_p, strict=True)
    ]


def means(answers: Sequence[Answer]) -> dict[str, float]:
    """Over these targets, of everything there is; NaN where no target has a value."""

    def mean(values: list[float]) -> float:
        known = [v for v in values if not math.isnan(v)]
        return float(np.mean(known)) if known else math.nan

    keys = ("truth", "direct", "score", "mle", "tpr", "fpr")
    return {key: mean([getattr(a, key) for a in answers]) for key in keys} | {
        "raw": mean([a.usage.raw for a in answers])
    }
