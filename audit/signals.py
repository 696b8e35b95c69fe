"""Every model asked about every point, once; kept on disk, one file a model, point set and signal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from audit import heat_map, label_signals, quantile_signals, text_signals, trace_signals
from audit.engines import run_units
from audit.model_files import files_of
from audit.session import Session
from audit.training import Share, facts, load_model, trace_path
from audit.workers import Lost
from core import rundir
from core.claims import Claims
from core.config import Call, Config
from core.errors import UserError
from core.log import progress
from core.registry import ATTACKS
from core.types import LOG_ODDS, Evidence, Signal

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
ASKING = "querying models"
NOT_SHARED = ("token_divergence", "neighbour_log_p")  # of several models; of texts that are made once
Where = Literal["points", "population"]


@dataclass(frozen=True)
class Wanted:
    """One file: what `model` says of one point set, in one signal."""

    model: int
    where: Where
    signal: Signal


def signals_of(attacks: Sequence[Call]) -> tuple[Signal, ...]:
    """The signals that these attacks read; the log-odds always."""
    wanted: dict[Signal, None] = {LOG_ODDS: None}
    for call in attacks:
        signals = ATTACKS.fact(call.name, "signals")
        wanted.update(dict.fromkeys(signals(call.settings) if signals else ()))
    return tuple(wanted)


def wanted_of(config: Config) -> tuple[Signal, ...]:
    """The signals that a run reads: its attacks', and those that its report shows."""
    shown = (heat_map.LOG_P,) if config.audit.token_heat_map else ()
    return tuple(dict.fromkeys((*signals_of(config.attacks), *shown)))


def missing_signals(session: Session, models: Sequence[int] | None = None) -> dict[int, list[Wanted]]:
    """What must still be asked, by model. Raises StaleArtefact if a file is of another model or other points.

    models: these only, which are there when others are not yet; then of what can be asked of them alone.
    """
    missing: dict[int, list[Wanted]] = {}
    if session.given is not None:
        return missing
    for model in session.plan.models if models is None else models:
        for where in ("points", "population"):
            for signal in wanted_of(session.config):
                wanted = Wanted(model, where, signal)
                if models is not None and signal.kind in NOT_SHARED:
                    continue
                if asked(session, wanted) and not rundir.is_made(path_of(session, wanted), stamp(session, wanted)):
                    missing.setdefault(model, []).append(wanted)
    return missing


def asked(session: Session, wanted: Wanted) -> bool:
    """Whether there is such a file: not every signal is of the population, or of references."""
    of_set = wanted.where == "points" or wanted.signal.of_population
    by_kind = (text_signals.asked, label_signals.asked, quantile_signals.asked)
    return of_set and all(is_asked(session, wanted.model, wanted.signal) for is_asked in by_kind)


def path_of(session: Session, wanted: Wanted) -> Path:
    """Other points or other queries are other files: changing them in a config makes nothing stale."""
    key = rundir.digest(_records(session, wanted.where), session.config.audit.queries, *precision(session).values())[:8]
    folder = session.folder / "signals" / f"{wanted.where}_{key}"
    return folder / f"model_{wanted.model}.{wanted.signal.name}.npy"


def stamp(session: Session, wanted: Wanted) -> dict[str, Any]:
    pool = wanted.where == "points"
    return {
        "model weights (sha256)": facts(session, wanted.model)["sha256"],
        "records (sha256)": session.pool_digest if pool else session.population_digest,
        "indices (sha256)": rundir.digest(_records(session, wanted.where)),
        "audit.queries": session.config.audit.queries,
        "signal": wanted.signal.name,
        **precision(session),
        **text_signals.stamp(session, wanted.model, wanted.signal, lambda model: facts(session, model)["sha256"]),
        **label_signals.stamp(session, wanted.signal),
        **quantile_signals.stamp(session, wanted.signal),
        **trace_signals.stamp(session, wanted.signal),
    }


def precision(session: Session) -> dict[str, str]:
    """The key of a stamp that says that models are asked in another precision than float32."""
    wanted = session.config.audit.precision
    return {} if wanted == "float32" or session.data.is_text else {"audit.precision": wanted}


def settled_precision(session: Session, model: int) -> Literal["float32", "bfloat16"]:
    """The precision in which this model was asked about the audited points, as its signals' stamp says."""
    made = rundir.read_stamp(path_of(session, Wanted(model, "points", LOG_ODDS))) if precision(session) else None
    return made["facts"]["precision"] if made else "float32"


def settles_precision(session: Session, model: int) -> list[Path]:
    """The files that `settled_precision` reads."""
    path = path_of(session, Wanted(model, "points", LOG_ODDS))
    return [path, rundir.stamp_of(path)] if precision(session) else []


def _records(session: Session, where: Where) -> np.ndarray:
    return session.points if where == "points" else session.population


def compute_missing(session: Session, device: torch.device, share: Share | None = None) -> None:
    """Query every model that was not asked yet: one forward pass a query gives all its signals.

    share: these models only, of which others may ask some at the same time, and the signals that need no other model.
    """
    missing = missing_signals(session, share and share.models)
    if not missing:
        log.info("signals: all there")
        return
    start = time.perf_counter()
    if share is None:
        text_signals.make_neighbours(session, wanted_of(session.config), device)
    lost: dict[int, str] = {}
    reads = partial(_reads, session)
    setup = _asker if share is None else partial(_asker_of_share, share.claims)
    units = run_units(session, list(missing.values()), setup, "audit", what=ASKING, reads=reads)
    for files, failure in progress(units, ASKING, total=len(missing)):
        if isinstance(failure, Lost):
            lost[files[0].model] = failure.reason
    if lost:
        reasons = "; ".join(f"model {model}: {why}" for model, why in sorted(lost.items()))
        raise UserError(f"{len(lost)} of {len(missing)} models could not be asked, the others are. {reasons}")
    seconds = time.perf_counter() - start
    log.info("signals: %d models asked about %d points in %.1f s", len(missing), len(session.points), seconds)


def _reads(session: Session, files: list[Wanted]) -> Iterator[Path]:
    """The files that asking one model for these signals reads."""
    models = dict.fromkeys([files[0].model])
    for signal in {wanted.signal: None for wanted in files}:
        models |= dict.fromkeys(text_signals.others(session, files[0].model, signal))
        yield from text_signals.reads(session, signal)
    for model in models:
        yield from files_of(session, model)
    if any(wanted.signal.kind == trace_signals.TRACE for wanted in files):
        yield trace_path(session, files[0].model)
    for wanted in (wanted for wanted in files if wanted.signal.kind == quantile_signals.KIND):
        if (regressed := path_of(session, _regressed(wanted))).exists():  # else it is made with the others
            yield regressed


def _regressed(wanted: Wanted) -> Wanted:
    """What a regression is of: its model's signal of the population."""
    return Wanted(wanted.model, "population", quantile_signals.of_signal(wanted.signal))


def _asker(session: Session, device: torch.device) -> Callable[[list[Wanted]], None]:
    """What asks a model and writes the answers: the data are put on the device once, for all models.

    Of images and features only the records that are asked about, in their order: no batch gathers them again.
    """
    from trainers.resident import Resident

    data = session.data

    def resident(where: Where) -> Resident:
        records = data.pool if where == "points" else data.population
        chosen = records if data.is_text else records.select(_records(session, where))
        return Resident.of(chosen, data.mean, data.std, device)

    residents = {where: resident(where) for where in ("points", "population")}
    regression = quantile_signals.Regression(session, residents["points"], residents["population"])
    return partial(_ask, session, residents, regression, device)


def _asker_of_share(claims: Claims, session: Session, device: torch.device) -> Callable[[list[Wanted]], None]:
    return partial(_ask_claimed, claims, session, _asker(session, device))


def _ask_claimed(claims: Claims, session: Session, ask: Callable, files: list[Wanted]) -> None:
    """Ask a model, unless another does, or has."""
    rundir.hold_of(claims.hold)
    what = f"signals_{files[0].model}"
    if not claims.take(what):
        return
    try:
        if files := [one for one in files if not rundir.is_made(path_of(session, one), stamp(session, one))]:
            ask(files)
    finally:
        claims.give_back(what)


def _ask(
    session: Session,
    residents: Mapping[Where, Any],
    regression: quantile_signals.Regression,
    device: torch.device,
    files: list[Wanted],
) -> None:
    """Ask one model for all of its `files`, and write them; regressions on its answers last."""
    network, clock = load_model(session, files[0].model, device), _Clock()
    how = _settle(session, files[0].model, network, residents["points"]) if precision(session) else {}
    last = [wanted for wanted in files if wanted.signal.kind == quantile_signals.KIND]
    over_time = [wanted for wanted in files if wanted.signal.kind in trace_signals.KINDS]
    files = [wanted for wanted in files if wanted not in (*last, *over_time)]
    for where in dict.fromkeys(wanted.where for wanted in files):
        of_set = [wanted for wanted in files if wanted.where == where and wanted.signal.kind not in label_signals.KINDS]
        kind = how.get("precision", "float32")
        columns = _columns(session, network, residents[where], of_set, device, kind) if of_set else ()
        for wanted, column in zip(of_set, columns, strict=True):
            _write(session, wanted, column, seconds=clock.lap(), **how)
        for wanted in (w for w in files if w.where == where and w.signal.kind in label_signals.KINDS):
            column, asked = label_signals.column(
                session, network, residents[where], residents["population"], _records(session, where), wanted.signal
            )
            _write(session, wanted, column, seconds=clock.lap(), **asked)
    for wanted in over_time:
        sets = residents["points"], residents["population"]
        column = trace_signals.column(session, wanted.model, network, *sets, wanted.signal)
        _write(session, wanted, column, seconds=clock.lap())
    for wanted in last:
        value = np.load(path_of(session, _regressed(wanted)), allow_pickle=False)
        column, judged = regression.column(wanted.model, wanted.signal, value)
        _write(session, wanted, column, seconds=clock.lap(), **judged)


class _Clock:
    """Seconds since the last look: what a file took that is written after those before it."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return round(self.last - before, 4)


def _settle(session: Session, model: int, network: torch.nn.Module, points: Any) -> dict[str, Any]:
    """The precision for all that this model is asked, from a probe of the audited points: what its stamps record."""
    from trainers.evaluate import TOLERANCE, precision_for

    chosen, apart = precision_for(network, points, session.config.audit.precision)
    if chosen == "float32":
        why = "a log-odds s in bfloat16 is %.2g (1 + |s|) from float32's, more than %g: asked in float32"
        log.warning("model %4d  " + why, model, apart, TOLERANCE)
    return {"precision": chosen, "bfloat16 apart, of 1 + |s|": round(apart, 5)}


def _write(session: Session, wanted: Wanted, column: np.ndarray, **asked: Any) -> None:
    if not np.isfinite(column).all():
        bad = int((~np.isfinite(column)).sum())
        raise UserError(f"model {wanted.model} gives {bad} non-finite signals ({wanted.signal.name}): it did not train")
    write = lambda file: np.lib.format.write_array(file, column, allow_pickle=False)  # noqa: E731
    rundir.make(path_of(session, wanted), stamp(session, wanted), write, **asked)


def _columns(
    session: Session,
    network: torch.nn.Module,
    resident: Any,
    files: Sequence[Wanted],
    device: torch.device,
    precision: Literal["float32", "bfloat16"],
) -> Sequence[np.ndarray]:
    """What a model says of one point set, in the signals of these files."""
    from trainers.evaluate import signals

    audit = session.config.audit
    wanted = [file.signal for file in files]
    if session.data.is_text:
        records = _records(session, files[0].where)
        load = lambda model: load_model(session, model, device)  # noqa: E731
        found = text_signals.columns(session, network, resident, records, wanted, model=files[0].model, load=load)
        return [found[signal] for signal in wanted]
    options = {"batch_size": audit.batch_size, "queries": audit.queries, "precision": precision}
    return list(signals(network, resident, wanted=wanted, **options))


def labels_spent(session: Session, target: int, call: Call) -> tuple[str, ...]:
    """In words, the labels that an attack on labels cost of a target and of its references; nothing of others."""
    if ATTACKS.fact(call.name, "access") != "label" or session.given is not None:
        return ()

    def spent(model: int) -> Mapping[str, int]:
        wanted = [Wanted(model, "points", signal) for signal in ATTACKS.fact(call.name, "signals")(call.settings)]
        stamps = [rundir.read_stamp(path_of(session, one)) for one in wanted if asked(session, one)]
        facts = [stamp["facts"] for stamp in stamps if stamp]
        return {key: sum(of.get(key, 0) for of in facts) for key in ("labels asked for", "most labels of one record")}

    of_target, points = spent(target), len(session.points)
    most = of_target["most labels of one record"] or -(-of_target["labels asked for"] // points)
    said = f"{of_target['labels asked for']:,} labels of the target, at most {most:,} about one record"
    reads = ATTACKS.fact(call.name, "asks_references", lambda settings: call.settings.get("mode", "alone") != "alone")
    references = session.plan.references_of(target)
    if not (reads(call.settings) and references):
        return (said,)
    return (f"{said}; {sum(spent(m)['labels asked for'] for m in references):,} of {len(references)} references",)


def evidence(session: Session, target: int) -> Evidence:
    """What an attacker may see of `target`: read from the signal files, the target's own membership left out."""
    first, *others = wanted_of(session.config)
    also = {signal.name: _evidence(session, target, signal) for signal in others}
    seen = _evidence(session, target, first, also)
    return replace(seen, text=text_signals.text(session)) if session.data.is_text else seen


def _evidence(session: Session, target: int, signal: Signal, also: dict[str, Evidence] | None = None) -> Evidence:
    references = session.plan.references_of(target)

    def read(model: int, where: Where) -> np.ndarray:
        if session.given is not None:
            return session.given.answers(where).column(signal, model)[:, _records(session, where)]
        return np.load(path_of(session, Wanted(model, where, signal)), allow_pickle=False)

    def stack(where: Where, shape: tuple[int, ...]) -> np.ndarray:
        of_targets = not all(asked(session, Wanted(model, "points", signal)) for model in references)
        if of_targets or not (where == "points" or signal.of_population):
            return np.broadcast_to(np.float32(np.nan), (len(references), *shape))  # takes no memory
        table = np.empty((len(references), *shape), np.float32)
        for row, model in enumerate(references):
            table[row] = read(model, where)
        return table

    of_target = read(target, "points")
    population = read(target, "population") if signal.of_population else np.empty((len(of_target), 0), np.float32)
    trained_on = session.plan.member[np.array(references, dtype=int)][:, session.points]
    return Evidence(
        target=of_target,
        references=stack("points", of_target.shape),
        trained_on=trained_on[:, text_signals.Layout.of(session).record] if signal.per_token else trained_on,
        population=population,
        population_references=stack("population", population.shape),
        also=also or {},
    )
