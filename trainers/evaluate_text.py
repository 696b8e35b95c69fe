"""What a language model answers: per token log-probability, moments and rank, and the log-odds of sequences.

Padding is at the end, behind what a causal model sees of a record's own tokens, and is cut away by position: it
changes nothing but the rounding of batched matrix products. Asked alone or in any batch, a record's signals agree
within 1e-4 (of a float32 model on a CPU; tests/trainers/test_evaluate_text.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from core.types import Signal
from trainers.evaluate import signal_columns
from trainers.resident import Resident

LOGITS = 2**25  # entries of the logits of one forward pass, unless a single record has more: 128 MB in float32
WORKED_ON = 2**23  # of these at a time, while they are turned into signals
SMALLEST = -1e4  # log-probabilities that float32 holds as 0 count as this in the moments, where their weight is 0


def text_signals(
    model: torch.nn.Module,
    data: Resident,
    index: np.ndarray | None = None,
    *,
    wanted: Sequence[Signal],
    batch_size: int = 1024,
) -> dict[Signal, np.ndarray]:
    """The wanted signals of the indexed records, in their order: float32 (1, N), or (1, U) of a signal per token.

    One forward pass over batches of like lengths gives them all; at most `batch_size` records a batch.
    """
    rows = _rows(data, index)
    lengths = np.array([len(row) - 1 for row in rows], dtype=np.int64)
    start = np.concatenate([[0], np.cumsum(lengths)])
    found = {s: np.empty(start[-1] if s.per_token else len(rows), dtype=np.float32) for s in wanted}
    for batch, z, tokens in _answers(model, rows, batch_size):
        of_token = _in_pieces(z, tokens, wanted)
        at = np.cumsum([0, *lengths[batch]])
        for signal, values in of_token.items():
            for place, record in enumerate(batch):
                own = values[at[place] : at[place + 1]]
                if signal.per_token:
                    found[signal][start[record] : start[record + 1]] = own
                else:
                    found[signal][record] = own.mean() if signal.is_mean else log_odds(own.mean())
    return {signal: column[None] for signal, column in found.items()}


def log_odds(log_p: np.ndarray | float) -> np.ndarray | float:
    """log p - log(1 - p) of a log-probability, to full precision near p = 0 and p = 1."""
    log_p = np.minimum(log_p, -np.finfo(np.float64).tiny)
    return log_p - np.log(-np.expm1(log_p))


def _rows(data: Resident, index: np.ndarray | None) -> list[torch.Tensor]:
    """Each record's own tokens."""
    chosen = range(len(data)) if index is None else np.asarray(index).tolist()
    lengths = data.lengths.tolist()
    return [data.x[i, : lengths[i]].long() for i in chosen]


# Not around the generator: while that is suspended, the mode would be its caller's.
@torch.inference_mode()
def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits


def _answers(
    model: torch.nn.Module, rows: Sequence[torch.Tensor], batch_size: int
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Batches of like lengths: which rows, the logits (u, V) before each of their predicted tokens, and these (u,).

    The tokens of a batch's rows follow each other. No record alone is a batch of more logits than its own.
    """
    model.eval()
    device = next(model.parameters()).device
    for batch in batches([len(row) for row in rows], batch_size, vocabulary_of(model)):
        ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in batch], batch_first=True).to(device)
        lengths = torch.tensor([len(rows[i]) for i in batch], device=device)
        own = torch.arange(1, ids.shape[1], device=device)[None] < lengths[:, None]
        yield batch, _logits(model, ids)[:, :-1][own], ids[:, 1:][own]


def batches(lengths: Sequence[int] | np.ndarray, batch_size: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Records sorted by length and cut where a batch would exceed `batch_size` records or `LOGITS`."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    for last in range(1, len(order) + 1):
        full = last == len(order) or last - first == batch_size
        if full or (last - first + 1) * lengths[order[last]] * vocabulary > LOGITS:
            yield order[first:last]
            first = last


def vocabulary_of(model: torch.nn.Module) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _in_pieces(z: torch.Tensor, tokens: torch.Tensor, wanted: Sequence[Signal]) -> dict[Signal, np.ndarray]:
    """float64 (u,) of each signal, of the tokens; the log-probability of each where sequences are asked for."""
    rows = max(WORKED_ON // z.shape[1], 1)
    pieces = [token_columns(*piece, wanted) for piece in zip(z.split(rows), tokens.split(rows), strict=True)]
    return {signal: np.concatenate([piece[signal] for piece in pieces]) for signal in wanted}


@torch.inference_mode()
def token_columns(z: torch.Tensor, tokens: torch.Tensor, wanted: Sequence[Signal]) -> dict[Signal, np.ndarray]:
    """From logits (u, V) before tokens (u,): float64 (u,) of each signal; of sequence log-odds, the token's log p.

    Softmax and its moments in float32. log p is logsigmoid of the token's log-odds, which does not round to 0
    where the model is sure.
    """
    z, own = z.float(), tokens[:, None]
    found: dict[Signal, torch.Tensor] = {}
    kinds = {signal.kind for signal in wanted}
    if kinds & {"token_mean", "token_variance"}:
        log_p = z.log_softmax(1).clamp(min=SMALLEST)
        p = log_p.exp()
        mean = (p * log_p).sum(1)
    for signal in wanted:
        if signal.kind == "token_log_p" or signal == Signal():
            odds = z.gather(1, own).squeeze(1) - z.scatter(1, own, -torch.inf).logsumexp(1)
            found[signal] = F.logsigmoid(odds.double())
        elif signal.kind == "token_mean":
            found[signal] = mean
        elif signal.kind == "token_variance":
            found[signal] = (p * (log_p - mean[:, None]).square()).sum(1)  # mean(x^2) - mean(x)^2 would cancel
        elif signal.kind == "token_rank":
            found[signal] = (z > z.gather(1, own)).sum(1)
        elif signal.is_mean:
            found[signal] = signal_columns(z, tokens, [signal])[0]
        elif signal.of_population:
            found[signal] = F.logsigmoid(signal_columns(z, tokens, [signal])[0].double())
        else:
            raise ValueError(f"one forward pass gives no signal of kind {signal.kind!r}")
    return {signal: column.double().cpu().numpy() for signal, column in found.items()}


def mean_log_p(
    model: torch.nn.Module, rows: Sequence[torch.Tensor], counted: Sequence[int], *, batch_size: int = 1024
) -> np.ndarray:
    """float64 (n,): the mean log-probability of the last `counted` tokens of each row of token ids."""
    found = np.empty(len(rows))
    for batch, z, tokens in _answers(model, rows, batch_size):
        log_p = _in_pieces(z, tokens, [Signal()])[Signal()]
        ends = np.cumsum([len(rows[i]) - 1 for i in batch])
        for record, end in zip(batch, ends, strict=True):
            found[record] = log_p[end - counted[record] : end].mean()
    return found


def prefixed_log_odds(
    model: torch.nn.Module,
    data: Resident,
    index: np.ndarray,
    prefix: torch.Tensor,
    *,
    context: int,
    batch_size: int = 1024,
) -> np.ndarray:
    """float32 (1, N): the log-odds of each record's predicted tokens where `prefix` was read before it.

    The tokens counted are those of the sequence alone, all but the first. A prefix that does not fit into the
    `context` beside a record loses its beginning.
    """
    rows = _rows(data, index)
    prefix = prefix.to(data.x.device).long()
    longer = [torch.cat([prefix[max(len(prefix) + len(row) - context, 0) :], row]) for row in rows]
    mean = mean_log_p(model, longer, [len(row) - 1 for row in rows], batch_size=batch_size)
    return np.asarray(log_odds(mean), dtype=np.float32)[None]


def gradient_norms(model: torch.nn.Module, data: Resident, index: np.ndarray, *, p: float) -> np.ndarray:
    """float32 (1, N): mean over the trainable parameter tensors of the p-norm of the gradient of a record's mean loss.

    Of a model with adapters, the adapters are what is trainable. One backward pass a record.
    """
    model.eval()
    device = next(model.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = np.empty(len(index), dtype=np.float32)
    for place, row in enumerate(_rows(data, index)):
        with torch.enable_grad():
            z = model(input_ids=row[None].to(device)).logits[0, :-1].float()
            loss = F.cross_entropy(z, row[1:].to(device))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norms = [gradient.norm(p) for gradient in gradients if gradient is not None]
        found[place] = torch.stack(norms).mean().item()
    return found[None]


def divergences(
    target: torch.nn.Module,
    references: Sequence[torch.nn.Module],
    data: Resident,
    index: np.ndarray,
    out: np.ndarray,
    *,
    batch_size: int = 1024,
) -> np.ndarray:
    """float32 (1, U): KL(p_ref || p) before each predicted token, p_ref the mean distribution of its references.

    out: (R, N) bool, which references count for which record; at least one each.
    """
    rows = _rows(data, index)
    lengths = np.array([len(row) - 1 for row in rows], dtype=np.int64)
    start = np.concatenate([[0], np.cumsum(lengths)])
    found = np.empty((1, start[-1]), dtype=np.float32)
    asked = [_answers(model, rows, batch_size) for model in (target, *references)]
    for batch, z, _ in asked[0]:
        weights = torch.as_tensor(np.repeat(out[:, batch], lengths[batch], axis=1), device=z.device).float()
        p_ref = torch.zeros_like(z, dtype=torch.float32)
        for weight, answers in zip(weights / weights.sum(0), asked[1:], strict=True):
            p_ref += weight[:, None] * next(answers)[1].float().softmax(1)
        log_ratio = p_ref.log().clamp(min=SMALLEST) - z.float().log_softmax(1).clamp(min=SMALLEST)
        values = (p_ref * log_ratio).sum(1).clamp(min=0).cpu().numpy()
        at = np.cumsum([0, *lengths[batch]])
        for place, record in enumerate(batch):
            found[0, start[record] : start[record + 1]] = values[at[place] : at[place + 1]]
    return found
