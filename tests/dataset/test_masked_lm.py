"""Neighbours of a text: the right words are replaced, by what the model finds likely there, and nothing else."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from core.errors import UserError
from core.rng import stream
from dataset import masked_lm
from dataset.masked_lm import WORD
from tests.language import tiny_bert

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sees", "hears", "the", "a", "old", "new", "Paris", "Rome"]
TEXTS = [
    "The old cat, it SEES the bird; the 'red' dog hears a-new Paris!",
    "A dog.",
    "Nothing known here but Zebra-like things: rome, ROME & Rome…",
    "the red cat sees the blue bird and the green dog hears the old bird",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"), WORDS)


@pytest.fixture(scope="module")
def model(folder):
    return masked_lm.load(str(folder))


def draws(count=4):
    return [stream(1, "neighbours", i) for i in range(count)]


def split(text):
    return WORD.findall(text), WORD.split(text)


def test_exactly_the_asked_number_of_words_differs_and_nothing_else(model):
    for text, copies in zip(TEXTS, model.neighbours(TEXTS, draws(), samples=20, masks=3), strict=True):
        words, between = split(text)
        for copy in copies:
            new_words, new_between = split(copy)
            assert new_between == between
            changed = [new for old, new in zip(words, new_words, strict=True) if old.casefold() != new.casefold()]
            assert len(changed) == min(3, len(words))
            assert {word.casefold() for word in changed} <= {*map(str.casefold, WORDS), *"abcdefghijklmnopqrstuvwxyz"}


def test_every_word_is_replaced_as_often_as_any_other(model):
    (copies,) = model.neighbours([TEXTS[3]], draws(1), samples=300, masks=2)
    words, _ = split(TEXTS[3])
    changed = sum(np.array([a != b for a, b in zip(words, split(copy)[0], strict=True)]) for copy in copies)
    assert abs(changed - 300 * 2 / len(words)).max() < 5 * np.sqrt(300 * 2 / len(words))


def test_the_casing_of_the_replaced_word_is_kept(model):
    for text, copies in zip(TEXTS, model.neighbours(TEXTS, draws(), samples=20, masks=4), strict=True):
        for copy in copies:
            for old, new in zip(split(text)[0], split(copy)[0], strict=True):
                if old.islower() or (len(old) > 1 and old.isupper()) or old.istitle():
                    assert (new.islower(), new[0].isupper()) == (old.islower(), old[0].isupper())
                    assert new.isupper() == old.isupper() or len(old) == 1 or len(new) == 1


def test_a_word_is_drawn_with_the_models_probability_at_its_own_mask(model):
    """One mask in a text of two words: frequencies against a forward pass written out by hand."""
    import torch

    text, likely = "red cat", {0: {}, 1: {}}
    for place, masked in enumerate(["[MASK] cat", "red [MASK]"]):
        with torch.inference_mode():
            z = model.network(**model.tokenizer(masked, return_tensors="pt")).logits[0, 1 + place]
        own = text.split()[place]
        p = {word: float(z[i].exp()) for i, word in enumerate(model.words) if word and word != own}
        likely[place] = {word: value / sum(p.values()) for word, value in p.items()}
    (copies,) = model.neighbours([text], draws(1), samples=1000, masks=1, top_k=1000)
    for place in (0, 1):
        seen = [copy.split()[place] for copy in copies if copy.split()[1 - place] == text.split()[1 - place]]
        for word in ("dog", "old", "a"):
            p = likely[place][word]
            assert abs(seen.count(word) / len(seen) - p) < 5 * np.sqrt(p / len(seen))


def test_copies_do_not_depend_on_their_neighbours_in_the_batch_and_the_first_of_more_are_those_of_fewer(model):
    many = model.neighbours(TEXTS, draws(), samples=6, masks=2, batch_size=7)
    alone = [
        model.neighbours([text], [draw], samples=4, masks=2, batch_size=1)[0]
        for text, draw in zip(TEXTS, draws(), strict=True)
    ]
    assert [copies[:4] for copies in many] == alone


def test_a_text_without_words_comes_back_as_it_is(model):
    assert model.neighbours(["…!? 😀"], draws(1), samples=2, masks=3) == [["…!? 😀"] * 2]
    assert model.neighbours([], [], samples=2, masks=3) == []


def test_texts_longer_than_the_context_are_replaced_to_their_end(model):
    text = " ".join(["the red cat sees a dog"] * 40)  # 240 words, a context of 64 tokens
    (copies,) = model.neighbours([text], draws(1), samples=5, masks=60)
    for copy in copies:
        changed = [a != b for a, b in zip(text.split(), copy.split(), strict=True)]
        assert sum(changed) == 60 and any(changed[-60:])


def test_a_mask_token_in_the_text_itself_is_not_taken_for_ours(model):
    (copies,) = model.neighbours(["red [MASK] cat [MASK] dog"], draws(1), samples=30, masks=1)
    assert all(len(re.findall(r"\[[A-Za-z]+\]", copy)) == 2 for copy in copies)


def test_what_is_no_masked_language_model_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded as a masked language model"):
        masked_lm.load(str(tmp_path / "nothing"))


def test_a_generator_for_each_text():
    with pytest.raises(ValueError, match="a generator for each of 2 texts, got 1"):
        masked_lm.MaskedLM(None, SimpleNamespace(), (), 8).neighbours(["a", "b"], draws(1), samples=1, masks=1)
