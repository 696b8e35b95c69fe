"""The schema of a YAML file, and every mistake in it at its line.

pydantic checks at this border only; inside, everything is a frozen `Config`. The blocks `data` and `train`
and the items of `audit.algorithm` name a registered function: the keys beyond the block's own are that
function's keyword-only arguments (see core/registry.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from core.errors import UserError
from core.gate import Gate
from core.mistakes import Mistakes, Path_, Source, override, unknown_key, walk
from core.registry import ATTACKS, DATASETS, MODELS, MODULES, SOURCES, TRAINERS, Registry
from core.safe_yaml import parse, read_text, shown

TRAINED = "train"  # the source that is no block of its own: this tool trains everything


class Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Ray(Block):
    """The cluster of `run.engine: ray`, see documentation/cluster.md."""

    address: str | None = Field(
        None,
        description="host:port of the cluster's head, or auto: the cluster that this machine is in; if left out "
        "$RAY_ADDRESS, and without it this machine alone",
    )
    gpus_per_unit: Annotated[float, Ge(0)] | Literal["auto"] = Field(
        "auto",
        description="GPUs of each process; below 1 several share one; auto: one where the cluster has any, "
        "none where devices are cpu",
    )
    cpus_per_unit: Annotated[float, Gt(0)] | None = Field(
        None, description="CPU cores of each process; as many as run.threads if left out"
    )
    max_in_flight: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="processes at a time, each with a unit; auto: as many as the cluster has room for, now and later; "
        "a number may be more, for clusters that grow with what is asked of them",
    )


class Run(Block):
    """The run as a whole."""

    log_dir: Path = Field(description="where everything this run makes is kept, and found again")
    random_seed: NonNegativeInt = Field(1234, description="every draw is a function of this seed and the draw's name")
    num_experiments: PositiveInt = Field(1, description="how many target models are trained and audited")
    threads: PositiveInt = Field(
        1, description="CPU threads of each process; results are bit for bit the same for the same number"
    )
    workers: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="processes that train and query models, to the same bytes; auto: one for each GPU or free core",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="where models are trained and queried, to the same bytes: local is this machine, ray a cluster "
        "(pip install -r requirements-ray.txt)",
    )
    ray: Ray = Field(
        Ray.model_validate({}), description="of engine ray: {address, gpus_per_unit, cpus_per_unit, max_in_flight}"
    )
    time_log: bool = Field(True, description="write report/log_time_analysis.log, the seconds of each stage")


class Data(Block):
    """What is audited. The keys below are common; the others are the settings of the dataset."""

    dataset: str = Field(description="a registered dataset: `python main.py --list datasets`")
    data_dir: Path = Field(Path("data"), description="where files are looked for and downloads go")
    tokenize: bool = Field(False, description="kept from the original tool: texts are always tokenised, others never")
    tokenizer: str | None = Field(
        None, description="of texts: a name of the hub or a local directory; the model's own if left out"
    )
    owner: str | None = Field(
        None,
        description="a column of the data: whose record it is. All records of an owner are then in a training set, or "
        "none: memberships are drawn by owner, as `owners:` needs (documentation/owners.md)",
    )
    max_length: Annotated[int, Ge(2)] | None = Field(
        None, description="tokens of a text that are used; as many as the model can take if left out"
    )
    truncate: bool = Field(True, description="longer texts are cut off; if false, they are an error")


class Train(Block):
    """What is trained, and how. The keys below are common; the others are the settings of the trainer."""

    model_name: str | dict[str, Any] = Field(description="a registered model, or {name: …, its settings}")
    trainer: str | None = Field(
        None,
        description="a registered trainer; if left out the model's own: sgd of networks, transformer of language "
        "models, fit of scikit-learn's",
    )
    device: str = Field("auto", description="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps")
    tokenizer: str | None = Field(None, description="the same as data.tokenizer, as in the original tool")
    auto_find_batch_size: bool = Field(
        False,
        description="if memory is short: transformer computes in parts; others train again on half the batch, recorded",
    )


class Audit(Block):
    """Which attacks, with how many references, on which points."""

    source: str | None = Field(
        None,
        description="what there is to start from: scores, signals, models, or train (this tool trains everything); "
        "if left out it follows from which of the blocks scores, signals, model or train is there",
    )
    algorithm: str | dict[str, Any] | list[str | dict[str, Any]] | None = Field(
        None,
        description="an attack, {name: …, its settings}, or a list of them; needed, except with scores (they are the "
        "attacks) and with signals (left out: every attack that can run on them)",
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
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="when networks are queried: bfloat16 is about twice as fast on CPUs that have it, and kept for a "
        "model if each log-odds s of a probe is within 0.1 (1 + |s|) of float32's",
    )
    device: str = Field("auto", description="where models are queried; as train.device")
    privacy_game: Literal["privacy_loss_model"] = Field(
        "privacy_loss_model", description="membership of a record in the training set of a fixed model"
    )
    blind_baseline: bool | None = Field(
        None,
        description="compare with classifiers that see the records and never the model; true: of every target, beside "
        "each attack; if left out so where the members were given, and as a check on 2,000 records of the first target "
        "where this tool drew them by lot",
    )
    token_heat_map: NonNegativeInt = Field(
        0, description="of texts: how many of the most exposed records the report shows, coloured token by token"
    )
    redact: bool = Field(False, description="name records in the report by their ids only, without their contents")
    report_log: str = Field("report", description="folder of the report within run.log_dir", pattern=r"^[\w.-]+$")


BLOCKS: dict[str, type[Block]] = {"run": Run, "data": Data, "train": Train, "audit": Audit}
ALWAYS: dict[str, type[BaseModel]] = {"gate": Gate}  # blocks that may stand beside any source


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
class Config:
    run: Run
    audit: Audit
    origin: Call  # what the audit starts from: `train`, or an entry of SOURCES
    data: Data | None  # these five are None where the origin does not need them
    train: Train | None
    dataset: Call | None
    model: Call | None
    trainer: Call | None
    attacks: tuple[Call, ...]
    modules: tuple[Call, ...]  # the audits beyond MIA whose blocks are there
    source: Source
    idle: tuple[str, ...] = ()  # keys and blocks that were written down and do nothing with this origin
    gate: Gate | None = None

    def error(self, key: str, message: str) -> UserError:
        """A mistake that shows only later, at its line: `raise config.error("audit.data_size", "…")`."""
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        return UserError(f"{self.source.place(path)}: {key}: {message}")

    @property
    def report_dir(self) -> Path:
        return self.run.log_dir / self.audit.report_log

    def settings(self) -> dict[str, Any]:
        """What decides the models, by the keys a user writes: the first half of every model's stamp."""
        calls = {
            "data": ("dataset", self.dataset),
            "train.model_name": ("", self.model),
            "train": ("trainer", self.trainer),
        }
        found: dict[str, Any] = {"run.random_seed": self.run.random_seed}
        if self.data and self.data.owner:
            found["data.owner"] = self.data.owner
        for block, (key, call) in calls.items():
            if call:
                found[f"{block}.{key}".rstrip(".")] = call.name
                idle = TRAINERS.fact(call.name, "without_effect", ()) if key == "trainer" else ()
                found |= {
                    f"{block}.{setting}": value for setting, value in call.settings.items() if setting not in idle
                }
        return found

    def warnings(self) -> list[str]:
        """Keys that are accepted for the sake of old files, or of another source, and do nothing here."""
        idle = {
            "data.tokenize": self.data and self.data.tokenize,
            "data.tokenizer": self.data and self.data.tokenizer,
            "data.max_length": self.data and self.data.max_length,
            "train.tokenizer": self.train and self.train.tokenizer,
        }
        if self.dataset and DATASETS.fact(self.dataset.name, "text", False):
            idle = {"audit.precision": self.audit.precision != "float32"}
        named = " and ".join(call.name for call in (self.dataset, self.model) if call)
        found = [str(self.error(key, f"has no effect on {named}")) for key, value in idle.items() if value]
        return found + [
            str(self.error(key, f"has no effect with audit.source: {self.origin.name}")) for key in self.idle
        ]


def load(file: Path, overrides: list[str] | None = None) -> Config:
    """Read and check a config; `overrides` are `key.path=value`, applied before the check.

    Raises UserError with one line per mistake, all of them, in the order of the file.
    """
    text = read_text(file)
    mistakes = Mistakes()
    places: dict[Path_, str] = {}
    node, raw = parse(text, str(file))
    if not isinstance(raw, dict):
        raise UserError(f"{file}:1: should hold the blocks {', '.join(BLOCKS)}, got {shown(raw)}")
    raw = {str(key): value for key, value in raw.items()}
    for path, line, duplicate in walk(node):
        places[path] = f"{file}:{line}"
        if duplicate:
            mistakes.append((path, f"written twice, the second time in line {line}: keep one"))
    for given in overrides or []:
        override(raw, given, places)
    if overrides:
        text = f"# {file} with --set {' '.join(overrides)}\n{yaml.safe_dump(raw, sort_keys=False)}"
    source = Source(str(file), text, places)

    blocks = [*BLOCKS, *ALWAYS, *MODULES, *(block_of(name) for name in SOURCES)]
    for key in raw:
        if key not in blocks:
            inside = [repr(f"{name}.{key}") for name, block in BLOCKS.items() if key in block.model_fields]
            meant = f"unknown key; did you mean {' or '.join(inside)}?" if inside else unknown_key(str(key), blocks)
            mistakes.append(((key,), meant))
    run = _block("run", raw, mistakes)
    audit = _block("audit", raw, mistakes)
    origin = _origin(raw, mistakes)
    used = _used(origin, raw)
    data, dataset = _block_and_call("data", "dataset", DATASETS, raw, mistakes) if "data" in used else (None, None)
    model, train, trainer = _training(raw, origin, mistakes) if "train" in used else (None, None, None)
    readable, wrong = (audit, set()) if audit else _readable("audit", raw, mistakes)
    attacks = _attacks(readable, origin, mistakes, wrong) if readable and origin else ()
    modules = [
        _bound(MODULES, name, _mapping(name, raw, mistakes), (name,), mistakes, (name,))
        for name in _modules(origin, raw, mistakes)
    ]
    gate = _checked(Gate, _mapping("gate", raw, mistakes), ("gate",), mistakes) if "gate" in raw else None
    mistakes.raise_if_any(source)
    assert run and audit and origin
    idle = [block for block in (*BLOCKS, *map(block_of, SOURCES)) if block in raw and block not in used]
    idle += [f"audit.{key}" for key in _fact(origin, "idle", ()) if key in (raw.get("audit") or {})]
    called = tuple(call for call in modules if call)
    return Config(run, audit, origin, data, train, dataset, model, trainer, attacks, called, source, tuple(idle), gate)


def block_of(origin: str) -> str:
    """The block that a source's settings are written in: of its own name, unless it says another."""
    return SOURCES.fact(origin, "block", origin)


def _fact(origin: Call, key: str, default: Any) -> Any:
    """What a source says of itself; `train` is no entry of the registry and says nothing."""
    return default if origin.name == TRAINED else SOURCES.fact(origin.name, key, default)


def _origin(raw: Mapping[str, Any], mistakes: Mistakes) -> Call | None:
    """What the audit starts from, as written or else by which blocks are there. None after a mistake."""
    audit = raw.get("audit")
    named = audit.get("source") if isinstance(audit, dict) else None
    here = [name for name in SOURCES if block_of(name) in raw]
    name = named or (here[0] if here else TRAINED)
    known = TRAINED if str(name).casefold() == TRAINED else SOURCES.find(str(name))
    if known is None:
        mistakes.append(
            (("audit", "source"), SOURCES.unknown(str(name)).replace("there are: ", f"there are: {TRAINED}, "))
        )
        return None
    if not named and (len(here) > 1 or (here and "train" in raw and "train" not in _blocks(here[0]))):
        both = " and ".join(f"{block}:" for block in [*map(block_of, here), *(["train"] if "train" in raw else [])])
        mistakes.append((("audit", "source"), f"the blocks {both} are here: say which one to start from"))
        return None
    if known == TRAINED:
        return Call(TRAINED, {})
    block = block_of(known)
    return _bound(SOURCES, known, _mapping(block, raw, mistakes), (block,), mistakes, (block,))


def _blocks(name: str) -> tuple[str, ...]:
    return (*SOURCES.fact(name, "blocks", ()), *SOURCES.fact(name, "optional", ()))


def _used(origin: Call | None, raw: Mapping[str, Any]) -> set[str]:
    """The blocks that are read with this origin; after a mistake those that are there, to find more."""
    if origin is None:
        return {"run", "audit", *raw}
    if origin.name == TRAINED:
        return set(BLOCKS)
    optional = [block for block in _fact(origin, "optional", ()) if block in raw]
    return {"run", "audit", block_of(origin.name), *_fact(origin, "blocks", ()), *optional}


def _modules(origin: Call | None, raw: Mapping[str, Any], mistakes: Mistakes) -> list[str]:
    """The audits beyond MIA that are switched on. One that cannot work on what is given is a mistake."""
    found = [name for name in MODULES if name in raw]
    for name in found:
        sources = MODULES.fact(name, "sources", (TRAINED,))
        if origin and origin.name not in sources:
            needs = f"works with audit.source: {' or '.join(sources)}, and here it is {origin.name}"
            mistakes.append(((name,), needs))
    return found


def _training(raw: Mapping[str, Any], origin: Call | None, mistakes: Mistakes) -> tuple[Call | None, Any, Call | None]:
    """The model, the block `train`, and the trainer: the one that is named, or else the model's own."""
    given = _fact(origin, "architecture", lambda settings: None)(origin.settings) if origin else None
    if given and isinstance(raw.get("train"), dict) and "model_name" not in raw["train"]:
        raw = {**raw, "train": {**raw["train"], "model_name": given}}  # what is given is of this kind
    name = _mapping("train", raw, Mistakes()).get("model_name")
    model = _call(MODELS, name, ("train", "model_name"), mistakes) if isinstance(name, str | dict) else None
    of_model = MODELS.fact(model.name, "trainer", "sgd") if model else "sgd"
    train, trainer = _block_and_call("train", "trainer", TRAINERS, raw, mistakes, default=of_model)
    kinds = TRAINERS.fact(trainer.name, "kinds", (TRAINERS.fact(trainer.name, "kind"),)) if trainer else ()
    if model and trainer and MODELS.fact(model.name, "kind") not in kinds:
        mistakes.append(
            (("train", "trainer"), f"{trainer.name} cannot train {model.name}: use {of_model}, or leave it out")
        )
    if model and trainer and model.name not in (only := TRAINERS.fact(trainer.name, "models", (model.name,))):
        way_out = f"train.model_name is {model.name}: leave train.trainer out"
        mistakes.append((("train", "trainer"), f"{trainer.name} trains {' and '.join(only)} only, {way_out}"))
    return model, train, trainer


def _block(name: str, raw: Mapping[str, Any], mistakes: Mistakes) -> Any:
    """The block's own keys, checked; None after a mistake."""
    return _checked(BLOCKS[name], _mapping(name, raw, mistakes), (name,), mistakes)


def _readable(name: str, raw: Mapping[str, Any], mistakes: Mistakes) -> tuple[Any, set[Any]]:
    """A block without its wrong keys, so that what hangs on the others is checked in the same go; and those keys."""
    wrong = {path[1] for path, _ in mistakes if len(path) > 1 and path[0] == name}
    values = raw.get(name)
    own = BLOCKS[name].model_fields
    rest = {key: values[key] for key in own if key in values and key not in wrong} if isinstance(values, dict) else {}
    return (_checked(BLOCKS[name], rest, (name,), Mistakes()) if rest else None), wrong


def _block_and_call(
    name: str, key: str, registry: Registry, raw: Mapping[str, Any], mistakes: Mistakes, default: str | None = None
) -> tuple[Any, Call | None]:
    """A block whose own `key` names a registered function, and whose other keys are that function's settings."""
    values = _mapping(name, raw, mistakes)
    own = BLOCKS[name].model_fields
    block = _checked(BLOCKS[name], {k: v for k, v in values.items() if k in own}, (name,), mistakes)
    function = values.get(key) or default
    if not isinstance(function, str):
        return block, None
    shared = registry.schema(function).model_fields if registry.find(function) else {}  # keys that both have
    rest = {k: v for k, v in values.items() if k not in own or k in shared}
    return block, _bound(registry, function, rest, (name,), mistakes, (name, key), siblings=list(own))


def _mapping(name: str, raw: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Any]:
    values = raw.get(name)
    if values is None:
        values = {}
    elif not isinstance(values, dict):
        mistakes.append(((name,), f"should be a block of keys, got {shown(values)}"))
        values = {}
    return {str(key): value for key, value in values.items()}


def _checked(model: type[BaseModel], values: Mapping[str, Any], path: Path_, mistakes: Mistakes) -> Any:
    try:
        return model(**values)
    except ValidationError as error:
        defaults = [field.default for field in model.model_fields.values()]
        inner = [key for value in defaults if isinstance(value, BaseModel) for key in type(value).model_fields]
        mistakes.validation(path, error, [*model.model_fields, *inner])
        return None


def _call(registry: Registry, value: Any, path: Path_, mistakes: Mistakes) -> Call | None:
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
    mistakes: Mistakes,
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
    if foreign := registry.fact(known, "foreign"):  # settings that a library knows, e.g. an estimator's own
        own = registry.schema(known).model_fields
        wrong = foreign(name, {key: value for key, value in given.items() if key not in own})
        mistakes.extend(((*path, key) if key else name_path, message) for key, message in wrong)
    return Call(name if known.endswith("*") else known, settings, given)


def _attacks(audit: Audit, origin: Call, mistakes: Mistakes, wrong: set[Any]) -> tuple[Call, ...]:
    """The attacks asked for, no two the same; where models are trained, each with enough references.

    wrong: keys of the block that hold mistakes, about which no more is said.
    """
    if "algorithm" in wrong:
        return ()
    if audit.algorithm is None or "algorithm" in _fact(origin, "idle", ()):
        if _fact(origin, "needs_algorithm", True):
            mistakes.append((("audit", "algorithm"), "missing, and has no default"))
        return ()
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
    calls = {label: _completed(call, calls.values()) for label, call in calls.items()}
    trained = origin.name == TRAINED or "train" in _fact(origin, "blocks", ())
    counted = trained and "num_ref_models" not in wrong
    if counted and (short := [call for call in calls.values() if min_pairs(call) > audit.num_ref_models]):
        needs = " and ".join(f"{call.label} needs {min_pairs(call)}" for call in short)
        mistakes.append((("audit", "num_ref_models"), f"{audit.num_ref_models} is too few: {needs}"))
    return tuple(calls.values())


def _completed(call: Call, others: Iterable[Call]) -> Call:
    """An attack that combines the others of the run gets to know them, where it names none itself."""
    combines = ATTACKS.fact(call.name, "combines")
    return replace(call, settings=combines(call.settings, others)) if combines else call


def bound_model(written: str | dict[str, Any], path: Path_, source: Source) -> Call:
    """A model that something else than `train.model_name` names. Raises UserError at the place of `path`."""
    mistakes = Mistakes()
    call = _call(MODELS, written, path, mistakes)
    mistakes.raise_if_any(source)
    assert call
    return call


def min_pairs(call: Call) -> int:
    """The least audit.num_ref_models that an attack can work with."""
    fact: int | Callable[[Mapping[str, Any]], int] = ATTACKS.fact(call.name, "min_pairs", 0)
    return fact if isinstance(fact, int) else fact(call.settings)
