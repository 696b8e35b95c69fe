"""RMIA and BASE: naive twins, identities, calibration, and a tuning that cannot see the target."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit, factorial

from core.registry import ATTACKS
from core.rng import stream
from core.types import Evidence, Signal
from modules.mia import rmia as module
from modules.mia.base import base
from modules.mia.rmia import GRID, _means, _Options, _score, fitted_a, rmia, signal_of, tuned_a
from modules.mia.tuning import UNTUNED_A, rehearsed
from tests.worlds import (
    auc_error,
    gaussian_world,
    loss_auc,
    naive_auc,
    naive_tpr,
    oracle_auc,
    rows,
    two_class,
    with_signals,
)


def pairwise(evidence: Evidence, mode: str, a: float, gamma: float, queries: str = "majority") -> np.ndarray:
    """RMIA written as its definition, for each point and each z."""
    p = lambda log_odds: expit(log_odds.astype(np.float64))  # noqa: E731
    n_queries, points = evidence.target.shape
    line = lambda out: ((1 + a) * out + (1 - a)) / 2  # noqa: E731
    ratio_x, ratio_z = (
        np.zeros((n_queries, points)),
        p(evidence.population) / line(p(evidence.population_references).mean(0)),
    )
    for n in range(points):
        inside = evidence.trained_on[:, n]
        out = p(evidence.references[~inside, :, n]).mean(axis=0)
        pr = (p(evidence.references[inside, :, n]).mean(axis=0) + out) / 2 if mode == "online" else line(out)
        ratio_x[:, n] = p(evidence.target[:, n]) / pr
    wins = ratio_x[:, :, None] / ratio_z[:, None, :] >= gamma
    if queries == "mean":
        return wins.mean(axis=(0, 2))
    return (wins.sum(axis=0) > n_queries / 2).mean(axis=1)


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("gamma", [1.0, 2.0, 1.1])
@pytest.mark.parametrize(("queries", "joined"), [(1, "majority"), (2, "majority"), (5, "majority"), (4, "mean")])
def test_rmia_is_its_definition_pair_by_pair(mode, gamma, queries, joined):
    evidence, _ = gaussian_world(1, 200, 3, queries=queries, population=70)
    evidence.target[:, :70] = evidence.population  # equal confidence
    scores = rmia(evidence, mode=mode, a=0.3, gamma=gamma, queries=joined, tie_break=False)
    np.testing.assert_allclose(scores, pairwise(evidence, mode, 0.3, gamma, joined), atol=1e-12)


def test_unequal_numbers_of_out_references_are_averaged_over_their_own_number():
    """No zeros averaged in, and not the largest half: both were seen elsewhere."""
    evidence, _ = gaussian_world(2, 200, 3, population=50)
    trained_on = stream(2, "masks").random(evidence.trained_on.shape) < 0.5
    trained_on[0] = False
    trained_on[1] = True
    evidence = replace(evidence, trained_on=trained_on)
    assert len(set(trained_on.sum(axis=0))) > 3
    for mode in ("offline", "online"):
        expected = pairwise(evidence, mode, 0.5, 1.0)
        np.testing.assert_allclose(rmia(evidence, mode=mode, a=0.5, tie_break=False), expected, atol=1e-12)


def test_twice_the_same_references_change_nothing():
    """Of z all references are OUT; taking the largest n of 2n would make Pr(z) grow with n."""
    evidence, _ = gaussian_world(3, 300, 2, population=100)
    twice = rows(evidence, np.tile(np.arange(4), 2))
    np.testing.assert_allclose(rmia(twice, a=0.3), rmia(evidence, a=0.3), atol=1e-9)


def test_breaking_ties_keeps_the_order_of_the_shares_and_their_value():
    evidence, _ = gaussian_world(4, 2000, 3, population=20)
    plain, broken = rmia(evidence, a=0.3, tie_break=False), rmia(evidence, a=0.3)
    assert len(np.unique(plain)) <= 21 < 1990 < len(np.unique(broken))
    assert abs(plain - broken).max() <= 1 / 21 + 1e-12
    assert (np.diff(plain[np.argsort(broken)]) >= 0).all()


def test_tpr_at_low_fpr_does_not_collapse():
    evidence, member = gaussian_world(5, 8000, 4, shift=4.0, population=100)
    assert naive_tpr(rmia(evidence, a=0.3), member, 0.001) > 0.1
    assert naive_tpr(rmia(evidence, a=0.3, tie_break=False), member, 0.001) == 0  # what ties do


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_with_one_query_rmia_ranks_as_the_log_ratio_whatever_gamma(a):
    evidence, _ = gaussian_world(6, 1000, 3, population=300)
    means = _means(evidence, _Options())
    ratio = (means.x / (((1 + a) * means.x_out + 1 - a) / 2))[0]
    for gamma in (1.0, 2.0, 0.7):
        assert np.array_equal(np.argsort(rmia(evidence, a=a, gamma=gamma)), np.argsort(ratio))


def test_online_rmia_and_base_are_one_ratio():
    evidence, _ = gaussian_world(7, 1000, 3, population=200)
    evidence = with_signals(evidence, [Signal(temperature=2.0)])
    scores = base(evidence)
    assert np.array_equal(np.argsort(rmia(evidence, mode="online", temperature=2.0)), np.argsort(scores))
    tempered = evidence.signal(Signal(temperature=2.0))
    mean = expit(tempered.references.astype(float)).mean(axis=0)  # as many IN as OUT: the mean over all
    np.testing.assert_allclose(scores, np.log(expit(tempered.target.astype(float)) / mean)[0], rtol=1e-9, atol=1e-12)


def test_offline_base_subtracts_a_scaled_log_mean_of_the_out_references():
    evidence, _ = gaussian_world(8, 100, 3)
    evidence = with_signals(evidence, [Signal(temperature=2.0)])
    tempered = evidence.signal(Signal(temperature=2.0))
    out = [expit(tempered.references[~tempered.trained_on[:, n], 0, n].astype(float)).mean() for n in range(100)]
    expected = np.log(expit(tempered.target[0].astype(float))) - 0.33 * np.log(out)
    np.testing.assert_allclose(base(evidence, mode="offline"), expected, rtol=1e-9)


def test_scores_of_non_members_are_uniform_where_z_is_treated_as_x():
    """Offline, with as many OUT references of z as of x, gamma 1: exchangeable, so the share is a p-value."""
    evidence, member = gaussian_world(9, 6000, 4, population=3000)
    order = np.argsort(evidence.trained_on, axis=0, kind="stable")[:4]  # the four OUT references of each point
    out_only = replace(
        evidence,
        references=np.take_along_axis(evidence.references, order[:, None], axis=0),
        trained_on=np.zeros((4, 6000), dtype=bool),
        population_references=evidence.population_references[::2],
    )
    scores = np.sort(rmia(out_only, a=0.5)[~member])
    distance = abs(scores - np.linspace(0, 1, len(scores))).max()
    assert distance < 1.63 * np.sqrt(1 / len(scores) + 1 / 3000)  # two-sample KS, 1%
    skewed = np.sort(rmia(out_only, a=0.5, gamma=2.0)[~member])
    assert abs(skewed - np.linspace(0, 1, len(skewed))).max() > 0.3  # gamma gives this up


def test_online_the_line_for_z_keeps_non_members_near_uniform():
    """Pr(z) = mean OUT would set z's ratios too high, and every score too low."""
    evidence, member = gaussian_world(10, 6000, 8, shift=1.5, population=3000)
    mean = rmia(evidence, mode="online")[~member].mean()
    assert abs(mean - 0.5) < 0.04
    assert rmia(evidence, mode="online", a=1.0)[~member].mean() < mean - 0.05


def test_the_online_line_is_fitted_to_the_references():
    evidence, _ = gaussian_world(11, 500, 4)
    means = _means(evidence, _Options(online=True))
    slopes = np.linspace(0, 1, 10_001)
    misfit = [np.square(means.x_in - (a * means.x_out + 1 - a)).sum() for a in slopes]
    assert fitted_a(means) == pytest.approx(slopes[np.argmin(misfit)], abs=1e-4)


def test_rmia_lies_between_loss_and_the_oracle():
    evidence, member = gaussian_world(12, 20_000, 8, tau=2.0, population=500)
    auc = naive_auc(rmia(evidence), member)
    assert loss_auc(1.0, 2.0) + 0.05 < auc < oracle_auc(1.0) + 3 * auc_error(member)


# ---- probabilities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", ["softmax", "soft_margin", "taylor", "soft_margin_taylor"])
def test_probabilities_are_those_of_the_paper(probability):
    """u = z / T; t the exponential or its polynomial: t(u_y - m) / (sum of the others + t(u_y - m))."""
    evidence, _ = gaussian_world(13, 50, 2, population=30, dtype=np.float64)
    temperature, order = 2.0, 4
    margin = 0.6 if probability.startswith("soft_margin") else 0.0
    u = evidence.target / temperature  # logits (u, 0)
    t = np.exp if not probability.endswith("taylor") else lambda v: sum(v**i / factorial(i) for i in range(order + 1))
    expected = t(u - margin) / (t(np.float64(0)) + t(u - margin))
    signal = signal_of(probability, temperature, 0.6, order)
    chosen = with_signals(evidence, [signal]).signal(signal)
    options = _Options(margin=0.6 if probability == "soft_margin" else 0.0)
    np.testing.assert_allclose(_means(chosen, options).x, expected, rtol=1e-12)


def test_the_margin_in_the_signal_and_on_the_log_odds_is_the_same_margin():
    """A Taylor polynomial of high order is the exponential: both roads to a soft margin meet."""
    evidence, _ = gaussian_world(14, 200, 2, population=80, dtype=np.float64)
    given = {"a": 0.3, "temperature": 2.0, "margin": 0.6}
    signals = [signal_of(kind, 2.0, 0.6, 40) for kind in ("soft_margin", "soft_margin_taylor")]
    evidence = with_signals(evidence, signals)
    margin, taylor = (rmia(evidence, probability=k, order=40, **given) for k in ("soft_margin", "soft_margin_taylor"))
    np.testing.assert_allclose(margin, taylor, atol=1e-9)
    assert not np.allclose(margin, rmia(evidence, a=0.3, temperature=2.0))


@pytest.mark.parametrize("order", [1, 3, 5, 0])
def test_an_odd_taylor_order_is_refused_with_its_reason(order):
    evidence, _ = gaussian_world(15, 20, 2, population=10)
    with pytest.raises(ValueError, match=r"order must be even.*negative"):
        rmia(evidence, probability="taylor", order=order)
    with pytest.raises(ValidationError, match="order"):
        ATTACKS.bind("RMIA", {"order": order})


def test_odd_truncations_do_go_negative_and_even_ones_do_not():
    logits = np.linspace(-30, 30, 1001)
    with np.errstate(invalid="ignore"):
        assert np.isnan(two_class(Signal("taylor", order=3), logits)).any()
    assert np.isfinite(two_class(Signal("taylor", order=4), logits)).all()


# ---- tuning --------------------------------------------------------------------------------------------------


def test_a_is_tuned_without_the_target_its_twin_or_its_population_signals():
    evidence, _ = gaussian_world(16, 1000, 3, population=200)
    before = tuned_a(evidence)
    for change in (-evidence.target, evidence.target * 0, evidence.target + 50):
        assert tuned_a(replace(evidence, target=change, population=-evidence.population)) == before


def test_a_rehearsed_reference_is_never_attacked_with_its_twin():
    evidence, _ = gaussian_world(17, 100, 3, population=10)
    for rehearsal, member in evidence.rehearsals():
        assert len(rehearsal.references) == 4
        for other in rehearsal.trained_on:
            assert (other != member).any() and (other == member).any()


def test_tuning_takes_the_a_of_best_mean_auc_over_rehearsals():
    evidence, _ = gaussian_world(18, 3000, 2, tau=1.5, population=200)  # 4 references: all rehearsed
    mean = [
        np.mean([naive_auc(rmia(rehearsal, a=a), member) for rehearsal, member in evidence.rehearsals()]) for a in GRID
    ]
    assert tuned_a(evidence) == GRID[int(np.argmax(mean))]
    assert np.array_equal(rmia(evidence), rmia(evidence, a=tuned_a(evidence)))


def test_tuning_finds_which_a_a_world_wants():
    """OUT models that are certain of every IN record call for Pr between them; where IN = OUT, a = 1."""
    easy, _ = gaussian_world(19, 6000, 4, shift=8.0, tau=0.5, population=100)
    hard, _ = gaussian_world(19, 6000, 16, shift=0.3, tau=3.0, population=100)
    assert tuned_a(hard) > tuned_a(easy)


def test_one_pair_gives_a_by_its_in_and_out_means_and_says_so(caplog):
    """It cannot rehearse; but each point has a model that trained on it, and one that did not."""
    easy, _ = gaussian_world(19, 6000, 1, shift=8.0, tau=0.5, population=100)
    hard, member = gaussian_world(19, 6000, 1, shift=0.3, tau=3.0, population=100)
    with caplog.at_level(logging.INFO):
        assert tuned_a(hard) > tuned_a(easy) + 0.3
    assert "IN and OUT means" in caplog.text
    miss = 1 - expit(hard.references[:, 0].astype(float))
    inside, out = (np.where(hard.trained_on[0] == whether, *miss) for whether in (True, False))
    assert tuned_a(hard) == pytest.approx(inside @ out / (out @ out), abs=0.006)
    assert tuned_a(replace(hard, target=-hard.target)) == tuned_a(hard)  # the target has no say
    assert naive_auc(rmia(hard), member) > naive_auc(rmia(hard, a=0.0), member)


def test_without_in_models_a_is_not_tuned_and_that_is_said(caplog):
    evidence, _ = gaussian_world(20, 200, 1, population=50)
    evidence = replace(evidence, trained_on=np.zeros_like(evidence.trained_on))
    with caplog.at_level(logging.WARNING):
        scores = rmia(evidence)
    assert "not tuned" in caplog.text
    assert np.array_equal(scores, rmia(evidence, a=UNTUNED_A))


def test_points_of_one_kind_cannot_be_rehearsed_on():
    evidence, _ = gaussian_world(21, 200, 2, population=50)
    one_kind = replace(evidence, trained_on=np.array([[True] * 200, [False] * 200] * 2))
    one_kind.trained_on[2, 0], one_kind.trained_on[3, 0] = False, True
    seen = []
    assert rehearsed(one_kind, (1, 2), lambda e: e, lambda e, c: seen.append(c) or e.target[0]) == 1  # equal: the first
    assert len(seen) == 4  # the two references of one kind were passed over


def test_the_best_candidate_wins_and_the_first_of_equals():
    evidence, _ = gaussian_world(22, 500, 2, shift=2.0, population=1)
    pick = rehearsed(evidence, (-1.0, 0.0, 1.0, 2.0), lambda e: e.target[0], lambda target, sign: sign * target)
    assert pick == 1.0


def test_tuning_with_a_vote_uses_a_spread_of_the_population(monkeypatch):
    evidence, _ = gaussian_world(23, 200, 2, queries=3, population=500)
    monkeypatch.setattr(module, "VOTING_POPULATION", 50)
    sizes = []
    score = _score

    def spy(means, a, options):
        sizes.append(means.z.shape[1])
        return score(means, a, options)

    monkeypatch.setattr(module, "_score", spy)
    rmia(evidence)
    assert sizes[-1] == 500 and set(sizes[:-1]) == {50} and len(sizes) == 4 * len(GRID) + 1
