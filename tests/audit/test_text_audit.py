"""Audits of language models from a YAML file: with references, and of a given model without any."""

import csv
import json

import numpy as np
import pytest

import main as command
from audit.heat_map import STRONGEST, half_of_the_gain, pieces
from core.rng import stream
from tests.language import tiny_bert, tiny_gpt2

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sees", "hears", "the", "old", "new", "Paris", "Rome"]


def texts(count, seed=0):
    draw = stream(seed, "texts of an audit")
    return [" ".join(draw.choice(WORDS, draw.integers(6, 14))) for _ in range(count)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(path, config):
    import yaml

    file = path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return command.main(["--cf", str(file)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every attack that reads texts on a model of six pairs of hands, and what the terminal said."""
    path = tmp_path_factory.mktemp("text")
    own = [{"text": text} for text in texts(64)]
    own[3]["text"] = "the <script>alert(1)</script> cat & dog"
    write(path / "texts.jsonl", own)
    bert = tiny_bert(path / "bert", WORDS)
    config = {
        "run": {"log_dir": str(path / "run"), "workers": 1},
        "data": {"dataset": "text_file", "file": str(path / "texts.jsonl")},
        "train": {
            "model_name": {"name": "gpt2_tiny", "width": 16, "layers": 1, "heads": 2},
            "learning_rate": 0.01,
            "batch_size": 8,
            "epochs": 1,
            "device": "cpu",
        },
        "audit": {
            "algorithm": [
                *["LOSS", "zlib", "MinK", "MinK++", "ReCaLL", "GradNorm", "WBC", "EZ-MIA", "DC-PDD", "TokenInfoRMIA"],
                *["InfoRMIA", "LiRA", "RMIA"],
                {"name": "Neighbourhood", "masked_lm": str(bert), "neighbours": 2, "masks": 1},
                {"name": "ReCaLL", "prefix": "Rome likes Paris"},
            ],
            "num_ref_models": 1,
            "device": "cpu",
            "token_heat_map": 60,
            "blind_baseline": True,
        },
    }
    assert run(path, config) == 0
    return path, config


@pytest.mark.slow
def test_every_text_attack_runs_and_a_second_run_finds_all_signals(finished, capsys):
    path, config = finished
    with open(path / "run/report/attack_result_average.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert all(0 <= float(row["auc"]) <= 1 and float(row["blind_baseline_auc_low"]) < 1 for row in rows)
    before = {file: file.stat().st_mtime_ns for file in (path / "run/signals").rglob("*.npy")}
    assert {name.split(".")[1].split("_")[0] for name in (f.name for f in before)} >= {"token", "prefixed", "gradient"}
    assert run(path, config) == 0
    assert before == {file: file.stat().st_mtime_ns for file in (path / "run/signals").rglob("*.npy")}
    assert "Blind baseline" in capsys.readouterr().out


@pytest.mark.slow
def test_the_evidence_is_laid_out_token_by_token(finished):
    from audit.pipeline import prepared
    from audit.signals import evidence
    from core.config import load

    session = prepared(load(finished[0] / "config.yaml"))
    seen = evidence(session, 0)
    lengths = session.data.pool.lengths[session.points]
    log_p = seen.also["token_log_p"]
    assert np.array_equal(np.diff(seen.text.start), lengths - 1)
    assert log_p.target.shape == (1, (lengths - 1).sum()) and log_p.references.shape[0] == 2
    assert np.array_equal(log_p.trained_on, np.repeat(seen.trained_on, lengths - 1, axis=1))
    mean = seen.text.mean(log_p.target[0])
    np.testing.assert_allclose(seen.target[0], mean - np.log(-np.expm1(mean)), rtol=1e-4)
    first = session.points[0]
    assert np.array_equal(seen.text.tokens[: lengths[0] - 1], session.data.pool.x[first, 1 : lengths[0]])
    assert np.isnan(seen.also["token_divergence"].references).all()


@pytest.mark.slow
def test_the_heat_map_shows_texts_escaped(finished):
    page = (finished[0] / "run/report/index.html").read_text()
    heat = page[page.index('id="token_heat_map"') :]
    assert "<script>alert" not in page
    assert "nats" in heat and "carry half" in heat


@pytest.mark.slow
def test_a_given_model_is_audited_without_references_and_the_blind_baseline_explains_the_result(tmp_path, capsys):
    """Members are dated 2024, non-members 2019; the model has random weights, so nothing can be its doing."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from dataset.tokens import byte_pairs

    dated = [
        {"text": f"{text} in {2024 if k % 2 else 2019}", "member": bool(k % 2)} for k, text in enumerate(texts(120, 1))
    ]
    write(tmp_path / "texts.jsonl", dated)
    json_ = byte_pairs([row["text"] for row in dated], 300)
    tokenizer = Tokenizer.from_str(json_)
    tiny_gpt2(vocabulary=tokenizer.get_vocab_size()).save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    config = {
        "run": {"log_dir": str(tmp_path / "run"), "workers": 1},
        "data": {"dataset": "text_file", "file": str(tmp_path / "texts.jsonl"), "group_columns": ["member"]},
        "model": {
            "name": f"hf:{tmp_path / 'model'}",
            "weights": str(tmp_path / "model/model.safetensors"),
            "member": "column:member",
        },
        "audit": {"algorithm": ["LOSS", "MinK", "ReCaLL"], "device": "cpu"},
    }
    assert run(tmp_path, config) == 0
    captured = capsys.readouterr()
    assert "Blind baseline" in captured.out
    page = (tmp_path / "run/report/index.html").read_text()
    assert "the blind baseline explains the result" in page and "Blind baseline" in page
    with open(tmp_path / "run/report/exp/attack_result_0.csv") as file:
        assert all(float(row["blind_baseline_auc"]) > 0.95 for row in csv.DictReader(file))
    from audit.pipeline import prepared
    from core.config import load

    session = prepared(load(tmp_path / "config.yaml"))
    prefixes = session.data.population.groups["member"][session.population]
    assert not {str(member).casefold() for member in prefixes} & {"true", "1"}, "members in ReCaLL's prefix"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "MinK"}, "MinK reads the tokens of texts"),
        ({"algorithm": "LOSS", "token_heat_map": 2}, "audit.token_heat_map: there are no texts"),
    ],
)
def test_what_needs_texts_is_refused_elsewhere_before_anything_is_trained(tmp_path, capsys, change, message):
    config = {
        "run": {"log_dir": str(tmp_path / "run")},
        "data": {"dataset": "digits"},
        "train": {"model_name": "mlp", "learning_rate": 0.1, "batch_size": 8, "epochs": 1},
        "audit": {"device": "cpu", **change},
    }
    assert run(tmp_path, config) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_hostile_token_stays_text():
    from html.parser import HTMLParser

    from audit import templates
    from audit.heat_map import Piece

    bad = [
        "<script>alert(1)</script>",
        '" onmouseover="alert(1)',
        "</span></p><img src=x onerror=alert(1)>",
        "<!--",
        "{{7*7}}",
    ]
    rows = [(0, 1.0, [Piece(text, gain, 62, "more") for text in bad for gain in (None, 1.0)])]
    template = templates.environment().get_template("token_heat_map.html.j2")
    html = template.render(rows=rows, against="over </p>", largest=1.0, attack="<b>", target=0)
    seen, said = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: seen.append((tag, {name for name, _ in attributes}))
    parser.handle_data, parser.handle_comment = said.append, lambda text: seen.append(("comment", set()))
    parser.feed(html)
    assert {tag for tag, _ in seen} == {"style", "p", "span", "h3"}
    assert set().union(*(names for _, names in seen)) <= {"class", "title", "style"}
    assert all("".join(said).count(text) == 2 for text in bad)


# ---- the heat map's parts --------------------------------------------------------------------------------------


def test_half_of_the_gain_is_in_the_fewest_tokens_that_hold_it():
    assert half_of_the_gain(np.array([8.0, 1, 1, 1, -9])) == 1 / 5
    assert half_of_the_gain(np.ones(10)) == 1 / 2
    assert half_of_the_gain(-np.ones(4)) == 0


def test_tokens_that_share_the_bytes_of_a_letter_are_shown_as_one():
    raw = [b"a", b"\xf0\x9f", b"\x98\x80", b"!"]
    found = pieces(
        lambda ids: b"".join(raw[i] for i in ids).decode(errors="replace"), [0, 1, 2, 3], np.array([1.0, 2, -4]), 4
    )
    assert [(piece.text, piece.gain) for piece in found] == [("a", None), ("😀", 3.0), ("!", -4.0)]
    assert [piece.kind for piece in found][1:] == ["more", "less"]
    assert found[2].weight == STRONGEST
