"""What a user writes to add a dataset, a model and an attack: `--plugin my_plugin.py`."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt

from core.registry import ATTACKS, DATASETS, MODELS
from core.rng import stream
from core.types import AuditData, Evidence, Records


@DATASETS.register("my_blobs", summary="two Gaussian blobs")
def my_blobs(data_dir, seed, *, num_records: int = 300) -> AuditData:
    draw = stream(0, "my_blobs")
    y = draw.integers(2, size=num_records)
    x = (draw.normal(size=(num_records, 5)) + y[:, None]).astype(np.float32)
    half = num_records // 2
    return AuditData(Records(x[:half], y[:half]), Records(x[half:], y[half:]), num_classes=2)


@MODELS.register("my_linear", summary="logistic regression")
def my_linear(input_shape, num_classes):
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


@ATTACKS.register("my_margin", summary="mean log-odds over queries, to a power", needs_references=False)
def my_margin(evidence: Evidence, *, power: Annotated[float, Gt(0)] = 1.0) -> np.ndarray:
    score = evidence.target.mean(axis=0)
    return np.sign(score) * np.abs(score) ** power
