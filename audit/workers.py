"""Units of work (a stack to train, a model to query), done here or in worker processes with the same results.

A unit's randomness goes by name and its results are stamped artefacts, so where and in which order units are
done changes no byte. Workers hold no state that matters: one that is killed is replaced, and its unit done again.

On a Linux CPU workers are forked: they share the data's memory, what is registered and the imports, and start in
milliseconds. Elsewhere (GPUs, macOS, more than one thread per process) they are fresh interpreters that import
everything anew, so `auto` uses them for longer work only.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, TypeVar

from core import plugins, rundir
from core.errors import UserError
from core.log import ROOTS

log = logging.getLogger(__name__)

U = TypeVar("U")
Work = Callable[[Any], Any]  # unit -> what came of it
Setup = Callable[[Any], Work]  # device -> work: run once in each process

PAYS = {"fork": 1.0, "spawn": 15.0}  # seconds of work left from which starting workers pays


@dataclass(frozen=True)
class Lost:
    """What came of a unit whose worker died twice over it: the system kills processes for memory."""

    reason: str


def run_units(
    units: Sequence[U],
    setup: Setup,
    device: Any,
    workers: int | Literal["auto"],
    *,
    at_least: float = 0.0,
) -> Iterator[tuple[U, Any]]:
    """Do every unit and yield it with what `setup(device)(unit)` returned, or `Lost`, in the order they end.

    workers: processes; auto is one for each GPU or free core, where the work left is longer than starting them:
    `at_least` seconds as the caller knows, or as the first unit says, which is done here. What a unit raises
    ends them all. Results must be small: they travel through a pipe.
    """
    rundir.check_making(f"{len(units)} models are still to be trained or asked")
    devices = places(device, workers)[: len(units)]
    if len(devices) < 2:
        yield from _here(units, setup(device))
        return
    method, done = start_method(device), 0
    if workers == "auto" and at_least < PAYS[method]:
        work, start = setup(device), time.perf_counter()
        yield units[0], work(units[0])
        done, left = 1, (time.perf_counter() - start) * (len(units) - 1)
        if left < PAYS[method] or len(units) < 3:
            yield from _here(units[1:], work)
            return
        setup = _Ready(work) if method == "fork" else setup
    elif method == "fork":
        setup = _Ready(setup(device))  # before the fork: what it loads is shared, not copied
    log.info("%d worker processes (run.workers: %s)", len(devices), workers)
    yield from _in_processes(units[done:], setup, devices, method)


@dataclass(frozen=True)
class _Ready:
    work: Work

    def __call__(self, device: Any) -> Work:
        return self.work


def keep_memory() -> None:
    """Memory that is freed stays with this process, up to what it once needed. glibc only; elsewhere nothing.

    Left to itself, glibc gives the activations of a step back to the system and takes them anew in the next: on
    convolutional networks a third of the time (documentation/benchmarks.md).
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        if not mallopt(mmap_threshold, 1 << 30):
            mallopt(mmap_threshold, 1 << 25)  # the most that other versions admit
        mallopt(trim_threshold, (1 << 31) - 1)


def _here(units: Sequence[U], work: Work) -> Iterator[tuple[U, Any]]:
    for unit in units:
        yield unit, work(unit)


def places(device: Any, workers: int | Literal["auto"]) -> list[Any]:
    """The device of each process: every visible GPU where no particular one was named, the CPU n times."""
    import torch

    if device.type == "cuda" and device.index is None:
        gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        return gpus if workers == "auto" else gpus[:workers]
    if device.type != "cpu":
        return [device]  # several processes on one accelerator would wait for each other
    return [device] * (max(1, cores() // torch.get_num_threads()) if workers == "auto" else workers)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_method(device: Any) -> str:
    """fork where it is safe: no accelerator and no thread pools, whose state a forked process would inherit broken."""
    import torch

    safe = sys.platform == "linux" and device.type == "cpu" and torch.get_num_threads() == 1
    return "fork" if safe and not torch.cuda.is_available() else "spawn"


# --- in the process that was started -----------------------------------------------------------------------------


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    device: Any
    unit: Any = None
    busy: bool = False

    def give(self, unit: Any) -> None:
        self.unit, self.busy = unit, True
        with contextlib.suppress(OSError):  # it died while idle: its end of the pipe says so, too
            self.pipe.send((unit,))


def _in_processes(units: Sequence[U], setup: Setup, devices: list[Any], method: str) -> Iterator[tuple[U, Any]]:
    waiting, tried = deque(units), set()
    crew: list[_Worker] = []
    hand_over = _Shared.of(setup) if method == "spawn" else setup
    try:
        crew += [_start(hand_over, device, method) for device in devices[: len(units)]]
        while waiting or any(worker.busy for worker in crew):
            for worker in crew:
                if waiting and not worker.busy:
                    worker.give(waiting.popleft())
            for pipe in wait([worker.pipe for worker in crew if worker.busy]):
                worker = next(worker for worker in crew if worker.pipe is pipe)
                try:
                    kind, answer = worker.pipe.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    worker.process.join()
                    worker.pipe.close()
                    crew.append(_start(hand_over, worker.device, method))
                    reason = _died(worker.process.exitcode)
                    if repr(worker.unit) in tried:
                        yield worker.unit, Lost(reason)
                    else:
                        log.warning("%s: doing its work (%s) again", reason, worker.unit)
                        tried.add(repr(worker.unit))
                        waiting.appendleft(worker.unit)
                    continue
                if kind == "log":
                    logging.getLogger(answer.name).handle(answer)
                elif kind == "raised":
                    raise answer
                else:
                    worker.busy = False
                    yield worker.unit, answer
    finally:
        _end(crew)


def _start(setup: Any, device: Any, method: str) -> _Worker:
    import torch

    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    levels = {name: logging.getLogger(name).getEffectiveLevel() for name in ROOTS}
    arguments = (setup, device, theirs, torch.get_num_threads(), plugins.loaded(), levels)
    process = context.Process(target=_serve, args=arguments, name="privacy-meter worker", daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, device)


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        return f"a worker process was killed ({signal.Signals(-code).name}; memory may be short: lower run.workers)"
    return f"a worker process ended by itself (exit code {code})"


def _end(crew: list[_Worker]) -> None:
    """Every worker ends now: after a SIGTERM it takes its unfinished files away."""
    for worker in crew:
        worker.process.terminate()
    for worker in crew:
        worker.process.join(10)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()
        worker.process.close()


# --- in a worker ----------------------------------------------------------------------------------------------------


def _serve(
    setup: Any, device: Any, pipe: Connection, threads: int, plugin_files: list[Any], levels: dict[str, int]
) -> None:
    """Answer units until told to end, or until the process that started this one is gone."""
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_ToParent(pipe)], False
        logger.setLevel(level)
    try:
        if isinstance(setup, _Shared):
            _import_everything(threads, plugin_files)
            setup = setup.restored()
        work = setup(device)
        while True:
            (unit,) = pipe.recv()
            pipe.send(("done", work(unit)))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        pipe.send(("raised", _portable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # the main thread takes unfinished files away
    time.sleep(10)
    os._exit(1)


class _ToParent(logging.Handler):
    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.pipe.send(("log", record))


def _portable(error: Exception) -> Exception:
    """The error itself where it survives a pipe, else its traceback in a RuntimeError."""
    if isinstance(error, UserError):
        return error
    return RuntimeError(f"in a worker process:\n{''.join(traceback.format_exception(error))}")


def _import_everything(threads: int, plugin_files: list[Any]) -> None:
    import audit  # noqa: F401  (these fill the registries)
    import dataset  # noqa: F401
    import models  # noqa: F401
    import modules.mia  # noqa: F401
    import trainers  # noqa: F401
    from audit.session import make_reproducible

    make_reproducible(threads)
    for file in plugin_files:
        plugins.load(file)


@dataclass(frozen=True)
class _Shared:
    """A pickled object whose arrays lie in memory that all workers share."""

    pickled: bytes
    arrays: list[Any]

    @classmethod
    def of(cls, setup: Any) -> _Shared:
        import torch
        import torch.multiprocessing  # registers how tensors travel: by handle

        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(setup, protocol=5, buffer_callback=buffers.append)
        copies = [
            torch.frombuffer(bytearray(buffer.raw()), dtype=torch.uint8)
            if len(buffer.raw())
            else torch.empty(0, dtype=torch.uint8)
            for buffer in buffers
        ]
        return cls(pickled, [copy.share_memory_() for copy in copies])

    def restored(self) -> Any:
        return pickle.loads(self.pickled, buffers=[array.numpy() for array in self.arrays])
