"""Tables of labels: csv files in the dialects that people and datasets have."""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from s2f.errors import DatasetError

_DELIMITERS = "\t,;"


@dataclass(frozen=True)
class CsvTable:
    """A table: cells are stripped of blanks, and rows as long as the header.

    Attributes:
        path: its file.
        columns: the header.
        rows: the cells below it, by row.
        lines: line of the file on which each row ends, from 1.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, k: int) -> list[str]:
        """List the cells of a column."""
        return [row[k] for row in self.rows]


def canonical(column: str) -> str:
    """Reduce a column's name to its letters and digits: `VoxCeleb2 ID ` is `voxceleb2id`."""
    return re.sub(r"[^a-z0-9]", "", column.lower())


def read_table(path: Path) -> CsvTable:
    """Read a csv file with a header: UTF-8, separated by whatever its header has most of.

    That is a tab, a comma or a semicolon. Blanks around cells and empty cells at the end of a row
    mean nothing; empty lines are passed over.

    Raises:
        DatasetError: if it cannot be read, is not UTF-8, has no header or two columns of one
            name, a row is longer than the header, or a quote is not closed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read: {error.strerror}", hint="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: is not UTF-8 text (byte {error.start})", hint="save it again as UTF-8"
        ) from error
    header = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)  # csv.Sniffer also guesses among letters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns: list[str] = []
    rows, lines = [], []
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            while row and not row[-1]:
                row.pop()
            if any("\n" in cell for cell in row):
                raise csv.Error("a quote is not closed before it")
            if not columns:
                columns = row
            elif len(row) > len(columns):
                raise csv.Error(f"{len(row)} cells where the header has {len(columns)}")
            elif row:
                rows.append((*row, *[""] * (len(columns) - len(row))))
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DatasetError(
            f"{path}: line {reader.line_num} cannot be read: {error}",
            hint="put cells that hold the separator into double quotes",
        ) from error
    if not columns:
        raise DatasetError(f"{path}: is empty", hint="wanted a header and a row a person")
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: has two columns {twice[0]!r}", hint="rename one of them")
    return CsvTable(path, tuple(columns), tuple(rows), tuple(lines))
