"""Building blocks that are classes. Imports torch: import it inside a function."""

from __future__ import annotations

import torch
from torch import nn


def normalisation(kind: str, channels: int) -> nn.Module:
    """Batch normalisation, or group normalisation in 16 groups, which mixes no records (Wu & He 2018).

    Batch normalisation forgets at PyTorch's momentum 0.1, which is 0.9 in the convention of objax.
    """
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(16, channels)


class PreActivationBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), the block of wide residual networks (He et al. 2016b)."""

    def __init__(self, channels: int, out: int, stride: int, norm: str = "batch") -> None:
        super().__init__()
        self.norm_1 = normalisation(norm, channels)
        self.conv_1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm_2 = normalisation(norm, out)
        self.conv_2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        resized = channels != out or stride > 1
        self.proj_conv = nn.Conv2d(channels, out, 1, stride=stride, bias=False) if resized else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output, a `stride`-th of the size of `x`."""
        first = torch.relu(self.norm_1(x))
        second = torch.relu(self.norm_2(self.conv_1(first)))
        return self.conv_2(second) + (x if self.proj_conv is None else self.proj_conv(first))
