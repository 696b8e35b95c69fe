"""Who is at risk by scores that were given: each row of the table, and each group, under the first score named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

from audit.results import Exhibit, Risk, TargetResult, TargetRisk
from audit.risk import EXHIBITS, FALSE_SHARE, NOMINAL_FPR, group_rows, looked_at, telling
from modules.risk.records import named_members


def assess_scores(
    targets: Sequence[TargetResult],
    columns: Mapping[str, Shaped[Array, " rows"]],
    draw: Callable[..., np.random.Generator],
) -> Risk:
    """The risk of each row of the table, which is a record of one target; of groups over all targets.

    columns: id, label and groups. There are no references, so no p-value of a record against itself, and nothing
    that could choose among several scores without looking at the memberships: the first is taken.
    """
    rows = [target.records["index"] for target in targets if target.records is not None]
    count = sum(map(len, rows))
    exposure = np.full(count, np.nan)
    member_in, found_in, accused_in = np.zeros((3, count), dtype=int)
    for target, own in zip(targets, rows, strict=True):
        guessed, below = looked_at(target, 0)
        exposure[own] = np.where(target.member, below, np.nan)
        member_in[own], found_in[own], accused_in[own] = (
            target.member,
            guessed & target.member,
            guessed & ~target.member,
        )
    named = [
        named_members(t.attacks[0].scores, t.member, q=FALSE_SHARE, draw=draw("named members", t.target))
        for t in targets
    ]
    groups = telling({"class" if name == "label" else name: c for name, c in columns.items() if name != "id"})
    several = len(targets[0].attacks) > 1
    return Risk(
        attack=targets[0].attacks[0].attack,
        order=0,
        chosen="the first score named" + (", since no memberships may choose among them" if several else ""),
        targets=tuple(
            TargetRisk(t.target, t.attacks[0].scores, None, found) for t, found in zip(targets, named, strict=True)
        ),
        exposure=exposure,
        member_in=member_in,
        found_in=found_in,
        accused_in=accused_in,
        nominal_fpr=NOMINAL_FPR,
        flips=None,
        groups={name: group_rows(targets, 0, [column[own] for own in rows]) for name, column in groups.items()},
        most=_shown(exposure, member_in, found_in, columns),
        least=_shown(-exposure, member_in, found_in, columns),
    )


def _shown(order: Array, member: Array, found: Array, columns: Mapping[str, Array]) -> tuple[Exhibit, ...]:
    """The members whose `order` is largest, by name: their contents were not given."""
    members = np.flatnonzero(member)
    ids = columns.get("id")
    return tuple(
        Exhibit(
            name=str(row if ids is None else ids[row]),
            label=str(columns["label"][row]) if "label" in columns else "",
            exposure=float(abs(order[row])),
            found=f"{'' if found[row] else 'not '}found at {NOMINAL_FPR:.0%} false positives",
        )
        for row in members[np.lexsort((members, -order[members]))][:EXHIBITS]
    )
