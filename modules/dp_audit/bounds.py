"""What an audit of differential privacy may say: a lower bound on ε, its assumptions, and what it means for a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core.types import EpsilonBound

ANY = "none"  # no family of mechanisms is assumed: the bound holds for every (ε, δ)-DP mechanism
GAUSSIAN = "gaussian"  # the bound is that of the member of the Gaussian family, and holds for that family only


def error_of(level: float) -> float:
    """The share of audits allowed to over-claim."""
    if not 0 < level < 1:
        raise ValueError(f"a confidence level is between 0 and 1, got {level}")
    return 1 - level


def checked_delta(delta: float) -> float:
    """`delta`, if it is one."""
    if not 0 <= delta < 1:
        raise ValueError(f"delta is at least 0 and below 1, got {delta}")
    return delta


def level_of_each(level: float, runs: int) -> float:
    """The level at which each of `runs` audits must be made for their best to hold at `level` (Bonferroni)."""
    if runs < 1:
        raise ValueError(f"need at least 1 run, got {runs}")
    return 1 - error_of(level) / runs


def best_of(bounds: Sequence[EpsilonBound]) -> EpsilonBound:
    """The largest of several audits' bounds, valid at the level that is left after the errors of all add up.

    For several runs, attacks, canary types or checkpoints of one mechanism, however they depend on each other:
    make each at `level_of_each(level, len(bounds))`, and list all that were made, not only the good ones.
    The canaries of several models are never pooled as one run: twins share the bits of their memberships.
    Raises ValueError where the bounds are not of one kind and one δ.
    """
    if not bounds:
        raise ValueError("need at least 1 bound")
    if len({(bound.delta, bound.kind) for bound in bounds}) > 1:
        raise ValueError("bounds to combine must be of one delta and one kind")
    if bounds[0].kind != "confidence":
        raise ValueError(f"only confidence bounds can be combined, these are {bounds[0].kind}")
    if len(bounds) == 1:
        return bounds[0]
    level = 1 - sum(error_of(bound.level) for bound in bounds)
    if level <= 0:
        raise ValueError(f"the errors of {len(bounds)} bounds add up to 1 or more: make each at a higher level")
    best = max(bounds, key=lambda bound: bound.eps)
    return replace(
        best,
        level=level,
        family=GAUSSIAN if any(bound.family == GAUSSIAN for bound in bounds) else ANY,
        guesses=f"{best.guesses}; best of {len(bounds)} audits",
        analyses=sum(bound.analyses for bound in bounds),
        largest=max(bound.largest for bound in bounds),
        doubts=tuple(dict.fromkeys(doubt for bound in bounds for doubt in bound.doubts)),
    )


@dataclass(frozen=True)
class Verdict:
    """What an audit says of a stated claim, in a word and in a sentence."""

    word: Literal["consistent", "contradicted", "not testable"]
    sentence: str


def verdict(bound: EpsilonBound, *, epsilon: float, delta: float) -> Verdict:
    """What `bound` says of the claim that the mechanism is (epsilon, delta)-DP.

    contradicted: the bound is above the claim. not testable: even with every guess right this design could not
        have contradicted it. consistent: it could have, and did not, which is no proof of the claim.
    A bound at a larger δ than the claim's still speaks about it: (ε, δ)-DP implies (ε, δ')-DP for δ' > δ.
    Raises ValueError for a bound at a smaller δ, or one that is no confidence bound.
    """
    if bound.kind != "confidence":
        raise ValueError(f"a verdict needs a confidence bound, this one is {bound.kind}")
    if bound.delta < delta:
        raise ValueError(f"the bound is at delta {bound.delta:g}, the claim at {delta:g}: audit at the claim's delta")
    claim, assumed = f"(ε = {epsilon:g}, δ = {delta:g})", ""
    if bound.family != ANY:
        assumed = f", if the mechanism is of the {bound.family} family"
    if bound.eps > epsilon:
        found = f"the audit shows ε ≥ {bound.eps:.2f} at confidence {bound.level:.0%}{assumed}"
        return Verdict("contradicted", f"The claim {claim} is contradicted: {found}.")
    if bound.largest <= epsilon:
        limit = f"with every guess right it would show ε ≥ {bound.largest:.2f}"
        return Verdict("not testable", f"The claim {claim} is not testable with this design: {limit}.")
    found = f"the audit shows ε ≥ {bound.eps:.2f}, and could have shown up to {bound.largest:.2f}{assumed}"
    return Verdict("consistent", f"The claim {claim} is consistent with this audit, which does not prove it: {found}.")
