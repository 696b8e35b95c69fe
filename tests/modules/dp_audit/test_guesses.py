"""Ties, choices, and that what was looked at is paid for."""

import numpy as np
import pytest

from core.rng import stream
from modules.dp_audit import (
    Bonferroni,
    Calibrated,
    Fixed,
    MultiSplit,
    Split,
    audit_one_run,
    audit_two_worlds,
    mechanisms,
    most_tpr,
    one_run,
    ranked,
)
from modules.dp_audit.guesses import default_k, log_spaced


def world(m=400, mu=2.0, seed=0):
    rng = stream(seed, "guesses")
    member = rng.random(m) < 0.5
    return mechanisms.gaussian(member, rng, mu=mu), member, rng


@pytest.mark.parametrize("ties", ["random", "worst"])
@pytest.mark.parametrize("first", ["members", "non-members"])
def test_constant_scores_show_nothing_wherever_the_members_are_stored(first, ties):
    member = np.arange(1000) < 500 if first == "members" else np.arange(1000) >= 500
    for k in ((0, 500), (500, 0), (500, 500), (64, 64)):
        bound = audit_one_run(np.zeros(1000), member, stream(1, first), delta=0.0, choice=Fixed(*k), ties=ties)
        assert bound.eps < 0.2  # by position it is 5.1 or more


def test_the_worst_order_of_ties_is_the_worst_of_all_orders():
    rng = stream(0, "worst")
    for _ in range(20):
        scores, member = rng.integers(0, 4, size=12), rng.random(12) < 0.5
        worst = ranked(scores, member, rng, ties="worst")
        several = [ranked(scores, member, rng) for _ in range(200)]
        for pair in ((3, 0), (0, 3), (4, 4), (6, 6), (12, 0)):
            assert worst.right(pair) == min(counts.right(pair) for counts in several)


def test_distinct_scores_need_no_luck():
    scores, member, rng = world()
    a, b, c = ranked(scores, member, rng), ranked(scores, member, rng), ranked(scores, member, rng, ties="worst")
    order = np.argsort(scores)
    for counts in (a, b, c):
        assert counts.right((50, 0)) == member[order[-50:]].sum()
        assert counts.right((0, 70)) == (~member[order[:70]]).sum()


def test_the_default_number_of_guesses_knows_only_the_number_of_canaries():
    assert [Fixed().pair(m) for m in (2, 10, 1000, 100_000)] == [(1, 1), (5, 5), (64, 64), (633, 633)]
    assert default_k(10_000) == 200
    assert Fixed(k_plus=7, k_minus=0).pair(1000) == (7, 0)


@pytest.mark.parametrize("m", [2, 3, 10, 1000])
def test_default_grids_are_allowed_and_nested(m):
    for pairs in (log_spaced(m, 8), Calibrated().pairs(m), Bonferroni().pairs(m)):
        assert all(1 <= a + b <= m for a, b in pairs)
        assert list(pairs) == sorted(set(pairs))


def test_fixed_is_the_bound_of_its_counts():
    scores, member, rng = world()
    bound = audit_one_run(scores, member, rng, delta=1e-5, choice=Fixed(30, 20))
    assert (bound.m, bound.r, bound.analyses, bound.family) == (400, 50, 1, "none")
    assert bound.eps == pytest.approx(float(one_run.epsilon(400, 50, bound.right, delta=1e-5)))
    assert bound.largest == pytest.approx(float(one_run.epsilon(400, 50, 50, delta=1e-5)))


def test_bonferroni_is_the_best_at_a_share_of_the_error():
    scores, member, rng = world()
    grid = ((20, 20), (40, 40), (0, 60))
    shares = [audit_one_run(scores, member, rng, delta=0.0, level=0.94, choice=Bonferroni((pair,))) for pair in grid]
    best = audit_one_run(scores, member, rng, delta=0.0, level=1 - 0.06 * 3, choice=Bonferroni(grid))
    assert best.eps == pytest.approx(max(bound.eps for bound in shares)) and best.analyses == 3


def test_a_split_counts_only_the_canaries_it_did_not_choose_on():
    scores, member, rng = world()
    bound = audit_one_run(scores, member, rng, delta=1e-5, choice=Split(0.25))
    assert bound.m == 300 and bound.r <= 300 and bound.right <= bound.r and "100 other" in bound.guesses
    nothing = audit_one_run(scores, ~member, rng, delta=1e-5, choice=Split())
    assert nothing.eps == 0  # an attack that points the wrong way


def test_multisplit_is_the_median_at_half_the_error():
    scores, member, rng = world()
    one = audit_one_run(scores, member, stream(5, "split"), delta=0.0, level=0.9, choice=MultiSplit(splits=1))
    assert one.eps == audit_one_run(scores, member, stream(5, "split"), delta=0.0, level=0.95, choice=Split()).eps
    alone = [audit_one_run(scores, member, rng, delta=0.0, level=0.95, choice=Split()).eps for _ in range(101)]
    many = audit_one_run(scores, member, rng, delta=0.0, level=0.9, choice=MultiSplit(splits=101)).eps
    assert np.quantile(alone, 0.35) <= many <= np.quantile(alone, 0.6)
    assert many < np.max(alone)


def test_other_analyses_cost_their_share():
    scores, member, rng = world()
    three = audit_one_run(scores, member, rng, delta=0.0, level=0.94, analyses=3)
    assert three.eps == pytest.approx(audit_one_run(scores, member, rng, delta=0.0, level=0.98).eps)
    assert (three.analyses, three.level) == (3, 0.94)


def test_what_would_not_hold_is_refused():
    scores, member, rng = world()
    with pytest.raises(ValueError, match="calibrated guesses are shown to be valid for 'one_run'"):
        audit_one_run(scores, member, rng, delta=1e-5, choice=Calibrated(), estimator="gaussian")
    with pytest.raises(ValueError, match="leaves nothing"):
        audit_one_run(scores, member, rng, delta=1e-3, choice=Calibrated())
    with pytest.raises(ValueError, match="nested"):
        audit_one_run(scores, member, rng, delta=0.0, choice=Calibrated(((9, 9), (10, 5))))
    with pytest.raises(ValueError, match="between 1 and 400 guesses"):
        audit_one_run(scores, member, rng, delta=0.0, choice=Fixed(300, 200))
    with pytest.raises(ValueError, match="NaN"):
        audit_one_run(np.full(400, np.nan), member, rng, delta=0.0)
    with pytest.raises(ValueError, match="delta 0"):
        audit_one_run(scores, member, rng, delta=0.0, estimator="gaussian")
    with pytest.raises(ValueError, match="credible"):
        audit_two_worlds(scores, member, rng, delta=0.0, threshold=(0.0, 1.0), estimator="bayesian")


def test_two_worlds_pay_for_each_threshold_and_judge_splits_on_the_rest():
    scores, member, rng = world()
    one = audit_two_worlds(scores, member, rng, delta=0.0, level=0.98, threshold=1.0)
    two = audit_two_worlds(scores, member, rng, delta=0.0, level=0.96, threshold=(1.0, 50.0))
    assert two.eps == pytest.approx(one.eps) and two.eps > 0 and two.analyses == 2 and two.level == 0.96
    split = audit_two_worlds(scores, member, rng, delta=0.0, threshold=Split())
    assert split.m == 200 and split.eps > 0
    median = audit_two_worlds(scores, member, rng, delta=1e-5, threshold=MultiSplit(splits=3), estimator="gaussian")
    assert median.family == "gaussian" and "median of 3" in median.guesses


def test_what_a_claim_allows_is_the_trade_off_curve_of_approximate_dp():
    fpr = np.linspace(0, 1, 11)
    assert most_tpr(fpr, epsilon=0.0, delta=0.0) == pytest.approx(fpr)
    tpr = most_tpr(fpr, epsilon=1.0, delta=0.1)
    assert tpr[0] == pytest.approx(0.1) and np.all(tpr <= 1) and np.all(np.diff(tpr) >= 0)
    inside = tpr < 1  # guilt and innocence swapped give the same curve
    assert most_tpr(1 - tpr[inside], epsilon=1.0, delta=0.1) == pytest.approx(1 - fpr[inside])
