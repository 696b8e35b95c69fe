"""LOSS: does the model fit x well? (Yeom et al. 2018, https://arxiv.org/abs/1709.01604)."""

from __future__ import annotations

from jaxtyping import Float
from numpy import float64
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence


@ATTACKS.register(
    "LOSS",
    needs_references=False,
    needs_population=False,
    shared=None,
    min_pairs=0,
    summary="how well the target fits x; one threshold for all records",
    access="confidence",
    cost="one answer per record and query, of the target alone",
    fails="one threshold for all records: an easy record looks like a member; low at small FPR",
    source="Yeom et al. 2018, arXiv 1709.01604",
)
def loss(evidence: Evidence) -> Float[Array, " N"]:
    """Log-odds of the true label, mean over queries: the same order as minus the loss, log sigmoid of it.

    The log-odds and not the loss itself, because the loss of a well-fitted record rounds to zero.
    """
    return evidence.target.mean(axis=0, dtype=float64)
