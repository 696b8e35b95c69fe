"""Causal language models: a small GPT-2 of one's own, GPT-2, and any other in the format of Hugging Face.

A text model takes token ids (B, T), padded at the end, and gives an object whose `logits` are (B, T, V). Padding
needs no mask: what a causal model says of a token does not depend on later ones. That it is causal is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Interval

from core.errors import UserError
from core.registry import MODELS

if TYPE_CHECKING:
    import torch

Count = Annotated[int, Ge(1)]


def _own(name: str) -> str:
    """Where weights and tokenizer are: `gpt2` of `gpt2`, `./here` of `hf:./here`."""
    return name.partition(":")[2] or name


@MODELS.register(
    "gpt2_tiny",
    summary="a small GPT-2 with fresh weights, and a tokenizer trained on the texts",
    needs="text",
    kind="language",
    trainer="transformer",
)
def gpt2_tiny(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: Count = 64,
    layers: Count = 2,
    heads: Count = 2,
    context: Annotated[int, Ge(2)] = 64,
    vocab_size: Annotated[int, Ge(256)] = 1000,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    base_seed: Annotated[int, Ge(0)] = 0,
) -> torch.nn.Module:
    """A GPT-2 of a size that a CPU trains in seconds. Needs nothing from anywhere.

    - width: of the residual stream; a multiple of `heads`
    - layers: transformer blocks
    - heads: attention heads of a block
    - context: the most tokens of a text it can take
    - vocab_size: of the tokenizer that is trained on the texts, unless data.tokenizer names another
    - dropout: share of activations dropped while training
    - base_seed: decides the frozen weights under adapters (train.peft), which are the same for all models
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if width % heads:
        raise ValueError(f"model gpt2_tiny: width {width} is not a multiple of its {heads} heads")
    shape = GPT2Config(
        vocab_size=num_classes,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel
    )
    return GPT2LMHeadModel(shape)


@MODELS.register(
    "gpt2",
    summary="GPT-2 (124 million weights, download)",
    needs="text",
    kind="language",
    trainer="transformer",
    pretrained=_own,
)
def gpt2(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """GPT-2 as published (Radford et al. 2019), to be fine-tuned: from the hub's cache, or downloaded once.

    A copy in a directory of yours is `hf:<path>`.
    """
    from models.pretrained import fresh

    return fresh("gpt2", input_shape[0], num_classes)


@MODELS.register(
    "hf:*",
    summary="any causal language model of the hub or in a local directory, e.g. hf:distilgpt2, hf:./my_model",
    needs="text",
    kind="language",
    trainer="transformer",
    pretrained=_own,
)
def hugging_face(input_shape: tuple[int, ...], num_classes: int, name: str) -> torch.nn.Module:
    """A pretrained causal language model, to be fine-tuned. Code that comes with a model is never run."""
    from models.pretrained import fresh

    return fresh(name, input_shape[0], num_classes)


def pretrained(name: str) -> str | None:
    """Where the weights and the tokenizer of a registered model are; None if it is made from scratch."""
    where = MODELS.fact(name, "pretrained")
    return where(name) if where else None


def context_of(name: str, settings: Mapping[str, Any]) -> int | None:
    """The most tokens that this model can take; None if it sets no limit. UserError if there is no such model."""
    source = pretrained(name)
    if source is None:
        return settings.get("context")
    from models.pretrained import config_of

    return getattr(config_of(source), "max_position_embeddings", None)


def tokenizer_json(name: str) -> str:
    """The tokenizer of a model of the hub, or in a local directory, as the library `tokenizers` writes it."""
    from models.pretrained import read

    tokenizer = read("tokenizer", name)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"the tokenizer of {name} is not of the library tokenizers: it has no tokenizer.json")
    return backend.to_str()


def shared_base(
    name: str, settings: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int
) -> torch.nn.Module:
    """The frozen model that adapters are put on: one in the process, the same for every model of a run."""
    from models.pretrained import base, fits, from_scratch

    source = pretrained(name)
    if source is None:
        return from_scratch(name, tuple(sorted(settings.items())), input_shape, num_classes)
    fits(source, input_shape[0], num_classes)
    return base(source)
