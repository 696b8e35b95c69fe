"""Artefacts are whole or absent, and never of other settings."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core import rundir
from core.errors import StaleArtefact, UserError


def make(path, settings, text=b"x", **facts):
    rundir.make(path, settings, lambda file: file.write(text), **facts)


def test_a_stamped_artefact_is_made_and_others_are_not(tmp_path):
    path = tmp_path / "a.bin"
    assert not rundir.is_made(path, {"epochs": 1})
    make(path, {"epochs": 1}, seconds=2.0)
    assert rundir.is_made(path, {"epochs": 1})
    assert rundir.read_stamp(path)["facts"] == {"seconds": 2.0}


def test_changed_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "a.bin"
    make(path, {"train.epochs": 20, "train.momentum": 0.9})
    with pytest.raises(StaleArtefact) as caught:
        rundir.is_made(path, {"train.epochs": 5})
    message = str(caught.value)
    assert "train.epochs 20, now 5" in message and "train.momentum 0.9, now unset" in message
    assert "choose another run.log_dir, or delete it" in message


def test_without_a_stamp_it_is_unfinished(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"half")
    assert not rundir.is_made(path, {})


def test_a_truncated_artefact_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    make(path, {}, b"0123456789")
    path.write_bytes(b"01234")
    with pytest.raises(UserError, match="5 bytes, was made with 10"):
        rundir.is_made(path, {})


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    rundir.write_text(path, "old")

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(UserError, match=r"a\.txt cannot be written \(disk full\)"):
        rundir.write_atomic(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_remaking_is_unfinished_until_its_new_stamp(tmp_path):
    path = tmp_path / "a.bin"
    make(path, {"n": 1})

    def fail(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rundir.make(path, {"n": 2}, fail)
    assert not rundir.is_made(path, {"n": 1})


def test_tuples_and_paths_survive_the_stamp(tmp_path):
    path = tmp_path / "a.bin"
    make(path, {"hidden": (1, 2), "where": Path("x")})
    assert rundir.is_made(path, {"hidden": (1, 2), "where": Path("x")})


def test_digest_tells_dtype_shape_and_boundaries():
    a = np.arange(6, dtype=np.float32)
    digests = {
        rundir.digest(a),
        rundir.digest(a.reshape(2, 3)),
        rundir.digest(a.astype(np.float64)),
        rundir.digest(a, a),
        rundir.digest("ab", "c"),
        rundir.digest("a", "bc"),
    }
    assert len(digests) == 6
    assert rundir.digest(a) == rundir.digest(a.copy())
    assert rundir.digest(np.asfortranarray(a.reshape(2, 3))) == rundir.digest(a.reshape(2, 3))


HOLD = "import sys, time; from core import rundir; from pathlib import Path\n"
HOLD += "with rundir.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_in_use_is_refused_with_who_holds_it_and_freed_by_death(tmp_path, other, caplog):
    held_by = rf"in use by process {other.pid} on {socket.gethostname()}, since 20\d\d-\d\d-\d\dT\d\d:"
    with pytest.raises(UserError, match=held_by), rundir.lock(tmp_path):
        pass
    litter, kept = tmp_path / "models/.model_0.pt.abc_1234.tmp", tmp_path / ".mine.tmp"
    litter.parent.mkdir()
    for path in (litter, kept):
        path.write_bytes(b"half")
    other.kill()
    other.wait()
    with caplog.at_level("INFO"), rundir.lock(tmp_path):
        assert f"process {other.pid} on" in caplog.text and "did not come to its end" in caplog.text
    assert not litter.exists() and kept.exists()
    caplog.clear()
    with caplog.at_level("INFO"), rundir.lock(tmp_path):
        assert caplog.text == ""


def test_where_nothing_can_be_locked_the_note_decides(tmp_path, other, monkeypatch, caplog):
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(UserError, match=f"in use by process {other.pid}"), rundir.lock(tmp_path):
        pass
    other.kill()
    other.wait()
    with rundir.lock(tmp_path):
        assert "cannot be locked (No locks available): start no second run here" in caplog.text
    (tmp_path / ".lock").write_text('{"pid": 1, "host": "elsewhere", "since": "today"}')
    with pytest.raises(UserError, match="in use by process 1 on elsewhere"), rundir.lock(tmp_path):
        pass


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": "x"}', '{"pid": -99999999999999999999}', "\0"])
def test_whatever_a_free_lock_says_it_is_free(tmp_path, note):
    (tmp_path / ".lock").write_text(note)
    with rundir.lock(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.parametrize(
    ("call", "number", "message"),
    [
        ("mkstemp", errno.EACCES, "choose another run.log_dir"),
        ("mkstemp", errno.EROFS, "choose another run.log_dir"),
        ("fsync", errno.ENOSPC, "free some space; the same command then continues"),
        ("replace", errno.ENOSPC, "free some space"),
        ("replace", errno.EIO, "choose another run.log_dir"),
    ],
)
def test_a_disk_that_refuses_is_named_and_nothing_is_half_written(tmp_path, monkeypatch, call, number, message):
    path = tmp_path / "a.bin"
    make(path, {"n": 1}, b"old")
    before = {file: (tmp_path / file).read_bytes() for file in os.listdir(tmp_path)}

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rundir.tempfile if call == "mkstemp" else rundir.os, call, refuse)
    with pytest.raises(UserError, match=rf"b\.bin cannot be written \({os.strerror(number)}\): .*{message}"):
        make(tmp_path / "b.bin", {})
    assert {file: (tmp_path / file).read_bytes() for file in os.listdir(tmp_path)} == before
    with pytest.raises(UserError, match=r"a\.bin cannot be written"):
        make(path, {"n": 2}, b"new")
    assert path.read_bytes() == b"old" and not rundir.is_made(path, {"n": 2})  # whole, and known to be unfinished


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.bin cannot be written"):
        rundir.write_text(tmp_path / "file/folder/x.bin", "")
    with pytest.raises(UserError, match=r"\.lock cannot be written"), rundir.lock(tmp_path / "file/folder"):
        pass


def test_an_array_that_does_not_fit_on_a_full_disk_is_said_to_need_space():
    """numpy reports a short write without its reason: seen on a file system of 600 kB."""
    error = rundir.unwritable(Path("a.npy"), OSError("1348 requested and 992 written"))
    assert "a.npy cannot be written (No space left on device): free some space" in str(error)


def test_a_setting_that_an_older_version_did_not_have_is_named_even_if_it_is_null(tmp_path):
    make(tmp_path / "a.bin", {"n": 1}, b"old")
    with pytest.raises(StaleArtefact, match=r"was made with m unset, now null: choose another"):
        rundir.is_made(tmp_path / "a.bin", {"n": 1, "m": None})
