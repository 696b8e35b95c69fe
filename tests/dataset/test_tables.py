"""A user's own files as a dataset: what becomes a feature, what a label, what is kept of a record's name."""

from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.registry import DATASETS
from core.rng import stream
from core.types import AuditData

N = 60


def load(folder: Path, seed: int = 0, **settings) -> AuditData:
    return DATASETS["files"](folder, seed, **DATASETS.bind("files", settings))


@pytest.fixture
def table(tmp_path):
    """sick (yes, no), age, colour (three), smokes (true, false), code (1, 2), who, site."""
    draw = stream(3, "table")
    rows = ["sick,age,colour,smokes,code,who,site"]
    for n in range(N):
        cells = ["yes" if n % 3 else "no", f"{draw.normal(50, 9):.2f}", ("red", "blue", "green")[n % 3]]
        rows.append(",".join([*cells, "true" if n % 2 else "false", str(n % 2 + 1), f"p{n:03d}", f"site {n % 4}"]))
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return tmp_path


SETTINGS = {"file": "t.csv", "label": "sick", "id": "who", "groups": ("site",), "categorical": ("code",)}


def test_every_other_column_is_a_feature_and_categories_are_columns(table):
    data = load(table, **SETTINGS)
    names = ["age", *(f"colour={c}" for c in ("blue", "green", "red")), *(f"smokes={s}" for s in ("False", "True"))]
    assert data.feature_names == (*names, "code=1", "code=2")
    assert data.pool.x.dtype == np.float32 and data.pool.x.shape == (45, 8) and len(data.population) == 15
    together = np.concatenate([data.pool.x, data.population.x])
    np.testing.assert_array_equal(together[:, 1:4].sum(axis=1), np.ones(N))


def test_a_record_keeps_its_label_its_name_and_its_groups(table):
    data = load(table, seed=4, **SETTINGS)
    for records in (data.pool, data.population):
        number = np.array([int(name[1:]) for name in records.ids])
        np.testing.assert_array_equal(records.y, number % 3 != 0)  # no = 0, yes = 1: sorted
        np.testing.assert_array_equal(records.groups["site"], [f"site {n % 4}" for n in number])
        np.testing.assert_array_equal(records.x[:, 3] == 1, number % 3 == 0)  # colour=red
    assert data.num_classes == 2 and not set(data.pool.ids) & set(data.population.ids)


def test_features_are_scaled_by_the_population_alone(table):
    data = load(table, **SETTINGS)
    np.testing.assert_allclose(data.mean, data.population.x.mean(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(data.std[0], data.population.x[:, 0].std(dtype=float), rtol=1e-6)
    assert min(data.std) > 0
    plain = load(table, standardise=False, **SETTINGS)
    assert (plain.mean, plain.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "9", "2"], [2, 1, 1, 0]),
        (["b", "a", "c", "a"], [1, 0, 2, 0]),
        (["1.0", "0.0", "0.0", "1.0"], [1, 0, 0, 1]),
    ],
)
def test_labels_of_any_type_are_numbered_in_their_own_order(tmp_path, labels, classes):
    rows = [f"{label},{n}.5" for n, label in enumerate(labels * 3)]
    (tmp_path / "t.csv").write_text("\n".join(["label,x", *rows]))
    data = load(tmp_path, file="t.csv")
    for records in (data.pool, data.population):
        number = (records.x[:, 0] - 0.5).astype(int)
        np.testing.assert_array_equal(records.y, np.array(classes * 3)[number])


def test_missing_numbers_are_an_error_or_the_populations_mean(table):
    text = (table / "t.csv").read_text().splitlines()
    for row in (5, 17, 40):
        cells = text[row].split(",")
        text[row] = ",".join([cells[0], "", *cells[2:]])
    (table / "t.csv").write_text("\n".join(text))
    with pytest.raises(UserError, match=r"numbers are missing in age \(3\): fill them, or say missing: mean"):
        load(table, **SETTINGS)
    data = load(table, missing="mean", **SETTINGS)
    filled = np.isin(data.pool.ids, ["p004", "p016", "p039"])
    assert np.isfinite(data.pool.x).all() and filled.any()
    np.testing.assert_allclose(data.pool.x[filled, 0], data.mean[0], rtol=1e-5)


def test_a_population_of_its_own_may_lack_a_category(table):
    text = (table / "t.csv").read_text().splitlines()
    others = [line.replace(",p", ",q") for line in text[1:] if "red" not in line]
    (table / "p.csv").write_text("\n".join([text[0], *others]))
    data = load(table, population="p.csv", **SETTINGS)
    assert (len(data.pool), len(data.population)) == (N, 40)
    assert not data.population.x[:, data.feature_names.index("colour=red")].any()
    assert data.pool.x[:, data.feature_names.index("colour=red")].sum() == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "sik"}, "no column 'sik': did you mean 'sick'"),
        ({"label": "age"}, "holds fractions"),
        ({"id": "site"}, "are not all different"),
        ({"features": ("sick", "age")}, "cannot be a feature"),
        ({"file": "none.csv"}, "there is no .*none.csv"),
        ({"drop": ("aeg",)}, "no column 'aeg': did you mean 'age'"),
        ({"population_fraction": 0.99}, "leaves"),
    ],
)
def test_each_mistake_says_what_to_do(table, change, said):
    with pytest.raises(UserError, match=said):
        load(table, **{**SETTINGS, **change})


def test_a_column_of_names_is_no_feature(tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(["label,who,x", *(f"{n % 2},name{n},{n}" for n in range(300))]))
    with pytest.raises(UserError, match=r"'who' has 300 different texts: a name is no feature\. Say id: who"):
        load(tmp_path, file="t.csv")


@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (12, 8, 8, 3), (12, 8, 8)])
def test_images_in_a_npz_have_their_channels_first(tmp_path, shape):
    x = stream(1, "images").integers(256, size=shape).astype(np.uint8)
    np.savez(tmp_path / "t.npz", x=x, y=np.arange(12) % 3, who=np.arange(12))
    data = load(tmp_path, file="t.npz", id="who")
    expected = x if shape[1] == 3 else x.transpose(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
    np.testing.assert_array_equal(data.pool.x, expected[data.pool.ids.astype(int)])
    assert data.is_image and len(data.mean) == expected.shape[1] and data.num_classes == 3


def test_a_folder_of_images_for_each_class(tmp_path):
    from PIL import Image

    draw = stream(2, "images")
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(4):
            pixels = draw.integers(256, size=(6, 6, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{n}.png")
    data = load(tmp_path, file="pets", population_fraction=0.25)
    paths = {f"{name}/{n}.png" for name in ("cat", "dog") for n in range(4)}
    assert data.input_shape == (3, 6, 6) and set(data.pool.ids) < paths
    for record, name, y in zip(data.pool.x, data.pool.ids, data.pool.y, strict=True):
        np.testing.assert_array_equal(record.transpose(1, 2, 0), np.asarray(Image.open(tmp_path / "pets" / name)))
        assert y == name.startswith("dog")
    Image.new("RGB", (9, 9)).save(tmp_path / "pets/dog/large.png")
    with pytest.raises(UserError, match="differ in size"):
        load(tmp_path, file="pets")
    assert load(tmp_path, file="pets", image_size=5).input_shape == (3, 5, 5)
    (tmp_path / "pets/dog/broken.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"broken\.png is not an image"):
        load(tmp_path, file="pets", image_size=5)


def test_breast_cancer_is_the_table_of_its_package():
    from sklearn.datasets import load_breast_cancer

    data = DATASETS["breast_cancer"](Path("."), 0, **DATASETS.bind("breast_cancer", {}))
    theirs = load_breast_cancer()
    ours = np.column_stack([np.r_[data.pool.y, data.population.y], np.concatenate([data.pool.x, data.population.x])])
    expected = np.column_stack([theirs.target, theirs.data.astype(np.float32)])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], expected[np.lexsort(expected.T)])
    assert len(data.mean) == len(data.feature_names) == 30 and data.feature_names[0] == "mean radius"
