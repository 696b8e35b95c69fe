"""Classifiers of scikit-learn, XGBoost and LightGBM, by `sklearn/<Estimator>`: fitted, not trained in steps."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from core.registry import MODELS

if TYPE_CHECKING:
    import torch

# The only modules that are looked into: a name in a config can import nothing else.
MODULES = (
    *("sklearn.ensemble", "sklearn.linear_model", "sklearn.tree", "sklearn.neighbors", "sklearn.naive_bayes"),
    *("sklearn.svm", "sklearn.neural_network", "sklearn.discriminant_analysis", "sklearn.gaussian_process"),
    *("xgboost", "lightgbm"),
)
OURS = {"random_state": "comes from run.random_seed", "n_jobs": "is 1: models are fitted side by side, see run.workers"}


def foreign(name: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(setting, what is wrong with it) of an estimator's own settings; ("", …) for its name."""
    try:
        estimator = find(name.partition("/")[2])
        known = estimator().get_params(deep=False)
    except (ValueError, TypeError) as error:
        yield "", str(error) if isinstance(error, ValueError) else f"{name} needs other estimators: not in a config"
        return
    unknown = [key for key in settings if key not in known]
    for key in unknown:
        near = get_close_matches(key, known)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(sorted(known))}"
        yield key, f"no setting of {estimator.__name__}; {hint}"
    for key in settings.keys() & OURS.keys() & known.keys():
        yield key, OURS[key]
    if not unknown:
        yield from _invalid(estimator(**settings), settings)


def _invalid(estimator: Any, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What scikit-learn says of the values before anything is fitted, and whether there will be probabilities."""
    try:
        if hasattr(estimator, "_validate_params"):
            estimator._validate_params()
    except ValueError as error:
        yield next((key for key in settings if f"'{key}'" in str(error)), ""), str(error)
        return
    if not hasattr(estimator, "predict_proba"):
        raise_to = "set probability: true" if "probability" in estimator.get_params() else "choose another estimator"
        yield "", f"{type(estimator).__name__} gives no probabilities with these settings: {raise_to}"


def find(name: str) -> Any:
    """The class of a classifier. ValueError, with what may have been meant, if there is none of this name."""
    found: dict[str, Any] = {}
    for module in MODULES:
        try:
            members = vars(importlib.import_module(module))
        except ImportError:
            continue  # an optional library
        found |= {key: value for key, value in members.items() if _is_classifier(value)}
    if name in found:
        return found[name]
    if name in ("XGBClassifier", "LGBMClassifier"):
        raise ValueError(
            f"{name} needs the optional package {'xgboost' if name[0] == 'X' else 'lightgbm'}: pip install it"
        )
    by_folded = {known.casefold(): known for known in found}
    near = [f"sklearn/{by_folded[match]}" for match in get_close_matches(name.casefold(), by_folded)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(found))}"
    raise ValueError(f"scikit-learn has no classifier {name!r}; {hint}")


def _is_classifier(value: Any) -> bool:
    return isinstance(value, type) and hasattr(value, "predict_proba") and hasattr(value, "get_params")


@MODELS.register(
    "sklearn/*",
    summary="a classifier of scikit-learn (or XGBoost, LightGBM if installed), e.g. sklearn/RandomForestClassifier",
    kind="estimator",
    trainer="fit",
    foreign=foreign,
)
def sklearn(input_shape: tuple[int, ...], num_classes: int, name: str, **settings: Any) -> torch.nn.Module:
    """An estimator behind the interface of a network; its settings are those of its own signature.

    Images are flattened. `random_state` is drawn from the model's own stream, `n_jobs` is 1. No pickle is written:
    the model's file holds its answers about the pool and the population, and about any other record it is fitted
    again, from the same records and seed, which must give the same answers.
    """
    from models.estimator import Estimator

    return Estimator(find(name), settings, num_classes)
