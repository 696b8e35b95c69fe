"""Ghost clipping is the sum of clipped gradients, to rounding, and refuses what it does not know."""

import numpy as np
import pytest
import torch

import models
from core.errors import UserError
from core.registry import MODELS
from core.rng import stream
from tests.trainers.test_dp_sgd import POOL, features, images, mlp, train, weights
from trainers import dp_ghost, dp_loop

nn = torch.nn


def build(name, shape, **settings):
    return models.build(name, MODELS.bind(name, settings), shape, 5, stream(0, "init"))


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("mlp", {}, (20,)),
        ("mlp", {}, (2, 4, 4)),
        ("cnn", {}, (1, 28, 28)),
        ("alexnet", {}, (1, 8, 8)),  # works in place after each layer
        ("wrn16-4", {"norm": "group"}, (3, 8, 8)),
    ],
)
def test_it_is_the_sum_of_clipped_gradients(name, settings, shape, views):
    model, draw = build(name, shape, **settings).eval(), torch.Generator().manual_seed(0)
    dp_ghost.check(model)
    x, y = torch.randn(4, views, *shape, generator=draw), torch.tensor([0, 3, 1, 4])
    x[1] *= 5  # another length of gradient
    parameters = dict(model.named_parameters())
    whole = torch.cat([p.flatten() for p in dp_loop.clipped_sum(model, parameters, x, y, 1e9)]).norm()
    clip = float(whole) / 4  # some are clipped, some are not
    kept = dp_loop.clipped_sum(model, parameters, x, y, clip)
    ghost = dp_ghost.clipped_sum(model, parameters, x, y, clip)
    assert len(kept) == len(ghost) == len(parameters)
    for a, b in zip(ghost, kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(whole))
    assert torch.cat([p.flatten() for p in ghost]).norm() < 0.999 * whole


def test_a_training_with_it_is_the_training_without():
    member = np.ones((1, POOL), dtype=bool)
    (kept,) = train([mlp()], features(), member, [stream(0, "t")], epochs=3)
    (ghost,) = train([mlp()], features(), member, [stream(0, "t")], epochs=3, clipping="ghost")
    torch.testing.assert_close(weights(ghost), weights(kept), rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.layer = nn.Flatten(), nn.Linear(128, 128)

    def forward(self, x):
        return self.layer(self.layer(self.flat(x)))[:, :3]


def tied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 128), nn.Linear(128, 128))
    model[2].weight = model[1].weight
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(144, 3)), "0 is Conv2d"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(128), nn.Linear(128, 3)), "1 is LayerNorm"),
        (tied, "2 is Linear"),
        (Twice, "used once"),
    ],
)
def test_what_it_does_not_know_is_refused_with_a_way_out(model, message):
    with pytest.raises(UserError, match=rf"{message}.*clipping to per_record"):
        train([model()], images(), np.ones((1, POOL), dtype=bool), [stream(0, "t")], clipping="ghost")
