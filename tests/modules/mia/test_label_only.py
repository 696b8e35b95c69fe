"""Attacks that see predicted labels alone, against closed forms and plain loops."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import modules.mia  # noqa: F401  (fills the registry)
from core.registry import ATTACKS
from core.rng import stream
from core.types import Evidence
from modules.mia.label_robustness import signal_of
from tests.modules.mia.test_every_attack import attacked
from tests.worlds import auc_error, difference_auc, gaussian_world, loss_auc, naive_auc


@pytest.mark.parametrize(("shift", "tau"), [(0.5, 0.0), (1.0, 1.0), (3.0, 0.5)])
def test_the_gap_attack_has_its_closed_form_auc(shift, tau):
    """AUC = 1/2 + (accuracy on members - accuracy on others) / 2 (Yeom et al. 2018)."""
    evidence, member = gaussian_world(1, 20_000, 1, shift=shift, tau=tau)
    gap = norm.cdf(shift / np.hypot(1, tau)) - norm.cdf(0)
    assert naive_auc(attacked("LabelGap", {}, evidence), member) == pytest.approx(
        0.5 + gap / 2, abs=3 * auc_error(member)
    )


def test_many_copies_on_a_linear_model_rank_as_the_loss_does():
    """The share of copies that keep the label is then an increasing function of the log-odds."""
    evidence, member = gaussian_world(2, 8000, 1, shift=1.5)
    found = naive_auc(attacked("LabelRobustness", {}, evidence), member)
    assert found == pytest.approx(loss_auc(1.5, 1.0), abs=0.01 + 3 * auc_error(member))


@pytest.mark.parametrize(("shift", "tau"), [(0.5, 0.0), (1.0, 1.0), (3.0, 0.5)])
def test_the_distance_attack_has_its_closed_form_auc(shift, tau):
    """The loss's, but for records that are labelled wrongly: all of them tie at distance 0."""
    evidence, member = gaussian_world(5, 20_000, 1, shift=shift, tau=tau)
    sd = np.hypot(1, tau)
    above = quad(lambda s: norm.pdf(s, shift, sd) * norm.cdf(s, 0, sd), 0, 30)[0]
    expected = above + norm.cdf(-shift / sd) * 0.5 / 2
    found = naive_auc(attacked("LabelDistance", {}, evidence), member)
    assert found == pytest.approx(expected, abs=3 * auc_error(member))


def test_distances_compared_with_references_cancel_what_is_far_for_every_model():
    """Of records that are all labelled rightly it is LiRA on margins."""
    evidence, member = gaussian_world(6, 4000, 8, shift=1.0, tau=2.0)
    far = replace(evidence, target=evidence.target + 20, references=evidence.references + 20)
    alone, offline = (naive_auc(attacked("LabelDistance", {"mode": m}, far), member) for m in ("alone", "offline"))
    assert alone == pytest.approx(loss_auc(1.0, 2.0), abs=0.02)
    assert offline == pytest.approx(difference_auc(1.0, 8), abs=0.02)
    np.testing.assert_allclose(
        attacked("LabelDistance", {"mode": "online"}, far), ATTACKS["LiRA"](far, mode="online"), rtol=1e-9
    )


def labels(seed: int, copies: int = 5, records: int = 40, pairs: int = 3) -> Evidence:
    """Labels kept at random, more of records that were trained on."""
    base, _ = gaussian_world(seed, records, pairs)
    draw = stream(seed, "labels kept")
    keep = 0.5 + 0.3 * base.trained_on[:, None]
    references = (draw.random((2 * pairs, copies, records)) < keep).astype(np.float32)
    target = (draw.random((copies, records)) < 0.6).astype(np.float32)
    none = np.zeros((copies, 0), np.float32)
    seen = replace(
        base, target=target, references=references, population=none, population_references=references[:, :, :0]
    )
    return replace(base, also={signal_of(ATTACKS.bind("LabelRobustness", {})).name: seen})


@pytest.mark.parametrize("mode", ["alone", "shadow", "offline", "online"])
def test_label_robustness_is_its_definition_record_by_record(mode):
    evidence = labels(3)
    (seen,) = evidence.also.values()
    copies, records = seen.target.shape
    scores = ATTACKS["LabelRobustness"](evidence, mode=mode)

    def log_odds(kept):
        count = float(kept.sum())
        return np.log((count + 0.5) / (copies - count + 0.5))

    members = [(r, n) for r, n in np.ndindex(seen.trained_on.shape) if seen.trained_on[r, n]]
    others = [(r, n) for r, n in np.ndindex(seen.trained_on.shape) if not seen.trained_on[r, n]]
    rates = [
        [(sum(float(seen.references[r, q, n]) for r, n in side) + 0.5) / (len(side) + 1) for q in range(copies)]
        for side in (members, others)
    ]
    squares, freedom, means = {True: 0.0, False: 0.0}, {True: 0, False: 0}, {}
    for n in range(records):
        for side in (True, False):
            own = [
                log_odds(seen.references[r, :, n]) for r in range(len(seen.references)) if seen.trained_on[r, n] == side
            ]
            means[n, side] = np.mean(own)
            squares[side] += sum((value - np.mean(own)) ** 2 for value in own)
            freedom[side] += len(own) - 1
    for n in range(records):
        bits, odds = seen.target[:, n].astype(float), log_odds(seen.target[:, n])
        sd = {side: np.sqrt(squares[side] / freedom[side]) for side in (True, False)}
        expected = {
            "alone": bits.mean(),
            "shadow": sum(
                np.log(i / o) if bit else np.log((1 - i) / (1 - o)) for bit, i, o in zip(bits, *rates, strict=True)
            ),
            "offline": (odds - means[n, False]) / sd[False],
            "online": norm.logpdf(odds, means[n, True], sd[True]) - norm.logpdf(odds, means[n, False], sd[False]),
        }[mode]
        assert scores[n] == pytest.approx(expected, abs=1e-9)


def test_a_shadow_attack_weighs_the_copies_that_tell_members_apart():
    """One copy of ten tells; the count drowns it, the likelihood ratio does not."""
    base, member = gaussian_world(4, 4000, 4)
    draw = stream(4, "one copy tells")

    def kept(trained):
        rate = np.full((*trained.shape[:-1], 10, trained.shape[-1]), 0.5)
        rate[..., 0, :] = np.where(trained, 0.9, 0.2)
        return (draw.random(rate.shape) < rate).astype(np.float32)

    none = np.zeros((10, 0), np.float32)
    references = kept(base.trained_on)
    seen = replace(
        base, target=kept(member), references=references, population=none, population_references=references[:, :, :0]
    )
    evidence = replace(base, also={signal_of(ATTACKS.bind("LabelRobustness", {})).name: seen})
    alone, shadow = (naive_auc(ATTACKS["LabelRobustness"](evidence, mode=mode), member) for mode in ("alone", "shadow"))
    assert shadow == pytest.approx(0.5 + 0.7 / 2, abs=0.02)  # the gap of the one copy
    assert alone < shadow - 0.15
