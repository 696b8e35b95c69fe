"""Predicted labels, and copies of records to ask about."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from core.rng import stream
from core.types import Records
from trainers.label_only import HardLabels, count_moved, disturbed, kept_labels, moved, plain, rotated
from trainers.resident import Resident


def images(n=6, size=9):
    x = stream(1, "images").integers(0, 256, (n, 1, size, size)).astype(np.uint8)
    return Resident.of(Records(x, np.arange(n) % 3), (127.0,), (64.0,), "cpu")


def features(n=50, d=4):
    x = stream(2, "features").standard_normal((n, d)).astype(np.float32)
    x[:, 0] = x[:, 0] > 0
    return Resident.of(Records(x, np.arange(n) % 3), (0.0,), (1.0,), "cpu")


class Spy(nn.Module):
    """A linear model that remembers what it was asked, and whether it was in training mode."""

    def __init__(self, width, classes=3):
        super().__init__()
        self.linear, self.seen = nn.Linear(width, classes), []
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor(stream(3, "spy").standard_normal((classes, width))))

    def forward(self, x):
        self.seen.append((len(x), self.training))
        return self.linear(x.flatten(1))


def test_who_holds_hard_labels_cannot_reach_a_logit():
    model = Spy(4)
    ask = HardLabels(model, features())
    reachable = [value for value in vars(ask).values() if isinstance(value, (nn.Module, torch.Tensor))]
    assert reachable == []
    answer = ask(torch.zeros(5, 4))
    assert answer.dtype == torch.int64 and answer.shape == (5,) and not answer.is_floating_point()


def test_every_label_is_counted_and_asked_for_in_evaluation_mode_a_batch_at_a_time():
    model, data = Spy(4), features()
    ask = HardLabels(model.train(), data, batch_size=20)
    kept_labels(ask, data, plain(data, 1), queries=1)
    assert ask.asked == 50 == sum(count for count, _ in model.seen)
    assert max(count for count, _ in model.seen) <= 20 and not any(training for _, training in model.seen)
    ask(torch.zeros(45, 4))
    assert ask.asked == 95 and len(ask(torch.zeros(0, 4))) == 0


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_labels_kept_are_those_that_logits_give(batch_size):
    data = images()
    model = Spy(81)
    with torch.no_grad():
        expected = (model(data.normalised(data.x)).argmax(1) == data.y).float().numpy()
    found = kept_labels(HardLabels(model, data, batch_size), data, plain(data, 1), queries=1)
    assert np.array_equal(found, expected[None])
    copies = kept_labels(HardLabels(model, data, batch_size), data, moved(data, 1, 5.0), queries=7)
    assert copies.shape == (7, 6) and np.array_equal(copies[0], expected)


@pytest.mark.parametrize(("translate", "rotate"), [(1, 0.0), (2, 4.0), (0, 10.0), (3, 1.0)])
def test_images_are_moved_by_all_shifts_of_one_length_and_turned_both_ways(translate, rotate):
    """N = 4 d + 1 translations with |i| + |j| = d, N = 3 rotations (Choquette-Choo et al. 2021)."""
    x = np.zeros((1, 1, 15, 15), np.uint8)
    x[0, 0, 7, 7] = 255
    data = Resident.of(Records(x, np.zeros(1, int)), (0.0,), (1.0,), "cpu")
    copies = moved(data, translate, rotate)(slice(0, 1))
    assert len(copies) == count_moved(translate, rotate)
    assert torch.equal(copies[0], data.x.float())
    places = {tuple(np.argwhere(copy[0, 0].numpy())[0] - 7) for copy in copies[1 : 1 + 4 * translate]}
    assert len(places) == 4 * translate and all(abs(i) + abs(j) == translate for i, j in places)


def test_a_quarter_turn_is_a_quarter_turn_and_small_turns_undo_each_other():
    x = torch.tensor(stream(4, "turn").random((2, 3, 8, 8)), dtype=torch.float32)
    torch.testing.assert_close(rotated(x, 90.0), torch.rot90(x, 1, (2, 3)), atol=1e-4, rtol=1e-4)
    smooth = torch.sin(torch.linspace(0, 3, 32))[None, None, :, None] * torch.cos(torch.linspace(0, 3, 20))
    back = rotated(rotated(smooth, 7.0), -7.0)
    torch.testing.assert_close(back[..., 6:-6, 6:-6], smooth[..., 6:-6, 6:-6], atol=2e-2, rtol=0)


def test_wide_images_are_turned_in_pixels_not_in_halves_of_their_sides():
    x = torch.zeros(1, 1, 21, 41)
    x[0, 0, 10, 20 + 8] = 1.0  # eight pixels right of the middle
    turned = rotated(x, 90.0)[0, 0]
    assert turned[10 - 8, 20] > 0.9  # eight pixels above it


def test_noise_has_the_levels_asked_for_and_is_each_records_own():
    data = features(400)
    scale, binary = np.array([9.0, 1.0, 2.0, 0.0]), np.array([True, False, False, False])
    draws = lambda place: stream(5, "record", place)  # noqa: E731
    copies = disturbed(data, scale, binary, (0.2, 1.0), 20, draws)(slice(0, 400))
    assert copies.shape == (41, 400, 4) and torch.equal(copies[0], data.x)
    moved_by = (copies[1:] - data.x).double()
    for part, level in ((slice(0, 20), 0.2), (slice(20, 40), 1.0)):
        assert moved_by[part, :, 1].std().item() == pytest.approx(level, rel=0.05)
        assert moved_by[part, :, 2].std().item() == pytest.approx(2 * level, rel=0.05)
        assert not moved_by[part, :, 3].any()
        flipped = moved_by[part, :, 0].abs().mean().item()
        assert flipped == pytest.approx(level / 2, abs=4 * math.sqrt(0.25 / 8000))
    alone = disturbed(data, scale, binary, (0.2, 1.0), 20, draws)(slice(7, 9))
    assert torch.equal(alone, copies[:, 7:9])
