"""What is wrong with a config, collected, and where each key was written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml
from pydantic import ValidationError

from core.errors import UserError
from core.safe_yaml import parse, shown

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """Where each key was written: for error messages, and for the copy of the config in the run directory."""

    file: str
    text: str
    places: Mapping[Path_, str]

    def place(self, path: Path_) -> str:
        """`configs/x.yaml:12` of a key, or of the nearest block around it that was written down."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, f"{self.file}:1")


class Mistakes(list[tuple[Path_, str]]):
    """What is wrong so far, as (path of the key, message)."""

    def validation(self, path: Path_, error: ValidationError, known: list[str]) -> None:
        errors = error.errors()
        for item in errors:
            loc = item["loc"]
            if item["type"] == "too_short" and any(e["loc"][: len(loc)] == loc != e["loc"] for e in errors):
                continue  # an item that is wrong was not counted: it has a line of its own
            if item["type"] == "extra_forbidden":
                self.append(((*path, *item["loc"]), unknown_key(str(item["loc"][-1]), known)))
            elif item["type"] == "missing":
                self.append(((*path, *item["loc"]), "missing, and has no default"))
            else:
                loc = tuple(part for part in item["loc"] if part in known or isinstance(part, int))
                message = item["msg"].replace("Input should", "should").replace("Value error, ", "")
                if item["type"] == "too_short":
                    message = f"should have at least {item.get('ctx', {}).get('min_length')} items"
                self.append(((*path, *loc), f"{message}, got {shown(item['input'])}"))

    def raise_if_any(self, source: Source) -> None:
        lines = {f"{source.place(path)}: {_dotted(path)}: {message}": source.place(path) for path, message in self}
        if lines:
            raise UserError("\n".join(sorted(lines, key=lambda line: _line_number(lines[line]))))


def walk(node: yaml.Node | None, path: Path_ = ()) -> Iterator[tuple[Path_, int, bool]]:
    """Every key of a YAML tree with its line, and whether it is a second one of its name."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = key.value
            yield (*path, name), key.start_mark.line + 1, name in seen
            seen.add(name)
            yield from walk(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1, False
            yield from walk(value, (*path, index))


def override(raw: dict, given: str, places: dict[Path_, str]) -> None:
    """Put `key.path=value` into the raw config, and remember that it came from the command line."""
    key, equals, value = given.partition("=")
    if not (equals and key.strip()):
        raise UserError(f"--set {given}: should be key=value, e.g. --set train.epochs=1")
    *parents, last = (int(part) if part.isdigit() else part for part in key.strip().split("."))
    block: Any = raw
    try:
        _, new_value = parse(value, f"--set {given}")
        for part in parents:
            if isinstance(block, dict) and block.get(part) is None:
                block[part] = {}
            block = block[part]
        block[last] = new_value
    except (TypeError, KeyError, IndexError):
        raise UserError(f"--set {given}: there is no block {'.'.join(map(str, parents))!r} to set it in") from None
    here = (*parents, last)
    for below in [path for path in places if path[: len(here)] == here]:
        del places[below]
    places[here] = f"--set {given}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that is not known, with what may have been meant."""
    known, key = sorted(known), key[:100]
    near = get_close_matches(key, known, n=2)
    if near:
        return f"unknown key; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown key; there are: {', '.join(known)}"


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _line_number(place: str) -> tuple[int, str]:
    line = place.rpartition(":")[2]
    return (int(line), place) if line.isdigit() else (10**9, place)
