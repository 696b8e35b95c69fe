"""Pretrained weights: read once a process, and shared by all that do not change them. Imports torch and transformers.

Adapters are put on a copy of the model's structure whose weights are the very tensors of the base: M fine-tuned
models cost one base and M adapters, in memory as on disk.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import UserError
from core.hub import offline, unreachable
from core.registry import MODELS

log = logging.getLogger(__name__)
ALSO = {"gpt2": ("openai-community/gpt2",)}  # other names under which a cache may hold a model


@cache
def config_of(name: str) -> Any:
    """The configuration of a causal language model. UserError if it is none, or cannot be found."""
    from transformers import AutoModelForCausalLM

    config = read("config", name)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        kind = getattr(config, "model_type", "of an unknown kind")
        raise UserError(f"model {name} is no causal language model ({kind}): use one that predicts the next token")
    return config


@cache
def digest_of(name: str) -> str | None:
    """sha256 of a model in a local directory; None of one of the hub, which its name tells."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return None
    found = hashlib.sha256()
    for file in sorted(file for kind in ("config.json", "*.safetensors", "*.bin") for file in path.glob(kind)):
        with open(file, "rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


@lru_cache(maxsize=1)
def base(name: str) -> nn.Module:
    """The pretrained model, in float32 on the CPU, for reading and copying. UserError if it looks ahead."""
    config_of(name)
    model = read("model", name).eval()
    model.config.use_cache = False
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]])
        here, there = model(input_ids=ids).logits
    change = (here - there).abs().amax(1)  # by position; only the last token is another
    if not change.isfinite().all():
        raise UserError(f"model {name} answers with numbers that are not finite: it did not train")
    if change[:3].max() > 1e-3 * change[3]:
        raise UserError(f"model {name} is not causal: what it says of a token depends on the tokens after it")
    return model


def fits(name: str, length: int, vocabulary: int) -> None:
    """UserError if the model cannot take so many tokens, or does not know them all."""
    config = config_of(name)
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise UserError(f"model {name} takes at most {context} tokens, the texts have up to {length}")
    if config.vocab_size < vocabulary:
        raise UserError(
            f"model {name} knows {config.vocab_size} tokens, the tokenizer has {vocabulary}: leave data.tokenizer and "
            "train.tokenizer out to use the model's own"
        )


def fresh(name: str, length: int, vocabulary: int) -> nn.Module:
    """A copy of the pretrained model to fine-tune."""
    fits(name, length, vocabulary)
    return copy.deepcopy(base(name)).requires_grad_(True)  # adapters on the base had frozen it


@lru_cache(maxsize=1)
def from_scratch(
    name: str, settings: tuple[tuple[str, Any], ...], input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """The base of a model without pretrained weights: drawn from its setting `base_seed`, or from 0."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(dict(settings).get("base_seed", 0))
        return MODELS[name](input_shape, num_classes, **dict(settings)).eval()


def sharing(model: nn.Module) -> nn.Module:
    """A copy of the model's structure whose weights are the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def read(what: str, name: str) -> Any:
    """The "config", "tokenizer" or "model" called `name`: a local directory, the hub's cache, or the hub.

    UserError, saying what to put where, if it is nowhere.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    loader: Callable[..., Any] = {
        "config": AutoConfig.from_pretrained,
        "tokenizer": AutoTokenizer.from_pretrained,
        "model": lambda name, **options: AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options),
    }[what]
    path = Path(name).expanduser()
    local = path.is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"model {name}: there is no such directory")
    with _quiet():
        for known in (str(path),) if local else (name, *ALSO.get(name, ())):
            try:
                with offline():
                    return loader(known, local_files_only=True, trust_remote_code=False)
            except Exception as error:  # the library raises whatever its readers raise
                if local:
                    message = str(error).strip().partition("\n")[0]
                    raise UserError(f"the {what} of {name} cannot be read: {message or type(error).__name__}") from None
        from huggingface_hub import constants

        reason = unreachable(f"{constants.ENDPOINT}/{name}")
        if not reason:
            try:
                return loader(name, trust_remote_code=False)
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
    raise UserError(
        f"the {what} of {name} is not on this machine, and cannot be downloaded: {reason}. Put the directory of the "
        "model (config.json, model.safetensors, tokenizer.json) somewhere, and name it: train.model_name hf:<path>; "
        "or run without it: --set train.model_name=gpt2_tiny"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and advice on stderr."""
    from transformers.utils import logging as theirs

    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error(), theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()
