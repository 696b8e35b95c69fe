"""LOSS, Entropy, Attack-P, Attack-R, Calibration: values in closed form, and what their scales mean."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from core.types import Evidence
from modules.mia.attack_p import attack_p
from modules.mia.attack_r import attack_r
from modules.mia.calibration import calibration
from modules.mia.entropy import MODIFIED_ENTROPY, entropy
from modules.mia.loss import loss
from modules.mia.ranks import share
from tests.worlds import (
    auc_error,
    difference_auc,
    difference_tpr,
    gaussian_world,
    loss_auc,
    naive_auc,
    naive_tpr,
    with_signals,
)

N = 20_000


@pytest.mark.parametrize(("shift", "tau", "queries"), [(0.5, 0.0, 1), (1.0, 1.0, 1), (2.0, 0.5, 1), (1.0, 0.5, 4)])
def test_loss_has_its_closed_form_auc(shift, tau, queries):
    evidence, member = gaussian_world(1, N, 1, shift=shift, tau=tau, queries=queries, population=1)
    assert abs(naive_auc(loss(evidence), member) - loss_auc(shift, tau, queries)) < 3 * auc_error(member)


def test_loss_tells_apart_records_whose_loss_rounds_to_zero():
    evidence, _ = gaussian_world(1, 10, 1)
    target = np.linspace(800, 900, 10, dtype=np.float32)[None]
    assert (np.diff(loss(replace(evidence, target=target))) > 0).all()


def test_of_two_classes_modified_entropy_ranks_as_the_loss_does():
    evidence, _ = gaussian_world(1, 500, 1, dtype=np.float64)
    scores = entropy(with_signals(evidence, [MODIFIED_ENTROPY]))
    assert np.array_equal(np.argsort(scores), np.argsort(loss(evidence)))


def test_entropy_says_when_its_signal_is_missing():
    with pytest.raises(KeyError, match="modified_entropy"):
        entropy(gaussian_world(1, 10, 1)[0])


@pytest.mark.parametrize("out_models", [1, 2, 4, 16])
def test_calibration_has_its_closed_form_auc_and_tpr(out_models):
    evidence, member = gaussian_world(2, N, out_models, tau=2.0, population=1)
    scores = calibration(evidence)
    assert abs(naive_auc(scores, member) - difference_auc(1.0, out_models)) < 3 * auc_error(member)
    assert abs(naive_tpr(scores, member, 0.01) - difference_tpr(1.0, out_models, 0.01)) < 0.015


def test_calibration_with_queries_has_its_closed_form_auc():
    evidence, member = gaussian_world(3, N, 2, tau=2.0, shift=0.5, queries=4, population=1)
    assert abs(naive_auc(calibration(evidence), member) - difference_auc(0.5, 2, 4)) < 3 * auc_error(member)


def test_calibration_on_the_loss_is_mean_out_loss_minus_loss():
    evidence, _ = gaussian_world(4, 50, 3, queries=2)
    losses = lambda log_odds: -np.log(expit(log_odds.astype(float)))  # noqa: E731
    for n, score in enumerate(calibration(evidence, on="loss")):
        out = ~evidence.trained_on[:, n]
        expected = losses(evidence.references[out][:, :, n]).mean() - losses(evidence.target[:, n]).mean()
        assert score == pytest.approx(expected, rel=1e-6)


def test_attack_p_counts_population_points_of_higher_loss():
    evidence, _ = gaussian_world(5, 60, 1, population=40)
    evidence.target[0, :5] = evidence.population[0, :5]  # equal losses are not higher
    evidence.target[0, 5:7] = (-99, 99)
    expected = (evidence.population[0][None, :] < evidence.target[0][:, None]).mean(axis=1)
    assert np.array_equal(attack_p(evidence, tie_break=False), expected)
    assert expected[5] == 0 and expected[6] == 1


def test_attack_p_is_a_p_value_of_non_members():
    evidence, member = gaussian_world(6, N, 1, population=5000)
    scores = np.sort(attack_p(evidence)[~member])
    uniform = np.linspace(0, 1, len(scores))
    assert abs(scores - uniform).max() < 1.63 * np.sqrt(1 / len(scores) + 1 / 5000)  # two-sample KS, 1%


def test_attack_p_ranks_as_loss_does_even_above_the_whole_population():
    evidence, member = gaussian_world(7, 4000, 1, shift=4.0, population=50)
    assert np.array_equal(np.argsort(attack_p(evidence)), np.argsort(loss(evidence)))
    assert naive_tpr(attack_p(evidence), member, 0.001) > 0.05
    assert naive_tpr(attack_p(evidence, tie_break=False), member, 0.001) == 0  # what ties do


@pytest.mark.parametrize("of", [1, 7, 100_000])
def test_breaking_ties_keeps_the_order_and_moves_a_share_by_less_than_one_count(of):
    beaten = np.repeat(np.unique([0, 1, of // 2, of - 1, of]), 6)
    by = np.tile([-1e6, -80.0, -1e-3, 1e-3, 80.0, 1e6], len(beaten) // 6)
    scores = share(beaten, of, by=by)
    assert (np.diff(scores) > 0).all()
    assert (abs(scores - beaten / of) <= 1 / (of + 1)).all()
    assert (scores > 0).all() and (scores < 1).all()


def test_ties_are_broken_at_the_resolution_of_float32():
    by = np.linspace(80, 80.01, 1000, dtype=np.float32)
    assert (np.diff(share(np.full(1000, 10**6), 10**6, by=by)) > 0).all()


@pytest.mark.parametrize("queries", [1, 3])
def test_attack_r_is_the_share_of_out_references_that_fit_no_better(queries):
    evidence, _ = gaussian_world(8, 200, 5, queries=queries)
    evidence.references[0, :, :50] = evidence.target[:, :50]  # equal counts
    scores = attack_r(evidence, tie_break=False)
    for n, score in enumerate(scores):
        out = ~evidence.trained_on[:, n]
        assert (
            score == (evidence.references[out, :, n].mean(1, float) <= evidence.target[:, n].mean(dtype=float)).mean()
        )


def test_attack_r_breaks_ties_by_the_difference_to_the_out_mean():
    evidence, _ = gaussian_world(9, 2000, 4)
    plain, broken = attack_r(evidence, tie_break=False), attack_r(evidence)
    difference = calibration(evidence)
    order = np.argsort(broken)
    assert np.array_equal(order, np.lexsort((difference, plain)))
    assert abs(broken - plain).max() <= 1 / 5


def test_attack_r_of_many_references_nears_the_oracle():
    evidence, member = gaussian_world(10, N, 32, tau=2.0, population=1)
    assert abs(naive_auc(attack_r(evidence), member) - difference_auc(1.0, 32)) < 0.012


def test_differences_ignore_the_in_references_entirely():
    evidence, _ = gaussian_world(11, 300, 3, population=50)
    changed = np.where(evidence.trained_on[:, None], 5 - evidence.references, evidence.references)
    spoiled: Evidence = replace(evidence, references=changed)
    for attack in (calibration, attack_r):
        assert np.array_equal(attack(spoiled), attack(evidence))
