"""What can be written in a config, as text: `--list` in the terminal, configs/README.md in the repository."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from core import cards
from core.config import ALWAYS, BLOCKS
from core.errors import UserError
from core.registry import ATTACKS, DATASETS, MODELS, MODULES, SOURCES, TRAINERS, Registry

KINDS: dict[str, Registry] = {
    "datasets": DATASETS,
    "models": MODELS,
    "trainers": TRAINERS,
    "attacks": ATTACKS,
    "modules": MODULES,
    "sources": SOURCES,
}


def listing(kind: str, *names: str) -> str:
    """The names of one kind, or the named ones: each with its summary and settings, attacks with their cards.

    Of "config" and "cards", all of it as Markdown. One name alone is shown in full, with what its docstring says.
    Raises UserError for a name that is not there.
    """
    if kind == "config":
        return markdown()
    if kind == "cards":
        return cards.markdown()
    registry = KINDS[kind]
    if unknown := [registry.unknown(name) for name in names if registry.find(name) is None]:
        raise UserError("; ".join(unknown))
    if len(names) == 1:
        name = registry.find(names[0]) or names[0]
        return "\n\n".join(filter(None, [_entry(registry, name), inspect.getdoc(registry[name])]))
    return "\n\n".join(_entry(registry, registry.find(name) or name) for name in names or registry)


def _entry(registry: Registry, name: str) -> str:
    lines = [f"{name}: {_summary(registry, name)}"]
    lines += cards.lines(name) if registry is ATTACKS else []
    lines += [f"    {text}" for text in _settings(registry.schema(name))]
    return "\n".join(lines)


def _summary(registry: Registry, name: str) -> str:
    return registry.fact(name, "summary") or (inspect.getdoc(registry[name]) or "").partition("\n")[0]


def _settings(schema: type[BaseModel]) -> list[str]:
    return [f"{name}: {_type(schema, name)}{_default(field.default)}" for name, field in schema.model_fields.items()]


def _default(value: Any) -> str:
    return " (required)" if value is PydanticUndefined else f" = {_plain(value)}"


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return "{}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


_BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": ">= {}",
    "exclusiveMaximum": "< {}",
    "maximum": "<= {}",
    "minItems": "at least {} items",
}


def _type(schema: type[BaseModel], name: str) -> str:
    return _json_type(schema.model_json_schema()["properties"][name])


def _json_type(node: dict[str, Any]) -> str:
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_json_type(option) for option in node["anyOf"]))
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    if "$ref" in node:
        return "block"
    kind: str = node.get("type", "any")
    base = {"number": "float", "integer": "int", "string": "text", "boolean": "true | false"}.get(kind, kind)
    if base == "array":
        base = f"list of {_json_type(node.get('items') or (node.get('prefixItems') or [{}])[0])}"
    bounds = [text.format(f"{node[key]:g}") for key, text in _BOUNDS.items() if key in node]
    return " ".join([base, *bounds])


def markdown() -> str:
    """The whole of configs/README.md."""
    parts = [
        "# What a config may say",
        "Generated from the schema by `make docs`; a test compares. One file is one experiment: "
        "`python main.py --cf configs/quickstart.yaml`. Any key can be set on the command line: "
        "`--set train.epochs=1 audit.queries=2`. `--check` prints the plan and stops.",
    ]
    for name, block in {**BLOCKS, **ALWAYS}.items():
        parts.append(f"## `{name}:`\n\n{inspect.getdoc(block)}\n\n" + _table(block))
        for key, inner in _inner(block).items():
            parts.append(f"### `{name}.{key}:`\n\n{inspect.getdoc(inner)}\n\n" + _table(inner))
    for title, registry in KINDS.items():
        parts.append(f"## {title.capitalize()}")
        parts += [_markdown_entry(registry, name) for name in registry]
    return "\n\n".join(parts) + "\n"


def _markdown_entry(registry: Registry, name: str) -> str:
    schema = registry.schema(name)
    text = f"### `{name}`\n\n{inspect.getdoc(registry[name]) or _summary(registry, name)}"
    return text + (f"\n\n{_table(schema)}" if schema.model_fields else "\n\nNo settings.")


def _inner(block: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The blocks within a block."""
    fields = block.model_fields.items()
    return {name: type(field.default) for name, field in fields if isinstance(field.default, BaseModel)}


def _table(schema: type[BaseModel]) -> str:
    described = any(field.description for field in schema.model_fields.values())
    rows = ["| key | value | default |" + (" meaning |" if described else "")]
    rows.append("|---|---|---|" + ("---|" if described else ""))
    for name, field in schema.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"`{_plain(field.default)}`"
        cells = [f"`{name}`", _type(schema, name).replace("|", "\\|"), default] + (
            [field.description or ""] if described else []
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
