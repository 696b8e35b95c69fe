"""Signals of a language model against one forward pass a prefix, written out in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.types import LOG_ODDS, Signal
from tests.language import texts, tiny_gpt2
from trainers import evaluate_text
from trainers.evaluate_text import (
    batches,
    divergences,
    gradient_norms,
    log_odds,
    mean_log_p,
    prefixed_log_odds,
    text_signals,
    token_columns,
)
from trainers.resident import Resident

LOG_P, MEAN, VARIANCE, RANK = (Signal(f"token_{kind}") for kind in ("log_p", "mean", "variance", "rank"))
WARM = Signal(temperature=2.0)
TAYLOR = Signal("taylor", 2.0, 0.6, 4)
ENTROPY = Signal("modified_entropy")
PER_TOKEN = [LOG_P, MEAN, VARIANCE, RANK]
ALL = [LOG_ODDS, WARM, TAYLOR, ENTROPY, *PER_TOKEN]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def resident(records):
    return Resident.of(records, (0.0,), (1.0,), "cpu")


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2()


@pytest.fixture(scope="module")
def tokens():
    """Of each record, the tokens after the first, and the float64 distribution before each, from its prefix alone."""
    records, network = texts(), tiny_gpt2()
    found = []
    for x, length in zip(records.x, records.lengths, strict=True):
        row = torch.tensor(x[:length]).long()
        z = [network(input_ids=row[None, :t]).logits[0, -1].double().detach() for t in range(1, length)]
        found.append((row[1:], torch.stack(z)))
    return found


def naive(tokens, signal):
    columns = []
    for own, z in tokens:
        of_record = []
        for token, z_t in zip(own.tolist(), z, strict=True):
            u = z_t / signal.temperature
            p = (u - u.logsumexp(0)).exp()
            entropy_terms = p * p.log()
            value = {
                "token_log_p": p[token].log(),
                "log_odds": p[token].log(),
                "token_mean": entropy_terms.sum(),
                "token_variance": (p * p.log() ** 2).sum() - entropy_terms.sum() ** 2,
                "token_rank": (z_t > z_t[token]).sum(),
                "modified_entropy": 0.0,
                "taylor": 0.0,
            }[signal.kind]
            if signal.kind == "taylor":
                t = lambda v: 1 + v + v**2 / 2 + v**3 / 6 + v**4 / 24  # noqa: E731
                others = t(u).sum() - t(u[token])
                value = torch.log(t(u[token] - signal.margin) / (t(u[token] - signal.margin) + others))
            if signal.kind == "modified_entropy":
                rest = [-p[i] * torch.log(1 - p[i]) for i in range(len(p)) if i != token]
                value = -torch.log(-(1 - p[token]) * p[token].log() + sum(rest))
            of_record.append(float(value))
        columns.append(np.array(of_record))
    if signal.per_token:
        return np.concatenate(columns)
    mean = np.array([column.mean() for column in columns])
    return mean if signal.kind == "modified_entropy" else mean - np.log(1 - np.exp(mean))


@pytest.mark.parametrize("signal", ALL, ids=lambda s: s.name)
def test_every_signal_is_that_of_a_loop_over_prefixes(signal, model, tokens):
    found = text_signals(model, resident(texts()), wanted=ALL, batch_size=5)[signal]
    np.testing.assert_allclose(found[0], naive(tokens, signal), **TOLERANCE)


def test_padding_is_masked_by_position_whatever_token_it_is(model):
    """Also where the padding's id is a token of the vocabulary that records hold, or none at all."""
    first = text_signals(model, resident(texts(padding=0)), wanted=ALL)
    for padding in (7, 39, -100):
        again = text_signals(model, resident(texts(padding=padding)), wanted=ALL)
        assert all(np.array_equal(first[signal], again[signal]) for signal in ALL)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_records_signals_do_not_depend_on_its_batch(batch_size, model):
    index = np.array([7, 0, 11, 3, 3])
    data = resident(texts())
    together = text_signals(model, data, index, wanted=ALL, batch_size=batch_size)
    start = np.cumsum([0, *(texts().lengths[index] - 1)])
    for place, record in enumerate(index):
        alone = text_signals(model, data, np.array([record]), wanted=ALL)
        for signal in ALL:
            own = slice(start[place], start[place + 1]) if signal.per_token else slice(place, place + 1)
            np.testing.assert_allclose(together[signal][0, own], alone[signal][0], **TOLERANCE)


def test_pieces_of_any_size_give_the_same_bits(model, monkeypatch):
    whole = text_signals(model, resident(texts()), wanted=ALL)
    monkeypatch.setattr(evaluate_text, "WORKED_ON", 3 * 40)
    pieces = text_signals(model, resident(texts()), wanted=ALL)
    assert all(np.array_equal(whole[signal], pieces[signal]) for signal in ALL)


def test_known_answers():
    """Uniform over 4 tokens; then one token of 3/4 and three of 1/12."""
    z = torch.tensor([[0.0, 0.0, 0.0, 0.0], [np.log(9), 0.0, 0.0, 0.0]])
    found = token_columns(z, torch.tensor([2, 0]), PER_TOKEN)
    np.testing.assert_allclose(found[LOG_P], np.log([1 / 4, 3 / 4]), rtol=1e-6)
    mean = 3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 12)
    np.testing.assert_allclose(found[MEAN], [np.log(1 / 4), mean], rtol=1e-6)
    variance = 3 / 4 * np.log(3 / 4) ** 2 + 1 / 4 * np.log(1 / 12) ** 2 - mean**2
    np.testing.assert_allclose(found[VARIANCE], [0, variance], rtol=1e-5, atol=1e-12)
    assert found[RANK].tolist() == [0, 0]
    assert token_columns(z, torch.tensor([0, 3]), [RANK])[RANK].tolist() == [0, 1]


def test_nothing_saturates_and_impossible_tokens_do_not_spoil_the_moments():
    z = torch.tensor([[60.0, 0.0, 0.0], [0.0, -torch.inf, 0.0]])
    found = token_columns(z, torch.tensor([0, 0]), PER_TOKEN)
    np.testing.assert_allclose(found[LOG_P], [-2 * np.exp(-60), np.log(1 / 2)], rtol=1e-5)
    np.testing.assert_allclose(found[MEAN], [0, np.log(1 / 2)], atol=1e-6)
    np.testing.assert_allclose(found[VARIANCE], [0, 0], atol=1e-6)


def test_log_odds_of_a_log_probability_keep_their_precision_at_both_ends():
    np.testing.assert_allclose(log_odds(np.array([-1e-20, -800.0, np.log(0.5)])), [np.log(1e20), -800, 0], atol=1e-12)
    assert np.isfinite(log_odds(0.0))


def test_batches_hold_every_record_once_like_lengths_together_and_never_too_much(monkeypatch):
    monkeypatch.setattr(evaluate_text, "LOGITS", 1000)
    lengths = np.array([30, 2, 10, 9, 2, 70, 5])
    found = list(batches(lengths, 3, 20))
    assert sorted(np.concatenate(found)) == list(range(7))
    for batch in found:
        assert len(batch) <= 3 and (len(batch) == 1 or len(batch) * lengths[batch].max() * 20 <= 1000)
    assert list(lengths[np.concatenate(found)]) == sorted(lengths)


def test_a_prefix_conditions_and_is_not_counted(model):
    """And where it does not fit beside a record, its end is kept."""
    data, index = resident(texts()), np.array([1, 4, 0])
    prefix = torch.tensor([5, 6, 7, 8, 9, 10, 11, 12])
    found = prefixed_log_odds(model, data, index, prefix, context=35, batch_size=2)
    for place, record in enumerate(index):
        row = data.x[record, : data.lengths[record]].long()
        kept = prefix[max(8 + len(row) - 35, 0) :]
        z = model(input_ids=torch.cat([kept, row])[None]).logits[0].double().log_softmax(1)
        log_p = [z[len(kept) + t - 1, row[t]].item() for t in range(1, len(row))]
        np.testing.assert_allclose(found[0, place], log_odds(np.mean(log_p)), **TOLERANCE)
    unprefixed = prefixed_log_odds(model, data, index, torch.tensor([], dtype=torch.int64), context=64)
    np.testing.assert_allclose(unprefixed, text_signals(model, data, index, wanted=[LOG_ODDS])[LOG_ODDS], **TOLERANCE)


def test_the_mean_log_probability_of_rows(model):
    rows = [torch.tensor([1, 2, 3, 4]), torch.tensor([9, 8])]
    z = model(input_ids=rows[0][None]).logits[0].double().log_softmax(1)
    np.testing.assert_allclose(mean_log_p(model, rows, [2, 1])[0], (z[1, 3] + z[2, 4]).item() / 2, **TOLERANCE)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_the_gradient_norm_is_that_of_autograd_over_what_is_trainable(p):
    model, data = tiny_gpt2(1), resident(texts(count=4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("ln" in name)
    found = gradient_norms(model, data, np.array([2, 3]), p=p)
    for place, record in enumerate((2, 3)):
        row = data.x[record, : data.lengths[record]].long()[None]
        model.zero_grad()
        model(input_ids=row, labels=row).loss.backward()
        norms = [float(q.grad.abs().pow(p).sum() ** (1 / p)) for n, q in model.named_parameters() if "ln" in n]
        assert found[0, place] == pytest.approx(np.mean(norms), rel=1e-4)
        assert all(q.grad is None for n, q in model.named_parameters() if "ln" not in n)


def test_divergences_are_those_of_the_mean_of_each_records_own_references(model):
    data, index = resident(texts(count=5)), np.arange(5)
    references = [tiny_gpt2(seed) for seed in (1, 2, 3)]
    out = np.array([[1, 1, 0, 0, 1], [0, 1, 1, 1, 0], [0, 1, 0, 1, 1]], dtype=bool)
    found = divergences(model, references, data, index, out, batch_size=2)[0]
    at = 0
    for record in index:
        row = data.x[record, : data.lengths[record]].long()[None]
        p = model(input_ids=row).logits[0, :-1].double().softmax(1)
        of_references = [r(input_ids=row).logits[0, :-1].double().softmax(1) for r in references]
        p_ref = torch.stack([q for q, counts in zip(of_references, out[:, record], strict=True) if counts]).mean(0)
        kl = (p_ref * (p_ref / p).log()).sum(1).detach().numpy()
        np.testing.assert_allclose(found[at : at + len(kl)], kl, **TOLERANCE)
        at += len(kl)
    assert at == len(found)
    same = divergences(model, [model], data, index, np.ones((1, 5), dtype=bool))
    np.testing.assert_allclose(same, 0, atol=1e-5)


def test_the_model_answers_without_dropout_and_is_left_without_gradients():
    model = tiny_gpt2(2).train()
    first, again = (text_signals(model, resident(texts()), wanted=[LOG_P])[LOG_P] for _ in range(2))
    assert np.array_equal(first, again)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_empty_index_gives_empty_columns(model):
    found = text_signals(model, resident(texts()), np.array([], dtype=np.int64), wanted=ALL)
    assert all(column.shape == (1, 0) for column in found.values())


def test_what_one_pass_cannot_give_is_an_error(model):
    with pytest.raises(ValueError, match="gradient_norm"):
        text_signals(model, resident(texts()), wanted=[replace(LOG_ODDS, kind="gradient_norm")])
