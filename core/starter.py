"""A commented config to start from, written from the schema: every key of its blocks, defaults commented out."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from core.config import BLOCKS
from core.gate import Gate
from core.registry import DATASETS, MODULES, TRAINERS, Registry
from core.schema import documented

SCHEMA_FILE = Path(__file__).resolve().parent.parent / "configs" / "schema.json"
DATASET, MODEL, TRAINER = "digits", "mlp", "sgd"
CHOSEN: Mapping[str, Mapping[str, str]] = {  # what a first run needs, and what is better than the default for it
    "run": {"random_seed": "12345", "num_experiments": "4"},
    "data": {"dataset": DATASET},
    "train": {
        "model_name": f"{{name: {MODEL}, hidden: [256]}}",
        "optimizer": "SGD",
        "learning_rate": "0.1",
        "batch_size": "32",
        "epochs": "40",
        "weight_decay": "0",
    },
    "audit": {"algorithm": "[LOSS, LiRA, RMIA]", "num_ref_models": "8"},
}
MORE: Mapping[str, str] = {  # of each further audit, the keys that a first look needs
    "ramia": "{range_function: {name: geometric, transformations: [{name: shift, pixels: 1}]}, sample_size: 8}",
    "duci": "{size: 500}",
    "dp_audit": "{training_alg: [dp, nondp], canary_dataset: mislabelled, canary_size: 200}",
}
LEFT_OUT = {
    "tokenize",
    "tokenizer",
    "auto_find_batch_size",
    "max_length",
    "truncate",
    "privacy_game",
    "source",
}  # texts


def starter(path: Path) -> str:
    """The text of a config that will be at `path`."""
    lines = [
        f"# python main.py --cf {path}      --check says what it would do, --set train.epochs=1 changes a key once",
        schema_line(path),
        "# What is commented out shows its default. Every key, dataset, model and attack: configs/README.md",
        "",
    ]
    for name, block in BLOCKS.items():
        keys = {k: (v.default, v.description or "") for k, v in block.model_fields.items() if k not in LEFT_OUT}
        if name == "data":
            keys |= _of(DATASETS, DATASET)
        if name == "train":
            keys |= _of(TRAINERS, TRAINER)
        chosen = {**CHOSEN[name], **({"log_dir": f"runs/{path.stem}"} if name == "run" else {})}
        lines += [f"{name}:", *_keys(keys, chosen), ""]
    lines += ["# More audits on the same models; take the # before its name away to switch one on. See documentation/."]
    for name in MODULES:
        lines += [f"# {MODULES.fact(name, 'summary')}", f"# {name}: {MORE.get(name, '{}')}"]
    lines += ["", f"# gate:  # {(Gate.__doc__ or '').strip()}", "#   max: {tpr@0.01: 0.05, auc: 0.6}", ""]
    return "\n".join(lines)


def schema_line(path: Path) -> str:
    """The line by which editors find the schema."""
    relative = os.path.relpath(SCHEMA_FILE, path.resolve().parent)
    return f"# yaml-language-server: $schema={Path(relative).as_posix()}"


def _of(registry: Registry, name: str) -> dict[str, tuple[Any, str]]:
    said = documented(registry[name])
    fields: Mapping[str, Any] = registry.schema(name).model_fields
    return {key: (field.default, said.get(key, "")) for key, field in fields.items()}


def _keys(keys: Mapping[str, tuple[Any, str]], chosen: Mapping[str, str]) -> Iterator[str]:
    for key, (default, said) in sorted(keys.items(), key=lambda item: item[0] not in chosen):
        value = chosen[key] if key in chosen else _plain(default)
        line = f"  {'' if key in chosen else '# '}{key}: {value}"
        comment = textwrap.shorten(said.replace("`", ""), 160, placeholder=" …")
        if comment and len(line) + len(comment) < 116:
            yield f"{line:<32}  # {comment}"
        else:
            yield from (f"  # {part}" for part in textwrap.wrap(comment, 112))
            yield line


def _plain(value: Any) -> str:
    if value is PydanticUndefined:
        return "..."
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True).splitlines()[0]
