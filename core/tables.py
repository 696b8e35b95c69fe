"""Tables from others, as columns by name: .csv, .tsv, .parquet, .npz. Cells are numbers or text, never code."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.loading import read_arrays

Columns = dict[str, np.ndarray]

SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")
MOST_CELLS = 2**31  # a parquet file of a few bytes can promise any number of rows
INDEX = "(index)"  # the nameless first column that pandas writes
_MISSING = {"", "na", "n/a", "nan", "null", "none"}


def read_table(path: Path) -> Columns:
    """The columns of a table, all of one length: int64, float64, bool, or text.

    A column of a CSV is a number if all its cells are (empty ones and NA are NaN), true or false if all are that,
    else text. A CSV whose first line is all numbers has no header: its columns are called 0, 1, 2, … Of a .npz,
    the arrays are the columns. Raises UserError, naming the file and the place in it.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        columns = _read_csv(path, "," if suffix == ".csv" else "\t")
    elif suffix == ".parquet":
        columns = _read_parquet(path)
    elif suffix == ".npz":
        columns = read_arrays(path)
    else:
        raise UserError(f"{path}: a table is a file of the type {', '.join(SUFFIXES)}, got {suffix or 'none'}")
    lengths = {name: len(column) if column.ndim else 0 for name, column in columns.items()}
    if not columns or not max(lengths.values()):
        raise UserError(f"{path} has no rows")
    if suffix != ".npz" and len(set(lengths.values())) > 1:
        raise UserError(f"{path} has columns of different lengths: {lengths}")
    return columns


def column_of(columns: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """One column. Raises UserError that names the file, and what may have been meant."""
    if name in columns:
        return columns[name]
    near = get_close_matches(name, columns)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_some(columns)}"
    raise UserError(f"{path} has no column {name!r}: {hint}")


def as_member(column: np.ndarray, what: str) -> np.ndarray:
    """Membership as booleans: from true and false, 1 and 0, or text that says so."""
    if column.dtype.kind == "b":
        return column
    if column.dtype.kind in "US":
        said = np.char.lower(np.char.strip(column.astype(str)))
        yes, no = (
            np.isin(said, words)
            for words in (("1", "true", "yes", "in", "member"), ("0", "false", "no", "out", "non-member"))
        )
    elif column.dtype.kind in "iuf":
        yes, no = column == 1, column == 0
    else:
        raise UserError(f"{what}: membership is true or false, got {column.dtype}")
    if not (yes | no).all():
        other = column[~(yes | no)].ravel()[0]
        raise UserError(f"{what}: membership is 1 or 0 (true or false), got {other!s}")
    return yes


def as_text(column: np.ndarray) -> np.ndarray:
    """Cells as they would be written: whole numbers without a point."""
    if (
        column.dtype.kind == "f"
        and np.isfinite(column).all()
        and (column == np.round(column)).all()
        and (np.abs(column) < 2**53).all()
    ):
        column = column.astype(np.int64)
    return column.astype(str)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _read_csv(path: Path, delimiter: str) -> Columns:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, delimiter=delimiter, strict=True) if row]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a {delimiter!r}-separated table in UTF-8 ({error})") from None
    if not rows:
        raise UserError(f"{path} has no rows")
    header = _header(rows[0])
    body = rows[1:] if header else rows
    names = header or [str(index) for index in range(len(rows[0]))]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: the column {sorted(twice)[0]!r} is there twice")
    for number, row in enumerate(body, start=2 if header else 1):
        if len(row) != len(names):
            raise UserError(f"{path}: row {number} has {len(row)} cells, the first has {len(names)}")
    return {name: _typed([row[place] for row in body]) for place, name in enumerate(names)}


def _header(first: list[str]) -> list[str] | None:
    """The names in a first line, None if it is a record: all numbers, and not 0, 1, 2, … as pandas numbers columns."""
    names = [name.strip() for name in first]
    if not names[0]:
        names[0] = INDEX
    numbered = names[1:] if names[0] == INDEX else names
    counting = numbered == [str(index) for index in range(len(numbered))] and len(numbered) > 1
    return names if counting or not all(_is_number(name) for name in names) else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _typed(cells: list[str]) -> np.ndarray:
    stripped = [cell.strip() for cell in cells]
    if any(cell[0] == "0" and cell.isdigit() for cell in stripped if len(cell) > 1):
        return np.array(stripped)  # 00123 is a name, as of a place or a person, and no number
    try:
        return np.array(stripped, dtype=np.int64)
    except (ValueError, OverflowError):
        pass
    said = [cell.casefold() for cell in stripped]
    if set(said) <= {"true", "false"}:
        return np.array([cell == "true" for cell in said])
    numbers = [np.nan if cell in _MISSING else stripped[row] for row, cell in enumerate(said)]
    try:
        return np.array([float(cell) for cell in numbers])
    except ValueError:
        return np.array(stripped)


def _read_parquet(path: Path) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow: pip install pyarrow, or write a .csv or .npz"
        ) from None
    try:
        described = pyarrow.parquet.read_metadata(path)
        if described.num_rows * max(described.num_columns, 1) > MOST_CELLS:
            raise UserError(
                f"{path} is refused: it promises {described.num_rows} rows of {described.num_columns} columns"
            )
        table = pyarrow.parquet.read_table(path)
        return {name: _from_arrow(table.column(name), name, path) for name in table.column_names}
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file that can be read ({str(error).partition(chr(10))[0]})") from None


def _from_arrow(column, name: str, path: Path) -> np.ndarray:
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pyarrow.types.is_boolean(kind) and not column.null_count:
        return column.to_numpy()
    if pyarrow.types.is_integer(kind) and not column.null_count:
        return column.to_numpy().astype(np.int64)
    if (
        pyarrow.types.is_integer(kind)
        or pyarrow.types.is_floating(kind)
        or pyarrow.types.is_decimal(kind)
        or pyarrow.types.is_boolean(kind)
    ):
        return column.cast(pyarrow.float64()).to_numpy()
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return np.array(["" if cell is None else cell for cell in column.to_pylist()], dtype=str)
    raise UserError(f"{path}: column {name!r} holds {kind}: numbers, text, true and false can be read")
