"""Differences of two models on the same records: intervals that hold, tests that are exact."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from core.rng import stream
from modules.compare.paired import mcnemar, mean_difference, tpr_difference


@pytest.mark.parametrize(("only_a", "only_b"), [*itertools.product([0, 1, 5, 30], [0, 1, 5, 31])])
def test_mcnemar_is_the_exact_sign_test_of_those_on_which_both_disagree(only_a, only_b):
    expected = binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_members_found_by_one_model_only_are_counted():
    member = np.array([True] * 4 + [False] * 4)
    a = np.array([9, 9, 1, 1, 5, 4, 3, 2.0])
    b = np.array([9, 1, 9, 9, 5, 4, 3, 2.0])
    found = tpr_difference(a, b, member, 0.25)
    assert (found.a, found.b, found.only_a, found.only_b) == (0.5, 0.75, 1, 2)
    assert found.difference.value == 0.25 and not found.resolvable


def test_swapping_the_runs_turns_the_difference_round():
    member, a, b = world(stream(0, "swap"), 300, 0.5, 1.5)
    there, back = tpr_difference(a, b, member, 0.1), tpr_difference(b, a, member, 0.1)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.difference.high == pytest.approx(-back.difference.low)
    assert (there.only_a, there.only_b) == (back.only_b, back.only_a)


def test_the_same_scores_differ_by_nothing():
    member, a, _ = world(stream(0, "same"), 300, 1.0, 1.0)
    found = tpr_difference(a, a, member, 0.1)
    assert found.difference.value == 0 and found.p_value == 1
    assert found.difference.low < 0 < found.difference.high


def test_a_large_difference_is_found_where_the_thresholds_are_well_known():
    member, a, b = world(stream(0, "large"), 3000, 0.2, 2.0)
    assert tpr_difference(a, b, member, 0.1).difference.low > 0.2


@pytest.mark.parametrize(("shift_a", "shift_b", "common"), [(1.0, 1.0, 0.0), (0.5, 1.5, 0.9), (2.5, 0.0, 0.5)])
@pytest.mark.parametrize("fpr", [0.1])
def test_the_interval_covers_the_true_difference(shift_a, shift_b, common, fpr):
    """Ground truth in closed form: unit Gaussians, members shifted."""
    true = norm.sf(norm.isf(fpr) - shift_b) - norm.sf(norm.isf(fpr) - shift_a)
    covered, draw = 0, stream(1, "coverage", str(shift_a), str(shift_b), str(fpr))
    for _ in range(100):
        member, a, b = world(draw, 600, shift_a, shift_b, common)
        found = tpr_difference(a, b, member, fpr).difference
        covered += found.low <= true <= found.high
    assert covered >= 95  # conservative, so in fact almost always


def world(draw, n, shift_a, shift_b, common=0.5):
    member = np.arange(n) % 2 == 0
    shared = np.sqrt(common) * draw.normal(size=n)
    a, b = (shared + np.sqrt(1 - common) * draw.normal(size=n) + shift * member for shift in (shift_a, shift_b))
    return member, a, b


def test_the_mean_over_targets_has_the_t_interval_of_a_textbook():
    found = mean_difference(np.array([0.1, 0.2, 0.3]))  # t(0.975, 2) = 4.3027, sd 0.1
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 - 0.24841, 0.2 + 0.24841), abs=1e-5)


@pytest.mark.parametrize("values", [[0.3], [0.2, 0.2]])
def test_targets_that_show_no_spread_give_no_interval(values):
    assert np.isnan(mean_difference(np.array(values)).low)
