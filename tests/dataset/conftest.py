"""Archives as their authors make them, only smaller, and a server to fetch them from."""

import hashlib
import http.server
import io
import pickle
import re
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def make_tgz(path: Path, members: Mapping[str, bytes]) -> Path:
    """A .tar.gz of files by name."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def python2_batch(shape: tuple[int, int], content: bytes, labels_key: bytes, labels: list[int]) -> bytes:
    """The opcodes of a CIFAR batch: protocol 2, {data: ndarray, labels: list of int, batch_label: str}."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value  # BINSTRING: a str of Python 2

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"  # dtype('u1', 0, 1)
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    array += b"(" + number(1) + number(shape[0]) + number(shape[1]) + b"\x86" + dtype + b"\x89" + text(content) + b"tb"
    numbers = b"](" + b"".join(map(number, labels)) + b"e"
    pairs = text(b"batch_label") + text(b"a batch") + text(labels_key) + numbers + text(b"data") + array
    return b"\x80\x02}(" + pairs + b"u."


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (__import__("os").system, (f"touch {self.marker}",))


def hostile_pickle(marker: Path) -> bytes:
    return pickle.dumps({b"data": Hostile(marker)})


@dataclass
class Server:
    """Serves `files` on this machine, and remembers what was asked."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)
    resumable: bool = True
    cut: int | None = None  # hang up after that many bytes of a body

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            served.ranges.append(asked)
            content = served.files.get(self.path[1:])
            if content is None:
                self.send_error(404)
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and served.resumable else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: served.cut])

        def log_message(self, *_) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        served.port = httpd.server_address[1]
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield served
        httpd.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nobody listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
