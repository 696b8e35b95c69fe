"""A real Ray cluster of two nodes on this machine: the same bytes as without it, whoever is killed."""

import contextlib
import importlib.util
import os
import signal
from pathlib import Path

import pytest

from tests import kill
from tests.slow import ENVIRONMENT, MODELS, RUN, Command, marked, same

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"
)
pytestmark = [needs_ray, pytest.mark.slow]
APART = RUN + "from audit import on_ray; on_ray.TRIES, on_ray._token = 2, lambda folder: ('/nowhere/token', 'x'); "
FAST = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


class Machines:
    """Two nodes of one core each; the second can be killed and started again."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        each = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        self.cluster = Cluster(
            initialize_head=True, head_node_args={**each, "include_dashboard": False, "_system_config": FAST}
        )
        self.each, self.second = each, self.cluster.add_node(**each)

    @property
    def address(self):
        return self.cluster.address

    def busy(self, node):
        """Processes of a node that do a unit now."""
        raylet = node.all_processes["raylet"][0].process.pid
        return [pid for pid in children(raylet) if b"Unit.do" in cmdline(pid)]

    def kill_second(self):
        """As when its power fails."""
        raylet = self.second.all_processes["raylet"][0].process.pid
        for pid in [raylet, *descendants(raylet)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(self.second, allow_graceful=False)

    def start_second(self):
        self.second = self.cluster.add_node(**self.each)


def cmdline(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def descendants(pid):
    return [pid for child in children(pid) for pid in (child, *descendants(child))]


@pytest.fixture(scope="module")
def machines():
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    found = Machines()
    yield found
    found.cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run on this machine alone, which all others are compared with."""
    folder = tmp_path_factory.mktemp("alone")
    command = Command(folder)
    done = command.start().wait()
    assert done == 0, command.output()
    return kill.numbers(command.log_dir)


@pytest.fixture
def command(tmp_path, machines):
    made = []

    def make(*settings, **more):
        made.append(Command(tmp_path, "run.engine=ray", f"run.ray.address={machines.address}", *settings, **more))
        return made[-1]

    yield make
    for one in made:
        if one.process and one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def test_workers_and_nodes_are_killed_and_only_their_units_are_done_again(command, machines, alone):
    run = command()

    def kill_a_worker(node):
        found = []
        run.until(lambda: found.extend(machines.busy(node)) or found)
        os.kill(found[0], signal.SIGKILL)

    def kill_the_second():
        run.until(lambda: machines.busy(machines.second))
        machines.kill_second()
        machines.start_second()

    run.gate()
    run.start()
    run.let_pass(2)
    kill_a_worker(machines.cluster.head_node)
    run.let_pass(3)
    kill_the_second()
    run.let_pass(3)
    kill_a_worker(machines.second)
    run.let_pass(3)
    kill_the_second()
    seen = run.finished()
    run.open()
    run.end()
    assert seen.items() <= run.finished().items()  # nothing that was finished was made again
    begun, log = run.begun(), (run.log_dir / "run.log").read_text()
    assert len(begun) == MODELS and sum(begun.values()) <= MODELS + 4
    assert log.count("it is done again") == 4
    same(run.log_dir, alone)


def test_what_is_made_where_the_run_directory_is_not_seen_is_written_here(command, alone):
    """And a unit that fails everywhere is named, the others are kept, and it alone is done by the next command."""
    run = command(code=APART)
    poisoned, deadly = (run.folder / f"{how}_{marked(model)}" for how, model in (("poisoned", 6), ("deadly", 9)))
    poisoned.touch(), deadly.touch()
    assert run.start("train.seconds=0").wait(300) == 2
    output = run.output()
    assert "2 of 17 models could not be trained, the others are kept. models 6: 2 times: RuntimeError: " in output
    assert f"{marked(6)} is poisoned; models 9: 2 times: a worker process on " in output
    assert "sent here" in output and "writes there" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("2 of 17 models") and "Traceback" not in last
    begun, seen = run.begun(), run.finished()
    assert begun[marked(6)] == begun[marked(9)] == 2 and len(seen) == MODELS - 2
    poisoned.unlink(), deadly.unlink()
    run.start("train.seconds=0"), run.end()
    assert seen.items() <= run.finished().items() and sum(run.begun().values()) == sum(begun.values()) + 2
    same(run.log_dir, alone)


def test_a_driver_is_interrupted_then_killed_and_the_next_one_continues(command, machines, alone):
    run = command()
    run.gate()
    run.start()
    run.let_pass(2)
    run.until(lambda: machines.busy(machines.cluster.head_node))
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.process.wait(120) == 130
    assert "interrupted: what is finished is kept, the same command continues" in run.output()
    assert not list(run.log_dir.rglob("*.tmp")) and not list(run.log_dir.glob(".shared-*"))
    run.start()
    run.let_pass(2)
    run.until(lambda: machines.busy(machines.cluster.head_node))
    run.process.kill()
    run.process.wait()
    seen = run.finished()
    assert len(seen) == 4
    run.open()
    run.start()  # at once: whoever still works for the dead one makes nothing that is in its way
    run.end()
    assert seen.items() <= run.finished().items()
    assert "did not come to its end; this run continues" in run.output()
    same(run.log_dir, alone)
