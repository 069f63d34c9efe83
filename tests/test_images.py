"""Photos in, faces out: each photo is seen as it is, or refused by its name.

Odd photos are made of one drawn picture by Pillow, or bit by bit where Pillow cannot write them;
what a viewer shows of them is that picture.
"""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from s2f import appearance_model, face_decoder, face_encoder, images, layout
from s2f.errors import ImageError, UsageError
from s2f.images import PREPROCESSING, load_face, open_photo

GRADIENT = Image.fromarray(
    np.stack([*np.meshgrid(np.arange(224), np.arange(224)), np.zeros((224, 224))], -1).astype("u1")
)


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
    assert np.array_equal(np.asarray(open_photo(array)), wanted)


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
        open_photo(np.asarray(array))
    assert raised.value.hint


def test_a_picture_of_pillow_is_a_photo_and_stays_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    GRADIENT.resize((4000, 3000)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as picture:
        seen = open_photo(picture)
        assert seen.size == picture.size == (4000, 3000) and picture.getexif()[0x0112] == 3
    assert seen.tobytes() == open_photo(tmp_path / "a.jpg", enough=None).tobytes()
    plain = GRADIENT.copy()
    open_photo(plain).putpixel((0, 0), (9, 9, 9))
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
        open_photo(picture)


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
    assert open_photo(Pipe(data)).tobytes() == GRADIENT.tobytes()  # type: ignore[arg-type]


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
        open_photo(pipe, name="standard input")


@pytest.mark.parametrize("size", [(448, 300), (300, 448), (10, 500)])
def test_a_letterbox_keeps_the_proportions_on_black(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (255, 255, 255)).save(tmp_path / "a.png")
    seen = load_face(tmp_path / "a.png", fit="letterbox").numpy()
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


def test_all_of_a_photo_is_decoded_where_it_is_of_interest(tmp_path: Path) -> None:
    GRADIENT.resize((4000, 3000)).save(tmp_path / "a.jpg")
    assert open_photo(tmp_path / "a.jpg").size == (1000, 750)
    assert open_photo(tmp_path / "a.jpg", enough=None).size == (4000, 3000)


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
            assert open_photo(path).size in {(6, 8), (8, 6)}
        except ImageError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("module", ["s2f.images", "s2f.face_detection"])
def test_looking_at_photos_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_papers_mean_is_rcmallis_in_the_other_order_of_channels() -> None:
    paper, rcmalli = PREPROCESSING["paper"], PREPROCESSING["rcmalli"]
    assert (paper.channels, rcmalli.channels) == ("RGB", "BGR")
    assert paper.mean == rcmalli.mean[::-1] and paper.scale == rcmalli.scale == 255


def test_every_face_encoder_that_can_be_trained_has_its_own() -> None:
    trained = set(face_encoder.CONFIGS) | set(appearance_model.CONFIGS)
    assert trained <= set(PREPROCESSING) and trained <= set(face_decoder.CONFIGS)


Make = Callable[[Image.Image], bytes]


def original() -> Image.Image:
    """A photo that is no square, 256 x 240, and that differs from its mirror image."""
    y, x = np.mgrid[0:240, 0:256].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, (255 - x) // 2 + y // 2], axis=-1))


def saved(photo: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, format, **options)
    return buffer.getvalue()


def turned(format: str, orientation: int, **options: object) -> Make:
    """Store a photo the way a camera that is held in one of eight ways does."""
    store = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation

    def make(photo: Image.Image) -> bytes:
        stored = photo.transpose(store[orientation]) if orientation in store else photo
        return saved(stored, format, exif=exif, **options)

    return make


def as_mode(mode: str, format: str, **options: object) -> Make:
    return lambda photo: saved(photo.convert(mode), format, **options)


def cut_out(photo: Image.Image) -> Image.Image:
    """A photo whose corner is transparent, with red hidden in it."""
    alpha = np.full((photo.height, photo.width), 255, np.uint8)
    alpha[:60, :80] = 0
    pixels = np.asarray(photo).copy()
    pixels[:60, :80] = (255, 0, 0)
    return Image.fromarray(np.dstack([pixels, alpha]))


def on_white(photo: Image.Image) -> Image.Image:
    photo = photo.copy()
    photo.paste((255, 255, 255), (0, 0, 80, 60))
    return photo


def palette_with_hole(photo: Image.Image) -> bytes:
    """A palette whose entry 0 is transparent."""
    few = photo.quantize(255)
    indices = np.asarray(few) + 1
    indices[:60, :80] = 0
    holed = Image.fromarray(indices.astype(np.uint8), "L").convert("P")
    holed.putpalette([255, 0, 0, *(few.getpalette() or [])[: 3 * 255]])
    return saved(holed, "PNG", transparency=0)


def animated(format: str) -> Make:
    def make(photo: Image.Image) -> bytes:
        others = [Image.new("RGB", photo.size, "red"), Image.new("RGB", photo.size, "blue")]
        return saved(photo, format, save_all=True, append_images=others, duration=100)

    return make


def sixteen_bits(photo: Image.Image) -> bytes:
    return saved(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257), "PNG")


def grey(photo: Image.Image) -> Image.Image:
    return photo.convert("L").convert("RGB")


def same(photo: Image.Image) -> Image.Image:
    return photo


def black_and_white(photo: Image.Image) -> Image.Image:
    return photo.convert("1").convert("RGB")


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SEEN: dict[str, tuple[str, Make, Callable[[Image.Image], Image.Image]]] = {
    **{f"jpeg turned {k}": ("a.jpg", turned("JPEG", k), same) for k in range(1, 9)},
    "png turned": ("a.png", turned("PNG", 6), same),
    "webp turned": ("a.webp", turned("WEBP", 6), same),
    "jpeg with no such orientation": ("a.jpg", turned("JPEG", 9), same),
    "png grey": ("a.png", as_mode("L", "PNG"), grey),
    "png grey and alpha": ("a.png", as_mode("LA", "PNG"), grey),
    "png palette with a hole": ("a.png", palette_with_hole, on_white),
    "png rgba": ("a.png", as_mode("RGBA", "PNG"), same),
    "png 16 bit grey": ("a.png", sixteen_bits, grey),
    "png on nothing": ("a.png", lambda photo: saved(cut_out(photo), "PNG"), on_white),
    "png grey on nothing": (
        "a.png",
        lambda photo: saved(cut_out(photo).convert("LA"), "PNG"),
        lambda photo: grey(on_white(photo)),
    ),
    "png animated": ("a.png", animated("PNG"), same),
    "png with a profile": ("a.png", as_mode("RGB", "PNG", icc_profile=PROFILE), same),
    "jpeg grey": ("a.jpg", as_mode("L", "JPEG"), grey),
    "jpeg progressive": ("a.jpg", as_mode("RGB", "JPEG", progressive=True), same),
    "jpeg cmyk": ("a.jpg", as_mode("CMYK", "JPEG"), same),
    "jpeg and more": ("a.jpg", lambda photo: saved(photo, "JPEG") + b"trailing" * 999, same),
    "webp lossless": ("a.webp", as_mode("RGB", "WEBP", lossless=True), same),
    "webp on nothing": (
        "a.webp",
        lambda photo: saved(cut_out(photo), "WEBP", lossless=True, exact=True),
        on_white,
    ),
    "webp animated": ("a.webp", animated("WEBP"), same),
    "bmp 1 bit": ("a.bmp", as_mode("1", "BMP"), black_and_white),
    "a wrong suffix": ("a.png", as_mode("RGB", "JPEG"), same),
    "a name of other letters": ("фото 顔.jpg", as_mode("RGB", "JPEG"), same),
}


def difference(photo: Image.Image, wanted: Image.Image) -> float:
    """Mean over the pixels, grey levels."""
    return float(np.abs(np.asarray(photo, float) - np.asarray(wanted, float)).mean())


@pytest.mark.parametrize("case", SEEN)
def test_an_odd_photo_is_seen_as_it_is(tmp_path: Path, case: str) -> None:
    name, make, looks = SEEN[case]
    path = tmp_path / name
    path.write_bytes(make(original()))
    wanted = looks(original())
    seen = open_photo(path, enough=None)
    assert (seen.mode, seen.size) == ("RGB", (256, 240))
    assert difference(seen, wanted) < 6  # a palette of 256 costs 4
    assert difference(ImageOps.mirror(seen), wanted) > 12
    assert load_face(path).shape == (3, 224, 224)
    with path.open("rb") as stream:
        assert open_photo(stream, enough=None).tobytes() == seen.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (6000, 4000)])
def test_a_photo_of_an_odd_size_fits_the_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 200, 90)).save(tmp_path / "a.jpg")
    for fit in ("squash", "letterbox"):
        face = load_face(tmp_path / "a.jpg", fit=fit)
        assert face.shape == (3, 224, 224)
        assert abs(int(face[1, 112, 112]) - 200) < 4


def half(format: str) -> Make:
    def make(photo: Image.Image) -> bytes:
        data = saved(photo, format)
        return data[: len(data) // 2]

    return make


def blank(side: int) -> Make:
    return lambda photo: saved(Image.new("1", (side, side)), "PNG")


REFUSED: dict[str, tuple[str, Make, str]] = {
    "half a jpeg": ("a.jpg", half("JPEG"), "cannot be read"),
    "half a webp": ("a.webp", half("WEBP"), "a.webp"),
    "empty": ("a.jpg", lambda photo: b"", "is not a picture"),
    "a page": ("a.jpg", lambda photo: b"<!doctype html><p>Not found", "is not a picture"),
    "a gif": ("a.gif", as_mode("RGB", "GIF"), "is not a picture"),
    "a tiff": ("a.tiff", as_mode("RGB", "TIFF"), "is not a picture"),
    "a bomb": ("a.png", blank(20_000), "at most 100 megapixels"),
    "a smaller bomb": ("a.png", blank(10_500), "at most 100 megapixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_seen_is_refused_by_name(tmp_path: Path, case: str) -> None:
    name, make, why = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(make(original()))
    with pytest.raises(ImageError, match=why) as raised:
        open_photo(path)
    assert str(path) in raised.value.message and raised.value.hint
    with path.open("rb") as stream, pytest.raises(ImageError, match=r"^standard input: "):
        open_photo(stream, name="standard input")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: is no regular file"):
        open_photo(tmp_path / "a.jpg")


def test_what_is_not_there_or_no_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.jpg: no such file"):
        load_face(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(ImageError, match=r"a\.jpg: is a folder"):
        load_face(tmp_path / "a.jpg")


def test_a_photo_that_may_not_be_read_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jpg").write_bytes(saved(original(), "JPEG"))
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.jpg: may not be read"):
        open_photo(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
        ("P", "BMP", {}),
    ],
)
def test_a_damaged_photo_is_read_or_refused(
    tmp_path: Path, mode: str, format: str, options: dict[str, Any]
) -> None:
    whole = turned(format, 6, **options)(GRADIENT.resize((40, 30)).convert(mode))
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
            outcomes.add(open_photo(path).mode)
        except ImageError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes <= {"RGB", "refused"}
