"""What `--check` says of time, disk and memory is what was measured, and the probe's model is kept."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest

import main
from audit import planner
from audit.planner import duration, measured
from audit.results import More
from audit.session import prepare
from core import config
from core.errors import UserError
from tests import kill

TEXT = """
run: {log_dir: LOG, random_seed: 5, num_experiments: 2, workers: 1}
data: {dataset: digits}
train: {model_name: {name: mlp, hidden: [8]}, learning_rate: 0.1, batch_size: 64, epochs: 1}
audit: {algorithm: [LOSS, LiRA], num_ref_models: 2}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(TEXT.replace("LOG", str(tmp_path / "run")))
    return path


def session(file, *settings):
    return prepare(config.load(file, list(settings)))


def metadata(folder, *rows):
    (folder / "models").mkdir(parents=True)
    (folder / "models/models_metadata.json").write_text(json.dumps({str(k): row for k, row in enumerate(rows)}))


def row(**more):
    return {
        "seconds": 2.0,
        "model_name": "mlp",
        "num_train": 674,
        "epochs": 1,
        "batch_size": 64,
        "device": "cpu",
    } | more


def said(session_, more=(), like=None, weights=1000, signals=100, memory=1000):
    return list(planner.lines(session_, more, weights=weights, signals=signals, memory=memory, like=like))


def test_the_probe_trains_one_model_and_the_run_takes_it_over(file, tmp_path, capsys):
    assert main.main(["--cf", str(file), "--check"]) == 0
    before = capsys.readouterr().out
    assert "0 models trained, 6 to train" in before and "time      not known yet: --probe" in before
    assert not (tmp_path / "run").exists()
    assert main.main(["--cf", str(file), "--probe"]) == 0
    probed = capsys.readouterr().out
    assert "1 models trained, 5 to train" in probed and "(5 to train, 5 to ask)" in probed
    assert " to train a model, " in probed and "median of 1 models of this run; cpu" in probed
    (kept,) = kill.finished(tmp_path / "run").items()
    assert len(list((tmp_path / "run/signals").rglob("*.npy"))) == 2 and not (tmp_path / "run/report").exists()
    assert main.main(["--cf", str(file), "--probe"]) == 0  # there is nothing to train
    assert dict([kept]) == kill.finished(tmp_path / "run")
    assert main.main(["--cf", str(file)]) == 0
    assert kept in kill.finished(tmp_path / "run").items()
    survived = kill.numbers(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    assert main.main(["--cf", str(file)]) == 0
    assert kill.numbers(tmp_path / "run") == survived
    capsys.readouterr()
    assert main.main(["--cf", str(file), "--check"]) == 0
    assert "time " not in capsys.readouterr().out  # nothing is left


def test_a_probe_of_other_settings_is_refused_and_writes_nothing(file, tmp_path, capsys):
    assert main.main(["--cf", str(file), "--probe"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main.main(["--cf", str(file), "--probe", "--set", "train.epochs=2"]) == 2
    assert "train.epochs 1, now 2" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_hours_are_those_of_the_longest_share(file, tmp_path, monkeypatch):
    here = session(file)
    metadata(tmp_path / "run", row(seconds=100.0), row(seconds=300.0), row(seconds=120.0))
    monkeypatch.setattr(planner, "missing_models", lambda session: [1, 2, 3, 4, 5])
    monkeypatch.setattr(planner, "missing_signals", lambda session, models: dict.fromkeys(models))
    lines = said(here, more=[More("synthetic targets", 10, 8)])
    assert "2 min to train a model (median of 3 models of this run; cpu)" in lines[0]
    for k in (1, 2, 4, 8, 14):
        assert f"{duration(math.ceil(13 / k) * 120)} on {k}" in lines[1]
    assert "(13 to train, 14 to ask)" in lines[1]  # model 0 is there and was not asked


@pytest.mark.parametrize(("there", "times"), [({}, 10), ({"epochs": 2}, 5), ({"num_train": 67400}, 0.1)])
def test_another_run_gives_its_seconds_in_proportion(file, tmp_path, there, times):
    metadata(tmp_path / "before", row(**there))
    found = measured(session(file, "train.epochs=10"), tmp_path / "before")
    assert found.train == pytest.approx(2.0 * times) and f"times {times:.3g} for records and epochs" in found.source
    assert found.ask is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no finished model there says how long it took"),
        ([row(seconds=None)], "no finished model there says"),
        ([row(model_name="cnn")], "it trained cnn, not mlp: name a run of the same model"),
        ([row(num_train=None)], "do not say how many records"),
    ],
)
def test_another_run_that_cannot_say_is_refused(file, tmp_path, rows, message):
    metadata(tmp_path / "before", *rows)
    with pytest.raises(UserError, match=message):
        measured(session(file), tmp_path / "before")
    with pytest.raises(UserError, match="no finished model"):
        measured(session(file), tmp_path / "nowhere")


def test_other_settings_of_the_other_run_are_said(file, tmp_path):
    metadata(tmp_path / "before", row(batch_size=256))
    assert "batch_size 256 there, 64 here" in measured(session(file), tmp_path / "before").source


def test_what_does_not_fit_is_said(file, monkeypatch):
    monkeypatch.setattr(planner.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    monkeypatch.setattr(planner, "available_memory", lambda: 5_000)
    fits = said(session(file), weights=1_000, signals=100, memory=4_000)
    assert not any("warning" in line for line in fits)
    lines = said(session(file), more=[More("more", 1, 1, signals=1_000)], weights=1_000, signals=100, memory=6_000)
    assert any("warning   disk: 12 kB are still to be written, 10 kB are free" in line for line in lines)
    assert any("warning   memory: 6 kB are needed, 5 kB are free here" in line for line in lines)
    kept_none = More("more", 1, 1, keeps_weights=False, signals=500)
    assert not any("disk" in line for line in said(session(file), more=[kept_none], weights=1_000, signals=100))


def test_memory_is_that_of_the_container_where_there_is_one():
    there = planner.available_memory()
    assert there is None or 0 < there < 1e15


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.412, "0.41 s"),
        (12.3, "12 s"),
        (89, "89 s"),
        (120, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (180_000, "2.1 days"),
    ],
)
def test_durations_are_said_in_the_unit_that_suits_them(seconds, words):
    assert duration(seconds) == words


def test_probing_is_for_plans_that_are_trained(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(
        "run: {log_dir: x}\nscores: {file: a.csv, score: s, higher_is_member: true, member: m}\n"
    )
    assert main.main(["--cf", str(tmp_path / "x.yaml"), "--probe"]) == 2
    assert "--probe and --like: with audit.source: scores" in capsys.readouterr().err
