"""The loss of a language model, and its gradient, without ever holding the logits of a batch. Imports torch.

Of most causal models the logits are one product of the last hidden states with the vocabulary. It is computed for a
few hundred tokens at a time, of tokens that are predicted only, and what comes of them is kept: their losses, and the
gradient (softmax minus one-hot) of the hidden states. Logits, log-probabilities and their gradients of a whole batch
are the largest arrays of a training step otherwise: with GPT-2's vocabulary, 200 kB a token each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.rng import stream
from trainers import loop
from trainers.text import losses, predicted

AT_ONCE = 256  # tokens whose logits are held at once on a CPU: of small vocabularies they stay in its cache
ENTRIES = 1 << 27  # of logits held at once on other devices


@dataclass(frozen=True)
class Head:
    """A causal model in two parts: what gives the hidden states, and the product that makes logits of them."""

    body: Callable[..., Any]
    layer: nn.Linear

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """The last hidden states (B, T, d) of token ids (B, T)."""
        return self.body(input_ids=ids).last_hidden_state


@dataclass(frozen=True)
class TokenLoss:
    """The weighted loss of records' tokens, of a model that may have a head of its own."""

    network: Any
    head: Head | None
    autocast: Callable[[], torch.autocast]
    dtype: torch.dtype

    @classmethod
    def of(cls, network: Any, precision: str, device: torch.device, like: Any = None) -> TokenLoss:
        """like: a model of the same kind to try things on, if not the network itself."""
        apart = head_of(network if like is None else like) is not None
        inner = network.get_base_model() if hasattr(network, "get_base_model") else network
        head = Head(_body(inner), _layer(inner)) if apart else None
        return cls(network, head, loop.autocast(precision, device), loop.dtype_of(precision, device))

    def __call__(
        self, ids: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor, rows: Sequence[int]
    ) -> torch.Tensor:
        """The sum over records of weight times the sum of -log p of its tokens but the first; in float32.

        ids (R, T), of which lengths (R,) are the records' own; weights (R,).
        rows: how many of the records are computed without regard to the others; their sum is R.
        """
        if self.head is None:
            with self.autocast():
                logits = self.network(input_ids=ids).logits
            return (losses(logits, ids, lengths).sum(1) * weights).sum()
        with self.autocast():
            hidden = self.head.hidden(ids)
        own = predicted(ids, lengths)
        tokens, counts = ids[:, 1:][own], lengths - 1
        parts = [int(part.sum()) for part in counts.split(list(rows))]
        weight = weights.repeat_interleave(counts)
        return token_losses(hidden[:, :-1][own], self.head.layer, tokens, weight, parts, self.dtype)[0]


@torch.no_grad()
def head_of(network: Any) -> Head | None:
    """The two parts of a model, if its logits are nothing but the product of the one with the other, bit for bit.

    Tried on a few tokens, in the mode that the model is in: what scales or caps its logits is found out so.
    """
    inner = network.get_base_model() if hasattr(network, "get_base_model") else network
    layer, body = _layer(inner), _body(inner)
    if type(layer) is not nn.Linear or body is None or layer.out_features < 4:
        return None
    head, device = Head(body, layer), layer.weight.device
    ids = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]], device=device)
    found = []
    for logits in (lambda: network(input_ids=ids).logits, lambda: layer(head.hidden(ids))):
        with loop.seeded(stream(0, "probe"), device):  # the same dropout
            try:
                found.append(logits())
            except (AttributeError, TypeError, ValueError, RuntimeError):
                return None
    return head if torch.equal(*found) else None


def _body(inner: Any) -> Any:
    return getattr(inner, getattr(inner, "base_model_prefix", "") or "?", None)


def _layer(inner: Any) -> Any:
    find = getattr(inner, "get_output_embeddings", None)
    return find() if find is not None else None


def token_losses(
    hidden: torch.Tensor,
    layer: nn.Linear,
    tokens: torch.Tensor,
    weights: torch.Tensor,
    parts: Sequence[int],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over tokens of weight times -log p, and -log p of each (N,), which has no gradient; in float32.

    hidden (N, d): before each of `tokens` (N,), which weigh `weights` (N,).
    parts: how many tokens are computed without regard to the others; their sum is N.
    dtype: of the products; the softmax is float32.
    """
    return _Losses.apply(hidden, layer.weight, layer.bias, tokens, weights, parts, dtype)  # ty: ignore


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, tokens, weights, parts, dtype):
        needed = ctx.needs_input_grad[:3]
        w, x = weight.to(dtype), hidden.to(dtype)
        b = None if bias is None else bias.to(dtype)
        each = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if needed[0] else None
        of_weight = torch.zeros_like(weight) if needed[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and needed[2] else None
        for own in _cut(parts, len(weight), hidden.device):
            z = torch.mm(x[own], w.T) if b is None else torch.addmm(b, x[own], w.T)
            log_p, token = torch.log_softmax(z.float(), 1), tokens[own, None]
            each[own] = -log_p.gather(1, token).squeeze(1)
            if not any(needed):
                continue
            slope = log_p.exp_()
            slope.scatter_add_(1, token, torch.full_like(token, -1, dtype=slope.dtype))
            scale = weights[own, None]
            if of_hidden is not None:
                of_hidden[own] = torch.mm(slope.to(dtype), w) * scale
            if of_weight is not None:
                of_weight += torch.mm(slope.to(dtype).T, (x[own] * scale).to(dtype))
            if of_bias is not None:
                of_bias += (slope * scale).sum(0)
        ctx.slopes = of_hidden, of_weight, of_bias
        ctx.mark_non_differentiable(each)
        return (each * weights).sum(), each

    @staticmethod
    def backward(ctx: Any, slope, _):
        return (*(None if one is None else one * slope for one in ctx.slopes), None, None, None, None)


def _cut(parts: Sequence[int], vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Runs of tokens, none of two parts."""
    most = AT_ONCE if device.type == "cpu" else max(ENTRIES // vocabulary, AT_ONCE)
    start = 0
    for part in parts:
        for first in range(start, start + part, most):
            yield slice(first, min(first + most, start + part))
        start += part
