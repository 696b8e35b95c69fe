import pickle
from dataclasses import replace

import numpy as np
import pytest

from core.errors import UserError
from dataset.cifar import CIFAR10, CIFAR100, Published, load, read_batch
from tests.dataset.conftest import hostile_pickle, make_tgz, md5, python2_batch

PIXELS = np.random.default_rng(0).integers(0, 256, size=(6, 4, 3072), dtype=np.uint8)


def batch(which: int, published: Published, python: int) -> bytes:
    """Four images with labels `which` .. `which + 3`, as Python 2 or today's Python pickles them."""
    labels = [(which + i) % published.num_classes for i in range(4)]
    if python == 2:
        return python2_batch((4, 3072), PIXELS[which].tobytes(), published.labels, labels)
    return pickle.dumps({b"data": PIXELS[which], published.labels: labels, b"batch_label": b"x"})


def small(published: Published, python: int) -> tuple[Published, dict[str, bytes]]:
    """The dataset with four images a file: its files, and its description with their digests."""
    names = [*published.pool, *published.population]
    files = {name: batch(which, published, python) for which, name in enumerate(names)}
    digests = [{name: md5(files[name]) for name in part} for part in (published.pool, published.population)]
    return replace(published, pool=digests[0], population=digests[1]), files


def archived(tmp_path, published: Published, python: int = 2) -> Published:
    published, files = small(published, python)
    name = published.url.rsplit("/", 1)[-1]
    archive = make_tgz(tmp_path / name, {f"{published.folder}/{file}": content for file, content in files.items()})
    return replace(published, md5=md5(archive.read_bytes()))


@pytest.mark.parametrize("python", [2, 3])
@pytest.mark.parametrize("published", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def test_the_official_split_is_read_from_the_archive(tmp_path, published, python):
    data = load(archived(tmp_path, published, python), tmp_path)
    files = len(published.pool)
    np.testing.assert_array_equal(data.pool.x, PIXELS[:files].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(data.population.x, PIXELS[files].reshape(-1, 3, 32, 32))
    expected = (np.arange(files)[:, None] + np.arange(4)).ravel() % published.num_classes
    np.testing.assert_array_equal(data.pool.y, expected)
    assert (data.pool.x.dtype, data.pool.y.dtype) == (np.uint8, np.int64)
    assert (data.input_shape, data.num_classes) == ((3, 32, 32), published.num_classes)


@pytest.mark.slow
def test_the_digests_are_those_of_the_installed_torchvision():
    from torchvision.datasets import CIFAR10 as Tv10
    from torchvision.datasets import CIFAR100 as Tv100

    for ours, theirs in ((CIFAR10, Tv10), (CIFAR100, Tv100)):
        assert (ours.url, ours.md5, ours.folder) == (theirs.url, theirs.tgz_md5, theirs.base_folder)
        assert list(ours.pool.items()) == [tuple(pair) for pair in theirs.train_list]
        assert list(ours.population.items()) == [tuple(pair) for pair in theirs.test_list]


def test_unpacked_batches_need_no_archive(tmp_path):
    published = archived(tmp_path, CIFAR10)
    first = load(published, tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    np.testing.assert_array_equal(load(published, tmp_path).pool.x, first.pool.x)


def test_a_batch_missing_from_the_folder_is_unpacked_again(tmp_path):
    published = archived(tmp_path, CIFAR100)
    load(published, tmp_path)
    (tmp_path / "cifar-100-python" / "test").unlink()
    assert len(load(published, tmp_path).population) == 4


def test_an_archive_or_batch_with_another_digest_is_refused(tmp_path):
    published = archived(tmp_path, CIFAR10)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz has MD5 .*the published file has"):
        load(replace(published, md5=CIFAR10.md5), tmp_path)
    assert not (tmp_path / "cifar-10-batches-py").exists()
    load(published, tmp_path)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"data_batch_3 has MD5"):
        load(published, tmp_path)


def test_a_hostile_batch_is_refused_with_what_it_asked_for(tmp_path):
    """Even with the right digest: MD5 can be forged."""
    content = hostile_pickle(tmp_path / "was here")
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).write_bytes(content)
    published = replace(CIFAR100, pool={"train": md5(content)}, population={"test": md5(content)})
    with pytest.raises(UserError, match=r"train is refused: it asks for (posix|nt)\.system"):
        load(published, tmp_path)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {b"data": PIXELS[0]},
        {b"data": [1, 2], b"labels": [1, 2]},
        {b"data": PIXELS[0].astype(np.float32), b"labels": [0, 1, 2, 3]},
        {b"data": PIXELS[0][:, :10].copy(), b"labels": [0, 1, 2, 3]},
        {b"data": np.asfortranarray(PIXELS[0]), b"labels": [0, 1, 2, 3]},
        {b"data": PIXELS[0], b"labels": [0, 1, 2]},
        {b"data": PIXELS[0], b"labels": [0, 1, 2, 10]},
        {b"data": PIXELS[0], b"labels": [0, 1, 2, -1]},
        {b"data": PIXELS[0], b"labels": "0123"},
        {b"data": np.array([[{}] * 3072], dtype=object), b"labels": [0]},
    ],
)
def test_a_pickle_of_something_else_is_named(tmp_path, value):
    (tmp_path / "batch").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=r"batch(:| is not a CIFAR batch| is refused)"):
        read_batch(tmp_path / "batch", b"labels", 10)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({b"data": PIXELS[0]})[:-500]])
def test_a_damaged_pickle_is_named(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match="batch cannot be read as a pickle"):
        read_batch(tmp_path / "batch", b"labels", 10)
