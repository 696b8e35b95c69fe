"""Records that live on the device: a batch is an index, with no worker processes and no copies from the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

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
    rows: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, repr=False)  # see `flat`

    @classmethod
    def of(cls, records: Records, mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> Resident:
        """The records on `device`, to be normalised with these constants per channel (or one for all)."""
        x, y = torch.tensor(records.x).to(device), torch.tensor(records.y).to(device)
        image = x.ndim == 4
        trailing = (-1, 1, 1) if image else (-1,)
        constants = (torch.tensor(values, dtype=torch.float32).reshape(trailing) for values in (mean, std))
        lengths = None if records.lengths is None else torch.tensor(records.lengths).to(device)
        data = cls(x, y, *(values.to(device) for values in constants), lengths)
        if image:
            # Pixel by pixel in memory, so that gathered batches are channels_last already.
            return replace(data, x=x.contiguous(memory_format=torch.channels_last))
        if data.is_plain:
            rows = data.flat(torch.float32)
            return replace(data, x=rows[:, : x.shape[1]], rows={torch.float32: rows})  # one memory for both
        return data

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def is_image(self) -> bool:
        return self.x.ndim == 4

    @cached_property
    def is_plain(self) -> bool:
        """Whether models see the records as they are stored: float32 features that need no normalising."""
        as_stored = self.x.dtype == torch.float32 and self.x.ndim == 2
        return as_stored and not self.mean.any().item() and bool((self.std == 1).all())

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        """(x - mean) / std in float32: what models see of records in their stored type."""
        if self.is_plain:
            return x
        return x.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)

    def flat(self, dtype: torch.dtype) -> torch.Tensor:
        """All records as rows (n, features padded with zeros to a multiple of 16), as models see them; made once."""
        if dtype not in self.rows:
            features = math.prod(self.x.shape[1:])
            rows = torch.zeros(len(self), padded(features), dtype=dtype, device=self.device)
            for part in range(0, len(self), 4096):  # no second float32 copy of everything
                rows[part : part + 4096, :features] = self.normalised(self.x[part : part + 4096]).flatten(1)
            self.rows[dtype] = rows
        return self.rows[dtype]

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """The indexed records as models see them; images in channels_last memory."""
        return self.normalised(self.x[index])


def padded(features: int) -> int:
    """The next multiple of 16: that many float32 values are a cache line."""
    return -(-features // 16) * 16
