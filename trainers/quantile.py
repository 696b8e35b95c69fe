"""Regressions of a distribution on records, by boosted trees (scikit-learn). For QMIA (Bertran et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

FOLDS = 3
TREES = 40  # at most: as many are kept as predict the held-out folds best
ROUNDS = 2  # mean, then variance, then the mean again with these variances as weights
LEAST_VARIANCE = 1e-3  # of a residual, as a fraction of the mean squared one: the gamma loss takes a logarithm

Judge = Callable[[Array, Array], float]  # of held-out records' values and predictions; smaller is better


def folds_of(count: int, draw: np.random.Generator, folds: int = FOLDS) -> Int[Array, " n"]:
    """A fold for each record, by lot, of equal sizes."""
    return draw.permutation(np.arange(count) % min(folds, max(count, 1)))


def boosted_gaussian(
    x: Float[Array, "P F"],
    categorical: Bool[Array, " F"],
    value: Float[Array, " P"],
    ask: Float[Array, "N F"],
    draw: np.random.Generator,
) -> tuple[Float[Array, "2 N"], Float[Array, "2 P"]]:
    """Mean and standard deviation of `value` given a record: of the records `ask`, and held out of those of the fit.

    Gaussian likelihood by coordinates: given the variances, the mean minimises a weighted squared error; given the
    mean, -2 log-likelihood of the variance is the gamma deviance of the squared residuals. Residuals are of held-out
    folds: those of the fit itself would be too small. In the end the variances are scaled so that held-out records
    have a mean square of 1.
    """
    fold = folds_of(len(value), draw)
    weight = np.ones(len(value))
    for _ in range(ROUNDS):
        mean, mean_held = _fit(x, categorical, value, ask, fold, weight, "squared_error", _squared)
        squares = np.square(value - mean_held)
        squares = np.maximum(squares, LEAST_VARIANCE * squares.mean() + np.square(1e-6 * (1 + abs(value).max())))
        variance, variance_held = _fit(x, categorical, squares, ask, fold, None, "gamma", _gamma)
        weight = 1 / variance_held
        weight /= weight.mean()
    scale = np.sqrt((np.square(value - mean_held) / variance_held).mean())
    return (
        np.stack([mean, scale * np.sqrt(variance)]),
        np.stack([mean_held, scale * np.sqrt(variance_held)]),
    )


def boosted_quantiles(
    x: Float[Array, "P F"],
    categorical: Bool[Array, " F"],
    value: Float[Array, " P"],
    ask: Float[Array, "N F"],
    draw: np.random.Generator,
    levels: Float[Array, " K"],
) -> tuple[Float[Array, "K N"], Float[Array, "K P"]]:
    """Quantiles of `value` given a record, each by its own pinball loss; and held out, of the records of the fit.

    Each is moved so that its share of held-out records lies below it (conformalised, Romano et al. 2019): an extreme
    quantile is fitted too near, because the few records beyond it are what the trees have seen.
    """
    fold = folds_of(len(value), draw)
    found, held_out = np.empty((len(levels), len(ask))), np.empty((len(levels), len(value)))
    for k, level in enumerate(levels.tolist()):
        of, held = _fit(x, categorical, value, ask, fold, None, "quantile", _pinball(level), quantile=level)
        moved = np.quantile(value - held, level)
        found[k], held_out[k] = of + moved, held + moved
    return found, held_out


def _fit(
    x: Array,
    categorical: Array,
    value: Array,
    ask: Array,
    fold: Array,
    weight: Array | None,
    loss: str,
    judge: Judge,
    **settings: Any,
) -> tuple[Float[Array, " N"], Float[Array, " P"]]:
    """One regression: predictions for `ask` (mean over folds), and of each record by the trees of the other folds.

    The number of trees, 0 to TREES, is the one that predicts held-out records best; 0 is one number for all records.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    of_fold, held = [], np.empty((TREES + 1, len(value)))
    for k in range(fold.max() + 1 if len(fold) else 0):
        own = fold == k
        if own.all():  # one record: nothing is left to fit on
            own = np.zeros_like(own)
        weights = None if weight is None else weight[~own]
        held[0, fold == k] = _constant(value[~own], weights, settings.get("quantile"))
        trees = HistGradientBoostingRegressor(
            loss=loss,
            learning_rate=0.2,
            max_iter=TREES,
            max_leaf_nodes=8,
            min_samples_leaf=10,
            l2_regularization=1.0,
            categorical_features=categorical if categorical.any() else None,  # type: ignore
            early_stopping=False,  # type: ignore
            random_state=0,
            **settings,
        )
        trees.fit(x[~own], value[~own], sample_weight=weights)
        for count, predicted in enumerate(trees.staged_predict(x[fold == k]), start=1):
            held[count, fold == k] = predicted
        of_fold.append((trees, held[0, np.argmax(fold == k)]))
    best = int(np.argmin([judge(value, predicted) for predicted in held]))
    found = np.zeros(len(ask))
    for trees, constant in of_fold:
        found += constant if best == 0 else _after(trees, best, ask)
    return found / len(of_fold), held[best]


def _after(trees: Any, count: int, ask: Array) -> Float[Array, " N"]:
    """The prediction of the first `count` trees."""
    for number, predicted in enumerate(trees.staged_predict(ask), start=1):
        if number == count:
            return predicted
    raise AssertionError(f"{count} trees were asked for, and there are fewer")


def _constant(value: Array, weight: Array | None, level: float | None) -> float:
    return float(np.average(value, weights=weight) if level is None else np.quantile(value, level))


def _squared(value: Array, predicted: Array) -> float:
    return float(np.square(value - predicted).mean())


def _gamma(value: Array, predicted: Array) -> float:
    predicted = np.maximum(predicted, np.finfo(float).tiny)
    return float((value / predicted + np.log(predicted)).mean())


def _pinball(level: float) -> Judge:
    def judge(value: Array, predicted: Array) -> float:
        d = value - predicted
        return float(np.maximum(level * d, (level - 1) * d).mean())

    return judge
