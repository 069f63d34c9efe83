"""A report as Markdown: what stands in its page, without the pictures, for people and diffs."""

import re

from s2f.console import one_line
from s2f.report import Curves, Matrix, Part, Picture, Report, Table, numeric, show


def to_markdown(report: Report) -> str:
    """Write a report as Markdown (with GitHub's tables).

    Pictures are named by their titles, and curves are tables of a few points.
    """
    blocks = [f"# {_safe(report.title)}"]
    if report.facts:
        blocks.append("\n".join(f"- {_safe(k)}: {_safe(v)}" for k, v in report.facts.items()))
    for section in report.sections:
        blocks.append(f"## {_safe(section.title)}")
        blocks += [_safe(paragraph) for paragraph in section.text]
        for part in section.parts:
            blocks.append(f"### {_safe(part.title)}")
            blocks.append(_part(part))
            if part.note:
                blocks.append(_safe(part.note))
    return "\n\n".join(blocks) + "\n"


def _part(part: Part) -> str:
    match part:
        case Table():
            return _table(part)
        case Matrix() | Curves():
            return _table(part.table())
        case Picture():
            return f"(picture: {_safe(part.alt)})"


def _table(table: Table) -> str:
    """Align a table: each column is as wide as its longest cell."""
    lines = [[_safe(head) for head in table.heads]]
    for row in table.rows:
        lines.append([_safe(show(c, head)) for c, head in zip(row, table.heads, strict=True)])
    columns = []
    for k, cells in enumerate(zip(*lines, strict=True)):
        width = max(3, *map(len, cells))
        if numeric(table, k):
            head, *rest = (cell.rjust(width) for cell in cells)
            columns.append([head, f"{'-' * (width - 1)}:", *rest])
        else:
            head, *rest = (cell.ljust(width) for cell in cells)
            columns.append([head, "-" * width, *rest])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True))


def _safe(text: str) -> str:
    """Escape what Markdown would take for markup, also for HTML, and what is no plain text."""
    return re.sub(r"([\\`*\[\]|<>&])", r"\\\1", one_line(text))
