"""Claims: one owner each, the dead are superseded, and nobody who was taken for dead writes on."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

from core import claims, rundir
from core.errors import InUse, UserError


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    monkeypatch.setattr(claims, "STALE", 1.0)


def person(folder, name, *, pid=1, host="elsewhere", age=0.0):
    """One who shares `folder`, last seen `age` seconds ago."""
    path = folder / ".claims" / f"{name}{claims.PERSON}"
    rundir.write_text(path, json.dumps({"pid": pid, "host": host, "since": "today", "what": "models 0:2"}))
    os.utime(path, (time.time() - age,) * 2)
    return claims.Claims(path.parent, name, rundir.Hold(path, path.read_text()))


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_one_claims_another_does_not_get_until_it_is_given_back(tmp_path):
    a, b = person(tmp_path, "a"), person(tmp_path, "b")
    assert a.take("model_1") and a.take("model_1") and not b.take("model_1") and b.take("model_10")
    assert b.owner("model_1") == "a" and a.owner("model_10") == "b" and a.owner("model_2") is None
    b.give_back("model_1")  # which is not its own
    assert not b.take("model_1")
    a.give_back("model_1")
    assert b.take("model_1") and not a.take("model_1")


@pytest.mark.parametrize(
    ("owner", "lives"),
    [
        ({"age": 0.0}, True),
        ({"age": 100.0}, True),
        ({"age": 150.0}, False),
        ({"host": socket.gethostname(), "pid": os.getpid()}, True),
        ({"host": socket.gethostname(), "pid": os.getpid(), "age": 150.0}, False),
        ({"host": socket.gethostname(), "pid": 1}, True),
        ({"host": socket.gethostname(), "pid": "dead"}, False),
    ],
)
def test_a_claim_counts_while_its_owner_lives(tmp_path, owner, lives):
    if owner.get("pid") == "dead":
        owner = {**owner, "pid": dead_pid()}
    other = person(tmp_path, "other", **owner)
    own = person(tmp_path, "own")
    (tmp_path / ".claims/model_3.0").write_text("other")
    assert own.take("model_3") is not lives
    assert other.hold.stands() is lives  # one that is taken for dead learns so
    assert (own.owner("model_3") == "own") is not lives


def test_a_claim_whose_maker_did_not_get_to_name_itself_counts_for_a_moment(tmp_path, impatient):
    own = person(tmp_path, "own")
    (tmp_path / ".claims/model_3.0").touch()
    assert not own.take("model_3")
    time.sleep(0.1)
    assert own.take("model_3")


def _race(folder, number, go, won):
    own = claims.Claims(folder / ".claims", f"p{number}", rundir.Hold(folder, ""))
    go.wait()
    for k in range(40):
        if own.take(f"model_{k}"):
            won.put((k, number))
    time.sleep(0.5)  # it lives until all have tried


def test_of_many_who_want_what_a_dead_one_had_one_gets_it(tmp_path):
    context = multiprocessing.get_context("fork")
    person(tmp_path, "dead", age=1000.0)
    for k in range(40):
        (tmp_path / f".claims/model_{k}.0").write_text("dead")
    for number in range(4):
        person(tmp_path, f"p{number}")
    go, won = context.Event(), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, number, go, won)) for number in range(4)]
    for racer in racers:
        racer.start()
    go.set()
    found = [won.get(timeout=30) for _ in range(40)]
    for racer in racers:
        racer.join()
    assert sorted(k for k, _ in found) == list(range(40)) and won.empty()


def test_many_share_a_folder_and_none_has_it_alone_meanwhile(tmp_path):
    with claims.sharing(tmp_path, "models 0:2") as a, claims.sharing(tmp_path, "models 2:4") as b:
        assert a.take("model_0") and not b.take("model_0")
        words = claims.alive(tmp_path)
        assert len(words) == 2 and f"process {os.getpid()} on " in words[0] and "(models " in words[0]
        with pytest.raises(InUse) as caught, rundir.lock(tmp_path):
            pass
        assert "in use by process " in str(caught.value) and str(caught.value).count("(models ") == 2
    assert claims.alive(tmp_path) == []
    with rundir.lock(tmp_path):
        assert not (tmp_path / ".claims").exists()
        with pytest.raises(InUse, match=f"in use by process {os.getpid()} on "), claims.sharing(tmp_path, "x"):
            pass


def test_where_locks_do_not_reach_the_living_are_seen_by_their_claims(tmp_path):
    person(tmp_path, "far", host="elsewhere")
    with pytest.raises(InUse, match="in use by process 1 on elsewhere"), rundir.lock(tmp_path):
        pass
    litter = tmp_path / "models/.model_0.pt.abc_1234.tmp"
    rundir.write_text(litter, "half")
    person(tmp_path, "far", host="elsewhere", age=1000.0)
    with rundir.lock(tmp_path):
        assert not litter.exists() and not (tmp_path / ".claims").exists()


def test_one_who_shares_shows_that_it_lives(tmp_path, impatient):
    with claims.sharing(tmp_path, "models 0:2") as own:
        first = own.hold.path.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while own.hold.path.stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_who_lost_its_hold_makes_nothing(tmp_path):
    try:
        with claims.sharing(tmp_path, "models 0:2") as own:
            rundir.hold_of(own.hold)
            rundir.make(tmp_path / "a", {}, lambda file: file.write(b"x"))
            own.hold.path.unlink()  # as another does who takes it for dead
            with pytest.raises(UserError, match=r"b is missing: .*is no longer held"):
                rundir.make(tmp_path / "b", {}, lambda file: file.write(b"x"))
        rundir.make(tmp_path / "b", {}, lambda file: file.write(b"x"))  # what comes after has its own hold
    finally:
        rundir.hold_of(None)


def test_the_hold_of_a_run_is_what_its_lock_says(tmp_path):
    with rundir.lock(tmp_path):
        hold = rundir.held()
        assert hold.stands() and hold.path.is_absolute()
        (tmp_path / ".lock").write_text("another")
        assert not hold.stands()
    assert not hold.stands() and rundir.held() is None


def test_files_from_elsewhere_are_finished_by_their_stamps(tmp_path, monkeypatch):
    made = tmp_path / "there"
    rundir.make(made / "models/a.bin", {"n": 1}, lambda file: file.write(b"weights"), seconds=1.0)
    files = [(str(path.relative_to(made)), path.read_bytes()) for path in made.rglob("*") if path.is_file()]
    here = tmp_path / "here"
    rundir.make(here / "models/a.bin", {"n": 1}, lambda file: file.write(b"of an old one"))
    order = []
    write = rundir.write_atomic

    def watched(path, content):
        order.append((path.name, rundir.stamp_of(here / "models/a.bin").exists()))
        write(path, content)

    monkeypatch.setattr(rundir, "write_atomic", watched)
    rundir.receive(here, files)
    assert order == [("a.bin", False), ("a.bin.stamp.json", False)]
    assert rundir.is_made(here / "models/a.bin", {"n": 1}) and (here / "models/a.bin").read_bytes() == b"weights"


ABANDON = """
import sys, threading, time
from pathlib import Path
from core import rundir

def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)

threading.Thread(target=rundir.write_atomic, args=(Path(sys.argv[1]) / "a", write), daemon=True).start()
while not list(Path(sys.argv[1]).iterdir()):
    time.sleep(0.01)
rundir.abandon()
assert not list(Path(sys.argv[1]).iterdir())
try:
    rundir.write_text(Path(sys.argv[1]) / "b", "x")
except rundir.InUse:
    print("refused", flush=True)
"""


def test_a_process_that_is_about_to_end_leaves_nothing_half_written(tmp_path):
    root = rundir.__file__.rpartition("/core/")[0]
    done = subprocess.run(
        [sys.executable, "-c", ABANDON, tmp_path], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split()[-1] == "refused", done.stderr
    assert os.listdir(tmp_path) == []


def test_entries_are_written_as_they_would_be_at_once(tmp_path):
    for entries in ({}, {"0": {"a": 1}}, {"0": {"a": [1, 2], "b": 'é"\n'}, "1": {}, "2": None}):
        rundir.write_entries(tmp_path / "a.json", entries.items())
        rundir.write_json(tmp_path / "b.json", entries)
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
