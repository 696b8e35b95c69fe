"""The calibrated choice: its walk, its bound, and what it gains."""

import itertools

import numpy as np
import pytest

from core.rng import stream
from modules.dp_audit import one_run
from modules.dp_audit.calibrated import STEP, calibrated_epsilon, crossing


@pytest.mark.parametrize("q", [0.5, 0.8])
def test_the_walk_crosses_as_often_as_all_rows_of_coins_do(q):
    sizes, boundary = (3, 5, 9), (3, 5, 7)
    crossed = 0.0
    for coins in itertools.product((0, 1), repeat=9):
        if any(sum(coins[:n]) >= b for n, b in zip(sizes, boundary, strict=True)):
            crossed += q ** sum(coins) * (1 - q) ** (9 - sum(coins))
    assert crossing(sizes, boundary, q) == pytest.approx(crossed, abs=1e-12)


def test_the_walk_crosses_as_often_as_simulated_coins_do():
    sizes, boundary, q = (40, 160, 1000), (33, 122, 680), 0.66
    steps = stream(0, "coins").binomial(np.diff([0, *sizes]), q, size=(200_000, 3))
    simulated = (np.cumsum(steps, axis=1) >= boundary).any(axis=1).mean()
    assert crossing(sizes, boundary, q) == pytest.approx(simulated, abs=4 * np.sqrt(simulated / 200_000))


def test_one_size_alone_is_clopper_pearson_rounded_down_to_the_grid():
    for v in (50, 60, 75, 100):
        exact = float(one_run.epsilon(1000, 100, v, delta=0.0))
        assert exact - STEP - 1e-9 < calibrated_epsilon(1000, [100], [v], delta=0.0) <= exact


def test_it_lies_between_bonferroni_and_the_uncorrected_maximum():
    sizes = np.array([32, 64, 128, 256, 512])
    draw = stream(0, "between")
    gained = []
    for eps in (0.5, 1.0, 2.0):
        for _ in range(10):
            right = np.cumsum(draw.binomial(np.diff(np.append(0, sizes)), 1 / (1 + np.exp(-eps))))
            low, high = (float(one_run.pure_epsilon(sizes, right, error).max()) for error in (0.01, 0.05))
            found = calibrated_epsilon(1000, sizes.tolist(), right.tolist(), delta=0.0)
            assert low - STEP <= found <= high
            gained.append((found - low) / (high - low))
    assert 0.1 < np.mean(gained) < 0.9  # nested guesses go together: five looks cost less than five


def test_more_right_guesses_never_show_less():
    sizes = [20, 60, 150]
    for right in ([15, 40, 90], [20, 45, 100]):
        more = [min(v + 3, n) for v, n in zip(right, sizes, strict=True)]
        assert calibrated_epsilon(500, sizes, more, delta=0.0) >= calibrated_epsilon(500, sizes, right, delta=0.0)


def test_delta_is_paid_from_the_error():
    sizes, right = [20, 60, 150], [20, 55, 120]
    paid = calibrated_epsilon(1000, sizes, right, delta=2e-5, level=0.95)
    assert paid == calibrated_epsilon(1000, sizes, right, delta=0.0, level=0.97) > 0
    with pytest.raises(ValueError, match="leaves nothing"):
        calibrated_epsilon(5000, sizes, right, delta=1e-5)
