"""Artefacts that are whole or absent, each with the settings that made it.

A stamp is a small JSON file beside an artefact. It is written last, after the artefact's own atomic rename:
no stamp = unfinished = make it again; another stamp = refuse, and say which setting changed. So a process may
be killed at any moment, and what is found later is either complete and known, or ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from core.errors import StaleArtefact, UserError
from core.loading import read_json as read_json

FORMAT = 1  # raise it when the same settings come to mean other bytes


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(file)` on a temporary neighbour of `path`, flush it to disk, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


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


def make(path: Path, settings: Mapping[str, Any], write: Callable[[BinaryIO], Any], **facts: Any) -> None:
    """Write an artefact, then its stamp. `facts` are measured, not set: accuracies, seconds, digests."""
    with suppress(FileNotFoundError):
        stamp_of(path).unlink()  # from here until the new stamp is written, the artefact is unfinished
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


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for one process. Raises UserError if another has it; a killed process frees it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder} is in use by another run: wait for it, or choose another run.log_dir") from None
        yield
