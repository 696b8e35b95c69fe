"""AlexNet (Krizhevsky et al. 2012) with the small kernels that are usual for CIFAR."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval

from core.registry import MODELS
from models.shapes import image_shape

if TYPE_CHECKING:
    import torch


@MODELS.register("alexnet", summary="five convolutions and three wide linear layers with dropout", needs="image")
def alexnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: Annotated[int, Ge(1)] = 4096,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
) -> torch.nn.Module:
    """Five 3 x 3 convolutions, then three linear layers. No normalisation: use a learning rate of about 0.01.

    The first convolution has stride 2 from 32 pixels a side on, and 1 below.

    - hidden: units of the two hidden linear layers
    - dropout: share of units dropped before each of them while training
    """
    from torch import nn

    colours, height, width = image_shape("alexnet", input_shape, at_least=8)
    stride = 2 if min(height, width) >= 32 else 1
    left = min(2, min(height, width) // (8 * stride))
    features = nn.Sequential(
        nn.Conv2d(colours, 64, 3, stride=stride, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(256 * left * left, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
    pool = nn.AdaptiveAvgPool2d(left)
    return nn.Sequential(OrderedDict(features=features, pool=pool, flatten=nn.Flatten(), classifier=classifier))
