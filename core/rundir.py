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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from core.errors import StaleArtefact, UserError
from core.loading import read_json as read_json

log = logging.getLogger(__name__)

LOCK_PATIENCE = 5.0  # seconds
FORMAT = 2  # raise it when the same settings come to mean other bytes


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(file)` on a temporary neighbour of `path`, flush it to disk, and rename it into place.

    Raises UserError, naming the file, where the disk is full or does not let us; what was there before is there still.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(name)
        raise unwritable(path, error) from None
    except BaseException:
        _remove(name)
        raise


def _remove(name: str | None) -> None:
    if name is not None:
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
    return path.with_name(f"{path.name}.stamp.json")


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
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
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
    Raises UserError if another process holds it, with its number, machine and time.
    """
    import fcntl

    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (it is closed below, and "w" would erase the other's name)
    except OSError as error:
        raise unwritable(path, error) from None
    with file:
        file.seek(0)
        note = file.read()
        patience = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if _is_alive(note) or time.monotonic() > patience:
                    way_out = "wait for it, or choose another run.log_dir"
                    raise UserError(f"{folder} is in use by {_who(note)}: {way_out}") from None
                time.sleep(0.05)
            except OSError as error:  # some network file systems know no locks: the note has to do
                if _is_alive(note):
                    way_out = f"wait for it, or delete {path} if it is not so"
                    raise UserError(f"{folder} is in use by {_who(note)}: {way_out}") from None
                log.warning("%s cannot be locked (%s): start no second run here", folder, error.strerror)
                break
        if note:
            log.info("%s: %s did not come to its end; this run continues", folder, _who(note))
            _clear(folder)
        _note(file, {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()})
        try:
            yield
        finally:
            _note(file, None)


def _note(file: TextIO, holder: Mapping[str, Any] | None) -> None:
    with suppress(OSError):  # it serves messages only; a full disk stops the run elsewhere
        file.truncate(0)
        file.write(json.dumps(holder) if holder else "")
        file.flush()


def _now() -> str:
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


def _clear(folder: Path) -> None:
    """Delete the temporary files of a process that was killed."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
