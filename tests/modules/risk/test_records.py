"""P-values are valid, lists keep their share of errors, and stability is counted right."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import norm

from core.rng import stream
from modules.risk.records import conformal_p_values, discoveries, flip_rate, named_members, record_p_values


def world(draw: np.random.Generator, members: int, non_members: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    member = np.arange(members + non_members) < members
    return draw.normal(size=len(member)) + shift * member, member


def test_a_p_value_counts_the_non_members_that_score_at_least_as_high():
    p = conformal_p_values(np.array([5.0, 2.0, 0.0]), np.array([1.0, 2.0, 3.0]))
    assert p.tolist() == [1 / 4, 3 / 4, 1.0]


@pytest.mark.parametrize("values", [None, 5], ids=["continuous", "tied"])
def test_p_values_of_non_members_are_super_uniform_over_calibrations(values):
    """One new non-member for each calibration set: P(p <= t) <= t, and = t at multiples of 1 / (C + 1) without ties."""
    draw, trials, count = stream(1, "super-uniform"), 20_000, 19
    pool = draw.normal(size=(trials, count + 1))
    if values:
        pool = np.round(pool * values / 4)
    at_least = (pool[:, 1:] >= pool[:, :1]).sum(axis=1)
    p = np.array([conformal_p_values(row[:1], row[1:])[0] for row in pool[:200]])
    assert np.array_equal(p, ((1 + at_least) / (1 + count))[:200])
    for t in (0.05, 0.1, 0.5):
        share, error = np.mean((1 + at_least) / (1 + count) <= t), np.sqrt(t * (1 - t) / trials)
        assert share <= t + 4 * error
        if values is None:
            assert share >= t - 4 * error


def test_a_record_is_compared_with_itself_on_the_models_that_left_it_out():
    target = np.array([1.0, 1.0, 1.0])
    references = np.array([[2.0, 0.0, 9.0], [0.0, 0.0, 9.0], [9.0, 3.0, 9.0]])
    trained_on = np.array([[False, False, True], [False, True, True], [True, False, True]])
    p = record_p_values(target, references, trained_on)
    assert p[0] == 2 / 3
    assert p[1] == 2 / 3
    assert np.isnan(p[2])


def test_record_p_values_hold_for_each_record_where_pooled_ones_do_not():
    """Hard and easy records: pooled p-values accuse easy non-members far too often, a record's own do not."""
    draw, trials, out = stream(2, "own"), 4000, 19
    difficulty = np.array([-3.0, 3.0])  # an easy record scores high whoever trained on it
    own, pooled = np.zeros(2), np.zeros(2)
    calibration = np.concatenate([draw.normal(size=200) + d for d in difficulty])
    for _ in range(trials):
        target = draw.normal(size=2) + difficulty
        references = draw.normal(size=(out, 2)) + difficulty
        own += record_p_values(target, references, np.zeros((out, 2), dtype=bool)) <= 0.1
        pooled += conformal_p_values(target, calibration) <= 0.1
    error = np.sqrt(0.1 * 0.9 / trials)
    assert np.all(np.abs(own / trials - 0.1) < 4 * error)
    assert pooled[1] / trials > 0.15


def test_discoveries_are_those_of_a_naive_step_up():
    draw = stream(3, "step-up")
    for _ in range(200):
        p = np.round(draw.random(12) ** 3, 2)
        ordered = np.sort(p)
        k = max((i + 1 for i in range(12) if ordered[i] <= 0.2 * (i + 1) / 12), default=0)
        expected = p <= ordered[k - 1] if k else np.zeros(12, dtype=bool)
        assert np.array_equal(discoveries(p, 0.2), expected)


def test_unknown_p_values_are_never_discovered_and_do_not_count():
    p = np.array([0.01, np.nan, 0.9])
    assert discoveries(p, 0.05).tolist() == [True, False, False]
    assert not discoveries(np.full(3, np.nan), 0.05).any()


@pytest.mark.parametrize(("shift", "q"), [(0.0, 0.1), (2.0, 0.1), (4.0, 0.2), (4.0, 0.05)])
def test_the_false_share_of_a_list_of_members_is_at_most_q_on_average(shift, q):
    draw, trials = stream(4, "fdr", int(10 * shift)), 600
    shares, lengths = [], []
    for _ in range(trials):
        scores, member = world(draw, 100, 200, shift)
        named = named_members(scores, member, q=q, draw=draw)
        shares.append(named.false_share)
        lengths.append(len(named.indices))
    assert np.mean(shares) <= q + 4 * np.std(shares) / np.sqrt(trials)
    if shift == 4.0:
        assert np.mean(lengths) > 50  # and it is not kept by naming nobody
        # p-values of non-members on trial are uniform, so BH spends its level: the share is about q * 100 / 200
        assert np.mean(shares) > q / 4


def test_a_list_is_in_order_of_certainty_and_counts_its_errors():
    scores, member = world(stream(5, "list"), 300, 600, 3.0)
    named = named_members(scores, member, q=0.1, draw=stream(5, "lot"))
    assert len(named.indices) > 100
    assert np.all(np.diff(named.p_values[named.indices]) >= 0)
    assert named.false == (~member[named.indices]).sum()
    assert np.isnan(named.p_values).sum() == named.calibration == 300
    assert not member[np.isnan(named.p_values)].any()


def test_flips_are_counted_over_pairs_of_models_of_the_same_membership():
    draw = stream(6, "flips")
    guessed, member = draw.random((7, 40)) < 0.4, draw.random((7, 40)) < 0.5
    for n, value in enumerate(flip_rate(guessed, member)):
        pairs = [(a, b) for a, b in combinations(range(7), 2) if member[a, n] == member[b, n]]
        assert value == pytest.approx(np.mean([guessed[a, n] != guessed[b, n] for a, b in pairs]))
    alone = flip_rate(np.array([[True], [False]]), np.array([[True], [False]]))
    assert np.isnan(alone).all()


def test_what_cannot_be_judged_is_refused_in_words():
    one = np.array([0.0])
    with pytest.raises(ValueError, match="at least 1 known non-member"):
        conformal_p_values(one, np.array([]))
    with pytest.raises(ValueError, match="NaN"):
        conformal_p_values(np.array([np.nan]), one)
    with pytest.raises(ValueError, match="at least 2 non-members"):
        named_members(one, np.array([True]), q=0.1, draw=stream(0, "x"))
    with pytest.raises(ValueError, match="between 0 and 1"):
        discoveries(one, 1.5)


def test_the_power_of_a_list_is_that_of_the_gaussian_tail():
    """With many non-members BH names all above the threshold t where q = false / named, solved in closed form."""
    draw, q, shift = stream(7, "power"), 0.1, 3.0
    scores, member = world(draw, 20_000, 20_000, shift)
    named = named_members(scores, member, q=q, draw=draw)
    trial = 30_000
    grid = np.linspace(0, 5, 5001)
    level = norm.sf(grid)
    rejected = 20_000 * norm.sf(grid - shift) + 10_000 * level
    t = grid[np.argmax(trial * level <= q * rejected)]
    assert len(named.indices) == pytest.approx(20_000 * norm.sf(t - shift) + 10_000 * norm.sf(t), rel=0.02)
