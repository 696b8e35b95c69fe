"""What the number of records can tell, whatever the attack."""

from __future__ import annotations

import math

from core.metrics import ENOUGH_FALSE_POSITIVES


def non_members_needed(nominal_fpr: float) -> int:
    """Non-members from which a TPR at this FPR is about the attack: ten false positives expected."""
    if not 0 < nominal_fpr < 1:
        raise ValueError(f"a nominal FPR to resolve is between 0 and 1, got {nominal_fpr}")
    return math.ceil(ENOUGH_FALSE_POSITIVES / nominal_fpr - 1e-9)
