"""QMIA: with the true distribution it is the best test; its scores are normal scores; two heads, one scale."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, norm

import modules.mia  # noqa: F401  (fills the registry)
from core.registry import ATTACKS
from core.rng import stream
from core.types import Evidence
from modules.mia.qmia import false_positive_rates, normal_score, qmia, signal_of
from tests.modules.mia.test_every_attack import attacked
from tests.worlds import auc_error, gaussian_world, naive_auc, naive_tpr, oracle_auc, oracle_tpr


def uneven_world(seed, head, shift=1.0, points=20_000):
    """Records whose log-odds have means and deviations of their own, which a perfect regression would tell."""
    draw = stream(seed, "uneven records")
    mean, deviation = 3 * draw.standard_normal(points), np.exp(draw.uniform(-2, 2, points))
    member = draw.permutation(points) < points // 2
    value = mean + deviation * (draw.standard_normal(points) + shift * member)
    population = draw.standard_normal((1, 2000))
    settings = ATTACKS.bind("QMIA", {"head": head})
    rates = false_positive_rates(2000, settings["count"], settings["smallest_fpr"])
    rows = [mean, deviation] if head == "gaussian" else mean + deviation * norm.isf(rates)[:, None]
    none = np.zeros((0, len(rows), points)), np.zeros((0, points), dtype=bool)
    silent = np.zeros((len(rows), 0)), np.zeros((0, len(rows), 0))
    told = Evidence(np.stack(list(rows)), *none, *silent)
    empty = np.zeros((0, 1, points)), none[1], population, np.zeros((0, 1, 2000))
    return Evidence(value[None], *empty, also={signal_of(settings).name: told}), member


@pytest.mark.parametrize("head", ["gaussian", "pinball"])
def test_with_the_true_distribution_qmia_is_the_best_test_and_its_score_is_standard_normal(head):
    evidence, member = uneven_world(1, head)
    scores = qmia(evidence, head=head)
    assert naive_auc(scores, member) == pytest.approx(oracle_auc(1.0), abs=3 * auc_error(member))
    assert naive_tpr(scores, member, 0.05) == pytest.approx(oracle_tpr(1.0, 0.05), abs=0.02)
    assert kstest(scores[~member], norm.cdf).pvalue > 0.001
    loss = ATTACKS["LOSS"](evidence)
    assert naive_auc(loss, member) < oracle_auc(1.0) - 0.1


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("head", ["gaussian", "pinball"])
def test_one_threshold_is_one_false_positive_rate_for_all_records(head, alpha):
    evidence, member = uneven_world(2, head)
    accused = qmia(evidence, head=head) >= norm.isf(alpha)
    hard = dict(zip(("easy", "hard"), (evidence.target[0] > 0, evidence.target[0] <= 0), strict=True))
    n = (~member).sum()
    assert accused[~member].mean() == pytest.approx(alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / n))
    assert all(accused[~member & these].any() for these in hard.values())


def test_the_gaussian_head_is_a_standard_score_record_by_record():
    evidence, _ = uneven_world(3, "gaussian", points=50)
    (told,) = evidence.also.values()
    expected = [(v - m) / s for v, m, s in zip(evidence.target[0], *told.target, strict=True)]
    np.testing.assert_allclose(qmia(evidence), expected, rtol=1e-12)


def test_the_pinball_score_is_linear_between_quantiles_and_beyond_them():
    rates = np.array([0.9, 0.5, 0.1])
    z = norm.isf(rates)
    quantiles = np.tile(np.array([[1.0], [2.0], [4.0]]), 7)
    value = np.array([1.0, 1.5, 2.0, 3.0, 4.0, 5.0, -2.0])
    slope = (z[2] - z[0]) / 3
    expected = [z[0], z[0] / 2, 0.0, z[2] / 2, z[2], z[2] + slope, z[0] - 3 * slope]
    np.testing.assert_allclose(normal_score(value, quantiles, rates), expected, atol=1e-12)


def test_quantiles_that_cross_are_sorted_and_those_that_meet_are_a_step():
    draw = stream(4, "crossing")
    rates, quantiles = false_positive_rates(1000, 9, 0.01), draw.standard_normal((9, 400))
    quantiles[:, :100] = quantiles[:1, :100]  # all of them meet
    quantiles[4:6, 100:200] = 0.3
    grid = np.sort(draw.standard_normal(30))
    scores = np.array([normal_score(np.full(400, v), quantiles, rates) for v in grid])
    assert (np.diff(scores, axis=0) > 0).all() and np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, [normal_score(np.full(400, v), quantiles[::-1], rates) for v in grid])


def test_rates_are_log_spaced_and_never_beyond_what_the_population_can_show():
    rates = false_positive_rates(10_000, 11, 0.001)
    assert rates[0] == pytest.approx(0.9) and rates[-1] == pytest.approx(0.001) and len(rates) == 11
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(0.001 / 0.9) / 10)
    assert false_positive_rates(100, 11, 0.001)[-1] == pytest.approx(0.05)  # 5 of 100 records lie above
    assert (np.diff(false_positive_rates(3, 11, 0.001)) < 0).all()


def test_records_that_tell_nothing_leave_the_order_of_loss():
    evidence, _ = gaussian_world(5, 300, 1)
    order = np.argsort(ATTACKS["LOSS"](evidence), kind="stable")
    for head in ("gaussian", "pinball"):
        assert np.array_equal(np.argsort(attacked("QMIA", {"head": head}, evidence), kind="stable"), order)


def test_a_model_without_a_regression_is_an_error():
    evidence, _ = uneven_world(6, "gaussian", points=50)
    told = {name: replace(one, target=np.full_like(one.target, np.nan)) for name, one in evidence.also.items()}
    with pytest.raises(ValueError, match="regressions are made for the targets"):
        qmia(replace(evidence, also=told))
