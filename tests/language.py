"""Language models small enough to be asked token by token in a test."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.rng import stream
from core.types import Records


def tiny_gpt2(seed: int = 0, vocabulary: int = 40, context: int = 64, scale: float = 0.5) -> Any:
    """A GPT-2 of two layers with random weights, large enough for its predictions to differ from token to token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": context}
    off = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, initializer_range=scale, **size, **off))
    return model.eval()


def texts(seed: int = 0, count: int = 12, longest: int = 30, vocabulary: int = 40, padding: int = 0) -> Records:
    """Random tokens in records of 2 to `longest`; what is beyond a record's length is `padding`."""
    draw = stream(seed, "tiny texts")
    lengths = draw.integers(2, longest + 1, count)
    lengths[:2] = 2, longest
    x = draw.integers(0, vocabulary, (count, longest)).astype(np.int32)
    x[np.arange(longest)[None] >= lengths[:, None]] = padding
    return Records(x, np.zeros(count, dtype=np.int64), lengths=lengths.astype(np.int64))
