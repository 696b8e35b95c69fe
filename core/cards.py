"""Attack cards: what each attack needs, what it costs, when it fails, and where it is from.

Every word stands in the attack's registration; a test refuses an attack that leaves one out. `--list attacks` prints
the cards, and documentation/attacks.md is made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from core.registry import ATTACKS

# What an attacker must get of a model, by the fact `access`; from least to most.
ACCESS = {
    "label": "the predicted label, nothing else",
    "confidence": "the probability of the true label",
    "classes": "the probabilities of all classes",
    "tokens": "the probabilities of a text's tokens",
    "training": "what is recorded while the model is trained",
    "white box": "the weights, for gradients",
}
SAID = ("summary", "access", "cost", "fails", "source")  # what every attack says of itself, in words


def card(name: str) -> dict[str, str]:
    """Of one attack by its default settings: sees, needs, costs, fails, source; without what a plug-in leaves out."""
    facts = ATTACKS.facts[ATTACKS.find(name) or name]
    said = {
        "sees": ACCESS.get(facts.get("access", ""), facts.get("access")),
        "needs": needs(name),
        "costs": facts.get("cost"),
        "fails": facts.get("fails"),
        "source": facts.get("source"),
    }
    return {key: text for key, text in said.items() if text}


def needs(name: str) -> str:
    """What there must be beside the target, in words."""
    facts, settings = ATTACKS.facts[ATTACKS.find(name) or name], _defaults(name)
    found = []
    if facts.get("needs_text"):
        found.append("texts")
    if facts.get("needs_labels"):
        found.append("class labels")
    if facts.get("needs_records"):
        found.append("the records themselves")
    if facts.get("needs_references", True):
        both = facts.get("needs_in", False)
        both = both(settings) if callable(both) else both
        found.append(f"references ({'IN and OUT' if both else 'OUT'}), at least {_pairs(facts, settings)} pairs")
    if facts.get("needs_population"):
        found.append("a population")
    return ", ".join(found).replace("at least 1 pairs", "at least 1 pair") or "nothing"


def _pairs(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    pairs: int | Callable[[Mapping[str, Any]], int] = facts.get("min_pairs", 1)
    return pairs if isinstance(pairs, int) else pairs(settings)


def _defaults(name: str) -> dict[str, Any]:
    """The settings that have a default."""
    return {key: field.default for key, field in ATTACKS.schema(name).model_fields.items() if not field.is_required()}


def lines(name: str) -> list[str]:
    """A card as indented lines of a terminal."""
    return [f"    {key:<8}{text}" for key, text in card(name).items()]


def markdown() -> str:
    """The whole of documentation/attacks.md."""
    levels = "\n".join(f"| {level} | {words} |" for level, words in ACCESS.items())
    parts = [
        "# Attack cards",
        "Generated from the registrations by `make docs`; a test compares. `python main.py --list attacks` prints the "
        "same, `python main.py --list attacks RMIA` one card with its settings. How the attacks work and are read: "
        "[mia.md](mia.md), of texts [text.md](text.md).",
        "| access | what the attacker gets of a model |\n|---|---|\n" + levels,
        "## At a glance\n\n" + _table(),
    ]
    for name in ATTACKS:
        said = {"asks": ATTACKS.fact(name, "summary", ""), **card(name)}
        parts.append(f"## {name}\n\n" + "\n".join(f"- **{key}**: {text}" for key, text in said.items()))
    return "\n\n".join(parts) + "\n"


def _table() -> str:
    rows = [
        "| attack | access | references | population | only of | least `num_ref_models` |",
        "|---|---|---|---|---|---|",
    ]
    for name in ATTACKS:
        facts, settings = ATTACKS.facts[name], _defaults(name)
        references = facts.get("needs_references", True)
        both = facts.get("needs_in", False)
        both = both(settings) if callable(both) else both
        only = "texts" if facts.get("needs_text") else "classes" if facts.get("needs_labels") else ""
        cells = [
            f"[`{name}`](#{_anchor(name)})",
            str(facts.get("access", "")),
            ("IN + OUT" if both else "OUT") if references else "",
            "yes" if facts.get("needs_population") else "",
            only,
            str(_pairs(facts, settings) if references else 0),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum() or c in "-_")
