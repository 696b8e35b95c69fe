"""LiRA and BaVarIA: closed forms, the Neyman-Pearson bound from below, naive double loops, every target at once."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, norm
from scipy.stats import t as student

from core.rng import stream
from core.types import Evidence
from modules.mia.all_targets import lira_all_targets
from modules.mia.bavaria import _fit, _predict, bavaria
from modules.mia.calibration import calibration
from modules.mia.lira import FLOOR, lira
from modules.mia.loss import loss
from modules.mia.moments import moments
from tests.worlds import (
    auc_error,
    difference_auc,
    difference_tpr,
    few_vulnerable_auc,
    gaussian_world,
    loss_auc,
    naive_auc,
    naive_tpr,
    oracle_auc,
    unequal_variances,
)

N = 20_000


def masked(pairs: int, points: int, queries: int = 1) -> Evidence:
    """A world whose records have unequal numbers of IN and OUT references, some of them one."""
    evidence, _ = gaussian_world(21, points, pairs, queries=queries, in_std=0.7, dtype=np.float64)
    trained_on = stream(21, "masked").random(evidence.trained_on.shape) < 0.5
    trained_on[0], trained_on[1] = True, False
    return replace(evidence, trained_on=trained_on)


def double_loop(evidence: Evidence, mode: str, own: bool) -> np.ndarray:
    """LiRA written as its definition: for each query, for each record, two fits and two densities."""
    queries, points = evidence.target.shape
    scores = np.zeros((queries, points))
    for q in range(queries):
        fits = []
        for side in (evidence.trained_on, ~evidence.trained_on):
            samples = [evidence.references[side[:, n], q, n] for n in range(points)]
            squares = sum(((s - s.mean()) ** 2).sum() for s in samples)
            pooled = squares / sum(len(s) - 1 for s in samples)
            stds = [max(s.std(ddof=1), FLOOR * pooled**0.5) if own and len(s) > 1 else pooled**0.5 for s in samples]
            fits.append([norm(s.mean(), std) for s, std in zip(samples, stds, strict=True)])
        for n in range(points):
            value, (inside, out) = evidence.target[q, n], (fits[0][n], fits[1][n])
            if mode == "online":
                scores[q, n] = inside.logpdf(value) - out.logpdf(value)
            else:
                scores[q, n] = norm.ppf(out.cdf(value))
    return scores.mean(axis=0)


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["global", "per_record"])
@pytest.mark.parametrize("queries", [1, 3])
def test_lira_is_its_definition_record_by_record(mode, variance, queries):
    evidence = masked(4, 60, queries)
    expected = double_loop(evidence, mode, variance == "per_record")
    sure = abs(expected) < 5  # beyond, the definition's cdf rounds to 1 and its ppf is infinite
    scores = lira(evidence, mode=mode, variance=variance)
    np.testing.assert_allclose(scores[sure | (mode == "online")], expected[sure | (mode == "online")], rtol=1e-8)


@pytest.mark.parametrize(("pairs", "rule"), [(31, "global"), (32, "per_record")])
def test_auto_pools_the_variance_below_64_references(pairs, rule):
    evidence, _ = gaussian_world(22, 50, pairs)
    for mode in ("online", "offline"):
        assert np.array_equal(lira(evidence, mode=mode), lira(evidence, mode=mode, variance=rule))


@pytest.mark.parametrize("out_models", [1, 2, 4, 16])
def test_offline_lira_has_its_closed_form_auc_and_tpr(out_models):
    evidence, member = gaussian_world(23, N, out_models, tau=2.0, population=1)
    scores = lira(evidence, mode="offline", variance="global")
    assert abs(naive_auc(scores, member) - difference_auc(1.0, out_models)) < 3 * auc_error(member)
    assert abs(naive_tpr(scores, member, 0.01) - difference_tpr(1.0, out_models, 0.01)) < 0.015


@pytest.mark.parametrize("out_models", [2, 8])
def test_offline_lira_with_one_variance_ranks_as_calibration_does(out_models):
    evidence, _ = gaussian_world(24, 1000, out_models, dtype=np.float64)
    assert np.array_equal(np.argsort(lira(evidence, mode="offline")), np.argsort(calibration(evidence)))


def test_offline_lira_is_one_sided():
    evidence, _ = gaussian_world(25, 100, 8)
    badly_fitted = replace(evidence, target=np.full_like(evidence.target, -30.0))
    assert (lira(badly_fitted, mode="offline") < lira(evidence, mode="offline")).all()
    assert (bavaria(badly_fitted, mode="offline") < bavaria(evidence, mode="offline")).all()


def test_offline_lira_does_not_saturate():
    evidence, _ = gaussian_world(26, 100, 8)
    far = replace(evidence, target=np.linspace(1e3, 1e4, 100, dtype=np.float32)[None])
    nearest = replace(far, references=np.zeros_like(far.references) + np.arange(16, dtype=np.float32)[:, None, None])
    assert (np.diff(lira(nearest, mode="offline", variance="global")) > 0).sum() > 90


def test_offline_lira_ignores_the_in_references_entirely():
    evidence, _ = gaussian_world(27, 300, 4)
    spoiled = replace(
        evidence, references=np.where(evidence.trained_on[:, None], 5 - 3 * evidence.references, evidence.references)
    )
    for attack in (lira, bavaria):
        assert np.array_equal(attack(spoiled, mode="offline"), attack(evidence, mode="offline"))


# AUCs of literature 3.6 (2), simulated there for a known variance: n IN and n OUT models, shift 1.
@pytest.mark.parametrize(("pairs", "auc"), [(1, 0.623), (2, 0.669), (4, 0.711), (16, 0.749), (64, 0.757)])
def test_online_lira_has_the_known_auc(pairs, auc):
    evidence, member = gaussian_world(28, N, pairs, population=1)
    assert abs(naive_auc(lira(evidence, variance="global"), member) - auc) < 3 * auc_error(member) + 0.0005


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_lira_approaches_the_oracle_and_never_beats_it(shift):
    evidence, member = gaussian_world(29, N, 64, shift=shift, population=1)
    for scores in (lira(evidence), bavaria(evidence)):
        assert -0.012 < naive_auc(scores, member) - oracle_auc(shift) < 3 * auc_error(member)


def test_loss_is_below_offline_below_online_below_the_oracle():
    """Where only some records leak, only IN models say which. (Where all leak alike, knowing it beats online LiRA.)"""
    evidence, member = gaussian_world(30, N, 64, shift=2.0, tau=2.0, share=0.3, population=1)
    by_loss, offline, online = (
        naive_auc(scores, member) for scores in (loss(evidence), lira(evidence, mode="offline"), lira(evidence))
    )
    error = auc_error(member)
    assert abs(by_loss - (0.7 * 0.5 + 0.3 * loss_auc(2.0, 2.0))) < 3 * error
    assert abs(offline - (0.7 * 0.5 + 0.3 * difference_auc(2.0, 64))) < 3 * error
    assert by_loss + 0.03 < offline < online - 0.02
    assert few_vulnerable_auc(2.0, 0.3) - 0.04 < online < few_vulnerable_auc(2.0, 0.3) + 3 * error


def test_the_few_vulnerable_are_found_at_a_low_false_positive_rate():
    evidence, member = gaussian_world(30, N, 64, shift=4.0, share=0.1, population=1)
    tpr = naive_tpr(lira(evidence), member, 0.001)
    assert 0.08 < tpr < 0.0953 + 0.012  # of the oracle: .0953, literature 3.6 (3)


def test_online_lira_is_two_sided_where_members_vary_less():
    evidence, member = gaussian_world(31, N, 64, shift=0.5, tau=0.0, in_std=0.5, population=1)
    online, offline = lira(evidence, variance="global"), lira(evidence, mode="offline", variance="global")
    for radius in (0.3, 0.6, 1.0, 1.5):
        fpr, tpr = unequal_variances(0.5, 0.5, np.array(radius))
        assert abs(naive_tpr(online, member, float(fpr)) - tpr) < 0.03
    bound = norm.cdf(0.5 / np.sqrt(1 + 0.25))
    assert abs(naive_auc(offline, member) - bound) < 0.015
    assert naive_auc(online, member) > bound + 0.05


def test_swapping_the_masks_turns_the_online_score_around():
    evidence, _ = gaussian_world(32, 200, 5)
    swapped = replace(evidence, trained_on=~evidence.trained_on)
    np.testing.assert_allclose(lira(swapped), -lira(evidence), rtol=1e-9)


def test_one_model_a_side_ranks_by_distance_to_the_two_and_says_so(caplog):
    evidence, _ = gaussian_world(33, 200, 1, dtype=np.float64)
    with caplog.at_level(logging.INFO):
        scores = lira(evidence, variance="per_record")
    assert "taken as 1" in caplog.text
    first = evidence.trained_on[0]
    inside, out = (np.where(side, *evidence.references[:, 0]) for side in (first, ~first))
    target = evidence.target[0]
    np.testing.assert_allclose(scores, ((target - out) ** 2 - (target - inside) ** 2) / 2)


def test_a_side_of_one_model_borrows_the_variance_of_the_other():
    evidence, _ = gaussian_world(34, 300, 2, dtype=np.float64)
    trained_on = np.zeros_like(evidence.trained_on)
    trained_on[0] = True
    lopsided = replace(evidence, trained_on=trained_on)
    out = evidence.references[1:, 0]
    variance = out.var(axis=0, ddof=1).mean()
    expected = (
        np.square(evidence.target[0] - out.mean(0)) - np.square(evidence.target[0] - evidence.references[0, 0])
    ) / 2
    np.testing.assert_allclose(lira(lopsided, variance="global"), expected / variance)


def test_agreeing_references_do_not_make_a_record_certain():
    """Without the floor, one record whose references coincide would outrank everything."""
    evidence, _ = gaussian_world(35, 1000, 4)
    evidence.references[:, :, 0] = 1.0
    scores = lira(evidence, variance="per_record", mode="offline")
    pooled = 1.0
    assert abs(scores[0]) <= 1.1 * abs(evidence.target[0, 0] - 1.0) / (FLOOR * pooled)


# ---- BaVarIA -------------------------------------------------------------------------------------------------


def inverse_gamma_world(models: int, m: float, k: float, a: float, b: float, records: int = N) -> np.ndarray:
    """(models, 1, records) drawn from the prior BaVarIA assumes."""
    draw = stream(36, "inverse gamma")
    s2 = b / draw.gamma(a, size=records)
    mu = m + np.sqrt(s2 / k) * draw.standard_normal(records)
    return (mu + np.sqrt(s2) * draw.standard_normal((models, records)))[:, None]


@pytest.mark.parametrize("models", [2, 3, 8])
@pytest.mark.parametrize(("m", "k", "a", "b"), [(1.0, 0.5, 2.0, 3.0), (-2.0, 4.0, 6.0, 10.0)])
def test_bavaria_recovers_the_prior_it_assumes(models, m, k, a, b):
    side = moments(inverse_gamma_world(models, m, k, a, b), np.ones((models, N), dtype=bool))
    prior = _fit(side, side.pooled_variance())
    assert prior.m.item() == pytest.approx(m, abs=0.06)
    assert prior.k.item() == pytest.approx(k, rel=0.15)
    assert prior.a.item() == pytest.approx(a, rel=0.3)
    assert (prior.b / prior.a).item() == pytest.approx(b / a, rel=0.1)


def test_the_predictive_of_bavaria_is_calibrated():
    """Under its own prior the next model's value is uniform through the predictive distribution function."""
    values = inverse_gamma_world(4, 1.0, 0.5, 2.0, 3.0)
    side = moments(values[:3], np.ones((3, N), dtype=bool))
    prior = _fit(side, side.pooled_variance())
    _, z = _predict(values[3], side, prior, "t")
    assert kstest(z[0], student(2 * (prior.a.item() + 1.5)).cdf).pvalue > 0.001


@pytest.mark.parametrize("predictive", ["t", "n"])
def test_bavaria_is_the_predictive_of_its_prior_record_by_record(predictive):
    evidence = masked(5, 40)
    scores = np.zeros(40)
    for side, sign in ((evidence.trained_on, 1), (~evidence.trained_on, -1)):
        fitted = moments(evidence.references, side)
        prior = _fit(fitted, fitted.pooled_variance())
        m0, k0, a0, b0 = (value.item() for value in (prior.m, prior.k, prior.a, prior.b))
        for n, value in enumerate(evidence.target[0]):
            sample = evidence.references[side[:, n], 0, n]
            k, a = k0 + len(sample), a0 + len(sample) / 2
            m = (k0 * m0 + sample.sum()) / k
            b = b0 + 0.5 * (np.square(sample).sum() + k0 * m0**2 - k * m**2)  # all squares added, none completed
            law = student(2 * a, m, np.sqrt(b * (k + 1) / (a * k)))
            scores[n] += sign * (law if predictive == "t" else norm(m, law.std())).logpdf(value)
    np.testing.assert_allclose(bavaria(evidence, predictive=predictive), scores, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_with_few_models_bavaria_beats_lira(mode, pairs):
    evidence, member = gaussian_world(36, N, pairs, population=1)
    assert naive_auc(bavaria(evidence, mode=mode), member) > naive_auc(lira(evidence, mode=mode), member) + 0.001


def test_bavaria_needs_no_switch_between_few_and_many_models():
    """Records of unequal variance: with many models it follows each record's own, as per-record LiRA does."""
    evidence, member = gaussian_world(37, 4000, 40, population=1)
    scale = np.exp(stream(37, "scale").standard_normal(4000)).astype(np.float32)
    uneven = replace(evidence, target=evidence.target * scale, references=evidence.references * scale)
    mine = naive_auc(bavaria(uneven), member)
    assert mine > naive_auc(lira(uneven, variance="global"), member) + 0.02
    assert mine > naive_auc(lira(uneven, variance="per_record"), member) - 0.01


def test_the_two_predictives_agree_when_records_are_alike():
    evidence, _ = gaussian_world(38, N, 20, population=1)
    t, n = bavaria(evidence), bavaria(evidence, predictive="n")
    assert np.corrcoef(t, n)[0, 1] > 0.999


# ---- every model as the target -------------------------------------------------------------------------------


def all_models(pairs: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    evidence, _ = gaussian_world(39, points, pairs, in_std=0.8, dtype=np.float64)
    return evidence.references[:, 0], evidence.trained_on


def one_by_one(signals: np.ndarray, member: np.ndarray, **settings) -> np.ndarray:
    none = np.zeros((1, 0))
    scores = []
    for target in range(len(signals)):
        others = np.arange(len(signals)) // 2 != target // 2
        references = signals[others][:, None]
        evidence = Evidence(signals[target][None], references, member[others], none, np.zeros((others.sum(), 1, 0)))
        scores.append(lira(evidence, **settings))
    return np.stack(scores)


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["auto", "global", "per_record"])
@pytest.mark.parametrize("pairs", [2, 3, 8, 33])
def test_all_targets_at_once_equal_one_by_one_without_their_pair(mode, variance, pairs):
    signals, member = all_models(pairs, 50)
    expected = one_by_one(signals, member, mode=mode, variance=variance)
    found = lira_all_targets(signals, member, mode=mode, variance=variance, block=7)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_all_targets_never_use_the_twin():
    signals, member = all_models(4, 60)
    spoiled = signals.copy()
    spoiled[3] += 100.0
    np.testing.assert_allclose(lira_all_targets(spoiled, member)[2], lira_all_targets(signals, member)[2], rtol=1e-8)


def test_all_targets_work_from_files_into_a_file_in_bounded_memory(tmp_path):
    signals, member = all_models(3, 101)
    np.save(tmp_path / "signals.npy", signals.astype(np.float32))
    np.save(tmp_path / "member.npy", member)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("signals", "member")]
    out = np.lib.format.open_memmap(tmp_path / "scores.npy", mode="w+", dtype=np.float32, shape=signals.shape)
    assert lira_all_targets(*mapped, block=16, out=out) is out
    np.testing.assert_allclose(np.asarray(out), lira_all_targets(signals, member), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_all_targets_hold_only_blocks_in_memory():
    import tracemalloc

    signals, member = all_models(16, 20_000)
    out = np.empty_like(signals, dtype=np.float32)
    tracemalloc.start()
    lira_all_targets(signals, member, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_all_targets_refuse_what_are_not_twins():
    signals, member = all_models(3, 20)
    with pytest.raises(ValueError, match="complementary"):
        lira_all_targets(signals, np.roll(member, 1, axis=0))
    with pytest.raises(ValueError, match="at least two pairs, got 2"):
        lira_all_targets(signals[:2], member[:2])
    with pytest.raises(ValueError, match="whole pairs"):
        lira_all_targets(signals[:5], member[:5])
