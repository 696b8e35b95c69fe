"""What makes DP-SGD private: clipped records, Poisson batches, noise of the stated size, an accountant."""

import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trainers  # noqa: F401  (fills the registry)
from core.errors import UserError
from core.registry import TRAINERS
from core.rng import stream
from core.types import Records
from trainers import dp_accounting, dp_loop
from trainers.dp_accounting import Mechanism
from trainers.dp_sgd import mechanism_of, privacy
from trainers.resident import Resident

torch.set_num_threads(1)
nn = torch.nn
POOL = 61
ROOT = Path(__file__).resolve().parents[2]


def made(layers, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return layers()


def mlp(seed=0, dropout=0.0):
    return made(lambda: nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)), seed)


def cnn(seed=0):
    def layers():
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 3),
        )

    return made(layers, seed)


def features(n=POOL):
    rng = stream(0, "features")
    return Resident.of(
        Records(rng.standard_normal((n, 10)).astype(np.float32), rng.integers(0, 3, n)), (0.0,), (1.0,), "cpu"
    )


def images(n=POOL):
    rng = stream(0, "images")
    records = Records(rng.integers(0, 256, (n, 2, 8, 8), dtype=np.uint8), rng.integers(0, 3, n))
    return Resident.of(records, (100.0,), (50.0,), "cpu")


KINDS = {
    "mlp": (mlp, features, {}),
    "mlp with dropout": (lambda seed=0: mlp(seed, 0.3), features, {}),
    "adam": (mlp, features, {"optimizer": "Adam"}),
    "cnn, augmented": (cnn, images, {"augmentations": 3}),
}
kinds = pytest.mark.parametrize(("make", "data", "settings"), KINDS.values(), ids=KINDS)


def bound(**settings):
    given = {"epochs": 2, "learning_rate": 0.1, "batch_size": 8} | settings
    if not {"target_epsilon", "noise_multiplier"} & settings.keys():
        given["noise_multiplier"] = 1.0
    return TRAINERS.bind("dp_sgd", given)


def train(models, data, members, streams, **settings):
    return TRAINERS["dp_sgd"](models, data, np.asarray(members), streams, **bound(**settings))


def half(*purpose):
    return stream(0, "member", *purpose).random(POOL) < 0.5


def weights(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


def clipped_by_hand(model, x, y, clip):
    """The naive loop: one record at a time, through autograd."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    norms = []
    for views, label in zip(x, y, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(views), label.expand(len(views))).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))
        norms.append(norm)
        for part, g in zip(total, grads, strict=True):
            part += g * min(1.0, clip / norm)
    model.zero_grad()
    return total, norms


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(("make", "data"), [(mlp, features), (cnn, images)])
def test_each_record_is_clipped_by_itself_as_in_a_naive_loop(make, data, views):
    model, resident = make(), data()
    x = resident.normalised(resident.x[:12])[:, None]
    x = torch.cat([x + 0.1 * k for k in range(views)], dim=1)
    y = resident.y[:12]
    norms = clipped_by_hand(model, x, y, 1.0)[1]
    clip = float(np.median(norms))  # some are clipped, some are not
    expected, _ = clipped_by_hand(model, x, y, clip)
    found = dp_loop.clipped_sum(model, dict(model.named_parameters()), x, y, clip)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_no_record_moves_the_sum_by_more_than_the_clipping_norm():
    model, resident = mlp(), features()
    x, y = 100 * resident.normalised(resident.x)[:, None], resident.y
    for clip in (0.1, 1.0):
        for k in range(5):
            one = dp_loop.clipped_sum(model, dict(model.named_parameters()), x[k : k + 1], y[k : k + 1], clip)
            assert torch.cat([g.flatten() for g in one]).norm() <= clip * (1 + 1e-5)


def test_a_training_is_the_naive_one_step_by_step():
    """Without noise: Poisson batches from the stream, clipped by hand, divided by the expected batch size."""
    data, member = features(), half("naive")
    (found,) = train([mlp()], data, [member], [stream(0, "train")], noise_multiplier=0.0, max_grad_norm=0.3)
    model, rng = mlp(), stream(0, "train")
    rng.integers(2**63, size=1), rng.integers(2**63, size=1)  # the seeds of noise and dropout
    rate = 8 / member.sum()
    for _ in range(math.ceil(2 / rate)):
        batch = np.flatnonzero((rng.random(POOL) < rate) & member)
        total, _ = clipped_by_hand(model, data.x[batch][:, None], data.y[batch], 0.3)
        with torch.no_grad():
            for p, g in zip(model.parameters(), total, strict=True):
                p -= 0.1 * g / 8
    torch.testing.assert_close(weights(found), weights(model), rtol=1e-4, atol=1e-6)


def test_the_noise_has_the_stated_standard_deviation_and_every_coordinate_its_own():
    """A pool without members: one step of SGD moves the weights by noise alone."""
    model = nn.Linear(10, 3000)
    before = weights(model)
    step = Mechanism(sampling_rate=0.5, steps=1, noise_multiplier=2.5, max_grad_norm=0.4)
    dp_loop.train(
        model,
        features(),
        np.zeros(POOL, dtype=bool),
        stream(0, "noise"),
        mechanism=step,
        rates=np.array([0.7]),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters),
        batch_size=8,
        physical_batch_size=4,
    )
    moved = (weights(model) - before) / (0.7 * 2.5 * 0.4 / 8)
    n = len(moved)
    assert abs(moved.mean()) < 4 / math.sqrt(n)
    assert abs(moved.std() - 1) < 4 / math.sqrt(2 * n)
    assert abs((moved[1:] * moved[:-1]).mean()) < 4 / math.sqrt(n)


def test_batches_are_poisson():
    """Sizes have the binomial mean and variance, records are drawn independently, non-members never."""
    data, member, rate, steps = features(), half("poisson"), 0.3, 4000
    rng = stream(0, "batches")
    drawn = np.zeros((steps, POOL))
    for step in range(steps):
        index, views = dp_loop.poisson_batch(data, member, rng, rate, 0, 0)
        assert views is None
        drawn[step, index.numpy()] += 1
    assert drawn.max() == 1 and not drawn[:, ~member].any()
    members, sizes = member.sum(), drawn.sum(axis=1)
    variance = members * rate * (1 - rate)
    assert abs(sizes.mean() - members * rate) < 4 * math.sqrt(variance / steps)
    assert abs(sizes.var() / variance - 1) < 4 * math.sqrt(2 / steps)
    correlation = np.corrcoef(drawn[:, member].T)[np.triu_indices(members, 1)]
    assert np.abs(correlation).max() < 5 / math.sqrt(steps)


@pytest.mark.parametrize("physical", [1, 3, 100])
def test_physical_batches_change_nothing_but_rounding(physical):
    data, member = features(), half("physical")
    (found,) = train([mlp()], data, [member], [stream(0, "train")], batch_size=20, physical_batch_size=physical)
    (whole,) = train([mlp()], data, [member], [stream(0, "train")], batch_size=20, physical_batch_size=20)
    torch.testing.assert_close(weights(found), weights(whole), rtol=1e-4, atol=1e-5)


@kinds
def test_a_model_is_bit_for_bit_the_same_alone_and_in_any_stack(make, data, settings):
    resident, members = data(), [half(k) for k in range(3)]

    def trained(*stack):
        models = train(
            [make(k) for k in stack],
            resident,
            [members[k] for k in stack],
            [stream(k, "train") for k in stack],
            **settings,
        )
        return dict(zip(stack, map(weights, models), strict=True))

    alone = {k: trained(k)[k] for k in range(3)}
    assert not torch.equal(alone[0], alone[1])
    for stack in [(0, 1, 2), (2, 0)]:
        for k, found in trained(*stack).items():
            assert torch.equal(found, alone[k]), (stack, k)


@kinds
def test_a_model_does_not_depend_on_what_a_non_member_is(make, data, settings):
    resident, member = data(), half("members")
    (before,) = train([make()], resident, [member], [stream(0, "train")], **settings)
    resident.x[torch.tensor(~member)] = resident.x[torch.tensor(~member)].flip(0) + 1
    resident.y[torch.tensor(~member)] = 0
    (after,) = train([make()], resident, [member], [stream(0, "train")], **settings)
    assert torch.equal(weights(before), weights(after))


def test_a_models_other_records_are_drawn_alike_with_and_without_one_of_them():
    data, member = images(), np.ones(POOL, dtype=bool)
    without = member.copy()
    without[7] = False
    for _, rng_a, rng_b in [(k, stream(0, k), stream(0, k)) for k in range(20)]:
        a, views_a = dp_loop.poisson_batch(data, member, rng_a, 0.3, 2, 1)
        b, views_b = dp_loop.poisson_batch(data, without, rng_b, 0.3, 2, 1)
        assert torch.equal(a[a != 7], b)
        for draw_a, draw_b in zip(views_a, views_b, strict=True):
            assert torch.equal(draw_a[a != 7], draw_b)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train([mlp(0, 0.3)], features(), [half()], [stream(0, "train")])
    assert torch.equal(torch.rand(3), expected)


def test_it_learns_when_the_noise_is_small():
    from trainers.evaluate import accuracy_and_loss

    rng = stream(0, "blobs")
    y = rng.integers(0, 3, 300)
    x = (rng.standard_normal((300, 10)) + 2 * np.eye(10)[y]).astype(np.float32)
    data, everyone = Resident.of(Records(x, y), (0.0,), (1.0,), "cpu"), np.ones((1, 300), dtype=bool)
    for noise, low, high in ((0.5, 0.75, 1.0), (200.0, 0.0, 0.65)):
        (model,) = train(
            [mlp()], data, everyone, [stream(0, "t")], noise_multiplier=noise, batch_size=60, epochs=10, learning_rate=1
        )
        assert low < accuracy_and_loss(model, data)[0] < high


# --- accounting -----------------------------------------------------------------------------------------------


def test_the_accountant_is_opacus_prv():
    with dp_accounting.quiet_import():
        from opacus.accountants import PRVAccountant
    accountant = PRVAccountant()
    for _ in range(150):
        accountant.step(noise_multiplier=1.1, sample_rate=0.1)
    spent = privacy(bound(noise_multiplier=1.1, batch_size=6, epochs=15), members=60)
    assert spent["steps"] == 150 and spent["sampling_rate"] == 0.1 and spent["delta"] == 1e-5
    assert spent["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
def test_without_subsampling_epsilon_is_that_of_the_gaussian_mechanism(mu):
    """Its delta(epsilon), in floating point, is delta again; and PRV agrees from above."""
    from scipy.stats import norm

    found = dp_accounting.epsilon(1 / mu, 1.0, 1, 1e-5)
    assert norm.cdf(mu / 2 - found / mu) - np.exp(found) * norm.cdf(-mu / 2 - found / mu) == pytest.approx(1e-5)
    assert dp_accounting.epsilon(2 / mu, 1.0, 4, 1e-5) == pytest.approx(found)  # 4 steps at twice the noise
    assert found - 1e-6 <= dp_accounting.epsilon(1 / mu, 1 - 1e-9, 1, 1e-5) < found + 0.02


def test_gaussian_epsilon_is_the_published_one():
    assert dp_accounting.gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.377, abs=1e-3)


def test_epsilon_without_noise_is_infinite_and_with_hardly_any_is_still_a_number():
    assert dp_accounting.epsilon(0.0, 0.1, 10, 1e-5) == math.inf
    assert 60 < dp_accounting.epsilon(0.2, 0.1, 200, 1e-5) < math.inf


def test_a_target_epsilon_is_met_and_not_wasted():
    settings = bound(target_epsilon=3.0, delta=1e-4, batch_size=10, epochs=3)
    assert 2.97 < privacy(settings, members=100)["epsilon"] <= 3.0


def test_more_noise_fewer_steps_and_a_smaller_rate_spend_less():
    spend = lambda *of: dp_accounting.epsilon(*of, 1e-5)  # noqa: E731
    assert spend(2.0, 0.1, 100) < spend(1.0, 0.1, 100)
    assert spend(1.0, 0.1, 50) < spend(1.0, 0.1, 100)
    assert spend(1.0, 0.05, 100) < spend(1.0, 0.1, 100)


def test_the_public_size_and_not_the_members_sets_the_rate():
    settings = bound(public_size=200, batch_size=20)
    assert mechanism_of(settings, 90) == mechanism_of(settings, 110)
    assert mechanism_of(settings, 90).sampling_rate == 0.1
    assert mechanism_of(bound(batch_size=1000), 50).sampling_rate == 1.0


# --- gradient canaries -----------------------------------------------------------------------------------------


def with_canaries(directions, member, mechanism, seed=0, pool_member=None, rates=None):
    canaries = dp_loop.GradientCanaries(member, directions, norm=10 * mechanism.max_grad_norm)
    dp_loop.train(
        mlp(),
        features(),
        half("gc") if pool_member is None else pool_member,
        stream(seed, "canaries"),
        mechanism=mechanism,
        rates=np.full(mechanism.steps, 0.05) if rates is None else rates,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters),
        batch_size=8,
        physical_batch_size=64,
        canaries=canaries,
    )
    return canaries.score


def test_a_dirac_canary_scores_its_clipped_gradient_plus_gaussian_noise():
    """In full batches, the score of a member is steps x C + N(0, steps sigma² C²), of a non-member the noise."""
    steps, sigma, clip, m = 9, 2.0, 0.5, 200
    member = stream(0, "coins").random(m) < 0.5
    coordinates = torch.as_tensor(stream(0, "coordinates").permutation(227)[:m])
    scores = np.stack(
        [
            with_canaries(dp_loop.Dirac(coordinates), member, Mechanism(1.0, steps, sigma, clip), seed)
            for seed in range(10)
        ]
    )
    standard = (scores - np.where(member, steps * clip, 0.0)) / (sigma * clip * math.sqrt(steps))
    n = standard.size
    assert abs(standard.mean()) < 4 / math.sqrt(n) and abs(standard.std() - 1) < 4 / math.sqrt(2 * n)


def test_canaries_are_drawn_as_records_are():
    """Without noise a score counts the batches a canary was in: binomial(steps, rate) of a member, 0 of others."""
    member = stream(0, "coins").random(200) < 0.5
    directions = dp_loop.Dirac(torch.arange(200))
    scores = with_canaries(directions, member, Mechanism(0.25, 400, 0.0, 0.5), rates=np.zeros(400)) / 0.5
    counts = np.rint(scores)
    np.testing.assert_allclose(scores, counts, atol=1e-2)
    assert not counts[~member].any()
    n = member.sum()
    assert abs(counts[member].mean() - 100) < 4 * math.sqrt(75 / n)
    assert abs(counts[member].var() / 75 - 1) < 4 * math.sqrt(2 / n)


def test_random_directions_score_like_dirac_ones_when_they_are_the_same():
    member = stream(0, "coins").random(50) < 0.5
    mechanism = Mechanism(0.5, 6, 1.0, 0.5)
    coordinate = torch.arange(50) * 4
    unit = nn.functional.one_hot(coordinate, 227).float()
    dirac = with_canaries(dp_loop.Dirac(coordinate), member, mechanism)
    np.testing.assert_allclose(with_canaries(dp_loop.Dense(unit), member, mechanism), dirac, rtol=1e-4, atol=1e-4)


# --- mistakes ----------------------------------------------------------------------------------------------------


def test_batch_normalisation_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(UserError, match=r"batch normalisation \(1: BatchNorm2d\).*group normalisation"):
        train([model], images(), [half()], [stream(0, "t")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_multiplier": None}, "neither is set"),
        ({"noise_multiplier": 1.0, "target_epsilon": 8.0}, "both are set"),
        ({"augmentations": 2}, "mirrors and shifts images"),
    ],
)
def test_settings_that_contradict_are_a_clear_message(settings, message):
    with pytest.raises(UserError, match=message):
        train([mlp()], features(), [half()], [stream(0, "t")], **settings)


def test_a_training_that_diverges_says_so():
    with pytest.raises(UserError, match=r"diverged: learning_rate 1e\+38 is too high"):
        train([mlp()], features(), [half()], [stream(0, "t")], learning_rate=1e38, noise_multiplier=100.0, epochs=20)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="as many streams as models"):
        train([mlp()], features(), [half(), half(1)], [stream(0, "t")])


def test_opacus_puts_no_handler_on_the_root_logger():
    code = (
        "import logging; from trainers.dp_accounting import epsilon; logging.getLogger().addHandler(h := "
        "logging.NullHandler()); epsilon(1.0, 0.1, 10, 1e-5); assert logging.getLogger().handlers == [h]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert logging.getLogger("opacus").handlers == []


def test_the_trainer_is_found_without_torch():
    code = "import sys, trainers.dp_sgd; assert not {'torch', 'opacus', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert TRAINERS.find("dp_sgd") and TRAINERS.fact("dp_sgd", "facts") is privacy
