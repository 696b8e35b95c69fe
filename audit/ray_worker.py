"""A worker of a Ray cluster: does units on its node, one after another, as the driver would do them itself."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import shutil
import socket
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core import plugins, rundir
from core.errors import UserError

ALIKE = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "opacus", "peft")  # what results are made by


@dataclass(frozen=True)
class Order:
    """What a worker is told when it starts."""

    threads: int
    gpus: float
    plugin_files: tuple[str, ...]
    levels: dict[str, int]
    hold: rundir.Hold | None
    token: tuple[str, str]  # a file of run.log_dir, and what the driver wrote into it


@dataclass(frozen=True)
class Place:
    """What a worker says of itself."""

    host: str
    pid: int
    device: str
    versions: dict[str, str]
    shares: bool  # whether it sees run.log_dir


@dataclass(frozen=True)
class Answer:
    """What came of a unit. kind: done (value), refused (a UserError), failed (a traceback)."""

    kind: str
    value: Any
    records: list[logging.LogRecord]
    files: list[tuple[str, bytes]]  # made, where the driver cannot see them


class Worker:
    """State that matters to nobody else: the stage that was set up last."""

    def __init__(self, order: Order) -> None:
        import audit  # noqa: F401  (these fill the registries)
        import dataset  # noqa: F401
        import models  # noqa: F401
        import modules.mia  # noqa: F401
        import trainers  # noqa: F401
        from audit.session import make_reproducible
        from audit.workers import keep_memory

        make_reproducible(order.threads)
        keep_memory()
        for file in order.plugin_files:
            plugins.load(Path(file))
        self.order, self.stage, self.work = order, -1, None
        self.shares = _reads(*order.token)
        self.folder = None if self.shares else Path(tempfile.mkdtemp(prefix="privacy-meter-"))
        self.records: list[logging.LogRecord] = []
        keep = _Keep(self.records)
        for name, level in order.levels.items():
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [keep], False
            logger.setLevel(level)
        if self.shares:
            rundir.hold_of(order.hold)

    def place(self) -> Place:
        import torch

        on_gpu = self.order.gpus > 0 and torch.cuda.is_available()
        device = torch.cuda.get_device_name() if on_gpu else platform.machine()
        return Place(socket.gethostname(), os.getpid(), device, versions(), self.shares)

    def do(self, stage: int, shipped: Shipped, unit: Any, inputs: Sequence[tuple[str, bytes]]) -> Answer:
        """The unit of a stage, which is set up first where it is a new one. `inputs`: files that it reads."""
        self.records.clear()
        try:
            if stage != self.stage:
                self.work, self.stage = None, -1  # its memory is free before the next one's is taken
                self.work, self.stage = self._set_up(shipped), stage
            if self.folder:
                rundir.receive(self.folder, inputs)
            kind, value = "done", self.work(unit)  # type: ignore[misc]
        except UserError as error:
            kind, value = "refused", error
        except Exception as error:
            kind, value = "failed", "".join(traceback.format_exception(error))
        return Answer(kind, value, list(self.records), self._collect({name for name, _ in inputs}))

    def end(self) -> None:
        rundir.abandon()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _set_up(self, shipped: Shipped) -> Any:
        from audit.session import device_named

        session, setup, name = shipped.unpacked()
        device = device_named(name)
        if self.folder:
            run = session.config.run.model_copy(update={"log_dir": self.folder})
            session = replace(session, config=replace(session.config, run=run))
        return setup(session, device)

    def _collect(self, inputs: set[str]) -> list[tuple[str, bytes]]:
        """The files of this unit's folder, which is empty afterwards."""
        if not self.folder:
            return []
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        named = [(str(path.relative_to(self.folder)), path) for path in paths]
        files = [(name, path.read_bytes()) for name, path in named if name not in inputs]
        for path in paths:
            path.unlink()
        return files


@dataclass(frozen=True)
class Shipped:
    """A session, how to work on it, and the device's name: pickled, with its arrays in the cluster's object store."""

    pickled: bytes
    arrays: list[Any]  # references to uint8 arrays

    def unpacked(self) -> Any:
        import ray

        return pickle.loads(self.pickled, buffers=ray.get(self.arrays))


class _Keep(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.records.append(record)


def versions() -> dict[str, str]:
    """What has to be the same everywhere for the same bytes, without the device a build is for (`+cu126`)."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ALIKE:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "not there"
    return found


def _reads(path: str, content: str) -> bool:
    try:
        return Path(path).read_text() == content
    except OSError:
        return False
