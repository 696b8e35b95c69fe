"""Shares of points that a score beats, with ties broken by a second score."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array


def share(
    beaten: Int[Array, " N"], of: int | Int[Array, " N"], by: Float[Array, " N"] | None = None
) -> Float[Array, " N"]:
    """`beaten / of`, or with ties broken `by` a second score: `(beaten + u) / (of + 1)`, u = 1/2 + arctan(by) / pi.

    u lies in (0, 1), so more beaten always comes first and `by` orders the rest. One minus the result is a
    smoothed conformal p-value: it lies within 1 / (of + 1) of `1 - beaten / of`. arctan, because it does not
    saturate: at `by` = 80 and of = 1e6 it still tells apart what float32 tells apart.
    """
    if by is None:
        return beaten / of
    return (beaten + (0.5 + np.arctan(np.asarray(by, dtype=np.float64)) / np.pi)) / (np.asarray(of) + 1)
