"""A multi-layer perceptron; images are flattened."""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Interval

from core.registry import MODELS

if TYPE_CHECKING:
    import torch


@MODELS.register("mlp", summary="fully connected layers fc1, fc2, … (one hidden layer of 128 by default)", needs="any")
def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: tuple[Annotated[int, Ge(1)], ...] = (128,),
    activation: Literal["tanh", "relu"] = "tanh",
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
) -> torch.nn.Module:
    """Fully connected layers fc1, fc2, …; takes records of any shape.

    - hidden: units of each hidden layer; `[]` is logistic regression
    - activation: after each hidden layer
    - dropout: share of hidden units dropped while training
    """
    from torch import nn

    if not input_shape or prod(input_shape) < 1:
        raise ValueError(f"model mlp needs records of at least one feature, got shape {input_shape}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = prod(input_shape)
    for number, units in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(width, units)
        layers[f"{activation}{number}"] = nn.Tanh() if activation == "tanh" else nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        width = units
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)
