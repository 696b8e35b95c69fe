"""Signals from elsewhere: the same audit as of models trained here, whatever the memberships; and clear mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

import main
from audit import plots
from audit.pipeline import prepared
from audit.plan import plan_of
from audit.signals import evidence
from core import config as config_
from core.registry import ATTACKS
from core.rng import stream
from modules.mia.rmia import rmia
from tests.audit.test_pipeline import TINY

M, N, P = 9, 300, 120
CLASSES = 4


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


@pytest.fixture
def world(tmp_path):
    """Arrays of nine models with independent memberships: no pairs, any number of IN and OUT models a point."""
    draw = stream(5, "given")
    member = draw.random((M, N)) < 0.5
    member[:, 0], member[1:, 1] = True, False  # point 0: everybody's, point 1: at most the first's
    labels, population_labels = draw.integers(CLASSES, size=N), draw.integers(CLASSES, size=P)
    logits = draw.normal(size=(M, N, CLASSES)) + 3 * np.eye(CLASSES)[labels] * (0.5 + member[..., None])
    of_population = draw.normal(size=(M, P, CLASSES)) + 1.5 * np.eye(CLASSES)[population_labels]
    arrays = {
        "signals": logits,
        "membership": member,
        "labels": labels,
        "population": of_population,
        "population_labels": population_labels,
        "ids": np.array([f"patient-{n}" for n in range(N)]),
    }
    np.savez(tmp_path / "whole.npz", **arrays)
    return arrays


def write(tmp_path: Path, signals: dict, audit: dict | None = None, **run) -> Path:
    path = tmp_path / "c.yaml"
    blocks = {"run": {"log_dir": str(tmp_path / "run"), **run}, "signals": signals, "audit": audit or {}}
    path.write_text(json.dumps(blocks, indent=1, default=str))
    return path


def session(*arguments, **keywords):
    return prepared(config_.load(write(*arguments, **keywords)))


def log_odds(logits, labels):
    own = np.take_along_axis(logits, np.broadcast_to(labels[:, None], (*logits.shape[:2], 1)), axis=2)[..., 0]
    others = np.where(np.eye(CLASSES, dtype=bool)[labels], -np.inf, logits)
    return own - np.logaddexp.reduce(others, axis=2)


# --- the same numbers ------------------------------------------------------------------------------------------


def test_exported_signals_give_the_scores_of_the_run_that_made_them(tmp_path):
    """What a run of ours stored, brought back as files of others, points x models: byte for byte the same scores."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(log_dir=tmp_path / "trained"))
    assert main.main(["--cf", str(path), "--set", "run.num_experiments=2"]) == 0
    trained = tmp_path / "trained"
    rows = [0, 1, 2, 3, 4, 5]
    for where in ("points", "population"):
        (folder,) = trained.glob(f"signals/{where}_*")
        table = np.stack([np.load(folder / f"model_{m}.log_odds.npy")[0] for m in rows])
        np.save(tmp_path / f"{where}.npy", table.T)
    settings = {
        "file": tmp_path / "points.npy",
        "kind": "log_odds",
        "axes": "points_models",
        "membership": trained / "models/memberships.npy",
        "membership_axes": "models_points",
        "population": tmp_path / "population.npy",
        # A target of the run had two pairs of references; model 0's are 2 to 5, model 1's too.
        "references": [2, 3, 4, 5],
    }
    audit = {"algorithm": ["LOSS", "LiRA", "RMIA"]}
    given = write(tmp_path, settings, audit, num_experiments=2, random_seed=7)
    assert main.main(["--cf", str(given)]) == 0
    for target in (0, 1):
        ours = np.load(trained / f"report/exp/attack_result_{target}.npz")
        theirs = np.load(tmp_path / f"run/report/exp/attack_result_{target}.npz")
        assert set(ours.files) == set(theirs.files)
        for name in ours.files:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("kind", ["log_odds", "probability", "loss", "probabilities"])
def test_every_kind_of_signal_is_the_same_evidence(world, tmp_path, kind):
    z = log_odds(world["signals"], world["labels"])
    z_population = log_odds(world["population"], world["population_labels"])
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)  # noqa: E731
    convert = {"log_odds": lambda x: x, "probability": expit, "loss": lambda x: np.logaddexp(0, -x)}
    arrays = dict(world)
    if kind == "probabilities":
        arrays |= {name: softmax(world[name]) for name in ("signals", "population")}
    else:
        arrays |= {"signals": convert[kind](z), "population": convert[kind](z_population)}
    np.savez(tmp_path / "kind.npz", **arrays)
    made = session(tmp_path, {"file": tmp_path / "kind.npz", "kind": kind, "targets": [3]}, {"algorithm": "LOSS"})
    seen = evidence(made, 3)
    np.testing.assert_allclose(seen.target[0], z[3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.references[:, 0], np.delete(z, 3, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        seen.population_references[:, 0], np.delete(z_population, 3, axis=0), rtol=1e-4, atol=1e-5
    )
    assert (seen.trained_on == np.delete(world["membership"], 3, axis=0)).all()


def test_from_logits_every_attack_runs_and_ids_are_in_every_table_of_records(world, tmp_path):
    path = write(tmp_path, {"file": tmp_path / "whole.npz", "kind": "logits", "uncovered": "drop"})
    assert main.main(["--cf", str(path)]) == 0
    lines = (tmp_path / "run/report/exp/records_0.csv").read_text().splitlines()
    header = lines[0].split(",")
    other = ("needs_text", "needs_records")  # what signals do not hold
    classifier = {name for name in ATTACKS if not any(ATTACKS.fact(name, key) for key in other)}
    assert header[:4] == ["index", "id", "label", "membership"] and set(header[4:]) >= classifier - {"Mixed"}
    assert lines[1].startswith("2,patient-2,")  # points 0 and 1 have references on one side only
    arrays = np.load(tmp_path / "run/report/exp/attack_result_0.npz")
    assert arrays["ids"][0] == "patient-2" and len(arrays["scores"]) == len(lines) - 1
    assert (arrays["memberships"] == world["membership"][0, 2:][: len(lines) - 1]).mean() > 0.4
    page = (tmp_path / "run/report/index.html").read_text()
    assert "This tool did not draw them by lot" in page and "Each model trained on half of the pool" not in page


def test_a_table_with_a_column_for_each_model_and_ids(world, tmp_path):
    z = log_odds(world["signals"], world["labels"])
    names = [f"model_{m}" for m in range(M)]
    rows = [",".join(["name", *names])]
    rows += [",".join([f"r{n}", *map(repr, z[:, n].tolist())]) for n in range(N)]
    (tmp_path / "z.csv").write_text("\n".join(rows))
    np.savetxt(
        tmp_path / "member.csv",
        world["membership"].T.astype(int),
        fmt="%d",
        delimiter=",",
        header=",".join(names),
        comments="",
    )
    settings = {
        "file": tmp_path / "z.csv",
        "kind": "log_odds",
        "axes": "points_models",
        "ids": f"{tmp_path / 'z.csv'}:name",
    }
    made = session(tmp_path, settings | {"membership": tmp_path / "member.csv"}, {"algorithm": "LOSS"})
    np.testing.assert_array_equal(evidence(made, 0).target[0], z[0].astype(np.float32))
    assert made.data.pool.ids[5] == "r5" and (made.plan.member == world["membership"]).all()


def test_a_run_of_the_original_tool_is_imported_as_it_is(tmp_path, capsys):
    """Its layout and types: P(true class) as float32 (N, M), bool memberships (M', D), metadata with accuracies."""
    draw = stream(1, "original")
    halves = [draw.permutation(N) < N // 2 for _ in range(3)]
    member = np.array([half if twin == 0 else ~half for half in halves for twin in (0, 1)])
    z = (draw.normal(size=(4, N)) + 2 * member[:4]).astype(np.float32)
    for folder in ("signals", "models"):
        (tmp_path / "log" / folder).mkdir(parents=True)
    np.save(tmp_path / "log/signals/rmia_signals.npy", expit(z).T)
    np.save(tmp_path / "log/signals/rmia_signals_pop.npy", expit(draw.normal(size=(P, 4))).astype(np.float32))
    np.save(tmp_path / "log/models/memberships.npy", member)
    metadata = {
        str(m): {"num_train": 150, "train_acc": 0.75, "test_acc": None, "model_path": "x.pkl"} for m in range(4)
    }
    (tmp_path / "log/models/models_metadata.json").write_text(json.dumps(metadata))
    path = write(tmp_path, {"original": tmp_path / "log"}, {"algorithm": ["RMIA", "LOSS"], "num_ref_models": 1})
    assert main.main(["--cf", str(path)]) == 0
    scores = np.load(tmp_path / "run/report/exp/attack_result_0.npz")
    made = prepared(config_.load(path))
    assert made.plan.references == ((2, 3),)  # not the twin
    np.testing.assert_allclose(evidence(made, 0).target[0], z[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(scores["scores"], rmia(evidence(made, 0)))
    assert scores["LOSS/auc"] > 0.8 and "75%" in (tmp_path / "run/report/index.html").read_text().replace(".0%", "%")
    assert "audit.num_ref_models: has no effect with audit.source: signals" in capsys.readouterr().err
    again = write(tmp_path, {"original": tmp_path / "log"}, log_dir=str(tmp_path / "log"))
    assert main.main(["--cf", str(again)]) == 2


# --- who is compared with whom ---------------------------------------------------------------------------------


def test_whoever_settles_a_targets_membership_is_no_reference_of_it():
    half = np.array([True, False, True, False, True])
    member = np.array([half, ~half, half, [True, True, False, False, True], [False, True, True, True, False]])
    assert plan_of(member, [0, 3]).references == ((3, 4), (0, 1, 2, 4))
    assert plan_of(member, [3], pairs=1).references == ((0, 1),)


def test_check_says_what_can_run_and_what_the_others_lack(world, tmp_path, capsys):
    z = log_odds(world["signals"], world["labels"])
    np.savez(tmp_path / "z.npz", signals=z[:1], membership=world["membership"][:1])
    path = write(tmp_path, {"file": tmp_path / "z.npz", "kind": "log_odds"})
    assert main.main(["--cf", str(path), "--check"]) == 0
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("          ")}
    assert said["LOSS"].endswith("can run")
    assert said["AttackP"].endswith("lacks population points")
    assert "logits or probabilities of all classes, with labels" in said["Entropy"]
    assert "lacks population points and reference models (OUT: that did not train on them)" in said["RMIA"]
    assert not (tmp_path / "run").exists()


def test_an_attack_that_rehearses_needs_references_of_two_memberships(world, tmp_path, capsys):
    few = {key: world[key][:2] for key in ("signals", "membership")}
    np.savez(tmp_path / "few.npz", **few, labels=world["labels"])
    path = write(tmp_path, {"file": tmp_path / "few.npz", "kind": "logits"}, {"algorithm": "LOSS"})
    assert main.main(["--cf", str(path), "--check"]) == 0
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("          ")}
    assert said["Combined"].endswith("references of 2 different memberships to rehearse on; there are 1")
    assert "rehearse" not in said["LiRA"] + said["QMIA"] and "the records themselves" in said["QMIA"]
    assert "what is recorded while the models are trained" in said["TrainingTrajectory"]


def test_points_without_a_reference_stop_the_attacks_that_need_one_or_are_left_out(world, tmp_path):
    settings = {"file": tmp_path / "whole.npz", "kind": "logits"}
    assert len(session(tmp_path, settings, {"algorithm": ["LOSS", "AttackP"]}).points) == N
    (message,) = mistakes(tmp_path, settings, {"algorithm": ["LOSS", "Calibration"]})
    assert "Calibration lack" in message and "of 300 points" in message and "signals.uncovered: drop" in message
    dropped = session(tmp_path, settings | {"uncovered": "drop"}, {"algorithm": ["LOSS", "Calibration"]})
    out = ~world["membership"][1:]
    assert dropped.points.tolist() == np.flatnonzero(out.any(axis=0)).tolist() and 0 not in dropped.points


def test_duci_estimates_the_used_share_of_given_pairs_and_trains_nothing(tmp_path, capsys):
    draw = stream(2, "duci")
    halves = [draw.permutation(N) < N // 2 for _ in range(4)]
    member = np.array([half if twin == 0 else ~half for half in halves for twin in (0, 1)])
    z, population = draw.normal(size=(8, N)) + 3 * member, draw.normal(size=(8, P))
    np.savez(tmp_path / "z.npz", signals=z, membership=member, population=population)
    path = write(tmp_path, {"file": tmp_path / "z.npz", "kind": "log_odds"}, {"algorithm": "LOSS"})
    assert main.main(["--cf", str(path), "--set", "duci={}"]) == 0
    assert "in truth 50.0%" in capsys.readouterr().out
    assert main.main(["--cf", str(path), "--set", "duci={proportions: [0.5], size: 20}"]) == 2
    assert "duci.proportions: models would be trained, and signals were given" in capsys.readouterr().err


# --- mistakes --------------------------------------------------------------------------------------------------


def mistakes(*arguments, **keywords) -> list[str]:
    from core.errors import UserError

    path = write(*arguments, **keywords)
    with pytest.raises(UserError) as caught:
        prepared(config_.load(path))
    return [line.replace(str(path), "c.yaml") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"signals": lambda w: np.swapaxes(w["signals"], 0, 1)}, "transposed, say axes: points_models"),
        ({"membership": lambda w: w["membership"].T}, "one of them is transposed|look transposed"),
        ({"membership": lambda w: w["membership"][:, :-1]}, "give points"),
        ({"membership": lambda w: w["membership"][:-1, :-1]}, "do not belong together"),
        ({"membership": lambda w: w["membership"] * 2}, "membership is 1 or 0"),
        ({"membership": None}, "signals.membership: missing"),
        ({"labels": None}, "needs the true labels"),
        ({"labels": lambda w: w["labels"] + 0.5}, "labels are one whole number a point"),
        ({"labels": lambda w: w["labels"] + 1}, "4 classes, and there are 300 labels from 1 to 4"),
        ({"labels": lambda w: w["labels"][:-1]}, "299 labels"),
        ({"signals": lambda w: np.where(w["signals"] > 5, np.nan, w["signals"])}, "NaN or infinite"),
        ({"signals": lambda w: w["signals"] * 1e300}, "too large for float32"),
        ({"signals": lambda w: w["signals"].astype(str)}, "holds <U32, not numbers"),
        ({"signals": lambda w: w["signals"][..., None, None]}, "models x points x classes, got an array of shape"),
        ({"signals": lambda w: w["signals"][:, :0]}, "got an array of shape"),
        ({"population": lambda w: w["population"][:-1]}, "it is of 8 models"),
        ({"ids": lambda w: w["ids"][:3]}, "one a point is needed"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_each_unusable_array_is_one_clear_mistake(world, tmp_path, change, said):
    import re

    arrays = dict(world)
    for key, make in change.items():
        arrays.pop(key) if make is None else arrays.update({key: make(world)})
    np.savez(tmp_path / "bad.npz", **arrays)
    (line,) = mistakes(
        tmp_path, {"file": tmp_path / "bad.npz", "kind": "logits", "targets": [0]}, {"algorithm": "LOSS"}
    )
    assert line.startswith("c.yaml:") and re.search(said, line), line


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "logitz"}, "should be 'log_odds'"),
        ({"kind": "log_odds"}, "9 models on 4 points (300 queries each)"),
        ({"kind": "logits", "targets": [9]}, "signals.targets: there is no model 9"),
        ({"kind": "logits", "references": [2, 2]}, "signals.references: a row is named twice"),
        ({"kind": "logits", "membership": "nowhere.npy"}, "signals.membership: nowhere.npy: cannot be read"),
        ({"kind": "logits", "ids": "whole.npz:idz"}, "no column 'idz': did you mean 'ids'"),
        ({"kind": "logits", "original": "somewhere"}, "signals.file: follows from signals.original"),
        ({}, "signals.kind: missing"),
    ],
)
def test_each_unusable_setting_is_named(world, tmp_path, monkeypatch, settings, said):
    monkeypatch.chdir(tmp_path)
    (line,) = mistakes(tmp_path, {"file": "whole.npz", **settings}, {"algorithm": "LOSS"})
    assert line.startswith("c.yaml:") and said in line, line


def test_what_signals_cannot_do_is_refused_before_anything_is_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: {log_dir: x}\nsignals: {file: nowhere.npy, kind: log_odds}\ntrain: {epochs: 1}\n")
    assert main.main(["--cf", str(path)]) == 2
    path.write_text("run: {log_dir: x}\naudit: {source: signal}\nsignals: {file: nowhere.npy}\n")
    with pytest.raises(Exception, match="did you mean 'signals'"):
        config_.load(path)
