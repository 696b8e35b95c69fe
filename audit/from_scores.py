"""`scores:` in a config: an audit of scores that somebody else's attack gave, beside who was a member (tier 0)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray as Array

from audit import available, blind, runtime
from audit.bounds_on_scores import DpBound, bounds_section, check_bound
from audit.checks import Draw, check_scores
from audit.results import AttackResult, AuditResult, TargetResult
from audit.risk_of_scores import assess_scores
from core import rundir
from core.config import Config
from core.errors import UserError
from core.log import kept
from core.metrics import NOMINAL_FPRS, roc, summarise
from core.registry import SOURCES
from core.rng import stream
from core.tables import INDEX, Columns, as_member, as_text, column_of, read_table

log = logging.getLogger(__name__)

RESERVED = ("index", "id", "label", "membership", "target")


@dataclass(frozen=True)
class Scored:
    """The table: a row a record of a target, larger scores = more likely a member."""

    rows: int
    member: Bool[Array, " rows"]
    scores: Mapping[str, Array]  # by column, those turned round that grow the other way
    turned: tuple[str, ...]  # which were turned round
    target: Shaped[Array, " rows"]  # number of each row's target
    targets: tuple[str, ...]  # their names; one nameless one without a column of targets
    known: Mapping[str, Shaped[Array, " rows"]]  # id, label, groups


def run(config: Config, *, only_report: bool = False) -> AuditResult:
    """Measure the scores and write the report. Raises UserError for a table that cannot be used, and writes nothing.

    only_report: of a finished run; its report is written anew, with its own environment and times.
    """
    from audit.report import write_report

    start = time.perf_counter()
    for warning in config.warnings():
        log.warning(warning)
    settings = config.origin.settings
    table = _table(config, settings)
    draw = partial(stream, config.run.random_seed)
    targets = tuple(_measured(config, table, number, draw) for number in range(len(table.targets)))
    with rundir.lock(config.run.log_dir), kept(config.run.log_dir / "run.log"):
        where = runtime.begin(config, None, only_report)
        sections = () if settings["dp"] is None else (bounds_section(config, settings["dp"], targets, table.targets),)
        for section in sections:
            log.info("%s", section.verdict)
        checks = (*blind.checks(targets, config.audit.blind_baseline), *check_scores(targets, draw))
        for check in checks:
            log.log(logging.WARNING if check.status == "look" else logging.INFO, "%s: %s", check.name, check.finding)
        result = AuditResult(
            targets=targets,
            checks=checks,
            risk=assess_scores(targets, table.known, draw),
            points=np.arange(table.rows),
            labels=table.known.get("label"),
            models=(),
            dataset=settings["dataset"] or settings["file"].name,
            population=0,
            queries=1,
            config=config.source.text,
            environment=where,
            timings=(("read and measure", time.perf_counter() - start),) if config.run.time_log else (),
            warnings=tuple(config.warnings()),
            sections=sections,
            ids=table.known.get("id"),
            about=_about(settings, table),
            redacted=config.audit.redact,
        )
        result = runtime.end(result, config, only_report)
        write_report(result, config.report_dir, log_times=not only_report)
    return result


def check(config: Config) -> str:
    """What would be measured. Raises UserError as the run would; writes nothing."""
    settings = config.origin.settings
    table = _table(config, settings)
    lines = [*config.warnings(), *_about(settings, table).values()]
    for number, name in enumerate(table.targets):
        of_target = table.target == number
        members = int(table.member[of_target].sum())
        lines.append(f"target    {name} {members} members, {int(of_target.sum()) - members} non-members")
    lines.append(
        f"attacks   the scores themselves: {', '.join(table.scores)}; of this tool's, by their default settings:"
    )
    lines += available.lines_of_scores()
    bound = settings["dp"]
    lines.append("dp        " + ("no bound: there is no scores.dp" if bound is None else f"a bound by {bound.design}"))
    return "\n".join(lines)


@SOURCES.register(
    "scores",
    summary="a table of scores with memberships (csv, tsv, parquet, npz)",
    run=run,
    check=check,
    needs_algorithm=False,
    idle=(
        "algorithm",
        "num_ref_models",
        "data_size",
        "population_size",
        "queries",
        "batch_size",
        "precision",
        "device",
    ),
)
def scores(
    config: Config,
    *,
    file: Path,
    score: str | tuple[str, ...],
    higher_is_member: bool | dict[str, bool],
    member: str = "member",
    id: str | None = None,
    label: str | None = None,
    groups: tuple[str, ...] = (),
    target: str | None = None,
    dp: DpBound | None = None,
    dataset: str | None = None,
) -> AuditResult:
    """Measure scores: a table with a row for each record, its membership and its scores. No model is needed.

    - file: .csv, .tsv, .parquet, or .npz with an array for each column
    - score: the column, or columns, of scores; several are reported as several attacks
    - higher_is_member: true if larger scores mean members, false if smaller ones do, as of a loss; or {column: …}.
      It has no default: the wrong one turns the result round
    - member: the column that says who was a member: 1 and 0, or true and false
    - id: a column of names of the records, repeated in every table of records
    - label: a column of labels, repeated too
    - groups: further columns to repeat
    - target: a column that says which model each row is about; each is measured by itself
    - dp: also bound ε of differential privacy: {design: one_run or two_worlds, delta: …}
    - dataset: what the report calls these data; the file's name if left out
    """
    return run(config)


def _table(config: Config, settings: Mapping[str, Any]) -> Scored:
    """The table, checked, each mistake at its key."""
    path: Path = settings["file"]
    try:
        columns = read_table(path)
    except UserError as error:
        raise config.error("scores.file", str(error)) from None
    names = (settings["score"],) if isinstance(settings["score"], str) else settings["score"]
    if not names or len(set(names)) < len(names):
        raise config.error("scores.score", "names no column, or one twice: which holds the scores?")
    reader = _Reader(config, path, columns)
    member = reader.column("member", settings["member"])
    try:
        member = as_member(member, f"{path}, column {settings['member']!r}")
    except UserError as error:
        raise config.error("scores.member", str(error)) from None
    turned = _turned(config, names, settings["higher_is_member"])
    found = {name: reader.scores(name) * (-1 if name in turned else 1) for name in names}
    target = reader.column("target", settings["target"]) if settings["target"] else np.zeros(len(member), int)
    models, numbers = np.unique(as_text(target), return_inverse=True)
    known = {key: as_text(reader.column(key, settings[key])) for key in ("id", "label") if settings[key]}
    for name in settings["groups"]:
        known[f"group {name}" if name in RESERVED else name] = as_text(reader.column("groups", name))
    for number, model in enumerate(models):
        here = member[numbers == number]
        if here.all() or not here.any():
            which = f"of target {model} " if settings["target"] else ""
            all_or_none = "all" if here.all() else "none"
            counted = f"{all_or_none} of the {len(here)} records {which}are members"
            raise config.error("scores.member", f"{counted}: both kinds are needed")
    if settings["dp"] is not None:
        check_bound(config, settings["dp"], [int((numbers == n).sum()) for n in range(len(models))], len(names))
    labels = tuple(models.tolist()) if settings["target"] else ("",)
    return Scored(len(member), member, found, turned, numbers, labels, known)


class _Reader:
    """Columns of one length, each mistake at the key that names the column."""

    def __init__(self, config: Config, path: Path, columns: Columns) -> None:
        self.config, self.path, self.columns = config, path, columns

    def column(self, key: str, name: str) -> Array:
        try:
            column = column_of(self.columns, name, self.path)
        except UserError as error:
            raise self.config.error(f"scores.{key}", str(error)) from None
        if column.ndim != 1 or len(column) != len(self.columns.get(self._first(), column)):
            message = f"{self.path}: {name!r} has the shape {column.shape}: one value a record is needed"
            raise self.config.error(f"scores.{key}", message)
        return column

    def _first(self) -> str:
        return next(name for name in self.columns if name != INDEX)

    def scores(self, name: str) -> Array:
        column = self.column("score", name)
        if column.dtype.kind not in "iuf":
            raise self.config.error("scores.score", f"{self.path}: column {name!r} holds {column.dtype}, not numbers")
        if nans := int(np.isnan(column).sum()):
            missing = f"{nans} of {len(column)} scores in {name!r} are missing or NaN"
            raise self.config.error("scores.score", f"{self.path}: {missing}")
        return column.astype(np.float64)


def _turned(config: Config, names: tuple[str, ...], higher: bool | Mapping[str, bool]) -> tuple[str, ...]:
    """The columns whose smaller values mean members."""
    if isinstance(higher, bool):
        return () if higher else names
    if wrong := set(higher) ^ set(names):
        named = ", ".join(sorted(wrong))
        raise config.error("scores.higher_is_member", f"say it of every score and of no other column: {named}")
    return tuple(name for name in names if not higher[name])


def _measured(config: Config, table: Scored, number: int, draw: Draw) -> TargetResult:
    """Every score of one target as an attack."""
    rows = np.flatnonzero(table.target == number)
    member = table.member[rows]
    results = []
    for name, scores in table.scores.items():
        start = time.perf_counter()
        of_target = scores[rows]
        summary = summarise(of_target, member, nominal_fprs=NOMINAL_FPRS)
        settings = {"column": name, "higher_is_member": name not in table.turned}
        turned = ("the column was multiplied by -1: smaller values mean members",) if name in table.turned else ()
        seconds = time.perf_counter() - start
        results.append(AttackResult(name, settings, of_target, roc(of_target, member), summary, turned, seconds))
        low, high = summary.auc.low, summary.auc.high
        named = f" {table.targets[number]}" if table.targets[number] else ""
        log.info("target%s  %-14s AUC %.4f [%.4f, %.4f]", named, name, summary.auc.value, low, high)
    named = {"target": np.full(len(rows), table.targets[number])} if table.targets[number] else {}
    columns = {"index": rows, **named, **{name: column[rows] for name, column in table.known.items()}}
    told = None
    if config.audit.blind_baseline is not False:
        seen = {name: column[rows] for name, column in table.known.items() if name != "id"}
        told = blind.of_views(blind.of_columns(seen), member, draw("blind baseline", number))
    return TargetResult(number, member, tuple(results), told, columns)


def _about(settings: Mapping[str, Any], table: Scored) -> dict[str, str]:
    path: Path = settings["file"]
    what = f"{', '.join(table.scores)} of {table.rows} rows of {path} (sha256 {rundir.digest(path.read_bytes())[:16]}…)"
    numbered = ", ".join(f"{n}: {name}" for n, name in enumerate(table.targets))
    several = {"Target models": numbered} if len(table.targets) > 1 else {}
    return {
        "Scores": f"{what}. How they were made is not known to this tool.",
        "Memberships": f"column {settings['member']}, as given. This tool did not draw them by lot.",
        **several,
    }
