"""The aggregation is tuned on rehearsals only, with what is applied, and never by a twin."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from core.metrics import auc
from core.registry import ATTACKS
from core.rng import stream
from core.types import Evidence
from modules.mia.lira import lira
from modules.mia.rmia import rmia
from modules.mia.tuning import REHEARSALS
from modules.ramia.aggregation import Aggregation, grid
from modules.ramia.evidence import decidable
from modules.ramia.scoring import PointAttack, scored
from modules.ramia.tuning import tuned as tuned_on
from tests.modules.ramia.worlds import ranges_world

SAMPLES = 6
LEAKS = {"one sample": (3.0,), "decay": tuple(2 * 0.7 ** np.arange(SAMPLES)), "all alike": (0.7,) * SAMPLES}


def tuned(evidence, attack, samples, candidates):
    """All ranges at once."""
    at_once = PointAttack(lambda seen, _: attack(seen), lambda seen: None)
    return tuned_on(
        scored([evidence], evidence, at_once, (evidence.target.shape[1] // samples, samples), REHEARSALS)[1], candidates
    )


@pytest.mark.parametrize("name", ["LiRA", "BaVarIA", "RMIA", "BASE", "LOSS"])
def test_blocks_give_the_scores_of_all_ranges_at_once(name):
    """For the target and in every rehearsal, whatever the division; and what is shared is found on some ranges only."""
    evidence, _ = ranges_world(n=50)
    settings, fact = ATTACKS.bind(name, {}), ATTACKS.fact(name, "shared")
    evidence = replace(evidence, also={"log_odds_T2": evidence})  # BASE's signal

    def score(seen, shared):
        return ATTACKS[name](seen, *([shared] if fact else []), **settings)

    attack = PointAttack(score, lambda seen: fact(seen, settings) if fact else None)
    whole, rehearsed = scored([evidence], evidence, attack, (50, SAMPLES), REHEARSALS, attack.shared(evidence))
    assert np.array_equal(whole.ravel(), ATTACKS[name](evidence, **settings))
    assert len(rehearsed) == REHEARSALS
    for one, (rehearsal, trained_on) in zip(rehearsed, evidence.rehearsals(REHEARSALS), strict=True):
        assert np.array_equal(one.scores.ravel(), ATTACKS[name](rehearsal, **settings))
        assert np.array_equal(one.member, trained_on[::SAMPLES])
    parts = (part_of(evidence, slice(start, start + 7)) for start in range(0, 50, 7))
    again, rehearsed_again = scored(parts, evidence, attack, (50, SAMPLES), REHEARSALS, attack.shared(evidence))
    assert np.array_equal(again, whole)
    for a, b in zip(rehearsed, rehearsed_again, strict=True):
        assert np.array_equal(a.scores, b.scores) and np.array_equal(a.member, b.member)


def part_of(evidence, ranges):
    samples = slice(ranges.start * SAMPLES, ranges.stop * SAMPLES)
    return replace(
        evidence,
        target=evidence.target[:, samples],
        references=evidence.references[:, :, samples],
        trained_on=evidence.trained_on[:, samples],
        also={name: part_of(also, ranges) for name, also in evidence.also.items()},
    )


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("attack", [lira, rmia])
def test_the_tuned_aggregation_is_nearly_the_best_fixed_one(leak, attack):
    evidence, member = ranges_world(leak=leak, n=1500)
    chosen, aucs = tuned(evidence, attack, SAMPLES, grid(SAMPLES))
    rehearsal, known = next(evidence.rehearsals())
    scores = attack(rehearsal).reshape(-1, SAMPLES)
    of_ranges = known.reshape(-1, SAMPLES)[:, 0]
    fixed = [auc(candidate(scores), of_ranges) for candidate in grid(SAMPLES)]
    assert auc(chosen(scores), of_ranges) > max(fixed) - 0.01
    assert max(aucs) == aucs[grid(SAMPLES).index(chosen)]
    # The target, too, which had no say.
    scores = attack(evidence).reshape(-1, SAMPLES)
    fixed = [auc(candidate(scores), member) for candidate in grid(SAMPLES)]
    assert auc(chosen(scores), member) > max(fixed) - 0.03


def test_ranges_are_told_where_the_center_alone_tells_nothing():
    """The second sample leaks, the first one does not: a point attack at the first is blind."""
    evidence, member = ranges_world(leak=(0.0, 4.0), n=1500)
    chosen, _ = tuned(evidence, lira, SAMPLES, grid(SAMPLES))
    scores = lira(evidence).reshape(-1, SAMPLES)
    assert auc(chosen(scores), member) > 0.8
    assert abs(auc(scores[:, 0], member) - 0.5) < 4 / np.sqrt(3 * len(member))


@pytest.mark.parametrize("attack", [lira, rmia])
@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_leaks_nothing_is_found(seed, attack):
    evidence, member = ranges_world(seed, leak=(), n=1500)
    chosen, _ = tuned(evidence, attack, SAMPLES, grid(SAMPLES))
    found = auc(chosen(attack(evidence).reshape(-1, SAMPLES)), member)
    assert abs(found - 0.5) < 4 / np.sqrt(3 * len(member))


def test_the_target_has_no_say_in_the_tuning():
    evidence, _ = ranges_world()
    scrambled = replace(evidence, target=stream(1, "scrambled").permutation(evidence.target, axis=1))
    assert tuned(evidence, lira, SAMPLES, grid(SAMPLES))[0] == tuned(scrambled, lira, SAMPLES, grid(SAMPLES))[0]


def twins_seen(evidence):
    """Whether any rehearsed reference is attacked with its own twin among the references."""
    signals = {row.tobytes(): r // 2 for r, row in enumerate(evidence.references)}
    return any(
        signals[rehearsal.target.tobytes()] in {signals[row.tobytes()] for row in rehearsal.references}
        for rehearsal, _ in evidence.rehearsals()
    )


def test_twins_are_left_out_although_both_know_some_ranges():
    evidence, _ = ranges_world(both=0.1)
    assert not twins_seen(evidence)
    for rehearsal, _ in evidence.rehearsals():  # and in a rehearsal's own rehearsals, as when RMIA tunes its a
        assert not twins_seen(
            replace(rehearsal, references=evidence.references[np.isin(evidence.pair, rehearsal.pair)])
        )


def test_a_planted_tuning_by_the_twin_would_be_noticed():
    """Plain Evidence tells twins by complementary rows; of ranges, these rows no longer are complementary."""
    evidence, _ = ranges_world(both=0.1)
    fields = ("target", "references", "trained_on", "population", "population_references", "also")
    assert twins_seen(Evidence(**{name: getattr(evidence, name) for name in fields}))


def test_with_one_pair_nothing_is_tuned():
    evidence, _ = ranges_world(pairs=1)
    chosen, aucs = tuned(evidence, lira, SAMPLES, grid(SAMPLES))
    assert chosen is None and np.isnan(aucs).all()


def test_of_equal_candidates_the_first_is_taken():
    evidence, _ = ranges_world()
    same = [Aggregation("mean"), Aggregation("trimmed_mean", {"q_s": 0.0, "q_e": 1.0})]
    assert tuned(evidence, lira, SAMPLES, same)[0] == same[0]


@pytest.mark.parametrize("pairs, left_out", [(1, 0), (2, 1), (3, 2), (5, 2)])
def test_decidable_ranges_have_both_kinds_of_references_whatever_is_left_out(pairs, left_out):
    held = stream(0, "decidable", pairs).random((2 * pairs, 200)) < 0.5
    pair = np.repeat(np.arange(pairs), 2)
    kept = [~np.isin(pair, out) for out in combinations(range(pairs), left_out)]
    expected = [all(0 < column[rows].sum() < rows.sum() for rows in kept) for column in held.T]
    assert np.array_equal(decidable(held, pair), expected) and 0 < np.sum(expected) < 200


def test_without_references_every_range_is_decidable():
    assert decidable(np.zeros((0, 5), dtype=bool), np.zeros(0, dtype=int)).all()


@pytest.mark.parametrize("attack", [lira, rmia])
def test_attacks_take_all_decidable_ranges(attack):
    evidence, _ = ranges_world(both=0.4, n=400, pairs=4)
    kept = np.repeat(decidable(evidence.trained_on[:, ::SAMPLES], evidence.pair), SAMPLES)
    assert 0 < kept.sum() < len(kept)
    some = replace(
        evidence,
        target=evidence.target[:, kept],
        references=evidence.references[:, :, kept],
        trained_on=evidence.trained_on[:, kept],
    )
    assert tuned(some, attack, SAMPLES, grid(SAMPLES))[0] is not None
