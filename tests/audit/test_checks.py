"""The audit's checks of itself: quiet in a sound audit, and loud, in words, where something is wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audit.checks import check_audit
from audit.duplicates import duplicates
from audit.pipeline import NOMINAL_FPRS
from audit.plan import make_plan
from audit.results import AttackResult, TargetResult
from core.metrics import summarise
from core.rng import stream
from core.types import AuditData, Evidence, Records
from tests.audit import fixtures

N, PAIRS = 400, 4


def world(folder: Path, shift: float = 2.0):
    """A sound audit: four pairs of references and a target, whose log-odds of members are shifted."""
    plan = make_plan(N, 1, PAIRS, seed=3)
    draw = stream(1, "world")
    signals = draw.normal(size=(2 * PAIRS + 2, 1, N)).astype(np.float32) + shift * plan.member[:, None]
    signals = signals.astype(np.float32)
    references = list(plan.references[0])
    seen = Evidence(
        target=signals[0],
        references=signals[references],
        trained_on=plan.member[references],
        population=signals[0, :, :50],
        population_references=signals[references][:, :, :50],
    )
    x = draw.normal(size=(N, 6)).astype(np.float32)
    data = AuditData(Records(x, draw.integers(0, 4, N)), Records(x[:50] + 9, np.zeros(50, dtype=int)), 4)
    session = fixtures.session(folder, plan, data)
    member = plan.member[0]
    targets = (TargetResult(0, member, (result_of(seen.target[0], member),)),)
    accuracy = 0.8 + 0.01 * draw.normal(size=2 * PAIRS + 2)
    models = [{"id": m, "train_acc": 1.0, "test_acc": float(a), "test_loss": 0.5} for m, a in enumerate(accuracy)]
    return session, targets, models, seen


def result_of(scores: np.ndarray, member: np.ndarray) -> AttackResult:
    return replace(
        fixtures.attack_result("LOSS", scores, member), summary=summarise(scores, member, nominal_fprs=NOMINAL_FPRS)
    )


def statuses(session, targets, models, seen) -> dict[str, str]:
    return {check.name: check.status for check in check_audit(session, targets, models, lambda target: seen)}


def findings(session, targets, models, seen) -> dict[str, str]:
    return {check.name: check.finding for check in check_audit(session, targets, models, lambda target: seen)}


def test_a_sound_audit_raises_no_alarm(tmp_path):
    found = statuses(*world(tmp_path))
    assert set(found.values()) == {"fine"}
    assert next(iter(found)) == "null test"


def test_a_target_unlike_its_references_is_named_with_its_numbers(tmp_path):
    session, targets, models, seen = world(tmp_path)
    models[0]["test_acc"] = 0.5
    assert statuses(session, targets, models, seen)["reference fidelity"] == "look"
    assert (
        "target model 0 has test accuracy 0.5, its references 0.79"
        in (findings(session, targets, models, seen)["reference fidelity"])
    )


def test_what_cannot_be_judged_is_said_to_be_untested(tmp_path):
    session, targets, _, seen = world(tmp_path)
    few = replace(
        seen,
        references=seen.references[:2],
        trained_on=seen.trained_on[:2],
        population_references=seen.population_references[:2],
    )
    nothing = Records(np.empty((N, 0), np.float32), session.data.pool.y)
    session = replace(session, data=replace(session.data, pool=nothing))
    found = statuses(session, targets, [], few)
    assert [found[name] for name in ("reference fidelity", "members were fitted", "copies of members")] == [
        "untested"
    ] * 3


def test_a_membership_list_that_is_upside_down_is_noticed(tmp_path):
    session, targets, models, seen = world(tmp_path)
    wrong = (replace(targets[0], member=~targets[0].member),)
    assert statuses(session, wrong, models, seen)["members were fitted"] == "look"


def test_copies_of_members_among_the_non_members_are_counted(tmp_path):
    session, targets, models, seen = world(tmp_path)
    x, member = session.data.pool.x.copy(), targets[0].member
    inside, outside = np.flatnonzero(member), np.flatnonzero(~member)
    x[outside[:10]] = x[inside[:10]]
    x[outside[10:30]] = x[inside[10:30]] + 1e-3
    session = replace(session, data=replace(session.data, pool=replace(session.data.pool, x=x)))
    found = findings(session, targets, models, seen)["copies of members"]
    assert found.startswith(f"10 of {len(outside)} non-members of target model 0 are equal")
    assert f"30 of {len(outside)} looked at are nearly equal" in found
    assert statuses(session, targets, models, seen)["copies of members"] == "look"


def test_texts_are_copies_whatever_their_spaces_and_near_copies_with_a_word_changed():
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "off", "into", "rain"]
    draw = stream(2, "texts")
    texts = [" ".join(draw.permutation(words)) + f" number {i}" for i in range(40)]
    texts[20] = texts[0].replace(" ", "  ").upper()
    texts[21] = texts[1].replace("number 1", "numeral 1")
    ids = np.zeros((40, 1), dtype=np.int32)
    records = Records(ids, np.zeros(40, dtype=int), lengths=np.ones(40, dtype=int), texts=tuple(texts))
    found = duplicates(records, np.arange(40), np.arange(40) < 20, stream(3, "lot"))
    assert (found.equal, found.near) == (1, 2)


@pytest.mark.parametrize(("epsilon", "status"), [(0.1, "look"), (20.0, "fine")])
def test_recognising_more_than_the_stated_epsilon_allows_is_an_alarm(tmp_path, epsilon, status):
    session, targets, models, seen = world(tmp_path, shift=3.0)
    models[0] |= {"epsilon": epsilon, "delta": 1e-5}
    assert statuses(session, targets, models, seen)["differential privacy"] == status


def test_without_differential_privacy_nothing_is_said_about_it(tmp_path):
    assert "differential privacy" not in statuses(*world(tmp_path))


def test_so_few_non_members_that_nothing_resolves_are_an_alarm(tmp_path):
    session, targets, models, seen = world(tmp_path)
    some = np.r_[np.flatnonzero(targets[0].member)[:5], np.flatnonzero(~targets[0].member)[:5]]
    few = TargetResult(0, targets[0].member[some], (result_of(seen.target[0, some], targets[0].member[some]),))
    session = replace(session, points=some)
    sliced = replace(
        seen, target=seen.target[:, some], references=seen.references[:, :, some], trained_on=seen.trained_on[:, some]
    )
    assert statuses(session, (few,), models, sliced)["resolution"] == "look"
