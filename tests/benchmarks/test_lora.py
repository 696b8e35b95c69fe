"""The benchmark of adapters compares equals. Nothing here is timed."""

import numpy as np
import pytest
import torch

from benchmarks import lora

torch.set_num_threads(1)
FEW = lora.Case("few", 2, {"width": 32, "layers": 1}, 300, texts=32)


@pytest.mark.slow
def test_the_peer_trains_what_we_train():
    assert 0 < lora.check(FEW) < 1e-3  # raises where they differ; not 0, or one would have been compared with itself


@pytest.mark.slow
def test_padding_to_512_with_padding_in_the_loss_is_another_training(recwarn):
    members = lora.halves(FEW)[:1]
    (longest,), (padded,) = (lora.hugging_face(FEW, members, padding)() for padding in (lora.LONGEST, lora.PADDED))
    difference = lora._weights(longest) - lora._weights(padded)
    assert np.abs(difference).max() > 1e-4


def test_every_adapter_trains_on_half_of_the_texts_in_about_as_many_steps():
    members = lora.halves(lora.TINY)
    assert members.shape == (8, 512) and (members.sum(axis=1) == 256).all()
    steps = lora.steps(lora.TINY, members)
    assert steps["peer"] == 32 and 32 <= steps["ours"] < 40
