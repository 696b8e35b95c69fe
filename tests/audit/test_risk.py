"""Records and groups: chosen without the truth, counted over targets, shown as what they are unless redacted."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import audit.risk
from audit.gallery import exhibit
from audit.plan import make_plan
from audit.results import TargetResult
from audit.risk import assess
from core.registry import ATTACKS
from core.rng import stream
from core.types import AuditData, Evidence, Records
from tests.audit import fixtures
from tests.audit.fixtures import attack_result

N, PAIRS, T = 600, 4, 4


def world(folder: Path, exposed_class: int | None = None, redact: bool = False):
    """Records of their own difficulty; members of one class leak more."""
    plan = make_plan(N, T, PAIRS, seed=7)
    draw = stream(1, "risk")
    y = np.arange(N) % 3
    shift = 0.5 + 2.5 * (y == exposed_class)
    signals = draw.normal(size=N) * 3 + draw.normal(size=(2 * PAIRS + 2, 1, N)) + shift * plan.member[:, None]
    signals = signals.astype(np.float32)

    def evidence(target: int) -> Evidence:
        references = list(plan.references_of(target))
        return Evidence(
            target=signals[target],
            references=signals[references],
            trained_on=plan.member[references],
            population=signals[target, :, :20],
            population_references=signals[references][:, :, :20],
        )

    data = AuditData(
        Records(draw.normal(size=(N, 5)).astype(np.float32), y), Records(np.ones((20, 5), np.float32), y[:20]), 3
    )
    session = fixtures.session(folder, plan, data, "[LOSS, Calibration]", ", redact: true" if redact else "")
    calls = session.config.attacks
    targets = tuple(
        TargetResult(
            t,
            plan.member[t],
            tuple(attack_result(c.name, ATTACKS[c.name](evidence(t), **c.settings), plan.member[t]) for c in calls),
        )
        for t in range(T)
    )
    return session, targets, evidence


def test_the_attack_is_chosen_on_rehearsals_and_not_by_the_targets_membership(tmp_path):
    session, targets, evidence = world(tmp_path)
    risk = assess(session, targets, evidence)
    assert (risk.attack, risk.order) == ("Calibration", 1)
    lies = tuple(TargetResult(t.target, ~t.member, t.attacks) for t in targets)
    assert assess(session, lies, evidence).attack == "Calibration"


def test_an_exposed_class_is_named_and_the_others_are_not(tmp_path):
    session, targets, evidence = world(tmp_path, exposed_class=2)
    rows = assess(session, targets, evidence).groups["class"]
    assert [row.group for row in rows if row.exposed] == [2]
    assert rows[0].group == 2
    assert sum(row.members for row in rows) == sum(int(t.member.sum()) for t in targets)


def test_where_all_leak_alike_no_class_is_named(tmp_path):
    session, targets, evidence = world(tmp_path)
    assert not any(row.exposed for row in assess(session, targets, evidence).groups["class"])


def test_counts_over_targets_are_those_of_a_plain_loop(tmp_path):
    session, targets, evidence = world(tmp_path, exposed_class=1)
    risk = assess(session, targets, evidence)
    for n in (0, 17, 599):
        inside = [t for t in targets if t.member[n]]
        assert risk.member_in[n] == len(inside)
        scores = [t.attacks[1].scores for t in inside]
        below = [
            np.mean(s[~t.member] < s[n]) + np.mean(s[~t.member] == s[n]) / 2
            for s, t in zip(scores, inside, strict=True)
        ]
        assert risk.exposure[n] == pytest.approx(np.mean(below)) if inside else np.isnan(risk.exposure[n])
    assert np.all(risk.found_in <= risk.member_in)
    assert np.all(risk.accused_in <= T - risk.member_in)


def test_a_records_own_p_values_are_uniform_for_non_members_and_small_for_members(tmp_path):
    session, targets, evidence = world(tmp_path, exposed_class=1)
    risk = assess(session, targets, evidence)
    p = np.concatenate([one.p_values[~t.member] for one, t in zip(risk.targets, targets, strict=True)])
    assert abs(np.mean(p <= 0.4) - 0.4) < 0.06
    leaky = np.concatenate(
        [one.p_values[t.member & (np.arange(N) % 3 == 1)] for one, t in zip(risk.targets, targets, strict=True)]
    )
    assert np.mean(leaky <= 0.2) > 0.6


def test_the_list_goes_by_each_records_own_null_and_its_promise_is_kept(tmp_path):
    session, targets, evidence = world(tmp_path, exposed_class=1)
    risk = assess(session, targets, evidence)
    for one, target in zip(risk.targets, targets, strict=True):
        p = one.record_fpr[~target.member]
        assert abs(np.mean(p <= 0.1) - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(p))
        assert np.mean(one.record_fpr[target.member & (np.arange(N) % 3 == 1)] <= 0.05) > 0.5
        assert one.trial and one.by_record == (one.trial.calibrated_tpr >= one.trial.raw_tpr)
    assert 0.002 < risk.realised_fpr < 0.03
    lies = tuple(TargetResult(t.target, ~t.member, t.attacks) for t in targets)
    assert [one.by_record for one in assess(session, lies, evidence).targets] == [o.by_record for o in risk.targets]
    false = [one.named.false_share for one in risk.targets if len(one.named.indices)]
    assert not false or np.mean(false) < 0.3


def test_too_few_references_to_rehearse_leave_p_values_out(tmp_path):
    session, targets, evidence = world(tmp_path)

    def few(target: int) -> Evidence:
        seen = evidence(target)
        return replace(
            seen,
            references=seen.references[:2],
            trained_on=seen.trained_on[:2],
            population_references=seen.population_references[:2],
        )

    risk = assess(session, targets, few)
    assert risk.targets[0].p_values is None and risk.targets[0].record_fpr is None and risk.realised_fpr is None
    assert risk.order == 0 and "too few references" in risk.chosen


def test_galleries_show_the_most_exposed_first_and_nothing_but_names_when_redacted(tmp_path):
    session, targets, evidence = world(tmp_path, exposed_class=2)
    risk = assess(session, targets, evidence)
    assert len(risk.most) == audit.risk.EXHIBITS
    exposures = [one.exposure for one in risk.most]
    assert exposures == sorted(exposures, reverse=True) and exposures[0] > risk.least[0].exposure
    assert risk.most[0].columns
    session, targets, evidence = world(tmp_path, exposed_class=2, redact=True)
    for one in assess(session, targets, evidence).most:
        assert (one.label, one.picture, one.text, one.columns) == ("", "", "", ())
        assert one.name.isdigit()


def test_an_image_is_shown_as_it_is_a_text_cut_and_a_row_by_its_unusual_columns():
    from PIL import Image

    y = np.array([3, 4])
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    images = AuditData(Records(pixels, y, ids=np.array(["a", "b"])), Records(pixels, y), 10)
    shown = exhibit(images, 1, 1.0, "", redacted=False)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.picture))))
    assert (shown.name, shown.label, picture.shape) == ("b", "4", (4, 4, 3))
    assert picture[0, 0, 0] == 0 and picture[3, 3, 2] == 255
    tokens, lengths = np.zeros((1, 3), np.int32), np.array([3])
    long = Records(tokens, np.zeros(1, int), lengths=lengths, texts=("word " * 500,))
    text = exhibit(AuditData(long, long, 50), 0, 1.0, "", redacted=False).text
    assert 400 <= len(text) < 410 and text.endswith("…")
    rows = np.zeros((20, 30), np.float32) + stream(0, "rows").normal(size=(20, 30)).astype(np.float32)
    odd = rows.copy()
    odd[0, 7] = 100.0
    names = tuple(f"feature {i}" for i in range(30))
    table = AuditData(Records(odd, np.zeros(20, int)), Records(rows, np.zeros(20, int)), 2, feature_names=names)
    assert exhibit(table, 0, 1.0, "", redacted=False).columns[0] == ("feature 7", "100")
