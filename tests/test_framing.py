"""Cuts against functions of the plane: a picture of a formula is cut into a picture of it."""

import cmath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from s2f import face_detection
from s2f.face_detection import Cut

POINTS = np.random.default_rng(0).uniform(-300, 300, (68, 2))
turns = st.floats(-3.1, 3.1)
zooms = st.floats(0.01, 100)
places = st.floats(-1e4, 1e4)


def waves(points: np.ndarray, length: float) -> np.ndarray:
    """A smooth picture: two waves of a length in pixels, at points [... 2]."""
    x, y = points[..., 0], points[..., 1]
    angle = 2 * np.pi / length
    rgb = [np.sin(angle * x), np.sin(angle * y), np.cos(angle * (0.6 * x + 0.8 * y))]
    return 128 + 100 * np.stack(rgb, axis=-1)


def grid(width: int, height: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(float)


def picture(width: int, height: int, length: float) -> Image.Image:
    return Image.fromarray(np.rint(waves(grid(width, height), length)).astype(np.uint8))


@given(zooms, turns, places, places)
def test_a_cut_and_its_photo_know_the_same_points(
    zoom: float, turn: float, x: float, y: float
) -> None:
    cut = Cut(224, cmath.rect(zoom, turn), complex(x, y))
    np.testing.assert_allclose(cut.to_cut(cut.to_photo(POINTS)), POINTS, atol=1e-5)


@given(zooms, turns, places, places)
def test_framing_puts_the_eyes_in_their_place(zoom: float, turn: float, x: float, y: float) -> None:
    c, s = zoom * np.cos(turn), zoom * np.sin(turn)
    points = POINTS @ np.array([[c, s], [-s, c]]) + (x, y)
    left, right = (points[k : k + 6].mean(0) for k in (36, 42))
    if np.linalg.norm(right - left) < 1:
        with pytest.raises(ValueError, match="pixels apart"):
            face_detection.framed(points, 224)
        return
    framed = face_detection.framed(points, 224).to_cut(np.stack([left, right]))
    wanted = 224 * np.array([[0.5023 - 0.2677 / 2, 0.4703], [0.5023 + 0.2677 / 2, 0.4703]]) - 0.5
    np.testing.assert_allclose(framed, wanted, atol=1e-3)


@pytest.mark.parametrize("oversample", [1, 2])
@pytest.mark.parametrize("turn", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("zoom", [0.4, 1.0, 1.7, 6.3])
def test_a_cut_shows_what_lies_under_each_of_its_pixels(
    zoom: float, turn: float, oversample: int
) -> None:
    length = 24 * max(1.0, zoom)
    step = cmath.rect(zoom, turn)
    cut = Cut(50, step, complex(350.3, 300.8) - step * 25 * (1 + 1j))
    seen = np.asarray(cut.take(picture(700, 600, length), oversample=oversample), float)
    wanted = waves(cut.to_photo(grid(50, 50).reshape(-1, 2)).reshape(50, 50, 2), length)
    inner = np.abs(seen - wanted)[2:-2, 2:-2]
    assert inner.mean() < 2 and inner.max() < 8


def test_the_cut_of_a_whole_photo_is_the_photo() -> None:
    photo = picture(80, 80, 20)
    assert Cut(80, 1, 0).take(photo).tobytes() == photo.tobytes()
    twice = np.asarray(Cut(80, 1, 0).take(photo, oversample=2), float)
    assert np.abs(twice - np.asarray(photo)).max() <= 4


@pytest.mark.parametrize("oversample", [1, 2])
@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_what_shrinks_is_averaged_and_not_skipped(turn: float, oversample: int) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (800, 800, 1), dtype=np.uint8) * 255
    photo = Image.fromarray(np.repeat(noise, 3, axis=2))
    zoom = cmath.rect(8, turn)
    cut = Cut(50, zoom, 400 + 400j - zoom * (25 + 25j))
    seen = np.asarray(cut.take(photo, oversample=oversample), float)
    assert abs(seen.mean() - 127.5) < 5 and seen.std() < 35  # single pixels would give 127.5


def test_beyond_a_photo_its_edge_goes_on() -> None:
    photo = Image.new("RGB", (60, 40), (0, 0, 255))
    photo.paste((255, 0, 0), (0, 0, 30, 40))
    seen = np.asarray(Cut(100, 1, -20 - 30j).take(photo))
    assert (seen[:, :48] == (255, 0, 0)).all() and (seen[:, 52:] == (0, 0, 255)).all()


@pytest.mark.parametrize("origin", [-500 - 500j, 500 + 500j])
def test_a_cut_that_misses_the_photo_has_the_colour_of_the_nearest_corner(origin: complex) -> None:
    photo = Image.fromarray(np.full((30, 30, 3), 77, np.uint8))
    assert (np.asarray(Cut(20, 1j, origin).take(photo)) == 77).all()


def test_a_box_lies_in_the_middle_and_takes_its_share() -> None:
    cut = face_detection.around(np.array([100, 50, 140, 70]), 200, 0.5, cmath.rect(1, 0.3))
    np.testing.assert_allclose(cut.to_cut(np.array([[119.5, 59.5]])), [[99.5, 99.5]])
    assert abs(cut.zoom) * 100 == pytest.approx(40)


def test_points_are_squashed_like_the_photo() -> None:
    dot = np.array([[70.0, 20.0]])
    photo = Image.new("RGB", (100, 300))
    photo.putpixel((70, 20), (255, 0, 0))
    small = np.asarray(photo.resize((50, 50), Image.Resampling.BOX), float)[..., 0]
    seen = (small[..., None] * grid(50, 50)).sum((0, 1)) / small.sum()
    np.testing.assert_allclose(face_detection.squashed(dot, (100, 300), 50)[0], seen, atol=0.5)
    np.testing.assert_allclose(face_detection.squashed(dot, (100, 300), 50), [[34.75, 2.9166667]])
