"""What a language model says of texts. Imports torch: import it inside a function.

Padding is told from tokens by its position, never by its id, which may be that of a real token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from trainers.resident import Resident

LOGITS_AT_ONCE = 1 << 26


def losses(logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """-log p of every token but the first of each record (B, T - 1), in float32; 0 where there is only padding."""
    of_all = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return of_all.view(len(ids), -1) * predicted(ids, lengths)


def predicted(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which of the tokens after the first are a record's own (B, T - 1)."""
    return torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]


def batches_by_length(
    data: Resident, index: np.ndarray | None, batch_size: int, vocabulary: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(index (b,), ids (b, T) int64, lengths (b,)) of the indexed records (of all, if None), the shortest first.

    At most `batch_size` records, and fewer where the logits of so many would not fit into a quarter of a gigabyte.
    """
    assert data.lengths is not None
    chosen = torch.arange(len(data)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    chosen = chosen.to(data.device)
    chosen = chosen[data.lengths[chosen].argsort(stable=True)]
    lengths = data.lengths[chosen].cpu().tolist()
    start = 0
    while start < len(chosen):
        stop = min(start + batch_size, len(chosen))
        while stop - start > 1 and (stop - start) * lengths[stop - 1] * vocabulary > LOGITS_AT_ONCE:
            stop = start + (stop - start) // 2
        batch = chosen[start:stop]
        yield batch, data.x[batch, : lengths[stop - 1]].long(), data.lengths[batch]
        start = stop


@torch.inference_mode()
def accuracy_and_loss(
    model: torch.nn.Module, data: Resident, index: np.ndarray | None = None, batch_size: int = 1000
) -> tuple[float, float]:
    """Share of tokens that the model had ranked first, and their mean loss in nats; first tokens are not predicted."""
    model.to(data.device).eval()
    totals = torch.zeros(3, dtype=torch.float64)
    for _, ids, lengths in batches_by_length(data, index, batch_size, model.config.vocab_size):
        logits = model(input_ids=ids).logits
        own = predicted(ids, lengths)
        right = (logits[:, :-1].argmax(-1) == ids[:, 1:]) & own
        totals += torch.stack([right.sum(), losses(logits, ids, lengths).sum(), own.sum()]).cpu()
    right, loss, count = totals.tolist()
    if not count:
        raise ValueError("accuracy of a model on no tokens: give at least one record")
    return right / count, loss / count
