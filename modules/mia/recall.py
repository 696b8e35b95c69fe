"""ReCaLL: does a prefix of non-members make a text less likely? (Xie et al. 2024, https://arxiv.org/abs/2406.15968)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Settings, Signal
from modules.mia.tokens import mean_log_p, text_of


def _prefixed(settings: Settings) -> Signal:
    return Signal("prefixed_log_odds", options=(("shots", settings["shots"]), ("prefix", settings["prefix"])))


@ATTACKS.register(
    "ReCaLL",
    needs_text=True,
    shared=None,
    needs_references=False,
    needs_population=False,
    signals=lambda settings: (_prefixed(settings),),
    min_pairs=0,
    summary="log-likelihood of a text after non-members over that without them; one more pass, over longer texts",
    access="tokens",
    cost="two passes per text, one of them over a longer text, of the target alone",
    fails="texts that fill the model's context score 1; a member in the prefix helps the wrong side",
    source="Xie et al. 2024, arXiv 2406.15968",
)
def recall(evidence: Evidence, *, shots: Annotated[int, Ge(1)] = 4, prefix: str | None = None) -> Float[Array, " N"]:
    """LL(x | prefix) / LL(x), LL the mean token log-likelihood: both negative, so larger = the prefix hurt more.

    shots: how many texts the prefix joins, drawn from the population, none of which any model trained on. The
        same prefix serves all records and models.
    prefix: your own prefix instead, of texts you know to be no members; `shots` is unused then.
    """
    text_of(evidence)
    after = evidence.signal(_prefixed({"shots": shots, "prefix": prefix}))
    return mean_log_p(after.target) / mean_log_p(evidence.target)
