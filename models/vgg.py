"""VGG-16 (Simonyan & Zisserman 2015, configuration D) as is usual for CIFAR: one linear layer, batch normalisation."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from core.registry import MODELS
from models.shapes import image_shape

if TYPE_CHECKING:
    import torch

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions), with a pooling after each


@MODELS.register("vgg16", summary="13 convolutions with batch normalisation and one linear layer", needs="image")
def vgg16(input_shape: tuple[int, ...], num_classes: int, *, batch_norm: bool = True) -> torch.nn.Module:
    """13 convolutions, 5 poolings, one linear layer; `torchvision/vgg16_bn` is the ImageNet form.

    Images below 32 pixels a side are pooled as often as they can be halved.

    - batch_norm: normalise after each convolution; without it, use a learning rate of about 0.01
    """
    from torch import nn

    channels, height, width = image_shape("vgg16", input_shape, at_least=2)
    side = min(height, width)
    layers: list[nn.Module] = []
    for out, convolutions in STAGES:
        for _ in range(convolutions):
            # A bias before batch normalisation does nothing; it is there in the published counts and weights.
            layers.append(nn.Conv2d(channels, out, 3, padding=1))
            layers += [nn.BatchNorm2d(out)] if batch_norm else []
            layers.append(nn.ReLU())
            channels = out
        if side >= 2:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels, num_classes),
        )
    )
