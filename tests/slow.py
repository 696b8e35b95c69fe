"""Runs whose models take their time, as commands of their own: for tests that kill them, or start several."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from audit.plan import make_plan
from core import rundir
from tests import kill

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = Path(__file__).parent / "slow_plugin.py"
CONFIG = """
run: {log_dir: runs/x, random_seed: 7, num_experiments: 1, workers: 1}
data: {dataset: digits}
train: {model_name: {name: mlp, hidden: [16]}, trainer: slow}
audit: {algorithm: [LOSS, LiRA], num_ref_models: 8}
"""
MODELS = 17  # a target and 8 pairs of references
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
RUN = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import main; "
END = "sys.exit(main.main(sys.argv[1:]))"


class Command:
    """`python main.py` on a config of the test's own, in a process group of its own."""

    def __init__(self, folder, *settings, code=RUN, name="output"):
        self.folder, self.log_dir, self.told = folder, folder / "run", folder / f"{name}.txt"
        self.settings, self.code, self.process = settings, code, None
        shutil.copy(PLUGIN, folder)
        (folder / "x.yaml").write_text(CONFIG)

    def start(self, *settings):
        words = ["--cf", "x.yaml", "--plugin", PLUGIN.name, "--set", f"run.log_dir={self.log_dir}"]
        with open(self.told, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.code + END, *words, *self.settings, *settings],
                cwd=self.folder,
                env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def output(self):
        return self.told.read_text()

    def gate(self):
        """From here on models wait for tickets, until the gate is opened."""
        (self.folder / "gate").touch()

    def let_pass(self, count):
        """Let so many models be trained, and wait until they are."""
        there = len(self.finished())
        for k in range(count):
            (self.folder / f"ticket_{there + k}").touch()
        self.until(lambda: len(self.finished()) == there + count)

    def open(self):
        (self.folder / "gate").unlink()

    def until(self, condition, seconds=300):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def end(self):
        assert self.process.wait(300) == 0, self.output()

    def finished(self):
        return kill.finished(self.log_dir)

    def begun(self):
        """How often the training of each model began, by its members."""
        path = self.folder / "begun.txt"
        return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else Counter()


def marked(model):
    """What the plugin calls a model."""
    return rundir.digest(make_plan(1348, 1, 8, 7).member[model])[:8]


def same(log_dir, alone):
    found = kill.numbers(log_dir)
    assert found.keys() == alone.keys() and [name for name in alone if found[name] != alone[name]] == []
    assert not list(log_dir.rglob("*.tmp")) and not list(log_dir.glob(".shared-*"))
