"""Photos in, PNGs out."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2f import images, layout
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


@pytest.mark.parametrize("size", [(448, 300), (300, 448), (10, 500)])
def test_a_letterbox_keeps_the_proportions_on_black(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (255, 255, 255)).save(tmp_path / "a.png")
    seen = images.load_face(tmp_path / "a.png", fit="letterbox").numpy()
    assert set(np.unique(seen)) == {0, 255}
    ys, xs = np.nonzero(seen[0])
    width, height = np.ptp(xs) + 1, np.ptp(ys) + 1
    assert max(width, height) == 224
    assert min(width, height) == round(224 * min(size) / max(size))
    for first, last in ((xs.min(), xs.max()), (ys.min(), ys.max())):
        assert abs(first - (223 - last)) <= 1  # centred


def test_a_square_is_the_same_in_a_letterbox(tmp_path: Path) -> None:
    GRADIENT.resize((300, 300)).save(tmp_path / "a.png")
    squashed, boxed = (images.load_face(tmp_path / "a.png", fit=f) for f in ("squash", "letterbox"))
    assert torch.equal(squashed, boxed)


def test_all_of_a_photo_is_decoded_where_it_is_of_interest(tmp_path: Path) -> None:
    GRADIENT.resize((4000, 3000)).save(tmp_path / "a.jpg")
    assert images.open_photo(tmp_path / "a.jpg").size == (1000, 750)
    assert images.open_photo(tmp_path / "a.jpg", enough=None).size == (4000, 3000)


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("a.bmp", "BMP")],
)
def test_a_photo_is_written_as_its_suffix_says(tmp_path: Path, name: str, format: str) -> None:
    photo = GRADIENT.copy()
    photo.info = {"icc_profile": b"profile", "comment": b"secret", "exif": b"Exif"}
    images.save_photo(photo, tmp_path / name)
    with Image.open(tmp_path / name) as seen:
        assert (seen.format, seen.mode, seen.size) == (format, "RGB", (224, 224))
        assert not {"icc_profile", "comment", "exif"} & set(seen.info) and not seen.getexif()
        assert np.abs(np.asarray(seen, float) - np.asarray(GRADIENT, float)).mean() < 3
    assert photo.info["comment"] == b"secret"


def test_a_photo_of_any_suffix_can_be_written() -> None:
    assert set(images.ENCODING) == layout.PHOTO_SUFFIXES


def test_a_jpeg_keeps_the_colour_of_single_pixels(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255  # subsampling would make purple of both
    images.save_photo(Image.fromarray(stripes), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as seen:
        assert np.abs(np.asarray(seen, float) - stripes).mean() < 10


def encoded(mode: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    buffer = io.BytesIO()
    GRADIENT.resize((40, 30)).convert(mode).save(buffer, exif=exif, **options)
    return buffer.getvalue()


WHOLE = [
    encoded("RGB", format="JPEG"),
    encoded("L", format="JPEG", progressive=True),
    encoded("CMYK", format="JPEG"),
    encoded("RGBA", format="PNG"),
    encoded("P", format="PNG"),
    encoded("RGB", format="WEBP"),
    encoded("RGBA", format="WEBP", lossless=True),
    encoded("RGB", format="BMP"),
    encoded("P", format="BMP"),
]


@pytest.mark.parametrize("whole", WHOLE, ids=range(len(WHOLE)))
def test_a_damaged_photo_is_read_or_refused(tmp_path: Path, whole: bytes) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.jpg"
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for k in rng.integers(0, len(whole), rng.integers(1, 8)):
            damaged[k] = rng.integers(256)
        for k in rng.integers(0, min(60, len(whole)), rng.integers(0, 3)):
            damaged[k] = rng.choice([0, 1, 127, 255])
        path.write_bytes(damaged[: rng.integers(len(whole))] if rng.random() < 0.3 else damaged)
        try:
            outcomes.add(images.open_photo(path).mode)
        except ImageError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


@pytest.mark.parametrize("module", ["s2f.images", "s2f.framing"])
def test_looking_at_photos_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
