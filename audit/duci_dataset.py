"""The dataset X that DUCI asks about, and its named parts: by a list of records, by label, by a column of the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy import ndarray as Array

from audit.session import Session

log = logging.getLogger(__name__)

ALL = "all of X"
LABEL = "label"
MOST_PARTS = 50  # of a column whose every value is a part

Value = int | float | str
Condition = dict[str, Value | tuple[Value, ...]]


def dataset_of(session: Session, file: Path | None, where: Condition, size: int | None) -> Int[Array, " N"]:
    """Indices of X into the pool, sorted: the listed audited points, those of them that match, `size` of these."""
    points, error = session.points, session.config.error
    if file is not None:
        points = _listed(session, file)
    if where:
        points = points[_matching(session, points, where, "duci.where")]
    if size is not None and size > len(points):
        raise error("duci.size", f"{size} is more than the {len(points)} records to draw from")
    if size is not None:
        points = np.sort(session.stream("duci", "records").choice(points, size, replace=False))
    if len(points) < 2:
        raise error("duci.where" if where else "duci", f"the dataset has {len(points)} records: 2 are needed")
    return points


def _listed(session: Session, file: Path) -> Int[Array, " n"]:
    error = session.config.error
    try:
        listed = np.unique(np.array(file.read_text().split(), dtype=np.int64))
    except (OSError, ValueError, OverflowError) as problem:
        raise error("duci.records", f"{file} is no text file of pool indices, one a line ({problem})") from None
    missing = np.setdiff1d(listed, session.points)
    if len(missing):
        raise error(
            "duci.records",
            f"{len(missing)} of the {len(listed)} records are no audited points (first: {missing[0]}; the pool has "
            f"{len(session.data.pool)} records): raise audit.data_size, or leave it out",
        )
    return listed


def parts_of(
    session: Session, x: Int[Array, " N"], groups: str | Mapping[str, Value | tuple[Value, ...] | Condition]
) -> dict[str, Bool[Array, " N"]]:
    """All of X, and each named part of it."""
    parts = {ALL: np.ones(len(x), dtype=bool)}
    if isinstance(groups, str):
        return parts | _values(session, x, groups)
    for name, given in groups.items():
        key = f"duci.groups.{name}"
        where = given if isinstance(given, dict) else {LABEL: given}
        parts[name] = _matching(session, x, where, key)
        if (count := int(parts[name].sum())) < 2:
            asked = " and ".join(f"{column} in {_several(values)}" for column, values in where.items())
            raise session.config.error(key, f"{count} records of X have {asked}: 2 are needed")
    return parts


def _values(session: Session, x: Int[Array, " N"], column: str) -> dict[str, Bool[Array, " N"]]:
    """A part for each value of a column; values of a single record are left out."""
    of = _column(session, column, "duci.groups")[x]
    values, counts = np.unique(of, return_counts=True)
    if (enough := int((counts >= 2).sum())) > MOST_PARTS:
        message = f"{column} has {enough} values in X, more than {MOST_PARTS}: name those to ask about, see duci.groups"
        raise session.config.error("duci.groups", message)
    if enough < len(values):
        log.warning(
            "duci: %d of %d values of %s have one record of X: left out", len(values) - enough, len(values), column
        )
    return {f"{column} {value}": of == value for value, count in zip(values, counts, strict=True) if count >= 2}


def _matching(session: Session, rows: Int[Array, " n"], where: Condition, key: str) -> Bool[Array, " n"]:
    matching = np.ones(len(rows), dtype=bool)
    for column, values in where.items():
        matching &= _is_one_of(_column(session, column, key)[rows], _several(values))
    return matching


def _several(values: Value | tuple[Value, ...]) -> list[Value]:
    return list(values) if isinstance(values, tuple) else [values]


def _is_one_of(column: Shaped[Array, " n"], values: list[Value]) -> Bool[Array, " n"]:
    """Numbers as numbers; whatever else as it is written."""
    if column.dtype.kind in "biuf":
        return np.isin(column, np.array([value for value in values if not isinstance(value, str)], dtype=float))
    return np.isin(column.astype(str), [str(value) for value in values])


def _column(session: Session, name: str, key: str) -> Shaped[Array, " D"]:
    pool = session.data.pool
    columns = {LABEL: pool.y, **pool.groups}
    if name in columns:
        return np.asarray(columns[name])
    raise session.config.error(key, _unknown(name, list(columns)))


def _unknown(name: str, columns: list[str]) -> str:
    near = get_close_matches(name, columns)
    if near:
        return f"no column is called {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"no column is called {name!r}; the pool has: {', '.join(columns)}"
