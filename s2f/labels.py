"""Tables of labels: csv files in the dialects that people and datasets have."""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from s2f.errors import DatasetError


@dataclass(frozen=True)
class CsvTable:
    """A table: cells are stripped of blanks, and rows as long as the header."""

    columns: tuple[str, ...]  # the header
    rows: tuple[tuple[str, ...], ...]  # the cells below it
    lines: tuple[int, ...]  # line of the file on which each row ends, from 1

    def column(self, k: int) -> list[str]:
        """List the cells of a column."""
        return [row[k] for row in self.rows]


def canonical(column: str) -> str:
    """Reduce a column's name to its letters and digits: `VoxCeleb2 ID ` is `voxceleb2id`."""
    return re.sub(r"[^a-z0-9]", "", column.lower())


def read_table(path: Path) -> CsvTable:
    """Read a csv file with a header: UTF-8, separated by whatever its header has most of.

    That is a tab, a comma or a semicolon. Blanks around cells and empty cells at the end of a row
    mean nothing; empty lines are passed over. A `DatasetError` tells of a file that cannot be read,
    is not UTF-8, has no header or two columns of one name, a row longer than the header or a quote
    that is not closed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise DatasetError(message, hint="check the path") from error
    except UnicodeDecodeError as error:
        message = f"{path}: is not UTF-8 text (byte {error.start})"
        raise DatasetError(message, hint="save it again as UTF-8") from error
    header = text.split("\n", 1)[0]
    delimiter = max("\t,;", key=header.count)  # csv.Sniffer also guesses among letters
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
        message = f"{path}: line {reader.line_num} cannot be read: {error}"
        hint = "put cells that hold the separator into double quotes"
        raise DatasetError(message, hint=hint) from error
    if not columns:
        raise DatasetError(f"{path}: is empty", hint="wanted a header and a row a person")
    for name, count in Counter(columns).items():
        if count > 1:
            raise DatasetError(f"{path}: has two columns {name!r}", hint="rename one of them")
    return CsvTable(tuple(columns), tuple(rows), tuple(lines))
