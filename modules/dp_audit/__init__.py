"""Audits of differential privacy: lower bounds on ε that are really lower bounds."""

from core.types import EpsilonBound
from modules.dp_audit.audit import audit_one_run, audit_two_worlds
from modules.dp_audit.bounds import Verdict, best_of, level_of_each, verdict
from modules.dp_audit.exploratory import along_guesses, exploratory_maximum
from modules.dp_audit.guesses import (
    Bonferroni,
    Calibrated,
    Choice,
    Fixed,
    MultiSplit,
    Split,
    StepWise,
    most_tpr,
    ranked,
)

__all__ = [
    "Bonferroni",
    "Calibrated",
    "Choice",
    "EpsilonBound",
    "Fixed",
    "MultiSplit",
    "Split",
    "StepWise",
    "Verdict",
    "along_guesses",
    "audit_one_run",
    "audit_two_worlds",
    "best_of",
    "exploratory_maximum",
    "level_of_each",
    "most_tpr",
    "ranked",
    "verdict",
]
