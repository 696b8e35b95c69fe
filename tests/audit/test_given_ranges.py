"""Ranges whose samples' signals were given: the same RaMIA as of ranges drawn here, and clear mistakes."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

import main
from audit import plots
from core.metrics import auc
from core.rng import stream
from tests.audit.test_ramia import TINY

M, N, K = 10, 240, 6


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


@pytest.fixture
def arrays():
    """Five of ten models know each point; the samples of a range show it more than the record itself."""
    draw = stream(3, "given ranges")
    member = draw.random((M, N)).argsort(axis=0) < M // 2
    hard = draw.normal(size=N)
    return {
        "signals": draw.normal(size=(M, N)) + hard + 0.5 * member,
        "samples": draw.normal(size=(M, N, K)) + hard[:, None] + 1.0 * member[..., None],
        "membership": member,
        "ids": np.array([f"r{n}" for n in range(N)]),
    }


def write(folder: Path, signals: dict, ramia: dict | None = None, **audit) -> Path:
    path = folder / "given.yaml"
    blocks = {"run": {"log_dir": str(folder / "given")}, "signals": signals, "audit": {"algorithm": "LiRA"} | audit}
    path.write_text(json.dumps(blocks | ({} if ramia is None else {"ramia": ramia}), indent=1, default=str))
    return path


def given(folder: Path, arrays: dict, ramia: dict, **more) -> int:
    np.savez(folder / "s.npz", **arrays)
    return main.main(["--cf", str(write(folder, {"file": folder / "s.npz", "kind": "log_odds"} | more, ramia))])


def found(folder: Path) -> dict:
    with np.load(folder / "given/report/ramia/attack_result_0.npz") as result:
        return dict(result)


def row(folder: Path) -> dict:
    (one,) = csv.DictReader((folder / "given/report/ramia/ramia.csv").read_text().splitlines())
    return one


def test_signals_of_a_run_of_ours_give_back_its_scores_of_ranges(tmp_path):
    """What our models said of records and samples, exported and given: the same scores, aggregation and ROC."""
    path = tmp_path / "ours.yaml"
    text = TINY.replace("center: perturbed", "attack: LiRA").replace("LOG", str(tmp_path / "ours"))
    path.write_text(text)
    assert main.main(["--cf", str(path)]) == 0
    ours, folder = tmp_path / "ours", tmp_path / "ours/signals"
    rows = range(8)
    read = lambda pattern: np.load(next(iter(folder.glob(pattern))))[0]  # noqa: E731
    samples = {m: read(f"ramia_*/model_{m}.log_odds.*.npy") for m in rows if m != 1}
    points = {m: read(f"points_*/model_{m}.log_odds.npy") for m in rows if m != 1}
    samples[1], points[1] = np.zeros_like(samples[0]), np.zeros_like(points[0])  # the twin was never trained
    arrays = {
        "signals": np.stack([points[m] for m in rows]),
        "samples": np.stack([samples[m][:, 1:] for m in rows]),
        "membership": np.load(ours / "models/memberships.npy"),
    }
    assert given(tmp_path, arrays, {"attack": "LiRA"}, references=list(range(2, 8))) == 0
    with np.load(ours / "report/ramia/attack_result_0.npz") as expected:
        for name in expected.files:
            np.testing.assert_array_equal(found(tmp_path)[name], expected[name], err_msg=name)


def test_the_range_tells_more_than_its_record_and_ids_are_kept(arrays, tmp_path, capsys):
    assert given(tmp_path, arrays, {}) == 0
    result, said = found(tmp_path), capsys.readouterr().out
    assert auc(result["scores"], result["memberships"]) > 0.85 > float(row(tmp_path)["auc_center"])
    assert "RaMIA tells more" in said and f"{K} samples, the center not among them" in said
    lines = list(csv.DictReader((tmp_path / "given/report/ramia/ranges_0.csv").read_text().splitlines()))
    assert all(one["id"] == f"r{one['index']}" for one in lines) and "label" not in lines[0]
    page = (tmp_path / "given/report/index.html").read_text()
    assert "Which other records lie in a range was not given" in page


def test_rows_of_samples_are_read_range_by_range(arrays, tmp_path):
    """The original tool's order: row = range * K + sample, columns = models."""
    assert given(tmp_path, arrays, {"aggregation": "max"}) == 0
    expected = found(tmp_path)["sample_scores"]
    flat = arrays["samples"].transpose(1, 2, 0).reshape(N * K, M)
    turned = {"signals": arrays["signals"].T, "samples": flat, "membership": arrays["membership"].T}
    assert given(tmp_path, turned, {"aggregation": "max"}, axes="points_models") == 0
    np.testing.assert_array_equal(found(tmp_path)["sample_scores"], expected)


def test_fewer_samples_are_the_first_and_the_record_can_be_one(arrays, tmp_path):
    assert given(tmp_path, arrays, {"aggregation": "mean", "attack": "LOSS"}) == 0
    everything = found(tmp_path)["sample_scores"]
    assert (
        given(tmp_path, arrays, {"sample_size": 4, "include_center": True, "aggregation": "mean", "attack": "LOSS"})
        == 0
    )
    np.testing.assert_array_equal(found(tmp_path)["sample_scores"][:, 1:], everything[:, :3])
    np.testing.assert_array_equal(found(tmp_path)["sample_scores"][:, 0], arrays["signals"][0].astype(np.float32))


def test_a_range_that_holds_another_training_point_is_a_member(arrays, tmp_path):
    held = arrays["membership"] | (stream(4, "neighbours").random((M, N)) < 0.1)
    only_another = int((held & ~arrays["membership"])[0].sum())
    assert given(tmp_path, arrays | {"range_membership": held}, {"attack": "LOSS", "aggregation": "mean"}) == 0
    np.testing.assert_array_equal(found(tmp_path)["memberships"], held[0])
    assert int(row(tmp_path)["hold_only_another_record"]) == only_another
    settings = {"attack": "LOSS", "aggregation": "mean", "neighbours": "drop"}
    assert given(tmp_path, arrays | {"range_membership": held}, settings) == 0
    assert len(found(tmp_path)["memberships"]) == N - only_another


def test_logits_of_samples_answer_every_attack_on_arrays(tmp_path):
    draw = stream(5, "logits")
    member, labels = draw.random((M, N)).argsort(axis=0) < M // 2, draw.integers(3, size=N)
    own = np.eye(3)[labels] * (1 + member[..., None])
    arrays = {
        "signals": draw.normal(size=(M, N, 3)) + own,
        "samples": draw.normal(size=(M, N, K, 3)) + own[:, :, None],
        "membership": member,
        "labels": labels,
    }
    assert given(tmp_path, arrays, {"attack": "Entropy", "aggregation": "mean"}, kind="logits") == 0
    assert auc(found(tmp_path)["scores"], found(tmp_path)["memberships"]) > 0.6


def test_where_models_know_nothing_of_ranges_none_is_told(arrays, tmp_path):
    draw = stream(6, "nothing")
    nothing = {key: draw.normal(size=arrays[key].shape) for key in ("signals", "samples")}
    assert given(tmp_path, arrays | nothing, {}) == 0
    assert float(row(tmp_path)["auc_ramia_low"]) < 0.5 < float(row(tmp_path)["auc_ramia_high"])


def test_the_original_tools_samples_are_found(arrays, tmp_path):
    for folder in ("signals", "models"):
        (tmp_path / "log" / folder).mkdir(parents=True)
    np.save(tmp_path / "log/signals/rmia_signals.npy", expit(arrays["signals"]).T.astype(np.float32))
    samples = expit(arrays["samples"]).transpose(1, 2, 0).reshape(N * K, M).astype(np.float32)
    np.save(tmp_path / "log/signals/rmia_ramia_signals.npy", samples)
    np.save(tmp_path / "log/models/memberships.npy", arrays["membership"])
    assert main.main(["--cf", str(write(tmp_path, {"original": tmp_path / "log"}, {"attack": "LiRA"}))]) == 0
    assert auc(found(tmp_path)["scores"], found(tmp_path)["memberships"]) > 0.85


@pytest.mark.parametrize(
    ("change", "ramia", "message"),
    [
        ({"samples": None}, {}, "ramia: needs signals.samples"),
        (
            {"samples": np.zeros((M, N + 1, K))},
            {},
            "signals.samples|signals.file.*samples of ranges are models x points",
        ),
        ({"samples": np.full((M, N, K), np.nan)}, {}, f"has {M * N * K} values that are NaN or infinite"),
        ({"samples": np.full((M, N, K), "a")}, {}, "not numbers"),
        ({"samples": np.zeros((M, N * K + 1))}, {}, "samples of ranges are models x points"),
        ({"range_membership": np.ones((M, N - 1), bool)}, {}, "range_membership|is models x points"),
        ({}, {"sample_size": K + 1}, f"ramia.sample_size: {K} samples of each range were given"),
        ({}, {"range_function": "l2", "radius": 1}, "ramia.range_function: the samples were given"),
        ({}, {"center": "perturbed"}, "ramia.center: the samples were given"),
        ({}, {"attack": "RMIA"}, "ramia.attack: RMIA lacks population points"),
        ({"range_membership": np.ones((M, N), bool)}, {}, "ramia: 240 of 240 ranges lack a reference model"),
        ({"range_membership": np.ones((M, N), bool)}, {"attack": "LOSS"}, "all of the ranges hold training points"),
        ({}, {"aggregation": {"name": "top_k", "k": 9}}, "the top 9 of 6 samples"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(arrays, tmp_path, capsys, change, ramia, message):
    arrays = {key: value for key, value in (arrays | change).items() if value is not None}
    assert given(tmp_path, arrays, ramia) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert not (tmp_path / "given").exists()


def test_models_that_can_be_asked_need_to_be_told_which_ranges(tmp_path, capsys):
    path = tmp_path / "ours.yaml"
    path.write_text(TINY.split("ramia:")[0].replace("LOG", str(tmp_path / "run")) + "ramia: {sample_size: 5}\n")
    assert main.main(["--cf", str(path)]) == 2
    assert "ramia.range_function: missing: which ranges? One of" in capsys.readouterr().err
