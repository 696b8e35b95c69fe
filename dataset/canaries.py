"""Canaries: records put into a training set by lot, so that whoever recognises them has measured the training.

One-run audits (Steinke, Nasr & Jagielski 2023, https://arxiv.org/abs/2305.08846) ask for m of them, each a member
with probability 1/2 independently of the others, while all other records stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from core.errors import UserError
from core.registry import Registry
from core.types import AuditData, Records

CANARIES = Registry("kind of canary")


@dataclass(frozen=True)
class Drawn:
    """The canaries, and which records of the pool they were made from: those leave the pool."""

    canaries: Records
    sources: Int[Array, " s"]


@dataclass(frozen=True)
class CanaryData:
    """A dataset whose pool is `fixed` records that every model trains on, then the canaries."""

    data: AuditData
    fixed: int

    @property
    def canaries(self) -> Int[Array, " m"]:
        """Their indices into the pool."""
        return np.arange(self.fixed, len(self.data.pool))


def with_canaries(data: AuditData, kind: str, count: int, rng: np.random.Generator) -> CanaryData:
    """`data` with `count` canaries of a registered kind behind the rest of its pool. UserError if it has too few."""
    check_kind(data, kind)
    return beside(data, CANARIES[kind](data, count, rng), kind)


def check_kind(data: AuditData, kind: str) -> None:
    """UserError where a registered kind is not for such data."""
    of = CANARIES.fact(kind, "of", ("records",))
    if ("texts" if data.is_text else "records") not in of:
        others = [name for name in CANARIES if "texts" in CANARIES.fact(name, "of", ())]
        way_out = f"use one of {', '.join(others)}" if data.is_text else "they are texts"
        raise UserError(f"{kind} canaries cannot be made of this dataset: {way_out}")


def beside(data: AuditData, drawn: Drawn, kind: str) -> CanaryData:
    """The canaries behind what is left of the pool. UserError if that is nothing."""
    kept = np.setdiff1d(np.arange(len(data.pool)), drawn.sources)
    if not len(kept):
        raise UserError(
            f"{len(drawn.canaries)} canaries of kind {kind} leave no record of {len(data.pool)} beside them: take fewer"
        )
    rest, new = _part(data.pool, kept), drawn.canaries
    texts, lengths = None, None
    if rest.texts is not None and new.texts is not None:
        texts = rest.texts + new.texts
    if rest.lengths is not None and new.lengths is not None:
        lengths = np.concatenate([rest.lengths, new.lengths])
    pool = Records(np.concatenate([rest.x, new.x]), np.concatenate([rest.y, new.y]), lengths, texts)
    return CanaryData(replace(data, pool=pool), len(kept))


def _part(records: Records, index: Int[Array, " k"]) -> Records:
    """These records, without what their owner calls them."""
    lengths = None if records.lengths is None else records.lengths[index]
    texts = None if records.texts is None else tuple(records.texts[i] for i in index)
    return Records(records.x[index], records.y[index], lengths, texts)


def membership(fixed: int, canaries: int, rng: np.random.Generator) -> Bool[Array, " D"]:
    """Who is a member: every fixed record, and each canary by the toss of its own fair coin."""
    return np.concatenate([np.ones(fixed, dtype=bool), rng.integers(0, 2, canaries, dtype=np.int8) == 1])


@CANARIES.register("mislabelled", summary="records of the pool with a label that is wrong on purpose")
def mislabelled(data: AuditData, count: int, rng: np.random.Generator) -> Drawn:
    """Records of the pool, each with one of the other labels, uniformly; never its own."""
    sources = _some(len(data.pool), count, rng, "records in the pool")
    shift = rng.integers(1, data.num_classes, count)
    return Drawn(Records(data.pool.x[sources], (data.pool.y[sources] + shift) % data.num_classes), sources)


@CANARIES.register("natural", summary="records of the pool as they are", of=("records", "texts"))
def natural(data: AuditData, count: int, rng: np.random.Generator) -> Drawn:
    """Records of the pool, unchanged: what an audit sees of ordinary records, not of the worst case."""
    sources = _some(len(data.pool), count, rng, "records in the pool")
    return Drawn(_part(data.pool, sources), sources)


@CANARIES.register("random_tokens", summary="texts of random tokens, for language models", of=("texts",))
def random_tokens(data: AuditData, count: int, rng: np.random.Generator) -> Drawn:
    """Secrets as in Carlini et al. (2019): uniform tokens of the vocabulary, as many as a random population text has.

    No model can predict them but one that saw them.
    """
    from tokenizers import Tokenizer

    assert data.population.lengths is not None and data.tokenizer is not None
    lengths = data.population.lengths[rng.integers(0, len(data.population), count)]
    x = np.zeros((count, *data.input_shape), dtype=data.pool.x.dtype)
    own = np.arange(x.shape[1]) < lengths[:, None]
    x[own] = rng.integers(0, data.num_classes, int(own.sum()))
    tokenizer = Tokenizer.from_str(data.tokenizer)
    texts = tuple(tokenizer.decode(row[:n].tolist()) for row, n in zip(x, lengths, strict=True))
    return Drawn(Records(x, np.zeros(count, dtype=data.pool.y.dtype), lengths, texts), _nothing())


@CANARIES.register("blank", summary="images of one colour with random labels")
def blank(data: AuditData, count: int, rng: np.random.Generator) -> Drawn:
    """One random value per channel (of features: one for all), in the range that the population has.

    Few grey levels make twins of canaries, which hide each other: the bound is then looser, never wrong.
    """
    low, high = least_and_most(data)
    channels = (count, data.input_shape[0], 1, 1) if data.is_image else (count, 1)
    x = np.broadcast_to(_uniform(low, high, channels, data.pool.x.dtype, rng), (count, *data.input_shape)).copy()
    return Drawn(Records(x, _labels(data, count, rng)), _nothing())


@CANARIES.register("random_noise", summary="records of independent random values with random labels")
def random_noise(data: AuditData, count: int, rng: np.random.Generator) -> Drawn:
    """Pixels uniform in the range that the population has; of features, each that of a random population record."""
    if data.is_image:
        x = _uniform(*least_and_most(data), (count, *data.input_shape), data.pool.x.dtype, rng)
    else:
        donors = rng.integers(0, len(data.population), (count, *data.input_shape))
        x = np.take_along_axis(data.population.x, donors, axis=0)
    return Drawn(Records(x, _labels(data, count, rng)), _nothing())


@CANARIES.register("out_of_distribution", summary="population records with scrambled features and random labels")
def out_of_distribution(data: AuditData, count: int, rng: np.random.Generator) -> Drawn:
    """Population records, all with their values in the same random order (of images: their pixels), relabelled.

    The values keep the distribution they have in real records, and their arrangement means nothing.
    """
    chosen = _some(len(data.population), count, rng, "records in the population")
    flat = data.population.x[chosen].reshape(count, *((data.input_shape[0], -1) if data.is_image else (-1,)))
    x = flat[..., rng.permutation(flat.shape[-1])].reshape(count, *data.input_shape)
    return Drawn(Records(x, _labels(data, count, rng)), _nothing())


@CANARIES.register("clipbkd", summary="steps along the directions in which the data vary least, unlikely labels")
def clipbkd(data: AuditData, count: int, rng: np.random.Generator) -> Drawn:
    """Canaries of ClipBKD (Jagielski, Ullman & Oprea 2020, Alg. 2), one for each of `count` different directions.

    The mean record moved along a principal direction, those of least variance first and both ways along each, by
    the records' mean distance from it; the label is the one a linear model finds least likely there. All of it
    is measured on the population. Rounded and cut to the range of the data where these are pixels.
    """
    features = data.population.x.reshape(len(data.population), -1).astype(np.float64)
    if count > 2 * features.shape[1]:
        raise UserError(
            f"{count} clipbkd canaries need {-(-count // 2)} directions, records of {features.shape[1]} values have "
            f"no more than those: take at most {2 * features.shape[1]}"
        )
    mean = features.mean(axis=0)
    centred = features - mean
    _, directions = np.linalg.eigh(centred.T @ centred)  # columns, the least variance first
    number = np.arange(count)
    steps = directions.T[number // 2] * np.where(number % 2, -1.0, 1.0)[:, None]
    x = mean + np.linalg.norm(centred, axis=1).mean() * steps
    one_hot = np.eye(data.num_classes)[data.population.y]
    ridge = centred.T @ centred + len(features) * max(centred.var(), 1e-12) * np.eye(features.shape[1])
    y = ((x - mean) @ np.linalg.solve(ridge, centred.T @ one_hot) + one_hot.mean(axis=0)).argmin(axis=1)
    if np.issubdtype(data.pool.x.dtype, np.integer):
        x = np.clip(np.rint(x), *least_and_most(data))
    return Drawn(Records(x.reshape(count, *data.input_shape).astype(data.pool.x.dtype), y.astype(np.int64)), _nothing())


def _some(size: int, count: int, rng: np.random.Generator, of: str) -> Int[Array, " count"]:
    if count > size:
        raise UserError(f"{count} canaries are more than the {size} {of}: take fewer")
    return np.sort(rng.choice(size, count, replace=False))


def _nothing() -> Int[Array, " s"]:
    return np.empty(0, dtype=np.int64)


def _labels(data: AuditData, count: int, rng: np.random.Generator) -> Int[Array, " count"]:
    return rng.integers(0, data.num_classes, count)


def least_and_most(data: AuditData) -> tuple[float, float]:
    """Of the population's values, not of the pool's: what goes into models says nothing of their members."""
    return data.population.x.min().item(), data.population.x.max().item()


def _uniform(low: float, high: float, shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        return rng.integers(int(low), int(high), shape, dtype=dtype, endpoint=True)
    return rng.uniform(low, high, shape).astype(dtype)
