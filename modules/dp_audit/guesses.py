"""Which memberships are guessed, and how that choice is kept from over-claiming.

The auditor guesses "member" for the k_plus canaries with the highest scores, "not a member" for the k_minus with
the lowest, and abstains on the rest. Fixed from the number of canaries alone, k_plus and k_minus cost nothing.
Picked after seeing which guesses were right, they over-claim in a third to a half of all audits at a nominal 5%.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array
from scipy.special import expit, ndtri

from modules.dp_audit.one_run import pure_epsilon

Pair = tuple[int, int]  # (k_plus, k_minus)
Ties = Literal["random", "worst"]


@dataclass(frozen=True)
class Fixed:
    """So many guesses, said before looking. Omitted: `default_k` of the number of canaries."""

    k_plus: int | None = None
    k_minus: int | None = None

    def pair(self, m: int) -> Pair:
        plus = default_k(m) if self.k_plus is None else self.k_plus
        minus = default_k(m) if self.k_minus is None else self.k_minus
        return checked_pair((plus, minus), m)


@dataclass(frozen=True)
class Split:
    """Choose on a random `fraction` of the canaries, count on the others, which are then the m of the bound."""

    fraction: float = 0.5


@dataclass(frozen=True)
class MultiSplit:
    """The median over random splits, each at half the error (Meinshausen, Meier & Bühlmann 2009, at the median).

    Valid because at least half of the splits would have to err at once: by Markov, twice as likely as one.
    """

    fraction: float = 0.5
    splits: int = 21


@dataclass(frozen=True)
class Bonferroni:
    """The best of a grid of pairs, each at its share of the error. Omitted: `log_spaced` pairs of m alone."""

    grid: tuple[Pair, ...] | None = None

    def pairs(self, m: int) -> tuple[Pair, ...]:
        return tuple(checked_pair(pair, m) for pair in self.grid) if self.grid else log_spaced(m, 8)


@dataclass(frozen=True)
class Calibrated:
    """The best of nested pairs, at a level that accounts for all of them exactly: see `calibrated`."""

    grid: tuple[Pair, ...] | None = None

    def pairs(self, m: int) -> tuple[Pair, ...]:
        pairs = tuple(checked_pair(pair, m) for pair in self.grid) if self.grid else log_spaced(m, 12)
        if any(a > c or b > d or (a, b) == (c, d) for (a, b), (c, d) in pairwise(pairs)):
            raise ValueError("calibrated pairs are nested: each adds guesses to the one before it")
        return pairs


@dataclass(frozen=True)
class StepWise:
    """Pairs in order, each with the ε up to which it is responsible, all at the full level: see `stepwise`.

    Omitted: `stepwise.default_steps`, which begin with the pair of `Fixed`. The last pair's ε is infinity.
    """

    steps: tuple[tuple[Pair, float], ...] | None = None

    def __post_init__(self) -> None:
        tops = [top for _, top in self.steps or (((1, 1), np.inf),)]
        if tops != sorted(tops) or tops[-1] != np.inf:
            raise ValueError(f"step-wise ranges of epsilon rise, and the last one ends at infinity, got {tops}")


Choice = Fixed | Split | MultiSplit | Bonferroni | Calibrated | StepWise


def default_k(m: int) -> int:
    """Guesses on each side when only m is known: 2 √m, at most half.

    The expected bound of the Gaussian mechanism with μ = 0.5, 1 or 2 is within a few percent of its best k there,
    for m from 200 to 50,000.
    """
    return min(m // 2, int(np.ceil(2 * np.sqrt(m))))


def log_spaced(m: int, count: int) -> tuple[Pair, ...]:
    """Up to `count` symmetric pairs, evenly spaced in log from √m / 2 to m / 2 guesses on each side."""
    ks = np.geomspace(max(1.0, np.sqrt(m) / 2), max(1.0, m // 2), count).round().astype(int)
    return tuple((int(k), int(k)) for k in np.unique(np.minimum(ks, m // 2)))


def checked_pair(pair: Pair, m: int) -> Pair:
    plus, minus = pair
    if plus < 0 or minus < 0 or not 1 <= plus + minus <= m:
        raise ValueError(f"k_plus = {plus} and k_minus = {minus} are not between 1 and {m} guesses, one a canary")
    return pair


# --- counting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """Right guesses by their number: top[k] members among the k highest, bottom[k] non-members among the k lowest."""

    top: Int[Array, " k"]
    bottom: Int[Array, " k"]

    @property
    def m(self) -> int:
        return len(self.top) - 1

    def right(self, pair: Pair) -> int:
        """How many guesses of this pair are right."""
        return int(self.top[pair[0]] + self.bottom[pair[1]])


def ranked(
    scores: Shaped[Array, " m"], member: Bool[Array, " m"], rng: np.random.Generator, *, ties: Ties = "random"
) -> Ranked:
    """Count right guesses from both ends of the scores.

    ties: equal scores in random order, or in the worst order for the auditor, from each end; never by position,
        which may know who the members are. Raises ValueError for NaN, and unless there is one bit for each score.
    """
    scores, member = np.asarray(scores), np.asarray(member, dtype=bool)
    if scores.ndim != 1 or scores.shape != member.shape or not scores.size:
        raise ValueError(f"need one score and one membership a canary, got shapes {scores.shape} and {member.shape}")
    if nans := int(np.isnan(scores).sum()):
        raise ValueError(f"{nans} of {scores.size} scores are NaN: a canary without a score cannot be ranked")
    if ties == "random":
        order = np.lexsort((rng.random(len(scores)), scores))
    elif ties == "worst":
        order = np.lexsort((~member, scores))  # members first from the bottom, and so non-members first from the top
    else:
        raise ValueError(f"ties are broken in 'random' or 'worst' order, got {ties!r}")
    return Ranked(top=_cumulative(member[order][::-1]), bottom=_cumulative(~member[order]))


def _cumulative(right: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(right, dtype=np.int64))


def choose_pair(ranked: Ranked, m: int, error: float, *, gaussian: bool) -> Pair:
    """The pair for `m` other canaries that promises most, judged by the right guesses among these.

    Judged by the ε at δ = 0, or by the μ of the Gaussian mechanism that guesses so well, at the same limit of
    the share of right guesses. What is promised is not a bound: the pair is, then counted on other canaries.
    """
    steps = np.unique(np.append(0, np.geomspace(1, ranked.m, 20).round().astype(int)))
    plus, minus = (side.ravel() for side in np.meshgrid(steps, steps))
    scaled_plus, scaled_minus = (np.round(side * m / ranked.m) for side in (plus, minus))
    allowed = (plus + minus <= ranked.m) & (scaled_plus + scaled_minus >= 1) & (scaled_plus + scaled_minus <= m)
    plus, minus = plus[allowed], minus[allowed]
    scaled_plus, scaled_minus = scaled_plus[allowed], scaled_minus[allowed]
    r = scaled_plus + scaled_minus
    right = r * (ranked.top[plus] + ranked.bottom[minus]) / (plus + minus)
    promised = pure_epsilon(r, right, error)
    if gaussian:
        promised = _promised_mu(promised, r / m)
    best = int(np.argmax(promised))
    return int(scaled_plus[best]), int(scaled_minus[best])


def _promised_mu(eps: np.ndarray, share: np.ndarray) -> np.ndarray:
    """μ at which a share of all canaries is guessed right with odds e^eps: TPR = share q, FPR = share (1 - q)."""
    q = expit(eps)
    tpr, fpr = np.clip(share * q, 1e-12, 1 - 1e-12), np.clip(share * (1 - q), 1e-12, 1 - 1e-12)
    return ndtri(tpr) - ndtri(fpr)


# --- what a claim allows ----------------------------------------------------------------------------------------


def most_tpr(fpr: Float[Array, " points"], *, epsilon: float, delta: float) -> Float[Array, " points"]:
    """The largest TPR at each FPR that (epsilon, delta)-DP allows any attack: a line for a ROC plot."""
    low = np.exp(epsilon) * fpr + delta
    return np.clip(np.minimum(low, 1 - np.exp(-epsilon) * (1 - delta - fpr)), 0.0, 1.0)
