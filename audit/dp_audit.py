"""`dp_audit:` in a config: how private is the training at least *not*? A lower bound on ε from canaries.

Models of its own are trained: on the pool with canaries in it by lot, with DP-SGD (`dp`) and as `train:` says
(`nondp`). An attack scores the canaries, and what it gets right bounds ε (modules/dp_audit). Gradient canaries are
put into DP-SGD itself. With `mechanism:` nothing is trained: a function of the membership bits is audited.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval

from audit.dp_audit_runs import GRADIENTS, Arm, Run, black_box, models_of, white_box
from audit.dp_audit_setup import MECHANISMS, Claim, Setup, Training, check_model, setup_of
from audit.results import More, Section, TargetResult
from audit.session import Session
from core.registry import MODULES
from dataset.canaries import membership
from modules.dp_audit import (
    EpsilonBound,
    Verdict,
    audit_one_run,
    best_of,
    exploratory_maximum,
    level_of_each,
    verdict,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audited:
    """A run, and what its scores show by themselves."""

    run: Run
    bound: EpsilonBound  # at the run's share of the error
    exploratory: EpsilonBound


@dataclass(frozen=True)
class Found:
    """All audits of one training algorithm, or mechanism, and what they show together."""

    title: str
    arms: tuple[tuple[Arm, tuple[Audited, ...]], ...]
    bound: EpsilonBound  # of all of them, at the level asked for
    accounted: float | None  # ε by the accountant, or of the mechanism
    verdict: Verdict | None


def check(session: Session, **settings: Any) -> None:
    """Everything that can be wrong with the block, at its line; before anything is trained."""
    setup = setup_of(session, **settings)
    if any(arm.training == "dp" for arm in setup.arms):
        check_model(session, setup)


def more(session: Session, **settings: Any) -> tuple[More, ...]:
    """The models of each arm, as `--check` counts them."""
    setup = setup_of(session, **settings)
    return tuple(one for arm in setup.arms if arm.mechanism is None for one in models_of(session, arm, setup.canaries))


@MODULES.register(
    "dp_audit", summary="how much privacy is there at most? A lower bound on epsilon", check=check, more=more
)
def dp_audit(
    session: Session,
    targets: tuple[TargetResult, ...],
    *,
    canary_dataset: str | tuple[str, ...] = "mislabelled",
    canary_size: Annotated[int, Ge(2)] = 1000,
    training_alg: Training | tuple[Training, ...] = "dp",
    attack: str | dict[str, Any] | None = None,
    references: Annotated[int, Ge(1)] | None = None,
    dp_sgd: dict[str, Any] = {},  # noqa: B006  (never changed)
    delta: Annotated[float, Interval(ge=0, lt=1)] = 1e-5,
    level: Annotated[float, Interval(gt=0, lt=1)] = 0.95,
    guesses: str | dict[str, Any] = "fixed",
    estimator: Literal["one_run", "f_dp", "gaussian"] = "one_run",
    claim: Claim | None = None,
    mechanism: str | dict[str, Any] | None = None,
) -> Section:
    """Train with canaries in the data by lot, guess which ones are in, and bound ε by how often that is right.

    run.num_experiments models are trained of each kind; each is an audit of its own, at its share of the error.

    - canary_dataset: kinds of canaries: mislabelled, natural, blank, random_noise, out_of_distribution, clipbkd,
      adversarial; of texts: random_tokens, natural; dirac_gradient and random_gradient are put into DP-SGD as gradients
      and looked for in every step (white box)
    - canary_size: canaries of each kind, each a member with probability 1/2
    - training_alg: dp (DP-SGD), nondp (as `train:` says), or both
    - attack: whose scores the guesses follow; the first of audit.algorithm if left out
    - references: models without any canary, for an attack that needs some; audit.num_ref_models if left out
    - dp_sgd: settings of the trainer dp_sgd; those not given are taken from `train:`, as far as it has them
    - delta: of the bound, and of the accountant
    - level: confidence of everything said of one training algorithm together
    - guesses: how many guesses: fixed, split, multi_split, bonferroni, calibrated, step_wise, or {name: …, and its
      settings}
    - estimator: one_run (Steinke et al. 2023) and f_dp (Mahloujifar et al. 2025) hold for every mechanism; gaussian is
      tighter and holds for Gaussian mechanisms only
    - claim: {epsilon, delta} to be tested; what the accountant says if left out
    - mechanism: audit this function of the membership bits instead of a training: gaussian, laplace,
      randomised_response, or one registered in a plugin
    """
    from audit.dp_audit_report import write

    setup = setup_of(
        session,
        canary_dataset=canary_dataset,
        canary_size=canary_size,
        training_alg=training_alg,
        attack=attack,
        references=references,
        dp_sgd=dp_sgd,
        delta=delta,
        level=level,
        guesses=guesses,
        estimator=estimator,
        claim=claim,
        mechanism=mechanism,
    )
    groups: dict[str, list[Arm]] = {}
    for arm in setup.arms:
        groups.setdefault(arm.title, []).append(arm)
    found = [_found(session, setup, title, arms) for title, arms in groups.items()]
    return write(setup, found, session.config.report_dir / "dp_audit")


def _found(session: Session, setup: Setup, title: str, arms: Sequence[Arm]) -> Found:
    """Every arm run and audited. All bounds of one algorithm share one error: the best of them may be told."""
    runs = session.config.run.num_experiments
    each = level_of_each(setup.level, len(arms) * runs)
    audited = tuple(
        (arm, tuple(_audited(session, setup, arm, t, each, run) for t, run in enumerate(_runs(session, setup, arm))))
        for arm in arms
    )
    best = best_of([one.bound for _, of_arm in audited for one in of_arm])
    known_epsilons = [epsilon for arm in arms if (epsilon := arm.accounted(setup.delta)) is not None]
    accounted = max(known_epsilons, default=None)
    epsilon, delta = _claimed(setup, accounted)
    said = None if epsilon is None else verdict(best, epsilon=epsilon, delta=delta)
    log.info("%s: %s", title, best)
    return Found(title, audited, best, accounted, said)


def _claimed(setup: Setup, accounted: float | None) -> tuple[float | None, float]:
    """The claim that is tested, or what the accountant says, rounded up to three digits; (None, δ) if there is none."""
    if setup.claim is None:
        promised = accounted is not None and np.isfinite(accounted)
        return (math.ceil(1000 * accounted) / 1000 if promised else None), setup.delta
    return setup.claim.epsilon, setup.delta if setup.claim.delta is None else setup.claim.delta


def _runs(session: Session, setup: Setup, arm: Arm) -> list[Run]:
    if arm.mechanism is not None:
        return [_of_mechanism(session, setup, arm, t) for t in range(session.config.run.num_experiments)]
    return (white_box if arm.kind in GRADIENTS else black_box)(session, arm, setup.canaries)


def _of_mechanism(session: Session, setup: Setup, arm: Arm, t: int) -> Run:
    draw = session.stream("dp_audit", "mechanism", arm.name, t)
    member = membership(0, setup.canaries, draw)
    assert arm.mechanism is not None
    scores = np.asarray(MECHANISMS[arm.mechanism.name](member, draw, **arm.mechanism.settings), dtype=float)
    if scores.shape != member.shape or np.isnan(scores).any():
        raise session.config.error(
            "dp_audit.mechanism",
            f"{arm.mechanism.label} gave scores of shape {scores.shape}, or NaN, for {len(member)} bits",
        )
    return Run(scores, member, {})


def _audited(session: Session, setup: Setup, arm: Arm, t: int, level: float, run: Run) -> Audited:
    draw = session.stream("dp_audit", "explore", arm.name, t)
    looked = exploratory_maximum(run.scores, run.member, draw, delta=setup.delta, level=setup.level)
    return Audited(run, _bound(session, setup, arm, t, level, run), looked)


def _bound(session: Session, setup: Setup, arm: Arm, t: int, level: float, run: Run) -> EpsilonBound:
    draw = session.stream("dp_audit", "guesses", arm.name, t)
    return audit_one_run(
        run.scores,
        run.member,
        draw,
        delta=setup.delta,
        level=level,
        choice=setup.choice,
        estimator=setup.estimator,
    )
