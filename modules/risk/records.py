"""The risk of single records: p-values of "this is not a member", lists with few false names, stability over models.

A ROC curve is about records in bulk. A list of names needs more: each name has a p-value that is valid whatever
the scores look like, and the list as a whole has at most a share q of false names in expectation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array


def conformal_p_values(scores: Shaped[Array, " N"], non_members: Shaped[Array, " C"]) -> Float[Array, " N"]:
    """P-value of "this record is a non-member", against the scores of C other records known to be non-members.

    (1 + how many of them score at least as high) / (1 + C): super-uniform for every non-member that is
    exchangeable with them, whatever the distribution and with ties; never below 1 / (1 + C)
    (Vovk et al. 2005; Bates et al. 2023, https://arxiv.org/abs/2104.08279, eq. 2).
    """
    if len(non_members) == 0:
        raise ValueError("a p-value needs at least 1 known non-member to compare with")
    if np.isnan(scores).any() or np.isnan(non_members).any():
        raise ValueError("a record without a score (NaN) has no p-value")
    at_least = len(non_members) - np.searchsorted(np.sort(non_members), scores, side="left")
    return (1 + at_least) / (1 + len(non_members))


def record_p_values(
    target: Shaped[Array, " N"], references: Shaped[Array, "R N"], trained_on: Bool[Array, "R N"]
) -> Float[Array, " N"]:
    """P-value of each record against *itself*: its score on the target against its scores on models without it.

    (1 + how many OUT references score it at least as high) / (1 + OUT references). Pooling scores over records
    calibrates the average record; this calibrates each, with the correction for a finite number of references
    (Jälkö et al. 2026, https://arxiv.org/abs/2605.25819, make the point; the formula is the conformal one).
    NaN where no reference left the record out. Never below 1 / (1 + OUT references): four references cannot
    show a risk of one in a hundred.

    references: what the same attack says of the records when each reference is its target.
    """
    out = (~trained_on).sum(axis=0)
    at_least = ((references >= target) & ~trained_on).sum(axis=0)
    return np.where(out > 0, (1 + at_least) / (1 + out), np.nan)


def discoveries(p_values: Float[Array, " N"], q: float) -> Bool[Array, " N"]:
    """The rejections of Benjamini & Hochberg (1995): of those marked, at most a share q is false in expectation.

    Valid for conformal p-values that share their non-members, which are positively dependent (Bates et al. 2023,
    Theorem 2). NaN is never marked.
    """
    if not 0 < q < 1:
        raise ValueError(f"the false share q is between 0 and 1, got {q}")
    known = ~np.isnan(p_values)
    ordered = np.sort(p_values[known])
    under = np.flatnonzero(ordered <= q * np.arange(1, len(ordered) + 1) / max(len(ordered), 1))
    return known & (p_values <= ordered[under[-1]]) if len(under) else np.zeros(len(p_values), dtype=bool)


@dataclass(frozen=True)
class Named:
    """A list of records said to be members, of which at most a share q is expected to be none."""

    q: float
    indices: Int[Array, " L"]  # of the named records, by p-value, surest first
    p_values: Float[Array, " N"]  # of every record; NaN of those that calibrate
    false: int  # of those named, how many are none: the auditor knows
    calibration: int  # non-members that served to calibrate, and could not be named

    @property
    def false_share(self) -> float:
        """0 for an empty list, as in the definition of the false discovery rate."""
        return self.false / max(len(self.indices), 1)


def named_members(
    scores: Shaped[Array, " N"], member: Bool[Array, " N"], *, q: float, draw: np.random.Generator
) -> Named:
    """Whom an attacker could name who knows half of the non-members to be such, with at most a share q of errors.

    Half of the non-members, by lot, calibrate the p-values; all other records are on trial.
    """
    non_members = np.flatnonzero(~member)
    if len(non_members) < 2:
        raise ValueError(f"need at least 2 non-members, got {len(non_members)}: half of them calibrate the list")
    known = draw.permutation(non_members)[: len(non_members) // 2]
    trial = np.setdiff1d(np.arange(len(scores)), known)
    p_values = np.full(len(scores), np.nan)
    p_values[trial] = conformal_p_values(scores[trial], scores[known])
    found = np.flatnonzero(discoveries(p_values, q))
    found = found[np.lexsort((-scores[found], p_values[found]))]
    return Named(q, found, p_values, int((~member[found]).sum()), len(known))


def flip_rate(guessed: Bool[Array, "T N"], member: Bool[Array, "T N"]) -> Float[Array, " N"]:
    """How often two target models of the same membership of a record get different guesses about it.

    Over all pairs of models that both trained on the record, or both did not; NaN where there is no such pair.
    0: the guess about this record follows from its membership alone; 1/2 and more: mostly from chance.
    """
    differing, pairs = np.zeros(member.shape[1]), np.zeros(member.shape[1])
    for side in (member, ~member):
        n, k = side.sum(axis=0), (guessed & side).sum(axis=0)
        differing += k * (n - k)
        pairs += n * (n - 1) / 2
    return np.divide(differing, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
