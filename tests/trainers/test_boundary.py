"""Distances to a decision boundary, seen through labels alone."""

import numpy as np
import pytest
import torch
from torch import nn

from core.rng import stream
from core.types import Records
from trainers.boundary import Space, boundary_distances
from trainers.label_only import HardLabels
from trainers.resident import Resident

CLASSES = 3


def linear(d: int) -> nn.Linear:
    model = nn.Linear(d, CLASSES)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(stream(1, "weights").standard_normal((CLASSES, d))))
        model.bias.copy_(torch.tensor(stream(1, "bias").standard_normal(CLASSES)))
    return model


def truth(model: nn.Linear, x: np.ndarray, y: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """min over classes j of (z_y - z_j) / |w_y - w_j|, in units of `scale`."""
    w, b = model.weight.detach().numpy().astype(float) * scale, model.bias.detach().numpy().astype(float)
    z = (x / np.where(scale > 0, scale, 1)) @ w.T + x @ (model.weight.detach().numpy() * (scale == 0)).T + b
    of = [
        np.where(y == j, np.inf, (z[np.arange(len(y)), y] - z[:, j]) / (np.linalg.norm(w[y] - w[j], axis=1) + 1e-300))
        for j in range(CLASSES)
    ]
    return np.min(of, axis=0)


def world(d: int, n: int = 60, seed: int = 2):
    """A linear model, records that it labels rightly, and records to start from."""
    draw, model = stream(seed, "boundary", d), linear(d)
    x, known = (draw.standard_normal((k, d)).astype(np.float32) for k in (n, 50))
    with torch.no_grad():
        y = model(torch.tensor(x)).argmax(1).numpy()
    return model, Resident.of(Records(x, y), (0.0,), (1.0,), "cpu"), torch.tensor(known)


def distances(model, data, known, space=None, queries=600, directions=10, batch_size=1000):
    ask = HardLabels(model, data, batch_size)
    space = space or Space(torch.ones(data.x[0].numel()))
    draw = lambda t: stream(3, "directions", t)  # noqa: E731
    found, used = boundary_distances(ask, data, known, space, queries=queries, directions=directions, draw=draw)
    return found, used, ask


@pytest.mark.parametrize(("d", "excess"), [(2, 0.02), (5, 0.03), (20, 0.08), (60, 0.25)])
def test_of_a_linear_model_the_distance_is_the_margin_over_the_norm(d, excess):
    model, data, known = world(d)
    found, _, _ = distances(model, data, known)
    true = truth(model, data.x.numpy().astype(float), data.y.numpy(), np.ones(d))
    assert (found >= true * (1 - 1e-4)).all()  # a record that far away was seen to be labelled otherwise
    assert np.median(found / true) < 1 + excess


def test_more_labels_find_a_shorter_way():
    model, data, known = world(60)
    few, some, many = (distances(model, data, known, queries=q)[0].mean() for q in (60, 300, 1500))
    assert many < 0.95 * some < 0.8 * few


@pytest.mark.parametrize("queries", [45, 100, 333])
@pytest.mark.parametrize("directions", [2, 10])
def test_no_record_costs_more_labels_than_its_budget_and_all_are_counted(queries, directions):
    model, data, known = world(30)
    calls: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    _, used, ask = distances(model, data, known, queries=queries, directions=directions, batch_size=64)
    assert used.max() <= queries and used.min() >= 1
    assert sum(calls) == ask.asked == used.sum() + len(known)  # the known records once each, beside the budgets
    assert max(calls) <= 64


def test_a_record_that_is_labelled_wrongly_has_distance_0_and_costs_one_label():
    model, data, known = world(5)
    wrong = data.y.clone()
    wrong[::3] = (wrong[::3] + 1) % CLASSES
    other = Resident(data.x, wrong, data.mean, data.std)
    found, used, _ = distances(model, other, known)
    assert (found[::3] == 0).all() and (used[::3] == 1).all()
    kept = np.arange(len(found)) % 3 != 0
    assert np.array_equal(found[kept], distances(model, data, known)[0][kept]) and (found[kept] > 0).all()


@pytest.mark.parametrize("batch_size", [1, 17, 5000])
def test_a_distance_depends_on_the_record_and_the_model_alone(batch_size):
    """Not on the batch, nor on the records it is asked together with; a second run gives the same bits."""
    model, data, known = world(8, n=20)
    all_at_once, _, _ = distances(model, data, known, queries=120)
    again, _, _ = distances(model, data, known, queries=120)
    assert np.array_equal(all_at_once, again)
    alone = Resident(data.x[4:9], data.y[4:9], data.mean, data.std)
    found, _, _ = distances(model, alone, known, queries=120, batch_size=batch_size)
    np.testing.assert_allclose(found, all_at_once[4:9], rtol=1e-3)


def test_distances_are_in_units_of_the_scale_and_what_never_varies_is_left_alone():
    model, data, known = world(6)
    scale = np.array([1.0, 2.0, 0.5, 0.0, 3.0, 0.0])
    known[:, scale == 0] = data.x[0, scale == 0]
    asked: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].detach().clone()))
    same = Resident(data.x.clone(), data.y, data.mean, data.std)
    same.x[:, scale == 0] = data.x[0, scale == 0]
    with torch.no_grad():
        y = model(same.x).argmax(1)
    same = Resident(same.x, y, data.mean, data.std)
    asked.clear()
    found, _, _ = distances(model, same, known, Space(torch.tensor(scale)), queries=1500)
    true = truth(model, same.x.numpy().astype(float), y.numpy(), scale)
    assert (found >= true * (1 - 1e-4)).all() and np.median(found / true) < 1.05
    seen = torch.cat(asked)
    assert torch.equal(seen[:, scale == 0], data.x[:1, scale == 0].expand(len(seen), -1))


def test_images_stay_within_their_pixels_and_are_asked_about_in_their_shape():
    model = nn.Sequential(nn.Flatten(), linear(36))
    x = stream(4, "images").integers(0, 256, (30, 1, 6, 6)).astype(np.uint8)
    x[:, :, :3] = np.where(x[:, :, :3] < 128, 0, 255)  # many at the ends of their range
    data = Resident.of(Records(x, np.zeros(30, int)), (127.0,), (64.0,), "cpu")
    with torch.no_grad():
        y = model(data.normalised(data.x)).argmax(1)
    asked: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].detach().clone()))
    data = Resident(data.x, y, data.mean, data.std)
    found, _, _ = distances(model, data, data.x, Space(torch.full((36,), 255.0), (0.0, 255.0)), queries=400)
    pixels = torch.cat(asked) * 64 + 127
    assert pixels.shape[1:] == (1, 6, 6) and pixels.min() > -0.01 and pixels.max() < 255.01
    # Without the walls the boundary is at the margin over the norm; within them never nearer.
    weight = model[1].weight.detach().numpy().astype(float)
    z = ((x.reshape(30, -1) - 127.0) / 64) @ weight.T + model[1].bias.detach().numpy()
    labels = y.numpy()
    margins = [
        np.where(
            labels == j,
            np.inf,
            (z[np.arange(30), labels] - z[:, j])
            / (np.linalg.norm(weight[labels] - weight[j], axis=1) * 255 / 64 + 1e-300),
        )
        for j in range(CLASSES)
    ]
    true = np.min(margins, axis=0)
    assert (found >= true * (1 - 1e-3)).all() and np.median(found / true) < 1.4


def test_where_no_known_record_is_labelled_otherwise_the_farthest_says_how_far_was_looked():
    model, data, _ = world(5)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1e6, 0.0, 0.0]))
    data = Resident(data.x, torch.zeros_like(data.y), data.mean, data.std)
    known = data.x[:7]
    found, used, _ = distances(model, data, known)
    np.testing.assert_allclose(found, torch.cdist(data.x, known).max(1).values.numpy(), rtol=1e-5)
    assert (used == 1).all()


def test_steps_as_a_forest_has_them_are_walked_as_well():
    """No gradient anywhere: the label is whether the first value is above 0.3, and a second one counts for nothing."""

    class Step(nn.Module):
        def forward(self, x):
            above = (x[:, 0] > 0.3).float()
            return torch.stack([1 - above, above], dim=1)

    x = stream(5, "steps").standard_normal((40, 3)).astype(np.float32)
    data = Resident.of(Records(x, (x[:, 0] > 0.3).astype(int)), (0.0,), (1.0,), "cpu")
    known = torch.tensor(stream(6, "steps").standard_normal((30, 3)).astype(np.float32))
    found, _, _ = distances(Step(), data, known, queries=400)
    true = np.abs(x[:, 0] - 0.3)
    assert (found >= true - 1e-5).all() and np.median(found / true) < 1.05
