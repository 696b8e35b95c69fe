"""`signals:` in a config: an audit of what models said of the records, with no model at hand (tier 1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from audit.available import lacks, runnable
from audit.given import Given
from audit.given_ranges import GivenRanges, by_range
from audit.original_run import IN_WORDS, Draw, audited, places
from audit.plan import choose, plan_of
from audit.read_signals import (
    OTHER,
    Axes,
    Files,
    Kind,
    answers,
    check_fit,
    label_numbers,
    memberships,
    names,
    oriented,
    point_numbers,
)
from audit.session import Session
from core.config import Config
from core.errors import UserError
from core.loading import read_json
from core.registry import SOURCES
from core.rundir import digest
from core.types import AuditData, Plan, Records

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@SOURCES.register(
    "signals",
    summary="what models said of the records, from any framework (npy, npz, csv, parquet)",
    needs_algorithm=False,
    idle=("num_ref_models", "queries", "batch_size", "precision"),
)
def signals(
    config: Config,
    *,
    file: Path | None = None,
    kind: Kind | None = None,
    axes: Axes = "models_points",
    membership: str | None = None,
    membership_axes: Axes | None = None,
    population: str | None = None,
    labels: str | None = None,
    population_labels: str | None = None,
    points: str | None = None,
    ids: str | None = None,
    groups: dict[str, str] = {},  # noqa: B006  (read only)
    samples: str | None = None,
    range_membership: str | None = None,
    targets: tuple[Annotated[int, Ge(0)], ...] | None = None,
    references: tuple[Annotated[int, Ge(0)], ...] | None = None,
    uncovered: Literal["error", "drop"] = "error",
    clip: Annotated[float, Interval(gt=0, lt=0.5)] | None = None,
    original: Path | None = None,
    original_draw: Draw | None = None,
    dataset: str = "signals that were given",
) -> Session:
    """Audit signals: numbers of models x points, and who trained on what; any membership, no pairs are needed.

    A place is a file (.npy, .npz, .csv, .tsv, .parquet), or one array or column of it: `file.npz:name`. What is not
    given a place is looked for in `file`, if that is a .npz, under the key's own name; the signals under `signals`.

    - file: where the signals are: models x points, models x queries x points, and x classes where the kind has them
    - kind: log_odds of the true label, probability of the true label, its loss (cross-entropy, natural logarithm);
      logits or probabilities of all classes, which need labels
    - axes: models_points (rows are models), or points_models
    - membership: who trained on which point: as many models, 1 and 0 or true and false
    - membership_axes: as axes, if left out
    - population: signals of points that no model trained on, of the same kind
    - labels: the class of each point, counted from 0
    - population_labels: the same of the population
    - points: for each column of the signals, which column of the memberships it is; the same if left out
    - ids: what each point is called; it is so in every table of records
    - groups: name: place, of columns for the tables of records
    - samples: for `ramia:`, signals of the samples of each point's range: models x points x samples
    - range_membership: models x points: which model trained on any record of a range; if left out, on its own record
    - targets: which models are audited, by their row; the first run.num_experiments if left out
    - references: which models they are compared with; all others if left out. A model whose membership settles the
      target's, being the same or the complement, is never one of them
    - uncovered: points without a reference that an attack needs are an error, or left out: drop
    - clip: probabilities are kept within [clip, 1 - clip]; if left out only 0 and 1 are changed, to half a step of
      the file's number type from there
    - original: the log_dir of a run of the original Privacy Meter: all places follow from it
    - original_draw: of such a run with data_size, by which run the records were drawn: the one that trained the models,
      or a later one; if left out, as its references tell. run.random_seed has to be that run's
    - dataset: what the report calls these data
    """
    return _session(config, {key: value for key, value in locals().items() if key != "config"})


def _session(config: Config, settings: dict[str, Any]) -> Session:
    """The session of these signals. Raises UserError, at its line, for what cannot be used; writes nothing."""
    if settings["original"] is not None:
        settings |= places(config, settings)
    if settings["file"] is None:
        raise config.error(
            "signals.file", "missing: the file that the signals are in (or original: a run of the original tool)"
        )
    if settings["kind"] is None:
        raise config.error("signals.kind", "missing: log_odds, probability, loss, logits or probabilities?")
    reader = _Reader(config, settings)
    given, member, points, records = reader.all()
    plan = _plan(config, member, settings)
    population = given.population.log_odds.shape[2]
    asked = config.audit.population_size
    if asked is not None and asked > population:
        raise config.error("audit.population_size", f"{asked} is more than the {population} population points given")
    empty = Records(np.empty((population, 0), np.float32), np.zeros(population, np.int64))
    session = Session(
        config=config,
        data=AuditData(records, empty, num_classes=int(records.y.max()) + 1),
        plan=replace(plan, member=plan.member[:, points]),
        points=np.arange(len(points)),
        population=choose(population, asked, config.run.random_seed, "population"),
        pool_digest=digest(given.pool.log_odds),
        population_digest=digest(given.population.log_odds),
        given=given,
    )
    session = _with_attacks(session, settings["uncovered"] == "drop")
    return replace(session, points=_points(session, settings["uncovered"]))


class _Reader:
    """The arrays of one block, each mistake at the key whose array it is of."""

    def __init__(self, config: Config, settings: Mapping[str, Any]) -> None:
        self.config, self.settings, self.kind = config, settings, settings["kind"]
        keys = ("membership", "population", "labels", "population_labels", "points", "ids")
        keys += ("samples", "range_membership")
        places = {key: settings[key] for key in keys if settings[key]}
        places |= {f"groups.{name}": place for name, place in settings["groups"].items()}
        self.files = Files(settings["file"], places)

    def at(self, key: str, use: Callable[..., Result], *arguments: Any) -> Result:
        """`use(array of key, *arguments, what it is called)`."""
        try:
            return use(self.files.find(key), *arguments, self.files.name(key))
        except UserError as error:
            raise self.error(key, str(error)) from None

    def error(self, key: str, message: str) -> UserError:
        written = key if key in self.files.places else "original" if self.settings["original"] else "file"
        return self.config.error(f"signals.{written}", message)

    def needed(self, key: str) -> None:
        if self.at(key, lambda array, what: array) is None:
            raise self.config.error(f"signals.{key}", f"missing: give {key}, or an array of that name in a .npz")

    def all(self) -> tuple[Given, Bool[Array, "M D"], Int[Array, " N"], Records]:
        axes, kind = self.settings["axes"], self.kind
        member_axes = self.settings["membership_axes"] or axes
        self.needed("membership")
        array = self.at("signals", oriented, axes, kind)
        member = self.at("membership", memberships, member_axes)
        drawn = self._drawn(array, member)
        if self.settings["original"]:
            member = member[: len(array)]  # the original tool keeps rows of models that it no longer uses
        numbered = drawn is not None or self.at("points", lambda found, what: found is not None)
        wrong = check_fit(array.shape, member.shape, axes, member_axes, array.shape[2] if numbered else member.shape[1])
        if wrong:
            raise self.error("axes", wrong)
        points = self.at("points", point_numbers, array.shape[2], member.shape[1]) if drawn is None else drawn[0]
        labels = self.at("labels", label_numbers)
        pool, note = self._answers("signals", array, labels)
        population, other_note = self._population(pool.log_odds.shape[:2], array.shape[3:])
        count = array.shape[2]
        if labels is not None and len(labels) != count:
            raise self.error("labels", f"{len(labels)} labels for {count} points")
        records = Records(
            np.empty((count, 0), np.float32),
            np.zeros(count, np.int64) if labels is None else labels,
            ids=self.at("ids", names, count),
            groups={name: self.at(f"groups.{name}", names, count) for name in self.settings["groups"]},
        )
        models = tuple(self._models(member))
        ranges, range_note = self._ranges(array.shape, member.shape, member_axes, points, labels)
        about = self._about(array.shape)
        if drawn is not None:
            about["Audited records"] = (
                f"drawn again as the original tool drew them, {IN_WORDS[drawn[1]]}, with its random_seed "
                f"{self.config.run.random_seed}"
            )
        notes = tuple(filter(None, (note, other_note, range_note)))
        return Given(pool, population, models, labels is not None, about, notes, ranges), member, points, records

    def _drawn(self, array: Array, member: Bool[Array, "M D"]) -> tuple[Int[Array, " n"], Draw] | None:
        """Which records a run of the original tool with `data_size` audited; None if no such run was given."""
        if not self.settings["original"] or self.settings["points"] or array.shape[2] >= member.shape[1]:
            return None
        targets = self.settings["targets"] or range(self.config.run.num_experiments)
        signals = array[:, 0] * (-1 if self.kind == "loss" else 1)
        told = self.settings["original_draw"]
        use = lambda rows, what: audited(signals, rows, self.config.run.random_seed, targets, told, what)  # noqa: E731
        try:
            return use(member, self.files.name("signals"))
        except UserError as error:
            raise self.config.error("signals.original", str(error)) from None

    def _ranges(
        self,
        shape: tuple[int, ...],
        member: tuple[int, ...],
        member_axes: Axes,
        points: Int[Array, " N"],
        labels: Int[Array, " N"] | None,
    ) -> tuple[GivenRanges | None, str]:
        """The samples of ranges, and in words what had to be assumed of them."""
        if self.at("samples", lambda array, what: array is None):
            return None, ""
        if shape[1] > 1:
            raise self.error("samples", "samples of ranges go with signals of one query")
        array = self.at("samples", by_range, (shape[0], shape[2]), self.settings["axes"], self.kind)
        each = array.shape[2]
        flat = array.reshape(shape[0], 1, shape[2] * each, *array.shape[3:])
        found, note = self._answers("samples", flat, None if labels is None else np.repeat(labels, each))
        if self.at("range_membership", lambda array, what: array is None):
            return GivenRanges(found, each, None), note
        held = self.at("range_membership", memberships, member_axes)
        if held.shape == member and held.shape != (shape[0], shape[2]):
            held = held[:, points]
        if held.shape != (shape[0], shape[2]):
            raise self.error("range_membership", f"is models x points, {(shape[0], shape[2])}, got {held.shape}")
        return GivenRanges(found, each, held), note

    def _answers(self, key: str, array: Array, labels: Int[Array, " n"] | None) -> Any:
        try:
            return answers(array, self.kind, labels, self.settings["clip"], self.files.name(key))
        except UserError as error:
            raise self.error(key, str(error)) from None

    def _population(self, models_and_queries: tuple[int, ...], classes: tuple[int, ...]) -> Any:
        if self.at("population", lambda array, what: array is None):
            return answers(np.zeros((*models_and_queries, 0), np.float32), "log_odds", None, None, "")
        array = self.at("population", oriented, self.settings["axes"], self.kind)
        if array.shape[:2] != models_and_queries or array.shape[3:] != classes:
            found = f"it is of {array.shape[0]} models and {array.shape[1]} queries"
            found += f" and {array.shape[3]} classes" if classes else ""
            expected = f"the signals of {models_and_queries[0]} and {models_and_queries[1]}"
            expected += f" and {classes[0]}" if classes else ""
            raise self.error("population", f"{found}, {expected}; or say axes: {OTHER[self.settings['axes']]}")
        return self._answers("population", array, self.at("population_labels", label_numbers))

    def _models(self, member: Bool[Array, "M D"]) -> Any:
        known: Mapping[str, Any] = {}
        metadata = self.settings["original"] and self.settings["original"] / "models" / "models_metadata.json"
        if metadata and metadata.exists():
            known = read_json(metadata)
        for model, row in enumerate(member):
            of_model = known.get(str(model)) if isinstance(known, dict) else None
            found = {key: of_model.get(key) for key in ("train_acc", "test_acc")} if isinstance(of_model, dict) else {}
            found = {key: value if isinstance(value, int | float) else None for key, value in found.items()}
            yield {"id": model, "num_train": int(row.sum()), **found}

    def _about(self, shape: tuple[int, ...]) -> dict[str, str]:
        axes = "rows are models" if self.settings["axes"] == "models_points" else "rows are points"
        what = f"{self.kind.replace('_', '-')} of {shape[0]} models about {shape[2]} points"
        return {
            "Signals": f"{what}, {axes}: {self.settings['file']}",
            "Memberships": f"as given: {self.files.name('membership')}. This tool did not draw them by lot.",
        }


def _plan(config: Config, member: Bool[Array, "M D"], settings: Mapping[str, Any]) -> Plan:
    """Who is audited and compared with whom. Raises UserError for rows that are not there."""
    count = config.run.num_experiments
    targets = settings["targets"] if settings["targets"] is not None else tuple(range(count))
    for key, rows in (("targets", targets), ("references", settings["references"] or ())):
        if (outside := [row for row in rows if row >= len(member)]) or len(set(rows)) < len(rows):
            where = "signals." + key if settings[key] is not None else "run.num_experiments"
            twice = "a row is named twice" if not outside else f"there is no model {outside[0]}"
            raise config.error(where, f"{twice}: the rows are 0 to {len(member) - 1}")
    if not targets:
        raise config.error("signals.targets", "names no model: which is to be audited?")
    plan = plan_of(member, targets)
    allowed = set(range(len(member))) if settings["references"] is None else set(settings["references"])
    kept = tuple(tuple(model for model in models if model in allowed) for models in plan.references)
    left_out = sum(len(allowed - {target}) - len(of) for target, of in zip(targets, kept, strict=True))
    if left_out:
        log.info(
            "%d pairs of target and reference are left out: the one's membership would give the other's away", left_out
        )
    return replace(plan, references=kept)


def _with_attacks(session: Session, drop: bool) -> Session:
    """With every attack that can run, if none was asked for. Raises UserError for one that cannot."""
    config = session.config
    if config.audit.algorithm is None:
        attacks = tuple(runnable(session, on_some=drop))
        log.info("audit.algorithm is left out: %s", ", ".join(call.label for call in attacks))
        return replace(session, config=replace(config, attacks=attacks))
    short = {
        call.label: found
        for call in config.attacks
        if (found := [lack for lack in lacks(session, call) if not lack.coverage])
    }
    if short:
        raise config.error(
            "audit.algorithm",
            "; ".join(f"{label} lacks {' and '.join(lack.what for lack in found)}" for label, found in short.items()),
        )
    return session


def _points(session: Session, uncovered: str) -> Int[Array, " N"]:
    """The audited points: those with the references that the attacks need, and of these as many as asked for."""
    config, attacks = session.config, session.config.attacks
    short = [lack for call in attacks for lack in lacks(session, call) if lack.coverage]
    kept = np.ones(len(session.points), dtype=bool)
    for lack in short:
        kept &= ~lack.points
    if short and uncovered == "error":
        worst = max(short, key=lambda lack: lack.points.sum())
        labels = [call.label for call in attacks if any(lack.coverage for lack in lacks(session, call))]
        raise config.error(
            "audit.algorithm",
            f"{', '.join(labels)} lack {worst.what}; leave out these points (signals.uncovered: drop) or these attacks",
        )
    pool = np.flatnonzero(kept)
    if short:
        log.warning(
            "%d of %d points are left out: they lack a reference that an attack needs", (~kept).sum(), len(kept)
        )
    asked = config.audit.data_size
    if len(pool) < 2 or (asked is not None and asked > len(pool)):
        raise config.error("audit.data_size", f"{asked or 2} is more than the {len(pool)} points that there are")
    return pool[choose(len(pool), asked, config.run.random_seed, "points")]
