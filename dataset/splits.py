"""Division of a dataset's records into a training pool and a population that no model trains on."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Shaped
from numpy import ndarray as Array

from core.errors import UserError
from core.rng import stream
from core.types import AuditData, Records


def divide(count: int, seed: int, fraction: float) -> tuple[Int[Array, " D"], Int[Array, " P"]]:
    """Sorted indices of the pool and of the population: disjoint, together all of `range(count)`.

    `fraction` of the records, rounded, at least one, go to the population. Raises UserError where the pool
    would not keep the two records that a pair of models needs.
    """
    held_out = max(1, round(fraction * count))
    if count - held_out < 2:
        raise UserError(f"population_fraction {fraction:g} of {count} records leaves {count - held_out} to train on")
    order = stream(seed, "dataset", "population").permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def divide_owners(owner: Shaped[Array, " n"], seed: int, fraction: float) -> tuple[Int[Array, " D"], Int[Array, " P"]]:
    """As `divide`, but no owner has records on both sides: owners by lot, until `fraction` of the records is theirs.

    Raises UserError where fewer than two owners would be left to train on.
    """
    names, of_record, sizes = np.unique(owner, return_inverse=True, return_counts=True)
    order = stream(seed, "dataset", "population").permutation(len(names))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), fraction * len(owner))) + 1
    if len(names) - enough < 2:
        raise UserError(
            f"population_fraction {fraction:g} of {len(names)} owners leaves {max(len(names) - enough, 0)} to train on"
        )
    held_out = np.isin(of_record, order[:enough])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def divided(
    x: Shaped[Array, "n ..."],
    y: Int[Array, " n"],
    seed: int,
    fraction: float,
    *,
    num_classes: int,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    feature_names: tuple[str, ...] | None = None,
) -> AuditData:
    """The records (x, y) as an audit needs them, divided by `divide`."""
    pool, population = divide(len(y), seed, fraction)
    parts = (Records(x[pool], y[pool]), Records(x[population], y[population]))
    return AuditData(*parts, num_classes, mean, std, feature_names)


def pixel_constants(*channels: float) -> tuple[float, ...]:
    """Constants published for pixels in [0, 1], in the units of uint8 images."""
    return tuple(255.0 * channel for channel in channels)
