"""The blind baseline of an audit: classifiers that see the records and the memberships, and never the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from audit.results import Check, TargetResult
from audit.session import Session
from core.config import TRAINED
from core.metrics import cross_fitted_auc
from core.types import Records
from modules.checks.blind import FEWEST, Blind, stratified_folds, surface

WORDS = 20_000  # the most frequent words and pairs of words of a bag
WORDS_OF_TEXTS = "bag of words"
QUICK = 2000  # records that are enough to see a difference worth naming, where lots should have left none
BY_LOT_LEVEL = 0.99  # there it is one check among several, see audit/checks.py
Views = dict[str, tuple[Any, Callable[[], Any]]]  # what was looked at: its columns, and who looks
GRID = 8  # images are averaged to this many pixels a side


def told(session: Session, target: int) -> Blind | None:
    """The baseline of a target, as the config asks for it; None where there is none.

    Where the members were given it is as important as the attacks, and looks at every record for every target. Where
    this tool drew them by lot it can find chance alone: a cheap look at some records of the first target.
    """
    asked, by_lot = session.config.audit.blind_baseline, session.config.origin.name == TRAINED
    if asked is False or (by_lot and not asked and target != session.plan.targets[0]):
        return None
    member = session.plan.member[target, session.points]
    draw = session.stream("blind baseline", target)
    rows, quick = _independent(session, draw), by_lot and not asked
    if quick and len(rows) > QUICK:
        rows = np.sort(draw.choice(rows, QUICK, replace=False))
    seen = views(session, session.points[rows])
    if quick:  # lots leave nothing that needs more than a line to be seen
        seen = {of: (x, _bag_classifier if of == WORDS_OF_TEXTS else _linear) for of, (x, _) in list(seen.items())[:1]}
    return of_views(seen, member[rows], draw, by_lot=quick, all_records=len(member))


def _independent(session: Session, draw: np.random.Generator) -> np.ndarray:
    """The audited records; where owners are in or out as a whole, one of each: another of them would give it away."""
    column = session.config.data.owner if session.config.data else None
    if column is None or column not in session.data.pool.groups:
        return np.arange(len(session.points))
    order = draw.permutation(len(session.points))
    owner = np.asarray(session.data.pool.groups[column])[session.points[order]]
    return np.sort(order[np.unique(owner, return_index=True)[1]])


def of_views(
    seen: Views, member: np.ndarray, draw: np.random.Generator, *, by_lot: bool = False, all_records: int | None = None
) -> Blind | None:
    """The best of the classifiers; None with nothing to look at, or too few records of a kind."""
    if not seen or min(member.sum(), (~member).sum()) < FEWEST:
        return None
    found = strongest(seen, member, draw, BY_LOT_LEVEL if by_lot else 0.95)
    return replace(found, records=len(member) if all_records not in (None, len(member)) else 0, by_lot=by_lot)


def checks(targets: Sequence[TargetResult], asked: bool | None = None) -> list[Check]:
    """What the baseline says of the strongest attack on each target, the worst first."""
    found = [(t.blind, t.attacks[int(np.argmax([a.summary.auc.value for a in t.attacks]))]) for t in targets if t.blind]
    if asked is False:
        return [Check("blind baseline", "untested", "Switched off (audit.blind_baseline).")]
    if not found:
        return [
            Check(
                "blind baseline",
                "untested",
                f"Needs the records (or labels, or groups), and {FEWEST} members and non-members: whether these could "
                "be told apart without the model is not known.",
            )
        ]
    seen, attack = max(found, key=lambda one: (one[0].explains(one[1].summary.auc), one[0].auc.value))
    finding = seen.in_words(attack.attack, attack.summary.auc)
    return [Check("blind baseline", "look" if seen.tells else "fine", finding)]


def strongest(seen: Views, member: np.ndarray, draw: np.random.Generator, level: float = 0.95) -> Blind:
    """The view with the largest AUC; its interval allows for its being chosen among them."""
    from threadpoolctl import threadpool_limits

    fold = stratified_folds(member, draw)
    each = 1 - (1 - level) / len(seen)
    with threadpool_limits(1):  # more threads than free cores make these small fits ten times slower
        found = [
            Blind(of, cross_fitted_auc(cross_fitted(x, classifier, member, fold), member, fold, level=each))
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


def views(session: Session, records: np.ndarray) -> Views:
    """What can be seen of these records of the pool without a model: columns, and the kind of classifier for them.

    The columns are made without the memberships.
    """
    data, given = session.data, session.given
    if given is not None:  # answers of models, and no records: what is left are the columns that came along
        known = {"label": data.pool.y[records]} if given.labels_known else {}
        return of_columns(known | {name: np.asarray(column)[records] for name, column in data.pool.groups.items()})
    if data.is_text:
        from audit.text_signals import texts_of

        return of_texts(texts_of(session, records))
    x = pixels(data.pool, records) if data.is_image else data.pool.x[records].reshape(len(records), -1)
    labels = data.pool.y[records]
    if data.is_image:
        x = np.hstack([x, labels[:, None] == np.unique(labels)])
        return {"pixels": (x, _linear)}
    return {"features": (np.hstack([x, labels[:, None]]), _trees)}


def of_columns(columns: Mapping[str, np.ndarray]) -> Views:
    """Labels and groups: the numbers of their values, the most frequent first."""
    if not columns:
        return {}
    numbers = []
    for column in columns.values():
        _, number, count = np.unique(column, return_inverse=True, return_counts=True)
        rank = np.empty(len(count))
        rank[np.argsort(-count, kind="stable")] = np.arange(len(count))
        numbers.append(rank[number])
    return {f"columns ({', '.join(columns)})": (np.stack(numbers, axis=1), _trees)}


def of_texts(texts: list[str]) -> Views:
    from sklearn.feature_extraction.text import TfidfVectorizer

    bag = TfidfVectorizer(
        token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), min_df=2, max_features=WORDS, sublinear_tf=True
    )
    found: Views = {"lengths, dates and numbers": (surface(texts), _trees)}
    try:
        words = bag.fit_transform(texts)
    except ValueError:  # not two texts share a word
        return found
    return {WORDS_OF_TEXTS: (words, _bag_classifier), **found}


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
