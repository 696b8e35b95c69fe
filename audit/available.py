"""Which attacks can run on what is there, and what each of the others lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool
from numpy import ndarray as Array
from pydantic import ValidationError

from audit.given import ASKS
from audit.quantile_signals import lack as of_quantiles
from audit.session import Session
from audit.trace_signals import lack as of_traces
from core.config import Call, min_pairs
from core.registry import ATTACKS


@dataclass(frozen=True)
class Lack:
    """One thing that an attack needs and does not have."""

    what: str  # in words, after "lacks"
    points: Bool[Array, " N"] = field(default_factory=lambda: np.zeros(0, dtype=bool))  # of references: which points

    @property
    def coverage(self) -> bool:
        """Whether some points have what others lack, so that the attack could run on those."""
        return bool(self.points.any() and not self.points.all())


def lacks(session: Session, call: Call) -> list[Lack]:
    """What this attack needs and the session does not have; empty if it can run."""
    fact = lambda key: ATTACKS.fact(call.name, key, False)  # noqa: E731
    found = []
    if fact("needs_text") and not session.data.is_text:
        found.append(Lack("texts and their tokens"))
    if fact("needs_labels") and session.data.is_text:
        found.append(Lack("class labels"))
    if fact("needs_population") and not len(session.population):
        found.append(Lack("population points"))
    if (signals := fact("signals")) and not session.given:
        of_each = [of(session, signal) for signal in signals(call.settings) for of in (of_quantiles, of_traces)]
        found += [Lack(what) for what in of_each if what]
    if signals and session.given and not all(map(session.given.has, signals(call.settings))):
        missing = [signal for signal in signals(call.settings) if not session.given.has(signal)]
        names = ", ".join(signal.name for signal in missing)
        asks = next((ASKS[signal.kind] for signal in missing if signal.kind in ASKS), None)
        of = asks or "logits or probabilities of all classes, with labels"
        found.append(Lack(f"{of} (it reads {names})"))
    if fact("needs_references"):
        sides = ["OUT", "IN"] if needs_in(call) else ["OUT"]
        found += filter(None, (_references(session, side) for side in sides))
        there, pairs = session.plan.reference_pairs, min_pairs(call)
        if pairs > max(there, 1):  # less than one shows in the points
            found.append(Lack(f"references of {pairs} different memberships to rehearse on; there are {there}"))
    return found


def needs_in(call: Call) -> bool:
    """Whether an attack compares with references that trained on the point, too."""
    fact = ATTACKS.fact(call.name, "needs_in", False)
    return bool(fact(call.settings) if callable(fact) else fact)


def _references(session: Session, side: str) -> Lack | None:
    """The points of any target without a reference on this side."""
    missing = np.zeros(len(session.points), dtype=bool)
    for references in session.plan.references:
        trained_on = session.plan.member[np.array(references, dtype=int)][:, session.points]
        missing |= ~(trained_on if side == "IN" else ~trained_on).any(axis=0)
    if not missing.any():
        return None
    did = "trained on them" if side == "IN" else "did not train on them"
    if missing.all():
        return Lack(f"reference models ({side}: that {did})", missing)
    return Lack(f"a reference that {did} for {missing.sum()} of {len(missing)} points", missing)


def every_attack() -> Iterator[Call]:
    """All registered attacks with their default settings; those that have required settings are left out."""
    for name in ATTACKS:
        try:
            yield Call(name, ATTACKS.bind(name, {}))
        except ValidationError:
            continue


def runnable(session: Session, on_some: bool = False) -> list[Call]:
    """The attacks that can run by their default settings on all points, or `on_some` of them."""
    return [c for c in every_attack() if all(on_some and lack.coverage for lack in lacks(session, c))]


def lines(session: Session) -> list[str]:
    """What `--check` says: every attack by its default settings, and whether it can run on what is there."""
    found = ["attacks   by their default settings, on what is there:"]
    for call in every_attack():
        missing = lacks(session, call)
        said = "can run" if not missing else f"lacks {' and '.join(lack.what for lack in missing)}"
        found.append(f"          {call.name:<14} {said}")
    return found


def lines_of_scores() -> list[str]:
    """What `--check` says of every attack where only a table of scores is there."""
    needs = {"needs_references": "reference models", "needs_population": "population points", "needs_text": "texts"}
    found = []
    for call in every_attack():
        missing = [what for fact, what in needs.items() if ATTACKS.fact(call.name, fact, False)]
        found.append(f"          {call.name:<14} lacks {' and '.join(['signals of the target', *missing])}")
    return found
