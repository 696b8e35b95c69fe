"""The signal of QMIA: how a target's signal is distributed given a record, learnt from the population alone.

No audited record has a part in a regression, and no membership: the population is outside of every training set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from audit import blind, text_signals
from audit.session import Session
from core.registry import ATTACKS
from core.rundir import digest
from core.types import Signal
from modules.checks.blind import surface
from modules.mia.qmia import false_positive_rates

log = logging.getLogger(__name__)

KIND = "quantiles"
WORDS, DIRECTIONS = 2**14, 24  # of texts: hashed n-grams, and what they are projected to
CATEGORIES = 255  # more than so many classes are too many for a categorical feature
# Images below which trees on pixels predict held-out records at least as well as a convnet (digits, 449: 27 to 41% of
# the variance against 10 to 18%; mnist5k, 1,250: 62 to 66% against 60 to 65%; of two or three models each).
MANY = 2000
FEWEST = 20  # population records below which a regression has nothing to learn from


def check(session: Session, signals: Sequence[Signal]) -> None:
    """UserError for regressions that these records cannot give; before anything is trained."""
    for signal in signals:
        if what := lack(session, signal):
            raise session.config.error("audit.algorithm", f"QMIA lacks {what}")


def lack(session: Session, signal: Signal) -> str | None:
    """What a regression needs and the records do not have, in words."""
    if signal.kind != KIND:
        return None
    if dict(signal.options)["regressor"] == "convnet" and not session.data.is_image:
        return "images for a convnet: use regressor: boosting"
    if len(session.population) < FEWEST:
        return f"{FEWEST} population records to learn from; there are {len(session.population)}"
    return None


def asked(session: Session, model: int, signal: Signal) -> bool:
    """Whether this model gets a regression: targets; all models where an attack of the run rehearses with it."""
    return signal.kind != KIND or model in session.plan.targets or _of_all(session, signal)


def _of_all(session: Session, signal: Signal) -> bool:
    """Whether references have this regression, too: an attack that rehearses others rehearses with it."""
    rehearsing = [call for call in session.config.attacks if ATTACKS.fact(call.name, "rehearses_others")]
    return any(signal in ATTACKS.fact(call.name, "signals")(call.settings) for call in rehearsing)


def of_signal(signal: Signal) -> Signal:
    """The signal that the regression is of."""
    return Signal(dict(signal.options)["of"])


def stamp(session: Session, signal: Signal) -> dict[str, Any]:
    """What a regression is a function of, beside its model and the records asked about."""
    if signal.kind != KIND:
        return {}
    seed = {"run.random_seed": session.config.run.random_seed}
    return {
        **dict(signal.options),
        **seed,
        "population (sha256)": digest(session.population_digest, session.population),
    }


class Regression:
    """What turns a model's signal on the population into predictions for the audited records."""

    def __init__(self, session: Session, points: Any, population: Any) -> None:
        """points, population: the records, in their order, on the device; of texts unused."""
        self.session, self.points, self.population = session, points, population

    def column(self, model: int, signal: Signal, value: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """float32 (rows, N) for the audited records, and how well held-out population records are predicted.

        value: the model's signal of the population (Q, P).
        """
        options, value = dict(signal.options), value.mean(axis=0, dtype=np.float64)
        draw = self.session.stream("quantile regression", model)
        rates = false_positive_rates(len(value), options["count"], options["smallest_fpr"])
        levels = None if options["head"] == "gaussian" else 1 - rates
        found, held = self._fitted(options["regressor"])(value, draw, levels)
        middle = 0 if levels is None else int(np.argmin(abs(levels - 0.5)))
        spread, left = value.std() or 1.0, value - held[middle]
        explained = 1 - np.square(left).mean() / spread**2
        log.info("QMIA: model %d: records tell %.0f%% of the variance of its signal, held out", model, 100 * explained)
        return found.astype(np.float32), {"variance explained, held out": round(float(explained), 4)}

    def _fitted(self, regressor: str) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
        many = self.session.data.is_image and len(self.session.population) >= MANY
        if regressor == "convnet" or (regressor == "auto" and many):
            from trainers.quantile_net import convnet

            classes = self.session.data.num_classes
            return lambda value, draw, levels: convnet(self.population, value, self.points, classes, draw, levels)
        from threadpoolctl import threadpool_limits

        from trainers.quantile import boosted_gaussian, boosted_quantiles

        ask, x, categorical = self._features

        def fit(value: np.ndarray, draw: np.random.Generator, levels: np.ndarray | None) -> Any:
            with threadpool_limits(1):  # many small fits: more threads would wait for each other
                if levels is None:
                    return boosted_gaussian(x, categorical, value, ask, draw)
                return boosted_quantiles(x, categorical, value, ask, draw, levels)

        return fit

    @cached_property
    def _features(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the audited records and the population, and which columns are categories."""
        session, data = self.session, self.session.data
        if data.is_text:
            return _of_texts(session)
        at = ((data.pool, session.points), (data.population, session.population))
        if data.is_image:
            seen = [blind.pixels(records, index) for records, index in at]
        else:
            seen = [records.x[index].reshape(len(index), -1).astype(np.float64) for records, index in at]
        points, population = (
            np.hstack([x, records.y[index][:, None]]) for x, (records, index) in zip(seen, at, strict=True)
        )
        categorical = np.arange(points.shape[1]) == points.shape[1] - 1
        return points, population, categorical & (data.num_classes <= CATEGORIES)


def _of_texts(session: Session) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of each text, and hashed words and pairs of words in random directions: nothing is fitted."""
    from sklearn.feature_extraction.text import HashingVectorizer

    directions = session.stream("directions of words").standard_normal((WORDS, DIRECTIONS)) / np.sqrt(DIRECTIONS)
    words = HashingVectorizer(n_features=WORDS, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    both = []
    for records, index in ((session.data.pool, session.points), (session.data.population, session.population)):
        texts = text_signals.texts_of(session, index, records)
        both.append(np.hstack([surface(texts), words.transform(texts) @ directions]))
    return both[0], both[1], np.zeros(both[0].shape[1], dtype=bool)
