"""The checks raise no alarm in a sound audit, beyond their level, and do where something is wrong."""

import numpy as np
import pytest
from scipy.stats import norm

from core.rng import stream
from modules.checks.dp import allowed_tpr, breaches
from modules.checks.fidelity import compared, worst_fitted, worst_fitted_references
from modules.checks.null import null_auc
from modules.checks.resolution import non_members_needed


def test_memberships_drawn_by_lot_leave_nothing_to_find_however_strong_the_attack():
    draw, trials = stream(1, "null"), 400
    member = np.arange(200) < 100
    scores = np.round(3.0 * member + draw.normal(size=200), 1)
    missed = 0
    for _ in range(trials):
        found = null_auc(scores, member, draw, level=0.9)
        missed += not found.low <= 0.5 <= found.high
    assert missed <= 0.1 * trials + 4 * np.sqrt(0.09 * trials)
    assert missed > 0.02 * trials


def test_one_more_model_of_the_same_kind_is_outside_at_the_stated_rate():
    draw, trials = stream(2, "prediction"), 4000
    outside = sum(not compared(row[0], row[1:], level=0.9).alike for row in draw.normal(size=(trials, 5)))
    assert abs(outside / trials - 0.1) < 4 * np.sqrt(0.09 / trials)


def test_a_target_unlike_its_references_is_told_and_two_references_say_nothing():
    references = np.array([0.80, 0.81, 0.79, 0.80])
    assert compared(0.805, references).alike
    assert not compared(0.60, references).alike
    assert compared(1.0, np.ones(4)).alike
    assert compared(0.5, references[:2]) is None


def fitted(draw, models: int, records: int) -> tuple[np.ndarray, np.ndarray]:
    trained_on = draw.random((models, records)) < 0.5
    return draw.normal(size=(models, records)) + 2.0 * trained_on, trained_on


def test_a_model_like_the_others_is_the_worst_of_k_plus_1_once_in_k_plus_1_members():
    draw = stream(3, "lowest")
    trained_on = np.ones((5, 20_000), dtype=bool)
    ratio = worst_fitted(draw.normal(size=20_000), draw.normal(size=(4, 20_000)), trained_on[:4], trained_on[4])
    assert abs(ratio - 1) < 4 * 5 * np.sqrt(0.16 / 20_000)


def test_members_that_the_model_never_fitted_stand_out():
    draw = stream(4, "unfitted")
    signals, trained_on = fitted(draw, 9, 4000)
    usual = worst_fitted_references(signals[1:], trained_on[1:])
    assert compared(worst_fitted(signals[0], signals[1:], trained_on[1:], trained_on[0]), usual).alike
    wrong = ~trained_on[0]  # a membership list that is upside down
    assert not compared(worst_fitted(signals[0], signals[1:], trained_on[1:], wrong), usual).alike
    assert np.isnan(worst_fitted(signals[0], signals[1:], np.zeros((8, 4000), dtype=bool), trained_on[0]))


@pytest.mark.parametrize(("fpr", "needed"), [(0.1, 100), (0.01, 1000), (0.001, 10_000), (0.3, 34)])
def test_ten_false_positives_are_to_be_expected(fpr, needed):
    assert non_members_needed(fpr) == needed
    assert needed * fpr >= 10 > (needed - 1) * fpr


def test_the_line_of_differential_privacy_is_the_better_of_its_two_sides():
    assert allowed_tpr(0.1, 0.0, 0.0) == pytest.approx(0.1)
    assert allowed_tpr(0.1, np.log(2), 0.01) == pytest.approx(0.21)
    assert allowed_tpr(0.6, np.log(2), 0.0) == pytest.approx(0.8)  # 1 - (1 - 0.6) / 2, below 1.2
    assert allowed_tpr(0.5, 1000.0, 0.0) == 1.0
    assert allowed_tpr(0.0, 3.0, 1.0) == 1.0


def test_randomised_response_keeps_to_its_epsilon_and_half_of_it_is_caught():
    draw = stream(5, "rr")
    member = np.arange(4000) < 2000
    truthful = draw.random(4000) < np.e / (1 + np.e)
    scores = (member == truthful) + 1e-6 * draw.normal(size=4000)
    looks = (0.1, 0.2, 0.3)
    assert breaches(scores, member, epsilon=1.0, delta=0.0, nominal_fprs=looks) == []
    assert breaches(scores, member, epsilon=0.5, delta=0.0, nominal_fprs=looks)


def test_breaches_are_rare_where_the_mechanism_is_on_the_line():
    """Gaussian scores of shift mu against their own exact (ε, δ) at the FPR looked at: false alarms within 5%."""
    draw, mu, fpr, trials = stream(6, "line"), 1.0, 0.1, 300
    tpr = norm.sf(norm.isf(fpr) - mu)
    delta = 0.02
    epsilon = float(np.log((tpr - delta) / fpr))
    member = np.arange(1000) < 500
    alarms = sum(
        bool(breaches(draw.normal(size=1000) + mu * member, member, epsilon=epsilon, delta=delta, nominal_fprs=(fpr,)))
        for _ in range(trials)
    )
    assert alarms <= 0.05 * trials + 4 * np.sqrt(0.05 * 0.95 * trials)
