"""What an evaluation found, as data: sections of tables, matrices, pictures and curves.

Knows nothing of metrics or pages. A share 0..1 is shown in percent where the head of its column,
or the label of its axis, ends in "%"; the data always hold the share.

A report as Markdown: what stands in its page, without the pictures, for people and diffs.

Two reports side by side, and whether one model is better than the other.

Curves as SVG that stands in a page: no script, no file, legible on a phone and in print.

Lines differ by colour and by dashes: for print, and for those who see no colours.

A report as one HTML page that needs nothing else: no script, no other file, no network.

Light and dark, on a phone, on paper, and read aloud. Whatever comes from data is escaped.

A report as files: a page, Markdown, and JSON, from which it is read again.
"""

import base64
import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2f import metrics
from s2f.console import one_line
from s2f.errors import DatasetError, UsageError
from s2f.files import atomic_write

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


def to_markdown(report: Report) -> str:
    """Write a report as Markdown (with GitHub's tables).

    Pictures are named by their titles, and curves are tables of a few points.
    """
    blocks = [f"# {_markdown_safe(report.title)}"]
    if report.facts:
        blocks.append(
            "\n".join(
                f"- {_markdown_safe(k)}: {_markdown_safe(v)}" for k, v in report.facts.items()
            )
        )
    for section in report.sections:
        blocks.append(f"## {_markdown_safe(section.title)}")
        blocks += [_markdown_safe(paragraph) for paragraph in section.text]
        for part in section.parts:
            blocks.append(f"### {_markdown_safe(part.title)}")
            blocks.append(_markdown_part(part))
            if part.note:
                blocks.append(_markdown_safe(part.note))
    return "\n\n".join(blocks) + "\n"


def _markdown_part(part: Part) -> str:
    match part:
        case Table():
            return _markdown_table(part)
        case Matrix() | Curves():
            return _markdown_table(part.table())
        case Picture():
            return f"(picture: {_markdown_safe(part.alt)})"


def _markdown_table(table: Table) -> str:
    """Align a table: each column is as wide as its longest cell."""
    lines = [[_markdown_safe(head) for head in table.heads]]
    for row in table.rows:
        lines.append(
            [_markdown_safe(show(c, head)) for c, head in zip(row, table.heads, strict=True)]
        )
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


def _markdown_safe(text: str) -> str:
    """Escape what Markdown would take for markup, also for HTML, and what is no plain text."""
    return re.sub(r"([\\`*\[\]|<>&])", r"\\\1", one_line(text))


LEVEL = 0.05  # of significance
ROUNDS = 2000  # of the bootstrap


def compare_reports(a: Report, b: Report, name_a: str, name_b: str) -> Report:
    """Compare two reports: what differs, whether by more than chance, and their tables in one.

    Metrics are compared over the identities that both reports have, by a paired bootstrap over
    identities. Tables are compared that both have, with one title and one header, in sections of
    one title; their rows are matched by the first cell.

    Args:
        a: a report.
        b: another.
        name_a: what to call the first.
        name_b: what to call the second.

    Raises:
        UsageError: if no identity has a metric in both.
    """
    sections = [_differences(a, b, name_a, name_b)]
    theirs = {section.title: section for section in b.sections}
    for section in a.sections:
        if section.title in theirs:
            there = {t.title: t for t in theirs[section.title].parts if isinstance(t, Table)}
            pairs = [(t, there.get(t.title)) for t in section.parts if isinstance(t, Table)]
            parts = [
                _side_by_side(one, other, name_a, name_b)
                for one, other in pairs
                if other is not None and one.heads == other.heads
            ]
            if parts:
                sections.append(Section(section.title, (), tuple(parts)))
    facts = {}
    for key in dict.fromkeys([*a.facts, *b.facts]):
        if a.facts.get(key) == b.facts.get(key):
            facts[key] = a.facts[key]
        else:
            named = ((name_a, a), (name_b, b))
            facts |= {f"{key} ({name})": r.facts[key] for name, r in named if key in r.facts}
    return Report(f"{name_a} and {name_b}", facts, tuple(sections))


def _differences(a: Report, b: Report, name_a: str, name_b: str) -> Section:
    """Compare all metrics that both reports have."""
    rows: list[tuple[Cell, ...]] = []
    for metric in a.samples:
        pair = _paired(a.samples[metric], b.samples.get(metric, {}))
        if not len(pair):
            continue
        found = metrics.compare_means(pair[:, 0], pair[:, 1], np.arange(len(pair)), rounds=ROUNDS)
        is_gain = (found.value > 0) != (metric in a.lower)
        word = "better" if is_gain else "worse"
        if found.p >= LEVEL:
            word = "no difference"
        interval = (found.value, found.low, found.high, found.p)
        rows.append((metric, *map(float, pair.mean(axis=0)), *interval, len(pair), word))
    if not rows:
        raise UsageError(
            f"{name_a} and {name_b} cannot be compared: no identity has a metric in both",
            hint="evaluate both models on the same data",
        )
    heads = ("metric", name_a, name_b, "difference", "from", "to", "p", "N", f"{name_b} is")
    note = (
        f"Means over the N identities that both have; the difference is {name_b} - {name_a}, with "
        f"its 95 % interval and p by a paired bootstrap over identities ({ROUNDS} rounds; the "
        f"smallest p is {1 / ROUNDS:g}). Better and worse are said where p < {LEVEL:g}: of 20 "
        "metrics without any difference, about one seems to differ."
    )
    text: tuple[str, ...] = ()
    same = ("data", "people", "recordings", "photos")
    if any(a.facts.get(name) != b.facts.get(name) for name in same):
        text = (
            "The two were evaluated on different data: only people that both have are compared "
            "here, and recalls and matching, which depend on everyone else, do not compare.",
        )
    return Section("Differences", text, (Table("Metrics", heads, tuple(rows), note),))


def _paired(a: Mapping[str, float], b: Mapping[str, float]) -> NDArray[np.float64]:
    """List the values of the identities that both have [n 2], in the order of their names."""
    values = np.array([(a[name], b[name]) for name in sorted(a.keys() & b.keys())], np.float64)
    values = values.reshape(-1, 2)
    finite: NDArray[np.float64] = values[np.isfinite(values).all(axis=1)]
    return finite


def _side_by_side(a: Table, b: Table, name_a: str, name_b: str) -> Table:
    """Put the columns of two tables beside each other; those that are equal stay one."""
    ours, theirs = _by_name(a), _by_name(b)
    keys = list(dict.fromkeys([*ours, *theirs]))
    nothing: tuple[Cell, ...] = (None,) * len(a.heads)
    heads: list[str] = [a.heads[0]]
    columns: list[list[Cell]] = [[name for name, _ in keys]]
    for k, head in enumerate(a.heads[1:], start=1):
        left = [ours.get(key, nothing)[k] for key in keys]
        right = [theirs.get(key, nothing)[k] for key in keys]
        if left == right:
            heads, columns = [*heads, head], [*columns, left]
        else:
            heads += [f"{name_a}: {head}", f"{name_b}: {head}"]
            columns += [left, right]
    note = " ".join(dict.fromkeys(note for note in (a.note, b.note) if note))
    return Table(a.title, tuple(heads), tuple(zip(*columns, strict=True)), note)


def _by_name(table: Table) -> dict[tuple[Cell, int], Sequence[Cell]]:
    """Find rows by their first cell, and by how many before have the same."""
    rows: dict[tuple[Cell, int], Sequence[Cell]] = {}
    for row in table.rows:
        n = 0
        while (row[0], n) in rows:
            n += 1
        rows[row[0], n] = row
    return rows


WIDTH, PLOT = 400, (50, 26, 376, 226)  # of the drawing; left, top, right, bottom of the plot area
LETTERS, ROW = 11, 17  # size of the letters, height of a row of the legend
LONGEST = 58  # letters of a name in the legend
MARKED = 12  # points of a line that are marked each, at most
GRID = 'stroke="currentColor" stroke-opacity="0.15"'
LIGHT = ("#0067a5", "#c4500a", "#00795a", "#a6467f", "#5b4bb7", "#7d6300", "#b02a37", "#495057")
DARK = ("#5fb4f0", "#ff9a5c", "#3fd0a4", "#f29bd0", "#b0a5ff", "#e3c04b", "#ff8a94", "#ced4da")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 4", "7 3 2 3 2 3")

_DARK = "".join(
    f".chart polyline.c{k}{{stroke:{colour}}}.chart circle.c{k}{{fill:{colour}}}"
    for k, colour in enumerate(DARK)
)
CHART_STYLE = (
    ".chart{width:100%;max-width:36rem;height:auto}"
    f"@media screen and (prefers-color-scheme:dark){{{_DARK}}}"
)
"""CSS of the page: the size, and the colours on a dark ground. Without it all is on a light one."""


def draw_curves(curves: Curves) -> str:
    """Draw lines, axes and a legend as an `<svg>` element."""
    names = list(curves.lines)
    lines = curves.drawn()
    times = [100.0 if label.endswith("%") else 1.0 for label in (curves.x_label, curves.y_label)]
    scaled = {n: [(x * times[0], y * times[1]) for x, y in lines[n]] for n in names}
    height = PLOT[3] + 38 + ROW * len(names)
    title = escape(one_line(curves.title))
    out = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}" '
        f'fill="currentColor" font-size="{LETTERS}">'
    ]
    points = [point for line in scaled.values() for point in line]
    if points:
        across = _Axis([x for x, _ in points], PLOT[0], PLOT[2], log=curves.log_x)
        up = _Axis([y for _, y in points], PLOT[3], PLOT[1], wide=True)
        out += _frame(across, up)
        for k, name in enumerate(names):
            out.append(_line([(across.place(x), up.place(y)) for x, y in scaled[name]], k))
    else:
        middle = (PLOT[1] + PLOT[3]) / 2
        out.append(_svg_text(WIDTH / 2, middle, "nothing to draw", "middle"))
    out.append(_svg_text(4, LETTERS + 3, curves.y_label, "start"))
    out.append(_svg_text(PLOT[2], PLOT[3] + 31, curves.x_label, "end"))
    for k, name in enumerate(names):
        y = PLOT[3] + 38 + ROW * k + ROW / 2
        out.append(_stroke([(PLOT[0], y), (PLOT[0] + 30, y)], k))
        short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        out.append(_svg_text(PLOT[0] + 38, y + 4, short, "start"))
    return "".join([*out, "</svg>"])


class _Axis:
    """A scale from values to places in the drawing, and its ticks."""

    def __init__(
        self,
        values: Sequence[float],
        start: float,
        end: float,
        *,
        log: bool = False,
        wide: bool = False,
    ) -> None:
        """Span the values; with `wide` to the next tick outside, and to 0 if that is near."""
        self.start, self.end, self.log = start, end, log
        low, high = min(values), max(values)
        if wide and 0 <= low < high:
            low = 0 if low < high / 2 else low
        largest = max(abs(low), abs(high))
        if high - low <= 1e-9 * largest:  # as good as one value
            pad = largest / 2 or 0.5
            low, high = (low / 2, high * 2) if log else (low - pad, high + pad)
        if log:
            self.ticks = _powers(low, high)
        else:
            step = _step(high - low)
            if wide:
                low = math.floor(low / step + 1e-9) * step
                high = math.ceil(high / step - 1e-9) * step
            inside = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
            self.ticks = [k * step for k in inside]
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        """Find the place of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _step(span: float) -> float:
    """Choose 1, 2 or 5 times a power of ten that divides a span into three to seven."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(power * part for part in (0.2, 0.5, 1, 2) if span / (power * part) <= 7)


def _powers(low: float, high: float) -> list[float]:
    """List 1, 2 and 5 times the powers of ten in a range; of a long one, the powers alone."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    parts = (1, 2, 5) if math.log10(high / low) <= 3 else (1,)
    ticks = [part * 10.0**k for k in exponents for part in parts]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _frame(across: _Axis, up: _Axis) -> list[str]:
    """Draw the grid and the numbers at it."""
    left, top, right, bottom = PLOT
    out = []
    for value in up.ticks:
        y = up.place(value)
        out.append(f'<path {GRID} d="M{left} {y:.1f}H{right}"/>')
        out.append(_svg_text(left - 5, y + 4, _tick_text(value), "end"))
    for value in across.ticks:
        x = across.place(value)
        out.append(f'<path {GRID} d="M{x:.1f} {top}V{bottom}"/>')
        out.append(_svg_text(x, bottom + 15, _tick_text(value), "middle"))
    return out


def _tick_text(value: float) -> str:
    return f"{value:,.10g}"


def _line(points: Sequence[tuple[float, float]], k: int) -> str:
    """Draw the k-th line; its points are marked if they are few."""
    marks = points if len(points) <= MARKED else []
    look = f'class="c{k % len(LIGHT)}" fill="{LIGHT[k % len(LIGHT)]}"'
    dots = "".join(f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in marks)
    return _stroke(points, k) + dots


def _stroke(points: Sequence[tuple[float, float]], k: int) -> str:
    # Past the colours the dashes shift, so that no two of 64 lines look alike.
    dash = DASHES[(k + k // len(LIGHT)) % len(DASHES)]
    look = f'class="c{k % len(LIGHT)}" fill="none" stroke="{LIGHT[k % len(LIGHT)]}"'
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline {look} stroke-width="2"{dashed} points="{path}"/>'


def _svg_text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(one_line(text))}</text>'


PAGE_STYLE = (
    CHART_STYLE
    + """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#59636e;--paper:#fff;--rule:#d5dae0}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--dim:#9aa4b0;--paper:#15181c;
--rule:#353b44}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:64rem;color:var(--ink);background:var(--paper);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.25rem;margin:2.5rem 0 .5rem;
border-top:1px solid var(--rule);padding-top:1rem}
p{max-width:44rem}a{color:inherit}
nav ol{columns:14rem;padding-left:1.5rem}
dl{display:grid;grid-template-columns:fit-content(40%) minmax(0,1fr);gap:.25rem 1rem}
dt{color:var(--dim)}dd{margin:0}
figure{margin:1.5rem 0}figcaption{font-weight:600;margin-bottom:.4rem}
.note,details{color:var(--dim);font-size:.875rem}.note{margin:.4rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--rule);text-align:left;
vertical-align:bottom}
td{max-width:24rem}.n{text-align:right}td.n{white-space:nowrap}
tbody th:not(.n){min-width:7rem}
tbody th,thead th:first-child{position:sticky;left:0;background:var(--paper)}
thead th{border-bottom:2px solid var(--rule)}
.matrix td,.matrix th+th{text-align:center;white-space:nowrap}
.matrix td,.matrix tbody th{vertical-align:middle}
.matrix td{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.matrix small{display:block}
img{max-width:100%;height:auto;background:#fff}
@media print{body{max-width:none;padding:0;font-size:10pt}.scroll{overflow:visible}
table,.note{font-size:8pt}th,td{padding:.2rem .35rem}tbody th:not(.n){min-width:4rem}
.chart{max-width:26rem}h2,figcaption{break-after:avoid}tr,img,svg{break-inside:avoid}details{display:none}}
"""
)
SHADE = "52,120,246"  # of a matrix; at half its strength ink is read on it, dark and light
# Even if something slipped in that is not escaped, nothing would be loaded or run.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(report: Report) -> str:
    """Write a report as one self-contained page."""
    facts = "".join(
        f"<dt>{_html_safe(k)}</dt><dd>{_html_safe(v)}</dd>\n" for k, v in report.facts.items()
    )
    contents = "".join(
        f'<li><a href="#s{n}">{_html_safe(section.title)}</a></li>\n'
        for n, section in enumerate(report.sections, start=1)
    )
    sections = "".join(_section(n, s) for n, s in enumerate(report.sections, start=1))
    title = _html_safe(report.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{PAGE_STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{title}</h1>\n"
        + (f"<dl>\n{facts}</dl>\n" if facts else "")
        + "</header>\n"
        + (f'<nav aria-label="Contents">\n<ol>\n{contents}</ol>\n</nav>\n' if contents else "")
        + f"<main>\n{sections}</main>\n</body>\n</html>\n"
    )


def _section(n: int, section: Section) -> str:
    text = "".join(f"<p>{_html_safe(paragraph)}</p>\n" for paragraph in section.text)
    parts = "".join(_html_part(part) for part in section.parts)
    title = _html_safe(section.title)
    return (
        f'<section aria-labelledby="s{n}">\n<h2 id="s{n}">{title}</h2>\n{text}{parts}</section>\n'
    )


def _html_part(part: Part) -> str:
    """Write a part below its title and above its note."""
    match part:
        case Table():
            body = _scrolled(part.title, _html_table(part))
        case Matrix():
            body = _scrolled(part.title, _matrix(part))
        case Picture():
            body = _picture(part)
        case Curves():
            points = _scrolled(f"{part.title}: points", _html_table(part.table()))
            body = f"{draw_curves(part)}<details><summary>Points</summary>{points}</details>"
    note = f'<p class="note">{_html_safe(part.note)}</p>\n' if part.note else ""
    title = _html_safe(part.title)
    return f"<figure>\n<figcaption>{title}</figcaption>\n{body}\n{note}</figure>\n"


def _scrolled(title: str, table: str) -> str:
    """Let a wide table scroll by itself, also by keyboard."""
    label = _html_safe(title)
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{table}</div>'


def _html_table(table: Table) -> str:
    kinds = [' class="n"' if numeric(table, k) else "" for k in range(len(table.heads))]
    heads = "".join(
        f'<th scope="col"{kind}>{_html_safe(head)}</th>'
        for head, kind in zip(table.heads, kinds, strict=True)
    )
    rows = []
    for row in table.rows:
        cells = []
        for k, (cell, head, kind) in enumerate(zip(row, table.heads, kinds, strict=True)):
            start, end = ('<th scope="row"', "th") if k == 0 else ("<td", "td")
            cells.append(f"{start}{kind}>{_html_safe(show(cell, head))}</{end}>")
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>"


def _matrix(matrix: Matrix) -> str:
    names = [_html_safe(name) for name in matrix.classes]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for name, counts in zip(names, matrix.counts, strict=True):
        total = sum(counts)
        cells = []
        for n in counts:
            share = n / total if total else None
            percent = "" if share is None else " %"
            cells.append(
                f'<td style="background:rgba({SHADE},{(share or 0) / 2:.3f})">'
                f"{show(share, '%')}{percent}"
                f"<small>{show(n)}</small></td>"
            )
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>\n')
    corner = '<th scope="col">true, by row; taken for, by column</th>'
    return (
        f'<table class="matrix">\n<thead><tr>{corner}{heads}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>"
    )


def _picture(picture: Picture) -> str:
    # Told before it is decoded, so that the page does not jump.
    width, height = struct.unpack(">II", picture.png[16:24])
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<img width="{width}" height="{height}" alt="{_html_safe(picture.alt)}" '
        f'src="data:image/png;base64,{data}">'
    )


def _html_safe(text: str) -> str:
    """Escape what a name may hold: markup, quotes, line ends, bytes that are no text."""
    return escape(one_line(text))


FORMAT = 1  # of the JSON


def write_report(report: Report, folder: Path, *, overwrite: bool = False) -> list[Path]:
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


def read_report(path: Path) -> Report:
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
                    tuple(_json_part(part) for part in section["parts"]),
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


def _json_part(data: Any) -> Part:
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
