"""The whole method on arrays: learn an attack's rates from the references, then answer about targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from core.types import Evidence
from modules.duci.answers import Answer
from modules.duci.baselines import average_logit, direct_aggregation, mean_score
from modules.duci.groups import by_vulnerability, joined
from modules.duci.rates import Known
from modules.duci.rehearse import Attack, Rehearsals, attack_target, rehearse
from modules.duci.thresholds import guesses, thresholds
from modules.duci.usage import Usage, usage


@dataclass(frozen=True)
class Method:
    """What a user chooses."""

    attack: Attack
    fpr: float | None = None  # that the threshold keeps; None is Youden's
    debias: Literal["dataset", "subgroups", "record"] = "dataset"
    subgroups: int = 6
    rehearsals: int | None = None  # at most so many pairs are held out in turn
    min_advantage: float = 0.1
    level: float = 0.95


@dataclass(frozen=True)
class Learnt:
    """What the references tell about the attack on the dataset."""

    evidence: Evidence  # about the dataset's records only
    rehearsals: Rehearsals
    thresholds: Float[Array, " N"]
    known: Known
    groups: Int[Array, "M N"] | None


def learn(evidence: Evidence, method: Method, half: Bool[Array, " N"]) -> Learnt:
    """Rehearse the attack, choose the thresholds of either half on the other, find the groups. Never reads the target.

    Raises ValueError where there are too few references, or one half has no members or no non-members.
    """
    found = rehearse(evidence, method.attack, method.rehearsals)
    cut = thresholds(found.scores, found.trained_on, half, method.fpr)
    by_group = method.debias == "subgroups"
    groups = by_vulnerability(found.scores, found.trained_on, found.layout, method.subgroups) if by_group else None
    return Learnt(evidence, found, cut, Known(guesses(found.scores, cut), found.trained_on), groups)


def answers(
    seen: Evidence,
    learnt: Learnt,
    method: Method,
    member: Bool[Array, " N"],
    parts: Mapping[str, Bool[Array, " N"]],
    *,
    model: str,
    proportion: float = math.nan,
    trial: int = 0,
) -> list[Answer]:
    """One answer for each part of the dataset. `member`, the truth, is only compared with the estimates.

    Raises ValueError where a part is too small to have rates.
    """
    scores = attack_target(seen, learnt.rehearsals, method.attack)
    guessed = guesses(scores, learnt.thresholds)
    references = learnt.evidence.references.mean(axis=1)
    found = []
    for name, part in parts.items():
        inside, of_part = member[part], guessed[:, part]
        found.append(
            Answer(
                model=model,
                part=name,
                proportion=proportion,
                trial=trial,
                records=int(part.sum()),
                truth=float(inside.mean()),
                usage=_usage(of_part, learnt, method, part),
                direct=direct_aggregation(of_part),
                score=mean_score(scores[:, part]),
                mle=average_logit(
                    seen.target[:, part].mean(axis=0), references[:, part], learnt.evidence.trained_on[:, part]
                ),
                tpr=float(of_part[:, inside].mean()) if inside.any() else math.nan,
                fpr=float(of_part[:, ~inside].mean()) if not inside.all() else math.nan,
            )
        )
    return found


def _usage(guessed: Bool[Array, "M n"], learnt: Learnt, method: Method, part: Bool[Array, " N"]) -> Usage:
    limits = {"level": method.level, "min_advantage": method.min_advantage}
    known, groups = learnt.known.of(part), None
    if learnt.groups is not None:
        of_part = learnt.groups[:, part]
        dense = np.unique(of_part, return_inverse=True)[1].reshape(of_part.shape)  # a part may lack some groups
        groups = joined(known, dense, **limits)
    return usage(guessed, known, groups, record_rates=method.debias == "record", **limits)
