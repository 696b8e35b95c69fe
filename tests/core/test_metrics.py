"""Metrics against closed forms, naive twins and their own promises: intervals must cover."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp, ndtr, ndtri
from scipy.stats import binom, binomtest, t

from core.metrics import (
    across_models,
    auc,
    auc_interval,
    balanced_accuracy,
    certified_fpr,
    clopper_pearson,
    confidence_band,
    paired_auc_difference,
    ppv,
    roc,
    summarise,
    tpr_at_fpr,
    tpr_on_grid,
)
from core.rng import stream

GRID = np.concatenate([[0.0], np.logspace(-5, 0, 60)])


def two_gaussians(d: float, members: int, non_members: int, *name) -> tuple[np.ndarray, np.ndarray]:
    """Scores N(d, 1) of members and N(0, 1) of non-members, and who is which (literature: 3.6 (1))."""
    member = np.arange(members + non_members) < members
    return stream(0, "gaussians", *name).normal(size=member.size) + d * member, member


def covered(estimates, truth: float) -> float:
    """The share of the intervals that hold the truth."""
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]))


def at_most(rate: float, runs: int) -> float:
    """Three standard errors above a rate: what a count of `runs` runs may show."""
    return rate + 3 * np.sqrt(rate * (1 - rate) / runs)


@st.composite
def worlds(draw, largest=3):
    """Up to 40 whole scores, many of them tied, with at least one member and one non-member."""
    size = draw(st.integers(2, 40))
    scores = draw(hnp.arrays(float, size, elements=st.integers(-largest, largest).map(float)))
    member = draw(hnp.arrays(bool, size))
    member[0], member[1] = True, False
    return scores, member


fast = settings(derandomize=True, deadline=None, max_examples=60)


# --- naive twins


def naive_wins(scores, member) -> np.ndarray:
    """(members, non-members): 1 where the member is above, 1/2 where they tie."""
    above = scores[member][:, None] - scores[~member][None]
    return (np.sign(above) + 1) / 2


def naive_delong(*score_sets, member) -> np.ndarray:
    """Covariance matrix of several AUCs on the same records (DeLong et al. 1988), in O(members x non-members)."""
    wins = [naive_wins(scores, member) for scores in score_sets]
    v10, v01 = ([w.mean(axis=axis) for w in wins] for axis in (1, 0))
    return np.atleast_2d(np.cov(v10)) / len(v10[0]) + np.atleast_2d(np.cov(v01)) / len(v01[0])


# --- ROC


def test_ties_enter_the_roc_together():
    curve = roc(np.array([3.0, 1.0, 2.0, 2.0, 2.0, 0.0]), np.array([True, True, True, False, True, False]))
    assert curve.threshold.tolist() == [np.inf, 3, 2, 1, 0]
    assert curve.tpr.tolist() == [0, 0.25, 0.75, 1, 1]
    assert curve.fpr.tolist() == [0, 0, 0.5, 0.5, 1]


@fast
@given(worlds())
def test_each_point_is_what_guessing_at_its_threshold_achieves(world):
    scores, member = world
    curve = roc(scores, member)
    assert curve.threshold.tolist() == [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.threshold, strict=True):
        assert tpr == (scores[member] >= threshold).mean()
        assert fpr == (scores[~member] >= threshold).mean()


def test_infinite_scores_are_ranked_and_zero_has_no_sign():
    member = np.array([True, False, True, False, True, False])
    curve = roc(np.array([np.inf, np.inf, 0.0, -0.0, -np.inf, -np.inf]), member)
    assert curve.threshold.tolist() == [np.inf, np.inf, 0, -np.inf]
    assert curve.tpr.tolist() == curve.fpr.tolist() == [0, 1 / 3, 2 / 3, 1]


def test_a_threshold_of_float32_scores_still_selects_its_score():
    scores, member = two_gaussians(1, 50, 50, "float32")
    scores = scores.astype(np.float32)
    curve = roc(scores, member)
    assert [(scores >= threshold).sum() for threshold in curve.threshold] == list(range(101))


@pytest.mark.parametrize("measure", [roc, auc, auc_interval, summarise])
@pytest.mark.parametrize(
    "scores, member, message",
    [
        ([1, 2, 3], [False, False, False], "got 0 members of 3"),
        ([1, 2, 3], [True, True, True], "got 3 members of 3"),
        ([], [], "got 0 members of 0"),
        ([1, np.nan, np.nan], [True, True, False], "2 of 3 scores are NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused_with_its_counts(measure, scores, member, message):
    with pytest.raises(ValueError, match=message):
        measure(np.array(scores, dtype=float), np.array(member, dtype=bool))


def test_scores_and_memberships_of_different_length_are_refused():
    with pytest.raises((ValueError, TypeError)):  # in tests the shape checker is first, with a TypeError
        roc(np.zeros(3), np.array([True, False, True, False]))


@fast
@given(worlds(), hnp.arrays(float, 5, elements=st.floats(0, 1)))
def test_the_tpr_on_a_grid_is_that_of_the_largest_achieved_fpr(world, grid):
    curve = roc(*world)
    grid = np.concatenate([grid, curve.fpr])
    naive = [max(tpr for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True) if fpr <= x) for x in grid]
    assert tpr_on_grid(curve, grid).tolist() == naive


def test_an_fpr_of_29_in_100_is_reached_at_0_29():
    """0.29 * 100 is 28.999999999999996: counting allowed false positives in floats would lose one."""
    scores = np.concatenate([np.arange(100.0), [70.5]])
    member = np.arange(101) == 100
    assert tpr_on_grid(roc(scores, member), np.array([0.28, 0.29])).tolist() == [0.0, 1.0]
    assert tpr_at_fpr(scores, member, 0.29).fpr.value == 0.29


@pytest.mark.parametrize("grid", [[-0.1, 0.5], [np.nan]])
def test_a_grid_that_is_no_fpr_is_refused(grid):
    with pytest.raises(ValueError, match="FPR grid"):
        tpr_on_grid(roc(np.array([1.0, 0.0]), np.array([True, False])), np.array(grid))


# --- AUC


@fast
@given(worlds())
def test_auc_counts_pairs_and_half_of_the_ties_exactly(world):
    scores, member = world
    wins = naive_wins(scores, member)
    assert auc(scores, member) == float(Fraction(int(2 * wins.sum()), 2 * wins.size))


@fast
@given(worlds())
def test_auc_is_the_area_under_the_roc_with_ties_as_diagonals(world):
    curve = roc(*world)
    assert auc(*world) == pytest.approx(np.trapezoid(curve.tpr, curve.fpr), abs=1e-12)


@fast
@given(worlds())
def test_only_the_order_of_scores_matters(world):
    scores, member = world
    stretched = np.exp(scores) * 3 + 7
    assert auc(stretched, member) == auc(scores, member)
    assert auc_interval(stretched, member) == auc_interval(scores, member)
    assert roc(stretched, member).tpr.tolist() == roc(scores, member).tpr.tolist()


@fast
@given(worlds())
def test_flipped_scores_flip_the_auc_and_its_interval(world):
    scores, member = world
    one, other = auc_interval(scores, member), auc_interval(-scores, member)
    flipped = [1 - other.value, 1 - other.high, 1 - other.low]
    assert flipped == pytest.approx([one.value, one.low, one.high], abs=1e-12)


@fast
@given(worlds())
def test_calling_members_non_members_flips_the_auc(world):
    scores, member = world
    assert auc(scores, ~member) == pytest.approx(1 - auc(scores, member), abs=1e-15)


def test_shuffling_the_records_changes_nothing():
    scores, member = two_gaussians(1, 300, 200, "shuffle")
    scores = scores.round(1)
    order = stream(0, "order").permutation(500)
    assert summarise(scores[order], member[order]) == summarise(scores, member)


# --- closed forms of literature 3.6


@pytest.mark.parametrize("d, truth", [(0.25, 0.5702), (0.5, 0.6382), (1, 0.7602), (2, 0.9214), (4, 0.9977)])
def test_two_gaussians(d, truth):
    n = 40_000
    scores, member = two_gaussians(d, n, n, "table", int(100 * d))
    assert auc(scores, member) == pytest.approx(truth, abs=0.0065 * np.sqrt(truth * (1 - truth)) * 2)
    for fpr in (0.01, 0.001):
        tpr, slope = ndtr(d + ndtri(fpr)), np.exp(-d * ndtri(fpr) - d**2 / 2)
        sd = np.sqrt(tpr * (1 - tpr) / n + slope**2 * fpr * (1 - fpr) / n)  # delta method, literature 3.3
        assert tpr_at_fpr(scores, member, fpr).tpr.value == pytest.approx(tpr, abs=4 * sd)
    best = ndtr(d / 2)  # (1 + max J) / 2
    assert balanced_accuracy(roc(scores, member)) == pytest.approx(best, abs=0.008)


@pytest.mark.parametrize("n_out, truth", [(1, 0.692), (4, 0.737), (64, 0.759)])
def test_offline_difference_with_finitely_many_out_models(n_out, truth):
    """Per-record difficulty cancels; the noise of the mean of n OUT models does not: 3.6 (2)."""
    n = 20_000
    scores, member = two_gaussians(1, n, n, "offline", n_out)
    scores = scores - stream(0, "out mean", n_out).normal(size=2 * n) / np.sqrt(n_out)
    assert auc(scores, member) == pytest.approx(truth, abs=0.008)


def test_few_vulnerable_records_and_many_tied_ones():
    """3.6 (3): a tenth of the records has shift 4, the others score exactly 0: AUC .5909, TPR .0953 at 0.1%.

    Nothing but ties lies beyond FPR .00228 = pi (1 - Phi(d/2)): the TPR stays at .0977 until all are guessed.
    The likelihood ratio of a vulnerable record is negative below d/2, and there it ranks under the ties.
    """
    n, share, d = 200_000, 0.1, 4.0
    scores, member = two_gaussians(d, n, n, "vulnerable")
    vulnerable = stream(0, "who is vulnerable").random(2 * n) < share
    scores = np.where(vulnerable, d * scores - d**2 / 2, 0.0)
    assert auc(scores, member) == pytest.approx(0.5909, abs=0.003)
    curve = roc(scores, member)
    at = tpr_on_grid(curve, np.array([1e-3, 0.01, 0.5]))
    assert at == pytest.approx([0.0953, 0.0977, 0.0977], abs=0.003)
    assert tpr_at_fpr(scores, member, 0.01).fpr.value == pytest.approx(0.00228, abs=0.0004)


@pytest.mark.parametrize("radius", [0.2, 0.5])
def test_unequal_variances_need_a_two_sided_test(radius):
    """3.6 (4): with a narrower IN, the likelihood ratio accepts an interval around x0."""
    mu, s0, s1, n = 1.0, 1.0, 0.5, 40_000
    x0 = mu * s0**2 / (s0**2 - s1**2)
    fpr = ndtr((x0 + radius) / s0) - ndtr((x0 - radius) / s0)
    tpr = ndtr((x0 + radius - mu) / s1) - ndtr((x0 - radius - mu) / s1)
    draws, member = two_gaussians(0, n, n, "unequal")
    x = np.where(member, mu + s1 * draws, s0 * draws)
    log_ratio = -((x - mu) ** 2) / (2 * s1**2) + x**2 / (2 * s0**2)
    achieved = tpr_at_fpr(log_ratio, member, float(fpr))
    assert achieved.tpr.low <= tpr <= achieved.tpr.high
    assert achieved.tpr.value == pytest.approx(tpr, abs=0.02)
    assert tpr_at_fpr(x, member, float(fpr)).tpr.value < tpr - 0.05  # one-sided is worse


@pytest.mark.parametrize("eps, truth", [(0.5, 0.6225), (2.0, 0.8808)])
def test_randomised_response(eps, truth):
    """3.6 (6): the scores are bits, kept with probability q; the AUC is q."""
    n = 40_000
    member = np.arange(2 * n) < n
    kept = stream(0, "response").random(2 * n) < np.exp(eps) / (1 + np.exp(eps))
    assert auc(np.where(kept, member, ~member).astype(float), member) == pytest.approx(truth, abs=0.005)


def test_the_optimal_score_of_a_range_has_its_simulated_auc():
    """3.6 (12): k = 4 points, one of which is shifted by 3 in a member range: AUC .954."""
    n, k, d = 20_000, 4, 3.0
    draws = stream(0, "range").normal(size=(2 * n, k))
    member = np.arange(2 * n) < n
    draws[member, 0] += d
    assert auc(logsumexp(d * draws, axis=1), member) == pytest.approx(0.954, abs=0.004)


# --- a world where nothing leaks


def test_noise_has_an_auc_of_one_half_on_average():
    """The area under the convex hull would be 0.573 here: interpolating finds leaks in noise."""
    values = [auc(*two_gaussians(0, 50, 50, "noise", run)) for run in range(400)]
    standard_error = np.sqrt(101 / (12 * 50 * 50) / 400)  # of Mann-Whitney under the null
    assert abs(np.mean(values) - 0.5) < 4 * standard_error


def test_noise_alarms_at_about_the_nominal_rate():
    runs = 1000
    intervals = [auc_interval(*two_gaussians(0, 200, 200, "alarm", run)) for run in range(runs)]
    alarms = 1 - covered(intervals, 0.5)
    assert 0.05 - 0.021 < alarms < at_most(0.05, runs)


# --- AUC intervals


@fast
@given(worlds(largest=30))
def test_the_interval_is_delongs_on_the_logit_scale(world):
    scores, member = world
    estimate = auc_interval(scores, member, level=0.9)
    variance = naive_delong(scores, member=member)[0, 0] if min(member.sum(), (~member).sum()) > 1 else 0.0
    if variance == 0:
        return
    half = ndtri(0.95) * np.sqrt(variance) / (estimate.value * (1 - estimate.value))
    odds = np.exp(np.log(estimate.value / (1 - estimate.value)) + np.array([-half, half]))
    assert [estimate.low, estimate.high] == pytest.approx(odds / (1 + odds), rel=1e-9)


@pytest.mark.parametrize("d, n, floor", [(0.2, 500, 0.93), (1, 200, 0.93), (3, 50, 0.92)])
def test_the_auc_interval_covers(d, n, floor):
    """Literature 3.2. Without the logit, 95% is 84% at d = 3 and n = 50: the last assertion shows it."""
    runs, truth = 1000, float(ndtr(d / np.sqrt(2)))
    worlds = [two_gaussians(d, n, n, "auc coverage", n, run) for run in range(runs)]
    intervals = [auc_interval(*world) for world in worlds]
    assert covered(intervals, truth) >= floor
    assert covered(intervals, truth) <= at_most(0.96, runs)  # a bound of [0, 1] covers too
    if d == 3:
        variances = [naive_delong(scores, member=member)[0, 0] for scores, member in worlds]
        plain = [abs(x.value - truth) <= ndtri(0.975) * np.sqrt(v) for x, v in zip(intervals, variances, strict=True)]
        assert np.mean(plain) < 0.90


@pytest.mark.parametrize("members, non_members", [(5, 5), (30, 8), (8, 30), (1000, 1000)])
def test_perfect_separation_is_not_certainty(members, non_members):
    """At AUC = 1 the lower limit is that of min(members, non-members) won pairs of as many."""
    member = np.arange(members + non_members) < members
    perfect = auc_interval(member.astype(float), member)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(clopper_pearson(min(members, non_members), min(members, non_members))[0])
    inverted = auc_interval(-member.astype(float), member)
    assert [inverted.value, inverted.low, inverted.high] == pytest.approx([0, 0, 1 - perfect.low])


@pytest.mark.parametrize("n", [2, 10, 40])
@pytest.mark.parametrize("chance", [0.01, 0.5, 0.8, 0.85, 0.9, 0.91, 0.92, 0.95, 0.99, 0.999])
def test_perfect_separation_rarely_misleads_where_it_says_least(n, chance):
    """The world in which it is likeliest: non-members all at 0, members above with probability `chance`, else below.

    The AUC is `chance`, and only the number of members above is random: an exact sum over perfect outcomes.
    """
    member = np.arange(2 * n) < n
    misled = 0.0
    for scores, probability in ((member * 1.0, chance**n), (member * -1.0, (1 - chance) ** n)):
        estimate = auc_interval(scores, member)
        misled += probability * (not estimate.low <= chance <= estimate.high)
    assert misled <= 0.025


def test_scores_that_are_all_tied_are_not_certain_to_be_useless():
    estimate = auc_interval(np.zeros(60), np.arange(60) < 30)
    unseen = 1 - 0.025 ** (1 / 30)  # of 30 disjoint pairs, none was untied
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx([0.5, 0.5 - unseen / 2, 0.5 + unseen / 2])


@fast
@given(worlds(), st.sampled_from([0.5, 0.9, 0.999]))
def test_the_interval_stays_in_0_to_1_holds_the_value_and_has_a_width(world, level):
    estimate = auc_interval(*world, level=level)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


def test_one_member_says_nothing():
    estimate = auc_interval(np.array([0.5, 0.0, 1.0, 2.0]), np.array([True, False, False, False]))
    assert (estimate.low, estimate.high) == (0, 1)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_that_is_no_probability_is_refused(level):
    scores, member = two_gaussians(1, 9, 9)
    for measure in (auc_interval, summarise):
        with pytest.raises(ValueError, match="confidence level"):
            measure(scores, member, level=level)


# --- difference of two AUCs


@fast
@given(worlds(largest=30), st.integers(0, 2**31))
def test_the_paired_difference_is_delongs(world, seed):
    scores, member = world
    if min(member.sum(), (~member).sum()) < 2:
        return
    other = scores + stream(seed).integers(-9, 9, size=scores.size)
    estimate = paired_auc_difference(scores, other, member)
    assert estimate.value == pytest.approx(auc(scores, member) - auc(other, member), abs=1e-12)
    covariance = naive_delong(scores, other, member=member)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance > 1e-12:
        half = ndtri(0.975) * np.sqrt(variance)
        assert estimate.low == pytest.approx(max(estimate.value - half, -1), abs=1e-9)
        assert estimate.high == pytest.approx(min(estimate.value + half, 1), abs=1e-9)
    swapped = paired_auc_difference(other, scores, member)
    assert [-swapped.value, -swapped.high, -swapped.low] == pytest.approx(
        [estimate.value, estimate.low, estimate.high], abs=1e-12
    )


def test_the_paired_interval_covers_and_uses_the_pairing():
    """Two attacks that see the same signal, one through more noise: the errors are shared."""
    runs, n = 500, 200
    truth = float(ndtr(1 / np.sqrt(2)) - ndtr(1 / np.sqrt(2 * 1.25)))
    paired, widths = [], []
    for run in range(runs):
        scores, member = two_gaussians(1, n, n, "paired", run)
        noisy = scores + 0.5 * stream(0, "noise", run).normal(size=2 * n)
        paired.append(paired_auc_difference(scores, noisy, member))
        a, b = auc_interval(scores, member), auc_interval(noisy, member)
        widths.append((paired[-1].high - paired[-1].low) / np.hypot(a.high - a.low, b.high - b.low))
    assert 0.92 <= covered(paired, truth) <= at_most(0.95, runs)
    assert np.mean(widths) < 0.6  # of what treating them as independent would give


def test_attacks_that_rank_alike_differ_by_nothing_that_was_seen():
    scores, member = two_gaussians(1, 100, 50, "alike")
    estimate = paired_auc_difference(scores, np.exp(scores), member)
    unseen = 1 - 0.025 ** (1 / 50)
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx([0, -unseen, unseen])


def test_a_difference_stays_within_minus_1_and_1():
    scores = np.array([3.0, 2.0, 1.5, 1.0, 0.5, 0.0])
    member = np.array([True, True, True, False, False, False])
    opposite = paired_auc_difference(scores, -scores, member)
    assert (opposite.value, opposite.high) == (1, 1)
    assert opposite.low < 1
    lone = paired_auc_difference(scores[2:], -scores[2:], member[2:])  # a single member
    assert (lone.low, lone.high) == (-1, 1)


# --- proportions


@pytest.mark.parametrize(
    "n, limit", [(300, 0.00994), (1000, 0.00299), (10_000, 2.995e-4), (25_000, 1.198e-4), (50_000, 5.99e-5)]
)
def test_no_false_positive_of_n_certifies(n, limit):
    """Regression pins of literature 6."""
    assert certified_fpr(n) == pytest.approx(limit, rel=2e-3)
    assert clopper_pearson(0, n, side="upper") == (0.0, pytest.approx(certified_fpr(n)))


@pytest.mark.parametrize("fpr, n", [(0.01, 299), (0.001, 2995), (1e-4, 29_956), (1e-5, 299_572)])
def test_the_fewest_non_members_that_certify_an_fpr(fpr, n):
    assert certified_fpr(n) <= fpr < certified_fpr(n - 1)


def test_the_certified_fpr_holds_though_the_threshold_is_their_own_maximum():
    runs, n = 2000, 100
    highest = stream(0, "maxima").random((runs, n)).max(axis=1)  # uniform scores: the FPR above x is 1 - x
    wrong = np.mean(1 - highest > certified_fpr(n, level=0.9))
    assert 0.08 < wrong < at_most(0.1, runs)


@pytest.mark.parametrize("k, n", [(0, 7), (1, 7), (3, 7), (6, 7), (7, 7), (0, 1), (1, 1), (50, 1000)])
@pytest.mark.parametrize("side, alternative", [("two", "two-sided"), ("lower", "greater"), ("upper", "less")])
def test_clopper_pearson_is_the_exact_test_inverted(k, n, side, alternative):
    exact = binomtest(k, n, alternative=alternative).proportion_ci(0.9, method="exact")
    assert clopper_pearson(k, n, level=0.9, side=side) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize("n", [1, 5, 30])
@pytest.mark.parametrize("side", ["two", "lower", "upper"])
def test_clopper_pearson_covers_every_proportion(n, side):
    """By summing the binomial distribution, not by simulation."""
    k = np.arange(n + 1)
    low, high = clopper_pearson(k, n, level=0.9, side=side)
    chances = np.array([float(comb(n, int(i))) for i in k])
    for p in np.linspace(0, 1, 201):
        assert (chances * p**k * (1 - p) ** (n - k))[(low <= p) & (p <= high)].sum() >= 0.9 - 1e-12


def test_clopper_pearson_broadcasts_and_mirrors():
    low, high = clopper_pearson(np.arange(6), np.array([[5], [10]]))
    assert low.shape == high.shape == (2, 6)
    np.testing.assert_allclose(low[0], 1 - high[0, ::-1], atol=1e-12)


@pytest.mark.parametrize("k, n", [(-1, 5), (6, 5), (0, 0), (np.nan, 5)])
def test_counts_that_are_no_proportion_are_refused(k, n):
    with pytest.raises(ValueError, match="0 <= k <= n"):
        clopper_pearson(k, n)


def test_bad_arguments_of_proportions_are_refused():
    with pytest.raises(ValueError, match="'two', 'lower' or 'upper'"):
        clopper_pearson(1, 2, side="both")
    with pytest.raises(ValueError, match="at least 1 non-member"):
        certified_fpr(0)


def test_precision_of_a_guess_depends_on_how_rare_members_are():
    np.testing.assert_allclose(ppv(0.1, 0.01, np.array([0.5, 0.1, 0.01])), [10 / 11, 10 / 19, 10 / 109])
    assert ppv(0.3, 0.0, 0.01) == 1
    assert np.isnan(ppv(0.0, 0.0, 0.5))


# --- TPR at FPR


@fast
@given(worlds(), st.sampled_from([0.0, 0.01, 0.2, 0.25, 0.5, 1.0]))
def test_the_operating_point_is_the_best_that_is_achieved_within_the_fpr(world, nominal):
    scores, member = world
    candidates = [
        ((scores[member] >= threshold).mean(), (scores[~member] >= threshold).mean()) for threshold in [np.inf, *scores]
    ]
    point = tpr_at_fpr(scores, member, nominal)
    assert (point.tpr.value, point.fpr.value) == max((tpr, fpr) for tpr, fpr in candidates if fpr <= nominal)
    assert point.tpr.value == (scores[member] >= point.threshold).mean()
    assert point.fpr.value == (scores[~member] >= point.threshold).mean()
    assert point.nominal_fpr == nominal
    for estimate in (point.tpr, point.fpr):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high
    count = round(point.fpr.value * (~member).sum())
    assert (point.fpr.low, point.fpr.high) == clopper_pearson(count, (~member).sum())


@pytest.mark.parametrize("nominal", [1e-6, 1e-3, 0.01, 0.1, 0.37, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("members, non_members", [(50, 400), (400, 60)])
def test_the_tpr_interval_is_order_statistics_x_clopper_pearson(nominal, members, non_members):
    """By the definition: two ranks of non-members, and the members strictly above them, at error/4 each."""
    scores, member = two_gaussians(1, members, non_members, "definition")
    highest = np.sort(scores[~member])[::-1]
    few, many = binom.ppf([0.0125, 0.9875], non_members, nominal).astype(int)
    surely = (scores[member] > highest[few - 1]).sum() if few > 0 else 0
    at_best = (scores[member] > highest[many]).sum() if many < non_members else members
    low = binomtest(surely, members).proportion_ci(0.975, method="exact").low  # two-sided: 0.0125 on this side
    high = binomtest(at_best, members).proportion_ci(0.975, method="exact").high
    tpr = tpr_at_fpr(scores, member, nominal).tpr
    assert [tpr.low, tpr.high] == pytest.approx([low, high], abs=1e-9)


def test_at_zero_fpr_the_tpr_interval_is_that_of_the_threshold_reached():
    scores, member = two_gaussians(2, 100, 100, "at zero")
    found = int((scores[member] > scores[~member].max()).sum())
    tpr = tpr_at_fpr(scores, member, 0.0).tpr
    assert found > 0
    assert (tpr.value, tpr.low, tpr.high) == (found / 100, *clopper_pearson(found, 100))


@pytest.mark.parametrize(
    "nominal, non_members, resolvable",
    [(0.01, 999, False), (0.01, 1000, True), (0.001, 10_000, True), (1e-4, 99_999, False), (1e-4, 100_000, True)],
)
def test_a_tpr_is_resolvable_from_ten_expected_false_positives(nominal, non_members, resolvable):
    member = np.arange(non_members + 5) < 5
    assert tpr_at_fpr(np.arange(member.size, dtype=float), member, nominal).resolvable is resolvable


def test_zero_fpr_is_never_resolvable():
    member = np.arange(300_000) < 10
    point = tpr_at_fpr(member.astype(float), member, 0.0)
    assert not point.resolvable
    assert (point.fpr.value, point.fpr.low) == (0, 0)
    assert point.fpr.high > 0


def naive_tpr_interval(scores, member, nominal):
    """Clopper-Pearson at the empirical threshold, as if it were the true one."""
    tpr = tpr_at_fpr(scores, member, nominal).tpr.value
    return clopper_pearson(round(tpr * member.sum()), int(member.sum()))


@pytest.mark.parametrize(
    "d, n, nominal, runs, naive_at_most",
    [
        (1.0, 1000, 0.01, 500, 0.75),
        (2.0, 5000, 0.01, 300, 0.65),
        (0.0, 5000, 0.01, 300, 0.92),
        (2.0, 10_000, 0.001, 200, 0.5),
    ],
)
def test_the_tpr_interval_covers_and_ignoring_the_threshold_does_not(d, n, nominal, runs, naive_at_most):
    """Literature 3.3: the naive interval covers 24-76%."""
    truth = ndtr(d + ndtri(nominal))
    honest = naive = 0
    for run in range(runs):
        scores, member = two_gaussians(d, n, n, "tpr coverage", n, run)
        interval = tpr_at_fpr(scores, member, nominal).tpr
        low, high = naive_tpr_interval(scores, member, nominal)
        honest += interval.low <= truth <= interval.high
        naive += low <= truth <= high
    assert honest / runs >= 0.94
    assert naive / runs < naive_at_most


@pytest.mark.parametrize("step, nominal", [(0.25, 0.0668), (0.5, 0.0228)])
def test_the_tpr_interval_covers_where_scores_are_coarse(step, nominal):
    """Scores rounded down to a grid: the true ROC has few points, and some samples reach one more than is allowed."""
    runs, n, d = 300, 2000, 1.0
    allowed = np.arange(-4, 8, step)
    truth = ndtr(d - allowed[ndtr(-allowed) <= nominal][0])
    intervals = []
    for run in range(runs):
        scores, member = two_gaussians(d, n, n, "coarse", run)
        intervals.append(tpr_at_fpr(np.floor(scores / step) * step, member, nominal).tpr)
    assert covered(intervals, truth) >= 0.94


def test_the_tpr_at_no_false_positives_is_that_of_the_threshold_reached():
    runs, n = 500, 200
    hits = 0
    for run in range(runs):
        scores, member = two_gaussians(2, n, n, "zero", run)
        interval = tpr_at_fpr(scores, member, 0.0, level=0.9).tpr
        hits += interval.low <= ndtr(2 - scores[~member].max()) <= interval.high
    assert hits / runs >= 1 - at_most(0.1, runs)


def test_below_what_can_be_resolved_the_interval_says_so():
    """1000 non-members say next to nothing of 1 in 10,000: the TPR there may be 0."""
    scores, member = two_gaussians(3, 1000, 1000, "unresolved")
    point = tpr_at_fpr(scores, member, 1e-4)
    assert not point.resolvable
    assert point.tpr.low == 0
    assert point.tpr.value == tpr_at_fpr(scores, member, 0.0).tpr.value


def test_more_records_tell_more():
    widths = []
    for n in (1000, 4000, 16_000):
        interval = tpr_at_fpr(*two_gaussians(1, n, n, "width"), 0.01).tpr
        widths.append(interval.high - interval.low)
    assert widths[0] > 1.6 * widths[1] > 1.6**2 * widths[2]


def test_the_band_is_the_interval_at_each_fpr():
    scores, member = two_gaussians(1, 300, 500, "band")
    low, high = confidence_band(scores, member, GRID, level=0.9)
    points = [tpr_at_fpr(scores, member, float(fpr), level=0.9).tpr for fpr in GRID]
    assert low.tolist() == [point.low for point in points]
    assert high.tolist() == [point.high for point in points]


def test_the_band_rises_holds_the_curve_and_ends_at_1():
    scores, member = two_gaussians(1, 300, 500, "band")
    low, high = confidence_band(scores, member, GRID)
    curve = tpr_on_grid(roc(scores, member), GRID)
    assert (low <= curve).all()
    assert (curve <= high).all()
    for limit in (low[1:], high[1:]):  # at 0 the question is another one, see tpr_at_fpr
        assert (np.diff(limit) >= 0).all()
    assert high[-1] == 1
    assert low[-1] > 0.98


@pytest.mark.parametrize("nominal", [-0.1, 1.1, np.nan])
def test_an_fpr_that_is_no_probability_is_refused(nominal):
    with pytest.raises(ValueError, match="nominal FPR"):
        tpr_at_fpr(np.array([0.0, 1.0]), np.array([True, False]), nominal)


# --- summaries


def test_the_summary_is_its_parts():
    scores, member = two_gaussians(1, 500, 700, "summary")
    scores = scores.round(2)
    summary = summarise(scores, member, level=0.9, nominal_fprs=(0.1, 0.0))
    assert (summary.members, summary.non_members, summary.level) == (500, 700, 0.9)
    assert summary.auc == auc_interval(scores, member, level=0.9)
    assert summary.at_fpr == tuple(tpr_at_fpr(scores, member, fpr, level=0.9) for fpr in (0.1, 0.0))
    assert summary.balanced_accuracy == balanced_accuracy(roc(scores, member))
    assert summary.certified_fpr == certified_fpr(700, level=0.9)
    assert [point.nominal_fpr for point in summarise(scores, member).at_fpr] == [0.01, 0.001, 0.0001, 0.0]


@fast
@given(worlds())
def test_balanced_accuracy_is_the_best_of_all_thresholds(world):
    scores, member = world
    best = max(
        ((scores[member] >= threshold).mean() + (scores[~member] < threshold).mean()) / 2
        for threshold in [np.inf, *scores]
    )
    assert balanced_accuracy(roc(scores, member)) == pytest.approx(best)


def test_the_interval_over_models_is_students():
    values = np.array([0.61, 0.64, 0.58, 0.66])
    expected = t.interval(0.9, df=3, loc=values.mean(), scale=values.std(ddof=1) / 2)
    estimate = across_models(values, level=0.9)
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx([values.mean(), *expected])


@pytest.mark.parametrize("values", [[0.7], [0.0, 0.0, 0.0]])
def test_models_without_a_spread_say_nothing_about_other_models(values):
    estimate = across_models(np.array(values))
    assert estimate.value == values[0]
    assert np.isnan(estimate.low)
    assert np.isnan(estimate.high)


def test_the_interval_over_models_stays_in_0_to_1():
    assert across_models(np.array([0.9, 1.0])).high == 1
    assert across_models(np.array([0.0, 0.1])).low == 0


@pytest.mark.parametrize("values", [[], [0.5, np.nan]])
def test_models_without_a_value_are_refused(values):
    with pytest.raises(ValueError, match="each of at least 1 model"):
        across_models(np.array(values, dtype=float))


def test_intervals_over_models_cover_other_models_and_intervals_over_records_do_not():
    """Literature 3.2: what a model leaks varies, here with sd 0.1 in d. More records of it do not tell by how much."""
    runs, models, n = 300, 5, 2000
    truth = float(ndtr(1 / np.sqrt(2 + 0.1**2)))  # E Phi(D / sqrt 2), D ~ N(1, 0.1^2)
    over_models, over_records = [], []
    for run in range(runs):
        shifts = stream(0, "models", run).normal(1, 0.1, size=models)
        worlds = [two_gaussians(shift, n, n, "model", run, k) for k, shift in enumerate(shifts)]
        over_models.append(across_models(np.array([auc(*world) for world in worlds])))
        over_records.append(auc_interval(*worlds[0]))
    assert 1 - at_most(0.05, runs) <= covered(over_models, truth) <= at_most(0.95, runs)
    assert covered(over_records, truth) < 0.65


@pytest.mark.parametrize("correlation", [0.9, -0.5])
@pytest.mark.parametrize("models", [4, 5, 16])
def test_intervals_over_pairs_hold_where_twins_resemble_or_oppose_each_other(models, correlation):
    """5 models: two pairs and one without its twin. Taking twins as independent errs, either way."""
    runs, pairs = 2000, np.arange(models) // 2
    draw = stream(0, "twins", models, str(correlation))
    first, other = draw.standard_normal((2, runs, (models + 1) // 2))
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    worlds = 0.7 + 0.02 * np.stack([first, second], axis=2).reshape(runs, -1)[:, :models]
    held = covered([across_models(world, pairs) for world in worlds], 0.7)
    assert abs(held - 0.95) < (0.015 if models % 2 == 0 else 0.03)
    independent = covered([across_models(world) for world in worlds], 0.7)
    assert independent < 0.9 if correlation > 0 else independent > 0.975


def test_a_pair_counts_once_whichever_of_its_models_come_first():
    values = np.array([0.6, 0.7, 0.9])
    found = across_models(values, np.array([3, 3, 0]))
    expected = across_models(np.array([0.65, 0.9]))
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    again = across_models(values[::-1].copy(), np.array([0, 3, 3]))
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
