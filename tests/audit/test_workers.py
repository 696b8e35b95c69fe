"""Units in worker processes: the same bytes, and nothing left behind when anyone is killed."""

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from audit import workers
from audit.workers import Lost, places, run_units
from core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
METHODS = pytest.mark.parametrize("method", ["fork", "spawn"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def squares(data, device):
    return functools.partial(square, data)


def square(data, unit):
    logging.getLogger("audit.workers").info("unit %d", unit)
    return unit**2, float(data.sum()), os.getpid()


def raising(device):
    return complain


def complain(unit):
    raise UserError(f"unit {unit} cannot be") if unit == 3 else ZeroDivisionError("mine")


def once_killed(folder, device):
    return functools.partial(kill_once, folder)


def kill_once(folder, unit):
    """Unit 2 ends its process, the first time only."""
    seen = folder / f"{unit}"
    if unit == 2 and not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return unit


def always_killed(device):
    return lambda unit: os.kill(os.getpid(), signal.SIGKILL) if unit == 2 else unit


def test_one_process_does_everything_here():
    done = dict(run_units(range(4), functools.partial(squares, np.ones(3)), CPU, 1))
    assert done == {k: (k**2, 3.0, os.getpid()) for k in range(4)}


@pytest.mark.slow
@METHODS
def test_workers_do_every_unit_once_elsewhere_and_tell_what_they_log(method, monkeypatch, caplog):
    monkeypatch.setattr(workers, "start_method", lambda device: method)
    data = np.arange(100_000, dtype=np.float32)
    with caplog.at_level(logging.INFO, logger="audit"):
        done = list(run_units(range(6), functools.partial(squares, data), CPU, 2))
    assert sorted(unit for unit, _ in done) == list(range(6))
    assert all(answer[:2] == (unit**2, float(data.sum())) for unit, answer in done)
    assert os.getpid() not in {answer[2] for _, answer in done}
    assert sorted(m for m in caplog.messages if m.startswith("unit")) == [f"unit {k}" for k in range(6)]
    assert not multiprocessing.active_children()


def test_short_work_stays_here_and_long_work_does_not(monkeypatch):
    setup = functools.partial(squares, np.ones(3))
    monkeypatch.setattr(workers, "cores", lambda: 2)
    here = {answer[2] for _, answer in run_units(range(4), setup, CPU, "auto")}
    assert here == {os.getpid()}
    away = {answer[2] for _, answer in run_units(range(4), setup, CPU, "auto", at_least=1e6)}
    assert os.getpid() not in away
    monkeypatch.setattr(workers, "PAYS", {"fork": 0.0, "spawn": 0.0})
    mixed = [answer[2] for _, answer in run_units(range(4), setup, CPU, "auto", at_least=-1.0)]
    assert mixed[0] == os.getpid() and os.getpid() not in mixed[1:]


def test_as_many_processes_as_cores_or_as_asked_for(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 5)
    assert places(CPU, "auto") == [CPU] * 5 and places(CPU, 3) == [CPU] * 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert places(CPU, "auto") == [CPU] * 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert places(torch.device("cuda"), "auto") == [torch.device("cuda", k) for k in range(3)]
    assert places(torch.device("cuda"), 2) == [torch.device("cuda", k) for k in range(2)]
    assert places(torch.device("cuda:1"), "auto") == [torch.device("cuda:1")]


def test_what_a_unit_raises_is_raised_here():
    with pytest.raises(UserError, match="unit 3 cannot be"):
        list(run_units([3, 3], raising, CPU, 2))
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*ZeroDivisionError: mine"):
        list(run_units([1, 1], raising, CPU, 2))
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_replaced_and_its_unit_done_again(tmp_path, caplog):
    done = dict(run_units(range(5), functools.partial(once_killed, tmp_path), CPU, 2))
    assert done == {k: k for k in range(5)}
    assert "a worker process was killed (SIGKILL" in caplog.text


def test_a_unit_that_kills_twice_is_given_up_and_the_others_are_done():
    done = dict(run_units(range(5), always_killed, CPU, 2))
    assert isinstance(done.pop(2), Lost)
    assert done == {0: 0, 1: 1, 3: 3, 4: 4}


def test_stopping_early_ends_the_workers():
    units = run_units(range(50), functools.partial(squares, np.ones(3)), CPU, 2)
    next(units)
    assert multiprocessing.active_children()
    units.close()
    assert not multiprocessing.active_children()


ORPHANS = """
import functools, signal, sys, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background ignores it
torch.set_num_threads(1)
from audit.workers import run_units
from core import rundir
from pathlib import Path

def setup(device):
    def work(unit):
        def write(file):
            file.write(b"half")
            file.flush()
            os.write(1, f"{os.getpid()}\\n".encode())  # one write: two workers share the pipe
            time.sleep(600)
        rundir.write_atomic(Path(sys.argv[1]) / f"{unit}", write)
    return work

import os
list(run_units([0, 1], setup, torch.device("cpu"), 2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_parent_and_take_unfinished_files_away(tmp_path, how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ORPHANS, str(tmp_path)]
    parent = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert parent.pid not in pids and len(list(tmp_path.iterdir())) == 2
    parent.send_signal(how)
    parent.wait(120)
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not list(tmp_path.iterdir())


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
