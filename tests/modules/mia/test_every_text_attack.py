"""What must hold of every attack on language models: a new one is tested by existing."""

from dataclasses import replace

import numpy as np
import pytest

import modules.mia  # noqa: F401  (fills the registry)
from core.registry import ATTACKS
from core.rng import stream
from core.types import Evidence
from tests.modules.mia.test_every_attack import attacked
from tests.worlds import (
    auc_error,
    columns,
    gaussian_world,
    naive_auc,
    oracle_auc,
    rows,
    text_evidence,
    text_world,
)

NAMES = [name for name in ATTACKS if ATTACKS.fact(name, "needs_text")]
VARIANTS = [
    *((name, {}) for name in NAMES),
    ("zlib", {"likelihood": "total"}),
    ("MinK", {"k": 0.5}),
    ("MinK++", {"k": 1.0}),
    ("GradNorm", {"p": "1"}),
    ("WBC", {"smallest": 1, "largest": 4, "sizes": 2}),
    ("EZ-MIA", {"shift": "log_probability"}),
    ("DC-PDD", {"first_only": False, "cap": 1.0}),
    ("TokenInfoRMIA", {"aggregate": "min_k"}),
]
every_attack = pytest.mark.parametrize(("name", "given"), VARIANTS, ids=lambda v: str(v))
STRONG = 3.0
# How far a raised fit of every token may lower the score: statistics of how a token stands in its own distribution.
NOT_MONOTONE = ("MinK++", "EZ-MIA", "TokenInfoRMIA")


@every_attack
def test_members_score_higher(name, given):
    evidence, member = text_world(1, shift=STRONG, pairs=4)
    given = {"cap": 1.0, **given} if name == "DC-PDD" else given  # two-token models are sure: none is below the cap
    assert 0.6 < naive_auc(attacked(name, given, evidence), member) < oracle_auc(STRONG) + 3 * auc_error(member)


@every_attack
def test_nothing_is_found_where_nothing_leaks(name, given):
    evidence, member = text_world(2, shift=0.0, pairs=3)
    assert abs(naive_auc(attacked(name, given, evidence), member) - 0.5) < 4 * auc_error(member)


@every_attack
def test_one_pair_of_references_is_enough(name, given):
    evidence, _ = text_world(3, 200, 1, shift=STRONG)
    scores = attacked(name, given, evidence)
    assert scores.shape == (200,) and np.isfinite(scores).all()


@every_attack
@pytest.mark.parametrize("extreme", [80.0, 1e4])
def test_scores_stay_finite_where_probabilities_are_exactly_zero_and_one(name, given, extreme):
    evidence, _ = text_world(4, 100, 2, population=40)
    odds, draw = log_odds_of(evidence), stream(4, "extremes")
    odds[draw.random(odds.shape) < 0.3] = extreme
    odds[draw.random(odds.shape) < 0.3] = -extreme
    with np.errstate(over="ignore"):
        extremes = text_evidence(evidence.text, odds, odds, evidence.trained_on, population_of(evidence))
    assert np.isfinite(attacked(name, given, extremes)).all()


@every_attack
def test_constant_signals_give_finite_scores(name, given):
    evidence, _ = text_world(5, 60, 2, population=20)
    flat = np.full_like(log_odds_of(evidence), 0.5)
    constant = text_evidence(evidence.text, flat, flat, evidence.trained_on, population_of(evidence))
    assert np.isfinite(attacked(name, given, constant)).all()


@every_attack
def test_points_may_come_in_any_order(name, given):
    evidence, _ = text_world(6, 300, 2, population=50)
    order = stream(6, "order").permutation(300)
    shuffled = attacked(name, given, columns(evidence, order))
    np.testing.assert_allclose(shuffled, attacked(name, given, evidence)[order], rtol=1e-9, atol=1e-9)


@every_attack
def test_references_may_come_in_any_order(name, given):
    evidence, _ = text_world(7, 300, 2, population=50)
    shuffled = attacked(name, given, rows(evidence, stream(7, "order").permutation(4)))
    np.testing.assert_allclose(shuffled, attacked(name, given, evidence), rtol=1e-9, atol=1e-9)


@every_attack
def test_a_point_keeps_its_score_when_the_target_changes_its_mind_about_others(name, given):
    evidence, _ = text_world(8, 200, 2, population=50)
    odds = log_odds_of(evidence)
    changed = odds.copy()
    changed[0, evidence.text.start[100] :] = 2 - 3 * changed[0, evidence.text.start[100] :]
    before, after = (
        attacked(name, given, text_evidence(evidence.text, o, odds, evidence.trained_on, population_of(evidence)))
        for o in (odds, changed)
    )
    assert np.array_equal(before[:100], after[:100])
    assert not np.array_equal(before[100:], after[100:])


@pytest.mark.parametrize(("name", "given"), [v for v in VARIANTS if v[0] not in NOT_MONOTONE], ids=lambda v: str(v))
def test_a_text_better_fitted_by_the_target_scores_no_lower(name, given):
    evidence, _ = text_world(9, 100, 2, population=50)
    odds = log_odds_of(evidence)
    better = odds.copy()
    better[0] += 1
    low, high = (
        attacked(name, given, text_evidence(evidence.text, o, odds, evidence.trained_on, population_of(evidence)))
        for o in (odds, better)
    )
    assert (high >= low).all()
    assert (high > low).mean() > 0.25 or name == "DC-PDD"  # whose tokens are at the cap


@every_attack
def test_a_second_run_gives_the_same_bits_and_changes_no_input(name, given):
    evidence, _ = text_world(10, 100, 2, population=30)
    kept = {kind: also.target.copy() for kind, also in evidence.also.items()}
    scores = attacked(name, given, evidence)
    assert np.array_equal(scores, attacked(name, given, evidence))
    assert all(np.array_equal(before, evidence.also[kind].target) for kind, before in kept.items())


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_needs_what_it_says(name):
    evidence, _ = text_world(11, 80, 2, population=30)
    if not ATTACKS.fact(name, "needs_references"):
        none = np.array([], dtype=int)
        assert np.array_equal(attacked(name, {}, rows(evidence, none)), attacked(name, {}, evidence))
    with pytest.raises((ValueError, KeyError), match=r"language model|was not computed"):
        ATTACKS[name](gaussian_world(11, 80)[0])


@pytest.mark.parametrize("name", [name for name in NAMES if ATTACKS.fact(name, "needs_references")])
def test_points_without_an_out_reference_are_an_error_not_a_zero(name):
    evidence, _ = text_world(12, 80, 2, population=30)
    evidence.trained_on[:, :7] = True
    seen = text_evidence(evidence.text, *[log_odds_of(evidence)] * 2, evidence.trained_on, population_of(evidence))
    with pytest.raises(ValueError, match="have no reference"):
        attacked(name, {}, seen)


ON_SEQUENCES = [name for name in ATTACKS if name not in NAMES and not ATTACKS.fact(name, "needs_labels")]


@pytest.mark.parametrize("name", ON_SEQUENCES)
def test_an_attack_on_labels_attacks_sequences_as_it_is(name):
    """The log-odds of a sequence's mean-token probability are a signal like any other."""
    evidence, member = text_world(13, shift=STRONG, pairs=4, population=300)
    assert naive_auc(attacked(name, {}, evidence), member) > 0.6
    nothing, outsiders = text_world(14, shift=0.0, pairs=4, population=300)
    assert abs(naive_auc(attacked(name, {}, nothing), outsiders) - 0.5) < 4 * auc_error(outsiders)


def log_odds_of(evidence: Evidence) -> np.ndarray:
    """(R + 1, U) of each token, the target first."""
    of_tokens = evidence.also["token_log_p"]
    log_p = np.concatenate([of_tokens.target, of_tokens.references[:, 0]]).astype(np.float64)
    return log_p - np.log(-np.expm1(log_p))


def population_of(evidence: Evidence) -> np.ndarray:
    return np.concatenate([evidence.population[None], evidence.population_references])


def test_the_worlds_helpers_invert_each_other():
    evidence, _ = text_world(15, 50, 2, population=20)
    again = text_evidence(evidence.text, *[log_odds_of(evidence)] * 2, evidence.trained_on, population_of(evidence))
    np.testing.assert_allclose(again.target, evidence.target, rtol=1e-4, atol=1e-5)
    order = np.arange(50)
    assert np.array_equal(columns(evidence, order).text.start, evidence.text.start)
    assert replace(evidence) is not evidence
