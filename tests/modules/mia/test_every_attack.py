"""What must hold of every registered attack: a new attack is tested by existing."""

from dataclasses import fields, replace

import numpy as np
import pytest

import modules.mia  # noqa: F401  (fills the registry)
from core.config import Call, min_pairs
from core.registry import ATTACKS
from core.rng import stream
from core.types import Evidence
from tests.worlds import auc_error, columns, gaussian_world, naive_auc, oracle_auc, rows, with_signals

ON_LABELS = [name for name in ATTACKS if not ATTACKS.fact(name, "needs_text")]  # the rest: test_every_text_attack.py
VARIANTS = [
    *((name, {}) for name in ON_LABELS),
    ("AttackP", {"tie_break": False}),
    ("AttackR", {"tie_break": False}),
    ("Calibration", {"on": "loss"}),
    ("LiRA", {"mode": "offline"}),
    ("LiRA", {"variance": "global"}),
    ("LiRA", {"variance": "per_record"}),
    ("LiRA", {"variance": "per_record", "mode": "offline"}),
    ("RMIA", {"a": 0.3, "gamma": 2.0}),
    ("RMIA", {"a": 0.0, "tie_break": False}),
    ("RMIA", {"a": 1.0, "queries": "mean"}),
    ("RMIA", {"mode": "online"}),
    ("RMIA", {"a": 0.3, "temperature": 2.0}),
    ("RMIA", {"a": 0.3, "probability": "taylor"}),
    ("RMIA", {"a": 0.3, "probability": "soft_margin", "temperature": 2.0}),
    ("RMIA", {"a": 0.3, "probability": "soft_margin_taylor", "temperature": 2.0, "order": 6}),
    ("InfoRMIA", {"mode": "online"}),
    ("InfoRMIA", {"a": 0.3, "temperature": 2.0}),
    ("BASE", {"mode": "offline"}),
    ("BASE", {"temperature": 1.0}),
    ("BaVarIA", {"mode": "offline"}),
    ("BaVarIA", {"predictive": "n"}),
    ("MultiLiRA", {"mode": "offline"}),
    ("MultiLiRA", {"signals": ("log_odds", "entropy", "loss"), "variance": "global"}),
    ("MultiLiRA", {"signals": ("log_odds", "loss"), "correlation": "none"}),
    ("MultiLiRA", {"correlation": "shrunk", "variance": "per_record"}),
    ("MultiLiRA", {"correlation": "shrunk", "variance": "per_record", "mode": "offline"}),
    ("QMIA", {"head": "pinball"}),
    ("QMIA", {"of": "hinge"}),
    ("Combined", {"attacks": ("AttackP", "QMIA", {"name": "LiRA", "mode": "offline"}), "rehearsals": 4}),
    ("LossTrajectory", {"mode": "offline"}),
    ("TrainingTrajectory", {"mode": "offline"}),
    ("TrainingTrajectory", {"variance": "per_record", "correlation": "shrunk"}),
    ("LabelRobustness", {"mode": "shadow"}),
    ("LabelRobustness", {"mode": "offline"}),
    ("LabelRobustness", {"mode": "online"}),
    ("LabelDistance", {"mode": "offline"}),
    ("LabelDistance", {"mode": "online"}),
]
SEES_LABELS = [name for name in ON_LABELS if ATTACKS.fact(name, "access") == "label"]  # few different scores
every_attack = pytest.mark.parametrize(("name", "given"), VARIANTS, ids=lambda v: str(v))


def attacked(name: str, given: dict, evidence: Evidence) -> np.ndarray:
    settings = ATTACKS.bind(name, given)
    signals = ATTACKS.fact(name, "signals", lambda settings: ())(settings)
    return ATTACKS[name](with_signals(evidence, signals), **settings)


@every_attack
def test_members_score_higher(name, given):
    evidence, member = gaussian_world(1, shift=1.5, pairs=4)
    assert 0.65 < naive_auc(attacked(name, given, evidence), member) < oracle_auc(1.5) + 3 * auc_error(member)


@every_attack
def test_nothing_is_found_where_nothing_leaks(name, given):
    evidence, member = gaussian_world(2, shift=0.0, pairs=3)
    assert abs(naive_auc(attacked(name, given, evidence), member) - 0.5) < 4 * auc_error(member)


@every_attack
@pytest.mark.parametrize("queries", [1, 2, 18])
def test_any_number_of_queries_gives_one_finite_score_per_point(name, given, queries):
    evidence, _ = gaussian_world(3, 300, 2, queries=queries, population=50)
    scores = attacked(name, given, evidence)
    assert scores.shape == (300,)
    assert np.isfinite(scores).all()


@every_attack
def test_more_queries_tell_more(name, given):
    pairs = 16 if "variance" in given else 3  # a record's own variance, of 2 models, is worth nothing
    (one, member), (many, members) = (gaussian_world(4, 3000, pairs, tau=0.3, queries=q, shift=0.5) for q in (1, 9))
    assert naive_auc(attacked(name, given, many), members) > naive_auc(attacked(name, given, one), member) + 0.05


@every_attack
def test_one_pair_of_references_is_enough_or_the_attack_says_how_many_are(name, given):
    evidence, member = gaussian_world(5, shift=2.0, pairs=1)
    if min_pairs(Call(name, ATTACKS.bind(name, given))) > 1:
        with pytest.raises(ValueError, match="num_ref_models of at least 2; there are 2 references"):
            attacked(name, given, evidence)
        return
    assert naive_auc(attacked(name, given, evidence), member) > 0.7


@every_attack
@pytest.mark.parametrize("extreme", [80.0, 120.0, 1e4])
def test_scores_stay_finite_where_probabilities_are_exactly_zero_and_one(name, given, extreme):
    evidence, _ = gaussian_world(6, 200, 2, population=40)
    draw = stream(6, "extremes")
    for array in (evidence.target, evidence.references, evidence.population, evidence.population_references):
        array[draw.random(array.shape) < 0.3] = extreme
        array[draw.random(array.shape) < 0.3] = -extreme
    assert np.isfinite(attacked(name, given, evidence)).all()


@every_attack
def test_constant_signals_give_finite_scores(name, given):
    evidence, _ = gaussian_world(7, 100, 3, population=20)
    flat = {f.name: np.full_like(getattr(evidence, f.name), 2.5) for f in fields(Evidence) if f.name in ARRAYS}
    assert np.isfinite(attacked(name, given, replace(evidence, **flat))).all()


ARRAYS = ("target", "references", "population", "population_references")


@every_attack
def test_points_may_come_in_any_order(name, given):
    evidence, _ = gaussian_world(8, 500, 3, queries=2, population=100)
    order = stream(8, "order").permutation(500)
    shuffled = attacked(name, given, columns(evidence, order))
    np.testing.assert_allclose(shuffled, attacked(name, given, evidence)[order], rtol=1e-9, atol=1e-9)


@every_attack
def test_references_may_come_in_any_order(name, given):
    evidence, _ = gaussian_world(9, 500, 2, population=100)  # 4 references: all are rehearsed
    order = stream(9, "order").permutation(4)
    shuffled = attacked(name, given, rows(evidence, order))
    np.testing.assert_allclose(shuffled, attacked(name, given, evidence), rtol=1e-9, atol=1e-9)


@every_attack
def test_a_point_keeps_its_score_when_the_target_changes_its_mind_about_others(name, given):
    """Also: no attack ranks points against each other, or learns a parameter from the target."""
    evidence, _ = gaussian_world(10, 400, 2, population=100)
    target = evidence.target.copy()
    target[:, 200:] = 7 - 3 * target[:, 200:]
    scores = attacked(name, given, replace(evidence, target=target))
    assert np.array_equal(scores[:200], attacked(name, given, evidence)[:200])
    assert not np.array_equal(scores[200:], attacked(name, given, evidence)[200:])


@every_attack
def test_a_point_better_fitted_by_the_target_scores_no_lower(name, given):
    """One-sided: only a likelihood ratio with its own IN variance may call a fit too good for a member."""
    online = ATTACKS.bind(name, given).get("mode") == "online"
    if (
        name in ("LiRA", "BaVarIA", "MultiLiRA", "LossTrajectory", "TrainingTrajectory", *SEES_LABELS) and online
    ) or name == "Combined":
        pytest.skip("the ratio of two Gaussians of different variance is not monotone")
    if "taylor" in given.get("probability", ""):
        pytest.skip("an even Taylor polynomial of the logits is not monotone")
    evidence, _ = gaussian_world(11, 200, 3, population=100)
    low, high = (attacked(name, given, replace(evidence, target=evidence.target + by)) for by in (0, 1))
    assert (high >= low).all()
    assert (high > low).mean() > (0.1 if name in SEES_LABELS else 0.25)


@every_attack
def test_a_second_run_gives_the_same_bits_and_changes_no_input(name, given):
    evidence, _ = gaussian_world(12, 300, 2, queries=2, population=60)
    before = [getattr(evidence, f).copy() for f in (*ARRAYS, "trained_on")]
    scores = attacked(name, given, evidence)
    assert np.array_equal(scores, attacked(name, given, evidence))
    for array, f in zip(before, (*ARRAYS, "trained_on"), strict=True):
        assert np.array_equal(array, getattr(evidence, f))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_says_what_it_needs(name):
    facts = ATTACKS.facts[name]
    pairs = facts["min_pairs"]
    pairs = pairs(ATTACKS.bind(name, {})) if callable(pairs) else pairs
    assert (pairs > 0) == facts["needs_references"]


@pytest.mark.parametrize("name", ON_LABELS)
def test_an_attack_needs_what_it_says(name):
    evidence, _ = gaussian_world(13, 100, 2, population=30)
    none = evidence.references[:0]
    if not ATTACKS.fact(name, "needs_references"):
        lonely = replace(
            evidence,
            references=none,
            trained_on=evidence.trained_on[:0],
            population_references=evidence.population_references[:0],
        )
        assert np.array_equal(attacked(name, {}, lonely), attacked(name, {}, evidence))
    unpopulated = replace(
        evidence, population=evidence.population[:, :0], population_references=evidence.population_references[:, :, :0]
    )
    if ATTACKS.fact(name, "needs_population"):
        with pytest.raises(ValueError, match="population_size"):
            attacked(name, {}, unpopulated)
    else:
        assert np.array_equal(attacked(name, {}, unpopulated), attacked(name, {}, evidence))


@pytest.mark.parametrize("name", [name for name in ON_LABELS if ATTACKS.fact(name, "needs_references")])
def test_points_without_an_out_reference_are_an_error_not_a_zero(name):
    evidence, _ = gaussian_world(14, 100, 2, population=30)
    trained_on = evidence.trained_on.copy()
    trained_on[:, :7] = True
    with pytest.raises(ValueError, match="7 of 100 points have no reference"):
        attacked(name, {}, replace(evidence, trained_on=trained_on))


@pytest.mark.parametrize("name", [name for name in ON_LABELS if ATTACKS.fact(name, "needs_references")])
def test_a_diverged_reference_is_an_error(name):
    evidence, _ = gaussian_world(15, 100, 2, population=30)
    evidence.references[1, 0, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        attacked(name, {}, evidence)


def test_a_transposed_table_is_rejected_by_its_shape():
    evidence, _ = gaussian_world(16, 40, 20)  # 40 references of 40 points: only names tell the axes apart
    with pytest.raises(Exception, match=r"(?s)references"):
        Evidence(
            evidence.target,
            evidence.references[:, 0],
            evidence.trained_on,
            evidence.population,
            evidence.population_references,
        )
    evidence, _ = gaussian_world(16, 50, 20)
    with pytest.raises(Exception, match=r"(?s)trained_on"):
        Evidence(
            evidence.target,
            evidence.references,
            evidence.trained_on.T,
            evidence.population,
            evidence.population_references,
        )


@every_attack
def test_points_are_scored_in_blocks_as_they_are_all_at_once(name, given):
    """A score depends on its point, and on what the attack says is `shared` by all points: None, if nothing is."""
    evidence, _ = gaussian_world(19, 60, 3, queries=2, population=50)
    settings = ATTACKS.bind(name, given)
    evidence = with_signals(evidence, ATTACKS.fact(name, "signals", lambda settings: ())(settings))
    assert "shared" in ATTACKS.facts[name], f"{name} does not say what its points share"
    of_all = ATTACKS.fact(name, "shared")
    given_to_all = (of_all(evidence, settings),) if of_all else ()
    parts = [ATTACKS[name](columns(evidence, np.arange(60) // 20 == k), *given_to_all, **settings) for k in range(3)]
    assert np.array_equal(np.concatenate(parts), ATTACKS[name](evidence, **settings))
