"""What was found about owners, written down: owners.csv, a file for each target, curves, a section of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audit import plots, tables, templates
from audit.ramia_report import mean_of
from audit.report import auc_text, rate, share
from audit.results import Section
from audit.session import Session
from core.metrics import ENOUGH_FALSE_POSITIVES
from core.rundir import write_atomic, write_text
from core.types import Estimate

if TYPE_CHECKING:
    from audit.owners import Found, Setup

SHOWN = 12  # owners in the page; all are in the files


def write(session: Session, setup: Setup, found: Sequence[Found], folder: Path) -> Section:
    """The CSV, NPZ and PNG files, and the section of the report."""
    from audit.report import columns_to_csv, to_csv

    write_text(folder / "owners.csv", to_csv([row(setup, one) for one in found]))
    for one in found:
        t = one.result.target
        write_text(folder / f"attack_result_{t}.csv", to_csv(tables.target_rows(one.result)))
        write_text(folder / f"owners_{t}.csv", columns_to_csv(owner_columns(setup, one)))
        arrays = tables.arrays(one.result) | {"owners": setup.held.names[one.judged].astype(str)}
        write_atomic(folder / f"attack_result_{t}.npz", lambda file, arrays=arrays: np.savez(file, **arrays))
    for log, stem in ((False, "ROC"), (True, "ROC_log")):
        image = plots.png(plots.roc_figure([one.result for one in found], log=log, title=f"Owners, {_targets(found)}"))
        write_atomic(folder / f"{stem}.png", lambda file, image=image: file.write(image))
    return Section("owners", "Whose records were used", verdict(setup, found), _html(session, setup, found))


def row(setup: Setup, one: Found) -> tables.Row:
    """A target in owners.csv."""
    (attack,) = one.result.attacks
    sizes = setup.held.size[one.judged]
    return {
        "target": one.result.target,
        "column": setup.column,
        "owners": len(one.judged),
        "members": int(one.result.member.sum()),
        "in_part": len(one.share) - len(one.judged),
        "records_of_an_owner_least": int(sizes.min()),
        "records_of_an_owner_median": float(np.median(sizes)),
        "records_of_an_owner_most": int(sizes.max()),
        "attack": attack.attack,
        "tuned": bool(one.tried),
        **_estimate("auc_owners", attack.summary.auc),
        **_estimate("auc_records", one.records),
        "named": len(one.named.indices),
        "named_falsely": one.named.false,
    }


def _estimate(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def owner_columns(setup: Setup, one: Found) -> dict[str, np.ndarray]:
    """Columns of owners_<t>.csv: one row an owner; those in part are left out."""
    (attack,) = one.result.attacks
    named = np.zeros(len(one.judged), dtype=np.int8)
    named[one.named.indices] = 1
    columns = {
        "owner": setup.held.names[one.judged].astype(str),
        "records": setup.held.size[one.judged],
        "membership": one.result.member.astype(np.int8),
        "score": attack.scores,
    }
    columns |= {} if one.p_values is None else {"p_value": one.p_values}
    columns |= {} if one.owner_fpr is None else {"owner_fpr": one.owner_fpr}
    return columns | {"list_p_value": one.named.p_values, "named": named}


def means(found: Sequence[Found]) -> tuple[Estimate, Estimate]:
    """Over targets: the AUC over owners, and over their records, each by itself."""
    pairs = [one.pair for one in found]
    owners = mean_of([one.result.attacks[0].summary.auc for one in found], pairs)
    return owners, mean_of([one.records for one in found], pairs)


def verdict(setup: Setup, found: Sequence[Found]) -> str:
    """One sentence: can owners be told, and how much better than single records?"""
    owners, records = means(found)
    first = found[0]
    sizes = setup.held.size[first.judged]
    return (
        f"Whether a model trained on an owner's records ({len(first.judged):,} owners in {setup.column!r}, "
        f"{int(np.median(sizes))} records each in the middle) is told with an AUC of {_auc(owners)} by all of them "
        f"({first.result.attacks[0].attack}), and of {_auc(records)} by one record ({_targets(found)}, 95% intervals)."
    )


def _auc(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return auc_text(estimate.value)
    return f"{auc_text(estimate.value)} [{auc_text(max(estimate.low, 0))}, {auc_text(min(estimate.high, 1))}]"


def _targets(found: Sequence[Found]) -> str:
    return "one target model" if len(found) == 1 else f"mean of {len(found)} target models"


def _html(session: Session, setup: Setup, found: Sequence[Found]) -> str:
    from markupsafe import Markup

    environment = templates.environment()
    environment.filters |= {"rate": rate, "share": share, "count": lambda n: f"{n:,}"}
    results = [one.result for one in found]
    figures: list[Any] = []
    for log in (False, True):
        figure = plots.roc_figure(results, log=log, legend=False)
        about = f"ROC curve over owners, {'logarithmic' if log else 'linear'} axes"
        figures.append(Markup(plots.svg(figure, f"owners {log}", about)))
    first = found[0]
    order = np.argsort(-first.result.attacks[0].scores, kind="stable")[:SHOWN]
    return environment.get_template("owners.html.j2").render(
        setup=setup,
        found=found,
        rows=[row(setup, one) for one in found],
        figures=figures,
        means=means(found),
        auc=_auc,
        enough=ENOUGH_FALSE_POSITIVES,
        redacted=session.config.audit.redact,
        shown=[
            {
                "name": setup.held.names[first.judged[u]],
                "records": int(setup.held.size[first.judged[u]]),
                "member": bool(first.result.member[u]),
                "fpr": None if first.owner_fpr is None else float(first.owner_fpr[u]),
            }
            for u in order
        ],
    )
