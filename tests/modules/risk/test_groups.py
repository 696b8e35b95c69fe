"""A group's numbers are those of its records alone, and all groups' intervals hold at once."""

import numpy as np
import pytest
from scipy.stats import norm

from core.metrics import auc, auc_interval, tpr_at_fpr
from core.rng import stream
from modules.risk.groups import group_risks, uneven


def world(draw: np.random.Generator, sizes: list[int], shifts: list[float]) -> tuple[np.ndarray, ...]:
    """Groups of `sizes` members and as many non-members; the members of each are shifted."""
    group = np.repeat(np.arange(len(sizes)), [2 * size for size in sizes])
    member = np.concatenate([np.arange(2 * size) < size for size in sizes])
    return draw.normal(size=len(group)) + np.array(shifts)[group] * member, member, group


def test_a_groups_numbers_are_those_of_its_records():
    scores, member, group = world(stream(1, "own"), [300, 200], [1.0, 2.0])
    first, second = group_risks(scores, member, group, nominal_fpr=0.1)
    assert (first.group, second.group) == (0, 1)
    assert second.auc.value == auc(scores[group == 1], member[group == 1])
    assert second.auc == auc_interval(scores[group == 1], member[group == 1], level=0.975)
    threshold = tpr_at_fpr(scores, member, 0.1).threshold
    assert first.tpr.value == np.mean(scores[member & (group == 0)] >= threshold)
    assert first.fpr.value == np.mean(scores[~member & (group == 0)] >= threshold)
    assert first.own.tpr.value == tpr_at_fpr(scores[group == 0], member[group == 0], 0.1).tpr.value


def test_a_group_that_is_easier_for_everyone_is_accused_more_at_the_global_threshold_only():
    draw = stream(2, "offset")
    scores, member, group = world(draw, [2000, 2000], [1.0, 1.0])
    scores = scores + 2.0 * group
    plain, offset = group_risks(scores, member, group, nominal_fpr=0.1)
    assert offset.fpr.low > plain.fpr.high
    assert abs(offset.own.tpr.value - plain.own.tpr.value) < 0.06


@pytest.mark.slow
def test_intervals_of_all_groups_hold_at_once():
    """Ten groups, 95% for all of them together; a 95% interval for each would miss somewhere in 40% of runs."""
    trials, missed_auc, missed_tpr = 100, 0, 0
    truth_auc, draw = norm.cdf(1 / np.sqrt(2)), stream(3, "coverage")
    for _ in range(trials):
        scores, member, group = world(draw, [60] * 10, [1.0] * 10)
        risks = group_risks(scores, member, group, nominal_fpr=0.1)
        threshold = tpr_at_fpr(scores, member, 0.1).threshold
        true_tpr = norm.sf(threshold - 1)
        missed_auc += any(not r.auc.low <= truth_auc <= r.auc.high for r in risks)
        missed_tpr += any(not r.tpr.low <= true_tpr <= r.tpr.high for r in risks)
    allowed = 0.05 * trials + 4 * np.sqrt(0.05 * 0.95 * trials)
    assert missed_auc <= allowed
    assert missed_tpr <= allowed


def test_where_nothing_differs_no_group_is_called_uneven_and_an_exposed_one_is():
    draw = stream(4, "uneven")
    called = 0
    for _ in range(60):
        scores, member, group = world(draw, [80] * 8, [0.5] * 8)
        called += bool(uneven(group_risks(scores, member, group, nominal_fpr=0.1), norm.cdf(0.5 / np.sqrt(2))))
    assert called <= 3 + 4 * np.sqrt(3)
    scores, member, group = world(draw, [80, 80, 80], [0.0, 0.0, 3.0])
    exposed = uneven(group_risks(scores, member, group, nominal_fpr=0.1), auc(scores, member))
    assert [risk.group for risk in exposed] == [2]


def test_a_group_of_one_and_a_group_of_one_kind_are_marked_not_dropped():
    scores = np.arange(6.0)
    member = np.array([True, False, True, False, True, True])
    risks = group_risks(scores, member, np.array(["a", "a", "a", "a", "b", "b"]), nominal_fpr=0.1)
    assert [risk.group for risk in risks] == ["a", "b"]
    assert not any(risk.resolvable for risk in risks)
    only_members = risks[1]
    assert only_members.auc is None and only_members.fpr is None and only_members.own is None
    assert only_members.tpr.value == 1.0


@pytest.mark.parametrize("names", [["x<script>", "y"], [3, 1]])
def test_groups_keep_their_names(names):
    scores, member, group = world(stream(5, "names"), [20, 20], [1.0, 1.0])
    risks = group_risks(scores, member, np.array(names)[group], nominal_fpr=0.1)
    assert [risk.group for risk in risks] == sorted(names)
