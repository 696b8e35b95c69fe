"""Fine-tuning of language models: whole models one by one, LoRA adapters in stacks on one frozen base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool
from numpy import ndarray as Array
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from core.errors import UserError
from core.registry import TRAINERS

if TYPE_CHECKING:
    import torch

    from trainers.resident import Resident


class Lora(BaseModel):
    """The settings of `train.peft` with type lora (Hu et al. 2021)."""

    model_config = ConfigDict(extra="forbid")
    type: str
    r: Annotated[int, Ge(1)] = 8
    alpha: Annotated[float, Gt(0)] = 8
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    target_modules: list[str] | str | None = None
    fan_in_fan_out: bool | None = None  # found out from the model; a key of the original tool
    use_rslora: bool = False


def _peft(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of adapters, checked and completed; those of types other than LoRA are checked by PEFT."""
    if not isinstance(given.get("type"), str):
        raise ValueError("needs a type, e.g. {type: lora, r: 8}")
    kind = {**given, "type": given["type"].lower()}
    if kind["type"] != "lora":
        return kind
    try:
        return Lora(**kind).model_dump()
    except ValidationError as error:
        raise ValueError("; ".join(_mistake(item) for item in error.errors())) from None


def _mistake(item: Mapping[str, Any]) -> str:
    key = str(item["loc"][0])
    if item["type"] != "extra_forbidden":
        return f"{key}: {item['msg'].replace('Input should', 'should')}, got {item['input']!r}"
    near = get_close_matches(key, Lora.model_fields)
    return f"unknown key {key!r}; " + (
        f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(Lora.model_fields)}"
    )


def _spelling(name: object) -> object:
    """The library transformers calls it adamw_torch, and has variants that differ in speed only."""
    return "AdamW" if str(name).casefold() in ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf") else name


@TRAINERS.register(
    "transformer",
    summary="fine-tuning of language models: whole, or LoRA and other adapters",
    kind="language",
    stack=lambda settings: 8 if settings["peft"] else 1,
)
def transformer(
    models: list[torch.nn.Module],
    data: Resident,
    members: Bool[Array, "G D"],
    streams: Sequence[np.random.Generator],
    *,
    epochs: Annotated[int, Ge(1)],
    learning_rate: Annotated[float, Gt(0)],
    batch_size: Annotated[int, Ge(1)] = 8,
    gradient_accumulation_steps: Annotated[int, Ge(1)] = 1,
    optimizer: Annotated[Literal["AdamW"], BeforeValidator(_spelling)] = "AdamW",
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    schedule: Literal["linear", "cosine", "constant"] = "linear",
    warmup_epochs: Annotated[float, Ge(0)] = 0.0,
    clip_norm: Annotated[float, Gt(0)] | None = 1.0,
    gradient_checkpointing: bool = False,
    auto_find_batch_size: bool = False,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    peft: Annotated[dict[str, Any], AfterValidator(_peft)] | None = None,
) -> list[torch.nn.Module]:
    """Train each model on its members to predict the next token; the trained models are in evaluation mode.

    Every epoch visits every member once, in batches of about the same length. The loss is the mean over the tokens
    of a step; padding and the first token of a record are not predicted. With `peft`, only adapters train, on a base
    that all models share: LoRA adapters several at a time, each with its own batches, optimizer and clipping.
    UserError where training diverges, with the epoch it happened in.

    - epochs: passes over the members
    - learning_rate: the peak of the schedule, reached at the end of the warm-up
    - batch_size: records per batch
    - gradient_accumulation_steps: batches per step of the optimizer
    - optimizer: AdamW
    - weight_decay: decoupled; not on biases and normalisations
    - schedule: after the warm-up, down to zero in a line or along a half cosine; or constant
    - warmup_epochs: the learning rate rises linearly over these
    - clip_norm: longer gradients are scaled down to this norm
    - gradient_checkpointing: compute activations twice instead of keeping them: slower, in less memory
    - auto_find_batch_size: compute half as many records at once, and half again, until they fit; steps stay the same
    - precision: auto is bfloat16 (autocast) on CUDA devices that support it, float32 elsewhere
    - peft: adapters, e.g. {type: lora, r: 8, alpha: 16, dropout: 0, target_modules: [c_attn]}; other types of PEFT by
      name, with PEFT's keys
    """
    from trainers import multi_lora, transformer_loop

    if members.shape != (len(models), len(data)) or len(streams) != len(models):
        raise ValueError(f"{len(models)} models of {len(data)} records, with members of shape {members.shape}")
    if data.lengths is None:
        raise UserError("the trainer transformer needs texts: use another train.model_name")
    if not members.any(axis=1).all():
        raise UserError(f"model {members.any(axis=1).argmin()} of the stack has no records to train on: use more data")
    if warmup_epochs > epochs:
        raise UserError(f"train.warmup_epochs {warmup_epochs:g} is more than train.epochs {epochs}")
    recipe = transformer_loop.Recipe(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        accumulation=gradient_accumulation_steps,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup_epochs=warmup_epochs,
        clip_norm=clip_norm,
        checkpointing=gradient_checkpointing,
        halving=auto_find_batch_size,
        precision=precision,
    )
    try:
        if peft and multi_lora.stackable(models):
            multi_lora.train(models, data, members, streams, recipe)
        else:
            for number, (model, member, rng) in enumerate(zip(models, members, streams, strict=True)):
                transformer_loop.train(model, data, member, rng, recipe, number)
    except transformer_loop.Diverged as diverged:
        raise UserError(
            f"training diverged: model {diverged.number} of a stack of {len(models)}, epoch {diverged.epoch} of "
            f"{epochs}, train.learning_rate {learning_rate:g}. Lower it, or raise train.warmup_epochs"
        ) from None
    return models
