"""Steps that are captured once and replayed train the same: on a CPU, with a capture that repeats the step itself."""

import logging

import numpy as np
import pytest
import torch

import trainers  # noqa: F401  (fills the registry)
from core.registry import TRAINERS
from core.rng import stream
from tests.trainers.test_sgd import POOL, cnn, images, resident, weights
from trainers import graphs, loop, stacking
from trainers.resident import Resident

torch.set_num_threads(1)
CPU = torch.device("cpu")
WAYS = {
    "sgd": {},
    "clipped, averaged, augmented": {"clip_norm": 0.5, "ema": 0.9, "augment": True},
    "plain": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "label_smoothing": 0.1},
}


def train(count, device="cpu", make=cnn, **settings):
    pool = images()
    data = resident(pool) if device == "cpu" else Resident.of(pool, (100.0,), (50.0,), device)
    bound = TRAINERS.bind(
        "sgd", {"epochs": 4, "learning_rate": 0.05, "batch_size": 8, "precision": "float32"} | settings
    )
    models, members = (
        [make(k) for k in range(count)],
        np.stack([stream(k, "half").permutation(POOL) < POOL // 2 for k in range(count)]),
    )
    return TRAINERS["sgd"](models, data, members, [stream(k, "train") for k in range(count)], **bound)


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Every convnet is taken for one on a GPU; a graph is the step itself."""
    replayed = []

    def capture(step):
        return lambda: (replayed.append(1), step())

    monkeypatch.setattr(graphs, "suits", lambda *_: True)
    monkeypatch.setattr(graphs.Captured, "capture", staticmethod(capture))
    return replayed


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_models_side_by_side_are_trained_as_one_after_another(settings, on_a_cpu, monkeypatch):
    together = train(3, **settings)
    assert {model.trained["method"] for model in together} == {"graphs"} and not any(m.training for m in together)
    assert len(on_a_cpu) > 20  # of about 48 steps, the first of each model and each epoch's last left out
    monkeypatch.undo()
    for a, b in zip(together, train(3, **settings), strict=True):
        assert b.trained["method"] == "loop"
        torch.testing.assert_close(weights(a), weights(b), rtol=1e-6, atol=1e-7)


def test_a_model_is_the_same_alone_and_beside_others_and_no_generator_moves(on_a_cpu):
    before = torch.get_rng_state()
    together = train(3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(train(1)[0]), weights(together[0]))


def test_a_capture_that_fails_is_said_and_the_training_goes_on(on_a_cpu, monkeypatch, caplog):
    def fails(step):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    expected = train(2)
    monkeypatch.setattr(graphs.Captured, "capture", staticmethod(fails))
    with caplog.at_level(logging.WARNING):
        found = train(2)
    assert (
        caplog.text.count("cannot be captured as a CUDA graph (operation not permitted when stream is capturing)") == 2
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(weights(a), weights(b))


def test_one_that_diverges_ends_them_all(on_a_cpu):
    from core.errors import UserError

    with pytest.raises(UserError, match=r"diverged: a stack of 2, epoch 1 of 4"):
        train(2, learning_rate=1e30)


def test_only_what_can_be_captured_is_and_only_on_a_gpu_that_asks_for_it():
    gpu, settings = torch.device("cuda"), {"cuda_graphs": True, "optimizer": "SGD", "record_losses": False}
    assert graphs.suits(cnn(), settings, gpu)
    for model, unlike, device in [
        (cnn(dropout=0.1), {}, gpu),
        (cnn(), {"optimizer": "Adam"}, gpu),
        (cnn(), {"cuda_graphs": False}, gpu),
        (cnn(), {"record_losses": True}, gpu),
        (cnn(), {}, CPU),
    ]:
        assert not graphs.suits(model, settings | unlike, device)
    bound = TRAINERS.bind("sgd", {"epochs": 1, "learning_rate": 0.1, "cuda_graphs": True, "precision": "float32"})
    width, how = stacking.width(bound, cnn(), gpu)
    assert width == graphs.TOGETHER and "not yet measured" in how
    assert stacking.width(bound | {"stack": 3}, cnn(), gpu)[0] == 3 and stacking.width(bound, cnn(), CPU)[0] == 1


@pytest.mark.gpu
@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_on_a_gpu_captured_steps_train_what_the_eager_loop_does(settings, caplog):
    together = train(4, "cuda", cuda_graphs=True, **settings)
    assert {model.trained["method"] for model in together} == {"graphs"} and "cannot be captured" not in caplog.text
    for a, b in zip(together, train(4, "cuda", **settings), strict=True):
        torch.testing.assert_close(weights(a), weights(b), rtol=1e-4, atol=1e-5)


def test_steps_add_up_their_losses():
    model, data = cnn(), resident(images())
    step = loop.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), CPU, 0.0, None, "float32")
    x, y = data.batch(torch.arange(8)), data.y[:8]
    first = torch.nn.functional.cross_entropy(model(x), y)
    step(x, y, 0.0)
    step(x, y, 0.0)
    torch.testing.assert_close(step.total, 2 * first.detach(), rtol=1e-4, atol=1e-5)
