"""Pictures: sheets and captions, an animation as Pillow reads it, losses, spectrograms."""

import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageSequence

from s2f import visualize
from s2f.audio import SAMPLE_RATE
from s2f.errors import UsageError
from s2f.spectrogram import FRONT_ENDS, FrontEnd, spectrogram
from s2f.visualize import ContactSheet, animate, draw_losses, draw_spectrogram, side_by_side

WHITE = (255, 255, 255)


def plain(colour: tuple[int, int, int], side: int = 224) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


@pytest.mark.parametrize("side", [16, 64, 224, 1000])
def test_pictures_stand_side_by_side_above_their_captions(side: int) -> None:
    colours = {"photo": (250, 0, 0), "from photo": (0, 250, 0), "from voice": (0, 0, 250)}
    sheet = side_by_side([(name, plain(colour, side)) for name, colour in colours.items()])
    seen = np.asarray(sheet)
    right = 0
    for colour in colours.values():
        ys, xs = np.nonzero((seen == colour).all(axis=-1))
        assert len(ys) == side**2 and np.ptp(xs) == np.ptp(ys) == side - 1 and xs.min() > right
        right = xs.max()
        below = np.asarray(sheet.convert("L"))[ys.max() + 1 :, xs.min() : right]
        assert side < 64 or (below < 128).sum() > 10  # ink
    assert (seen[0] == 255).all() and (seen[-1] == 255).all()


@pytest.mark.parametrize("caption", ["", "a", 300 * "W", "a\nb\udcff", "ü" * 40])
def test_a_caption_never_reaches_beyond_its_picture(caption: str) -> None:
    sheet = side_by_side([("", plain(WHITE)), (caption, plain(WHITE)), ("", plain(WHITE))])
    xs = np.nonzero((np.asarray(sheet) < 255).any(axis=(0, 2)))[0]
    assert len(xs) == 0 or np.abs(xs - sheet.width / 2).max() <= 113
    assert (len(xs) > 0) == bool(caption)
    for n, wide in ((4, True), (2000, False)):  # only wide faces of a contact sheet have captions
        faces = ContactSheet(n)
        faces.add(caption, plain(WHITE))
        assert (faces.cell[1] > faces.cell[0]) is wide
        assert (np.asarray(faces.image()).min() < 128) == (wide and bool(caption))


@settings(max_examples=60)
@given(st.integers(1, visualize.MOST))
def test_a_contact_sheet_has_room_for_all_and_bounded_sides(n: int) -> None:
    sheet = ContactSheet(n)
    rows = (sheet.ground.height - sheet.gap) // sheet.cell[1]
    assert 48 <= sheet.side <= 224
    assert sheet.columns * rows >= n and sheet.columns * (rows - 1) < n
    assert sheet.side == 48 or max(sheet.ground.size) <= 4096
    assert n <= 30 or 0.7 < sheet.ground.width / sheet.ground.height < 1.4
    with pytest.raises(UsageError, match="at most 20000 faces"):
        ContactSheet(visualize.MOST + 1)


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_faces_that_never_come_leave_no_hole(n: int) -> None:
    sheet = ContactSheet(n)
    kept = [k for k in range(n) if k % 3 != 1]
    for k in kept:
        sheet.add(f"face {k}", plain((200, k % 256, k // 256)))
    picture = sheet.image()
    for place, k in enumerate(kept):
        row, column = divmod(place, sheet.columns)
        x, y = sheet.gap + column * sheet.cell[0], sheet.gap + row * sheet.cell[1]
        part = picture.crop((x, y, x + sheet.side, y + sheet.side))
        assert part.getcolors() == [(sheet.side**2, (200, k % 256, k // 256))]
    assert sheet.added == len(kept)
    assert picture.height == sheet.gap + -(-len(kept) // sheet.columns) * sheet.cell[1]


@pytest.mark.parametrize(("n", "seconds"), [(2, 0.5), (3, 3.3), (48, 0.5), (48, 2.0)])
def test_an_animation_shows_every_frame_for_its_time(n: int, seconds: float) -> None:
    x = np.tile(np.arange(224, dtype=np.uint8), (224, 1))
    first = Image.fromarray(np.stack([x, x.T, 255 - x], axis=-1))
    last = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    frames = [Image.blend(first, last, k / (n - 1)) for k in range(n)]
    data = animate(frames, seconds=seconds, text={"Software": "s2f 1", "Comment": "made"})
    with Image.open(io.BytesIO(data)) as seen:
        assert (seen.format, seen.size, seen.n_frames) == ("WEBP", (224, 224), n)
        assert seen.info["loop"] == 0  # for ever
        assert dict(seen.getexif()) == {0x0131: "s2f 1", 0x010E: "Comment: made"}
        stays = []
        for frame, picture in zip(frames, ImageSequence.Iterator(seen), strict=True):
            shown = np.asarray(picture.convert("RGB"), float)
            stays.append(picture.info["duration"])
            assert np.abs(shown - np.asarray(frame, float)).mean() < 3
    assert sum(stays) == round(1000 * seconds) + 1000
    assert np.ptp(np.array(stays) - 500 * np.isin(np.arange(n), (0, n - 1))) <= 1


def record(step: int, *, scale: float = 1.0, **more: object) -> dict[str, object]:
    losses = {"landmarks/mse": scale * 300 / step, "texture/mae": 0.1 + scale / (step + 9)}
    return {"step": step, "train": losses | {"infonce": 1.0}, "val": losses, **more}


HISTORY = [record(step) for step in range(1, 31)]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB"), dtype=int)


def count(png: bytes, colour: str) -> int:
    return int((abs(pixels(png) - ImageColor.getrgb(colour)).sum(2) < 12).sum())


def test_losses_best_and_stages_are_in_a_small_png_and_no_setting_stays_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, val = (colour for _, colour in visualize.PARTS.values())
    plain, marked = draw_losses(HISTORY), draw_losses(HISTORY, best=7)
    assert count(plain, train) > 100 and count(plain, val) > 100
    assert count(plain, visualize.BEST) == 0 and count(marked, visualize.BEST) > 30
    assert draw_losses(HISTORY, stages={40: "what has not begun is not drawn"}) == plain
    assert draw_losses(HISTORY, stages={10: "more layers"}) != plain
    solved = [*HISTORY, record(30, scale=0.5, solved=True)]  # is the best, and not of the curve
    assert count(draw_losses(solved, best=30), visualize.BEST) > 30
    assert draw_losses(solved, best=7) == marked
    worse = [*HISTORY, record(30, scale=0.5, solved=True, kept=False)]
    assert draw_losses(worse, best=30) == draw_losses(HISTORY, best=30)
    # Recall is one picture more, whose best is marked too.
    shares = {"people": 20, "samples": 9, "r1": 0.2, "r5": 0.5, "r10": 0.7}
    heard = [r | {"recall": shares} for r in HISTORY]
    more = draw_losses(heard, best=7)
    assert count(more, visualize.BEST) > count(marked, visualize.BEST) + 30
    assert draw_losses(heard, best=7) == more
    assert draw_losses([*heard[:-1], heard[-1] | {"recall": shares | {"r5": 0.6}}], best=7) != more
    before = dict(mpl.rcParams)
    for history in (HISTORY, [record(step) for step in range(1, 10_001)]):
        png = draw_losses(history, best=3)
        assert min(pixels(png).shape[:2]) >= 300 and len(png) < 200_000
    one = {"step": 5, "train": {"a": 0.0, "b": -3.0}, "val": {"a": 100.0}}  # none but above 0
    assert pixels(draw_losses([one], best=5)).std() > 1
    assert dict(mpl.rcParams) == before
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "black")  # as in one's own matplotlibrc
    assert draw_losses(HISTORY) == plain != draw_losses([*HISTORY[:-1], record(30, scale=0.5)])


PLOT = (68, 11, 516, 210)  # of the picture: left, top, right, bottom
HEIGHT = 200  # of the plot, whose first row is half white, or all of it


def drawn(waveform: torch.Tensor, front_end: FrontEnd) -> np.ndarray:
    columns = spectrogram(waveform[None], front_end)[0, :, :, : 1 + len(waveform) // 160]
    picture = draw_spectrogram(columns.numpy(), front_end)
    assert picture.size == (530, 258)
    return np.asarray(picture.crop(PLOT).convert("L"), np.float64)


@pytest.mark.parametrize("kind", FRONT_ENDS)
@pytest.mark.parametrize("hertz", [300, 1000, 3000, 6000])
def test_a_tone_is_lightest_where_its_pitch_is_written(kind: str, hertz: int) -> None:
    front_end = FRONT_ENDS[kind]
    tone = 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE)
    lightest = HEIGHT - 2.5 - drawn(tone, front_end)[1:].mean(axis=1).argmax()
    wanted = (front_end.row(hertz) + 0.5) / front_end.n_freqs * HEIGHT
    within = max(3, 0.7 * HEIGHT / front_end.n_freqs)  # the 40 rows of `speaker` are 5 high
    assert lightest == pytest.approx(wanted, abs=within)


@pytest.mark.parametrize("kind", FRONT_ENDS)
@pytest.mark.parametrize("seconds", [0.25, 1, 30])
def test_time_goes_to_the_right_whatever_the_length(kind: str, seconds: float) -> None:
    loud = torch.from_numpy(noise(seconds))
    light = drawn(torch.cat([1e-3 * loud, loud]), FRONT_ENDS[kind]).mean(axis=0)
    half = len(light) // 2
    assert light[half + 10 :].min() > light[: half - 10].max()
    assert draw_spectrogram(np.zeros((1, 128, 100), np.float32), FRONT_ENDS["ast"]).mode == "RGB"
