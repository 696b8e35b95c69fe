"""Every command and snippet of README.md and documentation/ works as it stands.

Fenced blocks are executed: python runs in an empty folder, YAML is laid over a small config and validated, commands on
configs are run with --check, commands on finished runs are parsed. A block that cannot be run here says so in a comment
before it: `<!-- not run: needs CIFAR-10 -->`. The section "Worked examples" of extending.md has its own test.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import main
from core import config
from core.arguments import parser

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "documentation").glob("*.md"))]
FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`(?:python main\.py|make) ([^`…<]*)`")
NOTHING_TO_RUN = ("pip install -r requirements.txt", "pip install -r requirements-ray.txt", "make ")
BASE = """
run: {log_dir: runs/x}
data: {dataset: digits}
train: {model_name: mlp, epochs: 1, learning_rate: 0.1}
audit: {algorithm: [LOSS], num_ref_models: 4}
"""
# What a snippet about adding something takes for granted: the imports of the file it would stand in.
PREAMBLE = """
import math
import numpy as np
from typing import Annotated
from annotated_types import Gt
from jaxtyping import Float
from numpy import ndarray as Array
from torch import nn
from core.registry import ATTACKS, DATASETS, MODELS, TRAINERS
from core.types import AuditData, Evidence, Records
"""


def blocks(language):
    """Of one language, as test parameters."""
    return list(_blocks(language))


def _blocks(language):
    for path in FILES:
        text = path.read_text().partition("\n# Worked examples")[0]
        for found in FENCE.finditer(text):
            if found["language"] == language and not found["why"]:
                line = text[: found.start("text")].count("\n")
                yield pytest.param(found["text"], id=f"{path.name}:{line}")


@pytest.mark.parametrize("code", blocks("python"))
def test_every_python_snippet_runs(code, tmp_path, monkeypatch, request):
    from audit import dp_audit

    monkeypatch.chdir(tmp_path)
    mechanisms = dp_audit.MECHANISMS  # a registry that the suite's clean-up does not know
    before = dict(mechanisms)
    request.addfinalizer(lambda: [mechanisms.pop(new) for new in set(mechanisms) - set(before)])
    exec(compile(PREAMBLE, "<preamble>", "exec"), space := {"__name__": "plugin.snippet"})
    exec(compile(code, "<snippet>", "exec"), space)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_yaml_snippet_is_a_valid_config(text, tmp_path):
    """Its blocks replace those of a small config. A dataset that a snippet just added is taken to be there."""
    written = yaml.safe_load(text.replace("dataset: mine\n  drop: 0.1", "dataset: digits"))
    needed = ("run", "audit") if {"signals", "scores"} & set(written) else ("run", "data", "train", "audit")
    raw = {**{block: keys for block, keys in yaml.safe_load(BASE).items() if block in needed}, **written}
    if "train" in raw:
        raw["train"] = {"learning_rate": 0.1, "epochs": 1, "model_name": "mlp", **raw["train"]}
    (tmp_path / "snippet.yaml").write_text(yaml.safe_dump(raw))
    config.load(tmp_path / "snippet.yaml")


def commands():
    for param in [*blocks("bash"), *blocks("sh")]:
        for line in param.values[0].splitlines():
            if words := shlex.split(line, comments=True):
                yield pytest.param(words, id=f"{param.id}: {' '.join(words)[:60]}")


def snippet_called(name):
    """The python snippet of the README that the text calls by this file name."""
    readme = (ROOT / "README.md").read_text()
    return readme.split(f"`{name}`:\n\n```python\n")[1].split("```")[0]


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_does_what_it_says_it_can(words, tmp_path, monkeypatch, capsys):
    if " ".join(words).startswith(NOTHING_TO_RUN):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
        return
    assert words[:2] == ["python", "main.py"], f"mark it `<!-- not run: why -->`, or teach this test: {words}"
    options = parser().parse_args(words[2:])
    if not options.cf:
        return  # on finished runs: tests/audit/test_commands.py
    for name in options.plugin:
        (tmp_path / name).write_text(snippet_called(str(name)))
    words = [str(tmp_path / word) if word in map(str, options.plugin) else word for word in words[2:]]
    monkeypatch.chdir(ROOT)
    elsewhere = (
        ["--set", f"run.log_dir={tmp_path / 'run'}"] if "--cf" in words else []
    )  # not where a reader may have run it
    words = [word for word in words if word != "--probe"]  # which trains
    assert main.main([*words, *elsewhere, "--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_in_a_sentence_can_be_parsed_and_every_link_leads_somewhere(path):
    text = path.read_text()
    for written in INLINE.findall(text):
        if "main.py" in text and written.startswith("-"):
            parser().parse_args(shlex.split(written))
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"`(configs/[\w/]+\.(?:yaml|json|md))`", text):
        assert (ROOT / name).is_file() or name.endswith("quickstart_tabular.yaml"), name


def test_every_key_of_the_summary_is_explained():
    """documentation/report.md names every key that audit/summary.py and the CSV files write."""
    import inspect

    from audit import risk_report, summary

    text = (ROOT / "documentation/report.md").read_text()
    keys = set(re.findall(r'"([a-z_]+)":', inspect.getsource(summary)))
    found = re.findall(r'"([a-z_]+)":|columns\["([a-z_]+)"\]', inspect.getsource(risk_report))
    keys |= {name for pair in found for name in pair if name} - {"mean"}
    assert len(keys) > 25
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_every_check_is_explained():
    import inspect

    from audit import checks

    text = (ROOT / "documentation/report.md").read_text()
    names = set(re.findall(r'Check\(\s*"([a-z ]+)"', inspect.getsource(checks)))
    assert len(names) >= 6
    assert [name for name in sorted(names) if f"**{name}**" not in text] == []
