"""Adapters of models other than GPT-2: the same alone and in a stack, and what PEFT and a plain loop make of them."""

import numpy as np
import pytest
import torch

from core.registry import TRAINERS
from core.rng import stream
from models.adapters import adapted
from tests.trainers.test_transformer import LENGTH, VOCABULARY, texts, weights
from trainers import multi_lora, token_loss
from trainers.token_loss import head_of
from trainers.transformer import transformer

torch.set_num_threads(1)
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PLAIN = {**SIZES, "intermediate_size": 32, "max_position_embeddings": LENGTH, "use_cache": False}
END = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SHAPES = {
    "llama": ("Llama", {**PLAIN, "num_key_value_heads": 1}, True),
    "qwen2": ("Qwen2", {**PLAIN, "num_key_value_heads": 1}, True),  # biases on some of its layers
    "gpt_neox": ("GPTNeoX", {**PLAIN}, True),
    "bloom": ("Bloom", {**SIZES, "use_cache": False}, True),  # no limit to its context
    "gemma2": ("Gemma2", {**PLAIN, "num_key_value_heads": 1, "head_dim": 8}, False),  # caps its logits
    "granite": ("Granite", {**PLAIN, "logits_scaling": 2.0}, False),
}


def base_of(kind):
    import transformers

    name, shape, _ = SHAPES[kind]
    config = getattr(transformers, f"{name}Config")(**shape, **END, initializer_range=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def adapter(base, number, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(number)
        return adapted(base, {"type": "lora", "r": 3, "alpha": 6, "target_modules": "all-linear", **settings})


def trained(base, numbers, **settings):
    bound = TRAINERS.bind(
        "transformer", {"epochs": 1, "learning_rate": 0.02, "batch_size": 4, "peft": {"type": "lora"}}
    )
    data = texts()
    members = np.stack([stream(0, "member", k).random(len(data)) < 0.5 for k in numbers])
    members[:, :12] &= np.arange(len(numbers))[:, None] != 0  # the first has no texts where the others have some
    fresh = [adapter(base, k, **settings) for k in numbers]
    return transformer(fresh, data, members, [stream(0, "train", k) for k in numbers], **bound)


@pytest.mark.parametrize("kind", SHAPES)
def test_adapters_of_other_models_are_the_same_alone_and_in_a_stack_and_as_peft_makes_them(kind, monkeypatch):
    base = base_of(kind)
    assert multi_lora.stackable([adapter(base, 0), adapter(base, 1)])
    assert (head_of(base) is not None) == SHAPES[kind][2]
    stack = trained(base, [0, 1, 2])
    assert torch.equal(weights(trained(base, [0])[0]), weights(stack[0]))
    monkeypatch.setattr(multi_lora, "stackable", lambda models: False)
    monkeypatch.setattr(token_loss, "head_of", lambda network: None)
    for number, (ours, theirs) in enumerate(zip(stack, trained(base, [0, 1, 2]), strict=True)):
        assert (weights(ours) - weights(adapter(base, number))).abs().max() > 1e-2
        torch.testing.assert_close(weights(ours), weights(theirs), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_products_at_once_as_on_a_gpu_train_the_same_adapters(dropout, monkeypatch):
    base = base_of("llama")
    one_by_one = trained(base, [0, 1, 2], dropout=dropout)
    called, batched = [], torch.Tensor.baddbmm_
    monkeypatch.setattr(torch.Tensor, "baddbmm_", lambda *a, **o: called.append(1) or batched(*a, **o))
    monkeypatch.setattr(multi_lora, "AT_ONCE", ("cpu",))
    at_once = trained(base, [0, 1, 2], dropout=dropout)
    for one, other in zip(one_by_one, at_once, strict=True):
        torch.testing.assert_close(weights(one), weights(other), atol=1e-3, rtol=0)
    assert called


def test_layers_that_do_not_see_rows_of_records_are_not_stacked():
    import transformers

    experts = transformers.OPTForCausalLM(  # its feed-forward layers see all tokens in one dimension
        transformers.OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0, max_position_embeddings=LENGTH)
    )
    assert not multi_lora.stackable([adapter(experts, 0)])
    assert multi_lora.stackable([adapter(experts, 0, target_modules=["q_proj", "v_proj"])])
