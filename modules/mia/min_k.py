"""Min-K% and Min-K%++: are even the least likely tokens of a text likely?

Shi et al. 2023, https://arxiv.org/abs/2310.16789, and Zhang et al. 2024, https://arxiv.org/abs/2404.02936.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence
from modules.mia.tokens import LOG_P, MEAN, VARIANCE, mean_where, of_tokens, smallest, text_of

LEAST_DEVIATION = 1e-4  # of log p under p; below, float32 says nothing of how far a token is from the mean


@ATTACKS.register(
    "MinK",
    needs_text=True,
    shared=None,
    needs_references=False,
    needs_population=False,
    signals=lambda settings: (LOG_P,),
    min_pairs=0,
    summary="mean log-probability of a text's least likely tokens",
    access="tokens",
    cost="one pass per text, of the target alone",
    fails="depends on k and on length: texts of a few tokens have one smallest",
    source="Shi et al. 2023, arXiv 2310.16789",
)
def min_k(evidence: Evidence, *, k: Annotated[float, Gt(0), Le(1)] = 0.2) -> Float[Array, " N"]:
    """Mean log p of the share k of a record's tokens that are least likely (at least one); k = 1 is LOSS."""
    text, values = text_of(evidence), of_tokens(evidence, LOG_P)
    return mean_where(text, values, smallest(values, text.start, k))


@ATTACKS.register(
    "MinK++",
    needs_text=True,
    shared=None,
    needs_references=False,
    needs_population=False,
    signals=lambda settings: (LOG_P, MEAN, VARIANCE),
    min_pairs=0,
    summary="as Min-K%, each token's log-probability standardised by the distribution it was drawn from",
    access="tokens",
    cost="one pass per text, of the target alone",
    fails="as MinK; needs the whole next-token distribution",
    source="Zhang et al. 2024, arXiv 2404.02936",
)
def min_k_plus_plus(evidence: Evidence, *, k: Annotated[float, Gt(0), Le(1)] = 0.2) -> Float[Array, " N"]:
    """Mean of the share k of smallest z_t = (log p(x_t) - mu_t) / sd_t, mean and deviation of log p(v) under p."""
    text = text_of(evidence)
    deviation = np.maximum(np.sqrt(np.maximum(of_tokens(evidence, VARIANCE), 0)), LEAST_DEVIATION)
    z = (of_tokens(evidence, LOG_P) - of_tokens(evidence, MEAN)) / deviation
    return mean_where(text, z, smallest(z, text.start, k))
