"""The history of a run as a picture: for each loss a panel, over the steps.

A history in, PNG out. Uses matplotlib's objects alone: no pyplot, no window, and nothing that
stays changed.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s2f.errors import DependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]
POINTS = 1000  # of a curve; more would not be seen
FEW = 40  # points that are marked each
PARTS = {"train": ("training", "#8fb8de"), "val": ("validation", "#1f3f77")}
BEST, STAGE = "#d9480f", "#868e96"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": STAGE,
    "axes.titlesize": 9,
    "lines.linewidth": 1.3,
    "grid.color": "#e9ecef",
    "xtick.color": "#495057",
    "ytick.color": "#495057",
}


def draw_losses(
    history: Sequence[Record], *, best: int | None = None, stages: Mapping[int, str] | None = None
) -> bytes:
    """Draw the losses of a run, in training and in validation, as PNG.

    A loss whose values span more than a power of ten has a logarithmic scale. The same input gives
    the same bytes.

    Args:
        history: at least one record, in order of the steps: `step`, and the losses by name as
            `train` and `val`; with `solved` if they are of what was solved for at the end.
        best: step of the best score, which is marked.
        stages: by step, what began there.

    Raises:
        DependencyError: if matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "loss.png needs matplotlib", hint="pip install 's2f[train]'"
        ) from error
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of its caches nobody wants to hear
    names = list(dict.fromkeys(name for record in history for p in PARTS for name in record[p]))
    columns = 2 if len(names) in (2, 4) else min(3, len(names))
    rows = -(-len(names) // columns)
    with style.context(["default", STYLE]):
        width, height = max(5.0, 3.9 * columns), 0.4 + 2.8 * rows  # inches
        figure = Figure(figsize=(width, height), dpi=100)
        FigureCanvasAgg(figure)
        figure.subplots_adjust(
            left=0.5 / width,
            right=1 - 0.2 / width,
            bottom=0.5 / height,
            top=1 - 0.6 / height,
            wspace=0.22,
            hspace=0.4,
        )
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, name in zip(axes[: len(names)], names, strict=True):
            _draw_loss(ax, name, history, best)
            _draw_stages(ax, stages or {}, last=history[-1]["step"])
        for ax in axes[len(names) :]:
            ax.remove()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=5, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


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
    # The last of a step is of what was solved for, if anything was.
    found = [r for r in history if r["step"] == best and name in r["val"]]
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
    ax.locator_params(axis="x", nbins=5, integer=True)
    thousands = history[-1]["step"] >= 10_000
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if thousands and x else f"{x:g}")
    ax.set_xlabel("step")


def _draw_stages(ax: "Axes", stages: Mapping[int, str], last: int) -> None:
    """Draw a thin line where something began, and say what."""
    for step, what in stages.items():
        if step <= last:
            ax.axvline(step, color=STAGE, linewidth=0.8, linestyle=":")
            ax.annotate(
                what,
                (step, 1),
                xycoords=ax.get_xaxis_transform(),
                xytext=(2, -2),
                textcoords="offset points",
                rotation=90,
                va="top",
                fontsize=7,
                color=STAGE,
                zorder=1,  # under the curves
            )
