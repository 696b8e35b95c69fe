"""What a run works on: the data, the plan, the chosen points, the device. Made before anything is written."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from audit.given import Given
from audit.plan import choose, make_plan
from core.config import TRAINED, Config
from core.errors import UserError, WrongSetting
from core.registry import DATASETS, MODELS, SOURCES
from core.rng import stream
from core.rundir import digest
from core.types import AuditData, Plan, Records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Brought:
    """A model that was trained elsewhere."""

    path: Path  # of a file of weights, or of a folder as transformers or PEFT save it
    sha256: str  # of the file, or of those in the folder
    told: Mapping[str, Any]  # what its metadata say of how it was trained
    peft: Mapping[str, Any] | None = None  # the settings of its adapters, if it is some on a base


@dataclass(frozen=True)
class Session:
    config: Config
    data: AuditData
    plan: Plan
    points: Int[Array, " N"]  # indices into the pool
    population: Int[Array, " P"]  # indices into the population
    pool_digest: str
    population_digest: str
    brought: Mapping[int, Brought] = field(default_factory=dict)  # models that were trained elsewhere
    given: Given | None = None  # signals that were brought along, in the place of models
    name: str = ""  # of another set of models beside the run's own: `replace(session, name="duci", plan=…)`

    @property
    def folder(self) -> Path:
        """Where this set of models and its signals are kept."""
        return self.config.run.log_dir / self.name

    def brought_from(self, model: int) -> Brought | None:
        """Where a model of the run's own set came from, if it was not trained here."""
        return None if self.name else self.brought.get(model)

    @property
    def dataset(self) -> str:
        """What the data are called."""
        dataset = self.config.dataset
        return dataset.name if dataset else self.config.origin.settings.get("dataset", self.config.origin.name)

    def stream(self, *purpose: str | int) -> np.random.Generator:
        """The run's stream of this purpose; each set of models has its own."""
        return stream(self.config.run.random_seed, *((self.name,) if self.name else ()), *purpose)


def prepare(config: Config) -> Session:
    """Load the dataset and lay the plan. Raises UserError for what the data cannot give; writes nothing.

    Where this tool does not train everything, the function of the source does it.
    """
    if config.origin.name != TRAINED:
        return SOURCES[config.origin.name](config, **config.origin.settings)
    assert config.data and config.dataset
    name = config.dataset.name
    try:
        data = DATASETS[name](
            config.data.data_dir, config.run.random_seed, *DATASETS.rest(name), **config.dataset.settings
        )
        data = _tokenised(config, data) if data.is_text else data
    except WrongSetting as error:
        raise _and_the_model(config, config.error(error.key, error.message)) from None
    run, audit = config.run, config.audit
    data, owner = by_owner(config, data) if config.data.owner else (data, None)
    if len(data.pool) < 4:
        raise config.error("data", f"the pool has {len(data.pool)} records: an audit needs at least 4")
    for key, asked, there in (
        ("data_size", audit.data_size, len(data.pool)),
        ("population_size", audit.population_size, len(data.population)),
    ):
        if asked is not None and asked > there:
            raise config.error(
                f"audit.{key}", f"{asked} is more than the {there} records that {config.dataset.name} has"
            )
    if audit.queries > 1 and not data.is_image:
        raise config.error("audit.queries", f"mirror and shift need images, {config.dataset.name} has none: use 1")
    return Session(
        config=config,
        data=data,
        plan=make_plan(len(data.pool), run.num_experiments, audit.num_ref_models, run.random_seed, owner),
        points=choose(len(data.pool), audit.data_size, run.random_seed, "points"),
        population=choose(len(data.population), audit.population_size, run.random_seed, "population"),
        pool_digest=records_digest(data, data.pool),
        population_digest=records_digest(data, data.population),
    )


def by_owner(config: Config, data: AuditData) -> tuple[AuditData, Int[Array, " D"]]:
    """The data, without population records of owners in the pool; and of each record of the pool its owner's number."""
    assert config.data and config.data.owner
    column, pool, population = config.data.owner, data.pool, data.population
    if column not in pool.groups:
        there = ", ".join(sorted(pool.groups)) or "none; the datasets files, text_file and hf:<name> have some"
        raise config.error("data.owner", f"the data have no column of groups {column!r}; there are: {there}")
    names, number = np.unique(np.asarray(pool.groups[column]), return_inverse=True)
    if len(names) < 4:
        raise config.error("data.owner", f"{column!r} has {len(names)} owners in the pool: an audit needs at least 4")
    if column in population.groups:
        strangers = ~np.isin(population.groups[column], names)
        if not strangers.all():
            log.warning(
                "data.owner: %d of %d population records are of owners in the pool, and left out: they would look like "
                "their owners' others",
                *(int((~strangers).sum()), len(population)),
            )
            data = replace(data, population=population.select(np.flatnonzero(strangers)))
    return data, number


def _and_the_model(config: Config, error: UserError) -> UserError:
    """The same, and that the model is missing, too, if it is: who fetches files fetches all of them at once."""
    from models.language import context_of

    if config.model is None or MODELS.fact(config.model.name, "needs") != "text":
        return error
    try:
        context_of(config.model.name, config.model.settings)
    except UserError as other:
        return UserError(f"{error}\n{config.error('train.model_name', str(other))}")
    return error


def records_digest(data: AuditData, records: Records) -> str:
    """Of all that a model sees of these records."""
    return digest(records.x, records.y, data.mean, data.std, *([] if records.lengths is None else [records.lengths]))


def _tokenised(config: Config, data: AuditData) -> AuditData:
    """The texts as tokens of the tokenizer that the config names, or else of the model's own.

    A model made from scratch gets one trained on all texts, of pool and population alike: nothing in it depends on
    who is a member of what.
    """
    from dataset.tokens import byte_pairs, tokenised
    from models.language import context_of, pretrained, tokenizer_json

    named = [name for name in (config.data.tokenizer, config.train and config.train.tokenizer) if name]
    if len(set(named)) > 1:
        raise config.error(
            "train.tokenizer", f"{named[1]!r}, but data.tokenizer is {named[0]!r}: they are the same thing"
        )
    try:
        context = context_of(config.model.name, config.model.settings)
        source = pretrained(config.model.name)
    except UserError as error:
        raise config.error("train.model_name", str(error)) from None
    if named or source:
        try:
            tokenizer = tokenizer_json(named[0] if named else source)
        except UserError as error:
            key = "data.tokenizer" if config.data.tokenizer else "train.tokenizer" if named else "train.model_name"
            raise config.error(key, str(error)) from None
    else:
        texts = [*(data.pool.texts or ()), *(data.population.texts or ())]
        tokenizer = byte_pairs(texts, config.model.settings.get("vocab_size", 1000))
    wanted = config.data
    return tokenised(
        data,
        tokenizer,
        context=context,
        max_length=wanted.max_length,
        truncate=wanted.truncate,
        cache=wanted.data_dir / "tokens",
    )


def device_of(config: Config, block: str) -> Any:
    """The torch device named in `block` ("train" or "audit"). Raises UserError if this machine has no such device."""
    import torch

    block = block if getattr(config, block) else "audit"  # where nothing is trained
    name = getattr(config, block).device
    if name == "auto" or (config.run.engine == "ray" and name.startswith("cuda")):  # which the nodes are to have
        mps = getattr(torch.backends, "mps", None)
        name = "cuda" if torch.cuda.is_available() else "mps" if mps and mps.is_available() else "cpu"
    try:
        return device_named(name)
    except UserError as error:
        way_out = "use --set train.device=cpu audit.device=cpu, or `device: auto`"
        raise config.error(f"{block}.device", f"{error}: {way_out}") from None


def device_named(name: str) -> Any:
    """The torch device of this name. Raises UserError if this machine has none."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name!r} cannot be used on this machine ({reason})") from None
    return device


def make_reproducible(threads: int) -> None:
    """Fix what decides the bits of a result on one machine: threads and deterministic kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def environment(device: Any) -> dict[str, Any]:
    """Versions, device (None: torch was not used) and commit: what a reader needs to judge or repeat the run."""
    packages = {}
    for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "transformers", "tokenizers", "peft"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **({} if device is None else _of_device(device)),
        "packages": packages,
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _of_device(device: Any) -> dict[str, Any]:
    import torch

    from trainers.loop import auto_precision

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_threads": torch.get_num_threads(),
        "precision that `auto` means here": auto_precision(device),
    }


def _commit() -> str:
    """The commit of this code, "+changes" if the tree differs from it, "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    try:
        ask = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        return ask("rev-parse", "--short", "HEAD") + ("+changes" if ask("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
