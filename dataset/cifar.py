"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images").

The files are those that torchvision knows too, under the same names and with the digests it publishes, so a copy
made by either serves both. Their batches are pickles, hence programs: they are read by an unpickler that knows
only arrays of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.loading import ARRAYS, Inert, read_bytes, unpickle, unpickled_array
from core.registry import DATASETS
from core.rundir import write_atomic
from core.types import AuditData, Records
from dataset.files import digest, fetch, read_members
from dataset.splits import pixel_constants


@dataclass(frozen=True)
class Published:
    """A dataset as its authors publish it. Digests are those of torchvision/datasets/cifar.py."""

    url: str
    md5: str
    folder: str
    pool: Mapping[str, str]  # file -> MD5
    population: Mapping[str, str]
    labels: bytes
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10 = Published(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    pool={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    population={"test_batch": "40351d587109b95175f43aff81a1287e"},
    labels=b"labels",
    num_classes=10,
    mean=pixel_constants(0.4914, 0.4822, 0.4465),  # of the 50,000 training images, widely published
    std=pixel_constants(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Published(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    pool={"train": "16019d7e3df5f24257cddd939b257f8d"},
    population={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    labels=b"fine_labels",
    num_classes=100,
    mean=pixel_constants(0.5071, 0.4865, 0.4409),
    std=pixel_constants(0.2673, 0.2564, 0.2762),
)


@DATASETS.register("cifar10", summary="50,000 + 10,000 photographs of 10 kinds, 3 x 32 x 32 (download)", images=True)
def cifar10(data_dir: Path, seed: int) -> AuditData:
    """CIFAR-10 in its official split: the pool is the training set, the population the test set."""
    return load(CIFAR10, data_dir)


@DATASETS.register("cifar100", summary="50,000 + 10,000 photographs of 100 kinds, 3 x 32 x 32 (download)", images=True)
def cifar100(data_dir: Path, seed: int) -> AuditData:
    """CIFAR-100 with its 100 fine labels, in its official split: pool = training set, population = test set."""
    return load(CIFAR100, data_dir)


def load(published: Published, data_dir: Path) -> AuditData:
    """Read the batches under `data_dir`, after unpacking or downloading their archive where they are missing."""
    folder = data_dir / published.folder
    files = {**published.pool, **published.population}
    if not all((folder / name).exists() for name in files):
        _unpack(published, data_dir)
    for name, md5 in files.items():
        if (found := digest(folder / name, "md5")) != md5:
            raise UserError(
                f"{folder / name} has MD5 {found}, the published file has {md5}. Delete it, and it is unpacked again"
            )
    pool, population = (_records(folder, names, published) for names in (published.pool, published.population))
    return AuditData(pool, population, published.num_classes, published.mean, published.std)


def _unpack(published: Published, data_dir: Path) -> None:
    archive = fetch(published.url, data_dir / published.url.rsplit("/", 1)[-1], md5=published.md5)
    names = [f"{published.folder}/{name}" for name in (*published.pool, *published.population)]
    for name, content in read_members(archive, dict.fromkeys(names, lambda stream: stream.read())).items():
        write_atomic(data_dir / name, lambda file, content=content: file.write(content))


def _records(folder: Path, names: Mapping[str, str], published: Published) -> Records:
    x, y = zip(*(read_batch(folder / name, published.labels, published.num_classes) for name in names), strict=True)
    return Records(np.concatenate(x), np.concatenate(y))


def read_batch(path: Path, labels: bytes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 3, 32, 32) and labels int64 (n,) of one batch file.

    Raises UserError: the file asks for more than arrays of bytes (with the symbol it asked for), or holds
    something other than a CIFAR batch.
    """
    batch = unpickle(read_bytes(path), dict.fromkeys(ARRAYS, Inert), str(path), encoding="bytes")
    try:
        x = _pixels(batch[b"data"])
        y = np.array(batch[labels], dtype=np.int64)
    except (UserError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a CIFAR batch ({type(error).__name__}: {error})") from None
    if y.shape != (len(x),) or (len(y) and not 0 <= y.min() <= y.max() < num_classes):
        raise UserError(f"{path}: need one label in 0 .. {num_classes - 1} for each of its {len(x)} images")
    return x, y


def _pixels(array: Inert) -> np.ndarray:
    """The images of a pickled uint8 array."""
    flat = unpickled_array(array, "its data")
    if flat.dtype != np.uint8 or flat.ndim != 2 or flat.shape[1] != 3 * 32 * 32 or not flat.flags.c_contiguous:
        raise ValueError(f"need rows of 3072 bytes, got {flat.dtype} of shape {flat.shape}")
    return flat.reshape(-1, 3, 32, 32)
