"""MultiLiRA: LiRA's likelihood-ratio test on several signals of a record at once (after Carlini et al. 2022)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen
from jaxtyping import Float
from numpy import ndarray as Array

from core.registry import ATTACKS
from core.types import LOG_ODDS, Evidence, Settings, Signal
from modules.mia import joint

Name = Literal["log_odds", "hinge", "modified_entropy", "entropy", "loss"]


def _signal(name: str) -> Signal:
    return LOG_ODDS if name in ("log_odds", "loss") else Signal(name)


def _minus_loss(log_odds: Array) -> Array:
    return -np.logaddexp(0.0, -log_odds.astype(np.float64))


def _parts(evidence: Evidence, settings: Settings) -> list[joint.Part]:
    names = settings["signals"]
    if len(set(names)) < len(names):
        raise ValueError(f"a signal is listed twice: {', '.join(names)}")
    of = {"loss": _minus_loss}
    return [joint.Part(evidence.signal(_signal(name)), of.get(name, np.asarray)) for name in names]


def _rule(evidence: Evidence, settings: Settings) -> joint.Rule:
    return joint.Rule.of(len(evidence.references), settings["mode"], settings["variance"], settings["correlation"])


def shared(evidence: Evidence, settings: Settings) -> tuple[joint.Side, ...]:
    """Pooled variances and correlations, of OUT and in an online attack of IN."""
    return joint.sides(_parts(evidence, settings), _rule(evidence, settings))


@ATTACKS.register(
    "MultiLiRA",
    needs_references=True,
    needs_in=lambda settings: settings["mode"] == "online",
    needs_population=False,
    signals=lambda settings: tuple(_signal(name) for name in settings["signals"]),
    shared=shared,
    min_pairs=1,
    summary="LiRA on several signals and queries at once, with their correlations",
    access="classes",
    cost="one answer per record, query and model; time and memory grow with (signals x queries) squared",
    fails="as LiRA; a second signal that tells nothing new costs precision and brings none, e.g. with two classes",
    source="after Carlini et al. 2022, arXiv 2112.03570; offline: O'Brien 1984; shrinkage: Schäfer & Strimmer 2005",
)
def multi_lira(
    evidence: Evidence,
    given: tuple[joint.Side, ...] | None = None,
    *,
    signals: Annotated[tuple[Name, ...], MinLen(1)] = ("log_odds", "hinge", "modified_entropy"),
    mode: Literal["online", "offline"] = "online",
    variance: Literal["auto", "global", "per_record"] = "auto",
    correlation: Literal["auto", "global", "shrunk", "none"] = "auto",
) -> Float[Array, " N"]:
    """log N_d(target; IN) - log N_d(target; OUT), d = signals x queries, means of each record's own references.

    With one signal and one query it is LiRA to the last bit but rounding. LiRA itself takes the queries of a record as
    independent; here they are coordinates like any other.

    given: pooled variances and correlations, where they are those of other points than these (`shared`).
    signals: log_odds, hinge (true logit minus the largest other), modified_entropy, entropy (of the prediction,
        whatever the label) and loss (minus it, which is far from Gaussian).
    mode: "offline" uses OUT models only, one-sided: the standard score of O'Brien's test (see `joint.score`).
    variance: as in LiRA.
    correlation: "global" pools the correlations within records over records, IN and OUT apart. "shrunk" gives each
        record its own, shrunk towards the global ones by the share of their spread that sampling explains. "none"
        takes coordinates as independent. "auto" is global below 64 references in all, shrunk from there on.
    """
    settings = {"signals": signals, "mode": mode, "variance": variance, "correlation": correlation}
    parts, rule = _parts(evidence, settings), _rule(evidence, settings)
    return joint.score(parts, joint.sides(parts, rule) if given is None else given, rule)
