"""Which attack finds most, with how many references, on which data and models.

    python -m benchmarks.league [--full] [--only digits] [--folder runs/league]

Every registered attack by its default settings, and a few in other modes, on real and synthetic data. Of each case 65
pairs of models are trained once; with n pairs a target is compared with the n pairs after its own, so that fewer
references are a part of more. Ten models (five pairs) are targets. Printed: AUC, TPR at 1% and at 0.1% FPR, each the
mean over targets with its 95% t interval over pairs of targets (twins count once), as tables in Markdown; then JSON. An
FPR that these non-members cannot resolve is not given. What was trained and asked is kept in the folder and found
again: a run may be stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.side_by_side import device, one_thread, versions

if TYPE_CHECKING:
    from audit.session import Session
    from core.config import Call

PACKAGES = ("torch", "numpy", "scikit-learn", "mlxtend")
PAIRS = (1, 2, 4, 8, 16, 64)
TARGETS = 10
FPRS = (0.01, 0.001)
# Beside the default settings:
MODES = (("LiRA", {"mode": "offline"}), ("RMIA", {"temperature": 2.0}), ("LabelRobustness", {"mode": "online"}))
ASK_AGAIN = {"robust_label", "boundary"}  # signals of records that are altered
TRAIN_AGAIN = {"distilled"}  # signals that take a training for each model: only with --full
NEVER = 0  # the column of attacks that have no references


@dataclass(frozen=True)
class Case:
    """Data and models. `asks`: attacks that ask about altered records are in, too (slow where models are forests)."""

    name: str
    data: str
    train: str
    asks: bool = True
    full: bool = False  # only with --full


CASES = (
    Case(
        "digits, MLP",
        "{dataset: digits}",
        "{model_name: {name: mlp, hidden: [256]}, learning_rate: 0.1, batch_size: 32, epochs: 40, weight_decay: 0}",
    ),
    Case(
        "digits, CNN",
        "{dataset: digits}",
        "{model_name: cnn, learning_rate: 0.05, batch_size: 32, epochs: 20, weight_decay: 0}",
    ),
    Case(
        "mnist5k, MLP",
        "{dataset: mnist5k}",
        "{model_name: {name: mlp, hidden: [128]}, learning_rate: 0.1, batch_size: 64, epochs: 20, weight_decay: 0}",
    ),
    Case(
        "synthetic table, MLP",
        "{dataset: synthetic_tabular, num_records: 27000, num_features: 40, num_classes: 10}",
        "{model_name: {name: mlp, hidden: [128]}, learning_rate: 0.1, batch_size: 256, epochs: 20, weight_decay: 0}",
        asks=False,
    ),
    Case(
        "synthetic table, forest",
        "{dataset: synthetic_tabular, num_records: 27000, num_features: 40, num_classes: 10}",
        "{model_name: {name: sklearn/RandomForestClassifier, n_estimators: 50, min_samples_leaf: 2}}",
        asks=False,
    ),
    Case(
        "digits, forest",
        "{dataset: digits}",
        "{model_name: {name: sklearn/RandomForestClassifier, n_estimators: 100}}",
        asks=False,
    ),
    Case(
        "mnist5k, CNN",
        "{dataset: mnist5k}",
        "{model_name: cnn, learning_rate: 0.05, batch_size: 64, epochs: 30, weight_decay: 0}",
        full=True,
    ),
)


@dataclass(frozen=True)
class Measured:
    """One attack with n pairs of references (0: it has none) on every target."""

    attack: str
    pairs: int
    auc: list[float]
    tpr: dict[float, list[float]]  # by FPR


# --- one case ----------------------------------------------------------------------------------------------------


def prepared_case(case: Case, folder: Path, pairs: int, targets: int, workers: str, full: bool = False) -> Session:
    """Its models trained, and asked for all that its attacks read."""
    import torch

    import dataset  # noqa: F401  (these fill the registries)
    import models  # noqa: F401
    import modules.mia  # noqa: F401
    import trainers  # noqa: F401
    from audit.pipeline import prepared
    from audit.session import make_reproducible
    from audit.signals import compute_missing
    from audit.training import train_missing
    from core import rundir
    from core.config import load

    directory = folder / "".join(c if c.isalnum() else "_" for c in case.name.lower())
    directory.mkdir(parents=True, exist_ok=True)
    written = directory / "league.yaml"
    written.write_text(
        f"run: {{log_dir: {json.dumps(str(directory))}, random_seed: 12345, num_experiments: {targets}, "
        f"workers: {workers}}}\n"
        f"data: {case.data}\ntrain: {case.train}\naudit: {{algorithm: LOSS, num_ref_models: {pairs}, device: cpu}}\n"
    )
    config = load(written)
    make_reproducible(config.run.threads)
    session = prepared(config)
    session = replace(session, config=replace(session.config, attacks=tuple(attacks_of(session, case, full))))
    with rundir.lock(config.run.log_dir):
        train_missing(session, torch.device("cpu"))
        compute_missing(session, torch.device("cpu"))
    return session


def attacks_of(session: Session, case: Case, full: bool = False) -> list[Call]:
    """The registered attacks that can run on this case, by their default settings."""
    from audit.available import lacks, runnable
    from audit.pipeline import _check_attacks
    from core.config import Call
    from core.errors import UserError
    from core.registry import ATTACKS

    def wanted(call: Call) -> bool:
        signals = ATTACKS.fact(call.name, "signals")
        kinds = {signal.kind for signal in signals(call.settings)} if signals else set()
        if (kinds & ASK_AGAIN and not case.asks) or (kinds & TRAIN_AGAIN and not full):
            return False
        try:
            _check_attacks(replace(session, config=replace(session.config, attacks=(call,))))
        except UserError:  # the models of the case do not give what it reads
            return False
        return True

    others = [Call(name, ATTACKS.bind(name, given), given) for name, given in MODES]
    calls = [*runnable(session), *(call for call in others if not lacks(session, call))]
    return [call for call in calls if wanted(call)]


def with_pairs(session: Session, pairs: int) -> Session:
    """The same targets, each compared with the `pairs` pairs after its own, in a circle."""
    plan = session.plan
    of_all = len(plan.member) // 2

    def references(target: int) -> tuple[int, ...]:
        chosen = [(target // 2 + 1 + k) % of_all for k in range(pairs)]
        return tuple(model for pair in chosen for model in (2 * pair, 2 * pair + 1))

    return replace(session, plan=replace(plan, references=tuple(references(t) for t in plan.targets)))


def measure(session: Session, pairs: Sequence[int]) -> tuple[list[Measured], dict[str, str]]:
    """Every attack of the session on every target; and of attacks that could not run, what they said."""
    from audit.signals import evidence
    from core.config import min_pairs
    from core.errors import UserError
    from core.log import quiet
    from core.metrics import auc, tpr_at_fpr
    from core.registry import ATTACKS

    found: dict[tuple[str, int], Measured] = {}
    failed: dict[str, str] = {}
    for count in pairs:
        session = with_pairs(session, count)
        for target in session.plan.targets:
            seen, member = evidence(session, target), session.plan.member[target, session.points]
            for call in session.config.attacks:
                alone = min_pairs(call) == 0
                if call.label in failed or min_pairs(call) > count or (alone and count != pairs[0]):
                    continue
                try:
                    with quiet("modules"):
                        scores = np.asarray(ATTACKS[call.name](seen, **call.settings))
                except (ValueError, UserError) as error:
                    failed[call.label] = str(error)
                    continue
                column = NEVER if alone else count
                row = found.setdefault(
                    (call.label, column), Measured(call.label, column, [], {fpr: [] for fpr in FPRS})
                )
                row.auc.append(auc(scores, member))
                for fpr in FPRS:
                    row.tpr[fpr].append(tpr_at_fpr(scores, member, fpr).tpr.value)
    return [row for row in found.values() if row.attack not in failed], failed


def rows_of(case: Case, session: Session, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row for each attack, number of pairs and measure: mean over targets, interval over pairs of targets."""
    from core.metrics import ENOUGH_FALSE_POSITIVES, across_models
    from core.types import pairs_of

    plan = session.plan
    member = plan.member[list(plan.targets)][:, session.points]
    twins, non_members = pairs_of(member), int((~member).sum(axis=1).min())
    rows = []
    for one in measured:
        for measure, fpr, values in (
            ("AUC", None, one.auc),
            *((f"TPR at {100 * fpr:.10g}% FPR", fpr, one.tpr[fpr]) for fpr in FPRS),
        ):
            estimate = across_models(np.array(values), twins)
            rows.append(
                {
                    "name": f"{case.name}, {one.attack}, {one.pairs} pairs, {measure}",
                    "case": case.name,
                    "attack": one.attack,
                    "pairs": one.pairs,
                    "measure": measure,
                    "value": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "targets": len(values),
                    "non_members": non_members,
                    "resolvable": fpr is None or fpr * non_members >= ENOUGH_FALSE_POSITIVES,
                    "ratio": None,
                    "floor": None,
                }
            )
    return rows


# --- tables ------------------------------------------------------------------------------------------------------


def tables(case: Case, rows: Sequence[dict[str, Any]], accuracies: str) -> str:
    """Markdown: a table for each measure that these non-members resolve, the strongest with most references first."""
    parts = [f"### {case.name}", accuracies]
    for measure in dict.fromkeys(row["measure"] for row in rows):
        of_measure = [row for row in rows if row["measure"] == measure]
        if not of_measure[0]["resolvable"]:
            least = of_measure[0]["non_members"]
            parts.append(f"**{measure}**: not resolvable with {least:,} non-members a target.")
            continue
        parts.append(_table(measure, of_measure))
    return "\n\n".join(parts)


def _table(measure: str, rows: Sequence[dict[str, Any]]) -> str:
    columns = sorted({row["pairs"] for row in rows} - {NEVER})
    by_attack: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_attack.setdefault(row["attack"], {})[row["pairs"]] = row
    best = lambda attack: by_attack[attack][max(by_attack[attack])]["value"]  # noqa: E731
    lines = [f"| {measure} | {' | '.join(map(_pairs, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for attack in sorted(by_attack, key=lambda attack: -best(attack)):
        of = by_attack[attack]
        if NEVER in of:
            cells = [_cell(measure, of[NEVER]), *["same" for _ in columns[1:]]]
        else:
            cells = [_cell(measure, of[n]) if n in of else "" for n in columns]
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count > 1)}"


def _cell(measure: str, row: dict[str, Any]) -> str:
    text = (lambda v: f"{v:.3f}") if measure == "AUC" else (lambda v: f"{100 * v:.2f}%")
    if math.isnan(row["low"]):
        return text(row["value"])
    return f"{text(row['value'])} ± {text((row['high'] - row['low']) / 2)}"


def standings(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: how far each attack's AUC is below the best of the same case and number of pairs, mean over cases."""
    aucs = [row for row in rows if row["measure"] == "AUC"]
    columns = sorted({row["pairs"] for row in aucs} - {NEVER})
    cases = list(dict.fromkeys(row["case"] for row in aucs))
    value = {(row["case"], row["attack"], row["pairs"]): row["value"] for row in aucs}
    attacks = list(dict.fromkeys(row["attack"] for row in aucs))

    def behind(attack: str, pairs: int) -> float | None:
        """None where it did not run on every case."""
        gaps = []
        for case in cases:
            own = value.get((case, attack, pairs), value.get((case, attack, NEVER)))
            if own is None:
                return None
            gaps.append(max(v for (c, _, n), v in value.items() if c == case and n in (pairs, NEVER)) - own)
        return float(np.mean(gaps))

    table = {attack: [behind(attack, n) for n in columns] for attack in attacks}
    order = sorted(attacks, key=lambda a: (np.mean([g for g in table[a] if g is not None] or [math.inf]), a))
    lines = [f"| AUC below the best | {' | '.join(map(_pairs, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for attack in order:
        if any(gap is not None for gap in table[attack]):
            cells = ["" if gap is None else f"{gap:.3f}" for gap in table[attack]]
            lines.append(f"| {attack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracies_of(session: Session) -> str:
    """What the models of a case are like, in words."""
    from audit.training import model_rows

    models = list(model_rows(session))
    train, test = (np.mean([model[key] for model in models]) for key in ("train_acc", "test_acc"))
    return (
        f"{len(models)} models, each trained on half of {len(session.points):,} records; training accuracy "
        f"{train:.3f}, test accuracy {test:.3f} on average."
    )


def main() -> None:
    """Print the tables of each case as it is done, the standings, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the slow cases, too, and 20 targets")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--folder", type=Path, default=Path("runs/league"), help="where models are kept")
    parser.add_argument("--pairs", type=int, default=max(PAIRS), help="the most pairs of references")
    parser.add_argument("--workers", default="auto", help="processes that train and ask: run.workers")
    options = parser.parse_args()
    one_thread()
    logging.basicConfig(level=logging.WARNING)
    targets = 2 * TARGETS if options.full else TARGETS
    pairs = [count for count in PAIRS if count <= options.pairs]
    circumstances = {"device": device(), "versions": versions(*PACKAGES), "load": os.getloadavg()[0]}
    print(*circumstances.values(), time.strftime("%Y-%m-%d"), f"{targets} targets", sep="; ", flush=True)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.only not in case.name or (case.full and not options.full):
            continue
        start, spent = time.perf_counter(), time.process_time()
        session = prepared_case(case, options.folder, max(pairs), targets, options.workers, options.full)
        measured, failed = measure(session, pairs)
        of_case = rows_of(case, session, measured)
        rows += of_case
        print(f"\n{tables(case, of_case, accuracies_of(session))}\n")
        for attack, said in failed.items():
            print(f"{attack} did not run: {said}")
        print(
            f"{time.perf_counter() - start:.0f} s, {time.process_time() - spent:.0f} CPU-s of this process", flush=True
        )
    print(f"\n### All cases\n\n{standings(rows)}\n")
    print(json.dumps(circumstances | {"rows": rows}, default=float))


if __name__ == "__main__":
    main()
