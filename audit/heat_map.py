"""The most exposed texts, token by token: which of their tokens the model knows better than it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from audit import templates
from audit.results import Section, TargetResult
from audit.session import Session
from core.types import Evidence
from modules.mia.tokens import LOG_P, of_tokens, out_probability, text_of

STRONGEST = 50  # percent of the colour at the largest gain shown: text stays legible on it, in the dark too


@dataclass(frozen=True)
class Piece:
    """Tokens that read as whole letters, and what the target gained on them."""

    text: str
    gain: float | None  # nats; None of the first token, which is not predicted
    weight: int  # percent of colour
    kind: str


def check(session: Session) -> None:
    """UserError where there are no texts to show, or they are not to be shown."""
    audit = session.config.audit
    if not audit.token_heat_map:
        return
    if not session.data.is_text or session.given is not None:
        raise session.config.error("audit.token_heat_map", "there are no texts of which to show the tokens: use 0")
    if session.data.tokenizer is None:
        raise session.config.error(
            "audit.token_heat_map", "tokens are shown with a tokenizer, and there is none: use 0"
        )
    if audit.redact:
        raise session.config.error("audit.token_heat_map", "shows records, which audit.redact hides: use 0")


def sections(session: Session, targets: Sequence[TargetResult], evidence: Callable[[int], Evidence]) -> list[Section]:
    """The section on the most exposed members of the first target, where audit.token_heat_map asks for some."""
    count = session.config.audit.token_heat_map
    return [section(session, targets[0], evidence(targets[0].target), count)] if count else []


def section(session: Session, target: TargetResult, seen: Evidence, count: int) -> Section:
    """The `count` members that the strongest attack scored highest.

    A token's gain is log p under the target minus that of its record's OUT references (their mean probability); with
    no references, minus the mean log p of the token over the audited texts, which also holds how hard its place is.
    """
    strongest = max(target.attacks, key=lambda attack: attack.summary.auc.value)
    members = np.flatnonzero(target.member)
    shown = members[np.argsort(-strongest.scores[members], kind="stable")[:count]]
    gain, against = gains(seen)
    text = text_of(seen)
    parts = [gain[text.start[n] : text.start[n + 1]] for n in shown]
    largest = max((np.abs(part).max() for part in parts), default=1.0) or 1.0
    rows = [
        (session.points[n], strongest.scores[n], _pieces(session, int(n), part, largest))
        for n, part in zip(shown, parts, strict=True)
    ]
    share = half_of_the_gain(np.concatenate(parts))
    verdict = (
        f"In the {len(shown)} members that {strongest.attack} exposes most, {share:.0%} of the tokens carry half of "
        f"what the target gained {against}."
    )
    page = templates.environment().get_template("token_heat_map.html.j2")
    html = page.render(rows=rows, against=against, largest=largest, attack=strongest.attack, target=target.target)
    return Section("token_heat_map", "Where the most exposed texts give themselves away", verdict, html)


def gains(seen: Evidence) -> tuple[np.ndarray, str]:
    """(U,) nats, and what they are against, in words."""
    log_p = of_tokens(seen, LOG_P)
    if len(seen.references):
        return log_p - np.log(np.maximum(out_probability(seen), np.finfo(float).tiny)), "over its references"
    tokens = text_of(seen).tokens
    usual = np.bincount(tokens, log_p) / np.maximum(np.bincount(tokens), 1)
    return log_p - usual[tokens], "over its own average for the token"


def half_of_the_gain(gain: np.ndarray) -> float:
    """The smallest share of the tokens that has half of all positive gain; 0 where there is none."""
    ranked = np.sort(np.maximum(gain, 0))[::-1]
    if not ranked.sum():
        return 0.0
    return float((np.searchsorted(np.cumsum(ranked), ranked.sum() / 2) + 1) / len(gain))


def _pieces(session: Session, n: int, gain: np.ndarray, largest: float) -> list[Piece]:
    from tokenizers import Tokenizer

    assert session.data.tokenizer and session.data.pool.lengths is not None
    tokenizer, record = Tokenizer.from_str(session.data.tokenizer), session.points[n]
    ids = session.data.pool.x[record, : session.data.pool.lengths[record]].tolist()
    return pieces(lambda part: tokenizer.decode(part, skip_special_tokens=False), ids, gain, largest)


def pieces(decode: Callable[[list[int]], str], ids: list[int], gain: np.ndarray, largest: float) -> list[Piece]:
    """The text of the tokens, those that share the bytes of a letter joined, their gains added up."""
    found, start = [], 0
    for end in range(1, len(ids) + 1):
        text = decode(ids[start:end])
        if "\ufffd" in text and end - start < 4 and end < len(ids):
            continue  # the rest of a letter is in the next token
        own = gain[max(start - 1, 0) : end - 1]
        value = float(own.sum()) if start or len(own) else None
        weight = round(min(abs(value or 0.0) / largest, 1.0) * STRONGEST)
        found.append(Piece(text, value, weight, "more" if (value or 0) >= 0 else "less"))
        start = end
    return found
