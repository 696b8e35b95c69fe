"""Whatever is in a config or in a file that is given: one message, exit code 2, nothing written, and soon.

A longer search: PRIVACY_METER_FUZZ=2000 pytest tests/test_fuzz.py
"""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import main
from core import config as core_config
from core.errors import UserError
from core.loading import read_array, read_arrays, read_json
from core.registry import ATTACKS, DATASETS, MODELS, MODULES, SOURCES, TRAINERS
from core.safe_yaml import parse

EXAMPLES = int(os.environ.get("PRIVACY_METER_FUZZ", "0"))


def fuzz(examples: int):
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


BASE = {
    "run": {"log_dir": "run", "random_seed": 7, "workers": 1},
    "data": {"dataset": "synthetic_tabular", "num_records": 60, "num_features": 4, "num_classes": 2},
    "train": {"model_name": "mlp", "epochs": 1, "batch_size": 16, "learning_rate": 0.1, "device": "cpu"},
    "audit": {"algorithm": ["LOSS"], "device": "cpu"},
}
NAMES = [*ATTACKS, *DATASETS, *MODELS, *MODULES, *SOURCES, *TRAINERS]
KEYS = [*BASE, *(key for block in BASE.values() for key in block), *NAMES, "name", "model", "scores", "signals", "mean"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 10**6, 10**18, 2**63, -(2**64), 10**400, float("nan"), float("inf"), -0.0, 1e-320]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from([*NAMES, "hf:x", "timm/x", "x:y", "../..", "/", "~", "cuda:99", "auto", "None", "\x7f", "é" * 300]),
    st.dates(),
)
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=8), st.integers(), st.none(), st.booleans())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def configs(draw) -> dict:
    """A config that would run, with some of its keys and blocks changed, removed or added."""
    raw = {block: dict(keys_of) for block, keys_of in BASE.items()}
    for _ in range(draw(st.integers(1, 4))):
        block = draw(st.sampled_from([*BASE, *BASE, *MODULES, *SOURCES]))
        what = draw(st.sampled_from(["key", "key", "key", "block", "gone", "top"]))
        if what == "key" and isinstance(raw.get(block, {}), dict):
            raw.setdefault(block, {})[draw(keys)] = draw(values)
        elif what == "block":
            raw[block] = draw(values)
        elif what == "gone":
            raw.pop(block, None)
        else:
            raw[draw(keys)] = draw(values)
    return raw


def loads_or_says_why(path: Path, overrides: list[str] | None = None) -> None:
    start = time.monotonic()
    try:
        core_config.load(path, overrides)
    except UserError as error:
        assert str(error) and len(str(error)) < 20_000
    assert time.monotonic() - start < 20


@fuzz(150)
@given(raw=configs())
def test_any_config_loads_or_says_why(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("fuzz") / "x.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8", errors="replace")
    loads_or_says_why(path)


@fuzz(100)
@given(
    content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
)
def test_any_bytes_are_a_config_or_not(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "x.yaml"
    path.write_bytes(content)
    loads_or_says_why(path)


@fuzz(100)
@given(key=st.text(alphabet="runaudit.dt_0 [", max_size=14), value=st.text(max_size=12))
def test_any_override_is_taken_or_not(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("fuzz") / "x.yaml"
    path.write_text(yaml.safe_dump(BASE))
    loads_or_says_why(path, [f"{key}={value}", value])


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "aliases make this file"),
        ("run: &a [*a]\n", "contains itself"),
        ("run: &a {b: *a}\n", "contains itself"),
        ("[" * 5000, "nested"),
        ("run: " + "[" * 60 + "]" * 60, "nested"),
        ("run: " + "{a: " * 60 + "}" * 60, "nested"),
        ("run: 2026-99-99", "not valid YAML"),
        ("run: " + "9" * 5000, "digits is too long"),
        ("run: 0x" + "f" * 5000, "digits is too long"),
        ('run: "\\0"', "a character"),
        ('run: "\\ud800"', "not valid YAML|a character"),
        ("run: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("run: !!python/name:os.system", "could not determine a constructor"),
        ("run: !!binary 'é'", "failed to convert base64"),
        ("? [a]\n: b", "unhashable"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("x" * (2 << 20), "is larger than"),
        ("\ufffe", "not valid YAML|should hold"),
        ("", "should hold the blocks"),
    ],
)
def test_bombs_and_curiosities_are_one_message(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError, match=message):
        core_config.load(path)
    assert time.monotonic() - start < 20


def test_aliases_that_repeat_little_are_read():
    _, value = parse("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\n", "x")
    assert value == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


# --- files that are given ---------------------------------------------------------------------------------------------


def broken(content: bytes, draw) -> bytes:
    """The bytes cut short, with a few changed, or with some put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    at = draw(st.integers(0, len(changed)))
    how = draw(st.sampled_from(["whole", "cut", "more", "gap"]))
    if how == "cut":
        return bytes(changed[:at])
    if how == "more":
        return bytes(changed[:at]) + draw(st.binary(max_size=20)) + bytes(changed[at:])
    return bytes(changed[:at] + changed[at + 3 :]) if how == "gap" else bytes(changed)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, member=np.ones((2, 5), bool), x=np.arange(4.0))
    return file.getvalue()


def _pt(legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"fc1.weight": torch.ones(2, 2)}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _safetensors() -> bytes:
    from safetensors.torch import save

    return save({"a": torch.ones(3)})


METADATA = json.dumps({"0": {"model_path": "m.pkl", "num_train": 2, "model_name": "mlp", "dataset": "x"}}).encode()
FILES = {
    "a.npy": (_npy(np.arange(12.0).reshape(3, 4)), read_array),
    "b.npy": (_npy(np.array([{}], dtype=object)), read_array),
    "a.npz": (_npz(), read_arrays),
    "a.json": (METADATA, read_json),
    "a.pkl": (pickle.dumps({"a": torch.ones(2)}), "weights"),
    "a.pt": (_pt(False), "weights"),
    "a.pth": (_pt(True), "weights"),
    "a.safetensors": (_safetensors(), "weights"),
}


@pytest.mark.parametrize("name", FILES)
@fuzz(60)
@given(data=st.data())
def test_any_damage_to_a_file_is_one_message(tmp_path_factory, name, data):
    from audit.state_dicts import read_state_dict

    content, reader = FILES[name]
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(broken(content, data.draw))
    try:
        (read_state_dict if reader == "weights" else reader)(path)
    except UserError as error:
        assert name in str(error) and len(str(error)) < 2000


POOL = 45  # of the data below
metadata = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["mlp", "m.pkl"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["0", "1", "-1", "007", "x", "model_path", "num_train", "model_name", "dataset"]),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=10,
)
entries = st.dictionaries(
    st.sampled_from(["0", "1", "2", "9", "x", "²"]),
    st.fixed_dictionaries(
        {"model_path": st.sampled_from(["m.pkl", "../m.pkl", "/etc/passwd", "", "m.pkl\0", "none.pt"])},
        optional={
            "model_name": st.sampled_from(["mlp", "cnn", "?", "hf:x", 3, None]),
            "num_train": st.sampled_from([20, 1, "20", None]),
            "dataset": st.sampled_from(["synthetic_tabular", "cifar10", None]),
        },
    ),
    max_size=3,
)
arrays = st.one_of(
    st.sampled_from(
        [
            np.arange(2 * POOL).reshape(2, POOL) % 2 == 0,
            np.arange(POOL)[None] % 2,
            (np.arange(POOL) % 3 / 1.0)[None],
            np.full((1, POOL), np.nan),
            np.zeros((0, POOL), bool),
            np.zeros((1, POOL), bool),
            np.array(True),
            np.array(["a"]),
            np.ones((1, 10**5), bool),
            np.ones((1, 1, POOL), bool),
        ]
    )
)


@pytest.mark.slow
@fuzz(60)
@given(told=st.one_of(metadata, entries, entries), member=arrays)
def test_any_metadata_and_memberships_are_audited_or_refused_with_nothing_written(tmp_path_factory, told, member):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "models_metadata.json").write_text(json.dumps(told))
    np.save(folder / "memberships.npy", member)
    weights = torch.nn.Sequential(torch.nn.Linear(4, 128), torch.nn.Tanh(), torch.nn.Linear(128, 2)).state_dict()
    names = dict(zip(weights, ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"), strict=True))
    (folder / "m.pkl").write_bytes(pickle.dumps({names[name]: tensor for name, tensor in weights.items()}))
    raw = {**BASE, "model": {"folder": str(folder)}, "run": {**BASE["run"], "log_dir": str(folder / "run")}}
    del raw["train"]
    (folder / "x.yaml").write_text(yaml.safe_dump(raw))
    code = main.main(["--cf", str(folder / "x.yaml"), "--check"])
    assert code in (0, 2) and not (folder / "run").exists()


def test_a_hole_in_a_zip_archive_is_no_way_out(tmp_path):
    """Names in archives that climb out of a folder are never written: archives are read, not unpacked."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("../../out.npy", _npy(np.arange(3)))
    assert list(read_arrays(tmp_path / "a.npz")) == ["../../out"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    (tmp_path / "b.npz").write_bytes(struct.pack("<I", 0x06054B50) + bytes(18))
    assert read_arrays(tmp_path / "b.npz") == {}


# --- signals and scores that are given --------------------------------------------------------------------------------

MODELS_, POINTS, CLASSES, SAMPLES = 5, 24, 3, 2
DTYPES = [np.float64, np.float32, np.float16, np.int8, np.uint64, np.int64, bool, "U3", "S2", complex, object, "M8[s]"]
ODD = [np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0, 1e300, -1e300, 1e-320, 2.0**63, 0.5]


@st.composite
def odd_arrays(draw, right: tuple[int, ...]) -> np.ndarray:
    """An array that is right, or of another shape or type, or with values that are no numbers."""
    how = draw(st.sampled_from(["right", "right", "right", "shape", "type", "odd", "constant", "empty", "absurd"]))
    shape = right if how != "shape" else tuple(draw(st.lists(st.integers(0, 30), max_size=4)))
    array = np.random.default_rng(draw(st.integers(0, 5))).normal(size=shape)
    if how == "type":
        try:
            return (array > 0).astype(draw(st.sampled_from(DTYPES)))
        except (TypeError, ValueError):
            return array
    if how == "odd" and array.size:
        array.reshape(-1)[:: draw(st.integers(1, 9))] = draw(st.sampled_from(ODD))
    if how == "constant":
        array[...] = draw(st.sampled_from(ODD))
    if how == "absurd":
        return np.broadcast_to(np.float32(0.5), (0, 2**40)[: draw(st.integers(1, 2))])
    return array[:0] if how == "empty" else array


@st.composite
def given_signals(draw) -> tuple[dict, dict, dict]:
    """Arrays, the block that names them, and other blocks."""
    kind = draw(st.sampled_from(["log_odds", "log_odds", "probability", "loss", "logits", "probabilities"]))
    classes = (CLASSES,) if kind in ("logits", "probabilities") else ()
    right = {
        "signals": (MODELS_, POINTS, *classes),
        "population": (MODELS_, 12, *classes),
        "samples": (MODELS_, POINTS, SAMPLES, *classes),
    }
    names = draw(st.sets(st.sampled_from([*right, "labels", "points", "ids", "range_membership"])))
    arrays = {name: draw(odd_arrays(shape)) for name, shape in right.items() if name in {*names, "signals"}}
    if kind == "probability":
        arrays = {n: 1 / (1 + np.exp(-a)) if a.dtype == float and draw(st.booleans()) else a for n, a in arrays.items()}
    for name in {*names, "membership"} - right.keys():
        shape = (MODELS_, POINTS) if "membership" in name else (POINTS,)
        array = draw(odd_arrays(shape))
        arrays[name] = array > 0 if array.dtype.kind == "f" and draw(st.integers(0, 9)) else array
    block = {"file": "s.npz", "kind": kind, "uncovered": draw(st.sampled_from(["drop", "drop", "error"]))}
    for key in draw(st.sets(st.sampled_from(["axes", "targets", "references", "clip"]), max_size=2)):
        block[key] = draw(
            {"axes": st.just("points_models"), "clip": st.just(0.1)}.get(key, st.lists(st.integers(-1, 6), max_size=3))
        )
    more = {"ramia": {"aggregation": "mean"}} if "samples" in names and draw(st.booleans()) else {}
    return arrays, block, more


def audited_or_refused(folder: Path, blocks: dict) -> None:
    """Exit code 0 or 2, nothing written by --check or by what is refused, and no traceback."""
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump({"run": {"log_dir": str(folder / "run")}, **blocks}))
    code = main.main(["--cf", str(path), "--check"])
    assert code in (0, 2) and not (folder / "run").exists()
    assert main.main(["--cf", str(path)]) == code
    assert (folder / "run/report/index.html").is_file() == (code == 0)


@pytest.fixture
def no_pictures(monkeypatch):
    from audit import plots

    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
    monkeypatch.setattr(plots, "roc_figure", lambda *_, **__: None)
    monkeypatch.setattr(plots, "score_figure", lambda *_: None)


@pytest.mark.slow
@fuzz(40)
@given(signals=given_signals())
def test_any_signals_are_audited_or_refused_with_nothing_written(tmp_path_factory, no_pictures, signals):
    arrays, block, more = signals
    folder = tmp_path_factory.mktemp("fuzz")
    np.savez(folder / "s.npz", **arrays)
    audited_or_refused(folder, {"signals": block | {"file": str(folder / "s.npz")}, **more})


COLUMNS = ["member", "score", "other", "id", "group", "target", "label"]


@pytest.mark.slow
@fuzz(40)
@given(data=st.data())
def test_any_table_of_scores_is_measured_or_refused_with_nothing_written(tmp_path_factory, no_pictures, data):
    folder = tmp_path_factory.mktemp("fuzz")
    draw = data.draw
    if draw(st.booleans()):
        arrays = {name: draw(odd_arrays((POINTS,))) for name in COLUMNS}
        arrays["member"] = arrays["member"] > 0 if arrays["member"].dtype.kind == "f" else arrays["member"]
        np.savez(folder / "s.npz", **arrays)
        file = folder / "s.npz"
    else:
        cell = st.one_of(
            st.sampled_from(["0", "1", "0.5", "nan", "", "x", '"', "1e999", "true", "é"]), st.text(max_size=3)
        )
        rows = draw(st.lists(st.lists(cell, min_size=7, max_size=7), max_size=12))
        binary = [[draw(st.sampled_from("01")), draw(st.sampled_from(["0.1", "-3", "2e3"])), *row[2:]] for row in rows]
        table = draw(st.sampled_from([rows, binary, binary]))
        file = folder / "s.csv"
        file.write_bytes("\n".join([",".join(COLUMNS), *map(",".join, table)]).encode("utf-8", "replace"))
    block = {"file": str(file), "score": "score", "higher_is_member": draw(st.booleans())}
    for key in draw(st.sets(st.sampled_from(["id", "target", "label"]))):
        block[key] = key
    if draw(st.booleans()):
        block["groups"] = ["group"]
    if draw(st.booleans()):
        block["dp"] = {"design": "one_run", "delta": 1e-5}
    audited_or_refused(folder, {"scores": block})


def test_absurd_shapes_in_a_header_are_refused_before_anything_is_reserved(tmp_path):
    """A file of a hundred bytes that says it holds an exabyte."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"
    header += b" " * (117 - len(header)) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"a\.npy"):
        read_array(tmp_path / "a.npy")
    assert time.monotonic() - start < 5
