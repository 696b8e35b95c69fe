"""What an attacker may see, and how an attack is rehearsed without ever looking at the target."""

import numpy as np
import pytest

from core.rng import stream
from core.types import LOG_ODDS, Evidence, Plan, Signal

TAYLOR = Signal("taylor", temperature=2.0, margin=0.6, order=4)


def half_of(points: int, *name) -> np.ndarray:
    """Membership of half of the points."""
    inside = np.zeros(points, dtype=bool)
    inside[stream(0, "half", *name).permutation(points)[: points // 2]] = True
    return inside


def evidence(trained_on: np.ndarray, queries: int = 2, population: int = 5, also: tuple[Signal, ...] = ()) -> Evidence:
    """Signals that name their model: reference r has 100 r + its query and column everywhere."""
    references, points = trained_on.shape

    def of_models(ids, columns):
        return 100.0 * ids[:, None, None] + 10.0 * np.arange(queries)[:, None] + np.arange(columns) / columns

    ids = np.arange(references)
    return Evidence(
        target=of_models(np.array([-1]), points)[0],
        references=of_models(ids, points),
        trained_on=trained_on,
        population=of_models(np.array([-1]), population)[0],
        population_references=of_models(ids, population),
        also={signal.name: evidence(trained_on, queries, population) for signal in also},
    )


def pairs(count: int, points: int = 30) -> np.ndarray:
    """trained_on of `count` pairs of twins, in the order 0, 0', 1, 1', ..."""
    halves = [half_of(points, pair) for pair in range(count)]
    return np.stack([row for half in halves for row in (half, ~half)])


def shuffled_pairs() -> np.ndarray:
    """Three pairs, and models 6 and 7 trained on the very records of models 0 and 3; then shuffled."""
    rows = pairs(3)
    rows = np.concatenate([rows, rows[[0, 3]]])
    return rows[stream(0, "shuffle").permutation(len(rows))]


# --- twins


@pytest.mark.parametrize("points", [1, 7, 8, 9, 30, 64])
def test_twins_are_the_rows_that_are_the_same_or_the_complement(points):
    """Against the definition, also where the points do not fill whole bytes."""
    rows = np.concatenate([pairs(4, points), pairs(1, points), ~pairs(4, points)[:3]])
    naive = [[(r == s).all() or (r == ~s).all() for s in rows] for r in rows]
    np.testing.assert_array_equal(evidence(rows).twins(), naive)


def test_one_record_of_difference_is_not_a_twin():
    half = half_of(30)
    other = ~half
    other[0] = ~other[0]
    np.testing.assert_array_equal(evidence(np.stack([half, other])).twins(), np.eye(2, dtype=bool))


def test_all_in_and_all_out_are_twins():
    rows = np.stack([np.ones(9, dtype=bool), np.zeros(9, dtype=bool)])
    assert evidence(rows).twins().all()


# --- rehearsals


def leaks_of(rehearsals, trained_on) -> list[int]:
    """Rehearsals in which some remaining reference settles the rehearsed membership."""
    return [
        i
        for i, (seen, member) in enumerate(rehearsals)
        if ((seen.trained_on == member).all(axis=1) | (seen.trained_on != member).all(axis=1)).any()
    ]


@pytest.mark.parametrize("trained_on", [pairs(3), shuffled_pairs()], ids=["pairs", "shuffled, with repeats"])
def test_no_rehearsal_sees_a_model_that_settles_the_membership(trained_on):
    assert leaks_of(evidence(trained_on).rehearsals(), trained_on) == []


@pytest.mark.parametrize(
    "forgotten", ["the complement", "the same half", "all but itself"], ids=lambda name: name.replace(" ", "_")
)
def test_a_rehearsal_that_forgot_a_twin_would_be_caught(forgotten):
    """The check above has teeth: leave in either kind of twin, and it names every rehearsal concerned."""
    trained_on = shuffled_pairs()

    class Leaky(Evidence):
        def twins(self):
            same = (self.trained_on[:, None] == self.trained_on[None]).all(axis=2)
            complement = (self.trained_on[:, None] != self.trained_on[None]).all(axis=2)
            itself = np.eye(len(same), dtype=bool)
            return {"the complement": same, "the same half": complement | itself, "all but itself": itself}[forgotten]

    fields = evidence(trained_on)
    leaky = Leaky(fields.target, fields.references, fields.trained_on, fields.population, fields.population_references)
    assert leaks_of(leaky.rehearsals(), trained_on) != []


def test_a_rehearsal_attacks_the_reference_with_all_the_others():
    trained_on = pairs(3)
    seen_all = list(evidence(trained_on).rehearsals())
    assert len(seen_all) == 6
    for r, (seen, member) in enumerate(seen_all):
        others = [s for s in range(6) if s // 2 != r // 2]  # models 2p and 2p + 1 are twins
        np.testing.assert_array_equal(member, trained_on[r])
        np.testing.assert_array_equal(seen.trained_on, trained_on[others])
        # of the target, references, population and its references: which model each came from
        assert np.unique(seen.target // 100).tolist() == [r]
        assert np.unique(seen.population // 100).tolist() == [r]
        assert (seen.references[:, 0, 0] // 100).tolist() == others
        assert (seen.population_references[:, 0, 0] // 100).tolist() == others
        assert seen.target.shape == (2, 30)
        assert seen.population.shape == (2, 5)


def test_a_rehearsal_never_holds_the_target():
    given = evidence(pairs(3))
    for seen, _ in given.rehearsals():
        for array in (seen.target, seen.references, seen.population, seen.population_references):
            assert (array >= 0).all()  # the target's signals are the negative ones


def test_a_rehearsal_carries_the_other_signals_of_the_same_models():
    given = evidence(pairs(3), also=(TAYLOR,))
    given.also[TAYLOR.name].references[...] += 1000
    for r, (seen, _) in enumerate(given.rehearsals()):
        taylor = seen.signal(TAYLOR)
        np.testing.assert_array_equal(taylor.target, given.also[TAYLOR.name].references[r])
        np.testing.assert_array_equal(taylor.references, seen.references + 1000)
        np.testing.assert_array_equal(taylor.trained_on, seen.trained_on)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pairs_cannot_rehearse(count):
    trained_on = pairs(count) if count else np.zeros((0, 30), dtype=bool)
    assert list(evidence(trained_on).rehearsals()) == []
    assert list(evidence(trained_on).rehearsals(limit=1)) == []


def test_two_pairs_rehearse_each_with_the_other():
    assert [seen.references.shape[0] for seen, _ in evidence(pairs(2)).rehearsals()] == [2, 2, 2, 2]


@pytest.mark.parametrize("limit, rehearsed", [(1, [0]), (2, [0, 7]), (3, [0, 4, 7]), (8, range(8)), (99, range(8))])
def test_a_limit_spreads_the_rehearsals_over_the_references(limit, rehearsed):
    given = evidence(pairs(4))
    assert [int(seen.target[0, 0] // 100) for seen, _ in given.rehearsals(limit)] == list(rehearsed)


def test_the_evidence_has_nowhere_to_put_the_membership_of_the_target():
    """Only `trained_on` is boolean, and it has one row for each reference: none for the target."""
    hints = {name: str(hint).replace("'", '"') for name, hint in Evidence.__annotations__.items()}
    assert {name: hint for name, hint in hints.items() if "Bool" in hint} == {"trained_on": 'Bool[Array, "R N"]'}


# --- signals


@pytest.mark.parametrize(
    "signal, name",
    [
        (LOG_ODDS, "log_odds"),
        (Signal(temperature=2.0), "log_odds_T2"),
        (Signal(temperature=0.25), "log_odds_T0.25"),
        (TAYLOR, "taylor_T2_m0.6_n4"),
        (Signal("taylor", order=2), "taylor_m0_n2"),
        (Signal("modified_entropy"), "modified_entropy"),
        (Signal("log_odds", margin=0.6, order=4), "log_odds"),  # unused there, so not in the name
    ],
)
def test_the_name_of_a_signal_holds_what_it_depends_on(signal, name):
    assert signal.name == name


def test_the_usual_signal_is_the_evidence_itself():
    given = evidence(pairs(2), also=(TAYLOR,))
    assert given.signal(Signal()) is given
    assert given.signal(TAYLOR) is given.also["taylor_T2_m0.6_n4"]


def test_a_signal_that_was_not_computed_is_refused_with_those_there_are():
    with pytest.raises(
        KeyError, match=r"signal 'log_odds_T2' was not computed; there are: log_odds, taylor_T2_m0.6_n4"
    ):
        evidence(pairs(2), also=(TAYLOR,)).signal(Signal(temperature=2.0))


# --- plan


def test_a_lone_targets_twin_is_planned_but_not_trained():
    plan = Plan(member=pairs(3), references=((2, 3, 4, 5),))
    assert list(plan.targets) == [0]
    assert plan.models == (0, 2, 3, 4, 5)


def test_targets_that_are_references_of_others_are_trained_once():
    plan = Plan(member=pairs(2), references=((2, 3), (2, 3), (0, 1)))
    assert plan.models == (0, 1, 2, 3)
