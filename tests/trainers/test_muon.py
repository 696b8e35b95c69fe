"""Newton-Schulz against the singular value decomposition, Muon against its definition."""

import pytest
import torch

from trainers.muon import COEFFICIENTS, Muon, newton_schulz

torch.set_num_threads(1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 6), (4, 11), (11, 4), (1, 5), (5, 1)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_newton_schulz_keeps_the_singular_vectors_and_sends_the_values_through_its_quintic(shape, steps):
    matrix = 7 * random(*shape)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    a, b, c = COEFFICIENTS
    s = s / matrix.norm()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(newton_schulz(matrix, steps), u @ s.diag() @ v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (72, 8)])
def test_five_steps_make_a_matrix_of_any_size_nearly_orthogonal(shape):
    for scale in (1e-3, 1.0, 1e3):
        singular = torch.linalg.svdvals(newton_schulz(scale * random(*shape), steps=5))
        large = singular[: min(shape) - min(shape) // 8]  # the smallest ones need more steps
        assert large.min() > 0.5
        assert large.max() < 1.3


def test_no_gradient_is_no_turn():
    assert not newton_schulz(torch.zeros(3, 5)).any()


def test_muon_turns_filters_of_fixed_length_along_the_nesterov_gradient():
    weight = torch.nn.Parameter(random(4, 3, 2, 2).float())
    expected, velocity = weight.detach().double(), torch.zeros(4, 3, 2, 2, dtype=torch.float64)
    optimizer = Muon([weight], lr=0.1, momentum=0.6)
    for step in range(3):
        gradient = random(4, 3, 2, 2, seed=1 + step)
        weight.grad = gradient.float()
        optimizer.step()
        velocity = 0.6 * velocity + gradient
        turn = newton_schulz((gradient + 0.6 * velocity).reshape(4, -1)).view(4, 3, 2, 2)
        expected = expected * 2 / expected.norm() - 0.1 * turn
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_the_length_of_the_gradient_does_not_matter():
    def stepped(scale):
        weight = torch.nn.Parameter(random(4, 6).float())
        weight.grad = scale * random(4, 6, seed=1).float()
        Muon([weight], lr=0.1, momentum=0.6).step()
        return weight.detach()

    torch.testing.assert_close(stepped(1e-3), stepped(1e3), rtol=1e-3, atol=1e-4)


def test_a_weight_without_gradient_stays():
    weight = torch.nn.Parameter(random(4, 6).float())
    Muon([weight], lr=0.1, momentum=0.6).step()
    assert torch.equal(weight.detach(), random(4, 6).float())
