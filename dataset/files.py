"""Files from elsewhere: downloads that end whole or not at all, and archives that are read without being trusted."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import logging
import os
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from core.errors import UserError

log = logging.getLogger(__name__)

Result = TypeVar("Result")
BLOCK = 1 << 20
UNPACKED, SMALL = 500, 1 << 28  # an archive may unpack to 500 times its size, or to 256 MB
WITHOUT = "python main.py --cf configs/quickstart.yaml"  # needs no download


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's bytes: `digest(path, "sha256")`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def damage(path: Path, md5: str | None) -> str | None:
    """What is wrong with an archive, or None: its published digest, or else the checksum gzip keeps of itself."""
    if md5 is not None:
        found = digest(path, "md5")
        return None if found == md5 else f"has MD5 {found}, the published file has {md5}"
    try:
        with gzip.open(path) as stream:
            while stream.read(BLOCK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"is not a whole gzip file ({error})"
    return None


def fetch(url: str, path: Path, *, md5: str | None = None, timeout: float = 10.0) -> Path:
    """`path`, downloaded from `url` if it is not there: whole and undamaged, or not there at all.

    What has arrived waits in `<path>.part`. Where `md5` can vouch for the result the next call continues it,
    otherwise it starts again. A file that is there already is checked too, and never replaced or deleted.

    timeout: seconds without a byte from the other side.
    Raises UserError: no network, an interrupted transfer, a damaged file; with where to put the file by hand.
    """
    if path.exists():
        if reason := damage(path, md5):
            raise UserError(f"{path} {reason}. Delete it, and it is downloaded again; or run without it: {WITHOUT}")
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        resumed = _download(url, part, md5 is not None, timeout)
        if resumed and damage(part, md5):  # the beginning was of something else
            part.unlink()
            _download(url, part, False, timeout)
    except (OSError, http.client.HTTPException) as error:
        raise _unavailable(url, path, _reason(error)) from None
    if reason := damage(part, md5):
        part.unlink()
        raise _unavailable(url, path, f"what arrived {reason}")
    os.replace(part, path)
    return path


def _unavailable(url: str, path: Path, reason: str) -> UserError:
    return UserError(
        f"cannot download {_name(url)} from {urllib.parse.urlsplit(url).hostname}: {reason}. "
        f"Put the file at {path} by hand ({url}), or run without it: {WITHOUT}"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(cause) or type(cause).__name__


def _name(url: str) -> str:
    return PurePosixPath(urllib.parse.urlsplit(url).path).name


def _download(url: str, part: Path, resume: bool, timeout: float) -> bool:
    """Fill `part` from `url`; True if it continued what was there. Raises OSError or HTTPException."""
    start = part.stat().st_size if resume and part.exists() else 0
    headers = {"User-Agent": "privacy-meter"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            part.unlink()
            return _download(url, part, False, timeout)
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        log.info("%s %s (%s)", "continuing" if start else "downloading", _name(url), _megabytes(total))
        with open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            _copy(response, file, total)
    return start > 0


def _copy(response: http.client.HTTPResponse, file: io.BufferedIOBase, total: int | None) -> None:
    """Copy to the end, logging every tenth. Raises ConnectionError if the end comes before `total` bytes."""
    step = total / 10 if total else 100e6
    due = file.tell() + step
    while block := response.read(BLOCK):
        file.write(block)
        if file.tell() >= due:
            log.info("  %s of %s", _megabytes(file.tell()), _megabytes(total))
            due += step
    if total is not None and file.tell() != total:
        raise ConnectionError(f"the transfer ended after {file.tell():,} of {total:,} bytes: try again")


def _megabytes(size: int | None) -> str:
    return "size unknown" if size is None else f"{size / 1e6:.1f} MB"


def read_members(archive: Path, readers: Mapping[str, Callable[[io.BufferedReader], Result]]) -> dict[str, Result]:
    """What each reader makes of the file of its name in a .tgz. Nothing is unpacked to the disk.

    Raises UserError: the archive is damaged, lacks one of the files, or holds anything but plain files and
    folders below the one it is unpacked in (a link, a device, `../x`, `/x`): then it is not what it claims to be.
    """
    found, room = {}, max(UNPACKED * archive.stat().st_size, SMALL)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                room -= member.size
                if room < 0:
                    raise UserError(f"{archive} is refused: it claims to unpack to more than {UNPACKED} times its size")
                name = PurePosixPath(member.name)
                if not (member.isreg() or member.isdir()) or name.is_absolute() or ".." in name.parts:
                    raise UserError(f"{archive} is refused: {member.name!r} in it would reach outside its folder")
                content = tar.extractfile(member) if str(name) in readers else None
                if content is not None:
                    found[str(name)] = readers[str(name)](content)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is damaged ({error}). Delete it, and it is downloaded again") from None
    if missing := [name for name in readers if name not in found]:
        raise UserError(f"{archive} does not contain {', '.join(missing)}")
    return found
