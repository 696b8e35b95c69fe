"""Files from others, read without being trusted: nothing in them runs, and nothing in them is believed unchecked.

Every function raises `UserError` that begins with the file's name. tests/test_loaders.py reads the whole tree for
other ways to open such files.
"""

from __future__ import annotations

import io
import json
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from core.errors import UserError

KINDS = "biufUS"  # booleans, whole numbers, floats, text: never objects, which would be pickles
RATIO, SMALL = 200, 1 << 28  # an archive may not promise more than 200 times its own size, beyond 256 MB
# What zipfile and its decompressors raise on files that were cut short, or made to confuse.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, ValueError, KeyError)
_DAMAGED = (*_DAMAGED, NotImplementedError, RuntimeError, OverflowError, MemoryError)


def read_bytes(path: Path) -> bytes:
    """All of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_json(path: Path) -> Any:
    """The parsed file."""
    try:
        return json.loads(read_bytes(path).decode())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it or delete it") from None
    except RecursionError:
        raise UserError(f"{path} is not JSON of this tool: it is nested too deeply") from None


def read_array(path: Path, *, kinds: str = KINDS) -> np.ndarray:
    """The array of a .npy file, whose size on disk is what its header promises.

    kinds: the kinds of dtype that are admitted, as `numpy.dtype.kind` writes them.
    """
    try:
        with open(path, "rb") as file:
            return _array(file, path.stat().st_size, kinds, str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_arrays(path: Path, *, kinds: str = KINDS) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, by name; each as large as the archive's own directory says."""
    check_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name in arrays or name == member.filename:
                    raise UserError(f"{path} is not a .npz file of numpy: it holds {member.filename!r}")
                with archive.open(member) as file:
                    arrays[name] = _array(file, member.file_size, kinds, f"{path}: {name}")
            return arrays
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({error})") from None


def check_zip(path: Path) -> None:
    """Refuse an archive that is damaged, or that would unpack to far more than it is (a zip bomb)."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except _DAMAGED as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        raise UserError(f"{path} is not a whole zip archive ({error})") from None
    if unpacked > max(RATIO * size, SMALL):
        raise UserError(f"{path} is refused: its {size} bytes claim to unpack to {unpacked}")


def _array(file: io.BufferedIOBase | IO[bytes], size: int, kinds: str, what: str) -> np.ndarray:
    """The array that `file`, of `size` bytes, holds in the .npy format."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"its format {version} is unknown")
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # numpy parses the header as Python, which can raise anything
        raise UserError(f"{what} is not a numpy array ({_first_line(error)})") from None
    if dtype.kind not in kinds:
        objects = ", which would be a pickle, hence a program" if dtype.hasobject else ""
        raise UserError(f"{what} holds {_show(dtype)}{objects}: refused")
    promised = dtype.itemsize
    for side in shape:
        promised *= side
    if any(side < 0 for side in shape) or promised > size:
        raise UserError(f"{what} promises shape {_show(shape)} of {dtype}, and has {size} bytes: it was cut short")
    content = file.read(promised)
    if len(content) != promised:
        raise UserError(f"{what} ends after {len(content)} of {promised} bytes: it was cut short")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array if array.dtype.isnative else array.astype(dtype.newbyteorder("="))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _show(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


class Inert:
    """Stands in for an object of a pickle: it keeps what it is given, and does nothing."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


# A pickled array of numbers; numpy 2 writes the second for the first.
ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")


def unpickled_array(value: Any, what: str) -> np.ndarray:
    """The array that an `Inert` stands in for: numbers or booleans only, of as many bytes as its shape needs."""
    try:
        _, shape, dtype, fortran, content = value.state
        kind, order = (_text(part) for part in (dtype.arguments[0], (dtype.state or (3, "<"))[1]))
        if kind[0] not in "biuf" or not kind[1:].isdigit():
            raise ValueError(f"it holds {_show(kind)}, not numbers")
        stored = np.dtype(kind).newbyteorder(order)
        array = np.frombuffer(content, stored).reshape(shape, order="F" if fortran else "C")
        return array.astype(stored.newbyteorder("="), copy=False)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{what} is not an array of numbers ({type(error).__name__}: {_first_line(error)})") from None


def _text(part: Any) -> Any:
    return part.decode("ascii") if isinstance(part, bytes) else str(part)


# Not the one written in C: that one sets memory aside as a hostile file tells it to.
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


def unpickle(content: bytes, admitted: Mapping[str, Callable[..., Any]], what: str, *, encoding: str = "latin1") -> Any:
    """What a pickle builds from plain Python values and the `admitted` symbols ("module.name"), and nothing else.

    Admit only classes and functions that are harmless whatever their arguments. encoding: of texts by Python 2.
    Raises UserError with the first symbol beyond them that the pickle asks for: nothing has run by then.
    """
    classes = tuple(thing for thing in admitted.values() if isinstance(thing, type))

    class Restricted(_PythonUnpickler):
        dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            symbol = f"{module}.{name}"
            if symbol not in admitted:
                known = ", ".join(sorted(admitted)) or "none"
                raise UserError(f"{what} is refused: it asks for {_show(symbol)}, and may only use {known}")
            return admitted[symbol]

        def persistent_load(self, pid: Any) -> Any:
            raise UserError(f"{what} is refused: it asks for {_show(pid)} outside of itself")

        def load_build(self) -> None:
            """Attributes are set on new objects only: a pickle could otherwise change the admitted functions."""
            target = self.stack[-2]
            if not isinstance(target, classes):
                raise UserError(f"{what} is refused: it would change {_show(target)}")
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

    try:
        return Restricted(io.BytesIO(content), encoding=encoding).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{what} cannot be read as a pickle ({type(error).__name__}: {_first_line(error)})") from None


def inside(folder: Path, written: str, what: str, *, anywhere: bool = False) -> Path:
    """The file that a file in `folder` calls `written`: beside it, by its last name.

    anywhere: believe absolute paths and `..`, too. Raises UserError if there is no such file.
    """
    name = written.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in written:
        raise UserError(f"{what}: {_show(written)!r} is no name of a file")
    beside = folder / name
    try:
        if anywhere and not beside.exists() and (folder / written).exists():
            return folder / written
        there, within = beside.exists(), beside.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{what}: {_show(written)!r} cannot be looked up ({_first_line(error)[:80]})") from None
    if not there:
        raise UserError(f"{what}: there is no file {_show(name)!r} in {folder}")
    if not (within or anywhere):
        raise UserError(f"{what}: {beside} is a link out of its folder: allow it, or put the file itself there")
    return beside
