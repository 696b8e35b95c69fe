"""A user's own dataset, without code: a table (.csv, .tsv, .parquet, .npz) or folders of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import Float, Int, Shaped
from numpy import ndarray as Array

from core.errors import UserError, WrongSetting
from core.registry import DATASETS
from core.tables import INDEX, Columns, as_text, column_of, read_table
from core.types import AuditData, Records
from dataset.splits import divide, divide_owners

log = logging.getLogger(__name__)

Fraction = Annotated[float, Interval(gt=0, lt=1)]
MOST_CATEGORIES = 100  # of a text column, before it is taken for a name and not a category


@dataclass(frozen=True)
class _Read:
    """Records as they were read, not yet divided."""

    x: Shaped[Array, "n ..."]
    y: Int[Array, " n"]
    classes: tuple[str, ...]
    ids: Shaped[Array, " n"] | None
    groups: Mapping[str, Shaped[Array, " n"]]
    names: tuple[str, ...] | None  # of features

    def at(self, index: Int[Array, " m"]) -> Records:
        ids = None if self.ids is None else self.ids[index]
        groups = {name: column[index] for name, column in self.groups.items()}
        return Records(self.x[index], self.y[index], ids=ids, groups=groups)


@DATASETS.register(
    "files", summary="your own table (csv, tsv, parquet, npz) or folders of images, without code", images=False
)
def files(
    data_dir: Path,
    seed: int,
    *,
    file: Path,
    label: str = "label",
    id: str | None = None,
    groups: tuple[str, ...] = (),
    owner: str | None = None,
    about: Path | None = None,
    features: tuple[str, ...] | None = None,
    categorical: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    population: Path | None = None,
    population_fraction: Fraction = 0.25,
    missing: Literal["error", "mean"] = "error",
    standardise: bool = True,
    image_size: Annotated[int, Ge(4)] | None = None,
) -> AuditData:
    """A table with a row for each record, an array file, or a folder of images with a folder for each class.

    In a .npz, `features` names one array (default x): float (n, d), or images uint8 (n, C, H, W), (n, H, W, C) or
    (n, H, W). In a table every column is a feature that is not the label, the id, a group or dropped; text, true and
    false become one column for each category. Labels of any type become 0 .. C - 1 in sorted order, which is logged.

    - file: the table, or the folder; relative to data.data_dir
    - label: the column of labels; of a .npz `y` if there is no array `label`
    - id: a column of names of the records, repeated in every table of records
    - groups: columns that say what kind of record it is (sex, site, year); they are no features unless named as such
    - owner: a column of whose record it is, a group, too; owners are then on one side of every division (owners.md)
    - about: of images, a table with a row for each: its path within the folder in the column `id` (or path), and groups
    - features: the columns to use; all others if left out
    - categorical: columns of numbers that are codes of categories
    - drop: columns to leave out
    - population: another such file of records that no model trains on; a part of `file` is, if left out
    - population_fraction: how large a part
    - missing: missing numbers are an error, or become the population's mean of the column
    - standardise: features minus the population's mean, over its standard deviation; the pool is never looked at
    - image_size: pixels a side that images are resized to; needed where they differ in size
    """
    paths = [data_dir / file, *([data_dir / population] if population else [])]
    groups = tuple(dict.fromkeys((*groups, *([owner] if owner else []))))
    for path in (*paths, *([data_dir / about] if about else [])):
        if not path.exists():
            raise UserError(f"data.dataset files: there is no {path} (data.data_dir is {data_dir})")
    if paths[0].is_dir():
        read = [_read_images(path, image_size) for path in paths]
        if groups:
            read = [
                _described(one, path, data_dir / about if about else None, id, groups)
                for one, path in zip(read, paths, strict=True)
            ]
    else:
        if about:
            raise WrongSetting("data.about", f"{paths[0]} is a table, whose own columns are the groups: leave it out")
        spec = _Columns(label, id, groups, features, categorical, drop)
        read = [_read_npz(path, spec) if path.suffix.lower() == ".npz" else spec.read(path) for path in paths]
    whole = _joined(read, paths)
    count = len(read[0].y)
    if population:
        pool, others = np.arange(count), np.arange(count, len(whole.y))
    elif owner:
        pool, others = divide_owners(whole.groups[owner], seed, population_fraction)
    else:
        pool, others = divide(count, seed, population_fraction)
    if len(whole.classes) < 2:
        raise UserError(f"{paths[0]}: all labels are {whole.classes[0]!r}: a classifier needs at least 2 classes")
    log.info("%s: labels %s", file, _shown([f"{name} = {number}" for number, name in enumerate(whole.classes)]))
    mean, std, x = _scaled(whole, others, missing, standardise, paths[0])
    whole = _Read(x, whole.y, whole.classes, whole.ids, whole.groups, whole.names)
    return AuditData(whole.at(pool), whole.at(others), len(whole.classes), mean, std, feature_names=whole.names)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", … ({len(names)} in all)" if len(names) > 10 else "")


# --- tables ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Which column is what."""

    label: str
    id: str | None
    groups: tuple[str, ...]
    features: tuple[str, ...] | None
    categorical: tuple[str, ...]
    drop: tuple[str, ...]

    def read(self, path: Path) -> _Read:
        columns = read_table(path)
        y = as_text(_labels(column_of(columns, self.label, path), f"{path}: column {self.label!r}"))
        named = {self.label, self.id, INDEX, *self.groups, *self.drop}
        for name in (*self.drop, *self.categorical, *(self.features or ())):
            column_of(columns, name, path)
        chosen = self.features if self.features is not None else [name for name in columns if name not in named]
        if self.label in chosen:
            raise UserError(f"{path}: the label {self.label!r} cannot be a feature")
        if not chosen:
            raise UserError(f"{path} has no features beside {', '.join(sorted(filter(None, named)))}")
        blocks, names = [], []
        for name in chosen:
            block, of_block = self._feature(columns[name], name, path)
            blocks.append(block)
            names += of_block
        with np.errstate(over="ignore"):  # found and named later
            x = np.concatenate(blocks, axis=1).astype(np.float32)
        return _Read(x, *_numbered(y), *self.known(columns, path), tuple(names))

    def known(self, columns: Columns, path: Path) -> tuple[Shaped[Array, " n"] | None, dict[str, Array]]:
        """Ids and groups."""
        ids = as_text(column_of(columns, self.id, path)) if self.id else None
        if ids is not None and len(np.unique(ids)) < len(ids):
            raise UserError(f"{path}: the ids in column {self.id!r} are not all different")
        return ids, {name: as_text(column_of(columns, name, path)) for name in self.groups}

    def _feature(self, column: Array, name: str, path: Path) -> tuple[Float[Array, "n k"], list[str]]:
        """One column as numbers: itself, or a column for each of its categories."""
        if column.dtype.kind in "iuf" and name not in self.categorical:
            return column[:, None].astype(np.float64), [name]
        categories, codes = np.unique(as_text(column), return_inverse=True)
        if len(categories) > MOST_CATEGORIES:
            raise UserError(
                f"{path}: column {name!r} has {len(categories)} different texts: a name is no feature. Say id: {name}, "
                f"or leave it out with drop: [{name}]"
            )
        log.info("%s: %s has the categories %s", path.name, name, _shown(categories.tolist()))
        return np.eye(len(categories))[codes], [f"{name}={category}" for category in categories]


def _labels(column: Array, what: str) -> Array:
    if column.ndim != 1:
        raise UserError(f"{what}: labels are one value a record, got an array of shape {column.shape}")
    if column.dtype.kind == "f" and np.isnan(column).any():
        raise UserError(f"{what}: {int(np.isnan(column).sum())} labels are missing")
    if column.dtype.kind == "f" and (column != np.round(column)).any():
        raise UserError(f"{what} holds fractions, as {column[column != np.round(column)][0]:g}: labels are classes")
    if column.dtype.kind in "US" and (column == "").any():
        raise UserError(f"{what}: {int((column == '').sum())} labels are missing")
    return column


def _numbered(text: Shaped[Array, " n"]) -> tuple[Int[Array, " n"], tuple[str, ...]]:
    """Labels 0 .. C - 1 and their names, numbers in the order of numbers."""
    classes, y = np.unique(text, return_inverse=True)
    try:
        order = np.argsort(classes.astype(np.float64), kind="stable")
    except ValueError:
        order = np.arange(len(classes))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[y], tuple(classes[order].tolist())


# --- arrays and images -----------------------------------------------------------------------------------------


def _read_npz(path: Path, spec: _Columns) -> _Read:
    arrays = read_table(path)
    if spec.features is not None and len(spec.features) != 1:
        raise UserError(f"{path}: of a .npz, features names the one array that holds them")
    x = column_of(arrays, spec.features[0] if spec.features else "x", path)
    label = spec.label if spec.label in arrays or spec.label != "label" else "y"
    y = _labels(column_of(arrays, label, path), f"{path}: {label}")
    if len(y) != len(x) or x.dtype.kind not in "iuf":
        found = f"features {x.dtype} {x.shape} and labels {y.shape}"
        raise UserError(f"{path}: {found} do not fit: one row of numbers a record")
    x = _images(x, path) if x.dtype == np.uint8 and x.ndim in (3, 4) else x.reshape(len(x), -1).astype(np.float32)
    return _Read(x, *_numbered(as_text(y)), *spec.known(arrays, path), None)


def _images(x: Array, path: Path) -> Array:
    """Images with their channels first."""
    if x.ndim == 3:
        return x[:, None]
    if x.shape[1] in (1, 3, 4):
        return x
    if x.shape[3] in (1, 3, 4):
        log.info("%s: images %s are taken as (n, H, W, C)", path.name, x.shape)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    raise UserError(f"{path}: images are (n, C, H, W) or (n, H, W, C) with 1, 3 or 4 channels, got {x.shape}")


def _described(images: _Read, folder: Path, table: Path | None, id: str | None, groups: tuple[str, ...]) -> _Read:
    """The images with what a table says of each, found by its path within the folder."""
    if table is None:
        raise WrongSetting(
            "data.about", f"groups of the images in {folder} ({', '.join(groups)}) stand in a table: name it here"
        )
    columns = read_table(table)
    places = as_text(column_of(columns, id or ("path" if "path" in columns else "id"), table))
    row = {place.removeprefix("./"): n for n, place in enumerate(places.tolist())}
    if len(row) < len(places):
        raise UserError(f"{table}: it has two rows for one image: a path stands in one row only")
    assert images.ids is not None
    if unknown := [name for name in images.ids.tolist() if name not in row]:
        raise UserError(f"{table}: it has no row for {len(unknown)} images of {folder}: {_shown(unknown)}")
    rows = np.array([row[name] for name in images.ids.tolist()])
    return replace(images, groups={name: as_text(column_of(columns, name, table))[rows] for name in groups})


def _read_images(folder: Path, size: int | None) -> _Read:
    """A folder of images for each class, as torchvision's ImageFolder has it; ids are the paths within."""
    from PIL import Image, UnidentifiedImageError

    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    suffixes = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    found = [(p, name) for name in classes for p in sorted((folder / name).rglob("*")) if p.suffix.lower() in suffixes]
    if not found:
        raise UserError(f"{folder} has no folders of images: one for each class is needed, as {folder}/cat/1.png")
    images = []
    for path, _ in found:
        try:
            with Image.open(path) as image:
                image = image.convert("L" if image.mode in ("L", "1", "I", "I;16", "F") else "RGB")
                images.append(np.asarray(image if size is None else image.resize((size, size)), dtype=np.uint8))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path} is not an image that can be read ({error})") from None
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    if len(shapes := {image.shape[:2] for image in images}) > 1:
        raise UserError(f"{folder}: images differ in size ({len(shapes)} sizes): say image_size: 32, or resize them")
    x = np.stack(images)
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    y, names = _numbered(np.array([name for _, name in found]))
    ids = np.array([path.relative_to(folder).as_posix() for path, _ in found])
    return _Read(np.ascontiguousarray(x), y, names, ids, {}, None)


# --- both files together ---------------------------------------------------------------------------------------


def _joined(read: Sequence[_Read], paths: Sequence[Path]) -> _Read:
    """The records of one or two files, with the same features and labels."""
    first = read[0]
    if len(read) == 1:
        return first
    names = tuple(dict.fromkeys(name for one in read for name in one.names or ()))  # a category may be in one file only
    numeric = [{name for name in one.names or () if "=" not in name} for one in read]
    if (first.x.shape[1:] != read[1].x.shape[1:] and not names) or numeric[0] != numeric[1]:
        raise UserError(f"{paths[0]} and {paths[1]} have other features: {first.x.shape[1:]} and {read[1].x.shape[1:]}")
    x = [one.x if one.names in (None, names) else _spread(one, names) for one in read]
    y, classes = _numbered(np.concatenate([np.array(one.classes)[one.y] for one in read]))
    ids = None if first.ids is None else np.concatenate([one.ids for one in read])  # type: ignore[misc]
    groups = {name: np.concatenate([one.groups[name] for one in read]) for name in first.groups}
    return _Read(np.concatenate(x), y, classes, ids, groups, names or None)


def _spread(one: _Read, names: Sequence[str]) -> Float[Array, "n d"]:
    """The features under all names of both files; a category that a file does not have is 0 there."""
    assert one.names is not None
    x = np.zeros((len(one.y), len(names)), dtype=np.float32)
    x[:, [names.index(name) for name in one.names]] = one.x
    return x


def _scaled(
    read: _Read, population: Int[Array, " P"], missing: str, standardise: bool, path: Path
) -> tuple[tuple[float, ...], tuple[float, ...], Array]:
    """Constants (mean, std) from the population alone, and the features with nothing missing."""
    x = read.x
    if x.ndim == 4:
        of_pixels = x[population].astype(np.float64)
        spread = np.maximum(of_pixels.std(axis=(0, 2, 3)), 1.0)
        return (*of_pixels.mean(axis=(0, 2, 3)).tolist(),), (*spread.tolist(),), x
    names = read.names or [str(column) for column in range(x.shape[1])]
    if np.isinf(x).any():
        column = int(np.isinf(x).any(axis=0).argmax())
        raise UserError(f"{path}: {names[column]!r} has values that are infinite, or too large for float32")
    absent = np.isnan(x)
    known = ~absent[population]
    wide = x[population].astype(np.float64)
    count = known.sum(axis=0)
    mean = wide.sum(axis=0, where=known) / np.maximum(count, 1)
    if absent.any():
        if missing == "error":
            named = _shown([f"{names[c]} ({int(absent[:, c].sum())})" for c in np.flatnonzero(absent.any(axis=0))])
            raise UserError(f"{path}: numbers are missing in {named}: fill them, or say missing: mean")
        x = np.where(absent, mean.astype(np.float32), x)
    if not standardise:
        return (0.0,), (1.0,), x
    spread = np.sqrt(np.square(wide - mean).sum(axis=0, where=known) / np.maximum(count, 1))
    return (*mean.tolist(),), (*np.where(spread > 0, spread, 1.0).tolist(),), x
