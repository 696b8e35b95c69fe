"""The learning rate of every step in closed form, and how an epoch is cut."""

import math

import numpy as np
import pytest

from trainers.schedule import batches, learning_rates


@pytest.mark.parametrize("peak", [0.1, 0.3, 7e-4])
@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.5, 1, 2.3])
def test_the_learning_rate_asked_for_is_the_one_used(peak, schedule, warmup):
    """The original tool multiplied it by 0.1 on the way."""
    rates = learning_rates(6, 7, peak, schedule, warmup, milestones=(0.5, 0.75), step_factor=0.1)
    assert rates.shape == (6, 7)
    assert rates.max() == peak
    assert (rates > 0).all()


def test_the_cosine_is_half_a_wave_from_the_peak_to_zero():
    rates = learning_rates(5, 8, 0.4, "cosine").ravel()
    assert rates == pytest.approx([0.4 * math.cos(math.pi * t / 80) ** 2 for t in range(40)])
    assert rates[0] == 0.4
    assert rates[20] == pytest.approx(0.2)


def test_the_warm_up_is_a_straight_line_to_the_peak():
    rates = learning_rates(5, 8, 0.4, "cosine", 2).ravel()
    assert rates[:16] == pytest.approx([0.4 * (t + 1) / 16 for t in range(16)])
    assert rates[16:] == pytest.approx([0.4 * math.cos(math.pi * t / 48) ** 2 for t in range(24)])


def test_steps_go_down_at_the_milestones():
    rates = learning_rates(8, 3, 0.2, "step", milestones=(0.5, 0.75), step_factor=0.1)
    assert rates[:4].ravel() == pytest.approx(np.full(12, 0.2))
    assert rates[4:6].ravel() == pytest.approx(np.full(6, 0.02))
    assert rates[6:].ravel() == pytest.approx(np.full(6, 0.002))


def test_a_constant_is_constant():
    assert (learning_rates(3, 4, 0.05, "constant") == 0.05).all()


def test_a_warm_up_of_the_whole_training_ends_at_the_peak():
    assert learning_rates(2, 5, 0.1, "cosine", 2).ravel() == pytest.approx(np.linspace(0.01, 0.1, 10))


@pytest.mark.parametrize("count", range(1, 40))
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_batches_cover_everything_once_and_none_is_a_lone_record(count, batch_size):
    cut = batches(count, batch_size)
    assert np.concatenate([np.arange(count)[s] for s in cut]).tolist() == list(range(count))
    sizes = [s.stop - s.start for s in cut]
    if batch_size > 1 and count > 1:
        assert min(sizes) > 1
    assert all(size == batch_size for size in sizes[:-1])
    assert sizes[-1] <= batch_size + (batch_size > 1)
