"""The loss without logits is the loss with them, where a model's head is a product, and is not used where it is not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.rng import stream
from tests.language import texts, tiny_gpt2
from trainers import token_loss
from trainers.text import losses
from trainers.token_loss import TokenLoss, head_of, token_losses

torch.set_num_threads(1)
N, WIDTH, VOCABULARY = 700, 8, 30


def normal(*shape):
    return torch.as_tensor(stream(0, "normal", *shape).standard_normal(shape), dtype=torch.float32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_losses_and_gradients_are_those_of_cross_entropy_on_all_logits(bias, frozen):
    layer = nn.Linear(WIDTH, VOCABULARY, bias=bias).requires_grad_(not frozen)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(3 * normal(*p.shape))
    hidden = normal(N, WIDTH).requires_grad_()
    tokens = torch.as_tensor(stream(0, "tokens").integers(0, VOCABULARY, N))
    weights = torch.as_tensor(stream(0, "weights").random(N), dtype=torch.float32)
    parts = [N - 300, 0, 300]  # longer than what is computed at once, and nothing
    total, each = token_losses(hidden, layer, tokens, weights, parts, torch.float32)
    expected = F.cross_entropy(layer(hidden), tokens, reduction="none")
    torch.testing.assert_close(each, expected.detach(), rtol=1e-5, atol=1e-6)
    wanted = [hidden, *layer.parameters()][: 1 if frozen else 3]
    ours = torch.autograd.grad(2 * total, wanted)
    theirs = torch.autograd.grad(2 * (expected * weights).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not each.requires_grad


def test_what_a_part_gives_does_not_depend_on_the_others():
    layer, hidden = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False), normal(N, WIDTH)
    tokens, weights = torch.zeros(N, dtype=torch.int64), torch.ones(N)
    both = token_losses(hidden, layer, tokens, weights, [123, N - 123], torch.float32)[1]
    alone = token_losses(hidden[123:], layer, tokens[123:], weights[123:], [N - 123], torch.float32)[1]
    assert torch.equal(both[123:], alone)


def test_a_token_that_the_model_rules_out_costs_what_it_should():
    """p underflows in float32 long before this; its logarithm does not."""
    layer = nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [-500.0], [0], [0]]))
    each = token_losses(torch.ones(1, 1), layer, torch.tensor([1]), torch.ones(1), [1], torch.float32)[1]
    assert each.item() == pytest.approx(500 + torch.tensor(3.0).log().item(), rel=1e-6)


@pytest.mark.parametrize("mode", [True, False], ids=["dropping-out", "evaluating"])
def test_the_head_of_a_model_is_found_and_gives_the_same_loss(mode):
    model, records = tiny_gpt2().train(mode), texts()
    assert head_of(model) is not None
    ids, lengths = torch.as_tensor(records.x).long(), torch.as_tensor(records.lengths)
    weights = torch.linspace(0, 1, len(ids))
    model.eval()
    apart = TokenLoss.of(model, "float32", torch.device("cpu"))
    whole = TokenLoss(model, None, apart.autocast, torch.float32)
    assert apart.head is not None
    for rows in ([len(ids)], [5, 0, len(ids) - 5]):
        found, expected = apart(ids, lengths, weights, rows), whole(ids, lengths, weights, rows)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        grads = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in (found, expected)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    by_hand = (losses(model(input_ids=ids).logits, ids, lengths).sum(1) * weights).sum()
    torch.testing.assert_close(by_hand, expected)


def test_logits_that_are_more_than_a_product_are_left_to_the_model():
    capped = tiny_gpt2()
    capped.forward = lambda input_ids: _with(type(capped).forward(capped, input_ids), lambda z: 30 * (z / 30).tanh())
    scaled = tiny_gpt2()
    scaled.forward = lambda input_ids: _with(type(scaled).forward(scaled, input_ids), lambda z: z * 0.5)
    assert head_of(capped) is None and head_of(scaled) is None and head_of(nn.Linear(2, 2)) is None


def _with(output, change):
    output.logits = change(output.logits)
    return output


def test_never_more_logits_at_once_than_it_says(monkeypatch):
    seen = []
    plain = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda z, dim: seen.append(len(z)) or plain(z, dim))
    layer = nn.Linear(WIDTH, VOCABULARY)
    token_losses(normal(N, WIDTH), layer, torch.zeros(N, dtype=torch.int64), torch.ones(N), [N], torch.float32)
    assert sum(seen) == N and max(seen) == token_loss.AT_ONCE
