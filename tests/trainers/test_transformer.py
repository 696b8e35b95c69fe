"""Fine-tuning: the same model alone and in a stack, only adapters, the recipe by hand, memory that runs out."""

import logging

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import models
from core.errors import UserError
from core.registry import MODELS, TRAINERS
from core.rng import stream
from core.types import Records
from trainers import multi_lora
from trainers.resident import Resident
from trainers.text import LOGITS_AT_ONCE, accuracy_and_loss, batches_by_length, losses, predicted
from trainers.text_batches import Buckets
from trainers.transformer import transformer
from trainers.transformer_loop import Recipe

VOCABULARY, LENGTH, COUNT = 50, 24, 60
LORA = {"type": "lora", "r": 4, "alpha": 8, "target_modules": ["c_attn", "c_fc"]}
torch.set_num_threads(1)


def texts(count: int = COUNT, pad: int = 0) -> Resident:
    draw = stream(0, "texts", count)
    lengths = draw.integers(2, LENGTH + 1, count)
    x = draw.integers(0, VOCABULARY, (count, LENGTH)).astype(np.int32)
    x[np.arange(LENGTH) >= lengths[:, None]] = pad
    return Resident.of(Records(x, np.zeros(count, np.int64), lengths), (0.0,), (1.0,), "cpu")


def build(peft=None, number=0, **settings) -> torch.nn.Module:
    bound = MODELS.bind("gpt2_tiny", {"width": 32, "layers": 1, "context": LENGTH, **settings})
    return models.build("gpt2_tiny", bound, (LENGTH,), VOCABULARY, stream(0, "init", number), peft)


def trained(numbers, peft=None, data=None, model=None, **settings) -> list[torch.nn.Module]:
    """The models of these numbers, trained in one call."""
    bound = TRAINERS.bind(
        "transformer", {"epochs": 2, "learning_rate": 0.01, "batch_size": 4, "peft": peft, **settings}
    )
    data = data or texts()
    members = np.stack([stream(0, "member", k // 2).random(len(data)) < 0.5 for k in numbers])
    members[[k % 2 == 1 for k in numbers]] ^= True
    fresh = [build(bound["peft"], k, **(model or {})) for k in numbers]
    return transformer(fresh, data, members, [stream(0, "train", k) for k in numbers], **bound)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    ("peft", "settings", "model"),
    [
        (None, {}, {}),
        (None, {"gradient_accumulation_steps": 3}, {"dropout": 0.1}),
        (LORA, {}, {}),
        (LORA, {"gradient_accumulation_steps": 3, "weight_decay": 0.1, "warmup_epochs": 1}, {}),
        ({**LORA, "dropout": 0.2, "r": 3}, {"clip_norm": 0.1}, {}),
        (LORA, {}, {"dropout": 0.1}),
        ({"type": "ia3", "target_modules": ["c_attn", "c_fc"], "feedforward_modules": ["c_fc"]}, {}, {}),
    ],
    ids=["full", "full-accumulated-dropout", "lora", "lora-accumulated", "lora-dropout", "lora-swapped", "ia3"],
)
def test_a_model_is_bit_for_bit_the_same_alone_and_in_any_stack(peft, settings, model):
    stack = trained([0, 1, 2, 5, 7], peft, model=model, **settings)
    for place, number in [(0, 0), (2, 2), (4, 7)]:
        (alone,) = trained([number], peft, model=model, **settings)
        assert torch.equal(weights(alone), weights(stack[place])), number
    (pair_last, _) = trained([7, 0], peft, model=model, **settings)
    assert torch.equal(weights(pair_last), weights(stack[4]))


def test_plain_lora_is_stacked_and_what_would_share_its_masks_is_not():
    assert multi_lora.stackable([build(LORA, 0), build(LORA, 1)])
    assert multi_lora.stackable([build({**LORA, "dropout": 0.1}), build({**LORA, "dropout": 0.1})])
    assert not multi_lora.stackable([build(LORA, dropout=0.1)])
    assert not multi_lora.stackable([build({"type": "lora", "use_dora": True, "target_modules": ["c_attn"]})])
    assert not multi_lora.stackable([build({"type": "ia3", "target_modules": ["c_attn"], "feedforward_modules": []})])
    assert not multi_lora.stackable([build(LORA), build(LORA, base_seed=1)])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_stack_of_adapters_is_peft_trained_alone_up_to_rounding(monkeypatch, accumulation):
    settings = {"gradient_accumulation_steps": accumulation, "weight_decay": 0.1, "clip_norm": 0.2}
    ours = trained([0, 1], LORA, **settings)
    monkeypatch.setattr(multi_lora, "stackable", lambda models: False)
    theirs = trained([0, 1], LORA, **settings)
    for one, other in zip(ours, theirs, strict=True):
        assert (weights(one) - weights(build(LORA))).abs().max() > 1e-2
        torch.testing.assert_close(weights(one), weights(other), atol=2e-4, rtol=0)


def test_only_adapters_train_and_the_base_is_one_for_all():
    before = {name: p.clone() for name, p in build(LORA).get_base_model().named_parameters() if "lora" not in name}
    one, other = trained([0, 1], LORA)
    for name, p in one.named_parameters():
        assert p.requires_grad == ("lora_" in name)
    after = dict(one.get_base_model().named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    frozen = [{p.data_ptr() for p in model.parameters() if not p.requires_grad} for model in (one, other)]
    adapters = [{p.data_ptr() for p in model.parameters() if p.requires_grad} for model in (one, other)]
    assert frozen[0] == frozen[1] and not adapters[0] & adapters[1]
    assert not torch.equal(weights(one), weights(other))


def test_padding_is_told_by_position_and_its_id_changes_nothing():
    """Whatever the padding's id, training and evaluation are the same, bit for bit."""
    for peft in (None, LORA):
        one, other = (trained([0], peft, data=texts(pad=pad))[0] for pad in (0, 7))
        assert torch.equal(weights(one), weights(other))
    assert accuracy_and_loss(one, texts(pad=0)) == accuracy_and_loss(one, texts(pad=7))


def test_a_token_equal_to_the_padding_is_predicted_like_any_other():
    ids, lengths = torch.zeros(1, 6, dtype=torch.int64), torch.tensor([4])
    assert predicted(ids, lengths).tolist() == [[True, True, True, False, False]]
    found = losses(torch.zeros(1, 6, 10), ids, lengths)
    torch.testing.assert_close(found, torch.tensor([[1.0, 1, 1, 0, 0]]) * np.log(10))


@torch.no_grad()
def test_accuracy_and_loss_are_those_of_a_loop_over_tokens():
    data, model = texts(), build().eval()
    right, loss, count = 0, 0.0, 0
    for row, length in zip(data.x, data.lengths.tolist(), strict=True):
        for t in range(1, length):
            z = model(input_ids=row[None, :t].long()).logits[0, -1]
            right += int(z.argmax() == row[t])
            loss += F.cross_entropy(z, row[t].long()).item()
            count += 1
    accuracy, mean = accuracy_and_loss(model, data, batch_size=7)
    assert accuracy == right / count and mean == pytest.approx(loss / count, rel=1e-5)


def test_one_step_of_the_recipe_is_adamw_on_the_mean_over_tokens():
    """Accumulated over batches of different lengths, the gradient is that of one mean over all their tokens."""
    data = texts(12)
    (ours,) = trained([0], data=data, epochs=1, gradient_accumulation_steps=100, clip_norm=None, weight_decay=0.5)
    model = build()
    member = np.flatnonzero(stream(0, "member", 0).random(12) < 0.5)
    each = losses(model(input_ids=data.x[member].long()).logits, data.x[member].long(), data.lengths[member])
    (each.sum() / (data.lengths[member] - 1).sum()).backward()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.5}, {"params": rest, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=0.01).step()
    torch.testing.assert_close(weights(ours), weights(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_an_epoch_visits_every_member_once_in_batches_of_similar_length(batch_size):
    lengths = stream(0, "lengths").integers(2, 60, 500)
    member = stream(0, "member").random(500) < 0.5
    buckets = Buckets.of(lengths, batch_size)
    epochs = [buckets.batches(member, rng := stream(0, "train"), batch_size), None]
    epochs[1] = buckets.batches(member, rng, batch_size)
    for batches in epochs:
        assert sorted(np.concatenate(list(batches.values()))) == np.flatnonzero(member).tolist()
        assert all(1 <= len(batch) <= batch_size for batch in batches.values())
        assert len(batches) == buckets.steps(member, batch_size)
        assert all(lengths[batch].max() <= buckets.width[bucket] for (bucket, _), batch in batches.items())
        slots = set(map(tuple, buckets.order(3).tolist()))
        assert batches.keys() <= slots
    assert not all(np.array_equal(epochs[0][slot], epochs[1][slot]) for slot in epochs[0])
    if batch_size == 4:
        computed = sum(len(batch) * int(buckets.width[slot[0]]) for slot, batch in epochs[0].items())
        assert computed < 1.1 * lengths[member].sum()


def test_whether_a_record_is_a_member_does_not_move_the_others():
    lengths = stream(0, "lengths").integers(2, 60, 100)
    member = stream(0, "member").random(100) < 0.5
    less = member.copy()
    less[np.flatnonzero(member)[3]] = False
    buckets = Buckets.of(lengths, 100)
    one, other = (buckets.batches(m, stream(0, "train"), 100)[0, 0] for m in (member, less))
    assert [i for i in one if less[i]] == other.tolist()


def test_records_are_asked_by_length_and_few_at_once_where_logits_are_large():
    data = texts()
    found = list(batches_by_length(data, None, 16, VOCABULARY))
    assert sorted(torch.cat([batch for batch, _, _ in found]).tolist()) == list(range(COUNT))
    assert all(ids.shape[1] == lengths.max() for _, ids, lengths in found)
    few = [ids.numel() for _, ids, _ in batches_by_length(data, None, 16, 340_000)]
    assert len(few) > len(found) and max(few) * 340_000 <= LOGITS_AT_ONCE
    assert {len(batch) for batch, _, _ in batches_by_length(data, None, 16, 1 << 40)} == {1}


@pytest.mark.parametrize("peft", [None, LORA])
def test_where_memory_runs_out_half_as_much_is_computed_at_once(peft, monkeypatch, caplog):
    """The same steps, in smaller parts: the result is the same up to rounding."""
    from transformers import GPT2Model

    (plain,) = trained([0], peft)
    forward = GPT2Model.forward
    asked = []

    def small(self, input_ids, **options):
        if torch.is_grad_enabled():
            asked.append(len(input_ids))
            if len(input_ids) > 1:
                raise torch.OutOfMemoryError("simulated")
        return forward(self, input_ids, **options)

    monkeypatch.setattr(GPT2Model, "forward", small)
    with caplog.at_level(logging.INFO, "trainers"):
        (halved,) = trained([0], peft, auto_find_batch_size=True)
    assert list(dict.fromkeys(asked)) == [4, 2, 1]
    assert "out of memory with 2 records at once, now 1" in caplog.text
    torch.testing.assert_close(weights(halved), weights(plain), atol=2e-4, rtol=0)
    with pytest.raises(torch.OutOfMemoryError):
        trained([0], peft)


@pytest.mark.parametrize("peft", [None, LORA])
def test_gradient_checkpointing_changes_nothing_but_memory(peft):
    (plain,), (checkpointed,) = trained([0], peft, epochs=1), trained([0], peft, epochs=1, gradient_checkpointing=True)
    torch.testing.assert_close(weights(plain), weights(checkpointed), atol=1e-5, rtol=0)


@pytest.mark.parametrize("peft", [None, LORA])
def test_training_learns(peft):
    data = texts()
    (model,) = trained([0], peft, data=data, epochs=12, learning_rate=0.02)
    member = stream(0, "member", 0).random(COUNT) < 0.5
    before = accuracy_and_loss(build(peft), data, np.flatnonzero(member))[1]
    after = accuracy_and_loss(model, data, np.flatnonzero(member))[1]
    assert after < before - 0.15
    assert accuracy_and_loss(model, data, np.flatnonzero(~member))[1] > after + 0.1


@pytest.mark.parametrize("peft", [None, LORA])
def test_divergence_names_the_model_and_the_epoch(peft, monkeypatch):
    with pytest.raises(
        UserError, match=r"diverged: model 0 of a stack of 2, epoch \d of 2, train.learning_rate 1e\+30"
    ):
        trained([0, 1], peft, learning_rate=1e30, clip_norm=None, model={"layers": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft": {"r": 4}}, "needs a type"),
        ({"peft": {"type": "lora", "alhpa": 4}}, "unknown key 'alhpa'; did you mean 'alpha'"),
        ({"peft": {"type": "LoRA", "r": 0}}, "r: should be greater than or equal to 1, got 0"),
        ({"optimizer": "adafactor"}, "should be 'AdamW'"),
    ],
)
def test_mistakes_in_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TRAINERS.bind("transformer", {"epochs": 1, "learning_rate": 0.1, **settings})


def test_the_originals_spelling_of_the_optimizer_is_understood():
    settings = TRAINERS.bind("transformer", {"epochs": 1, "learning_rate": 0.1, "optimizer": "adamw_torch"})
    assert settings["optimizer"] == "AdamW"


def test_the_learning_rate_falls_in_a_line_after_the_warm_up():
    recipe = Recipe(2, 1.0, 4, 2, 0.0, "linear", 0.5, None, False, False, "float32")
    expected = [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    np.testing.assert_allclose(recipe.rates(8).ravel(), expected)
