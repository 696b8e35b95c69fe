"""A record with unknown columns: all records that agree with it in the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, MinLen
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array

from core.types import AuditData
from dataset.ranges.base import RANGES, SettingError

ENUMERATED = 4096  # up to so many candidates are all weighed; of more, distinct ones are found by drawing again
TRIES = 1000  # draws per sample before it is said that there are too few, where they cannot be counted


@RANGES.register("missing_values", kind="features", summary="the record with some of its columns unknown")
def missing_values(
    data: AuditData,
    *,
    columns: Annotated[int, Ge(1)] | Annotated[list[int | str], MinLen(1)],
    imputation: Literal["joint", "per_column", "categorical", "uniform"] = "joint",
    col_ranges: Annotated[list[tuple[float, float]], MinLen(1)] | None = None,
) -> Unknown:
    """The record with the unknown columns filled in; samples of one range are distinct.

    columns: the last `columns` of them if it is a number, else a list of column numbers, from 0, and of names, where
        the dataset's columns have names.
    imputation: "joint" takes the unknown columns together from a random population record, so that they go with
        each other; "per_column" each from a record of its own; "categorical" any integer from the column's range;
        "uniform" any real number from it.
    col_ranges: [low, high] of each unknown column, both included, or a single one for all. Used by "categorical" and
        "uniform"; None takes the population's smallest and largest value.
    """
    chosen = _numbers(columns, data)
    width = data.pool.x.shape[1]
    if len(chosen) == width:
        raise SettingError("columns", f"all {width} are unknown, so every record is in every range: leave one known")
    known = data.population.x[:, chosen]
    if not len(known) and (imputation in ("joint", "per_column") or col_ranges is None):
        raise ValueError(f"imputation {imputation} draws from the population, which is empty: give col_ranges")
    if imputation == "joint":
        return Unknown(tuple(chosen), imputation, Candidates.of([_seen(known)]))
    if imputation == "per_column":
        return Unknown(tuple(chosen), imputation, Candidates.of([_seen(known[:, [c]]) for c in range(len(chosen))]))
    ranges = tuple(_ranges(col_ranges, known))
    if imputation == "uniform":
        return Unknown(tuple(chosen), imputation, None, ranges)
    return Unknown(tuple(chosen), imputation, Candidates.of([_integers(*pair) for pair in ranges]))


def _numbers(columns: int | Sequence[int | str], data: AuditData) -> list[int]:
    """The numbers of the columns that are given as the last n, or by number or name."""
    width, names = data.pool.x.shape[1], data.feature_names or ()
    if isinstance(columns, int):
        if columns > width:
            raise SettingError("columns", f"{columns} is more than the {width} that there are")
        return list(range(width - columns, width))
    chosen: dict[int, int | str] = {}
    for place, column in enumerate(columns):
        key = f"columns.{place}"
        if isinstance(column, str):
            if column not in names:
                raise SettingError(key, _unknown(column, names))
            number = names.index(column)
        else:
            number = column
        if not 0 <= number < width:
            raise SettingError(key, f"there is no column {number}; they are numbered 0 to {width - 1}")
        if number in chosen:
            raise SettingError(key, f"{column} and {chosen[number]} are the same column: a column is listed twice")
        chosen[number] = column
    return list(chosen)


def _unknown(name: str, names: Sequence[str]) -> str:
    if not names:
        return f"there is no column {name!r}: the columns of this dataset have no names, only numbers from 0"
    near = get_close_matches(name, names)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(names[:12])}"
    return f"there is no column {name!r}; {hint}{' …' if not near and len(names) > 12 else ''}"


def _ranges(given: Sequence[tuple[float, float]] | None, known: Float[Array, "P c"]) -> list[tuple[float, float]]:
    if given is None:
        return list(zip(known.min(axis=0).tolist(), known.max(axis=0).tolist(), strict=True))
    count = known.shape[1]
    if len(given) not in (1, count):
        raise ValueError(f"col_ranges has {len(given)} ranges for {count} unknown columns: give one, or one of each")
    if wrong := [pair for pair in given if not pair[0] <= pair[1]]:
        raise ValueError(f"col_ranges: [low, high] needs low <= high, got {list(wrong[0])}")
    return list(given) * (count if len(given) == 1 else 1)


@dataclass(frozen=True)
class Candidates:
    """Groups of columns that are filled in together: the values each group may take, and how likely they are.

    All groups' values lie in one array, so that one search picks for all of them.
    """

    values: Float[Array, "V c"]
    probability: Float[Array, " V"]  # sums to 1 in each group
    sizes: tuple[int, ...]  # of the groups

    @classmethod
    def of(cls, groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> Candidates:
        values, weights = zip(*groups, strict=True)
        return cls(
            np.concatenate(values).astype(np.float32),
            np.concatenate([weight / weight.sum() for weight in weights]),
            tuple(len(value) for value in values),
        )

    @cached_property
    def count(self) -> int:
        return math.prod(self.sizes)

    @cached_property
    def _ends(self) -> Int[Array, " G"]:
        return np.cumsum(self.sizes)

    @cached_property
    def _cumulative(self) -> Float[Array, " V"]:
        """Group g's cumulative probabilities, plus g: one ascending array."""
        parts = np.split(self.probability, self._ends[:-1])
        return np.concatenate([np.append(np.cumsum(part)[:-1], 1.0) + g for g, part in enumerate(parts)])

    def pick(self, draw: np.random.Generator, count: int) -> Float[Array, "k c"]:
        """`count` independent fillings."""
        groups = np.arange(len(self.sizes))
        at = np.searchsorted(self._cumulative, draw.random((count, len(groups))) + groups, side="right")
        return self.values[np.minimum(at, self._ends - 1)].reshape(count, -1)

    def all(self) -> tuple[Float[Array, "k c"], Float[Array, " k"]]:
        """Every filling, and its log-probability."""
        at = np.unravel_index(np.arange(self.count), self.sizes)
        at = np.stack(at, axis=1) + (self._ends - self.sizes)
        return self.values[at].reshape(self.count, -1), np.log(self.probability)[at].sum(axis=1)


def _seen(rows: Float[Array, "P c"]) -> tuple[Float[Array, "v c"], Float[Array, " v"]]:
    values, counts = np.unique(rows, axis=0, return_counts=True)
    return values, counts.astype(np.float64)


def _integers(low: float, high: float) -> tuple[Float[Array, "v 1"], Float[Array, " v"]]:
    values = np.arange(math.ceil(low), math.floor(high) + 1, dtype=np.float32)[:, None]
    if not len(values):
        raise ValueError(f"col_ranges: there is no integer from {low:g} to {high:g}")
    return values, np.ones(len(values))


@dataclass(frozen=True)
class Unknown:
    columns: tuple[int, ...]
    imputation: str
    candidates: Candidates | None  # None: any real number of the ranges
    ranges: tuple[tuple[float, float], ...] = ()

    @property
    def description(self) -> str:
        drawn = {
            "joint": "filled in together from population records",
            "per_column": "each filled in from population records",
            "categorical": "each filled in with any integer of its range",
            "uniform": "each filled in with any number of its range",
        }
        return f"records with {len(self.columns)} columns unknown, {drawn[self.imputation]}"

    def points(self) -> float:
        """Candidates, less the one that may be the center itself."""
        if self.candidates is None:
            return math.inf if any(low < high for low, high in self.ranges) else 0
        return self.candidates.count - 1

    def sample(self, center: Shaped[Array, " d"], count: int, draw: np.random.Generator) -> Shaped[Array, "K d"]:
        samples, columns = np.repeat(center[None], count, axis=0), list(self.columns)
        if self.candidates is None:
            low, high = np.array(self.ranges).T
            samples[:, columns] = draw.uniform(low, high, size=(count, len(columns)))
            return samples
        find = _weighed if self.candidates.count <= ENUMERATED else _redrawn
        found = find(self.candidates, center[columns], count, draw)
        if len(found) < count:
            raise ValueError(
                f"missing_values: the {len(columns)} unknown columns have {len(found)} distinct fillings beside a "
                f"record's own, and {count} samples are asked for: lower sample_size or leave more columns unknown"
            )
        samples[:, columns] = found
        return samples

    def inside(self, centers: Shaped[Array, "n d"], records: Shaped[Array, "k d"]) -> Bool[Array, "n k"]:
        """Exact: a record is in the range if it agrees in every known column, whatever it has in the others."""
        known = np.setdiff1d(np.arange(centers.shape[1]), self.columns)
        number: dict[bytes, int] = {}
        keys = [
            np.array([number.setdefault(row.tobytes(), len(number)) for row in np.ascontiguousarray(x[:, known] + 0.0)])
            for x in (centers, records)  # + 0.0, because -0.0 == 0.0 and their bytes differ
        ]
        return keys[0][:, None] == keys[1][None, :]


def _weighed(
    candidates: Candidates, own: Float[Array, " c"], count: int, draw: np.random.Generator
) -> Float[Array, "k c"]:
    """Without replacement among all: the order of log-probability + Gumbel noise is that of drawing one by one."""
    rows, weight = candidates.all()
    order = np.argsort(-(weight + draw.gumbel(size=len(rows))), kind="stable")
    return rows[order[(rows[order] != own).any(axis=1)][:count]]


def _redrawn(
    candidates: Candidates, own: Float[Array, " c"], count: int, draw: np.random.Generator
) -> Float[Array, "k c"]:
    """Drawing one by one, what was there before drawn again; as many as TRIES draws each can find."""
    found = {own.tobytes(): own}
    for _ in range(TRIES):
        for row in candidates.pick(draw, count):
            found.setdefault(row.tobytes(), row)
        if len(found) > count:
            break
    return np.array(list(found.values())[1 : count + 1], dtype=own.dtype).reshape(-1, len(own))
