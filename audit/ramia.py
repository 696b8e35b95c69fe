"""`ramia:` in a config: does a range of records hold a training point? (Tao & Shokri 2025, https://arxiv.org/abs/2408.05131).

For each audited record: a center, a range around it, K samples of the range, a point attack's score of each, and
their aggregate. Everything reported is about ranges; the same attack at the center alone is there to compare with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from audit.available import lacks
from audit.given_ranges import GivenRanges, check_ranges
from audit.ramia_evidence import Ranges
from audit.ramia_samples import Setup, ask, centers
from audit.results import AttackResult, Section, TargetResult
from audit.session import Session, device_of
from audit.signals import compute_missing, signals_of
from core.config import TRAINED, Call, min_pairs
from core.metrics import paired_auc_difference, roc, summarise
from core.registry import ATTACKS, MODULES
from core.types import Estimate, pairs_of
from dataset.ranges import RANGES, SettingError, bound, rows
from dataset.ranges.truth import others_inside
from modules.mia.tuning import REHEARSALS
from modules.ramia.aggregation import AGGREGATIONS, UNTUNED, Aggregation, grid
from modules.ramia.evidence import decidable
from modules.ramia.tuning import tuned

log = logging.getLogger(__name__)

# The original tool's keys, beside `range_function: <name>`, and what they set.
FLAT = {
    "l2": {"radius": "radius"},
    "geometric": {"transformations": "transformations"},
    "word_replace": {"mask_model": "mask_model", "mask_tokenizer": "mask_tokenizer", "num_masks": "num_masks"},
    "missing_values": {"num_missing_feats": "columns", "col_ranges": "col_ranges", "is_categorical": "imputation"},
}
SIDES = ("RaMIA over the range", "at the center only")


def check(session: Session, **settings: Any) -> None:
    """Everything that can be wrong with the block, at its line; before anything is trained."""
    setup = setup_of(session, **settings)
    if isinstance(setup.ranges, GivenRanges):  # nothing has to be drawn to know which ranges can be judged
        held = session.plan.member[:, session.points] | (setup.ranges.others(session) > 0)
        for target in session.plan.targets:
            kept = comparable(session, setup, held, pairs_of(session.plan.member), target)
            both_kinds(session, held[target, kept], target)


def both_kinds(session: Session, member: Bool[Array, " n"], target: int) -> None:
    """Raises UserError where all ranges are members of a target, or none."""
    if member.all() or not member.any():
        some, given = "all" if member.any() else "none", session.given is not None
        raise session.config.error(
            "ramia" if given else "ramia.range_function", f"{some} of the ranges hold training points of model {target}"
        )


@MODULES.register(
    "ramia",
    summary="range membership: does a range of records hold a training point?",
    check=check,
    sources=(TRAINED, "models", "signals"),
)
def ramia(
    session: Session,
    targets: tuple[TargetResult, ...],
    *,
    range_function: str | dict[str, Any] | None = None,
    sample_size: Annotated[int, Ge(2)] | None = None,
    include_center: bool = False,
    center: Literal["record", "perturbed"] = "record",
    attack: str | dict[str, Any] | None = None,
    aggregation: str | dict[str, Any] = "tuned",
    neighbours: Literal["relabel", "drop"] = "relabel",
    radius: Annotated[float, Gt(0)] | None = None,
    transformations: list[str | dict[str, Any]] | None = None,
    num_missing_feats: Annotated[int, Ge(1)] | None = None,
    col_ranges: list[tuple[float, float]] | None = None,
    is_categorical: bool | None = None,
    mask_model: str | None = None,
    mask_tokenizer: str | None = None,
    num_masks: Annotated[int, Ge(1)] | None = None,
) -> Section:
    """Range membership inference on the models of the run: one range around each audited record.

    range_function: `{name: l2, radius: 10}`, `{name: geometric, transformations: [rotate, shift]}`,
        `{name: missing_values, columns: 10}`, `{name: word_replace, mask_model: distilbert-base-cased}`;
        documentation/ramia.md has all of their settings. Needed, unless the signals of samples are given.
    sample_size: samples of each range, the center included if it is; 10 if left out, and of given signals all.
    include_center: whether the center is one of the samples. Without it the audit shows what can be told without
        the exact record.
    center: "record" is the audited record itself; "perturbed" a random point of its range, the realistic case of
        an auditor who has something near the record.
    attack: the attack that scores each sample; the first of audit.algorithm if left out.
    aggregation: "tuned" on rehearsals, or mean, max, {name: top_k, k: 3}, {name: trimmed_mean, q_s: 0.4, q_e: 1} or
        {name: log_mean_exp, sharpness: 1}.
    neighbours: what becomes of a range whose own record is no member, but which holds another training point: it
        is a member ("relabel"), or left out ("drop").
    radius, transformations, num_missing_feats, col_ranges, is_categorical, mask_model, mask_tokenizer, num_masks: the
        original tool's keys, for `range_function: <name>`.
    """
    setup = setup_of(
        session,
        range_function=range_function,
        sample_size=sample_size,
        include_center=include_center,
        center=center,
        attack=attack,
        aggregation=aggregation,
        neighbours=neighbours,
        radius=radius,
        transformations=transformations,
        num_missing_feats=num_missing_feats,
        col_ranges=col_ranges,
        is_categorical=is_categorical,
        mask_model=mask_model,
        mask_tokenizer=mask_tokenizer,
        num_masks=num_masks,
    )
    based = replace(session, config=replace(session.config, attacks=(setup.base,)))
    if isinstance(setup.ranges, GivenRanges):
        return _written(based, setup, setup.ranges.others(session))
    device = device_of(session.config, "audit")
    if move := getattr(setup.ranges, "on", None):
        move(device)
    try:
        ask(based, setup, device)
        others = others_inside(
            setup.ranges,
            lambda points: centers(session, setup, points),
            session.points,
            session.data.pool,
            session.plan.member,
        )
    except ValueError as error:
        raise session.config.error("ramia.range_function", str(error)) from error
    compute_missing(based, device)  # of the population, in the base attack's signals
    return _written(based, setup, others)


def _written(session: Session, setup: Setup, others: Int[Array, "M N"]) -> Section:
    from audit.ramia_report import write

    found = tuple(audit_target(session, setup, others, target) for target in session.plan.targets)
    return write(session, setup, found, session.config.report_dir / "ramia")


def setup_of(
    session: Session,
    *,
    range_function: str | dict[str, Any] | None,
    sample_size: int | None,
    include_center: bool,
    center: str,
    attack: str | dict[str, Any] | None,
    aggregation: str | dict[str, Any],
    neighbours: str,
    **flat: Any,
) -> Setup:
    """The settings, checked against the data and the run. Raises UserError, at the line of the key."""
    config = session.config
    if session.given is not None:
        ranges = check_ranges(session, range_function=range_function, **flat)
        if center != "record":
            raise config.error("ramia.center", "the samples were given, and so were their centers: leave it out")
        sample_size = sample_size or ranges.each + include_center
        if sample_size - include_center > ranges.each:
            raise config.error("ramia.sample_size", f"{ranges.each} samples of each range were given")
        chosen, base = _aggregation(session, aggregation, sample_size), _base(session, attack)
        return Setup("given", {}, ranges, sample_size, include_center, center, neighbours, base, chosen)
    if range_function is None:
        raise config.error("ramia.range_function", f"missing: which ranges? One of {', '.join(RANGES)}")
    sample_size = sample_size or 10
    name, settings = _range(session, range_function, {key: value for key, value in flat.items() if value is not None})
    kind, has = RANGES.fact(name, "kind", "any"), "texts" if session.data.is_text else "features"
    has = "images" if session.data.is_image else has
    if kind != has and not (kind == "any" and has != "texts"):
        message = (
            f"{name} works on {'images and features' if kind == 'any' else kind}, and {config.dataset.name} has {has}"
        )
        raise config.error("ramia.range_function", message)
    try:
        ranges = RANGES[name](session.data, **settings)
        if suits := getattr(ranges, "check", None):
            suits(rows(session.data.pool, session.points))
    except SettingError as error:
        raise config.error(_place(range_function, name, error.key), str(error)) from None
    except ValueError as error:
        raise config.error("ramia.range_function", f"{name}: {error}") from None
    drawn = sample_size - include_center
    if ranges.points() < drawn:
        raise config.error(
            "ramia.sample_size",
            f"{ranges.description}: that makes {ranges.points():g} different records beside the center, fewer than "
            f"the {drawn} samples asked for",
        )
    chosen, base = _aggregation(session, aggregation, sample_size), _base(session, attack)
    return Setup(name, settings, ranges, sample_size, include_center, center, neighbours, base, chosen)


def _aggregation(session: Session, aggregation: str | dict[str, Any], samples: int) -> Aggregation | None:
    """The aggregation that was asked for; None if it is to be tuned."""
    if aggregation == "tuned":
        return None
    chosen = Aggregation(*_bound(session, AGGREGATIONS, "aggregation", aggregation))
    try:
        chosen(np.zeros((1, samples)))
    except ValueError as error:
        raise session.config.error("ramia.aggregation", str(error)) from None
    return chosen


def _base(session: Session, attack: str | dict[str, Any] | None) -> Call:
    """The point attack."""
    config = session.config
    base = config.attacks[0] if attack is None else _attack(session, attack)
    if ATTACKS.fact(base.name, "needs_text"):
        instead = "on ranges, take one of whole texts, such as LiRA, RMIA, Calibration or LOSS"
        raise config.error("ramia.attack", f"{base.label} reads single tokens: {instead}")
    if ATTACKS.fact(base.name, "access") == "label":
        instead = "on ranges, take one of confidences, such as LiRA, RMIA, Calibration or LOSS"
        raise config.error(
            "ramia.attack", f"{base.label} reads predicted labels, of which samples are not asked: {instead}"
        )
    if session.given is not None and (missing := lacks(session, base)):
        raise config.error("ramia.attack", f"{base.label} lacks {' and '.join(lack.what for lack in missing)}")
    return base


def _place(range_function: str | dict[str, Any], name: str, key: str) -> str:
    """Where a setting of the range function was written: in its block, or as one of the original tool's keys."""
    if isinstance(range_function, dict) and key.partition(".")[0] in range_function:
        return f"ramia.range_function.{key}"
    flat = {setting: flat for flat, setting in FLAT.get(name, {}).items()}
    return f"ramia.{flat.get(key.partition('.')[0], 'range_function')}"


def _range(session: Session, value: str | dict[str, Any], flat: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    given = {"name": value} if isinstance(value, str) else dict(value)
    name = RANGES.find(str(given.get("name"))) or ""
    for key, setting in flat.items():
        if name and key not in FLAT.get(name, {}):
            raise session.config.error(f"ramia.{key}", f"{name} has no such setting")
        if key == "is_categorical":
            setting = "categorical" if setting else "uniform"
        given[FLAT.get(name, {}).get(key, key)] = setting
    return _bound(session, RANGES, "range_function", given)


def _bound(session: Session, registry: Any, key: str, value: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
        return bound(registry, value)
    except ValueError as error:
        raise session.config.error(f"ramia.{key}", str(error)) from None


def _attack(session: Session, value: str | dict[str, Any]) -> Call:
    name, settings = _bound(session, ATTACKS, "attack", value)
    given = {} if isinstance(value, str) else {key: setting for key, setting in value.items() if key != "name"}
    call = Call(name, settings, given)
    if unasked := [signal.name for signal in signals_of([call]) if not (signal.of_population or signal.per_token)]:
        message = f"{call.label} reads {' and '.join(unasked)}, which the samples of ranges are not asked for"
        raise session.config.error("ramia.attack", message)
    if session.given is None and session.plan.reference_pairs < min_pairs(call):
        message = f"{call.label} needs audit.num_ref_models of at least {min_pairs(call)}"
        raise session.config.error("ramia.attack", message)
    return call


@dataclass(frozen=True)
class Found:
    """What was found out about the ranges of one target. Of N judged ranges; `result` is all range level."""

    result: TargetResult  # its attacks: RaMIA over the range, the base attack at the center
    difference: Estimate  # AUC of the first minus AUC of the second, paired
    aggregation: Aggregation
    rehearsed: tuple[tuple[str, float], ...]  # each candidate's label and its mean AUC in rehearsals; empty if untuned
    ranges: Int[Array, " N"]  # places among the audited points
    own: Bool[Array, " N"]  # whether the range's own record is a member
    others: Int[Array, " N"]  # training points in the range beside it
    sample_scores: Float[Array, "N K"]
    contested: int  # ranges whose own record is no member, but which hold another training point
    undecidable: int  # ranges left out, because all references know them, or none
    pair: int  # of the target: twins have one number


def comparable(
    session: Session, setup: Setup, held: Bool[Array, "M N"], pairs: Int[Array, " M"], target: int
) -> Int[Array, " n"]:
    """The ranges that a target's references can judge. Raises UserError if there are hardly any."""
    references = np.array(session.plan.references_of(target), dtype=int)
    compared = held[references] if ATTACKS.fact(setup.base.name, "needs_references", True) else held[:0]
    kept = np.flatnonzero(decidable(compared, pairs[references[: len(compared)]]))
    if len(kept) >= 2:
        return kept
    given = isinstance(setup.ranges, GivenRanges)
    because = (
        f"lack a reference model that knows them or one that does not, of target {target}, when some are left "
        "out to rehearse: more models, or an attack without references, is needed"
        if given
        else "hold training points of every reference model: the ranges are so large that the question has one answer; "
        "make them smaller"
    )
    count = f"{len(session.points) - len(kept)} of {len(session.points)} ranges"
    raise session.config.error("ramia" if given else "ramia.range_function", f"{count} {because}")


def audit_target(session: Session, setup: Setup, others: Int[Array, "M N"], target: int) -> Found:
    """Score every range for one target. Its membership is looked up only after the scores are fixed."""
    plan, pairs = session.plan, pairs_of(session.plan.member)
    own = plan.member[:, session.points]
    held = own | (others > 0)
    kept = comparable(session, setup, held, pairs, target)
    seen = Ranges(session, setup, target, held, pairs, kept)
    rehearsals = REHEARSALS if setup.aggregation is None else 0
    sample_scores, rehearsed, notes = seen.scores(slice(0 if setup.include_center else 1, None), rehearsals)
    center_scores, _, at_center = seen.scores(slice(0, 1))
    aggregation, tried = setup.aggregation, ()
    if aggregation is None:
        candidates = grid(setup.samples)
        aggregation, aucs = tuned(rehearsed, candidates)
        tried = tuple(zip((c.label for c in candidates), aucs.tolist(), strict=True)) if aggregation else ()
        how = "tuned on rehearsals" if aggregation else "not tuned: rehearsing needs 2 pairs of references"
        aggregation = aggregation or UNTUNED
        notes = (*notes, f"aggregation: {aggregation.label}, {how}")
    scores = aggregation(sample_scores)

    member, contested = held[target, kept], (held & ~own)[target, kept]
    judged = ~contested if setup.neighbours == "drop" else np.ones(len(kept), dtype=bool)
    member = member[judged]
    both_kinds(session, member, target)
    labels = (SIDES[0], f"{setup.base.label} {SIDES[1]}")
    results = tuple(
        AttackResult(label, setup.base.settings, s, roc(s, member), summarise(s, member), said, 0.0)
        for label, s, said in zip(labels, (scores[judged], center_scores[judged, 0]), (notes, at_center), strict=True)
    )
    difference = paired_auc_difference(results[0].scores, results[1].scores, member)
    log.info(
        "ramia: target %d  %d ranges, %d members (%d hold only another record)  AUC %.4f over the range, %.4f at the "
        "center, difference %+.4f [%+.4f, %+.4f]; %s; center %s the samples",
        *(target, len(member), member.sum(), contested.sum(), *(r.summary.auc.value for r in results)),
        *(difference.value, difference.low, difference.high, aggregation.label),
        "among" if setup.include_center else "not among",
    )
    return Found(
        result=TargetResult(target, member, results),
        difference=difference,
        aggregation=aggregation,
        rehearsed=tried,
        ranges=kept[judged],
        own=own[target, kept[judged]],
        others=others[target, kept[judged]],
        sample_scores=sample_scores[judged],
        contested=int(contested.sum()),
        undecidable=len(session.points) - len(kept),
        pair=int(pairs[target]),
    )
