"""SpeedyResNet: the small convnet of the CIFAR speed records, for images of any size.

Not a residual network any more, but it is what the original tool's users call by this name. It descends from
hlb-CIFAR10 (Tysam& Balsam, https://github.com/tysam-code/hlb-CIFAR10) through airbench (Keller Jordan 2024,
"94% on CIFAR-10 in 3.29 seconds on a single GPU", https://arxiv.org/abs/2404.00498, MIT licence); written anew.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Interval

from core.registry import MODELS
from models.shapes import image_shape

if TYPE_CHECKING:
    import torch

Width = Annotated[int, Ge(1)]


@MODELS.register(
    "speedyresnet",
    summary="the convnet of the CIFAR speed records (airbench); trained by the trainer of that name",
    needs="image",
    trainer="speedyresnet",
)
def speedyresnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    widths: tuple[Width, Width, Width] = (64, 256, 256),
    norm_momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.6,
    output_scale: Annotated[float, Gt(0)] = 1 / 9,
) -> torch.nn.Module:
    """A whitening convolution, three groups of two convolutions, a linear layer, scaled logits.

    A group is: convolution, max pooling, normalisation, GELU, convolution, normalisation, GELU. Convolutions start
    as the identity on as many channels as they can. The whitening filter is no parameter but a buffer: its trainer
    sets it from the model's own training images; under other trainers it stays the Hadamard transform of 2 x 2
    pixels, which is a whitening of pixels that are white already. A side of one pixel is not pooled further, so
    small images are welcome.

    - widths: channels of the three groups
    - norm_momentum: share of batch normalisation's running statistics that a step keeps
    - output_scale: what the logits are multiplied by
    """
    from torch import nn

    from models.speedy_blocks import BiasNorm, Scale, Whitening, identity_convolution

    channels, height, width = image_shape("speedyresnet", input_shape, at_least=2)
    layers: OrderedDict[str, nn.Module] = OrderedDict(whiten=Whitening(channels), activation=nn.GELU())
    channels, height, width = 8 * channels, height - 1, width - 1
    for number, out in enumerate(widths, start=1):
        pool = (min(2, height), min(2, width))
        height, width = height // pool[0], width // pool[1]
        layers[f"group{number}"] = nn.Sequential(
            OrderedDict(
                conv1=identity_convolution(channels, out),
                pool=nn.MaxPool2d(pool),
                norm1=BiasNorm(out, norm_momentum),
                activation1=nn.GELU(),
                conv2=identity_convolution(out, out),
                norm2=BiasNorm(out, norm_momentum),
                activation2=nn.GELU(),
            )
        )
        channels = out
    layers["pool"] = nn.MaxPool2d((height, width))  # 3 x 3 for images of 32 x 32
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, num_classes, bias=False)
    layers["scale"] = Scale(output_scale)
    return nn.Sequential(layers)
