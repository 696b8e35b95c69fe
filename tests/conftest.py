"""Shapes are executed: every jaxtyping annotation of core/, modules/ and the rest is checked while tests run."""

import warnings
from collections.abc import Iterator

from jaxtyping import install_import_hook

import tests.checker  # noqa: F401  (the hook finds it by name)

hook = install_import_hook(["core", "modules", "audit", "dataset", "trainers", "models"], "tests.checker.check")

import pytest  # noqa: E402

import audit  # noqa: E402, F401  (these fill the registries, as main.py does)
import dataset  # noqa: E402, F401
import models  # noqa: E402, F401
import modules.mia  # noqa: E402, F401
import trainers  # noqa: E402, F401
from core.registry import ATTACKS, DATASETS, MODELS, MODULES, TRAINERS  # noqa: E402

REGISTRIES = (ATTACKS, DATASETS, MODELS, MODULES, TRAINERS)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = [(registry, dict(registry), dict(registry.facts)) for registry in REGISTRIES]
    yield
    for registry, entries, facts in before:
        if len(registry) != len(entries) or len(registry.facts) != len(facts):
            registry.clear()
            registry.update(entries)
            registry.facts = facts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu skip where there is no CUDA device."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device"))


warnings.filterwarnings("default", category=DeprecationWarning, module="torch")
