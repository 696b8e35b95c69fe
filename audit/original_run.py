"""Signals of a run of the original Privacy Meter: where they are in its log_dir, and which records they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from core.config import Config
from core.errors import UserError
from core.metrics import auc

Draw = Literal["training", "later"]
IN_WORDS = {"training": "by the run that trained the models", "later": "by a run that found the models trained"}
SURE = 4.0  # standard errors by which one draw has to fit the references better than guessing, and than the other


def places(config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Places of the arrays in the log_dir of a run of the original tool: P(true class), points x models."""
    folder: Path = settings["original"]
    if taken := [key for key in ("file", "membership", "population", "samples") if settings[key]]:
        raise config.error(f"signals.{taken[0]}", "follows from signals.original: leave one of them out")
    if folder.resolve() == config.run.log_dir.resolve():
        raise config.error(
            "run.log_dir", "is signals.original: choose another, so that nothing of that run is replaced"
        )
    found = [name for name in ("rmia_signals", "loss_signals") if (folder / "signals" / f"{name}.npy").is_file()]
    if not found:
        raise config.error("signals.original", f"{folder} has no signals/rmia_signals.npy: is it the log_dir of a run?")
    if found[0] == "loss_signals" and settings["kind"] is None:
        raise config.error(
            "signals.kind",
            "loss_signals.npy holds probability in version 2 of the original tool, loss in forks of it: say which",
        )
    population, samples = folder / "signals" / f"{found[0]}_pop.npy", folder / "signals" / "rmia_ramia_signals.npy"
    asked = any(call.name == "ramia" for call in config.modules)
    return {
        "file": folder / "signals" / f"{found[0]}.npy",
        "kind": settings["kind"] or "probability",
        "axes": "points_models",
        "membership": str(folder / "models" / "memberships.npy"),
        "membership_axes": "models_points",
        "population": str(population) if population.is_file() else None,
        "samples": str(samples) if asked and samples.is_file() else None,
    }


def audited(
    signals: Float[Array, "M n"],
    member: Bool[Array, "A D"],
    seed: int,
    targets: Sequence[int],
    told: Draw | None,
    what: str,
) -> tuple[Int[Array, " n"], Draw]:
    """Which records a run with `data_size` n audited, and when it drew them. UserError where that cannot be told.

    member: of all A models that it trained, of which the signals may be of the first M only.

    Its draw depends on its seed and on what it had drawn before: the splits, if it was the run that trained the models
    (`training`), nothing if it found them trained (`later`). The seed is known to be right if it gives the memberships.
    Which draw it was is judged by models that are no targets: they know their own members only under the right one.
    Models 0 and 1 cannot tell, as both draws list members of model 0 first.
    """
    count = signals.shape[1]
    candidates = {draw: drawn(member, count, seed, draw) for draw in ("training", "later")}
    if told is not None:
        return candidates[told], told
    twins = {model for target in targets for model in (target, target ^ 1)}
    judges = [model for model in range(2, len(signals)) if model not in twins]
    fits = {draw: _fit(signals, member[: len(signals), points], judges) for draw, points in candidates.items()}
    best, other = sorted(candidates, key=lambda draw: -fits[draw])
    error = 1 / np.sqrt(3 * count * max(len(judges) // 2, 1))  # of a mean AUC over pairs of twins, were nothing known
    if not judges or fits[best] - 0.5 < SURE * error or fits[best] - fits[other] < SURE * error * np.sqrt(2):
        said = (
            ", ".join(f"{IN_WORDS[draw]}: AUC {fits[draw]:.3f}" for draw in candidates) if judges else "no references"
        )
        raise UserError(
            f"{what} is of {count} of {member.shape[1]} records, and their references do not tell which ({said}): say "
            "signals.original_draw: training | later, or give signals.points, the index of each"
        )
    return candidates[best], best


def _fit(signals: Float[Array, "M n"], member: Bool[Array, "M n"], judges: Sequence[int]) -> float:
    both = [m for m in judges if member[m].any() and not member[m].all()]
    return float(np.mean([auc(signals[m], member[m]) for m in both])) if both else 0.5


def drawn(member: Bool[Array, "M D"], count: int, seed: int, draw: Draw) -> Int[Array, " n"]:
    """The records that a run of this seed drew, as it ordered them: members of model 0, then others.

    UserError if the seed does not give these memberships, or the count is odd, as no such run has.
    """
    models, pool = member.shape
    state = np.random.RandomState(seed)
    order = np.arange(pool)
    for pair in range(models // 2):
        state.shuffle(order)  # on and on: each pair shuffles the order of the last
        first = np.zeros(pool, dtype=bool)
        first[order[: pool // 2]] = True
        if (member[2 * pair] != first).any() or (member[2 * pair + 1] == first).any():
            raise UserError(
                f"run.random_seed {seed} does not draw the memberships of that run: give the random_seed that it had, "
                "or signals.points, the index of each record that it audited"
            )
    if count % 2 or count // 2 > min(member[0].sum(), (~member[0]).sum()):
        raise UserError(f"no run of the original tool audits {count} of {pool} records: give signals.points")
    if draw == "later":
        state = np.random.RandomState(seed)
    halves = [state.choice(np.flatnonzero(side), count // 2, replace=False) for side in (member[0], ~member[0])]
    return np.concatenate(halves)
