import gzip
import io
import logging
import tarfile
import time

import pytest

from core.errors import UserError
from dataset.files import fetch, read_members
from tests.dataset.conftest import Server, make_tgz, md5

CONTENT = bytes(range(256)) * 5000  # 1.28 MB: more than one block


@pytest.fixture
def published(server: Server) -> Server:
    server.files["a.tgz"] = CONTENT
    return server


def test_a_download_arrives_whole_under_its_name(published, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = fetch(published.url("a.tgz"), tmp_path / "new" / "a.tgz", md5=md5(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["a.tgz"]
    assert "downloading a.tgz (1.3 MB)" in caplog.text and "1.3 MB of 1.3 MB" in caplog.text


def test_a_file_that_is_there_is_checked_and_not_fetched(published, tmp_path):
    (tmp_path / "a.tgz").write_bytes(CONTENT)
    fetch(published.url("a.tgz"), tmp_path / "a.tgz", md5=md5(CONTENT))
    (tmp_path / "a.tgz").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.tgz has MD5 .* Delete it.*quickstart"):
        fetch(published.url("a.tgz"), tmp_path / "a.tgz", md5=md5(CONTENT))
    assert (tmp_path / "a.tgz").read_bytes() == b"mine"
    assert published.ranges == []


def test_a_wrong_digest_is_refused_and_leaves_nothing(published, tmp_path):
    with pytest.raises(UserError, match=r"what arrived has MD5"):
        fetch(published.url("a.tgz"), tmp_path / "a.tgz", md5=md5(b"another file"))
    assert list(tmp_path.iterdir()) == []


def test_without_a_digest_gzip_vouches_for_what_arrived(server, tmp_path):
    whole = gzip.compress(CONTENT)
    server.files = {"whole.tgz": whole, "cut.tgz": whole[:-9], "page.tgz": b"<html>log in first</html>"}
    assert fetch(server.url("whole.tgz"), tmp_path / "whole.tgz").read_bytes() == whole
    for name in ("cut.tgz", "page.tgz"):
        with pytest.raises(UserError, match="not a whole gzip file"):
            fetch(server.url(name), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["whole.tgz"]


def test_an_interrupted_download_is_said_to_be_and_goes_on_where_it_stopped(published, tmp_path):
    path = tmp_path / "a.tgz"
    published.cut = 700_000
    with pytest.raises(UserError, match=r"ended after 700,000 of 1,280,000 bytes"):
        fetch(published.url("a.tgz"), path, md5=md5(CONTENT))
    assert not path.exists()
    published.cut = None
    assert fetch(published.url("a.tgz"), path, md5=md5(CONTENT)).read_bytes() == CONTENT
    assert published.ranges == [None, "bytes=700000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize(
    "part", [b"x" * 1000, b"x" * 2_000_000], ids=["another file's beginning", "longer than the file"]
)
@pytest.mark.parametrize("resumable", [True, False])
def test_what_cannot_be_continued_is_started_again(published, tmp_path, part, resumable):
    published.resumable = resumable
    (tmp_path / "a.tgz.part").write_bytes(part)
    assert fetch(published.url("a.tgz"), tmp_path / "a.tgz", md5=md5(CONTENT)).read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


def test_what_no_digest_can_vouch_for_is_never_continued(server, tmp_path):
    server.files["a.tgz"] = gzip.compress(CONTENT)
    (tmp_path / "a.tgz.part").write_bytes(b"something else")
    fetch(server.url("a.tgz"), tmp_path / "a.tgz")
    assert server.ranges == [None]


def test_no_network_ends_quickly_in_a_message_that_helps(closed_port, tmp_path):
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        fetch(f"http://127.0.0.1:{closed_port}/x/dataset_purchase.tgz", tmp_path / "data" / "dataset_purchase.tgz")
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "cannot download dataset_purchase.tgz" in message and "refused" in message
    assert f"Put the file at {tmp_path / 'data' / 'dataset_purchase.tgz'}" in message
    assert "python main.py --cf configs/quickstart.yaml" in message
    assert caught.value.__suppress_context__


def test_a_server_that_stays_silent_is_given_up(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="timed out"):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/a.tgz", tmp_path / "a.tgz", timeout=0.2)


def test_a_missing_page_is_named_by_its_code(server, tmp_path):
    with pytest.raises(UserError, match="HTTP 404"):
        fetch(server.url("gone.tgz"), tmp_path / "gone.tgz")
    assert list(tmp_path.iterdir()) == []


def test_members_are_read_by_name_wherever_the_archive_was_made(tmp_path):
    archive = make_tgz(tmp_path / "a.tgz", {"./top/x": b"12", "top/y": b"345", "other": b""})
    assert read_members(archive, {"top/y": lambda s: s.read(), "top/x": lambda s: s.read()}) == {
        "top/x": b"12",
        "top/y": b"345",
    }
    with pytest.raises(UserError, match=r"does not contain top/z"):
        read_members(archive, {"top/z": lambda s: s.read()})


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path, name):
    archive = make_tgz(tmp_path / "a.tgz", {"x": b"1", name: b"2"})
    with pytest.raises(UserError, match=r"refused: .*evil"):
        read_members(archive, {"x": lambda s: s.read()})


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_links_or_devices_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match="refused: 'x'"):
        read_members(tmp_path / "a.tgz", {"x": lambda s: s.read()})


def test_a_damaged_archive_says_so(tmp_path):
    import random

    noise = random.Random(0).randbytes(100_000)
    whole = make_tgz(tmp_path / "a.tgz", {"x": noise}).read_bytes()
    (tmp_path / "a.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.tgz is damaged"):
        read_members(tmp_path / "a.tgz", {"x": lambda s: s.read()})
    (tmp_path / "a.tgz").write_bytes(io.BytesIO(b"no archive").read())
    with pytest.raises(UserError, match=r"a\.tgz is damaged"):
        read_members(tmp_path / "a.tgz", {"x": lambda s: s.read()})
