"""What can be said of a model without any reference model: cheap, and only enough to raise suspicion.

These look at the loss of each record by itself, so they cannot tell a record that was learnt from one that is easy.
A high number here is a reason to audit with references; a low number clears nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from audit.results import Screening, TargetResult
from core.metrics import tpr_at_fpr
from core.types import Evidence

TAIL = 0.01  # of the members are let go: the TNR is read where 99% of them are recognised


def screen(
    targets: Sequence[TargetResult], models: Sequence[Mapping[str, Any]], evidence: Callable[[int], Evidence]
) -> tuple[Screening, ...]:
    """The gap attack and the tail TNR of the loss for each target.

    Tail TNR: the true negative rate of the LOSS attack at a true positive rate of 99%, where a model that fits its
    members without exception gives non-members away; arXiv 2510.19773 proposes it as a stand-in for the TPR of
    strong attacks at low FPR. (Only its abstract was at hand: the definition here is read off that.)
    """
    rows = {row["id"]: row for row in models if "id" in row}
    found = []
    for target in targets:
        row = rows.get(target.target, {})
        known = row.get("train_acc") is not None and row.get("test_acc") is not None
        loss = -evidence(target.target).target.mean(axis=0, dtype=np.float64)
        tail = tpr_at_fpr(loss, ~target.member, TAIL)  # the same game with the sides exchanged
        gap = row["train_acc"] - row["test_acc"] if known else None
        found.append(Screening(target.target, gap, tail.tpr, tail.resolvable))
    return tuple(found)
