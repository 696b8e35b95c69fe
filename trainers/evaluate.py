"""What a trained model answers: logits, accuracy, and the confidence signals that attacks work on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from core.types import Signal
from trainers.augment import views
from trainers.resident import Resident

Index = torch.Tensor | np.ndarray | None


def logits(
    model: torch.nn.Module,
    data: Resident,
    index: Index = None,
    *,
    batch_size: int = 1024,
    queries: Literal[1, 2, 18] = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each batch of the indexed records (of all, if None): its indices (B,) and logits float32 (Q, B, C).

    The model moves to the data's device and stays in evaluation mode: a record's logits are its own.
    """
    layout = torch.channels_last if data.is_image and data.device.type != "mps" else torch.contiguous_format
    model.to(data.device, memory_format=layout).eval()
    chosen = torch.arange(len(data)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    for batch in chosen.to(data.device).split(batch_size):
        yield batch, _answers(model, data, batch, queries)


# Not around the generator: while that is suspended, the mode would be its caller's.
@torch.inference_mode()
def _answers(model: torch.nn.Module, data: Resident, batch: torch.Tensor, queries: Literal[1, 2, 18]) -> torch.Tensor:
    return torch.stack([model(data.normalised(view)).float() for view in views(data.x[batch], queries)])


def accuracy_and_loss(
    model: torch.nn.Module, data: Resident, index: Index = None, batch_size: int = 1024
) -> tuple[float, float]:
    """Share of records classified correctly, and their mean cross-entropy in nats."""
    correct, loss, count = torch.zeros((), device=data.device), torch.zeros((), device=data.device), 0
    for batch, z in logits(model, data, index, batch_size=batch_size):
        correct += (z[0].argmax(1) == data.y[batch]).sum()
        loss += F.cross_entropy(z[0], data.y[batch], reduction="sum")
        count += len(batch)
    if not count:
        raise ValueError("accuracy of a model on no records: give at least one")
    return correct.item() / count, loss.item() / count


def signals(
    model: torch.nn.Module,
    data: Resident,
    index: Index = None,
    *,
    wanted: Sequence[Signal],
    batch_size: int = 1024,
    queries: Literal[1, 2, 18] = 1,
) -> np.ndarray:
    """The wanted signals of the indexed records, in their order: float32 (S, Q, N)."""
    blocks = [
        torch.stack([signal_columns(of_query, data.y[batch], wanted) for of_query in z], dim=1).cpu()
        for batch, z in logits(model, data, index, batch_size=batch_size, queries=queries)
    ]
    return torch.cat(blocks, dim=2).numpy() if blocks else np.empty((len(wanted), queries, 0), dtype=np.float32)


def signal_columns(logits: torch.Tensor, labels: torch.Tensor, signals: Sequence[Signal]) -> torch.Tensor:
    """Each signal of `core.types.Signal` from logits (B, C) and labels (B,): float32 (S, B).

    Computed in float64 in forms that neither overflow nor cancel, and rounded once at the end.
    """
    if logits.device.type == "mps":  # has no float64
        return signal_columns(logits.cpu(), labels.cpu(), signals).to(logits.device)
    if logits.shape[1] < 2:
        raise ValueError(f"the confidence of a label needs at least 2 classes, got {logits.shape[1]}")
    z, label = logits.double(), labels[:, None]
    return torch.stack(
        [_signal(z if signal.temperature == 1 else z / signal.temperature, label, signal).float() for signal in signals]
    )


def _signal(u: torch.Tensor, label: torch.Tensor, signal: Signal) -> torch.Tensor:
    if signal.kind == "log_odds":
        return _log_odds(u, label)
    if signal.kind == "taylor":
        return _taylor_log_odds(u, label, signal.margin, signal.order)
    if signal.kind == "modified_entropy":
        return -_log_modified_entropy(u, label)
    raise ValueError(f"no signal is of kind {signal.kind!r}; there are: log_odds, taylor, modified_entropy")


def _log_odds(u: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """u_y - logsumexp_{j != y} u_j."""
    return u.gather(1, label).squeeze(1) - u.scatter(1, label, -torch.inf).logsumexp(1)


def _taylor_log_odds(u: torch.Tensor, label: torch.Tensor, margin: float, order: int) -> torch.Tensor:
    """log t(u_y - margin) - log sum_{j != y} t(u_j), t the exponential's Taylor polynomial of even `order`."""
    if order < 2 or order % 2:
        raise ValueError(f"a Taylor signal needs an even order of at least 2, got {order}: odd ones can be negative")

    def t(v: torch.Tensor) -> torch.Tensor:
        total = torch.ones_like(v)
        for i in range(order, 0, -1):  # Horner's scheme
            total = 1 + total * v / i
        return total

    return t(u.gather(1, label).squeeze(1) - margin).log() - t(u).scatter(1, label, 0.0).sum(1).log()


def _log_modified_entropy(u: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """log Mentr, Mentr = -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i) (Song & Mittal 2021, eq. 8).

    In the log-odds s_i of each class, p = sigmoid(s) and -log(1 - p) = softplus(s), so a term's logarithm is
    logsigmoid(s_i) + log softplus(s_i), with -s_y for the label: finite where p rounds to 0 or 1. The likeliest
    class, the only one with p > 1/2, takes s from the logsumexp of the others; the rest from log1p(-p).
    """
    top = u.argmax(1, keepdim=True)
    log_p = u - u.logsumexp(1, keepdim=True)
    # The top class's entry here is replaced: its p may round to 1.
    s = log_p - torch.log1p(-log_p.exp().scatter(1, top, 0.0))
    s = s.scatter(1, top, _log_odds(u, top)[:, None])
    v = s.scatter(1, label, -s.gather(1, label))
    log_softplus = torch.where(v < -40, v, F.softplus(v.clamp(min=-40)).log())
    return (F.logsigmoid(v) + log_softplus).logsumexp(1)
