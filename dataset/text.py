"""Texts: files of one's own, AG News, anything that the library `datasets` reads, and prose that is installed already.

They come as they were read; `dataset.tokens.tokenised` turns them into token ids once the tokenizer is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from core.errors import UserError, WrongSetting
from core.registry import DATASETS
from core.types import AuditData
from dataset.splits import divide, divide_owners
from dataset.text_files import Table, agnews_files, labels_of, read_table, records_of, resolve

Fraction = Annotated[float, Interval(gt=0, lt=1)]


@DATASETS.register("text_file", summary="texts of your own: .txt, .jsonl, .csv or .parquet", images=False, text=True)
def text_file(
    data_dir: Path,
    seed: int,
    *,
    file: Path,
    text_column: str = "text",
    label_column: str | None = None,
    id_column: str | None = None,
    group_columns: tuple[str, ...] = (),
    owner: str | None = None,
    separator: str | None = None,
    encoding: str = "utf-8",
    non_member_file: Path | None = None,
    population_file: Path | None = None,
    population_fraction: Fraction = 0.25,
) -> AuditData:
    """The texts of a file, one a line (.txt, .jsonl) or a row (.csv, .parquet).

    - file: where the texts are, from here or from data.data_dir; .txt, .jsonl, .csv, .tsv or .parquet
    - text_column: the column or key that holds the text
    - label_column: a column of labels, for reports
    - id_column: what you call each record; its row, counted from 0, if left out
    - group_columns: columns that reports may slice by
    - owner: the column of whose text it is, a group, too; owners are then on one side of every division (owners.md)
    - separator: of a .txt, the line between two records, such as `---`; one record a line if left out
    - encoding: of .txt, .jsonl and .csv
    - non_member_file: of a model that is given: texts it did not train on, where `file` has those it did; the group
      `member` then says which is which
    - population_file: texts that no model trains on; drawn from `file` if left out
    - population_fraction: without a population_file, the share of the records that no model trains on
    """
    columns = (text_column, label_column, id_column, _with(owner, group_columns))
    table = read_table(resolve(data_dir, file, "data.file"), separator, encoding)
    if non_member_file is not None:
        others = read_table(resolve(data_dir, non_member_file, "data.non_member_file"), separator, encoding)
        table, columns = joined(table, others, columns), (*columns[:3], (*columns[3], "member"))
    if population_file is None:
        return _divided(table, columns, seed, population_fraction, owner)
    other = read_table(resolve(data_dir, population_file, "data.population_file"), separator, encoding)
    return _official(table, other, columns)


@DATASETS.register("agnews", summary="120,000 + 7,600 short news texts of 4 kinds (download)", images=False, text=True)
def agnews(data_dir: Path, seed: int) -> AuditData:
    """AG News (Zhang et al. 2015) in its official split: the pool is the training set, the population the test set.

    Read from data.data_dir: the csv files of its authors, parquet files (as the hub has them, too), a directory that
    the library `datasets` saved, or files of its cache; otherwise from that cache, or downloaded by it.
    """
    found = agnews_files(data_dir)
    if found is None:
        from dataset.text_hub import load

        where = f"{data_dir / 'agnews'}"
        by_hand = (
            f"Put train.csv and test.csv (class, title, description), or train.parquet and test.parquet (text, label), "
            f"or a directory saved by datasets' save_to_disk, into {where}; or run without it: "
            "python main.py --cf configs/gpt2_quickstart.yaml"
        )
        found = load("fancyzhx/ag_news", None, "train", "test", by_hand)
    pool, population = found
    assert population is not None
    return _official(pool, population, ("text", "label", None, ()))


@DATASETS.register("hf:*", summary="any dataset of texts that the library `datasets` reads", images=False, text=True)
def hugging_face(
    data_dir: Path,
    seed: int,
    name: str,
    *,
    text_column: str = "text",
    label_column: str | None = None,
    id_column: str | None = None,
    group_columns: tuple[str, ...] = (),
    owner: str | None = None,
    subset: str | None = None,
    split: str = "train",
    population_split: str | None = None,
    population_fraction: Fraction = 0.25,
) -> AuditData:
    """`hf:<name>` of the hub, or `hf:<path>` of a local directory (saved by save_to_disk, or of parquet, csv, json).

    - text_column: the column that holds the text
    - label_column: a column of labels, for reports
    - id_column: what the dataset calls each record; its row if left out
    - group_columns: columns that reports may slice by
    - owner: the column of whose text it is, a group, too; owners are then on one side of every division (owners.md)
    - subset: the dataset's configuration, where it has several
    - split: the split that models train on
    - population_split: the split that no model trains on; drawn from `split` if left out
    - population_fraction: without a population_split, the share of the records that no model trains on
    """
    from dataset.text_hub import load

    local = next((path for path in (Path(name).expanduser(), data_dir / name) if path.exists()), None)
    by_hand = f"Put the dataset into a directory, and name that: data.dataset hf:{data_dir / Path(name).name}"
    pool, population = load(str(local or name), subset, split, population_split, by_hand)
    columns = (text_column, label_column, id_column, _with(owner, group_columns))
    return (
        _divided(pool, columns, seed, population_fraction, owner)
        if population is None
        else _official(pool, population, columns)
    )


@DATASETS.register(
    "docstrings", summary="prose from the documentation inside installed packages", images=False, text=True
)
def docstrings(
    data_dir: Path,
    seed: int,
    *,
    num_records: Annotated[int, Ge(8)] = 4000,
    owner: Literal["package", "file"] | None = None,
    population_fraction: Fraction = 0.25,
) -> AuditData:
    """Paragraphs of 60 to 300 letters from the docstrings of numpy and scipy: real text that is installed already.

    The same for the same versions of the two; the groups say which package, and with `owner: file` which file, a
    paragraph is from.

    - num_records: how many of the paragraphs, evenly spread; an error if there are fewer
    - owner: the group whose records belong together; owners are then on one side of every division (owners.md)
    - population_fraction: share of the records that no model trains on
    """
    from dataset.text_files import paragraphs_of

    found = paragraphs_of("numpy", "scipy")
    if num_records > len(found):
        raise WrongSetting("data.num_records", f"{num_records} is more than the {len(found)} paragraphs there are")
    kept = [found[i * len(found) // num_records] for i in range(num_records)]
    columns = {
        "text": [text for text, _ in kept],
        "package": [file.partition("/")[0] for _, file in kept],
        "file": [file for _, file in kept],
    }
    groups = (
        "package",
        *(["file"] if owner == "file" else []),
    )  # of the files there are hundreds: no group for reports
    return _divided(Table("docstrings", columns), ("text", None, None, groups), seed, population_fraction, owner)


def joined(members: Table, others: Table, columns: Columns) -> Table:
    """One table of texts that a given model trained on, and of texts that it did not, with a column that says so."""
    text, label, name, groups = columns
    wanted = {"data.text_column": [text], "data.label_column": [label], "data.id_column": [name]}
    wanted["data.group_columns"] = list(groups)
    found = {
        column: [*members.column(column, key), *others.column(column, key)]
        for key, of_key in wanted.items()
        for column in of_key
        if column is not None
    }
    both = set(members.column(text, "data.text_column")) & set(others.column(text, "data.text_column"))
    if both:
        raise WrongSetting(
            "data.non_member_file",
            f"{len(both)} texts are in {members.source}, too (the first: {min(map(str, both))[:60]!r}): a text cannot "
            "be a member and a non-member. Leave it out of one of them",
        )
    member = ["member"] * len(members) + ["non-member"] * len(others)
    return Table(f"{members.source} and {others.source}", {**found, "member": member})


Columns = tuple[str, str | None, str | None, tuple[str, ...]]


def _with(owner: str | None, groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*groups, *([owner] if owner else []))))


def _divided(table: Table, columns: Columns, seed: int, fraction: float, owner: str | None = None) -> AuditData:
    records = records_of(table, *columns, labels=labels_of(columns[1], table))
    try:
        by_owner = divide_owners(records.groups[owner], seed, fraction) if owner else None
        pool, population = by_owner or divide(len(records), seed, fraction)
    except UserError as error:
        raise UserError(f"{table.source}: {error}") from None
    return AuditData(records.select(pool), records.select(population), num_classes=0)


def _official(pool: Table, population: Table, columns: Columns) -> AuditData:
    labels, there = labels_of(columns[1], pool, population), tuple(c for c in columns[3] if c in population.columns)
    of_population = (*columns[:3], there)  # reports are about the pool's groups
    parts = [records_of(t, *c, labels=labels) for t, c in ((pool, columns), (population, of_population))]
    return AuditData(*parts, num_classes=0)
