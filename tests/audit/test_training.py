"""Training many models: the same bytes however they are scheduled, and failures that stay with their model."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audit import training
from audit.session import prepare
from core import config as configs
from core import rundir
from core.errors import UserError
from core.registry import TRAINERS
from tests.audit.test_pipeline import TINY

CPU = torch.device("cpu")
CONVNET = """\
run: {{log_dir: {log_dir}, random_seed: 7, num_experiments: 2}}
data: {{dataset: synthetic_images, num_records: 120}}
train: {{model_name: cnn, epochs: 1, batch_size: 16, learning_rate: 0.05, augment: true}}
audit: {{algorithm: [LiRA], num_ref_models: 2, queries: 2}}
"""


@pytest.fixture
def session(tmp_path):
    def make(*changes, text=TINY, folder="run"):
        path = tmp_path / "c.yaml"
        path.write_text(text.format(log_dir=tmp_path / folder))
        return prepare(configs.load(path, list(changes)))

    torch.set_num_threads(1)
    return make


def trained(session) -> dict[str, bytes]:
    training.train_missing(session, CPU)
    return files(session)


def files(session) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((session.folder / "models").glob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.parametrize("text", [TINY, CONVNET], ids=["perceptron", "convnet"])
def test_models_and_signals_are_the_same_bytes_for_any_number_of_workers_and_any_stack(session, text):
    from audit.signals import compute_missing

    seen = []
    for workers, stack in [(1, "auto"), (1, 1), (2, 2), (3, "auto")]:
        here = session(f"run.workers={workers}", f"train.stack={stack}", text=text, folder=f"{workers}{stack}")
        models = trained(here)
        compute_missing(here, CPU)
        signals = {p.relative_to(here.folder): p.read_bytes() for p in here.folder.glob("signals/**/*.npy")}
        seen.append((models, signals))
    assert len(seen[0][0]) >= 5 and len(seen[0][1]) >= 10
    assert all(other == seen[0] for other in seen[1:])


def test_the_stack_is_in_no_stamp_and_the_arithmetic_is_recorded(session):
    before = trained(session())
    assert not training.missing_models(session("train.stack=1", "run.workers=2"))
    assert (
        training.facts(session(), 0)["precision"] == "float32" and training.facts(session(), 0)["method"] == "products"
    )
    assert trained(session("train.stack=1")) == before


def test_a_stack_is_resumed_with_the_models_that_are_missing(session):
    before = trained(session())
    assert len(training.stacks_of(session("run.workers=1"), [0, 2, 3])) == 1
    for name in ("model_3.safetensors", "model_4.safetensors.stamp.json"):
        (session().folder / "models" / name).unlink()
    assert training.missing_models(session()) == [3, 4]
    assert trained(session()) == before


def failing(monkeypatch, session, fails):
    """The trainer sgd, which raises `fails(models of the stack, settings)` if that is something."""
    train = TRAINERS["sgd"]
    planned = session.plan.member

    @functools.wraps(train)
    def spy(models, data, members, streams, **settings):
        numbers = [int(np.flatnonzero((planned == member).all(axis=1))[0]) for member in members]
        if error := fails(numbers, settings):
            raise error
        return train(models, data, members, streams, **settings)

    monkeypatch.setitem(TRAINERS, "sgd", spy)


@pytest.mark.parametrize("workers", [1, 2])
def test_models_that_diverge_are_reported_by_number_and_the_others_are_kept(session, monkeypatch, workers):
    whole = trained(session(folder="whole"))
    here = session(f"run.workers={workers}")
    with monkeypatch.context() as patch:
        failing(patch, here, lambda numbers, _: UserError("training diverged") if {3, 5} & set(numbers) else None)
        with pytest.raises(UserError, match=r"2 of 5 models could not be trained.*models 3, 5: training diverged"):
            training.train_missing(here, CPU)
    kept = {
        name: content for name, content in whole.items() if name not in ("model_3.safetensors", "model_5.safetensors")
    }
    assert files(here) == kept
    assert list(json.loads((here.folder / "models/models_metadata.json").read_text())) == ["0", "2", "4"]
    assert trained(here) == whole


def out_of_memory(numbers, settings):
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def test_a_stack_that_does_not_fit_is_trained_one_by_one_to_the_same_bytes(session, monkeypatch):
    whole = trained(session(folder="whole"))
    here = session("run.workers=1")
    failing(monkeypatch, here, lambda numbers, _: out_of_memory(numbers, _) if len(numbers) > 1 else None)
    assert trained(here) == whole


def test_a_model_that_does_not_fit_is_reported_or_if_so_asked_trained_with_half_the_batch(session, monkeypatch):
    here = session("run.workers=1")
    fails = lambda numbers, settings: (  # noqa: E731
        out_of_memory(numbers, settings) if 4 in numbers and settings["batch_size"] > 16 else None
    )
    failing(monkeypatch, here, fails)
    with pytest.raises(UserError, match=r"models 4: out of memory: lower train\.batch_size"):
        training.train_missing(here, CPU)
    asked = session("run.workers=1", "train.auto_find_batch_size=true")
    assert len(trained(asked)) == 5
    assert training.facts(asked, 4)["batch_size"] == 16 and "batch_size" not in training.facts(asked, 3)
    assert not training.missing_models(here)


def test_a_mistake_of_ours_is_not_taken_for_a_failed_model(session, monkeypatch):
    here = session("run.workers=1")
    failing(monkeypatch, here, lambda *_: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        training.train_missing(here, CPU)


def test_stacks_keep_every_worker_busy_and_are_no_wider_than_the_trainer_says(session):
    for workers, stack, count, sizes in [(2, "auto", 18, [9, 9]), (1, 4, 10, [4, 3, 3]), (3, 2, 7, [2, 1, 1, 1, 1, 1])]:
        here = session(f"run.workers={workers}", f"train.stack={stack}")
        stacks = training.stacks_of(here, list(range(count)))
        assert [len(part) for part in stacks] == sizes
        assert [model for part in stacks for model in part] == list(range(count))


def test_the_metadata_name_the_settings_and_the_weights(session):
    here = session()
    trained(here)
    entry = json.loads((here.folder / "models/models_metadata.json").read_text())["0"]
    assert entry["sha256"] == rundir.digest(Path(here.folder / "models/model_0.safetensors").read_bytes())


def asked(session):
    from audit.signals import compute_missing

    compute_missing(session, CPU)
    return {p.relative_to(session.folder): p.read_bytes() for p in session.folder.glob("signals/**/*.npy")}


def test_bfloat16_signals_are_other_files_for_the_same_models_and_say_how_they_were_asked(session):
    trained(session())
    exact = asked(session())
    near = asked(session("audit.precision=bfloat16"))
    added = set(near) - set(exact)
    assert len(added) == len(exact) and all(near[name] == exact[name] for name in exact)
    for name in added:
        stamp = rundir.read_stamp(session().folder / name)
        assert stamp["facts"]["precision"] == "bfloat16" and 0 < stamp["facts"]["bfloat16 apart, of 1 + |s|"] <= 0.1
    assert not {near[name] for name in added} & set(exact.values())
    assert asked(session("audit.precision=bfloat16", "run.workers=2")) == near


def test_a_model_whose_log_odds_bfloat16_moves_is_asked_in_float32_and_the_log_says_so(session, monkeypatch, caplog):
    from trainers import evaluate

    trained(session())
    exact = asked(session())
    monkeypatch.setattr(evaluate, "TOLERANCE", 0.0)
    both = asked(session("audit.precision=bfloat16"))
    assert sorted(both.values()) == sorted([*exact.values(), *exact.values()])
    assert caplog.text.count("more than 0: asked in float32") == 5


def test_what_a_process_frees_is_its_own(monkeypatch):
    """A step's activations, freed and taken again, cost no new pages: in a process of its own, where it is set."""
    import subprocess
    import sys

    code = """
import resource, torch
from audit.workers import keep_memory
keep_memory()
def step():
    kept = [torch.ones(1 << 20) for _ in range(20)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc only")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2000  # of the 20,480 pages of a step
