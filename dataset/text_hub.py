"""Texts through the library `datasets`: local directories, its cache, or the hub. No dataset's own code is ever run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from core.errors import UserError, WrongSetting
from core.hub import offline, unreachable
from dataset.text_files import Table


def load(
    name: str, subset: str | None, split: str, population_split: str | None, by_hand: str
) -> tuple[Table, Table | None]:
    """The tables of a split, and of the population's split if one is named.

    name: of the hub, or a local directory.
    by_hand: what to do where it can neither be found nor downloaded; the end of that error.
    """
    import datasets

    local = Path(name).exists()
    reason = None if local else unreachable(f"{_endpoint()}/datasets/{name}")
    try:
        with _quiet(cached=reason is not None):
            if local and ((Path(name) / "dataset_dict.json").exists() or (Path(name) / "state.json").exists()):
                found: Any = datasets.load_from_disk(name)
            else:
                found = datasets.load_dataset(name, subset)
    except Exception as error:  # the library raises whatever its readers raise
        if reason:
            why = f"dataset {name} is not on this machine, and cannot be downloaded: {reason}. {by_hand}"
            raise WrongSetting("data.dataset", why) from None
        message = str(error).strip().partition("\n")[0]
        raise UserError(f"dataset {name} cannot be read: {message or type(error).__name__}. {by_hand}") from None
    if isinstance(found, datasets.Dataset):  # saved without splits
        if population_split is not None:
            raise WrongSetting("data.population_split", f"{name} has no splits: leave it out")
        return _table(found, name), None
    return tuple(  # ty: ignore
        None if wanted is None else _table(_split(found, wanted, key, name), f"{name} ({wanted})")
        for key, wanted in (("data.split", split), ("data.population_split", population_split))
    )


def _split(found: Any, wanted: str, key: str, name: str) -> Any:
    if wanted not in found:
        near = get_close_matches(wanted, list(found))
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(found)}"
        raise WrongSetting(key, f"{name} has no split {wanted!r}; {hint}")
    return found[wanted]


def _table(split: Any, source: str) -> Table:
    return Table(source, {name: split[name][:] for name in split.column_names})


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


@contextlib.contextmanager
def _quiet(cached: bool) -> Iterator[None]:
    """Without progress bars; where `cached`, the library looks in its cache only."""
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = cached or before
    try:
        with offline() if cached else contextlib.nullcontext():
            yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        if bars:
            datasets.enable_progress_bars()
