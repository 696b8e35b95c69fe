"""Two ways of doing the same thing, timed alternately in one process tree, and how to print what came of it.

Other work on the machine hits both sides of a round alike; so the figure is the median of the ratios of the
rounds, never the ratio of two sessions. The default clock is the CPU seconds of the process: on one thread they
do not count what other programs take away.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.05  # seconds a timing takes at least: what is faster is repeated, and the mean of the repetitions counts
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest of the rounds."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        middle = len(ordered) // 2
        return cls(ordered[0], (ordered[middle] + ordered[~middle]) / 2, ordered[-1])


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is how many times better than the peer, `floor` what was asked for, or None."""

    name: str
    ratio: float | None
    floor: float | None
    unit: str  # of ours and peer: "s" or "MiB"
    ours: Spread
    peer: Spread | None  # None: nothing is compared, or the peer is a recorded number, then in `notes`
    ratios: Spread | None
    rounds: int
    clock: str  # "cpu", "wall", or "" of memory
    notes: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def seconds(work: Callable[[], Any], clock: Clock = time.process_time) -> float:
    """Seconds of one call, from as many as fill `LEAST`."""
    start, calls = clock(), 0
    while True:
        work()
        calls += 1
        if (spent := clock() - start) >= LEAST:
            return spent / calls


def side_by_side(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    rounds: int,
    floor: float | None = None,
    part: float = 1.0,
    clock: str = "cpu",
    notes: str = "",
    **facts: Any,
) -> Row:
    """Time both in every round, by turns first, and take the median of the rounds' ratios.

    part: the share of its work that the peer is given. Its seconds are divided by it: then `notes` must say so.
    """
    tick = {"cpu": time.process_time, "wall": time.perf_counter}[clock]
    ours()  # the first call pays for imports and fresh memory; the peer is warmed by its own first round
    times: list[tuple[float, float]] = []
    for turn in range(rounds):
        if turn % 2:
            mine = seconds(ours, tick)
            theirs = seconds(peer, tick)
        else:
            theirs = seconds(peer, tick)
            mine = seconds(ours, tick)
        times.append((mine, theirs / part))
    mine, theirs = zip(*times, strict=True)
    ratios = Spread.of([b / a for a, b in times])
    return Row(
        name, ratios.median, floor, "s", Spread.of(mine), Spread.of(theirs), ratios, rounds, clock, notes, dict(facts)
    )


# --- memory, and processes of their own ------------------------------------------------------------------------


def fresh(module: str, *arguments: str) -> dict[str, Any]:
    """The last line, as JSON, of `python -m module arguments` in a process of its own, on one thread."""
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def peak_rss() -> float:
    """MiB, the most this process has held since it started."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")  # getrusage also remembers the parent that this process was forked from
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class ExtraMemory:
    """Within `with`: `.peak`, the MiB of anonymous memory held beyond what was held on entering. Linux only.

    Anonymous memory is what the process has allocated; pages of mapped files are the kernel's to take back.
    """

    peak = 0.0

    def __enter__(self) -> ExtraMemory:
        self._before = _status("RssAnon")
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, _status("RssAnon") - self._before)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()


def _status(key: str) -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


# --- the answer ------------------------------------------------------------------------------------------------


def device() -> str:
    """What ran this, in words: CPU, cores this process may use, threads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"{model or platform.machine()}, {cores} cores, {f'{threads} thread' if threads else 'threads not set'}"


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of the packages, where installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def one_thread() -> None:
    """Start this program again on one thread, unless it already is. Before anything is measured."""
    if any(os.environ.get(name) != "1" for name in THREADS):
        os.environ.update(dict.fromkeys(THREADS, "1"))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def show(row: Row) -> None:
    """One aligned line, and the notes under it."""
    digits = ".1f" if row.unit == "MiB" else ".4g"
    ours = f"{row.ours.median:{digits}} {row.unit}"
    peer = f"{row.peer.median:{digits}} {row.unit}" if row.peer else "-"
    ratio = f"{row.ratio:.3g}x" if row.ratio is not None else "-"
    spread = f"{row.ratios.min:.3g} to {row.ratios.max:.3g}" if row.ratios else "-"
    floor = f"{row.floor:g}x" if row.floor is not None else "-"
    print(f"{row.name:<62} {ours:>12} {peer:>12} {ratio:>8} {spread:>18} {floor:>8} {row.rounds:>3} {row.clock:>5}")
    if row.notes:
        print(f"    {row.notes}")
    sys.stdout.flush()


def header(*packages: str) -> None:
    """The circumstances, and what the columns are."""
    print(device(), versions(*packages), f"load {os.getloadavg()[0]:.1f}", time.strftime("%Y-%m-%d"), sep="; ")
    columns = f"{'ours':>12} {'peer':>12} {'ratio':>8} {'least to greatest':>18} {'floor':>8} {'n':>3} {'clock':>5}"
    print(f"{'(medians of the rounds)':<62} {columns}")


def markdown(answer: dict[str, Any]) -> str:
    """The rows of a benchmark's last line as a table for documents, under its circumstances."""
    heads = ("what", "ours", "peer", "ratio (least to greatest, n)", "asked for")
    lines = [answer["device"] + " · " + ", ".join(f"{k} {v}" for k, v in answer["versions"].items()), ""]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in answer["rows"]:
        ours, peer, ratios = row["ours"], row["peer"], row["ratios"]
        asked = (
            "" if row["floor"] is None else f"{row['floor']:g}x" + (": missed" if row["ratio"] < row["floor"] else "")
        )
        spread = (
            f" ({ratios['min']:.2g} to {ratios['max']:.2g}, {row['rounds']})" if ratios else f"(n = {row['rounds']})"
        )
        ratio = f"**{row['ratio']:.2g}x**{spread}" if row["ratio"] is not None else spread
        of_peer = f"{peer['median']:.3g} {row['unit']}" if peer else "-"
        lines.append(f"| {row['name']} | {ours['median']:.3g} {row['unit']} | {of_peer} | {ratio} | {asked} |")
    return "\n".join(lines)


def last_line(rows: Sequence[Row], *packages: str) -> str:
    """The JSON that every benchmark ends with: device, versions, rows."""
    return json.dumps({"device": device(), "versions": versions(*packages), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":  # python -m benchmarks.training | tee out.txt; python -m benchmarks.side_by_side < out.txt
    print(markdown(json.loads(sys.stdin.read().splitlines()[-1])))
