"""Datasets as the original tool keeps them: pickles of its own classes, read without running anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.loading import ARRAYS, Inert, read_bytes, unpickle, unpickled_array
from core.registry import DATASETS
from core.types import AuditData, Records

# What its pickles name. None of it is used: each becomes an object that keeps what it is given.
NAMES = (
    *ARRAYS,
    "dataset.tabular.TabularDataset",
    "torchvision.datasets.cifar.CIFAR10",
    "torchvision.datasets.cifar.CIFAR100",
    "torchvision.datasets.vision.StandardTransform",
    "torchvision.transforms.transforms.Compose",
    "torchvision.transforms.transforms.ToTensor",
    "torchvision.transforms.transforms.Normalize",
)


@DATASETS.register(
    "original_pickle", summary="the original tool's own <name>.pkl and <name>_population.pkl", images=False
)
def original_pickle(
    data_dir: Path, seed: int, *, file: Path = Path("purchase100.pkl"), population: Path | None = None
) -> AuditData:
    """The records in the order in which the original tool's memberships.npy counts them.

    Tables of features, and CIFAR images, which are normalised by 127.5 as the original does it. It must have trained
    no model on the population.

    - file: its pickle of the dataset, in data.data_dir
    - population: its pickle of the population; if left out, <name>_population.pkl beside the other
    """
    pool_file = data_dir / file
    population_file = data_dir / (population or file.with_name(f"{file.stem}_population{file.suffix}"))
    pool, others = _records(pool_file), _records(population_file)
    if pool.x.shape[1:] != others.x.shape[1:] or pool.x.dtype != others.x.dtype:
        raise UserError(
            f"{population_file} has records of shape {others.x.shape[1:]}, {pool_file} of {pool.x.shape[1:]}"
        )
    classes = 1 + int(max(pool.y.max(), others.y.max()))
    if pool.x.ndim == 2:
        return AuditData(pool, others, classes)
    return AuditData(pool, others, classes, mean=(127.5,) * 3, std=(127.5,) * 3)


def _records(path: Path) -> Records:
    """The records of one pickle. Raises UserError: it asks for more than a dataset, or holds something else."""
    found = unpickle(read_bytes(path), dict.fromkeys(NAMES, Inert), str(path))
    state = found.state if isinstance(found, Inert) else None
    if not isinstance(state, Mapping) or not {"data", "targets"} <= state.keys():
        raise UserError(f"{path} is no pickled dataset of the original tool: it has no data and targets")
    x, y = unpickled_array(state["data"], f"{path}: data"), _labels(state["targets"], path)
    if len(x) != len(y) or not len(x) or y.min() < 0 or y.max() > 10**6:
        raise UserError(f"{path}: {len(x)} records need as many labels, counted from 0; it has {len(y)}")
    if x.ndim == 2 and x.dtype.kind == "f":
        if not np.isfinite(x).all():
            raise UserError(f"{path}: some features are NaN or infinite")
        return Records(np.ascontiguousarray(x, np.float32), y)
    if x.ndim == 4 and x.dtype == np.uint8 and x.shape[3] == 3:
        return Records(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y)
    raise UserError(f"{path}: data of shape {x.shape} and type {x.dtype} are neither features nor images")


def _labels(targets: Any, path: Path) -> np.ndarray:
    try:
        labels = np.array(targets) if isinstance(targets, list) else unpickled_array(targets, f"{path}: targets")
        if labels.ndim != 1 or labels.dtype.kind not in "biuf" or not np.isin(labels % 1, 0).all():
            raise ValueError("they are no whole numbers")
        return labels.astype(np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: targets are no labels ({error})") from None
