"""The blind baseline of an audit: classifiers that see the records and the memberships, and never the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from audit.results import Check, TargetResult
from audit.session import Session
from core.config import TRAINED
from core.metrics import cross_fitted_auc
from core.types import Records
from modules.checks.blind import FEWEST, Blind, stratified_folds, surface

log = logging.getLogger(__name__)

WORDS = 20_000  # the most frequent words and pairs of words of a bag
GRID = 8  # images are averaged to this many pixels a side


def wanted(session: Session) -> bool:
    """Whether the baseline runs: as the config says, else where the members were given and not drawn by us."""
    if session.given is not None:
        return False  # there are no records to look at
    asked = session.config.audit.blind_baseline
    return session.config.origin.name != TRAINED if asked is None else asked


def checks(targets: Sequence[TargetResult]) -> list[Check]:
    """What the baseline says of the strongest attack on each target, the worst first; none where it did not run."""
    told = [(t.blind, t.attacks[int(np.argmax([a.summary.auc.value for a in t.attacks]))]) for t in targets if t.blind]
    if not told:
        return []
    seen, attack = max(told, key=lambda one: (one[0].explains(one[1].summary.auc), one[0].auc.value))
    finding = seen.in_words(attack.attack, attack.summary.auc)
    return [Check("blind baseline", "look" if seen.tells else "fine", finding)]


def baseline(session: Session, target: int) -> Blind | None:
    """The better of the blind classifiers of the audited records' membership in `target`; None with too few records.

    Which records are members is what these classifiers are told of four fifths of them, as no attack ever is.
    """
    member = session.plan.member[target, session.points]
    if min(member.sum(), (~member).sum()) < FEWEST:
        log.warning("blind baseline: needs %d members and as many non-members, left out", FEWEST)
        return None
    return strongest(views(session, session.points), member, session.stream("blind baseline", target))


def strongest(
    seen: dict[str, tuple[Any, Callable[[], Any]]], member: np.ndarray, draw: np.random.Generator, level: float = 0.95
) -> Blind:
    """The view with the largest AUC; its interval allows for its being chosen among them."""
    fold = stratified_folds(member, draw)
    found = [
        Blind(of, cross_fitted_auc(cross_fitted(x, classifier, member, fold), member, fold, level=each))
        for each in [1 - (1 - level) / len(seen)]
        for of, (x, classifier) in seen.items()
    ]
    return max(found, key=lambda blind: blind.auc.value)


def cross_fitted(x: Any, classifier: Callable[[], Any], member: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Each record's log-odds of membership, from a classifier fitted on the other folds."""
    scores = np.empty(len(member))
    for k in np.unique(fold):
        own = fold == k
        fitted = classifier().fit(x[~own], member[~own])
        p = fitted.predict_proba(x[own])[:, 1].clip(1e-12, 1 - 1e-12)
        scores[own] = np.log(p) - np.log1p(-p)
    return scores


def views(session: Session, records: np.ndarray) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """What can be seen of these records of the pool without a model: columns, and the kind of classifier for them.

    The columns are made without the memberships.
    """
    data = session.data
    if data.is_text:
        from audit.text_signals import texts_of

        return of_texts(texts_of(session, records))
    x = pixels(data.pool, records) if data.is_image else data.pool.x[records].reshape(len(records), -1)
    labels = data.pool.y[records]
    if data.is_image:
        x = np.hstack([x, labels[:, None] == np.unique(labels)])
        return {"pixels": (x, _linear)}
    return {"features": (np.hstack([x, labels[:, None]]), _trees)}


def of_texts(texts: list[str]) -> dict[str, tuple[Any, Callable[[], Any]]]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    bag = TfidfVectorizer(
        token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), min_df=2, max_features=WORDS, sublinear_tf=True
    )
    found = {"lengths, dates and numbers": (surface(texts), _trees)}
    try:
        words = bag.fit_transform(texts)
    except ValueError:  # not two texts share a word
        return found
    return {"bag of words": (words, _bag_classifier), **found}


def _bag_classifier() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, max_iter=1000)


def _linear() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


def _trees() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15, early_stopping=False, random_state=0)


def pixels(records: Records, index: np.ndarray) -> np.ndarray:
    """Images (n, C, H, W) averaged to at most GRID x GRID pixels, flat."""
    images = records.x[index].astype(np.float32)
    for axis in (2, 3):
        edges = np.unique(np.linspace(0, images.shape[axis], min(GRID, images.shape[axis]) + 1).round().astype(int))
        widths = np.diff(edges).reshape([-1 if a == axis else 1 for a in range(4)])
        images = np.add.reduceat(images, edges[:-1], axis=axis) / widths
    return images.reshape(len(images), -1)
