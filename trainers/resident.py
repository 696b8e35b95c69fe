"""Records that live on the device: a batch is an index, with no worker processes and no copies from the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from core.types import Records


@dataclass(frozen=True)
class Resident:
    """Records on a device in the type they are stored in: images uint8 (n, C, H, W), features float32 (n, d).

    Text is token ids int32 (n, L), of which the first `lengths` are a record's own.
    """

    x: torch.Tensor
    y: torch.Tensor  # int64 (n,)
    mean: torch.Tensor  # broadcasts against a batch, as does std
    std: torch.Tensor
    lengths: torch.Tensor | None = None  # int64 (n,), of text

    @classmethod
    def of(cls, records: Records, mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> Resident:
        """The records on `device`, to be normalised with these constants per channel (or one for all)."""
        x = torch.tensor(records.x)
        image = x.ndim == 4
        if image:
            # Pixel by pixel in memory, so that gathered batches are channels_last already.
            x = x.contiguous(memory_format=torch.channels_last)
        trailing = (-1, 1, 1) if image else (-1,)
        constants = (torch.tensor(values, dtype=torch.float32).reshape(trailing) for values in (mean, std))
        lengths = None if records.lengths is None else torch.tensor(records.lengths).to(device)
        of_all = (values.to(device) for values in constants)
        return cls(x.to(device), torch.tensor(records.y).to(device), *of_all, lengths)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def is_image(self) -> bool:
        return self.x.ndim == 4

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        """(x - mean) / std in float32: what models see of records in their stored type."""
        return x.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """The indexed records as models see them; images in channels_last memory."""
        return self.normalised(self.x[index])
