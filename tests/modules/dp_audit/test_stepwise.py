"""Step-wise guesses: the walk over ranges, when it may be trusted, and what it gains."""

import numpy as np
import pytest

from core.rng import stream
from modules.dp_audit import Fixed, StepWise, audit_one_run, mechanisms
from modules.dp_audit.guesses import default_k
from modules.dp_audit.one_run import pure_epsilon
from modules.dp_audit.stepwise import climb, default_steps


@pytest.mark.parametrize(
    ("bounds", "found"),
    [
        ([0.4, 9.0, 9.0], (0.4, 0)),  # does not clear its range: the others are not asked
        ([1.3, 0.2, 9.0], (1.0, 0)),  # cleared, but the next one shows less: the top of the range
        ([1.3, 1.5, 9.0], (1.5, 1)),
        ([1.3, 2.5, 0.1], (2.0, 1)),
        ([1.3, 2.5, 4.2], (4.2, 2)),
    ],
)
def test_a_walk_ends_in_the_first_range_that_is_not_cleared(bounds, found):
    asked = []
    assert climb((asked.append(b) or b for b in bounds), [1.0, 2.0, np.inf]) == found
    assert len(asked) <= found[1] + 2


def test_a_walk_is_above_the_truth_only_if_the_pair_responsible_for_it_is():
    """The reason why nothing is corrected for, on whatever bounds the pairs may show."""
    draw = stream(0, "walks")
    tops = [0.5, 1.0, 1.0, 2.0, np.inf]
    wrong = 0
    for _ in range(3000):
        truth, bounds = draw.uniform(0, 3), draw.uniform(0, 3, size=len(tops))
        responsible = next(j for j, top in enumerate(tops) if truth < top)
        if climb(bounds, tops)[0] > truth:
            wrong += 1
            assert bounds[responsible] > truth
    assert wrong > 100


@pytest.mark.parametrize("m", [2, 3, 10, 300, 5000])
def test_the_default_ranges_begin_with_fixed_guesses_and_end_with_all(m):
    steps = default_steps(m, lambda r, v: pure_epsilon(r, v, 0.05), 0.05)
    pairs, tops = [pair for pair, _ in steps], [top for _, top in steps]
    assert pairs[0] == Fixed().pair(m) == (default_k(m), default_k(m)) and pairs[-1] == (m // 2, m // 2)
    assert tops == sorted(tops) and tops[-1] == np.inf and pairs == sorted(set(pairs))


def medians(m, mu, estimator):
    found = {"fixed": [], "steps": []}
    for trial in range(25):
        rng = stream(trial, "gain", m, str(mu))
        member = rng.random(m) < 0.5
        scores = mechanisms.gaussian(member, rng, mu=mu)
        for name, choice in (("fixed", Fixed()), ("steps", StepWise())):
            bound = audit_one_run(scores, member, rng, delta=1e-5, choice=choice, estimator=estimator)
            assert bound.eps <= bound.largest
            found[name].append(bound.eps)
    return np.median(found["fixed"]), np.median(found["steps"])


@pytest.mark.parametrize("estimator", ["one_run", "gaussian"])
def test_it_shows_what_fixed_guesses_show_of_a_weak_mechanism_and_more_of_a_strong_one(estimator):
    fixed, steps = medians(1000, 1.0, estimator)
    assert steps == fixed > 1
    fixed, steps = medians(1000, 3.0, estimator)
    assert steps > 1.15 * fixed


def test_ranges_that_do_not_rise_to_infinity_are_refused():
    for tops in ((2.0, 1.0), (1.0, 2.0)):
        with pytest.raises(ValueError, match="ends at infinity"):
            StepWise(tuple(((5, 5), top) for top in tops))
    rng = stream(0, "own")
    member = rng.random(100) < 0.5
    own = StepWise((((10, 0), 0.7), ((0, 30), np.inf)))
    bound = audit_one_run(member.astype(float), member, rng, delta=0.0, choice=own)
    assert (bound.r, bound.right) == (30, 30) and bound.eps == bound.largest
