"""The maximum over all pairs is exact, and says that it is no bound."""

import numpy as np
import pytest

from core.rng import stream
from modules.dp_audit import along_guesses, best_of, exploratory_maximum, mechanisms, one_run, ranked, verdict
from modules.dp_audit.exploratory import best_pair


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3, 0.02])
def test_it_is_the_largest_bound_of_all_pairs(delta):
    rng = stream(1, "brute force")
    for _ in range(12):
        m = int(rng.integers(2, 41))
        member = rng.random(m) < 0.5
        counts = ranked(rng.normal(size=m) + rng.choice([-1, 0, 1, 3]) * member, member, rng)
        plus, minus = (side.ravel() for side in np.meshgrid(np.arange(m + 1), np.arange(m + 1)))
        allowed = (plus + minus <= m) & (plus + minus > 0)
        plus, minus = plus[allowed], minus[allowed]
        every = one_run.epsilon(m, plus + minus, counts.top[plus] + counts.bottom[minus], delta=delta)
        eps, pair = best_pair(counts, delta=delta)
        assert eps == pytest.approx(every.max(), abs=3e-8)
        if eps > 0:
            assert one_run.epsilon(m, sum(pair), counts.right(pair), delta=delta) == pytest.approx(eps, abs=3e-8)


def test_it_is_marked_and_no_verdict_rests_on_it():
    rng = stream(2, "marked")
    member = rng.random(300) < 0.5
    scores = mechanisms.gaussian(member, rng, mu=2.0)
    bound = exploratory_maximum(scores, member, rng, delta=1e-5)
    assert bound.kind == "exploratory" and "no bound" in bound.doubts[0] and "exploratory" in str(bound)
    with pytest.raises(ValueError, match="exploratory"):
        verdict(bound, epsilon=0.1, delta=1e-5)
    with pytest.raises(ValueError, match="exploratory"):
        best_of([bound, bound])


def test_the_curve_along_guesses_never_passes_the_maximum():
    rng = stream(3, "curve")
    member = rng.random(500) < 0.5
    counts = ranked(mechanisms.gaussian(member, rng, mu=1.5), member, rng)
    k, eps = along_guesses(counts, delta=1e-5)
    assert k[0] == 1 and k[-1] == 250 and eps.max() > 0
    assert eps.max() <= best_pair(counts, delta=1e-5)[0] + 1e-7
