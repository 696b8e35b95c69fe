"""The arrays of an audit, their axes, and the few types that keep an attack honest.

Glossary of axes, used in every shape of this code base:

    M  models              T  target models        R  reference models of one target
    D  records of the pool N  audited points       P  population points
    Q  queries (augmentations) of a point          K  samples of a range

**Rows are models, columns are points, always.** Scores: larger = more likely a member.

The stored signal of a classifier is the log-odds of the true label, `z_y - logsumexp(z_{j != y})`, in
float32. It does not saturate, and probability `sigmoid(s)` and loss `softplus(-s)` follow from it exactly.
Of a language model it is the log-odds of a sequence's mean-token probability p, log p = mean_t log p(x_t | x_<t):
so log p is the mean token log-likelihood, and every attack on labels is an attack on sequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array


@dataclass(frozen=True)
class Records:
    """Labelled records: images as uint8 (n, C, H, W), features as float32 (n, d), text as token ids int32 (n, L).

    y: labels; of text without labels, zeros.
    lengths: of text, how many of a record's L tokens are its own: what is beyond them is padding, whatever its id.
    texts: of text, as it was read.
    ids: what its owner calls each record; its position in the dataset if None.
    groups: columns by name that reports may slice by.
    """

    x: Shaped[Array, "n ..."]
    y: Int[Array, " n"]
    lengths: Int[Array, " n"] | None = None
    texts: tuple[str, ...] | None = None
    ids: Shaped[Array, " n"] | None = None
    groups: Mapping[str, Shaped[Array, " n"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def select(self, index: Int[Array, " m"]) -> Records:
        """The indexed records, in that order, with all that is known of each; `ids` stay what they were before."""
        return Records(
            self.x[index],
            self.y[index],
            None if self.lengths is None else self.lengths[index],
            None if self.texts is None else tuple(self.texts[i] for i in index.tolist()),
            np.asarray(index) if self.ids is None else self.ids[index],
            {name: column[index] for name, column in self.groups.items()},
        )


@dataclass(frozen=True)
class AuditData:
    """A dataset as an audit needs it: a pool that models train on and a disjoint population.

    num_classes: of text, the size of the vocabulary.
    feature_names: of features, what each column is called; None if they have no names.
    tokenizer: of text, the tokenizer's JSON as the library `tokenizers` writes it.
    mean, std: public constants per channel (of features one for all, or each its own), in the units of `x`; models see
        `(x - mean) / std`. Never estimated from the pool: that would let non-members into a model.
    """

    pool: Records
    population: Records
    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    feature_names: tuple[str, ...] | None = None
    tokenizer: str | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record: (C, H, W) of an image, (d,) of a feature vector, (L,) of a text."""
        return tuple(self.pool.x.shape[1:])

    @property
    def is_image(self) -> bool:
        return len(self.input_shape) == 3

    @property
    def has_contents(self) -> bool:
        """False where only what models say of the records was given, and not the records."""
        return self.is_text or self.pool.x.size > 0

    @property
    def is_text(self) -> bool:
        return self.pool.lengths is not None


MEANS = ("modified_entropy", "entropy", "hinge")  # kinds of every model that are no probability


@dataclass(frozen=True)
class Signal:
    """What is taken from a model's answer to a record: a confidence in it, in float32, larger = more confident.

    Of every model, from the logits z of the true label y, with u = z / temperature:
        kind "log_odds":  u_y - logsumexp_{j != y} u_j            (softmax; margin and order unused)
        kind "taylor":    log t(u_y - margin) - log sum_{j != y} t(u_j),   t(v) = sum_{i <= order} v^i / i!
        kind "modified_entropy": -log Mentr of Song & Mittal (2021), eq. 8: larger = more confident; the
            logarithm because Mentr itself underflows where a model is sure
        kind "entropy":   -log of the entropy of softmax(u), whatever the label
        kind "hinge":     u_y - max_{j != y} u_j
    A Taylor order must be even: odd truncations can be negative. `sigmoid` of the first two is a probability: in a
    language model p with log p the mean over tokens. Its others are means over tokens.

    Of classifiers, seen through predicted labels alone, with queries Q of their own:
        kind "label":        1 where the predicted label is the true one, else 0
        kind "robust_label": the same of altered copies of the record, the record itself first
        kind "boundary":     distance to the nearest record found that is labelled otherwise; 0 of a misclassified one

    Of classifiers, their log-odds over time, as rows in the place of queries:
        kind "trace":        after some epochs of the model's own training
        kind "distilled":    of a student after each epoch of learning the model's answers about the population

    Of targets, from a regression on the population (QMIA), as rows in the place of queries:
        kind "quantiles":    mean and standard deviation of another signal given the record, or quantiles of it

    Of language models, a number for each predicted token t (see `Text`), with p its distribution over v:
        kind "token_log_p":    log p(x_t | x_<t)
        kind "token_mean":     mu_t = sum_v p_v log p_v, minus the entropy
        kind "token_variance": sum_v p_v (log p_v - mu_t)^2
        kind "token_rank":     how many tokens v are likelier than x_t; 0 where the model predicts it
        kind "token_divergence": KL(p_ref || p), p_ref the mean of the target's OUT references; of targets only
    and for each record, where more passes are needed:
        kind "prefixed_log_odds": log_odds of the record's tokens after a prefix of other texts
        kind "neighbour_log_p": mean over neighbours (texts with a few words replaced) of their mean token log p
        kind "gradient_norm":  mean over parameter tensors of the norm of the loss gradient
    options: settings of these, as (name, value).
    """

    kind: str = "log_odds"
    temperature: float = 1.0
    margin: float = 0.0
    order: int = 0
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The column's name in files: `log_odds`, `log_odds_T2`, `taylor_T2_m0.6_n4`, `gradient_norm_5f1c09ab`."""
        parts = [self.kind]
        if self.temperature != 1.0:
            parts.append(f"T{self.temperature:g}")
        if self.kind == "taylor":
            parts += [f"m{self.margin:g}", f"n{self.order}"]
        if self.options:
            parts.append(hashlib.sha256(repr(self.options).encode()).hexdigest()[:8])
        return "_".join(parts)

    @property
    def per_token(self) -> bool:
        return self.kind.startswith("token_")

    @property
    def of_population(self) -> bool:
        """Whether population points are asked too: of the kinds that every model has."""
        return self.kind in ("log_odds", "taylor", *MEANS)

    @property
    def is_mean(self) -> bool:
        """Whether a text's is the mean of its tokens', and not that of their log-probabilities made log-odds."""
        return self.kind in MEANS


LOG_ODDS = Signal()


@dataclass(frozen=True)
class Text:
    """The audited records of a language model, token by token, for attacks that look inside a sequence.

    Models predict every token of a record but its first. The U predicted tokens of all N records are laid end to
    end: those of record n are `start[n]:start[n + 1]`, at least one. A signal per token has U columns.
    """

    tokens: Int[Array, " U"]  # the predicted tokens
    start: Int[Array, " N_and_1"]
    compressed: Int[Array, " N"]  # bytes of each record's text, compressed by zlib
    frequency: Float[Array, " U"]  # of each predicted token among the tokens of the population, never 0

    def mean(self, values: Float[Array, "*rows U"]) -> Float[Array, "*rows N"]:
        """The mean of each record's tokens, in float64."""
        return np.add.reduceat(np.asarray(values, dtype=np.float64), self.start[:-1], axis=-1) / np.diff(self.start)

    def record(self) -> Int[Array, " U"]:
        """Which record each token is of."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


def pairs_of(member: Bool[Array, "M n"]) -> Int[Array, " M"]:
    """Which models are twins, by a number they have in common: their rows are the same, or complements."""
    rows = [(np.packbits(row).tobytes(), np.packbits(~row).tobytes()) for row in member]
    number = {row: k for k, row in enumerate(dict.fromkeys(min(pair) for pair in rows))}
    return np.array([number[min(pair)] for pair in rows], dtype=int)


@dataclass(frozen=True)
class Evidence:
    """What an attacker may see of one target model. It has no field for the target's membership.

    The references never include the target's twin (the model trained on the complementary half), whose
    membership would give the target's away. All arrays are of one signal, `LOG_ODDS` unless it is an entry
    of `also`, which holds the same evidence in other signals, by `Signal.name`. In a signal per token, N counts
    predicted tokens instead of records, and `trained_on` is repeated for each token of a record. Signals of which
    the population is not asked (`Signal.of_population`) have P = 0. NaN where a reference is not asked.
    """

    target: Float[Array, "Q N"]
    references: Float[Array, "R Q N"]
    trained_on: Bool[Array, "R N"]
    population: Float[Array, "Q P"]
    population_references: Float[Array, "R Q P"]
    also: Mapping[str, Evidence] = field(default_factory=dict)
    text: Text | None = None  # of language models

    def signal(self, signal: Signal) -> Evidence:
        """The same evidence in another signal."""
        if signal == LOG_ODDS:
            return self
        if signal.name not in self.also:
            raise KeyError(f"signal {signal.name!r} was not computed; there are: {', '.join(['log_odds', *self.also])}")
        return self.also[signal.name]

    def at(self, points: Shaped[Array, " n"]) -> Evidence:
        """The evidence about some of the points: indices, or a mask. Not of single tokens."""
        return replace(
            self,
            target=self.target[:, points],
            references=self.references[:, :, points],
            trained_on=self.trained_on[:, points],
            also={name: evidence.at(points) for name, evidence in self.also.items()},
        )

    def twins(self) -> Bool[Array, "R R"]:
        """twins[r, s]: the membership of reference s settles that of r: it is the same, or the complement."""
        kind = pairs_of(self.trained_on)
        return kind[:, None] == kind[None, :]

    def rehearsals(self, limit: int | None = None) -> Iterator[tuple[Evidence, Bool[Array, " N"]]]:
        """For each reference: the evidence of attacking it with the others, and its known membership.

        The rehearsed reference's twins are left out, as the target's are. The one primitive behind every
        tuned parameter: what is chosen, is chosen here, and never by looking at the target.
        At most `limit` rehearsals, evenly spread over the references. Yields nothing where no reference
        would remain (fewer than two pairs): the caller must then say what it falls back on.
        """
        twins = self.twins()
        chosen = np.arange(len(self.trained_on))
        if limit is not None and limit < len(chosen):
            chosen = np.unique(np.linspace(0, len(chosen) - 1, limit).round().astype(int))
        for r in chosen:
            if (~twins[r]).any():
                yield self._rehearse(int(r), ~twins[r]), self.trained_on[r]

    def _rehearse(self, r: int, others: Bool[Array, " R"]) -> Evidence:
        return replace(
            self,
            target=self.references[r],
            references=self.references[others],
            trained_on=self.trained_on[others],
            population=self.population_references[r],
            population_references=self.population_references[others],
            also={name: evidence._rehearse(r, others) for name, evidence in self.also.items()},
        )


@dataclass(frozen=True)
class Plan:
    """Which models there are, who trained on what, and who is whose reference.

    Where this tool trains, models 2p and 2p + 1 are twins: they share out the pool in two halves, so that every
    record is IN for exactly one of the two. Of models that were trained elsewhere nothing of the kind is assumed.
    """

    member: Bool[Array, "M D"]
    references: tuple[tuple[int, ...], ...]  # of each target: model ids, never its own nor its twins'
    audited: tuple[int, ...] | None = None  # the targets; models 0 .. T - 1 if None

    @property
    def targets(self) -> Sequence[int]:
        return range(len(self.references)) if self.audited is None else self.audited

    def references_of(self, target: int) -> tuple[int, ...]:
        return self.references[self.targets.index(target)]

    @property
    def reference_pairs(self) -> int:
        """How many pairs of twins are among the references, of the target with the fewest."""
        pair = pairs_of(self.member)
        return min(len(np.unique(pair[np.array(of_target, dtype=int)])) for of_target in self.references)

    @property
    def models(self) -> tuple[int, ...]:
        """The models that must exist: a lone target's twin is planned, but never trained."""
        return tuple(sorted({*self.targets, *(model for of_target in self.references for model in of_target)}))


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Roc:
    """Achieved operating points of `guess member if score >= threshold`, from none guessed to all guessed.

    One point per distinct score, after (0, 0) at threshold +inf. A step function: nothing between the
    points is achievable, so nothing interpolates.
    """

    fpr: Float[Array, " points"]
    tpr: Float[Array, " points"]
    threshold: Float[Array, " points"]


@dataclass(frozen=True)
class OperatingPoint:
    """The largest TPR achieved at an FPR of at most `nominal_fpr`."""

    nominal_fpr: float
    threshold: float
    fpr: Estimate  # achieved on these non-members, with its interval
    tpr: Estimate  # achieved on these members, with an interval that includes the threshold's noise
    resolvable: bool  # nominal_fpr * non-members >= 10: below, the number says more about n than about the attack


@dataclass(frozen=True)
class Summary:
    """What is reported of one attack on one target."""

    members: int
    non_members: int
    level: float  # of every interval in it, e.g. 0.95
    auc: Estimate
    balanced_accuracy: float  # at the best threshold in hindsight: an attacker does not have it
    at_fpr: tuple[OperatingPoint, ...]  # one for each nominal FPR asked for, 0 included
    certified_fpr: float  # upper limit of the FPR of a threshold with no false positive among these non-members


@dataclass(frozen=True)
class EpsilonBound:
    """The mechanism is not (eps', delta)-DP for any eps' below `eps`, said with confidence `level`.

    eps = 0 says nothing against the mechanism: a weak attack shows the same. `largest` is what the same design
    would have shown with every guess right; no audit of this size and rule can show more.
    """

    eps: float
    delta: float
    level: float  # e.g. 0.95: the share of audits in which `eps` is at most the true ε
    estimator: str
    family: str  # what is assumed of the mechanism: "none", or "gaussian"
    m: int  # canaries that count (trials of both worlds, for two worlds)
    r: int  # guesses made; the rest are abstentions
    right: int
    guesses: str  # how the guesses were chosen, in words
    analyses: int  # how many analyses the level is corrected for
    largest: float  # ε if all r guesses had been right
    kind: Literal["confidence", "credible", "exploratory"] = "confidence"
    upper: float | None = None  # upper end of a credible interval; no audit bounds ε from above
    doubts: tuple[str, ...] = ()  # what a reader must know before relying on the number

    def __str__(self) -> str:
        assumed = "" if self.family == "none" else f", {self.family} family assumed"
        kind = "" if self.kind == "confidence" else f", {self.kind}"
        return (
            f"ε ≥ {self.eps:.3f} at δ = {self.delta:g} ({self.level:.0%}{assumed}{kind}; {self.right} of {self.r} "
            f"guesses right, {self.m} canaries; {self.guesses}; this design shows at most {self.largest:.2f})"
        )


Settings = Mapping[str, Any]
