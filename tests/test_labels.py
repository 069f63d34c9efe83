"""csv files in every dialect, and what is wrong with them."""

import pytest

from s2f import files
from s2f.errors import DatasetError


@pytest.mark.parametrize(
    "text",
    [
        *("a,b\n1,x y\n2,\n", "a\tb\n1\tx y\n2\t\n", "a;b\n1;x y\n2;\n"),
        *("\ufeffa,b\r\n1,x y\r\n\r\n2,\r\n", "a ,b ,\n1 ,x y ,\n2\n"),
        *('a, "b"\n1, "x y" \n2, ""', " a \t b \n 1 \t x y \n 2\n"),
    ],
)
def test_every_dialect_gives_the_same_cells(text, tmp_path):
    (tmp_path / "t.csv").write_bytes(text.encode())
    table = files.read_table(tmp_path / "t.csv")
    assert (table.columns, table.rows) == (("a", "b"), (("1", "x y"), ("2", "")))
    assert table.column(1) == ["x y", ""] and files.canonical("VoxCeleb2_ID ") == "voxceleb2id"


def test_a_broken_table_is_refused(tmp_path):
    for content, why in (
        *((None, "cannot be read: No such file"), (b"", "is empty"), (b"a\n\xe9\n", "not UTF-8")),
        (b"a,b\n1,2\n1,2,3\n", "line 3.*3 cells where the header has 2"),
        *((b"a,a\n1,2\n", "two columns 'a'"), (b'a,b\n1,"x\n2,y\n', "quote")),
    ):
        if content is not None:
            (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(DatasetError, match=rf"t\.csv.*{why}"):
            files.read_table(tmp_path / "t.csv")
