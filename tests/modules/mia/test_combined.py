"""Combined: as good as the best of its attacks, better where they know different things, honest about its odds."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

import modules.mia  # noqa: F401  (fills the registry)
from core.registry import ATTACKS
from core.rng import stream
from modules.mia import combined as module
from modules.mia.combined import completed, logistic, shared
from tests.modules.mia.test_every_attack import attacked
from tests.worlds import auc_error, gaussian_world, naive_auc, vector_world, with_signals

THREE = ("LOSS", "Calibration", {"name": "LiRA", "mode": "offline"})


def bound(*attacks, **more):
    return ATTACKS.bind("Combined", {"attacks": attacks, **more})


@pytest.mark.parametrize("ridge", [0.5, 1.0, 20.0])
def test_the_regression_is_scikit_learns(ridge):
    draw = stream(1, "logistic")
    x = draw.standard_normal((300, 4)) * np.array([1, 1, 3, 0.1])
    y = draw.random(300) < expit(0.3 + x @ np.array([1.0, -0.5, 0.2, 2.0]))
    theirs = LogisticRegression(C=1 / ridge, tol=1e-10, solver="newton-cholesky").fit(x, y)
    np.testing.assert_allclose(logistic(x, y, ridge), [*theirs.intercept_, *theirs.coef_[0]], atol=1e-6)


def test_separable_records_and_equal_columns_give_finite_weights():
    x = np.linspace(-1, 1, 40)[:, None].repeat(3, axis=1)
    for ridge in (0.0, 1.0):
        weights = logistic(x, x[:, 0] > 0, ridge)
        assert np.isfinite(weights).all() and (x @ weights[1:] + weights[0] > 0).tolist() == (x[:, 0] > 0).tolist()


def test_it_is_the_logistic_regression_of_standardised_rehearsed_scores():
    """By hand: every reference attacked by the others, without its twin; scores in units of their middle half."""
    evidence, _ = gaussian_world(2, 600, 3)
    settings = bound(*THREE)
    scores, member = [], []
    for r in range(6):
        others = [k for k in range(6) if k // 2 != r // 2]
        rehearsal = replace(
            evidence,
            target=evidence.references[r],
            references=evidence.references[others],
            trained_on=evidence.trained_on[others],
            population=evidence.population_references[r],
            population_references=evidence.population_references[others],
        )
        calls = [(a, {}) if isinstance(a, str) else (a["name"], {"mode": a["mode"]}) for a in THREE]
        scores.append(np.stack([ATTACKS[name](rehearsal, **own) for name, own in calls], axis=1))
        member.append(evidence.trained_on[r])
    low, centre, high = np.quantile(np.concatenate(scores), [0.25, 0.5, 0.75], axis=0)
    standard = [np.arcsinh((one - centre) / ((high - low) / 1.349)) for one in scores]
    regression = LogisticRegression(C=1.0, tol=1e-10, solver="newton-cholesky")
    regression.fit(np.concatenate(standard), np.concatenate(member))

    held, truth = [], []
    for pair in range(3):
        own, rest = [2 * pair, 2 * pair + 1], [r for r in range(6) if r // 2 != pair]
        pooled = np.concatenate([scores[r] for r in rest])
        low_, centre_, high_ = np.quantile(pooled, [0.25, 0.5, 0.75], axis=0)
        units = lambda s, c=centre_, w=(high_ - low_) / 1.349: np.arcsinh((s - c) / w)  # noqa: E731
        fold = LogisticRegression(C=1.0, tol=1e-10, solver="newton-cholesky")
        fold.fit(units(pooled), np.concatenate([member[r] for r in rest]))
        held += [fold.decision_function(units(scores[r])) for r in own]
        truth += [member[r] for r in own]
    platt = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky")
    platt.fit(np.concatenate(held)[:, None], np.concatenate(truth))

    of_target = [ATTACKS[name](evidence, **own) for name, own in calls]
    expected = np.arcsinh((np.stack(of_target, axis=1) - centre) / ((high - low) / 1.349))
    expected = platt.intercept_ + platt.coef_[0] * regression.decision_function(expected)
    np.testing.assert_allclose(ATTACKS["Combined"](evidence, **settings), expected, rtol=1e-4, atol=1e-5)


def test_where_one_attack_is_the_best_test_there_is_nothing_lost_by_asking_others():
    evidence, member = gaussian_world(3, 4000, 6, shift=1.0, tau=1.5)
    best = naive_auc(ATTACKS["LiRA"](evidence, mode="offline"), member)
    found = naive_auc(attacked("Combined", {}, evidence), member)
    assert found > best - auc_error(member)


def test_attacks_that_know_different_things_are_better_together():
    """Two independent signals with a shift of 1 each: the best test has Phi(1), either alone Phi(1 / sqrt 2)."""
    evidence, member = vector_world(4, 4000, 16, np.ones(2), np.eye(2), names=("log_odds", "hinge"))
    one, other = ({"name": "MultiLiRA", "signals": (name,), "mode": "offline"} for name in ("log_odds", "hinge"))
    together = naive_auc(ATTACKS["Combined"](evidence, **bound(one, other)), member)
    alone = max(
        naive_auc(ATTACKS["MultiLiRA"](evidence, **{k: v for k, v in of.items() if k != "name"}), member)
        for of in (one, other)
    )
    assert norm.cdf(1) - 0.02 < together < norm.cdf(1) + 3 * auc_error(member)
    assert together > alone + 0.05


@pytest.mark.parametrize(("shift", "pairs"), [(0.0, 3), (0.7, 4), (2.0, 6)])
def test_its_log_odds_are_those_of_membership(shift, pairs):
    """Of records said to be members with probability p, a share p are; almost: rehearsals have a pair less."""
    evidence, member = gaussian_world(5, 4000, pairs, shift=shift)
    p = expit(attacked("Combined", {}, evidence))
    for part in np.array_split(np.argsort(p), 6):
        error = 4 * np.sqrt(0.25 / len(part)) + 0.02
        assert member[part].mean() == pytest.approx(p[part].mean(), abs=error)
    if shift == 0.0:
        assert abs(p - 0.5).max() < 0.15


def test_nothing_of_the_target_is_learnt():
    evidence, _ = gaussian_world(6, 300, 3)
    settings = bound(*THREE)
    one, other = (shared(e, settings) for e in (evidence, replace(evidence, target=5 - 3 * evidence.target)))
    assert np.array_equal(one.weight, other.weight) and one.constant == other.constant
    assert np.array_equal(one.centre, other.centre) and np.array_equal(one.scale, other.scale)


def test_a_rehearsals_twin_is_never_in_the_fold_that_learns():
    evidence, _ = gaussian_world(7, 200, 3)
    found = list(module._rehearsed(evidence, module._calls(bound(*THREE)), 6))
    assert [pair for pair, _, _ in found] == [0, 0, 2, 2, 4, 4]  # named by the first of two twins


def test_large_audits_learn_from_some_of_the_points(monkeypatch):
    evidence, member = gaussian_world(8, 3000, 3, shift=1.5)
    whole = naive_auc(attacked("Combined", {}, evidence), member)
    monkeypatch.setattr(module, "POINTS", 400)
    assert {len(truth) for _, _, truth in module._rehearsed(evidence, module._calls(bound(*THREE)), 4)} == {400}
    assert naive_auc(attacked("Combined", {}, evidence), member) > whole - 0.02


def test_a_useless_attack_beside_a_good_one_does_no_harm_and_what_was_chosen_is_said(caplog):
    evidence, member = gaussian_world(9, 3000, 4, shift=1.0, tau=5.0)
    caplog.set_level(logging.INFO, "modules.mia")
    scores = ATTACKS["Combined"](evidence, **bound("LOSS", "Calibration"))
    assert naive_auc(scores, member) > naive_auc(ATTACKS["Calibration"](evidence), member) - auc_error(member)
    assert "held-out AUC in rehearsals: all 0.7" in caplog.text and "LOSS 0.5" in caplog.text
    calls = module._calls(bound("LOSS", "LiRA", {"name": "LiRA", "mode": "offline"}))
    assert module._labels(calls) == ["LOSS", "LiRA (mode=online)", "LiRA (mode=offline)"]


def test_the_runs_other_attacks_are_combined_where_none_are_named():
    class Other:
        def __init__(self, name, **given):
            self.name, self.settings = name, ATTACKS.bind(name, given)

    settings = completed(ATTACKS.bind("Combined", {}), [Other("LOSS"), Other("RMIA", gamma=2.0), Other("Combined")])
    assert [(call["name"], call.get("gamma")) for call in settings["attacks"]] == [("LOSS", None), ("RMIA", 2.0)]
    assert completed(ATTACKS.bind("Combined", {}), [Other("LOSS")])["attacks"] is None
    named = bound("BASE", "LOSS")
    assert completed(named, [Other("RMIA"), Other("LiRA")]) == named


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        (("LOSS",), "at least 2"),
        (("LOSS", "Lira2"), "did you mean 'LiRA'"),
        (("LOSS", {"name": "RMIA", "gamma": -1}), "RMIA: gamma"),
        (("LOSS", "loss"), "listed twice"),
        (("LOSS", "Combined"), "cannot be rehearsed"),
        (("LOSS", "TokenInfoRMIA"), "cannot be rehearsed"),
        (("LOSS", {"gamma": 1}), "name: …, setting: value"),
    ],
)
def test_what_cannot_be_combined_is_refused(attacks, said):
    with pytest.raises(ValidationError, match=said):
        bound(*attacks)


def test_too_few_references_say_how_many_are_needed():
    evidence, _ = gaussian_world(10, 100, 1)
    with pytest.raises(ValueError, match="at least 2; there are 2 references, of which 0 pairs can be rehearsed"):
        ATTACKS["Combined"](evidence, **bound(*THREE))


def test_it_reads_what_its_attacks_read():
    settings = bound("BASE", "Entropy")
    names = {signal.name for signal in module.signals_of(settings)}
    assert names == {"log_odds_T2", "modified_entropy"}
    evidence, _ = gaussian_world(11, 60, 2)
    assert np.isfinite(ATTACKS["Combined"](with_signals(evidence, module.signals_of(settings)), **settings)).all()
