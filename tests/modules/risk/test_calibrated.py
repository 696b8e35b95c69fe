"""The false-positive rate of each record by itself, from few references: exact where nulls are Gaussian."""

import numpy as np
import pytest
from scipy.stats import invgamma, kstest, t

from core.rng import stream
from modules.risk.calibrated import calibrated, tried
from modules.risk.records import discoveries, named_members


def world(seed, n_points=4000, pairs=4, shift=0.0, d0=6.0, member_share=0.5):
    """Scores N(mu_j, sigma_j^2) of models without record j, raised by `shift` sigma_j where it was trained on."""
    draw = stream(seed, "calibrated world")
    mu = 3 * draw.standard_normal(n_points)
    variance = (
        np.ones(n_points) if np.isinf(d0) else invgamma.rvs(d0 / 2, scale=d0 / 2, size=n_points, random_state=draw)
    )
    halves = np.array([draw.permutation(n_points) < n_points // 2 for _ in range(pairs)])
    trained_on = np.stack([halves, ~halves], axis=1).reshape(2 * pairs, n_points)
    member = draw.random(n_points) < member_share
    score = lambda inside: mu + np.sqrt(variance) * (draw.standard_normal(inside.shape) + shift * inside)  # noqa: E731
    return score(member), score(trained_on), trained_on, member


@pytest.mark.parametrize("pairs", [2, 4, 8, 32])
@pytest.mark.parametrize("d0", [3.0, 10.0, np.inf])
def test_p_values_of_non_members_are_uniform_whatever_the_record(pairs, d0):
    target, references, trained_on, member = world(1, 20_000, pairs, d0=d0)
    p = calibrated(target, references, trained_on).p_values[~member]
    assert kstest(p, "uniform").pvalue > 1e-3
    for level in (0.1, 0.01):
        assert np.mean(p <= level) == pytest.approx(
            level, abs=4 * np.sqrt(level / len(p)) + (0.3 * level if pairs == 2 else 0)
        )


def test_mean_and_spread_of_few_references_taken_for_the_truth_accuse_too_often():
    """What the correction is for: at 4 OUT references and a nominal 1% it is 7%."""
    target, references, trained_on, _ = world(2, 40_000, 4, d0=np.inf, member_share=0.0)
    out = np.where(trained_on, np.nan, references)
    z = (target - np.nanmean(out, axis=0)) / np.nanstd(out, axis=0, ddof=1)
    naive = np.mean(z >= 2.3263)
    assert naive == pytest.approx(t.sf(2.3263 / np.sqrt(1.25), 3), abs=0.005) and naive > 0.06
    p = calibrated(target, references, trained_on).p_values
    assert np.mean(p <= 0.01) == pytest.approx(0.01, abs=0.002)


def test_one_threshold_for_all_records_is_right_on_average_and_wrong_on_each():
    target, references, trained_on, _ = world(3, 20_000, 8, member_share=0.0)
    pooled = references[~trained_on]
    accused = target >= np.quantile(pooled, 0.99)
    assert accused.mean() == pytest.approx(0.01, abs=0.003)  # on average
    high = np.where(trained_on, -np.inf, references).max(axis=0) >= np.quantile(pooled, 0.99)
    assert accused[high].mean() > 0.2  # of those that score high on every model
    p = calibrated(target, references, trained_on).p_values
    # Chosen by their own OUT scores, the null is no longer the null; over all of them it holds.
    assert np.mean(p <= 0.01) == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize(("shift", "pairs"), [(3.0, 4), (4.0, 2), (3.0, 16)])
def test_lists_by_these_p_values_have_at_most_the_stated_share_of_false_names(shift, pairs):
    false = []
    for seed in range(12):
        target, references, trained_on, member = world(100 + seed, 2000, pairs, shift=shift, d0=8.0)
        named = discoveries(calibrated(target, references, trained_on).p_values, 0.1)
        false.append((named & ~member).sum() / max(named.sum(), 1))
    assert 0 < np.mean(false) <= 0.1 * 0.5 + 3 * np.std(false) / np.sqrt(12)  # half are non-members: q times that


def test_with_a_null_far_from_gaussian_the_p_values_fail_and_the_list_against_known_non_members_holds():
    """Heavy tails: p-values of the t accuse too often; ranked against known non-members they are right again."""
    below, false, tails = [], [], []
    for seed in range(30):
        target, references, trained_on, member = world(200 + seed, 1500, 8, shift=6.0, d0=np.inf)
        draw = stream(300 + seed, "tails")
        target = np.where(
            draw.random(len(target)) < 0.05, target + 8 * np.abs(draw.standard_cauchy(len(target))), target
        )
        found = calibrated(target, references, trained_on)
        below.append(np.mean(found.p_values[~member] <= 1e-4))
        named = named_members(found.z, member, q=0.1, draw=stream(400 + seed, "half"))
        false.append(named.false_share)
        by_t = discoveries(found.p_values, 0.1)
        tails.append((by_t & ~member).sum() / max(by_t.sum(), 1))
    assert np.mean(below) > 100e-4
    assert np.mean(false) <= 0.1 + 3 * np.std(false) / np.sqrt(30)


def test_a_list_of_calibrated_scores_names_more_than_one_of_raw_scores():
    target, references, trained_on, member = world(4, 6000, 8, shift=4.0)
    raw, own = (
        named_members(scores, member, q=0.1, draw=stream(4, "half"))
        for scores in (target, calibrated(target, references, trained_on).z)
    )
    assert len(own.indices) > 5 * max(len(raw.indices), 1)
    assert len(own.indices) > 0.5 * member.sum()


def test_variances_that_follow_the_size_are_found_to():
    """A mean of k scores varies as 1 / k: with few references a single large record set would else look extreme."""
    draw = stream(5, "sizes")
    size = draw.integers(1, 40, 8000)
    sd = 1 / np.sqrt(size)
    trained_on = np.tile([[True], [False]], (3, len(size)))
    target, references = sd * draw.standard_normal(len(size)), sd * draw.standard_normal((6, len(size)))
    p, blind = (calibrated(target, references, trained_on, size=s).p_values for s in (size, None))
    for part in (size <= 2, size >= 30):
        assert np.mean(p[part] <= 0.02) == pytest.approx(0.02, abs=4 * np.sqrt(0.02 / part.sum()))
    assert np.mean(blind[size <= 2] <= 0.02) > 0.03


def test_what_was_always_or_never_left_out_and_what_never_differs():
    target = np.array([1.0, 2.0, 3.0])
    references = np.array([[1.0, 0.0, 0.0], [1.0, 0.5, 9.0], [1.0, -0.5, 9.0]])
    trained_on = np.array([[False, False, True]] * 3)
    found = calibrated(target, references, trained_on)
    assert np.isnan(found.p_values[2]) and np.isfinite(found.p_values[:2]).all()
    same = calibrated(np.array([1.0, 2.0]), np.ones((3, 2)), np.zeros((3, 2), bool))
    assert same.p_values[0] == 0.5 and same.p_values[1] == 0
    alone = calibrated(target[:1], references[:1, :1], np.zeros((1, 1), bool))
    assert np.isnan(alone.p_values).all()  # one reference shows no spread


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_on_rehearsals_calibration_is_tried_where_the_truth_is_known(shift):
    _, references, trained_on, _ = world(6, 6000, 6, shift=shift)
    trial = tried(references, trained_on, 0.01)
    assert trial.realised_fpr == pytest.approx(0.01, abs=0.004)
    if shift:
        assert trial.calibrated_tpr > 0.35 and trial.calibrated_tpr > 3 * trial.raw_tpr
    else:
        assert max(trial.calibrated_tpr, trial.raw_tpr) < 0.03
    assert tried(references[:6], trained_on[:6], 0.01) is not None
    assert tried(references[:4], trained_on[:4], 0.01) is None  # one pair is left, of which one saw the record


def test_a_references_twin_has_no_say_in_its_trial():
    """Its membership is the reference's own, inverted."""
    _, references, trained_on, _ = world(7, 500, 4)
    changed = references.copy()
    changed[1] += 100  # the twin of the only one that is tried
    assert tried(references, trained_on, 0.1, limit=1) == tried(changed, trained_on, 0.1, limit=1)
    changed[2] += 100
    assert tried(references, trained_on, 0.1, limit=1) != tried(changed, trained_on, 0.1, limit=1)
