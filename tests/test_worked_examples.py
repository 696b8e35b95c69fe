"""Every worked example of the documentation is executed, as a reader would: in an empty folder, in order."""

import re
import warnings
from pathlib import Path

import pytest
import torch

import main
from audit import plots

DOCUMENTATION = Path(__file__).resolve().parents[1] / "documentation"
WITH = ("extending.md", "text.md")  # documents that end with worked examples
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def examples() -> dict[str, list[tuple[str, str]]]:
    """The fenced blocks of each section below `# Worked examples`."""
    worked = [(DOCUMENTATION / name).read_text().partition("\n# Worked examples\n")[2] for name in WITH]
    sections = [part for text in worked for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]
    return {text.partition("\n")[0]: BLOCK.findall(text) for text in sections}


def test_there_are_examples_of_every_way_in():
    said = " ".join(examples()).lower()
    assert all(word in said for word in ("forest", "csv", "original", "hugging face"))


@pytest.mark.slow
@pytest.mark.parametrize("title", examples())
def test_the_example_works_as_it_is_written(title, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
    blocks = examples()[title]
    ran, space = 0, {"__name__": "example"}
    for language, text in blocks:
        if named := re.match(r"# ([\w.-]+\.(?:py|yaml))\b", text):
            Path(named[1]).write_text(text)
        elif language == "python":
            torch.set_num_threads(1)
            with warnings.catch_warnings(action="ignore"):  # of what a reader does with other libraries
                exec(compile(text, title, "exec"), space)
        elif language == "bash":
            for line in text.splitlines():
                arguments = line.partition("#")[0].split()
                assert arguments[:2] == ["python", "main.py"], line
                alone = ["--set", "run.workers=1"]  # worker processes would only take longer
                assert main.main([*arguments[2:], *alone]) == 0, capsys.readouterr().err
                ran += 1
    assert ran, "an example runs something"
    assert list(tmp_path.glob("runs/*/report/index.html")), "and leaves a report"
