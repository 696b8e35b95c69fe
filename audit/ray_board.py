"""How far a stage is over the nodes of a cluster: a table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from core.log import clock

log = logging.getLogger(__name__)

EVERY = 15.0  # seconds between lines


@dataclass
class Node:
    """The units of one node."""

    running: int = 0
    done: int = 0
    failed: int = 0
    seconds: float = 0.0  # of those that are done


@dataclass
class Board:
    """The units of one stage, by node."""

    what: str
    total: int
    nodes: dict[str, Node] = field(default_factory=dict)
    done: int = 0
    began: float = field(default_factory=lambda: time.monotonic())
    said: float = field(default_factory=lambda: time.monotonic())

    def started(self, node: str) -> None:
        self.nodes.setdefault(node, Node()).running += 1

    def ended(self, node: str, seconds: float, fine: bool) -> None:
        of = self.nodes[node]
        of.running -= 1
        of.done += fine
        of.failed += not fine
        of.seconds += seconds if fine else 0.0
        self.done += fine

    @property
    def left(self) -> float | None:
        """Seconds until all are done, at the pace so far."""
        return (time.monotonic() - self.began) / self.done * (self.total - self.done) if self.done else None

    def say(self) -> None:
        """The line, if the last one was a while ago."""
        if time.monotonic() - self.said >= EVERY and self.done < self.total:
            self.said = time.monotonic()
            log.info("%s", self.line())

    def line(self) -> str:
        """`training models: 3 of 16 done, 2 running, 1 failed, ETA 0:01:10; node-a 2 done 1 running; node-b …`."""
        of = [(name, node) for name, node in sorted(self.nodes.items())]
        parts = [f"{self.done} of {self.total} done", f"{sum(node.running for _, node in of)} running"]
        if failed := sum(node.failed for _, node in of):
            parts.append(f"{failed} failed")
        if self.left:
            parts.append(f"ETA {clock(self.left)}")
        each = [
            f"{name} {node.done} done {node.running} running" + (f" {node.failed} failed" if node.failed else "")
            for name, node in of
        ]
        return "; ".join([f"{self.what}: {', '.join(parts)}", *each])

    def table(self) -> Any:
        """For rich: a row a node."""
        from rich.table import Table

        table = Table(f"{'':10}node", box=None, pad_edge=False, padding=(0, 2), header_style="dim")
        for title in ("running", "done", "failed", "s per unit"):
            table.add_column(title, justify="right")
        for name, node in sorted(self.nodes.items()):
            each = f"{node.seconds / node.done:.1f}" if node.done else "-"
            table.add_row(f"          {name}", str(node.running), str(node.done), str(node.failed), each)
        return table
