"""Tables of others: what is a number, what is text, what is a header, and what is refused."""

import numpy as np
import pytest

from core.errors import UserError
from core.tables import INDEX, as_member, as_text, column_of, read_table


@pytest.fixture
def csv(tmp_path):
    def write(text: str, name: str = "t.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_column_has_the_type_of_all_its_cells(csv):
    table = read_table(csv('id,n,x,yes,zip,name\n7,1,0.5,true,01234,"a, b"\n8,2,NA,False,99999,c\n'))
    kinds = {name: column.dtype.kind for name, column in table.items()}
    assert kinds == {"id": "i", "n": "i", "x": "f", "yes": "b", "zip": "U", "name": "U"}
    assert np.isnan(table["x"][1]) and table["zip"][0] == "01234" and table["name"][0] == "a, b"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,2\n", ["a", "b"]),
        ("1.5,2\n3,4\n", ["0", "1"]),  # no header
        ("0,1\n3.5,4\n", ["0", "1"]),  # pandas' names of nameless columns
        (",0,1\n0,3.5,4\n", [INDEX, "0", "1"]),  # and its index
        ("\ufeffa,b\n1,2\n", ["a", "b"]),
    ],
)
def test_the_header_is_found(csv, text, names):
    assert list(read_table(csv(text))) == names


def test_the_same_table_in_every_format(csv, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "x": np.array([0.5, 1.5]),
        "n": np.array([1, 2]),
        "s": np.array(["a", "b"]),
        "m": np.array([True, False]),
    }
    parquet.write_table(pyarrow.table({k: v.tolist() for k, v in columns.items()}), tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", **columns)
    tables = [
        read_table(csv("x,n,s,m\n0.5,1,a,true\n1.5,2,b,false\n")),
        *(read_table(tmp_path / f"t.{k}") for k in ("parquet", "npz")),
    ]
    for table in tables:
        assert {k: (v.dtype.kind, v.tolist()) for k, v in table.items()} == {
            k: (v.dtype.kind, v.tolist()) for k, v in columns.items()
        }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n3\n", "row 3 has 1 cells, the first has 2"),
        ("a,a\n1,2\n", "column 'a' is there twice"),
        ("", "no rows"),
        ("a,b\n", "no rows"),
        ('a,b\n"1,2\n', "not a"),
    ],
)
def test_what_is_no_table_is_refused_with_its_place(csv, text, said):
    with pytest.raises(UserError, match=said) as caught:
        read_table(csv(text))
    assert "t.csv" in str(caught.value)


def test_other_files_are_refused_by_name(tmp_path, csv):
    for name, content in (("x.parquet", b"PAR1 nothing"), ("x.npz", b"PK\3\4"), ("x.csv", b"\xff\xfe\0a")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_table(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"a table is a file of the type"):
        read_table(csv("a\n1\n", "t.xlsx"))


def test_a_column_that_is_not_there_is_answered_with_what_may_be_meant(tmp_path):
    with pytest.raises(UserError, match="no column 'membr': did you mean 'member'"):
        column_of({"member": np.zeros(1), "score": np.zeros(1)}, "membr", tmp_path)


@pytest.mark.parametrize("column", [[1, 0], [1.0, 0.0], ["True", "false"], ["in", "OUT"], ["1", "0"], [True, False]])
def test_membership_is_read_from_whatever_says_yes_and_no(column):
    assert as_member(np.array(column), "m").tolist() == [True, False]


@pytest.mark.parametrize("column", [[1, 2], [0.5, 0.0], ["yes", "perhaps"], [np.nan, 1.0]])
def test_other_memberships_are_refused(column):
    with pytest.raises(UserError, match="m: membership is"):
        as_member(np.array(column), "m")


def test_ids_are_written_as_they_were():
    assert as_text(np.array([1.0, 20.0])).tolist() == ["1", "20"]
    assert as_text(np.array(["01", "b"])).tolist() == ["01", "b"]
