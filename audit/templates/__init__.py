"""The pages' templates, and the one way they are rendered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

NAME = 120  # characters of a name from the data that the page shows


def environment() -> Environment:
    """Jinja with every value escaped, and an error for a name that is not given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"short": short, "named": named}
    return made


def short(name: Any) -> str:
    """A name from the data in at most NAME characters; the files have it whole."""
    text = str(name)
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"


def named(name: Any) -> Markup:
    """A short name that may be in any script and direction, without turning round what stands beside it."""
    from markupsafe import Markup

    return Markup("<bdi>{}</bdi>").format(short(name))
