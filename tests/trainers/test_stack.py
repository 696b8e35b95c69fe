"""Perceptrons in a stack: which those are, what a stack computes, and that a model's bits know no neighbours."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.registry import TRAINERS
from core.rng import stream
from core.types import Records
from trainers import loop, stacking
from trainers import stack as stacks
from trainers.resident import Resident

torch.set_num_threads(1)
nn = torch.nn


def perceptron(widths, seed=0, activation=nn.Tanh, dropout=0.0):
    layers = [nn.Flatten()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activation()]
            layers += [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(*layers[: -2 if dropout else -1])


def records(n, features, classes, *purpose):
    rng = stream(0, "records", *purpose)
    return Records(rng.standard_normal((n, features)).astype(np.float32), rng.integers(0, classes, n))


def resident(*shape):
    return Resident.of(records(*shape), (0.0,), (1.0,), "cpu")


def weights(model):
    return torch.cat([v.flatten() for v in model.state_dict().values()])


def train(models, data, members, streams, **settings):
    bound = TRAINERS.bind("sgd", {"epochs": 2, "learning_rate": 0.05, "batch_size": 16} | settings)
    return TRAINERS["sgd"](models, data, np.asarray(members), streams, **bound)


def by_loop(monkeypatch, *arguments, **settings):
    """The same trainer without the stack: nn.Modules, autograd."""
    monkeypatch.setattr(stacks, "layers_of", lambda model: None)
    trained = train(*arguments, **settings)
    monkeypatch.undo()
    return trained


WAYS = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "nesterov": False},
    "plain": {"momentum": 0.0, "weight_decay": 0},
    "smoothed, decayed": {"label_smoothing": 0.2, "weight_decay": 0.01},
    "clipped": {"clip_norm": 0.3},
    "averaged": {"ema": 0.9},
    "adam": {"optimizer": "Adam", "learning_rate": 0.003, "weight_decay": 0.01},
    "adamw": {"optimizer": "AdamW", "learning_rate": 0.003},
}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_a_stack_learns_what_autograd_learns_one_model_at_a_time(settings, activation, monkeypatch):
    widths, n = (10, 24, 17, 3), 120
    data, members = resident(n, 10, 3), [stream(k, "m").permutation(n) < n // 2 for k in range(3)]
    make = lambda: ([perceptron(widths, k, activation) for k in range(3)], [stream(k, "train") for k in range(3)])  # noqa: E731
    models, streams = make()
    found = train(models, data, members, streams, **settings)
    models, streams = make()
    expected = by_loop(monkeypatch, models, data, members, streams, **settings)
    for a, b in zip(found, expected, strict=True):
        assert a.trained["method"] == "products" and b.trained["method"] == "loop"
        torch.testing.assert_close(weights(a), weights(b), rtol=1e-3, atol=2e-5)


def shapes(count):
    rng = stream(0, "shapes")
    for _ in range(count):
        depth = int(rng.integers(0, 3))
        widths = [int(rng.integers(1, 90)), *rng.integers(1, 130, depth).tolist(), int(rng.integers(2, 60))]
        yield widths, int(rng.integers(1, 70)), int(rng.integers(20, 150)), int(rng.integers(2, 9))


def all_by_onednn(monkeypatch):
    """Every float32 product is oneDNN's, also where it would not be the faster one."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(stacks, "LARGE", 0)
    monkeypatch.setattr(stacks, "has_onednn", lambda dtype: True)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_products_of_onednn_learn_what_mkls_do(activation, monkeypatch):
    widths, data = (10, 24, 17, 3), resident(120, 10, 3)
    members = [stream(k, "m").permutation(120) < 60 for k in range(3)]

    def trained():
        models = [perceptron(widths, k, activation, dropout=0.2) for k in range(3)]
        return train(models, data, members, [stream(k, "train") for k in range(3)], clip_norm=1.0)

    monkeypatch.setattr(stacks, "has_onednn", lambda dtype: False)
    expected = trained()
    all_by_onednn(monkeypatch)
    for a, b in zip(trained(), expected, strict=True):
        torch.testing.assert_close(weights(a), weights(b), rtol=1e-3, atol=2e-5)


def test_onednn_is_taken_for_large_products_and_not_for_small_ones(monkeypatch):
    taken = []
    all_by_onednn(monkeypatch)
    monkeypatch.setattr(stacks, "LARGE", 16 * 32 * 48)
    monkeypatch.setattr(stacks, "by_onednn", lambda *given: taken.append(1) or torch.nn.functional.linear(*given[:3]))
    for hidden, count in [(48, 2), (32, 0)]:
        taken.clear()
        stack = stacks.Stack(
            [perceptron((32, hidden, 3), k) for k in range(2)],
            stacks.layers_of(perceptron((32, hidden, 3))),
            torch.device("cpu"),
            torch.float32,
        )
        stack.forward(torch.zeros(2, 16, 32), None)
        assert len(taken) == count


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float32 by oneDNN", "bfloat16"])
def test_a_models_bits_know_neither_its_neighbours_nor_its_place_whatever_the_shape(precision, monkeypatch):
    """40 shapes of networks, batches, pools and stacks: model 0 alone, last in one stack, within another."""
    if precision.endswith("oneDNN"):
        all_by_onednn(monkeypatch)
    precision = precision.partition(" ")[0]
    ways = list(WAYS.values())
    for number, (widths, batch_size, n, size) in enumerate(shapes(40)):
        data = resident(n, widths[0], widths[-1], number)
        settings = {**ways[number % len(ways)], "batch_size": batch_size, "precision": precision, "epochs": 1}
        dropout = 0.4 * (number % 3 == 0)
        members = [stream(k, "m", number).permutation(n) < n // 2 for k in range(size)]

        def model_0(stack, place):
            models = [perceptron(widths, k, dropout=dropout) for k in stack]  # noqa: B023
            streams = [stream(k, "train") for k in stack]
            return weights(train(models, data, [members[k] for k in stack], streams, **settings)[place])  # noqa: B023

        alone = model_0([0], 0)
        assert torch.equal(alone, model_0([*range(1, size), 0], size - 1)), (widths, batch_size, n, size)
        assert torch.equal(alone, model_0([size - 1, 0, 1], 1)), (widths, batch_size, n, size)


def test_models_with_differently_many_members_are_trained_as_alone():
    data, streams = resident(50, 6, 3), lambda: [stream(k, "train") for k in range(4)]
    members = [np.arange(50) < count for count in (20, 33, 20, 1)]
    together = train([perceptron((6, 8, 3), k) for k in range(4)], data, members, streams())
    for k in range(4):
        (alone,) = train([perceptron((6, 8, 3), k)], data, [members[k]], [streams()[k]])
        assert torch.equal(weights(alone), weights(together[k]))


def test_dropout_drops_its_share_of_every_model_by_its_own_generator():
    models = [perceptron((4, 4000, 3), k, dropout=0.3) for k in range(2)]
    stack = stacks.Stack(models, stacks.layers_of(models[0]), torch.device("cpu"), torch.float32)
    generators = lambda *seeds: [torch.Generator().manual_seed(seed) for seed in seeds]  # noqa: E731
    x = torch.randn(2, 5, 16)
    stack.forward(x, generators(1, 2))
    first = stack.kept[0].clone()
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert abs((first == 0).double().mean() - 0.3) < 4 * (0.21 / first.numel()) ** 0.5
    stack.forward(x, generators(2, 1))
    assert torch.equal(stack.kept[0], first.flip(0)) and not torch.equal(first[0], first[1])


def test_without_dropout_a_stack_answers_as_its_models_do():
    models = [perceptron((7, 12, 5), k, dropout=0.5).eval() for k in range(3)]
    stack, data = (
        stacks.Stack(models, stacks.layers_of(models[0]), torch.device("cpu"), torch.float32),
        resident(9, 7, 5),
    )
    index = torch.arange(9).expand(3, 9)
    answers = stack.forward(stack.inputs(data, index), None)[..., :5]
    expected = torch.stack([model(data.x) for model in models])
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)


def test_images_are_flattened_as_the_module_does_and_normalised_per_channel():
    rng = stream(0, "images")
    images = Records(rng.integers(0, 256, (40, 3, 4, 5), dtype=np.uint8), rng.integers(0, 3, 40))
    data = Resident.of(images, (100.0, 110.0, 120.0), (50.0, 60.0, 70.0), "cpu")
    rows = data.flat(torch.float32)
    assert rows.shape == (40, 64) and not rows[:, 60:].any()
    torch.testing.assert_close(rows[:, :60], data.batch(torch.arange(40)).flatten(1))


def test_features_share_their_memory_with_the_rows_of_a_stack():
    data = resident(20, 7, 3)
    assert data.flat(torch.float32).data_ptr() == data.x.data_ptr() and data.is_plain
    assert data.x.tolist() == records(20, 7, 3).x.tolist()


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)),
        nn.Sequential(nn.Dropout(0.1), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 2), nn.Tanh()),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        nn.Sequential(*[nn.Linear(3, 3)] * 2),
        nn.Sequential(nn.Linear(3, 2)).requires_grad_(False),
        nn.Sequential(nn.Linear(3, 2).double()),
        nn.Sequential(nn.Flatten(2), nn.Linear(3, 2)),
        nn.Sequential(),
    ],
)
def test_anything_but_a_plain_perceptron_goes_through_the_loop(model):
    assert stacks.layers_of(model) is None


def test_a_perceptron_with_a_hook_goes_through_the_loop():
    model = perceptron((3, 4, 2))
    assert stacks.layers_of(model) is not None
    model[1].register_forward_hook(lambda *_: None)
    assert stacks.layers_of(model) is None


def test_a_stack_that_diverges_says_so():
    data, members = resident(40, 5, 3), [np.arange(40) < 20] * 2
    models = [perceptron((5, 6, 3), k) for k in range(2)]
    with torch.no_grad():
        models[1][1].weight[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"diverged: a stack of 2, epoch 1 of 2"):
        train(models, data, members, [stream(k, "t") for k in range(2)])


def settings(**given):
    return TRAINERS.bind("sgd", {"epochs": 1, "learning_rate": 0.1} | given)


def test_the_width_follows_the_network_and_the_setting():
    cpu = torch.device("cpu")
    small, large = perceptron((16, 32, 4)), perceptron((600, 128, 100))
    convnet = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    assert stacking.width(settings(), small, cpu)[0] > stacking.width(settings(), large, cpu)[0] > 1
    assert stacking.width(settings(stack=3), large, cpu)[0] == 3
    for model, given, why in [(convnet, {}, "no plain perceptron"), (small, {"augment": True}, "train.augment")]:
        chosen, how = stacking.width(settings(stack=8, **given), model, cpu)
        assert chosen == 1 and why in how and "float32" in how


@pytest.mark.gpu
def test_on_a_gpu_a_model_is_nearly_the_same_alone_and_in_a_stack():
    """cuBLAS chooses kernels by the width of the stack: equal to rounding only."""
    data = Resident.of(records(300, 20, 4), (0.0,), (1.0,), "cuda")
    members = [stream(k, "m").permutation(300) < 150 for k in range(6)]
    streams = lambda: [stream(k, "train") for k in range(6)]  # noqa: E731
    made = lambda: [perceptron((20, 32, 4), k) for k in range(6)]  # noqa: E731
    together = train(made(), data, members, streams(), precision="float32")
    for k, alone in enumerate(made()):
        train([alone], data, [members[k]], [streams()[k]], precision="float32")
        torch.testing.assert_close(weights(alone), weights(together[k]), rtol=1e-3, atol=1e-4)


def test_precision_auto_is_float32_on_a_cpu():
    assert loop.precision_of("auto", torch.device("cpu")) == "float32"
