"""Texts with a few words replaced by what a masked language model finds likely there: neighbours of a text.

The neighbourhood attack compares a text with its neighbours (Mattern et al. 2023, arXiv 2305.18462), and a range of
texts holds them (RaMIA's `word_replace`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import UserError

WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")  # punctuation around a word stays where it is
SPARE = 8  # candidates beyond top_k, of which spellings of the word itself are struck out


@dataclass(frozen=True)
class MaskedLM:
    """A masked language model of Hugging Face, its tokenizer, and which of its tokens are whole words."""

    network: Any
    tokenizer: Any
    words: tuple[str, ...]  # what each token reads as; "" if it is no word of letters, or only the end of one
    context: int  # tokens of a window, the special ones included

    def neighbours(
        self,
        texts: Sequence[str],
        draws: Sequence[np.random.Generator],
        *,
        samples: int,
        masks: int,
        top_k: int = 50,
        batch_size: int = 32,
    ) -> list[list[str]]:
        """For each text, `samples` copies in which `masks` words, chosen at random, are replaced.

        All of a copy's words are masked at once, one mask a word, and each is drawn from the `top_k` likeliest
        whole words there, never the word itself, in the casing of the word it stands for. Everything else stays
        byte for byte. A text of fewer words has all of them replaced; one without words comes back as it is.
        Texts longer than the model's context are read in consecutive windows.

        `draws` has a generator a text: a copy depends on its text and draws alone, and the first of more samples
        are those of fewer. (Batches of other lengths move the model's logits by rounding, and could so flip a
        draw that lands within rounding of the border between two words.)
        """
        if len(draws) != len(texts):
            raise ValueError(f"need a generator for each of {len(texts)} texts, got {len(draws)}")
        copies = [Copy.of(text, masks, draw) for text, draw in zip(texts, draws, strict=True) for _ in range(samples)]
        masked = [copy.masked(self.tokenizer.mask_token) for copy in copies]
        by_length = sorted(range(len(copies)), key=lambda i: len(masked[i][0]))  # batches of like lengths
        done = [""] * len(copies)
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            likely = self._likely([masked[i] for i in batch], top_k + SPARE)
            for i, (tokens, logits) in zip(batch, likely, strict=True):
                done[i] = copies[i].filled(self._drawn(copies[i], tokens, logits, top_k))
        return [done[i : i + samples] for i in range(0, len(done), samples)]

    def _likely(self, masked: Sequence[tuple[str, list[int]]], most: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each text, for each of its masks in order: the likeliest words (m, most), and their logits."""
        import torch

        batch = self.tokenizer(
            [text for text, _ in masked],
            padding=True,
            truncation=True,
            max_length=self.context,
            return_overflowing_tokens=True,  # what does not fit becomes further rows
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        rows, offsets = batch.pop("overflow_to_sample_mapping"), batch.pop("offset_mapping")
        ids = batch["input_ids"]
        # A text may itself contain the letters of a mask: only those at our own offsets are ours.
        ours = torch.zeros_like(ids, dtype=torch.bool)
        for row, of_text in enumerate(rows.tolist()):
            own = torch.tensor(masked[of_text][1], dtype=offsets.dtype)
            ours[row] = torch.isin(offsets[row, :, 0], own) & (ids[row] == self.tokenizer.mask_token_id)
        if ours.sum() != sum(len(places) for _, places in masked):
            raise ValueError("the tokenizer of the masked language model lost a mask: use a fast tokenizer of its own")
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits = self.network(**{key: value.to(device) for key, value in batch.items()}).logits.float()
        allowed = torch.tensor([bool(word) for word in self.words], device=device)
        at_masks = logits[ours.to(device)][:, : len(allowed)].masked_fill(~allowed, -torch.inf)
        best = at_masks.topk(min(most, int(allowed.sum())), dim=1)
        tokens, values = best.indices.cpu().numpy(), best.values.cpu().numpy()
        of_mask = rows[ours.nonzero()[:, 0]].numpy()  # windows of a text follow each other: its masks are in order
        return [(tokens[of_mask == i], values[of_mask == i]) for i in range(len(masked))]

    def _drawn(self, copy: Copy, tokens: np.ndarray, logits: np.ndarray, top_k: int) -> list[str]:
        words = []
        for original, quantile, of_mask, z in zip(copy.words, copy.quantiles, tokens, logits, strict=True):
            others = [i for i, t in enumerate(of_mask) if self.words[t].casefold() != original.casefold()][:top_k]
            if not others:
                raise ValueError(f"the masked language model knows no other word to stand for {original!r}")
            weight = np.exp(z[others].astype(np.float64) - z[others].max())
            place = np.searchsorted(np.cumsum(weight), quantile * weight.sum(), side="right")
            words.append(cased(self.words[of_mask[others[min(place, len(others) - 1)]]], like=original))
        return words


@dataclass(frozen=True)
class Copy:
    """A text, the words of it to replace, in order, and a uniform draw for each."""

    text: str
    spans: tuple[tuple[int, int], ...]
    quantiles: np.ndarray

    @classmethod
    def of(cls, text: str, masks: int, draw: np.random.Generator) -> Copy:
        spans = [match.span() for match in WORD.finditer(text)]
        chosen = np.sort(draw.choice(len(spans), min(masks, len(spans)), replace=False)) if spans else []
        return cls(text, tuple(spans[i] for i in chosen), draw.random(len(chosen)))

    @property
    def words(self) -> list[str]:
        return [self.text[start:end] for start, end in self.spans]

    def masked(self, mask: str) -> tuple[str, list[int]]:
        """The text with `mask` for each word, and where each begins."""
        text = self.filled([mask] * len(self.spans))
        shift = np.cumsum([0] + [len(mask) - (end - start) for start, end in self.spans])[:-1]
        return text, [start + int(by) for (start, _), by in zip(self.spans, shift, strict=True)]

    def filled(self, words: Sequence[str]) -> str:
        parts, at = [], 0
        for (start, end), word in zip(self.spans, words, strict=True):
            parts += [self.text[at:start], word]
            at = end
        return "".join([*parts, self.text[at:]])


def cased(word: str, like: str) -> str:
    """The word in the casing of another: ALL, First, or none."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    if like[0].isupper():
        return word[0].upper() + word[1:]
    return word.lower() if like.islower() else word


def load(name: str, device: Any = "cpu") -> MaskedLM:
    """The masked language model in a folder, or of this name in the Hugging Face cache. UserError if it is none.

    Only safetensors are read, and no code of the model's own is run.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        network, info = AutoModelForMaskedLM.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name!r} cannot be loaded as a masked language model ({reason}): give the folder of a Hugging Face one, "
            "e.g. of distilbert-base-cased, with config.json, model.safetensors and tokenizer.json"
        ) from None
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{name!r} has no trained head for masked words ({missing[0]} is missing): use another model")
    if not tokenizer.is_fast or tokenizer.mask_token is None:
        raise UserError(f"{name!r} has no fast tokenizer with a mask token: use another masked language model")
    limits = (tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None))
    context = min(limit for limit in limits if limit) - (2 if "roberta" in network.config.model_type else 0)
    return MaskedLM(network.to(device).eval(), tokenizer, _whole_words(tokenizer), context)


def _whole_words(tokenizer: Any) -> tuple[str, ...]:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    opens = tuple(mark for mark in ("Ġ", "▁") if any(str(token).startswith(mark) for token in tokens))
    texts = tokenizer.batch_decode([[i] for i in range(len(tokens))])
    return tuple(
        text.strip()
        if i not in special
        and text.strip().isalpha()
        and not token.startswith("##")
        and (not opens or token.startswith(opens))
        else ""
        for i, (token, text) in enumerate(zip(tokens, texts, strict=True))
    )
