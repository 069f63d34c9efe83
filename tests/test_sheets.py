"""Several faces in one picture: layouts, captions, and an animation as Pillow reads it back."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from s2f import visualize
from s2f.errors import UsageError
from s2f.visualize import ContactSheet, animate, side_by_side


def plain(colour: tuple[int, int, int], side: int = 224) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def blends(n: int) -> list[Image.Image]:
    """From a gradient to its mirror image."""
    x = np.tile(np.arange(224, dtype=np.uint8), (224, 1))
    first = Image.fromarray(np.stack([x, x.T, 255 - x], axis=-1))
    last = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return [Image.blend(first, last, k / max(1, n - 1)) for k in range(n)]


def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Dark pixels within a box."""
    return int((np.asarray(picture.crop(box).convert("L")) < 128).sum())


@pytest.mark.parametrize("side", [16, 64, 224, 1000])
def test_pictures_stand_side_by_side_above_their_captions(side: int) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    names = ["photo", "from photo", "from voice"]
    sheet = side_by_side([(name, plain(c, side)) for name, c in zip(names, colours, strict=True)])
    seen = np.asarray(sheet)
    found = []
    for colour in colours:
        ys, xs = np.nonzero((seen == colour).all(axis=-1))
        assert len(ys) == side**2 and np.ptp(xs) == np.ptp(ys) == side - 1
        found.append((xs.min(), ys.max()))
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert (seen[0] == 255).all() and (seen[-1] == 255).all()
    for x, y in found:
        if side >= 64:
            assert ink(sheet, (x, y + 1, x + side, sheet.height)) > 10


@pytest.mark.parametrize("caption", ["", "a", 300 * "W", "a\nb\udcff", "ü" * 40])
def test_a_caption_never_reaches_beyond_its_picture(caption: str) -> None:
    white = (255, 255, 255)
    sheet = side_by_side([("", plain(white)), (caption, plain(white)), ("", plain(white))])
    xs = np.nonzero((np.asarray(sheet) < 255).any(axis=(0, 2)))[0]
    middle = sheet.width / 2
    assert len(xs) == 0 or (xs.min() >= middle - 113 and xs.max() <= middle + 113)
    assert (len(xs) > 0) == bool(caption)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, visualize.MOST))
def test_a_contact_sheet_has_room_for_all_and_bounded_sides(n: int) -> None:
    sheet = ContactSheet(n)
    rows = (sheet.ground.height - sheet.gap) // sheet.cell[1]
    assert 48 <= sheet.side <= 224
    assert sheet.columns * rows >= n and sheet.columns * (rows - 1) < n
    if sheet.side > 48:
        assert max(sheet.ground.size) <= 4096
    if n > 30:
        assert 0.7 < sheet.ground.width / sheet.ground.height < 1.4


def test_too_many_faces_are_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="at most 20000 faces"):
        ContactSheet(visualize.MOST + 1)


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_faces_that_never_come_leave_no_hole(n: int) -> None:
    """The sheet of some of n faces shows them in their order, one after the other."""
    sheet = ContactSheet(n)
    kept = [k for k in range(n) if k % 3 != 1]
    for k in kept:
        sheet.add(f"face {k}", plain((200, k % 256, k // 256)))
    picture = sheet.image()
    assert sheet.added == len(kept)
    for place, k in enumerate(kept):
        row, column = divmod(place, sheet.columns)
        x, y = sheet.gap + column * sheet.cell[0], sheet.gap + row * sheet.cell[1]
        part = picture.crop((x, y, x + sheet.side, y + sheet.side))
        assert part.getcolors() == [(sheet.side**2, (200, k % 256, k // 256))]
    assert picture.height == sheet.gap + -(-len(kept) // sheet.columns) * sheet.cell[1]


def test_only_wide_faces_have_captions() -> None:
    for n, has_captions in ((4, True), (2000, False)):
        sheet = ContactSheet(n)
        sheet.add("anna", plain((255, 255, 255)))
        assert (sheet.cell[1] > sheet.cell[0]) is has_captions
        assert (ink(sheet.image(), (0, 0, *sheet.image().size)) > 0) is has_captions


@pytest.mark.parametrize("n", [2, 3, 48])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 3.3])
def test_an_animation_shows_every_frame_for_its_time(n: int, seconds: float) -> None:
    frames = blends(n)
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
    stays[0] -= 500
    stays[-1] -= 500
    assert max(stays) - min(stays) <= 1


def test_frames_that_are_alike_are_all_kept() -> None:
    data = animate(5 * [plain((9, 99, 199))], seconds=1, text={})
    with Image.open(io.BytesIO(data)) as seen:
        assert seen.n_frames == 5 and not seen.getexif()


def test_the_same_frames_give_the_same_bytes() -> None:
    first, second = (animate(iter(blends(4)), seconds=1, text={"Model": "demo"}) for _ in "ab")
    assert first == second
