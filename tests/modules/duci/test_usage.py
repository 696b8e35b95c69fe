"""The debiased share is right on average, and its interval holds as often as it says."""

import numpy as np
import pytest
from scipy.special import stdtrit

from core.rng import stream
from modules.duci.groups import by_record, by_vulnerability, joined, vulnerability
from modules.duci.rates import Known, rates
from modules.duci.thresholds import guesses, threshold, thresholds
from modules.duci.usage import usage
from tests.modules.duci.world import halves, used_part, world


def coverage(trials, seed=0, **settings):
    """How often the headline and the paper's interval hold the truth, and the mean error."""
    headline = paper = 0
    errors = []
    for trial in range(trials):
        target, known, member = world(str(seed), trial, **settings)
        found, truth = usage(target, known), member.mean()
        headline += found.low <= truth <= found.high
        paper += found.paper.low <= truth <= found.paper.high
        errors.append(found.raw - truth)
    return headline / trials, paper / trials, np.array(errors)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_the_estimate_is_right_on_average(p):
    _, _, errors = coverage(300, p=p, models=8)
    assert abs(errors.mean()) < 3.5 * errors.std() / np.sqrt(300)


def test_with_rates_that_hardly_err_the_variance_is_that_of_the_formula():
    p, tpr, fpr, n = 0.4, 0.7, 0.3, 500
    _, _, errors = coverage(300, p=p, models=60, n=n)
    expected = (p * tpr * (1 - tpr) + (1 - p) * fpr * (1 - fpr)) / n / (tpr - fpr) ** 2 * (1 + 1 / 60)
    assert errors.var() == pytest.approx(expected, rel=0.2)
    target, known, _ = world(0, p=p, models=60, n=n)
    found = usage(target, known)
    assert found.own_variance + found.rates_variance == pytest.approx(expected, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("models", [1, 2, 8, 42])
def test_the_headline_interval_covers_what_it_says_and_the_papers_covers_less_with_few_references(models):
    trials = 1200
    headline, paper = np.mean([coverage(trials // 3, p=p, models=models, seed=p)[:2] for p in (0.1, 0.5, 0.8)], axis=0)
    noise = 2.5 * np.sqrt(0.05 * 0.95 / trials)  # of a coverage counted over so many trials
    assert 0.93 - noise / 2 <= headline <= 0.96 + noise / 2
    assert paper < headline or models == 42
    if models == 1:
        assert 0.70 < paper < 0.90
    if models == 2:
        assert 0.80 < paper < 0.93
    if models == 42:
        assert paper > 0.92


@pytest.mark.slow
@pytest.mark.parametrize("models", [3, 8, 42])
def test_the_interval_holds_where_models_differ_more_than_their_guesses(models):
    headline, paper, _ = coverage(600, p=0.3, models=models, spread=0.05)
    assert headline > 0.92
    assert paper < 0.75


def test_the_spread_between_models_is_measured_from_three_rehearsals_on():
    own = {m: np.median([usage(*world(t, models=m, spread=0.08)[:2]).own_variance for t in range(40)]) for m in (2, 16)}
    assert own[16] > 5 * own[2]


def test_the_papers_interval_is_students_of_the_debiased_guesses():
    target, known, _ = world(1)
    found, of = usage(target, known), rates(known, known.one_group())
    debiased = (target[0] - of.fpr[0]) / (of.tpr[0] - of.fpr[0])
    half = stdtrit(499, 0.975) * np.sqrt(debiased.var(ddof=1) / 500)
    assert found.raw == pytest.approx(debiased.mean())
    assert (found.paper.low, found.paper.high) == pytest.approx((debiased.mean() - half, debiased.mean() + half))


def test_an_exact_world_gives_the_exact_share():
    """100 records; 8 of 10 members and 3 of 10 non-members are guessed, in rehearsals and target alike."""
    trained_on = np.arange(100) < 50
    known_guesses = np.where(trained_on, np.arange(100) % 10 < 8, np.arange(100) % 10 < 3)
    member = np.arange(100) < 20
    target = np.where(member, np.arange(100) % 10 < 8, np.arange(100) % 10 < 3)
    found = usage(target[None], Known(known_guesses[None], trained_on[None]))
    assert found.raw == pytest.approx(0.2) and (found.tpr, found.fpr) == (0.8, 0.3)


def test_rates_divide_by_the_real_counts():
    trained_on = np.array([[True, True, True, False]])
    of = rates(Known(np.array([[True, True, False, True]]), trained_on), np.zeros((1, 4), dtype=int))
    assert of.tpr[0] == pytest.approx(2 / 3) and of.fpr[0] == 1.0


def test_the_order_of_records_and_of_rehearsals_does_not_matter():
    target, known, _ = world(2)
    columns, rows = stream(3, "order").permutation(500), stream(4, "order").permutation(8)
    shuffled = Known(known.guesses[rows][:, columns], known.trained_on[rows][:, columns])
    a, b = usage(target, known), usage(target[:, columns], shuffled)
    assert (a.raw, a.low, a.high) == pytest.approx((b.raw, b.low, b.high))


def test_the_mirror_world_gives_the_mirror_image():
    """Inverting all guesses and memberships is the same world about the records that were not used."""
    target, known, _ = world(5)
    mirrored = usage(~target, Known(~known.guesses, ~known.trained_on))
    found = usage(target, known)
    assert (mirrored.raw, mirrored.low, mirrored.high) == pytest.approx((1 - found.raw, 1 - found.high, 1 - found.low))


def test_the_raw_value_leaves_the_unit_interval_and_the_clipped_one_does_not():
    found = [usage(*world(trial, p=0.0, models=8)[:2]) for trial in range(20)]
    assert min(u.raw for u in found) < 0 == min(u.clipped.value for u in found)
    assert all(0 <= u.clipped.low <= u.clipped.value <= u.clipped.high <= 1 for u in found)


# ---- refusal --------------------------------------------------------------------------------------------------


def test_an_attack_that_knows_nothing_is_refused_in_words():
    target, known, _ = world(0, tpr=0.5, fpr=0.5)
    found = usage(target, known)
    assert "hardly tells members" in found.refused and np.isnan(found.raw) and np.isnan(found.clipped.low)


def test_the_refusal_looks_at_the_lower_limit_not_at_the_value():
    """TPR - FPR = .15 is known well enough from 60 models, and not from one."""
    refused = {
        m: np.mean([bool(usage(*world(t, models=m, tpr=0.55, fpr=0.4)[:2]).refused) for t in range(30)])
        for m in (1, 60)
    }
    assert refused[1] > 0.8 and refused[60] < 0.1


def test_a_threshold_that_guesses_nobody_is_refused():
    nobody = np.zeros((4, 100), dtype=bool)
    found = usage(nobody, Known(nobody, halves(stream(0, "nobody"), 4, 100)))
    assert found.refused and np.isnan(found.raw)


# ---- thresholds and ties --------------------------------------------------------------------------------------


def tied_world(seed, p, models=12, n=2000):
    """Scores of three values, 0, 1 and 2: members have more of the 2, and of the 1."""
    rng = stream(seed, "ties")
    member, trained_on = used_part(rng, n, p), halves(rng, models, n)
    odds = np.where(np.vstack([member, trained_on])[..., None], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1])
    scores = (rng.random((models + 1, n, 1)) > odds.cumsum(axis=-1)).sum(axis=-1).astype(float)
    return np.broadcast_to(scores[0], (models, n)), scores[1:], trained_on, member


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_ties_count_alike_for_target_and_rehearsals_and_a_planted_mismatch_shows(p):
    target, scores, trained_on, member = tied_world(0, p)
    half = used_part(stream(0, "halves"), 2000, 0.5)
    cut = thresholds(scores, trained_on, half)
    known = Known(guesses(scores, cut), trained_on)
    assert usage(guesses(target, cut), known).raw == pytest.approx(member.mean(), abs=0.06)
    assert abs(usage(target > cut, known).raw - member.mean()) > 0.5


def test_youden_maximises_the_difference_of_the_rates():
    _, scores, trained_on, _ = tied_world(1, 0.5)

    def gap(t):
        return (scores[trained_on] >= t).mean() - (scores[~trained_on] >= t).mean()

    assert threshold(scores, trained_on) == max((0.0, 1.0, 2.0), key=gap) == 1.0


def test_a_fixed_fpr_is_kept_on_the_rehearsals():
    rng = stream(0, "fixed")
    trained_on = halves(rng, 4, 1000)
    scores = rng.standard_normal((4, 1000)) + trained_on
    cut = threshold(scores, trained_on, fpr=0.05)
    achieved = (scores[~trained_on] >= cut).mean()
    assert 0.045 < achieved <= 0.05
    assert threshold(scores, trained_on, fpr=0.0) > scores[~trained_on].max()


def test_no_record_has_a_say_in_its_own_threshold():
    rng = stream(0, "own")
    trained_on = halves(rng, 4, 200)
    scores = rng.standard_normal((4, 200)) + trained_on
    half = used_part(rng, 200, 0.5)
    moved = scores + 10 * half  # of one half only
    before, after = thresholds(scores, trained_on, half), thresholds(moved, trained_on, half)
    assert np.array_equal(before[half], after[half])
    assert not np.array_equal(before[~half], after[~half])


def test_rates_on_the_records_that_chose_the_threshold_flatter_and_those_of_the_other_half_do_not():
    flattered, honest = [], []
    for seed in range(200):
        rng = stream(seed, "flattery")
        trained_on = halves(rng, 1, 100)
        scores = rng.standard_normal((1, 100)) + trained_on
        half = used_part(rng, 100, 0.5)
        one = np.zeros((1, 100), dtype=int)
        own = np.full(100, threshold(scores, trained_on))
        flattered.append(rates(Known(guesses(scores, own), trained_on), one).gap[0])
        other = thresholds(scores, trained_on, half)
        honest.append(rates(Known(guesses(scores, other), trained_on), one).gap[0])
    true = 0.3829  # of N(0, 1) against N(1, 1), at the best threshold
    assert np.mean(flattered) > true + 0.03
    assert np.mean(honest) < true + 0.01


# ---- groups ---------------------------------------------------------------------------------------------------


def graded(n=600, levels=6):
    """TPR and FPR of each record: in six levels, TPR - FPR from .3 to .9."""
    level = np.arange(n) * levels // n
    gap = np.linspace(0.3, 0.9, levels)[level]
    return level, 0.05 + gap, np.full(n, 0.05)


def biased(level):
    """Half of the records are used, those that leak most first."""
    return level >= 3


def test_groups_remove_the_bias_of_a_sample_chosen_by_vulnerability():
    level, tpr, fpr = graded()
    whole, grouped = [], []
    for trial in range(80):
        target, known, member = world(trial, models=8, n=600, tpr=tpr, fpr=fpr, used=biased(level))
        whole.append(usage(target, known).raw - member.mean())
        grouped.append(usage(target, known, np.broadcast_to(level, known.guesses.shape)).raw - member.mean())
    gap = tpr - fpr
    theory = np.cov(gap, biased(level), bias=True)[0, 1] / gap.mean()  # literature §1.8, eq. 19
    assert np.mean(whole) == pytest.approx(theory, abs=0.02) and theory > 0.1
    assert abs(np.mean(grouped)) < 0.02


def test_the_interval_of_the_grouped_estimate_holds():
    level, tpr, fpr = graded()
    held = 0
    for trial in range(300):
        target, known, member = world("g", trial, models=8, n=600, tpr=tpr, fpr=fpr, used=biased(level))
        found = usage(target, known, np.broadcast_to(level, known.guesses.shape))
        held += found.low <= member.mean() <= found.high
    assert 0.91 <= held / 300 <= 0.99


def test_groups_found_from_the_scores_remove_most_of_the_bias_and_add_none_of_their_own():
    level, _, _ = graded()
    shift = np.linspace(0.5, 4, 6)[level]
    errors = {"whole": [], "grouped": [], "uniform": []}
    for trial in range(30):
        rng = stream(trial, "scores")
        layout = np.repeat(np.arange(12), 2)
        first = halves(rng, 12, 600)
        trained_on = np.stack([first, ~first], axis=1).reshape(24, 600)
        scores = rng.standard_normal((24, 600)) + shift * trained_on
        groups = by_vulnerability(scores, trained_on, layout, 6)
        cut = thresholds(scores, trained_on, used_part(rng, 600, 0.5))
        known = Known(guesses(scores, cut), trained_on)
        groups = joined(known, groups, min_advantage=0.1)
        for name, member in (("biased", biased(level)), ("uniform", used_part(rng, 600, 0.5))):
            score = rng.standard_normal(600) + shift * member
            target = guesses(np.broadcast_to(score, (24, 600)), cut)
            error = usage(target, known, groups).raw - member.mean()
            if name == "uniform":
                errors["uniform"].append(error)
            else:
                errors["grouped"].append(error)
                errors["whole"].append(usage(target, known).raw - member.mean())
    assert np.mean(errors["whole"]) > 0.12
    assert abs(np.mean(errors["grouped"])) < 0.25 * np.mean(errors["whole"])
    assert abs(np.mean(errors["uniform"])) < 0.02


def test_a_rehearsal_has_no_say_in_its_own_groups():
    rng = stream(0, "say")
    trained_on = halves(rng, 6, 60)
    layout = np.repeat(np.arange(3), 2)
    scores = rng.standard_normal((6, 60))
    changed = scores.copy()
    changed[layout == 1] += 5 * rng.standard_normal((2, 60))
    before, after = (by_vulnerability(s, trained_on, layout, 4) for s in (scores, changed))
    assert np.array_equal(before[layout == 1], after[layout == 1])
    assert not np.array_equal(before[layout == 0], after[layout == 0])


def test_vulnerability_ranks_records_by_what_training_adds():
    rng = stream(0, "vulnerability")
    trained_on = halves(rng, 60, 90)
    shift = np.linspace(0, 3, 90)
    scores = rng.standard_normal((60, 90)) + shift * trained_on
    found = vulnerability(np.exp(scores), trained_on)
    assert np.corrcoef(found, shift)[0, 1] > 0.9 and np.array_equal(found, vulnerability(scores, trained_on))


def test_groups_that_cannot_tell_join_the_next():
    level, tpr, fpr = graded()
    weak = np.where(level < 2, fpr + 0.02, tpr)
    target, known, _ = world(0, models=8, n=600, tpr=weak, fpr=fpr, p=0.5)
    groups = np.broadcast_to(level, known.guesses.shape)
    assert usage(target, known, groups).refused
    fewer = joined(known, groups, min_advantage=0.1)
    assert fewer.max() == 3 and not usage(target, known, fewer).refused
    assert np.array_equal(np.unique(fewer[:, level == 5]), [3])
    nothing = Known(known.guesses, halves(stream(1, "x"), 8, 600))
    assert joined(nothing, groups, min_advantage=0.1).max() == 0


def test_rates_of_each_record_remove_the_bias_too_given_enough_references():
    level, tpr, fpr = graded()
    whole, each = [], []
    for trial in range(10):
        target, known, member = world("r", trial, models=80, n=600, tpr=tpr + 0.05, fpr=fpr, used=biased(level))
        whole.append(usage(target, known, min_advantage=0.05).raw - member.mean())
        each.append(usage(target, known, record_rates=True, min_advantage=0.02).raw - member.mean())
    assert np.mean(whole) > 0.12 and abs(np.nanmean(each)) < 0.4 * np.mean(whole)
    assert not np.isnan(each).all()


def test_records_that_are_alike_get_the_rates_of_all():
    _, known, _ = world(0, models=40)
    of, whole = by_record(known), rates(known, known.one_group())
    assert np.std(of.tpr) < 0.03 and np.mean(of.tpr) == pytest.approx(whole.tpr[0], abs=0.01)


def test_rates_of_each_record_need_enough_references():
    with pytest.raises(ValueError, match=r"raise audit\.num_ref_models, or use subgroups"):
        usage(*world(0, models=8)[:2], record_rates=True)
