import hashlib
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from core.errors import UserError
from dataset import binary_csv
from dataset.purchase_texas import PURCHASE100, TEXAS100, Published, load, read
from tests.dataset.conftest import Server, make_tgz

ROWS, COLUMNS = 57, 13
DRAW = np.random.default_rng(1)
BITS = DRAW.integers(0, 2, size=(ROWS, COLUMNS))
LABELS = np.concatenate([[1, 10, 100], DRAW.integers(1, 101, size=ROWS - 3)])

PURCHASE = replace(PURCHASE100, rows=ROWS, columns=(COLUMNS,))
TEXAS = replace(TEXAS100, rows=ROWS, columns=(COLUMNS, COLUMNS + 1))


def text(rows, cell="{}") -> bytes:
    return "".join(",".join(cell.format(value) for value in np.atleast_1d(row)) + "\n" for row in rows).encode()


def files(published: Published, bits=BITS, labels=LABELS) -> dict[str, bytes]:
    if published.labels is None:
        return {published.features: text(np.column_stack([labels, bits]))}
    return {published.features: text(bits), published.labels: text(labels)}


def unpack(tmp_path, published: Published, **content) -> None:
    for name, data in files(published, **content).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)


def archive(tmp_path, published: Published, **content):
    return make_tgz(tmp_path / published.url.rsplit("/", 1)[-1], files(published, **content))


def read_bits(published: Published, data_dir) -> tuple[np.ndarray, np.ndarray]:
    table, labels = read(published, data_dir)
    return table.features(np.arange(len(labels))), labels


both = pytest.mark.parametrize("published", [PURCHASE, TEXAS], ids=["purchase", "texas"])


@both
@pytest.mark.parametrize("lay_out", [unpack, archive])
def test_the_published_format_is_read(tmp_path, published, lay_out):
    lay_out(tmp_path, published)
    for _ in ("the source", "the cache"):
        bits, labels = read_bits(published, tmp_path)
        np.testing.assert_array_equal(bits, BITS)
        np.testing.assert_array_equal(labels, LABELS - 1)
        assert bits.dtype == np.float32 and labels.dtype == np.int64
    assert (tmp_path / f"{published.name}_cache.npz").exists()


@both
def test_pool_and_population_are_all_records_once(tmp_path, published):
    unpack(tmp_path, published)
    data = load(published, tmp_path, seed=3, fraction=0.25)
    assert len(data.population) == round(ROWS / 4) and data.num_classes == 100
    together = np.column_stack(
        [np.concatenate([data.pool.y, data.population.y]), np.concatenate([data.pool.x, data.population.x])]
    )
    original = np.column_stack([LABELS - 1, BITS])
    assert sorted(map(tuple, together.astype(int))) == sorted(map(tuple, original))


def test_texas_is_found_where_the_original_tool_unpacks_it(tmp_path):
    (tmp_path / "dataset_texas").mkdir()
    for name, content in files(TEXAS).items():
        (tmp_path / "dataset_texas" / name.rsplit("/", 1)[-1]).write_bytes(content)
    np.testing.assert_array_equal(read_bits(TEXAS, tmp_path)[0], BITS)


@both
def test_the_cache_serves_until_the_source_changes(tmp_path, published, monkeypatch):
    unpack(tmp_path, published)
    read(published, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("dataset.purchase_texas._parse", lambda *_: pytest.fail("parsed again"))
        read(published, tmp_path)
    unpack(tmp_path, published, bits=1 - BITS)  # same size, another content
    np.testing.assert_array_equal(read_bits(published, tmp_path)[0], 1 - BITS)
    np.testing.assert_array_equal(read_bits(published, tmp_path)[0], 1 - BITS)


def test_changed_labels_alone_are_noticed(tmp_path):
    unpack(tmp_path, TEXAS)
    read(TEXAS, tmp_path)
    unpack(tmp_path, TEXAS, labels=LABELS[::-1])
    np.testing.assert_array_equal(read(TEXAS, tmp_path)[1], LABELS[::-1] - 1)


def test_the_cache_alone_is_enough_and_says_what_it_was_made_of(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    unpack(tmp_path, PURCHASE)
    source = tmp_path / "dataset_purchase"
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    read(PURCHASE, tmp_path)
    assert sha256 in caplog.text
    caplog.clear()
    source.unlink()
    np.testing.assert_array_equal(read_bits(PURCHASE, tmp_path)[0], BITS)
    assert sha256 in caplog.text
    with np.load(tmp_path / "purchase100_cache.npz", allow_pickle=False) as cache:
        assert json.loads(str(cache["stamp"]))["features"] == sha256


def test_a_damaged_cache_is_made_again(tmp_path, caplog):
    unpack(tmp_path, PURCHASE)
    read(PURCHASE, tmp_path)
    cache = tmp_path / "purchase100_cache.npz"
    whole = cache.read_bytes()
    middle = whole.index(b"packed.npy") + 160  # behind the headers, in the bits
    for damaged in (whole[: len(whole) // 2], b"", whole[:middle] + b"XXXX" + whole[middle + 4 :]):
        caplog.clear()
        cache.write_bytes(damaged)
        np.testing.assert_array_equal(read_bits(PURCHASE, tmp_path)[0], BITS)
        assert "made again" in caplog.text


def test_a_cache_is_never_a_pickle(tmp_path):
    from tests.dataset.conftest import hostile_pickle

    unpack(tmp_path, PURCHASE)
    (tmp_path / "purchase100_cache.npz").write_bytes(hostile_pickle(tmp_path / "was here"))
    np.testing.assert_array_equal(read_bits(PURCHASE, tmp_path)[0], BITS)
    assert not (tmp_path / "was here").exists()


@both
def test_what_is_missing_is_downloaded(server: Server, tmp_path, published):
    (tmp_path / "theirs").mkdir()
    server.files["x.tgz"] = archive(tmp_path / "theirs", published).read_bytes()
    here = replace(published, url=server.url("x.tgz"))
    np.testing.assert_array_equal(read_bits(here, tmp_path / "ours")[0], BITS)
    np.testing.assert_array_equal(read_bits(here, tmp_path / "ours")[0], BITS)
    assert len(server.ranges) == 1


@both
def test_without_network_the_message_names_the_file_and_the_way_out(closed_port, tmp_path, published):
    offline = replace(published, url=f"http://127.0.0.1:{closed_port}/{published.url.rsplit('/', 1)[-1]}")
    with pytest.raises(
        UserError, match=r"cannot download dataset_\w+\.tgz .* by hand .*python main\.py --cf configs/quickstart"
    ):
        read(offline, tmp_path)


@both
@pytest.mark.parametrize(
    "content",
    [{"bits": BITS[:-1], "labels": LABELS[:-1]}, {"bits": np.vstack([BITS, BITS[:1]]), "labels": [*LABELS, 1]}],
)
def test_another_number_of_rows_is_refused(tmp_path, published, content):
    unpack(tmp_path, published, **content)
    with pytest.raises(UserError, match=f"has {ROWS}"):
        read(published, tmp_path)
    assert not (tmp_path / f"{published.name}_cache.npz").exists()


def test_another_number_of_features_or_labels_is_refused(tmp_path):
    unpack(tmp_path, PURCHASE, bits=BITS[:, 1:])
    with pytest.raises(UserError, match=r"12 features a row, purchase100 has 13"):
        read(PURCHASE, tmp_path)
    unpack(tmp_path, TEXAS, labels=LABELS[1:])
    with pytest.raises(UserError, match="57 rows and 56 labels"):
        read(TEXAS, tmp_path)


@pytest.mark.parametrize(("label", "message"), [(0, "label 0 is not in 1 .. 100"), (101, "label 101 is not in")])
@both
def test_a_label_out_of_range_is_refused_with_its_line(tmp_path, published, label, message):
    unpack(tmp_path, published, labels=np.where(np.arange(ROWS) == 4, label, LABELS))
    with pytest.raises(UserError, match=f"line 5: {message}"):
        read(published, tmp_path)


def spoiled(line: int, column: int, value: str) -> bytes:
    rows = [[str(cell) for cell in row] for row in np.column_stack([LABELS, BITS])]
    rows[line - 1][column - 1] = value
    return "\n".join(map(",".join, rows)).encode()


@pytest.mark.parametrize(
    ("line", "column", "value", "message"),
    [
        (40, 3, "2", r"dataset_purchase:40:3: '2' is not 0 or 1"),
        (57, 14, "x", r"dataset_purchase:57:14: 'x' is not 0 or 1"),
        (1, 2, "", r"dataset_purchase:1:2: '' is not 0 or 1"),
        (2, 2, "nan", r"dataset_purchase:2:2: 'nan' is not 0 or 1"),
        (9, 1, "a", r"dataset_purchase:9:1: 'a' is not a label"),
        (9, 1, "1.5", r"dataset_purchase:9:1: '1.5' is not a label"),
        (9, 1, "", r"dataset_purchase:9:1: '' is not a label"),
        (30, 7, "1,0", r"dataset_purchase:30: has 15 columns, the first line 14"),
    ],
)
@pytest.mark.parametrize("block", [64, 1 << 24])
def test_a_bad_cell_is_named_by_line_and_column(tmp_path, monkeypatch, block, line, column, value, message):
    monkeypatch.setattr(binary_csv, "BLOCK", block)
    (tmp_path / "dataset_purchase").write_bytes(spoiled(line, column, value))
    with pytest.raises(UserError, match=message):
        read(PURCHASE, tmp_path)


def test_another_separator_is_not_taken_for_a_comma(tmp_path):
    lines = text(np.column_stack([LABELS, BITS])).splitlines()
    lines[19] = lines[19][:-2] + b";" + lines[19][-1:]
    (tmp_path / "dataset_purchase").write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match="dataset_purchase:20: has 13 columns, the first line 14"):
        read(PURCHASE, tmp_path)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "dataset_purchase").write_bytes(b"")
    with pytest.raises(UserError, match="dataset_purchase is empty"):
        read(PURCHASE, tmp_path)


@pytest.mark.parametrize("cell", ["{}", "{:.1f}", "{:.3e}", " {}"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("block", [1, 100, 1 << 24])
def test_the_table_is_the_same_however_it_is_written_and_cut(tmp_path, monkeypatch, cell, ending, last, block):
    monkeypatch.setattr(binary_csv, "BLOCK", block)
    content = text(np.column_stack([LABELS, BITS]), cell).replace(b"\n", ending)
    (tmp_path / "dataset_purchase").write_bytes(content if last else content.removesuffix(ending))
    bits, labels = read_bits(PURCHASE, tmp_path)
    np.testing.assert_array_equal(bits, BITS)
    np.testing.assert_array_equal(labels, LABELS - 1)


def test_the_published_layout_takes_the_fast_path(tmp_path, monkeypatch):
    monkeypatch.setattr(binary_csv, "_any_width", lambda *_: pytest.fail("read cell by cell"))
    for published in (PURCHASE, TEXAS):
        unpack(tmp_path, published)
        read(published, tmp_path)
