"""Whether a public hub of models and datasets can be reached, in seconds rather than after a minute of retries."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request


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
