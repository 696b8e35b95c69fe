"""Mirrored and shifted images against slicing, flipping and torch's own reflect padding."""

import pytest
import torch

from trainers.augment import QUERIES, mirror_and_shift, views

MOVES = [(0, 0), (1, 0), (0, -1), (2, 3), (-4, 4), (-7, 7)]


def images(count=5, channels=3, height=8, width=9, dtype=torch.uint8):
    draws = torch.randint(0, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(0))
    return draws.to(dtype)


def every(x, value):
    return torch.full((len(x),), value)


def by_padding(x, mirrored, dy, dx):
    """Mirror, pad by reflection, and cut out the moved window."""
    pad = max(abs(dy), abs(dx))
    padded = torch.nn.functional.pad(x.flip(3).float() if mirrored else x.float(), (pad,) * 4, mode="reflect")
    height, width = x.shape[2:]
    return padded[:, :, pad - dy : pad - dy + height, pad - dx : pad - dx + width].to(x.dtype)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("dy", "dx"), MOVES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_move_is_reflect_padding_and_a_window(dy, dx, mirrored, dtype):
    x = images(dtype=dtype)
    moved = mirror_and_shift(x, every(x, mirrored), every(x, dy), every(x, dx))
    assert moved.dtype == dtype
    assert torch.equal(moved, by_padding(x, mirrored, dy, dx))


def test_a_move_down_by_one_moves_the_rows_down():
    x = images()
    moved = mirror_and_shift(x, every(x, False), every(x, 1), every(x, 0))
    assert torch.equal(moved[:, :, 1:], x[:, :, :-1])
    assert torch.equal(moved[:, :, 0], x[:, :, 1])


def test_each_image_has_its_own_draws():
    x = images(count=40)
    draw = torch.Generator().manual_seed(1)
    mirrored = torch.rand(40, generator=draw) < 0.5
    dy, dx = torch.randint(-3, 4, (2, 40), generator=draw)
    together = mirror_and_shift(x, mirrored, dy, dx)
    for i in range(40):
        assert torch.equal(
            together[i : i + 1], by_padding(x[i : i + 1], mirrored[i].item(), dy[i].item(), dx[i].item())
        )


def test_mirrored_twice_and_moved_by_nothing_is_the_image():
    x = images()
    mirror = (every(x, True), every(x, 0), every(x, 0))
    assert not torch.equal(mirror_and_shift(x, *mirror), x)
    assert torch.equal(mirror_and_shift(mirror_and_shift(x, *mirror), *mirror), x)
    assert torch.equal(mirror_and_shift(x, every(x, False), every(x, 0), every(x, 0)), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_layout_does_not_matter_and_the_result_is_channels_last(channels):
    x = images(channels=channels)
    draws = (every(x, True), every(x, 2), every(x, -1))
    moved = mirror_and_shift(x.contiguous(memory_format=torch.channels_last), *draws)
    assert torch.equal(moved, mirror_and_shift(x, *draws))
    assert moved.is_contiguous(memory_format=torch.channels_last)


def test_the_18_queries_are_distinct_and_in_the_documented_order():
    x = images()
    queries = views(x, 18)
    expected = [(0, 0, False), (0, 0, True)]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if (dy, dx) != (0, 0):
                expected += [(dy, dx, False), (dy, dx, True)]
    assert list(QUERIES) == expected
    for view, (dy, dx, mirrored) in zip(queries, expected, strict=True):
        assert torch.equal(view, by_padding(x, mirrored, dy, dx))
    assert len({view.numpy().tobytes() for view in queries}) == 18


def test_smaller_sets_of_queries_begin_the_larger_ones():
    x = images()
    for few in (1, 2):
        for one, other in zip(views(x, few), views(x, 18)[:few], strict=True):
            assert torch.equal(one, other)
    assert torch.equal(views(x, 1)[0], x)
    assert torch.equal(views(x, 2)[1], x.flip(3))


def test_features_have_one_query():
    x = torch.zeros(3, 7)
    assert torch.equal(views(x, 1)[0], x)
    with pytest.raises(ValueError, match=r"only images .*\(7,\).*1 query"):
        views(x, 2)
