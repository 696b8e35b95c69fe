"""Without references: numbers that follow from the loss alone, exact where they can be."""

import numpy as np
import pytest
from scipy.stats import norm

from audit.results import TargetResult
from audit.screening import screen
from core.rng import stream
from core.types import Evidence
from tests.audit.fixtures import attack_result


def seen(signals: np.ndarray) -> Evidence:
    return Evidence(
        target=signals[None].astype(np.float32),
        references=np.empty((0, 1, len(signals)), np.float32),
        trained_on=np.empty((0, len(signals)), bool),
        population=np.empty((1, 0), np.float32),
        population_references=np.empty((0, 1, 0), np.float32),
    )


def target(signals: np.ndarray, member: np.ndarray) -> TargetResult:
    return TargetResult(0, member, (attack_result("LOSS", signals, member),))


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_tail_tnr_is_that_of_two_gaussians(shift):
    member = np.arange(40_000) < 20_000
    signals = stream(1, "tail").normal(size=40_000) + shift * member
    (found,) = screen((target(signals, member),), [], lambda _: seen(signals))
    truth = norm.cdf(norm.ppf(0.01) + shift)
    assert found.tail_tnr.low <= truth <= found.tail_tnr.high
    assert found.tail_tnr.value == pytest.approx(truth, abs=0.02)
    assert found.tail_resolvable


def test_the_gap_attack_has_the_balanced_accuracy_that_follows_from_the_gap():
    draw = stream(2, "gap")
    member = np.arange(4000) < 2000
    correct = draw.random(4000) < np.where(member, 0.95, 0.75)
    models = [{"id": 0, "train_acc": correct[member].mean(), "test_acc": correct[~member].mean()}]
    signals = draw.normal(size=4000)
    (found,) = screen((target(signals, member),), models, lambda _: seen(signals))
    attacked = (np.mean(correct[member]) + np.mean(~correct[~member])) / 2
    assert found.gap_attack == pytest.approx(attacked)


def test_what_is_not_known_is_left_out_and_what_cannot_be_resolved_is_said():
    member = np.arange(60) < 30
    signals = stream(3, "few").normal(size=60)
    (found,) = screen(
        (target(signals, member),), [{"id": 0, "train_acc": None, "test_acc": 0.5}], lambda _: seen(signals)
    )
    assert found.gap is None and found.gap_attack is None
    assert not found.tail_resolvable
