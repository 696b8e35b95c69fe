"""Files of signals, read and checked: which array is which, which way round, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy import ndarray as Array

from audit.given import Answers
from core import confidence
from core.errors import UserError
from core.loading import read_array, read_arrays
from core.tables import INDEX, as_member, as_text, column_of, read_table

Kind = Literal["log_odds", "probability", "loss", "logits", "probabilities"]
Axes = Literal["models_points", "points_models"]
OTHER: dict[str, Axes] = {"models_points": "points_models", "points_models": "models_points"}
WHOLE = ("logits", "probabilities")  # kinds with an axis of classes at the end
CONVERT: dict[str, Callable[..., confidence.Converted]] = {
    "log_odds": lambda values, clip: confidence.Converted(values.astype(np.float32)),
    "logits": lambda values, clip: confidence.Converted(values.astype(np.float32)),
    "probability": confidence.from_probability,
    "loss": confidence.from_loss,
    "probabilities": confidence.from_probabilities,
}


@dataclass(frozen=True)
class Files:
    """The arrays by key: each in a place of its own, or under the key's name in the first file, a .npz."""

    file: Path
    places: Mapping[str, str]  # key -> "path", or "path:name"
    loaded: dict[Path, Mapping[str, Array]] = field(default_factory=dict)

    def find(self, key: str) -> Array | None:
        """The array of a key, None if nothing of the kind was given. UserError if it cannot be read."""
        if place := self.places.get(key):
            path, name = _split(place)
            return column_of(self._load(path), name, path) if name else self._whole(path)
        if self.file.suffix == ".npz":
            return self._load(self.file).get(key)
        return self._whole(self.file) if key == "signals" else None

    def name(self, key: str) -> str:
        """Where an array is, for messages."""
        return self.places.get(key) or (f"{self.file}:{key}" if self.file.suffix == ".npz" else str(self.file))

    def _whole(self, path: Path) -> Array:
        """The one array of a file; of a table the matrix of its columns, without those that another key names."""
        arrays = self._load(path)
        if path.suffix in (".npy", ".npz"):
            if len(arrays) > 1:
                raise UserError(f"{path} holds {', '.join(arrays)}: write {path}:NAME")
            return next(iter(arrays.values()))
        named = {name for place in self.places.values() for p, name in [_split(place)] if p == path} | {INDEX}
        columns = {name: column for name, column in arrays.items() if name not in named}
        if text := [name for name, column in columns.items() if column.dtype.kind in "US"]:
            raise UserError(
                f"{path}: the column {text[0]!r} is text; if it names the points, say ids: {path}:{text[0]}"
            )
        return np.stack(list(columns.values()), axis=1)

    def _load(self, path: Path) -> Mapping[str, Array]:
        if path not in self.loaded:
            if path.suffix == ".npy":
                self.loaded[path] = {"array": read_array(path)}
            else:
                self.loaded[path] = read_arrays(path) if path.suffix == ".npz" else read_table(path)
        return self.loaded[path]


def _split(place: str) -> tuple[Path, str]:
    """`a.npz:name` -> (a.npz, name)."""
    path, colon, name = place.rpartition(":")
    return (Path(path), name) if colon and Path(path).suffix else (Path(place), "")


def memberships(array: Array, axes: Axes, what: str) -> Bool[Array, "M D"]:
    """Who trained on what, rows = models. UserError for anything but a matrix of yes and no."""
    if array.ndim not in (1, 2) or not array.size:
        raise UserError(f"{what}: memberships are models x points, got an array of shape {array.shape}")
    member = as_member(array, what)
    member = member[None] if member.ndim == 1 else member
    return np.ascontiguousarray(member.T if axes == "points_models" and array.ndim == 2 else member)


def oriented(array: Array, axes: Axes, kind: Kind, what: str) -> Shaped[Array, "M Q n *C"]:
    """Models first, then queries (one, if the array has no axis of them), then points, then classes if any."""
    classes = kind in WHOLE
    if array.dtype.kind not in "iuf":
        raise UserError(f"{what} holds {array.dtype}, not numbers")
    if array.ndim == 1 + classes:  # of one model
        array = array[None]
    elif axes == "points_models" and array.ndim in (2 + classes, 3 + classes):
        array = np.swapaxes(array, 0, array.ndim - 1 - classes)
    if array.ndim == 2 + classes:
        array = array[:, None]
    if array.ndim != 3 + classes or 0 in array.shape:
        after = " x classes" if classes else ""
        raise UserError(f"{what}: kind {kind} is models x points{after}, got an array of shape {array.shape}")
    if classes and array.shape[-1] < 2:
        raise UserError(f"{what}: kind {kind} has an axis of at least 2 classes at its end, got {array.shape[-1]}")
    return array


def check_fit(signals: tuple[int, ...], member: tuple[int, ...], axes: Axes, member_axes: Axes, points: int) -> str:
    """What is wrong with these shapes together, models x points both; empty if they fit."""
    models, columns = signals[0], signals[2]
    if (models, columns) == (member[0], points):
        return ""
    queries = f" ({signals[1]} queries each)" if signals[1] > 1 else ""
    found = f"signals of {models} models on {columns} points{queries}, "
    found += f"memberships of {member[0]} models on {member[1]} points"
    if (columns, models) == (member[0], points):
        return f"{found}: the signals look transposed, say axes: {OTHER[axes]}"
    if (columns, models) == member:
        return f"{found}: one of them is transposed, say axes: {OTHER[axes]} or membership_axes: {OTHER[member_axes]}"
    if models == member[0]:
        return f"{found}: give points, the index (0 for the first) in the memberships of each column of the signals"
    return f"{found}: they do not belong together"


def answers(
    array: Array, kind: Kind, labels: Int[Array, " n"] | None, clip: float | None, what: str
) -> tuple[Answers, str]:
    """The answers, and in words what had to be assumed about saturated values. UserError for unusable numbers."""
    if array.dtype.kind == "f" and (bad := ~np.isfinite(array)).any():
        model, _, point, *_ = np.argwhere(bad)[0]
        first = f"the first is of model {model}, point {point}"
        raise UserError(f"{what} has {int(bad.sum())} values that are NaN or infinite ({first})")
    try:
        converted = CONVERT[kind](array, clip)
    except ValueError as error:
        raise UserError(f"{what}, kind {kind}: {error}") from None
    if not np.isfinite(converted.values).all():
        raise UserError(f"{what} has values too large for float32")
    note = ""
    if converted.saturated:
        count = f"{converted.saturated} of {array.size} values"
        note = (
            f"{what}: {count} are at the end of their range; they were read as if they were not ({converted.read_as})"
        )
    if kind not in WHOLE:
        return Answers(converted.values), note
    if labels is None:
        raise UserError(f"{what}: kind {kind} needs the true labels: give labels")
    if len(labels) != array.shape[2] or labels.max() >= array.shape[3] or labels.min() < 0:
        raise UserError(
            f"{what} is of {array.shape[2]} points and {array.shape[3]} classes, and there are {len(labels)} labels "
            f"from {labels.min()} to {labels.max()}"
        )
    return Answers(confidence.log_odds(converted.values, labels), converted.values, labels), note


def label_numbers(array: Array | None, what: str) -> Int[Array, " n"] | None:
    """Labels as whole numbers. UserError for others: an axis of classes is counted from 0."""
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind not in "iuf" or (array != np.round(array)).any():
        raise UserError(
            f"{what}: labels are one whole number a point, the place of its class; got {array.dtype} {array.shape}"
        )
    return array.astype(np.int64)


def point_numbers(array: Array | None, columns: int, pool: int, what: str) -> Int[Array, " n"]:
    """For each column of the signals, which column of the memberships it is; the same if not given."""
    if array is None:
        return np.arange(pool)
    numbers = label_numbers(array, what)
    assert numbers is not None
    if len(numbers) != columns or numbers.min() < 0 or numbers.max() >= pool or len(np.unique(numbers)) < columns:
        raise UserError(f"{what}: for {columns} columns, so many different numbers from 0 to {pool - 1} are needed")
    return numbers


def names(array: Array | None, points: int, what: str) -> Array | None:
    """Ids or groups as text, one a point."""
    if array is None:
        return None
    if array.shape != (points,):
        raise UserError(f"{what}: one a point is needed, {points}, got an array of shape {array.shape}")
    return as_text(array)
