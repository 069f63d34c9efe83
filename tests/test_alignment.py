"""Aligned photos: those of `s2f prep faces`, and which detector finds them."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2f import face_detection
from s2f.errors import DependencyError, ImageError, UsageError
from s2f.face_detection import FoundFace, choose_detector, cut_face, installed_detector
from s2f.images import save_photo
from s2f.prep_faces import faces_step

FACES = Path(__file__).parents[2] / "shared/data/faces"
needs_dlib = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("dlib", "face_recognition_models"))),
    reason="needs the extra dlib",
)
real_faces = [
    pytest.mark.data,
    pytest.mark.skipif(not FACES.is_dir(), reason="needs the real faces beside the repository"),
    needs_dlib,
]


class Found:
    """In the place of a detector: points in the middle of a photo that is not black."""

    points = np.random.default_rng(0).uniform(-20, 20, (68, 2)).astype(np.float32)

    def __call__(self, pictures: list[np.ndarray]) -> list[list[FoundFace]]:
        found = []
        for picture in pictures:
            points = self.points + np.float32(picture.shape[1::-1]) / 2
            found.append([FoundFace(np.zeros(4, np.float32), points)] if picture.any() else [])
        return found


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put points that are known in the place of the detectors; the devices that they are asked."""
    asked: list[str] = []

    def load(name: str, device: str = "cpu") -> Found:
        asked.append(device)
        return Found()

    for module in ("alignment", "prep_photos"):
        monkeypatch.setattr(f"s2f.{module}.load_detector", load)
    monkeypatch.setattr("s2f.prep_photos.check_detector", lambda name, device: None)
    return asked


@pytest.fixture
def none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


class TestReal:
    pytestmark = real_faces

    @pytest.mark.parametrize("view", ["neutral", "smiling"])
    def test_the_picture_is_the_one_of_prep_faces(self, tmp_path: Path, view: str) -> None:
        for person in sorted(FACES.glob("*/neutral_landmarks.npy"))[::20]:
            photo = person.with_name(f"{view}.jpg")
            faces_step("dlib").work(photo, tmp_path / "prepared.jpg")
            save_photo(cut_face(photo, detector="dlib"), tmp_path / "aligned.jpg")
            assert (tmp_path / "aligned.jpg").read_bytes() == (
                tmp_path / "prepared.jpg"
            ).read_bytes()

    def test_a_photo_may_come_as_anything(self) -> None:
        path = FACES / "001" / "neutral.jpg"
        with Image.open(path) as photo:
            pixels = np.asarray(photo)
        wanted = cut_face(path, detector="dlib").tobytes()
        for source in (Image.fromarray(pixels), pixels, io.BytesIO(path.read_bytes())):
            assert cut_face(source, detector="dlib").tobytes() == wanted


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("size", [(300, 200), (5000, 3000)])
def test_networks_see_what_they_see_in_prep(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(tmp_path / "a.jpg")
    step = faces_step("face-alignment")
    assert step.net is not None
    prepared = step.net([step.work(tmp_path / "a.jpg", tmp_path)])[0]
    aligned = cut_face(tmp_path / "a.jpg", detector="face-alignment")
    assert aligned.size == (224, 224) and aligned.tobytes() == prepared.tobytes()


def test_a_given_picture_stays_as_it_is(devices: list[str]) -> None:
    photo = Image.new("RGBA", (3000, 2500), (1, 2, 3, 255))
    cut_face(photo, detector="face-alignment", device="cuda:1")
    cut_face(photo, detector="dlib", device="cuda:1")
    assert (photo.mode, photo.size) == ("RGBA", (3000, 2500))
    assert devices == ["cuda:1", "cpu"]  # dlib has no other


@pytest.mark.usefixtures("devices")
def test_no_face_is_an_error_that_names_the_photo() -> None:
    with pytest.raises(ImageError, match=r"^standard input: no face was found"):
        cut_face(Image.new("RGB", (99, 99)), detector="dlib", name="standard input")


def test_a_face_whose_eyes_are_one_point_is_refused_by_name() -> None:
    face = FoundFace(np.zeros(4, np.float32), np.zeros((68, 2), np.float32))
    with pytest.raises(ImageError, match=r"^a.jpg: its largest face cannot be framed"):
        face_detection.frame("a.jpg", Image.new("RGB", (9, 9)), [face])


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"dlib", "face_recognition_models", "face_alignment"}, "dlib"),
        ({"dlib", "face_alignment"}, "face-alignment"),
        ({"dlib"}, None),
    ],
)
def test_the_detector_is_one_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, there: set[str], chosen: str | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in there or None)
    assert installed_detector() == chosen
    if chosen:
        assert choose_detector(None) == choose_detector(chosen) == chosen


@pytest.mark.usefixtures("none_installed")
def test_without_any_detector_the_cures_are_named() -> None:
    with pytest.raises(DependencyError, match="no detector") as raised:
        choose_detector(None)
    for cure in ("s2f[dlib]", "s2f[landmarks]", "--no-align"):
        assert raised.value.hint is not None and cure in raised.value.hint
    with pytest.raises(DependencyError, match="needs the package dlib"):
        choose_detector("dlib")
    with pytest.raises(UsageError, match="no detector 'haar'"):
        choose_detector("haar")
