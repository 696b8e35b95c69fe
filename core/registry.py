"""Names in YAML -> functions. A function's keyword-only arguments are the schema of its YAML block."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model


class Registry(dict[str, Callable]):
    """Functions by name. What the pipeline supplies is positional; what a user may write is keyword-only.

    Annotate keyword-only arguments with their bounds (`Annotated[float, Gt(0)]`): the signature is the
    schema, the default and the documentation. Registration is an explicit decorator in an explicitly
    imported file; nothing in a YAML file can import code. Names match whatever their case.
    """

    def __init__(self, kind: str, *, plugins: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.plugins = plugins  # whether a name may be `file:function` of a --plugin file
        self.facts: dict[str, dict[str, Any]] = {}

    def register(self, name: str, **facts: Any) -> Callable[[Callable], Callable]:
        """Add a function under `name`, with facts about it that the pipeline asks for (see `fact`)."""

        def add(fn: Callable) -> Callable:
            known = next((known for known in self if known.casefold() == name.casefold()), None)
            if known is not None:
                raise ValueError(f"{self.kind} {name!r} is in {self[known].__module__} and {fn.__module__}")
            self[name] = fn
            self.facts[name] = facts
            return fn

        return add

    def find(self, name: str) -> str | None:
        """The registered spelling of `name`, or None. `prefix/*` and `prefix:*` match any name with that prefix."""
        folded = name.casefold()
        exact = next((known for known in self if known.casefold() == folded), None)
        prefix = next((k for k in self if k.endswith("*") and folded.startswith(k[:-1].casefold())), None)
        return exact or prefix or (self._of_plugin(name) if self.plugins else None)

    def _of_plugin(self, name: str) -> str | None:
        """`file:function` of a file given by --plugin, registered when it is first asked for.

        Only functions that the file itself defines: a config cannot name code that the command line did not.
        """
        file, _, attribute = name.partition(":")
        module = sys.modules.get(f"plugin.{file}")
        function = getattr(module, attribute, None)
        if not inspect.isfunction(function) or module is None or function.__module__ != module.__name__:
            return None
        self[name], self.facts[name] = _builder(function), {}
        return name

    def rest(self, name: str) -> list[str]:
        """What a `prefix*` entry matched, its further positional argument: ["resnet50"] of torchvision/resnet50."""
        known = self.find(name) or name
        return [name[len(known) - 1 :]] if known.endswith("*") else []

    def __missing__(self, name: str) -> Callable:
        if known := self.find(name):
            return self[known]
        raise KeyError(self.unknown(name))

    def unknown(self, name: str) -> str:
        """The message for a name that is not here, with what may have been meant."""
        if self.plugins and ":" in name:
            file, _, function = name.partition(":")
            if f"plugin.{file}" not in sys.modules:
                return f"no plug-in is called {file!r}: give its file on the command line, --plugin {file}.py"
            return f"the plug-in {file} defines no function {function!r}"
        by_folded = {known.casefold(): known for known in self}
        near = [by_folded[folded] for folded in get_close_matches(name.casefold(), by_folded)]
        if near:
            return f"no {self.kind} is called {name!r}; did you mean {' or '.join(map(repr, near))}?"
        return f"no {self.kind} is called {name!r}; there are: {', '.join(sorted(self, key=str.casefold))}"

    def fact(self, name: str, key: str, default: Any = None) -> Any:
        """A fact given at registration, e.g. `ATTACKS.fact("LiRA", "needs_references")`."""
        return self.facts[self.find(name) or name].get(key, default)

    def schema(self, name: str) -> type[BaseModel]:
        """The pydantic model of the settings a user may write for `name`."""
        return _schema(self[name], name)

    def bind(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of `name`, checked and completed with defaults. Raises pydantic.ValidationError."""
        checked = self.schema(name)(**settings)
        own = {field: getattr(checked, field) for field in type(checked).model_fields}
        return own | (checked.model_extra or {})


def _builder(function: Callable) -> Callable:
    """A user's function as a registered one: what it does not ask for, it is not given."""
    wanted = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if wanted:
        return function
    return functools.wraps(function)(lambda *_, **settings: function(**settings))


@cache
def _schema(fn: Callable, name: str) -> type[BaseModel]:
    keywords = [p for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if bare := [p.name for p in keywords if p.annotation is p.empty]:
        raise TypeError(
            f"{fn.__module__}.{fn.__name__}: the settings {', '.join(bare)} need a type, e.g. `x: float = 1`"
        )
    fields: dict[str, Any] = {
        p.name: (_type(p.annotation, fn), ... if p.default is p.empty else p.default) for p in keywords
    }
    more = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(fn).parameters.values())
    extra = "allow" if more else "forbid"  # `**settings` takes what a library's own signature knows: see `foreign`
    return create_model(name, __config__=ConfigDict(extra=extra, protected_namespaces=()), **fields)


def _type(annotation: Any, fn: Callable) -> Any:
    """Only keyword-only annotations are evaluated, so that positional ones may name torch without importing it."""
    return eval(annotation, inspect.unwrap(fn).__globals__) if isinstance(annotation, str) else annotation


DATASETS = Registry("dataset")
MODELS = Registry("model", plugins=True)
TRAINERS = Registry("trainer")
ATTACKS = Registry("attack")
MODULES = Registry("audit module")  # blocks of a config that switch more audits on: ramia, duci, dp_audit
SOURCES = Registry("source")  # what an audit starts from, where it does not train everything itself
