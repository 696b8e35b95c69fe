"""Groups of records that leak alike: within one, TPR - FPR is the same whichever of its records were used."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from modules.duci.rates import Known, Rates, gap_limits, rates

ENOUGH_FOR_RECORDS = 8  # models with a record, and as many without, before it may have rates of its own


def vulnerability(scores: Float[Array, "M N"], trained_on: Bool[Array, "M N"]) -> Float[Array, " N"]:
    """How much higher each record's scores rank in models that trained on it than in those that did not, in [-1, 1].

    Ranks among all scores, because those of a likelihood ratio have no scale. 0 for a record of one kind only.
    """
    order = np.sort(scores, axis=None)
    rank = (np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right")) / (2 * scores.size)
    inside, outside = trained_on.sum(axis=0), (~trained_on).sum(axis=0)
    gap = (rank * trained_on).sum(axis=0) / np.maximum(inside, 1) - (rank * ~trained_on).sum(axis=0) / np.maximum(
        outside, 1
    )
    return np.where((inside > 0) & (outside > 0), gap, 0.0)


def by_vulnerability(
    scores: Float[Array, "M N"], trained_on: Bool[Array, "M N"], layout: Int[Array, " M"], count: int
) -> Int[Array, "M N"]:
    """`count` groups of equal size, 0 the least vulnerable; row m from the rehearsals of other layouts than m's.

    So the noise that puts a record into a group is not the noise that then gives the group its rates. Raises
    ValueError with fewer than two layouts, or more groups than records.
    """
    if len(np.unique(layout)) < 2 or count > scores.shape[1]:
        raise ValueError(
            f"{count} groups of {scores.shape[1]} records by their vulnerability need at least as many records, and "
            f"two pairs of references, got {len(np.unique(layout))}"
        )
    groups = np.empty(scores.shape, dtype=np.int64)
    for k in np.unique(layout):
        others = layout != k
        rank = np.argsort(np.argsort(vulnerability(scores[others], trained_on[others]), kind="stable"))
        groups[layout == k] = rank * count // scores.shape[1]
    return groups


def joined(known: Known, groups: Int[Array, "M N"], *, min_advantage: float, level: float = 0.95) -> Int[Array, "M N"]:
    """The groups, where one whose TPR - FPR may be below `min_advantage` has joined the next.

    A group that cannot tell members from non-members would divide by next to nothing. The weakest joins first; the
    last group joins the one before.
    """
    while (count := int(groups.max()) + 1) > 1:
        limits = gap_limits(known, groups, rates(known, groups), level)
        weakest = int(np.argmin(limits))
        if limits[weakest] >= min_advantage:
            break
        last = min(weakest, count - 2)  # the groups `last` and `last + 1` become one
        groups = groups - (groups > last)
    return groups


def by_record(known: Known) -> Rates:
    """Rates of each record, drawn towards those of all by as much as the records are alike.

    Of the beta distribution that the records' rates come from, the mean and the spread are those observed, less
    the noise of the counts (method of moments). Raises ValueError with fewer than 8 models with, or without, a record.
    """
    inside, outside = known.trained_on.sum(axis=0), (~known.trained_on).sum(axis=0)
    if (least := int(min(inside.min(), outside.min()))) < ENOUGH_FOR_RECORDS:
        raise ValueError(
            f"rates of each record need {ENOUGH_FOR_RECORDS} references that trained on it and as many that did not, "
            f"got {least}: raise audit.num_ref_models, or use subgroups"
        )
    tpr, members = _shrunk((known.guesses & known.trained_on).sum(axis=0), inside)
    fpr, non_members = _shrunk((known.guesses & ~known.trained_on).sum(axis=0), outside)
    return Rates(tpr, fpr, members, non_members)


def _shrunk(positive: Int[Array, " N"], count: Int[Array, " N"]) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Posterior means of the rates, and the number of guesses that each is worth."""
    mean = positive.sum() / count.sum()
    noise = mean * (1 - mean)
    each = 1 / count.mean()
    spread = (np.var(positive / count) - noise * each) / (1 - each)  # of the rates themselves
    prior = noise / spread - 1 if spread > noise * 1e-6 else 1e6
    prior = max(prior, 0.0)
    return (positive + prior * mean) / (count + prior), count + prior
