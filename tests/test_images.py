"""Photos in, faces out: odd photos of one drawn picture are seen as it is, or refused by name."""

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from s2f import appearance_model, face_decoder, face_encoder, images, layout
from s2f.errors import ImageError, UsageError
from s2f.images import PREPROCESSING, load_face, open_photo

PIXELS = np.stack([*np.meshgrid(*2 * [np.arange(224)]), np.zeros((224, 224))], -1).astype("u1")
GRADIENT = Image.fromarray(PIXELS)
MARKED = GRADIENT.copy()
MARKED.info = {"icc_profile": b"profile", "comment": b"secret", "exif": b"Exif"}
TEXT = {"Software": "s2f 1.0", "Model": "demo ü", "Comment": "synthetic"}


def difference(photo: Image.Image, wanted: Image.Image) -> float:
    """Mean over the pixels, grey levels."""
    return float(np.abs(np.asarray(photo, float) - np.asarray(wanted, float)).mean())


FORMS = [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")]


@pytest.mark.parametrize(("suffix", "form"), FORMS)
def test_a_picture_carries_its_facts_and_has_the_same_bytes_again(suffix, form):
    first = images.encode(GRADIENT, suffix, TEXT)
    assert first == images.encode(GRADIENT, suffix, TEXT) == images.encode(MARKED, suffix, TEXT)
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == (form, (224, 224))
        assert difference(image, GRADIENT) < 3
        if form == "PNG":
            assert image.text == TEXT and image.tobytes() == GRADIENT.tobytes()
        else:
            tags = {k: str(v).encode("latin-1").decode() for k, v in image.getexif().items()}
            assert tags == {0x010E: "Model: demo ü; Comment: synthetic", 0x0131: "s2f 1.0"}
    with Image.open(io.BytesIO(images.encode(GRADIENT, suffix, {}))) as bare:
        assert not bare.getexif() and not getattr(bare, "text", {})


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_file_is_asked_what_made_it(suffix, tmp_path, monkeypatch):
    networks = {"voice_encoder": "a" * 64, "face_decoder": "b" * 64}
    made = images.provenance("me\udcff", "speech", networks)  # of a folder whose name is no text
    path = tmp_path / f"a{suffix}"
    path.write_bytes(images.encode(GRADIENT, suffix, made | {"Options": "size 224, start 2"}))
    monkeypatch.setattr(Image.Image, "load", None)  # it is not decoded
    said = images.read_text(path)
    assert said == made | {"Options": "size 224, start 2"} and images.is_ours(said)
    assert said["Model"] == "me\\udcff"
    assert said["Networks"] == f"voice_encoder {'a' * 12}, face_decoder {'b' * 12}"
    cut, pipe, text = path.read_bytes()[:-9], tmp_path / "pipe", tmp_path / "text.png"
    os.mkfifo(pipe)
    text.write_text("s2f 1.0")
    path.write_bytes(cut)
    for other in (path, pipe, text, tmp_path, tmp_path / "none"):
        assert not images.is_ours(images.read_text(other))


@pytest.mark.parametrize("suffix", [".gif", "", ".bmp", ".pdf", ".jfif"])
def test_a_picture_that_cannot_carry_text_is_refused(suffix):
    with pytest.raises(UsageError, match="cannot be written as") as raised:
        images.encode(GRADIENT, suffix, {})
    assert raised.value.hint is not None and ".webp" in raised.value.hint


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (PIXELS[::-1, ::2], PIXELS[::-1, ::2]),
        (PIXELS[..., 0], np.stack(3 * [PIXELS[..., 0]], -1)),
        (np.dstack([PIXELS, np.full((224, 224), 255, "u1")]), PIXELS),
        (np.dstack([PIXELS, np.zeros((224, 224), "u1")]), np.full_like(PIXELS, 255)),
    ],
)
def test_an_array_is_a_photo(array, wanted):
    assert np.array_equal(np.asarray(open_photo(array)), wanted)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (PIXELS / 255, "is an array of float64 [224, 224, 3]"),
        (PIXELS > 9, "is an array of bool"),
        (PIXELS.transpose(2, 0, 1), "is an array of uint8 [3, 224, 224]"),
        (PIXELS[None], "is an array of uint8 [1, 224, 224, 3]"),
        (np.asarray(PIXELS[0, 0, 0]), "is an array of uint8 []"),
        (PIXELS[:, :0], "is 0 x 224 pixels"),
        (np.zeros((12_000, 12_000), "u1"), "at most 100 megapixels"),
        (Image.new("F", (9, 9)), "floating point"),
        (Image.new("I", (9, 9), 70_000), "shades from 70000 to 70000"),
        (Image.new("I", (9, 9), -1), "shades from -1"),
        (Image.new("RGB", (0, 9)), "is 0 x 9 pixels"),
    ],
)
def test_an_array_or_picture_that_is_no_photo_is_refused(source, part):
    with pytest.raises(ImageError, match=f"^the photo: .*{re.escape(part)}") as raised:
        open_photo(source)
    assert raised.value.hint


def test_a_picture_of_pillow_is_a_photo_and_stays_as_it_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    GRADIENT.resize((4000, 3000)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as picture:
        seen = open_photo(picture)
        assert seen.size == picture.size == (4000, 3000) and picture.getexif()[0x0112] == 3
    assert seen.tobytes() == open_photo(tmp_path / "a.jpg", enough=None).tobytes()
    assert open_photo(tmp_path / "a.jpg").size == (1000, 750)  # all that is of interest
    plain = GRADIENT.copy()
    open_photo(plain).putpixel((0, 0), (9, 9, 9))
    assert plain.tobytes() == GRADIENT.tobytes()


class Pipe(io.RawIOBase):
    """A stream that cannot seek: it gives little at a time, then its rest again and again."""

    def __init__(self, data: bytes, rest: bytes = b"") -> None:
        self.data, self.rest = io.BytesIO(data), rest

    def read(self, size: int = -1) -> bytes:
        return self.data.read(min(1000, size)) or self.rest


@pytest.mark.parametrize(
    ("pipe", "part"),
    [
        (Pipe(b""), "is not a picture"),
        (Pipe(images.encode(GRADIENT, ".jpg", {})[:3000]), "cannot be read"),
        (Pipe(b"", rest=b"x" * 1000), "holds more than 1 MB"),
    ],
)
def test_a_stream_that_cannot_seek_is_a_photo_or_refused(monkeypatch, pipe, part):
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(ImageError, match=f"^standard input: {part}"):
        open_photo(pipe, name="standard input")
    good: Any = Pipe(images.encode(GRADIENT, ".png", {}))
    assert open_photo(good).tobytes() == GRADIENT.tobytes()


@given(st.integers(1, 700), st.integers(1, 700))
@settings(deadline=None, max_examples=60)
def test_a_letterbox_is_that_of_pillow_where_it_has_one(width, height):
    photo = GRADIENT.resize((width, height))
    if min(round(side / max(photo.size) * 224) for side in photo.size) > 0:
        wanted = np.asarray(ImageOps.pad(photo, (224, 224), Image.Resampling.LANCZOS))
        seen = images.fit_frame(photo, "letterbox").permute(1, 2, 0).numpy()
        assert np.array_equal(seen, wanted)


@pytest.mark.parametrize(("suffix", "format"), [*FORMS, (".bmp", "BMP")])
def test_a_photo_is_written_as_its_suffix_says(tmp_path, suffix, format):
    images.save_photo(MARKED, path := tmp_path / f"a{suffix}")
    with Image.open(path) as seen:
        assert (seen.format, seen.mode, seen.size) == (format, "RGB", (224, 224))
        assert not set(MARKED.info) & set(seen.info) and not seen.getexif()
        assert difference(seen, GRADIENT) < 3
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255  # subsampling would make purple of both
    images.save_photo(Image.fromarray(stripes), path)
    with Image.open(path) as seen:
        assert format == "WEBP" or difference(seen, Image.fromarray(stripes)) < 10
    assert MARKED.info["comment"] == b"secret"
    assert set(images.ENCODING) < layout.PHOTO_SUFFIXES


@pytest.mark.parametrize("module", ["s2f.images", "s2f.face_detection"])
def test_looking_at_photos_needs_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_face_encoder_that_can_be_trained_has_its_own_preprocessing():
    trained = set(face_encoder.CONFIGS) | set(appearance_model.CONFIGS)
    assert trained <= set(PREPROCESSING) and trained <= set(face_decoder.CONFIGS)
    paper, rcmalli = PREPROCESSING["paper"], PREPROCESSING["rcmalli"]  # of test_face_encoder
    assert (paper.channels, paper.mean, paper.scale) == ("RGB", rcmalli.mean[::-1], 255)


Photo = Image.Image
Make = Callable[[Photo], bytes]
T = Image.Transpose
TURNS = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_90, T.TRANSVERSE)
STORED = dict(enumerate((*TURNS, T.ROTATE_270), 2))  # by EXIF: what cameras do that are held so


def original() -> Photo:
    """A photo that is no square, 256 x 240, and that differs from its mirror image."""
    y, x = np.mgrid[0:240, 0:256].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, (255 - x) // 2 + y // 2], axis=-1))


def saved(photo: Photo, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, format, **options)
    return buffer.getvalue()


def turned(format: str, orientation: int, **options: object) -> Make:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if format != "TIFF":  # whose writer takes no others
        exif[0x010F], exif[0x011A] = "maker", 72.0
        exif[0x8769], exif[0x8825] = {0x829A: 0.01, 0x8827: 100}, {2: (1.0, 2.0, 3.0)}

    def make(photo: Photo) -> bytes:
        stored = photo.transpose(STORED[orientation]) if orientation in STORED else photo
        return saved(stored, format, exif=exif, **options)

    return make


def as_mode(mode: str, format: str, **options: object) -> Make:
    return lambda photo: saved(photo.convert(mode), format, **options)


def cut_out(photo: Photo) -> Photo:
    """A photo whose corner is transparent, with red hidden in it."""
    pixels = np.asarray(photo.convert("RGBA")).copy()
    pixels[:60, :80] = (255, 0, 0, 0)
    return Image.fromarray(pixels)


def on_white(photo: Photo) -> Photo:
    photo = photo.copy()
    photo.paste((255, 255, 255), (0, 0, 80, 60))
    return photo


def palette_with_hole(photo: Photo) -> bytes:
    """A palette whose entry 0 is transparent."""
    few = photo.quantize(255)
    indices = np.asarray(few) + 1
    indices[:60, :80] = 0
    holed = Image.fromarray(indices.astype(np.uint8), "L").convert("P")
    holed.putpalette([255, 0, 0, *(few.getpalette() or [])[: 3 * 255]])
    return saved(holed, "PNG", transparency=0)


def animated(format: str) -> Make:
    others = [Image.new("RGB", (256, 240), colour) for colour in ("red", "blue")]
    return lambda p: saved(p, format, save_all=True, append_images=others, duration=100)


def sixteen_bits(photo: Photo) -> bytes:
    return saved(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257), "PNG")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def low_bits(mode: str, colour: int, times: int = 1) -> Make:
    """A PNG of 16 bits that holds 8, or a few more: what comes of `astype(uint16)`."""

    def make(photo: Photo) -> bytes:
        rows = np.asarray(photo.convert(mode)).reshape(photo.height, -1).astype(">u2") * times
        data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
        return png(header(*photo.size, 16, colour), chunk(b"IDAT", zlib.compress(data)))

    return make


def with_chunk(*parts: bytes) -> Make:
    """A PNG that has something before its pixels."""

    def make(photo: Photo) -> bytes:
        whole = saved(photo, "PNG")
        return whole[:33] + b"".join(parts) + whole[33:]

    return make


same = Photo.copy


def grey(photo: Photo) -> Photo:
    return photo.convert("L").convert("RGB")


NAMES = {"wrong suffix": "a.png", "other letters": "фото 顔.jpg"}  # the others have their format's
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LONG = zlib.compress(b"x" * 80_000_000)
SIDEWAYS = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
HOLED = {"lossless": True, "exact": True}
GAMMA_1 = chunk(b"gAMA", (100_000).to_bytes(4))  # samples are as light, not as sRGB has it
LINEAR = [round(255 * (n / 255) ** 2.2) for n in range(256)]
SEEN: dict[str, tuple[Make, Callable[[Photo], Photo]]] = {
    **{f"jpg turned {k}": (turned("JPEG", k), same) for k in range(1, 10)},  # there is no 9
    "png turned": (turned("PNG", 6), same),
    "webp turned": (turned("WEBP", 6), same),
    **{f"tif turned {k}": (turned("TIFF", k), same) for k in (3, 5, 8)},  # Pillow turns them
    **{f"avif turned {k}": (turned("AVIF", k), same) for k in (1, 6)},
    "tif cmyk": (as_mode("CMYK", "TIFF"), same),
    "png 8 of 16 bits": (low_bits("L", 0), grey),
    "png 12 of 16 bits": (low_bits("L", 0, 16), grey),
    "png rgb 8 of 16 bits": (low_bits("RGB", 2), same),
    "png rgba 8 of 16 bits": (low_bits("RGBA", 6), same),
    "png broken exif": (with_chunk(chunk(b"eXIf", b"\0\x08\0\2\1\x12\0\3")), same),
    "jpg broken exif": (as_mode("RGB", "JPEG", exif=b"Exif\0\0\0\x08\0\2\1\x12\0\3"), same),
    "png long text": (with_chunk(chunk(b"zTXt", b"a\0\0" + LONG)), same),
    "png broken text": (with_chunk(chunk(b"tEXt", b"a\0b")[:-1] + b"?"), same),
    "png long text and exif": (
        lambda p: with_chunk(chunk(b"zTXt", b"a\0\0" + LONG), SIDEWAYS)(p.transpose(STORED[6])),
        same,
    ),
    "png long text and broken profile": (
        with_chunk(chunk(b"zTXt", b"a\0\0" + LONG) + chunk(b"iCCP", b"a\0\0no profile")),
        same,
    ),
    "png long profile": (with_chunk(chunk(b"iCCP", b"a\0\0" + LONG)), same),
    "jpg broken profile": (as_mode("RGB", "JPEG", icc_profile=b"no profile"), same),
    "jpg cmyk of rgb": (as_mode("CMYK", "JPEG", icc_profile=PROFILE), same),
    "png linear": (lambda p: with_chunk(GAMMA_1)(p.point(LINEAR * 3)), same),
    "png gamma of sRGB": (with_chunk(chunk(b"gAMA", (45_455).to_bytes(4))), same),
    "png grey": (as_mode("L", "PNG"), grey),
    "png grey and alpha": (as_mode("LA", "PNG"), grey),
    "png palette with a hole": (palette_with_hole, on_white),
    "png rgba": (as_mode("RGBA", "PNG"), same),
    "png 16 bit grey": (sixteen_bits, grey),
    "png on nothing": (lambda p: saved(cut_out(p), "PNG"), on_white),
    "png animated": (animated("PNG"), same),
    "png with a profile": (as_mode("RGB", "PNG", icc_profile=PROFILE), same),
    "jpg grey": (as_mode("L", "JPEG"), grey),
    "jpg progressive": (as_mode("RGB", "JPEG", progressive=True), same),
    "jpg cmyk": (as_mode("CMYK", "JPEG"), same),
    "jpg and more": (lambda p: saved(p, "JPEG") + b"trailing" * 999, same),
    "webp lossless": (as_mode("RGB", "WEBP", lossless=True), same),
    "webp on nothing": (lambda p: saved(cut_out(p), "WEBP", **HOLED), on_white),
    "webp animated": (animated("WEBP"), same),
    "bmp 1 bit": (as_mode("1", "BMP"), lambda p: p.convert("1").convert("RGB")),
    "wrong suffix": (as_mode("RGB", "JPEG"), same),
    "other letters": (as_mode("RGB", "JPEG"), same),
}


def test_a_jpeg_that_would_take_too_much_memory_is_read_at_half_its_size(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"  # as a telephone writes: to be turned, with a profile
    path.write_bytes(turned("JPEG", 6, icc_profile=PROFILE)(original()))
    whole = open_photo(path, enough=None)
    monkeypatch.setattr(images, "MAX_HELD", 12 * whole.width * whole.height - 1)  # of 4 bytes, 3
    half = open_photo(path, enough=None)
    assert half.size == (whole.width // 2, whole.height // 2)
    assert difference(half, whole.resize(half.size)) < 6


@pytest.mark.parametrize("case", SEEN)
def test_an_odd_photo_is_seen_as_it_is(tmp_path, case):
    make, looks = SEEN[case]
    path = tmp_path / NAMES.get(case, f"a.{case.split()[0]}")
    path.write_bytes(make(original()))
    seen = open_photo(path, enough=None)
    assert (seen.mode, seen.size) == ("RGB", (256, 240))
    assert difference(seen, looks(original())) < 6  # a palette of 256 costs 4
    assert difference(ImageOps.mirror(seen), looks(original())) > 12
    assert load_face(path).shape == (3, 224, 224)
    with path.open("rb") as stream:
        assert open_photo(stream, enough=None).tobytes() == seen.tobytes()
    assert not seen.info and not seen.getexif()  # so that nobody turns it once more
    assert open_photo(seen, enough=None).tobytes() == seen.tobytes()


def matrix_profile(columns: list[tuple[float, float, float]], gamma: float) -> bytes:
    """An ICC profile of a display: X, Y, Z of its three colours, seen at D50, and its gamma.

    ICC.1:2001-04: a header of 128 bytes, a table of tags, s15Fixed16 numbers, u8Fixed8 gamma.
    """

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    named = b"desc" + bytes(4) + struct.pack(">I", 2) + b"a\0" + bytes(78) + bytes(3)
    tags = [(b"desc", named), (b"cprt", b"text" + bytes(8)), (b"wtpt", xyz((0.9642, 1, 0.8249)))]
    tags += [(k + b"XYZ", xyz(v)) for k, v in zip((b"r", b"g", b"b"), columns, strict=True)]
    tags += [(k + b"TRC", curve) for k in (b"r", b"g", b"b")]
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data
    head = struct.pack(">I4s4s4s4s4s", 0, bytes(4), b"\2\x20\0\0", b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + xyz((0.9642, 1, 0.8249))[8:]
    whole = head.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


# X, Y, Z at D50 of the red, green and blue of each space, and the gamma: Lindbloom, "RGB/XYZ
# Matrices" (brucelindbloom.com), Bradford-adapted; of Display P3 those that its profiles hold.
SRGB = [(0.43607, 0.22250, 0.01393), (0.38506, 0.71688, 0.09710), (0.14308, 0.06062, 0.71417)]
ADOBE = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
PROPHOTO = [(0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03135, 0.00009, 0.82491)]
P3 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
SPACES = {
    "Display P3": (P3, 2.2),
    "Adobe RGB": (ADOBE, 2.2),
    "ProPhoto": (PROPHOTO, 1.8),
    "red is blue": (SRGB[::-1], 2.2),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "picture"])
def test_a_photo_of_another_colour_space_is_seen_in_its_colours(space, form):
    """Skin and other colours that sRGB has, stored as numbers of the other space by formula."""
    columns, gamma = SPACES[space]
    y, x = np.mgrid[0:240, 0:256]
    wanted = np.stack([140 + x / 4, 100 + y / 5, 90 + (255 - x) / 8], axis=-1)
    linear = ((wanted / 255 + 0.055) / 1.055) ** 2.4  # IEC 61966-2-1, above 0.04
    stored = linear @ np.array(SRGB) @ np.linalg.inv(np.array(columns))
    assert stored.min() > 0 and stored.max() < 1
    pixels = np.rint(255 * stored ** (1 / gamma)).astype(np.uint8)
    photo = Image.fromarray(pixels)
    profile = matrix_profile(columns, gamma)
    if form == "picture":
        photo.info["icc_profile"] = profile
        seen = open_photo(photo)
    else:
        how = {"quality": 98} if form not in ("PNG", "TIFF") else {}
        seen = open_photo(io.BytesIO(saved(photo, form, icc_profile=profile, **how)))
    assert np.abs(pixels - wanted).mean() > 4  # as it would be without the profile
    assert np.abs(np.asarray(seen) - wanted).mean() < 2.5
    assert "icc_profile" not in seen.info and not seen.getexif()


def test_the_profile_of_srgb_changes_no_bit():
    plain = open_photo(io.BytesIO(saved(original(), "PNG")))
    tagged = open_photo(io.BytesIO(saved(original(), "PNG", icc_profile=PROFILE)))
    assert plain.tobytes() == tagged.tobytes() == original().tobytes()


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("Failed"), TypeError("of a bug")])
def test_a_decoder_that_breaks_costs_this_photo(tmp_path, monkeypatch, failure):
    def break_down(*_: object) -> None:
        raise failure

    original().save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "load", break_down)
    with pytest.raises(ImageError, match=r"a\.jpg: (takes more memory|cannot be read: )"):
        open_photo(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (6000, 4000)])
def test_a_photo_of_an_odd_size_fits_the_frame(tmp_path, size):
    Image.new("RGB", size, (10, 200, 90)).save(tmp_path / "a.jpg")
    for fit in ("squash", "letterbox"):
        face = load_face(tmp_path / "a.jpg", fit=fit)
        assert face.shape == (3, 224, 224)
        assert abs(int(face[1, 112, 112]) - 200) < 4


def heic(brand: bytes) -> bytes:
    """The first box of a HEIC file: ISO/IEC 23008-12, 10.2."""
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(99)


REFUSED: dict[str, tuple[Make, str]] = {
    "half a.jpg": (lambda p: saved(p, "JPEG")[:900], "cannot be read"),
    "half a.webp": (lambda p: saved(p, "WEBP")[:400], "a.webp"),
    "empty.jpg": (lambda p: b"", "is not a picture"),
    "page.jpg": (lambda p: b"<!doctype html><p>Not found", "is not a picture"),
    "a.gif": (as_mode("RGB", "GIF"), "is GIF, which is not read"),
    "a.heic": (lambda p: heic(b"heic"), "is HEIC, which is not read"),
    "renamed.jpg": (lambda p: heic(b"mif1"), "is HEIC, which is not read"),
    "a.jxl": (lambda p: b"\xff\x0a" + bytes(99), "is JPEG XL, which is not read"),
    "long.png": (lambda p: png(header(100_000_000, 1)), "is 100000000 x 1 pixels; at most"),
    "bomb.png": (lambda p: saved(Image.new("1", 2 * (20_000,)), "PNG"), "at most 100 megapixels"),
    "less.png": (lambda p: saved(Image.new("1", 2 * (10_500,)), "PNG"), "at most 100 megapixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_seen_is_refused_by_name(tmp_path, name):
    make, why = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(make(original()))
    with pytest.raises(ImageError, match=why) as raised:
        open_photo(path)
    assert str(path) in raised.value.message and raised.value.hint
    with path.open("rb") as stream, pytest.raises(ImageError, match=r"^standard input: "):
        open_photo(stream, name="standard input")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
def test_what_is_no_file_or_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # that nobody writes to: it is not waited for
    (tmp_path / "locked").write_bytes(saved(original(), "JPEG"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    said = {"gone": "no such file", "folder": "is a folder", "pipe": "is no regular file"}
    for name, what in {**said, "locked": "may not be read"}.items():
        if name == "locked":
            monkeypatch.setattr(Image, "open", refuse)
        with pytest.raises(ImageError, match=f"{name}: {what}"):
            open_photo(tmp_path / name)


DAMAGED = ["RGB JPEG", "L JPEG", "CMYK JPEG", "RGBA PNG", "P PNG", "RGB WEBP", "RGBA WEBP"]


@pytest.mark.parametrize("case", [*DAMAGED, "RGB BMP", "P BMP"])
def test_a_damaged_photo_is_read_or_refused(tmp_path, case):
    mode, format = case.split()
    options = {"progressive": mode == "L", "lossless": mode == "RGBA"}
    whole = turned(format, 6, **options)(GRADIENT.resize((40, 30)).convert(mode))
    rng, path = np.random.default_rng(0), tmp_path / "a.jpg"
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


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg"])
def test_what_is_given_back_is_nothing_but_pixels_and_the_callers_own(tmp_path, suffix):
    """Without a copy of what was decoded; but of a picture that was given, one."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    given = Image.fromarray(pixels)
    given.save(tmp_path / f"a.{suffix}", comment=b"a")
    for source in (tmp_path / f"a.{suffix}", given, pixels):
        opened = open_photo(source)
        assert type(opened) is Image.Image and not opened.info
        assert suffix == "jpg" or np.array_equal(np.asarray(opened), pixels)
        opened.paste((0, 0, 0), (0, 0, 30, 40))
    assert np.asarray(given).any() and pixels.any()
