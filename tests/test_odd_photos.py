"""Photos in odd modes, orientations and states: each is seen as it is, or refused by its name.

All are made of one photo by Pillow, or bit by bit where Pillow cannot write them; what a viewer
shows of them is that photo.
"""

import importlib.util
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from s2f import layout
from s2f.errors import ImageError
from s2f.face_detection import cut_face
from s2f.images import load_face, open_photo

REAL = Path(__file__).parents[2] / "shared/data/faces/001/neutral.jpg"
has_dlib = all(map(importlib.util.find_spec, ("dlib", "face_recognition_models")))
Make = Callable[[Image.Image], bytes]


def original() -> Image.Image:
    """A real photo, where there is one, no square: 256 x 240; else a drawn one."""
    if REAL.is_file():
        with Image.open(REAL) as photo:
            return photo.convert("RGB").crop((0, 0, 256, 240))
    y, x = np.mgrid[0:240, 0:256].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, (255 - x) // 2 + y // 2], axis=-1))


def saved(photo: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, format, **options)
    return buffer.getvalue()


def turned(format: str, orientation: int) -> Make:
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
        return saved(stored, format, exif=exif)

    return make


def as_mode(mode: str, format: str, **options: object) -> Make:
    return lambda photo: saved(photo.convert(mode), format, **options)


def stored(format: str, **options: object) -> Make:
    return lambda photo: saved(photo, format, **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, interlaced: int = 0
) -> bytes:
    """A PNG of lines that begin with their filter, by the specification."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def lines(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def deep(colour: int) -> Make:
    """16 bits a channel, big-endian: 0 is grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def make(photo: Image.Image) -> bytes:
        mode = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}[colour]
        pixels = np.asarray(photo.convert(mode)).astype(">u2") * 257
        return png(photo.width, photo.height, 16, colour, lines(pixels.astype(">u2")))

    return make


def interlaced(photo: Image.Image) -> bytes:
    """The seven passes of Adam7."""
    pixels, rows = np.asarray(photo), b""
    for x, y, dx, dy in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
        *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
    ):
        rows += lines(np.ascontiguousarray(pixels[y::dy, x::dx]))
    return png(photo.width, photo.height, 8, 2, rows, interlaced=1)


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


def without_adobe(photo: Image.Image) -> bytes:
    """CMYK without the marker of Adobe: stored inverted all the same, as browsers take it."""
    data = saved(photo.convert("CMYK"), "JPEG", quality=95)
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :]


def ycck(photo: Image.Image) -> bytes:
    """CMYK whose marker of Adobe says that its colours are stored as brightness and hue."""
    # Adobe stores CMYK inverted, which is RGB, and YCCK is made of the inverse of that.
    colours = np.asarray(ImageOps.invert(photo).convert("YCbCr"))
    pixels = np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8)])  # no black ink
    # Pillow inverts what it stores as CMYK, so that it is handed the inverse.
    data = saved(Image.fromarray(255 - pixels, "CMYK"), "JPEG", quality=95)
    return data.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def with_segments(*segments: bytes) -> Make:
    def make(photo: Image.Image) -> bytes:
        data = saved(photo, "JPEG", quality=95)
        return data[:2] + b"".join(segments) + data[2:]

    return make


def with_thumbnail(photo: Image.Image) -> bytes:
    """EXIF that holds another, small picture, as cameras write it."""
    small = saved(Image.new("RGB", (16, 12), "red"), "JPEG")
    entries = struct.pack("<HHHII", 2, 0x0201, 4, 1, 44) + struct.pack(
        "<HHII", 0x0202, 4, 1, len(small)
    )
    main = struct.pack("<HHHIII", 1, 0x0112, 3, 1, 1, 14 + 12)
    tiff = b"II*\0\x08\0\0\0" + main + entries + struct.pack("<I", 0)
    return with_segments(segment(0xE1, b"Exif\0\0" + tiff.ljust(44 + 12, b"\0") + small))(photo)


def broken_exif(photo: Image.Image) -> bytes:
    """A camera's name that is a number, beside an orientation that is right."""
    entries = struct.pack("<HHII", 0x010F, 5, 1, 60) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(40)
    return with_segments(segment(0xE1, b"Exif\0\0" + tiff))(
        photo.transpose(Image.Transpose.ROTATE_90)
    )


def animated(format: str) -> Make:
    def make(photo: Image.Image) -> bytes:
        others = [Image.new("RGB", photo.size, "red"), Image.new("RGB", photo.size, "blue")]
        return saved(photo, format, save_all=True, append_images=others, duration=100)

    return make


def bmp(depth: int) -> Make:
    """A BMP of 24 or 32 bits a pixel, from the bottom up; without alpha, whatever the fourth is."""

    def make(photo: Image.Image) -> bytes:
        pixels = np.asarray(photo)[::-1, :, ::-1]
        if depth == 32:
            pixels = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
        body = pixels.tobytes()  # lines are multiples of four bytes
        info = struct.pack("<IiiHHIIiiII", 40, *photo.size, 1, depth, 0, len(body), 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body

    return make


def bmp_rle(photo: Image.Image) -> bytes:
    """A palette of 256, run by run."""
    few = photo.quantize(256)
    pixels = np.asarray(few)[::-1]
    body = b""
    for row in pixels:
        body += b"".join(bytes((1, value)) for value in row) + b"\0\0"
    body += b"\0\1"
    colours = np.array(few.getpalette()).reshape(-1, 3)
    table = np.zeros((256, 4), np.uint8)
    table[: len(colours), :3] = colours[:, ::-1]
    start = 54 + table.nbytes
    info = struct.pack("<IiiHHIIiiII", 40, *photo.size, 1, 8, 1, len(body), 0, 0, 256, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    return head + info + table.tobytes() + body


def grey(photo: Image.Image) -> Image.Image:
    return photo.convert("L").convert("RGB")


def same(photo: Image.Image) -> Image.Image:
    return photo


def black_and_white(photo: Image.Image) -> Image.Image:
    return photo.convert("1").convert("RGB")


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HUGE = [segment(0xE2, b"MPF\0" + bytes(65_000)) for _ in range(20)]
SEEN: dict[str, tuple[str, Make, Callable[[Image.Image], Image.Image]]] = {
    **{f"jpeg turned {k}": ("a.jpg", turned("JPEG", k), same) for k in range(1, 9)},
    **{f"png turned {k}": ("a.png", turned("PNG", k), same) for k in range(1, 9)},
    **{f"webp turned {k}": ("a.webp", turned("WEBP", k), same) for k in range(1, 9)},
    "jpeg with no such orientation": ("a.jpg", turned("JPEG", 9), same),
    "png grey": ("a.png", as_mode("L", "PNG"), grey),
    "png grey and alpha": ("a.png", as_mode("LA", "PNG"), grey),
    "png palette": ("a.png", lambda photo: saved(photo.quantize(256), "PNG"), same),
    "png palette with a hole": ("a.png", palette_with_hole, on_white),
    "png 1 bit": ("a.png", as_mode("1", "PNG"), black_and_white),
    "png rgba": ("a.png", as_mode("RGBA", "PNG"), same),
    "png on nothing": ("a.png", lambda photo: saved(cut_out(photo), "PNG"), on_white),
    "png grey on nothing": (
        "a.png",
        lambda photo: saved(cut_out(photo).convert("LA"), "PNG"),
        lambda photo: grey(on_white(photo)),
    ),
    "png 16 bit grey": ("a.png", deep(0), grey),
    "png 16 bit": ("a.png", deep(2), same),
    "png 16 bit grey and alpha": ("a.png", deep(4), grey),
    "png 16 bit rgba": ("a.png", deep(6), same),
    "png interlaced": ("a.png", interlaced, same),
    "png animated": ("a.png", animated("PNG"), same),
    "png with a profile": ("a.png", stored("PNG", icc_profile=PROFILE), same),
    "jpeg grey": ("a.jpg", as_mode("L", "JPEG"), grey),
    "jpeg progressive": ("a.jpg", stored("JPEG", progressive=True), same),
    "jpeg of rgb": ("a.jpg", stored("JPEG", keep_rgb=True), same),
    "jpeg subsampled": ("a.jpg", stored("JPEG", subsampling=2), same),
    "jpeg cmyk": ("a.jpg", as_mode("CMYK", "JPEG"), same),
    "jpeg cmyk without adobe": ("a.jpg", without_adobe, same),
    "jpeg ycck": ("a.jpg", ycck, same),
    "jpeg with a profile": ("a.jpg", stored("JPEG", icc_profile=PROFILE), same),
    "jpeg with huge metadata": ("a.jpg", with_segments(*HUGE), same),
    "jpeg with a thumbnail": ("a.jpg", with_thumbnail, same),
    "jpeg with broken exif": ("a.jpg", broken_exif, same),
    "jpeg and more": ("a.jpg", lambda photo: saved(photo, "JPEG") + b"trailing" * 999, same),
    "webp lossless": ("a.webp", stored("WEBP", lossless=True), same),
    "webp on nothing": (
        "a.webp",
        lambda photo: saved(cut_out(photo), "WEBP", lossless=True, exact=True),
        on_white,
    ),
    "webp animated": ("a.webp", animated("WEBP"), same),
    "bmp 1 bit": ("a.bmp", as_mode("1", "BMP"), black_and_white),
    "bmp grey": ("a.bmp", as_mode("L", "BMP"), grey),
    "bmp palette": ("a.bmp", lambda photo: saved(photo.quantize(256), "BMP"), same),
    "bmp 24 bit": ("a.bmp", bmp(24), same),
    "bmp 32 bit": ("a.bmp", bmp(32), same),
    "bmp runs": ("a.bmp", bmp_rle, same),
    "a wrong suffix": ("a.png", stored("JPEG"), same),
    "a suffix of capitals": ("a.JPEG", stored("JPEG"), same),
    "no suffix": ("a", stored("PNG"), same),
    "a name of other letters": ("фото 顔.jpg", stored("JPEG"), same),
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


@pytest.mark.data
@pytest.mark.skipif(
    not (REAL.is_file() and has_dlib), reason="needs a real face and the extra dlib"
)
@pytest.mark.parametrize("case", [case for case in SEEN if "1 bit" not in case])
def test_the_face_of_an_odd_photo_is_framed_as_that_of_the_plain_one(
    tmp_path: Path, case: str
) -> None:
    name, make, looks = SEEN[case]
    (tmp_path / name).write_bytes(make(original()))
    plain = cut_face(looks(original()), detector="dlib")
    assert difference(cut_face(tmp_path / name, detector="dlib"), plain) < 8


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


def bomb(side: int) -> bytes:
    """A PNG of some kilobytes that would take gigabytes."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(3)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


REFUSED: dict[str, tuple[str, Make, str]] = {
    "half a jpeg": ("a.jpg", half("JPEG"), "cannot be read"),
    "half a png": ("a.png", half("PNG"), "cannot be read"),
    "half a webp": ("a.webp", half("WEBP"), "a.webp"),
    "half a bmp": ("a.bmp", half("BMP"), "cannot be read"),
    "empty": ("a.jpg", lambda photo: b"", "is not a picture"),
    "a text": ("a.png", lambda photo: b"I am a text", "is not a picture"),
    "a page": ("a.jpg", lambda photo: b"<!doctype html><p>Not found", "is not a picture"),
    "a gif": ("a.gif", stored("GIF"), "is not a picture"),
    "a tiff": ("a.tiff", stored("TIFF"), "is not a picture"),
    "a tiff in disguise": ("a.jpg", stored("TIFF"), "is not a picture"),
    "a drawing": ("a.svg", lambda photo: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a"),
    "a bomb": ("a.png", lambda photo: bomb(20_000), "at most 100 megapixels"),
    "a smaller bomb": ("a.png", lambda photo: bomb(10_500), "at most 100 megapixels"),
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


def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(ImageError, match=r"a\.jpg: is a folder"):
        open_photo(tmp_path / "a.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: is no regular file"):
        open_photo(tmp_path / "a.jpg")


@pytest.mark.skipif(os.name != "posix", reason="files that may not be read, as of POSIX")
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_a_photo_that_may_not_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(saved(original(), "JPEG"))
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(ImageError, match=r"a\.jpg: cannot be read"):
        open_photo(tmp_path / "a.jpg")


def test_listings_go_by_the_name_alone() -> None:
    """What stands in a tree is tried, and refused by its own name, so that nothing is lost."""
    for name, is_photo in (("a.JPEG", True), ("a.webp", True), ("a.tiff", False), ("a", False)):
        assert layout.is_photo(name) is is_photo
