"""The runs of a DP audit: models trained with canaries in their data, and each canary's score."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from audit import training
from audit.dp_audit_canaries import ADVERSARIAL, canaries_of, is_made
from audit.engines import run_units
from audit.results import More
from audit.session import Session, device_of
from audit.signals import compute_missing, evidence
from audit.workers import Lost
from core import rundir
from core.config import Call
from core.errors import UserError
from core.log import progress
from core.registry import ATTACKS
from core.types import Evidence, Plan, Settings
from dataset.canaries import membership

if TYPE_CHECKING:
    import torch

    from trainers.dp_loop import Dense, Dirac
    from trainers.resident import Resident

log = logging.getLogger(__name__)

GRADIENTS = ("dirac_gradient", "random_gradient")
UNCLIPPED = 10.0  # norm of a gradient canary over max_grad_norm: clipping has to do its work on it
MOST_BYTES = 2e9  # of the directions of random_gradient canaries


@dataclass(frozen=True)
class Arm:
    """One way to train, audited by one kind of canary."""

    training: str  # "dp", "nondp", "mechanism"
    kind: str
    title: str  # of the training algorithm: arms of one title are audits of one thing
    trainer: Call | None = None
    attack: Call | None = None  # None: scored from within (white box, mechanism)
    references: int = 0
    mechanism: Call | None = None
    truth: Callable[[Settings, float], float] | None = None  # ε of the mechanism

    @property
    def name(self) -> str:
        """Of its folder and files."""
        return f"{self.training}_{self.kind}"

    @property
    def score(self) -> str:
        """Where the scores come from, in words."""
        if self.attack is not None:
            return self.attack.label
        return "what the mechanism says" if self.mechanism else "white box: gradients seen in every step"

    def accounted(self, delta: float) -> float | None:
        """ε at `delta` by the accountant, or of the mechanism; None where nothing is promised."""
        if self.mechanism is not None:
            return None if self.truth is None else self.truth(self.mechanism.settings, delta)
        if self.training != "dp":
            return None
        from trainers.dp_sgd import privacy

        assert self.trainer is not None
        return privacy(self.trainer.settings, self.trainer.settings["public_size"])["epsilon"]


@dataclass(frozen=True)
class Run:
    """One model: its canaries' scores, which of them were members, and what the model is good for."""

    scores: Float[Array, " m"]
    member: Bool[Array, " m"]
    facts: Mapping[str, Any]  # train_acc, test_acc, …; empty for a mechanism


# --- black box: records as canaries, any attack ------------------------------------------------------------------


def black_box(session: Session, arm: Arm, count: int) -> list[Run]:
    """Train the targets (and the references, which see no canary), ask them about the canaries, attack."""
    assert arm.attack is not None
    here, references = sessions(session, arm, count)
    for models in (here, references):
        if models.plan.targets:
            training.train_missing(models, device_of(session.config, "train"))
            compute_missing(models, device_of(session.config, "audit"))
    runs = []
    for t in here.plan.targets:
        seen = with_references(evidence(here, t), [evidence(references, r) for r in references.plan.targets])
        scores = np.asarray(ATTACKS[arm.attack.name](seen, **arm.attack.settings), dtype=float)
        runs.append(Run(scores, here.plan.member[t, here.points], training.facts(here, t)))
    return runs


def sessions(session: Session, arm: Arm, count: int) -> tuple[Session, Session]:
    """Two sets of models beside the run's own: the targets of an arm, and its references.

    The canaries of a kind are the same for all of them. Every model trains on all other records of the pool,
    a target on each canary by the toss of a coin, a reference on none.
    """
    assert arm.trainer is not None and arm.attack is not None
    made = canaries_of(session, arm.kind, count)
    pool = made.data.pool
    lengths = () if pool.lengths is None else (pool.lengths,)
    config = replace(session.config, trainer=arm.trainer, attacks=(arm.attack,))
    here = replace(
        session,
        config=config,
        data=made.data,
        points=made.canaries,
        pool_digest=rundir.digest(pool.x, pool.y, made.data.mean, made.data.std, *lengths),
        name=f"dp_audit/{arm.name}",
    )
    runs = range(config.run.num_experiments)
    member = [membership(made.fixed, count, here.stream("membership", t)) for t in runs]
    without = np.arange(len(pool)) < made.fixed
    targets = Plan(np.stack(member), ((),) * len(runs))
    references = Plan(np.tile(without, (arm.references, 1)), ((),) * arm.references)
    return replace(here, plan=targets), replace(here, plan=references, name=f"{here.name}/references")


def with_references(target: Evidence, references: list[Evidence]) -> Evidence:
    """The target's evidence with models beside it that were attacked on the same points, and trained on none."""
    if not references:
        return target
    return replace(
        target,
        references=np.stack([one.target for one in references]),
        trained_on=np.zeros((len(references), target.target.shape[1]), dtype=bool),
        population_references=np.stack([one.population for one in references]),
        also={
            name: with_references(seen, [one.also[name] for one in references]) for name, seen in target.also.items()
        },
    )


def models_of(session: Session, arm: Arm, count: int) -> list[More]:
    """What an arm trains, without making anything."""
    runs, what = session.config.run.num_experiments, f"{arm.training} with {arm.kind} canaries"
    if arm.kind in GRADIENTS:
        here = replace(session, name=f"dp_audit/{arm.name}")
        done = sum(_is_made(here, arm, t, count) for t in range(runs))
        return [More(what, runs, runs - done, keeps_weights=False, signals=count)]
    if arm.kind == ADVERSARIAL and not is_made(session, count):  # the canaries themselves need a model first
        return [More(what, runs + arm.references + 1, runs + arm.references + 1, signals=count)]
    both = [models for models in sessions(session, arm, count) if models.plan.targets]
    to_train = sum(len(training.missing_models(models)) for models in both)
    return [More(what, runs + arm.references, to_train, signals=count)]


# --- white box: gradients as canaries ----------------------------------------------------------------------------


def white_box(session: Session, arm: Arm, count: int) -> list[Run]:
    """Train each target with DP-SGD on the pool and on gradient canaries, and keep what its releases said of them."""
    here, runs = replace(session, name=f"dp_audit/{arm.name}"), []
    numbers = [t for t in range(session.config.run.num_experiments) if not _is_made(here, arm, t, count)]
    what = f"training with {arm.kind} canaries"
    units = run_units(here, numbers, partial(_trainer, arm, count), "train", what=what)
    if lost := {t: answer.reason for t, answer in progress(units, what, len(numbers)) if isinstance(answer, Lost)}:
        reasons = "; ".join(f"model {t}: {why}" for t, why in sorted(lost.items()))
        raise UserError(f"{len(lost)} models with {arm.kind} canaries could not be trained: {reasons}")
    for t in range(session.config.run.num_experiments):
        member = _coins(here, t, count)
        path, _ = _scores(here, arm, t, member)
        made = rundir.read_stamp(path)
        assert made is not None
        runs.append(Run(np.load(path, allow_pickle=False), member, made["facts"]))
    return runs


def _is_made(here: Session, arm: Arm, t: int, count: int) -> bool:
    return rundir.is_made(*_scores(here, arm, t, _coins(here, t, count)))


def _trainer(arm: Arm, count: int, here: Session, device: torch.device) -> Callable[[int], None]:
    """What trains model t of an arm, and writes its scores."""
    from trainers.resident import Resident

    data = here.data
    pool = Resident.of(data.pool, data.mean, data.std, device)
    population = Resident.of(data.population, data.mean, data.std, device)

    def train(t: int) -> None:
        member = _coins(here, t, count)
        path, stamp = _scores(here, arm, t, member)
        scores, facts = _trained(here, arm, t, member, pool, population)
        rundir.make(path, stamp, lambda file: np.save(file, scores, allow_pickle=False), **facts)

    return train


def _coins(here: Session, t: int, count: int) -> Bool[Array, " m"]:
    return membership(0, count, here.stream("membership", t))


def _scores(here: Session, arm: Arm, t: int, member: Bool[Array, " m"]) -> tuple[Path, dict[str, Any]]:
    """Where the scores of a run are kept, and their stamp."""
    return here.folder / "scores" / f"scores_{t}.npy", _stamp(here, arm, t, member)


def _stamp(here: Session, arm: Arm, t: int, member: Bool[Array, " m"]) -> dict[str, Any]:
    assert arm.trainer is not None
    return {
        **replace(here.config, trainer=arm.trainer).settings(),
        "canaries": arm.kind,
        "model number": t,
        "pool records (sha256)": here.pool_digest,
        "members among the canaries (sha256)": rundir.digest(member),
    }


def _trained(
    here: Session, arm: Arm, t: int, member: Bool[Array, " m"], pool: Resident, population: Resident
) -> tuple[Float[Array, " m"], dict[str, Any]]:
    import models
    from trainers.dp_loop import GradientCanaries
    from trainers.dp_sgd import train_one

    if here.data.is_text:
        from trainers.text import accuracy_and_loss
    else:
        from trainers.evaluate import accuracy_and_loss
    assert arm.trainer is not None
    config, shape, classes = here.config, here.data.input_shape, here.data.num_classes
    model = models.build(config.model.name, config.model.settings, shape, classes, here.stream("init", t))
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    chosen = directions(arm.kind, len(member), size, here.stream("directions", t), pool.device)
    canaries = GradientCanaries(member, chosen, norm=UNCLIPPED * arm.trainer.settings["max_grad_norm"])
    everyone = np.ones(len(pool), dtype=bool)
    train_one(model.to(pool.device), pool, everyone, here.stream("train", t), arm.trainer.settings, canaries)
    train_acc, train_loss = accuracy_and_loss(model, pool, None, config.audit.batch_size)
    test_acc, test_loss = accuracy_and_loss(model, population, None, config.audit.batch_size)
    log.info("model %4d  train accuracy %.3f  test accuracy %.3f, with %s canaries", t, train_acc, test_acc, arm.kind)
    facts = {"train_acc": train_acc, "test_acc": test_acc, "train_loss": train_loss, "test_loss": test_loss}
    return canaries.score, facts


def directions(kind: str, count: int, size: int, rng: np.random.Generator, device: torch.device | str) -> Dirac | Dense:
    """A coordinate of its own for each canary, or for each a random unit vector of the model's `size` weights."""
    import torch

    from trainers.dp_loop import Dense, Dirac

    check_size(kind, count, size)
    if kind == "dirac_gradient":
        return Dirac(torch.as_tensor(rng.choice(size, count, replace=False), device=device))
    vectors = torch.as_tensor(rng.standard_normal((count, size), dtype=np.float32))
    return Dense((vectors / vectors.norm(dim=1, keepdim=True)).to(device))


def check_size(kind: str, count: int, size: int) -> None:
    """UserError where a model of `size` weights has no room for so many gradient canaries, or the memory has none."""
    if kind == "dirac_gradient" and count > size:
        raise UserError(f"{count} dirac_gradient canaries need a weight each, the model has {size}: take fewer")
    if kind == "random_gradient" and 4 * count * size > MOST_BYTES:
        raise UserError(
            f"{count} random_gradient canaries of {size} weights need {4e-9 * count * size:.0f} GB: use dirac_gradient"
        )
