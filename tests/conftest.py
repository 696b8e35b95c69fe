"""Shapes are executed: every jaxtyping annotation of core/, modules/ and the rest is checked while tests run."""

import warnings

from jaxtyping import install_import_hook

import tests.checker  # noqa: F401  (the hook finds it by name)

hook = install_import_hook(["core", "modules", "audit", "dataset", "trainers", "models"], "tests.checker.check")

import pytest  # noqa: E402

import audit  # noqa: E402, F401  (these fill the registries, as main.py does)
import dataset  # noqa: E402, F401
import models  # noqa: E402, F401
import modules.mia  # noqa: E402, F401
import trainers  # noqa: E402, F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu skip where there is no CUDA device."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device"))


warnings.filterwarnings("default", category=DeprecationWarning, module="torch")
