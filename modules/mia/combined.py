"""Combined: what do the scores of several attacks say together? A logistic regression learnt from rehearsals.

Stacking (Wolpert 1992) of attacks. The regression never sees the target: it learns from references that are attacked
by the other references, whose membership is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, MinLen
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from pydantic import AfterValidator, ValidationError

from core.log import quiet
from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal
from modules.mia.tuning import covered

log = logging.getLogger(__name__)

NAME = "Combined"
DEFAULT = ("LOSS", "AttackR", "Calibration", "LiRA", "BASE", "BaVarIA")  # where the run names no other attack
POINTS = 10_000  # of a rehearsal: the weights of a handful of scores are known long before
RIDGE = 1.0  # on weights of standardised scores; as much as one record of the other kind
QUARTILES = 1.349  # from the first to the third of a standard normal


def _bound(attacks: tuple[Any, ...] | None) -> tuple[dict[str, Any], ...] | None:
    """Each with its registered name and all its settings. ValueError for what cannot be combined."""
    if attacks is None:
        return None
    found = []
    for item in attacks:
        given = {"name": item} if isinstance(item, str) else dict(item)
        name = given.pop("name", None)
        if not isinstance(name, str):
            raise ValueError("an attack with settings is written {name: …, setting: value}")
        if ATTACKS.find(name) is None:
            raise ValueError(ATTACKS.unknown(name))
        name = ATTACKS.find(name) or name
        try:
            call = {"name": name, **ATTACKS.bind(name, given)}
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if not can_be_rehearsed(name, call):
            raise ValueError(f"{name} cannot be rehearsed: it reads what is asked of targets only")
        if call in found:
            raise ValueError(f"{name} is listed twice with the same settings")
        found.append(call)
    return tuple(found)


def can_be_rehearsed(name: str, settings: Settings) -> bool:
    """Whether an attack on a reference sees what an attack on a target sees."""
    signals = ATTACKS.fact(name, "signals")
    kinds = {signal.kind for signal in signals(settings)} if signals else set()
    return name != NAME and "token_divergence" not in kinds


def completed(settings: Settings, others: Iterable[Any]) -> dict[str, Any]:
    """The settings, with the run's other attacks where they name none, if there are two that can be rehearsed.

    An attack that spares the references hundreds of questions each (LabelDistance alone) is left out unless named.
    """

    def asked(call: Any) -> bool:
        asks = ATTACKS.fact(call.name, "asks_references", lambda settings: True)
        return can_be_rehearsed(call.name, call.settings) and asks(call.settings)

    usable = [call for call in others if asked(call)]
    if settings["attacks"] is not None or len(usable) < 2:
        return dict(settings)
    return {**settings, "attacks": tuple({"name": call.name, **call.settings} for call in usable)}


def _calls(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """Names and settings of the attacks that are combined."""
    chosen = _bound(DEFAULT) if settings["attacks"] is None else settings["attacks"]
    assert chosen
    return [(call["name"], {key: value for key, value in call.items() if key != "name"}) for call in chosen]


def signals_of(settings: Settings) -> tuple[Signal, ...]:
    """All that the combined attacks read."""
    found: dict[Signal, None] = {}
    for name, own in _calls(settings):
        if signals := ATTACKS.fact(name, "signals"):
            found.update(dict.fromkeys(signals(own)))
    return tuple(found)


def _any(settings: Settings, fact: str) -> bool:
    found = [(ATTACKS.fact(name, fact, False), own) for name, own in _calls(settings)]
    return any(bool(of(own)) if callable(of) else bool(of) for of, own in found)


def _pairs(settings: Settings) -> int:
    """One to rehearse, beside what the attacks need; and two to cross-fit."""
    pairs: list[int] = [1]
    for name, own in _calls(settings):
        of: int | Callable[[Settings], int] = ATTACKS.fact(name, "min_pairs", 1)
        pairs.append(of if isinstance(of, int) else of(own))
    return 1 + max(pairs)


@dataclass(frozen=True)
class Learnt:
    """What all points share: how the scores are standardised and weighed, and what each attack's points share."""

    centre: Float[Array, " A"]
    scale: Float[Array, " A"]
    weight: Float[Array, " A"]
    constant: float
    given: tuple[Any, ...]  # of each attack, in a tuple; an empty one where its points share nothing


def shared(evidence: Evidence, settings: Settings) -> Learnt:
    """Learn from rehearsals; and let each attack learn what it applies to the target."""
    calls = _calls(settings)
    rehearsals = list(_rehearsed(evidence, calls, settings["rehearsals"]))
    pairs = {pair for pair, _, _ in rehearsals}
    if len(pairs) < 2:
        there = f"{len(evidence.references)} references, of which {len(pairs)} pairs can be rehearsed"
        raise ValueError(
            f"{NAME} learns from references attacked by the others, and needs audit.num_ref_models of at least "
            f"{_pairs(settings)}; there are {there}"
        )
    learnt = _learnt(rehearsals, _labels(calls))
    facts = [ATTACKS.fact(name, "shared") for name, _ in calls]
    given = tuple((of(evidence, own),) if of else () for of, (_, own) in zip(facts, calls, strict=True))
    return Learnt(*learnt, given)


@ATTACKS.register(
    NAME,
    needs_references=True,
    needs_in=lambda settings: _any(settings, "needs_in"),
    needs_population=False,
    signals=signals_of,
    shared=shared,
    rehearses_others=True,
    combines=completed,
    min_pairs=_pairs,
    summary="logistic regression on the scores of the other attacks, learnt by attacking references",
    access="classes",
    cost="as the attacks it combines, each run once for every rehearsal (8) as well",
    fails="where the target is unlike the references; rehearsals have a pair of references less than the target, so "
    "with few pairs its probabilities are too cautious",
    source="stacking (Wolpert 1992), applied to attacks by this tool",
)
def combined(
    evidence: Evidence,
    learnt: Learnt | None = None,
    *,
    attacks: Annotated[Annotated[tuple[str | dict[str, Any], ...], MinLen(2)] | None, AfterValidator(_bound)] = None,
    rehearsals: Annotated[int, Ge(2)] = 8,
) -> Float[Array, " N"]:
    """The log-odds that x is a member, given its scores, if half of the audited records are.

    References are attacked by the others, without their twins, by every attack. The scores, centred at their median,
    in units of their interquartile range and drawn in by arcsinh (so that no record outvotes the others, and none tie),
    are the columns of a logistic regression of membership. Of each pair of twins the prediction by a regression on the
    other pairs is held out: how well these fit decides between all scores and the best one alone, and a second
    regression of two numbers on them calibrates what is learnt from all. Nothing is learnt from the target.

    learnt: where it is that of other points than these (`shared`).
    attacks: two or more, as in audit.algorithm; the run's others if left out, and where there are none LOSS, AttackR,
        Calibration, LiRA, BASE and BaVarIA.
    rehearsals: references that are attacked, evenly spread; of each, at most 10,000 of the points are looked at.
    """
    settings = {"attacks": attacks, "rehearsals": rehearsals}
    learnt = shared(evidence, settings) if learnt is None else learnt
    total = np.full(evidence.trained_on.shape[1], learnt.constant)
    columns = zip(_calls(settings), learnt.given, learnt.centre, learnt.scale, learnt.weight, strict=True)
    for (name, own), given, centre, scale, weight in columns:
        if weight:
            total += weight * _standard(ATTACKS[name](evidence, *given, **own), centre, scale)
    return total


def _rehearsed(
    evidence: Evidence, calls: Sequence[tuple[str, Mapping[str, Any]]], limit: int
) -> Iterator[tuple[int, Float[Array, "n A"], Bool[Array, " n"]]]:
    """Of each rehearsal: which pair of twins it is of, the scores of every attack, and the membership."""
    points = evidence.trained_on.shape[1]
    if points > POINTS and evidence.text is None:
        evidence = evidence.at(np.unique(np.linspace(0, points - 1, POINTS).round().astype(int)))
    twins = evidence.twins()
    numbers = np.argmax(twins, axis=1)  # the first of its twins
    chosen = [row.tobytes() for row in evidence.trained_on]
    for rehearsal, member in evidence.rehearsals(limit):
        pair = int(numbers[chosen.index(member.tobytes())])
        if evidence.text is None:
            rehearsal, member = covered(rehearsal, member)
        if not np.isfinite(rehearsal.target).all():
            raise ValueError("a reference model's signals hold NaN or infinity: did a model diverge in training?")
        if member.any() and not member.all():
            with quiet("modules.mia"):
                scores = [np.asarray(ATTACKS[name](rehearsal, **own), dtype=np.float64) for name, own in calls]
            yield pair, np.stack(scores, axis=1), member


def _labels(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names, with the settings that tell apart those of one name."""
    found = []
    for name, own in calls:
        others = [settings for other, settings in calls if other == name]
        differ = [f"{key}={value}" for key, value in own.items() if any(of[key] != value for of in others)]
        found.append(f"{name} ({', '.join(differ)})" if differ else name)
    return found


def _learnt(
    rehearsals: Sequence[tuple[int, Float[Array, "_ A"], Bool[Array, " _"]]], names: Sequence[str]
) -> tuple[Float[Array, " A"], Float[Array, " A"], Float[Array, " A"], float]:
    """Centre, scale, weights and constant; which candidates there were goes to the log."""
    pair = np.concatenate([np.full(len(member), pair) for pair, _, member in rehearsals])
    scores = np.concatenate([scores for _, scores, _ in rehearsals])
    member = np.concatenate([member for _, _, member in rehearsals])
    candidates = [np.ones(len(names), dtype=bool), *np.eye(len(names), dtype=bool)]
    held = np.empty((len(candidates), len(member)))
    for one in np.unique(pair):
        own = pair == one
        centre, scale = _units(scores[~own])
        seen, judged = _standard(scores[~own], centre, scale), _standard(scores[own], centre, scale)
        for row, columns in zip(held, candidates, strict=True):
            weights = logistic(seen[:, columns], member[~own])
            row[own] = weights[0] + judged[:, columns] @ weights[1:]
    calibrated = [logistic(row[:, None], member, ridge=0.0) for row in held]
    fit = [_likelihood(a + b * row, member) for (a, b), row in zip(calibrated, held, strict=True)]
    best = int(np.argmax([fit[0], *(one - 1e-9 for one in fit[1:])]))
    _say(best, held, member, names)
    centre, scale = _units(scores)
    weights = logistic(_standard(scores, centre, scale)[:, candidates[best]], member)
    a, b = calibrated[best]
    b = max(b, 0.0)  # below it, held-out scores say the contrary: then nothing was learnt
    found = np.zeros(len(names))
    found[candidates[best]] = b * weights[1:]
    return centre, scale, found, float(a + b * weights[0])


def _say(best: int, held: Float[Array, "C n"], member: Bool[Array, " n"], names: Sequence[str]) -> None:
    from core.metrics import auc

    found = [auc(row, member) for row in held]
    singles = ", ".join(f"{name} {value:.3f}" for name, value in zip(names, found[1:], strict=True))
    chosen = "all together" if best == 0 else f"{names[best - 1]} alone"
    log.info("%s: %s; held-out AUC in rehearsals: all %.3f, %s", NAME, chosen, found[0], singles)


def _units(scores: Float[Array, "n A"]) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
    """Median, and spread of the middle half in units of a standard normal's; of few values their deviation."""
    low, centre, high = np.quantile(scores, [0.25, 0.5, 0.75], axis=0)
    scale, deviation = (high - low) / QUARTILES, scores.std(axis=0)
    scale = np.where(scale > 1e-6 * deviation, scale, deviation)
    return centre, np.where(scale > 0, scale, 1.0)


def _standard(scores: Array, centre: Array | float, scale: Array | float) -> Array:
    return np.arcsinh((scores - centre) / scale)


def logistic(x: Float[Array, "n A"], y: Bool[Array, " n"], ridge: float = RIDGE) -> Float[Array, " A_and_1"]:
    """Constant and weights of the logistic regression of y on x, by Newton's method; ridge / 2 |weights|^2 is added.

    Halved steps, because on separable records a full one overshoots; without a ridge these have no finite optimum,
    and weights stop where the likelihood no longer changes.
    """
    x = np.hstack([np.ones((len(x), 1)), x])
    penalty = np.full(x.shape[1], ridge)
    penalty[0] = 0.0
    weights = np.zeros(x.shape[1])
    objective = lambda w: _likelihood(x @ w, y) * len(y) - 0.5 * (penalty * w**2).sum()  # noqa: E731
    value = objective(weights)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -500, 500)))
        gradient = x.T @ (y - p) - penalty * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        for _ in range(30):
            if (tried := objective(weights + step)) >= value - 1e-12 * abs(value):  # rounding may lose what is left
                break
            step = step / 2
        weights, value = weights + step, tried
        if abs(step).max() <= 1e-12 * (1 + abs(weights).max()):
            break
    return weights


def _likelihood(log_odds: Float[Array, " n"], y: Bool[Array, " n"]) -> float:
    """Mean log-likelihood of y."""
    return float(-np.logaddexp(0.0, np.where(y, -log_odds, log_odds)).mean())
