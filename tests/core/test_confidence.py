"""Log-odds from what others store: exact where it can be, finite and in order where it cannot."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logsumexp, softmax

from core import confidence

PHI = np.linspace(-12, 12, 97)


@pytest.mark.parametrize(
    ("convert", "values"),
    [
        (confidence.from_probability, expit(PHI)),
        (confidence.from_loss, np.logaddexp(0.0, -PHI)),
    ],
)
def test_log_odds_come_back_exactly(convert, values):
    converted = convert(values)
    assert converted.values.dtype == np.float32 and converted.saturated == 0
    np.testing.assert_allclose(converted.values, PHI, rtol=1e-5, atol=1e-6)


def test_whole_answers_give_the_log_odds_of_their_label():
    draw = np.random.default_rng(0)
    z, labels = draw.normal(0, 20, (3, 50, 4)), draw.integers(4, size=50)
    by_hand = np.array(
        [[z[m, n, y] - logsumexp(np.delete(z[m, n], y)) for n, y in enumerate(labels)] for m in range(3)]
    )
    np.testing.assert_allclose(confidence.log_odds(z, labels), by_hand, rtol=1e-5)
    logits = confidence.from_probabilities(softmax(z / 10, axis=-1)).values
    np.testing.assert_allclose(logits, log_softmax(z / 10, axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(confidence.log_odds(logits, labels), confidence.log_odds(z / 10, labels), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_saturated_probabilities_are_counted_and_keep_their_order(dtype):
    p = np.array([0, 1e-4, 0.5, 1 - np.finfo(dtype).epsneg, 1], dtype)
    converted = confidence.from_probability(p)
    assert converted.saturated == 2 and "1 as 1 - " in converted.read_as
    assert np.isfinite(converted.values).all() and (np.diff(converted.values) >= 0).all()
    assert converted.values[-1] > converted.values[-2]  # 1 is above everything that is not 1
    clipped = confidence.from_probability(p, clip=0.1).values
    assert np.isclose(clipped.max(), np.log(9), rtol=1e-3) and np.isclose(clipped.min(), -np.log(9), rtol=1e-3)


def test_a_loss_of_zero_is_the_most_confident_answer():
    converted = confidence.from_loss(np.array([0.0, 1e-30, 1.0, 800.0]))
    assert converted.saturated == 1 and (np.diff(converted.values) <= 0).all() and np.isfinite(converted.values).all()
    assert converted.values[-1] == np.float32(-800.0)


@pytest.mark.parametrize(
    ("convert", "values", "said"),
    [
        (confidence.from_probability, [0.2, 1.5], "between 0 and 1, got 1.5"),
        (confidence.from_loss, [0.2, -1.5], "not negative, got -1.5"),
        (confidence.from_probabilities, [[0.2, 0.2]], "add up to 1, got 0.4"),
        (confidence.from_probabilities, [[-0.2, 1.2]], "between 0 and 1"),
    ],
)
def test_numbers_of_another_kind_are_refused(convert, values, said):
    with pytest.raises(ValueError, match=said):
        convert(np.array(values))
