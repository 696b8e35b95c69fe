"""Randomness by purpose: a draw depends on its name and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """An independent generator for each (seed, purpose), e.g. `stream(seed, "membership", pair)`.

    The purpose is hashed with the type and length of its parts, so ("a", 1) differs from ("a", "1") and
    ("ab",) from ("a", "b"). The same name gives the same draws on every machine and in any order of calls.
    """
    name = "".join(f"{type(part).__name__}:{len(str(part))}:{part};" for part in (seed, *purpose))
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")))
