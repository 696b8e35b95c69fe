"""All points within a Euclidean distance of the center."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray as Array

from core.types import AuditData
from dataset.ranges.base import RANGES


@RANGES.register("l2", kind="any", summary="all points within a Euclidean distance of the record")
def l2(data: AuditData, *, radius: Annotated[float, Gt(0)]) -> Ball:
    """Points drawn uniformly from the ball around the record.

    radius: in the units of the records: features as they are, pixels in levels (0 .. 255 where images are bytes).
        Samples are real numbers, neither rounded to levels nor clipped to their range.
    """
    return Ball(radius)


@dataclass(frozen=True)
class Ball:
    radius: float

    @property
    def description(self) -> str:
        return f"points within an L2 distance of {self.radius:g}"

    def points(self) -> float:
        return float("inf")

    def sample(self, center: Shaped[Array, "*d"], count: int, draw: np.random.Generator) -> Float[np.ndarray, "K ..."]:
        """Exactly uniform in the ball: the first d of d + 2 coordinates of a uniform point of the sphere are."""
        d = center.size
        g = draw.standard_normal((count, d + 2))
        unit = g[:, :d] / np.linalg.norm(g, axis=1, keepdims=True)
        return (center + self.radius * unit.reshape(count, *center.shape)).astype(np.float32)

    def inside(self, centers: Shaped[Array, "n ..."], records: Shaped[Array, "d ..."]) -> Bool[Array, "n d"]:
        """Exact, up to a billionth of the radius."""
        return squared_distances(centers, records) <= (self.radius * (1 + 1e-9)) ** 2


def squared_distances(a: Shaped[Array, "n ..."], b: Shaped[Array, "d ..."]) -> Float[Array, "n d"]:
    """Squared Euclidean distances, by one matrix product in float64."""
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    shift = b.mean(axis=0) if len(b) else 0.0  # smaller numbers cancel less
    a, b = a - shift, b - shift
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.maximum(squares, 0)
