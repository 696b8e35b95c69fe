"""Ranges whose leak is known: evidence at their samples, and which of them hold a training point of the target."""

from __future__ import annotations

import numpy as np

from core.rng import stream
from modules.ramia.evidence import RangeEvidence


def ranges_world(seed=0, n=600, samples=6, pairs=3, *, leak=(3.0,), both=0.0):
    """Log-odds t_i + N(0, 1) at every sample of range i, raised by `leak` at its first samples if the model knows it.

    Pairs share out the ranges in halves; a share `both` of them is known to all models on top, as where
    neighbours were trained on by both twins.
    """
    draw = stream(seed, "ranges_world")
    halves = np.array([draw.permutation(n) < n // 2 for _ in range(pairs + 1)])
    known_to_all = draw.random((2 * pairs, n)) < both
    member = halves[0]
    trained_on = np.stack([halves[1:], ~halves[1:]], axis=1).reshape(2 * pairs, n) | known_to_all
    difficulty = draw.standard_normal((n, 1))
    raised = np.zeros(samples)
    raised[: len(leak)] = leak

    def log_odds(trained):
        values = difficulty + draw.standard_normal((n, samples)) + np.where(trained[:, None], raised, 0)
        return values.reshape(1, -1).astype(np.float32)

    z = draw.standard_normal((2 * pairs + 1, 1, 100)).astype(np.float32)
    evidence = RangeEvidence(
        target=log_odds(member),
        references=np.stack([log_odds(trained) for trained in trained_on]),
        trained_on=np.repeat(trained_on, samples, axis=1),
        population=z[0],
        population_references=z[1:],
        pair=np.repeat(np.arange(pairs), 2),
    )
    return evidence, member
