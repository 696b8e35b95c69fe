"""Range functions sample what they say, refuse what they cannot, and know which records lie inside."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from core.rng import stream
from core.types import AuditData, Records
from dataset.ranges import RANGES, SettingError, bound
from dataset.ranges.geometric import TRANSFORMATIONS
from dataset.ranges.missing_values import ENUMERATED
from dataset.ranges.truth import others_inside


def features(x, population=None):
    x = np.asarray(x, dtype=np.float32)
    population = x if population is None else np.asarray(population, dtype=np.float32)
    zeros = [np.zeros(len(part), dtype=np.int64) for part in (x, population)]
    return AuditData(Records(x, zeros[0]), Records(population, zeros[1]), num_classes=2)


def images(count=12, shape=(3, 16, 16), name="images"):
    x = stream(0, name).integers(0, 256, size=(count, *shape), dtype=np.uint8)
    records = Records(x, np.arange(count) % 2)
    return AuditData(records, records, num_classes=2, mean=(128.0,) * shape[0], std=(64.0,) * shape[0])


BITS = stream(0, "bits").integers(0, 2, size=(60, 12))
ALL = ["horizontal_flip", "vertical_flip", "rotate", "shift", "crop", "color_jitter"]
EVERY = {
    "l2": (features(BITS), {"name": "l2", "radius": 3}),
    "l2 on images": (images(), {"name": "l2", "radius": 100}),
    "geometric": (images(), {"name": "geometric", "transformations": ALL}),
    "flips": (images(), {"name": "geometric", "transformations": ["horizontal_flip", "vertical_flip"]}),
    "grey": (images(shape=(1, 8, 8)), {"name": "geometric", "transformations": ALL}),
    "joint": (features(BITS), {"name": "missing_values", "columns": 6}),
    "per_column": (features(BITS), {"name": "missing_values", "columns": [0, 3, 5, 7], "imputation": "per_column"}),
    "redrawn": (
        features(stream(0, "wide").integers(0, 9, size=(60, 12))),
        {"name": "missing_values", "columns": 8, "imputation": "per_column"},
    ),
    "categorical": (features(BITS), {"name": "missing_values", "columns": 5, "imputation": "categorical"}),
    "uniform": (
        features(BITS),
        {"name": "missing_values", "columns": 2, "imputation": "uniform", "col_ranges": [[-1, 1]]},
    ),
}


def make(data, value):
    name, settings = bound(RANGES, value)
    return RANGES[name](data, **settings)


@pytest.fixture(params=EVERY)
def case(request):
    data, value = EVERY[request.param]
    return data, make(data, value)


class TestEveryRange:
    def test_samples_are_distinct_and_never_the_center(self, case):
        data, ranges = case
        count = int(min(ranges.points(), 20))
        for center in data.pool.x[:5]:
            found = ranges.sample(center, count, stream(0, "samples"))
            assert found.shape == (count, *center.shape)
            assert len({row.tobytes() for row in found}) == count
            assert not (found == center).reshape(count, -1).all(axis=1).any()

    def test_the_first_samples_are_the_same_whatever_their_count(self, case):
        data, ranges = case
        count = int(min(ranges.points(), 12))
        few, many = (ranges.sample(data.pool.x[0], k, stream(0, "prefix")) for k in (2, count))
        assert np.array_equal(few, many[:2])

    def test_a_stream_decides_the_samples(self, case):
        data, ranges = case
        once, again, other = (ranges.sample(data.pool.x[0], 3, stream(seed, "stream")) for seed in (0, 0, 1))
        assert np.array_equal(once, again)
        assert ranges.points() < 10 or not np.array_equal(once, other)

    def test_no_global_generator_is_touched(self, case):
        data, ranges = case
        before = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
        ranges.sample(data.pool.x[0], 3, stream(0, "global"))
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state()[1].tobytes()  # noqa: NPY002

    def test_a_record_lies_in_its_own_range(self, case):
        data, ranges = case
        assert ranges.inside(data.pool.x[:9], data.pool.x[:9]).diagonal().all()

    def test_the_center_is_not_changed(self, case):
        data, ranges = case
        before = data.pool.x[0].copy()
        ranges.sample(data.pool.x[0], 3, stream(0, "change"))
        assert np.array_equal(before, data.pool.x[0])


# ---- l2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5, 50])
def test_l2_is_uniform_in_the_ball(d):
    """The volume within t R is t^d of the ball's, and no direction is favoured."""
    center = np.full(d, 7, dtype=np.float32)
    ball = make(features(np.zeros((2, d))), {"name": "l2", "radius": 2})
    offset = ball.sample(center, 20_000, stream(0, "ball", d)).astype(np.float64) - center
    share = (np.linalg.norm(offset, axis=1) / 2) ** d
    assert kstest(share, "uniform").pvalue > 0.01
    assert share.max() <= 1 + 1e-4
    assert kstest(share[offset[:, 0] > 0], "uniform").pvalue > 0.01
    assert np.abs((offset > 0).mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)


def test_samples_of_a_ball_lie_inside_it_and_its_neighbours_are_those_of_a_loop():
    data, value = EVERY["l2"]
    ball = make(data, value)
    x = data.pool.x
    naive = [[np.linalg.norm(a.astype(float) - b) <= 3 for b in x] for a in x]  # distances of 3 exactly are in
    assert np.array_equal(ball.inside(x, x), naive)
    assert 0 < np.mean(naive) < 1
    inner = make(data, {"name": "l2", "radius": 3.001})  # float32 rounds a sample outwards by less
    assert inner.inside(x[:1], ball.sample(x[0], 100, stream(0, "inner"))).all()


@pytest.mark.parametrize("radius", [0, -1, "wide"])
def test_l2_needs_a_positive_radius(radius):
    with pytest.raises(ValueError, match="radius should be"):
        bound(RANGES, {"name": "l2", "radius": radius})


# ---- geometric ------------------------------------------------------------------------------------------------


def test_flips_reach_the_three_other_pictures_and_no_more():
    data, value = EVERY["flips"]
    ranges, center = make(data, value), data.pool.x[0]
    assert ranges.points() == 3
    found = {row.tobytes() for row in ranges.sample(center, 3, stream(0, "flips"))}
    assert found == {np.flip(center, axes).tobytes() for axes in ((1,), (2,), (1, 2))}


def test_a_picture_with_too_few_others_is_an_error_and_not_an_endless_loop():
    data = images()
    blank = np.zeros((3, 16, 16), dtype=np.uint8)
    with pytest.raises(ValueError, match="0 distinct pictures beside the center, and 2 samples"):
        make(data, EVERY["flips"][1]).sample(blank, 2, stream(0, "blank"))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_each_transformation_alone_changes_pictures_and_keeps_their_shape(name):
    data = images()
    ranges = make(data, {"name": "geometric", "transformations": [name]})
    (found,) = ranges.sample(data.pool.x[0], 1, stream(0, name))
    assert found.shape == (3, 16, 16) and found.dtype == np.uint8 and not np.array_equal(found, data.pool.x[0])


def test_all_pictures_of_a_batch_undergo_the_same():
    data, value = EVERY["geometric"]
    ranges = make(data, value)
    batch = ranges._picture(data.pool.x, stream(0, "batch"))
    alone = [ranges._picture(picture, stream(0, "batch")) for picture in data.pool.x]
    assert np.abs(batch.astype(int) - np.stack(alone)).max() <= 1  # contrast is a mean, summed in another order


def test_shift_moves_by_whole_pixels_and_reflects():
    data = images(count=1)
    ranges = make(data, {"name": "geometric", "transformations": [{"name": "shift", "pixels": 1}]})
    center = data.pool.x[0]
    padded = np.pad(center, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = {padded[:, y : y + 16, x : x + 16].tobytes() for y, x in product(range(3), repeat=2)}
    assert ranges.points() == 8
    assert {row.tobytes() for row in ranges.sample(center, 8, stream(0, "shift"))} == expected - {center.tobytes()}


def test_rotation_stays_within_its_degrees():
    """A bright line at the right moves to at most the angle asked for."""
    picture = np.zeros((1, 65, 65), dtype=np.uint8)
    picture[0, 31:34, 56:60] = 255
    data = AuditData(*[Records(picture[None], np.zeros(1, dtype=np.int64))] * 2, num_classes=2)
    ranges = make(data, {"name": "geometric", "transformations": [{"name": "rotate", "degrees": 20}]})
    y, x = np.mgrid[:65, :65] - 32
    turned = ranges.sample(picture, 300, stream(0, "rotate"))[:, 0].astype(float)
    angle = [math.degrees(math.atan2(-(y * p).sum(), (x * p).sum())) for p in turned]
    assert np.abs(angle).max() < 21 and min(angle) < -18 and max(angle) > 18


def test_duplicates_and_transformed_copies_are_found_and_strangers_are_not():
    data = images(count=6, shape=(1, 16, 16))
    x = data.pool.x.astype(int)
    noisy = np.clip(x + 3, 0, 255)  # within a tenth of the standard deviation of 64
    far = np.clip(x + 30, 0, 255)
    ranges = make(data, {"name": "geometric", "transformations": ["horizontal_flip"]})
    same = np.eye(6, dtype=bool)
    for copy in (x, x[..., ::-1], noisy, noisy[..., ::-1]):
        assert np.array_equal(ranges.inside(data.pool.x, copy.astype(np.uint8)), same)
    assert not ranges.inside(data.pool.x, far.astype(np.uint8)).any()


@pytest.mark.parametrize(
    "transformations, message",
    [
        (["rotat"], "did you mean 'rotate'"),
        ([{"name": "rotate", "degrees": 0}], "degrees should be greater than 0"),
        ([{"name": "rotate", "angle": 3}], "angle is no setting of it; there are: degrees"),
        ([{"name": "shift", "pixels": 16}], "too far for pictures of 16 x 16"),
        ([], "at least 1 item"),
        ([{"degrees": 3}], "written {name"),
    ],
)
def test_mistakes_in_transformations_are_named(transformations, message):
    with pytest.raises(ValueError, match=message):
        make(images(), {"name": "geometric", "transformations": transformations})


# ---- missing values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["joint", "per_column", "redrawn", "categorical", "uniform"])
def test_known_columns_stay_and_unknown_ones_are_filled_in(name):
    data, value = EVERY[name]
    ranges, center = make(data, value), data.pool.x[3]
    found = ranges.sample(center, 8, stream(0, "known"))
    known = np.setdiff1d(np.arange(12), ranges.columns)
    assert (found[:, known] == center[known]).all()
    assert (found[:, list(ranges.columns)] != center[list(ranges.columns)]).any(axis=1).all()


def test_columns_are_the_last_n_or_those_listed():
    data = features(BITS)
    assert make(data, {"name": "missing_values", "columns": 3}).columns == (9, 10, 11)
    assert make(data, {"name": "missing_values", "columns": [4, 1]}).columns == (4, 1)


def test_columns_have_their_datasets_names():
    data = replace(features(BITS), feature_names=("age", "sex", *"cdefghij", "income", "income_2"))
    assert make(data, {"name": "missing_values", "columns": ["income", 3, "age"]}).columns == (10, 3, 0)
    for columns, message, place in (
        (["age", "incom"], "there is no column 'incom'; did you mean 'income'", "columns.1"),
        (["zip"], "there is no column 'zip'; there are: age, sex, c, d", "columns.0"),
        (["age", "c", 0], "0 and age are the same column", "columns.2"),
    ):
        with pytest.raises(SettingError, match=message) as caught:
            make(data, {"name": "missing_values", "columns": columns})
        assert caught.value.key == place


def frequencies(ranges, center, count=6000):
    """How often each filling is the first sample."""
    columns = list(ranges.columns)
    drawn = [tuple(ranges.sample(center, 1, stream(0, "law", i))[0, columns].tolist()) for i in range(count)]
    return {filling: drawn.count(filling) for filling in set(drawn)}


POPULATION = np.array([[0, 0, 0]] * 5 + [[0, 0, 1]] * 3 + [[0, 1, 0]] * 1 + [[0, 2, 1]] * 1, dtype=np.float32)


@pytest.mark.parametrize("enumerated", [True, False])
@pytest.mark.parametrize(
    "imputation, law",
    [
        ("joint", {(0, 0): 0.5, (0, 1): 0.3, (1, 0): 0.1, (2, 1): 0.1}),
        (
            "per_column",
            {(a, b): p * q for (a, p), (b, q) in product({0: 0.8, 1: 0.1, 2: 0.1}.items(), {0: 0.6, 1: 0.4}.items())},
        ),
        ("categorical", dict.fromkeys(product(range(3), range(2)), 1 / 6)),
    ],
)
def test_fillings_have_the_law_of_their_imputation(imputation, law, enumerated, monkeypatch):
    """Conditional on not being the center, by either way of drawing."""
    if not enumerated:
        monkeypatch.setattr("dataset.ranges.missing_values.ENUMERATED", 0)
    ranges = make(features(POPULATION), {"name": "missing_values", "columns": 2, "imputation": imputation})
    center = np.array([0, 0, 0], dtype=np.float32)
    law = {filling: p for filling, p in law.items() if filling != (0, 0)}
    found = frequencies(ranges, center)
    assert set(found) == set(law)
    expected = np.array(list(law.values()))
    assert chisquare([found[filling] for filling in law], 6000 * expected / expected.sum()).pvalue > 0.001
    assert ranges.points() >= len(law)


def test_every_filling_is_found_where_as_many_samples_are_asked_for():
    data, value = EVERY["categorical"]
    ranges = make(data, value)
    assert ranges.points() == 31 and ENUMERATED >= 32
    found = ranges.sample(data.pool.x[0], 31, stream(0, "all"))
    assert len({row.tobytes() for row in found}) == 31


@pytest.mark.parametrize("enumerated", [True, False])
def test_too_few_fillings_are_an_error_and_not_an_endless_loop(enumerated, monkeypatch):
    if not enumerated:
        monkeypatch.setattr("dataset.ranges.missing_values.ENUMERATED", 0)
    ranges = make(features(POPULATION), {"name": "missing_values", "columns": 2})
    with pytest.raises(ValueError, match="3 distinct fillings beside a record's own, and 4 samples are asked for"):
        ranges.sample(np.zeros(3, dtype=np.float32), 4, stream(0, "few"))


def test_records_that_agree_in_the_known_columns_are_inside():
    data, _ = EVERY["joint"]
    ranges = make(data, {"name": "missing_values", "columns": 9})
    x = data.pool.x
    naive = [[(a[:3] == b[:3]).all() for b in x] for a in x]
    assert np.array_equal(ranges.inside(x, x), naive) and 0 < np.mean(naive) < 1
    assert ranges.inside(-0.0 * x[:1], 0.0 * x[:1]).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"columns": 0}, "columns should be greater than or equal to 1"),
        ({"columns": [12]}, "there is no column 12; they are numbered 0 to 11"),
        ({"columns": 13}, "13 is more than the 12 that there are"),
        ({"columns": [2, 2]}, "listed twice"),
        ({"columns": [-1]}, "there is no column -1"),
        ({"columns": ["age"]}, "there is no column 'age': the columns of this dataset have no names"),
        ({"columns": 12}, "all 12 are unknown"),
        ({}, "columns is missing"),
        ({"columns": 3, "imputation": "categorical", "col_ranges": [[0, 1], [0, 1]]}, "2 ranges for 3 unknown columns"),
        ({"columns": 3, "imputation": "uniform", "col_ranges": [[1, 0]]}, "low <= high"),
        ({"columns": 3, "imputation": "categorical", "col_ranges": [[0.2, 0.8]]}, "no integer from 0.2 to 0.8"),
    ],
)
def test_mistakes_in_missing_values_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(features(BITS), {"name": "missing_values", **settings})


def test_an_unknown_range_function_is_named():
    with pytest.raises(ValueError, match="no range function is called 'l3'"):
        bound(RANGES, "l3")


# ---- truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_others_inside_counts_what_a_double_loop_counts(block, monkeypatch):
    monkeypatch.setattr("dataset.ranges.truth.BLOCK", block)
    draw = stream(0, "truth")
    x = draw.integers(0, 3, size=(40, 4)).astype(np.float32)
    pool = Records(x, draw.integers(0, 3, size=40))
    member = draw.random((5, 40)) < 0.5
    points = np.sort(draw.choice(40, 25, replace=False))
    centers = x[points] + draw.normal(0, 0.1, size=(25, 4)).astype(np.float32)
    ball = make(features(x), {"name": "l2", "radius": 1.3})
    naive = np.zeros((5, 25), dtype=int)
    for m, i, j in product(range(5), range(25), range(40)):
        near = np.linalg.norm(centers[i].astype(float) - x[j]) <= 1.3
        naive[m, i] += near and member[m, j] and j != points[i] and pool.y[j] == pool.y[points[i]]
    found = others_inside(
        ball, lambda of: Records(centers[np.searchsorted(points, of)], pool.y[of]), points, pool, member
    )
    assert np.array_equal(found, naive) and naive.max() > 1
