"""Landmarks: the 68 in the template, checked against the set's own files, and the drawing."""

import numpy as np
import pytest
from conftest import FACES, real_faces
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
