"""ResNet-18 (He et al. 2016) with the stem that is usual for CIFAR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.registry import MODELS
from models.shapes import image_shape

if TYPE_CHECKING:
    import torch


@MODELS.register("resnet18", summary="residual network of 18 layers for small images", needs="image")
def resnet18(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """Residual network of 18 layers whose first convolution is 3 x 3 and keeps the size of the image.

    `torchvision/resnet18` is the ImageNet form, which shrinks the image fourfold at once.
    """
    from torch import nn
    from torchvision.models import resnet18 as imagenet_resnet18

    channels, _, _ = image_shape("resnet18", input_shape, at_least=4)
    model = imagenet_resnet18(weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as its other convolutions
    model.maxpool = nn.Identity()
    return model
