"""Pictures: any photo becomes upright RGB, then a tensor in the 224 frame; a face becomes a file.

How a tensor is made ready for a face encoder is a property of that network's weights, and named
here too. Knows nothing of where in a photo a face is.
"""

import io
import stat
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from s2f.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


Source = Path | BinaryIO | Image.Image | NDArray[Any]
Fit = Literal["squash", "letterbox"]
FRAME = 224  # pixels: side of the frame that faces and landmarks live in
MAX_PIXELS = 100_000_000
MAX_BYTES = 256 * 2**20  # of a stream that has to be held in memory
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
ENCODING: dict[str, dict[str, Any]] = {  # by the suffix of a file
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
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
# What Pillow's readers raise for files that are broken in one of many ways.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error)
_WANTED = f"give a picture as {', '.join(FORMATS)}"
_MOST = f"at most {MAX_PIXELS // 10**6} megapixels are read"
_SHADES = "wanted shades of 8 bits, or of 16: 0 to 65535"


def open_photo(
    source: Source, *, enough: int | None = FRAME, name: str | None = None
) -> Image.Image:
    """Open a photo the way it is looked at: upright, RGB, on white where it is transparent.

    The source is a file, a binary stream (one that cannot seek is read into memory), a picture of
    Pillow (which stays as it is), or an array uint8: [h w 3] RGB, [h w 4] RGBA or [h w] grey.
    Colours are those that are stored: a profile is not applied. Of an animation it is the first
    picture.

    `enough` is the pixels a side that are of interest: a larger JPEG may be decoded at a half, a
    quarter or an eighth of its size, never below twice this; None decodes all of it. `name` is what
    errors call the photo. Raises ImageError if it is missing, no regular file, not a JPEG, PNG,
    WebP or BMP, broken, or over 100 megapixels; if an array is of another type or shape.
    """
    name = name or called(source)
    try:
        with warnings.catch_warnings():
            # Of large pictures, where our limit is lower, and of metadata that nobody reads.
            warnings.simplefilter("ignore")
            if isinstance(source, np.ndarray):
                source = _from_array(source, name)
            if isinstance(source, Image.Image):
                _check_size(source, name)
                return _looked_at(source, name)
            if isinstance(source, Path):
                kind = source.stat().st_mode
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe would be waited for
                    raise ImageError(f"{name}: is no regular file", hint=_WANTED)
            elif not source.seekable():
                source = _read(source, name)
            with Image.open(source, formats=FORMATS) as picture:
                _check_size(picture, name)
                if enough is not None:
                    picture.draft("RGB", (2 * enough, 2 * enough))
                return _looked_at(picture, name)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file", hint="check the path") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read", hint="check its permissions") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, not a picture", hint=_WANTED) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not a picture that can be read", hint=_WANTED) from error
    except Image.DecompressionBombError as error:
        message = f"{name}: is too large; {_MOST}: {error}"
        raise ImageError(message, hint="make it smaller first") from error
    except _BROKEN as error:
        raise ImageError(f"{name}: cannot be read: {error}", hint=_WANTED) from error


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


def _check_size(picture: Image.Image, name: str) -> None:
    pixels = picture.width * picture.height
    if not 0 < pixels <= MAX_PIXELS:
        seen = f"{picture.width} x {picture.height} pixels"
        hint = "make it smaller first" if pixels else "wanted at least one pixel"
        raise ImageError(f"{name}: is {seen}; {_MOST}", hint=hint)


def _looked_at(picture: Image.Image, name: str) -> Image.Image:
    # Pillow's own `exif_transpose` writes all of the EXIF anew, and raises where some is broken.
    turn = _UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    upright = picture if turn is None else picture.transpose(turn)
    if upright.mode.startswith("I"):  # 16 bits, which `convert` would clip to white
        shades = np.asarray(upright)
        if not 0 <= shades.min() <= shades.max() < 2**16:
            seen = f"shades from {shades.min()} to {shades.max()}"
            raise ImageError(f"{name}: has {seen}", hint=_SHADES)
        bits = 8 if upright.mode == "I" and shades.max() < 2**8 else 16
        return Image.fromarray((shades >> bits - 8).astype(np.uint8)).convert("RGB")
    if upright.mode == "F":
        raise ImageError(f"{name}: has shades that are floating point numbers", hint=_SHADES)
    if upright.has_transparency_data:  # whose hidden colours `convert` would show
        upright = upright.convert("RGBA")
        ground = Image.new("RGB", upright.size, "white")
        ground.paste(upright, mask=upright)
        return ground
    return upright.convert("RGB")


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
    options = ENCODING.get(suffix.lower(), {})
    if options.get("format") not in ("PNG", "JPEG", "WEBP"):
        wanted = "wanted .png, .jpg or .webp"
        raise UsageError(f"faces cannot be written as {suffix!r}", hint=wanted)
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


def _encoded(image: Image.Image, options: dict[str, Any]) -> bytes:
    bare = image.copy()
    bare.info.clear()  # what the reader found beside the picture, some writers would add
    buffer = io.BytesIO()
    bare.save(buffer, **options)
    return buffer.getvalue()
