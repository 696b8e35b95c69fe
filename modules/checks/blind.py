"""The blind baseline: can members be told from non-members without the model? Then an attack may do no more.

Post-hoc benchmarks differ in dates, topics or lengths of members and non-members, and a bag of words beats the
attacks on them (Das et al. 2024, https://arxiv.org/abs/2406.16201; Meeus et al. 2024, https://arxiv.org/abs/2406.17975).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from core.types import Estimate

FOLDS = 5
FEWEST = 20  # members, and non-members: with fewer, a fold has too few of a kind to learn or to judge


@dataclass(frozen=True)
class Blind:
    """What a classifier that saw the records, and never the model, makes of the memberships."""

    of: str  # what it looked at: "bag of words", "lengths, dates and numbers", "features", "pixels"
    auc: Estimate  # its interval allows for the number of such classifiers that were tried
    records: int = 0  # how many it looked at, where that was not all of them
    by_lot: bool = False  # this tool drew the memberships by lot, so there is nothing but chance to find

    @property
    def tells(self) -> bool:
        return self.auc.low > 0.5

    def explains(self, attack: Estimate) -> bool:
        """Whether an attack of this AUC does no better than the baseline, as far as their intervals tell."""
        return self.tells and attack.low <= self.auc.high

    def in_words(self, name: str, attack: Estimate) -> str:
        """What it means for an attack of this name and AUC."""
        found = f"{self.auc.value:.3f} ({self.auc.low:.3f} to {self.auc.high:.3f})"
        records = f"{self.records:,} of the records" if self.records else "the records"
        seen = f"A classifier that saw only the {self.of} of {records}, never the model, reaches an AUC of {found}"
        if self.tells and self.by_lot:
            return (
                f"{seen}, although memberships were drawn by lot: chance, in fewer than one audit in a hundred, or "
                "records that are tied together (duplicates). See whether it stays with another run.random_seed."
            )
        if not self.tells:
            return f"{seen}: not measurably better than guessing, so it does not explain what {name} finds."
        if self.explains(attack):
            return (
                f"{seen}. {name} does no better, with {attack.value:.3f}: the blind baseline explains the result, "
                "which says nothing about the model. Members and non-members differ by themselves; compare records "
                "of one source, drawn by lot."
            )
        return (
            f"{seen}: members and non-members differ by themselves. {name} reaches {attack.value:.3f}, more than "
            "that; only what is beyond the baseline can be the model's."
        )


def stratified_folds(member: Bool[Array, " N"], draw: np.random.Generator, folds: int = FOLDS) -> Int[Array, " N"]:
    """A fold for each record, by lot, with equally many members in each (or one more), and non-members alike."""
    fold = np.empty(len(member), dtype=np.int64)
    for kind in (member, ~member):
        fold[kind] = draw.permutation(np.arange(kind.sum()) % folds)
    return fold


YEAR = re.compile(r"\b(?:19|20)\d\d\b")
DATE = re.compile(
    r"\b\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.? \d{1,4}\b",
    re.I,
)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WORD = re.compile(r"[^\W\d_]+")
LINK = re.compile(r"https?://|www\.|\S+@\S+\.\w+")


SURFACE = 16  # numbers that `surface` counts


def surface(texts: Sequence[str]) -> Float[Array, "N F"]:
    """What is countable about texts without reading them: lengths, numbers, years, dates, kinds of letters."""
    return np.array([_surface(text) for text in texts], dtype=np.float64).reshape(len(texts), SURFACE)


def _surface(text: str) -> list[float]:
    letters, words = max(len(text), 1), WORD.findall(text)
    years = [int(year) for year in YEAR.findall(text)]
    share = lambda kind: sum(map(kind, text)) / letters  # noqa: E731
    return [
        len(text),
        len(words),
        text.count("\n"),
        sum(map(len, words)) / max(len(words), 1),
        len(set(map(str.casefold, words))) / max(len(words), 1),
        share(str.isdigit),
        share(str.isupper),
        share(str.isspace),
        share(lambda c: not c.isalnum() and not c.isspace()),
        share(lambda c: ord(c) > 127),
        len(NUMBER.findall(text)),
        len(DATE.findall(text)),
        len(LINK.findall(text)),
        len(years),
        max(years, default=0),
        min(years, default=0),
    ]
