"""Killed at any moment, a run continues to the same bytes and trains nothing twice: tests/kill.py, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = """\
run: {log_dir: here, random_seed: 7}
data: {dataset: synthetic_tabular, num_records: 200, num_features: 8, num_classes: 3}
train: {model_name: {name: mlp, hidden: [4]}, epochs: 1, batch_size: 32, learning_rate: 0.1, device: cpu}
audit: {algorithm: [LOSS, RMIA], num_ref_models: 1, device: cpu}
"""


def kill(tmp_path: Path, *arguments: str) -> dict:
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "tests/kill.py", "--cf", str(tmp_path / "tiny.yaml"), "--no-pictures", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_before_any_step_of_any_write_and_at_random_it_ends_with_the_same_bytes(tmp_path):
    found = kill(tmp_path, "--random", "2", "--writes", "16", "--set", "run.workers=1")
    assert found["random kills"] == 2 and found["kills at writes"] > 5 and found["artefacts compared"] > 10


@pytest.mark.slow
def test_the_same_with_workers(tmp_path):
    found = kill(tmp_path, "--random", "2", "--writes", "0", "--set", "run.workers=2")
    assert found["random kills"] == 2
