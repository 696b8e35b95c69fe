"""What a run will take: time on so many cores or GPUs, disk, memory; from what was measured, never from a guess.

The seconds of a model come from finished models of this run, from another run (scaled by epochs and records), or from a
probe: model 0 of the plan, trained and asked as the run would, and kept.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audit import engines
from audit.results import More
from audit.session import Session, device_of
from audit.signals import NOT_SHARED, compute_missing, missing_signals, wanted_of
from audit.training import missing_models, train_missing, write_metadata
from core import rundir
from core.errors import UserError
from core.log import kept
from core.types import Plan

PLACES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # how many cores or GPUs the time is said for
HEADER = 128  # bytes of a .npy of float32 before its numbers
STATUS = Path("/proc/meminfo")


@dataclass(frozen=True)
class Measured:
    """What a model takes."""

    train: float  # seconds
    ask: float | None  # seconds; None where nobody was asked yet
    source: str
    device: str


def probe(session: Session) -> None:
    """Train and ask the first model of the plan, unless it is there; the run finds it."""
    folder, first = session.config.run.log_dir, session.plan.models[0]
    alone = replace(session, plan=Plan(session.plan.member, ((),), (first,)))
    missing_models(session)  # refuses a run directory of other settings before anything is written
    with rundir.lock(folder), kept(folder / "run.log"), engines.running(session.config):
        train_missing(alone, device_of(session.config, "train"))
        if not any(signal.kind in NOT_SHARED for signal in wanted_of(session.config)):
            compute_missing(alone, device_of(session.config, "audit"))
        write_metadata(session)


def measured(session: Session, like: Path | None = None) -> Measured | None:
    """From the models of this run, or of another; None where there is none."""
    folder = like or session.folder
    rows = [row for row in _rows(folder) if isinstance(row.get("seconds"), int | float) and row["seconds"] > 0]
    if like and not rows:
        raise UserError(f"--like {like}: no finished model there says how long it took")
    if not rows:
        return None
    scale, said = 1.0, f"of {len(rows)} models of {'this run' if like is None else like}"
    if like:
        scale, said = _scaled(session, rows, like, said)
    answer = _seconds_of_an_answer(folder)
    answers = (len(session.points) + len(session.population)) * session.config.audit.queries
    return Measured(
        train=scale * statistics.median(float(row["seconds"]) for row in rows),
        ask=None if answer is None else answer * answers,
        source=f"median {said}",
        device=str(rows[0].get("device", "cpu")),
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    file = folder / "models" / "models_metadata.json"
    found = rundir.read_json(file) if file.is_file() else {}
    return [row for row in found.values() if isinstance(row, dict)] if isinstance(found, dict) else []


def _scaled(session: Session, rows: Sequence[dict[str, Any]], like: Path, said: str) -> tuple[float, str]:
    """How much longer a model trains here than there: in proportion to records and epochs."""
    config, row = session.config, rows[0]
    if (there := row.get("model_name")) != config.model.name:
        raise UserError(f"--like {like}: it trained {there}, not {config.model.name}: name a run of the same model")
    here = float(session.plan.member[0].sum()) * config.trainer.settings.get("epochs", 1)
    then = float(row.get("num_train") or 0) * float(row.get("epochs") or 1)
    if not then:
        raise UserError(f"--like {like}: its models do not say how many records they were trained on")
    of = f"{said}, times {here / then:.3g} for records and epochs"
    others = [
        f"{key} {row[key]} there, {config.trainer.settings[key]} here"
        for key in ("batch_size", "optimizer")
        if key in config.trainer.settings and row.get(key) not in (None, config.trainer.settings[key])
    ]
    return here / then, "; ".join([of, *others])


def _seconds_of_an_answer(folder: Path) -> float | None:
    """Of one query of one record, all signals together: the median over the models that were asked."""
    spent: dict[str, float] = {}
    asked: dict[str, dict[Path, int]] = {}
    for stamp in (folder / "signals").glob("*/model_*.npy" + rundir.STAMP):
        array = stamp.with_name(stamp.name.removesuffix(rundir.STAMP))
        made = rundir.read_stamp(array)
        if made is None or "seconds" not in made["facts"]:
            continue
        model = array.name.split(".")[0]
        spent[model] = spent.get(model, 0.0) + float(made["facts"]["seconds"])
        asked.setdefault(model, {})[array.parent] = (array.stat().st_size - HEADER) // 4
    each = [spent[model] / sum(asked[model].values()) for model in spent if sum(asked[model].values())]
    return statistics.median(each) if each else None


def lines(
    session: Session, more: Sequence[More], *, weights: int, signals: int, memory: int, like: Path | None
) -> Iterator[str]:
    """What `--check` says of time, and what will not fit. Sizes in bytes, of one model; `memory` of this process."""
    missing, of_more = missing_models(session), sum(one.to_train for one in more)
    there = [model for model in session.plan.models if model not in missing]
    to_train = len(missing) + of_more
    to_ask = to_train + len(missing_signals(session, there if missing else None))
    yield from _time(session, to_train, to_ask, like)
    kept = sum(one.to_train * (weights * one.keeps_weights + 4 * one.signals) for one in more)
    need = len(missing) * weights + to_ask * signals + kept
    place = _existing(session.config.run.log_dir)
    if (free := shutil.disk_usage(place).free) < need:
        yield (
            f"warning   disk: {size(need)} are still to be written, {size(free)} are free at {place}: "
            "free some, or choose another run.log_dir"
        )
    if (room := available_memory()) is not None and room < memory:
        yield (
            f"warning   memory: {size(memory)} are needed, {size(room)} are free here: lower audit.data_size, "
            "audit.queries or audit.num_ref_models, or take another machine"
        )


def _time(session: Session, to_train: int, to_ask: int, like: Path | None) -> Iterator[str]:
    if not to_train and not to_ask:
        return
    found = measured(session, like)
    if found is None:
        yield "time      not known yet: --probe trains one model and keeps it; --like RUN takes another run's seconds"
        return
    ask = "" if found.ask is None else f", {duration(found.ask)} to ask it"
    yield f"time      {duration(found.train)} to train a model{ask} ({found.source}; {found.device})"
    unit = "GPU" if found.device.startswith("cuda") else "core"
    most = max(to_train, to_ask)
    places = [k for k in PLACES if k < most] + ([most] if most <= PLACES[-1] else [])
    total = [(k, math.ceil(to_train / k) * found.train + math.ceil(to_ask / k) * (found.ask or 0)) for k in places]
    spoken = [f"{duration(seconds)} on {k}" + (f" {unit}" if k == 1 else "") for k, seconds in total]
    yield f"          all that is left ({to_train} to train, {to_ask} to ask): {', '.join(spoken)}"


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def available_memory() -> int | None:
    """Bytes that this process could still get: of the machine, or of the container that it is in."""
    found: list[int] = []
    if STATUS.exists():
        found += [int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if "MemAvailable" in line]
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        found.append(int(most) - int(used.read_text()))
    return min(found, default=None)


def duration(seconds: float) -> str:
    """`0.41 s`, `3.2 min`, `4.1 h`, `2.3 days`."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.2g} {unit}" if seconds / length < 10 else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.2g} days"


def size(count: float) -> str:
    """`1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
