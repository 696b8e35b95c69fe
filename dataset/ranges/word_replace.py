"""Texts in which a few words are replaced by others that fit there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, MinLen
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from core.errors import UserError
from core.types import AuditData, Records
from dataset.masked_lm import WORD, Copy, MaskedLM, cased
from dataset.ranges.base import RANGES, SettingError

log = logging.getLogger(__name__)

ROUNDS = 20  # of drawing again, for texts that have too few distinct copies yet
POPULATION = "population"  # in place of a masked language model


@RANGES.register("word_replace", kind="texts", summary="the text with a few words replaced, by a masked language model")
def word_replace(
    data: AuditData,
    *,
    mask_model: Annotated[str, MinLen(1)],
    num_masks: Annotated[int, Ge(1)] = 5,
    top_k: Annotated[int, Ge(2)] = 50,
    mask_tokenizer: str | None = None,
) -> Texts:
    """The text with up to `num_masks` of its words replaced; everything else byte for byte, and the casing kept.

    A sample has `num_masks` words replaced, chosen at random, or all if it has fewer. Samples of a range are distinct,
    as models see them: cut off after as many tokens as the longest text of the pool has.

    mask_model: a masked language model of Hugging Face, by its folder or its name. Or "population": the words are drawn
        from the texts of the population, by how often they stand there, whatever stands around them; nothing is loaded.
    num_masks: words that are replaced at once.
    top_k: a word is drawn from the so many likeliest there, never the word itself.
    mask_tokenizer: the original tool's key; the model's own tokenizer is used, so it must have the same name.
    """
    if mask_tokenizer not in (None, mask_model):
        raise SettingError("mask_tokenizer", f"the model's own tokenizer is used: leave it out, or write {mask_model}")
    if data.tokenizer is None:
        raise ValueError("new texts need a tokenizer, and these data came as token ids")
    if mask_model == POPULATION:
        return Texts(data, FromPopulation.of(data), num_masks, top_k, "drawn from the population's words")
    try:
        model = _loaded(mask_model)
    except UserError as error:
        raise SettingError("mask_model", f"{error}; or use `mask_model: {POPULATION}`") from None
    return Texts(data, model, num_masks, top_k, f"filled in by {mask_model}")


@lru_cache(maxsize=1)
def _loaded(name: str) -> Any:
    from dataset.masked_lm import load

    return load(name)


@dataclass(frozen=True)
class FromPopulation:
    """Words by how often they stand in texts, in lower case, most frequent first."""

    words: tuple[str, ...]
    cumulative: np.ndarray  # of their counts

    @classmethod
    def of(cls, data: AuditData) -> FromPopulation:
        counts: dict[str, int] = {}
        for text in _decoded(data, data.population):
            for match in WORD.finditer(text):
                word = match.group().lower()
                counts[word] = counts.get(word, 0) + 1
        if len(counts) < 2:
            raise SettingError("mask_model", "the population's texts have no two words to draw from")
        words = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(words), np.cumsum([counts[word] for word in words]))

    def neighbours(
        self, texts: Sequence[str], draws: Sequence[np.random.Generator], *, samples: int, masks: int, top_k: int
    ) -> list[list[str]]:
        """Of the `top_k` most frequent words; else as `MaskedLM.neighbours`."""
        copies = [[Copy.of(text, masks, draw) for _ in range(samples)] for text, draw in zip(texts, draws, strict=True)]
        return [[copy.filled(self._drawn(copy, top_k)) for copy in of_text] for of_text in copies]

    def _drawn(self, copy: Copy, top_k: int) -> list[str]:
        found = []
        for original, quantile in zip(copy.words, copy.quantiles, strict=True):
            last = min(top_k + 1, len(self.words)) - 1  # one more, for the word itself is passed over
            own = next((i for i in range(last + 1) if self.words[i] == original.lower()), last)
            own_weight = self.cumulative[own] - (self.cumulative[own - 1] if own else 0)
            at = quantile * (self.cumulative[last] - own_weight)
            if at >= self.cumulative[own] - own_weight:
                at += own_weight
            place = min(int(np.searchsorted(self.cumulative[: last + 1], at, side="right")), last)
            found.append(cased(self.words[place], like=original))
        return found


def _decoded(data: AuditData, records: Records) -> list[str]:
    """The texts as models see them: cut off where their tokens are."""
    from tokenizers import Tokenizer

    assert data.tokenizer is not None and records.lengths is not None
    ids = [row[:length].tolist() for row, length in zip(records.x, records.lengths.tolist(), strict=True)]
    return Tokenizer.from_str(data.tokenizer).decode_batch(ids, skip_special_tokens=False)


def _keys(records: Records) -> list[bytes]:
    """The tokens of each record."""
    assert records.lengths is not None
    x = records.x.astype(np.int32)
    return [row[:length].tobytes() for row, length in zip(x, records.lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class Texts:
    data: AuditData
    model: MaskedLM | FromPopulation
    num_masks: int
    top_k: int
    how: str
    _seen: dict[bytes, tuple[int, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def description(self) -> str:
        return f"texts with up to {self.num_masks} words replaced, {self.how}"

    def points(self) -> float:
        """Of a text of one word."""
        known = len(self.model.words) - 1 if isinstance(self.model, FromPopulation) else self.top_k
        return min(self.top_k, known)

    def check(self, records: Records) -> None:
        """ValueError for texts without words: nothing can be replaced in them."""
        texts = _decoded(self.data, records)
        if wordless := [text for text in texts if not WORD.search(text)]:
            raise ValueError(f"{len(wordless)} texts have no word to replace, such as {wordless[0][:60]!r}")

    def on(self, device: Any) -> None:
        """Where the masked language model is to work."""
        if network := getattr(self.model, "network", None):
            network.to(device)

    def sample_all(self, centers: Records, count: int, draws: Sequence[np.random.Generator]) -> Records:
        """`count` distinct records of each center's range, one range after the other, never the center itself.

        All centers are asked about together, so that a masked language model works in full batches. The first of more
        samples are those of fewer (up to the rounding of the model's batches).
        """
        texts, own = _decoded(self.data, centers), _keys(centers)
        found: list[dict[bytes, np.ndarray]] = [{} for _ in texts]
        for _ in range(ROUNDS):
            short = [i for i, of_text in enumerate(found) if len(of_text) < count]
            if not short:
                break
            copies = self.model.neighbours(
                *([texts[i] for i in short], [draws[i] for i in short]),
                samples=count,
                masks=self.num_masks,
                top_k=self.top_k,
            )
            for i, of_text in zip(short, copies, strict=True):
                for copy, ids in zip(of_text, self._tokens(of_text), strict=True):
                    if copy != texts[i] and ids.tobytes() != own[i]:
                        found[i].setdefault(ids.tobytes(), ids)
        rows = [list(of_text.values())[:count] for of_text in found]
        if few := [i for i, of_text in enumerate(rows) if len(of_text) < count]:
            raise ValueError(
                f"word_replace: {len(few)} texts have fewer than {count} different copies, such as "
                f"{texts[few[0]][:60]!r} with {len(rows[few[0]])}: lower sample_size, or raise num_masks or top_k"
            )
        return self._records([ids for of_text in rows for ids in of_text], np.repeat(centers.y, count))

    @cached_property
    def _encoder(self) -> Any:
        from tokenizers import Tokenizer

        encoder = Tokenizer.from_str(self.data.tokenizer)
        encoder.no_padding()
        encoder.no_truncation()
        return encoder

    def _tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        longest = self.data.input_shape[0]
        return [np.array(e.ids[:longest], dtype=np.int32) for e in self._encoder.encode_batch(list(texts))]

    def _records(self, rows: Sequence[np.ndarray], y: Int[Array, " n"]) -> Records:
        x = np.zeros((len(rows), self.data.input_shape[0]), dtype=np.int32)
        for row, ids in zip(x, rows, strict=True):
            row[: len(ids)] = ids
        return Records(x, y, lengths=np.array([len(ids) for ids in rows], dtype=np.int64))

    def inside_all(self, centers: Records, records: Records) -> Bool[Array, "n d"]:
        """Exact: all but the words byte for byte the same, and at most `num_masks` of the words different."""
        a, b = self._taken_apart(centers), self._taken_apart(records)
        found = np.array([frame for frame, _ in a])[:, None] == np.array([frame for frame, _ in b])[None]
        for i, j in np.argwhere(found):
            found[i, j] = (a[i][1] != b[j][1]).sum() <= self.num_masks
        return found

    def _taken_apart(self, records: Records) -> list[tuple[int, np.ndarray]]:
        """A number for what stands between the words of each text, and one for each word."""
        assert records.lengths is not None
        keys = _keys(records)
        new = [i for i, key in enumerate(keys) if key not in self._seen]
        if new:
            texts = _decoded(self.data, Records(records.x[new], records.y[new], lengths=records.lengths[new]))
            for i, text in zip(new, texts, strict=True):
                words = np.array([hash(match.group()) for match in WORD.finditer(text)], dtype=np.int64)
                self._seen[keys[i]] = hash(WORD.sub("\0", text)), words
        return [self._seen[key] for key in keys]
