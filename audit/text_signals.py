"""The signals of language models: which pass gives which, and what they need beside a model and its records."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audit.session import Session
from core import rundir
from core.errors import UserError
from core.types import Records, Signal, Text

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LONGEST = 10**9  # tokens, of a model that states no context


def check(session: Session, signals: Sequence[Signal]) -> None:
    """UserError for signals that these data or this machine cannot give; before anything is trained."""
    for signal in signals:
        options = dict(signal.options)
        if signal.kind == "prefixed_log_odds":
            if options["prefix"] is None and options["shots"] > len(session.population):
                raise session.config.error(
                    "audit.algorithm",
                    f"ReCaLL draws {options['shots']} texts from the population, which has {len(session.population)}: "
                    "lower shots, or raise audit.population_size",
                )
            if options["prefix"] is not None and session.data.tokenizer is None:
                raise session.config.error("audit.algorithm", "ReCaLL: a prefix of your own needs a tokenizer")
        if signal.kind == "neighbour_log_p":
            from dataset import masked_lm

            if session.data.tokenizer is None:
                raise session.config.error("audit.algorithm", "Neighbourhood: new texts need a tokenizer")
            try:
                masked_lm.load(options["masked_lm"])
            except UserError as error:
                raise session.config.error("audit.algorithm", f"Neighbourhood: {error}") from None


def columns(
    session: Session,
    network: torch.nn.Module,
    resident: Any,
    records: np.ndarray,
    wanted: Sequence[Signal],
    *,
    model: int,
    load: Callable[[int], torch.nn.Module],
) -> dict[Signal, np.ndarray]:
    """Of each wanted signal, what `network` says of these records: (1, N), or (1, U) of a signal per token.

    load: another of the session's models, for signals of a target beside its references.
    """
    from trainers import evaluate_text as ask

    batch_size = session.config.audit.batch_size
    dear = {"prefixed_log_odds", "neighbour_log_p", "gradient_norm", "token_divergence"}
    at_once = [signal for signal in wanted if signal.kind not in dear]
    found = ask.text_signals(network, resident, records, wanted=at_once, batch_size=batch_size) if at_once else {}
    for signal in wanted:
        options = dict(signal.options)
        if signal.kind == "prefixed_log_odds":
            prefix, context = _prefix(session, options), _context(network)
            found[signal] = ask.prefixed_log_odds(
                network, resident, records, prefix, context=context, batch_size=batch_size
            )
        elif signal.kind == "neighbour_log_p":
            found[signal] = _of_neighbours(session, signal, network, resident, records, batch_size)
        elif signal.kind == "gradient_norm":
            found[signal] = ask.gradient_norms(network, resident, records, p=options["p"])
        elif signal.kind == "token_divergence":
            others = session.plan.references_of(model)
            out = ~session.plan.member[np.array(others, dtype=int)][:, records]
            found[signal] = ask.divergences(
                network, [load(other) for other in others], resident, records, out, batch_size=batch_size
            )
    return found


def asked(session: Session, model: int, signal: Signal) -> bool:
    """Whether this model is asked for this signal at all: what lies between models is asked of targets only."""
    return signal.kind != "token_divergence" or model in session.plan.targets


def others(session: Session, model: int, signal: Signal) -> Sequence[int]:
    """The models that are asked, too, where this one is asked for this signal."""
    return session.plan.references_of(model) if signal.kind == "token_divergence" else ()


def reads(session: Session, signal: Signal) -> Iterator[Path]:
    """The files that this signal is read off, beside models."""
    if signal.kind == "neighbour_log_p":
        path = _neighbours(session, signal)[0]
        yield from (path, rundir.stamp_of(path))


def stamp(session: Session, model: int, signal: Signal, weights: Callable[[int], str]) -> dict[str, Any]:
    """What a text signal is a function of, beside its model, records and name."""
    found: dict[str, Any] = dict(signal.options)
    if signal.kind == "prefixed_log_odds":
        found["population records (sha256)"] = rundir.digest(session.population_digest, session.population)
    if signal.kind == "token_divergence":
        found["references (sha256)"] = rundir.digest(*map(weights, session.plan.references_of(model)))
    return found


def _context(network: torch.nn.Module) -> int:
    return int(getattr(network.config, "max_position_embeddings", None) or LONGEST)


def _prefix(session: Session, options: dict[str, Any]) -> torch.Tensor:
    """The tokens to read before each record: given, or of texts drawn from the population."""
    import torch

    if options["prefix"] is not None:
        return torch.tensor(_tokens(session, [options["prefix"]])[0], dtype=torch.int64)
    draw = session.stream("prefix of non-members", options["shots"])
    chosen = draw.choice(session.population, options["shots"], replace=False)
    records = session.data.population
    assert records.lengths is not None
    return torch.tensor(np.concatenate([records.x[i, : records.lengths[i]] for i in chosen]).astype(np.int64))


def _tokens(session: Session, texts: Sequence[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    assert session.data.tokenizer is not None
    return [encoding.ids for encoding in Tokenizer.from_str(session.data.tokenizer).encode_batch(list(texts))]


def texts_of(session: Session, records: np.ndarray, of: Records | None = None) -> list[str]:
    """The texts of these records of the pool, or `of` others, as models see them: cut where their tokens are."""
    of = session.data.pool if of is None else of
    assert of.lengths is not None
    if session.data.tokenizer is None:
        return [(of.texts or [""] * len(of))[i] for i in records]
    from tokenizers import Tokenizer

    ids = [of.x[i, : of.lengths[i]].tolist() for i in records]
    return Tokenizer.from_str(session.data.tokenizer).decode_batch(ids, skip_special_tokens=False)


# --- neighbours --------------------------------------------------------------------------------------------------


def make_neighbours(session: Session, signals: Sequence[Signal], device: torch.device) -> None:
    """Write the neighbours of the audited records that these signals are of, unless they are there."""
    for signal in signals:
        path, made_by = _neighbours(session, signal)
        if signal.kind != "neighbour_log_p" or rundir.is_made(path, made_by):
            continue
        from dataset import masked_lm

        options, texts = dict(signal.options), texts_of(session, session.points)
        log.info("neighbours: %d of each of %d texts, by %s", options["neighbours"], len(texts), options["masked_lm"])
        copies = masked_lm.load(options["masked_lm"], device).neighbours(
            texts,
            [session.stream("neighbours", int(i)) for i in session.points],
            samples=options["neighbours"],
            masks=options["masks"],
            top_k=options["top_k"],
        )
        rundir.make(path, made_by, lambda file, copies=copies: file.write(json.dumps(copies).encode()))


def _neighbours(session: Session, signal: Signal) -> tuple[Path, dict[str, Any]]:
    made_by = {
        **dict(signal.options),
        "run.random_seed": session.config.run.random_seed,
        "records (sha256)": session.pool_digest,
        "indices (sha256)": rundir.digest(session.points),
    }
    return session.folder / "signals" / f"neighbours_{rundir.digest(made_by)[:8]}.json", made_by


def _of_neighbours(
    session: Session, signal: Signal, network: torch.nn.Module, resident: Any, records: np.ndarray, batch_size: int
) -> np.ndarray:
    """float32 (1, N): mean over neighbours of their mean token log-probability."""
    import torch

    from trainers.evaluate_text import mean_log_p

    copies = rundir.read_json(_neighbours(session, signal)[0])
    context = _context(network)
    of_copies = _tokens(session, [copy for own in copies for copy in own])
    rows = [torch.tensor(ids[:context]) for ids in of_copies]
    own = np.repeat(np.arange(len(copies)), [len(found) for found in copies])
    kept = [i for i, row in enumerate(rows) if len(row) > 1]  # a shorter one predicts nothing
    values = mean_log_p(network, [rows[i] for i in kept], [len(rows[i]) - 1 for i in kept], batch_size=batch_size)
    count = np.bincount(own[kept], minlength=len(records))
    if not count.all():
        raise UserError(f"{(count == 0).sum()} texts have no neighbour of two tokens: use fewer masks, or longer texts")
    return (np.bincount(own[kept], values, minlength=len(records)) / count).astype(np.float32)[None]


# --- which token is of which record ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The predicted tokens of the audited records, laid end to end."""

    start: np.ndarray
    record: np.ndarray  # of each token

    @classmethod
    def of(cls, session: Session) -> Layout:
        assert session.data.pool.lengths is not None
        lengths = session.data.pool.lengths[session.points] - 1
        return cls(np.concatenate([[0], np.cumsum(lengths)]), np.repeat(np.arange(len(lengths)), lengths))


def text(session: Session) -> Text:
    """What `Evidence.text` holds: made of the records alone, not of any model."""
    pool, layout = session.data.pool, Layout.of(session)
    tokens = np.concatenate([pool.x[i, 1:length] for i, length in _lengths(session)]).astype(np.int64)
    population = session.data.population
    assert population.lengths is not None
    counts = np.ones(max(session.data.num_classes, int(tokens.max()) + 1))
    for i in session.population:
        np.add.at(counts, population.x[i, : population.lengths[i]], 1)
    compressed = np.array([len(zlib.compress(of.encode())) for of in texts_of(session, session.points)])
    return Text(tokens, layout.start, compressed, (counts / counts.sum())[tokens])


def _lengths(session: Session) -> list[tuple[int, int]]:
    assert session.data.pool.lengths is not None
    return [(int(i), int(session.data.pool.lengths[i])) for i in session.points]
