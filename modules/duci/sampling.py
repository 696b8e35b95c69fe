"""Which part of the dataset X a synthetic target trains on; the rest of its training set comes from outside X."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

Sampling = Literal["uniform", "poisson", "most_vulnerable", "least_vulnerable"]


def training_set(
    dataset: Int[Array, " N"],
    pool: int,
    size: int,
    proportion: float,
    sampling: Sampling,
    rng: np.random.Generator,
    vulnerability: Float[Array, " N"] | None = None,
) -> Bool[Array, " D"]:
    """Membership of all `pool` records: a `proportion` of `dataset`, and others to make up `size`.

    uniform: exactly round(proportion N) records, at random. poisson: each with probability `proportion`.
    most_vulnerable, least_vulnerable: the records that leak most, or least, first; only the others are drawn.
    The training size is constant, for a smaller one would change the model by itself. Raises ValueError where
    there are too few records.
    """
    n = len(dataset)
    if sampling == "poisson":
        used = dataset[rng.random(n) < proportion]
    elif sampling == "uniform":
        used = dataset[rng.permutation(n)[: round(proportion * n)]]
    else:
        if vulnerability is None:
            raise ValueError(f"sampling {sampling!r} needs the vulnerability of each record")
        ascending = np.argsort(vulnerability, kind="stable")
        order = ascending if sampling == "least_vulnerable" else ascending[::-1]
        used = dataset[order[: round(proportion * n)]]
    outside = np.setdiff1d(np.arange(pool), dataset)
    wanted = size - len(used)
    if not 0 <= wanted <= len(outside):
        raise ValueError(
            f"a model trains on {size} records; {len(used)} of the dataset's {n} leave {wanted} to take from the "
            f"{len(outside)} records of the pool outside it"
        )
    member = np.zeros(pool, dtype=bool)
    member[used] = True
    member[rng.permutation(outside)[:wanted]] = True
    return member
