"""MultiLiRA: LiRA where there is one signal, the closed form where signals are correlated, a naive twin."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

import modules.mia  # noqa: F401  (fills the registry)
from core.registry import ATTACKS
from core.rng import stream
from modules.mia import joint
from modules.mia.lira import lira
from modules.mia.multi_lira import shared
from tests.modules.mia.test_every_attack import attacked
from tests.worlds import auc_error, gaussian_world, naive_auc, rows, vector_world

THREE = ("log_odds", "hinge", "modified_entropy")
SHIFT = np.array([1.0, 0.6, -0.3])
COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 1.5, 0.2], [0.3, 0.2, 0.7]])


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("pairs", [1, 3, 32])
@pytest.mark.parametrize("variance", ["auto", "global", "per_record"])
def test_with_one_signal_it_is_lira(mode, pairs, variance):
    evidence, _ = gaussian_world(1, 200, pairs)
    ours = attacked("MultiLiRA", {"signals": ("log_odds",), "mode": mode, "variance": variance}, evidence)
    np.testing.assert_allclose(ours, lira(evidence, mode=mode, variance=variance), rtol=1e-12, atol=1e-12)


def test_without_correlations_the_queries_are_independent_as_in_lira():
    evidence, _ = gaussian_world(2, 200, 3, queries=4)
    given = {"signals": ("log_odds",), "correlation": "none"}
    np.testing.assert_allclose(attacked("MultiLiRA", given, evidence), 4 * lira(evidence), rtol=1e-10)
    one_sided = attacked("MultiLiRA", {**given, "mode": "offline"}, evidence)
    np.testing.assert_allclose(one_sided, 2 * lira(evidence, mode="offline"), rtol=1e-10)


def pooled(samples):
    """Covariance within records, of one side; its correlations less the share that sampling explains."""
    freedom = sum(len(s) - 1 for s in samples)
    covariance = sum((s - s.mean(0)).T @ (s - s.mean(0)) for s in samples) / freedom
    scale = np.sqrt(np.diag(covariance))
    rho = covariance / np.outer(scale, scale)
    off = [(i, k) for i, k in np.ndindex(rho.shape) if i != k]
    noise, seen = sum((1 - rho[p] ** 2) ** 2 for p in off) / freedom, sum(rho[p] ** 2 for p in off)
    kept = rho * (1 - noise / seen) * joint.CEILING
    kept[np.diag_indices(len(rho))] = 1
    return kept * np.outer(scale, scale), freedom


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_multi_lira_is_its_definition_record_by_record(mode):
    evidence, _ = vector_world(3, 60, 4, SHIFT, COVARIANCE)
    evidence = rows(evidence, np.array([0, 1, 2, 3, 5, 6, 7]))  # records have unequal numbers of IN and OUT models
    found = ATTACKS["MultiLiRA"](evidence, mode=mode)
    columns = [evidence, *evidence.also.values()]
    target = np.stack([one.target[0] for one in columns], axis=1).astype(float)
    models = np.stack([one.references[:, 0] for one in columns], axis=2).astype(float)
    inside, out = ([models[side[:, n], n] for n in range(60)] for side in (evidence.trained_on, ~evidence.trained_on))
    of_in, of_out = pooled(inside)[0], pooled(out)[0]
    for n in range(60):
        if mode == "online":
            expected = multivariate_normal(inside[n].mean(0), of_in).logpdf(target[n])
            expected -= multivariate_normal(out[n].mean(0), of_out).logpdf(target[n])
        else:
            scale = np.sqrt(np.diag(of_out))
            inverse = np.linalg.inv(of_out / np.outer(scale, scale))
            z, ones = (target[n] - out[n].mean(0)) / scale, np.ones(3)
            expected = ones @ inverse @ z / np.sqrt(ones @ inverse @ ones)
        assert found[n] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_correlated_signals_reach_the_closed_form_of_the_best_test():
    """AUC = Phi(sqrt(d' S^-1 d / 2)), more than of any signal alone, or of all of them taken as independent."""
    evidence, member = vector_world(4, 8000, 48, SHIFT, COVARIANCE)
    best = norm.cdf(np.sqrt(SHIFT @ np.linalg.inv(COVARIANCE) @ SHIFT / 2))
    given = {"variance": "global", "correlation": "global"}
    joined = naive_auc(ATTACKS["MultiLiRA"](evidence, **given), member)
    assert best - 0.015 < joined < best + 3 * auc_error(member)
    apart = naive_auc(ATTACKS["MultiLiRA"](evidence, **{**given, "correlation": "none"}), member)
    assert joined > max(apart, naive_auc(lira(evidence), member)) + 0.02


@pytest.mark.parametrize("out_models", [1, 4])
def test_offline_a_shift_of_equal_size_has_its_closed_form(out_models):
    """A shift of c standard deviations: AUC = Phi(c sqrt(1'R^-1 1) / sqrt(2 (1 + 1/n)))."""
    scale = np.array([1.0, 2.0, 0.5])
    rho = np.array([[1, 0.5, 0.2], [0.5, 1, -0.1], [0.2, -0.1, 1]])
    evidence, member = vector_world(5, 20_000, out_models, 0.6 * scale, rho * np.outer(scale, scale))
    scores = ATTACKS["MultiLiRA"](evidence, mode="offline")
    information = np.linalg.inv(rho).sum() if out_models > 1 else 9 / rho.sum()  # one model a side: none is seen
    expected = norm.cdf(0.6 * np.sqrt(information / (2 * (1 + 1 / out_models))))
    if out_models == 1:  # nor is any variance: coordinates count as they are
        expected = norm.cdf(0.6 * scale.sum() / np.sqrt(4 * scale @ rho @ scale))
    assert naive_auc(scores, member) == pytest.approx(expected, abs=3 * auc_error(member))
    if out_models > 1:
        assert scores[~member].std() == pytest.approx(np.sqrt(1 + 1 / out_models), rel=0.03)


def test_a_signal_listed_under_two_names_counts_once():
    """Of two classes, log-odds and hinge are one number."""
    evidence, _ = gaussian_world(6, 500, 4)
    twice = attacked("MultiLiRA", {"signals": ("log_odds", "hinge")}, evidence)
    np.testing.assert_allclose(np.ptp(twice - lira(evidence)), 0, atol=0.01)  # a constant: the variances count twice


def test_records_have_correlations_of_their_own_where_these_differ_and_else_the_pooled_ones():
    draw = stream(7, "correlations of records")
    turned = np.where(draw.random(1500) < 0.5, 0.95, -0.95)
    covariance = np.tile(np.eye(2), (1500, 1, 1))
    covariance[:, 0, 1] = covariance[:, 1, 0] = turned
    names, settings = THREE[:2], ATTACKS.bind("MultiLiRA", {"signals": THREE[:2]})
    shift = np.array([0.7, 0.7])
    alike, _ = vector_world(8, 1500, 32, shift, np.array([[1, 0.6], [0.6, 1]]), names=names)
    differ, member = vector_world(8, 1500, 32, shift, covariance, names=names)
    assert all(side.weight > 0.8 for side in shared(alike, settings))
    assert all(side.weight < 0.1 for side in shared(differ, settings))
    own, one = (
        naive_auc(ATTACKS["MultiLiRA"](differ, signals=names, correlation=how), member) for how in ("auto", "global")
    )
    # of records that are turned the one way d'S^-1 d = 0.98 / 1.95, of the others 0.98 / 0.05
    assert own > one + 0.1


def test_many_coordinates_and_few_records_are_no_reason_to_fail():
    evidence, _ = gaussian_world(9, 12, 1, queries=18)
    for mode in ("online", "offline"):
        assert np.isfinite(attacked("MultiLiRA", {"mode": mode}, evidence)).all()


def test_a_signal_listed_twice_is_an_error():
    evidence, _ = gaussian_world(10, 20, 2)
    with pytest.raises(ValueError, match="listed twice: log_odds, log_odds"):
        attacked("MultiLiRA", {"signals": ("log_odds", "log_odds")}, evidence)


def test_blocks_of_records_change_no_bit(monkeypatch):
    evidence, _ = vector_world(11, 50, 33, SHIFT, COVARIANCE)
    settings = ATTACKS.bind("MultiLiRA", {})
    whole = shared(evidence, settings)
    scores = ATTACKS["MultiLiRA"](evidence, whole, **settings)
    monkeypatch.setattr(joint, "BYTES", 3_000)
    assert len(list(joint._blocks([joint.Part(evidence)], square=True))) > 1
    assert np.array_equal(ATTACKS["MultiLiRA"](evidence, whole, **settings), scores)
    for one, other in zip(shared(evidence, settings), whole, strict=True):
        np.testing.assert_allclose(one.correlation, other.correlation, rtol=1e-12)
