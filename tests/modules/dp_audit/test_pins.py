"""Numbers known from the papers' formulas, evaluated elsewhere (shared literature notes, section 6)."""

import numpy as np
import pytest

from modules.dp_audit import f_dp, one_run, two_worlds

COUNTS = [  # m, r, right, delta, ε in one run, μ and ε(δ) of Gaussian f-DP
    (1000, 100, 75, 1e-4, 0.6730, 0.2695, 0.8417),
    (1000, 100, 75, 0.0, 0.7022, 0.2695, None),
    (100_000, 1510, 1439, 1e-5, 2.6759, 0.7839, 3.3091),
    (100_000, 1500, 1429, 1e-5, 2.6688, 0.7818, 3.2992),
    (1000, 1000, 600, 1e-5, 0.2972, 0.1638, 0.5835),
    (5000, 5000, 3000, 1e-5, 0.3574, 0.1728, 0.6183),
    (132, 132, 86, 0.0, 0.3122, 0.1904, None),
    (100, 100, 100, 0.0, 3.4930, 1.7032, None),
    (1000, 1000, 500, 0.0, 0.0, 0.0, None),
]
DIGITS = 5.1e-5  # half of the fourth decimal, and what bisection leaves


@pytest.mark.parametrize(("m", "r", "right", "delta", "eps", "mu", "gaussian"), COUNTS)
def test_one_run_and_f_dp_give_the_known_numbers(m, r, right, delta, eps, mu, gaussian):
    assert abs(one_run.epsilon(m, r, right, delta=delta) - eps) < DIGITS
    assert abs(f_dp.strength(m, r, right, f_dp.gaussian_curve) - mu) < DIGITS
    if gaussian is not None:
        assert abs(f_dp.gaussian_epsilon(m, r, right, delta=delta) - gaussian) < DIGITS


@pytest.mark.parametrize(
    ("tp", "fp", "n", "delta", "eps", "mu", "gaussian"),
    [
        (300, 50, 500, 1e-5, 1.4547, 1.2675, 5.7735),
        (450, 50, 500, 0.0, 1.9035, 2.2555, 11.6049),
        (500, 0, 500, 0.0, 4.9056, 4.8793, 31.9974),
        (1000, 0, 1000, 1e-5, 5.6006, 5.3598, 36.4895),
        (250, 250, 500, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_two_worlds_give_the_known_numbers(tp, fp, n, delta, eps, mu, gaussian):
    assert abs(two_worlds.two_worlds(tp, n, fp, n, delta=delta).eps - eps) < DIGITS
    assert abs(two_worlds.mu_lower(tp, n, fp, n) - mu) < DIGITS
    assert abs(two_worlds.gaussian_two_worlds(tp, n, fp, n, delta=1e-5).eps - gaussian) < DIGITS


@pytest.mark.parametrize(
    ("tp", "fp", "low", "high", "digits"),  # the numbers on record are simulated
    [(300, 50, 1.529, 2.074, 1e-3), (450, 50, 2.038, 2.514, 1e-3), (500, 0, 6.2, 15.2, 0.051)],
)
def test_the_credible_interval_gives_the_known_numbers_and_says_that_it_is_one(tp, fp, low, high, digits):
    bound = two_worlds.bayesian(tp, 500, fp, 500, delta=0.0)
    assert abs(bound.eps - low) < digits
    assert bound.upper is not None and abs(bound.upper - high) < digits
    assert bound.kind == "credible" and "credible" in str(bound)


def test_the_posterior_quantile_is_that_of_drawn_error_rates():
    rng = np.random.default_rng(0)
    tp, n1, fp, n0, delta = 30, 50, 10, 40, 0.01
    fnr, fpr = rng.beta(0.5 + n1 - tp, 0.5 + tp, 400_000), rng.beta(0.5 + fp, 0.5 + n0 - fp, 400_000)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(
            [(1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr, (fpr - delta) / (1 - fnr), (fnr - delta) / (1 - fpr)]
        )
    drawn = np.maximum(np.nan_to_num(logs, nan=0.0).max(axis=0), 0.0)
    for u in (0.025, 0.5, 0.975):
        assert two_worlds.posterior_quantile(u, tp, n1, fp, n0, delta) == pytest.approx(np.quantile(drawn, u), abs=0.02)


@pytest.mark.parametrize(
    ("r", "pure", "delta"),
    [
        (10, 1.05, 1.05),
        (60, 2.97, 2.97),
        (100, 3.49, 3.49),
        (500, 5.11, 5.10),
        (1000, 5.81, 5.78),
        (10_000, 8.11, 7.83),
    ],
)
def test_perfect_guesses_show_the_known_largest_epsilon(r, pure, delta):
    assert one_run.epsilon(r, r, r, delta=0.0) == pytest.approx(pure, abs=0.0051)
    assert one_run.epsilon(r, r, r, delta=1e-5) == pytest.approx(delta, abs=0.0051)
    q = 0.05 ** (1 / r)
    assert one_run.epsilon(r, r, r, delta=0.0) == pytest.approx(np.log(q / (1 - q)), rel=1e-9)


@pytest.mark.parametrize(("mu", "eps"), [(0.25, 0.9263), (0.5, 1.9931), (1, 4.3772), (2, 9.9973), (4, 24.3816)])
def test_the_gaussian_mechanism_has_its_known_epsilon(mu, eps):
    assert f_dp.epsilon_of_mu(mu, 1e-5) == pytest.approx(eps, abs=DIGITS)
    assert f_dp.delta_of_mu(mu, f_dp.epsilon_of_mu(mu, 1e-5)) == pytest.approx(1e-5, rel=1e-6)
