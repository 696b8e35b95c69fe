"""The blind baseline finds what differs without a model, nothing where lots were drawn, and its interval covers."""

import numpy as np
import pytest

from audit import blind
from audit.session import Session
from core import config
from core.metrics import auc, cross_fitted_auc
from core.rng import stream
from core.types import AuditData, Estimate, Plan, Records
from modules.checks.blind import Blind, stratified_folds, surface
from tests.worlds import naive_auc

WORDS = np.array(["alpha", "beta", "gamma", "delta", "model", "privacy", "word", "train", "data", "note", "list"])


def prose(draw, count, words=30):
    return [" ".join(draw.choice(WORDS, draw.integers(words // 2, words))) for _ in range(count)]


def halves(draw, n):
    return draw.permutation(n) < n // 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "repeats"), [("bag of words", 120), ("features", 25), ("pixels", 80)])
def test_under_random_halves_it_finds_nothing_and_its_interval_covers(kind, repeats):
    """Memberships drawn by lot: the true AUC is 1/2, which 95% intervals must hold, within the error of the draws."""
    draw = stream(1, "null", kind)
    texts = prose(draw, 80)
    features = draw.standard_normal((80, 12))
    x, classifier = {
        **blind.of_texts(texts),
        "features": (features, blind._trees),
        "pixels": (draw.standard_normal((80, 100)), blind._linear),
    }[kind]
    found = []
    for _ in range(repeats):
        member = halves(draw, 80)
        fold = stratified_folds(member, draw)
        found.append(cross_fitted_auc(blind.cross_fitted(x, classifier, member, fold), member, fold))
    values = np.array([estimate.value for estimate in found])
    covered = np.mean([estimate.low <= 0.5 <= estimate.high for estimate in found])
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / repeats)
    assert abs(values.mean() - 0.5) < 4 * values.std() / np.sqrt(repeats)


def test_without_the_doubled_variance_the_interval_would_not_cover():
    """The null of a linear classifier in closed form: folds' AUCs share the same products, twice the variance.

    Class-mean differences d_k of each fold; the classifier of fold k is the sum of the others'.
    """
    draw = stream(2, "linear null")
    hits = {1.0: 0, 2.0: 0}
    for _ in range(400):
        member = halves(draw, 100)
        x = draw.standard_normal((100, 200))
        fold = stratified_folds(member, draw)
        scores = np.empty(100)
        for k in range(5):
            own = fold == k
            scores[own] = x[own] @ (x[~own & member].mean(0) - x[~own & ~member].mean(0))
        estimate = cross_fitted_auc(scores, member, fold)
        half = (np.log(estimate.high / (1 - estimate.high)) - np.log(estimate.low / (1 - estimate.low))) / 2
        centre = np.log(estimate.value / (1 - estimate.value))
        for factor in hits:
            hits[factor] += abs(centre) <= half * np.sqrt(factor / 2)
    assert hits[2.0] / 400 > 0.92
    assert hits[1.0] / 400 < 0.90


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (lambda text: text + " beta" * 4, "bag of words"),
        (lambda text: text + " in 2024", None),
        (lambda text: text[: len(text) // 3], None),
    ],
)
def test_it_finds_texts_that_differ_in_words_dates_or_length(change, by):
    draw = stream(3, "differ")
    member = halves(draw, 120)
    texts = [
        change(text) if inside else text + " in 2019" for text, inside in zip(prose(draw, 120), member, strict=True)
    ]
    found = blind.strongest(blind.of_texts(texts), member, draw)
    assert found.tells and found.auc.value > 0.9
    assert by in (None, found.of)


def test_the_mean_of_the_folds_aucs_is_what_is_reported():
    draw = stream(4, "folds")
    member = halves(draw, 60)
    scores, fold = draw.standard_normal(60) + member, stratified_folds(member, draw)
    found = cross_fitted_auc(scores, member, fold)
    assert found.value == pytest.approx(np.mean([auc(scores[fold == k], member[fold == k]) for k in range(5)]))
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(naive_auc(scores, member), abs=0.05)


def test_perfect_separation_is_not_called_certain():
    member = np.arange(50) < 25
    found = cross_fitted_auc(member.astype(float), member, stratified_folds(member, stream(5, "folds")))
    assert found.value == 1 and 0.8 < found.low < 1


def test_folds_hold_members_and_non_members_in_equal_shares():
    member = np.arange(103) < 41
    fold = stratified_folds(member, stream(6, "folds"))
    for kind in (member, ~member):
        counts = np.bincount(fold[kind], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_what_is_countable_of_a_text():
    (row,) = surface(["In May 2023, 3.5 of 12 MEN\nwrote to a@b.org on 2021-05-07."])
    assert row[0] == 58 and row[2] == 1
    assert row[13:].tolist() == [2, 2023, 2021]
    assert row[11] == 2 and row[12] == 1
    assert surface([""]).shape == (1, 16) and surface([]).shape[0] == 0


ATTACK = Estimate(0.80, 0.75, 0.85)


@pytest.mark.parametrize(
    ("auc_", "says"),
    [
        (Estimate(0.51, 0.45, 0.57), "it does not explain what LOSS finds"),
        (Estimate(0.82, 0.76, 0.88), "the blind baseline explains the result"),
        (Estimate(0.60, 0.55, 0.65), "only what is beyond the baseline"),
    ],
)
def test_the_verdict_in_words(auc_, says):
    assert says in Blind("bag of words", auc_).in_words("LOSS", ATTACK)


def test_images_are_averaged_over_blocks_of_any_size():
    from core.types import Records

    x = stream(7, "images").integers(0, 255, (3, 2, 28, 5)).astype(np.uint8)
    records = Records(x, np.zeros(3, dtype=np.int64))
    found = blind.pixels(records, np.array([2, 0])).reshape(2, 2, 8, 5)
    assert found[0, 1, 0, 3] == pytest.approx(x[2, 1, :4, 3].mean(), rel=1e-5)
    assert found[1].mean() == pytest.approx(x[0].mean(), rel=0.02)


def by_lot(tmp_path, drawn=True, **audit):
    text = f"""
run: {{log_dir: {tmp_path}/run, num_experiments: 2}}
data: {{dataset: digits}}
train: {{model_name: mlp, learning_rate: 0.1, epochs: 1}}
audit: {{algorithm: LOSS{"".join(f", {key}: {value}" for key, value in audit.items())}}}
"""
    draw = stream(8, "by lot")
    member = np.array([halves(draw, 100) for _ in range(2)])
    x = draw.standard_normal((100, 6)).astype(np.float32)
    if not drawn:
        x[:, 0] += 3 * member[0]
    data = AuditData(Records(x, draw.integers(0, 3, 100)), Records(x[:0], np.empty(0, np.int64)), num_classes=3)
    plan = Plan(member, ((), ()))
    (tmp_path / "c.yaml").write_text(text)
    return Session(config.load(tmp_path / "c.yaml"), data, plan, np.arange(100), np.arange(0), "", "")


def test_it_runs_by_itself_on_the_first_target_where_lots_were_drawn(tmp_path):
    found = [blind.told(by_lot(tmp_path), target) for target in (0, 1)]
    assert found[0] and found[0].by_lot and not found[0].tells and found[1] is None
    everything = [blind.told(by_lot(tmp_path, blind_baseline="true"), target) for target in (0, 1)]
    assert all(one and not one.by_lot for one in everything)  # asked for: as full as where members were given
    assert blind.told(by_lot(tmp_path, blind_baseline="false"), 0) is None
    assert "Switched off" in blind.checks([], asked=False)[0].finding


def test_lots_that_were_none_are_an_alarm_with_its_reasons(tmp_path):
    found = blind.told(by_lot(tmp_path, drawn=False), 0)
    assert found and found.tells and "although memberships were drawn by lot" in found.in_words("LOSS", ATTACK)


def test_many_records_are_looked_at_by_a_sample_that_is_named():
    found = Blind("pixels", Estimate(0.5, 0.4, 0.6), records=2000, by_lot=True)
    assert "only the pixels of 2,000 of the records, never the model" in found.in_words("LOSS", ATTACK)
