"""EZ-MIA: where the target errs, is the truth still likelier than to the references? (Ilić et al. 2026, https://arxiv.org/abs/2601.12104)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence
from modules.mia.tokens import LOG_P, RANK, of_tokens, out_log_p, out_probability, text_of


@ATTACKS.register(
    "EZ-MIA",
    needs_text=True,
    shared=None,
    needs_references=True,
    needs_population=False,
    signals=lambda settings: (LOG_P, RANK),
    min_pairs=1,
    summary="where the target predicts another token: upward against downward shifts of the true token's probability",
    access="tokens",
    cost="one pass per text and model",
    fails="where the target predicts every token rightly there is nothing to compare; references of another tokenizer",
    source="Ilić et al. 2026 (abstract and summaries), arXiv 2601.12104",
)
def ez_mia(
    evidence: Evidence, *, shift: Literal["probability", "log_probability"] = "probability"
) -> Float[Array, " N"]:
    """up / (up + down) over the tokens that are not the target's first guess; 1/2 where there is none, or no shift.

    `up` is the sum of the positive shifts of the true token from the references to the target, `down` that of the
    negative ones: the order is that of the paper's ratio up / down, which has no value at down = 0. The reference is
    the mean over the record's OUT references, in the paper the pretrained model. We saw the abstract and summaries:
    whether shifts are of probabilities is not certain, hence the setting.
    """
    text = text_of(evidence)
    log_p, probability = of_tokens(evidence, LOG_P), shift == "probability"
    moved = np.exp(log_p) - out_probability(evidence) if probability else log_p - out_log_p(evidence)
    moved = np.where(of_tokens(evidence, RANK) > 0, moved, 0.0)
    up, down = (np.add.reduceat(np.maximum(sign * moved, 0.0), text.start[:-1]) for sign in (1, -1))
    return np.divide(up, up + down, out=np.full(len(up), 0.5), where=up + down > 0)
