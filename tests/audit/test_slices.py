"""Several processes train one plan side by side; the last one audits, and whoever is killed is stood in for."""

import contextlib
import os
import re
import signal

import pytest

import main
from audit.slices import chosen
from core import claims
from core.errors import UserError
from tests import kill
from tests.slow import MODELS, RUN, Command, same

# as where a process on another machine died, which shows by its silence only
IMPATIENT = RUN + "from core import claims; claims.BEAT, claims.STALE = 0.2, 2.0; "
ELSEWHERE = IMPATIENT + "import os, socket; socket.gethostname = lambda: f'host{os.getpid()}'; "


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    command = Command(folder, "train.seconds=0")
    command.start(), command.end()
    return kill.numbers(command.log_dir)


@pytest.mark.parametrize(
    ("written", "models"),
    [("0:2", [0]), (":", [0, 2, 3, 4]), ("3:", [3, 4]), (":3", [0, 2]), ("3", [3]), ("4:99", [4])],
)
def test_a_slice_is_of_the_numbers_of_models(written, models):
    assert chosen(written, (0, 2, 3, 4)) == models


@pytest.mark.parametrize("written", ["1:2", "5:9", "-1", "x", "3:2", "1:2:3", ""])
def test_a_slice_of_nothing_is_refused(written):
    with pytest.raises(UserError, match=re.escape(f"--models {written}: ")):
        chosen(written, (0, 2, 3, 4))


def test_slices_are_for_the_local_engine(tmp_path, capsys):
    quickstart = ["--cf", "configs/quickstart.yaml", "--models", "0:3", "--set", f"run.log_dir={tmp_path / 'run'}"]
    assert main.main([*quickstart, "run.engine=ray"]) == 2
    assert "--models: Ray divides the plan by itself" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def claims_of(log_dir):
    """Who claims a model now."""
    for path in (log_dir / ".claims").glob("model_*"):
        with contextlib.suppress(FileNotFoundError):  # it was given back
            yield path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("code", [RUN, ELSEWHERE], ids=["here", "elsewhere"])
def test_overlapping_slices_train_each_model_once_and_the_last_one_audits(tmp_path, alone, code):
    slices = [Command(tmp_path, "train.seconds=0.05", code=code, name=f"slice_{k}") for k in range(3)]
    first, second, third = slices
    first.gate()
    for part, one in zip(("0:8", "4:13", "10:18"), slices, strict=True):
        one.start("--models", part)
    first.let_pass(2)
    claimed = lambda: any(f"-{second.process.pid}-" in owner for owner in claims_of(first.log_dir))  # noqa: E731
    first.until(claimed)
    seen = first.finished()
    second.process.kill()  # what it was at, the first one does; what is in no other slice, the next command
    second.process.wait()
    first.open()
    first.end(), third.end()
    assert "are still to be trained" in first.output() and "are still to be trained" in third.output()
    assert not (first.log_dir / "report").exists()
    second.start("--models", "4:13")
    second.end()
    assert "Membership inference" in second.output() and f"Report: {first.log_dir}" in second.output()
    assert seen.items() <= first.finished().items()
    begun = first.begun()
    assert len(begun) == MODELS and sum(begun.values()) <= MODELS + 1  # the one that was killed over
    same(first.log_dir, alone)
    assert not (first.log_dir / ".claims").exists()
    if code == ELSEWHERE:
        return
    second.start("--models", "4:13"), second.end()
    assert "models 4:13: there already, and so is the report" in second.output() and first.begun() == begun


@pytest.mark.slow
def test_a_plain_run_waits_its_turn_and_says_for_whom(tmp_path):
    one = Command(tmp_path, name="slice")
    one.gate()
    one.start("--models", "3:18")
    one.let_pass(1)
    plain = Command(tmp_path, name="plain")
    assert plain.start().wait(120) == 2
    assert re.search(rf"in use by process {one.process.pid} on .* \(models 3:18\), since 20", plain.output())
    os.killpg(one.process.pid, signal.SIGINT)
    assert one.process.wait(120) == 130
    assert not claims.alive(one.log_dir) and not list(one.log_dir.rglob("*.tmp"))
