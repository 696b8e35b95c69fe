"""Bounds are really lower bounds: whole audits, selection included, of mechanisms whose ε is known.

The full table is `python -m benchmarks.dp_audit_coverage`; this is its own code, with fewer canaries or cells.
"""

from functools import cache

import numpy as np
import pytest

from benchmarks.dp_audit_coverage import Cell, World, one_run, simulate, tabled, two_worlds, uncorrected, worlds
from core.rng import stream
from modules.dp_audit import Bonferroni, Calibrated, Fixed, MultiSplit, Split, StepWise, audit_one_run, mechanisms
from modules.dp_audit.audit import MISFIT
from modules.dp_audit.family import gaussian_fit
from modules.dp_audit.one_run import pure_epsilon

EPSILONS = [0.0, 1.0, 4.0]
GRID = ((8, 8), (20, 20), (50, 50))
STEPS = StepWise((((8, 8), 0.4), ((20, 20), 1.5), ((50, 50), np.inf)))
CHOICES = [Fixed(), Split(), MultiSplit(splits=3), Bonferroni(GRID), STEPS, Calibrated(GRID)]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Bounds are made for every number of right guesses at once."""
    with tabled():
        yield


@cache
def world(name: str, epsilon: float) -> World:
    return next(world for world in worlds(epsilon) if world.name == name)


def covers(name, epsilon, audit, *, m=100, trials=200) -> Cell:
    cell = simulate(world(name, epsilon), audit, m=m, trials=trials, name="test")
    assert cell.holds, f"over-claims in {cell.share:.1%} of {trials} audits"
    return cell


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: type(choice).__name__)
def test_no_choice_of_guesses_over_claims_on_randomised_response(choice, epsilon):
    cell = covers("response", epsilon, one_run("one_run", choice))
    if epsilon == 4.0:
        assert cell.median > 1.5  # a bound that always says 0 would cover too


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 2.0])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: type(choice).__name__)
def test_no_choice_of_guesses_over_claims_on_the_gaussian_mechanism(choice, epsilon):
    covers("gaussian", epsilon, one_run("one_run", choice))


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 1.0])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: type(choice).__name__)
def test_no_choice_of_guesses_over_claims_where_delta_is_used_up(choice, epsilon):
    covers("leaky", epsilon, one_run("one_run", choice))


def test_a_bound_that_forgets_delta_over_claims_where_delta_is_used_up():
    """The control of the tests above: without its term for delta, the same bound fails in the same kind of world."""
    epsilon, delta = 0.5, 0.02
    leaky = World(
        "leaky", lambda b, rng: mechanisms.leaky_response(b, rng, epsilon=epsilon, delta=delta), epsilon, delta
    )

    def kept(estimator, forget):
        return lambda scores, member, rng, d: (
            audit_one_run(
                scores, member, rng, delta=0.0 if forget else d, choice=Fixed(10, 10), estimator=estimator
            ).eps
        )

    for estimator in ("one_run", "f_dp"):
        assert simulate(leaky, kept(estimator, False), m=500, trials=300, name="kept").holds
    assert simulate(leaky, kept("one_run", True), m=500, trials=300, name="kept").share > 0.3


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
@pytest.mark.parametrize("choice", [Fixed(), Bonferroni(GRID), STEPS], ids=lambda choice: type(choice).__name__)
def test_f_dp_does_not_over_claim(choice, epsilon):
    covers("response", epsilon, one_run("f_dp", choice))
    covers("gaussian", epsilon, one_run("gaussian", choice))


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_two_worlds_do_not_over_claim(epsilon):
    covers("response", epsilon, two_worlds("clopper_pearson", (-1.0, 0.5, 1.5)))
    covers("gaussian", epsilon, two_worlds("gaussian", 0.5))


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 2.0])
def test_the_uncorrected_maximum_fails_the_same_test(epsilon):
    cell = simulate(world("response", epsilon), uncorrected, m=100, trials=200, name="bad")
    assert not cell.holds and cell.share > 0.2


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: type(choice).__name__)
class TestMechanismsThatOneRunCannotAudit:
    """Loose, and never above the truth (Keinan et al. 2025)."""

    def test_all_or_nothing(self, choice):
        p = 0.04  # (0, p)-DP: the truth is 0, and once in 25 runs all is revealed
        everything = World("all", lambda b, rng: mechanisms.all_or_nothing(b, rng, p=p), 0.0, p)
        if isinstance(choice, Calibrated):
            with pytest.raises(ValueError, match="leaves nothing"):
                simulate(everything, one_run("one_run", choice), m=100, trials=1, name="all")
        else:
            assert simulate(everything, one_run("one_run", choice), m=100, trials=200, name="all").holds

    def test_name_and_shame(self, choice):
        delta = 1e-4 if isinstance(choice, Calibrated) else 1 / 100
        named = World("named", mechanisms.name_and_shame, 0.0, delta)
        cell = simulate(named, one_run("one_run", choice), m=100, trials=200, name="named")
        assert cell.holds and cell.median == 0

    def test_xor(self, choice):
        odd = World("xor", mechanisms.xor, 0.0, 0.0)  # single bits cannot be guessed at all
        cell = simulate(odd, one_run("one_run", choice), m=100, trials=200, name="xor")
        assert cell.holds and cell.median == 0


@pytest.mark.parametrize(
    ("audit", "share"), [(one_run("gaussian", Fixed()), 0.25), (two_worlds("gaussian", 0.5), 0.9)], ids=["one", "two"]
)
def test_the_gaussian_bound_over_claims_on_laplace(audit, share):
    def at_small_delta(scores, member, rng, _):
        return audit(scores, member, rng, 1e-5)

    cell = simulate(world("laplace", 1.0), at_small_delta, m=1000, trials=30, name="laplace")
    assert cell.share > share


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
def test_a_gaussian_bound_on_laplace_is_flagged(epsilon):
    flagged = 0
    for trial in range(20):
        rng = stream(trial, "flag")
        member = rng.random(2000) < 0.5
        bound = audit_one_run(
            mechanisms.laplace(member, rng, epsilon=epsilon), member, rng, delta=1e-5, estimator="gaussian"
        )
        assert bound.family == "gaussian" and "only if" in bound.doubts[0]
        flagged += any("not those of a Gaussian mechanism" in doubt for doubt in bound.doubts)
    assert flagged >= 18


@pytest.mark.parametrize("mu", [0.0, 1.0, 3.0])
def test_a_gaussian_mechanism_is_rarely_flagged(mu):
    rng = stream(0, "no flag")
    member = rng.random((60, 2000)) < 0.5
    p = [
        gaussian_fit(np.exp(row), bits)
        for row, bits in zip(mechanisms.gaussian(member, rng, mu=mu), member, strict=True)
    ]
    assert np.mean(np.array(p) < MISFIT) <= MISFIT + 3 * np.sqrt(MISFIT / 60)


def test_f_dp_shows_more_than_one_run_on_the_gaussian_mechanism():
    """mu = 1, m = 1000, 50 guesses on each side: true ε 4.377; medians 2.46 and 1.63 are on record."""
    gaussian = World("gaussian", lambda b, rng: mechanisms.gaussian(b, rng, mu=1.0), 4.3772, 1e-5)
    medians = {
        estimator: simulate(gaussian, one_run(estimator, Fixed(50, 50)), m=1000, trials=100, name="power").median
        for estimator in ("one_run", "gaussian")
    }
    assert medians["one_run"] == pytest.approx(1.63, abs=0.1)
    assert medians["gaussian"] == pytest.approx(2.46, abs=0.15)


@pytest.mark.slow
def test_f_dp_shows_more_than_one_run_of_a_training_with_dirac_canaries():
    """DP-SGD itself, in full batches: mu = 1 and so ε = 4.377 exactly."""
    from benchmarks.dp_audit_power import trained

    draw = trained(2000, 1.0)
    for trial in range(2):
        scores, member = draw(trial)
        found = {
            estimator: one_run(estimator, StepWise())(scores, member, stream(0, "trained", trial), 1e-5)
            for estimator in ("one_run", "f_dp", "gaussian")
        }
        assert 1.2 < found["one_run"] < found["gaussian"] < 4.3772 and found["gaussian"] > 1.3 * found["one_run"]
        assert found["f_dp"] == pytest.approx(found["one_run"], abs=0.1)


def test_the_default_number_of_guesses_is_near_the_best_one():
    rng = stream(0, "default")
    for m, mu in ((200, 1.0), (1000, 1.0), (5000, 0.5), (5000, 2.0)):
        member = rng.random((100, m)) < 0.5
        scores = mechanisms.gaussian(member, rng, mu=mu)
        right = np.take_along_axis(member, np.argsort(-scores, axis=1), axis=1)
        top = np.cumsum(right, axis=1)[:, : m // 2].mean(axis=0)  # by symmetry also of the lowest
        k = np.arange(1, m // 2 + 1)
        promised = pure_epsilon(2 * k, 2 * top, 0.05)
        assert promised[Fixed().pair(m)[0] - 1] > 0.88 * promised.max()
