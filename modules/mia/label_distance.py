"""LabelDistance: how far is x from a record that gets another label? (Choquette-Choo et al. 2021,
https://arxiv.org/abs/2007.14321; the distance by HopSkipJump, Chen et al. 2020, https://arxiv.org/abs/1904.02144)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal
from modules.mia import lira

ALONE = "alone"


def signal_of(settings: Settings) -> Signal:
    """The distance found within this budget of labels."""
    return Signal("boundary", options=tuple((key, settings[key]) for key in ("queries", "directions")))


def shared(evidence: Evidence, settings: Settings) -> Any:
    """Pooled variances, where references are compared with."""
    return None if settings["mode"] == ALONE else lira.shared(evidence.signal(signal_of(settings)), settings)


@ATTACKS.register(
    "LabelDistance",
    needs_labels=True,
    needs_records=True,
    needs_references=False,
    needs_in=lambda settings: settings["mode"] == "online",
    needs_population=False,
    signals=lambda settings: (signal_of(settings),),
    asks_references=lambda settings: settings["mode"] != ALONE,
    shared=shared,
    min_pairs=lambda settings: 0 if settings["mode"] == ALONE else 1,
    summary="distance of x to the nearest record found that is labelled otherwise (HopSkipJump); label only",
    access="label",
    cost="up to `queries` (500) labels per record of the target, and one of each population record; with mode offline "
    "or online the same again of every reference",
    fails="on records that are labelled wrongly (all at distance 0); on columns of zeros and ones (it asks between); "
    "in many dimensions 500 labels find a distance several times too long",
    source="Choquette-Choo et al. 2021, arXiv 2007.14321 (boundary distance); Chen et al. 2020, arXiv 1904.02144",
)
def label_distance(
    evidence: Evidence,
    given: Any = None,
    *,
    mode: Literal["alone", "offline", "online"] = "alone",
    queries: Annotated[int, Ge(20)] = 500,
    directions: Annotated[int, Ge(2)] = 10,
) -> Float[Array, " N"]:
    """Walk from the nearest known record of another label towards x, along the boundary, and measure what is left.

    A record that was trained on lies farther inside its class. One that is labelled wrongly has distance 0. Distances
    are l2, of images in units of 255 of a pixel, of features in standard deviations of the population.

    - mode: alone: the distance, the target alone. offline, online: LiRA on distances, so that what is far from the
      boundary for every model cancels; every reference is then asked as much as the target
    - queries: labels that may be asked for about one record, of one model
    - directions: probes of the first estimate of a gradient; the t-th has sqrt(t) times as many
    """
    seen = evidence.signal(signal_of({"queries": queries, "directions": directions}))
    if mode == ALONE:
        return seen.target.mean(axis=0, dtype=np.float64)
    return lira.lira(seen, given, mode=mode)
