"""A report as files: a page, Markdown, and JSON, from which it is read again."""

import json
import math
import os
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

from s2f.errors import DatasetError, UsageError
from s2f.report import Cell, Curves, Matrix, Part, Picture, Report, Section, Table
from s2f.report_html import to_html
from s2f.report_markdown import to_markdown
from s2f.runtime import atomic_write

FORMAT = 1  # of the JSON


def write(report: Report, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write `report.html`, `report.md` and `report.json` into a folder.

    Returns:
        Their paths.

    Raises:
        UsageError: if one is there already, unless it may be overwritten.
        OutputError: if one cannot be written.
    """
    check_new(folder, overwrite=overwrite)
    for name, page in PAGES.items():
        content = page(report).encode()
        with atomic_write(folder / name) as file:
            file.write(content)
    return [folder / name for name in PAGES]


def check_new(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a report may be written into a folder.

    Raises:
        UsageError: if it is a file, or there is a report already that may not be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file", hint="give the name of a folder with -o")
    for name in PAGES:
        if os.path.lexists(folder / name) and not overwrite:
            raise UsageError(
                f"{folder / name}: exists already",
                hint="give --overwrite to replace it, or another place with -o",
            )


def read(path: Path) -> Report:
    """Read a report: a folder that `write` wrote into, or its report.json.

    Raises:
        DatasetError: if it is missing, or none.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{file}: is no report that can be read", hint="give a folder that s2f evaluate made"
        ) from error
    return from_json(text, str(file))


def to_json(report: Report) -> str:
    """Write a report as JSON: numbers as they are, null for what is not finite, no pictures."""
    data = {
        "format": FORMAT,
        "title": report.title,
        "facts": dict(report.facts),
        "sections": [
            {
                "title": section.title,
                "text": section.text,
                "parts": [_plain(p) for p in section.parts if not isinstance(p, Picture)],
            }
            for section in report.sections
        ],
        "samples": {
            metric: {identity: _finite(value) for identity, value in samples.items()}
            for metric, samples in report.samples.items()
        },
        "lower": sorted(report.lower),
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def from_json(text: str, name: str) -> Report:
    """Read what `to_json` wrote: the report without its pictures; null is NaN, or no cell.

    Args:
        text: the JSON.
        name: of its file, for errors.

    Raises:
        DatasetError: if it is no report, or of another format.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r:.40}, and {FORMAT} was wanted")
        return Report(
            title=_text(data["title"]),
            facts={key: _text(fact) for key, fact in data["facts"].items()},
            sections=tuple(
                Section(
                    _text(section["title"]),
                    _texts(section["text"]),
                    tuple(_part(part) for part in section["parts"]),
                )
                for section in data["sections"]
            ),
            samples={
                metric: {identity: _number(value) for identity, value in samples.items()}
                for metric, samples in data["samples"].items()
            },
            lower=frozenset(_texts(data["lower"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DatasetError(
            f"{name}: is not a report of s2f: {why}",
            hint="give a report.json that s2f evaluate has written",
        ) from error


def _plain(part: Table | Matrix | Curves) -> dict[str, Any]:
    """Turn a part into what JSON has."""
    data: dict[str, Any]
    match part:
        case Table():
            rows = [[_finite(cell) for cell in row] for row in part.rows]
            data = {"kind": "table", "heads": part.heads, "rows": rows}
        case Matrix():
            counts = [[_finite(n) for n in row] for row in part.counts]
            data = {"kind": "matrix", "classes": part.classes, "counts": counts}
        case Curves():
            lines = {
                name: [(_finite(x), _finite(y)) for x, y in points]
                for name, points in part.lines.items()
            }
            data = {"kind": "curves", "x_label": part.x_label, "y_label": part.y_label}
            data |= {"log_x": part.log_x, "lines": lines}
    return data | {"title": part.title, "note": part.note}


def _part(data: Any) -> Part:
    title, note = _text(data["title"]), _text(data["note"])
    match data["kind"]:
        case "table":
            rows = tuple(tuple(_cell(cell) for cell in row) for row in data["rows"])
            return Table(title, _texts(data["heads"]), rows, note)
        case "matrix":
            counts = tuple(tuple(int(_number(n)) for n in row) for row in data["counts"])
            return Matrix(title, _texts(data["classes"]), counts, note)
        case "curves":
            lines = {
                name: [(_number(x), _number(y)) for x, y in points]
                for name, points in data["lines"].items()
            }
            labels = _text(data["x_label"]), _text(data["y_label"])
            return Curves(title, *labels, lines, note, log_x=bool(data["log_x"]))
        case kind:
            raise ValueError(f"{kind!r:.40} is no part of one")


def _finite(value: Cell) -> Cell:
    """Turn a cell, also a number of NumPy, into what JSON has."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} where a text was wanted")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.40} where a list was wanted")
    return tuple(_text(value) for value in values)


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} where a number was wanted")
    return value


def _cell(value: Any) -> Cell:
    return value if value is None or isinstance(value, str) else _number(value)


PAGES: dict[str, Callable[[Report], str]] = {
    "report.html": to_html,
    "report.md": to_markdown,
    "report.json": to_json,
}
