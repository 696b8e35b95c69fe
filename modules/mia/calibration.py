"""Calibration: is x fitted better than its difficulty explains? (Watson et al. 2022, https://arxiv.org/abs/2111.08440)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence
from modules.mia.moments import masked_mean


@ATTACKS.register(
    "Calibration",
    needs_references=True,
    needs_population=False,
    shared=None,
    min_pairs=1,
    summary="how much better the target fits x than models that did not train on it, on average",
    access="confidence",
    cost="one answer per record, query and model",
    fails="records whose fit varies much between models rank too high: the difference is not divided by that spread",
    source="Watson et al. 2022, arXiv 2111.08440",
)
def calibration(evidence: Evidence, *, on: Literal["log_odds", "loss"] = "log_odds") -> Float[Array, " N"]:
    """The target's fit of x minus the mean fit of the OUT references, mean over queries.

    on: "loss" is the paper's, mean OUT loss minus the target's loss. "log_odds" is the difference of
        log-odds: near zero all losses are alike, so differences of losses cannot rank well-fitted records.
    """
    fit = _minus_loss if on == "loss" else np.asarray
    return (fit(evidence.target) - masked_mean(evidence.references, ~evidence.trained_on, fit)).mean(axis=0)


def _minus_loss(log_odds: Float[Array, "Q N"]) -> Float[Array, "Q N"]:
    return -np.logaddexp(0.0, -log_odds.astype(np.float64))
