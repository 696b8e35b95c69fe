"""Attack-R: a threshold per record, from reference models (Ye et al. 2022, https://arxiv.org/abs/2111.09679)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence
from modules.mia.moments import counted, masked_mean
from modules.mia.ranks import share


@ATTACKS.register(
    "AttackR",
    needs_references=True,
    needs_population=False,
    shared=None,
    min_pairs=1,
    summary="share of the models that did not train on x and fit it no better than the target",
    access="confidence",
    cost="one answer per record, query and model",
    fails="n OUT references express no FPR below about 1 / n: below that the tie-break ranks",
    source="Ye et al. 2022, arXiv 2111.09679",
)
def attack_r(evidence: Evidence, *, tie_break: bool = True) -> Float[Array, " N"]:
    """Share of OUT references with p_ref <= p_target, compared as log-odds, mean over queries.

    With n OUT references the score has n + 1 values, so the smallest FPR it can express is about 1 / n.

    tie_break: order records of equal share by the target's log-odds minus the OUT references' mean; moves a
        score by at most 1 / (n + 1), see `share`. A full share of few references then counts less than of many.
    """
    target = evidence.target.mean(axis=0, dtype=np.float64)
    out = ~evidence.trained_on
    count = counted(out)
    beaten = np.zeros(len(target), dtype=np.int64)
    for reference, selected in zip(evidence.references, out, strict=True):
        beaten += selected & (reference.mean(axis=0, dtype=np.float64) <= target)
    if not tie_break:
        return share(beaten, count)
    return share(beaten, count, by=target - masked_mean(evidence.references, out).mean(axis=0))
