"""GradNorm: is there little left to learn from a text? (as in mimir, Duan et al. 2024, https://arxiv.org/abs/2402.07841)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import Evidence, Signal
from modules.mia.tokens import text_of

ORDERS = {"1": 1.0, "2": 2.0, "inf": float("inf")}


def _signal(p: str) -> Signal:
    return Signal("gradient_norm", options=(("p", ORDERS[p]),))


@ATTACKS.register(
    "GradNorm",
    needs_text=True,
    shared=None,
    needs_references=False,
    needs_population=False,
    signals=lambda settings: (_signal(settings["p"]),),
    min_pairs=0,
    summary="minus the norm of the loss gradient at x; white box, one backward pass a record",
    access="white box",
    cost="one forward and one backward pass per text, of the target alone",
    fails="weak where training has converged or has hardly begun",
    source="Duan et al. 2024 (mimir), arXiv 2402.07841",
)
def gradient_norm(evidence: Evidence, *, p: Literal["1", "2", "inf"] = "2") -> Float[Array, " N"]:
    """Minus the mean, over trainable parameter tensors, of the p-norm of the gradient of x's mean token loss.

    Training ends where members' gradients are small, so a small norm speaks for membership. (mimir's code returns
    the norm with the other sign in its own convention; AUCs far below one half were reported of it.)
    """
    text_of(evidence)
    return -evidence.signal(_signal(p)).target.mean(axis=0, dtype=np.float64)
