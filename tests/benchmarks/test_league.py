"""The league trains once, compares with more and more references, and says what it cannot resolve. Nothing is timed."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from audit.plan import make_plan
from benchmarks import league
from core.types import AuditData, Records
from tests.audit import fixtures

LEFT_OUT = {"LabelDistance", "LossTrajectory", "TrainingTrajectory"}  # dear, dear, and not recorded
TINY = league.Case(
    "tiny table",
    "{dataset: synthetic_tabular, num_records: 400, num_features: 12, num_classes: 4}",
    "{model_name: {name: mlp, hidden: [16]}, learning_rate: 0.1, batch_size: 32, epochs: 10}",
    asks=False,
)


def test_fewer_pairs_are_a_part_of_more_and_never_the_targets_own(tmp_path):
    records = Records(np.zeros((50, 2), np.float32), np.zeros(50, int))
    session = fixtures.session(tmp_path, make_plan(50, 10, 8, 1), AuditData(records, records, 2))
    few, more = (league.with_pairs(session, n).plan for n in (2, 8))
    for target in more.targets:
        assert set(few.references_of(target)) < set(more.references_of(target))
        assert not {target, target ^ 1} & set(more.references_of(target))
        assert len(set(more.references_of(target))) == 16
        assert more.member[list(few.references_of(target))].sum(axis=0).tolist() == [2] * 50
    assert few.references_of(0) != few.references_of(2)  # targets do not share the noise of the same few references


def row(attack, pairs, value, measure="AUC", resolvable=True, low=None):
    return {
        "case": "c",
        "attack": attack,
        "pairs": pairs,
        "measure": measure,
        "value": value,
        "targets": 4,
        "low": value - 0.1 if low is None else low,
        "high": value + 0.1,
        "non_members": 500,
        "resolvable": resolvable,
    }


def test_tables_name_what_cannot_be_resolved_and_give_no_number_for_it():
    tpr = "TPR at 1% FPR"
    rows = [row("LOSS", 0, 0.5), row("LiRA", 1, 0.6), row("LiRA", 2, 0.7), row("LiRA", 2, 0.123, tpr, False)]
    text = league.tables(TINY, rows, "as they are")
    assert "| LiRA | 0.600 ± 0.100 | 0.700 ± 0.100 |\n| LOSS | 0.500 ± 0.100 | same |" in text
    assert f"**{tpr}**: not resolvable with 500 non-members" in text and "12.3" not in text
    assert league._cell("AUC", row("LiRA", 1, 0.6, low=float("nan"))) == "0.600"


def test_the_standings_are_distances_from_the_best_of_each_case():
    rows = [row("LOSS", 0, 0.5), row("LiRA", 1, 0.6), row("LiRA", 2, 0.7), row("RMIA", 2, 0.8)]
    other = [{**one, "case": "d", "value": one["value"] - 0.05 * (one["attack"] == "RMIA")} for one in rows]
    lines = league.standings([*rows, *other]).splitlines()
    assert lines[0] == "| AUC below the best | 1 pair | 2 pairs |"
    assert lines[2:] == ["| RMIA |  | 0.000 |", "| LiRA | 0.000 | 0.075 |", "| LOSS | 0.100 | 0.275 |"]


@pytest.mark.slow
def test_a_league_of_a_tiny_case_is_run_found_again_and_ends_in_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(league, "CASES", (TINY, replace(TINY, name="left out", full=True)))
    monkeypatch.setattr(league, "TARGETS", 4)
    monkeypatch.setattr(league, "one_thread", lambda: None)
    monkeypatch.setattr(sys, "argv", ["league", "--folder", str(tmp_path), "--pairs", "2", "--workers", "1"])
    league.main()
    first = capsys.readouterr().out
    rows = json.loads(first.splitlines()[-1])["rows"]
    names = {one["attack"] for one in rows}
    assert {"LOSS", "LiRA", "RMIA", "LiRA (mode=offline)", "QMIA"} <= names and not names & LEFT_OUT
    assert {one["pairs"] for one in rows if one["attack"] == "LiRA"} == {1, 2}
    assert {one["pairs"] for one in rows if one["attack"] == "LOSS"} == {0}
    assert all(one["targets"] == 4 and one["case"] == TINY.name for one in rows)
    assert not any(one["resolvable"] for one in rows if one["measure"] != "AUC")  # 150 non-members
    best = max(one["value"] for one in rows if one["measure"] == "AUC")
    assert 0.5 < best < 1 and "### tiny table" in first
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    league.main()
    again = capsys.readouterr().out
    assert json.loads(again.splitlines()[-1])["rows"] == rows
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
