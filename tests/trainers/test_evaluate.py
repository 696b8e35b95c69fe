"""Signals against the formulas of their papers in plain float64; evaluation against by-hand loops."""

import math

import numpy as np
import pytest
import torch

from core.rng import stream
from core.types import LOG_ODDS, Records, Signal
from trainers.augment import views
from trainers.evaluate import accuracy_and_loss, logits, signal_columns, signals
from trainers.resident import Resident

torch.set_num_threads(1)
ENTROPY = Signal("modified_entropy")


def column(z, y, signal):
    out = signal_columns(torch.as_tensor(z), torch.as_tensor(y), [signal])
    assert out.dtype == torch.float32
    return out[0].numpy()


def softmax(z):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def naive(z, y, signal):
    """One record and one class after the other, as the formulas are printed."""
    scores = []
    for row, label in zip(z.astype(np.float64) / signal.temperature, y, strict=True):
        if signal.kind == "taylor":

            def t(v):
                return sum(v**i / math.factorial(i) for i in range(signal.order + 1))

            rest = sum(t(v) for j, v in enumerate(row) if j != label)
            scores.append(np.log(t(row[label] - signal.margin) / rest))
            continue
        p = softmax(row[None])[0]
        if signal.kind == "log_odds":
            scores.append(np.log(p[label] / sum(p[j] for j in range(len(p)) if j != label)))
        elif signal.kind == "entropy":
            scores.append(-np.log(-sum(q * np.log(q) for q in p)))
        elif signal.kind == "hinge":
            scores.append(row[label] - max(v for j, v in enumerate(row) if j != label))
        else:
            rest = sum(p[i] * np.log(1 - p[i]) for i in range(len(p)) if i != label)
            scores.append(-np.log(-(1 - p[label]) * np.log(p[label]) - rest))
    return np.array(scores)


@pytest.mark.parametrize("classes", [2, 3, 100, 1000])
@pytest.mark.parametrize(
    "signal",
    [
        LOG_ODDS,
        Signal(temperature=2.0),
        Signal("taylor", temperature=2.0, margin=0.6, order=4),
        Signal("taylor", order=2),
        Signal("taylor", order=10),
        ENTROPY,
        Signal("modified_entropy", temperature=3.0),
        Signal("entropy"),
        Signal("hinge", temperature=2.0),
    ],
    ids=lambda signal: signal.name,
)
def test_signals_are_their_formulas(signal, classes):
    rng = stream(0, "logits", classes)
    z = (3 * rng.standard_normal((20, classes))).astype(np.float32)
    y = rng.integers(classes, size=20)
    y[:10] = z[:10].argmax(axis=1)  # confident and right, as well as wrong
    exact, found = naive(z, y, signal), column(z.astype(np.float64), y, signal)
    np.testing.assert_allclose(found, exact, rtol=2e-7, atol=1e-12)
    np.testing.assert_allclose(column(z, y, signal), exact, rtol=1e-6 if signal.kind == "log_odds" else 2e-7, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_log_odds_of_float32_logits_are_as_exact_as_they_say(classes, scale):
    """Wherever the logits lie: a common offset, which softmax does not see, costs nothing either."""
    rng = stream(0, "error", classes)
    z = (scale * rng.standard_normal((2000, classes)) + rng.choice([0.0, 500.0], (2000, 1))).astype(np.float32)
    y = rng.integers(classes, size=2000)
    y[:1000] = z[:1000].argmax(axis=1)
    for temperature in (1.0, 2.0, 0.5):
        signal = Signal(temperature=temperature)
        exact = column(z.astype(np.float64), y, signal).astype(np.float64)
        assert (np.abs(column(z, y, signal) - exact) <= 1e-6 * (1 + np.abs(exact))).all()


def test_each_wanted_signal_is_a_row():
    z, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    both = signal_columns(z, y, [ENTROPY, LOG_ODDS])
    assert both.shape == (2, 6)
    assert np.array_equal(both[0], column(z, y, ENTROPY))
    assert np.array_equal(both[1], column(z, y, LOG_ODDS))


def test_log_odds_of_two_classes_are_the_difference_of_logits():
    z = np.array([[1e4, -1e4], [3.0, 1.0], [-1e4, 1e4], [0.5, 0.5]], dtype=np.float32)
    assert column(z, [0, 0, 0, 0], LOG_ODDS).tolist() == [2e4, 2.0, -2e4, 0.0]


def test_log_odds_do_not_saturate():
    """p_y is 1 to float64 from a margin of 37 on; the log-odds go on as the margin does."""
    margins = np.array([1.0, 20.0, 40.0, 80.0, 1000.0, 10_000.0])
    z = np.zeros((6, 1000), dtype=np.float32)
    z[:, 7] = margins
    np.testing.assert_allclose(column(z, np.full(6, 7), LOG_ODDS), margins - np.log(999), rtol=1e-6)


@pytest.mark.parametrize(
    "signal", [LOG_ODDS, ENTROPY, Signal("taylor", margin=0.6, order=4), Signal("entropy")], ids=lambda s: s.name
)
def test_extreme_logits_give_finite_signals(signal):
    z = np.array(
        [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4], [0.0, 0.0, 0.0]], np.float32
    )
    for label in range(3):
        assert np.isfinite(column(z, np.full(5, label), signal)).all()


def test_modified_entropy_of_a_confident_model_does_not_round_to_zero():
    """Two classes, margin m, p_1 = e^-m: Mentr -> 2 e^-2m, while p rounds to 1 in float64 at m = 37."""
    margins = np.array([5.0, 20.0, 40.0, 10_000.0])
    z = np.stack([margins, np.zeros(4)], axis=1)
    scores = column(z, np.zeros(4, dtype=int), ENTROPY)
    np.testing.assert_allclose(scores[1:], 2 * margins[1:] - np.log(2), rtol=1e-6)
    assert (np.diff(scores) > 0).all()


def test_modified_entropy_of_a_wrong_and_certain_model_grows_with_the_margin():
    """Label 1 of two classes, margin m: Mentr -> 2m."""
    margins = np.array([40.0, 1000.0, 10_000.0])
    z = np.stack([margins, np.zeros(3)], axis=1)
    np.testing.assert_allclose(column(z, np.ones(3, dtype=int), ENTROPY), -np.log(2 * margins), rtol=1e-6)


def test_signals_that_make_no_sense_are_refused():
    z, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for order in (0, 3):
        with pytest.raises(ValueError, match=f"even order of at least 2, got {order}"):
            signal_columns(z, y, [Signal("taylor", order=order)])
    with pytest.raises(ValueError, match="no signal is of kind 'loss'"):
        signal_columns(z, y, [Signal("loss")])
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        signal_columns(z[:, :1], y, [LOG_ODDS])


@pytest.fixture
def data():
    rng = stream(0, "images")
    records = Records(rng.integers(0, 256, (30, 2, 6, 6), dtype=np.uint8), rng.integers(0, 3, 30))
    return Resident.of(records, (100.0, 120.0), (50.0, 60.0), "cpu")


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.Flatten(),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(64, 3),
        ).train()


def test_a_batch_is_normalised_per_channel_and_keeps_the_stored_records(data):
    before = data.x.clone()
    index = torch.tensor([4, 0, 4])
    by_hand = (before[index].double() - torch.tensor([100.0, 120.0]).view(2, 1, 1)) / torch.tensor([50.0, 60.0]).view(
        2, 1, 1
    )
    torch.testing.assert_close(data.batch(index), by_hand.float())
    assert data.batch(index).is_contiguous(memory_format=torch.channels_last)
    assert data.x.dtype == torch.uint8
    assert torch.equal(data.x, before)
    assert len(data) == 30


def test_features_are_normalised_without_touching_the_stored_ones():
    records = Records(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32), np.array([0, 1]))
    data = Resident.of(records, (1.0,), (2.0,), "cpu")
    assert data.batch(torch.tensor([1, 0])).tolist() == [[1.0, 1.5], [0.0, 0.5]]
    assert data.normalised(data.x).tolist() == [[0.0, 0.5], [1.0, 1.5]]
    assert data.x.tolist() == records.x.tolist()


def test_a_record_is_judged_on_its_own_not_with_its_batch(model, data):
    """The original LiRA code runs batch normalisation in training mode, and so mixes the queried records."""
    together = {int(i): z for batch, zs in logits(model, data) for i, z in zip(batch, zs[0], strict=True)}
    for i in (0, 7, 29):
        [(batch, alone)] = logits(model, data, np.array([i]))
        assert batch.tolist() == [i]
        torch.testing.assert_close(alone[0, 0], together[i], rtol=1e-5, atol=1e-6)


def test_logits_come_in_the_order_asked_for_without_gradients(model, data):
    index = np.array([5, 3, 28, 3])
    batches = list(logits(model, data, index, batch_size=3))
    assert [batch.tolist() for batch, _ in batches] == [[5, 3, 28], [3]]
    assert [z.shape for _, z in batches] == [(1, 3, 3), (1, 1, 3)]
    assert not any(z.requires_grad for _, z in batches)
    assert not model.training


def test_a_suspended_evaluation_does_not_switch_gradients_off_elsewhere(model, data):
    running = logits(model, data, batch_size=10)
    next(running)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    running.close()


def test_each_query_is_a_row_of_the_logits(model, data):
    [(_, z)] = logits(model, data, queries=18)
    assert z.shape == (18, 30, 3)
    with torch.no_grad():
        for query, view in enumerate(views(data.x, 18)):
            torch.testing.assert_close(z[query], model(data.normalised(view)))


def test_a_perceptron_answers_about_features_as_the_module_does():
    """In any order, in batches of any size, and every batch keeps its own answers."""
    rng = stream(0, "features")
    data = Resident.of(Records(rng.random((50, 21), dtype=np.float32), rng.integers(0, 5, 50)), (0.0,), (1.0,), "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(21, 33), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(33, 5)
        )
    with torch.no_grad():
        expected = model.eval()(data.x)
    for index in (None, torch.arange(50).flip(0), np.array([7, 7, 0])):
        for batch_size in (1, 16, 1024):
            for batch, z in list(logits(model.train(), data, index, batch_size=batch_size)):
                torch.testing.assert_close(z[0], expected[batch], rtol=1e-5, atol=1e-6)


def test_a_perceptron_that_asks_for_queries_of_features_is_refused():
    data = Resident.of(Records(np.ones((3, 4), np.float32), np.zeros(3, int)), (0.0,), (1.0,), "cpu")
    with pytest.raises(ValueError, match="only images can be mirrored"):
        list(logits(torch.nn.Sequential(torch.nn.Linear(4, 2)), data, queries=2))


@pytest.mark.parametrize("queries", [1, 2, 18])
def test_queries_asked_at_once_come_back_in_their_places(model, data, queries):
    """However few points fit into a batch: 40 images are 2 points with 18 queries each, and 1 if only 5 fit."""
    index = torch.arange(30).flip(0)
    model.eval()
    with torch.no_grad():
        expected = torch.stack([model(data.normalised(view)) for view in views(data.x, queries)])
    asked = [signal_columns(z, data.y, [LOG_ODDS, ENTROPY]) for z in expected]
    for batch_size in (5, 40, 1024):
        found = torch.tensor(signals(model, data, wanted=[LOG_ODDS, ENTROPY], batch_size=batch_size, queries=queries))
        torch.testing.assert_close(found, torch.stack(asked, dim=1), rtol=1e-4, atol=1e-5)
        turned = signals(model, data, index, wanted=[LOG_ODDS, ENTROPY], batch_size=batch_size, queries=queries)
        torch.testing.assert_close(torch.tensor(turned).flip(2), found, rtol=1e-4, atol=1e-5)
        sizes = {len(batch) * queries for batch, _ in logits(model, data, batch_size=batch_size, queries=queries)}
        assert max(sizes) <= max(batch_size, queries)


def test_accuracy_and_loss_are_the_means_over_the_indexed_records(model, data):
    model.eval()
    index = np.array([2, 3, 5, 7, 11, 13, 17])
    with torch.no_grad():
        p = softmax(model(data.batch(torch.as_tensor(index))).double().numpy())
    y = data.y[torch.as_tensor(index)].numpy()
    accuracy, loss = accuracy_and_loss(model, data, index, batch_size=3)
    assert accuracy == (p.argmax(axis=1) == y).mean()
    assert loss == pytest.approx(-np.log(p[np.arange(7), y]).mean(), rel=1e-5)
    assert 0 <= accuracy_and_loss(model, data)[0] <= 1
    with pytest.raises(ValueError, match="no records"):
        accuracy_and_loss(model, data, np.array([], dtype=int))


def test_signals_are_columns_of_signal_by_query_by_point(model, data):
    index = np.array([9, 1, 2, 20, 21])
    found = signals(model, data, index, wanted=[LOG_ODDS, ENTROPY], batch_size=2, queries=2)
    assert (found.shape, found.dtype) == ((2, 2, 5), np.float32)
    [(_, z)] = logits(model, data, index, queries=2)
    y = data.y[torch.as_tensor(index)]
    for s, signal in enumerate([LOG_ODDS, ENTROPY]):
        for q in range(2):
            np.testing.assert_allclose(found[s, q], column(z[q], y, signal), rtol=1e-4, atol=1e-6)
    assert signals(model, data, index[:0], wanted=[LOG_ODDS]).shape == (1, 1, 0)


def perceptron(seed=0, features=40, widths=(48, 5)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, last = widths
        return torch.nn.Sequential(torch.nn.Linear(features, first), torch.nn.Tanh(), torch.nn.Linear(first, last))


def convnet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nn = torch.nn
        return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))


def features(n=300):
    rng = stream(0, "features")
    return Resident.of(
        Records(rng.standard_normal((n, 40)).astype(np.float32), rng.integers(0, 5, n)), (0.0,), (1.0,), "cpu"
    )


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_perceptron_answers_as_its_module_does_whichever_product_it_takes(precision, onednn, monkeypatch):
    from trainers import evaluate

    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN")
    monkeypatch.setattr(evaluate, "has_onednn", lambda dtype: onednn)
    model, data = perceptron(), features()
    found = torch.cat([z[0] for _, z in logits(model, data, batch_size=70, precision=precision)])
    expected = model(data.x).detach()
    tolerance = 1e-5 if precision == "float32" else 0.02
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert precision == "float32" or not torch.equal(found, expected)


@pytest.mark.parametrize("make", [perceptron, convnet])
def test_bfloat16_answers_are_near_and_the_last_layer_stays_exact(make, data):
    from trainers.evaluate import TOLERANCE, precision_for

    model, asked = make(), features() if make is perceptron else data
    exact, near = (signals(model, asked, wanted=[LOG_ODDS], precision=p)[0, 0] for p in ("float32", "bfloat16"))
    apart = (np.abs(near - exact) / (1 + np.abs(exact))).max()
    assert 0 < apart < TOLERANCE
    chosen, found = precision_for(model, asked, "bfloat16")
    assert chosen == "bfloat16" and 0 < found <= apart * 1.5
    assert "forward" not in model[-1].__dict__  # nothing is left of what shadowed it
    # Logits of the size 1000: rounded to bfloat16 they would be up to 4 apart.
    with torch.no_grad():
        model[-1].bias += 1000.0
    z = torch.cat([z[0] for _, z in logits(model, asked, precision="bfloat16")])
    assert (z.bfloat16() != z).any()


def test_a_model_that_bfloat16_answers_wrongly_for_is_asked_in_float32():
    from trainers.evaluate import precision_for

    model, asked = perceptron(), features()
    with torch.no_grad():  # hidden units that differ by less than bfloat16's steps, and that is all the last layer sees
        model[0].weight *= 1e-3
        model[0].bias.fill_(0.5)
        model[2].weight *= 1e4
        model[2].weight -= model[2].weight.mean(dim=1, keepdim=True)
    assert precision_for(model, asked, "float32") == ("float32", 0.0)
    chosen, apart = precision_for(model, asked, "bfloat16")
    assert chosen == "float32" and apart > 0.1


def test_queries_of_images_are_asked_in_bfloat16_too(data):
    model = convnet()
    exact, near = (signals(model, data, wanted=[LOG_ODDS], queries=2, precision=p)[0] for p in ("float32", "bfloat16"))
    assert exact.shape == near.shape == (2, 30) and not np.array_equal(exact, near)
    np.testing.assert_allclose(exact, near, atol=0.05)
