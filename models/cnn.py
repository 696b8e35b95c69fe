"""A small convolutional network in the manner of LeNet-5 (LeCun et al. 1998)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from core.registry import MODELS
from models.shapes import image_shape

if TYPE_CHECKING:
    import torch


@MODELS.register("cnn", summary="two convolutions and three linear layers (LeNet)", needs="image")
def cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    channels: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] = (6, 16),
    hidden: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] = (120, 84),
) -> torch.nn.Module:
    """Two convolutions with max pooling, then three linear layers.

    Kernels are 5 x 5; below 16 pixels a side they are 3 x 3 and padded, or nothing would be left to pool.

    - channels: feature maps of conv1 and conv2
    - hidden: units of fc1 and fc2
    """
    from torch import nn

    colours, height, width = image_shape("cnn", input_shape, at_least=4)
    kernel, padding = (5, 0) if min(height, width) >= 16 else (3, 1)

    def side(pixels: int) -> int:
        for _ in range(2):
            pixels = (pixels + 2 * padding - kernel + 1) // 2
        return pixels

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(colours, channels[0], kernel, padding=padding),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(channels[0], channels[1], kernel, padding=padding),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(channels[1] * side(height) * side(width), hidden[0]),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden[0], hidden[1]),
            relu4=nn.ReLU(),
            fc3=nn.Linear(hidden[1], num_classes),
        )
    )
