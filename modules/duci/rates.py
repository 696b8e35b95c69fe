"""Error rates of membership guesses, by groups of records, and how much models differ in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.special import ndtri

ENOUGH_MODELS = 3  # before how much models differ is measured


@dataclass(frozen=True)
class Known:
    """Guesses about models whose membership is known."""

    guesses: Bool[Array, "M N"]
    trained_on: Bool[Array, "M N"]

    @property
    def models(self) -> int:
        return len(self.guesses)

    def one_group(self) -> Int[Array, "M N"]:
        return np.zeros(self.guesses.shape, dtype=np.int64)

    def of(self, records: Bool[Array, " N"]) -> Known:
        """The guesses about some of the records only."""
        return Known(self.guesses[:, records], self.trained_on[:, records])


@dataclass(frozen=True)
class Rates:
    """TPR and FPR of each group, and the numbers of guesses behind them."""

    tpr: Float[Array, " G"]
    fpr: Float[Array, " G"]
    members: Float[Array, " G"]
    non_members: Float[Array, " G"]

    @property
    def gap(self) -> Float[Array, " G"]:
        return self.tpr - self.fpr

    def variances(self) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
        """Of one guess about a member, and of one about a non-member; never 0, however few were seen to differ."""
        return _bernoulli(self.tpr, self.members), _bernoulli(self.fpr, self.non_members)


def _bernoulli(rate: Float[Array, " G"], count: Float[Array, " G"]) -> Float[Array, " G"]:
    smooth = (rate * count + 0.5) / (count + 1)
    return smooth * (1 - smooth)


def rates(known: Known, groups: Int[Array, "M N"]) -> Rates:
    """The rates of each group over all models, by the real counts (not by 2 / (M N), which only exact halves give).

    Raises ValueError where a group has no member, or no non-member, in any model.
    """
    count = int(groups.max()) + 1

    def of(where: Bool[Array, "M N"]) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
        size = np.bincount(groups[where], minlength=count)
        if not size.all():
            kind = "members" if where is known.trained_on else "non-members"
            raise ValueError(f"{(size == 0).sum()} of {count} groups of records have no {kind} in any reference")
        return np.bincount(groups[where], known.guesses[where], count) / size, size.astype(float)

    outside = ~known.trained_on
    (tpr, members), (fpr, non_members) = of(known.trained_on), of(outside)
    return Rates(tpr, fpr, members, non_members)


def deviations(
    known: Known, groups: Int[Array, "M N"], of: Rates, inside: Float[Array, " G"], outside: Float[Array, " G"]
) -> tuple[float, float]:
    """(Seen, expected) variance over models of `inside` (its TPR - TPR) + `outside` (its FPR - FPR), all groups added.

    Expected, if guesses were independent of each other. What is seen beyond that is what one model differs from
    the next in all its guesses together. NaN seen with fewer than three models.
    """
    member, non_member = of.variances()
    used = known.trained_on.mean(axis=1, keepdims=True)
    weight = np.zeros(groups.shape)
    # A model without members (or without non-members) has nothing to divide there.
    np.divide(inside[groups], used, out=weight, where=known.trained_on)
    np.divide(outside[groups], 1 - used, out=weight, where=~known.trained_on)
    rate = np.where(known.trained_on, of.tpr[groups], of.fpr[groups])
    variance = np.where(known.trained_on, member[groups], non_member[groups])
    records = groups.shape[1]
    expected = float((weight**2 * variance).sum(axis=1).mean() / records**2)
    seen = (weight * (known.guesses - rate)).mean(axis=1)
    return float(seen.var(ddof=1)) if known.models >= ENOUGH_MODELS else np.nan, expected


def gap_limits(known: Known, groups: Int[Array, "M N"], of: Rates, level: float) -> Float[Array, " G"]:
    """Lower limit of TPR - FPR of each group; the wider of the intervals over guesses and over models."""
    share = np.bincount(groups.ravel()) / groups.size
    half = []
    for chosen in np.diag(1 / share):
        seen, expected = deviations(known, groups, of, chosen, -chosen)
        half.append(np.sqrt(np.fmax(seen, expected) / known.models))
    return of.gap - ndtri((1 + level) / 2) * np.array(half)
