"""Fitting of estimators that are no networks: scikit-learn, XGBoost, LightGBM."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Interval
from jaxtyping import Bool
from numpy import ndarray as Array

from core.registry import TRAINERS

if TYPE_CHECKING:
    import torch

    from trainers.resident import Resident

log = logging.getLogger(__name__)


@TRAINERS.register("fit", kind="estimator", summary="fits the estimators of scikit-learn, XGBoost and LightGBM")
def fit(
    models: list[Any],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    *,
    smoothing: Annotated[float, Interval(gt=0, lt=1)] | Literal["auto"] = "auto",
) -> list[torch.nn.Module]:
    """Fit each estimator to its members, with a random state from its own stream.

    Its log-odds come from predict_proba, mixed with the uniform distribution over the C classes:
    p' = (1 - smoothing) p + smoothing / C. Probabilities of 0 and 1, which forests give for most records, then
    have finite log-odds; the order of the probabilities of a class stays as it is.

    - smoothing: auto is Laplace's rule where probabilities are shares of votes, C / (T + C) with T trees (or
      neighbours; one of a single tree); 1e-12 elsewhere
    """
    import torch

    for model, member, rng in zip(models, members, streams, strict=True):
        index = np.flatnonzero(member)
        said = model.fit(*data_of(data, index), int(rng.integers(2**31 - 1)), smoothing)
        for line in said:
            log.warning("%s: %s", model.make.__name__, line)
        model.eval()
        model(
            data.batch(torch.arange(len(data), device=data.device))
        )  # so that the answers about the whole pool are kept
    return models


def data_of(data: Resident, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The indexed records as models see them, and their labels."""
    import torch

    chosen = torch.as_tensor(index, device=data.device)
    return data.batch(chosen), data.y[chosen]
