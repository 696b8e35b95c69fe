"""What an audit found: the input of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array

from core.types import Estimate, Roc, Settings, Summary
from modules.checks.blind import Blind
from modules.risk.calibrated import Trial
from modules.risk.records import Named


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
    blind: Blind | None = None  # what can be told of this membership without the model
    records: Mapping[str, Shaped[Array, " N"]] | None = None  # columns of its records; those of the whole audit if None


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
class Check:
    """A question that is asked of the audit itself before its numbers are believed."""

    name: str
    status: Literal["fine", "look", "untested"]
    finding: str  # one plain sentence with its numbers; what to do where there is something to do


@dataclass(frozen=True)
class TargetRisk:
    """The records of one target under the attack."""

    target: int
    scores: Float[Array, " N"]
    p_values: Float[Array, " N"] | None  # each record against itself; None where nothing could be rehearsed
    named: Named
    record_fpr: Float[Array, " N"] | None = (
        None  # of accusing this very record at its score; see modules.risk.calibrated
    )
    by_record: bool = False  # whether the list is of calibrated scores: where that finds no less on rehearsals
    trial: Trial | None = None  # of the calibration, on rehearsals


@dataclass(frozen=True)
class Exhibit:
    """A record as the report shows it: as a picture, a text or columns; by its name alone where it is redacted."""

    name: str  # its owner's name for it, or its index in the pool
    label: str
    exposure: float  # share of non-members that scored below it, over the targets that trained on it
    found: str  # "found in 3 of 4 models that trained on it"
    picture: str = ""  # base64 PNG
    text: str = ""
    columns: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class GroupRow:
    """A group over all targets: means of what was found in each, its intervals good for all groups of the column."""

    group: Any
    members: int  # over all targets
    non_members: int
    auc: Estimate | None
    tpr: float | None  # at the threshold for all records
    fpr: float | None
    own_tpr: float | None  # at the group's own threshold, where its non-members resolve it
    resolvable: bool
    exposed: bool  # its AUC is above that of all records with confidence


@dataclass(frozen=True)
class Risk:
    attack: str
    order: int  # its place in audit.algorithm
    chosen: str  # how, in words
    targets: tuple[TargetRisk, ...]
    exposure: Float[Array, " N"]  # share of non-members that scored below, mean over its targets; NaN if never a member
    member_in: Int[Array, " N"]  # targets that trained on the record
    found_in: Int[Array, " N"]  # of these, how many betray it at the threshold of `nominal_fpr`
    accused_in: Int[Array, " N"]  # of the others, how many make it look like a member
    nominal_fpr: float
    flips: Float[Array, " N"] | None  # None with fewer than 3 targets
    groups: Mapping[str, tuple[GroupRow, ...]]  # by column
    most: tuple[Exhibit, ...] = ()
    least: tuple[Exhibit, ...] = ()

    @property
    def realised_fpr(self) -> float | None:
        """On rehearsals, the share of records that a model did not train on with a record FPR of at most 1%."""
        known = [t.trial.realised_fpr for t in self.targets if t.trial is not None]
        return float(np.mean(known)) if known else None

    @property
    def resolution(self) -> float | None:
        """The smallest p-value that the references can show a record to have."""
        known = [t.p_values for t in self.targets if t.p_values is not None]
        return float(np.nanmin([np.nanmin(p) for p in known])) if known else None


@dataclass(frozen=True)
class Screening:
    """One target, without references."""

    target: int
    gap: float | None  # training accuracy minus test accuracy
    tail_tnr: Estimate  # share of non-members that are ruled out while 99% of the members are kept
    tail_resolvable: bool
    iqr: Float[Array, " N"] | None = None  # LT-IQR of members, NaN of others; None where no losses were recorded
    iqr_precision: float | None = None  # share of its top tenth that is in the top tenth of an attack with references

    @property
    def gap_attack(self) -> float | None:
        """Balanced accuracy of "a member if it is classified correctly" (Yeom et al. 2018, Sec. 3.2)."""
        return None if self.gap is None else (1 + self.gap) / 2


@dataclass(frozen=True)
class AuditResult:
    """A whole run, ready to be written down."""

    targets: tuple[TargetResult, ...]
    points: Int[Array, " N"]  # indices of the audited points into the pool
    labels: Int[Array, " N"] | None  # None if they are not known
    models: tuple[Mapping[str, Any], ...]  # one row a trained model: id, role, num_train, train_acc, test_acc, seconds
    dataset: str
    population: int  # P
    queries: int  # Q
    config: str  # the YAML as run
    environment: Mapping[str, Any]  # versions, device, commit
    timings: tuple[tuple[str, float], ...]  # stage, seconds; in order
    warnings: tuple[str, ...]
    sections: tuple[Section, ...] = ()
    checks: tuple[Check, ...] = ()  # of the audit itself
    risk: Risk | None = None  # of single records and groups
    screening: tuple[Screening, ...] = ()  # without references
    redacted: bool = False  # the report names records, and does not show them
    ids: Shaped[Array, " N"] | None = None  # what the data's owner calls each record
    groups: Mapping[str, Shaped[Array, " N"]] = field(default_factory=dict)  # further columns of the records
    about: Mapping[str, str] = field(
        default_factory=dict
    )  # of data from elsewhere: what is known of how they were made
