"""How a face is written."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import some_landmarks
from PIL import ExifTags, Image

from s2f.errors import OutputError, UsageError
from s2f.pipeline import Face

RNG = np.random.default_rng(0)
SMOOTH = RNG.integers(0, 256, (7, 7, 3), dtype=np.uint8)
FACE = Face(
    Image.fromarray(SMOOTH).resize((224, 224), Image.Resampling.BICUBIC),
    some_landmarks(),
    RNG.standard_normal(8).astype(np.float32),
    "speech",
    2,
    "tiny",
)


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP")])
def test_a_face_is_a_picture_that_says_what_it_is(suffix: str, form: str) -> None:
    with Image.open(io.BytesIO(FACE.encoded(suffix))) as picture:
        assert (picture.format, picture.mode, picture.size) == (form, "RGB", (224, 224))
        difference = np.asarray(picture, np.int16) - np.asarray(FACE.image, np.int16)
        said = " ".join(str(v) for v in (*picture.info.values(), *picture.getexif().values()))
        software = picture.getexif().get(ExifTags.Base.Software, picture.info.get("Software"))
    assert np.abs(difference).mean() < 3
    for words in ("tiny", "made from speech", "not the likeness of a person"):
        assert words in said
    assert str(software).startswith("s2f ")


def test_the_same_face_gives_the_same_bytes() -> None:
    for suffix in (".png", ".jpg", ".webp"):
        assert FACE.encoded(suffix) == FACE.encoded(suffix)


def test_the_overlay_scales_with_the_picture() -> None:
    with Image.open(io.BytesIO(FACE.encoded(size=448, overlay=True))) as overlay:
        assert overlay.size == (448, 448)
        x, y = np.rint((FACE.landmarks[30] + 0.5) * 2 - 0.5).astype(int)
        assert overlay.getpixel((int(x), int(y))) == (255, 80, 60)


def test_the_embedding_is_an_array_in_a_file() -> None:
    read = np.load(io.BytesIO(FACE.encoded_embedding()))
    np.testing.assert_array_equal(read, FACE.embedding, strict=True)


def test_a_face_is_saved_by_its_suffix(tmp_path: Path) -> None:
    FACE.save(tmp_path / "new/a.webp", size=64)
    with Image.open(tmp_path / "new/a.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        FACE.save(tmp_path / "file/a.png")
    with pytest.raises(UsageError, match="gif"):
        FACE.save(tmp_path / "a.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
