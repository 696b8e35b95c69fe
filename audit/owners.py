"""`owners:` in a config: did the model train on the records of this person, site, author? (documentation/owners.md)

The question of Kandpal et al. 2023 (user inference, https://arxiv.org/abs/2310.09266), asked of the very records that
may have been trained on: the scores of an owner's records become one score, in the way that does best on rehearsals.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import Float, Int
from numpy import ndarray as Array

from audit.results import AttackResult, Section, TargetResult
from audit.session import Session
from audit.signals import evidence
from core.config import TRAINED, Call
from core.log import quiet
from core.metrics import NOMINAL_FPRS, auc, roc, summarise
from core.registry import ATTACKS, MODULES
from core.types import Estimate, Evidence, pairs_of
from dataset.ranges import bound
from modules.owners.aggregation import AGGREGATIONS, UNTUNED, Aggregation, Holdings, grid
from modules.owners.tuning import Way, own_null, tuned
from modules.risk.records import Named, named_members, record_p_values

log = logging.getLogger(__name__)

REHEARSED = 32  # references that an owner is compared with itself on; more refine it, at an attack each
COMPARED = 4  # rehearsals by which the attack is chosen


@dataclass(frozen=True)
class Setup:
    column: str
    held: Holdings  # of the audited records
    attack: int | None  # its place in audit.algorithm; the strongest on rehearsals if None
    ways: tuple[Way, ...]
    q: float


@dataclass(frozen=True)
class Found:
    """What was found out about the owners of one target; `result` is all of owners who are in or out as a whole."""

    result: TargetResult  # its one attack, over judged owners
    records: Estimate  # the AUC of the same attack over their records, each by itself
    way: Way
    tried: tuple[tuple[str, float], ...]  # each way's label and its mean AUC in rehearsals; empty if none could be held
    chosen: str  # how the attack was chosen, in words
    judged: Int[Array, " U"]  # places of the owners
    share: Float[Array, " W"]  # of each of all W owners, how much of it was trained on
    owner_fpr: Float[Array, " U"] | None  # of accusing this very owner at its score
    p_values: Float[Array, " U"] | None  # its rank among its own scores on references without it
    named: Named
    pair: int


def check(session: Session, **settings: Any) -> None:
    """Everything that can be wrong with the block, at its line; before anything is trained."""
    setup = setup_of(session, **settings)
    if session.config.origin.name == TRAINED and not session.config.data.owner:
        say = f"say data.owner: {setup.column}, and they are drawn by owner"
        raise session.config.error("owners.column", f"memberships are drawn record by record: {say}")
    for target in session.plan.targets:
        share = _share(session, setup, target)
        member = share[(share == 0) | (share == 1)]
        if len(member) < 2 or not 0 < member.sum() < len(member):
            raise session.config.error(
                "owners",
                f"of the {len(share)} owners in {setup.column!r} model {target} trained on {int((share == 1).sum())} "
                f"wholly and on {int((share == 0).sum())} not at all, and both are needed: an owner counts whose "
                "records were all trained on, or none",
            )


@MODULES.register(
    "owners",
    summary="owners: did the model train on the records of this person, site or author?",
    check=check,
    sources=(TRAINED, "models"),
)
def owners(
    session: Session,
    targets: tuple[TargetResult, ...],
    *,
    column: str | None = None,
    attack: str | None = None,
    aggregation: str | dict[str, Any] = "tuned",
    calibration: Literal["tuned", "owner", "none"] = "tuned",
    min_records: Annotated[int, Ge(1)] = 1,
    false_share: Annotated[float, Interval(gt=0, lt=1)] = 0.1,
) -> Section:
    """Membership of owners, on the models of the run: an owner is a member if all of its records were trained on.

    column: the group column that says whose record it is; data.owner if left out.
    attack: an attack of audit.algorithm, by its name; the strongest on rehearsals if left out.
    aggregation: "tuned" on rehearsals, or mean, max, {name: top_k, k: 3} or {name: log_mean_exp, sharpness: 1}.
    calibration: owner: the score in standard deviations above the same owner's scores on references without it, which
        makes owners of all sizes comparable; none: as it is; tuned: whichever does better on rehearsals.
    min_records: owners with fewer audited records are left out.
    false_share: of the list of named owners, how large a share may be wrong, on average.
    """
    setup = setup_of(session, column, attack, aggregation, calibration, min_records, false_share)
    found = tuple(audit_target(session, setup, target) for target in targets)
    from audit.owners_report import write

    return write(session, setup, found, session.config.report_dir / "owners")


def setup_of(
    session: Session,
    column: str | None = None,
    attack: str | None = None,
    aggregation: str | dict[str, Any] = "tuned",
    calibration: str = "tuned",
    min_records: int = 1,
    false_share: float = 0.1,
) -> Setup:
    """The settings, checked against the data and the run. Raises UserError, at the line of the key."""
    config, groups = session.config, session.data.pool.groups
    name = column or (config.data and config.data.owner)
    if name is None or name not in groups:
        there = ", ".join(sorted(groups)) or "none"
        what = f"the data have no column of groups {name!r}" if name else "whose records are they? name a group column"
        raise config.error("owners.column", f"{what}; there are: {there}")
    if config.data and config.data.owner and name != config.data.owner:
        raise config.error("owners.column", f"{name!r}, but memberships are drawn by data.owner {config.data.owner!r}")
    of_points = np.asarray(groups[name])[session.points]
    held = Holdings.of(of_points)
    if min_records > 1:
        few = np.isin(of_points, held.names[held.size < min_records])
        if few.all():
            raise config.error("owners.min_records", f"no owner has {min_records} audited records")
        held = Holdings.of_some(of_points, np.flatnonzero(~few))
    place = None
    if attack is not None:
        labels = [call.label for call in config.attacks]
        places = [k for k, call in enumerate(config.attacks) if attack.casefold() in (call.name.casefold(), call.label)]
        if not places:
            raise config.error("owners.attack", f"{attack!r} is none of audit.algorithm: {', '.join(labels)}")
        place = places[0]
    if aggregation == "tuned":
        ways = grid(int(held.size.max()))
    else:
        try:
            ways = [Aggregation(*bound(AGGREGATIONS, aggregation))]
        except ValueError as error:
            raise config.error("owners.aggregation", str(error)) from None
    if calibration == "owner" and session.plan.reference_pairs < 2:
        raise config.error("owners.calibration", "compares an owner with itself on rehearsals, which need 2 pairs")
    sides = {"tuned": (False, True), "owner": (True,), "none": (False,)}[calibration]
    return Setup(name, held, place, tuple(Way(way, side) for way in ways for side in sides), false_share)


def _share(session: Session, setup: Setup, model: int) -> Float[Array, " W"]:
    """Of each owner, the share of its audited records that the model trained on."""
    return setup.held.sums(session.plan.member[model, session.points].astype(np.float64)) / setup.held.size


def audit_target(session: Session, setup: Setup, result: TargetResult) -> Found:
    """Score every owner for one target. Its membership is looked up only after the scores are fixed."""
    held, seen, plan = setup.held, evidence(session, result.target), session.plan
    shares = np.array([_share(session, setup, model) for model in plan.references_of(result.target)])
    order, chosen = (
        (setup.attack, "named in the config") if setup.attack is not None else _strongest(session, setup, seen)
    )
    call = session.config.attacks[order]
    rows, of_rows = _rehearsed(call, seen, held)
    trained = of_rows > 0
    way, aucs = tuned(rows, trained, (of_rows == 0) | (of_rows == 1), held, setup.ways)
    tried = tuple(zip((one.label for one in setup.ways), aucs.tolist(), strict=True)) if way else ()
    way = way or next((one for one in setup.ways if not one.by_owner), Way(UNTUNED, False))
    scores = way.aggregation(result.attacks[order].scores, held)
    own = own_null(way.aggregation, result.attacks[order].scores, rows, trained, held) if len(rows) else None
    if own is not None and (np.isnan(own.z).any() or not np.isfinite(shares).all()):
        own = None
    ranks = None
    if len(rows):
        ranks = record_p_values(scores, np.array([way.aggregation(row, held) for row in rows]), trained)
    if way.by_owner and own is not None:
        scores = own.z

    share = _share(session, setup, result.target)
    judged = np.flatnonzero((share == 0) | (share == 1))
    member = share[judged] == 1
    label = f"{result.attacks[order].attack}, {way.label}"
    summary = summarise(scores[judged], member, nominal_fprs=NOMINAL_FPRS)
    one = AttackResult(label, call.settings, scores[judged], roc(scores[judged], member), summary, (chosen,), 0.0)
    of_judged = np.isin(held.owners(), judged)
    places = held.order[of_judged]
    records = summarise(result.attacks[order].scores[places], result.member[places]).auc
    log.info(
        "owners: target %d  %d owners, %d members (%d in part, left out)  AUC %.4f [%.4f, %.4f], of records %.4f; %s",
        *(result.target, len(judged), member.sum(), len(share) - len(judged)),
        *(summary.auc.value, summary.auc.low, summary.auc.high, records.value, label),
    )
    return Found(
        result=TargetResult(result.target, member, (one,)),
        records=records,
        way=way,
        tried=tried,
        chosen=chosen,
        judged=judged,
        share=share,
        owner_fpr=None if own is None else own.p_values[judged],
        p_values=None if ranks is None else ranks[judged],
        named=named_members(scores[judged], member, q=setup.q, draw=session.stream("named owners", result.target)),
        pair=int(pairs_of(plan.member)[result.target]),
    )


def _rehearsed(
    call: Call, seen: Evidence, held: Holdings, limit: int = REHEARSED
) -> tuple[Float[Array, "R n"], Float[Array, "R W"]]:
    """What the attack says of each reference, and how much of each owner that trained on; empty if it cannot be."""
    rows, shares = [], []
    for rehearsal, member in seen.rehearsals(limit=limit):
        try:
            with quiet("modules"):
                scores = np.asarray(ATTACKS[call.name](rehearsal, **call.settings), dtype=np.float64)
        except ValueError:  # a rehearsal has a pair fewer than the target: too few for this attack
            rows = []
            break
        if np.isnan(scores).any():
            rows = []
            break
        rows.append(scores)
        shares.append(held.sums(member.astype(np.float64)) / held.size)
    if not rows:
        return np.zeros((0, seen.target.shape[1])), np.zeros((0, len(held.size)))
    return np.array(rows), np.array(shares)


def _strongest(session: Session, setup: Setup, seen: Evidence) -> tuple[int, str]:
    """Place of the attack with the best mean AUC over owners on rehearsals; the first where none can be held."""
    best, order, held = -1.0, 0, 0
    aggregations = list({way.aggregation.label: way.aggregation for way in setup.ways}.values())
    for place, call in enumerate(session.config.attacks):
        rows, shares = _rehearsed(call, seen, setup.held, COMPARED)
        known = [(row, share == 1, (share == 0) | (share == 1)) for row, share in zip(rows, shares, strict=True)]
        known = [(row, inside, whole) for row, inside, whole in known if 0 < inside[whole].sum() < whole.sum()]
        held = max(held, len(known))
        for aggregation in aggregations if known else ():
            value = np.mean([auc(aggregation(row, setup.held)[whole], inside[whole]) for row, inside, whole in known])
            if value > best:
                best, order = float(value), place
    if not held:
        return 0, "the first attack listed: there are too few references to rehearse on"
    return order, f"the strongest on {held} rehearsals, which never look at a target's memberships"
