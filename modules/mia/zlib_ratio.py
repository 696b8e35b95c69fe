"""zlib: is a text likelier than its redundancy explains? (Carlini et al. 2021, https://arxiv.org/abs/2012.07805)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence
from modules.mia.tokens import mean_log_p, text_of


@ATTACKS.register(
    "zlib",
    needs_text=True,
    shared=None,
    needs_references=False,
    needs_population=False,
    min_pairs=0,
    summary="log-likelihood of a text over the size it is compressed to",
    access="tokens",
    cost="one pass per text, of the target alone",
    fails="mistakes easy texts for members as LOSS does, where ease is not length",
    source="Carlini et al. 2021, arXiv 2012.07805",
)
def zlib(evidence: Evidence, *, likelihood: Literal["mean", "total"] = "mean") -> Float[Array, " N"]:
    """log p of the text divided by the bytes that zlib compresses it to.

    likelihood: "mean" over tokens, as in the paper's code and mimir; "total" is the sum, whose ratio is one of two
        code lengths.
    """
    text = text_of(evidence)
    log_p = mean_log_p(evidence.target)
    return (log_p if likelihood == "mean" else log_p * np.diff(text.start)) / text.compressed
