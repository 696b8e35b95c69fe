"""Adapters (LoRA and other kinds of PEFT) on a shared, frozen base. Imports torch and peft."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from typing import Any

from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load, save
from torch import nn
from transformers.pytorch_utils import Conv1D

from core.errors import UserError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as PEFT names them


def adapted(base: nn.Module, peft: Mapping[str, Any]) -> PeftModel:
    """Fresh adapters, the only weights that train, on a copy of `base` whose tensors are those of `base`.

    UserError if PEFT knows no such adapters, or the model has none of the modules they are for.
    """
    from models.pretrained import sharing

    try:
        config = _config(base, peft)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(sharing(base), config)
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        layers = sorted({name.rpartition(".")[2] for name, module in base.named_modules() if _adaptable(module)})
        asks = "arget modules" in str(error) or "target_modules" in str(error)
        hint = f". Its layers are {', '.join(layers)}; `all-linear` names all but the last" if asks else ""
        raise UserError(f"adapters of type {peft['type']}: {str(error).rstrip('.')}{hint}") from None


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _config(base: nn.Module, peft: Mapping[str, Any]) -> PeftConfig:
    given = {key: copy.deepcopy(value) for key, value in peft.items() if key != "type" and value is not None}
    kind = str(peft["type"]).upper()
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(
            f"unknown; there are: {', '.join(sorted(name.lower() for name in PEFT_TYPE_TO_CONFIG_MAPPING))}"
        )
    if given.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise ValueError(f"init_lora_weights {given['init_lora_weights']} changes the base, which all models share")
    names = {"alpha": "lora_alpha", "dropout": "lora_dropout"} if kind == "LORA" else {}
    given = {names.get(key, key): value for key, value in given.items()}
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="CAUSAL_LM", **given)
    if isinstance(config, LoraConfig):
        # GPT-2's layers keep their weights transposed; PEFT finds that out itself, with a warning each time.
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in base.modules())
    return config


def files(model: PeftModel) -> dict[str, bytes]:
    """The two files of an adapter, as PEFT's `from_pretrained` reads them."""
    config = model.peft_config[model.active_adapter].to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    text = json.dumps({**plain, "inference_mode": True}, indent=2, sort_keys=True, default=str) + "\n"
    return {CONFIG: text.encode(), WEIGHTS: save(weights, metadata={"format": "pt"})}


def fill(model: PeftModel, weights: bytes) -> None:
    """Give the adapters of `model` these weights. ValueError if they are of other adapters."""
    found = load(weights)
    expected = get_peft_model_state_dict(model)
    if found.keys() != expected.keys() or any(found[name].shape != expected[name].shape for name in found):
        raise ValueError("the file is of other adapters")
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise ValueError("it has NaN or infinite weights: this model did not train")
    set_peft_model_state_dict(model, found)
