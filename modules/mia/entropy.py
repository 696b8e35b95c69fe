"""Entropy: is the model sure, and right? (Song & Mittal 2021, https://arxiv.org/abs/2003.10595)."""

from __future__ import annotations

from jaxtyping import Float
from numpy import float64
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Signal

MODIFIED_ENTROPY = Signal("modified_entropy")


@ATTACKS.register(
    "Entropy",
    needs_references=False,
    needs_population=False,
    signals=lambda settings: (MODIFIED_ENTROPY,),
    shared=None,
    min_pairs=0,
    summary="minus the log modified entropy of the target's prediction; one threshold for all records",
    access="classes",
    cost="one answer per record and query, of the target alone",
    fails="as LOSS: it knows nothing of a record's difficulty; with two classes it ranks as LOSS",
    source="Song & Mittal 2021, arXiv 2003.10595, eq. 8",
)
def entropy(evidence: Evidence) -> Float[Array, " N"]:
    """Minus the logarithm of the modified entropy (eq. 8), mean over queries: unlike entropy, it knows the label."""
    return evidence.signal(MODIFIED_ENTROPY).target.mean(axis=0, dtype=float64)
