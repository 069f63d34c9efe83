"""Landmarks: the 68 in the template, checked against the set's own files, and the drawing."""

import re

import numpy as np
import pytest
from conftest import FACES, real_faces, some_landmarks
from PIL import Image

from s2f import landmarks

TEMPLATE = np.random.default_rng(0).uniform(0, 224, (landmarks.TEMPLATE_POINTS, 2))


@pytest.mark.data
@real_faces
def test_the_68_points_are_those_that_come_with_the_faces():
    for path in sorted(FACES.glob("*/neutral_template.npy")):
        template, points = np.load(path), np.load(path.with_name("neutral_landmarks.npy"))
        np.testing.assert_allclose(landmarks.to_68(template), points, atol=0.01)
        # What the bundled encoder registers by: the template begins with the pupils.
        eyes = np.stack([points[36:42].mean(0), points[42:48].mean(0)])
        apart = np.linalg.norm(template[:2] - eyes, axis=1)
        assert apart.max() < 0.15 * np.linalg.norm(template[0] - template[1])


def test_the_jaw_is_spaced_evenly_along_its_line():
    straight = TEMPLATE.copy()
    jaw = [i for i, _, _ in landmarks.map_68(TEMPLATE)[:17]]
    line = sorted({*jaw, *landmarks._JAW}, key=landmarks._JAW.index)
    straight[line] = np.stack([np.linspace(0, 1, len(line)) ** 2 * 160, np.zeros(len(line))], 1)
    x = landmarks.to_68(straight)[:17, 0]
    np.testing.assert_allclose(x, np.linspace(0, 160, 17), atol=1e-3)


def test_the_68_points_lie_in_the_72_of_the_seed():
    seen = np.random.default_rng(1).uniform(0, 224, (68, 2))
    of_72 = seen[list(landmarks.OF_72)]
    assert len(of_72) == 72
    i, j, w = (np.array(c) for c in zip(*landmarks.MAP_72, strict=True))
    np.testing.assert_array_equal((1 - w)[:, None] * of_72[i] + w[:, None] * of_72[j], seen)


def test_drawing_marks_the_points_and_leaves_the_face_alone():
    face = Image.new("RGB", (224, 224), (10, 10, 10))
    overlay = landmarks.draw_landmarks(face, np.full((68, 2), 100.0))
    assert face.getpixel((100, 100)) == (10, 10, 10)
    assert overlay.getpixel((100, 100)) == (255, 80, 60)


def another(points: np.ndarray, way: str) -> np.ndarray:
    """What people's own scripts make of landmarks of a frame of 224 pixels."""
    return {
        "shares": lambda: points / 224,
        "about 0": lambda: points / 112 - 1,
        "1024 px": lambda: (points + 0.5) * 1024 / 224 - 0.5,
        "far": lambda: points + 1e6,
        "one point": lambda: 0 * points + 100,
        "one line": lambda: points * (1, 0) + (0, 100),
        "(y, x)": lambda: points[:, ::-1],
        "mirrored": lambda: (223, 0) + points * (-1, 1),
        "y upwards": lambda: (0, 223) + points * (1, -1),
        "upside down": lambda: 223 - points,
        "last to first": lambda: points[::-1],
    }[way]()


WAYS = {
    "shares": "are hardly spread .*: shares of a frame, and no pixels",
    "about 0": "are hardly spread .*: shares of a frame, and no pixels",
    "1024 px": "lie outside the frame of 224 x 224 pixels",
    "far": "lie outside the frame of 224 x 224 pixels",
    "one point": "are hardly spread",
    "one line": "are hardly spread",
    "(y, x)": "are mirrored, or .y, x.",
    "mirrored": "are mirrored",
    "y upwards": "are mirrored",
    "upside down": "are upside down: the eyes lie below the mouth",
    "last to first": "are in another order",
}


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Landmarks of a head that is tilted."""
    a = np.radians(degrees)
    return (points - 112) @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + 112


# What a grid in their order says; `some_landmarks` is one.
@pytest.mark.parametrize("way", [way for way in WAYS if way != "last to first"])
def test_landmarks_in_another_frame_or_order_are_told_apart(way):
    points = some_landmarks().astype(np.float64)
    for degrees in (-60, 0, 60):
        assert landmarks.implausible(turned(points, degrees), 224) == ""
    assert re.match(WAYS[way], landmarks.implausible(another(points, way), 224))
    assert (
        landmarks.implausible(points * 1024 / 224, 1024) == ""
    )  # in their own frame they are fine


@pytest.mark.data
@real_faces
@pytest.mark.parametrize("name", ["landmarks", "template"])
def test_those_of_faces_are_taken_and_what_scripts_make_of_them_is_not(name):
    for path in sorted(FACES.glob(f"*/neutral_{name}.npy")):
        points = (np.load(path).astype(np.float64) + 0.5) * (224 / 256) - 0.5  # 256: their README
        narrow = (points - (112, 0)) * (0.3, 1) + (112, 0)  # half a profile
        for seen in (points, turned(points, 45), turned(points, -45), narrow):
            assert landmarks.implausible(seen, 224) == ""
        for way, why in WAYS.items():
            if (name, way) == ("template", "last to first"):
                why = "are"  # whatever the order of its points makes of it
            assert re.match(why, landmarks.implausible(another(points, way), 224)), (path, way)
