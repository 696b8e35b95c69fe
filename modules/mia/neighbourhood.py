"""Neighbourhood: is a text likelier than texts much like it? (Mattern et al. 2023, https://arxiv.org/abs/2305.18462)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal
from modules.mia.tokens import mean_log_p, text_of

SETTINGS = ("masked_lm", "neighbours", "masks", "top_k")


def _signal(settings: Settings) -> Signal:
    return Signal("neighbour_log_p", options=tuple((key, settings[key]) for key in SETTINGS))


@ATTACKS.register(
    "Neighbourhood",
    needs_text=True,
    shared=None,
    needs_references=False,
    needs_population=False,
    signals=lambda settings: (_signal(settings),),
    min_pairs=0,
    summary="log-likelihood of a text minus that of copies with some words replaced; one pass a copy",
    access="tokens",
    cost="one pass per text and per neighbour, of the target alone; a masked language model beside",
    fails="measures the masked language model too: replacements that do not fit make every text look like a member",
    source="Mattern et al. 2023, arXiv 2305.18462",
)
def neighbourhood(
    evidence: Evidence,
    *,
    masked_lm: str = "distilbert-base-cased",
    neighbours: Annotated[int, Ge(1)] = 10,
    masks: Annotated[int, Ge(1)] = 3,
    top_k: Annotated[int, Ge(1)] = 50,
) -> Float[Array, " N"]:
    """LL(x) minus the mean LL of its neighbours, LL the mean token log-likelihood.

    masked_lm: the model that proposes words: a folder, or a name in the Hugging Face cache.
    neighbours: how many copies of each record.
    masks: how many words of a copy are replaced.
    top_k: each by one of this many likeliest words, in proportion to their probabilities.
    """
    text_of(evidence)
    of_neighbours = evidence.signal(_signal(dict(zip(SETTINGS, (masked_lm, neighbours, masks, top_k), strict=True))))
    return mean_log_p(evidence.target) - of_neighbours.target.mean(axis=0, dtype=np.float64)
