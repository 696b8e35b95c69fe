"""What a range is: all records near a center, by a range function's own idea of near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy import ndarray as Array
from pydantic import ValidationError

from core.registry import Registry
from core.types import Records


class SettingError(ValueError):
    """What is wrong with a setting of a range function once the data is known; `key` says which, as in `columns.2`."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


RANGES = Registry(
    "range function"
)  # (data, *, settings) -> Range; facts: kind = "images" | "features" | "texts" | "any"


@runtime_checkable
class Range(Protocol):
    """A range around every record; its records have the label of the center.

    description: in words, for the report: "pictures after rotate, shift".
    """

    description: str

    def points(self) -> float:
        """How many distinct records a range has beside its center, at least; may be infinite."""
        ...

    def sample(self, center: Shaped[Array, "*d"], count: int, draw: np.random.Generator) -> Shaped[Array, "K ..."]:
        """`count` distinct records of the range around `center`, never the center itself.

        A function of the center and the state of `draw`; the first of more are the same as of fewer. ValueError if
        there are not as many.
        """
        ...

    def inside(self, centers: Shaped[Array, "n ..."], records: Shaped[Array, "d ..."]) -> Bool[Array, "n d"]:
        """Which records lie in which center's range. What a range function cannot decide exactly, it documents."""
        ...


@runtime_checkable
class Together(Protocol):
    """A range function that takes whole records, many at a time: of texts, whose rows need their lengths.

    It may also have `check(records)`, a ValueError for records that have no range, and `on(device)`, before it is used.
    """

    description: str

    def points(self) -> float: ...

    def sample_all(self, centers: Records, count: int, draws: Sequence[np.random.Generator]) -> Records:
        """`Range.sample` for each center, one after the other: n count records."""
        ...

    def inside_all(self, centers: Records, records: Records) -> Bool[Array, "n d"]:
        """`Range.inside`."""
        ...


def sample_all(ranges: Range | Together, centers: Records, count: int, draws: Sequence[np.random.Generator]) -> Records:
    """`count` samples of each center's range, one range after the other."""
    if isinstance(ranges, Together):
        return ranges.sample_all(centers, count, draws)
    x = [ranges.sample(center, count, draw) for center, draw in zip(centers.x, draws, strict=True)]
    return Records(np.concatenate(x), np.repeat(centers.y, count))


def inside_all(ranges: Range | Together, centers: Records, records: Records) -> Bool[Array, "n d"]:
    """Which records lie in which center's range."""
    if isinstance(ranges, Together):
        return ranges.inside_all(centers, records)
    return ranges.inside(centers.x, records.x)


def rows(records: Records, index: Int[Array, " k"]) -> Records:
    """These records, without what reports alone need."""
    lengths = None if records.lengths is None else records.lengths[index]
    return Records(records.x[index], records.y[index], lengths)


def bound(registry: Registry, value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and checked settings of `l2` or `{name: l2, radius: 10}`. ValueError, in words, for a mistake in it."""
    given = {"name": value} if isinstance(value, str) else dict(value)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"a {registry.kind} with settings is written {{name: …, setting: value}}, got {value!r}")
    known = registry.find(name)
    if known is None:
        raise ValueError(registry.unknown(name))
    try:
        return known, registry.bind(known, given)
    except ValidationError as error:
        raise ValueError("; ".join(f"{known}: {_in_words(item, registry, known)}" for item in error.errors())) from None


def _in_words(item: Mapping[str, Any], registry: Registry, name: str) -> str:
    key = ".".join(map(str, [part for part in item["loc"] if not _is_type(part)]))
    if item["type"] == "missing":
        return f"{key} is missing, and has no default"
    if item["type"] == "extra_forbidden":
        known = ", ".join(registry.schema(name).model_fields) or "none"
        return f"{key} is no setting of it; there are: {known}"
    return f"{key} {item['msg'].replace('Input should', 'should').replace('Value error, ', '')}, got {item['input']!r}"


def _is_type(part: Any) -> bool:
    """pydantic names the alternatives of a union in `loc`, as `constrained-int` or `list[int]`."""
    return isinstance(part, str) and not part.isidentifier()
