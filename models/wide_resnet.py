"""Wide residual networks of depth 28 (Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from core.registry import MODELS
from models.shapes import image_shape

if TYPE_CHECKING:
    import torch

BLOCKS = 4  # per stage; depth 28 = 6 * BLOCKS + 4


def wide_resnet(name: str, width: int, input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """Three stages of residual blocks with 16, 32 and 64 times `width` channels."""
    from torch import nn

    from models.blocks import PreActivationBlock

    channels, _, _ = image_shape(name, input_shape, at_least=4)
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    channels = 16
    for stage, out in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range(BLOCKS):
            layers.append(PreActivationBlock(channels, out, stride=2 if stage and not block else 1))
            channels = out
    layers += [
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    ]
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*layers)))


@MODELS.register("wrn28-1", summary="wide residual network of depth 28, width 1", needs="image")
def wrn28_1(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """Wide residual network of depth 28 and width 1 (0.4 million weights)."""
    return wide_resnet("wrn28-1", 1, input_shape, num_classes)


@MODELS.register(
    "wrn28-2", summary="wide residual network of depth 28, width 2: the model of the LiRA paper", needs="image"
)
def wrn28_2(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """Wide residual network of depth 28 and width 2 (1.5 million weights), the model of the LiRA paper."""
    return wide_resnet("wrn28-2", 2, input_shape, num_classes)


@MODELS.register("wrn28-10", summary="wide residual network of depth 28, width 10", needs="image")
def wrn28_10(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """Wide residual network of depth 28 and width 10 (36.5 million weights)."""
    return wide_resnet("wrn28-10", 10, input_shape, num_classes)
