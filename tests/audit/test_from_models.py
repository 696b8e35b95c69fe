"""Models that were trained elsewhere: in the original tool's files, in ours, and in a user's own."""

import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import main
from audit import plots
from audit.state_dicts import SUFFIXES, read_state_dict
from core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = """\
run: {{log_dir: {folder}/run, random_seed: 7}}
data: {{dataset: synthetic_tabular, num_records: 400, num_features: 24, num_classes: 5}}
model: {model}
audit: {{algorithm: [LOSS, LiRA, RMIA], device: cpu}}
"""


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


class Theirs(torch.nn.Module):
    """Two layers fc1 and fc2 with tanh between: what the original tool calls mlp."""

    def __init__(self, inputs=24, hidden=128, classes=5):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(inputs, hidden), torch.nn.Linear(hidden, classes)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x.flatten(1))))


def theirs(count: int) -> list[Theirs]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [Theirs() for _ in range(count)]


def memberships(count: int, pool: int = 300) -> np.ndarray:
    """No pairs: each model trained on its own two fifths of the pool, each record is in two of five models."""
    order = np.random.Generator(np.random.PCG64(3)).permutation(pool)
    return (order + np.arange(count)[:, None]) % 5 < 2


def original_run(folder: Path, count: int = 5, **changed) -> list[Theirs]:
    """A run directory as the original tool leaves it. Returns the models."""
    models, member = theirs(count), memberships(count)
    inner = folder / "models"
    inner.mkdir(parents=True)
    np.save(inner / "memberships.npy", member)
    metadata = {}
    for number, model in enumerate(models):
        weights = model.state_dict()
        if number == 1:  # as Opacus leaves it
            weights = OrderedDict((f"_module.{name}", tensor) for name, tensor in weights.items())
        if number == 2:  # as DataParallel of a compiled model leaves it
            weights = OrderedDict((f"module._orig_mod.{name}", tensor) for name, tensor in weights.items())
        (inner / f"model_{number}.pkl").write_bytes(pickle.dumps(weights))
        metadata[number] = {
            "num_train": int(member[number].sum()),
            "optimizer": "SGD",
            "batch_size": 256,
            "epochs": 50,
            "model_name": "mlp",
            "learning_rate": 0.1,
            "weight_decay": 0.0,
            "model_path": f"demo/models/model_{number}.pkl",
            "train_acc": 1.0,
            "test_acc": 0.5,
            "train_loss": 0.01,
            "test_loss": 2.0,
            "dataset": "their_own",
            **changed,
        }
    metadata[1] |= {"epsilon": 4.2, "delta": 1e-5}
    (inner / "models_metadata.json").write_text(json.dumps(metadata, indent=4))
    return models


def config(folder: Path, model: str, more: str = "") -> Path:
    path = folder / "audit.yaml"
    path.write_text(TINY.format(folder=folder, model=model) + more)
    return path


def run(path: Path, *arguments: str) -> int:
    return main.main(["--cf", str(path), *arguments])


def signals(folder: Path) -> dict[int, np.ndarray]:
    """The log-odds (N,) of the audited points, by model."""
    (where,) = (folder / "run/signals").glob("points_*")
    return {int(p.name[6:].split(".")[0]): np.load(p)[0] for p in where.glob("model_*.log_odds.npy")}


def by_hand(model: torch.nn.Module) -> np.ndarray:
    from dataset.synthetic import synthetic_tabular

    pool = synthetic_tabular(Path("data"), 7, num_records=400, num_features=24, num_classes=5).pool
    with torch.no_grad():
        p = model.eval()(torch.tensor(pool.x)).double().softmax(1).numpy()[np.arange(len(pool)), pool.y]
    return np.log(p / (1 - p))


def test_a_run_of_the_original_tool_is_audited_with_the_signals_of_its_models(tmp_path, capsys):
    models = original_run(tmp_path / "old")
    path = config(tmp_path, f"{{folder: {tmp_path / 'old'}}}")
    assert run(path, "--check") == 0
    out = capsys.readouterr().out
    assert "5 of mlp" in out and "4 references each" in out and "0 to train, 5 given ones to read" in out
    assert not (tmp_path / "run").exists()
    assert run(path) == 0
    found = signals(tmp_path)
    assert sorted(found) == list(range(5))
    for number, model in enumerate(models):
        np.testing.assert_allclose(found[number], by_hand(model), atol=1e-5)
    written = json.loads((tmp_path / "run/models/models_metadata.json").read_text())
    assert written["1"]["epsilon"] == 4.2 and written["0"]["epochs"] == 50 and "given" in written["0"]
    np.testing.assert_array_equal(np.load(tmp_path / "run/models/memberships.npy"), memberships(5))
    with np.load(tmp_path / "run/report/exp/attack_result_0.npz") as npz:
        np.testing.assert_array_equal(npz["memberships"], memberships(5)[0])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.npy")}
    shutil.move(tmp_path / "old", tmp_path / "moved")  # a finished import does not depend on where it was from
    path = config(tmp_path, f"{{folder: {tmp_path / 'moved'}}}")
    assert run(path) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.npy")} == before


def test_our_own_run_can_be_given_and_says_the_same(tmp_path):
    """Its architecture and its settings are found in it; scores are those of the run itself."""
    first = tmp_path / "first.yaml"
    text = TINY.format(folder=tmp_path / "first", model="x").replace("model: x\n", "")
    first.write_text(
        text.replace("device: cpu", "device: cpu, num_ref_models: 2")
        + "train: {model_name: {name: mlp, hidden: [16]}, epochs: 3, batch_size: 32, learning_rate: 0.1, device: cpu}\n"
    )
    assert run(first) == 0
    path = config(tmp_path, f"{{folder: {tmp_path / 'first/run'}}}")
    assert run(path) == 0
    again, before = (np.load(p / "run/report/exp/attack_result_0.npz") for p in (tmp_path, tmp_path / "first"))
    assert set(again.files) == set(before.files)
    for key in before.files:
        np.testing.assert_array_equal(again[key], before[key])


def save(path: Path, weights: dict) -> Path:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(weights))
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=path.suffix == ".pt")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_weights(tmp_path, suffix):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).half()
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    found = read_state_dict(save(tmp_path / f"a{suffix}", weights))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) and found[name].device.type == "cpu" for name in weights)
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    assert read_state_dict(save(tmp_path / f"b{suffix}", wrapped)).keys() == weights.keys()
    if suffix != ".safetensors":
        inside = save(tmp_path / f"c{suffix}", {"epoch": 3, "state_dict": weights, "best": 0.5})
        assert read_state_dict(inside).keys() == weights.keys()
        parameters = save(tmp_path / f"d{suffix}", dict(network.named_parameters()))
        assert set(read_state_dict(parameters)) == {"0.weight", "0.bias", "1.weight", "1.bias"}


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl"])
def test_weights_that_run_code_do_not(tmp_path, suffix):
    hostile = {"fc1.weight": torch.zeros(2), "fc1.bias": Hostile(tmp_path / "canary")}
    for content in (hostile, hostile["fc1.bias"], Theirs()):
        with pytest.raises(UserError, match=rf"a{suffix} is refused: it asks for (posix\.system|tests|torch)"):
            read_state_dict(save(tmp_path / f"a{suffix}", content))
    inner = pickle.dumps(hostile)  # in the bytes that the original's pickles keep a tensor in
    code = b"ctorch.storage\n_load_from_bytes\nB" + len(inner).to_bytes(4, "little") + inner + b"\x85R."
    (tmp_path / "b.pkl").write_bytes(code)
    with pytest.raises(UserError, match=r"b\.pkl is refused"):
        read_state_dict(tmp_path / "b.pkl")
    assert not (tmp_path / "canary").exists()


def _tensor(shape: str, storage: bytes) -> bytes:
    """The opcodes of one tensor of the original's pickles, with the shape it claims."""
    loaded = b"ctorch.storage\n_load_from_bytes\nB" + len(storage).to_bytes(4, "little") + storage + b"\x85R"
    claim = b"I0\n" + shape.encode("latin1") + b"I1\n\x85I00\nccollections\nOrderedDict\n)R"
    return b"}S'x'\nctorch._utils\n_rebuild_tensor_v2\n(" + loaded + claim + b"tRs."


def test_absurd_and_damaged_weights_are_one_clear_error(tmp_path):
    import io

    buffer = io.BytesIO()
    numbers = torch.arange(4.0)
    storage = torch.storage.TypedStorage(wrap_storage=numbers.untyped_storage(), dtype=numbers.dtype, _internal=True)
    torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "a.pkl").write_bytes(_tensor("I4\n\x85", buffer.getvalue()))
    assert torch.equal(read_state_dict(tmp_path / "a.pkl")["x"], torch.arange(4.0))
    (tmp_path / "a.pkl").write_bytes(_tensor("I40000000000\n\x85", buffer.getvalue()))
    with pytest.raises(UserError, match="reaches beyond its numbers"):
        read_state_dict(tmp_path / "a.pkl")
    whole = {name: save(tmp_path / f"w{name}", Theirs().state_dict()).read_bytes() for name in SUFFIXES}
    for suffix, content in whole.items():
        for length in range(0, len(content) - 1, len(content) // 12):
            (tmp_path / f"cut{suffix}").write_bytes(content[:length])
            with pytest.raises(UserError, match=f"cut{suffix}"):
                read_state_dict(tmp_path / f"cut{suffix}")
    for value in (
        {},
        [1],
        {"a": 1},
        {"a": torch.tensor([float("nan")])},
        {1: torch.zeros(1)},
        torch.zeros(3).expand(3),
    ):
        with pytest.raises(UserError, match=r"v\.pt"):
            read_state_dict(save(tmp_path / "v.pt", value))
    with pytest.raises(UserError, match=r"v\.pt: a claims shape"):
        read_state_dict(save(tmp_path / "v.pt", {"a": torch.zeros(1).expand(10**9)}))
    for name in ("none.pt", "a.onnx", "."):
        with pytest.raises(UserError, match=r"cannot be read|weights are read from"):
            read_state_dict(tmp_path / name)


# --- a user's own checkpoint: documentation/extending.md shows these files --------------------------------------------

PLUGIN = """\
from torch import nn


def build(input_shape, num_classes, *, width: int = 12):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_classes))


def whole():
    return nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 5))
"""


def checkpoint(folder: Path, count: int = 1) -> list[torch.nn.Module]:
    (folder / "my_net.py").write_text(PLUGIN)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        nets = [
            torch.nn.Sequential(torch.nn.Linear(24, 12), torch.nn.ReLU(), torch.nn.Linear(12, 5)) for _ in range(count)
        ]
    for number, net in enumerate(nets):
        torch.save(net.state_dict(), folder / f"net_{number}.pt")
    return nets


RECIPE = "train: {epochs: 2, batch_size: 32, learning_rate: 0.1, device: cpu}\n"


@pytest.mark.parametrize("factory", ["my_net:build", "my_net:whole", "{name: my_net:build, width: 12}"])
def test_a_checkpoint_is_audited_with_references_trained_by_its_recipe(tmp_path, factory):
    (net,) = checkpoint(tmp_path)
    trained_on = np.flatnonzero(memberships(1)[0])
    (tmp_path / "trained_on.txt").write_text("\n".join(map(str, trained_on)))
    model = f"{{factory: {factory!s}, weights: {tmp_path}/net_0.pt, member: {tmp_path}/trained_on.txt}}"
    path = config(tmp_path, model, RECIPE)
    path.write_text(path.read_text().replace("device: cpu}", "device: cpu, num_ref_models: 2}", 1))
    assert run(path, "--plugin", str(tmp_path / "my_net.py")) == 0
    found = signals(tmp_path)
    assert sorted(found) == [0, 2, 3, 4, 5]
    np.testing.assert_allclose(found[0], by_hand(net), atol=1e-5)
    with np.load(tmp_path / "run/report/exp/attack_result_0.npz") as npz:
        np.testing.assert_array_equal(np.flatnonzero(npz["memberships"]), trained_on)
    member = np.load(tmp_path / "run/models/memberships.npy")
    assert (member[2] ^ member[3]).all() and (member[4] ^ member[5]).all()
    metadata = json.loads((tmp_path / "run/models/models_metadata.json").read_text())
    assert metadata["2"]["epochs"] == 2 and "epochs" not in metadata["0"] and metadata["0"]["model_name"] in factory


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_checkpoints_with_any_membership_are_compared_with_each_other(tmp_path, kind):
    checkpoint(tmp_path, 4)
    member = memberships(4)
    member[3] = ~member[0]  # the complement of the target: no reference of it
    np.save(tmp_path / "m.npy", member.astype(np.float32))
    np.savez(tmp_path / "m.npz", member=member)
    files = ", ".join(f"{tmp_path}/net_{number}.pt" for number in range(4))
    path = config(tmp_path, f"{{factory: my_net:build, weights: [{files}], member: {tmp_path}/m.{kind}}}")
    path.write_text(path.read_text().replace("[LOSS, LiRA, RMIA]", "[LOSS, AttackP]"))
    assert run(path, "--plugin", str(tmp_path / "my_net.py")) == 0
    assert sorted(signals(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.factory=other:build", "model.factory: no plug-in is called 'other'"),
        ("model.factory=my_net:nothing", "model.factory: the plug-in my_net defines no function 'nothing'"),
        ("model.factory=my_net:nn", "defines no function 'nn'"),  # imported there, not defined there
        ("model.factory=os:system", "no plug-in is called 'os'"),
        ("model.factory=build", "should be file:function"),
        ("model.factory={name: my_net:build, widht: 3}", "did you mean 'width'"),
        ("model.factory={name: my_net:build, width: 13}", "does not fit the architecture: it has in other shapes"),
        ("model.name=mlp", "give either name"),
        ("model.weights=none.pt", "model.weights: none.pt: there is no such file"),
        ("model.weights=[]", "model.weights: "),
        ("model.weights=my_net.py", "weights are read from"),
        ("model.member=null", "model.member: missing"),
        ("model.member=x", "is no .npy"),
        ("model.member=column:x", "the data have no column 'x'"),
        ("model.member=none.npy", "none.npy: cannot be read"),
        ("model.member=short.npy", "has shape (1, 10)"),
        ("model.member=twos.npy", "true and false"),
        ("model.member=far.npy", "index 300 is outside of the pool"),
        ("model.member=all.npy", "model 0 trained on every record of the pool"),
        ("model.member=ids.csv", "'nobody' and 0 more are no records"),
        ("model.folder=.", "model: give either folder"),
        ("model.mean=0.5", "model.std: missing"),
        ("model={factory: my_net:build, weights: net_0.pt, member: m.npy, mean: 0, std: 0}", "model.std: should be"),
        ("model.widths=3", "did you mean 'weights'"),
        ("run.num_experiments=2", "run.num_experiments: 2 targets, and 1 models are given"),
        ("train={epochs: 1, learning_rate: 0.1, batch_size: 8}", "audit.num_ref_models: 0, and there is a block train"),
        ("ramia={}", "ramia"),
    ],
)
def test_what_is_given_wrong_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path)
    np.save("m.npy", memberships(1))
    np.save("short.npy", memberships(1)[:, :10])
    np.save("twos.npy", memberships(1) * 2.0)
    np.save("far.npy", np.array([1, 300]))
    np.save("all.npy", np.ones((1, 300), bool))
    Path("ids.csv").write_text("1\nnobody\n")
    path = config(tmp_path, "{factory: my_net:build, weights: net_0.pt, member: m.npy}")
    assert run(path, "--plugin", "my_net.py", "--set", change, "audit.algorithm=LOSS") == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list((tmp_path / "run").rglob("model_0.*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "wrn28-2"}, "model wrn28-2 needs images"),
        ({"model_name": "resnet1k"}, "no model is called 'resnet1k'"),
        ({"num_train": 7}, "model 0 trained on 7 records, "),
        ({"model_path": "../../secret.pkl"}, "there is no file 'secret.pkl'"),
        ({"model_path": 3}, "model 0 has no model_path"),
        ({"dataset": "cifar10"}, "were trained on cifar10"),
    ],
)
def test_metadata_that_do_not_agree_are_named(tmp_path, capsys, change, message):
    original_run(tmp_path / "old", **{"dataset": "synthetic_tabular", **change})
    (tmp_path / "secret.pkl").write_bytes(b"")
    assert run(config(tmp_path, f"{{folder: {tmp_path / 'old'}}}")) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "run").exists()


def test_data_of_another_size_are_not_mixed_with_models(tmp_path, capsys):
    original_run(tmp_path / "old")
    path = config(tmp_path, f"{{folder: {tmp_path / 'old'}}}")
    assert run(path, "--set", "data.num_records=500") == 2
    assert "is about 300 records, the pool has 375" in capsys.readouterr().err
