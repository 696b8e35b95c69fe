"""Made-up datasets that models can learn and memorise: no download, any size.

The records are a function of the settings alone, `data_seed` included; the run's seed only divides them. So runs
with different seeds audit different divisions of the same data, as they do with real data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import Float, Int
from numpy import ndarray as Array

from core.errors import UserError
from core.registry import DATASETS
from core.rng import stream
from core.types import AuditData
from dataset.splits import divided

Fraction = Annotated[float, Interval(gt=0, lt=1)]
Count = Annotated[int, Ge(4)]
Level = Annotated[float, Ge(0)]

LATENT = 64  # dimensions in which the classes of the table differ
SPREAD = 1.5  # standard deviation of a feature's log-odds over the records, whatever the noise
GRAIN = 0.5  # of an image, beside its own pattern of strength 1
CONTRAST = 50.0  # standard deviation of its pixels, whatever the noise


@DATASETS.register("synthetic_tabular", summary="made-up sparse binary records, like Purchase100", images=False)
def synthetic_tabular(
    data_dir: Path,
    seed: int,
    *,
    num_records: Count = 20_000,
    num_features: Annotated[int, Ge(1)] = 600,
    num_classes: Annotated[int, Ge(2)] = 100,
    noise: Level = 1.75,
    population_fraction: Fraction = 0.25,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> AuditData:
    """Purchase-like: float32 (num_features,) of zeros and ones, few of them ones; column k is called item_k.

    Each class has a prototype in a latent space, each record is its class's prototype plus Gaussian noise in the
    same space, and each feature is bought with a probability that depends on the record's place there and on the
    feature's popularity. The noise cannot be told from a change of class, so a model can only memorise it.

    noise: standard deviation of that noise, that of the prototypes being 1; more makes test accuracy worse.
    population_fraction: share of the records that no model trains on.
    data_seed: another seed is another dataset; the run's seed only divides it.
    """
    y = _labels(num_records, num_classes, stream(data_seed, "synthetic_tabular", "labels"))
    world = stream(data_seed, "synthetic_tabular", "world")
    prototypes = world.normal(size=(num_classes, LATENT))
    loadings = world.normal(size=(LATENT, num_features)) / np.sqrt(LATENT)
    popularity = world.normal(-2.0, 1.0, size=num_features)
    draw = stream(data_seed, "synthetic_tabular", "records")
    x = np.empty((num_records, num_features), dtype=np.float32)
    for start in range(0, num_records, 8192):
        classes = y[start : start + 8192]
        place = prototypes[classes] + noise * draw.normal(size=(len(classes), LATENT))
        log_odds = SPREAD * (place / np.hypot(1.0, noise)) @ loadings + popularity
        x[start : start + 8192] = draw.logistic(size=log_odds.shape) < log_odds  # one with probability sigmoid
    names = tuple(f"item_{k}" for k in range(num_features))
    return divided(x, y, seed, population_fraction, num_classes=num_classes, feature_names=names)


@DATASETS.register("synthetic_images", summary="made-up colour images of the shape of CIFAR-10", images=True)
def synthetic_images(
    data_dir: Path,
    seed: int,
    *,
    num_records: Count = 8_000,
    num_classes: Annotated[int, Ge(2)] = 10,
    noise: Level = 2.0,
    population_fraction: Fraction = 0.25,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> AuditData:
    """CIFAR-shaped: uint8 (3, 32, 32). Each image is its class's blurred pattern, moved by up to 4 pixels, under
    a blurred pattern of its own and fine grain.

    The image's own pattern is drawn like those of the classes, so a model can only memorise it.

    noise: strength of what is the image's own, that of the class's pattern being 1; more makes test accuracy worse.
    population_fraction: share of the records that no model trains on.
    data_seed: another seed is another dataset; the run's seed only divides it.
    """
    y = _labels(num_records, num_classes, stream(data_seed, "synthetic_images", "labels"))
    patterns = _patterns(num_classes, stream(data_seed, "synthetic_images", "world"))
    draw = stream(data_seed, "synthetic_images", "records")
    x = np.empty((num_records, 3, 32, 32), dtype=np.uint8)
    for start in range(0, num_records, 1024):
        classes = y[start : start + 1024]
        image = _shifted(patterns[classes], draw.integers(-4, 5, size=(len(classes), 2)))
        image += noise * _patterns(len(classes), draw)
        image += noise * GRAIN * draw.standard_normal(size=image.shape, dtype=np.float32)
        image *= CONTRAST / np.sqrt(1 + noise**2 * (1 + GRAIN**2))
        x[start : start + 1024] = np.clip(128 + image, 0, 255).astype(np.uint8)
    mean, std = (128.0,) * 3, (CONTRAST,) * 3
    return divided(x, y, seed, population_fraction, num_classes=num_classes, mean=mean, std=std)


def _labels(count: int, num_classes: int, draw: np.random.Generator) -> Int[Array, " n"]:
    """Every class equally often, give or take one, in random order."""
    if count < num_classes:
        raise UserError(f"data.num_records {count} is less than data.num_classes {num_classes}: no class may be empty")
    return draw.permutation(np.arange(count, dtype=np.int64) % num_classes)


def _patterns(count: int, draw: np.random.Generator) -> Float[Array, "n 3 32 32"]:
    """Smooth random colour fields of unit variance: a coarse grid, enlarged by straight lines between its points."""
    coarse = draw.standard_normal(size=(count, 3, 8, 8), dtype=np.float32)
    at = np.arange(32) / 4.0
    weight = np.maximum(0.0, 1.0 - np.abs((at[:, None] - np.arange(8) + 4) % 8 - 4))  # of a circle of 8 points
    weight /= np.sqrt((weight**2).sum(axis=1, keepdims=True))
    weight = weight.astype(np.float32)
    return weight @ coarse @ weight.T


def _shifted(images: Float[Array, "n 3 32 32"], by: Int[Array, "n 2"]) -> Float[Array, "n 3 32 32"]:
    """Each image moved by its own (rows, columns), what leaves one side entering at the other."""
    rows, columns = ((np.arange(32) - by[:, axis, None]) % 32 for axis in (0, 1))
    picture = np.arange(len(images))[:, None, None, None]
    return images[picture, np.arange(3)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
