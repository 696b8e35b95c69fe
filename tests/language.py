"""Language models small enough to be asked token by token in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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


def tiny_bert(path: Path, words: Sequence[str]) -> Path:
    """A BERT of two layers with random weights, whose vocabulary holds whole words and pieces of them."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    entries = [*special, *words, *letters, *(f"##{c}" for c in letters), ",", ";", ".", "!", "'", "-", "##ing"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", model_max_length=64, **names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        network = BertForMaskedLM(BertConfig(vocab_size=len(entries), max_position_embeddings=64, **sizes))
    network.save_pretrained(path)
    fast.save_pretrained(path)
    return path
