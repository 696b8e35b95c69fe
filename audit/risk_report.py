"""The risk of records and groups written down: records.csv, groups.csv, and what the page says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray as Array

from audit.results import AuditResult, GroupRow, Risk

Row = dict[str, Any]


def record_columns(result: AuditResult, risk: Risk) -> dict[str, Array]:
    """Columns of records.csv: one row an audited record, over all targets."""
    columns: dict[str, Array] = {"index": result.points}
    if result.ids is not None:
        columns["id"] = result.ids
    if result.labels is not None:
        columns["label"] = result.labels
    columns["exposure"] = risk.exposure
    columns |= {"member_in": risk.member_in, "found_in": risk.found_in, "accused_in": risk.accused_in}
    if risk.flips is not None:
        columns |= {"flip_rate": risk.flips, "unstable": unstable(risk).astype(np.int8)}
    p_values = [target.p_values for target in risk.targets if target.p_values is not None]
    if p_values:
        columns["least_p_value"] = np.min(p_values, axis=0)  # over targets: for one, see exp/records_<t>.csv
    return columns


def target_columns(risk: Risk, target: int) -> dict[str, Array]:
    """Columns that exp/records_<t>.csv has beside the scores."""
    found = next(one for one in risk.targets if one.target == target)
    named = np.zeros(len(found.scores), dtype=np.int8)
    named[found.named.indices] = 1
    columns: dict[str, Array] = {} if found.p_values is None else {"p_value": found.p_values}
    columns |= {} if found.record_fpr is None else {"record_fpr": found.record_fpr}
    return columns | {"list_p_value": found.named.p_values, "named": named}


def unstable(risk: Risk) -> Array:
    """Records about which two models of the same membership disagree."""
    assert risk.flips is not None
    return np.nan_to_num(risk.flips) > 0


def stability(risk: Risk) -> dict[str, float] | None:
    if risk.flips is None or np.isnan(risk.flips).all():
        return None
    return {"mean": float(np.nanmean(risk.flips)), "unstable": int(unstable(risk).sum())}


def group_rows(groups: Mapping[str, tuple[GroupRow, ...]]) -> list[Row]:
    """Rows of groups.csv: each group of each column."""
    return [dict(_cells(column, row)) for column, rows in groups.items() for row in rows]


def _cells(column: str, row: GroupRow) -> Row:
    auc = row.auc
    return {
        "column": column,
        "group": row.group,
        "members": row.members,
        "non_members": row.non_members,
        "auc": auc.value if auc else math.nan,
        "auc_low": auc.low if auc else math.nan,
        "auc_high": auc.high if auc else math.nan,
        "tpr_at_global_threshold": math.nan if row.tpr is None else row.tpr,
        "fpr_at_global_threshold": math.nan if row.fpr is None else row.fpr,
        "tpr_at_own_threshold": math.nan if row.own_tpr is None else row.own_tpr,
        "resolvable": row.resolvable,
        "exposed": row.exposed,
    }
