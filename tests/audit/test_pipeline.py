"""A whole run, small: reproducible, resumable, never stale, and clear about mistakes."""

import copy
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import main
from audit import plots
from audit.plan import make_plan
from core import rundir
from core.registry import TRAINERS

ROOT = Path(__file__).resolve().parents[2]
TINY = """\
run:
  log_dir: {log_dir}
  random_seed: 7
data:
  dataset: synthetic_tabular
  num_records: 400
  num_features: 24
  num_classes: 5
train:
  model_name: {{name: mlp, hidden: [16]}}
  epochs: 3
  batch_size: 32
  learning_rate: 0.1
audit:
  algorithm: [LOSS, LiRA, RMIA]
  num_ref_models: 2
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(log_dir=tmp_path / "run"))
    return path


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Drawing is most of a small run: only the test of the files draws."""
    if "every_file" not in request.node.name:
        monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
        monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


def run(config, *arguments):
    return main.main(["--cf", str(config), *arguments])


def scores(log_dir: Path) -> dict[str, bytes]:
    """Every number of a run, byte for byte."""
    kept = [*log_dir.glob("signals/**/*.npy"), *log_dir.glob("models/*.safetensors"), *log_dir.glob("report/exp/*.np*")]
    kept += log_dir.glob("report/exp/*.csv")
    return {str(path.relative_to(log_dir)): path.read_bytes() for path in kept}


def made(log_dir: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((log_dir / "models").glob("*.safetensors"))}


def test_a_run_leaves_every_file_of_the_design(config, tmp_path, capsys):
    assert run(config) == 0
    log_dir = tmp_path / "run"
    for name in [
        *("config.yaml", "environment.json", "models/models_metadata.json", "models/memberships.npy"),
        *("report/index.html", "report/attack_result_average.csv", "report/ROC_average.png"),
        *("report/ROC_log_average.png", "report/log_time_analysis.log", "report/exp/attack_result_0.csv"),
        *("report/exp/attack_result_0.npz", "report/exp/ROC_0.png", "report/exp/ROC_log_0.png"),
        "report/exp/records_0.csv",
    ]:
        assert (log_dir / name).stat().st_size > 0, name
    metadata = json.loads((log_dir / "models/models_metadata.json").read_text())
    assert list(metadata) == ["0", "2", "3", "4", "5"]  # the twin of a lone target is not trained
    assert {"num_train", "optimizer", "train_acc", "test_acc", "model_path", "dataset"} <= metadata["0"].keys()
    assert "RMIA" in capsys.readouterr().out
    assert not list(log_dir.rglob("*.tmp"))


def test_the_same_config_gives_the_same_bytes_anywhere(config, tmp_path):
    assert run(config) == 0
    assert run(config, "--set", f"run.log_dir={tmp_path / 'again'}") == 0
    first, again = scores(tmp_path / "run"), scores(tmp_path / "again")
    assert len(first) > 10 and first == again


def test_a_second_run_trains_and_asks_nothing(config, tmp_path):
    assert run(config) == 0
    before = scores(tmp_path / "run")
    times = made(tmp_path / "run")
    assert run(config) == 0
    assert made(tmp_path / "run") == times and scores(tmp_path / "run") == before


def test_another_seed_gives_other_scores(config, tmp_path):
    assert run(config) == 0
    assert run(config, "--set", f"run.log_dir={tmp_path / 'again'}", "run.random_seed=8") == 0
    first, again = scores(tmp_path / "run"), scores(tmp_path / "again")
    assert all(first[name] != again[name] for name in first if name.endswith(".safetensors"))


@pytest.mark.parametrize(
    "change", ["train.epochs=5", "train.learning_rate=0.2", "run.random_seed=8", "data.num_records=402"]
)
def test_changed_settings_are_refused_not_mixed(config, tmp_path, capsys, change):
    assert run(config) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(config, "--set", change) == 2
    message = capsys.readouterr().err
    key = change.partition("=")[0]
    assert "was made with" in message and "choose another run.log_dir" in message
    assert key in message or "run.random_seed" in message
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_more_references_and_targets_train_only_what_is_new(config, tmp_path):
    assert run(config) == 0
    before = made(tmp_path / "run")
    weights = scores(tmp_path / "run")
    assert run(config, "--set", "audit.num_ref_models=3", "run.num_experiments=2") == 0
    after = made(tmp_path / "run")
    assert set(after) - set(before) == {"model_1.safetensors", "model_6.safetensors", "model_7.safetensors"}
    assert all(after[name] == before[name] for name in before)
    assert run(config) == 0  # and back: the smaller plan is still whole, and says what it said
    assert scores(tmp_path / "run").items() >= {k: v for k, v in weights.items() if "report" not in k}.items()


def test_other_attacks_points_and_queries_reuse_the_models(config, tmp_path):
    assert run(config) == 0
    before = made(tmp_path / "run")
    assert run(config, "--set", "audit.algorithm=[Entropy,BASE]", "audit.data_size=100") == 0
    assert made(tmp_path / "run") == before


def test_model_k_is_the_same_whichever_models_are_trained_with_it(config, tmp_path):
    assert run(config) == 0
    alone = ["audit.algorithm=LOSS", "audit.num_ref_models=0", f"run.log_dir={tmp_path / 'alone'}"]
    assert run(config, "--set", *alone) == 0
    name = "models/model_0.safetensors"
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_each_model_draws_from_its_own_streams(config, monkeypatch):
    """Initial weights and training draws differ between models, and depend on the model's number only."""
    draws: dict[int, tuple[float, float]] = {}
    train = TRAINERS["sgd"]

    @functools.wraps(train)
    def spy(models, data, members, streams, **settings):
        for model, member, rng in zip(models, members, streams, strict=True):
            number = int(np.flatnonzero((planned == member).all(axis=1))[0])
            weight = float(next(model.parameters()).detach().flatten()[0])
            draws[number] = (weight, float(np.random.Generator(copy.deepcopy(rng.bit_generator)).random()))
        return train(models, data, members, streams, **settings)

    monkeypatch.setitem(TRAINERS, "sgd", spy)
    planned = make_plan(300, 1, 2, seed=7).member
    assert run(config) == 0
    assert sorted(draws) == [0, 2, 3, 4, 5]
    assert len({weight for weight, _ in draws.values()}) == len({draw for _, draw in draws.values()}) == 5
    together = dict(draws)
    draws.clear()
    (config.parent / "run/models/model_4.safetensors").unlink()
    assert run(config) == 0
    assert draws == {4: together[4]}


def test_a_killed_run_continues_with_the_missing_models_only(config, tmp_path):
    log_dir = tmp_path / "run"
    slow = ["--set", "train.epochs=60"]
    command = [sys.executable, "main.py", "--cf", str(config), *slow]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(log_dir.glob("models/*.stamp.json"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {name for name in made(log_dir) if (log_dir / f"models/{name}.stamp.json").exists()}
    assert finished
    before = made(log_dir)
    assert run(config, *slow) == 0
    after = made(log_dir)
    assert len(after) == 5 and all(after[name] == before[name] for name in finished)
    whole = ["--set", "train.epochs=60", f"run.log_dir={tmp_path / 'whole'}"]
    assert run(config, *whole) == 0
    assert scores(log_dir) == scores(tmp_path / "whole")


def test_the_run_directory_can_be_moved(config, tmp_path):
    assert run(config) == 0
    before = scores(tmp_path / "run")
    os.rename(tmp_path / "run", tmp_path / "moved")
    assert run(config, "--set", f"run.log_dir={tmp_path / 'moved'}") == 0
    assert scores(tmp_path / "moved") == before


def test_changed_weights_are_noticed(config, tmp_path, capsys):
    assert run(config) == 0
    path = tmp_path / "run/models/model_2.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    assert run(config, "--set", "audit.data_size=50") == 2
    assert "was changed after it was written" in capsys.readouterr().err


def test_signals_of_other_weights_are_refused(config, tmp_path, capsys):
    """A model that was trained again elsewhere, to other bytes, is not judged by what the old one said."""
    assert run(config) == 0
    path = tmp_path / "run/models/model_2.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    made = rundir.read_stamp(path)
    del made["settings"]["artefact format"]
    made["facts"]["sha256"] = rundir.digest(bytes(weights))
    rundir.make(path, made["settings"], lambda file: file.write(weights), **made["facts"])
    capsys.readouterr()
    assert run(config) == 2
    error = capsys.readouterr().err
    assert "model_2.log_odds.npy was made with model weights" in error


def test_check_prints_the_plan_and_writes_nothing(config, tmp_path, capsys):
    assert run(config, "--check") == 0
    out = capsys.readouterr().out
    assert "5 to train" in out and "disk" in out and not (tmp_path / "run").exists()
    assert run(config) == 0
    capsys.readouterr()
    assert run(config, "--check") == 0
    assert "5 models trained, 0 to train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("audit.data_size=10000", "audit.data_size: 10000 is more than the"),
        ("audit.queries=18", "audit.queries: mirror and shift need images"),
        ("train.model_name=cnn", "train.model_name: "),
        ("train.device=cuda:7", "train.device: 'cuda:7' cannot be used on this machine"),
        ("train.device=gpu", "train.device: 'gpu' cannot be used on this machine"),
        ("audit.algorithm={name: RMIA, probability: taylor, order: 3}", "order"),
    ],
)
def test_what_only_the_data_can_tell_is_a_clear_message(config, tmp_path, capsys, change, message):
    assert run(config, "--set", change) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_says_how_to_go_on(config, monkeypatch, capsys):
    from audit import pipeline

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "prepare", interrupt)
    assert run(config) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_a_plugin_brings_a_dataset_a_model_and_an_attack(config, tmp_path, capsys):
    plugin = ROOT / "tests/audit/my_plugin.py"
    changes = [
        "audit.algorithm=[LOSS,{name: my_margin, power: 2}]",
        "data={dataset: my_blobs}",
        "train.model_name=my_linear",
    ]
    assert run(config, "--plugin", str(plugin), "--set", *changes) == 0
    assert "my_margin" in capsys.readouterr().out
    assert run(config, "--plugin", str(tmp_path / "none.py")) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_the_targets_membership_does_not_reach_the_attacks(config, tmp_path):
    """Inverting who is a member of the target after training changes no score, only the verdict."""
    from audit import pipeline
    from core.config import load

    assert run(config) == 0
    session = pipeline.prepare(load(config))
    honest = pipeline.audit_target(session, 0)
    session.plan.member[0] ^= True
    inverted = pipeline.audit_target(session, 0)
    for a, b in zip(honest.attacks, inverted.attacks, strict=True):
        assert np.array_equal(a.scores, b.scores)
        assert a.summary.auc.value == pytest.approx(1 - b.summary.auc.value)
