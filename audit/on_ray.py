"""Units on a Ray cluster (https://docs.ray.io): the same work as audit/workers.py, by actors on the nodes.

The driver hands out one unit at a time to each worker, so its memory holds what is in flight and no more. Arrays are
put into the object store once, from where each node copies them once; workers read them there. A node that sees
run.log_dir (the driver leaves a token in it) writes what it makes there; another sends the files back, and
the driver writes them. Workers run this code: their own copy if it is the same, or else what the driver sends.

A worker or node that dies loses its unit, which is done again elsewhere, `TRIES` times in all.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import pickle
import secrets
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from audit.ray_board import Board
from audit.ray_start import ROOT, sources, worker_class
from audit.ray_worker import Answer, Order, Place, Shipped, versions
from audit.session import Session
from audit.workers import Lost
from core import log as logs
from core import plugins, rundir
from core.config import Config
from core.errors import UserError

if TYPE_CHECKING:
    from audit.engines import Block, Reads, SessionSetup

log = logging.getLogger(__name__)

U = TypeVar("U")
TRIES = 4  # of a unit, each on another node where there is one
LOOK = 1.0  # seconds between looks at the cluster
ENDING = 5.0  # seconds that workers get to take their unfinished files away

_cluster: Cluster | None = None  # of this run


def run_units(
    session: Session, units: Sequence[U], setup: SessionSetup, block: Block, *, what: str, reads: Reads
) -> Iterator[tuple[U, Any]]:
    """Do every unit on the cluster; see audit/engines.py. A unit that fails `TRIES` times comes back as `Lost`."""
    rundir.check_making(f"{len(units)} models are still to be trained or asked")
    yield from _of(session.config).run_units(session, units, setup, block, what=what, reads=reads)


def places(config: Config, block: Block) -> tuple[int, Any]:
    """How many units the cluster does at a time, and what kind of device does them."""
    import torch

    cluster = _of(config)
    return cluster.size(), torch.device(cluster.device(config, block))


def check(config: Config) -> None:
    """UserError, at its line, for what cannot be; without looking for the cluster."""
    ray, error = config.run.ray, config.error
    if importlib.util.find_spec("ray") is None:
        raise error("run.engine", "Ray is not installed: pip install -r requirements-ray.txt, or use local")
    if (ray.address or "").startswith("ray://"):
        way_out = "run this command on a machine of the cluster, and name it host:port, or auto"
        raise error("run.ray.address", f"{ray.address}: Ray Client is not supported: {way_out}")
    if ray.gpus_per_unit != "auto" and ray.gpus_per_unit > 1 and ray.gpus_per_unit % 1:
        raise error("run.ray.gpus_per_unit", f"{ray.gpus_per_unit:g}: Ray knows parts of one GPU, or whole ones")
    for block in ("train", "audit"):
        name = getattr(getattr(config, block), "device", "auto")
        if name not in ("auto", "cpu", "cuda"):
            raise error(f"{block}.device", f"{name}: Ray chooses the GPU of each process: use cuda, cpu or auto")
        if name == "cuda" and ray.gpus_per_unit == 0:
            raise error(f"{block}.device", "cuda needs run.ray.gpus_per_unit above 0, e.g. 1")


def _of(config: Config) -> Cluster:
    global _cluster
    if _cluster is None:
        _cluster = Cluster(config)
    return _cluster


@contextmanager
def closing() -> Iterator[None]:
    """The workers that are started in this block end with it."""
    global _cluster
    try:
        yield
    finally:
        cluster, _cluster = _cluster, None
        if cluster is not None:
            cluster.close()


@dataclass(eq=False)
class _Hand:
    """A worker: starting until it says its place, then with a unit or without."""

    actor: Any
    ref: Any  # of what it is doing
    place: Place | None = None
    node: str = ""  # for people
    unit: int | None = None
    since: float = 0.0


class Cluster:
    """The connection to a cluster, and the workers there; they serve all stages of a run."""

    def __init__(self, config: Config) -> None:
        import ray

        self.ray, self.run, self.config = ray, config.run, config
        self.ours = not ray.is_initialized()
        if self.ours:
            _connect(config)
        self.gpus = self._gpus(config)
        self.cpus = config.run.ray.cpus_per_unit or config.run.threads
        self.crew: list[_Hand] = []
        self.arrays: dict[tuple[int, int], tuple[Any, Any]] = {}  # by address and size; holding them keeps both
        self.code = sources()
        self.code_ref = ray.put(zlib.compress(pickle.dumps(self.code)))
        self.token = _token(config.run.log_dir)
        self.stages = self.failed_starts = 0
        self.looked, self.room = float("-inf"), 0
        self.nodes: dict[str, str] = {}  # Ray's name of a node -> for people
        self.told: set[tuple[str, bool]] = set()
        room, alive = self._room(), [node for node in ray.nodes() if node["Alive"]]
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        log.info("Ray: %d nodes with room for %d workers of %s", len(alive), room, each)

    # --- what there is ---------------------------------------------------------------------------------------------

    def _gpus(self, config: Config) -> float:
        if self.run.ray.gpus_per_unit != "auto":
            return self.run.ray.gpus_per_unit
        devices = {getattr(getattr(config, block), "device", "cpu") for block in ("train", "audit")}
        return 0.0 if devices == {"cpu"} or not self.ray.cluster_resources().get("GPU") else 1.0

    def device(self, config: Config, block: Block) -> str:
        """The name of the device of a unit."""
        name = getattr(config, block if getattr(config, block) else "audit").device
        return ("cuda" if self.gpus else "cpu") if name == "auto" else name

    def _room(self) -> int:
        """How many workers fit on the nodes that live, if nobody else uses them."""
        if time.monotonic() - self.looked > LOOK:
            alive = [node for node in self.ray.nodes() if node["Alive"]]
            self.room = sum(fits(node["Resources"], self.cpus, self.gpus) for node in alive)
            self.looked = time.monotonic()
            for node in alive:
                label = f"{node.get('NodeManagerHostname') or node['NodeManagerAddress']}/{node['NodeID'][:4]}"
                self.nodes[node["NodeID"]] = label
        return self.room

    def size(self) -> int:
        """How many workers there are to be. Raises UserError where none has room."""
        asked = self.run.ray.max_in_flight
        if asked != "auto":
            return asked
        if room := self._room():
            return room
        need = f"{self.cpus:g} CPU and {self.gpus:g} GPU"
        way_out = "lower run.ray.cpus_per_unit or gpus_per_unit; with a cluster that grows, set run.ray.max_in_flight"
        raise self.config.error("run.ray", f"no node of the cluster has {need}: {way_out}")

    # --- the units of a stage --------------------------------------------------------------------------------------

    def run_units(
        self, session: Session, units: Sequence[U], setup: SessionSetup, block: Block, *, what: str, reads: Reads
    ) -> Iterator[tuple[U, Any]]:
        stage = _Stage(self, session, units, setup, block, Board(what, len(units)), reads)
        try:
            with logs.below(stage.board.table) as terminal:
                while stage.todo or any(hand.unit is not None for hand in self.crew):
                    self._hire(stage)
                    for index, value in self._turn(stage):
                        yield units[index], value
                    if not terminal:
                        stage.board.say()
        finally:
            self._end([hand for hand in self.crew if hand.unit is not None])  # of a stage that was broken off
        log.info("%s", stage.board.line())

    def _turn(self, stage: _Stage) -> Iterator[tuple[int, Any]]:
        """Hand units out, wait a moment, and see what came of any."""
        for hand in [hand for hand in self.crew if hand.place and hand.unit is None]:
            if (index := stage.next_for(hand.node, {hand.node for hand in self.crew if hand.place})) is not None:
                inputs = [] if hand.place.shares else stage.inputs(index)  # type: ignore[union-attr]
                hand.ref = hand.actor.do.remote(stage.number, stage.shipped, stage.units[index], inputs)
                hand.unit, hand.since = index, time.monotonic()
                stage.board.started(hand.node)
        waiting = {hand.ref: hand for hand in self.crew if hand.ref is not None}
        if not waiting:
            time.sleep(LOOK / 10)
            return
        ready, _ = self.ray.wait(list(waiting), num_returns=1, timeout=LOOK)
        for hand in (waiting[ref] for ref in ready):
            if hand.place is None:
                self._arrived(hand)
            else:
                yield from self._answered(hand, stage)

    def _answered(self, hand: _Hand, stage: _Stage) -> Iterator[tuple[int, Any]]:
        index, seconds = hand.unit, time.monotonic() - hand.since
        assert index is not None
        try:
            answer: Answer = self.ray.get(hand.ref)
        except self.ray.exceptions.RayError as error:
            answer = Answer("failed", _why(error, hand.node), [], [])
        hand.ref, hand.unit = None, None
        for record in answer.records:
            logging.getLogger(record.name).handle(record)
        stage.board.ended(hand.node, seconds, answer.kind == "done")
        if answer.kind == "refused":
            raise answer.value
        if answer.kind == "done":
            rundir.receive(self.run.log_dir, answer.files)
            yield index, answer.value
            return
        self._end([hand])  # what is left of it may be as broken as its unit
        last = str(answer.value).strip().splitlines()[-1]
        if stage.again(index, hand.node):
            log.warning("%s: %s; it is done again", _named(stage.units[index]), last)
            return
        log.error("%s: %s", _named(stage.units[index]), answer.value)
        stage.given_up += 1
        if stage.given_up >= TRIES and not stage.board.done:
            raise UserError(f"the first {stage.given_up} units failed {TRIES} times each, as others would: {last}")
        yield index, Lost(f"{TRIES} times: {last}")

    # --- workers ---------------------------------------------------------------------------------------------------

    def _hire(self, stage: _Stage) -> None:
        """As many workers as there are units or places."""
        wanted = min(self.size(), len(stage.todo) + sum(hand.unit is not None for hand in self.crew))
        for _ in range(wanted - len(self.crew)):
            options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_concurrency": 2}  # `end` while it works
            kind = self.ray.remote(worker_class()).options(**options)
            files = [(str(path), path.read_bytes()) for path in plugins.loaded()]
            digests = {name: hashlib.sha256(content).hexdigest() for name, content in self.code.items()}
            actor = kind.remote(str(ROOT), digests, [self.code_ref], files, pickle.dumps(self._order()))
            self.crew.append(_Hand(actor, actor.place.remote()))

    def _order(self) -> Order:
        return Order(
            threads=self.run.threads,
            gpus=self.gpus,
            plugin_files=(),
            levels={name: logging.getLogger(name).getEffectiveLevel() for name in logs.ROOTS},
            hold=rundir.held(),
            token=self.token,
        )

    def _arrived(self, hand: _Hand) -> None:
        """A worker that says where it is, or could not start."""
        try:
            place, node = self.ray.get(hand.ref)
        except self.ray.exceptions.RayError as error:
            self._end([hand])
            self.failed_starts += 1
            why = _why(error, "a node")
            if self.failed_starts > TRIES:
                raise UserError(f"workers cannot start on the cluster: {why}") from None
            log.warning("a worker did not start: %s", why)
            return
        hand.ref, hand.place, self.failed_starts = None, place, 0
        hand.node = self.nodes.get(node, f"{place.host}/{node[:4]}")
        ours = versions()
        if other := {k: v for k, v in place.versions.items() if v != ours[k] and "not there" not in (v, ours[k])}:
            listed = ", ".join(f"{name} {there} there and {ours[name]} here" for name, there in other.items())
            raise UserError(
                f"node {hand.node} has {listed}: results would depend on who makes them; install the same everywhere"
            )
        if (hand.node, place.shares) not in self.told:
            self.told.add((hand.node, place.shares))
            where = "it sees run.log_dir and writes there" if place.shares else "what it makes is sent here"
            log.info("Ray: worker on %s (process %d, %s): %s", hand.node, place.pid, place.device, where)

    def _end(self, hands: Sequence[_Hand]) -> None:
        """These workers end now, and take their unfinished files away."""
        ending = [hand.actor.end.remote() for hand in hands if hand.place]
        if ending:
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.wait(ending, num_returns=len(ending), timeout=ENDING)
        for hand in hands:
            self.ray.kill(hand.actor)
            self.crew.remove(hand)

    def close(self) -> None:
        """End all workers; the connection, too, if it was made here."""
        with contextlib.suppress(OSError):
            os.unlink(self.token[0])
        self._end(list(self.crew))
        rundir.clear(self.run.log_dir)  # and of workers that outlived a driver that was killed
        self.arrays.clear()
        if self.ours:
            self.ray.shutdown()

    def ship(self, what: Any) -> Shipped:
        """Pickled, with the arrays in the object store, where each is put once in a run."""
        import numpy as np

        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(what, protocol=5, buffer_callback=buffers.append)
        return Shipped(pickled, [self._put(np.frombuffer(buffer.raw(), np.uint8), buffer) for buffer in buffers])

    def _put(self, array: Any, buffer: Any) -> Any:
        key = (array.ctypes.data, array.nbytes)
        if key not in self.arrays:
            self.arrays[key] = (buffer, self.ray.put(array))
        return self.arrays[key][1]


@dataclass
class _Stage:
    """The units of one stage: what is still to be handed out, and what was tried where."""

    cluster: Cluster
    session: Session
    units: Sequence[Any]
    setup: SessionSetup
    block: Block
    board: Board
    reads: Reads
    todo: deque[int] = field(init=False)
    tries: Counter[int] = field(default_factory=Counter)
    avoid: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    given_up: int = 0
    shipped: Shipped = field(init=False)
    number: int = field(init=False)

    def __post_init__(self) -> None:
        self.todo = deque(range(len(self.units)))
        self.cluster.stages += 1
        self.number = self.cluster.stages
        device = self.cluster.device(self.session.config, self.block)
        run = self.session.config.run.model_copy(update={"log_dir": self.session.config.run.log_dir.absolute()})
        config = replace(self.session.config, run=run)
        self.shipped = self.cluster.ship((replace(self.session, config=config), self.setup, device))

    def next_for(self, node: str, nodes: set[str]) -> int | None:
        """The next unit for a worker of `node`: one that failed there waits for another node, if there is one."""
        for index in self.todo:
            if node not in self.avoid[index] or not nodes - self.avoid[index]:
                self.todo.remove(index)
                return index
        return None

    def again(self, index: int, node: str) -> bool:
        """Whether a unit that failed may be done again; it is the next one then."""
        self.tries[index] += 1
        self.avoid[index].add(node)
        if self.tries[index] < TRIES:
            self.todo.appendleft(index)
            return True
        return False

    def inputs(self, index: int) -> list[tuple[str, bytes]]:
        """The files that a unit reads, for a node that does not see them."""
        folder = self.session.config.run.log_dir
        return [(str(path.relative_to(folder)), path.read_bytes()) for path in self.reads(self.units[index])]


# --- small parts ------------------------------------------------------------------------------------------------------


def fits(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers fit on a node. Several may share a GPU, none may have parts of two."""
    by_cpu = int(resources.get("CPU", 0.0) / cpus + 1e-9)
    if not gpus:
        return by_cpu
    there = resources.get("GPU", 0.0)
    return min(by_cpu, int(there / gpus + 1e-9) if gpus >= 1 else int(there) * int(1 / gpus + 1e-9))


def _connect(config: Config) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray

    address = config.run.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    more = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except Exception as error:  # of many kinds
        why = str(error).strip().partition("\n")[0]
        way_out = "start it with `ray start --head`, or leave run.ray.address out to use this machine alone"
        raise config.error("run.ray.address", f"no cluster at {address} ({why}): {way_out}") from None
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):  # of a node that died it prints the last twenty lines of its log
        worker.print_to_stdstream = lambda *_, **__: None


def _token(log_dir: Path) -> tuple[str, str]:
    for left in log_dir.glob(".shared-*"):  # by a driver that was killed
        left.unlink(missing_ok=True)
    path, content = log_dir.absolute() / f".shared-{secrets.token_hex(8)}", secrets.token_hex(16)
    rundir.write_text(path, content)
    return str(path), content


def _named(unit: Any) -> str:
    """`models 3, 4`."""
    numbers = dict.fromkeys(str(getattr(one, "model", one)) for one in (unit if isinstance(unit, list) else [unit]))
    return f"model{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _why(error: Exception, node: str) -> str:
    """What Ray says of a worker that is gone, in a line."""
    text = str(error)
    if "running low on memory" in text:
        return f"a worker on {node} was ended, for its memory ran low: lower run.ray.max_in_flight"
    if any(said in text for said in ("its node has died", "actor's node was", "node it was running on is dead")):
        return f"node {node} died"
    if "died" in text or "unavailable" in text.lower():
        return f"a worker process on {node} was killed (its memory may be short), or ended by itself"
    return text.strip().splitlines()[-1]
