"""QMIA in whole runs: on tables, images and texts, of targets alone, from the population alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

import main
from audit.pipeline import prepared
from audit.quantile_signals import Regression
from audit.signals import evidence
from core.config import load
from core.errors import UserError
from core.types import Signal
from modules.mia.qmia import signal_of
from tests.audit.test_label_only import config
from tests.audit.test_text_audit import run, texts, write

IMAGES = "synthetic_images, num_records: 300, num_classes: 4"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    from audit import plots

    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


def regressions(folder):
    return sorted(path.name.split(".")[0] for path in folder.rglob("model_*.quantiles_*.npy"))


@pytest.mark.slow
def test_targets_have_regressions_and_references_only_where_they_are_rehearsed(tmp_path):
    path = config(tmp_path, "[LOSS, QMIA, LiRA]")
    assert main.main(["--cf", str(path)]) == 0
    assert regressions(tmp_path / "run") == ["model_0"]
    (stamp,) = (json.loads(f.read_text()) for f in (tmp_path / "run").rglob("*.quantiles_*.stamp.json"))
    assert "population (sha256)" in stamp["settings"] and "variance explained, held out" in stamp["facts"]
    session = prepared(load(path))
    (name,) = (name for name in evidence(session, 0).also if name.startswith("quantiles"))
    seen = evidence(session, 0).also[name]
    assert seen.target.shape == (2, 120) and np.isnan(seen.references).all() and seen.population.shape == (2, 0)
    path = config(tmp_path, "[QMIA, {name: Combined, attacks: [LOSS, LiRA]}]")
    assert main.main(["--cf", str(path)]) == 0
    assert regressions(tmp_path / "run") == ["model_0"]  # the others are not rehearsed with it
    path = config(tmp_path, "[LOSS, QMIA, LiRA, Combined]")
    assert main.main(["--cf", str(path)]) == 0
    assert regressions(tmp_path / "run") == ["model_0", "model_2", "model_3", "model_4", "model_5"]
    seen = evidence(prepared(load(path)), 0).also[name]
    assert np.isfinite(seen.references).all()


def test_no_audited_record_has_a_part_in_a_regression(tmp_path):
    """Other audited records, asked in another order or alone, have the same prediction."""
    session = prepared(load(config(tmp_path, "[QMIA]")))
    signal = signal_of({"head": "gaussian", "of": "log_odds", "regressor": "auto", "count": 11, "smallest_fpr": 0.01})
    value = np.linspace(-3, 3, len(session.population))[None]

    def column(points):
        chosen = replace(session, points=points)
        return Regression(chosen, None, None).column(0, signal, value)[0]

    whole = column(session.points)
    assert np.array_equal(column(session.points[::-3]), whole[:, ::-3])
    assert not np.array_equal(Regression(session, None, None).column(1, signal, value)[0], whole)  # its own folds


@pytest.mark.slow
@pytest.mark.parametrize("regressor", ["auto", "convnet"])
def test_images_have_both_regressors_and_both_heads(tmp_path, regressor):
    algorithm = (
        f"[{{name: QMIA, regressor: {regressor}}}, {{name: QMIA, regressor: {regressor}, head: pinball, of: hinge}}]"
    )
    path = config(tmp_path, algorithm, IMAGES)
    assert main.main(["--cf", str(path)]) == 0
    shapes = sorted(np.load(file).shape for file in (tmp_path / "run").rglob("*quantiles_*.npy"))
    assert shapes == [(2, 120), (11, 120)]
    assert len(list((tmp_path / "run").rglob("population_*/model_0.hinge.npy"))) == 1


@pytest.mark.slow
def test_texts_are_told_apart_by_counts_and_hashed_words(tmp_path):
    write(tmp_path / "texts.jsonl", [{"text": text} for text in texts(120)])
    audit = {"algorithm": ["LOSS", "QMIA", "MultiLiRA"], "num_ref_models": 1, "device": "cpu"}
    made = {
        "run": {"log_dir": str(tmp_path / "run"), "workers": 1},
        "data": {"dataset": "text_file", "file": str(tmp_path / "texts.jsonl")},
        "train": {
            "model_name": {"name": "gpt2_tiny", "width": 16, "layers": 1, "heads": 2},
            "learning_rate": 0.01,
            "batch_size": 8,
            "epochs": 1,
            "device": "cpu",
        },
        "audit": audit,
    }
    assert run(tmp_path, made) == 0
    assert regressions(tmp_path / "run") == ["model_0"]


@pytest.mark.parametrize(
    ("algorithm", "more", "said"),
    [
        ("[{name: QMIA, regressor: convnet}]", [], "lacks images for a convnet"),
        ("[QMIA]", ["audit.population_size=10"], "20 population records to learn from; there are 10"),
    ],
)
def test_what_cannot_be_learnt_is_said_before_anything_is_trained(tmp_path, algorithm, more, said):
    path = config(tmp_path, algorithm)
    with pytest.raises(UserError, match=said) as error:
        prepared(load(path, more))
    assert "audit.algorithm" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_ranges_cannot_be_asked_for_what_their_samples_are_not(tmp_path):
    path = config(tmp_path, "[LOSS]")
    path.write_text(path.read_text() + "ramia: {range_function: {name: l2, radius: 1.0}, attack: QMIA}\n")
    with pytest.raises(UserError, match=r"QMIA reads quantiles_.*samples of ranges are not asked for"):
        prepared(load(path))
    assert Signal("quantiles").of_population is False
