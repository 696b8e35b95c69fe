"""The schema of a YAML file, and every mistake in it at its line.

pydantic checks at this border only; inside, everything is a frozen `Config`. The blocks `data` and `train`
and the items of `audit.algorithm` name a registered function: the keys beyond the block's own are that
function's keyword-only arguments (see core/registry.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from core.errors import UserError
from core.registry import ATTACKS, DATASETS, MODELS, MODULES, TRAINERS, Registry

Path_ = tuple[str | int, ...]


class Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Run(Block):
    """The run as a whole."""

    log_dir: Path = Field(description="where everything this run makes is kept, and found again")
    random_seed: NonNegativeInt = Field(1234, description="every draw is a function of this seed and the draw's name")
    num_experiments: PositiveInt = Field(1, description="how many target models are trained and audited")
    threads: PositiveInt = Field(1, description="CPU threads; results are bit for bit the same for the same number")
    time_log: bool = Field(True, description="write report/log_time_analysis.log, the seconds of each stage")


class Data(Block):
    """What is audited. The keys below are common; the others are the settings of the dataset."""

    dataset: str = Field(description="a registered dataset: `python main.py --list datasets`")
    data_dir: Path = Field(Path("data"), description="where files are looked for and downloads go")
    tokenize: bool = Field(
        False, description="kept from the original tool; has no effect on datasets that are not text"
    )
    tokenizer: str | None = Field(
        None, description="kept from the original tool; no effect on datasets that are not text"
    )


class Train(Block):
    """What is trained, and how. The keys below are common; the others are the settings of the trainer."""

    model_name: str | dict[str, Any] = Field(description="a registered model, or {name: …, its settings}")
    trainer: str = Field("sgd", description="a registered trainer: `python main.py --list trainers`")
    device: str = Field("auto", description="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps")
    tokenizer: str | None = Field(
        None, description="kept from the original tool; has no effect on models that are not text"
    )
    auto_find_batch_size: bool = Field(False, description="kept from the original tool; no effect on the trainer sgd")


class Audit(Block):
    """Which attacks, with how many references, on which points."""

    algorithm: str | dict[str, Any] | list[str | dict[str, Any]] = Field(
        description="an attack, {name: …, its settings}, or a list of them"
    )
    num_ref_models: NonNegativeInt = Field(
        0,
        description="pairs of reference models: each audited point has this many that saw it and as many that did not",
    )
    data_size: PositiveInt | None = Field(
        None, description="audited points, drawn from the pool; all of it if left out"
    )
    population_size: PositiveInt | None = Field(None, description="population points used; all of them if left out")
    queries: Literal[1, 2, 18] = Field(
        1, description="each image is queried as it is; + mirrored; mirrored × shifted by {-1, 0, 1}² pixels"
    )
    batch_size: PositiveInt = Field(1000, description="records per forward pass when models are queried")
    device: str = Field("auto", description="where models are queried; as train.device")
    privacy_game: Literal["privacy_loss_model"] = Field(
        "privacy_loss_model", description="membership of a record in the training set of a fixed model"
    )
    report_log: str = Field("report", description="folder of the report within run.log_dir", pattern=r"^[\w.-]+$")


BLOCKS: dict[str, type[Block]] = {"run": Run, "data": Data, "train": Train, "audit": Audit}


@dataclass(frozen=True)
class Call:
    """A registered function with its settings."""

    name: str
    settings: Mapping[str, Any]  # all of them, checked, defaults included
    given: Mapping[str, Any] = field(default_factory=dict)  # those that were written down

    @property
    def label(self) -> str:
        """`RMIA`, or `RMIA (gamma=2)` with the settings that were written down."""
        written = ", ".join(f"{key}={value}" for key, value in self.given.items())
        return f"{self.name} ({written})" if written else self.name


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


@dataclass(frozen=True)
class Config:
    run: Run
    data: Data
    train: Train
    audit: Audit
    dataset: Call
    model: Call
    trainer: Call
    attacks: tuple[Call, ...]
    modules: tuple[Call, ...]  # the audits beyond MIA whose blocks are there
    source: Source

    def error(self, key: str, message: str) -> UserError:
        """A mistake that shows only later, at its line: `raise config.error("audit.data_size", "…")`."""
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        return UserError(f"{self.source.place(path)}: {key}: {message}")

    @property
    def report_dir(self) -> Path:
        return self.run.log_dir / self.audit.report_log

    def settings(self) -> dict[str, Any]:
        """What decides the models, by the keys a user writes: the first half of every model's stamp."""
        return {
            "run.random_seed": self.run.random_seed,
            "data.dataset": self.dataset.name,
            **{f"data.{key}": value for key, value in self.dataset.settings.items()},
            "train.model_name": self.model.name,
            **{f"train.model_name.{key}": value for key, value in self.model.settings.items()},
            "train.trainer": self.trainer.name,
            **{f"train.{key}": value for key, value in self.trainer.settings.items()},
        }

    def warnings(self) -> list[str]:
        """Keys that are accepted for the sake of old files and do nothing here."""
        idle = {
            "data.tokenize": self.data.tokenize,
            "data.tokenizer": self.data.tokenizer,
            "train.tokenizer": self.train.tokenizer,
            "train.auto_find_batch_size": self.train.auto_find_batch_size,
        }
        without = f"has no effect on {self.dataset.name} and {self.model.name}"
        return [str(self.error(key, without)) for key, value in idle.items() if value]


class _Mistakes(list[tuple[Path_, str]]):
    """What is wrong so far, as (path of the key, message)."""

    def validation(self, path: Path_, error: ValidationError, known: list[str]) -> None:
        for item in error.errors():
            if item["type"] == "extra_forbidden":
                self.append(((*path, *item["loc"]), _unknown_key(str(item["loc"][-1]), known)))
            elif item["type"] == "missing":
                self.append(((*path, *item["loc"]), "missing, and has no default"))
            else:
                loc = tuple(part for part in item["loc"] if part in known or isinstance(part, int))
                message = item["msg"].replace("Input should", "should").replace("Value error, ", "")
                self.append(((*path, *loc), f"{message}, got {item['input']!r}"))

    def raise_if_any(self, source: Source) -> None:
        lines = {f"{source.place(path)}: {_dotted(path)}: {message}": source.place(path) for path, message in self}
        if lines:
            raise UserError("\n".join(sorted(lines, key=lambda line: _line_number(lines[line]))))


def load(file: Path, overrides: list[str] | None = None) -> Config:
    """Read and check a config; `overrides` are `key.path=value`, applied before the check.

    Raises UserError with one line per mistake, all of them, in the order of the file.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); shipped ones are in configs/") from None
    mistakes = _Mistakes()
    places: dict[Path_, str] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise UserError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}:1: should hold the blocks {', '.join(BLOCKS)}, got {raw!r}")
    for path, line, duplicate in _walk(node):
        places[path] = f"{file}:{line}"
        if duplicate:
            mistakes.append((path, f"written twice, the second time in line {line}: keep one"))
    for override in overrides or []:
        _override(raw, override, places)
    if overrides:
        text = f"# {file} with --set {' '.join(overrides)}\n{yaml.safe_dump(raw, sort_keys=False)}"
    source = Source(str(file), text, places)

    for key in raw:
        if key not in BLOCKS and key not in MODULES:
            mistakes.append(((key,), _unknown_key(str(key), [*BLOCKS, *MODULES])))
    run = _block("run", raw, mistakes)
    data, dataset = _block_and_call("data", "dataset", DATASETS, raw, mistakes)
    train, trainer = _block_and_call("train", "trainer", TRAINERS, raw, mistakes)
    audit = _block("audit", raw, mistakes)
    model = _call(MODELS, train.model_name, ("train", "model_name"), mistakes) if train else None
    attacks = _attacks(audit, mistakes) if audit else ()
    switched_on = [name for name in MODULES if name in raw]
    modules = [_bound(MODULES, name, _mapping(name, raw, mistakes), (name,), mistakes, (name,)) for name in switched_on]
    mistakes.raise_if_any(source)
    assert run and data and train and audit and dataset and model and trainer
    called = tuple(call for call in modules if call)
    return Config(run, data, train, audit, dataset, model, trainer, attacks, called, source)


def _walk(node: yaml.Node | None, path: Path_ = ()) -> Iterator[tuple[Path_, int, bool]]:
    """Every key of a YAML tree with its line, and whether it is a second one of its name."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = key.value
            yield (*path, name), key.start_mark.line + 1, name in seen
            seen.add(name)
            yield from _walk(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1, False
            yield from _walk(value, (*path, index))


def _override(raw: dict, override: str, places: dict[Path_, str]) -> None:
    key, equals, value = override.partition("=")
    if not (equals and key.strip()):
        raise UserError(f"--set {override}: should be key=value, e.g. --set train.epochs=1")
    *parents, last = (int(part) if part.isdigit() else part for part in key.strip().split("."))
    block: Any = raw
    try:
        new_value = yaml.safe_load(value)
        for part in parents:
            if isinstance(block, dict) and block.get(part) is None:
                block[part] = {}
            block = block[part]
        block[last] = new_value
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None
    except (TypeError, KeyError, IndexError):
        raise UserError(f"--set {override}: there is no block {'.'.join(map(str, parents))!r} to set it in") from None
    here = (*parents, last)
    for below in [path for path in places if path[: len(here)] == here]:
        del places[below]
    places[here] = f"--set {override}"


def _block(name: str, raw: Mapping[str, Any], mistakes: _Mistakes) -> Any:
    """The block's own keys, checked; None after a mistake."""
    return _checked(BLOCKS[name], _mapping(name, raw, mistakes), (name,), mistakes)


def _block_and_call(
    name: str, key: str, registry: Registry, raw: Mapping[str, Any], mistakes: _Mistakes
) -> tuple[Any, Call | None]:
    """A block whose own `key` names a registered function, and whose other keys are that function's settings."""
    values = _mapping(name, raw, mistakes)
    own = BLOCKS[name].model_fields
    block = _checked(BLOCKS[name], {k: v for k, v in values.items() if k in own}, (name,), mistakes)
    function = values.get(key, own[key].default)
    rest = {k: v for k, v in values.items() if k not in own}
    if not isinstance(function, str):
        return block, None
    return block, _bound(registry, function, rest, (name,), mistakes, (name, key), siblings=list(own))


def _mapping(name: str, raw: Mapping[str, Any], mistakes: _Mistakes) -> dict[str, Any]:
    values = raw.get(name)
    if values is None:
        values = {}
    elif not isinstance(values, dict):
        mistakes.append(((name,), f"should be a block of keys, got {values!r}"))
        values = {}
    return {str(key): value for key, value in values.items()}


def _checked(model: type[BaseModel], values: Mapping[str, Any], path: Path_, mistakes: _Mistakes) -> Any:
    try:
        return model(**values)
    except ValidationError as error:
        mistakes.validation(path, error, list(model.model_fields))
        return None


def _call(registry: Registry, value: Any, path: Path_, mistakes: _Mistakes) -> Call | None:
    """`RMIA` or `{name: RMIA, gamma: 2.0}`."""
    if isinstance(value, str):
        return _bound(registry, value, {}, path, mistakes, path)
    if not isinstance(value.get("name"), str):
        mistakes.append((path, f"a {registry.kind} with settings is written {{name: …, setting: value}}"))
        return None
    rest = {str(k): v for k, v in value.items() if k != "name"}
    return _bound(registry, value["name"], rest, path, mistakes, (*path, "name"), siblings=["name"])


def _bound(
    registry: Registry,
    name: str,
    given: dict[str, Any],
    path: Path_,
    mistakes: _Mistakes,
    name_path: Path_,
    siblings: list[str] | None = None,
) -> Call | None:
    known = registry.find(name)
    if known is None:
        mistakes.append((name_path, registry.unknown(name)))
        return None
    try:
        settings = registry.bind(known, given)
    except ValidationError as error:
        mistakes.validation(path, error, [*registry.schema(known).model_fields, *(siblings or [])])
        return None
    return Call(name if known.endswith("/*") else known, settings, given)


def _attacks(audit: Audit, mistakes: _Mistakes) -> tuple[Call, ...]:
    """The attacks asked for, each with enough references, no two the same."""
    items = audit.algorithm if isinstance(audit.algorithm, list) else [audit.algorithm]
    here: Path_ = ("audit", "algorithm")
    if not items:
        mistakes.append((here, f"names no attack; there are: {', '.join(sorted(ATTACKS))}"))
    calls: dict[str, Call] = {}
    for index, item in enumerate(items):
        path = (*here, index) if isinstance(audit.algorithm, list) else here
        call = _call(ATTACKS, item, path, mistakes)
        if call is None:
            continue
        if call.label in calls:
            mistakes.append((path, f"{call.label} is listed twice"))
        calls[call.label] = call
    if short := [call for call in calls.values() if min_pairs(call) > audit.num_ref_models]:
        needs = " and ".join(f"{call.label} needs {min_pairs(call)}" for call in short)
        mistakes.append((("audit", "num_ref_models"), f"{audit.num_ref_models} is too few: {needs}"))
    return tuple(calls.values())


def min_pairs(call: Call) -> int:
    """The least audit.num_ref_models that an attack can work with."""
    fact: int | Callable[[Mapping[str, Any]], int] = ATTACKS.fact(call.name, "min_pairs", 0)
    return fact if isinstance(fact, int) else fact(call.settings)


def _unknown_key(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, n=2)
    if near:
        return f"unknown key; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown key; there are: {', '.join(sorted(known))}"


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _line_number(place: str) -> tuple[int, str]:
    line = place.rpartition(":")[2]
    return (int(line), place) if line.isdigit() else (10**9, place)
