"""What an evaluation found: tables, matrices, pictures and curves, as data and as pages.

Report -> `report.html` (one page that needs nothing else), `report.md` (for diffs) and
`report.json`, from which it is read again; two reports -> one that compares them. A share 0..1 is
shown in percent where the head of its column, or the label of its axis, ends in "%"; the data
always hold the share. Columns "low" and "high" (or "low %" and "high %") right of another are its
95 % interval, and shown in its cells. Knows nothing of models and metrics.
"""

import base64
import contextlib
import io
import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass, replace
from html import escape
from numbers import Integral
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np

from s2f.console import jsonable, one_line
from s2f.errors import DatasetError, UsageError
from s2f.files import atomic_path, check_writable, sealed, unsealed
from s2f.metrics import Difference, holm, paired_difference

Cell = str | float | int | None
Row = tuple[Cell, ...]

MISSING = "\N{EN DASH}"
DIGITS = 3  # that a number for people has
POINTS = 8  # of a curve, where it is shown as a table
FORMAT = 1  # of the JSON
LEVEL = 0.05  # of significance, of a whole comparison
GLANCE = "At a glance"  # the section that is laid out to fill one screen
FIGURES = ("measure", "this model", "low", "high", "chance", "published")


@dataclass(frozen=True)
class Table:
    """Cells by row under the heads of their columns, shares under a head that ends in "%".

    None and NaN say that there is nothing to tell. As in every part, the title is that of no other
    in its section, and the note is what a reader has to know. Another row is a ValueError.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.heads):
                raise ValueError(f"{self.title}: {len(row)} cells under {len(self.heads)} heads")


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: how often the class of the row was taken for that of the column."""

    title: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # [c c]; anything else is a ValueError
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
    """A PNG file, and what it shows for those who cannot see it."""

    title: str
    png: bytes
    alt: str
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Lines in one chart: points (x, y) by the name of the line, in order of x.

    An axis whose label ends in "%" has shares. Points that are not finite are not drawn.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    note: str = ""

    def drawn(self) -> dict[str, list[tuple[float, float]]]:
        """List the points that can be drawn, by line."""
        return {
            name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
            for name, points in self.lines.items()
        }

    def table(self) -> Table:
        """List a few points of all lines, evenly spaced in x."""
        lines = {name: dict(points) for name, points in self.drawn().items()}
        xs = sorted({x for points in lines.values() for x in points})
        if len(xs) > POINTS:
            wanted = np.linspace(xs[0], xs[-1], POINTS)
            xs = sorted({min(xs, key=lambda x: abs(x - at)) for at in wanted})
        share = " %" if self.y_label.endswith("%") else ""
        rows = tuple((x, *(points.get(x) for points in lines.values())) for x in xs)
        return Table(self.title, (self.x_label, *(f"{n}{share}" for n in lines)), rows, self.note)


Part = Table | Matrix | Picture | Curves


@dataclass(frozen=True)
class Section:
    """Paragraphs, then parts, under a title that no other section of the report has."""

    title: str
    text: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    # What `glance` takes to the first screen: rows under `FIGURES`, in the unit that the measure's
    # name ends with ("R@1, %": percents), as rows differ in it.
    figures: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that an evaluation found."""

    title: str
    # What was evaluated, on what, with what. No dates: the same evaluation gives the same report.
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()
    # What two reports are compared by: for each metric its value by identity.
    samples: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lower: frozenset[str] = frozenset()  # metrics of `samples` of which less is better


def glance(sections: Sequence[Section], sheet: Picture) -> tuple[Section, ...]:
    """Open sections with one of what people look for: headline figures, a curve and faces.

    Figures are those of all sections, which lose them, the curve is the first that one has.
    """
    rows = tuple(row for section in sections for row in section.figures)
    note = (
        "95 % intervals are over people. Published figures are of other people, photos and "
        "recordings, and compare only as far as their sections say."
    )
    parts: list[Part] = [Table("Headline figures", FIGURES, rows, note)] if rows else []
    parts += [part for section in sections for part in section.parts if isinstance(part, Curves)][
        :1
    ]
    others = [replace(section, figures=()) for section in sections]
    return (Section(GLANCE, (), (*parts, sheet)), *others)


def write_report(report: Report, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write `report.html`, `report.md` and `report.json` into a folder, and give their paths.

    Raises as `check_new`, and OutputError if one cannot be written; then there is none.
    """
    check_new(folder, overwrite=overwrite)
    with contextlib.ExitStack() as pages:
        for name, page in PAGES.items():
            path = pages.enter_context(atomic_path(folder / name))
            text = page(report).encode()
            path.write_bytes(sealed(json.loads(text)) if page is to_json else text)
    return [folder / name for name in PAGES]


def check_new(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a report may not be written into.

    With a UsageError, or an OutputError if it cannot be.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file", hint="give the name of a folder with -o")
    there = [folder / name for name in PAGES if os.path.lexists(folder / name)]
    if there and not overwrite:
        hint = "give --overwrite to replace it, or another place with -o"
        raise UsageError(f"{there[0]}: exists already", hint=hint)
    check_writable(folder)


def read_report(path: Path) -> Report:
    """Read a folder that `write_report` wrote into, or its report.json: all but the pictures.

    Raises DatasetError if it is missing, no report, or of another format.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "give a folder that s2f evaluate made"
        raise DatasetError(f"{file}: is no report that can be read", hint=hint) from error
    return from_json(text, str(file))


def show(value: Cell, head: str = "") -> str:
    """Write a cell for people: of a number three digits, and all before the point.

    One that has four digits and no more, as published ones have, keeps them; whole numbers keep
    all; what is missing or not finite is a dash. Under a head that ends in "%" a number is a share,
    and written in percent.

    Example:
        >>> show(0.45824, "R@10 %"), show(0.4582, "R@10 %"), show(5000), show(45.754), show(2e-5)
        ('45.8', '45.82', '5,000', '45.8', '2.00e-05')
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
    digits = DIGITS
    if math.isclose(float(f"{value:.{digits}e}"), value, rel_tol=1e-12):  # but for its roundoff
        digits += not math.isclose(float(f"{value:.{digits - 1}e}"), value, rel_tol=1e-12)
    rounded = f"{value:.{digits - 1}e}"  # whose exponent tells that 9.999 is 10.0, not 10.00
    if abs(value) < 1e-4:
        return rounded
    return f"{value:,.{max(0, digits - 1 - int(rounded.split('e')[1]))}f}"


def columns(table: Table) -> list[tuple[int, bool]]:
    """List the columns that are shown, and whether the next two are its interval's ends."""
    found, k = [], 0
    while k < len(table.heads):
        ends = [head.removesuffix(" %") for head in table.heads[k + 1 : k + 3]]
        name = ends[0].removesuffix("low") if ends else ""
        ranged = ends == [f"{name}low", f"{name}high"] and table.heads[k].startswith(name)
        found.append((k, ranged))
        k += 3 if ranged else 1
    return found


def interval(table: Table, row: Row, k: int) -> str:
    """Write the ends that stand right of a column; "" where there are none."""
    low, high = (show(row[i], table.heads[i]) for i in (k + 1, k + 2))
    return "" if low == high == MISSING else f"{low} to {high}"


def shown(table: Table) -> tuple[list[str], list[list[str]]]:
    """Write a table for people: heads, and cells by row."""
    heads = [
        f"{table.heads[k]} (95 %)" if ranged else table.heads[k] for k, ranged in columns(table)
    ]
    rows = []
    for row in table.rows:
        cells = []
        for k, ranged in columns(table):
            ends = interval(table, row, k) if ranged else ""
            cells.append(show(row[k], table.heads[k]) + (f" ({ends})" if ends else ""))
        rows.append(cells)
    return heads, rows


def numeric(table: Table, column: int) -> bool:
    """Tell whether a column holds numbers, and nothing else."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    return bool(cells) and not any(isinstance(cell, str) for cell in cells)


def to_html(report: Report) -> str:
    """Write a report as one self-contained page: no script, no other file, no network.

    Light and dark, on a phone, on paper, and read aloud. Whatever comes from data is escaped.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    # What a name may hold: line ends, and bytes that are no text. Markup has none of them.
    environment.finalize = lambda value: one_line(value) if type(value) is str else value
    page = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(page).render(
        report=report,
        colours=list(zip(LIGHT, DARK, strict=True)),
        show=show,
        numeric=numeric,
        columns=columns,
        interval=interval,
        glance=GLANCE,
        kind=lambda part: type(part).__name__,
        size=lambda png: struct.unpack(">II", png[16:24]),
        base64=lambda png: base64.b64encode(png).decode("ascii"),
        svg=draw_curves,
    )


MARKED = 12  # points of a line that are marked each, at most
LONGEST = 58  # letters of a name in the legend
INK = "#010203"  # stands for the colour of the page's text, which differs in the light and the dark
LIGHT = ("#0067a5", "#c4500a", "#00795a", "#a6467f", "#5b4bb7", "#7d6300", "#b02a37", "#495057")
DARK = ("#5fb4f0", "#ff9a5c", "#3fd0a4", "#f29bd0", "#b0a5ff", "#e3c04b", "#ff8a94", "#ced4da")
DASHES = ("-", (0, (4, 2)), (0, (1, 2)), (0, (5, 2, 1, 2)), (0, (7, 3)))
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's letters
    "text.parse_math": False,  # a name is no formula
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    "axes.grid": True,
    "grid.alpha": 0.15,
}


def draw_curves(curves: Curves) -> str:
    """Draw lines, axes and a legend as an `<svg>` element for a page; the same curves, the same.

    Lines differ by colour and by dashes: for print, and for those who see no colours. The page
    chooses the colours by its variables `--line0` to `--line7`; without them the ground is light.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    title, drawn = one_line(curves.title), list(curves.drawn().values())
    labels = [one_line(label) for label in (curves.x_label, curves.y_label)]
    across, up = (100 if label.endswith("%") else 1 for label in labels)
    height = 2.9 + 0.2 * len(drawn)  # inches
    with style.context(["default", STYLE | {"svg.hashsalt": title}]):
        figure = Figure(figsize=(5, height))
        figure.subplots_adjust(left=0.1, right=0.97, top=1 - 0.3 / height, bottom=1 - 2.4 / height)
        axes = figure.subplots()
        for k, points in enumerate(drawn):
            marker, dashes = "o" if len(points) <= MARKED else "", DASHES[k % len(DASHES)]
            xs, ys = [across * x for x, _ in points], [up * y for _, y in points]
            look: dict[str, Any] = {
                "color": LIGHT[k % len(LIGHT)],
                "marker": marker,
                "markersize": 4,
            }
            axes.plot(xs, ys, linestyle=dashes, **look)
        if not any(drawn):
            axes.text(0.5, 0.5, "nothing to draw", ha="center", transform=axes.transAxes)
        axes.set_xlabel(labels[0], loc="right")
        axes.set_title(labels[1], loc="left", fontsize=9)
        names = [one_line(name) for name in curves.lines]
        short = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
        figure.legend(axes.lines, short, loc="lower left", frameon=False, handlelength=4)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    named = f'class="chart" role="img" aria-label="{escape(title)}"'
    svg = re.sub(r'width="\S+" height="\S+"', lambda _: named, svg[svg.index("<svg") :], count=1)
    svg = re.sub(r'<style.*?</style>| id="[^"]*_\d+"', "", svg)  # of the whole page, and of no use
    for k, colour in enumerate(LIGHT):
        svg = svg.replace(colour, f"var(--line{k},{colour})")
    return svg.replace(INK, "currentColor")


def to_markdown(report: Report) -> str:
    """Write a report as GitHub's Markdown; pictures by what they show, curves by a few points."""
    safe = _markdown_safe
    blocks = [f"# {safe(report.title)}"]
    if report.facts:
        blocks.append("\n".join(f"- {safe(k)}: {safe(v)}" for k, v in report.facts.items()))
    for section in report.sections:
        blocks += [f"## {safe(section.title)}", *map(safe, section.text)]
        for part in section.parts:
            blocks.append(f"### {safe(part.title)}")
            if isinstance(part, Picture):
                blocks.append(f"(picture: {safe(part.alt)})")
            else:
                blocks.append(_markdown_table(part if isinstance(part, Table) else part.table()))
            if part.note:
                blocks.append(safe(part.note))
    return "\n\n".join(blocks) + "\n"


def _markdown_table(table: Table) -> str:
    """Align a table: each column is as wide as its longest cell."""
    lines, rows = [], shown(table)
    for j, (k, _) in enumerate(columns(table)):
        cells = [_markdown_safe(cell) for cell in (rows[0][j], *(row[j] for row in rows[1]))]
        width = max(3, *map(len, cells))
        rule = f"{'-' * (width - 1)}:" if numeric(table, k) else "-" * width
        side = str.rjust if numeric(table, k) else str.ljust
        first, *rest = (side(cell, width) for cell in cells)
        lines.append([first, rule, *rest])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in zip(*lines, strict=True))


def _markdown_safe(text: str) -> str:
    """Escape what Markdown would take for markup, also for HTML, and what is no plain text."""
    return re.sub(r"([\\`*\[\]|<>&])", r"\\\1", one_line(text))


def to_json(report: Report) -> str:
    """Write a report as JSON: numbers as they are, null for what is not finite, no pictures."""
    sections = []
    for section in report.sections:
        parts = [part for part in section.parts if not isinstance(part, Picture)]
        named = [{"kind": type(part).__name__.lower()} | vars(part) for part in parts]
        sections.append(vars(section) | {"parts": named})
    value = vars(report) | {"sections": sections, "lower": sorted(report.lower)}
    return json.dumps(jsonable({"format": FORMAT} | value), indent=1, allow_nan=False) + "\n"


def from_json(text: str, name: str) -> Report:
    """Read what `to_json` wrote into a file of a name; anything else raises DatasetError.

    What `write_report` wrote has a SHA-256, which is compared.
    """
    try:
        data = unsealed(text.encode())
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r:.40}, and {FORMAT} was wanted")
        report: Report = _made(Report, data)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        hint = "give a report.json that s2f evaluate has written"
        raise DatasetError(f"{name}: is not a report of s2f: {why}", hint=hint) from error
    return report


WORDS: dict[Any, str] = {str: "a text", float: "a number", int: "a whole number", Cell: "a cell"}


def _made(kind: Any, data: Any) -> Any:
    """Make of JSON what the type of a field says."""
    if kind == Part:
        kind = {"table": Table, "matrix": Matrix, "curves": Curves}.get(data["kind"])
        if kind is None:
            raise ValueError(f"{data['kind']!r:.40} is no part of one")
    if is_dataclass(kind):
        made = {
            item.name: _made(item.type, data[item.name])
            for item in fields(kind)
            if item.name in data or item.default is NO_DEFAULT  # older ones have no figures
        }
        return kind(**made)  # type: ignore[operator]
    origin, args = get_origin(kind), get_args(kind)
    if origin is Mapping:
        return {key: _made(args[1], item) for key, item in data.items()}
    if kind is float and data is None:
        return math.nan
    shape: Any = {tuple: tuple, frozenset: frozenset, Sequence: list}.get(origin)
    wanted: Any = list if shape else float | int if kind is float else kind
    if not isinstance(data, wanted) or isinstance(data, bool):
        raise TypeError(f"{data!r:.40} where {WORDS.get(kind, 'a list')} was wanted")
    return shape(_made(args[0], item) for item in data) if shape else data


def compare_reports(a: Report, b: Report, name_a: str, name_b: str) -> Report:
    """Compare two reports: what differs, whether by more than chance, and their tables in one.

    Metrics are compared in pairs of the identities that both have; tables, where both have one with
    that title and header in a section of that title, by rows of one first cell. The names are what
    the two are called. Raises UsageError if no identity has a metric in both.
    """
    sections = [_differences(a, b, name_a, name_b)]
    theirs = {section.title: section for section in b.sections}
    for section in a.sections:
        there = {t.title: t for t in getattr(theirs.get(section.title), "parts", ())}
        parts = []
        for one in section.parts:
            other = there.get(one.title)
            if isinstance(one, Table) and isinstance(other, Table) and one.heads == other.heads:
                parts.append(_side_by_side(one, other, name_a, name_b))
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
    found: list[tuple[str, float, float, Difference]] = []
    for metric in a.samples:
        ours, theirs = a.samples[metric], b.samples.get(metric, {})
        both = sorted(ours.keys() & theirs.keys())
        pairs = np.array([(ours[who], theirs[who]) for who in both], float).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        if len(pairs):
            first, second = map(float, pairs.mean(axis=0))
            found.append((metric, first, second, paired_difference(*pairs.T)))
    if not found:
        message = f"{name_a} and {name_b} cannot be compared: no identity has a metric in both"
        raise UsageError(message, hint="evaluate both models on the same data")
    adjusted = holm([gain.p for *_, gain in found])
    rows: list[Row] = []
    for (metric, first, second, gain), p in zip(found, adjusted, strict=True):
        word = "better" if (gain.value > 0) != (metric in a.lower) else "worse"
        cells = (first, second, gain.value, gain.low, gain.high, gain.p, gain.n)
        rows.append((metric, *cells, word if p <= LEVEL else "no difference"))
    heads = ("metric", name_a, name_b, "difference", "low", "high", "p", "N", f"{name_b} is")
    note = (
        f"Means over the N identities that both have; the difference is {name_b} - {name_a}, with "
        "its 95 % interval and p, both by turning round pairs of one identity at random. Better "
        "and worse are said by Holm's rule for all metrics together: of 20 comparisons of models "
        "that are equally good, one says such a word, or fewer."
    )
    same = ("data", "people", "recordings", "photos")
    differ = any(a.facts.get(name) != b.facts.get(name) for name in same)
    warning = (
        "The two were evaluated on different data: only people that both have are compared here, "
        "and recalls and matching, which depend on everyone else, do not compare."
    )
    table = Table("Metrics", heads, tuple(rows), note)
    return Section("Differences", (warning,) if differ else (), (table,))


def _side_by_side(a: Table, b: Table, name_a: str, name_b: str) -> Table:
    """Put the columns of two tables beside each other; those that are equal stay one."""
    tables = [_by_name(a), _by_name(b)]
    keys = list(dict.fromkeys(key for rows in tables for key in rows))
    heads: list[str] = [a.heads[0]]
    values: list[list[Cell]] = [[name for name, _ in keys]]
    for k, ranged in columns(a):
        if k == 0:
            continue
        some = range(k, k + 3 if ranged else k + 1)  # an interval stays with its figure
        left, right = (
            [[rows[key][i] if key in rows else None for key in keys] for i in some]
            for rows in tables
        )
        if left == right:
            heads, values = [*heads, *(a.heads[i] for i in some)], [*values, *left]
        else:
            heads += [f"{name}: {a.heads[i]}" for name in (name_a, name_b) for i in some]
            values += [*left, *right]
    note = " ".join(dict.fromkeys(note for note in (a.note, b.note) if note))
    return Table(a.title, tuple(heads), tuple(zip(*values, strict=True)), note)


def _by_name(table: Table) -> dict[tuple[Cell, int], Row]:
    """Find rows by their first cell, and by how many before have the same."""
    names = [row[0] for row in table.rows]
    return {(row[0], names[:k].count(row[0])): row for k, row in enumerate(table.rows)}


PAGES: dict[str, Callable[[Report], str]] = {
    "report.html": to_html,
    "report.md": to_markdown,
    "report.json": to_json,
}
