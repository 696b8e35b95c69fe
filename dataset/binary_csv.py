"""Tables of zeros and ones in text files: read a block at a time, eight features to a byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray as Array

from core.errors import UserError

BLOCK = 1 << 24
NEWLINE, COMMA, ZERO = b"\n,0"


@dataclass(frozen=True)
class Table:
    """Binary features, eight to a byte, and the label of each row where the file has them."""

    packed: UInt8[Array, "n bytes"]
    columns: int
    labels: Int[Array, " n"] | None = None

    def features(self, rows: Int[Array, " m"]) -> np.ndarray:
        """The features of some rows, float32 (m, columns)."""
        out = np.empty((len(rows), self.columns), dtype=np.float32)
        for start in range(0, len(rows), 512):  # what is unpacked stays in the processor's cache
            chosen = self.packed[rows[start : start + 512]]
            out[start : start + 512] = np.unpackbits(chosen, axis=1, count=self.columns)
        return out


def read_table(stream: BufferedReader, name: str, *, labelled: bool, most: int) -> Table:
    """All rows of comma-separated zeros and ones; of labels in front of them, if `labelled`.

    The number of columns is the first row's. name: what error messages call the file. most: rows at most.
    Raises UserError with line and column: a cell that is not 0 or 1, another number of columns, too many rows.
    """
    packed, labels, columns, line = [], [], 0, 1
    for block in _whole_lines(stream):
        columns = columns or block[: block.index(b"\n")].count(b",") + (not labelled)
        parsed = _fixed_width(block, columns, labelled) or _any_width(block, columns, labelled, name, line)
        packed.append(parsed.packed)
        labels.append(parsed.labels)
        line += len(parsed.packed)
        if line - 1 > most:
            raise UserError(f"{name}:{most + 1}: the published file ends before this line: it has {most:,} rows")
    if not packed:
        raise UserError(f"{name} is empty")
    return Table(np.concatenate(packed), columns, np.concatenate(labels) if labelled else None)


def read_labels(stream: BufferedReader, name: str) -> Int[Array, " n"]:
    """One whole number a line. Raises UserError with the line of anything else."""
    lines = stream.read().splitlines()
    return np.array([_label(text, name, line) for line, text in enumerate(lines, 1)], dtype=np.int64)


def _whole_lines(stream: BufferedReader) -> Iterator[bytes]:
    """The text in blocks that end with a newline, without carriage returns."""
    rest = b""
    while block := stream.read(BLOCK):
        lines, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield (lines + newline).replace(b"\r\n", b"\n")
    if rest.strip():
        yield rest.rstrip(b"\r") + b"\n"


def _fixed_width(block: bytes, columns: int, labelled: bool) -> Table | None:
    """A block in which every cell is one digit, as in the published files; None where it is not so."""
    text = np.frombuffer(block, dtype=np.uint8)
    end = np.flatnonzero(text == NEWLINE)
    begin = np.concatenate([[0], end[:-1] + 1])
    width = 2 * columns - 1
    start = end - width  # of the features: what is before is the label and its comma
    if width < 1 or not np.all(start - begin >= 2 if labelled else start == begin):
        return None
    rows = np.lib.stride_tricks.sliding_window_view(text, width)[start]
    bits = rows[:, ::2] ^ ZERO
    if bits.max() > 1 or not np.all(rows[:, 1::2] == COMMA):
        return None
    labels = None
    if labelled:
        cells = [block[first : last - 1] for first, last in zip(begin.tolist(), start.tolist(), strict=True)]
        if not (np.all(text[start - 1] == COMMA) and all(map(bytes.isdigit, cells))):
            return None
        labels = np.array(list(map(int, cells)), dtype=np.int64)
    return Table(np.packbits(bits, axis=1), columns, labels)


def _any_width(block: bytes, columns: int, labelled: bool, name: str, line: int) -> Table:
    """A block cell by cell: slower, but it reads `1.0`, and it can say where a mistake is."""
    bits, labels = [], []
    for number, text in enumerate(block.splitlines(), line):
        cells = text.split(b",")
        if len(cells) != columns + labelled:
            raise UserError(f"{name}:{number}: has {len(cells)} columns, the first line {columns + labelled}")
        if labelled:
            labels.append(_label(cells.pop(0), name, number))
        bits.append([_bit(cell, name, number, column) for column, cell in enumerate(cells, 1 + labelled)])
    return Table(np.packbits(np.array(bits, dtype=bool), axis=1), columns, np.array(labels) if labelled else None)


def _bit(cell: bytes, name: str, line: int, column: int) -> bool:
    try:
        return {0.0: False, 1.0: True}[float(cell)]
    except (ValueError, KeyError):
        raise UserError(f"{name}:{line}:{column}: {_shown(cell)} is not 0 or 1") from None


def _label(cell: bytes, name: str, line: int) -> int:
    try:
        value = float(cell)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{name}:{line}:1: {_shown(cell)} is not a label, a whole number")


def _shown(cell: bytes) -> str:
    return repr(cell[:20].decode("utf-8", "replace"))
