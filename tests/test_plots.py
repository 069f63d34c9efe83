"""`loss.png`: that it is a picture, shows what it should, and takes no time."""

import io
import sys
import time

import numpy as np
import pytest
from PIL import Image

from s2f import visualize
from s2f.errors import DependencyError


@pytest.fixture(autouse=True)
def needs_matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="pip install 's2f[train]'")


def record(step: int, *, scale: float = 1.0, **more: object) -> dict[str, object]:
    losses = {"landmarks/mse": scale * 300 / step, "texture/mae": 0.1 + scale / (step + 9)}
    return {"step": step, "train": losses | {"infonce": 1.0}, "val": losses, **more}


HISTORY = [record(step) for step in range(1, 31)]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


def count(png: bytes, colour: str) -> int:
    """Pixels of a colour, as #rrggbb."""
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return int((abs(pixels(png) - wanted).sum(2) < 12).sum())


def test_the_picture_is_a_small_png_and_the_same_for_the_same_history() -> None:
    png = visualize.draw_losses(HISTORY, best=30)
    assert Image.open(io.BytesIO(png)).format == "PNG"
    assert min(pixels(png).shape[:2]) >= 300
    assert len(png) < 200_000
    assert visualize.draw_losses(HISTORY, best=30) == png


def test_another_history_is_another_picture() -> None:
    other = [*HISTORY[:-1], record(30, scale=0.5)]
    assert visualize.draw_losses(other) != visualize.draw_losses(HISTORY)


def test_training_validation_best_and_stages_are_there() -> None:
    train, val = (colour for _, colour in visualize.PARTS.values())
    plain, marked = visualize.draw_losses(HISTORY), visualize.draw_losses(HISTORY, best=7)
    assert count(plain, train) > 100 and count(plain, val) > 100
    assert count(plain, visualize.BEST) == 0 and count(marked, visualize.BEST) > 30
    later = visualize.draw_losses(HISTORY, stages={40: "after the end"})
    assert later == plain  # what has not begun is not drawn
    assert visualize.draw_losses(HISTORY, stages={10: "more layers"}) != plain


def test_what_was_solved_for_is_the_best_and_no_part_of_the_curve() -> None:
    solved = [*HISTORY, record(30, scale=0.5, solved=True)]
    assert count(visualize.draw_losses(solved, best=30), visualize.BEST) > 30
    # With the best elsewhere the solved losses are not seen.
    assert visualize.draw_losses(solved, best=7) == visualize.draw_losses(HISTORY, best=7)


def test_one_record_and_losses_of_zero_or_below_can_be_drawn() -> None:
    one = {"step": 5, "train": {"a": 0.0, "b": -3.0}, "val": {"a": 100.0}}
    assert pixels(visualize.draw_losses([one], best=5)).std() > 1


def test_ten_thousand_records_take_no_seconds() -> None:
    visualize.draw_losses(HISTORY)  # the import of matplotlib is slow
    few, many = HISTORY * 2, [record(step) for step in range(1, 10_001)]
    times = []
    for history in (few, many):
        began = time.perf_counter()
        visualize.draw_losses(history, best=3)
        times.append(time.perf_counter() - began)
    assert times[1] < 3 * times[0] + 0.2


def test_nothing_stays_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    png = visualize.draw_losses(HISTORY)
    assert dict(mpl.rcParams) == before
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "black")  # as in one's own matplotlibrc
    assert visualize.draw_losses(HISTORY) == png


def test_without_matplotlib_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"loss\.png needs matplotlib") as caught:
        visualize.draw_losses(HISTORY)
    assert caught.value.hint == "pip install 's2f[train]'"
