"""Logging and progress, set up once. Modules ask for `logging.getLogger(__name__)`; nobody passes a logger."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from core.errors import UserError

T = TypeVar("T")
ROOTS = ("core", "dataset", "models", "trainers", "modules", "audit", "plugin")  # ours, not our libraries'


class _Stderr(logging.Handler):
    """A line on stderr, above the progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if _bar is not None:
            _bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(line + "\n")


class _Formatter(logging.Formatter):
    """`09:12:31  warning: message`; in a file, with the date."""

    def __init__(self, times: str) -> None:
        super().__init__()
        self.times = times

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, self.times)}  {prefix}{record.getMessage()}"


_bar: Any = None  # rich's display, while a stage is shown on a terminal: what runs inside it gets a line of its own
_below: list[Callable[[], Any]] = []  # what is shown below it
_early = logging.handlers.MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)


def setup(level: int = logging.INFO) -> None:
    """Send what our own packages log to stderr; libraries keep their own ways. Safe to call twice."""
    handler = _Stderr()
    handler.setFormatter(_Formatter("%H:%M:%S"))
    _early.buffer.clear()
    for name in ROOTS:
        logger = logging.getLogger(name)
        logger.handlers = [handler, _early]
        logger.setLevel(level)
        logger.propagate = False


@contextmanager
def kept(file: Path) -> Iterator[None]:
    """Append all that is logged to `file`, too, from the command on, and how this block ended."""
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): choose another run.log_dir") from None
    handler.setFormatter(_Formatter("%Y-%m-%d %H:%M:%S"))
    own = logging.getLogger(__name__)
    note = lambda level, text: handler.handle(own.makeRecord(own.name, level, "", 0, text, (), None))  # noqa: E731
    note(logging.INFO, " ".join(["started:", Path(sys.argv[0]).name, *sys.argv[1:]]))
    for record in _early.buffer:
        handler.handle(record)
    _early.buffer.clear()
    loggers = [logging.getLogger(name) for name in ROOTS]
    for logger in loggers:
        logger.handlers = [handler if other is _early else other for other in logger.handlers]
    try:
        yield
        note(logging.INFO, "finished")
    except BaseException as error:
        text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).rstrip()
        note(logging.ERROR, "interrupted" if isinstance(error, KeyboardInterrupt) else text)
        raise
    finally:
        for logger in loggers:
            logger.handlers = [_early if other is handler else other for other in logger.handlers]
        handler.close()


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


def progress(
    items: Iterable[T], what: str, total: int | None = None, of: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """`items`, with a line of how far it is and an ETA where stderr is a terminal, and nothing where it is not.

    of: how many of the `total` an item is.
    """
    with _display() as bar:
        if bar is None:
            yield from items
            return
        total = len(items) if isinstance(items, Sized) else total
        task = bar.add_task(what, total=total)
        try:
            for item in items:
                yield item
                bar.advance(task, of(item))
        finally:
            bar.remove_task(task)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A line with the time it has taken so far, where stderr is a terminal: for what cannot say how far it is."""
    with _display() as bar:
        task = None if bar is None else bar.add_task(what, total=None)
        try:
            yield
        finally:
            if bar is not None:
                bar.remove_task(task)


@contextmanager
def below(render: Callable[[], Any]) -> Iterator[bool]:
    """Show what `render` returns, for rich, below the line of progress; whether there is one: on a terminal."""
    _below.append(render)
    try:
        yield _bar is not None
    finally:
        _below.remove(render)


@contextmanager
def _display() -> Iterator[Any]:
    """The display of this terminal, None where stderr is none. One for all that run inside each other."""
    global _bar
    if _bar is not None or not sys.stderr.isatty():
        yield _bar
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Far(ProgressColumn):
        """`3/33  0:00:12  ETA 0:02:01`, without what is not known."""

        def render(self, task: Task) -> Text:
            count = f"{task.completed:g}/{task.total:g}  " if task.total else ""
            eta = f"  ETA {clock(task.time_remaining)}" if task.time_remaining else ""
            return Text(f"{count}{clock(task.elapsed or 0.0)}{eta}")

    class WithMore(Progress):
        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            yield from (render() for render in _below)

    columns = (TextColumn("          {task.description}"), BarColumn(), Far())
    with WithMore(*columns, console=Console(stderr=True), transient=True) as _bar:
        try:
            yield _bar
        finally:
            _bar = None


def clock(seconds: float) -> str:
    """`0:02:01`."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
