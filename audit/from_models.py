"""`model:` in a config: an audit of models that were trained elsewhere (tier 2).

Each is read once, safely, fitted into its architecture, and written into the run directory like the models that this
tool trains; from there on nothing else knows the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray as Array

from audit import hub_files
from audit.available import lacks, runnable
from audit.plan import make_plan, plan_of
from audit.session import Brought, Session, prepare, records_digest
from core.config import TRAINED, Call, Config, bound_model
from core.errors import UserError
from core.loading import inside, read_array, read_arrays, read_bytes, read_json
from core.registry import DATASETS, MODELS, SOURCES
from core.rundir import read_stamp
from core.types import AuditData, Plan, Records

log = logging.getLogger(__name__)

OWN = "member"  # the group that says who was trained on, if nothing else does
ANY_DATA = ("files", "original_pickle")  # datasets that hold whatever they are given
RECIPE = ("optimizer", "batch_size", "epochs", "learning_rate", "weight_decay", "epsilon", "delta")  # kept as told


@SOURCES.register(
    "models",
    block="model",
    summary="models that were trained elsewhere: a run of this or the original tool, or checkpoints of your own",
    blocks=("data",),
    optional=("train",),
    architecture=lambda settings: settings["factory"] or settings["name"],
)
def models(
    config: Config,
    *,
    folder: Path | None = None,
    weights: Path | tuple[Path, ...] | None = None,
    member: str | None = None,
    name: str | dict[str, Any] | None = None,
    factory: str | dict[str, Any] | None = None,
    mean: float | tuple[float, ...] | None = None,
    std: float | tuple[float, ...] | None = None,
    anywhere: bool = False,
) -> Session:
    """Audit models that are there already, given with who trained on what: any membership, no pairs are needed.

    Either `folder`, or `weights` and `member`, or, of a language model, its folder as `name: hf:<folder>`. The
    first run.num_experiments models are the targets; every other one whose membership does not settle the target's
    is a reference (audit.num_ref_models: n takes 2n of them). With a block `train`, all models given are targets,
    and audit.num_ref_models pairs of references are trained by its recipe.

    - folder: a run of this tool or of the original one: what holds models_metadata.json and memberships.npy
    - weights: a file, or one file for each model: .safetensors, .pt, .pth or .pkl, of the state dict alone; or, of a
      language model, its folder as transformers or PEFT save it (the model, in shards or not; adapters, on their base)
    - member: who trained on which record of the pool: .npy or .npz of true and false (models x records), or, of one
      model, the indices of its records; .txt or .csv with an id on each line; or `column:` and one of the data's
      groups; if left out, the group `member` (which data.non_member_file makes)
    - name: the architecture, a registered model or {name: …, its settings}; if left out, what the metadata say
    - factory: an architecture of yours: file:function of a --plugin file, or {name: file:function, its settings}. It is
      called with the shape of a record and the number of classes (or with nothing, if it takes nothing)
    - mean: what the models were given is (x - mean) / std, in the units of the data (images: 0 to 255); if left out it
      is as the dataset says, and for images of the original tool 127.5
    - std: see mean
    - anywhere: believe metadata that name files outside of the folder
    """
    name = hub_files.named(config, name, weights)
    if weights is None and folder is None:
        try:
            weights = hub_files.own_folder(name)
        except UserError as error:
            raise config.error("model.name", str(error)) from None
    if (folder is None) == (weights is None):
        ways = "folder (a run's), or weights and member, or name: hf:<folder> of a language model"
        raise config.error("model", f"give either {ways}")
    given = _of_folder(config, folder, anywhere) if folder is not None else _of_files(config, weights, member)
    config = replace(config, model=_architecture(config, name, factory, given))
    session = prepare(replace(config, origin=Call(TRAINED, {})))
    rows = given.rows(session.data.pool)
    session = replace(session, population=_outsiders(member or f"column:{OWN}", session))
    original = any(path.suffix == ".pkl" for path in given.files)
    data = _normalised(config, _without(session.data, member or f"column:{OWN}"), mean, std, original=original)
    plan, config = _plan(config, rows)
    brought = {
        model: _brought(config, given.files[model], given.told[model])
        for model in plan.models
        if model < (len(rows) if config.train is None else len(plan.targets))
    }
    session = replace(
        session,
        config=config,
        data=data,
        plan=plan,
        brought=brought,
        pool_digest=records_digest(data, data.pool),
        population_digest=records_digest(data, data.population),
    )
    if wrong := {call.label: missing for call in config.attacks if (missing := lacks(session, call))}:
        said = "; ".join(f"{label} lacks {' and '.join(one.what for one in of)}" for label, of in wrong.items())
        others = ", ".join(call.name for call in runnable(session))
        raise config.error("audit.algorithm", f"{said}. A block train: would train references; without: {others}")
    return session


def _brought(config: Config, path: Path, told: Mapping[str, Any]) -> Brought:
    try:
        peft = hub_files.peft_of(path) if hub_files.is_adapter(path) else None
        return Brought(path, hub_files.sha256(path), told, peft)
    except UserError as error:
        raise config.error("model.weights", str(error)) from None


@dataclass(frozen=True)
class _Models:
    """Models as they were given."""

    files: Sequence[Path]
    told: Sequence[Mapping[str, Any]]  # of each, what is known of how it was trained
    rows: Callable[[Records], Bool[Array, "M D"]]  # who trained on which record of the pool
    name: str | None = None  # the architecture, if it is known
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the architecture
    metadata: Path | None = None


def _of_folder(config: Config, folder: Path, anywhere: bool) -> _Models:
    """What models_metadata.json and memberships.npy say."""
    inner = folder / "models" if (folder / "models" / "models_metadata.json").exists() else folder
    path, matrix = inner / "models_metadata.json", inner / "memberships.npy"
    wrong = partial(config.error, "model.folder")
    try:
        entries = _entries(read_json(path), path)
        files = [inside(inner, entry["model_path"], str(path), anywhere=anywhere) for entry in entries.values()]
        member = _rows(read_array(matrix), str(matrix))
        settings = _settings_of(files[0])
    except UserError as error:
        raise wrong(str(error)) from None
    if max(entries) >= len(member):
        raise wrong(f"{path} has model {max(entries)}, {matrix} has {len(member)} rows")
    member = member[list(entries)]
    for number, entry, row in zip(entries, entries.values(), member, strict=True):
        count = entry.get("num_train")
        if isinstance(count, int) and count != row.sum():
            raise wrong(f"{path}: model {number} trained on {count} records, {matrix} says {row.sum()}")
    names, datasets = ({str(entry.get(key)) for entry in entries.values()} for key in ("model_name", "dataset"))
    if len(names) > 1:
        raise wrong(f"{path}: models of several kinds: {_listed(names)}. Put those of one kind into a folder")
    assert config.dataset
    own = config.dataset.name
    if own not in ANY_DATA and datasets - {own, "None"} and own in DATASETS and datasets <= DATASETS.keys():
        raise config.error("data.dataset", f"{own}, and the models of {inner} were trained on {_listed(datasets)}")

    def rows(pool: Records) -> Bool[Array, "M D"]:
        if member.shape[1] == len(pool):
            return member
        other = "these models were trained on other data"
        raise wrong(f"{matrix} is about {member.shape[1]} records, the pool has {len(pool)}: {other}")

    (name,) = names
    return _Models(files, list(entries.values()), rows, None if name == "None" else name, settings, path)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(name[:40] for name in names))


def _entries(value: Any, path: Path) -> dict[int, Mapping[str, Any]]:
    """The metadata of each model by its number."""
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path} names no models: it should hold an entry for each, by its number")
    entries = {}
    for key, entry in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 9):
            raise UserError(f"{path}: {key[:40]!r} is no number of a model")
        if not isinstance(entry, dict) or not isinstance(entry.get("model_path"), str):
            raise UserError(f"{path}: model {key} has no model_path")
        entries[int(key)] = entry
    return dict(sorted(entries.items()))


def _settings_of(file: Path) -> dict[str, Any]:
    """The settings of the architecture, which this tool keeps with each model; the original has none."""
    prefix = "train.model_name."
    made = read_stamp(file) if file.suffix == ".safetensors" else None
    if made is None:
        return {}
    return {key.removeprefix(prefix): value for key, value in made["settings"].items() if key.startswith(prefix)}


def _of_files(config: Config, weights: Path | Sequence[Path] | None, member: str | None) -> _Models:
    """Files of weights and the memberships that go with them."""
    assert weights is not None
    files = [weights] if isinstance(weights, Path) else list(weights)
    if not files:
        raise config.error("model.weights", "names no file")
    for file in files:
        if not file.exists():
            raise config.error("model.weights", f"{file}: there is no such file or folder")
        if file.is_dir():
            try:
                hub_files.check(file)
            except UserError as error:
                raise config.error("model.weights", str(error)) from None
    files = [file.parent if file.name == hub_files.ADAPTER_WEIGHTS else file for file in files]

    def rows(pool: Records) -> Bool[Array, "M D"]:
        if member is None and OWN not in pool.groups:
            ways = "name a file of memberships, or give the texts in two files (data.non_member_file)"
            raise config.error("model.member", f"missing: who trained on which record? {ways}")
        try:
            return _membership(member or f"column:{OWN}", pool, len(files))
        except UserError as error:
            raise config.error("model.member", str(error)) from None

    return _Models(files, [{}] * len(files), rows)


def _membership(member: str, pool: Records, count: int) -> Bool[Array, "M D"]:
    """The memberships (models, records) that `member` stands for. Raises UserError."""
    kind, colon, column = member.partition(":")
    if colon and kind == "column":
        if column not in pool.groups:
            there = ", ".join(sorted(pool.groups)) or "none"
            raise UserError(f"the data have no column {column!r}; there are: {there}")
        return _shaped(_truth(np.asarray(pool.groups[column])), pool, count, f"column {column}")
    path = Path(member)
    if path.suffix == ".npy":
        return _shaped(read_array(path), pool, count, member)
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        if len(arrays) != 1 and "member" not in arrays:
            raise UserError(f"{member} holds {', '.join(sorted(arrays)) or 'nothing'}: call the array `member`")
        return _shaped(arrays.get("member", next(iter(arrays.values()))), pool, count, member)
    if path.suffix in (".txt", ".csv"):
        return _shaped(_positions(path, pool), pool, count, member)
    raise UserError(f"{member!r} is no .npy, .npz, .txt or .csv file, and no column:name")


TRUTHS = {"true": 1, "1": 1, "yes": 1, "member": 1, "false": 0, "0": 0, "no": 0, "non-member": 0, "nonmember": 0}


def _truth(column: np.ndarray) -> np.ndarray:
    """A column of a file that says true and false in words, as 1 and 0; any other as it is."""
    if column.dtype.kind not in "UO":
        return column
    said = [TRUTHS.get(str(entry).strip().casefold()) for entry in column]
    return column if None in said else np.array(said, dtype=np.int64)


def _outsiders(member: str | None, session: Session) -> np.ndarray:
    """The population points that the same column does not call members: those may be drawn from the same file."""
    kind, _, column = (member or "").partition(":")
    groups = session.data.population.groups
    if kind != "column" or column not in groups:
        return session.population
    told = _truth(np.asarray(groups[column]))[session.population]
    return session.population[told != 1] if told.dtype.kind in "biuf" else session.population


def _without(data: AuditData, member: str) -> AuditData:
    """The data without the group that is the membership: reports by it would say nothing."""
    kept = {name: of for name, of in data.pool.groups.items() if member != f"column:{name}"}
    return replace(data, pool=replace(data.pool, groups=kept))


def _positions(path: Path, pool: Records) -> np.ndarray:
    """The positions in the pool of the ids on the lines of a file."""
    try:
        lines = [line.strip() for line in read_bytes(path).decode().splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
    names = range(len(pool)) if pool.ids is None else pool.ids
    where = {str(name): position for position, name in enumerate(names)}
    wanted = [line for line in lines if line]
    if unknown := [line for line in wanted if line not in where]:
        raise UserError(f"{path}: {unknown[0][:40]!r} and {len(unknown) - 1} more are no records of the pool")
    return np.array([where[line] for line in wanted], dtype=np.int64)


def _shaped(array: np.ndarray, pool: Records, count: int, what: str) -> Bool[Array, "M D"]:
    """Memberships from a matrix of true and false, or, of one model, from the indices of its records."""
    one_row = array.ndim == 1 and count == 1
    if one_row and array.dtype.kind in "iu" and not (len(array) == len(pool) and set(np.unique(array)) <= {0, 1}):
        if len(array) and not (array.min() >= 0 and array.max() < len(pool)):
            raise UserError(f"{what}: index {array.min() if array.min() < 0 else array.max()} is outside of the pool")
        row = np.zeros(len(pool), dtype=bool)
        row[array] = True
        return row[None]
    rows = _rows(array[None] if one_row else array, what)
    if rows.shape != (count, len(pool)):
        needed = f"{count} models and a pool of {len(pool)} records need {(count, len(pool))}"
        raise UserError(f"{what} has shape {array.shape}: {needed}")
    return rows


def _rows(array: np.ndarray, what: str) -> Bool[Array, "M D"]:
    """A matrix of true and false, whatever numbers it is written in."""
    if array.ndim != 2 or not array.size:
        raise UserError(f"{what} has shape {array.shape}: memberships are models x records")
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise UserError(f"{what}: memberships are true and false (or 1 and 0), nothing else")
    return np.ascontiguousarray(array.astype(bool))


def _architecture(
    config: Config, name: str | dict[str, Any] | None, factory: str | dict[str, Any] | None, given: _Models
) -> Call:
    """The architecture of all models: as the block `train` or `model` says, or else as the metadata do."""
    if config.model is not None:
        return config.model
    if name is not None and factory is not None:
        raise config.error("model.factory", "give either name (a registered model) or factory (a function of yours)")
    if factory is not None and ":" not in (factory if isinstance(factory, str) else str(factory.get("name"))):
        raise config.error("model.factory", f"should be file:function of a --plugin file, got {factory!r}")
    key = "factory" if factory is not None else "name"
    written: Any = factory if factory is not None else name
    if written is None:
        if given.name is None:
            raise config.error("model.name", "missing: which architecture are the weights of? Or give a factory")
        if MODELS.find(given.name) is None:
            raise config.error("model.name", f"missing, and {given.metadata} says {MODELS.unknown(given.name)}")
        written = {"name": given.name, **given.settings}
    return bound_model(written, ("model", key), config.source)


def _normalised(
    config: Config,
    data: AuditData,
    mean: float | tuple[float, ...] | None,
    std: float | tuple[float, ...] | None,
    *,
    original: bool,
) -> AuditData:
    """The data, normalised as the models expect."""
    if (mean is None) != (std is None):
        raise config.error("model.std" if std is None else "model.mean", "missing: give both mean and std, or neither")
    if mean is None or std is None:
        if not (original and data.is_image):
            return data
        mean = std = 127.5
        log.warning("images are given to the models as the original tool does it: (x - 127.5) / 127.5; see model.mean")
    widths = (1, data.input_shape[0]) if data.is_image else (1,)
    found = [value if isinstance(value, tuple) else (value,) for value in (mean, std)]
    for key, values in zip(("mean", "std"), found, strict=True):
        if len(values) not in widths or not np.isfinite(values).all() or (key == "std" and min(values) <= 0):
            raise config.error(
                f"model.{key}", f"should be {' or '.join(map(str, widths))} finite numbers (std: above 0)"
            )
    width = max(map(len, found))
    return replace(data, **{k: v * width if len(v) == 1 else v for k, v in zip(("mean", "std"), found, strict=True)})


def _plan(config: Config, rows: Bool[Array, "M D"]) -> tuple[Plan, Config]:
    """Who is audited and who is compared with whom."""
    run, audit = config.run, config.audit
    count = run.num_experiments if "num_experiments" in run.model_fields_set or not config.train else len(rows)
    if count > len(rows):
        raise config.error("run.num_experiments", f"{count} targets, and {len(rows)} models are given")
    for model in range(count):
        if rows[model].all() or not rows[model].any():
            what = "every record" if rows[model].any() else "no record"
            raise config.error("model", f"model {model} trained on {what} of the pool: there is nothing to compare")
    if config.train is None:
        pairs = audit.num_ref_models if "num_ref_models" in audit.model_fields_set else None
        return plan_of(rows, range(count), pairs), config
    if not audit.num_ref_models:
        raise config.error("audit.num_ref_models", "0, and there is a block train: how many pairs of references?")
    first = (count + 1) // 2
    trained = make_plan(rows.shape[1], 0, first + audit.num_ref_models - 1, run.random_seed).member
    member = np.concatenate([rows[:count], trained[count:]])
    references = tuple(range(2 * first, 2 * (first + audit.num_ref_models)))
    return Plan(member, (references,) * count), config


def bring_in(session: Session, models_: Sequence[int], device: Any) -> None:
    """Write these models, which were given, into the run directory. Raises UserError for one that does not fit."""
    from audit.model_files import build
    from audit.state_dicts import fit, read_state_dict
    from audit.training import write_model
    from trainers.resident import Resident

    data = session.data
    assert session.config.model
    pool = Resident.of(data.pool, data.mean, data.std, device)
    population = Resident.of(data.population, data.mean, data.std, device)
    for model in models_:
        brought = session.brought[model]
        network, name = build(session, model), session.config.model.label
        if brought.path.is_dir():
            hub_files.fill(network, brought.path, name)
        else:
            fit(network, read_state_dict(brought.path), f"{brought.path} (model {model}, {name})")
        told = {key: brought.told[key] for key in RECIPE if key in brought.told}
        write_model(session, model, network.to(device).eval(), pool, population, **told, given=str(brought.path))
