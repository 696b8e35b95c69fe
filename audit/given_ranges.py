"""Range membership on signals that were given: what models said of samples of ranges, K around each point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array

from audit.given import Answers
from audit.read_signals import WHOLE, Axes, Kind
from audit.session import Session
from core.errors import UserError
from core.types import Signal


@dataclass(frozen=True)
class GivenRanges:
    """The samples of every point's range, by what models said of them; in the place of a range that can be sampled."""

    answers: Answers  # of N x K records, range by range
    each: int  # K
    held: Bool[Array, "M N"] | None  # which model trained on any record of a range; None where only its own is known
    description: str = "as given"

    def read(
        self, session: Session, model: int, signal: Signal, ranges: Int[Array, " n"], columns: slice, drawn: int
    ) -> Float[Array, "Q n c"]:
        """What a model said of the record itself (column 0) and of its first `drawn` samples, of these ranges."""
        assert session.given is not None
        points = session.points[ranges]
        center = session.given.pool.column(signal, model)[:, points, None]
        samples = self.answers.column(signal, model).reshape(len(center), -1, self.each)[:, points, :drawn]
        return np.concatenate([center, samples], axis=2)[:, :, columns]

    def others(self, session: Session) -> Int[Array, "M N"]:
        """Training points of each model in each range beside its own record: 1 where there is any, as far as known."""
        own = session.plan.member[:, session.points]
        return (
            np.zeros(own.shape, dtype=int) if self.held is None else (self.held[:, session.points] & ~own).astype(int)
        )


def by_range(
    array: Shaped[Array, ...], shape: tuple[int, int], axes: Axes, kind: Kind, what: str
) -> Shaped[Array, "M N K *C"]:
    """Samples, models first. UserError for other shapes.

    shape: models and points. Also taken is what the original tool writes: a row a sample, range by range.
    """
    models, points = shape
    classes = kind in WHOLE
    if array.dtype.kind not in "iuf":
        raise UserError(f"{what} holds {array.dtype}, not numbers")
    flat = array.ndim == 2 + classes
    if axes == "points_models" and (flat or array.ndim == 3 + classes):
        array = np.moveaxis(array, array.ndim - 1 - classes, 0)
    if flat and array.shape[1] % points == 0:
        array = array.reshape(models if len(array) == models else -1, points, -1, *array.shape[2:])
    if array.ndim != 3 + classes or array.shape[:2] != shape or array.shape[2] < 1:
        after = " x classes" if classes else ""
        raise UserError(
            f"{what}: samples of ranges are models x points x samples{after}, of {models} models and {points} points; "
            f"got an array of shape {array.shape} (axes: {axes})"
        )
    return array


def check_ranges(session: Session, **settings: Any) -> GivenRanges:
    """The given ranges. UserError, at its line, for settings of ranges that would have to be drawn."""
    config, given = session.config, session.given
    assert given is not None
    if given.ranges is None:
        where = "signals.samples (what models said of the samples of each point's range)"
        raise config.error("ramia", f"needs {where}: models that could be asked about samples were not given")
    for key, value in settings.items():
        if value is not None:
            raise config.error(f"ramia.{key}", "the samples were given and are not drawn here: leave it out")
    return given.ranges
