"""Logging and progress, set up once. Modules ask for `logging.getLogger(__name__)`; nobody passes a logger."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
ROOTS = ("core", "dataset", "models", "trainers", "modules", "audit", "plugin")  # ours, not our libraries'


class _Stderr(logging.Handler):
    """A line on stderr, above the progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if _console is not None:
            _console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(line + "\n")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')}  {prefix}{record.getMessage()}"


_console = None  # rich's, while a progress bar is on the screen


def setup(level: int = logging.INFO) -> None:
    """Send what our own packages log to stderr; libraries keep their own ways. Safe to call twice."""
    handler = _Stderr()
    handler.setFormatter(_Formatter())
    for name in ROOTS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


@contextmanager
def collected(name: str, level: int = logging.INFO) -> Iterator[list[str]]:
    """The messages that loggers under `name` give in this block: what an attack chose by itself, for the report."""
    messages: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(name)
    before = logger.level
    if logger.getEffectiveLevel() > level:
        logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Hear only errors from `name`: an attack says what it tunes each time it runs, and here it runs many times."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """`items`, with a bar and an ETA where stderr is a terminal, and nothing where it is not."""
    global _console
    if not sys.stderr.isatty() or _console is not None:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("          {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        _console = console
        try:
            yield from bar.track(items, description=what, total=len(items) if isinstance(items, Sized) else total)
        finally:
            _console = None
