"""BASE: the target's log-probability against the mean probability of references (Lassila et al. 2025, https://arxiv.org/abs/2505.24089)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Interval
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Signal
from modules.mia.moments import masked_mean
from modules.mia.probability import clipped, probability_of


@ATTACKS.register(
    "BASE",
    needs_references=True,
    needs_in=lambda settings: settings["mode"] == "online",
    needs_population=False,
    signals=lambda settings: (Signal(temperature=settings["temperature"]),),
    shared=None,
    min_pairs=1,
    summary="log of the target's probability over the references' mean probability",
    access="classes",
    cost="one answer per record, query and model",
    fails="as RMIA; without a population its scale means nothing across models",
    source="Lassila et al. 2025, arXiv 2505.24089",
)
def base(
    evidence: Evidence,
    *,
    mode: Literal["online", "offline"] = "online",
    temperature: Annotated[float, Gt(0)] = 2.0,
    scale: Annotated[float, Interval(ge=0, le=1)] = 0.33,
) -> Float[Array, " N"]:
    """log p_target - log Pr(x), mean over queries: RMIA's ratio, without a population.

    mode: "online" has Pr(x) = (mean IN + mean OUT) / 2, which is the mean over all references when there are
        as many IN as OUT. "offline" subtracts `scale` times the log of the mean over OUT references.
    temperature: of the softmax that gives the probabilities.
    """
    chosen = evidence.signal(Signal(temperature=temperature))
    log_p = -np.logaddexp(0.0, -clipped(chosen.target))
    out = masked_mean(chosen.references, ~chosen.trained_on, probability_of)
    if mode == "offline":
        return (log_p - scale * np.log(out)).mean(axis=0)
    inside = masked_mean(chosen.references, chosen.trained_on, probability_of)
    return (log_p - np.log((inside + out) / 2)).mean(axis=0)
