"""Texts: every format read back, every mistake named with its place, and tokens that lose nothing."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import core.hub
from core.errors import UserError, WrongSetting
from core.registry import DATASETS
from core.types import AuditData
from dataset import text_hub
from dataset.text_files import paragraphs_of, read_table
from dataset.tokens import byte_pairs, tokenised

TEXTS = [f"Record {i}, with a comma and a \N{SNOWMAN}." for i in range(40)]
LABELS = ["sport", "world"] * 20


def build(name: str, folder: Path, seed: int = 0, **settings) -> AuditData:
    return DATASETS[name](folder, seed, *DATASETS.rest(name), **DATASETS.bind(name, settings))


def all_texts(data: AuditData) -> list[str]:
    return sorted([*data.pool.texts, *data.population.texts])


def written(folder: Path, ending: str) -> Path:
    path = folder / f"mine{ending}"
    if ending == ".txt":
        path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    elif ending == ".jsonl":
        rows = zip(TEXTS, LABELS, strict=True)
        path.write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in rows), encoding="utf-8")
    elif ending == ".csv":
        rows = [f'"{text}",{label}' for text, label in zip(TEXTS, LABELS, strict=True)]
        path.write_text("\ufefftext,label\n" + "\n".join(rows), encoding="utf-8")
    else:
        import pyarrow as arrow
        from pyarrow import parquet

        parquet.write_table(arrow.table({"text": TEXTS, "label": LABELS}), path)
    return path


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_records(tmp_path, ending):
    written(tmp_path, ending)
    label = {} if ending == ".txt" else {"label_column": "label", "group_columns": ["label"]}
    data = build("text_file", tmp_path, file=f"mine{ending}", **label)
    assert data.is_text and (len(data.pool), len(data.population)) == (30, 10)
    assert all_texts(data) == sorted(TEXTS)
    for records in (data.pool, data.population):
        assert [TEXTS[i] for i in records.ids] == list(records.texts)
        if label:
            assert records.groups["label"].tolist() == [LABELS[i] for i in records.ids]
            assert records.y.tolist() == [["sport", "world"].index(LABELS[i]) for i in records.ids]


def test_records_of_a_text_can_be_separated_by_a_marker(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n---\n\n---\nthree\r\nfour\n--- \nfive\n---\nsix\n")
    data = build("text_file", tmp_path, file="a.txt", separator="---")
    assert all_texts(data) == ["five", "one\n\ntwo", "six", "three\nfour"]


def test_a_second_file_is_the_population_and_shares_the_labels(tmp_path):
    written(tmp_path, ".jsonl")
    (tmp_path / "other.jsonl").write_text('{"text": "new", "label": "world", "id": 7}\n')
    settings = {"file": "mine.jsonl", "population_file": "other.jsonl", "label_column": "label"}
    data = build("text_file", tmp_path, **settings)
    assert (len(data.pool), data.population.texts, data.population.y.tolist()) == (40, ("new",), [1])
    (tmp_path / "other.jsonl").write_text('{"text": "new", "label": "art"}\n')
    assert set(build("text_file", tmp_path, **settings).pool.y) == {1, 2}
    with pytest.raises(WrongSetting, match=r"label_column: .*mine.jsonl has no column 'kind'"):
        build("text_file", tmp_path, **{**settings, "label_column": "kind"})


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.txt", b"", {}, r"a\.txt is empty"),
        ("a.jsonl", b"\n\n", {}, r"a\.jsonl is empty"),
        ("a.csv", b"text\n", {}, r"a\.csv is empty"),
        ("a.txt", b"good\nb\xe9d\n", {}, r"a\.txt:2: not utf-8 \(byte 0xe9\).*latin-1"),
        ("a.txt", b"x\n", {"encoding": "utf-9"}, r"data\.encoding: there is no encoding 'utf-9'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', {}, r"a\.jsonl:2: not a line of JSON"),
        ("a.jsonl", b'["x"]\n', {}, r"a\.jsonl:1: should be an object"),
        ("a.jsonl", b'{"texts": "x"}\n', {}, r"data\.text_column: .* has no column 'text'; did you mean 'texts'"),
        ("a.jsonl", b'{"body": "x"}\n', {}, r"has no column 'text'; it has body"),
        ("a.jsonl", b'{"text": 5}\n', {}, r"row 0 of 'text' is no text but int"),
        ("a.csv", b"text,label\na,b,c\n", {}, r"a\.csv:2: has 3 columns instead of 2"),
        ("a.csv", b'text\n"open\n', {}, r"a\.csv:\d: not valid csv"),
        ("a.parquet", b"PAR1 no", {}, r"a\.parquet: not a readable parquet file"),
        ("a.docx", b"x", {}, r"its ending says nothing about its format; there are: \.txt"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, name, content, settings, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        build("text_file", tmp_path, file=name, **settings)


def test_a_missing_file_names_where_it_was_looked_for(tmp_path):
    with pytest.raises(WrongSetting, match=r"data\.file: gone\.txt is neither here nor in"):
        build("text_file", tmp_path, file="gone.txt")


def test_copies_are_counted_aloud(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("one thing\n" * 5 + "another\nthird\nfourth\n")
    with caplog.at_level(logging.WARNING, "dataset"):
        build("text_file", tmp_path, file="a.txt")
    assert "4 of 8 records are copies of others" in caplog.text


AG_ROWS = {"train": [(3, "Oil", "It rises."), (1, "Peace", "Talks, again.")] * 3, "test": [(4, "Chips", "Smaller.")]}


@pytest.mark.parametrize("kind", ["csv", "csv_with_header", "parquet", "hub_parquet", "saved"])
def test_ag_news_is_read_in_every_format_it_is_passed_on_in(tmp_path, kind):
    folder = tmp_path / "agnews"
    folder.mkdir()
    for split, rows in AG_ROWS.items():
        if kind.startswith("csv"):
            header = '"Class Index","Title","Description"\n' if kind.endswith("header") else ""
            lines = [f'"{label}","{title}","{rest}"\n' for label, title, rest in rows]
            (folder / f"{split}.csv").write_text(header + "".join(lines))
        elif "parquet" in kind:
            import pyarrow as arrow
            from pyarrow import parquet

            table = {"text": [f"{t} {r}" for _, t, r in rows], "label": [label - 1 for label, _, _ in rows]}
            name = f"{split}.parquet" if kind == "parquet" else f"data/{split}-00000-of-00001.parquet"
            (folder / name).parent.mkdir(exist_ok=True)
            parquet.write_table(arrow.table(table), folder / name)
    if kind == "saved":
        import datasets

        splits = {
            split: datasets.Dataset.from_dict(
                {"text": [f"{t} {r}" for _, t, r in rows], "label": [c - 1 for c, *_ in rows]}
            )
            for split, rows in AG_ROWS.items()
        }
        datasets.DatasetDict(splits).save_to_disk(folder)
    data = build("agnews", tmp_path)
    assert data.pool.texts == ("Oil It rises.", "Peace Talks, again.") * 3
    assert data.population.texts == ("Chips Smaller.",)
    assert data.pool.y.tolist() == [1, 0] * 3 and data.population.y.tolist() == [2]


def test_half_of_ag_news_is_an_error(tmp_path):
    (tmp_path / "train.csv").write_text('"1","a","b"\n')
    with pytest.raises(UserError, match="its test file is missing"):
        build("agnews", tmp_path)


@pytest.mark.parametrize("name", ["agnews", "hf:someone/texts"])
def test_without_a_network_one_error_says_what_to_put_where(tmp_path, name, monkeypatch):
    monkeypatch.setattr(text_hub, "unreachable", lambda url: "no route")
    with pytest.raises(UserError, match=rf"cannot be downloaded: no route\. Put .*{tmp_path.name}"):
        build(name, tmp_path)


def test_any_dataset_that_was_saved_to_disk_is_read(tmp_path):
    import datasets

    part = datasets.Dataset.from_dict({"body": TEXTS, "label": LABELS})
    part.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict(train=part, held_out=part.select(range(3))).save_to_disk(tmp_path / "split")
    data = build("hf:plain", tmp_path, text_column="body")
    assert all_texts(data) == sorted(TEXTS)
    data = build(f"hf:{tmp_path / 'split'}", Path("."), text_column="body", population_split="held_out")
    assert data.population.texts == tuple(TEXTS[:3]) and len(data.pool) == 40
    with pytest.raises(WrongSetting, match=r"data\.population_split: .* has no split 'test'; it has train, held_out"):
        build("hf:split", tmp_path, text_column="body", population_split="test")
    with pytest.raises(WrongSetting, match="has no column 'text'; it has body, label"):
        build("hf:plain", tmp_path)


def test_offline_is_known_without_asking(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert core.hub.unreachable("http://localhost:1") == "HF_HUB_OFFLINE is set"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "refused" in core.hub.unreachable("http://localhost:1", timeout=1)


def test_docstrings_are_thousands_of_different_sentences():
    data = build("docstrings", Path("."), num_records=3000)
    texts = all_texts(data)
    assert len(set(texts)) == 3000 and all(60 <= len(text) <= 300 and text.endswith(".") for text in texts)
    assert {"numpy", "scipy"} == set(data.pool.groups["package"])
    assert texts == all_texts(build("docstrings", Path("."), seed=1, num_records=3000))
    with pytest.raises(WrongSetting, match=r"num_records: 1000000 is more than the \d+ paragraphs"):
        build("docstrings", Path("."), num_records=1_000_000)


def test_prose_is_told_from_markup():
    found = [text for text, _ in paragraphs_of("numpy")]
    assert not [text for text in found if ">>>" in text or "----" in text or " : " in text[:20]]


def raw(tmp_path, texts, population=("some other text here",) * 2) -> AuditData:
    for name, part in (("pool.jsonl", texts), ("other.jsonl", population)):
        (tmp_path / name).write_text("".join(json.dumps({"text": t}) + "\n" for t in part))
    return build("text_file", tmp_path, file="pool.jsonl", population_file="other.jsonl")


def tokens(data: AuditData, folder: Path, tokenizer: str | None = None, **settings) -> AuditData:
    tokenizer = tokenizer or byte_pairs([*data.pool.texts, *data.population.texts], 300)
    given = {"context": None, "max_length": None, "truncate": True, "cache": folder / "cache", **settings}
    return tokenised(data, tokenizer, **given)


def test_tokens_decode_to_the_texts_and_padding_is_beyond_their_lengths(tmp_path):
    from tokenizers import Tokenizer

    data = tokens(raw(tmp_path, TEXTS), tmp_path)
    decoder = Tokenizer.from_str(data.tokenizer)
    assert data.num_classes == decoder.get_vocab_size() == 300
    assert data.pool.x.dtype == np.int32 and data.pool.x.shape[1] == data.population.x.shape[1]
    for row, length, text in zip(data.pool.x, data.pool.lengths, data.pool.texts, strict=True):
        assert decoder.decode(row[:length].tolist()) == text
        assert not row[length:].any()
    assert max(data.pool.lengths.max(), data.population.lengths.max()) == data.input_shape[0]


def test_texts_of_fewer_than_two_tokens_are_left_out_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "dataset"):
        data = tokens(raw(tmp_path, ["", "x", *TEXTS]), tmp_path)
    assert len(data.pool) == 40 and data.pool.ids.tolist() == list(range(2, 42))
    assert "2 of 42 texts of the pool are left out: fewer than two tokens" in caplog.text
    with pytest.raises(UserError, match="no text of the pool has two tokens"):
        tokens(raw(tmp_path, ["a", "b"]), tmp_path)


def test_long_texts_are_cut_off_and_counted_or_refused(tmp_path, caplog):
    data = raw(tmp_path, ["short one", "long " * 50, "also long " * 20])
    whole = tokens(data, tmp_path)
    with caplog.at_level(logging.INFO, "dataset"):
        cut = tokens(data, tmp_path, context=12)
    assert cut.input_shape == (12,) and "2 of 3 texts of the pool are cut off after 12 tokens" in caplog.text
    np.testing.assert_array_equal(cut.pool.x, whole.pool.x[:, :12])
    assert cut.pool.lengths.max() == 12
    with pytest.raises(
        WrongSetting, match=r"data\.truncate: 2 texts of the pool have more than 9 tokens \(the first is number 1"
    ):
        tokens(data, tmp_path, context=20, max_length=9, truncate=False)
    with pytest.raises(WrongSetting, match=r"data\.max_length: 30 is more than the 20 tokens"):
        tokens(data, tmp_path, context=20, max_length=30)


def test_large_datasets_are_tokenised_once(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.tokens.WORTH_A_CACHE", 0)
    data = raw(tmp_path, TEXTS)
    one = tokens(data, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(files) == 4
    monkeypatch.setattr("dataset.tokens._encode", lambda *_: pytest.fail("tokenised again"))
    other = tokens(data, tmp_path)
    np.testing.assert_array_equal(one.pool.x, other.pool.x)
    monkeypatch.undo()
    monkeypatch.setattr("dataset.tokens.WORTH_A_CACHE", 0)
    tokens(data, tmp_path, tokenizer=byte_pairs(TEXTS, 280))
    assert len(list((tmp_path / "cache").iterdir())) == 8


def test_the_tokenizer_is_the_same_each_time_and_encodes_any_text(tmp_path):
    from tokenizers import Tokenizer

    one = byte_pairs(TEXTS, 300)
    assert one == byte_pairs(TEXTS, 300)
    strange = "\N{SNOWMAN} \x00\u4e2d never seen"
    encoder = Tokenizer.from_str(one)
    assert encoder.decode(encoder.encode(strange).ids) == strange


def test_selected_records_keep_all_that_is_known_of_them(tmp_path):
    data = tokens(raw(tmp_path, TEXTS), tmp_path)
    some = data.pool.select(np.array([5, 2]))
    assert some.texts == (TEXTS[5], TEXTS[2]) and some.ids.tolist() == [5, 2]
    np.testing.assert_array_equal(some.lengths, data.pool.lengths[[5, 2]])


def test_columns_of_a_table_are_as_long_as_each_other(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "b": 1}\n{"text": "y"}\n')
    assert dict(read_table(path).columns) == {"text": ["x", "y"], "b": [1, None]}
