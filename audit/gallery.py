"""What the most and the least exposed records look like, so that a reader sees who is at risk and not only how many."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

from audit.results import Exhibit
from core.types import AuditData

TEXT_SHOWN = 400  # characters of a text
COLUMNS_SHOWN = 12  # of a feature vector: those furthest from the mean of the population


def exhibit(data: AuditData, index: int, exposure: float, found: str, *, redacted: bool) -> Exhibit:
    """One record of the pool as a reader can see it; only its name where `redacted`."""
    pool = data.pool
    name = str(index if pool.ids is None else pool.ids[index])
    label = "" if data.is_text else str(pool.y[index])
    if redacted:
        return Exhibit(name, "", exposure, found)
    if not data.has_contents:
        return Exhibit(name, label, exposure, found)
    if data.is_text:
        return Exhibit(name, label, exposure, found, text=_excerpt(pool.texts[index] if pool.texts else ""))
    if data.is_image:
        return Exhibit(name, label, exposure, found, picture=_png(pool.x[index]))
    return Exhibit(name, label, exposure, found, columns=_unusual_columns(data, pool.x[index]))


def _excerpt(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]} …"


def _png(image: Shaped[Array, "C H W"]) -> str:
    """An image as base64 PNG, its darkest value black and its brightest white; one channel, or the first three."""
    from PIL import Image

    pixels = image.astype(np.float64)
    low, high = pixels.min(), pixels.max()
    levels = np.round(255 * (pixels - low) / max(high - low, 1e-9)).astype(np.uint8)
    picture = Image.fromarray(levels[0] if len(levels) < 3 else levels[:3].transpose(1, 2, 0))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _unusual_columns(data: AuditData, row: Shaped[Array, " d"]) -> Sequence[tuple[str, str]]:
    """(name, value) of the columns that set this record apart from the population most."""
    others = data.population.x.reshape(len(data.population), -1).astype(np.float64)
    flat = row.reshape(-1).astype(np.float64)
    spread = others.std(axis=0)
    apart = np.abs(flat - others.mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    names = data.feature_names or tuple(f"column {i}" for i in range(len(flat)))
    return [(names[i], f"{flat[i]:g}") for i in np.argsort(-apart, kind="stable")[:COLUMNS_SHOWN]]
