"""Several signals of a record as one vector: its joint Gaussians over IN and OUT references, as in LiRA.

Signals and their queries are the d coordinates of a vector. Means and standard deviations of each coordinate are
LiRA's (a record's own mean; variances pooled below 64 references); what is new is the correlation of coordinates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from core.types import Evidence
from modules.mia.lira import MANY, floored, known
from modules.mia.moments import Moments, moments

log = logging.getLogger(__name__)

CEILING = 1 - 1e-4  # of correlations: signals that differ by less count once, however often they are listed
FEWEST = 4  # models of a side from which a record may have correlations of its own; two always correlate by 1
BYTES = 2**26  # of numbers in memory at a time

Coordinates = Callable[[Array], Array]


@dataclass(frozen=True)
class Part:
    """Coordinates of the vector: the queries of one signal, or what `of` makes of them."""

    evidence: Evidence
    of: Coordinates = field(default=np.asarray)


@dataclass(frozen=True)
class Rule:
    """Settings, see `modules.mia.multi_lira`."""

    online: bool
    own_variance: bool
    correlation: str  # "none", "global", "shrunk"

    @classmethod
    def of(cls, references: int, mode: str, variance: str, correlation: str) -> Rule:
        many = references >= MANY
        own = variance == "per_record" or (variance == "auto" and many)
        return cls(mode == "online", own, ("shrunk" if many else "global") if correlation == "auto" else correlation)


@dataclass(frozen=True)
class Side:
    """What all records share of one side, IN or OUT."""

    variance: Float[Array, " d"]  # within records, pooled
    correlation: Float[Array, "d d"]  # within records, pooled
    weight: float = 1.0  # of the pooled correlations, against those of a record's own models


def sides(parts: Sequence[Part], rule: Rule) -> tuple[Side, ...]:
    """OUT of an offline attack; IN and OUT of an online one."""
    masks = (True, False) if rule.online else (False,)
    squares, freedom = [0.0 for _ in masks], [0 for _ in masks]
    for block in _blocks(parts, square=False):
        for k, one in enumerate(_side(block, side) for side in masks):
            squares[k] += one.squares.sum(axis=1)
            freedom[k] += np.maximum(one.count - 1, 0).sum()
    variances = known(*(np.asarray(of) / max(count, 1) for of, count in zip(squares, freedom, strict=True)))
    return _same_where_unknown(
        [_correlated(parts, rule, side, of) for side, of in zip(masks, variances, strict=True)], rule
    )


def score(parts: Sequence[Part], shared: Sequence[Side], rule: Rule) -> Float[Array, " N"]:
    """log N(target; IN) - log N(target; OUT), or without IN models a one-sided standard score.

    That is O'Brien's (1984) generalised least squares test of a shift of all coordinates by equally many of their
    standard deviations, 1'R⁻¹z / sqrt(1'R⁻¹1): N(0, 1) of a non-member, z itself where there is one coordinate.
    """
    square = rule.correlation == "shrunk"
    return np.concatenate([_score(block, shared, rule) for block in _blocks(parts, square)])


def _score(block: _Block, shared: Sequence[Side], rule: Rule) -> Float[Array, " n"]:
    if not rule.online:
        return _Fitted.of(block, False, shared[0], rule).one_sided()
    inside, out = (_Fitted.of(block, side, of, rule) for side, of in zip((True, False), shared, strict=True))
    return inside.log_density() - out.log_density()


@dataclass(frozen=True)
class _Block:
    """Some of the records, their signals end to end."""

    target: Float[Array, "d n"]
    references: Float[Array, "R d n"]
    trained_on: Bool[Array, "R n"]


def _blocks(parts: Sequence[Part], square: bool) -> Iterator[_Block]:
    """The records in blocks of at most BYTES. square: correlations of each record are in memory, too."""
    first = parts[0].evidence
    references, points = first.trained_on.shape
    each = 8 * sum(len(part.of(part.evidence.target[:, :1])) for part in parts)
    size = max(1, BYTES // (each * (references + 8) + square * each * each // 8))
    for start in range(0, points, size):
        at = slice(start, start + size)
        target = [part.of(part.evidence.target[:, at]) for part in parts]
        rows = [part.of(part.evidence.references[:, :, at]) for part in parts]
        yield _Block(
            np.concatenate(target).astype(np.float64),
            rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1),
            first.trained_on[:, at],
        )


def _side(block: _Block, inside: bool) -> Moments:
    return moments(block.references, block.trained_on if inside else ~block.trained_on)


def _deviations(block: _Block, inside: bool, of: Moments, variance: Array) -> Iterator[Float[Array, "d n"]]:
    """Each selected model's distance from its side's mean, in standard deviations; zeros of the others."""
    scale = 1 / np.sqrt(np.broadcast_to(variance, of.mean.shape))
    for row, trained in zip(block.references, block.trained_on, strict=True):
        yield (row - of.mean) * scale * (trained if inside else ~trained)


def _variance(of: Moments, pooled: Float[Array, " d"], own: bool) -> Float[Array, "d _"]:
    if not own:
        return pooled[:, None]
    return floored(of.squares, np.broadcast_to(of.count - 1, of.squares.shape), pooled[:, None])


def _correlated(parts: Sequence[Part], rule: Rule, inside: bool, variance: Float[Array, " d"]) -> Side:
    """The correlations within records, pooled; and how far a record's own are believed."""
    d = len(variance)
    if rule.correlation == "none" or d == 1:
        return Side(variance, np.eye(d))
    products, freedom = np.zeros((d, d)), 0
    for block in _blocks(parts, square=False):
        of = _side(block, inside)
        freedom += int(np.maximum(of.count - 1, 0).sum())
        for row in _deviations(block, inside, of, _variance(of, variance, rule.own_variance)):
            products += row @ row.T
    correlation = _less_noise(_normalised(products), freedom)
    weight = _weight(parts, rule, inside, variance, correlation) if rule.correlation == "shrunk" else 1.0
    return Side(variance, correlation, weight)


def _normalised(products: Float[Array, "*n d d"]) -> Float[Array, "*n d d"]:
    """Sums of products as correlations; a coordinate that never varies is correlated with none."""
    scale = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    scale = np.where(scale > 0, scale, 1.0)
    found = products / (scale[..., :, None] * scale[..., None, :])
    found[..., *np.diag_indices(products.shape[-1])] = 1.0
    return found


def _less_noise(correlation: Float[Array, "d d"], freedom: int) -> Float[Array, "d d"]:
    """Shrunk towards none by the share that sampling explains (Schäfer & Strimmer 2005), as 1 - rho^2 tells it."""
    off = ~np.eye(len(correlation), dtype=bool)
    noise, seen = (
        (np.square(1 - np.square(correlation[off])) / max(freedom, 1)).sum(),
        np.square(correlation[off]).sum(),
    )
    share = 1 - min(noise / seen, 1.0) if seen > 0 else 0.0
    return np.where(off, share * CEILING * correlation, 1.0)


def _weight(
    parts: Sequence[Part], rule: Rule, inside: bool, variance: Float[Array, " d"], pooled: Float[Array, "d d"]
) -> float:
    """Of the spread of records' own correlations about the pooled ones, the share that sampling explains.

    Empirical Bayes by moments, one share for all records: 1 where records are as alike as chance would have them.
    """
    off = ~np.eye(len(variance), dtype=bool)
    noise = spread = 0.0
    for block in _blocks(parts, square=True):
        of = _side(block, inside)
        enough = of.count >= FEWEST
        own = _own(block, inside, of, _variance(of, variance, rule.own_variance))[enough]
        spread += np.square(own - pooled)[:, off].sum()
        noise += np.square(1 - np.square(pooled[off])).sum() * (1 / (of.count[enough] - 1)).sum()
    return float(min(noise / spread, 1.0)) if spread > 0 else 1.0


def _own(block: _Block, inside: bool, of: Moments, variance: Array) -> Float[Array, "n d d"]:
    """Each record's own correlations."""
    products = np.zeros((block.target.shape[1], *2 * (len(block.target),)))
    for row in _deviations(block, inside, of, variance):
        columns = row.T
        products += columns[:, :, None] * columns[:, None, :]
    return _normalised(products)


def _same_where_unknown(found: list[Side], rule: Rule) -> tuple[Side, ...]:
    """A side whose models show no correlation, for want of models, takes the other's."""
    if len(found) == 2 and rule.correlation != "none":
        plain = [np.array_equal(side.correlation, np.eye(len(side.variance))) for side in found]
        if plain[0] != plain[1]:
            other = found[plain.index(False)].correlation
            found = [Side(side.variance, other) if none else side for side, none in zip(found, plain, strict=True)]
    return tuple(found)


@dataclass(frozen=True)
class _Fitted:
    """The target's standard scores on one side, and the correlations that they have there."""

    z: Float[Array, "d n"]
    log_variance: Float[Array, " #n"]  # summed over coordinates
    precision: Float[Array, "d d"] | None  # inverse of the correlations that all records share
    own: Float[Array, "n d d"] | None  # correlations record by record
    log_determinant: Float[Array, " n"] | float

    @classmethod
    def of(cls, block: _Block, inside: bool, shared: Side, rule: Rule) -> _Fitted:
        of = _side(block, inside)
        variance = _variance(of, shared.variance, rule.own_variance)
        z = (block.target - of.mean) / np.sqrt(variance)
        total = np.zeros(variance.shape[1])
        for row in np.log(variance):
            total += row
        if shared.weight == 1.0:
            inverse, sign = np.linalg.inv(shared.correlation), np.linalg.slogdet(shared.correlation)
            return cls(z, total, inverse, None, float(sign.logabsdet))
        weight = np.where(of.count >= FEWEST, shared.weight, 1.0)[:, None, None]
        own = (1 - weight) * CEILING * _own(block, inside, of, variance) + weight * shared.correlation
        own[:, *np.diag_indices(len(z))] = 1.0
        return cls(z, total, None, own, np.linalg.slogdet(own).logabsdet)

    def _whitened(self, vector: Float[Array, "d n"]) -> Float[Array, "d n"]:
        """R⁻¹ of each record's vector; coordinate by coordinate, so that it has the same bits in any block."""
        if self.precision is None:
            assert self.own is not None
            return np.linalg.solve(self.own, vector.T[:, :, None])[:, :, 0].T
        found = np.zeros_like(vector)
        for row, weights in zip(found, self.precision, strict=True):
            for weight, coordinate in zip(weights, vector, strict=True):
                row += weight * coordinate
        return found

    def log_density(self) -> Float[Array, " n"]:
        """Up to a constant."""
        squares = np.zeros(self.z.shape[1])
        for whitened, coordinate in zip(self._whitened(self.z), self.z, strict=True):
            squares += whitened * coordinate
        return -0.5 * (squares + self.log_variance + self.log_determinant)

    def one_sided(self) -> Float[Array, " n"]:
        """1'R⁻¹z / sqrt(1'R⁻¹1)."""
        if self.precision is None:
            weights = self._whitened(np.ones_like(self.z))
        else:
            weights = np.broadcast_to(self.precision.sum(axis=0)[:, None], self.z.shape)
        found, norm = np.zeros(self.z.shape[1]), np.zeros(self.z.shape[1])
        for weight, coordinate in zip(weights, self.z, strict=True):
            found += weight * coordinate
            norm += weight
        return found / np.sqrt(norm)
