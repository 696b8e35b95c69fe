"""Which models to train, on which halves, and whose references they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from core.rng import stream
from core.types import Plan


def make_plan(
    pool_size: int, targets: int, reference_pairs: int, seed: int, owner: Int[Array, " D"] | None = None
) -> Plan:
    """Pairs of models on complementary random halves of the pool; `targets` of the models are audited.

    owner: of each record, the number of whose it is: the halves are then halves of the owners, with all that is theirs.

    A target's references are the first `reference_pairs` pairs other than its own, so that each audited
    point is IN for exactly half of them. Targets serve as each other's references. Asking for more targets
    or more references later leaves every model already planned as it is.
    """
    pairs = max((targets + 1) // 2, reference_pairs + 1 if reference_pairs else 0)
    member = np.zeros((2 * pairs, pool_size), dtype=bool)
    for pair in range(pairs):
        draw = stream(seed, "membership", pair)
        if owner is None:
            member[2 * pair, draw.permutation(pool_size)[: pool_size // 2]] = True
        else:
            owners = int(owner.max()) + 1
            member[2 * pair] = np.isin(owner, draw.permutation(owners)[: owners // 2])
        member[2 * pair + 1] = ~member[2 * pair]
    return Plan(member, tuple(_references(t // 2, reference_pairs) for t in range(targets)))


def _references(own_pair: int, count: int) -> tuple[int, ...]:
    pairs = [pair for pair in range(count + 1) if pair != own_pair][:count]
    return tuple(model for pair in pairs for model in (2 * pair, 2 * pair + 1))


def choose(size: int, count: int | None, seed: int, purpose: str) -> Int[Array, " count"]:
    """`count` of `size` indices, sorted; all of them if `count` is None. Never looks at anyone's membership."""
    if count is None or count == size:
        return np.arange(size)
    return np.sort(stream(seed, purpose).choice(size, count, replace=False))


def plan_of(member: Bool[Array, "M D"], targets: Sequence[int], pairs: int | None = None) -> Plan:
    """The plan of models that are there already, whatever their memberships: no pairs are assumed.

    A target's references are all other models but its twins: those whose membership settles its own, by being
    the same or the complement. With `pairs`, the first 2 x `pairs` of them.
    """
    packed = np.packbits(member, axis=1)
    opposite = np.packbits(~member, axis=1)
    references = []
    for target in targets:
        twin = (packed == packed[target]).all(axis=1) | (packed == opposite[target]).all(axis=1)
        others = np.flatnonzero(~twin)
        references.append(tuple(int(m) for m in (others if pairs is None else others[: 2 * pairs])))
    return Plan(member, tuple(references), tuple(int(t) for t in targets))
