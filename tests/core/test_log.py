"""What a run says: one live line a stage on a terminal, plain lines elsewhere, everything in its log file."""

import io
import logging
import re
import sys

import pytest

from core import log
from core.errors import UserError

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def as_before():
    """The loggers as they were."""
    loggers = [logging.getLogger(name) for name in log.ROOTS]
    before = [(one, one.handlers, one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, level, propagate in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def test_a_terminal_shows_how_far_each_stage_is_and_messages_above_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    log.setup()
    with log.waiting("audit duci"):
        for model in log.progress(range(3), "training models"):
            logging.getLogger("audit.training").info("model %d", model)
    shown = ESCAPES.sub("", screen.getvalue())
    assert "audit duci" in shown and "training models" in shown and "0/3" in shown
    assert [line[10:] for line in shown.splitlines() if line.rstrip()[-7:-1] == "model "] == [
        f"model {k}" for k in range(3)
    ]
    assert log._bar is None


def test_an_interrupted_stage_gives_the_terminal_back(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyboardInterrupt):
        for _ in log.progress(range(3), "training models"):
            raise KeyboardInterrupt
    assert log._bar is None


def test_where_there_is_no_terminal_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", out := io.StringIO())
    assert list(log.progress(iter(range(3)), "training models", total=3)) == [0, 1, 2]
    with log.waiting("a stage"):
        pass
    assert out.getvalue() == ""


def test_the_file_has_what_was_said_before_it_was_opened_and_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.setup()
    ours = logging.getLogger("audit.session")
    ours.warning("early")
    with log.kept(tmp_path / "run.log"):
        ours.info("during")
    ours.info("after")
    with pytest.raises(UserError), log.kept(tmp_path / "run.log"):
        raise UserError("train.epochs 1, now 2")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)
    said = [line[21:] for line in lines]
    assert said[0].startswith("started: ") and said[1:4] == ["warning: early", "during", "finished"]
    assert said[4].startswith("started: ") and said[5:] == ["after", "error: train.epochs 1, now 2"]
