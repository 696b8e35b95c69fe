"""The samples of ranges, and what every model says of them: in blocks of ranges, kept on disk under stamps."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from audit.engines import run_units
from audit.given_ranges import GivenRanges
from audit.model_files import files_of
from audit.session import Session
from audit.signals import precision, settled_precision, settles_precision, signals_of
from audit.training import facts, load_model
from audit.workers import Lost
from core import rundir
from core.config import Call
from core.errors import UserError
from core.log import progress
from core.types import Records, Signal
from dataset.ranges import Range, Together, rows, sample_all
from modules.ramia.aggregation import Aggregation

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ASKING = "querying ranges"
BLOCK_BYTES = 2**27  # of samples in memory at a time, as float32


@dataclass(frozen=True)
class Setup:
    """The block's settings, checked."""

    range_name: str
    range_settings: Mapping[str, Any]
    ranges: Range | Together | GivenRanges
    samples: int  # K
    include_center: bool
    center: str
    neighbours: str
    base: Call
    aggregation: Aggregation | None  # None: tuned

    @property
    def drawn(self) -> int:
        """Samples beside the center."""
        return self.samples - self.include_center


def centers(session: Session, setup: Setup, points: Int[Array, " n"]) -> Records:
    """The centers of the ranges around these records of the pool."""
    records = rows(session.data.pool, points)
    if setup.center == "record":
        return records
    return sample_all(setup.ranges, records, 1, [session.stream("ramia", "center", int(point)) for point in points])


def samples(session: Session, setup: Setup, points: Int[Array, " n"]) -> Records:
    """The center of each range, then its samples, range by range. A range's own named stream draws them: its record,
    and the number of a sample, decide what the sample is."""
    middle = centers(session, setup, points)
    draws = [session.stream("ramia", "samples", int(point)) for point in points]
    drawn = sample_all(setup.ranges, middle, setup.drawn, draws)
    place = np.arange(len(points) * (setup.drawn + 1)).reshape(len(points), -1)

    def joined(of_centers: np.ndarray, of_samples: np.ndarray) -> np.ndarray:
        found = np.empty((place.size, *of_samples.shape[1:]), np.result_type(of_centers, of_samples))
        found[place[:, 0]], found[place[:, 1:].ravel()] = of_centers, of_samples
        return found

    lengths = None if middle.lengths is None or drawn.lengths is None else joined(middle.lengths, drawn.lengths)
    return Records(joined(middle.x, drawn.x), joined(middle.y, drawn.y), lengths)


def ask(session: Session, setup: Setup, device: torch.device) -> None:
    """Ask every model about every center and sample that it was not asked about; a block of ranges at a time."""
    wanted, drawn = signals_of(session.config.attacks), _drawn(session, setup)
    for start, stop in progress(list(blocks(session, setup)), ASKING):
        block = Block(drawn, setup.drawn + 1, start, stop)
        missing = {model: block.missing(session, model, wanted) for model in session.plan.models}
        units = [(model, signals) for model, signals in missing.items() if signals]
        if not units:
            continue
        asker = partial(_asker, block, samples(session, setup, session.points[start:stop]))
        reads = lambda unit: [*files_of(session, unit[0]), *settles_precision(session, unit[0])]  # noqa: E731
        found = run_units(session, units, asker, "audit", what=ASKING, reads=reads)
        if lost := {model: answer.reason for (model, _), answer in found if isinstance(answer, Lost)}:
            reasons = "; ".join(f"model {model}: {why}" for model, why in sorted(lost.items()))
            raise UserError(f"{len(lost)} models could not be asked about ranges {start} to {stop}: {reasons}")
        log.info("ramia: ranges %d to %d of %d asked", start, stop, len(session.points))


@dataclass(frozen=True)
class Block:
    """Ranges whose samples are asked about at a time, and where the answers are kept."""

    drawn: Mapping[str, Any]  # all that decides which points are asked about
    count: int  # points of a range: its center, and the samples
    start: int
    stop: int

    def path(self, session: Session, model: int, signal: Signal) -> Path:
        """Other ranges or other samples are other files: changing them in a config makes nothing stale."""
        folder = session.folder / "signals" / f"ramia_{rundir.digest(self.drawn)[:8]}"
        return folder / f"model_{model}.{signal.name}.{self.start}-{self.stop}.npy"

    def stamp(self, session: Session, model: int, signal: Signal) -> dict[str, Any]:
        made = {"model weights (sha256)": facts(session, model)["sha256"], **self.drawn}
        return {**made, "signal": signal.name, "ranges": [self.start, self.stop]}

    def missing(self, session: Session, model: int, wanted: Sequence[Signal]) -> list[Signal]:
        """Those of the signals that this model was not asked for."""
        made = lambda signal: rundir.is_made(self.path(session, model, signal), self.stamp(session, model, signal))  # noqa: E731
        return [signal for signal in wanted if not made(signal)]


def _asker(block: Block, records: Records, session: Session, device: torch.device) -> Callable[[Any], None]:
    from trainers.resident import Resident

    resident = Resident.of(records, session.data.mean, session.data.std, device)
    return partial(_ask, session, block, resident, device)


def _ask(session: Session, block: Block, resident: Any, device: torch.device, unit: tuple[int, list[Signal]]) -> None:
    """Ask a model for its signals of a block, and write them."""
    model, signals = unit
    network = load_model(session, model, device)
    for signal, column in zip(signals, _asked(session, model, network, resident, signals), strict=True):
        if not np.isfinite(column).all():
            raise UserError(f"model {model} gives non-finite signals ({signal.name}) on samples of ranges")
        table = column.reshape(session.config.audit.queries, block.stop - block.start, block.count)
        write = lambda file, table=table: np.lib.format.write_array(file, table, allow_pickle=False)  # noqa: E731
        rundir.make(block.path(session, model, signal), block.stamp(session, model, signal), write)


def _asked(
    session: Session, model: int, network: torch.nn.Module, resident: Any, wanted: list[Signal]
) -> list[np.ndarray]:
    """What a model says of these records: a row a query."""
    audit = session.config.audit
    if session.data.is_text:
        from trainers.evaluate_text import text_signals

        found = text_signals(network, resident, wanted=wanted, batch_size=audit.batch_size)
        return [found[signal] for signal in wanted]
    from trainers.evaluate import signals

    options = {"batch_size": audit.batch_size, "queries": audit.queries}
    return list(signals(network, resident, wanted=wanted, precision=settled_precision(session, model), **options))


def blocks(session: Session, setup: Setup) -> Iterator[tuple[int, int]]:
    """[start, stop) of ranges whose samples fit into BLOCK_BYTES."""
    each = (setup.drawn + 1) * math.prod(session.data.input_shape) * 4
    size, total = max(1, BLOCK_BYTES // each), len(session.points)
    return ((start, min(start + size, total)) for start in range(0, total, size))


def _drawn(session: Session, setup: Setup) -> dict[str, Any]:
    """All that decides which points are asked about."""
    return {
        "records (sha256)": session.pool_digest,
        "population (sha256)": session.population_digest,
        "indices (sha256)": rundir.digest(session.points),
        "ramia.range_function": {"name": setup.range_name, **setup.range_settings},
        "names of columns (sha256)": rundir.digest(session.data.feature_names),
        "ramia samples beside the center": setup.drawn,
        "ramia.center": setup.center,
        "run.random_seed": session.config.run.random_seed,
        "audit.queries": session.config.audit.queries,
        **precision(session),
    }


def read(
    session: Session, setup: Setup, model: int, signal: Signal, ranges: Int[Array, " n"], columns: slice
) -> Float[Array, "Q n c"]:
    """What a model said of these columns (0 is the center) of these ranges, by their places in ascending order."""
    if isinstance(setup.ranges, GivenRanges):
        return setup.ranges.read(session, model, signal, ranges, columns, setup.drawn)
    found, drawn = [], _drawn(session, setup)
    for start, stop in blocks(session, setup):
        inside = ranges[(ranges >= start) & (ranges < stop)] - start
        if len(inside):
            path = Block(drawn, setup.drawn + 1, start, stop).path(session, model, signal)
            table = np.load(path, mmap_mode="r", allow_pickle=False)
            found.append(table[:, inside, columns])
    return np.concatenate(found, axis=1)
