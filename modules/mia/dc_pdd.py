"""DC-PDD: are rare tokens predicted as if they were common? (Zhang et al. 2024, https://arxiv.org/abs/2409.14781)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence
from modules.mia.tokens import LOG_P, mean_where, of_tokens, text_of


@ATTACKS.register(
    "DC-PDD",
    needs_text=True,
    shared=None,
    needs_references=False,
    needs_population=False,
    signals=lambda settings: (LOG_P,),
    min_pairs=0,
    summary="probability of each token weighted by how rare it is among the population, capped",
    access="tokens",
    cost="one pass per text, of the target alone",
    fails="where the model is sure of most tokens they are all at the cap, and texts score the same",
    source="Zhang et al. 2024, arXiv 2409.14781",
)
def dc_pdd(evidence: Evidence, *, cap: Annotated[float, Gt(0)] = 0.01, first_only: bool = True) -> Float[Array, " N"]:
    """Mean over tokens of min(p(x_t) log(1 / freq(x_t)), cap), freq with one added to every token's count.

    cap: no token counts more than this; the paper's value. Where a model is sure of most tokens, raise it.
    first_only: count a token where it occurs first in a record, and not again.
    """
    text = text_of(evidence)
    value = np.minimum(np.exp(of_tokens(evidence, LOG_P)) * -np.log(text.frequency), cap)
    first = np.zeros(len(value), dtype=bool)
    if first_only:
        pairs = np.stack([text.record(), text.tokens.astype(np.int64)])
        first[np.unique(pairs, axis=1, return_index=True)[1]] = True
    return mean_where(text, value, first if first_only else ~first)
