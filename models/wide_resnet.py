"""Wide residual networks (Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from core.registry import MODELS
from models.shapes import image_shape

if TYPE_CHECKING:
    import torch

Norm = Literal["batch", "group"]


def wide_resnet(
    name: str, depth: int, width: int, norm: Norm, input_shape: tuple[int, ...], num_classes: int
) -> torch.nn.Module:
    """Three stages of residual blocks with 16, 32 and 64 times `width` channels; depth = 6 x blocks of a stage + 4."""
    from torch import nn

    from models.blocks import PreActivationBlock, normalisation

    channels, _, _ = image_shape(name, input_shape, at_least=4)
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    channels = 16
    for stage, out in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            layers.append(PreActivationBlock(channels, out, 2 if stage and not block else 1, norm))
            channels = out
    layers += [
        normalisation(norm, channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    ]
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*layers)))


@MODELS.register("wrn16-4", summary="wide residual network of depth 16, width 4: the model of DP-SGD", needs="image")
def wrn16_4(input_shape: tuple[int, ...], num_classes: int, *, norm: Norm = "batch") -> torch.nn.Module:
    """Wide residual network of depth 16 and width 4 (2.7 million weights), that of De et al. (2022) for DP-SGD.

    - norm: batch, or group (16 groups), which mixes no records: what DP-SGD needs
    """
    return wide_resnet("wrn16-4", 16, 4, norm, input_shape, num_classes)


@MODELS.register("wrn28-1", summary="wide residual network of depth 28, width 1", needs="image")
def wrn28_1(input_shape: tuple[int, ...], num_classes: int, *, norm: Norm = "batch") -> torch.nn.Module:
    """Wide residual network of depth 28 and width 1 (0.4 million weights).

    - norm: batch, or group (16 groups), which mixes no records: what DP-SGD needs
    """
    return wide_resnet("wrn28-1", 28, 1, norm, input_shape, num_classes)


@MODELS.register(
    "wrn28-2", summary="wide residual network of depth 28, width 2: the model of the LiRA paper", needs="image"
)
def wrn28_2(input_shape: tuple[int, ...], num_classes: int, *, norm: Norm = "batch") -> torch.nn.Module:
    """Wide residual network of depth 28 and width 2 (1.5 million weights), the model of the LiRA paper.

    - norm: batch, or group (16 groups), which mixes no records: what DP-SGD needs
    """
    return wide_resnet("wrn28-2", 28, 2, norm, input_shape, num_classes)


@MODELS.register("wrn28-10", summary="wide residual network of depth 28, width 10", needs="image")
def wrn28_10(input_shape: tuple[int, ...], num_classes: int, *, norm: Norm = "batch") -> torch.nn.Module:
    """Wide residual network of depth 28 and width 10 (36.5 million weights).

    - norm: batch, or group (16 groups), which mixes no records: what DP-SGD needs
    """
    return wide_resnet("wrn28-10", 28, 10, norm, input_shape, num_classes)
