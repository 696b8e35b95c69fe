"""A user's own Python files, which register datasets, models, trainers or attacks: `--plugin FILE`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from core.errors import UserError


def load(file: Path) -> None:
    """Run the file. Only the command line names one: a deliberate act, never a config's."""
    if not file.is_file():
        raise UserError(f"--plugin {file}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"plugin.{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def loaded() -> list[Path]:
    """The files loaded so far, in their order: worker processes load them again."""
    modules = [module for name, module in sys.modules.items() if name.startswith("plugin.")]
    return [Path(module.__file__).resolve() for module in modules if module.__file__]
