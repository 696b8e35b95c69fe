"""A finished run, read from the files of its report: what `compare` and `gate` work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray as Array

from core.errors import UserError
from core.loading import read_arrays, read_bytes
from core.rundir import read_stamp
from core.tables import as_text, read_table

DEFAULT_REPORT = "report"


@dataclass(frozen=True)
class FinishedTarget:
    target: int
    records: Mapping[str, Shaped[Array, " N"]]  # what is known of each record: index, id, label, groups
    member: Bool[Array, " N"]
    scores: Mapping[str, Float[Array, " N"]]  # by attack, in the order of audit.algorithm


@dataclass(frozen=True)
class Finished:
    name: str  # as it was given
    report: Path
    raw: Mapping[str, Any]  # the config as it was run, unchecked
    targets: tuple[FinishedTarget, ...]
    pool_digest: str | None  # of all records, where models were trained here

    @property
    def attacks(self) -> tuple[str, ...]:
        return tuple(self.targets[0].scores)

    @property
    def settings(self) -> dict[str, Any]:
        """The config as dotted keys."""
        return dict(_flat(self.raw))


def read(run: Path) -> Finished:
    """The run in a folder: its run.log_dir. Raises UserError where there is no finished run."""
    if not run.is_dir():
        raise UserError(f"{run}: there is no such folder; give the run.log_dir of a finished run, e.g. runs/quickstart")
    raw = config_of(run)
    report = run / report_name(raw)
    found = sorted((_number(path), path) for path in (report / "exp").glob("attack_result_*.npz"))
    if not found:
        raise UserError(f"{run} holds no report: the run is not finished; the same command continues it")
    targets = tuple(_target(report, number, path) for number, path in found)
    return Finished(str(run), report, raw, targets, _pool_digest(run))


def config_of(run: Path) -> dict[str, Any]:
    """What the run's config says, unchecked."""
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run} is no run: it has no config.yaml; give a run.log_dir, e.g. runs/quickstart")
    try:
        raw = yaml.safe_load(read_bytes(file))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file} is not the config of a run")
    return raw


def report_name(raw: Mapping[str, Any]) -> str:
    """The name of the report's folder in the run."""
    audit = raw.get("audit")
    return str(audit.get("report_log", DEFAULT_REPORT)) if isinstance(audit, dict) else DEFAULT_REPORT


def _number(path: Path) -> int:
    number = path.stem.removeprefix("attack_result_")
    if not number.isdigit():
        raise UserError(f"{path} is not a file of this tool: move it away")
    return int(number)


def _target(report: Path, number: int, path: Path) -> FinishedTarget:
    arrays = read_arrays(path)
    scores = {name.removesuffix("/scores"): column for name, column in arrays.items() if name.endswith("/scores")}
    table = report / "exp" / f"records_{number}.csv"
    columns = read_table(table)
    if "membership" not in columns or "memberships" not in arrays or not scores:
        raise UserError(f"{path} and {table.name} are not of this version of the tool: run its command again")
    member = arrays["memberships"].astype(bool)
    known = list(columns)[: list(columns).index("membership")]
    if any(len(column) != len(member) for column in (*scores.values(), columns["membership"])):
        raise UserError(f"{path} and {table.name} are of different runs: run the command again")
    return FinishedTarget(number, {name: columns[name] for name in known}, member, scores)


def _pool_digest(run: Path) -> str | None:
    for stamp in sorted((run / "models").glob("model_*.stamp.json"))[:1]:
        made = read_stamp(stamp.with_name(stamp.name.removesuffix(".stamp.json")))
        return made["settings"].get("pool records (sha256)") if made else None
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def same_records(a: FinishedTarget, b: FinishedTarget) -> Array:
    """The order of `b`'s records that makes them those of `a`. Raises UserError where they are other records."""
    ours, theirs = (list(zip(*(as_text(c).tolist() for c in t.records.values()), strict=True)) for t in (a, b))
    if list(a.records) != list(b.records) or sorted(ours) != sorted(theirs):
        alike = len(set(ours) & set(theirs)) if list(a.records) == list(b.records) else 0
        raise UserError(
            f"target {a.target} was attacked on other records in the two runs: {len(ours):,} and {len(theirs):,}, of "
            f"which {alike:,} are the same"
        )
    if ours == theirs:
        return np.arange(len(ours))
    place = {record: row for row, record in enumerate(theirs)}
    if len(place) < len(theirs):
        raise UserError(f"target {a.target}: its records have no names that tell them apart (give them ids)")
    return np.array([place[record] for record in ours])
