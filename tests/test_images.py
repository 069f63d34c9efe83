"""Photos in, PNGs out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2f import images
from s2f.errors import ImageError

GRADIENT = Image.fromarray(
    np.stack([*np.meshgrid(np.arange(224), np.arange(224)), np.zeros((224, 224))], -1).astype("u1")
)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    (Image.new("I;16", (50, 50), 65535) if mode == "I;16" else GRADIENT.convert(mode)).save(path)
    face = images.load_face(path)
    assert face.shape == (3, 224, 224) and face.dtype == torch.uint8


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    GRADIENT.save(path)
    face = images.load_face(path).float()
    assert (face - torch.from_numpy(np.array(GRADIENT)).permute(2, 0, 1)).abs().mean() < 4


def test_a_photo_that_was_taken_sideways_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to look at it
    GRADIENT.rotate(90).save(tmp_path / "a.png", exif=exif)
    face = images.load_face(tmp_path / "a.png")
    assert torch.equal(face, torch.from_numpy(np.array(GRADIENT)).permute(2, 0, 1))


def test_another_size_is_squashed_into_the_frame(tmp_path: Path) -> None:
    GRADIENT.resize((448, 300)).save(tmp_path / "a.png")
    assert images.load_face(tmp_path / "a.png").shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jpg", None, "a.jpg: no such file"),
        ("a.jpg", b"", "a.jpg: is not a picture"),
        ("a.png", b"I am a text", "a.png: is not a picture"),
        ("a.gif", b"GIF89a" + bytes(20), "a.gif: is not a picture"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(50), "a.png"),
    ],
)
def test_what_is_not_a_photo_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, part: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=part):
        images.load_face(tmp_path / name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        images.load_face(tmp_path)


def test_a_truncated_photo_is_refused(tmp_path: Path) -> None:
    GRADIENT.save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be read"):
        images.load_face(tmp_path / "a.jpg")


@pytest.mark.parametrize("side", [12_000, 20_000])
def test_a_huge_photo_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="at most 100 megapixels"):
        images.load_face(tmp_path / "a.png")


def test_a_face_becomes_an_image_and_back() -> None:
    face = torch.from_numpy(np.array(GRADIENT)).permute(2, 0, 1) / 255
    assert images.to_image(face).tobytes() == GRADIENT.tobytes()


def test_values_beyond_white_and_black_are_clipped() -> None:
    face = torch.tensor([-1.0, 2.0, 0.5]).view(3, 1, 1).expand(3, 4, 4)
    assert images.to_image(face).getpixel((0, 0)) == (0, 255, 128)


def test_a_png_carries_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(images.encode_png(GRADIENT, {"Comment": "synthetic ü"}))
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Comment"] == "synthetic ü"


def test_the_same_picture_gives_the_same_bytes() -> None:
    assert images.encode_png(GRADIENT, {"a": "b"}) == images.encode_png(GRADIENT, {"a": "b"})


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    Image.new("I;16", (50, 50), 32768).save(tmp_path / "a.png")
    assert images.load_face(tmp_path / "a.png").unique().tolist() == [128]
