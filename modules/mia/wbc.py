"""WBC: in how many stretches of a text does the target beat the references? (Chen et al. 2026, https://arxiv.org/abs/2601.02751)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge
from jaxtyping import Float, Int
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Text
from modules.mia.tokens import LOG_P, of_tokens, out_log_p, text_of


@ATTACKS.register(
    "WBC",
    needs_text=True,
    shared=None,
    needs_references=True,
    needs_population=False,
    signals=lambda settings: (LOG_P,),
    min_pairs=1,
    summary="share of sliding windows of tokens that the target fits better than the references do",
    access="tokens",
    cost="one pass per text and model",
    fails="references of another tokenizer; texts shorter than its windows",
    source="Chen et al. 2026 (abstract and summaries), arXiv 2601.02751",
)
def wbc(
    evidence: Evidence,
    *,
    smallest: Annotated[int, Ge(1)] = 2,
    largest: Annotated[int, Ge(1)] = 40,
    sizes: Annotated[int, Ge(1)] = 10,
) -> Float[Array, " N"]:
    """Mean over window sizes of the share of windows whose loss under the target is below that of the references.

    A window's reference loss is the mean over the record's OUT references; draws count half. Sizes are spaced
    geometrically; a record votes with those that fit into it, and as a whole where none does. Windows of all
    sizes, binary votes and geometric sizes are the paper's, of which we saw the abstract and summaries; its sizes
    and its weights of them may differ from these.

    smallest, largest: of the windows, in tokens.
    sizes: how many sizes from the one to the other.
    """
    text = text_of(evidence)
    gain = of_tokens(evidence, LOG_P) - out_log_p(evidence)
    windows = np.unique(np.geomspace(smallest, max(largest, smallest), sizes).round().astype(int))
    return share_of_windows(text, gain, windows)


def share_of_windows(text: Text, gain: Float[Array, " U"], windows: Int[Array, " W"]) -> Float[Array, " N"]:
    """Of each record, the mean over the window sizes that fit of the share of windows whose gains sum above 0."""
    lengths, record = np.diff(text.start), text.record()
    upto = np.concatenate([[0.0], np.cumsum(gain)])
    votes, fitting = np.zeros(len(lengths)), np.zeros(len(lengths))
    for size in windows:
        first = np.flatnonzero(np.arange(len(gain)) + size <= text.start[1:][record])
        sign = np.sign(upto[first + size] - upto[first])
        count = np.bincount(record[first], minlength=len(lengths))
        votes += np.bincount(record[first], (1 + sign) / 2, minlength=len(lengths)) / np.maximum(count, 1)
        fitting += count > 0
    whole = (1 + np.sign(np.add.reduceat(gain, text.start[:-1]))) / 2
    return np.where(fitting > 0, votes / np.maximum(fitting, 1), whole)
