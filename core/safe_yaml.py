"""YAML from anyone: read without running anything in it, in bounded time, every mistake with its line."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError

BYTES, NODES, DEPTH = 1 << 20, 20_000, 40  # a config is a page; what aliases repeat counts each time

_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxstring, _short.maxother = 3, 8, 8, 120, 120


def shown(value: Any) -> str:
    """A value in a message: a few words of it, whatever it is."""
    try:
        return _short.repr(value)
    except Exception:  # e.g. a number of more digits than Python prints
        return f"a {type(value).__name__}"


def read_text(file: Path) -> str:
    """The text of a config."""
    try:
        with open(file, "rb") as opened:
            content = opened.read(BYTES + 1)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); shipped ones are in configs/") from None
    if len(content) > BYTES:
        raise UserError(f"{file}: is larger than {BYTES} bytes: this is no config")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not text in UTF-8 ({error.reason} at byte {error.start})") from None


def parse(text: str, name: str) -> tuple[yaml.Node | None, Any]:
    """The tree of a YAML text, which knows lines, and its value. `name` begins every message."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check(node, name)
        return node, yaml.safe_load(text)
    except UserError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise UserError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise UserError(f"{name}: is nested too deeply") from None
    except Exception as error:  # a date that is none, a number that is too long
        raise UserError(f"{name}: not valid YAML: {str(error)[:200]}") from None


def _check(node: yaml.Node | None, name: str) -> None:
    """Refuse a tree that is far larger than its text (aliases of aliases), or holds text that is no file's name."""
    open_: set[int] = set()
    left = NODES

    def visit(node: yaml.Node, depth: int) -> None:
        nonlocal left
        left -= 1
        place = f"{name}:{node.start_mark.line + 1}"
        if left < 0:
            raise UserError(f"{place}: aliases make this file more than {NODES} entries large")
        if depth > DEPTH or id(node) in open_:
            raise UserError(f"{place}: is nested more than {DEPTH} deep, or contains itself")
        if isinstance(node, yaml.ScalarNode):
            if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in node.value):
                raise UserError(f"{place}: holds a character that no name or file can have")
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > 100:
                raise UserError(f"{place}: a number of {len(node.value)} digits is too long")
            return
        open_.add(id(node))
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                visit(part, depth + 1)
        open_.remove(id(node))

    if node is not None:
        visit(node, 0)
