"""compare, gate, report, --init, --schema, and what is said where nothing was asked for."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import main
from audit import plots
from tests.audit.test_pipeline import TINY

pytestmark = pytest.mark.slow  # four small runs

GATE = "gate: {max: {auc: 1.0}, attack: any}\n"


def without_pictures(patch):
    """Drawing is most of a small run."""
    patch.setattr(plots, "png", lambda figure: b"a picture")
    patch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same seed that differ in their training, one of another seed, one of more targets."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        for name, change in {
            "a": ["train.epochs=1"],
            "b": ["train.epochs=40", "audit.algorithm=[LiRA, RMIA]"],
            "seed": ["run.random_seed=8"],
            "two": ["run.num_experiments=2"],
        }.items():
            file = folder / f"{name}.yaml"
            file.write_text(TINY.format(log_dir=folder / name) + GATE)
            assert main.main(["--cf", str(file), "--set", *change]) == 0
    return folder


@pytest.fixture
def ask(runs, capsys):
    def ask(*words):
        code = main.main([str(runs / word) if (runs / str(word)).is_dir() else str(word) for word in words])
        out = capsys.readouterr()
        return code, out.out.replace(f"{runs}/", ""), out.err.replace(f"{runs}/", "")

    return ask


def test_compare_says_which_run_leaks_more_and_writes_it_down(runs, ask):
    code, out, _ = ask("compare", "a", "b")
    assert code == 0 and "B leaks more: " in out and "train.epochs 1, now 40" in out
    assert "Only in one of the runs: LOSS" in out
    rows = list(csv.DictReader((runs / "b/report/compare.csv").read_text().splitlines()))
    assert [(row["attack"], row["measure"]) for row in rows][:2] == [("LiRA", "auc"), ("LiRA", "tpr@0.1")]
    values = {name: float(np.load(runs / f"{name}/report/exp/attack_result_0.npz")["LiRA/auc"]) for name in "ab"}
    assert float(rows[0]["difference"]) == pytest.approx(values["b"] - values["a"])
    assert json.loads((runs / "b/report/compare.json").read_text())["verdict"].startswith("B leaks more")
    widths = {len(line.split("  ")[0]) for line in out.splitlines() if "%" in line and line.startswith("LiRA")}
    assert len(widths) == 1


def test_before_and_after_swapped_say_the_opposite(ask):
    assert "B leaks less: " in ask("compare", "b", "a")[1]


def test_a_run_compared_with_itself_is_not_distinguishable(ask):
    out = ask("compare", "a", "a")[1]
    assert "A and B are not distinguishable" in out and "no setting that decides a result" in out


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("seed", "trained on other data"),  # the synthetic records are a function of the seed
        ("two", "a audits target 0, two targets 0, 1: a paired comparison needs the same (run.num_experiments)"),
        ("nowhere", "nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(ask, other, message):
    code, out, err = ask("compare", "a", other)
    assert code == 2 and message in err and not out


@pytest.mark.parametrize(("column", "message"), [(0, "was attacked on other records"), (2, "are a member of target 0")])
def test_other_records_and_other_members_are_refused(runs, ask, tmp_path, column, message):
    """An index that differs, a membership that differs, in a run whose data are the same."""
    shutil.copytree(runs / "a", tmp_path / "x")
    file = tmp_path / "x/report/exp/records_0.csv"
    head, first, *rest = file.read_text().splitlines()
    cells = first.split(",")
    assert head.split(",")[2] == "membership"
    cells[column] = "399999" if column == 0 else str(1 - int(cells[column]))
    file.write_text("\n".join([head, ",".join(cells), *rest]))
    if column == 2:
        npz = tmp_path / "x/report/exp/attack_result_0.npz"
        arrays = dict(np.load(npz))
        arrays["memberships"][0] ^= True
        np.savez(npz, **arrays)
    code, _, err = ask("compare", "a", tmp_path / "x")
    assert code == 2 and message in err


def test_gate_passes_fails_and_cannot_tell_with_an_exit_code_each(runs, ask):
    assert ask("gate", "b")[0] == 0  # by the block in its config
    code, out, _ = ask("gate", "b", "--max", "auc=0.5", "--attack", "rmia")
    assert code == 3 and "RMIA" in out and "LiRA" not in out and "Gate: FAIL" in out
    code, out, _ = ask("gate", "b", "--max", "tpr@0.001=0.5", "auc=0.99")
    assert code == 4 and "NOT RESOLVABLE" in out
    saved = json.loads((runs / "b/report/gate.json").read_text())
    assert saved["exit_code"] == 4 and {one["measure"] for one in saved["limits"]} == {"auc", "tpr@0.001"}
    assert ask("gate", "b", "--max", "tpr@0.001=0.5", "auc=0.5")[0] == 3  # a failure is known whatever else is not


def test_a_limit_within_the_interval_passes_unless_strict(runs, ask):
    auc = float(np.load(runs / "a/report/exp/attack_result_0.npz")["RMIA/auc"])
    limit = f"auc={auc + 0.001:.4f}"
    code, out, _ = ask("gate", "a", "--attack", "RMIA", "--max", limit)
    assert code == 0 and "pass, undecided" in out
    assert ask("gate", "a", "--attack", "RMIA", "--max", limit, "--strict")[0] == 3
    assert ask("gate", "a", "--attack", "RMIA", "--max", "auc=0.9", "--strict")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max", "auc"], "gate --max auc: should be measure=limit"),
        (["--max", "acc=0.5"], "a limit is on auc, or on tpr@"),
        (["--max", "auc=1.5"], "less than or equal to 1"),
        (["--attack", "Lyra"], "has no attack 'Lyra'; there are: LOSS, LiRA, RMIA"),
    ],
)
def test_a_wrong_gate_is_a_mistake_and_no_verdict(ask, words, message):
    code, out, err = ask("gate", "a", *words)
    assert code == 2 and message in err and not out


def test_a_run_with_a_gate_in_its_config_ends_with_the_gates_exit_code(runs, capsys):
    assert (
        main.main(
            [
                "--cf",
                str(runs / "b.yaml"),
                "--set",
                "train.epochs=40",
                "audit.algorithm=[LiRA, RMIA]",
                "gate.max={auc: 0.5}",
            ]
        )
        == 3
    )
    assert "Gate: FAIL" in capsys.readouterr().out


def report_of(run: Path) -> dict[str, bytes]:
    """All of a run but its logs, and what other commands wrote."""
    files = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {str(p.relative_to(run)): p.read_bytes() for p in files if p.stem not in ("gate", "compare", ".lock")}


def test_report_writes_the_same_bytes_again_from_the_artefacts(runs, ask, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(runs / "two", moved)
    before = report_of(moved)
    shutil.rmtree(moved / "report")
    assert ask("report", moved)[0] == 0
    after = report_of(moved)
    assert sorted(before) == sorted(after) and len(before) > 20
    assert [name for name in before if before[name] != after[name]] == []


def test_report_trains_and_asks_nothing(runs, ask, tmp_path):
    for lost in ("models/model_2.safetensors", "signals/*/model_2.*.npy"):
        run = tmp_path / lost.split("/")[0]
        shutil.copytree(runs / "a", run)
        for path in run.glob(lost):
            path.unlink()
        code, _, err = ask("report", run)
        assert code == 2 and "the run is not finished" in err
        assert not list(run.glob(lost))


def test_init_writes_a_config_and_never_over_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--init", "mine"]) == 0
    assert main.main(["--cf", "mine.yaml", "--check"]) == 0
    assert "18 to train" in capsys.readouterr().out
    before = (tmp_path / "mine.yaml").read_bytes()
    assert main.main(["--init", "mine.yaml"]) == 2
    assert "mine.yaml is there already" in capsys.readouterr().err and (tmp_path / "mine.yaml").read_bytes() == before


def test_with_nothing_asked_there_is_help_and_no_success(capsys):
    assert main.main([]) == 2
    out = capsys.readouterr().out
    assert "--cf configs/quickstart.yaml" in out and len(out.splitlines()) < 20


def test_the_log_file_is_complete_and_grows(runs, capsys):
    """Each run appends: its command, all that was said, how it ended. One that is refused leaves it as it was."""
    run = runs / "a"
    before = (run / "run.log").read_text()
    assert before.count("started: ") == before.count("finished") == 1 and "model    2  train accuracy" in before
    assert main.main(["--cf", str(runs / "a.yaml"), "--set", "train.epochs=9"]) == 2
    assert "train.epochs 1, now 9" in capsys.readouterr().err
    assert (run / "run.log").read_text() == before
    assert main.main(["--cf", str(runs / "a.yaml"), "--set", "train.epochs=1"]) == 0
    text = (run / "run.log").read_text()
    assert text.startswith(before) and text.count("started: ") == text.count("finished") == 2
