"""What a fast CIFAR model depends on (its own members, its own stream), and the parts of its recipe, one by one."""

from itertools import islice

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import models
from core.errors import UserError
from core.registry import MODELS, TRAINERS
from core.rng import stream
from core.types import Records
from trainers import speedy_loop
from trainers.evaluate import accuracy_and_loss
from trainers.resident import Resident
from trainers.speedyresnet import even_batches, exposures, triangle

torch.set_num_threads(1)
POOL = 61  # an odd number of records: batches of unequal size
SHAPE = (3, 10, 10)


def records(n=POOL, shape=SHAPE):
    rng = stream(0, "images")
    x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Records((x // 2 + np.roll(x, 1, axis=2) // 2), rng.integers(0, 3, n))  # neighbours look alike


def resident(of):
    return Resident.of(of, (120.0,), (60.0,), "cpu")


def network(seed=0, shape=SHAPE, **settings):
    settings = MODELS.bind("speedyresnet", {"widths": (4, 6, 8)} | settings)
    return models.build("speedyresnet", settings, shape, 3, stream(seed, "init"))


def half(*purpose, n=POOL):
    return stream(0, "member", *purpose).random(n) < 0.5


def train(networks, data, members, streams, **settings):
    settings = {"epochs": 6, "batch_size": 8, "learning_rate": 0.02} | settings
    return TRAINERS["speedyresnet"](
        networks, data, np.asarray(members), streams, **TRAINERS.bind("speedyresnet", settings)
    )


def train_one(data, member=None, seed=0, model=None, **settings):
    member = half() if member is None else member
    return train([model or network()], data, member[None], [stream(seed, "train")], **settings)[0]


def weights(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


RECIPES = {
    "SGD": {"optimizer": "SGD"},
    "Muon": {"optimizer": "Muon"},
    "plain": {"lookahead": 0.0, "flip": False, "translate": 0, "whiten_bias_epochs": 0},
    "bfloat16": {"precision": "bfloat16"},
}
recipes = pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)


@pytest.mark.parametrize("settings", [RECIPES["SGD"], RECIPES["Muon"]], ids=["SGD", "Muon"])
def test_a_model_is_bit_for_bit_the_same_alone_and_anywhere_in_any_stack(settings):
    data, members = resident(records()), [half(k) for k in range(3)]

    def trained(*stack):
        found = train(
            [network(k) for k in stack],
            data,
            [members[k] for k in stack],
            [stream(k, "train") for k in stack],
            **settings,
        )
        return dict(zip(stack, map(weights, found), strict=True))

    alone = {k: trained(k)[k] for k in range(3)}
    assert not torch.equal(alone[0], alone[1])
    for stack in [(0, 1, 2), (2, 0)]:
        for k, found in trained(*stack).items():
            assert torch.equal(found, alone[k]), (stack, k)


@recipes
def test_a_record_that_is_no_member_has_no_influence_whatever_it_contains(settings):
    """Nothing of it is in the model, the whitening filter and the running statistics included."""
    pool, member = records(), half()
    changed = Records(pool.x.copy(), pool.y.copy())
    changed.x[~member] = 255 - changed.x[~member] // 3
    changed.y[~member] = (pool.y[~member] + 1) % 3
    before, after = (weights(train_one(resident(r), member, **settings)) for r in (pool, changed))
    assert torch.equal(before, after)


def test_every_member_has_influence():
    pool, member = records(), half()
    before = weights(train_one(resident(pool), member))
    for i in np.flatnonzero(member)[[0, 5, -1]]:
        changed = Records(pool.x.copy(), pool.y.copy())
        changed.x[i] = 255 - pool.x[i]
        assert not torch.equal(before, weights(train_one(resident(changed), member))), i


def test_global_generators_neither_matter_nor_change():
    data = resident(records())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(train_one(data))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, weights(train_one(data)))
    assert not torch.equal(first, weights(train_one(data, seed=1)))


def test_a_trained_model_is_loaded_without_its_data():
    data = resident(records())
    trained = train_one(data)
    fresh = network(7)
    fresh.load_state_dict(trained.state_dict())
    x = data.batch(torch.arange(POOL))
    assert not trained.training
    assert torch.equal(fresh.eval()(x), trained(x))


def covariance(patches):
    return patches.T @ patches / len(patches)


def every_patch(x):
    """All 2 x 2 patches of images, by plain loops: (patches, C * 4)."""
    height, width = x.shape[2:]
    corners = [(i, j) for i in range(height - 1) for j in range(width - 1)]
    return torch.cat([x[:, :, i : i + 2, j : j + 2].flatten(1) for i, j in corners]).double()


def test_the_filter_whitens_the_members_patches():
    """Directions d_i / sqrt(v_i + e): the second moment of what they give is the diagonal of v_i / (v_i + e)."""
    data, member, epsilon = resident(records()), half(), 1e-3
    moment = speedy_loop.second_moment(data, np.flatnonzero(member), block=7)
    patches = every_patch(data.batch(torch.as_tensor(np.flatnonzero(member))))
    torch.testing.assert_close(moment, covariance(patches), rtol=1e-5, atol=1e-6)
    found = speedy_loop.whitening_filter(moment, epsilon)
    values = torch.linalg.eigvalsh(moment).flip(0)
    assert torch.equal(found[12:], -found[:12])
    torch.testing.assert_close(
        covariance(patches @ found[:12].T), (values / (values + epsilon)).diag(), rtol=1e-5, atol=1e-5
    )
    exact = speedy_loop.whitening_filter(moment, 1e-12)[:12]
    torch.testing.assert_close(covariance(patches @ exact.T), torch.eye(12).double(), rtol=1e-5, atol=1e-5)


def test_the_trained_models_first_layer_is_that_filter():
    data, member = resident(records()), half()
    trained = train_one(data, member)
    expected = speedy_loop.whitening_filter(speedy_loop.second_moment(data, np.flatnonzero(member)), 5e-4)
    torch.testing.assert_close(trained.whiten.weight.flatten(1).double(), expected, rtol=1e-6, atol=1e-6)
    x = data.batch(torch.arange(5))
    bias = trained.whiten.bias.detach().double()
    by_hand = (every_patch(x) @ expected.T + bias).view(9, 9, 5, 24).permute(2, 3, 0, 1)
    torch.testing.assert_close(trained.whiten(x).double(), by_hand, rtol=1e-4, atol=1e-4)


def test_images_of_one_colour_can_be_whitened():
    flat = Records(np.full((POOL, *SHAPE), 120, dtype=np.uint8), records().y)
    assert weights(train_one(resident(flat))).isfinite().all()


@pytest.mark.parametrize(("epochs", "moves"), [(0, False), (2, True)])
def test_the_whitening_bias_is_trained_in_the_first_epochs_and_then_frozen(epochs, moves):
    data = resident(records())
    short, long = (
        train_one(data, epochs=n, whiten_bias_epochs=epochs, lookahead=0.0, start_factor=1.0, end_factor=1.0)
        for n in (2, 4)
    )
    assert torch.equal(short.whiten.bias, long.whiten.bias)
    assert bool(short.whiten.bias.any()) == moves
    assert not torch.equal(short.head.weight, long.head.weight)


def numbered(n=POOL):
    """Images that show their number, darker to the left."""
    x = np.zeros((n, 1, 8, 8), dtype=np.uint8)
    x += np.arange(8, dtype=np.uint8) * 8
    x[:, 0, 4] = np.arange(n, dtype=np.uint8)[:, None]
    return Records(x, np.arange(n) % 3)


def epochs_of(member, count, *, flip=True, translate=0, batch_size=8, of=None):
    data = Resident.of(of or numbered(), (0.0,), (1.0,), "cpu")
    batches = even_batches(int(member.sum()), batch_size)
    drawn = speedy_loop.draw_epochs(data, member, stream(0, "train"), batches, flip=flip, translate=translate)
    return [[batch for batch, _ in epoch] for epoch in islice(drawn, count)]


def seen(epoch):
    """Number -> image of what an epoch shows, in its order."""
    x = torch.cat(epoch)
    return dict(zip(x[:, 0, 4, 0].int().tolist(), x, strict=True))


@pytest.mark.parametrize("batch_size", [2, 8, 15, 1000])
def test_each_epoch_visits_every_member_once_in_a_new_order(batch_size):
    member = half()
    orders = [list(seen(epoch)) for epoch in epochs_of(member, 3, batch_size=batch_size)]
    for order in orders:
        assert sorted(order) == np.flatnonzero(member).tolist()
    assert orders[0] != orders[1] != orders[2]


def test_mirroring_alternates_from_epoch_to_epoch_and_begins_with_half_of_the_records():
    epochs = [seen(epoch) for epoch in epochs_of(np.ones(POOL, dtype=bool), 4)]
    mirrored = np.array([[bool(epoch[k][0, 0, 0] > epoch[k][0, 0, 7]) for k in range(POOL)] for epoch in epochs])
    assert (mirrored[1:] == ~mirrored[:-1]).all()
    assert abs(mirrored[0].mean() - 0.5) < 4 * 0.5 / np.sqrt(POOL)
    unflipped = [seen(epoch) for epoch in epochs_of(np.ones(POOL, dtype=bool), 2, flip=False)]
    assert all(image[0, 0, 0] < image[0, 0, 7] for epoch in unflipped for image in epoch.values())


def test_two_models_that_differ_in_one_record_see_the_others_alike_and_in_the_same_order():
    member, of = half(), records()
    of.x[:, 0, 0] = np.arange(POOL, dtype=np.uint8)[:, None]
    one = int(np.flatnonzero(member)[5])
    without = member.copy()
    without[one] = False
    many, fewer = (
        [[image for batch in epoch for image in batch] for epoch in epochs_of(m, 3, translate=2, of=of)]
        for m in (member, without)
    )
    for more, less in zip(many, fewer, strict=True):
        kept = iter(more)
        dropped = 0
        for image in less:
            while not torch.equal(next(kept), image):
                dropped += 1
        assert dropped <= 1


def test_moves_reflect_at_the_borders_and_are_new_in_every_epoch():
    x = np.zeros((500, 1, 9, 9), dtype=np.uint8)
    x[:, 0, 4, 4] = 100
    of = Records(x, np.zeros(500, dtype=np.int64))
    epochs = epochs_of(np.ones(500, dtype=bool), 2, flip=False, translate=2, batch_size=500, of=of)
    places = [epoch[0][:, 0].nonzero()[:, 1:] - 4 for epoch in epochs]
    for place in places:
        for axis in (0, 1):
            shift, count = place[:, axis].unique(return_counts=True)
            assert shift.tolist() == [-2, -1, 0, 1, 2]
            assert (count - 100).abs().max() < 4 * np.sqrt(500 * 0.2 * 0.8)


@pytest.mark.parametrize("batch_size", [2, 3, 8, 1000])
@pytest.mark.parametrize("count", [2, 3, 4, 7, 16, 17, 100])
def test_batches_are_even_cover_everything_and_no_record_is_alone(count, batch_size):
    batches = even_batches(count, batch_size)
    lengths = [s.stop - s.start for s in batches]
    assert [i for s in batches for i in range(s.start, s.stop)] == list(range(count))
    assert min(lengths) >= 2 and max(lengths) <= max(batch_size, 3)
    assert max(lengths) - min(lengths) <= 1


def test_the_recorded_exposures_and_steps_are_those_of_the_training(monkeypatch):
    steps = []
    real = speedy_loop.F.cross_entropy
    monkeypatch.setattr(speedy_loop.F, "cross_entropy", lambda z, y, **k: steps.append(len(y)) or real(z, y, **k))
    train_one(resident(records()), half(), epochs=3, batch_size=8)
    members = int(half().sum())
    assert exposures({"epochs": 3, "batch_size": 8}, members) == {"exposures_per_member": 3, "steps": len(steps)}
    assert sum(steps) == 3 * members


def test_the_learning_rate_is_a_triangle():
    np.testing.assert_allclose(triangle(10, 0.4, 0.2, 0.1), [0.2, 0.4, 0.6, 0.8, 1, 0.85, 0.7, 0.55, 0.4, 0.25])
    np.testing.assert_allclose(triangle(4, 0.0, 0.2, 0.0), [1, 0.75, 0.5, 0.25])
    airbench = triangle(245, 0.23, 0.2, 0.07)
    assert airbench.argmax() == 56 and airbench[0] == 0.2 and airbench[-1] == pytest.approx(0.07 + 0.93 / 189)


@pytest.mark.parametrize("optimizer", ["SGD", "Muon"])
def test_each_weight_steps_at_its_own_scheduled_rate(optimizer, monkeypatch):
    """Recorded at every step: biases of norms at 64 times the rate and a 64th of the decay."""
    trace = []
    real = torch.optim.SGD.step

    def step(self, *args):
        trace.append([(len(g["params"]), g["lr"], g["weight_decay"]) for g in self.param_groups])
        return real(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train_one(resident(records()), epochs=1, optimizer=optimizer, weight_decay=0.64, learning_rate=0.01)
    factors = triangle(len(trace), 0.23, 0.2, 0.07)
    for (norms, others), factor in zip(trace, factors, strict=True):
        assert norms == (6, pytest.approx(0.64 * factor), pytest.approx(0.01))
        assert others == (2 if optimizer == "Muon" else 8, pytest.approx(0.01 * factor), 0.64)


def test_lookahead_pulls_back_to_the_average_every_fifth_step():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    slow, average = speedy_loop.Lookahead(layer, 0.9, steps=20), 0.0
    for step in range(1, 24):
        layer.weight.data += 1.0
        before = layer.weight.item()
        slow.step()
        if step % 5 == 0:
            decay = 0.9**5 * (step / 20) ** 3
            average = decay * average + (1 - decay) * before
            assert layer.weight.item() == pytest.approx(average, rel=1e-5)
        else:
            assert layer.weight.item() == before
    slow.keep()
    assert layer.weight.item() == pytest.approx(average, rel=1e-5)


def test_smoothed_labels_and_the_plain_update_are_those_of_the_textbook():
    """One step of the head, everything after the first convolution by autograd, against w - lr (g + 0.85 g + ...)."""
    data, member = resident(records(8)), np.ones(8, dtype=bool)
    settings = {"epochs": 1, "batch_size": 8, "warmup": 0.0, "flip": False, "translate": 0, "weight_decay": 0.5}
    found = train_one(data, member, optimizer="SGD", label_smoothing=0.3, **settings)
    model = network()
    model.whiten.weight.copy_(found.whiten.weight)
    target = torch.nn.functional.one_hot(data.y, 3) * 0.7 + 0.1
    loss = -(target * model(data.batch(torch.arange(8))).log_softmax(1)).sum(1).mean()
    w = model.head.weight
    gradient = torch.autograd.grad(loss, w)[0] + 0.5 * w
    torch.testing.assert_close(found.head.weight, w - 0.02 * 1.85 * gradient, rtol=1e-4, atol=1e-5)


def test_compiling_happens_once_per_architecture_and_changes_nothing_else(monkeypatch):
    """With the compiler replaced by nothing, weights are those of a training without it."""
    compiled = []
    monkeypatch.setattr(speedy_loop, "_compiled", {})
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    data, members, streams = resident(records()), [half(0), half(1)], lambda: [stream(k, "train") for k in (0, 1)]
    plain = train([network(0), network(1)], data, members, streams())
    again = train([network(0), network(1)], data, members, streams(), compile=True)
    assert len(compiled) == 1
    assert all(torch.equal(weights(a), weights(b)) for a, b in zip(plain, again, strict=True))
    train_one(data, model=network(widths=(4, 4, 4)), compile=True)
    assert len(compiled) == 2


def test_what_cannot_be_trained_is_refused_with_a_way_out():
    data = resident(records())
    with pytest.raises(UserError, match=r"diverged: model 0 of a stack of 1, epoch 1 of 6.* Lower train.learning_rate"):
        train_one(data, learning_rate=1e30)
    with pytest.raises(UserError, match="fewer than 2 records"):
        train_one(data, np.arange(POOL) < 1)
    with pytest.raises(UserError, match="translate 10 is too far for images of 10 pixels: at most 9"):
        train_one(data, translate=10)
    with pytest.raises(UserError, match="the model speedyresnet only"):
        train_one(data, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 3)))
    with pytest.raises(ValidationError):
        TRAINERS.bind("speedyresnet", {"optimizer": "Adam"})
    assert TRAINERS.bind("speedyresnet", {"optimizer": "muon"})["optimizer"] == "Muon"


SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 9, 17)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_any_size_are_trained_on(shape):
    model = train_one(resident(records(12, shape)), np.ones(12, dtype=bool), model=network(shape=shape), epochs=1)
    assert weights(model).isfinite().all()


def striped(n, seed, device="cpu"):
    """Classes are the direction of stripes, which is the same in the mirror, under noise."""
    rng = stream(seed, "stripes")
    y = rng.integers(0, 3, n)
    i, j = np.mgrid[:16, :16]
    waves = np.stack([np.sin(1.6 * i), np.sin(1.6 * j), np.sin(1.2 * i) * np.sin(1.2 * j)])[y]
    x = 128 + 40 * waves + 40 * rng.standard_normal((n, 16, 16))
    return Resident.of(Records(np.clip(x, 0, 255).astype(np.uint8)[:, None], y), (128.0,), (50.0,), device)


def learnt(device="cpu", **settings):
    """A trained model, and its accuracy on records it has not seen."""
    data, model = striped(300, 0, device), network(shape=(1, 16, 16), widths=(8, 8, 8))
    settings = {"batch_size": 30, "epochs": 5, "learning_rate": 0.1} | settings
    train_one(data, np.ones(300, dtype=bool), model=model, **settings)
    return model, accuracy_and_loss(model, striped(300, 1, device))[0]


@pytest.mark.parametrize("settings", [{"precision": "float32"}, {"precision": "bfloat16"}], ids=["float32", "bfloat16"])
def test_it_learns_on_a_cpu(settings):
    assert learnt(optimizer="Muon", **settings)[1] > 0.9


def test_it_learns_on_a_cpu_by_sgd_alone():
    assert learnt(optimizer="SGD", learning_rate=0.3, epochs=15)[1] > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_on_a_gpu_and_a_rerun_is_bit_for_bit_the_same(precision, compile):
    settings = {"optimizer": "Muon", "precision": precision, "compile": compile}
    (first, accuracy), (again, _) = learnt("cuda", **settings), learnt("cuda", **settings)
    assert accuracy > 0.9
    assert all(v.dtype != torch.bfloat16 for v in first.state_dict().values())  # the weights stay in float32
    assert torch.equal(weights(first), weights(again))


@pytest.mark.gpu
def test_on_a_gpu_the_stack_does_not_matter():
    data = striped(300, 0, "cuda")
    members, made = [half(k, n=300) for k in (0, 1)], lambda k: network(k, shape=(1, 16, 16))
    alone = train([made(1)], data, [members[1]], [stream(1, "train")])[0]
    beside = train([made(0), made(1)], data, members, [stream(k, "train") for k in (0, 1)])[1]
    assert torch.equal(weights(alone), weights(beside))
