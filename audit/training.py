"""From the plan to trained models on disk. Finished models are found again; only missing ones are trained."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.engines import places, run_units
from audit.model_files import build, from_files, to_files, weights_path
from audit.session import Session
from audit.workers import Lost
from core import rundir
from core.claims import Claims
from core.errors import StaleArtefact, UserError
from core.log import progress
from core.registry import MODELS, TRAINERS
from core.types import Settings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks at what others do
TRAINING = "training models"
OUT_OF_MEMORY = "out of memory: lower train.batch_size, train.stack or run.workers"


def stamp(session: Session, model: int) -> dict[str, Any]:
    """Everything that model `model` is a function of."""
    if brought := session.brought_from(model):
        of = session.config.settings()
        made = {key: value for key, value in of.items() if key.startswith("train.model_name")}
        made |= {"given file (sha256)": brought.sha256}
    else:
        made = session.config.settings()
    return {
        **made,
        **_of_base(session),
        "model number": model,
        "pool records (sha256)": session.pool_digest,
        "its training set (sha256)": rundir.digest(np.packbits(session.plan.member[model])),
    }


def _of_base(session: Session) -> dict[str, Any]:
    """The weights that training starts from, where they are in a directory that may change under its name."""
    from models.language import pretrained

    source = pretrained(session.config.model.name) if session.config.model else None
    if source is None:
        return {}
    from models.pretrained import digest_of

    found = digest_of(source)
    return {} if found is None else {"pretrained weights (sha256)": found}


def missing_models(session: Session) -> list[int]:
    """The planned models that are not trained yet. Raises StaleArtefact if any was trained in another way."""
    if session.given is not None:
        return []
    _check_memberships(session)
    return _unfinished(session, session.plan.models)


def _unfinished(session: Session, models: Sequence[int]) -> list[int]:
    return [m for m in models if not rundir.is_made(weights_path(session, m), stamp(session, m))]


def train_missing(session: Session, device: torch.device, share: Share | None = None) -> None:
    """Train every planned model that is not there yet, and keep models_metadata.json true after each stack.

    share: these models only, of which others may train some at the same time; returns when all of them are there.
    A model that cannot be trained is reported by its number in one UserError at the end; the others are kept.
    """
    if session.given is not None:
        return
    missing = missing_models(session)
    _write_memberships(session)
    write_metadata(session)
    if not share and (given := [model for model in missing if session.brought_from(model)]):
        from audit.from_models import bring_in

        bring_in(session, given, device)
        write_metadata(session)
        missing = [model for model in missing if model not in given]
    planned = share.models if share else session.plan.models
    missing = [model for model in missing if model in planned]
    if not missing:
        log.info("models: all %d are there", len(planned))
        return
    log.info("models: %d to train, %d there", len(missing), len(planned) - len(missing))
    failed: dict[int, str] = {}
    try:
        if share is None:
            _train(session, missing, failed)
        else:
            said = False
            while todo := [model for model in _unfinished(session, missing) if model not in failed]:
                if free := share.free(todo):
                    _train(session, free, failed, share)
                    continue
                if not said:
                    log.info("waiting for models %s, which others train", ", ".join(map(str, todo)))
                    said = True
                time.sleep(POLL)
    finally:
        write_metadata(session)
    if failed:
        raise UserError(_report(failed, len(missing)))


def _train(session: Session, missing: list[int], failed: dict[int, str], share: Share | None = None) -> None:
    """Train these; why not, for those that failed."""
    stacks = stacks_of(session, missing)
    setup = _trainer if share is None else partial(_trainer_of_share, share.claims)
    units = run_units(session, stacks, setup, "train", what=TRAINING, at_least=_at_least(session, missing))
    written, took = time.monotonic(), 0.0
    for stack, failures in progress(units, TRAINING, total=len(missing), of=lambda unit: len(unit[0])):
        lost = isinstance(failures, Lost)
        failed |= dict.fromkeys(stack, failures.reason) if lost else failures
        if share is None and (start := time.monotonic()) - written >= 20 * took:  # it reads the stamps of all models
            write_metadata(session)
            written = time.monotonic()
            took = written - start


@dataclass(frozen=True)
class Share:
    """The part of the plan that this process trains, where others train theirs in the same directory."""

    models: Sequence[int]
    claims: Claims

    def free(self, models: list[int]) -> list[int]:
        """Those of these that nobody else works on."""
        return [model for model in models if self.claims.owner(f"model_{model}") in (None, self.claims.name)]


def _trainer_of_share(claims: Claims, session: Session, device: torch.device) -> Callable[[list[int]], dict[int, str]]:
    return partial(_train_claimed, claims, session, _trainer(session, device))


def _train_claimed(claims: Claims, session: Session, work: Callable, stack: list[int]) -> dict[int, str]:
    """Train those of a stack that nobody else works on, or has finished."""
    rundir.hold_of(claims.hold)
    mine = [model for model in stack if claims.take(f"model_{model}")]
    try:
        todo = _unfinished(session, mine)
        return work(todo) if todo else {}
    finally:
        for model in mine:
            claims.give_back(f"model_{model}")


def _report(failed: Mapping[int, str], tried: int) -> str:
    numbers: dict[str, list[int]] = {}
    for model, why in sorted(failed.items()):
        numbers.setdefault(why, []).append(model)
    reasons = "; ".join(f"models {', '.join(map(str, models))}: {why}" for why, models in numbers.items())
    return f"{len(failed)} of {tried} models could not be trained, the others are kept. {reasons}"


def stacks_of(session: Session, missing: list[int]) -> list[list[int]]:
    """The models in the stacks that they are trained in: what a crash can lose at most.

    As many stacks as keep all workers busy, of at most the width that the trainer says.
    """
    config, name = session.config, session.config.trainer.name
    crew, device = places(config, "train")
    if measured := TRAINERS.fact(name, "width"):
        width, how = measured(config.trainer.settings, lambda: build(session, missing[0]), device)
        log.info("models: %s, on %s", how, device)
    else:
        width = TRAINERS.fact(name, "stack", 1)
        width = width(config.trainer.settings) if callable(width) else width
    rounds = math.ceil(len(missing) / (width * crew))
    count = min(len(missing), rounds * crew)
    return [part.tolist() for part in np.array_split(missing, count)]


def _at_least(session: Session, models: list[int]) -> float:
    """Seconds that training these takes at least, where the settings tell: 0.05 ms a step."""
    settings = session.config.trainer.settings
    epochs, batch_size = settings.get("epochs", 0), settings.get("batch_size", 0)
    if not (epochs and batch_size):
        return 0.0
    return 5e-5 * float(epochs) * session.plan.member[models].sum() / batch_size


def _trainer(session: Session, device: torch.device) -> Callable[[list[int]], dict[int, str]]:
    """What trains a stack and writes its models: the data are put on the device once, for all stacks."""
    from trainers.resident import Resident

    data = session.data
    pool = Resident.of(data.pool, data.mean, data.std, device)
    population = Resident.of(data.population, data.mean, data.std, device)
    return partial(_train_or_explain, session, pool=pool, population=population)


def _train_or_explain(session: Session, stack: list[int], *, pool: Any, population: Any) -> dict[int, str]:
    """Train the stack. Returns why, for each model that failed.

    Where a stack fails, its models are trained one by one, to the same bytes: those fail that have a reason to.
    """
    settings = session.config.trainer.settings
    why = _tried(session, stack, pool, population, settings)
    if why and len(stack) > 1:
        log.warning("models %s: %s; now one by one", ", ".join(map(str, stack)), why)
        failed: dict[int, str] = {}
        for model in stack:
            failed |= _train_or_explain(session, [model], pool=pool, population=population)
        return failed
    own_way = "auto_find_batch_size" in settings
    may_halve = session.config.train.auto_find_batch_size and not own_way and settings.get("batch_size", 1) > 1
    if why == OUT_OF_MEMORY and may_halve:
        # Such a model is another function of its data than the others are: so it is asked for, said and recorded.
        half = settings["batch_size"] // 2
        log.warning("model %4d  %s: again with batches of %d (train.auto_find_batch_size)", stack[0], why, half)
        why = _tried(session, stack, pool, population, {**settings, "batch_size": half})
    if why:
        log.warning("model %4d  %s", stack[0], why)
    return {stack[0]: why} if why else {}


def _tried(session: Session, stack: list[int], pool: Any, population: Any, settings: Settings) -> str:
    """Train and write the models of a stack; why it cannot be done, or ""."""
    try:
        _train_stack(session, stack, pool, population, settings)
        return ""
    except (UserError, MemoryError, RuntimeError) as error:
        if isinstance(error, StaleArtefact) or not (why := _excuse(error)):
            raise
        return why


def _excuse(error: Exception) -> str:
    """Why a model could not be trained, if that is a reason to go on with the others; "" for a mistake of ours."""
    import torch

    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return OUT_OF_MEMORY
    return ""


def _train_stack(session: Session, stack: list[int], pool: Any, population: Any, settings: Settings) -> None:
    trainer = session.config.trainer
    fresh = [build(session, m).to(pool.x.device) for m in stack]
    members = session.plan.member[stack]
    start = time.perf_counter()
    streams = [session.stream("train", m) for m in stack]
    trained = TRAINERS[trainer.name](fresh, pool, members, streams, **settings)
    of_trainer = TRAINERS.fact(trainer.name, "facts", lambda settings, members: {})  # e.g. the epsilon spent
    unlike = {key: value for key, value in settings.items() if trainer.settings[key] != value}
    seconds = (time.perf_counter() - start) / len(stack)
    for number, model in zip(stack, trained, strict=True):
        # How it was trained, where the settings left that open or were not kept to.
        how = of_trainer(settings, int(session.plan.member[number].sum())) | getattr(model, "trained", {}) | unlike
        device = str(pool.x.device)
        write_model(session, number, model, pool, population, seconds=round(seconds, 3), device=device, **how)


def losses_path(session: Session, model: int) -> Path:
    """Where the losses of a model's members after each epoch are, if its trainer recorded them: (epochs, members)."""
    return session.folder / "models" / f"model_{model}.losses.npy"


def trace_path(session: Session, model: int) -> Path:
    """Where the log-odds of the pool after each epoch are, if its trainer recorded them: (epochs, D)."""
    return session.folder / "models" / f"model_{model}.trace.npy"


def write_model(
    session: Session, number: int, model: torch.nn.Module, pool: Any, population: Any, **facts: Any
) -> None:
    """The model's file and stamp, with what it is good for as further facts."""
    if session.data.is_text:
        from trainers.text import accuracy_and_loss
    else:
        from trainers.evaluate import accuracy_and_loss

    member = session.plan.member[number]
    train_acc, train_loss = accuracy_and_loss(model, pool, np.flatnonzero(member), session.config.audit.batch_size)
    test_acc, test_loss = accuracy_and_loss(model, population, None, session.config.audit.batch_size)
    path = weights_path(session, number)
    files, sha256 = to_files(model, path)
    weights = files.pop(path.name)
    if (trace := getattr(model, "loss_trace", None)) is not None:
        rundir.write_array(losses_path(session, number), trace)
    if (trace := getattr(model, "log_odds_trace", None)) is not None:
        rundir.write_array(trace_path(session, number), trace)
    for name, content in files.items():  # before the weights, which carry the stamp
        rundir.write_atomic(path.parent / name, lambda file, content=content: file.write(content))
    rundir.make(
        path,
        stamp(session, number),
        lambda file: file.write(weights),
        sha256=sha256,
        num_train=int(member.sum()),
        train_acc=train_acc,
        test_acc=test_acc,
        train_loss=train_loss,
        test_loss=test_loss,
        **facts,
    )
    log.info(
        "model %4d  train accuracy %.3f  test accuracy %.3f  train loss %.3f  test loss %.3f  %s",
        *(number, train_acc, test_acc, train_loss, test_loss),
        f"{facts['seconds']:.1f} s" if "seconds" in facts else f"from {facts['given']}",
    )


def load_model(session: Session, model: int, device: torch.device) -> torch.nn.Module:
    """A trained model, in eval mode. Raises UserError if its file is not the one that was written."""
    network = build(session, model)
    from_files(weights_path(session, model), network, facts(session, model)["sha256"])
    if session.config.model and MODELS.fact(session.config.model.name, "kind") == "estimator":
        network.training_set = partial(_training_set, session, model)  # to answer what it was not asked yet
    return network.to(device).eval()


def _training_set(session: Session, model: int) -> tuple[torch.Tensor, torch.Tensor]:
    from trainers.fit import data_of
    from trainers.resident import Resident

    data = session.data
    pool = Resident.of(data.pool, data.mean, data.std, "cpu")
    return data_of(pool, np.flatnonzero(session.plan.member[model]))


def facts(session: Session, model: int) -> Mapping[str, Any]:
    """What was measured when a finished model was made: accuracies, losses, seconds, digest of the weights."""
    made = rundir.read_stamp(weights_path(session, model))
    if made is None:
        raise UserError(f"{weights_path(session, model)} is missing: run the same command again")
    return made["facts"]


def role(session: Session, model: int) -> str:
    return "target" if model in session.plan.targets else "reference"  # a target is a reference of the others, too


def model_rows(session: Session) -> Iterator[dict[str, Any]]:
    """A row for each finished model, in the order of their numbers."""
    if session.given is not None:
        used = [session.given.models[model] for model in session.plan.models]
        yield from ({**row, "role": role(session, row["id"])} for row in used)
        return
    for model in session.plan.models:
        if made := rundir.read_stamp(weights_path(session, model)):
            yield {"id": model, "role": role(session, model), **made["facts"]}


def write_metadata(session: Session) -> None:
    """models_metadata.json: one entry a finished model, with the keys that the original tool writes, and ours."""
    config = session.config
    recipe = ("optimizer", "batch_size", "epochs", "learning_rate", "weight_decay")

    def trained(model: int) -> dict[str, Any]:
        """How it was trained here; of a model from elsewhere that is among its facts, as far as it is known."""
        return {} if session.brought_from(model) else {key: config.trainer.settings.get(key) for key in recipe}

    def entry(row: dict[str, Any]) -> dict[str, Any]:
        return {
            **{key: value for key, value in row.items() if key != "id"},
            **trained(row["id"]),
            "model_name": config.model.name,
            # Beside this file, wherever the folder is moved.
            "model_path": str(weights_path(session, row["id"]).relative_to(session.folder / "models")),
            "dataset": config.dataset.name,
        }

    rows = ((str(row["id"]), entry(row)) for row in model_rows(session))
    rundir.write_entries(session.folder / "models" / "models_metadata.json", rows)


def _memberships(session: Session) -> Path:
    return session.folder / "models" / "memberships.npy"


def _check_memberships(session: Session) -> None:
    """A smaller or larger plan of the same run agrees on the rows that both have."""
    path, planned = _memberships(session), session.plan.member
    if not path.exists():
        return
    there = np.load(path, mmap_mode="r", allow_pickle=False)
    rows = min(len(there), len(planned))
    if there.shape[1:] != planned.shape[1:] or not np.array_equal(there[:rows], planned[:rows]):
        why = "another run.random_seed or data.owner, or other data"
        raise StaleArtefact(f"{path} was made with {why}: choose another run.log_dir, or delete it")


def _write_memberships(session: Session) -> None:
    path = _memberships(session)
    if not path.exists() or len(np.load(path, mmap_mode="r", allow_pickle=False)) < len(session.plan.member):
        rundir.write_array(path, session.plan.member)
