"""What can be said of a model without any reference model: cheap, and only enough to raise suspicion.

These look at the loss of each record by itself, so they cannot tell a record that was learnt from one that is easy.
A high number here is a reason to audit with references; a low number clears nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from audit.results import Screening, TargetResult
from audit.session import Session
from audit.training import losses_path
from core.errors import UserError
from core.loading import read_array
from core.metrics import tpr_at_fpr
from core.types import Evidence

TAIL = 0.01  # of the members are let go: the TNR is read where 99% of them are recognised


def loss_trace_iqr(trace: Float[Array, "E members"]) -> Float[Array, " members"]:
    """LT-IQR: the interquartile range of each member's loss over the epochs of its own training.

    A record whose loss falls late and far was learnt, not generalised to (arXiv 2411.05743, of which only the
    abstract was at hand). It orders members by how exposed they are; it cannot tell members from others.
    """
    low, high = np.quantile(trace.astype(np.float64), [0.25, 0.75], axis=0)
    return high - low


def exposed_by_trace(
    session: Session, target: TargetResult, scores: Float[Array, " N"], share: float = 0.1
) -> tuple[Float[Array, " N"], float] | None:
    """LT-IQR of each audited member (NaN of others), and its precision; None where no losses were recorded.

    Precision: of the tenth of the members with the largest LT-IQR, the share that is in the tenth with the largest
    `scores` of an attack with references. By chance, a tenth.
    """
    path = losses_path(session, target.target)
    if not path.exists():
        return None
    trained_on = np.flatnonzero(session.plan.member[target.target])
    trace = read_array(path)
    if trace.ndim != 2 or trace.shape[1] != len(trained_on):
        raise UserError(f"{path} has shape {trace.shape}, the model trained on {len(trained_on)} records: delete it")
    of_pool = np.full(session.plan.member.shape[1], np.nan)
    of_pool[trained_on] = loss_trace_iqr(trace)
    iqr = of_pool[session.points]
    members = np.flatnonzero(target.member)
    top = max(int(share * len(members)), 1)
    by_trace, by_attack = (members[np.argsort(-by[members], kind="stable")[:top]] for by in (iqr, scores))
    return iqr, len(np.intersect1d(by_trace, by_attack)) / top


def screen(
    session: Session,
    targets: Sequence[TargetResult],
    models: Sequence[Mapping[str, Any]],
    evidence: Callable[[int], Evidence],
    order: int,
) -> tuple[Screening, ...]:
    """The gap attack, the tail TNR of the loss and, where losses were recorded, LT-IQR for each target.

    order: place of the attack that LT-IQR is compared with.

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
        traced = exposed_by_trace(session, target, target.attacks[order].scores)
        found.append(Screening(target.target, gap, tail.tpr, tail.resolvable, *(traced or ())))
    return tuple(found)
