"""Imports point down: main -> audit -> {trainers, models, dataset, modules} -> core. Heavy ones are late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"audit", "trainers", "models", "dataset", "modules", "core", "main", "tests", "benchmarks"}
MAY = {
    "core": {"core"},
    "modules": {"modules", "core"},
    "dataset": {"dataset", "core"},
    "models": {"models", "core"},
    "trainers": {"trainers", "core"},
    "audit": {"audit", "trainers", "models", "dataset", "modules", "core"},
}
HEAVY = {"torch", "torchvision", "transformers", "peft", "opacus", "datasets", "ray", "sklearn", "matplotlib", "rich"}
FILES = [path for layer in MAY for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    layer = path.relative_to(ROOT).parts[0]
    names = imported(ast.parse(path.read_text()))
    assert not (names & OURS) - MAY[layer], f"{layer} may not import {names & OURS - MAY[layer]}"
    if layer in ("core", "modules"):
        assert not names & (HEAVY - {"rich"})


def test_filling_the_registries_imports_nothing_heavy():
    code = "import sys, audit, dataset, models, modules.mia, trainers, core.config; "
    code += f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_main_is_short():
    assert len((ROOT / "main.py").read_text().splitlines()) <= 80
