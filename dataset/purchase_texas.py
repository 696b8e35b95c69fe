"""Purchase100 and Texas100, the tables of Shokri et al. (2017, https://arxiv.org/abs/1610.05820).

Their text is parsed once, into `<name>_cache.npz`: bits, labels, and the SHA-256 of what they were read from. A
source that has changed since is read again. Nobody publishes digests of these archives: what is checked is that
they are whole (gzip's checksum), and that rows, columns and labels are those of the published tables.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from core.errors import UserError
from core.registry import DATASETS
from core.rundir import write_atomic
from core.types import AuditData, Records
from dataset.binary_csv import Table, read_labels, read_table
from dataset.files import digest, fetch, read_members
from dataset.splits import divide

log = logging.getLogger(__name__)

Fraction = Annotated[float, Interval(gt=0, lt=1)]
Named = dict[str, Path]  # the role of a file ("features", "labels", "archive") -> where it lies
FORMAT = 1  # of the cache


@dataclass(frozen=True)
class Published:
    """A table as its authors publish it."""

    name: str
    url: str
    features: str  # member of the archive, and its path under data_dir once unpacked
    labels: str | None  # None: the label is the first column of `features`
    rows: int
    columns: tuple[int, ...]
    num_classes: int = 100
    elsewhere: tuple[str, ...] = ()  # other folders in which the unpacked files may lie


PURCHASE100 = Published(
    name="purchase100",
    url="https://github.com/privacytrustlab/datasets/raw/master/dataset_purchase.tgz",
    features="dataset_purchase",
    labels=None,
    rows=197_324,
    columns=(600,),
)
TEXAS100 = Published(
    name="texas100",
    url="https://github.com/privacytrustlab/datasets/raw/master/dataset_texas.tgz",
    features="texas/100/feats",
    labels="texas/100/labels",
    rows=67_330,
    columns=(6169, 6170),
    elsewhere=("dataset_texas",),
)


@DATASETS.register("purchase100", summary="197,324 shoppers' 600 binary features, 100 classes (download)", images=False)
def purchase100(data_dir: Path, seed: int, *, population_fraction: Fraction = 0.25) -> AuditData:
    """Purchase100: float32 (600,) of zeros and ones, 100 classes found by clustering. No official split.

    population_fraction: share of the records that no model trains on, drawn by the seed.
    """
    return load(PURCHASE100, data_dir, seed, population_fraction)


@DATASETS.register("texas100", summary="67,330 patients' 6,169 binary features, 100 classes (download)", images=False)
def texas100(data_dir: Path, seed: int, *, population_fraction: Fraction = 0.25) -> AuditData:
    """Texas100: float32 (6169,) of zeros and ones, the 100 most frequent procedures. No official split.

    population_fraction: share of the records that no model trains on, drawn by the seed.
    """
    return load(TEXAS100, data_dir, seed, population_fraction)


def load(published: Published, data_dir: Path, seed: int, fraction: float) -> AuditData:
    """The table, divided by a named stream. Features become float32 only once, each in its own half."""
    table, labels = read(published, data_dir)
    pool, population = (Records(table.features(rows), labels[rows]) for rows in divide(published.rows, seed, fraction))
    return AuditData(pool, population, published.num_classes)


def read(published: Published, data_dir: Path) -> tuple[Table, np.ndarray]:
    """The table and its labels (0 .. num_classes - 1), from the cache if that was made from the files of today.

    Looks under `data_dir` for the unpacked files, then the archive, then a cache on its own; then downloads.
    """
    cache = data_dir / f"{published.name}_cache.npz"
    sources = _sources(published, data_dir)
    cached = _from_cache(cache)
    if cached and not sources:
        log.info("%s: from %s, made of files no longer there: %s", published.name, cache, cached[0])
        return cached[1], cached[2]
    if not sources:
        sources = {"archive": fetch(published.url, data_dir / published.url.rsplit("/", 1)[-1])}
    stamp = json.dumps({"format": FORMAT, **{role: digest(path, "sha256") for role, path in sources.items()}})
    if cached and cached[0] == stamp:
        return cached[1], cached[2]
    log.info("%s: reading %s (SHA-256 %s)", published.name, ", ".join(map(str, sources.values())), stamp)
    table, labels = _parse(published, sources)
    write_atomic(
        cache,
        lambda file: np.savez(file, stamp=stamp, packed=table.packed, columns=table.columns, labels=labels),
    )
    return table, labels


def _sources(published: Published, data_dir: Path) -> Named:
    """The files to read: unpacked ones before an archive; nothing where there is neither."""
    members = {"features": published.features} | ({"labels": published.labels} if published.labels else {})
    for folder in (str(Path(published.features).parent), *published.elsewhere):
        unpacked = {role: data_dir / folder / Path(member).name for role, member in members.items()}
        if all(path.is_file() for path in unpacked.values()):
            return unpacked
    archive = data_dir / published.url.rsplit("/", 1)[-1]
    return {"archive": archive} if archive.exists() else {}


def _from_cache(path: Path) -> tuple[str, Table, np.ndarray] | None:
    """Stamp, table and labels of a cache; None if there is none that can be read."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as cache:  # np.load leaks a bad zip's handle
            return str(cache["stamp"]), Table(cache["packed"], int(cache["columns"])), cache["labels"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s): made again", path, error)
        return None


def _parse(published: Published, sources: Named) -> tuple[Table, np.ndarray]:
    readers = {published.features: partial(read_table, labelled=published.labels is None, most=published.rows)}
    if published.labels is not None:
        readers[published.labels] = read_labels
    if "archive" in sources:
        archive = fetch(published.url, sources["archive"])  # it is there: this checks that it is whole
        named = {member: partial(reader, name=f"{archive}/{member}") for member, reader in readers.items()}
        found = read_members(archive, named)
        table, *others = (found[member] for member in readers)
    else:
        pairs = zip(sources.values(), readers.values(), strict=True)
        table, *others = (_read_file(path, reader) for path, reader in pairs)
    labels = table.labels if published.labels is None else others[0]
    return table, _checked(published, table, labels, ", ".join(map(str, sources.values())))


def _read_file(path: Path, reader: Callable[..., Any]) -> Any:
    with open(path, "rb") as stream:
        return reader(stream, name=str(path))


def _checked(published: Published, table: Table, labels: np.ndarray, where: str) -> np.ndarray:
    """Labels counted from 0, after comparing the table with what is known of the published one."""
    if table.columns not in published.columns:
        expected = " or ".join(map(str, published.columns))
        raise UserError(f"{where}: {table.columns} features a row, {published.name} has {expected}")
    if len(table.packed) != published.rows or len(labels) != published.rows:
        raise UserError(
            f"{where}: {len(table.packed):,} rows and {len(labels):,} labels, {published.name} has "
            f"{published.rows:,}: is a file cut short? Delete it, and the archive is downloaded again"
        )
    wrong = np.flatnonzero((labels < 1) | (labels > published.num_classes))
    if len(wrong):
        first = wrong[0]
        raise UserError(f"{where}: line {first + 1}: label {labels[first]} is not in 1 .. {published.num_classes}")
    return labels - 1
