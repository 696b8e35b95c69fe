"""Worlds whose leak is known in closed form: evidence of a target, and the truth about who its members are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy.special import factorial, log_expit
from scipy.stats import norm

from core.rng import stream
from core.types import LOG_ODDS, Evidence, Signal, Text
from modules.mia.qmia import false_positive_rates


def gaussian_world(
    seed: int = 0,
    n_points: int = 4000,
    pairs: int = 2,
    *,
    shift: float = 1.0,
    tau: float = 1.0,
    in_std: float = 1.0,
    share: float = 1.0,
    population: int = 500,
    queries: int = 1,
    dtype: type = np.float32,
) -> tuple[Evidence, Bool[Array, " N"]]:
    """Log-odds t_j + N(0, 1) of a model that did not train on record j, t_j + N(shift, in_std^2) of one that did.

    t_j ~ N(0, tau^2) is the record's difficulty. Reference pairs train on complementary halves, the target on a
    half of its own. A `share` of the records is vulnerable, the others have the law of non-members whatever
    trained on them. Queries share t_j and have noise of their own. The population has the law of non-members.
    """
    draw = stream(seed, "gaussian_world")
    halves = np.array([draw.permutation(n_points) < n_points // 2 for _ in range(pairs + 1)])
    member = halves[0]
    trained_on = np.stack([halves[1:], ~halves[1:]], axis=1).reshape(2 * pairs, n_points)
    difficulty = tau * draw.standard_normal(n_points)
    vulnerable = draw.random(n_points) < share

    def log_odds(trained: Bool[Array, "*m N"]) -> Float[Array, "*m Q N"]:
        leaks = (trained & vulnerable)[..., None, :]
        noise = draw.standard_normal((*trained.shape[:-1], queries, n_points))
        return (difficulty + np.where(leaks, shift + in_std * noise, noise)).astype(dtype)

    z_difficulty = tau * draw.standard_normal(population)
    z = (z_difficulty + draw.standard_normal((2 * pairs + 1, queries, population))).astype(dtype)
    return Evidence(log_odds(member), log_odds(trained_on), trained_on, z[0], z[1:]), member


def vector_world(
    seed: int,
    n_points: int,
    pairs: int,
    shift: Float[Array, " d"],
    covariance: Float[Array, "#N d d"],
    *,
    names: tuple[str, ...] = ("log_odds", "hinge", "modified_entropy"),
    tau: float = 1.0,
) -> tuple[Evidence, Bool[Array, " N"]]:
    """As `gaussian_world`, d signals at once: t_j + N(0, covariance), or t_j + N(shift, covariance) of members."""
    draw, d = stream(seed, "vector_world"), len(shift)
    halves = np.array([draw.permutation(n_points) < n_points // 2 for _ in range(pairs + 1)])
    member, trained_on = halves[0], np.stack([halves[1:], ~halves[1:]], axis=1).reshape(2 * pairs, n_points)
    root, difficulty = np.linalg.cholesky(covariance), tau * draw.standard_normal((n_points, d))
    trained = np.concatenate([member[None], trained_on])
    noise = (root @ draw.standard_normal((*trained.shape, d, 1)))[..., 0]
    signals = np.float32(difficulty + trained[..., None] * shift + noise)
    none = np.zeros((2 * pairs + 1, 1, 0), np.float32)
    of = [Evidence(signals[:1, :, k], signals[1:, None, :, k], trained_on, none[0], none[1:]) for k in range(d)]
    return replace(of[0], also={Signal(name).name: one for name, one in zip(names[1:], of[1:], strict=True)}), member


def with_signals(evidence: Evidence, signals: Iterable[Signal]) -> Evidence:
    """The evidence with further signals, as two-class models with logits (log-odds, 0) would give them.

    Of a text world, those that only language models have are there already, by their kind alone.
    """
    if evidence.text is not None:
        further = {s.name: evidence.also.get(s.kind) or _in(evidence, s) for s in signals if s != LOG_ODDS}
        return replace(evidence, also={**evidence.also, **further})
    return replace(evidence, also={s.name: _in(evidence, s) for s in signals if s != LOG_ODDS})


def _in(evidence: Evidence, signal: Signal) -> Evidence:
    if signal.kind in ("label", "robust_label", "boundary"):
        return _labels_only(evidence, signal)
    if signal.kind in ("trace", "distilled"):
        return _over_time(evidence)
    if signal.kind == "quantiles":
        return _one_distribution_for_all(evidence, signal)

    def convert(log_odds: np.ndarray) -> np.ndarray:
        return two_class(signal, log_odds.astype(np.float64)).astype(log_odds.dtype)

    return replace(
        evidence,
        target=convert(evidence.target),
        references=convert(evidence.references),
        population=convert(evidence.population),
        population_references=convert(evidence.population_references),
    )


def _labels_only(evidence: Evidence, signal: Signal) -> Evidence:
    """What predicted labels show of a model whose log-odds are a linear function of the record: it labels copies
    rightly whose log-odds, moved by the copy's own amount, are positive; the distance to its boundary is the log-odds.
    """
    copies = 2 * norm.ppf((np.arange(61) + 0.5) / 61)

    def convert(log_odds: Float[Array, "*r Q N"]) -> Float[Array, "*r A N"]:
        if signal.kind == "label":
            return (log_odds > 0).astype(np.float32)
        of_record = log_odds.mean(axis=-2, keepdims=True)
        if signal.kind == "boundary":
            return np.maximum(of_record, 0).astype(np.float32)
        return (of_record + copies[:, None] > 0).astype(np.float32)

    target, references = convert(evidence.target), convert(evidence.references)
    population = np.zeros((len(target), 0), np.float32)
    return replace(
        evidence,
        target=target,
        references=references,
        population=population,
        population_references=np.zeros((len(references), *population.shape), np.float32),
    )


def _over_time(evidence: Evidence) -> Evidence:
    """A trajectory that rises in proportion to where it ends, at the mean of the queries."""

    def of(log_odds: Float[Array, "*r Q N"]) -> Float[Array, "*r 3 N"]:
        return log_odds.mean(axis=-2, keepdims=True) * np.array([[0.3], [0.7], [1.0]], log_odds.dtype)

    none = np.zeros((3, 0), np.float32)
    silent = np.zeros((len(evidence.references), 3, 0), np.float32)
    of_all = {"target": of(evidence.target), "references": of(evidence.references)}
    return replace(evidence, **of_all, population=none, population_references=silent)


def _one_distribution_for_all(evidence: Evidence, signal: Signal) -> Evidence:
    """What a regression on records that tell nothing predicts: the population's mean and deviation, or quantiles."""
    options = dict(signal.options)
    rates = false_positive_rates(evidence.population.shape[1], options["count"], options["smallest_fpr"])

    def of(population: Float[Array, "Q P"]) -> Float[Array, "K N"]:
        value = population.mean(axis=0, dtype=np.float64)
        rows = [value.mean(), value.std()] if options["head"] == "gaussian" else np.quantile(value, 1 - rates)
        return np.tile(np.array(rows)[:, None], evidence.target.shape[1])

    if not evidence.population.shape[1]:
        return replace(evidence, target=np.full_like(evidence.target[:1], np.nan), population=evidence.population[:1])
    target = of(evidence.population)
    references = np.array([of(row) for row in evidence.population_references]).reshape(-1, *target.shape)
    none = np.zeros((len(target), 0))
    silent = np.zeros((len(references), *none.shape))
    return replace(evidence, target=target, references=references, population=none, population_references=silent)


def two_class(signal: Signal, log_odds: np.ndarray) -> np.ndarray:
    """Any signal of a model with the two logits (log-odds, 0), the first of which is the true label's."""
    if signal.kind == "modified_entropy":  # Mentr = -(1 - p) log p - (1 - p) log(1 - (1 - p))
        log_loss = np.where(log_odds > 40, -log_odds, np.log(-log_expit(np.minimum(log_odds, 40))))
        return -np.log(2) - log_expit(-log_odds) - log_loss
    u = log_odds / signal.temperature
    if signal.kind == "entropy":  # H = p softplus(-u) + (1 - p) softplus(u)
        u = np.abs(u)
        small = np.where(u > 40, -u, np.log(-log_expit(np.minimum(u, 40))))  # log softplus(-u)
        return -np.logaddexp(log_expit(u) + small, log_expit(-u) + np.log(-log_expit(-u)))
    if signal.kind == "taylor":
        return np.log(sum((u - signal.margin) ** i / factorial(i) for i in range(signal.order + 1)))
    return u


def columns(evidence: Evidence, order: Array) -> Evidence:
    """The evidence about the points in `order`."""
    text, tokens = evidence.text, np.array([], dtype=int)
    if text is not None:
        tokens = np.concatenate([np.arange(text.start[n], text.start[n + 1]) for n in order])
        start = np.concatenate([[0], np.cumsum(np.diff(text.start)[order])])
        text = Text(text.tokens[tokens], start, text.compressed[order], text.frequency[tokens])
    return replace(
        evidence,
        target=evidence.target[:, order],
        references=evidence.references[:, :, order],
        trained_on=evidence.trained_on[:, order],
        also={
            name: columns(also, order if evidence.text is None or not Signal(name).per_token else tokens)
            for name, also in evidence.also.items()
        },
        text=text,
    )


def rows(evidence: Evidence, order: Array) -> Evidence:
    """The evidence with the references in `order`."""
    return replace(
        evidence,
        references=evidence.references[order],
        trained_on=evidence.trained_on[order],
        population_references=evidence.population_references[order],
        also={name: rows(also, order) for name, also in evidence.also.items()},
    )


# ---- what the truth says -------------------------------------------------------------------------------------


def naive_auc(scores: Float[Array, " N"], member: Bool[Array, " N"]) -> float:
    """The share of (member, non-member) pairs in the right order, ties counting half."""
    outsiders = np.sort(scores[~member])
    below, upto = (np.searchsorted(outsiders, scores[member], side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(outsiders)))


def naive_tpr(scores: Float[Array, " N"], member: Bool[Array, " N"], fpr: float) -> float:
    """The TPR of `score > threshold` that at most `fpr` of the non-members pass."""
    outsiders = np.sort(scores[~member])[::-1]
    return float((scores[member] > outsiders[int(fpr * len(outsiders))]).mean())


def auc_error(member: Bool[Array, " N"]) -> float:
    """The standard error of the AUC of scores that know nothing."""
    inside, outside = member.sum(), (~member).sum()
    return float(np.sqrt((inside + outside + 1) / (12 * inside * outside)))


def oracle_auc(shift: float) -> float:
    """N(0, 1) against N(shift, 1), difficulty known."""
    return float(norm.cdf(shift / np.sqrt(2)))


def oracle_tpr(shift: float, fpr: float) -> float:
    return float(norm.cdf(shift - norm.isf(fpr)))


def loss_auc(shift: float, tau: float, queries: int = 1) -> float:
    """One threshold for all records: difficulty is noise."""
    return float(norm.cdf(shift / np.sqrt(2 * (1 / queries + tau**2))))


def difference_auc(shift: float, out_models: int, queries: int = 1) -> float:
    """The target's log-odds minus the mean of `out_models` references."""
    return float(norm.cdf(shift * np.sqrt(queries) / np.sqrt(2 * (1 + 1 / out_models))))


def difference_tpr(shift: float, out_models: int, fpr: float) -> float:
    return float(norm.cdf(shift / np.sqrt(1 + 1 / out_models) - norm.isf(fpr)))


def few_vulnerable_auc(shift: float, share: float) -> float:
    """The record-wise likelihood ratio where only a share of the records leaks, and it is known which."""
    pairs = share**2 * norm.cdf(shift / np.sqrt(2)) + 2 * share * (1 - share) * norm.cdf(shift / 2)
    return float(pairs + (1 - share) ** 2 / 2)


def unequal_variances(shift: float, in_std: float, radius: Float[Array, " k"]) -> tuple[Array, Array]:
    """(FPR, TPR) of the likelihood ratio of N(shift, in_std^2), in_std < 1, over N(0, 1): an interval of `radius`."""
    centre = shift / (1 - in_std**2)
    fpr = norm.cdf(centre + radius) - norm.cdf(centre - radius)
    tpr = norm.cdf((centre + radius - shift) / in_std) - norm.cdf((centre - radius - shift) / in_std)
    return fpr, tpr


# ---- language ------------------------------------------------------------------------------------------------


def text_world(
    seed: int = 0,
    n_points: int = 1000,
    pairs: int = 2,
    *,
    shift: float = 1.0,
    tau: float = 0.5,
    tokens: int = 16,
    level: float = -1.0,
    population: int = 200,
) -> tuple[Evidence, Bool[Array, " N"]]:
    """Texts over two tokens: the log-odds of token t of record n are level + b_nt + N(0, 1), b ~ N(0, tau^2).

    A model that trained on the record has its tokens' log-odds raised by shift / sqrt(tokens) each, so that with b
    known the best test has the AUC of N(shift, 1) against N(0, 1). Records have half to all of `tokens` tokens, of
    their own; reference pairs and population as in `gaussian_world`. After a prefix the raise is gone, and so it is
    of neighbours; the gradient's norm is the share that the model errs by.
    """
    draw = stream(seed, "text_world")
    halves = np.array([draw.permutation(n_points) < n_points // 2 for _ in range(pairs + 1)])
    member, trained_on = halves[0], np.stack([halves[1:], ~halves[1:]], axis=1).reshape(2 * pairs, n_points)
    lengths = draw.integers(tokens // 2, tokens + 1, n_points)
    start = np.concatenate([[0], np.cumsum(lengths)])
    record = np.repeat(np.arange(n_points), lengths)
    base = level + tau * draw.standard_normal(len(record))
    trained = np.concatenate([member[None], trained_on])[:, record]
    odds = base + shift / np.sqrt(tokens) * trained + draw.standard_normal(trained.shape)
    z = level + draw.standard_normal((2 * pairs + 1, 1, population))
    text = Text(
        tokens=draw.integers(0, 50, len(record)),
        start=start,
        compressed=draw.integers(20, 40, n_points),
        frequency=draw.uniform(0.001, 0.1, len(record)),
    )
    quiet = base + 0.3 * draw.standard_normal(trained.shape)
    return text_evidence(text, odds, quiet, trained_on, z.astype(np.float32)), member


def text_evidence(
    text: Text, odds: Float[Array, "R1 U"], quiet: Float[Array, "R1 U"], trained_on: Bool[Array, "R N"], z: Array
) -> Evidence:
    """Every signal of two-token models, the target first, whose tokens have these log-odds; `quiet` without a raise."""
    p, q = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(odds))
    log_p, log_q = log_expit(odds), log_expit(-odds)
    mean = p * log_p + q * log_q
    of_tokens = trained_on[:, text.record()]
    out = np.where(of_tokens, 0.0, p[1:]).sum(0) / np.maximum((~of_tokens).sum(0), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(out * (np.log(out) - log_p[0]) + (1 - out) * (np.log(1 - out) - log_q[0]))
    divergence = np.concatenate([np.maximum(ratio, 0)[None], np.full(of_tokens.shape, np.nan)])
    columns = {
        "token_log_p": log_p,
        "token_mean": mean,
        "token_variance": p * (log_p - mean) ** 2 + q * (log_q - mean) ** 2,
        "token_rank": (odds < 0).astype(float),
        "token_divergence": divergence,
        "prefixed_log_odds": sequence_log_odds(text, quiet - 0.1),
        "neighbour_log_p": text.mean(log_expit(quiet)),
        "gradient_norm": text.mean(q),
    }
    silent = z[:, :, :0]
    also = {
        kind: Evidence(
            column[:1].astype(np.float32),
            column[1:, None].astype(np.float32),
            of_tokens if kind.startswith("token_") else trained_on,
            silent[0],
            silent[1:],
        )
        for kind, column in columns.items()
    }
    s = sequence_log_odds(text, odds).astype(np.float32)
    return Evidence(s[:1], s[1:, None], trained_on, z[0], z[1:], also, text)


def sequence_log_odds(text: Text, odds: Float[Array, "*m U"]) -> Float[Array, "*m N"]:
    mean = np.minimum(text.mean(log_expit(odds)), -1e-300)
    return mean - np.log(-np.expm1(mean))
