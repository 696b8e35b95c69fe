"""Kill a run again and again, continue it each time, and compare it with a run that was left in peace.

    python tests/kill.py                                      # the quickstart, 30 random instants, then every write
    python tests/kill.py --cf configs/x.yaml --set train.epochs=2 run.workers=2 --random 5 --writes 3

Each attempt is a process group of its own, forked from this one after its imports, and ended by SIGKILL: at a random
instant, or from inside before each step of each write, one after the other. The scores, signals and weights of the
survivor must be byte for byte those of the run in peace, and no model that was finished once may be written again.
The last line is JSON: how many kills of which kind, and what they found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import main
from core import rundir

STEPS = ("fdopen", "fsync", "replace")  # what the artefact layer does to a file: begin, fill, rename


class Killing:
    """The module `os` as core/rundir.py sees it, with a SIGKILL before the first step that no run died at so far.

    What runs died at is in the file `died`, a line a step. One step in `step` is chosen, by its name.
    """

    def __init__(self, died: Path, step: int) -> None:
        self.died, self.step = died, step

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in STEPS:
            return real

        def call(*arguments: object, **more: object) -> object:
            what = arguments[1] if name == "replace" else os.readlink(f"/proc/self/fd/{arguments[0]}")
            place = re.sub(r"\.[a-z0-9_]{8}\.tmp$", "", f"{name} {what}")
            if place not in self.died.read_text().splitlines():
                with open(self.died, "a") as file:
                    file.write(place + "\n")
                if hash_of(place) % self.step == 0:
                    os.killpg(0, signal.SIGKILL)
            return real(*arguments, **more)

        return call


def hash_of(place: str) -> int:
    """The same number for the same step in any run, wherever its directory is."""
    return zlib.crc32(place.rpartition("/")[2].encode())


def attempt(arguments: list[str], os_: object = os) -> int:
    """Start a run in a process group of its own; its number."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    rundir.os = os_  # type: ignore[assignment]
    code = 70
    try:
        code = main.main(arguments)
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """How it ended: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(child: int, seconds: float) -> bool:
    """Kill a run, with its workers, after that time. False if it came to its end before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            check(os.waitstatus_to_exitcode(status) == 0, f"a run ended with {os.waitstatus_to_exitcode(status)}")
            return False
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    check(wait(child) == -signal.SIGKILL, "a run outlived its SIGKILL")
    return True


def check(fine: bool, message: str) -> None:
    if not fine:
        sys.exit(f"FAILED: {message}")


def numbers(folder: Path) -> dict[str, bytes]:
    """Every weight, signal and score of a run, byte for byte."""
    found = [*folder.rglob("*.safetensors"), *folder.rglob("*.npy"), *(folder / "report").rglob("*.csv")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.name != "attack_seconds.csv"}


def finished(folder: Path) -> dict[Path, int]:
    """When each finished model was written."""
    models = folder.rglob("model_*.safetensors")
    return {path: path.stat().st_mtime_ns for path in models if rundir.stamp_of(path).exists()}


def same(folder: Path, peaceful: dict[str, bytes]) -> None:
    survived = numbers(folder)
    check(survived.keys() == peaceful.keys(), f"other files: {sorted(survived.keys() ^ peaceful.keys())}")
    different = [name for name in peaceful if survived[name] != peaceful[name]]
    check(not different, f"other bytes: {different}")
    check(not list(folder.rglob("*.tmp")), "a temporary file was left")


def campaign(folder: Path, command: list[str], peaceful: dict[str, bytes], kill: Callable[[list[str]], bool]) -> int:
    """Start the run and have it killed until it ends; the number of kills. No finished model is written twice."""
    kills, models = 0, finished(folder)
    while kill([*command, f"run.log_dir={folder}"]):
        kills += 1
        now = finished(folder)
        check(models.items() <= now.items(), "a finished model was trained again, or lost")
        models = now
    check(models.items() <= finished(folder).items(), "a finished model was trained again, or lost")
    same(folder, peaceful)
    return kills


def at_writes(died: Path, step: int) -> Callable[[list[str]], bool]:
    """Kill each run before the first step that none died at."""
    died.touch()

    def kill(command: list[str]) -> bool:
        code = wait(attempt(command, Killing(died, step)))
        check(code in (0, -signal.SIGKILL), f"a run ended with {code}")
        return code != 0

    return kill


def at_random(instants: random.Random, seconds: float, left: list[int]) -> Callable[[list[str]], bool]:
    """Kill each run at a random instant of the time that it takes in peace, while any of `left` are left."""

    def kill(command: list[str]) -> bool:
        if not left or not killed_after(attempt(command), instants.uniform(0, seconds)):
            check(bool(left) or wait(attempt(command)) == 0, "a run in peace failed")
            return False
        left.pop()
        return True

    return kill


def main_(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cf", default="configs/quickstart.yaml")
    parser.add_argument("--set", nargs="+", default=[])
    parser.add_argument("--random", type=int, default=30, help="random instants")
    parser.add_argument("--writes", type=int, default=1, metavar="N", help="die at one write in N; 0: at none")
    parser.add_argument("--no-pictures", action="store_true", help="most of a small run is drawing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    command = ["--cf", options.cf, "--set", *options.set]
    import torch  # noqa: F401  (once, before all forks)

    import audit.pipeline
    import audit.report  # noqa: F401
    from audit import plots

    if options.no_pictures:
        plots.png, plots.svg = (lambda figure: b"a picture"), (lambda figure, name, about: "<svg></svg>")
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        start = time.monotonic()
        check(wait(attempt([*command, f"run.log_dir={top / 'peace'}"])) == 0, "the run in peace failed")
        seconds = time.monotonic() - start
        peaceful = numbers(top / "peace")
        instants = random.Random(options.seed)
        left, runs, kills = list(range(options.random)), 0, 0
        while left:
            runs += 1
            kills += campaign(top / f"random_{runs}", command, peaceful, at_random(instants, seconds, left))
        writes = 0
        if options.writes:
            writes = campaign(top / "writes", command, peaceful, at_writes(top / "died.txt", options.writes))
    found = {"random kills": kills, "runs they were spread over": runs, "kills at writes": writes}
    found |= {"seconds in peace": round(seconds, 1), "artefacts compared": len(peaceful), "result": "byte-identical"}
    print(json.dumps(found))


if __name__ == "__main__":
    main_()
