"""Masked moments against a loop over points."""

import numpy as np
import pytest

from core.rng import stream
from modules.mia.moments import masked_mean, moments


def test_moments_are_those_of_the_selected_references_alone():
    draw = stream(1, "moments")
    values = (1e4 + draw.standard_normal((9, 2, 50))).astype(np.float32)  # far from zero: one pass would lose digits
    where = draw.random((9, 50)) < 0.5
    where[0] = True
    found = moments(values, where)
    for n in range(50):
        chosen = values[where[:, n], :, n].astype(np.float64)
        assert found.count[n] == len(chosen)
        np.testing.assert_allclose(found.mean[:, n], chosen.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(found.squares[:, n], np.square(chosen - chosen.mean(axis=0)).sum(axis=0), rtol=1e-9)


def test_pooled_variance_is_that_within_records_not_between_them():
    draw = stream(2, "moments")
    values = 50 * draw.standard_normal((1, 1, 5000)) + 2 * draw.standard_normal((6, 1, 5000))
    where = draw.random((6, 5000)) < 0.6
    where[0] = True  # some records have a single reference: it adds no freedom
    assert moments(values, where).pooled_variance() == pytest.approx(4.0, rel=0.05)


def test_one_reference_shows_no_variance():
    values = np.ones((1, 3, 5))
    assert np.array_equal(moments(values, np.ones((1, 5), dtype=bool)).pooled_variance(), np.zeros(3))


def test_a_transform_applies_before_the_mean():
    values = np.array([[[0.0]], [[4.0]]])
    assert masked_mean(values, np.ones((2, 1), dtype=bool), np.exp) == (1 + np.exp(4)) / 2
