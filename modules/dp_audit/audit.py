"""From scores and memberships to a bound: the audit of one run, and of two worlds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray as Array

from core.types import EpsilonBound
from modules.dp_audit import f_dp, one_run
from modules.dp_audit import two_worlds as worlds
from modules.dp_audit.bounds import ANY, GAUSSIAN, checked_delta, error_of, level_of_each
from modules.dp_audit.calibrated import calibrated_epsilon, error_left
from modules.dp_audit.family import gaussian_fit
from modules.dp_audit.guesses import (
    Bonferroni,
    Calibrated,
    Choice,
    Fixed,
    MultiSplit,
    Pair,
    Ranked,
    Split,
    StepWise,
    Ties,
    checked_pair,
    choose_pair,
    ranked,
)
from modules.dp_audit.stepwise import Steps, climb, default_steps

Estimator = Literal["one_run", "f_dp", "gaussian"]
TwoWorlds = Literal["clopper_pearson", "gaussian", "bayesian"]

BOUNDS = {"one_run": one_run.epsilon, "f_dp": f_dp.epsilon, "gaussian": f_dp.gaussian_epsilon}
NAMES = {"one_run": "one run", "f_dp": "f-DP in one run", "gaussian": "Gaussian f-DP in one run"}
TWO_WORLDS = {
    "clopper_pearson": worlds.two_worlds,
    "gaussian": worlds.gaussian_two_worlds,
    "bayesian": worlds.bayesian,
}
MISFIT = 0.01  # p-value of `gaussian_fit` below which a doubt is written beside a Gaussian bound


def audit_one_run(
    scores: Shaped[Array, " m"],
    member: Bool[Array, " m"],
    rng: np.random.Generator,
    *,
    delta: float,
    level: float = 0.95,
    choice: Choice = Fixed(),  # noqa: B008  (frozen)
    estimator: Estimator = "one_run",
    ties: Ties = "random",
    analyses: int = 1,
) -> EpsilonBound:
    """The bound that m canaries of one run give, each included with probability 1/2, independently.

    estimator: "one_run" (Steinke et al. 2023) and "f_dp" (Mahloujifar et al. 2025, the trade-off curve of
        (ε, δ)-DP) assume nothing of the mechanism; "gaussian" (the latter, Gaussian curves) assumes the family.
    choice: how many guesses, and how that is kept from over-claiming. `Calibrated` is for "one_run" alone.
    ties: equal scores in random order, drawn from `rng`, or in the worst.
    analyses: of how many audits (scores, canary types, checkpoints) the best will be told; each gets its share
        of the error. All that were looked at count.
    Raises ValueError where the bound would not hold, or for inputs of the wrong shape.
    """
    if estimator not in BOUNDS:
        raise ValueError(f"estimator is one of {', '.join(BOUNDS)}, got {estimator!r}")
    checked_delta(delta)
    if estimator != "one_run" and isinstance(choice, Calibrated):
        raise ValueError(f"calibrated guesses are shown to be valid for 'one_run', not for {estimator!r}")
    each = level_of_each(level, analyses)
    whole = ranked(scores, member, rng, ties=ties)
    match choice:
        case Fixed():
            pair = choice.pair(whole.m)
            made = _counted(
                whole, pair, estimator, delta, each, f"k_plus = {pair[0]}, k_minus = {pair[1]}, fixed before"
            )
        case Split():
            made = _split(scores, member, rng, choice.fraction, estimator, delta, each, ties)
        case MultiSplit():
            half = 1 - error_of(each) / 2
            made = _median(
                [
                    _split(scores, member, rng, choice.fraction, estimator, delta, half, ties)
                    for _ in range(choice.splits)
                ]
            )
        case Bonferroni():
            made = _bonferroni(whole, choice.pairs(whole.m), estimator, delta, each)
        case Calibrated():
            made = _calibrated(whole, choice.pairs(whole.m), delta, each)
        case StepWise():
            steps = choice.steps or _default_steps(estimator, whole.m, delta, each)
            made = _step_wise(whole, steps, estimator, delta, each)
    doubts = _doubts(np.asarray(scores), np.asarray(member)) if estimator == "gaussian" else ()
    return replace(made, level=level, analyses=analyses * made.analyses, doubts=doubts)


def _counted(
    counts: Ranked, pair: Pair, estimator: Estimator, delta: float, level: float, guesses: str
) -> EpsilonBound:
    """The bound of these guesses on these canaries."""
    m, r, right = counts.m, sum(pair), counts.right(pair)
    return EpsilonBound(
        eps=_bound(estimator, m, r, right, delta, level),
        delta=delta,
        level=level,
        estimator=NAMES[estimator],
        family=GAUSSIAN if estimator == "gaussian" else ANY,
        m=m,
        r=r,
        right=right,
        guesses=guesses,
        analyses=1,
        largest=_bound(estimator, m, r, r, delta, level),
    )


def _split(
    scores: Shaped[Array, " m"],
    member: Bool[Array, " m"],
    rng: np.random.Generator,
    fraction: float,
    estimator: Estimator,
    delta: float,
    level: float,
    ties: Ties,
) -> EpsilonBound:
    """Guesses chosen on a random part of the canaries, counted on the rest, whose number is the m of the bound."""
    part = _part(len(scores), fraction, rng)
    chooser = ranked(scores[part], member[part], rng, ties=ties)
    counts = ranked(scores[~part], member[~part], rng, ties=ties)
    pair = choose_pair(chooser, counts.m, error_of(level), gaussian=estimator == "gaussian")
    guesses = f"k_plus = {pair[0]}, k_minus = {pair[1]}, chosen on {chooser.m} other canaries"
    most = _bound(estimator, counts.m, counts.m, counts.m, delta, level)
    return replace(_counted(counts, pair, estimator, delta, level, guesses), largest=most)


def _median(bounds: Sequence[EpsilonBound]) -> EpsilonBound:
    """What at least half of these random splits show, each made at half the error."""
    if not bounds:
        raise ValueError("need at least 1 split")
    ordered = sorted(bounds, key=lambda bound: -bound.eps)
    middle = ordered[(len(bounds) + 1) // 2 - 1]
    guesses = f"{middle.guesses}; the median of {len(bounds)} random splits, each at half the error"
    return replace(middle, guesses=guesses)


def _bonferroni(
    counts: Ranked, pairs: Sequence[Pair], estimator: Estimator, delta: float, level: float
) -> EpsilonBound:
    share = level_of_each(level, len(pairs))
    guesses = f"the best of {len(pairs)} pairs fixed before, each at its share of the error"
    made = [_counted(counts, pair, estimator, delta, share, guesses) for pair in pairs]
    best = max(made, key=lambda bound: bound.eps)
    return replace(best, analyses=len(pairs), largest=max(bound.largest for bound in made))


def _calibrated(counts: Ranked, pairs: Sequence[Pair], delta: float, level: float) -> EpsilonBound:
    sizes, right = tuple(sum(pair) for pair in pairs), tuple(counts.right(pair) for pair in pairs)
    error = error_left(counts.m, delta, level)
    surest = one_run.pure_epsilon(np.array(sizes), np.array(right), error / len(sizes))
    guesses = f"the best of {len(pairs)} nested pairs fixed before, calibrated for all of them"
    return replace(
        _counted(counts, pairs[int(np.argmax(surest))], "one_run", delta, level, guesses),
        eps=calibrated_epsilon(counts.m, sizes, right, delta=delta, level=level),
        analyses=len(pairs),
        largest=_calibrated_largest(counts.m, sizes, delta, level),
    )


def _step_wise(counts: Ranked, steps: Steps, estimator: Estimator, delta: float, level: float) -> EpsilonBound:
    pairs, tops = [checked_pair(pair, counts.m) for pair, _ in steps], [top for _, top in steps]
    show = lambda right: (_bound(estimator, counts.m, sum(p), right(p), delta, level) for p in pairs)  # noqa: E731
    eps, which = climb(show(counts.right), tops)
    guesses = f"k_plus = {pairs[which][0]}, k_minus = {pairs[which][1]}, of {len(pairs)} pairs asked in a fixed order"
    most, _ = climb(show(sum), tops)
    return replace(_counted(counts, pairs[which], estimator, delta, level, guesses), eps=eps, largest=most)


@lru_cache(maxsize=256)
def _default_steps(estimator: str, m: int, delta: float, level: float) -> Steps:
    bound = partial(BOUNDS[estimator], m, delta=delta, level=level)
    return default_steps(m, bound, error_of(level))


@lru_cache(maxsize=1 << 16)
def _bound(estimator: str, m: int, r: int, right: int, delta: float, level: float) -> float:
    return float(BOUNDS[estimator](m, r, right, delta=delta, level=level))


@lru_cache(maxsize=256)
def _calibrated_largest(m: int, sizes: tuple[int, ...], delta: float, level: float) -> float:
    return calibrated_epsilon(m, sizes, sizes, delta=delta, level=level)


def _part(m: int, fraction: float, rng: np.random.Generator) -> Bool[Array, " m"]:
    """A random part of the canaries; at least 1 in it, and 1 not."""
    if not 0 < fraction < 1 or m < 2:
        raise ValueError(f"cannot split {m} canaries at a fraction of {fraction}: both parts need at least 1")
    part = np.zeros(m, dtype=bool)
    part[rng.permutation(m)[: min(max(round(fraction * m), 1), m - 1)]] = True
    return part


def _doubts(scores: np.ndarray, member: np.ndarray) -> tuple[str, ...]:
    """What to say beside a bound that assumes the Gaussian family."""
    always = "holds only if the mechanism's trade-off curve is Gaussian, as for noise added to a sum: not tested here"
    p = gaussian_fit(scores, member)
    if p >= MISFIT:
        return (always,)
    return (always, f"these scores are not those of a Gaussian mechanism (p = {p:.2g}): do not rely on this number")


# --- two worlds -------------------------------------------------------------------------------------------------


def audit_two_worlds(
    scores: Shaped[Array, " runs"],
    member: Bool[Array, " runs"],
    rng: np.random.Generator,
    *,
    delta: float,
    level: float = 0.95,
    threshold: float | Sequence[float] | Split | MultiSplit,
    estimator: TwoWorlds = "clopper_pearson",
    analyses: int = 1,
) -> EpsilonBound:
    """The bound from one score of each of many independent runs, with (`member`) and without the canary.

    threshold: guess "with the canary" at or above it. A number said before looking; several such numbers, of which
        the best counts (Bonferroni); or chosen on a part of the runs (`Split`, `MultiSplit`).
    A credible interval (`bayesian`) has no corrected level: it takes one number or a `Split`.
    """
    scores, member = np.asarray(scores), np.asarray(member, dtype=bool)
    if scores.ndim != 1 or scores.shape != member.shape or np.isnan(scores).any():
        raise ValueError("two worlds need one score, not NaN, and one world for each run")
    if estimator == "bayesian" and (isinstance(threshold, MultiSplit | Sequence) or analyses > 1):
        raise ValueError("a credible interval has no level to correct: give one threshold, or a Split")
    each, tried = level_of_each(level, analyses), 1
    if isinstance(threshold, Split):
        made = _split_worlds(scores, member, rng, threshold.fraction, estimator, delta, each)
    elif isinstance(threshold, MultiSplit):
        half, splits = 1 - error_of(each) / 2, range(threshold.splits)
        made = _median([_split_worlds(scores, member, rng, threshold.fraction, estimator, delta, half) for _ in splits])
    else:
        thresholds = list(threshold) if isinstance(threshold, Sequence) else [threshold]
        tried, share = len(thresholds), level_of_each(each, len(thresholds))
        one_of = f", the best of {tried}" if tried > 1 else ""
        said = [f"threshold {t:.4g}, fixed before{one_of}" for t in thresholds]
        bounds = [
            replace(_at(scores, member, float(t), estimator, delta, share), guesses=guesses)
            for t, guesses in zip(thresholds, said, strict=True)
        ]
        made = max(bounds, key=lambda bound: bound.eps)
    doubts = _doubts(scores, member) if estimator == "gaussian" else ()
    return replace(made, level=level, analyses=analyses * tried, doubts=doubts)


def _at(
    scores: np.ndarray, member: np.ndarray, threshold: float, estimator: TwoWorlds, delta: float, level: float
) -> EpsilonBound:
    """The bound of guessing "with the canary" at or above a threshold."""
    return TWO_WORLDS[estimator](*_confusion(scores >= threshold, member), delta=delta, level=level)


def _confusion(guessed: np.ndarray, member: np.ndarray) -> tuple[int, int, int, int]:
    """True positives of members, false positives of non-members."""
    return int((guessed & member).sum()), int(member.sum()), int((guessed & ~member).sum()), int((~member).sum())


def _split_worlds(
    scores: np.ndarray,
    member: np.ndarray,
    rng: np.random.Generator,
    fraction: float,
    estimator: TwoWorlds,
    delta: float,
    level: float,
) -> EpsilonBound:
    """A threshold chosen on a random part of the runs, judged on the rest."""
    part = _part(len(scores), fraction, rng)
    candidates = np.unique(scores[part])
    candidates = candidates[np.linspace(0, len(candidates) - 1, min(len(candidates), 64)).astype(int)]
    best = float(candidates[int(np.argmax(_promised(estimator, candidates, scores[part], member[part], delta, level)))])
    guesses = f"threshold {best:.4g}, chosen on {int(part.sum())} other runs"
    return replace(_at(scores[~part], member[~part], best, estimator, delta, level), guesses=guesses)


def _promised(
    estimator: TwoWorlds, thresholds: np.ndarray, scores: np.ndarray, member: np.ndarray, delta: float, level: float
) -> np.ndarray:
    """What each threshold promises: Clopper-Pearson's ε (for the Bayesian interval too, as it is cheaper), or μ."""
    if member.all() or not member.any():
        return np.zeros(len(thresholds))
    tp, fp = ((scores[rows] >= thresholds[:, None]).sum(axis=1) for rows in (member, ~member))
    counts = (tp, int(member.sum()), fp, int((~member).sum()))
    if estimator == "gaussian":
        return worlds.mu_lower(*counts, level=level)
    return worlds.clopper_pearson_epsilon(*counts, delta=delta, level=level)
