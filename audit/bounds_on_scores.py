"""Lower bounds on ε of differential privacy from scores that were given, with what they take on trust in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import bdtr

from audit import templates
from audit.dp_audit_setup import GUESSES, Claim
from audit.results import Section, TargetResult
from core.config import Config
from core.rng import stream
from modules.dp_audit import EpsilonBound, Split, audit_one_run, audit_two_worlds, best_of, level_of_each, verdict

UNLIKELY = 1e-3  # p-value of the number of members, were each one by the toss of a coin

ASSUMED = {
    "one_run": (
        "Each record was put into the training data by a toss of a fair coin of its own, all in one training.",
        "Whoever made the scores did not know the outcome of the tosses, and no threshold was chosen by looking at it.",
        "The records do not depend on each other's tosses in any other way: no duplicates, none made from another.",
        "The bound is about the training as a whole, on data that differ in one such record (added or removed).",
    ),
    "two_worlds": (
        "Each row is the score of a training of its own: members are runs with the canary, the others runs without it.",
        "All runs are independent and otherwise the same, with randomness of their own.",
        "The threshold was fixed before looking at these scores, or is chosen here on runs that do not count.",
        "The bound is about the training as a whole, on data that differ in that canary.",
    ),
}


class DpBound(BaseModel):
    """How to bound ε. The design has no default: it is how the scores were made, and decides what they show."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    design: Literal["one_run", "two_worlds"]
    delta: float = Field(ge=0, lt=1)
    level: float = Field(0.95, gt=0, lt=1)
    guesses: str | dict[str, Any] = "fixed"  # of one_run
    estimator: Literal["one_run", "f_dp", "gaussian", "clopper_pearson", "bayesian"] | None = None
    threshold: float | None = None  # of two_worlds; chosen on a half of the runs if None
    claim: Claim | None = None


def check_bound(config: Config, bound: DpBound, records: Sequence[int], scores: int) -> None:
    """The very audit, on made-up scores of these numbers: what it refuses, it refuses now, at its line."""
    one_run = ("one_run", "f_dp", "gaussian")
    fitting = one_run if bound.design == "one_run" else ("clopper_pearson", "gaussian", "bayesian")
    if bound.estimator is not None and bound.estimator not in fitting:
        raise config.error("scores.dp.estimator", f"of design {bound.design} it is one of {', '.join(fitting)}")
    if bound.claim and bound.claim.delta is not None and bound.claim.delta > bound.delta:
        raise config.error("scores.dp.claim.delta", f"{bound.claim.delta:g} is more than scores.dp.delta: raise that")
    if bound.design == "one_run":
        name = bound.guesses if isinstance(bound.guesses, str) else bound.guesses.get("name")
        if not isinstance(name, str) or GUESSES.find(name) is None:
            raise config.error("scores.dp.guesses", GUESSES.unknown(str(name)))
    looks = len(records) * scores
    for count in set(records):
        try:
            _bound(bound, np.arange(float(count)), np.arange(count) % 2 == 0, np.random.default_rng(0), looks)
        except ValueError as error:
            key = "guesses" if bound.design == "one_run" else "threshold"
            raise config.error(f"scores.dp.{key}", str(error)) from None


def bounds_section(config: Config, bound: DpBound, targets: Sequence[TargetResult], names: Sequence[str]) -> Section:
    """A bound from every score of every target, each at its share of the error, and what they show together."""
    looks = sum(len(target.attacks) for target in targets)
    found = []
    for target, name in zip(targets, names, strict=True):
        for attack in target.attacks:
            draw = stream(config.run.random_seed, "scores", "dp", target.target, attack.attack)
            turned = not attack.settings["higher_is_member"]
            made = _bound(_turned(bound) if turned else bound, attack.scores, target.member, draw, looks)
            found.append((name, attack.attack, made))
    together = best_of([made for *_, made in found]) if _confident(found) else None
    strongest = together or max((made for *_, made in found), key=lambda made: made.eps)
    said = None
    if bound.claim and together:
        delta = bound.delta if bound.claim.delta is None else bound.claim.delta
        said = verdict(together, epsilon=bound.claim.epsilon, delta=delta)
    doubts = list(dict.fromkeys(doubt for *_, made in found for doubt in made.doubts))
    if bound.design == "one_run":
        doubts += [doubt for target, name in zip(targets, names, strict=True) if (doubt := _coin(target.member, name))]
    html = (
        templates.environment()
        .get_template("bounds.html.j2")
        .render(
            found=found,
            bound=bound,
            together=strongest,
            assumed=ASSUMED[bound.design],
            doubts=doubts,
            claim=said,
            several=len(targets) > 1,
        )
    )
    if_so = "if these scores were made as assumed below"
    sentence = f"ε ≥ {strongest.eps:.2f} at δ = {bound.delta:g}, with confidence {bound.level:.0%}, {if_so}."
    told = f"{sentence} {said.sentence}" if said else sentence
    return Section("dp", "Differential privacy: a lower bound on ε", told, html)


def _turned(bound: DpBound) -> DpBound:
    """With the threshold of scores that were multiplied by -1."""
    return bound if bound.threshold is None else bound.model_copy(update={"threshold": -bound.threshold})


def _confident(found: Sequence[tuple[str, str, EpsilonBound]]) -> bool:
    return all(made.kind == "confidence" for *_, made in found)


def _bound(
    bound: DpBound, scores: Float[Array, " m"], member: Bool[Array, " m"], draw: np.random.Generator, looks: int
) -> EpsilonBound:
    """The bound of one column of scores, at its share of the error. ValueError where it would not hold."""
    each = level_of_each(bound.level, looks)
    if bound.design == "one_run":
        written = {"name": bound.guesses} if isinstance(bound.guesses, str) else dict(bound.guesses)
        name = GUESSES.find(written.pop("name")) or ""
        choice = GUESSES[name](**GUESSES.bind(name, written))
        estimator: Any = bound.estimator or "one_run"
        return audit_one_run(scores, member, draw, delta=bound.delta, level=each, choice=choice, estimator=estimator)
    threshold = Split() if bound.threshold is None else bound.threshold
    of_worlds: Any = bound.estimator or "clopper_pearson"
    return audit_two_worlds(
        scores, member, draw, delta=bound.delta, level=each, threshold=threshold, estimator=of_worlds
    )


def _coin(member: Bool[Array, " m"], name: str) -> str:
    """A doubt where the number of members is not what fair coins give."""
    m, inside = len(member), int(member.sum())
    p = min(1.0, 2 * float(bdtr(min(inside, m - inside), m, 0.5)))
    of = f" of target {name}" if name else ""
    unlikely = f"{inside} of {m} records{of} are members: fair coins would hardly give that (p = {p:.2g})"
    return unlikely if p < UNLIKELY else ""
