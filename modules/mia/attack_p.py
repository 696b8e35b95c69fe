"""Attack-P: a threshold from population data (Ye et al. 2022, https://arxiv.org/abs/2111.09679)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence
from modules.mia.ranks import share


@ATTACKS.register(
    "AttackP",
    needs_references=False,
    needs_population=True,
    shared=None,
    min_pairs=0,
    summary="share of population points that the target fits worse than x",
    access="confidence",
    cost="one answer per record, query and population point, of the target alone",
    fails="as LOSS; reads no FPR below 1 / population points, nor rightly where the population is of another source",
    source="Ye et al. 2022, arXiv 2111.09679",
)
def attack_p(evidence: Evidence, *, tie_break: bool = True) -> Float[Array, " N"]:
    """Share of population points with a higher loss than x: one minus it estimates the FPR of accusing x.

    Losses are compared as log-odds, mean over queries. The order is that of LOSS; the scale is calibrated.

    tie_break: order the points that beat equally many of the population by their log-odds; moves a score by
        at most 1 / (P + 1), see `share`. Without it every point above the whole population ties at 1.
    """
    x, z = (signal.mean(axis=0, dtype=np.float64) for signal in (evidence.target, evidence.population))
    if not len(z):
        raise ValueError("AttackP compares with population points, and there are none: set audit.population_size")
    return share(np.searchsorted(np.sort(z), x, side="left"), len(z), by=x if tie_break else None)
