"""Ranges of texts: few words differ and nothing else, samples are distinct, and the truth is exact."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import chisquare

from core.rng import stream
from core.types import AuditData, Records
from dataset.masked_lm import WORD
from dataset.ranges import RANGES, SettingError, bound, rows, word_replace
from dataset.ranges.truth import others_inside
from tests.dataset.test_masked_lm import folder  # noqa: F401  (a BERT of random weights)

TEXTS = [
    "The old cat, it SEES the bird; the 'red' dog hears Paris!",
    "the new cat, it HEARS the bird; the 'red' dog hears Rome!",
    "A dog.",
    "the red cat sees the blue bird and the green dog hears the old bird",
    "The old cat, it SEES the bird; the 'red' dog hears Paris?",
]
POPULATION = ["the the the the cat sees a dog", "The old bird hears the cat", "a red, a blue, a green thing and a cat"]


def records(texts, tokenizer):
    ids = [tokenizer.encode(text).ids for text in texts]
    x = np.full((len(ids), 90), 7, dtype=np.int32)  # what stands behind a text's own tokens is nothing
    for row, own in zip(x, ids, strict=True):
        row[: len(own)] = own
    return Records(x, np.zeros(len(ids), dtype=np.int64), np.array([len(own) for own in ids]), tuple(texts))


@pytest.fixture(scope="module")
def data():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    parts = records(TEXTS, tokenizer), records(POPULATION, tokenizer)
    return AuditData(*parts, num_classes=256, tokenizer=tokenizer.to_str())


@pytest.fixture(params=["population", "a masked language model"])
def mask_model(request):
    return "population" if request.param == "population" else str(request.getfixturevalue("folder"))


def make(data, **settings):
    name, checked = bound(RANGES, {"name": "word_replace", **settings})
    return RANGES[name](data, **checked)


def sampled(data, ranges, count, which=slice(None)):
    """The texts of `count` samples around each record."""
    index = np.arange(len(data.pool))[which]
    draws = [stream(0, "samples", int(i)) for i in index]
    found = ranges.sample_all(rows(data.pool, index), count, draws)
    assert found.x.dtype == data.pool.x.dtype and found.x.shape == (len(index) * count, data.input_shape[0])
    texts = word_replace._decoded(data, found)
    return [texts[i : i + count] for i in range(0, len(texts), count)]


def test_samples_differ_from_their_center_in_at_most_so_many_words_and_from_each_other(data, mask_model):
    for text, samples in zip(TEXTS, sampled(data, make(data, mask_model=mask_model, num_masks=3), 8), strict=True):
        words, between = WORD.findall(text), WORD.split(text)
        assert len({text, *samples}) == 9
        for sample in samples:
            assert WORD.split(sample) == between
            new = WORD.findall(sample)
            changed = [(a, b) for a, b in zip(words, new, strict=True) if a != b]
            assert len(changed) == min(3, len(words))
            assert all(a.casefold() != b.casefold() for a, b in changed)
            assert all(b.isupper() for a, b in changed if len(a) > 1 and a.isupper())
            assert all(b[0].isupper() for a, b in changed if a[0].isupper())


def test_the_first_of_more_samples_are_those_of_fewer_and_others_have_no_say(data):
    ranges = make(data, mask_model="population")
    many = sampled(data, ranges, 9)
    assert [few == of_text[:4] for few, of_text in zip(sampled(data, ranges, 4), many, strict=True)] == [True] * 5
    assert sampled(data, ranges, 9, slice(3, 4)) == many[3:4]


def test_a_masked_language_model_is_asked_in_batches_of_many_texts(data, folder, monkeypatch):  # noqa: F811
    ranges, calls = make(data, mask_model=str(folder), num_masks=2), []
    network = ranges.model.network
    forward = type(network).forward
    monkeypatch.setattr(type(network), "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    sampled(data, ranges, 12)
    assert len(calls) <= 6  # 60 copies in batches of 32, and a few that came twice


def test_words_of_the_population_come_as_often_as_they_stand_there(data):
    """the 6, a 4, cat 3, then eight of one: for `dog`, that is one of them, out of the others."""
    ranges = make(data, mask_model="population", top_k=50)
    centers = rows(data.pool, np.full(2000, 2))
    copies = ranges.model.neighbours(
        word_replace._decoded(data, centers), [stream(0, "law", i) for i in range(2000)], samples=1, masks=2, top_k=50
    )
    found = [copy.split()[1].rstrip(".") for (copy,) in copies]
    counts = {}
    for text in POPULATION:
        for word in WORD.findall(text.lower()):
            counts[word] = counts.get(word, 0) + 1
    del counts["dog"]
    assert set(found) == set(counts)
    expected = np.array(list(counts.values())) / sum(counts.values()) * 2000
    assert chisquare([found.count(word) for word in counts], expected).pvalue > 0.001


def test_top_k_keeps_to_the_most_frequent_words(data):
    texts = sampled(data, make(data, mask_model="population", top_k=2, num_masks=1), 2)
    assert {word for sample in texts[2] for word in WORD.findall(sample)} <= {"The", "A", "dog", "the", "a", "Cat"}


def test_a_record_is_inside_if_only_few_words_differ(data, monkeypatch):
    monkeypatch.setattr("dataset.ranges.truth.BLOCK", 7)
    for most, expected in ((2, 0), (3, 1)):  # of the first two texts: new, HEARS, Rome; and The
        ranges = make(data, mask_model="population", num_masks=most + 1)
        inside = ranges.inside_all(data.pool, data.pool)
        naive = [
            WORD.split(a) == WORD.split(b)
            and sum(x != y for x, y in zip(WORD.findall(a), WORD.findall(b), strict=True)) <= most + 1
            for a, b in product(TEXTS, TEXTS)
        ]
        assert np.array_equal(inside.ravel(), naive) and inside.sum() == 5 + 2 * expected
        points, member = np.arange(5), np.array([[True] * 5, [False, True, True, True, True]])
        found = others_inside(ranges, lambda of: rows(data.pool, of), points, data.pool, member)
        assert found.tolist() == [[expected, expected, 0, 0, 0], [expected, 0, 0, 0, 0]]


def test_a_copy_that_needs_more_tokens_than_the_longest_text_is_cut_off(data):
    short = replace(data, pool=replace(data.pool, x=data.pool.x[:, :66], lengths=np.minimum(data.pool.lengths, 66)))
    for samples in sampled(short, make(short, mask_model="population"), 5):
        assert len(set(samples)) == 5


@pytest.mark.parametrize(
    ("settings", "message", "key"),
    [
        (
            {"mask_model": "/no/where"},
            "'/no/where' cannot be loaded .*config.json.*or use `mask_model: pop",
            "mask_model",
        ),
        ({"mask_model": "population", "mask_tokenizer": "gpt2"}, "the model's own tokenizer is used", "mask_tokenizer"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(data, settings, message, key):
    with pytest.raises(SettingError, match=message) as caught:
        make(data, **settings)
    assert caught.value.key == key and "\n" not in str(caught.value)


def test_texts_without_words_and_with_too_few_copies_are_clear_errors(data):
    from tokenizers import Tokenizer

    ranges = make(data, mask_model="population", num_masks=1)
    with pytest.raises(ValueError, match="1 texts have no word to replace"):
        ranges.check(records(["!?", "a word"], Tokenizer.from_str(data.tokenizer)))
    with pytest.raises(ValueError, match=r"1 texts have fewer than 30 different copies, such as 'A dog.' with 2\d"):
        sampled(data, ranges, 30, slice(2, 3))
    with pytest.raises(ValueError, match="need a tokenizer"):
        make(replace(data, tokenizer=None), mask_model="population")
