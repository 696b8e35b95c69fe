"""The `duci:` block, in small runs: the files, the truth, what is trained, and every mistake at its line."""

import csv
import io
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

import audit.duci_report
import main
from audit import pipeline, plots
from audit.session import prepare
from core.config import load
from core.errors import UserError
from core.registry import DATASETS, MODULES
from core.rng import stream
from core.types import AuditData, Records
from modules.duci.answers import Answer
from modules.duci.usage import usage
from tests.modules.duci.world import world

TINY = """\
run:
  log_dir: {log_dir}
  random_seed: 7
data:
  dataset: synthetic_tabular
  num_records: 800
  num_features: 60
  num_classes: 10
train:
  model_name: {{name: mlp, hidden: [64]}}
  epochs: 25
  batch_size: 32
  learning_rate: 0.1
audit:
  algorithm: LOSS
  num_ref_models: 3
duci:
  size: 200
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One run directory for all tests here: other settings of the block make nothing of it stale."""
    folder = tmp_path_factory.mktemp("duci")
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(log_dir=folder / "run"))
    return path


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


def run(config, *changes, folder=None):
    """The DUCI section and the rows of usage.csv."""
    result = pipeline.run(load(config, list(changes)))
    (section,) = [s for s in result.sections if s.name == "duci"]
    folder = (folder or config.parent) / "run" / "report" / "duci"
    with (folder / "usage.csv").open() as file:
        return section, list(csv.DictReader(file)), folder


def models(config):
    return {p: p.stat().st_mtime_ns for p in config.parent.rglob("model_*.safetensors")}


def mistake(config, *changes):
    with pytest.raises(UserError) as caught:
        pipeline.prepared(load(config, list(changes)))
    return str(caught.value)


def test_without_proportions_nothing_is_trained_beyond_the_run_and_the_truth_is_beside_the_estimate(shared):
    before = set(models(shared))
    section, rows, folder = run(shared, "run.num_experiments=2")
    assert not [path for path in set(models(shared)) - before if path.parent.parent.name != "run"]
    assert [row["model"] for row in rows] == ["target 0", "target 1"]
    session = prepare(load(shared, ["run.num_experiments=2"]))
    x = np.sort(session.stream("duci", "records").choice(session.points, 200, replace=False))
    for t, row in enumerate(rows):
        assert float(row["truth"]) == session.plan.member[t, x].mean()
        assert float(row["raw_low"]) < float(row["raw"]) < float(row["raw_high"])
        assert 0 <= float(row["low"]) <= float(row["estimate"]) <= float(row["high"]) <= 1
    assert "trained on" in section.verdict and "interval" in section.verdict
    assert "Not checked" in section.html and "Target 0" in section.verdict
    assert (folder / "usage.png").read_bytes() == b"a picture"


def test_the_same_command_gives_the_same_answers_and_other_models_are_left_alone(shared):
    _, rows, _ = run(shared)
    before = models(shared)
    assert run(shared)[1] == rows and models(shared) == before


def test_proportions_train_targets_of_one_training_size_that_used_what_was_asked(shared):
    changes = ["duci.proportions=[0, 0.5, 1]", "duci.trials=2"]
    section, rows, folder = run(shared, *changes)
    synthetic = [row for row in rows if row["proportion"]]
    assert [(float(r["proportion"]), float(r["truth"])) for r in synthetic] == [
        (p, p) for p in (0.0, 0.5, 1.0) for _ in range(2)
    ]
    folders = sorted((shared.parent / "run" / "duci").glob("uniform_*"))
    sizes = {tuple(np.load(f / "models" / "memberships.npy").sum(axis=1)) for f in folders}
    assert len(folders) == 3 and sizes == {(300, 300)}
    errors = {
        row["method"]: float(row["largest"]) for row in csv.DictReader(io.StringIO((folder / "errors.csv").read_text()))
    }
    assert errors["DUCI"] < errors["Direct aggregation"]
    assert "6 synthetic targets" in section.verdict and "Do the rates carry over?" in section.html
    low = [float(r["raw"]) for r in synthetic if r["proportion"] == "0.0"]
    high = [float(r["raw"]) for r in synthetic if r["proportion"] == "1.0"]
    assert max(low) < min(high)


def test_more_trials_and_proportions_train_only_what_is_new(shared):
    run(shared, "duci.proportions=[0, 1]", "duci.trials=1")
    before = models(shared)
    run(shared, "duci.proportions=[0, 0.25, 1]", "duci.trials=1")
    new = set(models(shared)) - set(before)
    assert {p.parent.parent.name.rpartition("_")[0] for p in new} == {"uniform_0.25"}
    assert all(models(shared)[p] == before[p] for p in before)


def test_an_adversarial_sample_is_drawn_by_vulnerability_and_answered_in_subgroups(shared):
    changes = ["duci.proportions=[0.5]", "duci.sampling=most_vulnerable", "duci.debias=subgroups", "duci.subgroups=3"]
    section, rows, _ = run(shared, *changes)
    assert float(rows[-1]["truth"]) == 0.5 and int(rows[-1]["groups"]) in (1, 2, 3)
    assert "by vulnerability" in section.html


def test_an_attack_that_reads_another_signal_gets_it(shared):
    _, rows, _ = run(shared, "duci.attack={name: BASE, temperature: 3.0}", "duci.min_advantage=0")
    assert rows[0]["refused"] == "" and rows[0]["mean_score"] == ""


def test_named_parts_get_answers_of_their_own(shared):
    section, rows, _ = run(shared, "duci.groups={low: [0, 1, 2, 3, 4], high: [5, 6, 7, 8, 9]}", "duci.min_advantage=0")
    assert [row["part"] for row in rows] == ["all of X", "low", "high"]
    assert sum(int(row["records"]) for row in rows[1:]) == int(rows[0]["records"]) == 200
    assert "target 0, low" in section.html


def test_a_list_of_records_is_the_dataset(shared, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(map(str, range(100, 180))))
    _, rows, _ = run(shared, "duci.size=null", f"duci.records={file}", "duci.min_advantage=0")
    session = prepare(load(shared))
    assert int(rows[0]["records"]) == 80
    assert float(rows[0]["truth"]) == session.plan.member[0, 100:180].mean()


def test_a_refusal_is_in_words_and_trains_no_synthetic_targets(shared, caplog):
    before = models(shared)
    with caplog.at_level(logging.WARNING):
        section, rows, _ = run(shared, "duci.min_advantage=0.95", "duci.proportions=[0.125]")
    assert "no share can be given" in section.verdict and "hardly tells members" in rows[0]["refused"]
    assert rows[0]["estimate"] == "" and models(shared) == before
    assert "Not checked: without an answer" in section.html
    assert any("no synthetic targets" in record.getMessage() for record in caplog.records)


@pytest.fixture
def owned():
    """A dataset whose records have an owner and a ward, and one ward that a single record is of."""

    @DATASETS.register("owned")
    def owned(data_dir, seed) -> AuditData:
        data = DATASETS["synthetic_tabular"](data_dir, seed, num_records=800, num_features=60, num_classes=10)
        n = len(data.pool)
        ward = np.where(np.arange(n) == 17, 9, np.arange(n) % 3)
        groups = {"owner": np.where(np.arange(n) % 4 == 0, "alice", "bob"), "ward": ward}
        return replace(data, pool=replace(data.pool, groups=groups))

    return ["data={dataset: owned}", "duci.min_advantage=0", "duci.size=null", "duci.attack=LOSS"]


def test_columns_of_the_dataset_name_x_and_its_parts(shared, tmp_path, owned):
    changes = [*owned, f"run.log_dir={tmp_path / 'run'}", "train.epochs=2", "audit.num_ref_models=1"]
    parts = "duci.groups={small: {ward: [1, 2], label: [0, 1, 2, 3, 4]}, zeros: 0}"
    _, rows, _ = run(shared, *changes, "duci.where={owner: bob}", parts, folder=tmp_path)
    session = prepare(load(shared, changes))
    i, y, member = np.arange(600), session.data.pool.y, session.plan.member[0]
    bobs = i % 4 != 0
    expected = {
        "all of X": bobs,
        "small": bobs & np.isin(i % 3, [1, 2]) & (y < 5) & (i != 17),
        "zeros": bobs & (y == 0),
    }
    assert [(r["part"], int(r["records"]), float(r["truth"])) for r in rows] == [
        (name, mask.sum(), pytest.approx(member[mask].mean())) for name, mask in expected.items()
    ]
    _, rows, _ = run(shared, *changes, "duci.groups=ward", folder=tmp_path)
    assert [r["part"] for r in rows] == ["all of X", "ward 0", "ward 1", "ward 2"]
    assert sum(int(r["records"]) for r in rows[1:]) == 599


def imported(folder, models=16, n=400, **duci):
    """Log-odds of models with independent memberships, as another tool would hand them over, and a config."""
    draw = stream(3, "imported")
    member = draw.random((models, n)) < 0.5
    member[:, :2] = [[True, False]] * models  # records that all models know, or none: not in X
    used = np.arange(2, n)
    member[0, used] = draw.permutation(len(used)) < 0.3 * len(used)
    np.save(folder / "signals.npy", draw.normal(size=n) + draw.normal(size=(models, n)) + 2.5 * member)
    np.save(folder / "member.npy", member)
    (folder / "x.txt").write_text("\n".join(map(str, used)))
    files = {"file": str(folder / "signals.npy"), "membership": str(folder / "member.npy")}
    signals = {**files, "kind": "log_odds", "targets": [0], "uncovered": "drop"}
    audit = {"algorithm": "LOSS"}
    blocks = {"run": {"log_dir": str(folder / "run")}, "signals": signals, "audit": audit}
    blocks["duci"] = {"records": str(folder / "x.txt"), "attack": {"name": "LiRA"}, **duci}
    path = folder / "imported.yaml"
    path.write_text(json.dumps(blocks, indent=1))
    return path, member


def test_signals_from_elsewhere_are_answered_about_as_models_of_ones_own(tmp_path):
    path, member = imported(tmp_path)
    section, rows, _ = run(path)
    first = rows[0]
    assert float(first["truth"]) == pytest.approx(member[0, 2:].mean(), abs=1e-12) and first["refused"] == ""
    assert float(first["raw_low"]) < 0.3 < float(first["raw_high"]) and abs(float(first["raw"]) - 0.3) < 0.15
    assert "Not checked" in section.html
    path, _ = imported(tmp_path, proportions=[0, 1])
    assert "duci.proportions: models would be trained, and signals were given" in mistake(path)
    path, _ = imported(tmp_path, attack="RMIA")
    assert "duci.attack: RMIA compares X with a population disjoint from it, and there is none left" in mistake(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("duci.where={ownr: bob}", "duci.where: no column is called 'ownr'; did you mean 'owner'?"),
        ("duci.groups=house", "duci.groups: no column is called 'house'; the pool has: label, owner, ward"),
        ("duci.where={owner: carol}", "duci.where: the dataset has 0 records: 2 are needed"),
        ("duci.groups={lone: {ward: 9}}", "duci.groups.lone: 1 records of X have ward in [9]: 2 are needed"),
    ],
)
def test_a_column_or_value_that_is_not_there_is_named(shared, owned, change, message):
    assert message in mistake(shared, *owned, change)


def test_a_column_of_very_many_values_is_not_taken_apart(shared, owned, monkeypatch):
    monkeypatch.setattr("audit.duci_dataset.MOST_PARTS", 2)
    assert "duci.groups: ward has 3 values in X, more than 2" in mistake(shared, *owned, "duci.groups=ward")


def test_check_counts_the_synthetic_targets(shared, capsys):
    def counted(*changes):
        assert main.main(["--cf", str(shared), "--check", "--set", "duci.trials=2", *changes]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("duci"))

    line = "duci      {} synthetic targets: {} trained, {} to train"
    run(shared, "duci.proportions=[0.3]", "duci.trials=1")
    assert counted("duci.proportions=[0.3]") == line.format(2, 1, 1)
    assert counted("duci.proportions=[0.3, 0.6]") == line.format(4, 1, 3)
    chosen = ["duci.proportions=[0.3]", "duci.sampling=least_vulnerable"]
    assert counted(*chosen) == line.format(2, 0, 2)
    run(shared, *chosen, "duci.trials=1")
    assert counted(*chosen) == line.format(2, 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["duci.proportions=[0, 1.5]"], "duci.proportions"),
        (["duci.proportions=[-0.1]"], "duci.proportions"),
        (["duci.trials=0"], "duci.trials"),
        (["duci.threshold=1.5"], "duci.threshold"),
        (["duci.sampling=greedy"], "duci.sampling"),
        (["duci.proportion=[0]"], "did you mean 'proportions'?"),
    ],
)
def test_mistakes_of_the_block_are_found_when_it_is_read(shared, changes, message):
    with pytest.raises(UserError) as caught:
        load(shared, changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["duci.size=601"], "duci.size: 601 is more than the 600 records to draw from"),
        (["duci.size=400", "duci.proportions=[0]"], "leave 300 to take from the 200 records of the pool outside it"),
        (["duci.size=400", "duci.proportions=[1]"], "leave -100 to take"),
        (["audit.num_ref_models=0"], "audit.num_ref_models: duci needs at least 2 pairs of references"),
        (["audit.num_ref_models=1"], "audit.num_ref_models: duci needs at least 2 pairs of references"),
        (["duci.attack=LOSS", "audit.num_ref_models=0"], "at least 1 pairs of references"),
        (["duci.debias=record"], "at least 8 pairs of references for rates of each record"),
        (["duci.attack=RIMA"], "duci.attack: no attack is called 'RIMA'; did you mean 'RMIA'?"),
        (["duci.attack={name: RMIA, gama: 2}"], "duci.attack: RMIA: gama"),
        (["duci.attack={gamma: 2}"], "an attack with settings is"),
        (["duci.records=/nowhere.txt"], "duci.records: /nowhere.txt is no text file of pool indices"),
        (["duci.groups={none: [77]}"], "duci.groups.none: 0 records of X have label in [77]"),
    ],
)
def test_what_only_the_data_can_tell_is_a_clear_message_before_anything_is_trained(shared, changes, message):
    assert message in mistake(shared, *changes)


def test_without_a_population_an_attack_that_compares_with_one_is_refused(shared):
    @DATASETS.register("alone")
    def alone(data_dir, seed) -> AuditData:
        data = DATASETS["synthetic_tabular"](data_dir, seed, num_records=800, num_features=60, num_classes=10)
        return replace(data, population=Records(data.population.x[:0], data.population.y[:0]))

    message = mistake(shared, "data={dataset: alone}")
    assert "duci.attack: RMIA (mode=online) compares X with a population disjoint from it, and there is none" in message
    assert pipeline.prepared(load(shared, ["data={dataset: alone}", "duci.attack=Calibration"]))


def test_records_that_are_not_audited_are_named(shared, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("3 4 600")
    assert "1 of the 3 records are no audited points (first: 600" in mistake(shared, f"duci.records={file}")
    file.write_text("three")
    assert "is no text file of pool indices" in mistake(shared, f"duci.records={file}")


def test_check_says_it_all_before_anything_is_written(shared, capsys):
    changes = ["duci.size=500", "duci.proportions=[0]"]
    assert main.main(["--cf", str(shared), "--check", "--set", *changes]) == 2
    assert "duci.proportions: 0: a model trains on 300 records" in capsys.readouterr().err


def test_the_page_escapes_what_a_user_named(shared):
    section, _, _ = run(shared, "duci.groups={'<b>': [0, 1, 2, 3, 4]}", "duci.min_advantage=0")
    assert "<b>" not in section.html and "&lt;b&gt;" in section.html


def test_the_figure_shows_what_has_a_value_and_leaves_out_refused_answers():
    target, known, _ = world(0)
    answered = Answer("m", "all of X", 0.4, 0, 500, 0.4, usage(target, known), 0.5, float("nan"), 0.35, 0.7, 0.3)
    refused = replace(answered, usage=usage(target, known, min_advantage=0.9))
    axes = audit.duci_report.usage_figure([answered, refused], 0.95).axes[0]
    names = axes.get_legend_handles_labels()[1]
    assert set(names) == {"truth", "Direct aggregation", "MLE on average logits", "DUCI, 95% interval"}
    (points,) = [bars.lines[0] for bars in axes.containers]
    assert points.get_ydata() == [answered.usage.raw]
    none = audit.duci_report.usage_figure([refused], 0.95).axes[0]
    assert "DUCI, 95% interval" not in none.get_legend_handles_labels()[1]


def test_the_block_has_a_line_for_every_setting():
    described = {line.split(":")[0].strip(" -") for line in MODULES["duci"].__doc__.splitlines() if " - " in f" {line}"}
    assert set(MODULES.schema("duci").model_fields) <= described
