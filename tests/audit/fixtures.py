"""A synthetic AuditResult: real scores of known strength, and everything else a report shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audit.results import (
    AttackResult,
    AuditResult,
    Check,
    Exhibit,
    GroupRow,
    Risk,
    TargetResult,
    TargetRisk,
)
from audit.session import Session
from core import config
from core.metrics import roc, summarise
from core.rng import stream
from core.types import AuditData, Estimate, Plan
from modules.risk.records import Named

ATTACKS = ("RMIA", "LiRA", "BASE", "BaVarIA", "Calibration", "AttackR", "AttackP", "LOSS", "Entropy")
CONFIG = """\
run:
  random_seed: 12345
  log_dir: out/made_up
data:
  dataset: made_up
audit:
  algorithm: [RMIA, LiRA]   # <b>not markup</b>
"""


def attack_result(name: str, scores: np.ndarray, member: np.ndarray, seconds: float = 0.25) -> AttackResult:
    return AttackResult(
        attack=name,
        settings={"gamma": 2.0, "online": True},
        scores=scores,
        roc=roc(scores, member),
        summary=summarise(scores, member),
        notes=(f"made up: {len(scores)} scores",),
        seconds=seconds,
    )


def audit_result(
    targets: int = 1,
    points: int = 600,
    attacks: tuple[str, ...] = ATTACKS[:2],
    shift: float = 1.5,
    dtype: type = np.float32,
    offset: float = 0.0,
    warnings: tuple[str, ...] = (),
    references: int = 4,
) -> AuditResult:
    """Gaussian scores; members are shifted by `shift` for the first attack, by less for each later one.

    offset: added to all scores of target t, t times; it changes no AUC, and ruins a pooled one.
    """
    draw = stream(0, "fixture", targets, points)
    found = []
    for t in range(targets):
        member = draw.permutation(np.arange(points) % 2 == 0)
        results = []
        common = draw.normal(size=points)
        for k, name in enumerate(attacks):
            strength = shift * (1 - k / (len(attacks) + 1)) * (1 + 0.04 * draw.normal())
            noise = 0.8 * common + 0.6 * draw.normal(size=points)
            scores = (noise + strength * member + offset * t).astype(dtype)
            results.append(attack_result(name, scores, member, seconds=0.1 * (k + 1)))
        found.append(TargetResult(t, member, tuple(results)))
    roles = ["target"] * targets + ["reference"] * references
    models = tuple(
        {
            "id": m,
            "role": role,
            "num_train": points,
            "train_acc": 0.995 - 0.001 * (m % 3),
            "test_acc": 0.81 + 0.004 * (m % 5),
            "seconds": 3.2 + 0.1 * m,
        }
        for m, role in enumerate(roles)
    )
    checks = (
        Check("null test", "fine", "Made up: nothing to find."),
        Check("resolution", "look", "Too few."),
        Check("copies of members", "untested", "No records."),
    )
    return AuditResult(
        checks=checks,
        risk=risk(tuple(found)),
        targets=tuple(found),
        points=np.arange(points) * 2,
        labels=np.arange(points) % 10,
        models=models,
        dataset="made_up",
        population=1000,
        queries=2,
        config=CONFIG,
        environment={"python": "3.11", "device": "cpu", "git commit": "0123abc", "packages": {"numpy": "2.0"}},
        timings=(("data", 0.5), ("models", 61.25), ("signals", 2.0), ("attacks", 0.3)),
        warnings=warnings,
    )


def risk(targets: tuple[TargetResult, ...], name: str = "7") -> Risk:
    """Made-up risks: three records named, one of them wrongly; one group exposed, one too small to say."""
    points = len(targets[0].member)
    draw = stream(0, "risk", points)
    calibrating = np.where(np.arange(points) < points // 2, np.nan, draw.random(points))
    named = Named(0.1, np.array([0, 1, 2]), calibrating, false=1, calibration=points // 2)
    groups = (
        GroupRow(name, 300, 200, Estimate(0.8, 0.7, 0.9), 0.4, 0.1, None, True, True),
        GroupRow("8", 3, 0, None, 0.5, None, None, False, False),
    )
    exhibits = (
        Exhibit("12", name, 1.0, "found in 2 of 2 models", text=f"text {name}"),
        Exhibit("13", name, 0.9, "found in 1 of 2 models", columns=((f"column {name}", "1.5"),)),
    )
    return Risk(
        attack=targets[0].attacks[0].attack,
        order=0,
        chosen="made up",
        targets=tuple(TargetRisk(t.target, t.attacks[0].scores, draw.random(points), named) for t in targets),
        exposure=draw.random(points),
        member_in=np.ones(points, dtype=int),
        found_in=np.zeros(points, dtype=int),
        accused_in=np.zeros(points, dtype=int),
        nominal_fpr=0.1,
        flips=draw.random(points),
        groups={"class": groups},
        most=exhibits,
        least=exhibits,
    )


def session(folder: Path, plan: Plan, data: AuditData, algorithm: str = "[LOSS]", more: str = "") -> Session:
    """A session over made-up data: its config names a dataset and a model, and neither is ever asked for anything."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "made_up.yaml"
    file.write_text(
        f"run: {{log_dir: {folder / 'run'}}}\ndata: {{dataset: digits}}\n"
        "train: {model_name: mlp, learning_rate: 0.1, epochs: 1}\n"
        f"audit: {{algorithm: {algorithm}, num_ref_models: 4{more}}}\n"
    )
    every = np.arange(plan.member.shape[1])
    return Session(config.load(file), data, plan, every, np.arange(1), "pool", "population")
