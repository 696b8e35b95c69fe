"""Regressions for QMIA: in a world where difficulty and spread depend on the record, their rates are what they say."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from core.rng import stream
from core.types import Records
from modules.mia.qmia import false_positive_rates, normal_score
from tests.worlds import auc_error, naive_auc, oracle_auc
from trainers.quantile import boosted_gaussian, boosted_quantiles, folds_of
from trainers.quantile_net import convnet
from trainers.resident import Resident

ALPHAS = np.array([0.02, 0.05, 0.1, 0.5])
P, N = 1000, 10_000


def truth(x):
    """Mean and deviation of a non-member's signal: both depend on the record, and on its category."""
    return 2 * np.sin(5 * x[:, 0]) + 2 * (x[:, 2] == 3), np.exp(-1 + 2 * x[:, 1])


@pytest.fixture(scope="module")
def uneven():
    draw = stream(1, "uneven")
    x = np.hstack([draw.random((P + N, 2)), draw.integers(0, 5, (P + N, 1))])
    mean, deviation = truth(x)
    return x, mean + deviation * draw.standard_normal(P + N), mean, deviation


CATEGORICAL = np.array([False, False, True])


def scores(head, x, value, ask, given):
    draw = stream(2, "folds")
    if head == "gaussian":
        (mean, deviation), _ = boosted_gaussian(x, CATEGORICAL, value, ask, draw)
        return (given - mean) / deviation
    rates = false_positive_rates(len(value), 7, 0.02)
    quantiles, _ = boosted_quantiles(x, CATEGORICAL, value, ask, draw, 1 - rates)
    return normal_score(given, quantiles, rates)


@pytest.mark.parametrize("head", ["gaussian", "pinball"])
def test_non_members_lie_above_the_predicted_quantile_as_often_as_they_should(uneven, head):
    """And members are found almost as if the truth were known, where LOSS finds little."""
    x, value, _, deviation = uneven
    outside = scores(head, x[:P], value[:P], x[P:], value[P:])
    above = np.array([(outside > norm.isf(alpha)).mean() for alpha in ALPHAS])
    # Of a quantile fitted to P records, the rate varies by sqrt(alpha (1 - alpha) / P).
    assert (abs(above - ALPHAS) < 4 * np.sqrt(ALPHAS * (1 - ALPHAS) * (1 / P + 1 / N))).all(), above
    hard = deviation[P:] > np.median(deviation[P:])
    rates = [(outside[these] > norm.isf(0.1)).mean() for these in (hard, ~hard)]
    assert all(0.04 < rate < 0.16 for rate in rates), rates
    member = stream(3, "members").permutation(N) < N // 2
    given = value[P:] + 1.0 * deviation[P:] * member
    found = naive_auc(scores(head, x[:P], value[:P], x[P:], given), member)
    assert naive_auc(given, member) < oracle_auc(1.0) - 0.1
    assert oracle_auc(1.0) - 0.025 < found < oracle_auc(1.0) + 3 * auc_error(member)


def test_held_out_records_lie_below_each_quantile_as_often_as_they_should(uneven):
    x, value, *_ = uneven
    levels = np.array([0.1, 0.5, 0.9, 0.98])
    _, held = boosted_quantiles(x[:300], CATEGORICAL, value[:300], x[:1], stream(15, "folds"), levels)
    assert (abs((value[:300] <= held).mean(axis=1) - levels) < 1.5 / 300).all()
    data, value, *_ = images(16, 90)
    _, held = convnet(data, value, data, 2, stream(17, "net"), levels)
    assert (abs((value <= held).mean(axis=1) - levels) < 1.5 / 90).all()


def test_where_records_tell_nothing_there_is_one_distribution_for_all():
    draw = stream(4, "noise")
    x, value = draw.random((400, 5)), 3 + 2 * draw.standard_normal(400)
    (mean, deviation), held = boosted_gaussian(x, np.zeros(5, bool), value, x, stream(5, "folds"))
    assert np.ptp(mean) < 0.5 and abs(mean.mean() - 3) < 0.4
    assert 0.85 < deviation.mean() / 2 < 1.15 and np.square((value - held[0]) / held[1]).mean() == pytest.approx(1)


def test_a_prediction_is_held_out_of_its_own_record():
    """An outlier moves the prediction for others, never the one that it is judged by."""
    draw = stream(6, "outlier")
    x, value = draw.random((200, 2)), draw.standard_normal(200)
    wild = value.copy()
    wild[17] += 1e4
    fold = folds_of(200, stream(7, "folds"))
    from trainers import quantile

    args = (x, np.zeros(2, bool), value, x[:0], fold, None, "squared_error", quantile._squared)
    calm, moved = (quantile._fit(args[0], args[1], v, *args[3:])[1] for v in (value, wild))
    assert np.isfinite(moved).all()
    constant = [v[fold != fold[17]].mean() for v in (value, wild)]
    assert constant[0] == constant[1]
    assert abs(moved[17]) < 20 < abs(moved[fold != fold[17]]).max() and abs(calm).max() < 20


@pytest.mark.parametrize("count", [2, 5, 25])
def test_few_or_equal_records_give_finite_predictions(count):
    draw = stream(8, "few")
    x = draw.random((count, 3))
    for value in (draw.standard_normal(count), np.full(count, 2.5)):
        fitted, _ = boosted_gaussian(x, np.zeros(3, bool), value, x, stream(9, "folds"))
        assert np.isfinite(fitted).all() and (fitted[1] >= 0).all()
        quantiles, _ = boosted_quantiles(x, np.zeros(3, bool), value, x, stream(9, "folds"), np.array([0.1, 0.9]))
        assert np.isfinite(quantiles).all()


def images(seed, count):
    """Brightness tells the mean, the label the deviation."""
    draw = stream(seed, "images")
    bright, y = draw.integers(0, 200, count), draw.integers(0, 2, count)
    x = (bright[:, None, None, None] + draw.integers(0, 55, (count, 1, 8, 8))).astype(np.uint8)
    mean, deviation = bright / 50, np.where(y == 1, 2.0, 0.3)
    value = mean + deviation * draw.standard_normal(count)
    return Resident.of(Records(x, y.astype(np.int64)), (127.5,), (127.5,), "cpu"), value, mean, deviation


@pytest.mark.parametrize("head", ["gaussian", "pinball"])
def test_a_convnet_learns_how_hard_an_image_is(head):
    data, value, _, _ = images(10, 450)
    ask, given, mean, deviation = images(11, 1500)
    if head == "gaussian":
        (m, s), _ = convnet(data, value, ask, 2, stream(12, "net"))
        z = (given - m) / s
        assert abs(m - mean).mean() < 0.35 and abs(np.log(s / deviation)).mean() < 0.6
    else:
        rates = false_positive_rates(450, 7, 0.02)
        quantiles, _ = convnet(data, value, ask, 2, stream(12, "net"), 1 - rates)
        z = normal_score(given, quantiles, rates)
    above = np.array([(z > norm.isf(alpha)).mean() for alpha in ALPHAS])
    assert (abs(above - ALPHAS) < 4 * np.sqrt(ALPHAS * (1 - ALPHAS) / 450) + 0.01).all(), above


def test_a_convnet_is_the_same_twice_and_leaves_torchs_generator_alone():
    data, value, _, _ = images(13, 80)
    before = torch.random.get_rng_state()
    one, two = (convnet(data, value, data, 2, stream(14, "net"))[0] for _ in range(2))
    assert np.array_equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())
