"""What others store of a model's answers, as the log-odds of the true label that this tool works on.

Probabilities and losses saturate where log-odds do not: 1 in float32 is everything within 3e-8 of it. Such values
are read as half a step of their number type from the end, or as `clip` says, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray as Array


@dataclass(frozen=True)
class Converted:
    """Log-odds or logits, and what had to be assumed for them."""

    values: Float[Array, "*shape"]
    saturated: int = 0  # values at the very end of their range, whose log-odds would be infinite
    read_as: str = ""  # what those were read as, in words


def half_step(dtype: np.dtype) -> float:
    """Half the distance from 1 to the next smaller number: 3e-8 of float32, 6e-17 of float64."""
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).epsneg) / 2


def from_probability(p: Shaped[Array, "*shape"], clip: float | None = None) -> Converted:
    """log p - log(1 - p) in float32. ValueError for values outside [0, 1].

    1 is read as 1 - `clip` and 0 as `clip`, or as the smallest other value of the array where that is smaller, so
    that the order is kept. With `clip` given, everything is kept within [clip, 1 - clip].
    """
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        wrong = p[(p < 0) | (p > 1)].ravel()[0]
        raise ValueError(f"probabilities are between 0 and 1, got {wrong:g}")
    end = half_step(p.dtype) if clip is None else clip
    wide = p.astype(np.float64)
    saturated = int(((wide == 0) | (wide == 1)).sum())
    low = end if clip is not None else min(end, float(wide.min(where=wide > 0, initial=1.0)))
    odds_against = np.clip(1 - wide, end, 1 - low)  # of its own, because 1 - end may round to 1
    return _counted(
        np.log(np.clip(wide, low, 1 - end)) - np.log(odds_against), saturated, f"0 as {low:.3g}, 1 as 1 - {end:.3g}"
    )


def from_loss(loss: Shaped[Array, "*shape"], clip: float | None = None) -> Converted:
    """-log(e^loss - 1) in float32: the log-odds of probability e^-loss. ValueError for negative losses.

    A loss of 0 is read as `clip`, or as the smallest other loss where that is smaller.
    """
    if loss.size and loss.min() < 0:
        raise ValueError(f"cross-entropy losses are not negative, got {loss.min():g}")
    end = half_step(loss.dtype) if clip is None else clip
    wide = loss.astype(np.float64)
    saturated = int((wide == 0).sum())
    low = end if clip is not None else min(end, float(wide.min(where=wide > 0, initial=1.0)))
    wide = np.maximum(wide, low)
    # log(e^l - 1) = l + log(1 - e^-l), which does not overflow
    return _counted(-(wide + np.log(-np.expm1(-wide))), saturated, f"0 as {low:.3g}")


def from_probabilities(p: Shaped[Array, "*models n C"], clip: float | None = None) -> Converted:
    """Logits of whole probability vectors: their logarithms. ValueError unless each adds up to 1, within 1%."""
    if p.size and not (p.min() >= 0 and p.max() <= 1 + 1e-6):
        raise ValueError(f"probabilities are between 0 and 1, got {p.min() if p.min() < 0 else p.max():g}")
    off = np.abs(p.sum(axis=-1, dtype=np.float64) - 1)
    if p.size and off.max() > 0.01:
        raise ValueError(f"the probabilities of a record add up to 1, got {p.sum(axis=-1).ravel()[off.argmax()]:g}")
    end = half_step(p.dtype) if clip is None else clip
    wide = p.astype(np.float64)
    low = end if clip is not None else min(end, float(wide.min(where=wide > 0, initial=1.0)))
    return _counted(np.log(np.maximum(wide, low)), int((wide == 0).sum()), f"0 as {low:.3g}")


def log_odds(logits: Float[Array, "*models n C"], labels: Int[Array, " n"]) -> Float[Array, "*models n"]:
    """z_y - logsumexp_{j != y} z_j, in float32."""
    z = np.moveaxis(logits.astype(np.float64), -1, 0).copy()
    chosen = np.broadcast_to(labels, z.shape[1:])[None]
    own = np.take_along_axis(z, chosen, axis=0)[0]
    np.put_along_axis(z, chosen, -np.inf, axis=0)
    return (own - np.logaddexp.reduce(z, axis=0)).astype(np.float32)


def _counted(values: Float[Array, "*shape"], saturated: int, read_as: str) -> Converted:
    return Converted(values.astype(np.float32), saturated, read_as if saturated else "")
