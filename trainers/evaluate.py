"""What a trained model answers: logits, accuracy, and the confidence signals that attacks work on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from core.types import LOG_ODDS, Signal
from trainers.augment import views
from trainers.resident import Resident
from trainers.stack import by_onednn, has_onednn, layers_of, linear_layers

Index = torch.Tensor | np.ndarray | None
Queries = Literal[1, 2, 18]
Precision = Literal["float32", "bfloat16"]
PROBE = 64  # records on which the two precisions are compared
TOLERANCE = 0.1  # a log-odds s in bfloat16 is at most this times 1 + |s| away from float32's


def logits(
    model: torch.nn.Module,
    data: Resident,
    index: Index = None,
    *,
    batch_size: int = 1024,
    queries: Queries = 1,
    precision: Precision = "float32",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each batch of the indexed records (of all, if None): its indices (B,) and logits float32 (Q, B, C).

    The model moves to the data's device and stays in evaluation mode: a record's logits are its own. All queries
    of a batch are asked at once, `batch_size` of them: memory does not grow with their number.

    precision: of convolutions and products but those of the last linear layer, whose errors nothing would average out.
    """
    layout = torch.channels_last if data.is_image and data.device.type != "mps" else torch.contiguous_format
    model.to(data.device, memory_format=layout).eval()
    everything = index is None  # then batches are slices of what is stored, and nothing is gathered
    chosen = torch.arange(len(data)) if everything else torch.as_tensor(index, dtype=torch.int64)
    chosen, step = chosen.to(data.device), max(1, batch_size // queries)
    ask = _perceptron(model, data, getattr(torch, precision)) if queries == 1 else None
    ask = ask or partial(_answers, model, data, queries=queries, precision=precision)
    for start in range(0, len(chosen), step):
        batch = chosen[start : start + step]
        yield batch, ask(slice(start, start + step) if everything else batch)


# Not around the generator: while that is suspended, the mode would be its caller's.
@torch.inference_mode()
def _answers(
    model: torch.nn.Module, data: Resident, which: slice | torch.Tensor, queries: Queries, precision: Precision
) -> torch.Tensor:
    x = data.x[which]
    asked = data.normalised(x if queries == 1 else torch.cat(views(x, queries)))
    if precision == "float32":
        z = model(asked)
    else:
        with torch.autocast(data.device.type, torch.bfloat16), _float32_head(model):
            z = model(asked)
    return z.float().unflatten(0, (queries, len(x)))


@contextlib.contextmanager
def _float32_head(model: torch.nn.Module) -> Iterator[None]:
    """Within, the last linear layer, where the model ends with one, computes in float32 whatever autocast says."""
    *_, last = model.modules()
    if type(last) is not torch.nn.Linear:
        yield
        return

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), last.weight, last.bias)

    last.forward = forward  # shadows the method of the class
    try:
        yield
    finally:
        del last.forward


def _perceptron(
    model: torch.nn.Module, data: Resident, dtype: torch.dtype
) -> Callable[[slice | torch.Tensor], torch.Tensor] | None:
    """What asks a plain perceptron about features on a CPU; None for anything else.

    Rows that begin on a cache line, bias and activation within the product: faster than the module's own layers.
    """
    layers = layers_of(model) if data.is_plain and data.device.type == "cpu" else None
    if layers is None:
        return None
    rows, steps = data.flat(dtype), []
    width = rows.shape[1]
    for i, (layer, module) in enumerate(zip(layers, linear_layers(model), strict=True)):
        own = dtype if i + 1 < len(layers) else torch.float32
        weight = F.pad(module.weight.detach(), (0, width - layer.fan_in)).to(own)
        steps.append((weight, module.bias.detach().to(own), layer.activation))
        width = layer.fan_out
    # Where oneDNN is not the faster way: memory that is used again, and weights as (in, out).
    memory = cache(lambda i, count, kind: torch.empty(count, layers[i].fan_out, dtype=kind))
    turned = [None if has_onednn(weight.dtype) else weight.T.contiguous() for weight, *_ in steps]
    activate = {"tanh": torch.tanh_, "relu": torch.relu_, "": lambda x: x}

    @torch.inference_mode()
    def ask(which: slice | torch.Tensor) -> torch.Tensor:
        x = rows[which]
        for i, (weight, bias, activation) in enumerate(steps):
            x = x.to(weight.dtype)
            if turned[i] is None:
                x = by_onednn(x, weight, bias, activation)
            else:
                x = activate[activation](torch.addmm(bias, x, turned[i], out=memory(i, len(x), weight.dtype)))
        return x[None] if turned[-1] is None else x[None].clone()  # the next batch takes its memory

    return ask


def precision_for(model: torch.nn.Module, data: Resident, wanted: Precision) -> tuple[Precision, float]:
    """The precision to ask this model in, and how far its log-odds in bfloat16 are from float32's on a probe.

    bfloat16, if wanted, where each of the first `PROBE` records' log-odds s is within `TOLERANCE` (1 + |s|) of
    float32's; else float32. The distance is the greatest, as a multiple of 1 + |s|; 0 where nothing was asked.
    """
    if wanted == "float32":
        return wanted, 0.0
    index = torch.arange(min(PROBE, len(data)), device=data.device)
    exact, rounded = (
        signals(model, data, index, wanted=[LOG_ODDS], precision=kind)[0, 0].astype(np.float64)
        for kind in ("float32", "bfloat16")
    )
    apart = float((np.abs(rounded - exact) / (1 + np.abs(exact))).max(initial=0.0))
    return ("bfloat16" if apart <= TOLERANCE else "float32"), apart


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
    queries: Queries = 1,
    precision: Precision = "float32",
) -> np.ndarray:
    """The wanted signals of the indexed records, in their order: float32 (S, Q, N)."""
    count = len(data) if index is None else len(index)
    found = torch.empty(len(wanted), queries, count, device=data.device)  # copied to the host once, at the end
    start = 0
    options = {"batch_size": batch_size, "queries": queries, "precision": precision}
    for batch, z in logits(model, data, index, **options):
        labels, here = data.y[batch].expand(queries, -1).flatten(), found[:, :, start : start + len(batch)]
        here.copy_(signal_columns(z.flatten(0, 1), labels, wanted).view(here.shape))
        start += len(batch)
    return found.cpu().numpy()


def signal_columns(logits: torch.Tensor, labels: torch.Tensor, signals: Sequence[Signal]) -> torch.Tensor:
    """Each signal of `core.types.Signal` from logits (B, C) and labels (B,): float32 (S, B).

    In forms that neither overflow nor cancel. Log-odds s in the type of the logits: of float32 logits they are within
    1e-6 (1 + |s|) of exact, far less than another order of additions in the network changes. The others in float64.
    """
    if logits.device.type == "mps":  # has no float64
        return signal_columns(logits.cpu(), labels.cpu(), signals).to(logits.device)
    if logits.shape[1] < 2:
        raise ValueError(f"the confidence of a label needs at least 2 classes, got {logits.shape[1]}")
    z, label = logits if logits.dtype == torch.float64 else logits.float(), labels[:, None]
    return torch.stack([_signal(z, label, signal).float() for signal in signals])


def _signal(z: torch.Tensor, label: torch.Tensor, signal: Signal) -> torch.Tensor:
    if signal.kind == "log_odds":
        return _log_odds(z, label, signal.temperature)
    u = z.double() / signal.temperature
    if signal.kind == "taylor":
        return _taylor_log_odds(u, label, signal.margin, signal.order)
    if signal.kind == "modified_entropy":
        return -_log_modified_entropy(u, label)
    if signal.kind == "entropy":
        return -_log_entropy(u)
    if signal.kind == "hinge":
        return (u.gather(1, label) - u.scatter(1, label, -torch.inf).amax(1, keepdim=True)).squeeze(1)
    kinds = "log_odds, taylor, modified_entropy, entropy, hinge"
    raise ValueError(f"no signal is of kind {signal.kind!r}; there are: {kinds}")


def _log_odds(z: torch.Tensor, label: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """u_y - logsumexp_{j != y} u_j, u = z / temperature, from differences to the largest other logit."""
    others = z.scatter(1, label, -torch.inf)
    top = others.amax(1, keepdim=True)
    margin, others = (z.gather(1, label) - top).squeeze(1), others.sub_(top)
    if temperature != 1:
        margin, others = margin / temperature, others.div_(temperature)
    return margin - others.exp_().sum(1).log_()


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
    s = _class_log_odds(u)
    v = s.scatter(1, label, -s.gather(1, label))
    return (F.logsigmoid(v) + _log_softplus(v)).logsumexp(1)


def _log_entropy(u: torch.Tensor) -> torch.Tensor:
    """log of -sum_i p_i log p_i, with log p = logsigmoid(s) and -log p = softplus(-s) of each class's log-odds s."""
    s = _class_log_odds(u)
    return (F.logsigmoid(s) + _log_softplus(-s)).logsumexp(1)


def _class_log_odds(u: torch.Tensor) -> torch.Tensor:
    """log p - log(1 - p) of every class; the top one's from the others, because its p may round to 1."""
    top = u.argmax(1, keepdim=True)
    log_p = u - u.logsumexp(1, keepdim=True)
    s = log_p - torch.log1p(-log_p.exp().scatter(1, top, 0.0))
    return s.scatter(1, top, _log_odds(u, top)[:, None])


def _log_softplus(v: torch.Tensor) -> torch.Tensor:
    """log log(1 + e^v), which is v where e^v is small."""
    return torch.where(v < -40, v, F.softplus(v.clamp(min=-40)).log())
