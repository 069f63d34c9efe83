"""Photos in, faces out."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from s2f import images, layout
from s2f.errors import ImageError, UsageError

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


TEXT = {"Software": "s2f 1.0", "Model": "demo ü", "Comment": "synthetic"}


def test_a_png_carries_its_text() -> None:
    with Image.open(io.BytesIO(images.encode(GRADIENT, ".png", TEXT))) as image:
        assert image.format == "PNG" and image.text == TEXT
        assert image.tobytes() == GRADIENT.tobytes()


@pytest.mark.parametrize(
    ("suffix", "form"), [(".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")]
)
def test_other_formats_carry_their_facts_as_exif(suffix: str, form: str) -> None:
    with Image.open(io.BytesIO(images.encode(GRADIENT, suffix, TEXT))) as image:
        assert (image.format, image.size) == (form, (224, 224))
        assert np.abs(np.asarray(image, float) - np.asarray(GRADIENT, float)).mean() < 3
        tags = dict(image.getexif())
    # Pillow reads EXIF's text as Latin-1.
    assert tags.pop(0x010E).encode("latin-1").decode() == "Model: demo ü; Comment: synthetic"
    assert tags == {0x0131: "s2f 1.0"}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_same_picture_gives_the_same_bytes(suffix: str) -> None:
    marked = GRADIENT.copy()
    marked.info = {"icc_profile": b"profile", "comment": b"secret", "exif": b"Exif"}
    first = images.encode(GRADIENT, suffix, TEXT)
    assert (
        first == images.encode(GRADIENT, suffix, dict(TEXT)) == images.encode(marked, suffix, TEXT)
    )
    with Image.open(io.BytesIO(images.encode(GRADIENT, suffix, {}))) as bare:
        assert not bare.getexif() and not getattr(bare, "text", {})


@pytest.mark.parametrize("suffix", [".gif", "", ".bmp", ".pdf"])
def test_a_picture_that_cannot_carry_text_is_refused(suffix: str) -> None:
    with pytest.raises(UsageError, match="cannot be written as") as raised:
        images.encode(GRADIENT, suffix, {})
    assert raised.value.hint is not None and ".webp" in raised.value.hint


PIXELS = np.asarray(GRADIENT)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (PIXELS, PIXELS),
        (PIXELS[::-1, ::2], PIXELS[::-1, ::2]),
        (PIXELS[..., 0], np.stack(3 * [PIXELS[..., 0]], -1)),
        (np.dstack([PIXELS, np.full((224, 224), 255, "u1")]), PIXELS),
        (np.dstack([PIXELS, np.zeros((224, 224), "u1")]), np.full_like(PIXELS, 255)),
    ],
)
def test_an_array_is_a_photo(array: np.ndarray, wanted: np.ndarray) -> None:
    assert np.array_equal(np.asarray(images.open_photo(array)), wanted)


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (PIXELS / 255, "is an array of float64 [224, 224, 3]"),
        (PIXELS.astype(int), "is an array of int64"),
        (PIXELS > 9, "is an array of bool"),
        (PIXELS.transpose(2, 0, 1), "is an array of uint8 [3, 224, 224]"),
        (PIXELS[None], "is an array of uint8 [1, 224, 224, 3]"),
        (PIXELS[0, 0, 0], "is an array of uint8 []"),
        (PIXELS[:, :0], "is 0 x 224 pixels"),
        (np.zeros((12_000, 12_000), "u1"), "at most 100 megapixels"),
    ],
)
def test_an_array_that_is_no_photo_is_refused(array: np.ndarray, part: str) -> None:
    with pytest.raises(ImageError, match=f"^the photo: .*{re.escape(part)}") as raised:
        images.open_photo(np.asarray(array))
    assert raised.value.hint


def test_a_picture_of_pillow_is_a_photo_and_stays_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    GRADIENT.resize((4000, 3000)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as picture:
        seen = images.open_photo(picture)
        assert seen.size == picture.size == (4000, 3000) and picture.getexif()[0x0112] == 3
    assert seen.tobytes() == images.open_photo(tmp_path / "a.jpg", enough=None).tobytes()
    plain = GRADIENT.copy()
    images.open_photo(plain).putpixel((0, 0), (9, 9, 9))
    assert plain.tobytes() == GRADIENT.tobytes()


@pytest.mark.parametrize(
    ("picture", "part"),
    [
        (Image.new("F", (9, 9)), "floating point"),
        (Image.new("I", (9, 9), 70_000), "shades from 70000 to 70000"),
        (Image.new("I", (9, 9), -1), "shades from -1"),
        (Image.new("RGB", (0, 9)), "is 0 x 9 pixels"),
    ],
)
def test_a_picture_of_pillow_without_shades_of_its_own_is_refused(
    picture: Image.Image, part: str
) -> None:
    with pytest.raises(ImageError, match=part):
        images.open_photo(picture)


class Pipe(io.RawIOBase):
    """A stream that cannot seek, and gives little at a time, without an end if told so."""

    def __init__(self, data: bytes, *, endless: bool = False) -> None:
        self.data, self.endless = io.BytesIO(data), endless

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        got = self.data.read(min(1000, len(buffer)))
        if self.endless:
            got = got.ljust(len(buffer), b"x")
        buffer[: len(got)] = got
        return len(got)


def test_a_stream_that_cannot_seek_is_a_photo() -> None:
    data = images.encode(GRADIENT, ".png", {})
    assert images.open_photo(Pipe(data)).tobytes() == GRADIENT.tobytes()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pipe", "part"),
    [
        (Pipe(b""), "is not a picture"),
        (Pipe(images.encode(GRADIENT, ".jpg", {})[:3000]), "cannot be read"),
        (Pipe(b"", endless=True), "holds more than 1 MB"),
    ],
)
def test_a_stream_that_is_no_photo_is_refused(
    monkeypatch: pytest.MonkeyPatch, pipe: Any, part: str
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(ImageError, match=f"^standard input: {part}"):
        images.open_photo(pipe, name="standard input")


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


@given(st.integers(1, 700), st.integers(1, 700))
@settings(deadline=None, max_examples=60)
def test_a_letterbox_is_that_of_pillow_where_it_has_one(width: int, height: int) -> None:
    photo = GRADIENT.resize((width, height))
    if min(round(side / max(photo.size) * 224) for side in photo.size) > 0:
        wanted = np.asarray(ImageOps.pad(photo, (224, 224), Image.Resampling.LANCZOS))
        seen = images.fit_frame(photo, "letterbox").permute(1, 2, 0).numpy()
        assert np.array_equal(seen, wanted)


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


def test_damaged_exif_is_read_or_refused(tmp_path: Path) -> None:
    """Most is skipped; of the rest, transposing must not depend on it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    exif[0x8769], exif[0x8825] = {0x829A: 0.01, 0x8827: 100}, {2: (1.0, 2.0, 3.0)}
    rng, path = np.random.default_rng(0), tmp_path / "a.jpg"
    GRADIENT.resize((8, 6)).save(path, exif=exif)
    whole = path.read_bytes()
    start, size = whole.index(b"Exif") + 6, len(exif.tobytes()) - 6
    for _ in range(1000):
        damaged = bytearray(whole)
        for k in rng.integers(start, start + size, rng.integers(1, 5)):
            damaged[k] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert images.open_photo(path).size in {(6, 8), (8, 6)}
        except ImageError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("module", ["s2f.images", "s2f.face_detection"])
def test_looking_at_photos_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
