"""Whether a public hub of models and datasets can be reached, in seconds rather than after a minute of retries."""

from __future__ import annotations

import contextlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator


def unreachable(url: str, timeout: float = 5.0) -> str | None:
    """Why `url` cannot be asked for, or None if something answers there."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return None  # it answered: whether it has the file is for its own client to say
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within, the hub's client looks in its cache only; transformers asks for some files whatever it is told."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
