"""The layers of speedyresnet. Imports torch: import it inside a function."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

KERNEL = 2  # pixels a side of the patches that are whitened


class Whitening(nn.Module):
    """A convolution of 2 x 2 pixels by a filter that is set and not learnt, plus a bias that is learnt.

    The filter holds each direction and its negative, so that nothing is lost in the GELU that follows. Being a
    buffer, it is saved with the weights, and loaded without the data it came from.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        sums = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        basis = torch.kron(torch.eye(channels), torch.kron(sums, sums) / 2)  # orthonormal, of each channel alone
        self.weight: torch.Tensor
        self.register_buffer("weight", torch.cat([basis, -basis]).view(-1, channels, KERNEL, KERNEL))
        self.bias = nn.Parameter(torch.zeros(len(self.weight)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, 8 C, H - 1, W - 1)."""
        return F.conv2d(x, self.weight, self.bias)


class BiasNorm(nn.BatchNorm2d):
    """Batch normalisation with a bias and no weight: the scale of a channel is left to the next convolution."""

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__(channels, momentum=1 - momentum)  # PyTorch's momentum is what is forgotten
        del self.weight
        # Kernels of cuDNN want a weight.
        self.register_buffer("weight", torch.ones(channels), persistent=False)


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` times the constant."""
        return x * self.by

    def extra_repr(self) -> str:
        """The constant, so that two architectures print alike only if they are."""
        return f"{self.by}"


def identity_convolution(channels: int, out: int) -> nn.Conv2d:
    """3 x 3, without bias: the first filters pass their channel on unchanged, those beyond `channels` are random."""
    convolution = nn.Conv2d(channels, out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:channels])
    return convolution
