"""Where units of work are done: in processes of this machine, or on a Ray cluster. An engine is one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from audit import workers
from audit.session import Session, device_of
from core.config import Config

U = TypeVar("U")
Block = Literal["train", "audit"]  # whose `device` is used
SessionSetup = Callable[[Session, Any], Callable[[Any], Any]]  # session, device -> work: run once in each process
Reads = Callable[[Any], Iterable[Path]]  # unit -> the files of run.log_dir that its work reads


def run_units(
    session: Session,
    units: Sequence[U],
    setup: SessionSetup,
    block: Block,
    *,
    what: str,
    at_least: float = 0.0,
    reads: Reads = lambda unit: (),
) -> Iterator[tuple[U, Any]]:
    """Do every unit and yield it with what `setup(session, device)(unit)` returned, or `Lost`, in the order they end.

    `session` is the driver's own, or on a machine that does not see run.log_dir one with a folder of that machine.
    """
    if session.config.run.engine == "ray":
        from audit import on_ray

        yield from on_ray.run_units(session, units, setup, block, what=what, reads=reads)
        return
    here, count = partial(setup, session), session.config.run.workers
    yield from workers.run_units(units, here, device_of(session.config, block), count, at_least=at_least)


def places(config: Config, block: Block) -> tuple[int, Any]:
    """How many units are done at a time, and the device of each."""
    if config.run.engine == "ray":
        from audit import on_ray

        return on_ray.places(config, block)
    device = device_of(config, block)
    return len(workers.places(device, config.run.workers)), device


def check(config: Config) -> None:
    """UserError for an engine that is not there, or cannot be used in this way."""
    if config.run.engine == "ray":
        from audit import on_ray

        on_ray.check(config)


@contextmanager
def running(config: Config) -> Iterator[None]:
    """What the engine starts for a run ends with this block."""
    if config.run.engine != "ray":
        yield
        return
    from audit import on_ray

    with on_ray.closing():
        yield
