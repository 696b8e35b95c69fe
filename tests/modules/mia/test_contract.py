"""What every registered attack owes its users: a card, a known answer, an honest interval."""

import ast
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import modules.mia  # noqa: F401  (fills the registry)
from core import cards, reference
from core.errors import UserError
from core.metrics import auc_interval
from core.registry import ATTACKS, Registry
from tests.modules.mia.test_every_attack import VARIANTS as ON_LABELS
from tests.modules.mia.test_every_attack import attacked
from tests.modules.mia.test_every_text_attack import VARIANTS as ON_TEXTS
from tests.worlds import gaussian_world, text_world

ROOT = Path(__file__).resolve().parents[3]
HERE = "tests/modules/mia/"
# Of each attack, the test that holds it against a naive twin or a known answer.
KNOWN = {
    "LOSS": "test_simple_attacks.py::test_loss_has_its_closed_form_auc",
    "Entropy": "test_simple_attacks.py::test_of_two_classes_modified_entropy_ranks_as_the_loss_does",
    "AttackP": "test_simple_attacks.py::test_attack_p_counts_population_points_of_higher_loss",
    "AttackR": "test_simple_attacks.py::test_attack_r_is_the_share_of_out_references_that_fit_no_better",
    "Calibration": "test_simple_attacks.py::test_calibration_has_its_closed_form_auc_and_tpr",
    "LiRA": "test_lira.py::test_lira_is_its_definition_record_by_record",
    "MultiLiRA": "test_multi_lira.py::test_multi_lira_is_its_definition_record_by_record",
    "QMIA": "test_qmia.py::test_with_the_true_distribution_qmia_is_the_best_test_and_its_score_is_standard_normal",
    "LossTrajectory": "test_trajectory.py::test_a_distilled_trajectory_counts_beside_the_targets_own_signal",
    "TrainingTrajectory": "test_trajectory.py::test_a_recorded_trajectory_reaches_the_closed_form_of_the_best_test",
    "RMIA": "test_rmia.py::test_rmia_is_its_definition_pair_by_pair",
    "BASE": "test_rmia.py::test_offline_base_subtracts_a_scaled_log_mean_of_the_out_references",
    "BaVarIA": "test_lira.py::test_bavaria_is_the_predictive_of_its_prior_record_by_record",
    "InfoRMIA": "test_text_attacks.py::test_info_rmia_is_the_log_ratio_plus_one_divergence_of_the_population",
    "TokenInfoRMIA": "test_text_attacks.py::test_token_info_rmia_adds_the_divergence_to_each_tokens_log_ratio",
    "Combined": "test_combined.py::test_it_is_the_logistic_regression_of_standardised_rehearsed_scores",
    "DC-PDD": "test_text_attacks.py::test_dc_pdd_weighs_first_occurrences_by_rarity",
    "EZ-MIA": "test_text_attacks.py::test_ez_mia_weighs_upward_against_downward_shifts_at_errors",
    "GradNorm": "test_text_attacks.py::test_gradient_norm_turns_the_sign",
    "MinK": "test_text_attacks.py::test_min_k_is_a_loop_over_sorted_tokens",
    "MinK++": "test_text_attacks.py::test_min_k_plus_plus_standardises_each_token_first",
    "Neighbourhood": "test_text_attacks.py::test_neighbourhood_is_the_difference_of_log_likelihoods",
    "ReCaLL": "test_text_attacks.py::test_recall_is_the_conditional_over_the_unconditional_log_likelihood",
    "WBC": "test_text_attacks.py::test_wbc_slides_every_window_over_every_record",
    "zlib": "test_text_attacks.py::test_zlib_is_the_log_likelihood_over_the_compressed_size",
    "LabelGap": "test_label_only.py::test_the_gap_attack_has_its_closed_form_auc",
    "LabelDistance": "test_label_only.py::test_the_distance_attack_has_its_closed_form_auc",
    "LabelRobustness": "test_label_only.py::test_label_robustness_is_its_definition_record_by_record",
}


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_naive_twin_or_a_known_answer(name):
    assert name in KNOWN, f"write a test that holds {name} against a known answer, and name it in KNOWN"
    file, _, test = KNOWN[name].partition("::")
    assert test in functions_of(HERE + file)


def test_no_answer_is_known_of_an_attack_that_is_gone():
    assert set(KNOWN) <= set(ATTACKS)


# --- cards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_cannot_be_registered_without_its_card(name):
    facts = ATTACKS.facts[name]
    assert [key for key in cards.SAID if not facts.get(key)] == []
    assert facts["access"] in cards.ACCESS
    assert "arXiv" in facts["source"] or name == "Combined"  # ours: nothing of it is on arXiv
    assert all("\n" not in facts[key] for key in cards.SAID)
    assert {"needs_references", "needs_population", "min_pairs"} <= set(facts)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_an_attack_says_it_sees_is_what_it_reads(name):
    """The signals it asks for can all be had by who has this access."""
    settings = ATTACKS.bind(name, {}) if name != "Neighbourhood" else ATTACKS.bind(name, {"masked_lm": "x"})
    signals = ATTACKS.fact(name, "signals")
    kinds = {signal.kind for signal in signals(settings)} if signals else set()
    labels, white = {"label", "robust_label", "boundary"}, {"gradient_norm"}
    access = ATTACKS.fact(name, "access")
    assert (access == "label") == bool(kinds and kinds <= labels)
    assert (access == "white box") == bool(kinds & white)
    if access == "confidence":
        assert not kinds - {"log_odds", "quantiles"} and all(
            s.temperature == 1 for s in (signals(settings) if signals else ())
        )


def test_the_cards_in_the_documentation_are_those_of_the_code():
    assert (ROOT / "documentation/attacks.md").read_text() == cards.markdown() + "\n", "run `make docs`"


def test_one_card_in_full_has_needs_cost_failure_source_settings_and_docstring():
    text = reference.listing("attacks", "rmia")
    for said in (
        "RMIA:",
        "sees",
        "references (OUT), at least 1 pair, a population",
        "costs",
        "fails",
        "2312.03262",
        "gamma",
    ):
        assert said in text
    assert "LiRA:" not in text and "LiRA:" in reference.listing("attacks", "RMIA", "LiRA")
    with pytest.raises(UserError, match="did you mean 'LiRA'"):
        reference.listing("attacks", "Lira2")


def test_a_plug_in_without_facts_has_a_card_of_what_is_known(monkeypatch):
    ours = Registry("attack")
    ours.register("mine", summary="my own")(lambda evidence: evidence.target[0])
    monkeypatch.setattr(cards, "ATTACKS", ours)
    assert cards.card("mine") == {"needs": "references (OUT), at least 1 pair"}


# --- honest where nothing leaks ----------------------------------------------------------------------------------


SEEDS = 12
FEWEST = 8  # of 12 intervals at 95%; fewer happen by chance to one attack in 5,000


@pytest.mark.parametrize(("name", "given"), [*ON_LABELS, *ON_TEXTS], ids=lambda v: str(v))
def test_intervals_hold_one_half_where_nothing_leaks(name, given):
    world = text_world if ATTACKS.fact(name, "needs_text") else gaussian_world
    held = 0
    for seed in range(SEEDS):
        evidence, member = world(100 + seed, 200, 2, shift=0.0, population=60)
        interval = auc_interval(np.asarray(attacked(name, given, evidence)), member)
        held += interval.low <= 0.5 <= interval.high
    assert held >= FEWEST
