"""Craniofacial measures: on a face drawn to measure, and on real ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2f.metrics import measure

FACES = Path(__file__).parents[2] / "shared/data/faces"
# A face 100 wide between the outer corners of the eyes; what no measure uses stays at (50, 50).
DRAWN = {
    1: (-10, 20),
    15: (140, 20),
    4: (-5, 72),
    12: (85, 72),
    8: (50, 117),
    36: (0, 0),
    39: (30, 0),
    42: (70, 0),
    45: (100, 0),
    27: (50, 0),
    31: (35, 40),
    32: (42.5, 45),
    33: (50, 50),
    34: (57.5, 45),
    35: (65, 40),
    48: (30, 72),
    49: (35, 68),
    50: (45, 65),
    52: (55, 65),
    53: (65, 72),
    54: (75, 72),
    51: (50, 66),
    62: (50, 70),
    66: (50, 72),
    57: (50, 80),
}
EXPECTED = {  # by hand from the numbers above
    "upper lip height": 20 / 100,
    "lateral upper lip heights": (28 + 32) / 2 / 100,
    "jaw width": 90 / 100,
    "nose height": 50 / 100,
    "nose width": 30 / 100,
    "labio-oral region": 45 / 100,
    "mandibular index": 45 / 90,
    "intercanthal index": 40 / 100,
    "nasal index": 30 / 50,
    "vermilion height index": 4 / 8,
    "mouth-face width index": 45 / 150,
    "nose area": 50 * 30 / 2 / 100**2,  # a kite: half the product of its diagonals
    "philtrum width": 10 / 100,
}


def drawn() -> np.ndarray:
    """Points [68 2]."""
    points = np.full((68, 2), 50.0)
    for k, place in DRAWN.items():
        points[k] = place
    return points


def test_a_drawn_face_has_the_measures_it_was_drawn_to() -> None:
    found = measure(drawn()[None])
    assert list(found) == list(EXPECTED)
    for name, value in EXPECTED.items():
        np.testing.assert_allclose(found[name], [value], rtol=1e-12, err_msg=name)


@given(
    st.floats(0.01, 100),
    st.floats(-np.pi, np.pi),
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
    st.booleans(),
)
def test_size_turn_place_and_a_mirror_change_nothing(
    size: float, turn: float, x: float, y: float, mirrored: bool
) -> None:
    cos, sin = np.cos(turn), np.sin(turn)
    moved = drawn() * [-1 if mirrored else 1, 1] @ [[cos, sin], [-sin, cos]] * size + [x, y]
    for name, values in measure(moved[None]).items():
        np.testing.assert_allclose(values, [EXPECTED[name]], rtol=1e-6, err_msg=name)


def test_faces_are_measured_one_by_one() -> None:
    rng = np.random.default_rng(0)
    faces = drawn() + rng.normal(0, 3, (5, 68, 2))
    together = measure(faces)
    for k, face in enumerate(faces):
        for name, values in measure(face[None]).items():
            assert values[0] == together[name][k]


def test_no_faces_have_no_measures() -> None:
    assert all(values.shape == (0,) for values in measure(np.empty((0, 68, 2))).values())


def test_what_cannot_be_divided_is_not_a_number_and_the_rest_stays() -> None:
    face = drawn()
    face[57] = face[66]  # no lower lip
    found = measure(face[None])
    assert np.isnan(found.pop("vermilion height index")).all()
    for name, values in found.items():
        np.testing.assert_allclose(values, [EXPECTED[name]], err_msg=name)
    assert all(np.isnan(values).all() for values in measure(np.zeros((1, 68, 2))).values())


@pytest.mark.data
@pytest.mark.skipif(not FACES.is_dir(), reason="needs the real faces beside the repository")
class TestOnRealFaces:
    def test_all_measures_of_all_faces_are_finite_and_differ(self) -> None:
        points = np.stack([np.load(path) for path in sorted(FACES.glob("*/*_landmarks.npy"))])
        assert len(points) == 84
        for name, values in measure(points).items():
            assert np.isfinite(values).all() and (values > 0).all(), name
            assert values.std() > 0.02 * values.mean(), name

    def test_the_mean_intercanthal_index_is_that_of_the_handbook(self) -> None:
        """Farkas 1994, young adults: en-en about 32.5 mm, ex-ex about 89.5 mm: 36 %.

        In a photo somewhat more: the outer corners are farther from the camera.
        """
        points = np.stack([np.load(path) for path in FACES.glob("*/*_landmarks.npy")])
        assert measure(points)["intercanthal index"].mean() == pytest.approx(0.36, abs=0.03)
