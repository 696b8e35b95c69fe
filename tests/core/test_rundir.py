"""Artefacts are whole or absent, and never of other settings."""

import os
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

    with pytest.raises(OSError, match="disk full"):
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


def test_a_folder_in_use_is_refused_and_freed_by_death(tmp_path):
    hold = "import sys, time; from core import rundir; from pathlib import Path\n"
    hold += "with rundir.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    root = Path(__file__).resolve().parents[2]
    other = subprocess.Popen([sys.executable, "-c", hold, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another run"), rundir.lock(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with rundir.lock(tmp_path):
        pass
