"""Pictures: any photo becomes one that is upright, sRGB and bare; a face becomes a file.

A face's file says what made it, and can be asked for that without being decoded. How a tensor is
made ready for a face encoder is a property of that network's weights, and named here too. Knows
nothing of where in a photo a face is.
"""

import io
import os
import stat
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

import s2f
from s2f.console import one_line
from s2f.errors import ImageError, S2FError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


Source = Path | BinaryIO | Image.Image | NDArray[Any]
Fit = Literal["squash", "letterbox"]
FRAME = 224  # pixels: side of the frame that faces and landmarks live in
MAX_PIXELS = 100_000_000
MAX_HELD = 2**29  # bytes that all copies of a picture may take, as it is made ready
MAX_SIDE = 65_535  # pixels: the longest that a JPEG can have; Pillow cannot store all longer rows
MAX_BYTES = 256 * 2**20  # of a stream that has to be held in memory
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
ENCODING: dict[str, dict[str, Any]] = {  # by the suffix of a file
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".jfif": _JPEG,
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    ".bmp": {"format": "BMP"},
}
_UPRIGHT = {  # by EXIF's orientation: what makes the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # what a PNG's pixels are made of
_SRGB_GAMMA = 2.2  # about; a PNG's gAMA is 1 over that of its samples
_MAX_PROFILE = 2**20  # bytes; those of presses take half of it
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the colour space of a profile
_WANTED = f"give a picture as {', '.join(FORMATS)}"
_SHADES = "wanted shades of 8 bits, or of 16: 0 to 65535"
_NOT_READ = {  # pictures that are named, by what stands at the file's beginning or at byte 4
    b"ftyphe": "HEIC",
    b"ftypmif1": "HEIC",  # or AVIF, which is read
    b"ftypmsf1": "HEIC",
    b"JXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"GIF8": "GIF",  # Pillow takes hours for one with a long comment
}


def open_photo(
    source: Source,
    *,
    enough: int | None = FRAME,
    most: int = MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """Open a photo the way it is looked at: upright, sRGB, on white where it is transparent.

    All photos are opened here. What is given back carries nothing but its pixels: no orientation by
    which somebody could turn it twice, no profile, no text. So metadata that is broken or huge
    costs a photo nothing but itself.

    The source is a file, a binary stream (one that cannot seek is read into memory), a picture of
    Pillow (which stays as it is), or an array uint8: [h w 3] RGB, [h w 4] RGBA or [h w] grey. Of
    an animation, or of several pages, it is the first picture. 16 bits whose shades would all be
    black hold 8, 10 or 12.

    `enough` is the pixels a side that are of interest: a larger JPEG may be decoded at a half, a
    quarter or an eighth of its size, never below twice this; None decodes all of it, or half a side
    of what has more than 50 megapixels or would take more than 512 MB. `name` is what errors call
    the photo. Raises ImageError if it is missing, no regular file, none of `FORMATS`, or broken; if
    it has more than `most` pixels, or more than 65,535 a side; if it is no JPEG and to be turned,
    transparent, with a profile, WebP or AVIF, and takes more than 512 MB for that; if an array is
    of another type or shape.
    """
    name = name or called(source)
    try:
        with warnings.catch_warnings():
            # Of large pictures, where our limit is lower, and of metadata that nobody reads.
            warnings.simplefilter("ignore")
            if isinstance(source, np.ndarray):
                source = _from_array(source, name)
            if isinstance(source, Image.Image):
                _check_size(source, name, most)
                source.load()
                made = _normalised(source, name)
                return _bare(source.copy() if made is source else made)
            if not isinstance(source, Path):
                file = source if source.seekable() else _read(source, name)
                return _opened(file, name, enough, most)
            kind = source.stat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe would be waited for
                raise ImageError(f"{name}: is no regular file", hint=_WANTED)
            with source.open("rb") as file:
                return _opened(file, name, enough, most)
    except S2FError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file", hint="check the path") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read", hint="check its permissions") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, not a picture", hint=_WANTED) from error
    except MemoryError as error:
        message = f"{name}: takes more memory to read than there is"
        raise ImageError(message, hint="make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not a picture that can be read", hint=_WANTED) from error
    except Image.DecompressionBombError as error:
        message = f"{name}: is too large; {_at_most(most)}: {error}"
        raise ImageError(message, hint="make it smaller first") from error
    except Exception as error:  # Pillow's readers raise all kinds for files that are broken
        why = str(error) or type(error).__name__
        raise ImageError(f"{name}: cannot be read: {why}", hint=_WANTED) from error


def called(source: Source) -> str:
    """Tell what errors call a photo that was given no name."""
    return str(source) if isinstance(source, Path) else "the photo"


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_picture:
        wanted = "wanted uint8 0..255: [h w 3] RGB, [h w 4] RGBA or [h w] grey"
        raise ImageError(f"{name}: is an array of {array.dtype} {list(array.shape)}", hint=wanted)
    return Image.fromarray(array)


def _read(stream: BinaryIO, name: str) -> BinaryIO:
    """Read a stream that cannot seek, such as standard input."""
    held = io.BytesIO()
    while block := stream.read(2**20):
        if held.tell() + len(block) > MAX_BYTES:
            most = f"{MAX_BYTES // 2**20} MB, which is the most that is read of a stream"
            raise ImageError(f"{name}: holds more than {most}", hint="give it as a file")
        held.write(block)
    return held


def _check_size(picture: Image.Image, name: str, most: int) -> None:
    pixels = picture.width * picture.height
    if not 0 < pixels <= most or max(picture.size) > MAX_SIDE:
        seen = f"{picture.width} x {picture.height} pixels"
        hint = "make it smaller first" if pixels else "wanted at least one pixel"
        raise ImageError(f"{name}: is {seen}; {_at_most(most)}", hint=hint)


def _at_most(pixels: int) -> str:
    return f"at most {pixels // 10**6} megapixels are read, and at most {MAX_SIDE} pixels a side"


def _opened(file: BinaryIO, name: str, enough: int | None, most: int) -> Image.Image:
    """Decode a file that can seek; what surrounds the pixels of a PNG may be broken."""
    try:
        return _decoded(file, name, enough, most)
    except (OSError, SyntaxError, ValueError) as error:
        file.seek(0)
        start = file.read(12)
        kinds = (kind for begins, kind in _NOT_READ.items() if start.find(begins) in (0, 4))
        if kind := next(kinds, None):
            hint = "convert it to JPEG or PNG first, or have the camera or telephone write JPEG"
            raise ImageError(f"{name}: is {kind}, which is not read", hint=hint) from error
        if not start.startswith(_PNG):
            raise
        return _decoded(_bare_png(file), name, enough, most)


def _decoded(file: BinaryIO, name: str, enough: int | None, most: int) -> Image.Image:
    with Image.open(file, formats=FORMATS) as picture:
        _check_size(picture, name, most)
        if enough is not None:
            picture.draft("RGB", (2 * enough, 2 * enough))
        elif picture.format == "JPEG":  # of another, `_most_held` could already decode it
            if picture.width * picture.height > min(MAX_PIXELS // 2, _most_held(picture)):
                picture.draft("RGB", (picture.width // 2, picture.height // 2))
        raw: Any = picture.tile[0].args if picture.tile else ""
        has_16_bits = raw in ("RGB;16B", "RGBA;16B")
        _check_size(picture, name, _most_held(picture, 4 * has_16_bits))
        picture.load()  # first: it turns a TIFF, and takes its orientation away
        if not has_16_bits or picture.convert("RGB").getbbox():
            return _bare(_normalised(picture, name))
    with Image.open(file, formats=FORMATS) as picture:  # a PNG of 16 bits that holds 8
        picture.tile = [picture.tile[0]._replace(args=raw.replace("16B", "16L"))]
        picture.load()
        return _bare(_normalised(picture, name))


def _most_held(picture: Image.Image, more: int = 0) -> int:
    """Tell how many pixels fit in `MAX_HELD`, with so many bytes more for each than it looks."""
    copies = (
        _turn(picture) is not None,
        "icc_profile" in picture.info,
        picture.mode not in ("1", "L", "P", "RGB"),
        *(3 * [picture.format in ("WEBP", "AVIF")]),  # the decoder's own
    )
    return MAX_HELD // (4 + 4 * sum(copies) + 5 * picture.has_transparency_data + more)


def _bare(picture: Image.Image) -> Image.Image:
    """Give a picture without what its file says of it: a copy of 100 megapixels takes 400 MB."""
    bare = Image.Image()._new(picture.im)
    bare.info = {}
    return bare


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    return picture if picture.mode == mode else picture.convert(mode)


def _bare_png(file: BinaryIO) -> BinaryIO:
    """Copy the chunks of a PNG that its pixels are made of, and EXIF and profile where whole.

    Pillow refuses all of a PNG for a text of more than a megabyte, or one that was damaged.
    """
    file.seek(len(_PNG))
    bare = io.BytesIO()
    bare.write(_PNG)
    while len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4]), head[4:]
        if kind not in (*_PIXEL_CHUNKS, b"eXIf", b"iCCP", b"gAMA"):
            file.seek(size + 4, os.SEEK_CUR)
            continue
        body = file.read(size + 4)
        if kind in _PIXEL_CHUNKS or _is_whole(kind, body):
            bare.write(head + body)
    return bare


def _is_whole(kind: bytes, body: bytes) -> bool:
    """Whether a chunk of a PNG is what was written, and a profile no bomb."""
    data, crc = body[:-4], int.from_bytes(body[-4:])
    if zlib.crc32(kind + data) != crc:
        return False
    if kind == b"iCCP":
        packed = data[data.find(b"\0") + 2 :]
        try:
            return len(zlib.decompressobj().decompress(packed, _MAX_PROFILE)) < _MAX_PROFILE
        except zlib.error:
            return False
    return True


def _normalised(picture: Image.Image, name: str) -> Image.Image:
    """Make a picture in any mode upright, sRGB and on white; itself if it is so, else a new one."""
    turn = _turn(picture)
    upright = picture if turn is None else picture.transpose(turn)
    profile = picture.info.get("icc_profile")
    if upright.mode.startswith("I"):
        upright = _eight_bits(upright, name)
    if upright.mode == "F":
        raise ImageError(f"{name}: has shades that are floating point numbers", hint=_SHADES)
    is_grey = upright.mode in ("1", "L", "LA", "La")
    alpha = None
    if upright.has_transparency_data:  # whose hidden colours `convert` would show
        upright = _in_mode(upright, "RGBA")
        alpha = upright.getchannel("A")
    if upright.mode != "CMYK":
        upright = _in_mode(upright, "L" if is_grey else "RGB")
    bare = _to_srgb(upright, profile) if profile else _in_mode(upright, "RGB")
    power = 1 / (_SRGB_GAMMA * picture.info.get("gamma", 1 / _SRGB_GAMMA) or 1)  # of a PNG
    if not profile and 0.1 < power < 10 and abs(power - 1) > 0.05:
        bare = bare.point([round(255 * (level / 255) ** power) for level in range(256)] * 3)
    if alpha is not None:
        bare, opaque = Image.new("RGB", bare.size, "white"), bare
        bare.paste(opaque, mask=alpha)
    return bare


def _turn(picture: Image.Image) -> Image.Transpose | None:
    # Pillow's own `exif_transpose` writes all of the EXIF anew, and raises where some is broken.
    try:
        return _UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of all kinds: what cannot be read turns nothing, and the pixels are whole
        return None


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Bring grey of 16 bits, which `convert` would clip to white, to 8."""
    shades = np.asarray(picture)
    low, high = int(shades.min()), int(shades.max())
    if not 0 <= low <= high < 2**16:
        raise ImageError(f"{name}: has shades from {low} to {high}", hint=_SHADES)
    # What holds fewer bits is often stored in 16, and would be darker than 16 of 255.
    bits = next((n for n in (8, 10, 12) if high < 2**n), 16)
    return Image.fromarray((shades >> bits - 8).astype(np.uint8))


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Bring a picture in L, RGB or CMYK to sRGB by its profile; one that does not fit is ignored.

    What shows the same colours with the profile as without stays the same to the bit.
    """
    bare = _in_mode(picture, "RGB")
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[own.profile.xcolor_space]
        if mode == "RGB" and picture.mode == "L":
            picture = bare
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(own, srgb, mode, "RGB")
        if mode == "RGB":
            levels = np.arange(0, 256, 17, dtype=np.uint8)
            colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
            shown = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
            if np.abs(shown.astype(int) - colours).max() <= 3:  # roundings of sRGB's profiles
                return bare
        if mode == picture.mode:
            bare = ImageCms.applyTransform(picture, transform) or bare
    except (ImageCms.PyCMSError, OSError, ValueError, LookupError, TypeError):
        return bare
    return bare


def is_grey(photo: Image.Image) -> bool:
    """Tell whether a photo, RGB, is black and white, whatever it is stored as.

    It is where channels differ by 6 levels at most in nine of ten pixels. Of 168 colour photos of
    the Face Research Lab London Set, those of the palest differ by 20 there.
    """
    pixels = np.asarray(photo).astype(np.int16)
    return bool(np.percentile(np.ptp(pixels, axis=-1), 90) <= 6)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture is made ready for one set of weights."""

    channels: Literal["RGB", "BGR"] = "RGB"  # order in which the network reads colours
    scale: float = 1.0  # the value that 1.0, white, becomes
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # taken away then, in that order
    fit: Fit = "squash"  # done by `fit_frame`; the networks do the rest


PREPROCESSING: dict[str, Preprocessing] = {
    # serengil/deepface, modules/preprocessing.py: "base" normalisation
    "serengil": Preprocessing(channels="BGR", fit="letterbox"),
    # rcmalli/keras-vggface, utils.py: version 1
    "rcmalli": Preprocessing(channels="BGR", scale=255.0, mean=(93.5940, 104.7624, 129.1863)),
    # what the seed fed both of them, and its published decoder was trained with
    "seed": Preprocessing(),
    # for training VGG-Face from scratch: rcmalli's figures in the order of our pictures
    "paper": Preprocessing(scale=255.0, mean=(129.1863, 104.7624, 93.5940)),
    "compact": Preprocessing(),
}


def fit_frame(photo: Image.Image, fit: Fit) -> "Tensor":
    """Fit a framed RGB photo to uint8 [3 224 224]: squashed, or by `letterbox` centred on black."""
    import torch  # takes seconds, and who only lists and resizes photos needs no tensors

    # Pillow's own `pad` leaves nothing of a photo 500 times as high as wide.
    longest = max(photo.size) if fit == "letterbox" else 0
    width, height = (max(1, round(n / (longest or n) * FRAME)) for n in photo.size)
    if photo.size != (width, height):
        photo = photo.resize((width, height), Image.Resampling.LANCZOS)
    if (width, height) != (FRAME, FRAME):
        inner, photo = photo, Image.new("RGB", (FRAME, FRAME))
        photo.paste(inner, (round((FRAME - width) / 2), round((FRAME - height) / 2)))
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


def load_face(path: Path, *, fit: Fit = "squash") -> "Tensor":
    """Load a framed photo, uint8 [3 224 224] RGB; raises ImageError as `open_photo`."""
    return fit_frame(open_photo(path), fit)


def to_image(picture: "Tensor") -> Image.Image:
    """Turn a picture [3 h w], RGB 0..1, into an image."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def save_photo(photo: Image.Image, path: Path) -> None:
    """Write a photo in the format of its suffix (a key of `ENCODING`), without metadata."""
    path.write_bytes(_encoded(photo, ENCODING[path.suffix.lower()]))


def encode(image: Image.Image, suffix: str, text: Mapping[str, str]) -> bytes:
    """Encode an RGB picture for a file of a suffix: .png, .jpg, .jpeg or .webp, else a UsageError.

    The same input gives the same bytes. `text` are facts that travel along: as text chunks of a
    PNG, else as `exif`.
    """
    if suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        wanted = "wanted .png, .jpg or .webp"
        raise UsageError(f"faces cannot be written as {suffix!r}", hint=wanted)
    options = ENCODING[suffix.lower()]
    if options["format"] != "PNG":
        return _encoded(image, options | {"exif": exif(text)})
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    return _encoded(image, options | {"pnginfo": chunks})


def exif(text: Mapping[str, str]) -> bytes:
    """Put facts into EXIF: `Software`, and all others together as the description, in UTF-8."""
    tags = Image.Exif()
    if "Software" in text:
        tags[ExifTags.Base.Software] = text["Software"].encode()
    if others := [f"{key}: {value}" for key, value in text.items() if key != "Software"]:
        tags[ExifTags.Base.ImageDescription] = "; ".join(others).encode()
    return tags.tobytes() if len(tags) else b""


def provenance(model: str, source: str, networks: Mapping[str, str]) -> dict[str, str]:
    """Say in a picture's metadata what made it, and what it is not.

    That is a model's name, never a path, and by kind the SHA-256 of the networks that were used.
    """
    return {
        "Software": f"s2f {s2f.__version__}",
        "Model": one_line(model),
        "Networks": ", ".join(f"{kind} {sha256[:12]}" for kind, sha256 in networks.items()),
        "Source": f"made from {source}",
        "Comment": "Synthetic face: an average impression, not the likeness of a person.",
    }


def read_text(path: Path) -> dict[str, str]:
    """Read the facts that `encode` wrote into a picture, which is not decoded.

    There are none where it has none, is no picture, is cut off, or cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
                return {}
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
                if not _has_its_end(path, picture.format):
                    return {}
                if picture.format == "PNG":
                    return {str(k): v for k, v in picture.info.items() if isinstance(v, str)}
                tags = picture.getexif()
    except Exception:  # of all kinds, as in `open_photo`: what cannot be read was not drawn here
        return {}
    software, others = (
        str(tags.get(tag, "")).encode("latin-1", "replace").decode(errors="replace")
        for tag in (ExifTags.Base.Software, ExifTags.Base.ImageDescription)
    )
    facts = dict(part.split(": ", 1) for part in others.split("; ") if ": " in part)
    return {"Software": software} | facts


def _has_its_end(path: Path, form: str | None) -> bool:
    """Tell by its first and last bytes whether a PNG, JPEG or WebP ends where it should."""
    with path.open("rb") as file:
        head = file.read(12)
        size = file.seek(-12, os.SEEK_END) + 12
        tail = file.read()
    if form == "WEBP":
        return size >= 8 + int.from_bytes(head[4:8], "little")
    return tail[4:8] == b"IEND" if form == "PNG" else tail.endswith(b"\xff\xd9")


def is_ours(text: Mapping[str, str]) -> bool:
    """Tell by a picture's facts whether s2f drew it."""
    return text.get("Software", "").startswith("s2f ")


def _encoded(image: Image.Image, options: dict[str, Any]) -> bytes:
    bare = image.copy()
    bare.info.clear()  # what the reader found beside the picture, some writers would add
    buffer = io.BytesIO()
    bare.save(buffer, **options)
    return buffer.getvalue()
