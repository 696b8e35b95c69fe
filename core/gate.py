"""The block `gate:`: what may be found at most, for CI: a run that shows more ends with another exit code."""

from __future__ import annotations

import re
from typing import Annotated

from annotated_types import Interval
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MEASURE = re.compile(r"auc|tpr@(0?\.\d+|\d+(\.\d+)?e-\d+|1)")


def _measure(name: str) -> str:
    if not MEASURE.fullmatch(name):
        raise ValueError(f"a limit is on auc, or on tpr@ and a false positive rate, e.g. tpr@0.01; got {name!r}")
    return name


class Gate(BaseModel):
    """What an audit may find at most; `python main.py gate RUN` asks the same of a finished run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max: dict[Annotated[str, AfterValidator(_measure)], Annotated[float, Interval(ge=0, le=1)]] = Field(
        description="measure: limit, of auc and tpr@<false positive rate>, e.g. {tpr@0.01: 0.05, auc: 0.6}",
        min_length=1,
    )
    attack: str = Field("any", description="the attack that is judged, by its name in the report; any: each of them")
    strict: bool = Field(
        False,
        description="fail unless the whole interval is within the limit; if false, fail only if all of it is above",
    )


def measure_of(name: str) -> float | None:
    """The nominal FPR of a TPR, None of the AUC."""
    return None if name == "auc" else float(name.partition("@")[2])
