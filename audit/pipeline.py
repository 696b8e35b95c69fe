"""The pipeline, in the order it runs: plan -> models -> signals -> attacks -> report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from audit import (
    available,
    blind,
    engines,
    heat_map,
    label_signals,
    planner,
    quantile_signals,
    runtime,
    text_signals,
    trace_signals,
)
from audit.checks import check_audit
from audit.model_files import build, peft_of
from audit.results import AttackResult, AuditResult, Check, Risk, Screening, Section, TargetResult
from audit.risk import assess
from audit.screening import screen
from audit.session import Session, device_of, make_reproducible, prepare
from audit.signals import compute_missing, evidence, labels_spent, missing_signals, signals_of, wanted_of
from audit.training import missing_models, model_rows, train_missing
from audit.workers import keep_memory
from core import rundir
from core.config import TRAINED, Call, Config
from core.errors import UserError
from core.log import collected, kept, progress, waiting
from core.metrics import NOMINAL_FPRS, roc, summarise
from core.registry import ATTACKS, MODULES, SOURCES
from core.types import Evidence

log = logging.getLogger(__name__)

CHECKING = "check the audit, assess records and groups"


def run(config: Config, *, only_report: bool = False) -> AuditResult:
    """Do whatever of the run is not done yet, and write the report. Raises UserError for what the user can mend.

    only_report: all must be done; the report is written anew, with the times and the environment of the run itself.
    """
    if config.origin.name != TRAINED and (own := SOURCES.fact(config.origin.name, "run")):
        return own(config, only_report=only_report)
    timings: list[tuple[str, float]] = []
    make_reproducible(config.run.threads)
    keep_memory()
    train_device, audit_device = device_of(config, "train"), device_of(config, "audit")
    for warning in config.warnings():
        log.warning(warning)
    with _timed("load the dataset", timings):
        session = prepared(config)
    config = session.config  # with the attacks that can run, where none were named
    for note in session.given.notes if session.given else ():
        log.warning(note)
    log.info(
        "%s: pool %d, population %d, auditing %d points; trained on %s, queried on %s",
        *(session.dataset, len(session.data.pool), len(session.data.population), len(session.points)),
        *(train_device, audit_device),
    )
    missing_models(session)  # refuses a run directory of other settings before anything is written
    with (
        rundir.lock(config.run.log_dir),
        kept(config.run.log_dir / "run.log"),
        rundir.making(not only_report),
        engines.running(config),
    ):
        where = runtime.begin(config, train_device, only_report)
        with _timed("train models", timings):
            train_missing(session, train_device)
        with _timed("compute signals", timings):
            compute_missing(session, audit_device)
        with _timed("run attacks", timings):
            targets = tuple(audit_target(session, target) for target in progress(session.plan.targets, "attacking"))
        sections = heat_map.sections(session, targets, partial(evidence, session))
        for call in config.modules:
            with _timed(f"audit {call.name}", timings), waiting(f"audit {call.name}"):
                sections.append(MODULES[call.name](session, targets, **call.settings))
            log.info("%s: %s", call.name, sections[-1].verdict)
        with _timed(CHECKING, timings), waiting(CHECKING):
            seen = partial(evidence, session)
            checks = check_audit(session, targets, tuple(model_rows(session)), seen)
            risk = assess(session, targets, seen)
            screening = screen(session, targets, tuple(model_rows(session)), seen, risk.order)
        checks = (*blind.checks(targets, config.audit.blind_baseline), *checks)
        for check in checks:
            log.log(logging.WARNING if check.status == "look" else logging.INFO, "%s: %s", check.name, check.finding)
        result = _result(session, targets, sections, checks, risk, screening, timings, where)
        result = runtime.end(result, config, only_report)
        from audit.report import write_report

        start = time.perf_counter()
        with waiting("write the report"):
            write_report(result, config.report_dir, log_times=not only_report)
        log.info("report: %.1f s, in %s", time.perf_counter() - start, config.report_dir)
    return result


@contextmanager
def _timed(stage: str, timings: list[tuple[str, float]]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings.append((stage, time.perf_counter() - start))


def audit_target(session: Session, target: int) -> TargetResult:
    """Every attack on one target. Only here, after the scores are fixed, is its membership looked up."""
    calls = session.config.attacks
    names = [call.name for call in calls]
    seen = evidence(session, target)
    attacked = [_attack(session.config, call, seen) for call in calls]
    member = session.plan.member[target, session.points]
    if member.all() or not member.any():
        some = "all" if member.any() else "none"
        raise session.config.error(
            "audit.data_size", f"{some} of the points are members of model {target}: take more points"
        )
    results = []
    for call, (scores, notes, seconds) in zip(calls, attacked, strict=True):
        label = call.name if names.count(call.name) == 1 else call.label
        summary = summarise(scores, member, nominal_fprs=NOMINAL_FPRS)
        notes = (*notes, *labels_spent(session, target, call))
        results.append(AttackResult(label, call.settings, scores, roc(scores, member), summary, notes, seconds))
        low, high = summary.auc.low, summary.auc.high
        log.info("target %d  %-14s AUC %.4f [%.4f, %.4f]  %.2f s", target, label, summary.auc.value, low, high, seconds)
    return TargetResult(target, member, tuple(results), blind.told(session, target))


def _attack(config: Config, call: Call, seen: Evidence) -> tuple[np.ndarray, tuple[str, ...], float]:
    """Scores (N,), what the attack says it chose, seconds."""
    start = time.perf_counter()
    try:
        with collected("modules") as notes:
            scores = ATTACKS[call.name](seen, **call.settings)
    except ValueError as error:
        raise config.error("audit.algorithm", f"{call.label}: {error}") from error
    scores = np.asarray(scores)
    if scores.shape != seen.target.shape[1:] or np.isnan(scores).any():
        raise config.error("audit.algorithm", f"{call.label} gave scores of shape {scores.shape}, or NaN")
    return scores, tuple(notes), time.perf_counter() - start


def prepared(config: Config) -> Session:
    """The session of a run, after every check that needs the data. Raises UserError; writes nothing."""
    engines.check(config)
    session = prepare(config)
    _check_attacks(session)
    if session.given is None:
        _check_model(session)
    for call in config.modules:
        if check_module := MODULES.fact(call.name, "check"):
            check_module(session, **call.settings)
    return session


def _check_attacks(session: Session) -> None:
    """Whether these data are what each attack reads, and can give the signals that it asks for."""
    config = session.config
    for call in config.attacks:
        if ATTACKS.fact(call.name, "needs_text") and not session.data.is_text:
            others = ", ".join(name for name in ATTACKS if not ATTACKS.fact(name, "needs_text"))
            raise config.error(
                "audit.algorithm",
                f"{call.name} reads the tokens of texts, and the records audited are none: choose of {others}",
            )
        if ATTACKS.fact(call.name, "needs_labels") and session.data.is_text:
            raise config.error("audit.algorithm", f"{call.name} reads class labels, and texts have none")
    heat_map.check(session)
    if session.given is None:
        label_signals.check(session, signals_of(config.attacks))
        quantile_signals.check(session, signals_of(config.attacks))
        trace_signals.check(session, signals_of(config.attacks))
    if session.data.is_text and session.given is None:
        text_signals.check(session, signals_of(config.attacks))


def _check_model(session: Session) -> None:
    import models

    config, data = session.config, session.data
    name, settings = config.model.name, config.model.settings
    try:
        if data.is_text:
            models.check_text(name, settings, *data.input_shape, data.num_classes, peft_of(session))
        else:
            models.check(name, settings, data.input_shape, data.num_classes)
    except (ValueError, UserError) as error:
        of_adapters = str(error).startswith("adapters of type")
        key = "train.peft" if of_adapters else "train.model_name" if config.train else "model"
        raise config.error(key, str(error)) from None


def _result(
    session: Session,
    targets: tuple[TargetResult, ...],
    sections: list[Section],
    checks: tuple[Check, ...],
    risk: Risk,
    screening: tuple[Screening, ...],
    timings: list[tuple[str, float]],
    where: dict[str, Any],
) -> AuditResult:
    config, given, pool = session.config, session.given, session.data.pool
    return AuditResult(
        targets=targets,
        points=session.points,
        labels=pool.y[session.points] if given is None or given.labels_known else None,
        models=tuple(model_rows(session)),
        dataset=session.dataset,
        population=len(session.population),
        queries=config.audit.queries if given is None else given.pool.log_odds.shape[1],
        config=config.source.text,
        environment=where,
        timings=tuple(timings) if config.run.time_log else (),
        warnings=(*config.warnings(), *(given.notes if given else ())),
        sections=tuple(sections),
        checks=checks,
        risk=risk,
        screening=screening,
        redacted=config.audit.redact,
        ids=None if pool.ids is None else pool.ids[session.points],
        groups={name: column[session.points] for name, column in pool.groups.items()},
        about=given.about if given else {},
    )


def check(config: Config, *, probe: bool = False, like: Path | None = None) -> str:
    """What a run would do and take, and what of it is done. Raises UserError as the run would; writes nothing, but
    the first model with `probe`. like: another run, whose seconds are taken.
    """
    if (probe or like) and config.origin.name != TRAINED:
        raise UserError(f"--probe and --like: with audit.source: {config.origin.name} no plan of models is trained")
    if config.origin.name != TRAINED and (own := SOURCES.fact(config.origin.name, "check")):
        return own(config)
    make_reproducible(config.run.threads)
    device_of(config, "train"), device_of(config, "audit")
    session = prepared(config)
    config = session.config
    if session.given is not None:
        return "\n".join([*config.warnings(), *given_lines(session), *available.lines(session)])
    if probe:
        planner.probe(session)
    to_train = missing_models(session)
    data, plan = session.data, session.plan
    network = build(session, 0)
    bytes_of = lambda tensors: sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # noqa: E731
    weights = bytes_of(
        network.parameters() if not peft_of(session) else (p for p in network.parameters() if p.requires_grad)
    )
    base = bytes_of(network.parameters()) - weights
    points = len(session.points) + len(session.population)
    signals = 4 * points * config.audit.queries * len(wanted_of(config))
    more = [
        (call.name, one)
        for call in config.modules
        if (count := MODULES.fact(call.name, "more"))
        for one in count(session, **call.settings)
    ]
    kept = sum(one.models * (weights * one.keeps_weights + 4 * one.signals) for _, one in more)
    rows = max(len(references) for references in plan.references) + 1
    memory = data.pool.x.nbytes + data.population.x.nbytes + base + 4 * weights + rows * signals
    lines = [
        *config.warnings(),
        f"data      {config.dataset.name}: pool {len(data.pool)}, population {len(data.population)}, "
        f"{data.num_classes} classes, records {data.input_shape}",
        f"audit     {len(session.points)} points and {len(session.population)} population points, "
        f"{config.audit.queries} queries each, by {', '.join(call.label for call in config.attacks)}",
        f"models    {len(plan.models)} of {config.model.name} ({weights / 1e6:.1f} MB each): "
        f"{len(plan.targets)} targets, {_references(session)} each",
        f"done      {len(plan.models) - len(to_train)} models trained, {_to_do(session, to_train)}",
        *(
            f"{name:<10}{one.models} {one.what}: {one.models - one.to_train} trained, {one.to_train} to train"
            for name, one in more
        ),
        f"disk      about {planner.size(len(plan.models) * (weights + signals) + kept)} in {config.run.log_dir}",
        f"memory    about {planner.size(memory)} beside what torch needs itself",
    ]
    if not to_train:
        to_ask = len(missing_signals(session))
        lines.append(f"signals   {len(plan.models) - to_ask} models asked, {to_ask} to ask")
    of_one = {"weights": weights, "signals": signals, "memory": memory}
    lines += planner.lines(session, [one for _, one in more], **of_one, like=like)
    return "\n".join([*lines, *available.lines(session)])


def given_lines(session: Session) -> list[str]:
    """What `--check` says of signals that were given."""
    given, plan, data = session.given, session.plan, session.data
    assert given is not None
    references = sorted({len(of_target) for of_target in plan.references})
    return [
        *given.notes,
        f"data      {session.dataset}: {len(data.pool)} points, population {len(data.population)}",
        *(f"          {line}" for line in given.about.values()),
        f"audit     {len(session.points)} points, by {', '.join(call.label for call in session.config.attacks)}",
        f"models    {len(plan.models)}: targets {', '.join(map(str, plan.targets))}, "
        f"{' or '.join(map(str, references))} references each; nothing is trained",
    ]


def _references(session: Session) -> str:
    counts = sorted({len(references) for references in session.plan.references})
    if session.brought and session.config.train is None:
        return f"{' or '.join(map(str, counts))} references"
    return f"{session.config.audit.num_ref_models} pairs of references"


def _to_do(session: Session, missing: list[int]) -> str:
    given = sum(session.brought_from(model) is not None for model in missing)
    return f"{len(missing) - given} to train" + (f", {given} given ones to read" if given else "")
