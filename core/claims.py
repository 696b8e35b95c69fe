"""Several processes in one run directory, on any machines that see it: each claims the models that it works on.

A process that shares a directory has a file in `.claims/` that says who it is and that it touches every `BEAT`
seconds. What it works on it claims by a file that names it. A claim counts while the one who made it lives: on this
machine while its process is there, anywhere while its file was touched in the last `STALE` seconds. The claim of a
dead process is superseded by the next in number: creating a file that must not be there yet is the one operation
that every file system decides for one process alone, NFS included.

Claims save work; they do not protect the files. Those are whole or absent, and the same whoever makes them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import rundir
from core.errors import UserError

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between signs of life
STALE = 120.0  # seconds without one after which a process on another machine is dead
PERSON = ".life.json"


@dataclass(frozen=True)
class Claims:
    """The claims of one process; its workers claim in its name."""

    folder: Path  # <log_dir>/.claims
    name: str  # of the process among those that share the directory
    hold: rundir.Hold  # stands until the process ends, or another takes it for dead

    def take(self, what: str) -> bool:
        """Whether `what` is this process's to work on; it is until `give_back`, or until the process ends."""
        while True:
            number, owner = self._last(what)
            if owner == self.name:
                return True
            if number >= 0 and self._lives(what, number, owner):
                return False
            path = self.folder / f"{what}.{number + 1}"
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                continue  # another was faster: see who
            except OSError as error:
                raise rundir.unwritable(path, error) from None
            with os.fdopen(descriptor, "w") as file:
                file.write(self.name)
            if owner:
                self._person(owner).unlink(missing_ok=True)  # should it live after all, it learns so and stops
                log.info("%s: %s does not live any more, its work is taken over", what, owner)
            return True

    def give_back(self, what: str) -> None:
        number, owner = self._last(what)
        if owner == self.name:
            (self.folder / f"{what}.{number}").unlink(missing_ok=True)

    def owner(self, what: str) -> str | None:
        """Who works on `what`, if someone does who lives."""
        number, owner = self._last(what)
        return owner if number >= 0 and self._lives(what, number, owner) else None

    def _person(self, name: str) -> Path:
        return self.folder / f"{name}{PERSON}"

    def _last(self, what: str) -> tuple[int, str]:
        """The number and the owner of the claim that counts, which is "" for an instant; (-1, "") without any."""
        while True:
            numbers = [int(path.suffix[1:]) for path in self.folder.glob(f"{what}.*") if path.suffix[1:].isdigit()]
            if not numbers:
                return -1, ""
            with contextlib.suppress(FileNotFoundError):  # it was given back meanwhile
                return max(numbers), (self.folder / f"{what}.{max(numbers)}").read_text()

    def _lives(self, what: str, number: int, owner: str) -> bool:
        now = _clock(self._person(self.name))
        if owner:
            return _lives(self._person(owner), now)
        try:  # its maker was about to write its name
            return now - (self.folder / f"{what}.{number}").stat().st_mtime < BEAT
        except FileNotFoundError:
            return False


@contextmanager
def sharing(folder: Path, what: str) -> Iterator[Claims]:
    """Hold `folder` together with others who do, and nobody who holds it alone. `what` this process works on is said
    to those who ask. Raises InUse if a process holds it alone."""
    with rundir.opened(folder) as file:
        file.seek(0)
        rundir.acquire(file, folder, file.read(), shared=True)
        claims = folder.absolute() / ".claims"
        host = socket.gethostname()
        name = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        own = json.dumps({"pid": os.getpid(), "host": host, "since": rundir.now(), "what": what})
        hold = rundir.Hold(claims / f"{name}{PERSON}", own)
        rundir.write_text(hold.path, own)
        done = threading.Event()
        beating = threading.Thread(target=_beat, args=(hold.path, done), daemon=True)
        beating.start()
        try:
            yield Claims(claims, name, hold)
        finally:
            done.set()
            beating.join()
            rundir.hold_of(None)
            hold.path.unlink(missing_ok=True)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            os.utime(path)
        except OSError:
            return  # taken for dead by another, who took this file away


def alive(folder: Path) -> list[str]:
    """Those who share `folder` and live, in words."""
    claims = folder / ".claims"
    people = list(claims.glob(f"*{PERSON}")) if claims.is_dir() else []
    if not people:
        return []
    probe = claims / ".clock"
    with contextlib.suppress(OSError):
        probe.touch()
    now = _clock(probe)
    probe.unlink(missing_ok=True)
    return sorted(_in_words(path) for path in people if _lives(path, now))


def forget(folder: Path) -> bool:
    """Take all claims away, of a folder that is held alone; whether a process that shared it died."""
    claims = folder / ".claims"
    if not claims.is_dir():
        return False
    dead = list(claims.glob(f"*{PERSON}"))
    for path in claims.iterdir():
        path.unlink(missing_ok=True)
    claims.rmdir()
    return bool(dead)


def _clock(path: Path) -> float:
    """Now, by the clock of the file server: when it last touched a file of ours."""
    try:
        os.utime(path)
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _lives(path: Path, now: float) -> bool:
    try:
        if now - path.stat().st_mtime > STALE:
            return False
        who: Any = json.loads(path.read_text())
        if who["host"] != socket.gethostname():
            return True
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _in_words(path: Path) -> str:
    try:
        who = json.loads(path.read_text())
        return f"process {who['pid']} on {who['host']} ({who['what']}), since {who['since']}"
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it") from None
