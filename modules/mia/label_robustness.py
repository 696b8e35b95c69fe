"""LabelRobustness: how far does the label withstand changes of x? (Choquette-Choo et al. 2021,
https://arxiv.org/abs/2007.14321)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval, MinLen
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal
from modules.mia import lira
from modules.mia.moments import counted

ALONE = "alone"


def signal_of(settings: Settings) -> Signal:
    """The copies of each record whose labels are asked for."""
    return Signal(
        "robust_label", options=tuple((key, settings[key]) for key in ("translate", "rotate", "levels", "repeats"))
    )


def shared(evidence: Evidence, settings: Settings) -> Any:
    """What all points share: rates per copy, or pooled variances."""
    seen = evidence.signal(signal_of(settings))
    if settings["mode"] == "shadow":
        return _rates(seen)
    return None if settings["mode"] == ALONE else lira.shared(_log_odds(seen), settings)


@ATTACKS.register(
    "LabelRobustness",
    needs_labels=True,
    needs_records=True,
    needs_references=False,
    needs_in=lambda settings: settings["mode"] in ("online", "shadow"),
    needs_population=False,
    signals=lambda settings: (signal_of(settings),),
    shared=shared,
    min_pairs=lambda settings: 0 if settings["mode"] == ALONE else 1,
    summary="share of translated, rotated or disturbed copies of x that keep its true label; label only",
    access="label",
    cost="labels per record and model: of images 3 + 4 translate (7 by default), of features 1 + levels x repeats (31)",
    fails="on records that every model labels rightly whatever is done to them; few copies mean many ties, and none of "
    "these is below a small FPR; a model trained with other augmentations keeps other labels",
    source="Choquette-Choo et al. 2021, arXiv 2007.14321 (data augmentation; noise for tables)",
)
def label_robustness(
    evidence: Evidence,
    given: Any = None,
    *,
    mode: Literal["alone", "shadow", "offline", "online"] = "alone",
    translate: Annotated[int, Ge(0)] = 1,
    rotate: Annotated[float, Interval(ge=0, le=180)] = 4.0,
    levels: Annotated[tuple[Annotated[float, Interval(gt=0, le=1)], ...], MinLen(1)] = (0.1, 0.3, 0.6),
    repeats: Annotated[int, Ge(1)] = 10,
) -> Float[Array, " N"]:
    """Ask for the labels of altered copies of each record, and count those that are the record's own.

    A record that was trained on lies farther inside its class, so more of its copies keep the label. Of images the
    copies are 4 · translate shifts (|i| + |j| = translate pixels) and two rotations; of features disturbed records:
    a column of zeros and ones is drawn anew with probability `level`, another gets Gaussian noise of `level` standard
    deviations of the population. Every model is asked about the same copies.

    - mode: alone: the share of copies that keep the label, the target alone. shadow: log-likelihood ratio of the labels
      kept, each copy weighted by how often members and non-members of the references keep it (copies as if
      independent). offline, online: LiRA on the log-odds (k + 1/2) / (Q - k + 1/2) of k of Q labels kept
    - translate: pixels that images are shifted by; 0 for no shifts
    - rotate: degrees that images are turned by, both ways; 0 for no rotations
    - levels: how strongly features are disturbed
    - repeats: disturbed copies at each level
    """
    settings = {"translate": translate, "rotate": rotate, "levels": levels, "repeats": repeats}
    seen = evidence.signal(signal_of(settings))
    if mode == ALONE:
        return seen.target.mean(axis=0, dtype=np.float64)
    if mode == "shadow":
        members, others = _rates(seen) if given is None else given
        kept, lost = np.log(members / others), np.log((1 - members) / (1 - others))
        scores = np.zeros(seen.target.shape[1])
        for row, of_kept, of_lost in zip(seen.target, kept, lost, strict=True):  # in this order for any block of points
            scores += np.where(row > 0, of_kept, of_lost)
        return scores
    return lira.lira(_log_odds(seen), given, mode=mode)


def _rates(seen: Evidence) -> tuple[Float[Array, " Q"], Float[Array, " Q"]]:
    """How often models keep the label of each copy: of records they trained on, and of others; never 0 or 1."""

    def rate(where: Array) -> Float[Array, " Q"]:
        counted(where)
        kept = sum(
            (row * selected).sum(axis=1, dtype=np.float64) for row, selected in zip(seen.references, where, strict=True)
        )
        return (kept + 0.5) / (where.sum() + 1)

    return rate(seen.trained_on), rate(~seen.trained_on)


def _log_odds(seen: Evidence) -> Evidence:
    """One query: the log-odds of keeping the label, half a label added on either side."""

    def of(kept: Array) -> Array:
        k, count = kept.sum(axis=-2, keepdims=True, dtype=np.float64), kept.shape[-2]
        return np.log((k + 0.5) / (count - k + 0.5))

    none = seen.population[:1], seen.population_references[:, :1]
    return replace(
        seen, target=of(seen.target), references=of(seen.references), population=none[0], population_references=none[1]
    )
