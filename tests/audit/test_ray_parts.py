"""What is decided about units and workers of a cluster, without one."""

import logging
from collections import deque

import pytest

from audit import on_ray, ray_board
from audit.on_ray import TRIES, fits
from audit.ray_board import Board
from audit.session import prepare
from core import config, rundir
from core.errors import UserError
from core.log import ROOTS

TEXT = """
run: {log_dir: x, engine: ray}
data: {dataset: digits}
train: {model_name: mlp, learning_rate: 0.1, epochs: 1}
audit: {algorithm: LOSS}
"""


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "count"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 1.0}, 0.1, 0, 10),
        ({"CPU": 0.0}, 1, 0, 0),
        ({}, 1, 0, 0),
        ({"CPU": 8.0}, 1, 1, 0),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 1, 2),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.4, 4),  # two on each: none has parts of two
        ({"CPU": 4.0, "GPU": 2.0}, 1, 0.25, 4),
        ({"CPU": 8.0, "GPU": 5.0}, 1, 2, 2),
    ],
)
def test_as_many_workers_fit_as_a_node_has_room_for(resources, cpus, gpus, count):
    assert fits(resources, cpus, gpus) == count


def stage(units=3):
    found = object.__new__(on_ray._Stage)
    found.todo, found.tries = deque(range(units)), on_ray.Counter()
    found.avoid = on_ray.defaultdict(set)
    return found


def test_a_unit_that_failed_is_done_next_and_elsewhere():
    here = stage()
    assert here.next_for("a", {"a", "b"}) == 0
    assert here.again(0, "a")
    assert here.next_for("a", {"a", "b"}) == 1  # unit 0 waits for b
    assert here.next_for("b", {"a", "b"}) == 0
    assert here.again(0, "b")
    assert here.next_for("a", {"a", "b"}) == 0  # it failed on both
    assert here.next_for("c", {"c"}) == 2 and here.next_for("c", {"c"}) is None


def test_where_there_is_one_node_a_unit_is_tried_there_again_a_bounded_number_of_times():
    here = stage(1)
    tried = 0
    while here.todo and tried <= 2 * TRIES:
        assert here.next_for("a", {"a"}) == 0
        tried += 1
        here.again(0, "a")
    assert tried == TRIES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["run.ray.address=ray://head:10001"], r"run\.ray\.address: ray://head:10001: Ray Client is not supported"),
        (["run.ray.gpus_per_unit=1.5"], r"run\.ray\.gpus_per_unit: 1\.5: Ray knows parts of one GPU, or whole ones"),
        (["train.device=cuda:1"], r"train\.device: cuda:1: Ray chooses the GPU"),
        (
            ["audit.device=cuda", "run.ray.gpus_per_unit=0"],
            r"audit\.device: cuda needs run\.ray\.gpus_per_unit",
        ),
        (["no ray"], r"run\.engine: Ray is not installed: pip install -r requirements-ray\.txt"),
    ],
)
def test_what_cannot_be_is_said_at_its_line(tmp_path, monkeypatch, settings, message):
    file = tmp_path / "x.yaml"
    file.write_text(TEXT)
    there = settings != ["no ray"]
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: object() if there else None)
    on_ray.check(config.load(file)) if there else None
    with pytest.raises(UserError, match=message):
        on_ray.check(config.load(file, settings if there else []))


def test_a_node_of_a_cluster_may_have_what_this_machine_has_not(tmp_path):
    import torch

    from audit.session import device_of

    file = tmp_path / "x.yaml"
    file.write_text(TEXT)
    asked = config.load(file, ["train.device=cuda"])
    if not torch.cuda.is_available():
        assert device_of(asked, "train").type != "cuda"
        with pytest.raises(UserError, match="cannot be used on this machine"):
            device_of(config.load(file, ["train.device=cuda", "run.engine=local"]), "train")


def test_the_board_counts_by_node(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(ray_board.time, "monotonic", lambda: clock[0])
    board = Board("training models", 4)
    board.started("a"), board.started("b"), board.started("b")
    assert board.line() == "training models: 0 of 4 done, 3 running; a 0 done 1 running; b 0 done 2 running"
    clock[0] = 10.0
    board.ended("b", 10.0, True), board.ended("a", 4.0, False)
    of_nodes = "a 0 done 0 running 1 failed; b 1 done 1 running"
    assert board.line() == f"training models: 1 of 4 done, 1 running, 1 failed, ETA 0:00:30; {of_nodes}"
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(board.table())
    console.file.close()
    rows = [line.split() for line in console.export_text().splitlines()]
    assert rows == [
        ["node", "running", "done", "failed", "s", "per", "unit"],
        ["a", "0", "0", "1", "-"],
        ["b", "1", "1", "0", "10.0"],
    ]


def test_a_line_now_and_then_where_nobody_watches(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(ray_board.time, "monotonic", lambda: clock[0])
    board = Board("training models", 2)
    with caplog.at_level("INFO"):
        for clock[0] in (1.0, 14.9, 15.1, 20.0, 29.9, 30.2):
            board.say()
        board.started("a"), board.ended("a", 1.0, True), board.started("a"), board.ended("a", 1.0, True)
        clock[0] = 60.0
        board.say()  # all are done: the stage says so by itself
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The actor died because its node has died. Node Id: ab12", "node n died"),
        ("The actor died unexpectedly before finishing this task.\nnode_id: ab", "a worker process on n was killed"),
        ("Task was killed due to the node running low on memory.\n", "its memory ran low: lower run.ray.max_in_flight"),
        ("x\nModuleNotFoundError: No module named 'torch'\n", "ModuleNotFoundError: No module named 'torch'"),
    ],
)
def test_what_ray_says_of_a_lost_worker_is_said_in_a_line(text, said):
    assert said in on_ray._why(Exception(text), "n") and "\n" not in on_ray._why(Exception(text), "n")


def test_units_are_named_by_their_models():
    from audit.signals import Wanted
    from core.types import LOG_ODDS

    assert on_ray._named([3, 4]) == "models 3, 4" and on_ray._named([3]) == "model 3"
    assert on_ray._named([Wanted(7, where, LOG_ODDS) for where in ("points", "population")]) == "model 7"


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker, made in this process, and what it does with a unit."""
    import torch

    from audit import ray_worker

    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in ROOTS}
    threads, run = torch.get_num_threads(), tmp_path / "run"
    (run / "models").mkdir(parents=True)
    (run / "token").write_text("mine")
    monkeypatch.setattr(rundir, "_abandoned", False)  # what `end` says holds for the process
    rundir.write_text(run / ".lock", "held")

    def made(*, shares):
        token = (str(run / "token"), "mine" if shares else "another's")
        hold = rundir.Hold(run / ".lock", "held")
        order = ray_worker.Order(1, 0.0, (), dict.fromkeys(ROOTS, logging.INFO), hold, token)
        return ray_worker.Worker(order), run

    yield made
    torch.set_num_threads(threads)
    rundir.hold_of(None)
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, True
        logger.setLevel(level)


class Shipment:
    """What reaches a worker, without an object store."""

    def __init__(self, file, setup):
        self.what = prepare(config.load(file)), setup, "cpu"

    def unpacked(self):
        return self.what


def copies(session, device):
    """Units that write a file, which holds what they read; unit 13 is refused, and 14 a fault of ours."""

    def work(unit):
        if unit == 13:
            raise UserError("13 is refused")
        if unit == 14:
            raise ZeroDivisionError("a fault")
        logging.getLogger("audit.x").info("unit %d", unit)
        read = session.folder / "models/read.txt"
        text = f"{unit} {read.read_text() if read.exists() else ''}"
        rundir.make(session.folder / f"models/{unit}.txt", {"n": unit}, lambda file: file.write(text.encode()))
        return unit * 2

    return work


@pytest.fixture
def shipment(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(TEXT.replace("log_dir: x", f"log_dir: {tmp_path / 'run'}"))
    return Shipment(file, copies)


def test_a_worker_that_sees_the_run_directory_writes_there_while_its_driver_holds_it(worker, shipment):
    own, run = worker(shares=True)
    answer = own.do(1, shipment, 3, [])
    assert (answer.kind, answer.value, answer.files) == ("done", 6, [])
    assert [record.getMessage() for record in answer.records] == ["unit 3"]
    assert rundir.is_made(run / "models/3.txt", {"n": 3})
    rundir.write_text(run / ".lock", "held by another driver")
    answer = own.do(1, shipment, 4, [])
    assert answer.kind == "refused" and "is no longer held" in str(answer.value)
    assert not (run / "models/4.txt").exists()
    own.end()


def test_a_worker_that_does_not_see_it_sends_files_back_and_keeps_none(worker, shipment):
    own, run = worker(shares=False)
    answer = own.do(1, shipment, 3, [("models/read.txt", b"what was sent")])
    assert answer.kind == "done" and dict(answer.files)["models/3.txt"] == b"3 what was sent"
    assert sorted(dict(answer.files)) == ["models/3.txt", "models/3.txt.stamp.json"]
    again = own.do(1, shipment, 5, [])
    assert dict(again.files)["models/5.txt"] == b"5 "  # nothing was left from before
    assert not list((run / "models").iterdir())
    rundir.receive(run, answer.files)
    assert rundir.is_made(run / "models/3.txt", {"n": 3})
    folder = own.folder
    own.end()
    assert not folder.exists()


def test_what_a_unit_raises_is_an_answer(worker, shipment):
    own, _ = worker(shares=False)
    assert str(own.do(1, shipment, 13, []).value) == "13 is refused" and own.do(1, shipment, 13, []).kind == "refused"
    fault = own.do(1, shipment, 14, [])
    assert fault.kind == "failed" and fault.value.strip().endswith("ZeroDivisionError: a fault")
    assert own.do(1, shipment, 2, []).value == 4
    own.end()


def test_a_stage_is_set_up_once_for_all_its_units(worker, shipment):
    own, _ = worker(shares=False)
    session, setup, device = shipment.what
    calls = []
    shipment.what = (session, lambda session, device: calls.append(1) or setup(session, device), device)
    for stage, unit in ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3)):
        assert own.do(stage, shipment, unit, []).kind == "done"
    assert len(calls) == 2
    own.end()
