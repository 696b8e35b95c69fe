"""How owners are scored is chosen on rehearsals: references attacked as the target is, whose owners are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray as Array

from core.metrics import auc
from core.types import pairs_of
from modules.owners.aggregation import Aggregation, Holdings
from modules.risk.calibrated import Calibrated, calibrated

TRIED = 8  # rehearsals by which the candidates are judged


@dataclass(frozen=True)
class Way:
    """How the scores of records become scores of owners."""

    aggregation: Aggregation
    by_owner: bool  # in standard deviations above the owner's own scores on references that never saw its records

    @property
    def label(self) -> str:
        return f"{self.aggregation.label} of its records{', calibrated by owner' if self.by_owner else ''}"


def tuned(
    rehearsed: Shaped[Array, "R n"],
    owners: Bool[Array, "R U"],
    known: Bool[Array, "R U"],
    held: Holdings,
    candidates: Sequence[Way],
) -> tuple[Way | None, Float[Array, " C"]]:
    """The way with the best mean AUC over owners in the rehearsals, and the AUC of each; None where none can be held.

    rehearsed: record scores of each reference, attacked by the others. owners: whose records it trained on.
    known: owners of whose records it trained on all, or none; others are not judged.
    Calibrated ways need two references that never saw an owner, among those that are no twins; else their AUC is NaN.
    """
    pair, found = pairs_of(owners), []
    for r in np.unique(np.linspace(0, len(rehearsed) - 1, TRIED).round().astype(int)) if len(rehearsed) else ():
        truth = owners[r, known[r]]
        if truth.all() or not truth.any():
            continue
        others = pair != pair[r]
        found.append([_auc(way, int(r), others, rehearsed, owners, known, held) for way in candidates])
    if not found:
        return None, np.full(len(candidates), np.nan)
    aucs = np.mean(found, axis=0)
    return candidates[int(np.nanargmax(aucs))], aucs


def _auc(
    way: Way,
    r: int,
    others: Bool[Array, " R"],
    rehearsed: Shaped[Array, "R n"],
    owners: Bool[Array, "R U"],
    known: Bool[Array, "R U"],
    held: Holdings,
) -> float:
    scores = way.aggregation(rehearsed[r], held)
    if way.by_owner:
        if not others.any() or (~owners[others]).sum(axis=0).min() < 2:
            return np.nan
        scores = own_null(way.aggregation, rehearsed[r], rehearsed[others], owners[others], held).z
    return auc(scores[known[r]], owners[r, known[r]])


def own_null(
    aggregation: Aggregation,
    target: Shaped[Array, " n"],
    rehearsed: Shaped[Array, "R n"],
    owners: Bool[Array, "R U"],
    held: Holdings,
) -> Calibrated:
    """Each owner's score against its own on references that saw none of its records; comparable whatever its size.

    The mean of many records varies less than that of few, and the maximum of many is larger: both are in the owner's
    own null, whose variance is moderated by what is usual at its size.
    """
    references = np.array([aggregation(row, held) for row in rehearsed])
    return calibrated(aggregation(target, held), references, owners, size=held.size)
