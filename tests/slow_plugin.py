"""A trainer for tests of clusters: sgd that takes its time, keeps a record of what it trained, and may be poisoned."""

import os
import time
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from core.registry import TRAINERS
from core.rundir import digest

HERE = Path(__file__).parent  # of each test's own copy, which all workers see


@TRAINERS.register("slow", summary="sgd that takes its time", without_effect=("seconds",))
def slow(models, data, members, streams, *, seconds: Annotated[float, Ge(0)] = 0.3, epochs: int = 2):
    for member in members:
        name = digest(member)[:8]
        with open(HERE / "begun.txt", "a") as file:
            file.write(f"{name} {os.getpid()}\n")
        if (HERE / f"poisoned_{name}").exists():
            raise RuntimeError(f"{name} is poisoned")
        if (HERE / f"deadly_{name}").exists():
            os._exit(9)
    for _ in members:
        while (HERE / "gate").exists() and not ticket():
            time.sleep(0.02)
    time.sleep(seconds * len(models))
    return TRAINERS["sgd"](models, data, members, streams, epochs=epochs, learning_rate=0.1, batch_size=64)


def ticket():
    """Whether there was a ticket for one model: behind the gate none is trained without."""
    for path in HERE.glob("ticket_*"):
        try:
            path.unlink()
            return True
        except FileNotFoundError:
            continue  # another was faster
    return False
