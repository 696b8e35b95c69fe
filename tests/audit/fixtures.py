"""A synthetic AuditResult: real scores of known strength, and everything else a report shows."""

from __future__ import annotations

import numpy as np

from audit.results import AttackResult, AuditResult, TargetResult
from core.metrics import roc, summarise
from core.rng import stream

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
    return AuditResult(
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
