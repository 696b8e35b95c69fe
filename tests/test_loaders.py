"""No file from elsewhere runs code: every place that opens one is known here, and each is given a hostile one."""

import ast
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from audit import hub_files
from audit.state_dicts import SUFFIXES, read_state_dict
from core import config, loading, tables
from core.errors import UserError
from core.registry import DATASETS
from dataset import cifar, files, original, purchase_texas, text_files, tokens

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] in ("core", "audit", "dataset", "models", "modules", "trainers", "main.py")
]


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def says(call: ast.Call, keyword: str, value: bool) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


# What runs code, whatever it is given; and the places that may.
RUNS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler", "marshal.load", "marshal.loads"),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "shelve.open"),
    *("pd.read_pickle", "pandas.read_pickle", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "exec", "eval", "compile", "__import__"),
    *("importlib.import_module", "importlib.util.spec_from_file_location", "runpy.run_path", "shutil.unpack_archive"),
}
MAY = {
    ("audit/workers.py", "pickle.loads"),  # what this process itself hands to its workers
    ("audit/ray_start.py", "pickle.loads"),  # what the driver of a run hands to its workers, within a cluster that
    ("audit/ray_worker.py", "pickle.loads"),  # runs its code anyhow
    ("core/registry.py", "eval"),  # annotations of registered functions
    ("models/scikit.py", "importlib.import_module"),  # of a fixed list of libraries
    ("core/plugins.py", "importlib.util.spec_from_file_location"),  # --plugin: a deliberate act
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_runs_code_is_called(path):
    here = str(path.relative_to(ROOT))
    for name, call in calls(path):
        if here == "models/pretrained.py" and name == "loader":
            assert says(call, "trust_remote_code", False)
        last = name.rpartition(".")[2]
        where = f"{here}:{call.lineno}: {name}"
        assert name not in RUNS or (here, name) in MAY, where
        assert last not in ("extractall", "extract") or "tar" not in name, where
        if name == "torch.load":
            assert says(call, "weights_only", True), f"{where} needs weights_only=True"
        if name in ("np.load", "numpy.load"):
            assert says(call, "allow_pickle", False), f"{where} needs allow_pickle=False"
        if last == "from_pretrained":
            passed_on = any(k.arg is None for k in call.keywords)
            assert passed_on or says(call, "trust_remote_code", False), f"{where} needs trust_remote_code=False"
        for keyword in ("allow_pickle", "trust_remote_code"):
            assert not says(call, keyword, True), where


# The calls that open a file of somebody; a module that makes one is either in HOSTILE or reads our own files only.
READS = {
    *("np.load", "np.loadtxt", "np.genfromtxt", "np.fromfile", "torch.load", "loader", "unpickle"),
    *("json.load", "json.loads", "yaml.safe_load", "yaml.compose", "csv.reader", "csv.DictReader", "pickle.loads"),
    *("zipfile.ZipFile", "tarfile.open", "gzip.open", "Image.open", "ImageFolder", "pd.read_csv", "pd.read_parquet"),
    *("pq.read_table", "parquet.read_table", "pyarrow.parquet.read_table", "parquet.ParquetFile", "pq.ParquetFile"),
    *("read_array", "read_arrays", "read_json", "read_state_dict"),
}
OURS = {
    "audit/dp_audit_canaries.py": "files of the run directory",
    "audit/dp_audit_runs.py": "files of the run directory",
    "audit/finished.py": "the config of a run directory, as YAML that is data; its tables by core/tables.py",
    "audit/model_files.py": "weights of the run directory, in safetensors, by their digest",
    "audit/planner.py": "stamps of a run directory, by core/loading.py",
    "audit/ramia_samples.py": "files of the run directory",
    "audit/ray_start.py": "what the driver of a run hands to its workers",
    "audit/ray_worker.py": "what the driver of a run hands to its workers",
    "audit/screening.py": "files of the run directory",
    "audit/signals.py": "files of the run directory",
    "audit/trace_signals.py": "files of the run directory",
    "audit/training.py": "files of the run directory",
    "audit/workers.py": "what this process hands to its workers",
    "core/claims.py": "claims in the run directory",
    "core/rundir.py": "stamps of the run directory",
    "dataset/bundled.py": "a file of an installed package",
    "dataset/masked_lm.py": "safetensors only, trust_remote_code=False: tests/dataset/test_masked_lm.py",
    "dataset/text_hub.py": "Hugging Face datasets, which run no scripts any more",
    "models/adapters.py": "bytes that it is handed, in safetensors",
    "models/pretrained.py": "Hugging Face models: the test of a folder with code, below",
}


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def _saved(save: Callable, *arguments, **more) -> bytes:
    file = io.BytesIO()
    save(file, *arguments, **more)
    return file.getvalue()


def hostile_files(canary: Path) -> Iterator[bytes]:
    """Files that would run code if they were loaded carelessly, in every format that can."""
    bad = Hostile(canary)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps({"data": bad, b"data": bad, "targets": [0]}, protocol)
    for new in (True, False):
        yield _saved(lambda file, new=new: torch.save({"a": bad}, file, _use_new_zipfile_serialization=new))
    objects = np.array([bad], dtype=object)
    yield _saved(np.save, objects, allow_pickle=True)
    yield _saved(np.savez, stamp=objects, x=objects, packed=objects)
    yield f"!!python/object/apply:os.system [\"touch '{canary}'\"]".encode()
    yield f"run: !!python/object/new:os.system [\"touch '{canary}'\"]".encode()
    yield f"x,__import__('os').system(\"touch '{canary}'\")\n1,2\n".encode()
    yield json.dumps({"py/reduce": [{"py/type": "os.system"}, {"py/tuple": [f"touch '{canary}'"]}]}).encode()
    with zipfile.ZipFile(whole := io.BytesIO(), "w") as archive:
        archive.writestr("x.npy", pickle.dumps(bad))
        archive.writestr("archive/data.pkl", pickle.dumps(bad))
    yield whole.getvalue()


def _dataset(name: str, **more: str) -> Callable[[Path], object]:
    return lambda path: DATASETS[name](path.parent, 0, file=Path(path.name), **more)


def _adapter_weights(path: Path) -> None:
    (path.parent / "adapter_config.json").write_text("{}")
    hub_files.fill(torch.nn.Linear(1, 1), path.parent, "a")


HOSTILE: dict[str, list[tuple[str, Callable[[Path], object]]]] = {
    "core/loading.py": [("a.npy", loading.read_array), ("a.npz", loading.read_arrays), ("a.json", loading.read_json)],
    "core/safe_yaml.py": [("a.yaml", config.load)],
    "core/tables.py": [(f"a{suffix}", tables.read_table) for suffix in (".csv", ".tsv", ".parquet", ".npz")],
    "audit/hub_files.py": [
        ("adapter_config.json", lambda path: hub_files.peft_of(path.parent)),
        ("a/adapter_config.json", lambda path: hub_files.base_of(path.parent)),
        ("adapter_model.safetensors", _adapter_weights),
    ],
    "audit/state_dicts.py": [(f"a{suffix}", read_state_dict) for suffix in SUFFIXES],
    "dataset/cifar.py": [("a", lambda path: cifar.read_batch(path, b"labels", 10))],
    "dataset/files.py": [("a.tgz", lambda path: files.read_members(path, {"x": lambda stream: stream.read()}))],
    "dataset/original.py": [("a.pkl", original._records), ("b.pkl", _dataset("original_pickle"))],
    "dataset/purchase_texas.py": [("a.npz", purchase_texas._from_cache)],
    "dataset/tables.py": [
        *((f"a{suffix}", lambda path: _dataset("files", label="x")(path)) for suffix in (".npz", ".csv", ".parquet")),
        ("images/cat/a.png", lambda path: DATASETS["files"](path.parents[2], 0, file=Path("images"))),
    ],
    "dataset/text_files.py": [
        (f"a{suffix}", text_files.read_table) for suffix in (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
    ],
    "dataset/tokens.py": [("a.npy", lambda path: tokens._encoded)],  # a cache of ours: np.load(allow_pickle=False)
}


def test_every_module_that_opens_files_is_known_here():
    found = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for name, _ in calls(path)
        if name in READS or name.rpartition(".")[2] in ("from_pretrained", "load_dataset")
    }
    wrappers = {"audit/from_models.py", "audit/from_signals.py", "audit/from_scores.py", "audit/read_signals.py"}
    wrappers |= {"audit/trace_signals.py"}
    unknown = found - HOSTILE.keys() - OURS.keys() - wrappers  # these read by core/loading.py and core/tables.py alone
    assert not unknown, f"give {sorted(unknown)} a hostile file in HOSTILE, or say in OURS whose files it reads"


@pytest.mark.parametrize("module", HOSTILE)
def test_no_loader_runs_what_a_file_says(tmp_path, module):
    canary = tmp_path / "canary"
    for name, load in HOSTILE[module]:
        for content in hostile_files(canary):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
            try:
                load(tmp_path / name)  # some are honest files of another format, e.g. text that looks like code
            except UserError as error:
                assert str(error)
            assert not canary.exists(), f"{module} ran {content[:60]!r}"


def test_the_canary_would_sing(tmp_path):
    """The files are as hostile as they say: read carelessly, each pickle runs."""
    for number, content in enumerate(list(hostile_files(tmp_path / "canary"))[: pickle.HIGHEST_PROTOCOL + 1]):
        pickle.loads(content)
        assert (tmp_path / "canary").exists(), number
        (tmp_path / "canary").unlink()


def test_a_folder_of_a_model_with_code_of_its_own_does_not_run_it(tmp_path):
    from models import pretrained

    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\nclass C:\n    pass\n"
    (tmp_path / "modeling_x.py").write_text(code)
    auto = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.C", "AutoTokenizer": "modeling_x.C"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["modeling_x.C", None]}}))
    for what in ("config", "tokenizer", "model"):
        with pytest.raises(UserError, match="cannot be read"):
            pretrained.read(what, str(tmp_path))
    assert not canary.exists()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 4}))
    for content in hostile_files(canary):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError):
            pretrained.read("model", str(tmp_path))
        assert not canary.exists()


# --- the original tool's datasets --------------------------------------------------------------------------------


class TabularDataset:
    """What the original tool pickles."""

    def __init__(self, data, targets) -> None:
        self.data, self.targets = data, targets


TabularDataset.__module__ = "dataset.tabular"


@pytest.fixture
def pickled(monkeypatch, tmp_path):
    import sys
    import types

    module = types.ModuleType("dataset.tabular")
    module.TabularDataset = TabularDataset
    monkeypatch.setitem(sys.modules, "dataset.tabular", module)

    def write(name: str, data, targets) -> None:
        (tmp_path / name).write_bytes(pickle.dumps(TabularDataset(data, targets)))

    return write


def test_the_original_tools_tables_are_read(pickled, tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    pickled("p.pkl", x, np.array([0, 1, 2, 1]))
    pickled("p_population.pkl", x[:2], np.array([1.0, 4.0]))
    data = DATASETS["original_pickle"](tmp_path, 0, file=Path("p.pkl"))
    np.testing.assert_array_equal(data.pool.x, x)
    assert data.num_classes == 5 and data.mean == (0.0,) and len(data.population) == 2


def test_the_original_tools_images_are_read_and_normalised_as_it_does(pickled, tmp_path):
    x = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    for name in ("p.pkl", "p_population.pkl"):
        pickled(name, x, [3, 9])
    data = DATASETS["original_pickle"](tmp_path, 0, file=Path("p.pkl"))
    np.testing.assert_array_equal(data.pool.x, x.transpose(0, 3, 1, 2))
    assert data.mean == data.std == (127.5,) * 3 and data.num_classes == 10


@pytest.mark.parametrize(
    ("data", "targets"),
    [
        (np.zeros((2, 3), np.float32), [0]),
        (np.zeros((0, 3), np.float32), []),
        (np.full((2, 3), np.nan, np.float32), [0, 1]),
        (np.zeros((2, 3), np.float32), [0, -1]),
        (np.zeros((2, 3), np.float32), [0, 0.5]),
        (np.zeros((2, 3), np.float32), ["a", "b"]),
        (np.zeros((2, 3), np.float32), [[0], [1, 2]]),
        (np.zeros((2, 3), np.float32), None),
        (np.zeros(2, np.float32), [0, 1]),
        (np.array([{}, {}], dtype=object), [0, 1]),
        ("text", [0, 1]),
    ],
)
def test_other_pickled_datasets_are_one_message(pickled, tmp_path, data, targets):
    pickled("p.pkl", data, targets)
    with pytest.raises(UserError, match=r"p\.pkl"):
        DATASETS["original_pickle"](tmp_path, 0, file=Path("p.pkl"))


def test_a_tar_bomb_is_refused(tmp_path):
    import gzip
    import tarfile

    with gzip.open(tmp_path / "a.tgz", "wb") as out, tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("x")
        info.size = 600 << 20
        out.write(info.tobuf())  # the claim is enough
    del tar
    with pytest.raises(UserError, match="claims to unpack to more than 500 times"):
        files.read_members(tmp_path / "a.tgz", {"x": lambda stream: stream.read()})
