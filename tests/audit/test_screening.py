"""Without references: numbers that follow from the loss alone, exact where they can be."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from audit.results import TargetResult
from audit.screening import loss_trace_iqr, screen
from audit.training import losses_path
from core.errors import UserError
from core.rng import stream
from core.rundir import write_array
from core.types import AuditData, Evidence, Plan, Records
from tests.audit import fixtures
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


def plan_of(member: np.ndarray) -> Plan:
    return Plan(np.stack([member, ~member]), ((),))


def screened(folder: Path, signals: np.ndarray, member: np.ndarray, models: list):
    nothing = Records(np.empty((len(member), 0), np.float32), np.zeros(len(member), int))
    session = fixtures.session(folder, plan_of(member), AuditData(nothing, nothing, 2))
    return screen(session, (target(signals, member),), models, lambda _: seen(signals), 0)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_tail_tnr_is_that_of_two_gaussians(tmp_path, shift):
    member = np.arange(40_000) < 20_000
    signals = stream(1, "tail").normal(size=40_000) + shift * member
    (found,) = screened(tmp_path, signals, member, [])
    truth = norm.cdf(norm.ppf(0.01) + shift)
    assert found.tail_tnr.low <= truth <= found.tail_tnr.high
    assert found.tail_tnr.value == pytest.approx(truth, abs=0.02)
    assert found.tail_resolvable


def test_the_gap_attack_has_the_balanced_accuracy_that_follows_from_the_gap(tmp_path):
    draw = stream(2, "gap")
    member = np.arange(4000) < 2000
    correct = draw.random(4000) < np.where(member, 0.95, 0.75)
    models = [{"id": 0, "train_acc": correct[member].mean(), "test_acc": correct[~member].mean()}]
    signals = draw.normal(size=4000)
    (found,) = screened(tmp_path, signals, member, models)
    attacked = (np.mean(correct[member]) + np.mean(~correct[~member])) / 2
    assert found.gap_attack == pytest.approx(attacked)


def test_what_is_not_known_is_left_out_and_what_cannot_be_resolved_is_said(tmp_path):
    member = np.arange(60) < 30
    signals = stream(3, "few").normal(size=60)
    models = [{"id": 0, "train_acc": None, "test_acc": 0.5}]
    (found,) = screened(tmp_path, signals, member, models)
    assert found.gap is None and found.gap_attack is None
    assert not found.tail_resolvable


def test_the_spread_of_a_trace_is_its_interquartile_range():
    trace = np.array([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    assert loss_trace_iqr(trace).tolist() == [2.0, 0.0]


def test_losses_that_were_recorded_order_the_members_and_are_held_against_the_attack(tmp_path):
    member = np.arange(200) % 2 == 0
    signals = stream(4, "trace").normal(size=200)
    nothing = Records(np.empty((200, 0), np.float32), np.zeros(200, int))
    session = fixtures.session(tmp_path, plan_of(member), AuditData(nothing, nothing, 2))
    trace = np.outer(np.arange(8), signals[member] - signals.min()).astype(
        np.float32
    )  # falls further where the score is high
    write_array(losses_path(session, 0), trace)
    (found,) = screen(session, (target(signals, member),), [], lambda _: seen(signals), 0)
    assert found.iqr_precision == 1.0
    assert np.isnan(found.iqr[~member]).all()
    assert np.argmax(found.iqr[member]) == np.argmax(signals[member])
    write_array(losses_path(session, 0), trace[:, 1:])
    with pytest.raises(UserError, match="trained on 100 records"):
        screen(session, (target(signals, member),), [], lambda _: seen(signals), 0)
