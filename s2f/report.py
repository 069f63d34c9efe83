"""What an evaluation found, as data: sections of tables, matrices, pictures and curves.

Knows nothing of metrics or pages. A share 0..1 is shown in percent where the head of its column,
or the label of its axis, ends in "%"; the data always hold the share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

Cell = str | float | int | None
Row = tuple[Cell, ...]

MISSING = "\N{EN DASH}"
DIGITS = 3  # that a number for people has
POINTS = 8  # of a curve, where it is shown as a table


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: of the table; no other part of its section has it.
        heads: of the columns; a column whose head ends in "%" holds shares.
        rows: the cells by row; None and NaN where there is nothing to tell.
        note: what a reader has to know beside it.

    Raises:
        ValueError: if a row has not one cell a head.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.heads):
                raise ValueError(f"{self.title}: {len(row)} cells under {len(self.heads)} heads")


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix, shown with the shares of each row.

    Attributes:
        title: of the matrix; no other part of its section has it.
        classes: the c classes.
        counts: [c c], how often the class of the row was taken for that of the column.
        note: what a reader has to know beside it.

    Raises:
        ValueError: if the counts are not [c c].
    """

    title: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        c = len(self.classes)
        if [len(row) for row in self.counts] != [c] * c:
            raise ValueError(f"{self.title}: the counts of {c} classes must be [{c} {c}]")

    def table(self) -> Table:
        """List the shares of each row, and how many it has."""
        rows = []
        for name, counts in zip(self.classes, self.counts, strict=True):
            total = sum(counts)
            rows.append((name, *(n / total if total else None for n in counts), total))
        heads = ("true", *(f"{name} %" for name in self.classes), "N")
        return Table(self.title, heads, tuple(rows), self.note)


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        title: of the picture; no other part of its section has it.
        png: a PNG file.
        alt: what it shows, for those who cannot see it.
        note: what a reader has to know beside it.
    """

    title: str
    png: bytes
    alt: str
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Lines in one chart.

    Attributes:
        title: of the chart; no other part of its section has it.
        x_label: of the axis; shares, if it ends in "%".
        y_label: likewise.
        lines: points (x, y) of each line by its name, in order of x. Those that are not finite
            are not drawn.
        note: what a reader has to know beside it.
        log_x: whether x has a logarithmic scale; points with x <= 0 are not drawn then.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    note: str = ""
    log_x: bool = False

    def drawn(self) -> dict[str, list[tuple[float, float]]]:
        """List the points that can be drawn, by line."""
        return {
            name: [
                (x, y)
                for x, y in points
                if math.isfinite(x) and math.isfinite(y) and (x > 0 or not self.log_x)
            ]
            for name, points in self.lines.items()
        }

    def table(self) -> Table:
        """List a few points of all lines, evenly spaced on the scale of x."""
        lines = {name: dict(points) for name, points in self.drawn().items()}
        xs = sorted({x for points in lines.values() for x in points})
        if len(xs) > POINTS:
            places = [math.log(x) for x in xs] if self.log_x else xs
            step = (places[-1] - places[0]) / (POINTS - 1)
            wanted = [places[0] + k * step for k in range(POINTS)]
            nearest = {min(range(len(xs)), key=lambda i: abs(places[i] - w)) for w in wanted}
            xs = [xs[i] for i in sorted(nearest)]
        share = " %" if self.y_label.endswith("%") else ""
        rows = tuple((x, *(points.get(x) for points in lines.values())) for x in xs)
        return Table(self.title, (self.x_label, *(f"{n}{share}" for n in lines)), rows, self.note)


Part = Table | Matrix | Picture | Curves


@dataclass(frozen=True)
class Section:
    """A part of a report under a title.

    Attributes:
        title: no other section of the report has it.
        text: paragraphs before its parts.
        parts: tables, matrices, pictures and curves, in order.
    """

    title: str
    text: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that an evaluation found.

    Attributes:
        title: of the report.
        facts: what was evaluated, on what, with what: `model`, `data`, versions, licences. No
            dates: the same evaluation gives the same report.
        sections: in order.
        samples: what two reports are compared by: for each metric its value by identity.
        lower: the metrics of `samples` of which less is better.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()
    samples: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lower: frozenset[str] = frozenset()


def show(value: Cell, head: str = "") -> str:
    """Write a cell for people.

    Whole numbers keep all digits; others have three, and all of those before the point. What is
    missing or not finite is a dash.

    Args:
        value: a text or a number.
        head: of its column; if it ends in "%", a number is a share, and written in percent.

    Example:
        >>> show(0.45824, "R@10 %"), show(5000), show(45.754), show(0.00002)
        ('45.8', '5,000', '45.8', '2.00e-05')
    """
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return MISSING
    if head.endswith("%"):
        value = 100 * float(value)
    elif isinstance(value, Integral):
        return f"{value:,}"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{DIGITS - 1}e}"
    # The exponent after rounding: 9.999 is 10.0 and not 10.00.
    exponent = int(f"{value:.{DIGITS - 1}e}".split("e")[1])
    return f"{value:,.{max(0, DIGITS - 1 - exponent)}f}"


def numeric(table: Table, column: int) -> bool:
    """Tell whether a column holds numbers, and nothing else."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    return bool(cells) and not any(isinstance(cell, str) for cell in cells)
