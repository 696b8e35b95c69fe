"""What an audit found: the input of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from core.types import Roc, Settings, Summary


@dataclass(frozen=True)
class AttackResult:
    """One attack on one target."""

    attack: str  # unique label within a run: "RMIA", or "RMIA (gamma=2)" where one attack runs in two settings
    settings: Settings  # all of them, defaults included
    scores: Float[Array, " N"]
    roc: Roc
    summary: Summary
    notes: tuple[str, ...]  # what the attack chose by itself, in words: "a = 0.3, tuned on 8 rehearsals"
    seconds: float


@dataclass(frozen=True)
class TargetResult:
    """Every attack on one target."""

    target: int  # model id
    member: Bool[Array, " N"]
    attacks: tuple[AttackResult, ...]  # in the order of audit.algorithm; the same in every target


@dataclass(frozen=True)
class Section:
    """What another audit than MIA adds to the report; its own files are in report/<name>/."""

    name: str  # "ramia", "duci", "dp_audit"
    title: str
    verdict: str  # one plain sentence with its uncertainty, also printed in the terminal
    html: str  # markup that is safe to embed: every value in it escaped by the audit's own template


@dataclass(frozen=True)
class More:
    """Models that another audit trains beside the run's own, as `--check` counts them."""

    what: str  # in words: "synthetic targets"
    models: int
    to_train: int
    keeps_weights: bool = True
    signals: int = 0  # float32 numbers kept of each model


@dataclass(frozen=True)
class AuditResult:
    """A whole run, ready to be written down."""

    targets: tuple[TargetResult, ...]
    points: Int[Array, " N"]  # indices of the audited points into the pool
    labels: Int[Array, " N"]
    models: tuple[Mapping[str, Any], ...]  # one row a trained model: id, role, num_train, train_acc, test_acc, seconds
    dataset: str
    population: int  # P
    queries: int  # Q
    config: str  # the YAML as run
    environment: Mapping[str, Any]  # versions, device, commit
    timings: tuple[tuple[str, float], ...]  # stage, seconds; in order
    warnings: tuple[str, ...]
    sections: tuple[Section, ...] = ()
