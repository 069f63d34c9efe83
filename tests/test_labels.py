"""csv files in every dialect, and what is wrong with them."""

from pathlib import Path

import pytest

from s2f import labels
from s2f.errors import DatasetError


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,x y\n2,\n",
        "a\tb\n1\tx y\n2\t\n",
        "a;b\n1;x y\n2;\n",
        "\ufeffa,b\r\n1,x y\r\n\r\n2,\r\n",
        "a ,b ,\n1 ,x y ,\n2\n",
        'a, "b"\n1, "x y" \n2, ""',
        " a \t b \n 1 \t x y \n 2\n",
    ],
)
def test_every_dialect_gives_the_same_cells(text: str, tmp_path: Path) -> None:
    table = labels.read_table(write(tmp_path / "t.csv", text))
    assert (table.columns, table.rows) == (("a", "b"), (("1", "x y"), ("2", "")))
    assert table.column(1) == ["x y", ""]


def test_a_quoted_cell_may_hold_the_separator(tmp_path: Path) -> None:
    table = labels.read_table(write(tmp_path / "t.csv", 'id,name\n1, "Carlos_Sainz,_Jr."\n'))
    assert table.rows == (("1", "Carlos_Sainz,_Jr."),)


@pytest.mark.parametrize(
    ("text", "encoding", "why"),
    [
        ("", "utf-8", "is empty"),
        ("a,b\n1,é\n", "latin-1", "not UTF-8"),
        ("a,b\n1,2\n1,2,3\n", "utf-8", "line 3.*3 cells where the header has 2"),
        ("a,a\n1,2\n", "utf-8", "two columns 'a'"),
        ('a,b\n1,"x\n2,y\n', "utf-8", "quote"),
    ],
)
def test_a_broken_table_is_refused(text: str, encoding: str, why: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", text, encoding)
    with pytest.raises(DatasetError, match=why) as caught:
        labels.read_table(path)
    assert str(path) in caught.value.message


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.csv"):
        labels.read_table(tmp_path / "none.csv")


def test_a_column_is_known_by_its_letters_and_digits() -> None:
    assert labels.canonical("VoxCeleb2 ID ") == labels.canonical("voxceleb2_id") == "voxceleb2id"
