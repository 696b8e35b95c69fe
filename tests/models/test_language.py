"""Language models: from a directory as Hugging Face saves it, causal or refused, and adapters as PEFT keeps them."""

import json

import numpy as np
import pytest
import torch

import models
from core.errors import UserError
from core.registry import MODELS
from core.rng import stream
from models import adapters, pretrained
from models.language import context_of, tokenizer_json

VOCABULARY, LENGTH = 40, 12
LORA = {"type": "lora", "r": 2, "alpha": 4, "target_modules": ["c_attn"]}


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    yield
    pretrained.config_of.cache_clear()
    pretrained.base.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 and its tokenizer, as transformers saves them: no pad token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("hub") / "tiny"
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    with torch.random.fork_rng():
        GPT2LMHeadModel(shape).save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    return path


def build(name, peft=None, **settings):
    return models.build(name, MODELS.bind(name, settings), (LENGTH,), VOCABULARY, stream(0, "init"), peft)


def test_a_directory_is_a_model_with_its_tokenizer_and_its_context(folder):
    from tokenizers import Tokenizer

    model = build(f"hf:{folder}")
    assert model(input_ids=torch.zeros(2, LENGTH, dtype=torch.int64)).logits.shape == (2, LENGTH, VOCABULARY)
    assert all(p.requires_grad for p in model.parameters())
    assert context_of(f"hf:{folder}", {}) == 16
    assert Tokenizer.from_str(tokenizer_json(str(folder))).encode("w3 w39").ids == [3, 39]
    models.check_text(f"hf:{folder}", {}, LENGTH, VOCABULARY, LORA)


def test_fine_tuning_one_copy_changes_no_other(folder):
    one, other = build(f"hf:{folder}"), build(f"hf:{folder}")
    with torch.no_grad():
        for p in one.parameters():
            p.zero_()
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), build(f"hf:{folder}").parameters(), strict=True))
    assert any(p.any() for p in other.parameters())


def test_adapters_freeze_the_base_and_a_later_full_model_is_free_again(folder):
    adapted = build(f"hf:{folder}", LORA)
    assert {name.split(".")[-3] for name, p in adapted.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    base = pretrained.base(str(folder))
    shared = {p.data_ptr() for p in base.parameters()}
    assert {p.data_ptr() for p in adapted.parameters() if not p.requires_grad} == shared
    assert all(p.requires_grad for p in build(f"hf:{folder}").parameters())


def test_adapters_are_a_function_of_the_stream_alone(folder):
    def first(*purpose):
        model = models.build(f"hf:{folder}", {}, (LENGTH,), VOCABULARY, stream(0, *purpose), LORA)
        return next(p for p in model.parameters() if p.requires_grad)

    assert torch.equal(first("init", 1), first("init", 1))
    assert not torch.equal(first("init", 1), first("init", 2))


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # of PEFT's own call into transformers
@pytest.mark.parametrize("kind", [LORA, {"type": "ia3", "target_modules": ["c_attn"], "feedforward_modules": []}])
def test_the_files_of_an_adapter_are_what_peft_reads(folder, tmp_path, kind):
    from peft import PeftModel

    model = build(f"hf:{folder}", kind).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(generator=torch.Generator().manual_seed(0))
    files = adapters.files(model)
    assert set(files) == {"adapter_model.safetensors", "adapter_config.json"}
    assert files == adapters.files(model)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ids = torch.arange(LENGTH)[None]
    theirs = PeftModel.from_pretrained(build(f"hf:{folder}"), tmp_path).eval()
    torch.testing.assert_close(theirs(input_ids=ids).logits, model(input_ids=ids).logits)
    ours = build(f"hf:{folder}", kind).eval()
    adapters.fill(ours, files["adapter_model.safetensors"])
    assert torch.equal(ours(input_ids=ids).logits, model(input_ids=ids).logits)
    assert json.loads(files["adapter_config.json"])["peft_type"] == kind["type"].upper()


def test_weights_of_other_adapters_are_refused(folder):
    other = adapters.files(build(f"hf:{folder}", {**LORA, "r": 3}))["adapter_model.safetensors"]
    with pytest.raises(ValueError, match="of other adapters"):
        adapters.fill(build(f"hf:{folder}", LORA), other)


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"type": "lora", "target_modules": ["q_proj"]}, r"type lora: .*q_proj"),
        ({"type": "lorra"}, "type lorra: unknown; there are: .*lora"),
        ({"type": "ia3", "nonsense": 1}, "nonsense"),
        ({"type": "lora", "init_lora_weights": "pissa", "target_modules": ["c_attn"]}, "changes the base"),
    ],
)
def test_adapters_that_cannot_be_are_named_before_anything_is_trained(folder, peft, message):
    with pytest.raises(UserError, match=message):
        models.check_text(f"hf:{folder}", {}, LENGTH, VOCABULARY, peft)


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    """transformers lists BERT among the causal models; asked the same beginning twice, it answers differently."""
    from transformers import BertConfig, BertLMHeadModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=VOCABULARY, is_decoder=False, **shape)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not causal: what it says of a token depends on the tokens after it"):
        models.check_text(f"hf:{tmp_path}", {}, LENGTH, VOCABULARY, None)


def test_a_model_of_another_kind_is_refused(tmp_path):
    from transformers import ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no causal language model \(vit\)"):
        context_of(f"hf:{tmp_path}", {})


def test_what_does_not_fit_the_model_is_named(folder):
    with pytest.raises(UserError, match="takes at most 16 tokens, the texts have up to 17"):
        models.check_text(f"hf:{folder}", {}, 17, VOCABULARY, None)
    with pytest.raises(UserError, match="knows 40 tokens, the tokenizer has 41"):
        models.check_text(f"hf:{folder}", {}, LENGTH, 41, None)
    with pytest.raises(UserError, match=r"model cnn takes no texts: use one of .*gpt2_tiny"):
        models.check_text("cnn", {}, LENGTH, VOCABULARY, None)
    with pytest.raises(UserError, match="model gpt2_tiny needs texts, got records of shape"):
        models.check("gpt2_tiny", {}, (3, 8, 8), 10)
    with pytest.raises(UserError, match="width 10 is not a multiple of its 3 heads"):
        build("gpt2_tiny", width=10, heads=3)


def test_a_model_that_is_nowhere_is_one_error_that_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "unreachable", lambda url: "no route")
    with pytest.raises(UserError, match=r"gpt2-none is not on this machine.*no route\. Put the directory.*hf:<path>"):
        models.check_text("hf:gpt2-none", {}, LENGTH, VOCABULARY, None)
    with pytest.raises(UserError, match=r"model \./gone: there is no such directory"):
        models.check_text("hf:./gone", {}, LENGTH, VOCABULARY, None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"the config of .* cannot be read"):
        models.check_text(f"hf:{tmp_path}", {}, LENGTH, VOCABULARY, None)


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    """A directory that wants its own code run is refused; the code would have left a file."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (tmp_path / "evil.py").write_text(
        code + "from transformers import GPT2Config as C\nclass C(C): model_type='evil'\n"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}))
    with pytest.raises(UserError, match=r"the config of .* cannot be read"):
        models.check_text(f"hf:{tmp_path}", {}, LENGTH, VOCABULARY, None)
    assert not (tmp_path / "ran").exists()


def test_the_weights_of_a_small_gpt2_are_a_function_of_the_stream():
    def weights(*purpose):
        bound = MODELS.bind("gpt2_tiny", {"width": 16})
        model = models.build("gpt2_tiny", bound, (LENGTH,), VOCABULARY, stream(0, *purpose))
        return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])

    before = torch.get_rng_state()
    assert np.array_equal(weights("init", 0), weights("init", 0))
    assert not np.array_equal(weights("init", 0), weights("init", 1))
    assert torch.equal(before, torch.get_rng_state())
