"""Curves as SVG that stands in a page: no script, no file, legible on a phone and in print.

Lines differ by colour and by dashes: for print, and for those who see no colours.
"""

import math
from collections.abc import Sequence
from html import escape

from s2f.console import one_line
from s2f.report import Curves

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
STYLE = (
    ".chart{width:100%;max-width:36rem;height:auto}"
    f"@media screen and (prefers-color-scheme:dark){{{_DARK}}}"
)
"""CSS of the page: the size, and the colours on a dark ground. Without it all is on a light one."""


def draw(curves: Curves) -> str:
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
        out.append(_text(WIDTH / 2, middle, "nothing to draw", "middle"))
    out.append(_text(4, LETTERS + 3, curves.y_label, "start"))
    out.append(_text(PLOT[2], PLOT[3] + 31, curves.x_label, "end"))
    for k, name in enumerate(names):
        y = PLOT[3] + 38 + ROW * k + ROW / 2
        out.append(_stroke([(PLOT[0], y), (PLOT[0] + 30, y)], k))
        short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        out.append(_text(PLOT[0] + 38, y + 4, short, "start"))
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
        out.append(_text(left - 5, y + 4, _number(value), "end"))
    for value in across.ticks:
        x = across.place(value)
        out.append(f'<path {GRID} d="M{x:.1f} {top}V{bottom}"/>')
        out.append(_text(x, bottom + 15, _number(value), "middle"))
    return out


def _number(value: float) -> str:
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


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(one_line(text))}</text>'
