"""The plan: twins share out the pool, references never include the target's twin, growth changes nothing."""

import numpy as np
import pytest

from audit.plan import choose, make_plan


@pytest.mark.parametrize(("targets", "pairs"), [(1, 0), (1, 1), (1, 4), (2, 1), (3, 2), (5, 1), (4, 8)])
def test_every_point_is_in_for_half_of_each_targets_references(targets, pairs):
    plan = make_plan(101, targets, pairs, seed=3)
    for target, references in zip(plan.targets, plan.references, strict=True):
        trained_on = plan.member[list(references)]
        assert len(references) == 2 * pairs
        assert (trained_on.sum(axis=0) == pairs).all()
        assert target not in references and target ^ 1 not in references


def test_twins_are_complements_of_equal_size():
    plan = make_plan(100, 2, 3, seed=0)
    assert (plan.member[0::2] == ~plan.member[1::2]).all()
    assert (plan.member.sum(axis=1) == 50).all()


def test_with_one_target_its_twin_is_not_trained():
    assert make_plan(10, 1, 2, seed=0).models == (0, 2, 3, 4, 5)
    assert make_plan(10, 1, 0, seed=0).models == (0,)
    assert make_plan(10, 2, 1, seed=0).models == (0, 1, 2, 3)


def test_more_targets_or_references_leave_the_planned_ones_as_they_are():
    small, more_targets, more_references = (make_plan(50, t, k, seed=9) for t, k in [(1, 2), (4, 2), (1, 6)])
    for large in (more_targets, more_references):
        rows = min(len(small.member), len(large.member))
        assert (small.member[:rows] == large.member[:rows]).all()
        assert set(small.models) <= set(large.models)
        assert large.references[0][: len(small.references[0])] == small.references[0]


def test_the_seed_decides_the_halves():
    assert (make_plan(50, 1, 1, seed=1).member != make_plan(50, 1, 1, seed=2).member).any()
    assert (make_plan(50, 1, 1, seed=1).member == make_plan(50, 1, 1, seed=1).member).all()


def test_halves_are_unrelated_between_pairs():
    member = make_plan(4000, 1, 5, seed=0).member[0::2].astype(float)
    correlation = np.corrcoef(member)[np.triu_indices(len(member), 1)]
    assert np.abs(correlation).max() < 4 / np.sqrt(4000)


def test_chosen_points_are_sorted_distinct_and_named():
    points = choose(1000, 100, seed=0, purpose="points")
    assert (np.diff(points) > 0).all() and len(points) == 100
    assert (choose(1000, 100, seed=0, purpose="points") == points).all()
    assert (choose(1000, 100, seed=0, purpose="population") != points).any()
    assert (choose(7, None, seed=0, purpose="points") == np.arange(7)).all()
