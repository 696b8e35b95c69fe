"""Attacks on language models against loops over records and tokens, tables worked out by hand, and closed forms."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom

import modules.mia  # noqa: F401  (fills the registry)
from core.registry import ATTACKS
from core.types import Evidence, Text
from modules.mia.info_rmia import token_scores
from modules.mia.tokens import mean_log_p, smallest
from modules.mia.wbc import share_of_windows
from tests.modules.mia.test_every_attack import attacked
from tests.worlds import auc_error, naive_auc, text_evidence, text_world


def by_record(evidence: Evidence, kind: str, of: str = "target") -> list[np.ndarray]:
    """The tokens of each record, in float64: (n,) of the target, (R, n) of the references."""
    column = evidence.also[kind].target[0] if of == "target" else evidence.also[kind].references[:, 0]
    return np.split(column.astype(np.float64), evidence.text.start[1:-1], axis=-1)


def out_of(evidence: Evidence, n: int) -> np.ndarray:
    return np.flatnonzero(~evidence.trained_on[:, n])


@pytest.fixture(scope="module")
def world():
    return text_world(1, 60, 3, shift=2.0, population=40)[0]


def check(name, given, world, naive):
    np.testing.assert_allclose(attacked(name, given, world), naive, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("likelihood", ["mean", "total"])
def test_zlib_is_the_log_likelihood_over_the_compressed_size(world, likelihood):
    naive = []
    for l, size in zip(by_record(world, "token_log_p"), world.text.compressed, strict=True):  # noqa: E741
        naive.append((sum(l) / len(l) if likelihood == "mean" else sum(l)) / size)
    check("zlib", {"likelihood": likelihood}, world, naive)


@pytest.mark.parametrize("k", [0.01, 0.2, 0.5, 1.0])
def test_min_k_is_a_loop_over_sorted_tokens(world, k):
    naive = [np.mean(sorted(l)[: max(int(k * len(l)), 1)]) for l in by_record(world, "token_log_p")]  # noqa: E741
    check("MinK", {"k": k}, world, naive)


@pytest.mark.parametrize("k", [0.2, 1.0])
def test_min_k_plus_plus_standardises_each_token_first(world, k):
    naive = []
    parts = (by_record(world, f"token_{kind}") for kind in ("log_p", "mean", "variance"))
    for log_p, mean, variance in zip(*parts, strict=True):
        z = sorted((a - b) / math.sqrt(c) for a, b, c in zip(log_p, mean, variance, strict=True))
        naive.append(np.mean(z[: max(int(k * len(z)), 1)]))
    check("MinK++", {"k": k}, world, naive)


def test_min_k_of_all_tokens_is_loss(world):
    np.testing.assert_allclose(attacked("MinK", {"k": 1.0}, world), mean_log_p(world.target), rtol=1e-5)


def test_recall_is_the_conditional_over_the_unconditional_log_likelihood(world):
    ll = [np.mean(l) for l in by_record(world, "token_log_p")]  # noqa: E741
    after = [math.log(1 / (1 + math.exp(-s))) for s in world.also["prefixed_log_odds"].target[0].astype(float)]
    check("ReCaLL", {}, world, np.array(after) / np.array(ll))


def test_neighbourhood_is_the_difference_of_log_likelihoods(world):
    ll = [np.mean(l) for l in by_record(world, "token_log_p")]  # noqa: E741
    check("Neighbourhood", {}, world, np.array(ll) - world.also["neighbour_log_p"].target[0].astype(float))


def test_gradient_norm_turns_the_sign(world):
    check("GradNorm", {}, world, -world.also["gradient_norm"].target[0].astype(float))


@pytest.mark.parametrize(("smallest_", "largest", "sizes"), [(1, 1, 1), (2, 40, 10), (3, 9, 3), (30, 40, 2)])
def test_wbc_slides_every_window_over_every_record(world, smallest_, largest, sizes):
    widths = sorted({round(w) for w in np.geomspace(smallest_, largest, sizes)})
    naive = []
    targets, references = by_record(world, "token_log_p"), by_record(world, "token_log_p", "references")
    for n, (log_p, others) in enumerate(zip(targets, references, strict=True)):
        gain = log_p - np.mean([others[r] for r in out_of(world, n)], axis=0)
        fitting = [w for w in widths if w <= len(gain)] or [len(gain)]
        shares = []
        for w in fitting:
            sums = [sum(gain[i : i + w]) for i in range(len(gain) - w + 1)]
            shares.append(np.mean([1.0 if s > 0 else 0.5 if s == 0 else 0.0 for s in sums]))
        naive.append(np.mean(shares))
    check("WBC", {"smallest": smallest_, "largest": largest, "sizes": sizes}, world, naive)


@pytest.mark.parametrize("shift", ["probability", "log_probability"])
def test_ez_mia_weighs_upward_against_downward_shifts_at_errors(world, shift):
    naive = []
    rank = by_record(world, "token_rank")
    targets, references = by_record(world, "token_log_p"), by_record(world, "token_log_p", "references")
    for n, (log_p, others) in enumerate(zip(targets, references, strict=True)):
        up = down = 0.0
        for t in range(len(log_p)):
            if rank[n][t] == 0:
                continue
            values = [others[r][t] for r in out_of(world, n)]
            if shift == "probability":
                moved = math.exp(log_p[t]) - np.mean(np.exp(values))
            else:
                moved = log_p[t] - np.mean(values)
            up, down = up + max(moved, 0), down + max(-moved, 0)
        naive.append(up / (up + down) if up + down else 0.5)
    check("EZ-MIA", {"shift": shift}, world, naive)


@pytest.mark.parametrize(("cap", "first_only"), [(0.01, True), (1.0, True), (0.5, False)])
def test_dc_pdd_weighs_first_occurrences_by_rarity(world, cap, first_only):
    naive = []
    tokens = np.split(world.text.tokens, world.text.start[1:-1])
    frequency = np.split(world.text.frequency, world.text.start[1:-1])
    for log_p, own, freq in zip(by_record(world, "token_log_p"), tokens, frequency, strict=True):
        seen, values = Counter(), []
        for t, token in enumerate(own.tolist()):
            seen[token] += 1
            if seen[token] == 1 or not first_only:
                values.append(min(math.exp(log_p[t]) * math.log(1 / freq[t]), cap))
        naive.append(np.mean(values))
    check("DC-PDD", {"cap": cap, "first_only": first_only}, world, naive)


def test_token_info_rmia_adds_the_divergence_to_each_tokens_log_ratio(world):
    naive = []
    parts = (by_record(world, "token_log_p"), by_record(world, "token_divergence"))
    references = by_record(world, "token_log_p", "references")
    for n, (log_p, divergence) in enumerate(zip(*parts, strict=True)):
        typical = [np.mean([math.exp(references[n][r][t]) for r in out_of(world, n)]) for t in range(len(log_p))]
        naive.append([log_p[t] - math.log(typical[t]) + divergence[t] for t in range(len(log_p))])
    np.testing.assert_allclose(token_scores(world), np.concatenate(naive), rtol=1e-4, atol=1e-5)
    check("TokenInfoRMIA", {}, world, [np.mean(scores) for scores in naive])
    least = [np.mean(sorted(scores)[: max(int(0.2 * len(scores)), 1)]) for scores in naive]
    check("TokenInfoRMIA", {"aggregate": "min_k"}, world, least)


def test_info_rmia_is_the_log_ratio_plus_one_divergence_of_the_population(world):
    p = lambda s: 1 / (1 + np.exp(-s.astype(np.float64)))  # noqa: E731
    a, naive = 0.4, []
    for n in range(60):
        typical = np.mean([p(world.references[r, 0, n]) for r in out_of(world, n)])
        naive.append(np.log(p(world.target[0, n])) - np.log(((1 + a) * typical + 1 - a) / 2))
    z, of_z = p(world.population[0]), p(world.population_references[:, 0]).mean(axis=0)
    of_z = ((1 + a) * of_z + 1 - a) / 2
    z, of_z = z / z.sum(), of_z / of_z.sum()
    check("InfoRMIA", {"a": a}, world, np.array(naive) + sum(of_z * np.log(of_z / z)))


# ---- by hand ---------------------------------------------------------------------------------------------------


def table(log_p, references, lengths, trained_on):
    """Evidence of tokens of these probabilities, the second token of every vocabulary taking the rest."""
    text = Text(
        tokens=np.arange(sum(lengths)) % 3,
        start=np.cumsum([0, *lengths]),
        compressed=np.full(len(lengths), 10),
        frequency=np.full(sum(lengths), 0.1),
    )
    p = np.array([log_p, *references])
    odds = np.log(p) - np.log1p(-p)
    trained = np.array(trained_on, dtype=bool)
    return text_evidence(text, odds, odds, trained, np.zeros((len(p), 1, 3), np.float32))


def test_a_table_worked_out_by_hand():
    """Records of 5 and 3 tokens; the second reference trained on the first record, the first on the second."""
    seen = table(
        [0.9, 0.4, 0.1, 0.6, 0.2, 0.5, 0.8, 0.3],
        [[0.8, 0.5, 0.05, 0.6, 0.1, 0.9, 0.9, 0.9], [0.1] * 5 + [0.25, 0.9, 0.45]],
        [5, 3],
        [[False, True], [True, False]],
    )
    np.testing.assert_allclose(attacked("MinK", {"k": 0.4}, seen), [np.log([0.1, 0.2]).mean(), np.log(0.3)], rtol=1e-5)
    # Of two tokens, one of probability p < 1/2 stands sqrt((1 - p) / p) below the mean, in standard deviations.
    np.testing.assert_allclose(attacked("MinK++", {"k": 0.4}, seen), [-2.5, -np.sqrt(0.7 / 0.3)], rtol=1e-5)
    # Windows of 1: better at 0.9 > 0.8, 0.1 > 0.05, 0.2 > 0.1, a draw at 0.6; and 0.5 > 0.25 of three.
    one = {"smallest": 1, "largest": 1, "sizes": 1}
    np.testing.assert_allclose(attacked("WBC", one, seen), [3.5 / 5, 1 / 3])
    # Errors where p < 1/2: shifts -0.1, +0.05, +0.1; then 0.3 - 0.45 alone.
    np.testing.assert_allclose(attacked("EZ-MIA", {}, seen), [0.15 / 0.25, 0.0], atol=1e-6)
    np.testing.assert_allclose(
        attacked("zlib", {"likelihood": "total"}, seen),
        [np.log([0.9, 0.4, 0.1, 0.6, 0.2]).sum() / 10, np.log([0.5, 0.8, 0.3]).sum() / 10],
        rtol=1e-5,
    )
    weight = np.log(10)
    rare = [np.mean([0.9, 0.4, 0.1]) * weight, np.mean([0.5, 0.8, 0.3]) * weight]  # tokens 0 1 2 0 1, then 2 0 1
    np.testing.assert_allclose(attacked("DC-PDD", {"cap": 9.0}, seen), rare, rtol=1e-5)


def test_a_record_without_errors_is_no_evidence_for_ez_mia():
    seen = table([0.9, 0.8], [[0.1, 0.1], [0.1, 0.1]], [1, 1], [[False, True], [True, False]])
    assert attacked("EZ-MIA", {}, seen).tolist() == [0.5, 0.5]


def test_the_smallest_of_each_record_whatever_stands_beside_it():
    values = np.array([3.0, 1.0, 2.0, -9.0, 5.0, 5.0, 4.0])
    assert smallest(values, np.array([0, 3, 4, 7]), 0.5).tolist() == [False, True, False, True, False, False, True]


def test_windows_never_cross_the_border_of_a_record():
    text = Text(np.zeros(6, dtype=int), np.array([0, 3, 6]), np.array([1, 1]), np.full(6, 0.1))
    gain = np.array([-1.0, -1, -1, 9, 9, 9])
    assert share_of_windows(text, gain, np.array([2, 3])).tolist() == [0.0, 1.0]


def test_wbc_of_single_tokens_has_the_auc_of_two_binomials():
    """A vote is won with P(N(s, 1) > N(0, 1)) = Phi(s / sqrt 2), s = 0 for non-members: tokens vote independently."""
    from scipy.stats import norm

    tokens, shift = 12, 1.5
    evidence, member = text_world(3, 6000, 1, shift=shift, tokens=tokens)
    equal = np.diff(evidence.text.start) == tokens
    scores = attacked("WBC", {"smallest": 1, "largest": 1, "sizes": 1}, evidence)
    votes = np.arange(tokens + 1)
    inside = binom.pmf(votes, tokens, norm.cdf(shift / np.sqrt(tokens) / np.sqrt(2)))
    outside = binom.pmf(votes, tokens, 0.5)
    expected = sum(inside[i] * (outside[:i].sum() + outside[i] / 2) for i in votes)
    assert abs(naive_auc(scores[equal], member[equal]) - expected) < 4 * auc_error(member[equal])
    assert expected > 0.6


# ---- directions ------------------------------------------------------------------------------------------------


def test_a_prefix_that_hurts_more_and_neighbours_that_are_less_likely_speak_for_membership():
    evidence, _ = text_world(4, 40, 1)
    for kind, name, sign in (
        ("prefixed_log_odds", "ReCaLL", -1),
        ("neighbour_log_p", "Neighbourhood", -1),
        ("gradient_norm", "GradNorm", -1),
    ):
        before = attacked(name, {}, evidence)
        evidence.also[kind].target[:] += sign * 0.5
        assert (attacked(name, {}, evidence) > before).all()


def test_every_attack_that_reads_texts_says_so():
    needing = {name for name in ATTACKS if ATTACKS.fact(name, "needs_text")}
    assert {"zlib", "MinK", "MinK++", "ReCaLL", "Neighbourhood", "GradNorm", "WBC", "EZ-MIA", "TokenInfoRMIA"} < needing
