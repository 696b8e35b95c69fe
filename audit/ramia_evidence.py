"""Evidence at the samples of ranges, a block of ranges at a time, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from audit.ramia_samples import Setup, read
from audit.session import Session
from audit.signals import evidence, signals_of
from core.config import Call
from core.log import collected, quiet
from core.registry import ATTACKS
from core.types import Evidence, Signal
from modules.ramia.evidence import RangeEvidence
from modules.ramia.scoring import PointAttack, Rehearsed, scored

EVIDENCE_BYTES = 2**27  # of signals in memory at a time


@dataclass(frozen=True)
class Ranges:
    """The ranges of one target that are compared, as its attacker sees them."""

    session: Session  # whose only attack is the base
    setup: Setup
    target: int
    held: Bool[Array, "M N"]  # which model trained on any record of a range
    pairs: Int[Array, " M"]  # twins have one number
    kept: Int[Array, " n"]  # places of the ranges among the audited points

    @cached_property
    def references(self) -> Int[Array, " R"]:
        return np.array(self.session.plan.references_of(self.target), dtype=int)

    @cached_property
    def population(self) -> Evidence:
        """The evidence about single records, of which only the population is used."""
        return evidence(self.session, self.target)

    @cached_property
    def signals(self) -> tuple[Signal, ...]:
        return signals_of(self.session.config.attacks)

    def scores(
        self, columns: slice, rehearsals: int = 0
    ) -> tuple[Float[Array, "n K"], list[Rehearsed], tuple[str, ...]]:
        """The base attack's score at these columns (0 is the center) of every range, for the target and in
        rehearsals, and what it chose by itself, in words."""
        attack = point_attack(self.session, self.setup.base)
        chunks = list(self._chunks(columns))
        count = len(range(*columns.indices(self.setup.drawn + 1)))
        some = self.at(chunks[0] if len(chunks) == 1 else self._spread(len(chunks[0])), columns)
        with collected("modules") as notes:
            shared = attack.shared(some)
        blocks = iter([some]) if len(chunks) == 1 else (self.at(chunk, columns) for chunk in chunks)
        with quiet("modules.mia"):
            found, rehearsed = scored(blocks, some, attack, (len(self.kept), count), rehearsals, shared)
        return found, rehearsed, tuple(notes)

    def _chunks(self, columns: slice) -> Iterator[Int[Array, " c"]]:
        """The kept ranges, so many at a time that their signals fit into EVIDENCE_BYTES; all of them for an attack that
        does not say what its points share."""
        base = self.setup.base.name
        if "shared" not in ATTACKS.facts[base]:
            yield self.kept
            return
        audit, count = self.session.config.audit, len(range(*columns.indices(self.setup.drawn + 1)))
        each = 4 * (len(self.references) + 1) * audit.queries * count * len(self.signals)
        size = max(1, EVIDENCE_BYTES // each)
        yield from (self.kept[start : start + size] for start in range(0, len(self.kept), size))

    def _spread(self, count: int) -> Int[Array, " c"]:
        return self.kept[np.unique(np.linspace(0, len(self.kept) - 1, count).round().astype(int))]

    def at(self, ranges: Int[Array, " c"], columns: slice) -> RangeEvidence:
        """Evidence at these columns of these ranges, range by range; the population as it is."""
        first, *rest = self.signals
        return self._of(first, ranges, columns, {signal.name: self._of(signal, ranges, columns, {}) for signal in rest})

    def _of(self, signal: Signal, ranges: Int[Array, " c"], columns: slice, also: dict[str, Evidence]) -> RangeEvidence:
        population = self.population.signal(signal)

        def asked(model: int) -> Float[Array, "Q cK"]:
            table = read(self.session, self.setup, model, signal, ranges, columns)
            return table.reshape(len(table), -1)

        target = asked(self.target)
        references = np.empty((len(self.references), *target.shape), dtype=target.dtype)
        for row, model in enumerate(self.references):
            references[row] = asked(int(model))
        return RangeEvidence(
            target=target,
            references=references,
            trained_on=np.repeat(self.held[self.references][:, ranges], target.shape[1] // len(ranges), axis=1),
            population=population.population,
            population_references=population.population_references,
            also=also,
            pair=self.pairs[self.references],
        )


def point_attack(session: Session, base: Call) -> PointAttack:
    """The base attack in two steps. One that does not say what its points share is given all of them at once."""
    fact: Any = ATTACKS.fact(base.name, "shared")

    def score(seen: Evidence, shared: Any) -> Float[Array, " n"]:
        given = () if fact is None else (shared,)
        try:
            scores = np.asarray(ATTACKS[base.name](seen, *given, **base.settings), dtype=np.float64)
        except ValueError as error:
            raise session.config.error("ramia.attack", f"{base.label}: {error}") from error
        if np.isnan(scores).any():
            raise session.config.error("ramia.attack", f"{base.label} gave scores that are not a number")
        return scores

    def shared(seen: Evidence) -> Any:
        try:
            return None if fact is None else fact(seen, base.settings)
        except ValueError as error:
            raise session.config.error("ramia.attack", f"{base.label}: {error}") from error

    return PointAttack(score, shared)
