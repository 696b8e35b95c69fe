"""For one who has a Hugging Face folder and files of texts: other architectures, shards, adapters, mistakes."""

import json
import warnings

import numpy as np
import pytest
import torch

from audit import plots
from models import pretrained
from tests.audit.test_text_audit import run, texts, write

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_is_remembered_or_drawn(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
    yield
    forget()


def forget():
    """What a new process would not know."""
    for known in (pretrained.config_of, pretrained.base, pretrained.digest_of):
        known.cache_clear()


def tokenizer(own, beginning=False):
    """One of bytes, without a token for padding; with `beginning`, it puts one before each text."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    from dataset.tokens import byte_pairs

    made = Tokenizer.from_str(byte_pairs(own, 300))
    if beginning:
        made.add_special_tokens(["<s>"])
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """What such a person has: files of texts, a GPT-2, a Llama in bfloat16 and in shards, an adapter on the GPT-2."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("desk")
    found = list(dict.fromkeys(texts(150)))
    files = {"members": found[:40], "others": found[40:80], "more": found[80:120]}
    for name, part in files.items():
        write(path / f"{name}.jsonl", [{"text": text} for text in part])
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        words = tokenizer(found)
        sizes = {"n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
        gpt = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), initializer_range=0.3, **sizes, **ends))
        gpt.save_pretrained(path / "gpt"), words.save_pretrained(path / "gpt")
        words = tokenizer(found, beginning=True)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=64, **sizes, **ends))
        llama.to(torch.bfloat16).save_pretrained(path / "llama", max_shard_size="8KB")
        words.save_pretrained(path / "llama")
        adapter = get_peft_model(gpt, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        adapter.save_pretrained(path / "adapter")
    return path


def given(desk, tmp_path, **change):
    """The config of an audit, with changes to its blocks."""
    config = {
        "run": {"log_dir": str(tmp_path / "run"), "workers": 1},
        "data": {
            "dataset": "text_file",
            "file": str(desk / "members.jsonl"),
            "non_member_file": str(desk / "others.jsonl"),
            "population_file": str(desk / "more.jsonl"),
        },
        "model": {"name": f"hf:{desk / 'gpt'}"},
        "audit": {"algorithm": ["LOSS", "MinK"], "device": "cpu"},
    }
    for block, keys in change.items():
        config[block] = {**config.get(block, {}), **keys}
    return config


def sequence_log_odds(tmp_path):
    """What the model of the finished run said of its audited texts."""
    from audit.pipeline import prepared
    from audit.signals import evidence
    from core.config import load

    session = prepared(load(tmp_path / "config.yaml"))
    return session, evidence(session, 0).target[0]


def by_hand(folder, asked, adapter=None):
    """The same of transformers' own model and tokenizer, text by text, token by token."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model = PeftModel.from_pretrained(model, adapter).eval() if adapter else model
        found = []
        for text in asked:
            ids = torch.tensor(words(text)["input_ids"])[:24]
            log_p = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(1)
            found.append(np.mean([log_p[t, ids[t + 1]].item() for t in range(len(ids) - 1)]))
    return np.array(found) - np.log(-np.expm1(found))


def check_against_the_library(desk, tmp_path, folder, adapter=None):
    session, ours = sequence_log_odds(tmp_path)
    lines = "".join((desk / f"{name}.jsonl").read_text() for name in ("members", "others")).splitlines()
    told = [json.loads(line)["text"] for line in lines]
    asked = [told[int(session.data.pool.ids[n])] for n in session.points]
    np.testing.assert_allclose(ours, by_hand(folder, asked, adapter), atol=2e-4)
    member = session.plan.member[0][session.points]
    assert [text in told[:40] for text in asked] == member.tolist() and member.sum() == 40
    assert "member" not in session.data.pool.groups


@pytest.mark.slow
def test_a_folder_is_a_model_and_two_files_say_who_is_a_member(desk, tmp_path, capsys):
    assert run(tmp_path, given(desk, tmp_path)) == 0
    said = capsys.readouterr()
    assert "Blind baseline" in said.out
    check_against_the_library(desk, tmp_path, desk / "gpt")


@pytest.mark.slow
def test_a_sharded_bfloat16_llama_whose_tokenizer_begins_each_text_is_what_transformers_says_it_is(desk, tmp_path):
    assert len(list((desk / "llama").glob("*.safetensors"))) > 1
    change = {"model": {"name": f"hf:{desk / 'llama'}"}, "data": {"max_length": 24}}
    assert run(tmp_path, given(desk, tmp_path, **change)) == 0
    check_against_the_library(desk, tmp_path, desk / "llama")


@pytest.mark.slow
def test_an_adapter_is_audited_on_its_base_with_lora_references(desk, tmp_path, capsys):
    change = {
        "model": {"weights": str(desk / "adapter")},
        "train": {
            "model_name": f"hf:{desk / 'gpt'}",
            "epochs": 1,
            "learning_rate": 0.01,
            "device": "cpu",
            "peft": {"type": "lora", "r": 4, "target_modules": "all-linear"},
        },
        "audit": {"algorithm": ["LOSS", "Calibration", "RMIA"], "num_ref_models": 2, "token_heat_map": 2},
    }
    assert run(tmp_path, given(desk, tmp_path, **change)) == 0, capsys.readouterr().err
    check_against_the_library(desk, tmp_path, desk / "gpt", desk / "adapter")
    files = sorted(
        str(file.relative_to(tmp_path / "run/models")) for file in (tmp_path / "run").rglob("adapter_config.json")
    )
    assert len(files) == 5 and not list((tmp_path / "run/models").glob("*.safetensors")), "only adapters are kept"
    assert json.loads((tmp_path / "run/models" / files[0]).read_text())["r"] == 2
    assert run(tmp_path, given(desk, tmp_path, **change)) == 0
    assert "models: all 5 are there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_base_that_changed_under_its_name_is_not_taken_for_the_old_one(desk, tmp_path, capsys):
    import shutil

    shutil.copytree(desk / "gpt", tmp_path / "base")
    change = {
        "model": {"name": None},
        "data": {"non_member_file": None},
        "train": {"model_name": f"hf:{tmp_path / 'base'}", "epochs": 1, "learning_rate": 0.01, "device": "cpu"},
        "audit": {"algorithm": ["LOSS"], "num_ref_models": 0},
    }
    config = {**given(desk, tmp_path, **change)}
    del config["model"], config["data"]["non_member_file"]
    assert run(tmp_path, config) == 0, capsys.readouterr().err
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "base/model.safetensors")
    save_file(
        {name: 2 * tensor for name, tensor in weights.items()}, tmp_path / "base/model.safetensors", {"format": "pt"}
    )
    forget()
    assert run(tmp_path, config) == 2
    assert "pretrained weights (sha256)" in capsys.readouterr().err


MISTAKES = [
    ({"model": {"name": "hf:{desk}/nowhere"}}, "there is no such"),
    ({"model": {"name": None, "weights": "{desk}/adapter"}}, "does not say whose adapters they are"),
    ({"model": {"weights": "{desk}/adapter", "member": "column:membr"}}, "no column 'membr'"),
    ({"data": {"non_member_file": "{desk}/members.jsonl"}}, "data.non_member_file: 40 texts are in"),
    ({"data": {"non_member_file": None}}, "model.member: missing: who trained on which record?"),
    ({"data": {"text_column": "txt"}}, "no column 'txt'; did you mean 'text'?"),
    ({"model": {"weights": "{desk}"}}, "is no model: a folder should hold config.json"),
    ({"model": {"weights": "{desk}/llama"}}, "is a llama"),
    ({"model": {"weights": "{desk}/bert"}}, "is a bert, and is to be read as a gpt2"),
    ({"model": {"name": "hf:{desk}/bert"}}, "is not causal: what it says of a token depends on the tokens after it"),
    ({"model": {"name": "hf:{desk}/wide", "weights": "{desk}/gpt"}}, "computes in another way: its config.json has"),
    ({"model": {"name": "hf:{desk}/wide", "weights": "{desk}/adapter"}}, "of other adapters"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_are_told_in_a_line_and_leave_nothing(desk, tmp_path, capsys, change, message):
    from tests.language import tiny_bert, tiny_gpt2

    if "bert" in str(change) and not (desk / "bert").exists():
        tiny_bert(desk / "bert", ["red"])
    if "wide" in str(change) and not (desk / "wide").exists():
        from transformers import AutoTokenizer

        words = AutoTokenizer.from_pretrained(desk / "gpt")
        (
            tiny_gpt2(vocabulary=len(words), context=24).save_pretrained(desk / "wide"),
            words.save_pretrained(desk / "wide"),
        )
    change = json.loads(json.dumps(change).replace("{desk}", str(desk)))
    config = given(desk, tmp_path, **change)
    config = {block: {key: value for key, value in keys.items() if value is not None} for block, keys in config.items()}
    assert run(tmp_path, config) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_what_a_config_of_adapters_says_beside_their_shape_is_left_out(tmp_path):
    """PEFT imports the module that `megatron_core` names, and draws or changes weights as `init_lora_weights` says."""
    from audit import hub_files

    said = {"peft_type": "LORA", "r": 3, "megatron_core": "os", "megatron_config": {"a": 1}, "auto_mapping": {"a": "b"}}
    said |= {"init_lora_weights": "pissa", "unheard_of": 1, "base_model_name_or_path": "x", "eva_config": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    assert hub_files.peft_of(tmp_path) == {"type": "lora", "r": 3} and hub_files.base_of(tmp_path) == "x"


def test_an_adapter_that_did_not_train_is_refused(desk, tmp_path, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(desk / "adapter", tmp_path / "adapter")
    weights = {name: tensor / 0 for name, tensor in load_file(desk / "adapter/adapter_model.safetensors").items()}
    save_file(weights, tmp_path / "adapter/adapter_model.safetensors")
    assert run(tmp_path, given(desk, tmp_path, model={"weights": str(tmp_path / "adapter")})) == 2
    assert "NaN or infinite weights" in capsys.readouterr().err


def test_a_model_of_the_hub_is_found_in_its_cache_without_a_network(desk, tmp_path, monkeypatch):
    import shutil
    import socket

    from huggingface_hub import constants

    from audit import hub_files

    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: asked.append(a) or [])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("me/tiny", "openai-community/gpt2"):
        cache = tmp_path / f"models--{name.replace('/', '--')}"
        shutil.copytree(desk / "gpt", cache / "snapshots/abc")
        (cache / "refs").mkdir()
        (cache / "refs/main").write_text("abc")
    assert hub_files.own_folder("hf:me/tiny") == tmp_path / "models--me--tiny/snapshots/abc"
    assert pretrained.base("gpt2").config.n_embd == 16
    assert not asked
