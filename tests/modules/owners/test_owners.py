"""Scores of owners from scores of their records, against closed forms and plain loops."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from core.metrics import auc, auc_interval
from core.rng import stream
from modules.owners.aggregation import AGGREGATIONS, Aggregation, Holdings, grid
from modules.owners.tuning import Way, own_null, tuned

WAYS = [
    Aggregation("mean"),
    Aggregation("max"),
    Aggregation("top_k", {"k": 3}),
    Aggregation("log_mean_exp", {"sharpness": 1.0}),
]


def world(seed, owners=300, sizes=(5, 5), pairs=6, shift=1.0, share=1.0, tau=1.0, own=0.0):
    """Record scores N(t, 1) of models without the owner, raised by `shift` on a `share` of its records where it was in.

    t ~ N(0, own^2) is the owner's, N(0, tau^2) the record's. References come in twins. Returns target scores, its
    members, reference scores, theirs, and the holdings.
    """
    draw = stream(seed, "owners world")
    size = draw.integers(sizes[0], sizes[1] + 1, owners)
    owner = np.repeat(np.arange(owners), size)
    order = draw.permutation(len(owner))
    owner = owner[order]
    base = own * draw.standard_normal(owners)[owner] + tau * draw.standard_normal(len(owner))
    leaks = draw.random(len(owner)) < share
    halves = np.array([draw.permutation(owners) < owners // 2 for _ in range(pairs + 1)])
    trained = np.stack([halves, ~halves], axis=1).reshape(2 * pairs + 2, owners)
    scores = base + shift * (trained[:, owner] & leaks) + draw.standard_normal((2 * pairs + 2, len(owner)))
    return scores[0], trained[0], scores[2:], trained[2:], Holdings.of(owner)


@pytest.mark.parametrize("aggregation", WAYS, ids=lambda way: way.label)
def test_aggregations_are_loops_over_owners_in_any_order_of_records(aggregation):
    draw = stream(1, "loops")
    owner = np.array([f"u{k}" for k in draw.integers(0, 20, 150)])
    scores = draw.standard_normal(150)
    held = Holdings.of(owner)
    b = 1 / scores.std()
    of = {
        "mean": np.mean,
        "max": np.max,
        "top_k": lambda s: np.mean(np.sort(s)[::-1][:3]),
        "log_mean_exp": lambda s: np.log(np.mean(np.exp(b * s))) / b,
    }[aggregation.name]
    expected = [of(scores[owner == name]) for name in held.names]
    np.testing.assert_allclose(aggregation(scores, held), expected, rtol=1e-10)
    assert held.names.tolist() == sorted(set(owner)) and held.size.sum() == 150


def test_owners_left_out_keep_the_places_of_the_others():
    owner = np.array(["b", "a", "b", "c", "a", "b"])
    held = Holdings.of_some(owner, np.flatnonzero(owner != "a"))
    assert held.names.tolist() == ["b", "c"] and held.order.tolist() == [0, 2, 5, 3] and held.size.tolist() == [3, 1]
    scores = np.array([1.0, 100.0, 2.0, 7.0, 100.0, 6.0])
    assert Aggregation("mean")(scores, held).tolist() == [3.0, 7.0]
    assert Aggregation("top_k", {"k": 2})(scores, held).tolist() == [4.0, 7.0]


@pytest.mark.parametrize(("size", "shift"), [(1, 1.0), (4, 0.5), (16, 0.4)])
def test_the_mean_of_k_records_has_its_closed_form_auc(size, shift):
    """Each of k records raised by d: AUC = Phi(d sqrt(k / 2))."""
    target, member, _, _, held = world(2, 6000, (size, size), 1, shift, tau=0.0)
    found = auc_interval(Aggregation("mean")(target, held), member, level=0.999)
    assert found.low < norm.cdf(shift * np.sqrt(size / 2)) < found.high


def test_the_maximum_of_k_records_has_its_closed_form_auc():
    target, member, _, _, held = world(3, 6000, (5, 5), 1, 1.0, tau=0.0)
    expected = quad(lambda x: 5 * norm.pdf(x - 1) * norm.cdf(x - 1) ** 4 * norm.cdf(x) ** 5, -8, 10)[0]
    found = auc_interval(Aggregation("max")(target, held), member, level=0.999)
    assert found.low < expected < found.high


def test_where_all_records_leak_the_mean_is_chosen_and_where_one_in_many_does_the_largest():
    ways = [Way(aggregation, False) for aggregation in grid(20)]
    dense = tuned(*_rehearsed(world(4, 400, (20, 20), shift=0.4, tau=0.0)), ways)[0]
    sparse = tuned(*_rehearsed(world(5, 400, (20, 20), shift=4.0, share=0.05, tau=0.0)), ways)[0]
    assert dense and sparse
    assert dense.aggregation.name == "mean" or dense.aggregation.settings.get("sharpness") == 0.5
    assert sparse.aggregation.name in ("max", "top_k", "log_mean_exp") and sparse.aggregation.name != "mean"
    target, member, *_, held = world(6, 2000, (20, 20), shift=4.0, share=0.05, tau=0.0)
    assert auc(sparse.aggregation(target, held), member) > auc(Aggregation("mean")(target, held), member) + 0.05


def _rehearsed(of_world):
    _, _, references, trained, held = of_world
    return references, trained, np.ones_like(trained), held


def test_owners_of_all_sizes_are_made_comparable_by_their_own_null():
    """The maximum of 40 records is large whoever owns them: raw, big owners are accused; calibrated, none is more."""
    target, _, references, trained, held = world(7, 3000, (1, 40), 8, shift=0.0, own=1.0)
    raw = Aggregation("max")(target, held)
    own = own_null(Aggregation("max"), target, references, trained, held)
    big = held.size > 30
    assert raw[big].mean() > raw[~big].mean() + 0.7
    for part in (held.size <= 3, big):
        assert np.mean(own.p_values[part] <= 0.05) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 / part.sum()))


def test_what_is_hard_for_every_model_cancels_and_rehearsals_find_that_out():
    candidates = [Way(Aggregation("mean"), False), Way(Aggregation("mean"), True)]
    target, member, references, trained, held = world(8, 600, (2, 12), 8, shift=1.0, own=3.0)
    way, aucs = tuned(references, trained, np.ones_like(trained), held, candidates)
    assert way == candidates[1] and aucs[1] > aucs[0] + 0.1
    own = own_null(way.aggregation, target, references, trained, held)
    assert auc(own.z, member) > auc(way.aggregation(target, held), member) + 0.1
    flat = world(9, 600, (5, 5), 3, shift=0.6, tau=0.0)  # nothing to cancel, few references: their noise only costs
    assert tuned(*_rehearsed(flat), candidates)[0] == candidates[0]


@pytest.mark.parametrize("aggregation", WAYS, ids=lambda way: way.label)
def test_nothing_is_found_of_owners_where_nothing_leaks(aggregation):
    held_in = 0
    for seed in range(20):
        target, member, references, trained, held = world(20 + seed, 150, (1, 12), 4, shift=0.0, own=0.5)
        for scores in (aggregation(target, held), own_null(aggregation, target, references, trained, held).z):
            interval = auc_interval(scores, member)
            held_in += interval.low <= 0.5 <= interval.high
    assert held_in >= 34  # of 40 at 95%


def test_owners_in_part_are_judged_in_no_rehearsal_and_too_few_references_choose_nothing():
    _, _, references, trained, held = world(10, 100, (3, 3), 4)
    known = np.ones_like(trained)
    known[:, ::2] = False
    candidates = [Way(aggregation, False) for aggregation in grid(3)]
    _, aucs = tuned(references, trained, known, held, candidates)
    lies = np.where(known, trained, ~trained)
    assert np.array_equal(tuned(references, lies, known, held, candidates)[1], aucs)
    assert tuned(references[:0], trained[:0], known[:0], held, candidates)[0] is None
    both = [Way(Aggregation("mean"), False), Way(Aggregation("mean"), True)]
    assert np.isnan(tuned(references[:2], trained[:2], known[:2], held, both)[1][1])  # no third model to compare with


def test_every_aggregation_is_tried():
    assert {way.name for way in grid(20)} == set(AGGREGATIONS)
    assert [way.label for way in grid(1)] == ["mean"]
