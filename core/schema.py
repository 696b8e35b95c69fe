"""The JSON Schema of a config, for editors: completion, and mistakes underlined while they are written.

Made from the same signatures that check a config, so it cannot say anything else; what only the data or several
blocks together can show (too few references, two sources) is left to `--check`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator

from core.config import ALWAYS, BLOCKS, TRAINED, block_of
from core.gate import MEASURE
from core.registry import ATTACKS, DATASETS, MODELS, MODULES, SOURCES, TRAINERS, Registry

Schema = dict[str, Any]
SETTING = re.compile(r"^\s*- ([a-z_][a-z_0-9, ]*): (.*)$")


def documented(fn: Any) -> dict[str, str]:
    """What a docstring's `- key: …` lines say of each setting."""
    found: dict[str, str] = {}
    keys: list[str] = []
    for line in (inspect.getdoc(fn) or "").splitlines():
        if match := SETTING.match(line):
            keys = [key.strip() for key in match[1].split(",")]
            found |= dict.fromkeys(keys, match[2].strip())
        elif keys and line.startswith("  ") and line.strip():
            found |= {key: f"{found[key]} {line.strip()}" for key in keys}
        else:
            keys = []
    return found


def schema() -> Schema:
    """The whole, with everything that is registered now."""
    shared: Schema = {}
    blocks = {name: _own(block, shared) for name, block in {**BLOCKS, **ALWAYS}.items()}
    shared |= {"attack": _call(ATTACKS, shared), "model": _call(MODELS, shared)}
    attack, model = ({"$ref": f"#/$defs/{name}"} for name in ("attack", "model"))
    audit = blocks["audit"]["properties"]
    audit["algorithm"] |= {"anyOf": [attack, {"type": "array", "items": attack, "minItems": 1}, {"type": "null"}]}
    audit["source"] |= {"enum": [TRAINED, *SOURCES, None]}
    blocks["gate"]["properties"]["max"]["propertyNames"] = {"pattern": f"^({MEASURE.pattern})$"}
    blocks["train"]["properties"]["model_name"] |= {"anyOf": [model]}
    defaults = {"sgd"} | {MODELS.fact(name, "trainer", "sgd") for name in MODELS}
    properties = {
        "run": blocks["run"],
        "data": _with_calls(blocks["data"], "dataset", DATASETS, set(), shared),
        "train": _with_calls(blocks["train"], "trainer", TRAINERS, defaults, shared),
        "audit": blocks["audit"],
        **{block_of(name): _settings(SOURCES, name, shared) for name in SOURCES},
        **{name: _settings(MODULES, name, shared) for name in MODULES},
        **{name: blocks[name] for name in ALWAYS},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "An audit by Privacy Meter",
        "type": "object",
        "properties": properties,
        "required": ["run"],  # an audit of scores needs no more
        "additionalProperties": False,
        "$defs": dict(sorted(shared.items())),
    }


def _own(model: type[BaseModel], shared: Schema) -> Schema:
    """The schema of a block's own keys; what it refers to goes into `shared`."""
    found = model.model_json_schema()
    shared |= found.pop("$defs", {})
    found.pop("title", None)
    for key in found.get("properties", {}).values():
        key.pop("title", None)
        for empty in ("anyOf", "type") if key.get("description", "").startswith("a registered model") else ():
            key.pop(empty, None)
    found["type"] = "object"
    return found


def _settings(registry: Registry, name: str, shared: Schema) -> Schema:
    """The block of one registered function: its keyword-only arguments."""
    found = _own(registry.schema(name), shared)
    found["description"] = registry.fact(name, "summary") or (inspect.getdoc(registry[name]) or "").partition("\n")[0]
    for key, said in documented(registry[name]).items():
        if key in found.get("properties", {}):
            found["properties"][key]["description"] = said
    for key, field in registry.schema(name).model_fields.items():
        if any(isinstance(one, BeforeValidator) for one in field.metadata):  # other spellings are understood, too
            written = found["properties"][key]
            kept = {k: written.pop(k) for k in [*written] if k not in ("default", "description", "title")}
            written["anyOf"] = [kept, {"type": "string"}]
    if registry in (DATASETS, TRAINERS, MODELS) and registry.schema(name).model_config.get("extra") == "allow":
        found["additionalProperties"] = True
    return found


def _named(name: str) -> Schema:
    """A registered name, whatever its case; of `prefix*`, any name with the prefix."""
    letters = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else re.escape(c) for c in name.removesuffix("*"))
    if name.endswith("*"):
        return {"type": "string", "pattern": f"^{letters}."}
    return {"anyOf": [{"enum": [name]}, {"type": "string", "pattern": f"^{letters}$"}]}  # enum: what editors offer


def _call(registry: Registry, shared: Schema) -> Schema:
    """`RMIA` or `{name: RMIA, gamma: 2.0}`."""
    options: list[Schema] = [_named(name) for name in registry if not _required(registry, name)]
    for name in registry:
        found = _settings(registry, name, shared)
        found["properties"] = {"name": _named(name), **found.get("properties", {})}
        options.append({**found, "required": ["name", *found.get("required", [])]})
    return {"description": f"a registered {registry.kind}, with or without settings", "anyOf": options}


def _required(registry: Registry, name: str) -> list[str]:
    return [key for key, field in registry.schema(name).model_fields.items() if field.is_required()]


def _with_calls(block: Schema, key: str, registry: Registry, defaults: set[str], shared: Schema) -> Schema:
    """A block whose `key` names a registered function; one option for each. `defaults` may be left out."""
    options = []
    for name in registry:
        found = _settings(registry, name, shared)
        own: Mapping[str, Any] = found.get("properties", {})
        required = {*block.get("required", ()), *found.get("required", ())} - {key}
        options.append(
            {
                **found,
                "properties": {**block["properties"], **own, key: {**block["properties"][key], **_named(name)}},
                "required": sorted(required | (set() if name in defaults else {key})),
            }
        )
        if name in defaults:  # null, or left out
            named = options[-1]["properties"][key]
            options[-1]["properties"][key] = {
                "description": named["description"],
                "anyOf": [{"type": "null"}, _named(name)],
            }
        else:
            options[-1]["properties"][key].pop("type", None) if "anyOf" in _named(name) else None
    return {"description": block.get("description", ""), "anyOf": options}
