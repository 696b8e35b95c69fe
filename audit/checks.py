"""The checks that every audit runs on itself, before its numbers are believed. All are cheap next to an attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from audit.duplicates import duplicates
from audit.results import Check, TargetResult
from audit.session import Session
from core.types import Evidence
from modules.checks.dp import breaches
from modules.checks.fidelity import compared, worst_fitted, worst_fitted_references
from modules.checks.null import null_auc
from modules.checks.resolution import non_members_needed

LEVEL = 0.99  # of each check over everything it looks at: one false alarm in a hundred audits
DUPLICATES_TO_MENTION = 0.01  # of the non-members
NO_RECORDS = "The records themselves were not given."
Row = Mapping[str, Any]
Draw = Callable[..., np.random.Generator]  # the stream of a purpose


def check_audit(
    session: Session, targets: Sequence[TargetResult], models: Sequence[Row], evidence: Callable[[int], Evidence]
) -> tuple[Check, ...]:
    """Every check, in the order of the report."""
    return (
        null_test(targets, session.stream),
        fidelity(session, targets, models),
        fitted(session, targets, evidence),
        copies(session, targets),
        resolution(targets),
        *dp_consistency(targets, models),
        analyses(targets, len(session.config.modules)),
    )


def check_scores(targets: Sequence[TargetResult], draw: Draw) -> tuple[Check, ...]:
    """The checks that a table of scores allows, and by name those that it does not: a reader should miss them."""
    no_models = "A table of scores was given, no models"
    return (
        null_test(targets, draw),
        Check(
            "reference fidelity",
            "untested",
            f"{no_models}: whether references (if the scores needed any) were like the target cannot be told.",
        ),
        Check("members were fitted", "untested", f"{no_models}: whether the members are those of this model either."),
        Check("copies of members", "untested", NO_RECORDS),
        resolution(targets),
        analyses(targets, 0),
    )


def null_test(targets: Sequence[TargetResult], draw: Draw) -> Check:
    """Each attack's scores against memberships drawn by lot."""
    looks = [(target, attack) for target in targets for attack in target.attacks]
    level = 1 - (1 - LEVEL) / len(looks)
    found = [
        (
            target,
            attack,
            null_auc(attack.scores, target.member, draw("null test", target.target), level=level),
        )
        for target, attack in looks
    ]
    wrong = [(t, a, auc) for t, a, auc in found if not auc.low <= 0.5 <= auc.high]
    if wrong:
        target, attack, auc = wrong[0]
        return Check(
            "null test",
            "look",
            f"For memberships drawn by lot, where there is nothing to find, {attack.attack} on target model "
            f"{target.target} has AUC {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]: do not rely on its numbers.",
        )
    widest = max(abs(auc.value - 0.5) for _, _, auc in found)
    return Check(
        "null test",
        "fine",
        f"With memberships drawn by lot, all {len(found)} attack results are within their interval of 0.5 "
        f"(the furthest AUC is {widest:.3f} away).",
    )


def fidelity(session: Session, targets: Sequence[TargetResult], models: Sequence[Row]) -> Check:
    """Accuracy and loss of each target beside those of its references."""
    rows = {row["id"]: row for row in models if "id" in row}
    keys = [key for key in ("train_acc", "test_acc", "train_loss", "test_loss") if _all_have(rows, key)]
    looks = [(target, key) for target in targets for key in keys]
    unlike, seen, usual = [], 0, ""
    for target, key in looks:
        theirs = np.array([rows[m][key] for m in session.plan.references_of(target.target) if m in rows], dtype=float)
        if (
            target.target not in rows
            or (found := compared(rows[target.target][key], theirs, level=_each(looks))) is None
        ):
            continue
        seen += 1
        if key == "test_acc" and not usual:
            usual = f" (test accuracy {found.value:.3f}, of the references {found.mean:.3f} on average)"
        if not found.alike:
            unlike.append(
                f"target model {target.target} has {_NAMES[key]} {found.value:.4g}, its references {found.mean:.4g} "
                f"[{found.low:.4g}, {found.high:.4g}]"
            )
    if not seen:
        return Check(
            "reference fidelity",
            "untested",
            "Fewer than three references with known accuracy and loss: whether the targets are models like them "
            "cannot be told.",
        )
    if unlike:
        return Check(
            "reference fidelity",
            "look",
            f"{'; '.join(unlike[:3])}{f'; and {len(unlike) - 3} more' if len(unlike) > 3 else ''}: attacks that learn "
            "from references unlike the target are weaker than they could be. Train the references by its recipe.",
        )
    return Check(
        "reference fidelity", "fine", f"The targets perform like the references they are compared with{usual}."
    )


_NAMES = {
    "train_acc": "training accuracy",
    "test_acc": "test accuracy",
    "train_loss": "training loss",
    "test_loss": "test loss",
}


def _all_have(rows: Mapping[Any, Row], key: str) -> bool:
    return bool(rows) and all(
        isinstance(row.get(key), (int, float)) and math.isfinite(row[key]) for row in rows.values()
    )


def _each(looks: Sequence[Any]) -> float:
    return 1 - (1 - LEVEL) / max(len(looks), 1)


def fitted(session: Session, targets: Sequence[TargetResult], evidence: Callable[[int], Evidence]) -> Check:
    """Whether each target fits its members as references that trained on them do."""
    worst = []
    for target in targets:
        seen = evidence(target.target)
        signals, references = seen.target.mean(axis=0), seen.references.mean(axis=1)
        usual = worst_fitted_references(references, seen.trained_on)
        usual = usual[np.isfinite(usual)]
        ratio = worst_fitted(signals, references, seen.trained_on, target.member)
        found = compared(ratio, usual, level=_each(targets)) if math.isfinite(ratio) else None
        if found:
            worst.append((found, target.target))
    if not worst:
        return Check(
            "members were fitted", "untested", "Needs three references or more that trained on audited members."
        )
    found, target = max(worst, key=lambda one: one[0].value - one[0].high)
    if found.value > found.high:
        return Check(
            "members were fitted",
            "look",
            f"Target model {target} fits its members worse than all references that trained on them "
            f"{found.value:.1f} times as often as chance would have it (its references: {found.mean:.1f}, at most "
            f"{found.high:.1f}): check that the membership list is that of this model.",
        )
    return Check(
        "members were fitted",
        "fine",
        f"The targets fit their members as well as references that trained on them do: worst of all "
        f"{found.value:.2f} times as often as by chance (references: {found.mean:.2f}).",
    )


def copies(session: Session, targets: Sequence[TargetResult]) -> Check:
    """Members among the non-members."""
    data = session.data
    if not data.has_contents:
        return Check("copies of members", "untested", NO_RECORDS)
    target = targets[0]
    found = duplicates(data.pool, session.points, target.member, session.stream("near copies"))
    numbers = (
        f"{found.equal:,} of {found.non_members:,} non-members of target model {target.target} are equal to one of its "
        f"audited members; {found.near:,} of {found.looked_at:,} looked at are nearly equal to one"
    )
    if found.share > DUPLICATES_TO_MENTION:
        return Check(
            "copies of members",
            "look",
            f"{numbers}. To the model these were training records: recognising them counts as false accusations here, "
            "so the leak is understated. Remove duplicates, or ask by range (`ramia:`).",
        )
    return Check("copies of members", "fine", f"{numbers}.")


def resolution(targets: Sequence[TargetResult]) -> Check:
    """Which of the reported FPRs these records can resolve."""
    points = targets[0].attacks[0].summary.at_fpr
    non_members = min(attack.summary.non_members for target in targets for attack in target.attacks)
    not_resolved = [point.nominal_fpr for point in points if point.nominal_fpr > 0 and not point.resolvable]
    if not not_resolved:
        return Check("resolution", "fine", f"{non_members:,} non-members resolve every false positive rate reported.")
    needs = ", ".join(f"{100 * fpr:g}% needs {non_members_needed(fpr):,}" for fpr in not_resolved)
    return Check(
        "resolution",
        "look" if all(not point.resolvable for point in points) else "fine",
        f"{non_members:,} non-members resolve "
        f"{_percents(point.nominal_fpr for point in points if point.resolvable) or 'no false positive rate reported'}; "
        f"nothing is said about lower ones ({needs} non-members).",
    )


def _percents(fprs: Iterable[float]) -> str:
    return ", ".join(f"{100 * fpr:g}%" for fpr in fprs)


def dp_consistency(targets: Sequence[TargetResult], models: Sequence[Row]) -> Iterator[Check]:
    """For models trained with differential privacy: nothing recognised beyond what its ε and δ allow."""
    rows = {row["id"]: row for row in models if isinstance(row.get("epsilon"), (int, float))}
    private = [target for target in targets if target.target in rows]
    if not private:
        return
    looks = sum(len(target.attacks) for target in private)
    worst = [
        (attack.attack, target.target, breach)
        for target in private
        for attack in target.attacks
        for breach in breaches(
            attack.scores,
            target.member,
            epsilon=rows[target.target]["epsilon"],
            delta=rows[target.target].get("delta", 0.0),
            nominal_fprs=[point.nominal_fpr for point in attack.summary.at_fpr],
            level=1 - (1 - LEVEL) / looks,
        )
    ]
    row = rows[private[0].target]
    claim = f"ε = {row['epsilon']:.3g}, δ = {row.get('delta', 0.0):.3g}"
    if worst:
        attack, target, breach = worst[0]
        yield Check(
            "differential privacy",
            "look",
            f"{attack} recognises at least {breach.tpr_low:.1%} of the members of target model {target} at "
            f"{breach.nominal_fpr:.2%} false positives; {claim} allows {breach.allowed:.1%}: the training is not as "
            "private as stated.",
        )
    else:
        yield Check(
            "differential privacy",
            "fine",
            f"No attack recognised more members than {claim}, the accountant's figure, allows. (This cannot confirm "
            "it: `dp_audit:` asks with canaries.)",
        )


def analyses(targets: Sequence[TargetResult], others: int) -> Check:
    """How many numbers the reader could have picked the best from; `others`: further audits."""
    attacks = len(targets[0].attacks)
    also = f", and {others} further audit{'s' * (others > 1)}" if others else ""
    return Check(
        "number of analyses",
        "fine",
        f"{attacks} attack{'s' * (attacks > 1)} on {len(targets)} target model{'s' * (len(targets) > 1)}{also}: the "
        "verdict allows for choosing the best of them. Attacks tried in earlier runs are not counted here: report "
        "them too.",
    )
