"""The signals of attacks that see predicted labels alone: copies of each record, and what the model calls them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.session import Session
from core.registry import ATTACKS
from core.rundir import digest
from core.types import Signal

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

KINDS = ("label", "robust_label", "boundary")


def check(session: Session, signals: Sequence[Signal]) -> None:
    """UserError for signals that these records cannot give; before anything is trained."""
    data, error = session.data, session.config.error
    for signal in signals:
        if signal.kind not in KINDS:
            continue
        if data.is_text:
            raise error("audit.algorithm", "attacks on predicted labels read class labels, and texts have none")
        if signal.kind == "robust_label" and data.is_image:
            options, sides = dict(signal.options), data.input_shape[1:]
            if options["translate"] >= min(sides):
                raise error("audit.algorithm", f"translate {options['translate']} moves images of {sides} pixels away")
            if not (options["translate"] or options["rotate"]):
                raise error("audit.algorithm", "translate 0 and rotate 0 leave one copy: set one of them")
        if signal.kind == "boundary":
            options, least = dict(signal.options), _least_queries(session, signal)
            if options["queries"] < least:
                at = f"{math.prod(data.input_shape)} values a record and {options['directions']} directions"
                raise error("audit.algorithm", f"queries {options['queries']} is too few for {at}: {least} at least")


def _least_queries(session: Session, signal: Signal) -> int:
    """The record's own label, the way to the boundary, and one step along it."""
    dimensions = max(math.prod(session.data.input_shape), 2)
    bisections = math.ceil(1.5 * math.log2(dimensions))
    return 1 + 1 + bisections + dict(signal.options)["directions"] + 1 + bisections


def asked(session: Session, model: int, signal: Signal) -> bool:
    """Whether this model is asked: what costs hundreds of labels is asked of references only where it is read."""
    return model in session.plan.targets or not of_targets_only(session, signal)


def of_targets_only(session: Session, signal: Signal) -> bool:
    """Whether it is a distance that no attack of the run compares with those to the references' boundaries."""
    return signal.kind == "boundary" and not any(
        ATTACKS.fact(call.name, "asks_references", lambda settings: True)(call.settings)
        for call in session.config.attacks
        if (signals := ATTACKS.fact(call.name, "signals")) and signal in signals(call.settings)
    )


def stamp(session: Session, signal: Signal) -> dict[str, Any]:
    """What a signal of labels is a function of, beside its model, records and options."""
    if signal.kind not in KINDS or signal.kind == "label":
        return {}
    drawn = {} if session.data.is_image and signal.kind != "boundary" else {"run.random_seed": _seed(session)}
    return {**drawn, "population (sha256)": digest(session.population_digest, session.population)}


def _seed(session: Session) -> int:
    return session.config.run.random_seed


def column(
    session: Session, network: torch.nn.Module, resident: Any, population: Any, records: np.ndarray, signal: Signal
) -> tuple[np.ndarray, dict[str, Any]]:
    """What `network` is seen to say of these records, float32 (Q, N), and what it was asked for it.

    resident: the records, in their order. population: those of the population.
    """
    from trainers.label_only import HardLabels, count_moved, disturbed, kept_labels, moved, plain

    audit, options = session.config.audit, dict(signal.options)
    ask = HardLabels(network, resident, audit.batch_size)
    if signal.kind == "label":
        found = kept_labels(ask, resident, plain(resident, audit.queries), queries=audit.queries)
    elif signal.kind == "boundary":
        return _distances(session, ask, resident, population, options)
    elif session.data.is_image:
        of = {key: options[key] for key in ("translate", "rotate")}
        found = kept_labels(ask, resident, moved(resident, **of), queries=count_moved(**of))
    else:
        scale, binary = columns_of_population(session)
        draws = lambda place: session.stream("disturbed copies", int(records[place]))  # noqa: E731
        of = {key: options[key] for key in ("levels", "repeats")}
        copies = disturbed(resident, scale, binary, draws=draws, **of)
        found = kept_labels(ask, resident, copies, queries=1 + len(of["levels"]) * of["repeats"])
    return found, {"labels asked for": ask.asked}


def _distances(
    session: Session, ask: Any, resident: Any, population: Any, options: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    import torch

    from trainers.boundary import Space, boundary_distances

    if session.data.is_image:
        space = Space(torch.full((math.prod(session.data.input_shape),), 255.0), (0.0, 255.0))
    else:
        space = Space(torch.tensor(columns_of_population(session)[0], dtype=torch.float32))
    known = population if len(population) else resident
    found, used = boundary_distances(
        ask, resident, known.x, space, **options, draw=lambda t: session.stream("boundary directions", t)
    )
    return found[None], {"labels asked for": ask.asked, "most labels of one record": int(used.max(initial=0))}


def columns_of_population(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Of each feature, its standard deviation, and whether it holds zeros and ones only. Of the population, or where
    there is none, of the pool: what an attacker knows of the data in general."""
    data = session.data
    x = data.population.x[session.population] if len(session.population) else data.pool.x
    return x.std(axis=0, dtype=np.float64), ((x == 0) | (x == 1)).all(axis=0)
