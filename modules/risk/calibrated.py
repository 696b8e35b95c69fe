"""The false-positive rate of accusing one record (or one owner), from its own scores on models without it.

One threshold for all records has the right false-positive rate on average and the wrong one on each: a record that
scores high on every model is accused always. Here each has its own null, learnt from few OUT references, with the
corrections that few make necessary. Jälkö et al. 2026 (https://arxiv.org/abs/2605.25819) make the point under
Gaussian nulls; only the abstract was at hand, so the formulas are derived here from first principles:

    s_1 .. s_n OUT scores of a record and s the target's, all N(mu, sigma^2) under the null. s - mean(s_i) then has
    variance sigma^2 (1 + 1/n), and (s - mean) / (sd sqrt(1 + 1/n)) the t distribution of n - 1 degrees of freedom.

Mean and sd taken for mu and sigma (no 1/n, a Gaussian tail) accuse too often: at n = 4 and a nominal 1% it is 7%.
Variances are moderated as Smyth (2004, https://doi.org/10.2202/1544-6115.1027) does: sigma^2 of the records are taken
as draws of a scaled inverse chi-squared law of d0 degrees of freedom around s0^2, both fitted to all records, and
the t has d0 + n - 1. That is exact where the law holds, and n - 1 degrees alone are what it comes to where d0 is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray as Array
from scipy.special import digamma, ndtr, ndtri, polygamma, stdtr

from core.metrics import tpr_at_fpr
from core.types import pairs_of

LEAST_VARIANCE = 1e-12  # of a record, as a share of the median: scores that never differ have none


@dataclass(frozen=True)
class Calibrated:
    """Of each record: how often a model without it gives such a score, and the same as standard deviations."""

    p_values: Float[Array, " N"]  # NaN where no reference left the record out
    z: Float[Array, " N"]  # larger = more likely a member; N(0, 1) under the null
    prior_freedom: float  # d0; infinite: all records vary alike


def calibrated(
    target: Shaped[Array, " N"],
    references: Shaped[Array, "R N"],
    trained_on: Bool[Array, "R N"],
    *,
    size: Shaped[Array, " N"] | None = None,
) -> Calibrated:
    """The one-sided p-value of "the target did not train on it", record by record.

    references: what the same attack says when each reference is its target.
    size: how many numbers each score is an aggregate of; the prior variance may be a power of it.
    """
    out = ~trained_on
    n = out.sum(axis=0)
    mean = np.divide(np.where(out, references, 0.0).sum(axis=0), n, out=np.full(len(n), np.nan), where=n > 0)
    squares = np.where(out, np.square(references - mean), 0.0).sum(axis=0)
    freedom = np.maximum(n - 1, 0)
    prior, d0 = _prior(squares, freedom, size)
    if np.isinf(d0):
        variance, degrees = prior, np.full(len(n), np.inf)
    else:
        degrees = d0 + freedom
        variance = (d0 * prior + squares) / np.maximum(degrees, 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (np.asarray(target, dtype=np.float64) - mean) / np.sqrt(variance * (1 + 1 / np.maximum(n, 1)))
    p = np.where(np.isinf(degrees), ndtr(-t), stdtr(np.where(np.isinf(degrees), 1.0, degrees), -t))
    p = np.where((n > 0) & (degrees > 0), p, np.nan)
    # Beyond what a p-value can hold t ranks on; of one freedom for all, the order is that of t in any case.
    return Calibrated(p, np.where(p > 1e-300, -ndtri(np.clip(p, 1e-300, 1 - 1e-16)), t), d0)


@dataclass(frozen=True)
class Trial:
    """What calibrating does to references, each against the others, where the truth is known."""

    realised_fpr: float  # share of the records a reference did not train on with a p-value of at most `nominal_fpr`
    calibrated_tpr: float  # at `nominal_fpr`, by the calibrated scores
    raw_tpr: float  # by the scores as they are


def tried(
    references: Shaped[Array, "R N"],
    trained_on: Bool[Array, "R N"],
    nominal_fpr: float,
    *,
    size: Shaped[Array, " N"] | None = None,
    limit: int = 8,
) -> Trial | None:
    """Each of at most `limit` references calibrated by the others, its twins left out; None where too few are left.

    The references' scores are those of rehearsals, so the target has no say in what is chosen by this.
    """
    pair, found = pairs_of(trained_on), []
    for r in np.unique(np.linspace(0, len(references) - 1, limit).round().astype(int)):
        others, member = pair != pair[r], trained_on[r]
        if (~trained_on[others]).sum(axis=0).min(initial=2) < 2 or member.all() or not member.any():
            continue
        of_r = calibrated(references[r], references[others], trained_on[others], size=size)
        tprs = [tpr_at_fpr(scores, member, nominal_fpr).tpr.value for scores in (of_r.z, references[r])]
        found.append((np.mean(of_r.p_values[~member] <= nominal_fpr), *tprs))
    return Trial(*(float(value) for value in np.mean(found, axis=0))) if found else None


def _prior(
    squares: Float[Array, " N"], freedom: Shaped[Array, " N"], size: Shaped[Array, " N"] | None
) -> tuple[Float[Array, " N"], float]:
    """(s0^2 of each record, d0): Smyth (2004), Sec. 6.2; with `size`, log s0^2 is a straight line in log size."""
    known = freedom > 0
    if not known.any():
        return np.full(len(squares), np.nan), 0.0
    d, variance = freedom[known].astype(np.float64), squares[known] / freedom[known]
    middle = float(np.median(variance)) or float(variance.mean())
    if middle == 0:  # scores that never differ between models: any difference is a surprise
        return np.full(len(squares), np.finfo(float).tiny), float("inf")
    level = np.log(np.maximum(variance, LEAST_VARIANCE * middle)) - digamma(d / 2) + np.log(d / 2)
    line = np.ones((len(squares), 1))
    if size is not None and len(np.unique(size[known])) > 1:
        line = np.column_stack([line, np.log(size)])
    fitted, *_ = np.linalg.lstsq(line[known], level, rcond=None)
    excess = np.square(level - line[known] @ fitted).sum() / max(known.sum() - line.shape[1], 1)
    excess -= polygamma(1, d / 2).mean()
    if excess <= 0:
        return np.exp(line @ fitted), float("inf")
    d0 = 2 * _inverse_trigamma(float(excess))
    return np.exp(line @ fitted + digamma(d0 / 2) - np.log(d0 / 2)), d0


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value > 0, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        of_x = float(polygamma(1, x))
        step = of_x * (1 - of_x / value) / float(polygamma(2, x))
        x += step
        if -step < 1e-10 * x:
            break
    return x
