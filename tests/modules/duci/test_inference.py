"""The attack is rehearsed as it is applied; from Evidence to an answer; the baselines; what targets train on."""

from dataclasses import replace

import numpy as np
import pytest

import modules.mia  # noqa: F401  (fills ATTACKS)
from core.registry import ATTACKS
from core.rng import stream
from modules.duci.answers import Answer, drifts, means, method_errors
from modules.duci.baselines import average_logit, direct_aggregation, mean_score
from modules.duci.inference import Method, answers, learn
from modules.duci.rehearse import attack_target, rehearse, restricted, with_target
from modules.duci.sampling import training_set
from modules.duci.transport import drift
from modules.duci.usage import usage
from tests.modules.duci.world import world
from tests.worlds import gaussian_world


def rmia(evidence):
    return ATTACKS["RMIA"](evidence, mode="online")


def loss(evidence):
    return ATTACKS["LOSS"](evidence)


def halves_of(evidence):
    n = evidence.target.shape[1]
    return stream(0, "halves").permutation(n) < n // 2


def with_share(evidence, member, p, seed=0):
    """The target with another share of the records used: a used one keeps the signal of a member, and so on.

    Columns are chosen so that a share p of them are members.
    """
    n = evidence.target.shape[1] // 4
    rng = stream(seed, "share")
    used = round(p * n)
    inside = rng.permutation(np.flatnonzero(member))[:used]
    outside = rng.permutation(np.flatnonzero(~member))[: n - used]
    columns = np.sort(np.concatenate([inside, outside]))
    return restricted(evidence, columns), member[columns]


# ---- rehearsals -----------------------------------------------------------------------------------------------


def test_target_and_held_out_pair_meet_the_same_references():
    evidence, _ = gaussian_world(n_points=40, pairs=3, population=20)
    met = []

    def spy(seen):
        met.append(seen)
        return loss(seen)

    rehearsals = rehearse(evidence, spy)
    of_models, met[:] = list(met), []
    attack_target(evidence, rehearsals, spy)
    assert rehearsals.layout.tolist() == [0, 0, 1, 1, 2, 2] and len(met) == 3
    for m, layout in enumerate(rehearsals.layout):
        assert np.array_equal(of_models[m].references, met[layout].references)
        assert np.array_equal(of_models[m].population_references, met[layout].population_references)
        assert np.array_equal(of_models[m].target, evidence.references[m])
        assert np.array_equal(met[layout].target, evidence.target)
        held_out = evidence.references[[2 * layout, 2 * layout + 1]]
        assert not any(np.array_equal(r, h) for r in met[layout].references for h in held_out)
    assert np.array_equal(rehearsals.trained_on, evidence.trained_on)


def test_the_targets_scores_stand_in_the_row_of_the_rehearsal_with_the_same_attack():
    evidence, _ = gaussian_world(n_points=40, pairs=2, population=20)
    rehearsals = rehearse(evidence, rmia)
    scores = attack_target(evidence, rehearsals, rmia)
    only_second = replace(
        evidence,
        references=evidence.references[2:],
        trained_on=evidence.trained_on[2:],
        population_references=evidence.population_references[2:],
    )
    assert np.array_equal(scores[0], rmia(only_second)) and np.array_equal(scores[1], scores[0])
    assert not np.array_equal(scores[2], scores[0])


def test_one_pair_is_enough_for_an_attack_without_references():
    evidence, _ = gaussian_world(n_points=40, pairs=1)
    assert rehearse(evidence, loss).scores.shape == (2, 40)
    with pytest.raises(ValueError, match="no reference"):
        rehearse(evidence, rmia)


def test_no_references_is_a_clear_error():
    evidence, _ = gaussian_world(n_points=40, pairs=0)
    with pytest.raises(ValueError, match="there are none"):
        rehearse(evidence, loss)


def test_fewer_rehearsals_hold_out_whole_pairs():
    evidence, _ = gaussian_world(n_points=40, pairs=5)
    found = rehearse(evidence, loss, limit=2)
    assert found.scores.shape == (4, 40) and np.array_equal(found.trained_on[0], ~found.trained_on[1])
    assert found.kept.sum(axis=1).tolist() == [8, 8]


def test_another_target_brings_its_own_population():
    evidence, _ = gaussian_world(n_points=40, pairs=2)
    other, _ = gaussian_world(seed=1, n_points=40, pairs=0)
    joined = with_target(evidence, other)
    assert np.array_equal(joined.population, other.population) and np.array_equal(joined.target, other.target)
    assert np.array_equal(joined.references, evidence.references)


# ---- from evidence to an answer -------------------------------------------------------------------------------


def ask(evidence, member, method):
    learnt = learn(evidence, method, halves_of(evidence))
    return answers(evidence, learnt, method, member, {"all": np.ones(len(member), bool)}, model="t")[0]


@pytest.mark.parametrize("attack", [rmia, loss], ids=["RMIA", "LOSS"])
def test_the_share_is_found_whatever_it_is_and_direct_aggregation_misses_it(attack):
    method = Method(attack)
    off, direct, held = [], [], 0
    for seed in range(6):
        evidence, member = gaussian_world(seed, n_points=2400, pairs=4, shift=2.0, tau=0.5, population=200)
        for p in (0.0, 0.5, 1.0):
            answer = ask(*with_share(evidence, member, p, seed), method)
            off.append(answer.error("duci"))
            direct.append(answer.error("direct"))
            held += answer.covered
    assert abs(np.mean(off)) < 0.03 and np.mean(np.abs(off)) < 0.5 * np.mean(np.abs(direct))
    assert held >= 16  # of 18


def test_attacking_the_target_with_more_references_than_the_rehearsals_is_a_bias_that_the_layouts_avoid():
    """With two pairs, a rehearsal has 2 references; a target attacked with all 4 gets other scores (reference D23)."""
    matched, mismatched = [], []
    for seed in range(12):
        evidence, member = gaussian_world(seed, n_points=2000, pairs=2, shift=1.5, tau=2.0, population=200)
        method = Method(lambda seen: ATTACKS["LiRA"](seen, mode="offline"), fpr=0.1)
        learnt = learn(evidence, method, halves_of(evidence))
        matched.append(ask(evidence, member, method).error("duci"))
        naive = np.broadcast_to(method.attack(evidence) >= learnt.thresholds, learnt.known.guesses.shape)
        mismatched.append(usage(naive, learnt.known, min_advantage=0.0).raw - member.mean())
    assert abs(np.mean(matched)) < 0.03
    assert abs(np.mean(mismatched)) > 3 * abs(np.mean(matched)) and abs(np.mean(mismatched)) > 0.05


def test_the_targets_membership_and_signals_do_not_reach_what_is_learnt():
    evidence, member = gaussian_world(n_points=400, pairs=3)
    other = replace(evidence, target=-evidence.target, population=evidence.population + 1)
    method = Method(rmia, debias="subgroups", subgroups=3)
    a, b = (learn(e, method, halves_of(e)) for e in (evidence, other))
    assert np.array_equal(a.thresholds, b.thresholds) and np.array_equal(a.groups, b.groups)
    assert np.array_equal(a.known.guesses, b.known.guesses)
    one = answers(evidence, a, method, member, {"all": member | True}, model="t")[0]
    two = answers(evidence, a, method, ~member, {"all": member | True}, model="t")[0]
    assert one.usage == two.usage or np.isnan(one.usage.raw)
    assert one.truth == pytest.approx(1 - two.truth)


def test_a_world_that_leaks_nothing_is_refused():
    evidence, member = gaussian_world(n_points=800, pairs=3, shift=0.0)
    answer = ask(evidence, member, Method(rmia))
    assert answer.usage.refused and np.isnan(answer.usage.raw)


def test_parts_are_answered_for_themselves():
    evidence, member = gaussian_world(n_points=2000, pairs=4, shift=2.5, tau=0.3)
    method = Method(loss)
    learnt = learn(evidence, method, halves_of(evidence))
    parts = {"members": member, "others": ~member}
    found = answers(evidence, learnt, method, member, parts, model="t")
    assert [a.truth for a in found] == [1.0, 0.0]
    assert found[0].usage.raw == pytest.approx(1, abs=0.1) and found[1].usage.raw == pytest.approx(0, abs=0.1)
    assert np.isnan(found[0].fpr) and np.isnan(found[1].tpr)


# ---- baselines ------------------------------------------------------------------------------------------------


def test_direct_aggregation_and_mean_score_take_what_they_see():
    assert direct_aggregation(np.array([[True, False, True, True]])) == 0.75
    assert mean_score(np.array([[0.25, 0.75]])) == 0.5
    assert np.isnan(mean_score(np.array([[-3.0, 8.0]])))


@pytest.mark.parametrize("p", [0.0, 0.25, 0.7, 1.0])
def test_the_mean_log_odds_find_the_share_where_models_hardly_differ(p):
    evidence, member = gaussian_world(n_points=8000, pairs=6, shift=2.0)
    seen, inside = with_share(evidence, member, p)
    found = average_logit(seen.target[0], seen.references[:, 0], seen.trained_on)
    assert found == pytest.approx(inside.mean(), abs=0.05 + 1e-9)


def test_one_pair_of_references_has_no_likelihood():
    evidence, _ = gaussian_world(n_points=100, pairs=1)
    assert np.isnan(average_logit(evidence.target[0], evidence.references[:, 0], evidence.trained_on))


# ---- synthetic targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "most_vulnerable", "least_vulnerable"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_target_trains_on_its_share_of_x_and_on_as_many_records_as_any_other(sampling, p):
    x = np.arange(10, 50)
    member = training_set(x, 200, 100, p, sampling, stream(0, "t"), np.arange(40.0))
    assert member.sum() == 100 and member[x].sum() == round(p * 40)


def test_poisson_sampling_has_a_random_size_and_the_same_training_size():
    x = np.arange(100)
    drawn = [training_set(x, 400, 200, 0.5, "poisson", stream(t, "t")) for t in range(50)]
    sizes = [m[x].sum() for m in drawn]
    assert {m.sum() for m in drawn} == {200} and np.std(sizes) == pytest.approx(5, rel=0.4)


def test_vulnerable_records_come_first_or_last():
    x, leak = np.array([3, 5, 7, 9]), np.array([0.1, 0.9, 0.5, 0.3])
    most = training_set(x, 30, 10, 0.5, "most_vulnerable", stream(0, "t"), leak)
    least = training_set(x, 30, 10, 0.5, "least_vulnerable", stream(0, "t"), leak)
    assert most[x].tolist() == [False, True, True, False] and least[x].tolist() == [True, False, False, True]


def test_too_few_records_outside_x_is_an_error_with_the_counts():
    with pytest.raises(ValueError, match=r"leave 10 to take from the 5 records of the pool outside it"):
        training_set(np.arange(15), 20, 10, 0.0, "uniform", stream(0, "t"))
    with pytest.raises(ValueError, match="leave -5 to take"):
        training_set(np.arange(15), 40, 10, 1.0, "uniform", stream(0, "t"))
    with pytest.raises(ValueError, match="needs the vulnerability"):
        training_set(np.arange(5), 40, 10, 1.0, "most_vulnerable", stream(0, "t"))


# ---- transport and errors -------------------------------------------------------------------------------------


def made_up(p, trial, *, shifted=0.0):
    """An answer in a world whose models at share p have an FPR and TPR higher than rehearsals by `shifted`."""
    target, known, member = world("transport", trial, str(p), p=p, models=8)
    rng = stream(trial, "shift", str(p))
    more = np.broadcast_to(target[0] | (rng.random(500) < shifted), target.shape)
    found = usage(more, known)
    return Answer("m", "all", p, trial, 500, float(member.mean()), found, 0.5, 0.5, float("nan"), 0.7, 0.3)


def test_rates_that_hold_are_not_called_into_question_and_rates_that_do_not_are():
    same = [made_up(p, t) for p in (0.0, 0.25, 0.5, 0.75, 1.0) for t in range(4)]
    assert all(d.holds for d in drifts(same, 0.95))
    other = [made_up(p, t, shifted=0.15 * (p == 0)) for p in (0.0, 0.5, 1.0) for t in range(4)]
    assert [d.holds for d in drifts(other, 0.95)] == [False, True, True]


def test_more_models_narrow_the_mean_error_only_down_to_the_noise_of_the_rates_they_share():
    found = made_up(0.5, 0).usage
    widths = []
    for count in (1, 4, 10**4):
        d = drift(0.5, [found] * count, [0.5] * count, level=0.95, looks=1)
        widths.append(d.error.high - d.error.low)
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(found.own_variance + found.rates_variance), rel=1e-3)
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] == pytest.approx(2 * 1.96 * np.sqrt(found.rates_variance), rel=1e-2)


def test_the_largest_mean_error_is_over_shares_of_means_over_trials():
    of = made_up(0.5, 0)
    made = [replace(of, proportion=p, truth=t) for p, t in ((0.0, 0.5), (0.0, 0.3), (1.0, 0.9))]
    direct = {e.method: e for e in method_errors(made)}["Direct aggregation"]
    assert (direct.largest, direct.at, direct.worst) == pytest.approx((0.4, 1.0, 0.4))
    assert direct.mean == pytest.approx((0.0 + 0.2 + 0.4) / 3)
    assert "MLE on average logits" not in {e.method for e in method_errors(made)}  # has no value here
    assert means(made)["truth"] == pytest.approx(1.7 / 3) and np.isnan(means(made)["mle"])
