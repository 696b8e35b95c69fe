"""LabelGap: is x classified correctly? (Yeom et al. 2018, https://arxiv.org/abs/1709.01604)."""

from __future__ import annotations

from jaxtyping import Float
from numpy import float64
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Signal

LABEL = Signal("label")


@ATTACKS.register(
    "LabelGap",
    needs_labels=True,
    needs_references=False,
    needs_population=False,
    signals=lambda settings: (LABEL,),
    shared=None,
    min_pairs=0,
    summary="a member if it is classified correctly; label only",
    access="label",
    cost="one label per record and query, of the target alone",
    fails="on models that generalise: its AUC is 1/2 + (training accuracy - test accuracy) / 2, and no threshold has a "
    "small FPR",
    source="Yeom et al. 2018, arXiv 1709.01604, Sec. 3.2; Choquette-Choo et al. 2021, arXiv 2007.14321 (gap attack)",
)
def label_gap(evidence: Evidence) -> Float[Array, " N"]:
    """1 where the target predicts the true label, 0 where it does not; mean over queries.

    The baseline of every attack on labels: AUC = 1/2 + (accuracy on members - accuracy on non-members) / 2.
    """
    return evidence.signal(LABEL).target.mean(axis=0, dtype=float64)
