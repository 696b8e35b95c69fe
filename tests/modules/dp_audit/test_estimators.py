"""The fast forms against the formulas as printed, and what any bound must obey."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import binom, norm

from core.rng import stream
from modules.dp_audit import f_dp, one_run, two_worlds


def printed_p_value(m, r, v, eps, delta):
    """Theorem 5.2 of Steinke et al., term by term."""
    q = 1 / (1 + np.exp(-eps))
    alpha = max((binom.pmf(np.arange(v - i, v), r, q).sum() / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, binom.sf(v - 1, r, q) + 2 * m * delta * alpha)


def printed_rejection(m, r, c, inverse, error):
    """Algorithm 3 of Mahloujifar et al., line by line."""
    right, wrong = error * c / m, error * (r - c) / m
    for i in range(c - 1, -1, -1):
        more = max(wrong, inverse(min(right, 1.0)))
        right += i / (r - i) * (more - wrong)
        wrong = more
    return right + wrong >= r / m


def test_the_p_value_is_the_printed_one():
    draw = stream(0, "p-value")
    for _ in range(150):
        m = int(draw.integers(1, 120))
        r = int(draw.integers(1, m + 1))
        v = int(draw.integers(0, r + 1))
        eps, delta = float(draw.choice([0, 0.3, 1, 3])), float(draw.choice([0, 1e-5, 1e-3, 0.02]))
        assert one_run.p_value(m, r, v, eps, delta) == pytest.approx(printed_p_value(m, r, v, eps, delta), abs=1e-11)


def test_f_dp_rejects_as_the_printed_algorithm_does():
    draw = stream(0, "f-DP")
    curves = {
        "gaussian": (f_dp.gaussian_curve, lambda s: lambda y: norm.cdf(norm.ppf(y) - s)),
        "approximate": (
            partial(f_dp.approximate_curve, delta=1e-3),
            lambda s: lambda y: max(0.0, (y - 1e-3) * np.exp(-s), 1 - 1e-3 - np.exp(s) * (1 - y)),
        ),
    }
    answers = set()
    for curve, naive in curves.values():
        m = draw.integers(5, 120, size=60)
        r = (m * draw.uniform(0.2, 1, size=60)).astype(int)
        v = (r * draw.uniform(0.4, 1, size=60)).astype(int)
        strength = draw.uniform(0, 1.5, size=60)
        fast = f_dp.rejected(m, r, v, strength, curve, level=0.9)
        slow = [printed_rejection(*row[:3], naive(row[3]), 0.1) for row in zip(m, r, v, strength, strict=True)]
        assert fast.tolist() == slow
        answers |= set(slow)
    assert answers == {True, False}


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("epsilon", [one_run.epsilon, f_dp.epsilon], ids=["one run", "f-DP"])
class TestEveryOneRunBound:
    def test_rises_with_right_guesses(self, epsilon, delta):
        found = epsilon(400, 120, np.arange(121), delta=delta)
        assert found[0] == 0 and found[-1] > 2
        assert np.all(np.diff(found) >= -1e-7)

    def test_falls_with_wrong_guesses(self, epsilon, delta):
        assert np.all(np.diff(epsilon(400, np.arange(60, 121), 60, delta=delta)) <= 1e-7)

    def test_falls_with_delta(self, epsilon, delta):
        v = np.arange(121)
        assert np.all(epsilon(400, 120, v, delta=delta + 1e-3) <= epsilon(400, 120, v, delta=delta) + 1e-7)

    def test_falls_with_confidence(self, epsilon, delta):
        assert epsilon(400, 120, 100, delta=delta, level=0.99) < epsilon(400, 120, 100, delta=delta, level=0.9)

    def test_is_the_same_alone_and_among_many(self, epsilon, delta):
        together = epsilon(400, 120, np.arange(121), delta=delta)
        assert [float(epsilon(400, 120, v, delta=delta)) for v in (60, 80, 100, 120)] == pytest.approx(
            together[[60, 80, 100, 120]], abs=1e-7
        )

    def test_refuses_counts_that_cannot_be(self, epsilon, delta):
        with pytest.raises(ValueError, match="right guesses <= guesses"):
            epsilon(100, 50, 51, delta=delta)
        with pytest.raises(ValueError, match="level"):
            epsilon(100, 50, 40, delta=delta, level=1.0)


def test_the_bound_is_where_the_p_value_meets_the_error():
    eps = one_run.epsilon(1000, 100, 75, delta=1e-4, level=0.9)
    assert printed_p_value(1000, 100, 75, eps - 1e-6, 1e-4) < 0.1 < printed_p_value(1000, 100, 75, eps + 1e-6, 1e-4)


def test_the_gaussian_family_claims_more_than_no_family():
    v = np.arange(70, 121, 10)
    assert np.all(f_dp.gaussian_epsilon(400, 120, v, delta=1e-5) > f_dp.epsilon(400, 120, v, delta=1e-5))


def test_gaussian_epsilon_rises_with_mu_and_falls_with_delta():
    mu = np.linspace(0, 8, 50)
    assert np.all(np.diff(f_dp.epsilon_of_mu(mu, 1e-5)) > 0)
    assert np.all(f_dp.epsilon_of_mu(mu[1:], 1e-3) < f_dp.epsilon_of_mu(mu[1:], 1e-5))
    with pytest.raises(ValueError, match="delta 0"):
        f_dp.epsilon_of_mu(1.0, 0.0)


def test_two_worlds_are_symmetric_in_the_worlds():
    one = two_worlds.two_worlds(60, 100, 10, 80, delta=1e-3).eps
    other = two_worlds.two_worlds(70, 80, 40, 100, delta=1e-3).eps  # negatives called positives, and worlds swapped
    assert one == pytest.approx(other, abs=1e-12) and one > 0.5


def test_two_worlds_refuse_counts_that_cannot_be():
    with pytest.raises(ValueError, match="two worlds"):
        two_worlds.two_worlds(101, 100, 0, 100, delta=0.0)
