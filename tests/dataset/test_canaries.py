"""Canaries: what each kind is, whose place it takes, and that membership is a fair coin for each."""

import math

import numpy as np
import pytest

from core.errors import UserError
from core.rng import stream
from core.types import AuditData, Records
from dataset.canaries import CANARIES, membership, with_canaries

KINDS = {"mislabelled", "natural", "blank", "random_noise", "out_of_distribution", "clipbkd"}


def images(pool=80, population=60):
    rng = stream(0, "images")
    make = lambda n: Records(rng.integers(3, 200, (n, 2, 5, 4), dtype=np.uint8), rng.integers(0, 7, n))  # noqa: E731
    return AuditData(make(pool), make(population), num_classes=7)


def features(pool=80, population=60):
    rng = stream(0, "features")
    make = lambda n: Records(rng.standard_normal((n, 40)).astype(np.float32), rng.integers(0, 7, n))  # noqa: E731
    return AuditData(make(pool), make(population), num_classes=7)


both = pytest.mark.parametrize("data", [images(), features()], ids=["images", "features"])


def test_every_kind_is_here():
    assert set(CANARIES) == KINDS | {"random_tokens"}


@both
@pytest.mark.parametrize("kind", sorted(KINDS))
class TestEveryKind:
    def test_canaries_have_the_shape_type_and_labels_of_records(self, data, kind):
        made = with_canaries(data, kind, 20, stream(0, "c"))
        pool = made.data.pool
        assert len(made.canaries) == 20 and made.canaries[-1] == len(pool) - 1
        assert pool.x.dtype == data.pool.x.dtype and pool.x.shape[1:] == data.input_shape
        assert pool.y.dtype == data.pool.y.dtype and pool.y.min() >= 0 and pool.y.max() < data.num_classes
        assert np.isfinite(pool.x.astype(float)).all()
        assert made.data.population is data.population

    def test_fixed_records_are_the_pools_own_in_their_order_without_the_sources(self, data, kind):
        made = with_canaries(data, kind, 20, stream(0, "c"))
        rows = {x.tobytes(): k for k, x in enumerate(data.pool.x)}
        kept = [rows[x.tobytes()] for x in made.data.pool.x[: made.fixed]]
        assert kept == sorted(set(kept))
        np.testing.assert_array_equal(made.data.pool.y[: made.fixed], data.pool.y[kept])
        sources = {rows.get(x.tobytes()) for x in made.data.pool.x[made.canaries]}
        assert made.fixed == (60 if kind in ("mislabelled", "natural") else 80)
        assert not sources & set(kept)

    def test_a_stream_decides_everything(self, data, kind):
        one, same, other = (with_canaries(data, kind, 20, stream(seed, "c")).data.pool for seed in (0, 0, 1))
        assert one.x.tobytes() == same.x.tobytes() and one.y.tobytes() == same.y.tobytes()
        assert kind == "clipbkd" or one.x.tobytes() != other.x.tobytes()  # that one has nothing to draw


def labels_of_sources(data, pool, fixed):
    own = {x.tobytes(): y for x, y in zip(data.pool.x, data.pool.y, strict=True)}
    return np.array([own[x.tobytes()] for x in pool.x[fixed:]])


@pytest.mark.parametrize("seed", range(3))
def test_a_mislabelled_canary_never_has_its_true_label_and_every_other_one_as_often(seed):
    data = images(pool=4000)
    made = with_canaries(data, "mislabelled", 3500, stream(seed, "c"))
    own = labels_of_sources(data, made.data.pool, made.fixed)
    shift = (made.data.pool.y[made.fixed :] - own) % 7
    counts = np.bincount(shift, minlength=7)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 3500 / 6).max() < 4.5 * math.sqrt(3500 * 5 / 36)


def test_natural_canaries_are_untouched():
    data = images()
    made = with_canaries(data, "natural", 20, stream(0, "c"))
    np.testing.assert_array_equal(labels_of_sources(data, made.data.pool, made.fixed), made.data.pool.y[made.fixed :])


def test_a_blank_canary_has_one_value_in_each_channel_within_the_populations_range():
    data = images()
    x = with_canaries(data, "blank", 20, stream(0, "c")).data.pool.x[80:]
    assert (x == x[:, :, :1, :1]).all() and (x[:, 0] != x[:, 1]).any()
    assert data.population.x.min() <= x.min() and x.max() <= data.population.x.max()
    assert len({canary.tobytes() for canary in x}) == 20


def test_noise_fills_the_range_of_the_population():
    data = images()
    x = with_canaries(data, "random_noise", 2000, stream(0, "c")).data.pool.x[80:]
    assert (x.min(), x.max()) == (data.population.x.min(), data.population.x.max())
    low, high = float(x.min()), float(x.max())
    assert abs(x.mean() - (low + high) / 2) < 4 * (high - low + 1) / math.sqrt(12 * x.size)


def test_noise_of_features_keeps_each_features_values():
    data = features()
    x = with_canaries(data, "random_noise", 30, stream(0, "c")).data.pool.x[80:]
    assert all(set(x[:, j]) <= set(data.population.x[:, j]) for j in range(40))


def test_out_of_distribution_canaries_are_population_records_scrambled_alike():
    data = images()
    x = with_canaries(data, "out_of_distribution", 60, stream(0, "c")).data.pool.x[80:]
    values = lambda records: np.sort(records.reshape(60, 2, 20), axis=2)  # noqa: E731
    np.testing.assert_array_equal(values(x), values(data.population.x))
    order = [
        np.flatnonzero((data.population.x.reshape(60, 2, 20) == x.reshape(60, 2, 20)[:, :, j : j + 1]).all((0, 1)))
        for j in range(20)
    ]
    assert sorted(int(k) for (k,) in order) == list(range(20))  # one permutation of the pixels, and not the identity
    assert [int(k) for (k,) in order] != list(range(20))


def test_clipbkd_moves_along_the_directions_of_least_variance_both_ways():
    data = features()
    x = with_canaries(data, "clipbkd", 6, stream(0, "c")).data.pool.x[80:].astype(float)
    population = data.population.x.astype(float)
    centred = population - population.mean(axis=0)
    steps = x - population.mean(axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(centred, axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(steps[0::2], -steps[1::2], atol=1e-5)
    variance = ((centred @ (steps / lengths[:, None]).T) ** 2).sum(axis=0)
    np.testing.assert_allclose(variance[::2], np.linalg.svd(centred)[1][::-1][:3] ** 2, rtol=1e-3)


def test_membership_is_a_fair_coin_for_each_canary_and_certain_for_the_rest():
    rows = np.stack([membership(5, 400, stream(0, "membership", t)) for t in range(500)])
    assert rows[:, :5].all()
    coins = rows[:, 5:]
    sums = coins.sum(axis=1)
    assert abs(coins.mean() - 0.5) < 4 / math.sqrt(4 * coins.size)
    assert abs(sums.var() / 100 - 1) < 4 * math.sqrt(2 / 500)  # binomial: not a fixed half
    assert np.abs(coins.mean(axis=0) - 0.5).max() < 4.5 / math.sqrt(4 * 500)
    correlation = np.corrcoef(coins.T)[np.triu_indices(400, 1)]
    assert np.abs(correlation).max() < 6 / math.sqrt(500)


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("natural", 81, "81 canaries are more than the 80 records in the pool"),
        ("mislabelled", 80, "leave no record of 80 beside them"),
        ("out_of_distribution", 61, "61 canaries are more than the 60 records in the population"),
        ("clipbkd", 82, "take at most 80"),
    ],
)
def test_too_many_canaries_are_refused(kind, count, message):
    with pytest.raises(UserError, match=message):
        with_canaries(features(), kind, count, stream(0, "c"))


# --- texts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    from dataset.tokens import byte_pairs, tokenised

    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    draw = stream(0, "texts")
    make = lambda n: tuple(" ".join(draw.choice(words, int(draw.integers(4, 12)))) for _ in range(n))  # noqa: E731
    some = [make(30), make(25)]
    empty = [
        Records(np.zeros((len(part), 1), dtype=np.int32), np.zeros(len(part), dtype=np.int64), texts=part)
        for part in some
    ]
    data = AuditData(empty[0], empty[1], num_classes=2)
    return tokenised(
        data,
        byte_pairs([*some[0], *some[1]], 270),
        context=16,
        max_length=None,
        truncate=True,
        cache=tmp_path_factory.mktemp("c"),
    )


def test_random_tokens_are_uniform_tokens_of_the_lengths_of_population_texts(texts):
    data = texts
    made = with_canaries(data, "random_tokens", 400, stream(0, "c"))
    pool, new = made.data.pool, made.canaries
    assert made.fixed == 30 and len(pool.texts) == len(pool.lengths) == len(pool) == 430
    assert set(pool.lengths[new]) <= set(data.population.lengths)
    own = np.arange(pool.x.shape[1]) < pool.lengths[:, None]
    tokens = pool.x[new][own[new]]
    assert tokens.min() >= 0 and tokens.max() < data.num_classes
    counts = np.bincount(tokens, minlength=data.num_classes)
    expected = len(tokens) / data.num_classes
    assert ((counts - expected) ** 2 / expected).sum() < data.num_classes + 5 * math.sqrt(2 * data.num_classes)
    np.testing.assert_array_equal(pool.x[:30], data.pool.x)
    assert pool.texts[:30] == data.pool.texts


def test_natural_texts_keep_their_lengths_and_words(texts):
    data = texts
    made = with_canaries(data, "natural", 10, stream(0, "c"))
    pool = made.data.pool
    assert made.fixed == 20 and len(pool) == 30
    known = dict(zip(data.pool.texts, data.pool.lengths, strict=True))
    assert all(known[text] == length for text, length in zip(pool.texts, pool.lengths, strict=True))


def test_kinds_that_are_not_for_such_data_are_refused(texts):
    for data, kind in ((texts, "mislabelled"), (texts, "blank"), (images(), "random_tokens")):
        with pytest.raises(UserError, match="cannot be made of this dataset"):
            with_canaries(data, kind, 5, stream(0, "c"))
