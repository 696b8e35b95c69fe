"""Mirrored and shifted images, a batch at a time on its device, as a function of explicit draws.

Training draws one mirroring and one shift per image; LiRA queries a model with fixed ones
(Carlini et al. 2022, https://arxiv.org/abs/2112.03570, Sec. VI).
"""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch

# Nearest first: the identity, then the eight neighbours.
_SHIFTS = sorted(product((-1, 0, 1), repeat=2), key=lambda shift: (shift != (0, 0), shift))
QUERIES = tuple((dy, dx, mirrored) for dy, dx in _SHIFTS for mirrored in (False, True))


def mirror_and_shift(x: torch.Tensor, mirrored: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W), each mirrored left to right where told, then moved `dy` pixels down and `dx` right.

    mirrored (B,) bool; dy, dx (B,) int64. What moves in at a border is the image's reflection without its
    edge, as torch.nn.functional.pad(mode="reflect"). Any dtype; the result is channels_last.
    """
    count, channels, height, width = x.shape
    rows = _reflected(torch.arange(height, device=x.device) - dy[:, None], height)
    columns = _reflected(torch.arange(width, device=x.device) - dx[:, None], width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    image = torch.arange(count, device=x.device)[:, None, None]
    # One gather of whole pixels: several times faster than indexing rows and columns.
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    source = (image * height + rows[:, :, None]) * width + columns[:, None, :]
    return pixels.index_select(0, source.flatten()).view(count, height, width, channels).permute(0, 3, 1, 2)


def _reflected(position: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside 0 .. size - 1 folded back in at the borders; right for up to size - 1 outside."""
    position = position.abs()
    return (size - 1) - (size - 1 - position).abs()


def views(x: torch.Tensor, queries: Literal[1, 2, 18]) -> list[torch.Tensor]:
    """The queries of each record in `x`: itself; + its mirror image; mirror x shifts by {-1, 0, 1}².

    In the order of `QUERIES`, the first `queries` of it: the shift (0, 0) first, then the others row by row,
    each of them first as it is and then mirrored. So the sets are nested, and the identity is first.
    """
    if queries == 1:
        return [x]
    if x.ndim != 4:
        raise ValueError(
            f"only images can be mirrored and shifted, got records of shape {tuple(x.shape[1:])}: use 1 query"
        )
    if queries == 18 and min(x.shape[2:]) < 2:
        raise ValueError(f"images of {tuple(x.shape[2:])} pixels cannot be shifted: use 1 or 2 queries")

    def every(value: int | bool) -> torch.Tensor:
        return torch.full((len(x),), value, device=x.device)

    return [x, *(mirror_and_shift(x, every(flip), every(dy), every(dx)) for dy, dx, flip in QUERIES[1:queries])]
