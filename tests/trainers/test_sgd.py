"""What a trained model depends on, and what it does not."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import trainers  # noqa: F401  (fills the registry)
from core.errors import UserError
from core.registry import TRAINERS
from core.rng import stream
from core.types import Records
from trainers import loop
from trainers.evaluate import accuracy_and_loss
from trainers.resident import Resident

torch.set_num_threads(1)
nn = torch.nn
POOL = 61  # an odd number of records: batches of unequal size


def mlp(seed=0, features=10, dropout=0.0):
    return made(lambda: nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)), seed)


def cnn(seed=0, dropout=0.0):
    def layers():
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32, 3),
        )

    return made(layers, seed)


def made(layers, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return layers()


def features(n=POOL):
    rng = stream(0, "features")
    return Records(rng.standard_normal((n, 10)).astype(np.float32), rng.integers(0, 3, n))


def images(n=POOL):
    rng = stream(0, "images")
    return Records(rng.integers(0, 256, (n, 2, 8, 8), dtype=np.uint8), rng.integers(0, 3, n))


def resident(records):
    return (
        Resident.of(records, (100.0,), (50.0,), "cpu")
        if records.x.ndim == 4
        else Resident.of(records, (0.0,), (1.0,), "cpu")
    )


def half(*purpose, n=POOL):
    return stream(0, "member", *purpose).random(n) < 0.5


def train(models, data, members, streams, **settings):
    return TRAINERS["sgd"](
        models,
        data,
        np.asarray(members),
        streams,
        **TRAINERS.bind("sgd", {"epochs": 3, "learning_rate": 0.05, "batch_size": 8} | settings),
    )


def train_one(model, data, member=None, seed=0, **settings):
    member = half() if member is None else member
    return train([model], data, member[None], [stream(seed, "train")], **settings)[0]


def weights(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


KINDS = {
    "mlp": (mlp, features, {}),
    "mlp with dropout": (lambda seed=0: mlp(seed, dropout=0.3), features, {}),
    "adamw": (mlp, features, {"optimizer": "AdamW", "learning_rate": 0.01}),
    "cnn": (cnn, images, {}),
    "cnn with dropout, augmented, averaged": (
        lambda seed=0: cnn(seed, dropout=0.3),
        images,
        {"augment": True, "ema": 0.9},
    ),
}
kinds = pytest.mark.parametrize(("make", "records", "settings"), KINDS.values(), ids=KINDS)


@kinds
def test_a_model_is_bit_for_bit_the_same_alone_and_anywhere_in_any_stack(make, records, settings):
    data, members = resident(records()), [half(k) for k in range(4)]

    def trained(*stack):
        models = train(
            [make(k) for k in stack], data, [members[k] for k in stack], [stream(k, "train") for k in stack], **settings
        )
        return dict(zip(stack, map(weights, models), strict=True))

    alone = {k: trained(k)[k] for k in range(4)}
    assert not torch.equal(alone[0], alone[1])
    for stack in [(0, 1, 2, 3), (3, 0), (2, 1, 3, 0), (1,)]:
        for k, found in trained(*stack).items():
            assert torch.equal(found, alone[k]), (stack, k)


@kinds
def test_a_record_that_is_no_member_has_no_influence_whatever_it_contains(make, records, settings):
    pool, member = records(), half()
    changed = Records(pool.x.copy(), pool.y.copy())
    outside = np.flatnonzero(~member)
    changed.x[outside] = 255 if pool.x.dtype == np.uint8 else np.nan
    changed.y[outside] = (pool.y[outside] + 1) % 3
    before, after = (weights(train_one(make(), resident(r), member, **settings)) for r in (pool, changed))
    assert torch.equal(before, after)


@kinds
def test_every_member_has_influence(make, records, settings):
    pool, member = records(), half()
    before = weights(train_one(make(), resident(pool), member, **settings))
    for i in np.flatnonzero(member)[:3]:
        changed = Records(pool.x.copy(), pool.y.copy())
        changed.x[i] = 255 - pool.x[i] if pool.x.dtype == np.uint8 else -pool.x[i]
        assert not torch.equal(before, weights(train_one(make(), resident(changed), member, **settings))), i


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_global_generators_neither_matter_nor_change(dropout):
    data = resident(features())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(train_one(mlp(dropout=dropout), data))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, weights(train_one(mlp(dropout=dropout), data)))


def test_the_stream_decides_the_training():
    data = resident(features())
    assert not torch.equal(weights(train_one(mlp(), data, seed=0)), weights(train_one(mlp(), data, seed=1)))
    unlike = [weights(train_one(mlp(dropout=0.5), data, np.arange(POOL) < 1, seed=s, batch_size=1)) for s in (0, 1)]
    assert not torch.equal(*unlike)  # one record has one order: only dropout is left to differ


class Witness(nn.Module):
    """A linear model that writes down the batches it is trained on. Feature 0 is the record's number."""

    def __init__(self):
        super().__init__()
        self.linear = made(lambda: nn.Linear(1, 3), 0)
        self.batches = []

    def forward(self, x):
        assert self.training
        self.batches.append(x[:, 0].int().tolist())
        return self.linear(x / POOL)


def witnessed(member, seed=0, **settings):
    numbers = Records(np.arange(POOL, dtype=np.float32)[:, None], np.arange(POOL) % 3)
    model = Witness()
    train_one(model, resident(numbers), member, seed, **settings)
    return model.batches


@pytest.mark.parametrize("batch_size", [1, 8, 15, 1000])
def test_each_epoch_visits_every_member_once_in_a_new_order(batch_size):
    member = half()
    steps = len(loop.batches(int(member.sum()), batch_size))
    batches = witnessed(member, epochs=3, batch_size=batch_size)
    epochs = [list(chain(*batches[e * steps : (e + 1) * steps])) for e in range(3)]
    assert len(batches) == 3 * steps
    for order in epochs:
        assert sorted(order) == np.flatnonzero(member).tolist()
    assert epochs[0] != epochs[1] != epochs[2]


def test_two_models_that_differ_in_one_record_see_the_others_in_the_same_order():
    member = half()
    one = int(np.flatnonzero(member)[5])
    without = member.copy()
    without[one] = False
    many, fewer = (list(chain(*witnessed(m, epochs=2))) for m in (member, without))
    assert [i for i in many if i != one] == fewer


def test_augmentation_draws_belong_to_the_record_not_to_its_neighbours():
    data, member = resident(images()), half()
    without = member.copy()
    without[np.flatnonzero(member)[5]] = False

    def seen(m):
        epoch = loop.draw_epoch(data, m, stream(0, "epoch"), 8, 2)
        return [x for batch, _ in epoch for x in batch]

    many, fewer = seen(member), seen(without)
    order = stream(0, "epoch").permutation(POOL)
    numbers = order[member[order]].tolist()
    kept = [x for x, i in zip(many, numbers, strict=True) if without[i]]
    assert all(torch.equal(a, b) for a, b in zip(kept, fewer, strict=True))


def test_augmented_epochs_mirror_half_of_the_images_and_move_them_up_to_the_shift():
    x = np.zeros((2000, 1, 9, 9), dtype=np.uint8)
    x[:, 0, 4, 4] = 100  # a dot in the middle
    x[:, 0, 4, 5] = 200  # with a brighter one to its right, or, mirrored, to its left
    data = Resident.of(Records(x, np.zeros(2000, dtype=np.int64)), (0.0,), (1.0,), "cpu")
    [(moved, _)] = loop.draw_epoch(data, np.ones(2000, dtype=bool), stream(0, "epoch"), 2000, 2)
    dot, bright = ((moved[:, 0] == v).nonzero()[:, 1:] for v in (100, 200))
    mirrored = (bright - dot)[:, 1] == -1
    assert abs(mirrored.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)
    for axis in (0, 1):
        shift, count = (dot[:, axis] - 4).unique(return_counts=True)
        assert shift.tolist() == [-2, -1, 0, 1, 2]
        assert (count - 400).abs().max() < 4 * math.sqrt(2000 * 0.2 * 0.8)


def test_augmentation_is_off_unless_asked_for_and_for_images_only():
    data = resident(images())
    plain = weights(train_one(cnn(), data))
    assert not torch.equal(plain, weights(train_one(cnn(), data, augment=True)))
    assert torch.equal(plain, weights(train_one(cnn(), data, augment=False)))
    with pytest.raises(UserError, match=r"train.augment .*\(10,\).*false"):
        train_one(mlp(), resident(features()), augment=True)


def by_hand(model, data, member, rng, epochs, step):
    """The same batches, through a plain loop."""
    rng.integers(2**63)  # the seed of dropout
    for _ in range(epochs):
        order = rng.permutation(POOL)
        for index in torch.as_tensor(order[member[order]]).split(8):
            step(model, data.batch(index), data.y[index])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_update_of_the_textbook(smoothing, clip, nesterov):
    """g = gradient + decay w; v <- 0.8 v + g; w <- w - lr v, or w - lr (g + 0.8 v); smoothed labels written out."""
    data, member, velocity = resident(features()), half(), {}

    def step(model, x, y):
        target = nn.functional.one_hot(y, 3) * (1 - smoothing) + smoothing / 3
        loss = -(target * model(x).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        scale = 1.0 if clip is None else min(1.0, clip / norm)
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                total = scale * g + 0.01 * p
                velocity[p] = 0.8 * velocity.get(p, 0) + total
                p -= 0.05 * (total + 0.8 * velocity[p] if nesterov else velocity[p])

    expected = mlp()
    by_hand(expected, data, member, stream(0, "train"), 3, step)
    settings = {"schedule": "constant", "nesterov": nesterov, "momentum": 0.8, "weight_decay": 0.01}
    found = train_one(mlp(), data, member, label_smoothing=smoothing, clip_norm=clip, **settings)
    torch.testing.assert_close(weights(found), weights(expected), rtol=1e-4, atol=1e-5)


def test_the_optimizer_steps_at_the_scheduled_rates(monkeypatch):
    """A gradient of all ones, plain SGD: the weight falls by the learning rate of each step."""

    class Falling(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))
            self.trace = []

        def forward(self, x):
            self.trace.append(self.w.item())
            return torch.stack([self.w.expand(len(x)), torch.zeros(len(x))], dim=1)

    model, data = (
        Falling(),
        Resident.of(Records(np.zeros((20, 1), np.float32), np.ones(20, np.int64)), (0.0,), (1.0,), "cpu"),
    )
    # Label 1 of logits (w, 0): the gradient is sigmoid(w).
    train_one(
        model,
        data,
        np.ones(20, dtype=bool),
        batch_size=5,
        epochs=2,
        learning_rate=0.3,
        momentum=0,
        weight_decay=0,
        warmup_epochs=0.5,
    )
    steps = -np.diff(model.trace)
    gradients = 1 / (1 + np.exp(-np.array(model.trace[:-1])))
    expected = [0.15, 0.3] + [0.3 * math.cos(math.pi * t / 12) ** 2 for t in range(5)]
    np.testing.assert_allclose(steps / gradients, expected, rtol=1e-4)
    assert max(steps / gradients) == pytest.approx(0.3, rel=1e-5)


def test_a_moving_average_is_the_recursion_written_out():
    model = nn.BatchNorm1d(2)
    average = loop.MovingAverage([v for v in model.state_dict().values() if v.is_floating_point()], 0.5)
    expected = {name: v.clone() for name, v in model.state_dict().items()}
    for t in range(1, 15):
        with torch.no_grad():
            model.weight += t
        model(torch.full((3, 2), float(t)) + torch.arange(3.0)[:, None])
        average.update()
        decay = min(0.5, (1 + t) / (10 + t))
        for name, v in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * v if v.is_floating_point() else v.clone()
    assert not torch.equal(model.weight, expected["weight"])
    average.keep()
    for name, v in model.state_dict().items():
        torch.testing.assert_close(v, expected[name])


def test_averaged_weights_are_kept_and_the_training_is_not_disturbed():
    data = resident(features())
    last, nearly, averaged = (weights(train_one(mlp(), data, ema=ema, schedule="constant")) for ema in (0.0, 1e-7, 0.9))
    torch.testing.assert_close(last, nearly)
    assert not torch.allclose(last, averaged, atol=1e-3)


def test_models_come_back_in_evaluation_mode_as_they_would_be_loaded():
    model = train_one(cnn(dropout=0.5), resident(images()))
    assert not any(m.training for m in model.modules())
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("count", [17, 9, 2])
def test_a_last_batch_of_one_record_does_not_break_batch_normalisation(count):
    model = made(lambda: nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), 0)
    train_one(model, resident(features()), np.arange(POOL) < count)
    assert weights(model).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        ({"learning_rate": 1e30, "optimizer": "SGD"}, 1),
        ({"learning_rate": 1e19, "batch_size": 1000, "epochs": 9}, "[1-9]"),
    ],
)
def test_divergence_names_the_model_the_epoch_the_rate_and_the_way_out(settings, epoch):
    data, members = resident(features()), np.stack([np.arange(POOL) < 2, half()])
    models = [mlp(0), nn.Sequential(nn.Linear(10, 300), nn.Linear(300, 300), nn.Linear(300, 3))]
    message = (
        rf"diverged: model [01] of a stack of 2, epoch {epoch} of .*train.learning_rate 1e\+\d+.*Lower .*warmup_epochs"
    )
    with pytest.raises(UserError, match=message):
        train(models, data, members, [stream(k, "train") for k in range(2)], **settings)


def test_a_step_that_breaks_the_weights_is_noticed_even_when_it_is_the_last():
    data = resident(features())
    with pytest.raises(UserError, match=r"diverged.*epoch 1 of 1"):
        train_one(
            mlp(), data, np.ones(POOL, dtype=bool), epochs=1, batch_size=POOL, learning_rate=1e38, weight_decay=1e6
        )


def test_mistakes_in_the_call_are_named():
    data = resident(features())
    with pytest.raises(ValueError, match=r"members of shape \(1, 61\)"):
        train([mlp()], data, np.ones((1, 60), dtype=bool), [stream(0, "train")])
    with pytest.raises(UserError, match=r"model 1 of the stack has no records"):
        train([mlp(), mlp()], data, np.stack([half(), half() & False]), [stream(0, "a"), stream(0, "b")])
    with pytest.raises(UserError, match=r"warmup_epochs 4 is more than train.epochs 3"):
        train_one(mlp(), data, warmup_epochs=4)


@pytest.mark.parametrize("spelling", ["sgd", "SGD", "Sgd", "adam", "ADAMW"])
def test_optimizers_are_spelled_in_any_case(spelling):
    bound = TRAINERS.bind("sgd", {"epochs": 1, "learning_rate": 0.1, "optimizer": spelling})
    assert bound["optimizer"].casefold() == spelling.casefold()
    assert bound["optimizer"] in ("SGD", "Adam", "AdamW")


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0},
        {"momentum": 1},
        {"optimizer": "rmsprop"},
        {"epochs": 0},
        {"ema": 1},
        {"momentun": 0.9},
        {"batch_size": 0},
    ],
)
def test_settings_out_of_bounds_are_refused(wrong):
    with pytest.raises(ValidationError):
        TRAINERS.bind("sgd", {"epochs": 1, "learning_rate": 0.1} | wrong)


def test_every_setting_has_its_line_in_the_docstring():
    described = TRAINERS["sgd"].__doc__
    for name in TRAINERS.schema("sgd").model_fields:
        assert f"\n    - {name}: " in described


@pytest.mark.parametrize("make", [mlp, lambda: nn.Sequential(mlp(), nn.LogSoftmax(1))])
@pytest.mark.parametrize(
    ("precision", "chosen"), [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")]
)
def test_the_arithmetic_that_was_chosen_is_recorded(precision, chosen, make):
    model = train_one(make(), resident(features()), precision=precision)
    assert model.trained["precision"] == chosen


def test_bfloat16_trains_float32_weights_to_nearly_the_same():
    data = resident(features())
    exact, rounded = (train_one(mlp(), data, precision=p) for p in ("float32", "bfloat16"))
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert not torch.equal(weights(exact), weights(rounded))
    torch.testing.assert_close(weights(exact), weights(rounded), rtol=0, atol=0.02)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Resident.of(
        Records((bunch.images * 15).astype(np.uint8)[:, None], bunch.target.astype(np.int64)), (73.0,), (90.0,), "cpu"
    )


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_digits_are_memorised_and_generalised(digits, optimizer):
    member = stream(0, "digits").random(len(digits)) < 0.5
    model = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)), 0)
    settings = {"SGD": {"learning_rate": 0.1}, "AdamW": {"learning_rate": 0.003}}[optimizer]
    train_one(model, digits, member, epochs=30, batch_size=64, optimizer=optimizer, **settings)
    train_accuracy, train_loss = accuracy_and_loss(model, digits, np.flatnonzero(member))
    test_accuracy, test_loss = accuracy_and_loss(model, digits, np.flatnonzero(~member))
    assert train_accuracy > 0.999
    assert 0.94 < test_accuracy < 1
    assert test_loss > 5 * train_loss


@pytest.mark.gpu
@kinds
def test_training_on_a_gpu_repeats_itself(make, records, settings):
    pool = Resident.of(records(), (0.0,), (50.0,), "cuda")
    first, again = (weights(train_one(make(), pool, precision="float32", **settings)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-5)


def test_recorded_losses_are_those_of_the_model_after_each_epoch_and_change_nothing_else():
    data, member = resident(images()), half("traced")
    plain, traced = ([cnn(dropout=0.2)] for _ in range(2))
    settings = {"epochs": 3, "learning_rate": 0.05, "batch_size": 8, "augment": True}
    train(plain, data, member[None], [stream(1, "t")], **settings)
    train(traced, data, member[None], [stream(1, "t")], record_losses=True, **settings)
    for a, b in zip(plain[0].state_dict().values(), traced[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    trace = traced[0].loss_trace
    assert trace.shape == (3, member.sum())
    index = torch.as_tensor(np.flatnonzero(member))
    last = nn.functional.cross_entropy(traced[0](data.batch(index)), data.y[index], reduction="none")
    np.testing.assert_allclose(trace[-1], last.detach().numpy(), rtol=1e-3, atol=1e-6)
    assert not hasattr(plain[0], "loss_trace") and traced[0].log_odds_trace is None
    whole = [cnn(dropout=0.2)]
    train(whole, data, member[None], [stream(1, "t")], record_losses="all", **settings)
    assert whole[0].log_odds_trace.shape == (3, len(data))
    np.testing.assert_allclose(np.logaddexp(0, -whole[0].log_odds_trace[:, member]), trace, rtol=1e-4, atol=1e-6)
