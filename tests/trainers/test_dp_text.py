"""DP-SGD on language models: each text is clipped by itself, and padding is nothing."""

import numpy as np
import pytest
import torch

import models
from core.registry import MODELS
from core.rng import stream
from core.types import Records
from tests.trainers.test_dp_sgd import train
from trainers import dp_loop
from trainers.resident import Resident

VOCABULARY = 40


def gpt():
    settings = MODELS.bind("gpt2_tiny", {"width": 16, "layers": 1, "context": 16})
    return models.build("gpt2_tiny", settings, (10,), VOCABULARY, stream(0, "init")).eval()


def texts(n=30, padding=0):
    rng = stream(0, "texts")
    x, lengths = rng.integers(0, VOCABULARY, (n, 10)).astype(np.int32), rng.integers(2, 11, n)
    x[np.arange(10) >= lengths[:, None]] = padding
    return Resident.of(Records(x, np.zeros(n, dtype=np.int64), lengths), (0.0,), (1.0,), "cpu")


def test_each_text_is_clipped_by_itself_as_in_a_naive_loop():
    model, data = gpt(), texts(6)
    parameters = dict(model.named_parameters())
    gradients = []
    for ids, n in zip(data.x.long(), data.lengths.tolist(), strict=True):
        model.zero_grad()
        logits = model(input_ids=ids[None, :n]).logits[0]  # without its padding
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:n]).backward()
        gradients.append([p.grad.clone() for p in parameters.values()])
    norms = [torch.cat([g.flatten() for g in of_text]).norm() for of_text in gradients]
    clip = float(np.median(norms))
    found = dp_loop.clipped_text_sum(model, parameters, data.x.long(), data.lengths, clip)
    for k, part in enumerate(found):
        expected = sum(g[k] * min(1.0, clip / norm) for g, norm in zip(gradients, norms, strict=True))
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6)


def test_a_training_does_not_depend_on_what_the_padding_is():
    member = np.ones((1, 30), dtype=bool)
    one, other = (
        train([gpt()], texts(padding=p), member, [stream(0, "t")], noise_multiplier=0.1, learning_rate=0.5)[0]
        for p in (0, 7)
    )
    flat = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (one, other, gpt())]
    torch.testing.assert_close(flat[0], flat[1], rtol=1e-4, atol=1e-6)
    assert (flat[0] - flat[2]).norm() > 0.05


def test_ghost_clipping_of_a_language_model_is_refused():
    with pytest.raises(Exception, match="clipping to per_record"):
        train([gpt()], texts(), np.ones((1, 30), dtype=bool), [stream(0, "t")], clipping="ghost")
