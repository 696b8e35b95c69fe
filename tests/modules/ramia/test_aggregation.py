"""Aggregations against worlds whose answer is known: literature of RaMIA, one leaking sample among K, or a decay."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.stats import norm

from core.metrics import auc
from core.rng import stream
from modules.ramia.aggregation import (
    AGGREGATIONS,
    Aggregation,
    grid,
    log_mean_exp,
    maximum,
    mean,
    top_k,
    trimmed_mean,
)

RANGES = 40_000  # on each side: the standard error of an AUC is 0.002 at most
SLACK = 0.01

# k, d: AUC of the optimal statistic, max, top-2 mean, trimmed from 0.4, mean.
TABLE = {
    (4, 1): (0.656, 0.648, 0.652, 0.647, 0.638),
    (4, 3): (0.954, 0.953, 0.931, 0.896, 0.857),
    (10, 1): (0.608, 0.594, 0.602, 0.600, 0.588),
    (10, 3): (0.920, 0.919, 0.905, 0.815, 0.749),
}


def one_leaks(k, d, n=RANGES):
    """Half of the ranges are members: one of their K scores is N(d, 1), all others N(0, 1)."""
    draw = stream(0, "one_leaks", k, d)
    scores = draw.standard_normal((2 * n, k))
    scores[:n, 0] += d
    return draw.permuted(scores, axis=1), np.arange(2 * n) < n


def check_trim(trim):
    """What the table says of a trimmed mean: it drops the low scores, those of points that leak nothing."""
    for (k, d), (*_, trimmed, _) in TABLE.items():
        scores, member = one_leaks(k, d)
        assert auc(trim(scores, q_s=0.4, q_e=1.0), member) == pytest.approx(trimmed, abs=SLACK)


@pytest.mark.parametrize("k, d", TABLE)
def test_one_leaking_sample_gives_the_aucs_of_the_table(k, d):
    scores, member = one_leaks(k, d)
    optimal = log_mean_exp(scores, sharpness=d * float(scores.std()))  # log mean exp(d s): the likelihood ratio
    found = [optimal, maximum(scores), top_k(scores, k=2), trimmed_mean(scores, q_s=0.4, q_e=1.0), mean(scores)]
    assert [auc(s, member) for s in found] == pytest.approx(TABLE[k, d], abs=SLACK)
    assert auc(optimal, member) >= max(auc(s, member) for s in found[1:])


@pytest.mark.parametrize("k, d", TABLE)
def test_mean_and_max_have_their_closed_forms(k, d):
    scores, member = one_leaks(k, d)
    assert auc(mean(scores), member) == pytest.approx(norm.cdf(d / np.sqrt(2 * k)), abs=SLACK)
    # P(max of a member > t) weighted by the density of the max of a non-member.
    area, _ = quad(
        lambda t: (1 - norm.cdf(t) ** (k - 1) * norm.cdf(t - d)) * k * norm.cdf(t) ** (k - 1) * norm.pdf(t), -8, 12
    )
    assert auc(maximum(scores), member) == pytest.approx(area, abs=SLACK)


def test_where_leakage_decays_over_the_range_the_mean_beats_the_max():
    draw = stream(0, "decay")
    scores = draw.standard_normal((2 * RANGES, 10))
    scores[:RANGES] += 2 * 0.7 ** np.arange(10)
    member = np.arange(2 * RANGES) < RANGES
    found = mean(scores), trimmed_mean(scores, q_s=0.4, q_e=1.0), maximum(scores)
    assert [auc(s, member) for s in found] == pytest.approx([0.925, 0.932, 0.871], abs=SLACK)


def test_the_trimmed_mean_drops_the_low_scores():
    check_trim(trimmed_mean)


def inverted(scores, *, q_s, q_e):
    return trimmed_mean(scores, q_s=1 - q_e, q_e=1 - q_s)


def untrimmed(scores, *, q_s, q_e):
    return mean(scores)


@pytest.mark.parametrize("fault", [inverted, untrimmed])
def test_a_planted_fault_in_the_trim_would_be_noticed(fault):
    with pytest.raises(AssertionError):
        check_trim(fault)


@pytest.mark.parametrize("samples", [2, 3, 4, 5, 7, 10, 16, 20, 25, 100])
def test_trimmed_means_average_the_positions_they_say(samples):
    """Every k of K, where truncated products once made k = 1 an empty mean."""
    scores = stream(0, "positions", samples).standard_normal((5, samples))
    ascending = np.sort(scores, axis=1)
    for k in range(1, samples + 1):
        top = trimmed_mean(scores, q_s=(samples - k) / samples, q_e=1.0)
        assert top == pytest.approx(ascending[:, samples - k :].mean(axis=1))
        assert top == pytest.approx(top_k(scores, k=k))
        assert trimmed_mean(scores, q_s=0.0, q_e=k / samples) == pytest.approx(ascending[:, :k].mean(axis=1))
    assert trimmed_mean(scores, q_s=1.0, q_e=1.0) == pytest.approx(scores.max(axis=1))  # at least one score


def test_the_ends_of_every_family_meet():
    scores = stream(0, "ends").standard_normal((50, 8))
    assert trimmed_mean(scores, q_s=0.0, q_e=1.0) == pytest.approx(mean(scores))
    assert top_k(scores, k=1) == pytest.approx(maximum(scores))
    assert top_k(scores, k=8) == pytest.approx(mean(scores))
    assert log_mean_exp(scores, sharpness=1e-6) == pytest.approx(mean(scores), abs=1e-4)
    assert log_mean_exp(scores, sharpness=1e6) == pytest.approx(maximum(scores), abs=1e-4)


@pytest.mark.parametrize("aggregation", grid(10), ids=lambda a: a.label)
class TestEveryAggregation:
    def test_the_order_of_samples_is_nothing(self, aggregation):
        scores = stream(0, "order").standard_normal((50, 10))
        shuffled = stream(1, "order").permuted(scores, axis=1)
        assert aggregation(shuffled) == pytest.approx(aggregation(scores))

    def test_it_lies_between_the_smallest_and_the_largest_score(self, aggregation):
        scores = 100 * stream(0, "between").standard_normal((50, 10))
        assert ((scores.min(axis=1) <= aggregation(scores)) & (aggregation(scores) <= scores.max(axis=1))).all()

    def test_equal_scores_give_themselves(self, aggregation):
        assert aggregation(np.full((3, 10), 0.25)) == pytest.approx(0.25)

    def test_another_unit_of_the_scores_changes_no_ranking(self, aggregation):
        scores = stream(0, "unit").standard_normal((50, 10))
        assert np.array_equal(np.argsort(aggregation(1e3 * scores + 7)), np.argsort(aggregation(scores)))


@pytest.mark.parametrize("samples", [2, 3, 4, 10, 50])
def test_the_grid_has_mean_max_and_top_k_and_works(samples):
    candidates = grid(samples)
    assert {"mean", "max"} <= {c.name for c in candidates}
    assert samples == 2 or "top_k" in {c.name for c in candidates}
    assert len({c.label for c in candidates}) == len(candidates)
    assert all(c(np.zeros((3, samples))).shape == (3,) for c in candidates)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="top 5 of 4"):
        top_k(np.zeros((3, 4)), k=5)
    with pytest.raises(ValueError, match="q_s <= q_e"):
        trimmed_mean(np.zeros((3, 4)), q_s=0.6, q_e=0.4)
    with pytest.raises(ValueError, match="finite"):
        log_mean_exp(np.array([[0.0, np.inf]]), sharpness=1.0)
    for name, settings in (("top_k", {"k": 0}), ("trimmed_mean", {"q_s": -0.1}), ("log_mean_exp", {"sharpness": 0})):
        with pytest.raises(ValidationError):
            AGGREGATIONS.bind(name, settings)


def test_a_label_says_every_setting():
    assert Aggregation("trimmed_mean", {"q_s": 0.4, "q_e": 1.0}).label == "mean from quantile 0.4 to 1"
    assert Aggregation("top_k", {"k": 3}).label == "mean of the top 3"
