"""Artefacts that are whole or absent, each with the settings that made it.

A stamp is a small JSON file beside an artefact. It is written last, after the artefact's own atomic rename:
no stamp = unfinished = make it again; another stamp = refuse, and say which setting changed. So a process may
be killed at any moment, and what is found later is either complete and known, or ignored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from core.errors import InUse, StaleArtefact, UserError
from core.loading import read_json as read_json

log = logging.getLogger(__name__)

LOCK = ".lock"
LOCK_PATIENCE = 5.0  # seconds
STAMP = ".stamp.json"
FORMAT = 2  # raise it when the same settings come to mean other bytes


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(file)` on a temporary neighbour of `path`, flush it to disk, and rename it into place.

    Raises UserError, naming the file, where the disk is full or does not let us; what was there before is there still.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        _unfinished.add(name)
        if _abandoned:
            raise InUse("this process is told to end")
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        _unfinished.discard(name)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(name)
        raise unwritable(path, error) from None
    except BaseException:
        _remove(name)
        raise


_unfinished: set[str] = set()  # temporary files that this process is writing
_abandoned = False


def abandon() -> None:
    """Take the unfinished files of this process away, for it is about to end; said by another thread than writes."""
    global _abandoned
    _abandoned = True
    for name in list(_unfinished):
        _remove(name)


def _remove(name: str | None) -> None:
    if name is not None:
        _unfinished.discard(name)
        with suppress(OSError):
            os.unlink(name)


def _sync_folder(folder: Path) -> None:
    """The new name survives a power cut, too: what is written later never outlives what was written before it."""
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path, error: OSError) -> UserError:
    """The message for a file that cannot be written."""
    reason = error.strerror or str(error)
    if error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", reason):
        reason = "No space left on device"  # numpy counts what was written, and does not say why it was not all
        error.errno = errno.ENOSPC
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path} cannot be written ({reason}): free some space; the same command then continues")
    return UserError(f"{path} cannot be written ({reason}): mend that, or choose another run.log_dir")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_entries(path: Path, entries: Iterable[tuple[str, Any]]) -> None:
    """A JSON object of many entries, as `write_json` writes it, with one of them in memory at a time."""

    def write(file: BinaryIO) -> None:
        before = "{"
        for key, value in entries:
            file.write((before + json.dumps({key: value}, indent=2, default=str)[1:-2]).encode())
            before = ","
        file.write(b"\n}\n" if before == "," else b"{}\n")

    write_atomic(path, write)


def write_array(path: Path, array: np.ndarray) -> None:
    write_atomic(path, lambda file: np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False))


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of arrays, bytes and plain-JSON values; the dtype and shape of an array count."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).view(np.uint8).data if part.size else b"")
        elif isinstance(part, bytes):
            sha.update(part)
        else:
            sha.update(json.dumps(part, sort_keys=True, default=str).encode())
        sha.update(b";")
    return sha.hexdigest()


def stamp_of(path: Path) -> Path:
    return path.with_name(path.name + STAMP)


def is_made(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `path` is finished and was made with these settings.

    Raises StaleArtefact, naming each setting that differs, if it was made with others.
    """
    made = read_stamp(path)
    if made is None:
        return False
    asked = json.loads(json.dumps({**settings, "artefact format": FORMAT}, default=str))
    if made["settings"] != asked:
        changed = differences(made["settings"], asked)
        raise StaleArtefact(f"{path} was made with {changed}: choose another run.log_dir, or delete it")
    return True


def read_stamp(path: Path) -> dict[str, Any] | None:
    """{"settings": ..., "facts": ...} of a finished artefact, None of an unfinished one."""
    stamp = stamp_of(path)
    if not (stamp.exists() and path.exists()):
        return None
    made = read_json(stamp)
    if not (isinstance(made, dict) and isinstance(made.get("settings"), dict) and "bytes" in made):
        raise UserError(f"{stamp} is not a stamp of this tool: restore it, or delete it together with {path.name}")
    if path.stat().st_size != made["bytes"]:
        raise UserError(f"{path} has {path.stat().st_size} bytes, was made with {made['bytes']}: restore or delete it")
    return made


_making = ContextVar("whether artefacts may be made", default=True)


@contextmanager
def making(allowed: bool) -> Iterator[None]:
    """Whether artefacts may be made in this block: a report is written again from those that are there."""
    token = _making.set(allowed)
    try:
        yield
    finally:
        _making.reset(token)


def check_making(what: object) -> None:
    """Raises UserError where nothing may be made."""
    if not _making.get():
        raise UserError(
            f"{what}: the run is not finished, and only its report was asked for; its own command continues it"
        )
    if (hold := _hold) and not hold.stands():
        raise UserError(f"{what}: {hold.path} is no longer held by the process that this one works for; it stops")


@dataclass(frozen=True)
class Hold:
    """A process's hold on a run directory, as the file at `path` says it: whoever works for that process on another
    machine makes nothing once the file says something else."""

    path: Path
    text: str

    def stands(self) -> bool:
        try:
            return self.path.read_text() == self.text  # opening asks the file server, also where NFS caches
        except OSError:
            return False


_hold: Hold | None = None  # of the process that this one works for, where that is another


def hold_of(hold: Hold | None) -> None:
    """From now on this process makes artefacts only while `hold` stands."""
    global _hold
    _hold = hold


_held: ContextVar[Hold | None] = ContextVar("the hold of this process", default=None)


def held() -> Hold | None:
    """The hold that this process has on its run directory."""
    return _held.get()


@contextmanager
def holding(hold: Hold) -> Iterator[None]:
    token = _held.set(hold)
    try:
        yield
    finally:
        _held.reset(token)


def receive(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files that were made elsewhere, by their names in `folder`: an artefact is finished by its stamp, last."""
    ordered = sorted(files, key=lambda file: file[0].endswith(STAMP))
    for name, _ in ordered:
        if name.endswith(STAMP):
            (folder / name).unlink(missing_ok=True)
    for name, content in ordered:
        write_atomic(folder / name, lambda file, content=content: file.write(content))


def make(path: Path, settings: Mapping[str, Any], write: Callable[[BinaryIO], Any], **facts: Any) -> None:
    """Write an artefact, then its stamp. `facts` are measured, not set: accuracies, seconds, digests."""
    check_making(f"{path} is missing")
    try:
        stamp_of(path).unlink(missing_ok=True)  # from here until the new stamp is written, the artefact is unfinished
    except OSError as error:
        raise unwritable(stamp_of(path), error) from None
    write_atomic(path, write)
    stamp = {"settings": {**settings, "artefact format": FORMAT}, "bytes": path.stat().st_size, "facts": facts}
    write_json(stamp_of(path), stamp)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """`train.epochs 20, now 5; train.momentum 0.9, now unset`."""
    keys = [key for key in {**old, **new} if (key in old, old.get(key)) != (key in new, new.get(key))]
    return "; ".join(f"{key} {_show(old, key)}, now {_show(new, key)}" for key in keys)


def _show(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return "unset"
    text = json.dumps(settings[key], default=str).strip('"')
    return text if len(text) <= 40 else f"{text[:12]}…"


TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # of write_atomic


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for one process: the operating system's lock on `.lock`, which notes who holds it.

    The system frees it however the process ends; the workers of one that was killed hold it for the moment that
    they take to end, too. What a killed process left half-written is cleared away.
    Raises InUse if another process holds it, with its number, machine and time.
    """
    from core import claims

    with opened(folder) as file:
        file.seek(0)
        note = file.read()
        acquire(file, folder, note)
        if sharers := claims.alive(folder):  # a file system whose locks do not reach from machine to machine
            raise InUse(f"{folder} is in use by {', '.join(sharers)}: wait for them, or choose another run.log_dir")
        if note:
            log.info("%s: %s did not come to its end; this run continues", folder, _who(note))
        if claims.forget(folder) or note:
            clear(folder)
        own = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        _note(file, own)
        try:
            with holding(Hold(folder.absolute() / LOCK, json.dumps(own))):
                yield
        finally:
            _note(file, None)


def opened(folder: Path) -> TextIO:
    """The lock file of a run directory, which is made where it is not there."""
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(path, "a+")  # "w" would erase the other's name
    except OSError as error:
        raise unwritable(path, error) from None


def acquire(file: TextIO, folder: Path, note: str, *, shared: bool = False) -> None:
    """The operating system's lock on an opened lock file. Raises InUse if others have it."""
    import fcntl

    from core import claims

    path, patience = folder / LOCK, time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            sharers = claims.alive(folder)
            if sharers or _is_alive(note) or time.monotonic() > patience:
                way_out = "wait for it, or choose another run.log_dir"
                raise InUse(f"{folder} is in use by {', '.join(sharers) or _who(note)}: {way_out}") from None
            time.sleep(0.05)
        except OSError as error:  # some network file systems know no locks: the note has to do
            if _is_alive(note):
                way_out = f"wait for it, or delete {path} if it is not so"
                raise InUse(f"{folder} is in use by {_who(note)}: {way_out}") from None
            if not shared:
                log.warning("%s cannot be locked (%s): start no second run here", folder, error.strerror)
            return


def _note(file: TextIO, holder: Mapping[str, Any] | None) -> None:
    with suppress(OSError):  # it serves messages only; a full disk stops the run elsewhere
        file.truncate(0)
        file.write(json.dumps(holder) if holder else "")
        file.flush()


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _holder(note: str) -> dict[str, Any]:
    with suppress(ValueError):
        holder = json.loads(note)
        if isinstance(holder, dict) and isinstance(holder.get("pid"), int):
            return holder
    return {}


def _who(note: str) -> str:
    """`process 4711 on thishost, since 2026-05-04T10:00:00+02:00`."""
    holder = _holder(note)
    if not holder:
        return "another run"
    return f"process {holder['pid']} on {holder.get('host')}, since {holder.get('since')}"


def _is_alive(note: str) -> bool:
    """Whether the process of a note may be running: on another machine, nobody knows, so it may."""
    holder = _holder(note)
    if not holder or holder.get("host") != socket.gethostname():
        return bool(holder)
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return holder["pid"] != os.getpid()


def clear(folder: Path) -> None:
    """Delete the temporary files of processes that were killed."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
