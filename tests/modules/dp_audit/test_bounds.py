"""What may be said of a claim, and how several audits become one."""

from dataclasses import replace

import pytest

from core.rng import stream
from modules.dp_audit import audit_one_run, best_of, level_of_each, mechanisms, verdict


def bound(**changed):
    rng = stream(0, "bound")
    member = rng.random(500) < 0.5
    made = audit_one_run(mechanisms.gaussian(member, rng, mu=1.0), member, rng, delta=1e-5)
    return replace(made, **changed)


@pytest.mark.parametrize(
    ("eps", "claim", "word"), [(2.1, 2.0, "contradicted"), (2.0, 2.0, "consistent"), (0.0, 8.0, "not testable")]
)
def test_a_claim_is_contradicted_only_by_a_bound_above_it(eps, claim, word):
    said = verdict(bound(eps=eps, largest=4.0), epsilon=claim, delta=1e-5)
    assert said.word == word and word in said.sentence


def test_a_claim_at_a_smaller_delta_can_be_contradicted_and_at_a_larger_cannot_be_judged():
    assert verdict(bound(eps=2.0), epsilon=1.0, delta=0.0).word == "contradicted"  # (1, 0)-DP is (1, 1e-5)-DP
    with pytest.raises(ValueError, match="audit at the claim's delta"):
        verdict(bound(eps=2.0), epsilon=1.0, delta=1e-3)


def test_an_assumed_family_is_named_in_the_verdict():
    assert (
        "if the mechanism is of the gaussian family"
        in verdict(bound(eps=2.0, family="gaussian"), epsilon=1.0, delta=1e-5).sentence
    )


def test_several_audits_share_the_error():
    each = level_of_each(0.95, 5)
    bounds = [bound(eps=e, level=each, family="gaussian" if e == 1 else "none") for e in (1.0, 3.0, 2.0, 0.0, 0.5)]
    together = best_of(bounds)
    assert together.eps == 3.0 and together.level == pytest.approx(0.95) and together.analyses == 5
    assert together.family == "gaussian"  # the best might have been that one
    with pytest.raises(ValueError, match="add up to 1"):
        best_of([bound(level=0.6)] * 3)
    with pytest.raises(ValueError, match="one delta"):
        best_of([bound(), bound(delta=1e-3)])
    with pytest.raises(ValueError, match="at least 1"):
        best_of([])


def test_a_bound_prints_all_that_it_rests_on():
    said = str(bound())
    for part in ("95%", "δ = 1e-05", "500 canaries", "fixed before", "shows at most"):
        assert part in said
