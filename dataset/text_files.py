"""Tables of texts from files: .txt, .jsonl, .csv, .tsv, .parquet, and the docstrings of installed packages."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError, WrongSetting
from core.types import Records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and what they were read from."""

    source: str
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def column(self, name: str, key: str) -> Sequence[Any]:
        """The column called `name`; WrongSetting at `key`, with what may have been meant, if there is none."""
        if name in self.columns:
            return self.columns[name]
        near = get_close_matches(name, self.columns) or [c for c in self.columns if c.casefold() == name.casefold()]
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(self.columns)}"
        raise WrongSetting(key, f"{self.source} has no column {name!r}; {hint}")


def resolve(data_dir: Path, file: Path, key: str) -> Path:
    """The file, as it is named from here or from the data directory."""
    for path in (file.expanduser(), data_dir / file):
        if path.is_file():
            return path
    raise WrongSetting(key, f"{file} is neither here nor in {data_dir}: give the path of the file")


def read_table(path: Path, separator: str | None = None, encoding: str = "utf-8") -> Table:
    """A file of records, by its ending. UserError, naming file and line, for what cannot be read."""
    readers: dict[str, Callable[[], Mapping[str, Sequence[Any]]]] = {
        ".txt": lambda: _lines(path, separator, encoding),
        ".jsonl": lambda: _json_lines(path, encoding),
        ".ndjson": lambda: _json_lines(path, encoding),
        ".csv": lambda: _csv(path, ",", encoding),
        ".tsv": lambda: _csv(path, "\t", encoding),
        ".parquet": lambda: _parquet(path),
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: its ending says nothing about its format; there are: {', '.join(readers)}")
    table = Table(str(path), readers[path.suffix.lower()]())
    if not len(table):
        raise UserError(f"{path} is empty: it has no records")
    return table


def _text(path: Path, encoding: str) -> str:
    """The decoded file, without a byte order mark. UserError with the line where it is of another encoding."""
    content = path.read_bytes()
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: not {encoding} (byte 0x{content[error.start]:02x}): convert the file, "
            "or set data.encoding, such as latin-1"
        ) from None
    except LookupError:
        raise WrongSetting("data.encoding", f"there is no encoding {encoding!r}; try utf-8 or latin-1") from None


def _lines(path: Path, separator: str | None, encoding: str) -> dict[str, list[str]]:
    # Not splitlines: a form feed or a line separator within a record is part of it.
    lines = _text(path, encoding).replace("\r\n", "\n").split("\n")
    if separator is None:
        return {"text": [line for line in lines if line.strip()]}
    records: list[list[str]] = [[]]
    for line in lines:
        records.append([]) if line.strip() == separator.strip() else records[-1].append(line)
    texts = ["\n".join(record).strip() for record in records]
    return {"text": [text for text in texts if text]}


def _json_lines(path: Path, encoding: str) -> dict[str, list[Any]]:
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(_text(path, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a line of JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}:{number}: should be an object such as {{"text": "..."}}, got {line[:40]!r}')
        rows.append((number, row))
    keys = dict.fromkeys(key for _, row in rows for key in row)
    return {key: [row.get(key) for _, row in rows] for key in keys}


def _csv(path: Path, delimiter: str, encoding: str, names: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Columns by the names in the first row, or by `names` where there is no such row."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(_text(path, encoding).splitlines(keepends=True), delimiter=delimiter, strict=True)
        rows = []
        for row in reader:
            if row:
                rows.append(row)
                if len(row) != len(names or rows[0]):
                    expected = len(names or rows[0])
                    raise UserError(f"{path}:{reader.line_num}: has {len(row)} columns instead of {expected}")
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid csv ({error})") from None
    finally:
        csv.field_size_limit(before)
    header, body = (names, rows) if names else (rows[0] if rows else [], rows[1:])
    return {name: [row[i] for row in body] for i, name in enumerate(header)}


def _parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
        return {name: table.column(name).to_pylist() for name in table.column_names}
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).partition(chr(10))[0]})") from None


def _arrow(path: Path) -> Table:
    """A file of the cache of the library `datasets`."""
    import datasets

    try:
        found = datasets.Dataset.from_file(str(path))
        return Table(str(path), {name: found[name][:] for name in found.column_names})
    except Exception as error:  # the library raises whatever its readers raise
        raise UserError(f"{path}: not a readable arrow file ({str(error).partition(chr(10))[0]})") from None


def records_of(
    table: Table,
    text_column: str,
    label_column: str | None,
    id_column: str | None,
    group_columns: Sequence[str],
    *,
    labels: Sequence[str] = (),
) -> Records:
    """The table's records, not tokenised yet.

    labels: what its labels may be, in the order of their numbers; see `labels_of`.
    """
    texts = table.column(text_column, "data.text_column")
    bad = next((row for row, text in enumerate(texts) if not isinstance(text, str | None)), None)
    if bad is not None:
        what = type(texts[bad]).__name__
        raise WrongSetting("data.text_column", f"{table.source}: row {bad} of {text_column!r} is no text but {what}")
    y, groups = np.zeros(len(table), np.int64), {}
    if label_column is not None:
        number = {label: i for i, label in enumerate(labels)}
        y = np.array([number[str(label)] for label in table.column(label_column, "data.label_column")], np.int64)
    for name in group_columns:
        groups[name] = np.array(list(map(str, table.column(name, "data.group_columns"))))
    ids = (
        np.arange(len(table))
        if id_column is None
        else np.array(list(map(str, table.column(id_column, "data.id_column"))))
    )
    plain = tuple(text or "" for text in texts)
    _warn_of_copies(plain, table.source)
    empty, none = np.zeros((len(table), 0), np.int32), np.zeros(len(table), np.int64)
    return Records(empty, y, none, plain, ids, groups)


def labels_of(column: str | None, *tables: Table) -> list[str]:
    """The labels that occur in any of the tables, numbers in their order."""
    found = {str(label) for table in tables if column for label in table.column(column, "data.label_column")}
    return sorted(found, key=lambda label: (len(label) if label.isdigit() else 0, label))


def _warn_of_copies(texts: Sequence[str], source: str) -> None:
    copies = len(texts) - len(set(texts))
    if copies:
        log.warning(
            "%s: %d of %d records are copies of others. A model that saw one copy knows them all, and the audit "
            "counts the others as non-members: leave copies out",
            *(source, copies, len(texts)),
        )


def agnews_files(data_dir: Path) -> tuple[Table, Table | None] | None:
    """AG News in the formats it is passed on in, wherever under `data_dir` it is usually put; None if it is not."""
    for folder in (data_dir / "agnews", data_dir / "ag_news", data_dir / "ag_news_csv", data_dir):
        if (folder / "dataset_dict.json").exists():
            from dataset.text_hub import load

            return load(str(folder), None, "train", "test", f"{folder} is incomplete")
        pair = [_agnews_part(folder, split) for split in ("train", "test")]
        if all(pair):
            return pair[0], pair[1]  # ty: ignore
        if any(pair):
            missing = "test" if pair[0] else "train"
            raise UserError(f"{folder} has half of AG News: its {missing} file is missing")
    return None


def _agnews_part(folder: Path, split: str) -> Table | None:
    """`<split>.csv` as its authors publish it (class 1 to 4, title, description), or parquet as the hub has it."""
    path = folder / f"{split}.csv"
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            first = next(csv.reader(file), [])
        if {"text", "label"} <= set(first):
            return read_table(path)
        columns = _csv(path, ",", "utf-8", ("class", "title", "description"))
        if columns["class"][:1] and not columns["class"][0].isdigit():  # a copy with a header
            columns = {name: values[1:] for name, values in columns.items()}
        # As the hub has it: title and description in one text, and classes from 0.
        texts = [f"{title} {rest}" for title, rest in zip(columns["title"], columns["description"], strict=True)]
        try:
            return Table(str(path), {"text": texts, "label": [int(number) - 1 for number in columns["class"]]})
        except ValueError as error:
            raise UserError(f"{path}: its first column should be the class, 1 to 4 ({error})") from None
    parts = sorted(
        part
        for pattern in (f"{split}.parquet", f"{split}-*.parquet", f"data/{split}-*.parquet")
        for part in folder.glob(pattern)
    )
    parts = parts or sorted(folder.glob(f"*{split}*.arrow"))  # the cache of the library datasets
    if not parts:
        return None
    tables = [_arrow(part) if part.suffix == ".arrow" else read_table(part) for part in parts]
    columns = {name: [v for table in tables for v in table.column(name, "data.dataset")] for name in ("text", "label")}
    return Table(str(parts[0]), columns)


def paragraphs_of(*packages: str) -> list[tuple[str, str]]:
    """Paragraphs of prose in the docstrings of installed packages, each once, with its file: `scipy/stats/_qmc.py`.

    Their files are read, not imported. A paragraph is prose if it begins like a sentence, ends like one, has 60 to
    300 letters, and is not a heading, a list, a doctest, or the description of a parameter.
    """
    seen: dict[str, str] = {}
    for package in packages:
        for file, text in _docstrings(package):
            for paragraph in re.split(r"\n[ \t]*\n", text):
                prose = " ".join(paragraph.split())
                if 60 <= len(prose) <= 300 and _PROSE.fullmatch(prose) and not _MARKUP.search(paragraph):
                    seen.setdefault(prose, file)
    return list(seen.items())


_PROSE = re.compile(r"[A-Z][a-z' ].*[a-z\])`]\.")
_MARKUP = re.compile(r">>>|---|===|\.\. |\*\*|::|^\s*[\w, ]+ : |^\s*[-*] |\\[a-z]+\{|https?:|et al", re.MULTILINE)
_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)


def _docstrings(package: str) -> Iterator[tuple[str, str]]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {package} is not installed: pip install {package}")
    for file in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "tests" not in file.parts:
            name = f"{package}/{file.relative_to(Path(spec.origin).parent).as_posix()}"
            yield from ((name, text) for text in _DOCSTRING.findall(file.read_text(encoding="utf-8", errors="replace")))
