"""From texts to token ids: padded at the end, with the number of real tokens of each record beside them.

What is padding is told by position alone. The pad id is arbitrary, and often that of a real token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.errors import UserError, WrongSetting
from core.rundir import digest, write_array
from core.types import AuditData, Records

log = logging.getLogger(__name__)
WORTH_A_CACHE = 5_000_000  # letters; tokenising fewer takes about a second


def tokenised(
    data: AuditData, tokenizer: str, *, context: int | None, max_length: int | None, truncate: bool, cache: Path
) -> AuditData:
    """The records as token ids, of a model that takes at most `context` of them.

    Records of fewer than two tokens predict nothing and are left out; longer ones than max_length (or the context)
    are cut off, or an error if `truncate` is false. Both are counted in the log.

    tokenizer: its JSON.
    cache: a folder for the tokens of large datasets, by a digest of texts and tokenizer.
    """
    from tokenizers import Tokenizer

    if max_length is not None and context is not None and max_length > context:
        raise WrongSetting("data.max_length", f"{max_length} is more than the {context} tokens the model can take")
    encoder = Tokenizer.from_str(tokenizer)
    encoder.no_padding()
    encoder.no_truncation()
    limit = max_length or context
    found = [_encoded(encoder, tokenizer, part.texts or (), cache) for part in (data.pool, data.population)]
    kept = [(np.minimum(np.diff(start), limit) if limit else np.diff(start)) for _, start in found]
    width = max(int(lengths.max(initial=2)) for lengths in kept)
    pool, population = (
        _records(part, flat, start, width, limit, truncate, where)
        for part, (flat, start), where in zip((data.pool, data.population), found, ("pool", "population"), strict=True)
    )
    return replace(
        data, pool=pool, population=population, num_classes=encoder.get_vocab_size(), tokenizer=encoder.to_str()
    )


def _encoded(encoder: object, tokenizer: str, texts: Sequence[str], cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """All tokens end to end (int32), and where each text starts in them, with the end of the last."""
    if sum(map(len, texts)) < WORTH_A_CACHE:
        return _encode(encoder, texts)
    key = digest(tokenizer, list(texts))[:24]
    paths = cache / f"{key}.tokens.npy", cache / f"{key}.start.npy"  # the second is written last: it is the stamp
    if paths[1].exists():
        flat, start = (np.load(path, allow_pickle=False) for path in paths)
        if len(start) == len(texts) + 1 and start[-1] == len(flat):
            return flat, start
    arrays = _encode(encoder, texts)
    try:
        for path, array in zip(paths, arrays, strict=True):
            write_array(path, array)
    except OSError as error:
        log.warning("tokens are not kept: %s", error)
    return arrays


def _encode(encoder: object, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    ids = [encoding.ids for encoding in encoder.encode_batch_fast(list(texts))]  # ty: ignore
    start = np.concatenate([[0], np.cumsum([len(one) for one in ids], dtype=np.int64)])
    return np.fromiter((token for one in ids for token in one), np.int32, count=int(start[-1])), start


def _records(
    records: Records, flat: np.ndarray, start: np.ndarray, width: int, limit: int | None, truncate: bool, where: str
) -> Records:
    lengths = np.diff(start)
    long = int((lengths > limit).sum()) if limit else 0
    if long and not truncate:
        row = int((lengths > limit).argmax())
        raise WrongSetting(
            "data.truncate",
            f"{long} texts of the {where} have more than {limit} tokens (the first is number {row}, with "
            f"{lengths[row]}): set it to true to audit their beginnings, or use a model of a longer context",
        )
    lengths = np.minimum(lengths, limit) if limit else lengths
    x = np.zeros((len(lengths), width), np.int32)
    position = np.arange(width)
    own = position < lengths[:, None]
    x[own] = flat[(start[:-1, None] + position)[own]]
    if long:
        log.info("%d of %d texts of the %s are cut off after %d tokens", long, len(lengths), where, limit)
    kept = np.flatnonzero(lengths >= 2)
    if len(kept) < len(lengths):
        gone = len(lengths) - len(kept)
        log.info("%d of %d texts of the %s are left out: fewer than two tokens", gone, len(lengths), where)
    if not len(kept):
        raise UserError(f"no text of the {where} has two tokens or more: a language model predicts nothing in it")
    return replace(records, x=x, lengths=lengths.astype(np.int64)).select(kept)


def byte_pairs(texts: Sequence[str], vocab_size: int) -> str:
    """The JSON of a byte-level BPE tokenizer trained on these texts: it can encode any text, and is deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()
