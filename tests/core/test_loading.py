"""Files from others: what they claim is checked, and nothing in them runs."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from core import loading
from core.errors import UserError


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (os.system, (f"touch '{self.canary}'",))


def header(shape: str, dtype: str = "<f4") -> bytes:
    """A .npy file that promises `shape` and holds 16 bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(16)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array([True, False]),
        np.array(["a", "bc"]),
        np.array(3.0),
        np.zeros((0, 4)),
        np.arange(3, dtype=">f8"),
    ],
)
def test_arrays_come_back_as_they_were(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", first=array, second=array)
    for found in (loading.read_array(tmp_path / "a.npy"), loading.read_arrays(tmp_path / "a.npz")["second"]):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a numpy array"),
        (b"\x93NUMPY\x09\x00", "format"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "is not a numpy array"),
        (header("(4,)")[:-1], "has 143 bytes|ends after 15 of 16"),
        (header("(10**12,)"), "is not a numpy array"),
        (header("(1000000000000,)"), "it was cut short"),
        (header("(99999999999, 99999999999)"), "it was cut short"),
        (header("(-1,)"), "it was cut short"),
        (header("(2,)", "|O"), "a pickle, hence a program"),
        (header("(2,)", "<M8[s]"), "refused"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "is not a numpy array"),
        (pickle.dumps([1]), "is not a numpy array"),
    ],
)
def test_what_is_no_honest_array_is_named(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.npy.*({message})"):
        loading.read_array(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(UserError, match=r"a\.npz: x"):
        loading.read_arrays(tmp_path / "a.npz")


def test_a_truncated_archive_is_damaged_at_every_length(tmp_path):
    whole = io.BytesIO()
    np.savez_compressed(whole, x=np.arange(50), y=np.ones(3))
    whole = whole.getvalue()
    for length in range(0, len(whole), 7):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.npz"):
            loading.read_arrays(tmp_path / "a.npz")


def test_a_zip_bomb_is_refused_before_it_goes_off(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 20
    with pytest.raises(UserError, match="claim to unpack to 314572800"):
        loading.read_arrays(tmp_path / "a.npz")


def test_arrays_of_objects_never_run(tmp_path):
    hostile = np.array([Hostile(tmp_path / "canary")], dtype=object)
    np.save(tmp_path / "a.npy", hostile, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=hostile)
    for read in (loading.read_array, loading.read_arrays):
        with pytest.raises(UserError, match="pickle, hence a program"):
            read(tmp_path / ("a.npy" if read is loading.read_array else "a.npz"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["missing.npy", "."])
def test_files_that_cannot_be_opened_are_named(tmp_path, name):
    for read in (loading.read_array, loading.read_arrays, loading.read_json, loading.read_bytes):
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path / name)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b""])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not"):
        loading.read_json(tmp_path / "a.json")


def test_json_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"α": [1, None]}))
    assert loading.read_json(tmp_path / "a.json") == {"α": [1, None]}


PLAIN = {"collections.OrderedDict": OrderedDict}


def test_a_pickle_of_plain_values_is_read():
    value = OrderedDict(a=[1, 2.5, None, True], b={"c": ("d", b"e")})
    assert loading.unpickle(pickle.dumps(value), PLAIN, "it") == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_does_not(tmp_path, protocol):
    with pytest.raises(UserError, match=r"^it is refused: it asks for (posix|nt)\.system"):
        loading.unpickle(pickle.dumps(Hostile(tmp_path / "canary"), protocol), PLAIN, "it")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"ccollections\nOrderedDict.fromkeys\n.",
        b"\x80\x02\x82\x01.",  # an extension of copyreg
        b"Pelsewhere\n.",
        b"ccollections\nOrderedDict\n}S'x'\nI1\nsb.",  # sets an attribute of an admitted class
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.",  # promises 2^56 bytes
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo of 2^32 entries
        b"]" + b"2" * 10 + b"." * 3 + b"\x00",
        b".",
        b"",
    ],
)
def test_hostile_opcodes_are_refused(content):
    if content.startswith(b"]"):
        assert loading.unpickle(content, PLAIN, "it") == []  # what follows the end is never read
        return
    with pytest.raises(UserError, match=r"^it (is refused|cannot be read)"):
        loading.unpickle(content, PLAIN, "it")


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "i1", "?", "<u2"])
def test_pickled_arrays_are_rebuilt_without_numpys_unpickler(dtype):
    for array in (
        np.arange(6).astype(dtype).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(3, 2).astype(dtype)),
    ):
        inert = loading.unpickle(pickle.dumps(array), dict.fromkeys(loading.ARRAYS, loading.Inert), "it")
        np.testing.assert_array_equal(loading.unpickled_array(inert, "it"), array)


@pytest.mark.parametrize("value", [np.array([{}], dtype=object), np.array(["a"]), np.zeros(2, "f4,i4"), 7, None])
def test_other_pickled_arrays_are_refused(value):
    inert = loading.unpickle(pickle.dumps(value), dict.fromkeys(loading.ARRAYS, loading.Inert), "it")
    with pytest.raises(UserError, match=r"^it is not an array of numbers"):
        loading.unpickled_array(inert, "it")


def test_a_file_named_by_a_file_is_looked_for_beside_it(tmp_path):
    folder, other = tmp_path / "models", tmp_path / "secret.pkl"
    folder.mkdir()
    other.write_bytes(b"x")
    (folder / "model_0.pkl").write_bytes(b"x")
    for written in ("model_0.pkl", "demo/models/model_0.pkl", "/anywhere/model_0.pkl", "C:\\demo\\model_0.pkl"):
        assert loading.inside(folder, written, "models_metadata.json") == folder / "model_0.pkl"
    for written in ("../secret.pkl", str(other), "", "..", "/", "a\0b", "x" * 5000):
        with pytest.raises(UserError, match=r"^models_metadata\.json"):
            loading.inside(folder, written, "models_metadata.json")
    assert loading.inside(folder, str(other), "x", anywhere=True) == other
    (folder / "model_1.pkl").symlink_to(other)
    with pytest.raises(UserError, match="a link out of its folder"):
        loading.inside(folder, "model_1.pkl", "x")
