"""The two configs of AG News, end to end on a few news: files as the hub ships them, a folder as GPT-2 is passed on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import main as command
from audit import plots
from core.rng import stream
from models import pretrained
from tests.audit.test_given_text import forget

torch.set_num_threads(1)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WORDS = ["oil", "prices", "rise", "Reuters", "talks", "in", "Paris", "the", "chip", "maker", "says", "-", "(AP)", "cup"]


def news(count, *purpose):
    draw = stream(0, "news", *purpose)
    texts = [" ".join(draw.choice(WORDS, draw.integers(8, 16))) for _ in range(count)]
    return {"text": texts, "label": draw.integers(0, 4, count).tolist()}


def ship(folder, kind):
    """120 + 40 news as the hub's repository has them, as `datasets` saves them, or as it caches them."""
    import datasets

    names = datasets.ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    splits = {"train": news(120, "train"), "test": news(40, "test")}
    made = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(split, features=features) for name, split in splits.items()}
    )
    folder.mkdir(parents=True)
    if kind == "saved":
        made.save_to_disk(folder)
    for name, split in made.items():
        if kind == "hub":
            (folder / "data").mkdir(exist_ok=True)
            split.to_parquet(folder / f"data/{name}-00000-of-00001.parquet")
        elif kind == "cache":
            with datasets.arrow_writer.ArrowWriter(
                path=str(folder / f"ag_news-{name}.arrow"), features=features
            ) as writer:
                for row in split:
                    writer.write({"text": row["text"], "label": row["label"]})
                writer.finalize()
    return splits


def gpt2_format(folder):
    """A small GPT-2 with the names, files and buffers of the one on the hub: no prefix, vocab.json and merges.txt."""
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    from dataset.tokens import byte_pairs

    words = json.loads(byte_pairs([*news(120, "train")["text"]], 300))["model"]
    end = {"<|endoftext|>": len(words["vocab"])}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({**words["vocab"], **end}))
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in words["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    last = end["<|endoftext|>"]
    ends = {"bos_token_id": last, "eos_token_id": last}
    config = GPT2Config(vocab_size=last + 1, n_positions=48, n_embd=16, n_layer=1, n_head=2, **ends)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = GPT2LMHeadModel(config).transformer.state_dict()
    weights["h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 48, 48))  # as in the file on the hub
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return weights


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
    yield
    forget()


@pytest.mark.slow
@pytest.mark.parametrize(("config", "kind"), [("agnews", "hub"), ("agnews_lora", "cache")])
def test_the_configs_run_on_files_as_they_are_passed_on(config, kind, tmp_path, capsys):
    splits = ship(tmp_path / "data/agnews", kind)
    weights = gpt2_format(tmp_path / "gpt2")
    asked = ["--cf", str(CONFIGS / f"{config}.yaml"), "--set", f"run.log_dir={tmp_path / 'run'}", "run.workers=1"]
    asked += [f"data.data_dir={tmp_path / 'data'}", f"train.model_name=hf:{tmp_path / 'gpt2'}"]
    asked += ["train.device=cpu", "audit.device=cpu", "audit.data_size=60", "audit.population_size=30"]
    assert command.main(asked) == 0, capsys.readouterr().err
    assert (tmp_path / "run/report/index.html").exists()
    base = pretrained.base(str(tmp_path / "gpt2"))
    assert torch.equal(base.transformer.wte.weight, weights["wte.weight"]), (
        "the weights of the file are what was trained"
    )
    from audit.pipeline import prepared
    from core.config import load

    data = prepared(load(tmp_path / "run/config.yaml")).data
    assert list(data.pool.texts) == splits["train"]["text"] and list(data.population.texts) == splits["test"]["text"]
    assert data.pool.y.tolist() == splits["train"]["label"]
    kept = sorted(path.name for path in (tmp_path / "run/models").rglob("*.safetensors"))
    assert set(kept) == ({"adapter_model.safetensors"} if config == "agnews_lora" else set(kept)) and len(kept) == 3


@pytest.mark.parametrize("kind", ["hub", "saved", "cache"])
def test_ag_news_as_the_hub_ships_it_is_what_it_says(kind, tmp_path):
    from core.registry import DATASETS

    splits = ship(tmp_path / "agnews", kind)
    data = DATASETS["agnews"](tmp_path, 0)
    assert list(data.pool.texts) == splits["train"]["text"] and list(data.population.texts) == splits["test"]["text"]
    np.testing.assert_array_equal(data.population.y, splits["test"]["label"])


@pytest.mark.parametrize("config", ["agnews", "agnews_lora"])
def test_without_files_one_answer_says_what_to_put_where(config, tmp_path, monkeypatch, capsys):
    """Data and model are asked for at once, and nothing is written."""
    import core.hub
    from dataset import text_hub

    for module in (core.hub, text_hub, pretrained):
        monkeypatch.setattr(module, "unreachable", lambda url: "no network")
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    file = CONFIGS / f"{config}.yaml"
    where = [f"run.log_dir={tmp_path / 'run'}", f"data.data_dir={tmp_path / 'data'}"]
    assert command.main(["--cf", str(file), "--set", *where]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert (
        "data.dataset: " in lines[0]
        and "train.csv and test.csv" in lines[0]
        and str(tmp_path / "data/agnews") in lines[0]
    )
    assert "train.model_name: " in lines[1] and "config.json, model.safetensors, tokenizer.json" in lines[1]
    assert not list(tmp_path.iterdir())
