"""Pictures that are looked at: faces on sheets, in animations, a run's losses, a spectrogram.

Faces, histories and spectrograms in, pictures out. matplotlib is used by its objects alone: no
pyplot, no window, and nothing that stays changed. Knows nothing of models and files.
"""

import io
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from s2f.audio import SAMPLE_RATE
from s2f.errors import UsageError
from s2f.images import FRAME, exif
from s2f.spectrogram import HOP_LENGTH, FrontEnd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHEET = 4096  # pixels a side of a contact sheet, at most, where its faces stay large enough
SMALLEST = 48  # pixels a side of a face on it
MOST = 20_000  # faces on it
CAPTIONED = 96  # pixels: width of a face from which on it has a caption
INK = (60, 60, 60)
HOLD = 500  # milliseconds that the first and the last picture of an animation stay longer


def side_by_side(columns: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Lay RGB pictures of one size side by side on white, each above its caption, cut to fit."""
    width, height = columns[0][1].size
    gap, band = _gap(width), _letters(width) * 3 // 2
    size = (gap + len(columns) * (width + gap), gap + height + band + gap)
    ground = Image.new("RGB", size, "white")
    for k, (caption, picture) in enumerate(columns):
        x = gap + k * (width + gap)
        ground.paste(picture, (x, gap))
        _write(ground, caption, x, gap + height, width)
    return ground


class ContactSheet:
    """A sheet of the faces of a batch, which are added one by one and shrunk at once."""

    side: int  # pixels of a face on it
    columns: int  # faces in a row
    added: int  # faces so far

    def __init__(self, n: int) -> None:
        """Plan a sheet of n faces, about as wide as high: at most 4096 pixels, if 48 a face allow.

        Faces that never come leave no hole. Raises UsageError if they are too many to look at.
        """
        if n > MOST:
            hint = "leave the sheet out, or make several of a part of the files each"
            raise UsageError(f"a contact sheet shows at most {MOST} faces, not {n}", hint=hint)
        self.added = 0
        for self.side in range(FRAME, SMALLEST - 1, -1):
            self.gap = _gap(self.side)
            band = _letters(self.side) * 3 // 2 if self.side >= CAPTIONED else 0
            width = self.side + self.gap
            height = width + band
            self.columns = max(1, math.ceil(math.sqrt(n * height / width)))
            rows = math.ceil(n / self.columns)
            if max(self.columns * width, rows * height) + self.gap <= SHEET:
                break
        self.cell = (width, height)
        self.ground = Image.new("RGB", self._size(self.columns, rows), "white")

    def add(self, caption: str, face: Image.Image) -> None:
        """Put the next face on the sheet, above its caption where there is room for one."""
        row, column = divmod(self.added, self.columns)
        x, y = (n * step + self.gap for n, step in zip((column, row), self.cell, strict=True))
        small = face.resize((self.side, self.side), Image.Resampling.LANCZOS)
        self.ground.paste(small, (x, y))
        if self.side >= CAPTIONED:
            _write(self.ground, caption, x, y + self.side, self.side)
        self.added += 1

    def image(self) -> Image.Image:
        """Show the faces that were added."""
        columns, rows = min(self.added, self.columns), math.ceil(self.added / self.columns)
        return self.ground.crop((0, 0, *self._size(columns, rows)))

    def _size(self, columns: int, rows: int) -> tuple[int, int]:
        width, height = self.cell
        return columns * width + self.gap, rows * height + self.gap


def animate(frames: Iterable[Image.Image], *, seconds: float, text: Mapping[str, str]) -> bytes:
    """Encode two or more RGB pictures of one size as an animated WebP that starts again for ever.

    All frames take the same share of the seconds, and the first and the last half a second more;
    one that is the same as the one before prolongs it. Text is as for `images.encode`.
    """
    first, *others = frames
    milliseconds = np.diff(np.rint(np.linspace(0, 1000 * seconds, 2 + len(others))).astype(int))
    milliseconds[[0, -1]] += HOLD
    file = io.BytesIO()
    # Each frame is whole (kmax): of what has changed alone, errors would add up.
    look = {"quality": 90, "method": 4, "kmax": 1, "duration": milliseconds.tolist(), "loop": 0}
    first.save(file, "WEBP", save_all=True, append_images=others, exif=exif(text), **look)
    return file.getvalue()


def _gap(width: int) -> int:
    return max(3, width // 16)


def _letters(width: int) -> int:
    """Size of captions below pictures of a width, pixels."""
    return max(11, width // 14)


def _write(ground: Image.Image, caption: str, x: int, y: int, width: int) -> None:
    """Write a caption below a picture whose lower edge starts at (x, y), cut in its middle."""
    font = ImageFont.load_default(_letters(width))
    caption = "".join(letter if letter.isprintable() else "?" for letter in caption)
    shown, keep = caption, len(caption)
    while keep > 0 and font.getlength(shown) > width:
        keep -= 1
        shown = f"{caption[: (keep + 1) // 2]}…{caption[len(caption) - keep // 2 :]}"
    middle = (x + width / 2, y + _letters(width) // 4)
    ImageDraw.Draw(ground).text(middle, shown, fill=INK, font=font, anchor="ma")


Record = Mapping[str, Any]
POINTS = 1000  # of a curve; more would not be seen
FEW = 40  # points that are marked each
PARTS = {"train": ("training", "#8fb8de"), "val": ("validation", "#1f3f77")}
RECALL = {1: "#1f3f77", 5: "#4a7fbf", 10: "#8fb8de"}
BEST, STAGE = "#d9480f", "#868e96"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "lines.linewidth": 1.3,
    "axes.edgecolor": STAGE,
    "grid.color": "#e9ecef",
    **dict.fromkeys(("xtick.color", "ytick.color"), "#495057"),
}


def draw_losses(
    history: Sequence[Record], *, best: int | None = None, stages: Mapping[int, str] | None = None
) -> bytes:
    """Draw the losses of a run, in training and in validation, as PNG: the same input, the same.

    The history has at least one record, in order of the steps: `step`, and the losses by name as
    `train` and `val`; perhaps `recall`: shares by r1, r5, r10, and among how many `people`, drawn
    beside what chance would give; with `solved` if they are of what was solved for at the end, and
    `kept` if that is the best. The step of the best score is marked, and by their steps the stages
    that began there. A loss whose values span more than a power of ten has a logarithmic scale.
    """
    from matplotlib import style

    names = list(dict.fromkeys(name for record in history for p in PARTS for name in record[p]))
    found = [r for r in history if r.get("recall")]
    n = len(names) + bool(found)
    columns = 2 if n in (2, 4) else min(3, n)
    rows = -(-n // columns)
    with style.context(["default", STYLE]):
        width, height = max(5.0, 3.9 * columns), 0.4 + 2.8 * rows  # inches
        figure = _figure(width, height, 0.5, 0.2, 0.5, 0.6)
        figure.subplots_adjust(wspace=0.22, hspace=0.4)
        for k, name in enumerate(names, start=1):
            _draw_loss(figure.add_subplot(rows, columns, k), name, history, best)
        if found:
            _draw_recall(figure.add_subplot(rows, columns, n), found, best)
        for ax in figure.axes:
            _number_steps(ax, history[-1]["step"])
            for step, what in (stages or {}).items():
                if step <= history[-1]["step"]:
                    ax.axvline(step, color=STAGE, linewidth=0.8, linestyle=":")
                    words = ax.text(step, 0.98, what, transform=ax.get_xaxis_transform(), va="top")
                    words.set(rotation=90, fontsize=7, color=STAGE)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=5, frameon=False)
        return _png(figure)


def _draw_loss(ax: "Axes", name: str, history: Sequence[Record], best: int | None) -> None:
    """Draw one loss in training and validation."""
    seen: list[float] = []
    for part, (label, colour) in PARTS.items():
        records = [r for r in history if name in r[part] and not r.get("solved")]
        records = [*records[:: -(-len(records) // POINTS) or 1], *records[-1:]]
        values = [record[part][name] for record in records]
        seen += values
        marker = "." if len(records) <= FEW else ""
        ax.plot([r["step"] for r in records], values, color=colour, label=label, marker=marker)
    ax.set_title(name, loc="left", fontweight="bold")
    # The last of a step is of what was solved for, if anything was, and was kept.
    found = [r for r in history if r["step"] == best and name in r["val"] and r.get("kept", True)]
    if found:
        step, value = found[-1]["step"], found[-1]["val"][name]
        label = f"best, step {step:,}" + (" (solved for)" if found[-1].get("solved") else "")
        ax.plot([step], [value], "o", color=BEST, label=label, zorder=3, clip_on=False)
        ax.set_title(f"{value:.4g}", loc="right", color=BEST)
        seen.append(value)
    if min(seen) > 0 and max(seen) > 10 * min(seen):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        ax.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
    ax.grid(True, which="both")


def _draw_recall(ax: "Axes", found: Sequence[Record], best: int | None) -> None:
    """Draw recall at 1, 5 and 10, with the chance of each as a dotted line."""
    steps = [r for r in found if not r.get("solved")]
    shown = [*steps[:: -(-len(steps) // POINTS) or 1], *steps[-1:]]
    people = found[-1]["recall"]["people"]
    for k, colour in RECALL.items():
        name, chance = f"r{k}", min(1.0, k / people)
        values = [r["recall"][name] for r in shown]
        marker = "." if len(shown) <= FEW else ""
        ax.plot([r["step"] for r in shown], values, color=colour, label=f"R@{k}", marker=marker)
        ax.axhline(chance, color=colour, linewidth=0.8, linestyle=":")
        for r in found:
            if r["step"] == best and r.get("kept", True):
                ax.plot([r["step"]], [r["recall"][name]], "o", color=BEST, zorder=3, clip_on=False)
    ax.set_title(f"recall among {people:,} people", loc="left", fontweight="bold")
    ax.set_ylim(0, 1.02)
    ax.legend(loc="best", frameon=False, fontsize=7)
    ax.grid(True)


def _number_steps(ax: "Axes", last: int) -> None:
    ax.locator_params(axis="x", nbins=5, integer=True)
    thousands = last >= 10_000
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if thousands and x else f"{x:g}")
    ax.set_xlabel("step")


PITCHES = {100: "100 Hz", 300: "300 Hz", 1000: "1 kHz", 3000: "3 kHz", 8000: "8 kHz"}
GAP = 0.1  # of the height, that two numbers at an axis need


def draw_spectrogram(spectrogram: NDArray[np.float32], front_end: FrontEnd) -> Image.Image:
    """Draw a spectrogram [c f t] of a front end: time to the right, pitch upwards, loud is light.

    The picture is RGB, 530 x 258.
    """
    from matplotlib import style

    # The paper's has the compressed real and imaginary parts.
    loud = np.hypot(*spectrogram) if front_end.kind == "paper" else spectrogram[0]
    if front_end.kind == "speaker":  # power, as nobody sees it: 80 dB of it
        loud = np.log(loud + 1e-8 * loud.max() + 1e-30)
    softest = np.percentile(loud, 5)  # digital silence would darken all the rest
    seconds = spectrogram.shape[2] * HOP_LENGTH / SAMPLE_RATE
    places: dict[float, str] = {}
    for hertz, label in PITCHES.items():
        place = (front_end.row(hertz) + 0.5) / front_end.n_freqs
        if not places or place - max(places) >= GAP:
            places[place] = label
    with style.context(["default", {"font.size": 11, "ytick.major.pad": 2}]):
        figure = _figure(5.3, 2.58, 0.68, 0.14, 0.48, 0.1)
        axes = figure.subplots()
        lies = (0, seconds, 0, 1)
        image = axes.imshow(loud, "inferno", aspect="auto", origin="lower", extent=lies)
        image.set_clim(softest, max(loud.max(), softest + 1e-9))
        axes.set_yticks(list(places), list(places.values()))
        axes.set_xlabel("seconds")
        axes.locator_params(axis="x", nbins=10)
        axes.spines[:].set_visible(False)
        return Image.open(io.BytesIO(_png(figure))).convert("RGB")


def _figure(width: float, height: float, *margins: float) -> "Figure":
    """Start a figure of 100 dots an inch; its margins are left, right, bottom, top; in inches."""
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of its caches nobody wants to hear
    figure, (left, right, bottom, top) = Figure(figsize=(width, height), dpi=100), margins
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    return figure


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
