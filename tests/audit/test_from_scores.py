"""Scores from elsewhere: measured as ours are, whichever way they grow; and what a bound on epsilon takes on trust."""

import json
from pathlib import Path

import numpy as np
import pytest

import main
from audit import plots
from core import config as config_
from core.errors import UserError
from core.metrics import auc
from core.rng import stream
from modules.dp_audit import Calibrated, audit_one_run, level_of_each

N = 400


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


@pytest.fixture
def world(tmp_path):
    draw = stream(4, "scores")
    member = draw.random(N) < 0.5
    loss, score = np.exp(-draw.normal(size=N) - 2 * member), draw.normal(size=N) + member
    ids = [f"=p{n}" for n in range(N)]
    rows = ["who,in,loss,score,model,site"]
    rows += [f"{ids[n]},{int(member[n])},{loss[n]!r},{score[n]!r},{'AB'[n % 2]},{n % 3}" for n in range(N)]
    (tmp_path / "s.csv").write_text("\n".join(rows).replace("np.float64(", "").replace(")", ""))
    np.savez(tmp_path / "s.npz", **{"in": member, "loss": loss, "score": score})
    return {"member": member, "loss": loss, "score": score, "ids": ids}


def write(tmp_path: Path, **scores) -> Path:
    path = tmp_path / "c.yaml"
    given = {"file": str(tmp_path / "s.csv"), "member": "in", "score": "loss", "higher_is_member": False} | scores
    blocks = {"run": {"log_dir": str(tmp_path / "run")}, "scores": {k: v for k, v in given.items() if v is not None}}
    path.write_text(json.dumps(blocks, indent=1))
    return path


def test_losses_and_scores_are_both_turned_the_right_way(world, tmp_path, capsys):
    path = write(
        tmp_path, score=["loss", "score"], higher_is_member={"loss": False, "score": True}, id="who", groups=["site"]
    )
    assert main.main(["--cf", str(path)]) == 0
    arrays = np.load(tmp_path / "run/report/exp/attack_result_0.npz")
    assert arrays["loss/auc"] == auc(-world["loss"], world["member"]) > 0.85
    assert arrays["score/auc"] == auc(world["score"], world["member"]) > 0.7
    assert arrays["ids"].tolist() == world["ids"]
    lines = (tmp_path / "run/report/exp/records_0.csv").read_text().splitlines()
    assert lines[0] == "index,id,site,membership,loss,score,list_p_value,named" and len(lines) == N + 1
    page = (tmp_path / "run/report/index.html").read_text()
    assert "How they were made is not known to this tool" in page and "Each model trained on half" not in page
    assert "loss" in capsys.readouterr().out


def test_the_same_scores_in_any_format_and_of_each_target_by_itself(world, tmp_path):
    assert main.main(["--cf", str(write(tmp_path, file=str(tmp_path / "s.npz")))]) == 0
    whole = np.load(tmp_path / "run/report/exp/attack_result_0.npz")
    np.testing.assert_array_equal(whole["scores"], -world["loss"])
    assert main.main(["--cf", str(write(tmp_path, target="model"))]) == 0
    for number in (0, 1):
        arrays = np.load(tmp_path / f"run/report/exp/attack_result_{number}.npz")
        np.testing.assert_array_equal(arrays["scores"], -world["loss"][number::2])
        lines = (tmp_path / f"run/report/exp/records_{number}.csv").read_text().splitlines()
        assert lines[1].startswith(f"{number},{'AB'[number]},")


def test_the_bound_is_that_of_the_scores_at_its_share_of_the_error(world, tmp_path, capsys):
    dp = {"design": "one_run", "delta": 1e-5, "guesses": "calibrated", "claim": {"epsilon": 0.1}}
    path = write(tmp_path, score=["loss", "score"], higher_is_member={"loss": False, "score": True}, dp=dp)
    assert main.main(["--cf", str(path)]) == 0
    each = level_of_each(0.95, 2)
    draw = lambda: np.random.default_rng(0)  # noqa: E731  (no ties: nothing is drawn)
    by_hand = [
        audit_one_run(s, world["member"], draw(), delta=1e-5, level=each, choice=Calibrated()).eps
        for s in (-world["loss"], world["score"])
    ]
    page = (tmp_path / "run/report/index.html").read_text()
    assert max(by_hand) > 0.5 and all(f"ε ≥ {eps:.3f}" in page for eps in by_hand)
    assert "The bound holds if" in page and "toss of a fair coin" in page
    assert "contradicted" in capsys.readouterr().out


def test_two_worlds_take_the_threshold_in_the_units_of_the_column(world, tmp_path):
    dp = {"design": "two_worlds", "delta": 0, "threshold": 0.4}
    assert main.main(["--cf", str(write(tmp_path, dp=dp))]) == 0
    page = (tmp_path / "run/report/index.html").read_text()
    assert "threshold -0.4, fixed before" in page and "a training of its own" in page


def test_memberships_that_no_fair_coin_gives_are_doubted(world, tmp_path):
    table = (tmp_path / "s.csv").read_text().splitlines()
    kept = [line for n, line in enumerate(table) if n == 0 or line.split(",")[1] == "1" or n % 4 == 0]
    (tmp_path / "s.csv").write_text("\n".join(kept))
    assert main.main(["--cf", str(write(tmp_path, dp={"design": "one_run", "delta": 1e-5}))]) == 0
    assert "fair coins would hardly give that" in (tmp_path / "run/report/index.html").read_text()


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"file": "none.csv"}, "file", "cannot be read"),
        ({"score": "los"}, "score", "no column 'los': did you mean 'loss'"),
        ({"score": "who"}, "score", "not numbers"),
        ({"score": []}, "score", "names no column"),
        ({"higher_is_member": None}, "higher_is_member", "missing, and has no default"),
        (
            {"higher_is_member": {"score": True}},
            "higher_is_member",
            "of every score and of no other column: loss, score",
        ),
        ({"member": "model"}, "member", "membership is 1 or 0"),
        ({"member": "membr"}, "member", "no column 'membr'"),
        ({"target": "who"}, "member", "records of target =p0 are members: both kinds are needed"),
        ({"dp": {"design": "one_run"}}, "dp.delta", "missing"),
        ({"dp": {"design": "one_run", "delta": 0, "guesses": "lucky"}}, "dp.guesses", "no choice of guesses"),
        ({"dp": {"design": "two_worlds", "delta": 0, "estimator": "f_dp"}}, "dp.estimator", "of design two_worlds"),
        ({"dp": {"design": "one_run", "delta": 0, "guesses": {"name": "fixed", "k_plus": 9999}}}, "dp.guesses", ""),
        ({"membr": 1}, "membr", "did you mean 'member'"),
    ],
)
def test_each_mistake_is_named_at_its_line_and_nothing_is_written(world, tmp_path, capsys, change, key, said):
    path = write(tmp_path, **change)
    assert main.main(["--cf", str(path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{path}:") and f": scores.{key}" in line and said in line, line
    assert not (tmp_path / "run").exists()


def test_missing_scores_are_counted(world, tmp_path, capsys):
    table = (tmp_path / "s.csv").read_text().splitlines()
    table[3] = ",".join([*table[3].split(",")[:2], "", *table[3].split(",")[3:]])
    (tmp_path / "s.csv").write_text("\n".join(table))
    assert main.main(["--cf", str(write(tmp_path))]) == 2
    assert "1 of 400 scores in 'loss' are missing or NaN" in capsys.readouterr().err


def test_check_says_what_is_there_and_writes_nothing(world, tmp_path, capsys):
    assert main.main(["--cf", str(write(tmp_path, target="model")), "--check"]) == 0
    said = capsys.readouterr().out
    assert (
        "target    A" in said
        and "members" in said
        and "LiRA           lacks signals of the target and reference models" in said
    )
    assert not (tmp_path / "run").exists()


def test_other_audits_need_more_than_scores(world, tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text().rstrip("}\n") + '},\n"duci": {}\n}')
    with pytest.raises(UserError, match=r"duci: works with audit\.source: .*train.*, and here it is scores"):
        config_.load(path)


def summary_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run/report/summary.json").read_text())


def test_the_checks_of_the_audit_are_run_and_those_that_cannot_be_are_named(world, tmp_path):
    assert main.main(["--cf", str(write(tmp_path, groups=["site"]))]) == 0
    found = {check["name"]: check["status"] for check in summary_of(tmp_path)["checks"]}
    assert next(iter(found)) == "blind baseline"
    fine = {name for name, status in found.items() if status == "fine"}
    assert fine == {"blind baseline", "null test", "resolution", "number of analyses"}
    assert {name for name, status in found.items() if status == "untested"} == {
        "reference fidelity", "members were fitted", "copies of members",
    }  # fmt: skip


def test_a_column_that_gives_the_members_away_is_noticed(world, tmp_path):
    path = tmp_path / "s.csv"
    lines = path.read_text().splitlines()
    told = [line if n == 0 else f"{line[:-1]}{int(line.split(',')[1])}" for n, line in enumerate(lines)]
    path.write_text("\n".join(told))  # the site is 1 for members and 0 for others
    assert main.main(["--cf", str(write(tmp_path, groups=["site"]))]) == 0
    (check,) = [check for check in summary_of(tmp_path)["checks"] if check["name"] == "blind baseline"]
    assert (
        check["status"] == "look" and "columns (site)" in check["finding"] and "blind baseline explains" in str(check)
    )


def test_the_risk_of_each_row_is_that_under_the_first_score(world, tmp_path):
    assert main.main(["--cf", str(write(tmp_path, id="who", target="model", groups=["site"]))]) == 0
    rows = [line.split(",") for line in (tmp_path / "run/report/records.csv").read_text().splitlines()]
    assert rows[0] == ["index", "id", "exposure", "member_in", "found_in", "accused_in"]
    member, loss = world["member"], world["loss"]
    for n in range(0, N, 7):
        others = loss[n % 2 :: 2][~member[n % 2 :: 2]]  # the non-members of the same target
        below = np.mean(-others < -loss[n]) + np.mean(others == loss[n]) / 2
        assert rows[n + 1][1] == world["ids"][n] and int(rows[n + 1][3]) == member[n]
        assert not member[n] or float(rows[n + 1][2]) == pytest.approx(below)
    groups = (tmp_path / "run/report/groups.csv").read_text().splitlines()
    assert sorted(line.split(",")[:2] for line in groups[1:]) == [["site", str(k)] for k in range(3)]
    assert sum(int(line.split(",")[2]) for line in groups[1:]) == member.sum()
    named = [summary_of(tmp_path)["named_members"]["by_target"][t] for t in ("0", "1")]
    assert all(one["false"] <= 0.3 * one["named"] and one["named"] > 20 for one in named)


def test_groups_that_only_one_target_has_are_judged_on_that_target():
    from audit.risk import group_rows
    from tests.audit.fixtures import audit_result

    targets = audit_result(targets=2, points=200).targets
    columns = [np.arange(200) % 2, np.arange(200) % 3]
    rows = {row.group: row for row in group_rows(targets, 0, columns)}
    assert set(rows) == {0, 1, 2}
    assert rows[2].members == int(targets[1].member[columns[1] == 2].sum())
    assert rows[0].members == sum(int(t.member[c == 0].sum()) for t, c in zip(targets, columns, strict=True))
