"""How a worker of a Ray cluster gets the code of this run, wherever it is: its own copy, if it is the same."""

from __future__ import annotations

from pathlib import Path

from core.log import ROOTS

ROOT = Path(__file__).resolve().parent.parent


def sources() -> dict[str, bytes]:
    """The files of our own packages, by their names."""
    folders = [ROOT / name for name in ROOTS if (ROOT / name).is_dir()]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in paths if "__pycache__" not in path.parts}


def worker_class() -> type:
    """The class of the actors. Defined in here, it travels as a value: nodes need not have this code."""

    class Unit:
        def __init__(self, root, digests, code, plugin_files, order):
            import hashlib
            import os
            import pickle
            import sys
            import tempfile
            import zlib

            import ray

            def read(path):
                try:
                    with open(path, "rb") as file:
                        return file.read()
                except OSError:
                    return b""

            def write(folder, name, content):
                path = os.path.join(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(content)
                return path

            own = {name: hashlib.sha256(read(os.path.join(root, name))).hexdigest() for name in digests}
            self.copies = tempfile.mkdtemp(prefix="privacy-meter-code-")
            if own != digests:
                root = self.copies
                for name, content in pickle.loads(zlib.decompress(ray.get(code[0]))).items():
                    write(root, name, content)
            sys.path.insert(0, root)
            sys.dont_write_bytecode = True
            files = [
                path if read(path) == content else write(self.copies, f"plugins{k}/{os.path.basename(path)}", content)
                for k, (path, content) in enumerate(plugin_files)
            ]
            from dataclasses import replace

            from audit.ray_worker import Worker

            self.worker = Worker(replace(pickle.loads(order), plugin_files=tuple(files)))

        def place(self):
            import ray

            return self.worker.place(), ray.get_runtime_context().get_node_id()

        def do(self, *arguments):
            return self.worker.do(*arguments)

        def end(self):
            import shutil

            self.worker.end()
            shutil.rmtree(self.copies, ignore_errors=True)

    return Unit
