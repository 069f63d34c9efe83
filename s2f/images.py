"""Pictures: a file becomes an RGB tensor in the 224 frame, and a face becomes a file."""

import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from s2f.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

Fit = Literal["squash", "letterbox"]
FRAME = 224  # pixels: side of the frame that faces and landmarks live in
MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
ENCODING: dict[str, dict[str, Any]] = {  # by the suffix of a file
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    ".bmp": {"format": "BMP"},
}
# What Pillow's readers raise for files that are broken in one of many ways.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error)


def open_photo(path: Path, *, enough: int | None = FRAME) -> Image.Image:
    """Open a photo the way it is looked at: upright, RGB.

    Args:
        path: of the photo.
        enough: pixels a side that are of interest: a larger JPEG may be decoded at a half, a
            quarter or an eighth of its size, never below twice this. None decodes all of it.

    Raises:
        ImageError: if it is missing, not a JPEG, PNG, WebP or BMP, broken, or over 100 megapixels.
    """
    hint = f"give a picture as {', '.join(FORMATS)}"
    try:
        with warnings.catch_warnings():
            # Of large pictures, where our limit is lower, and of metadata that nobody reads.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ImageError(
                        f"{path}: is {picture.width} x {picture.height} pixels; "
                        f"at most {MAX_PIXELS // 10**6} megapixels are read",
                        hint="make it smaller first",
                    )
                if enough is not None:
                    picture.draft("RGB", (2 * enough, 2 * enough))
                upright = ImageOps.exif_transpose(picture)
                if upright.mode.startswith("I"):  # 16 bits, which `convert` would clip to white
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                return upright.convert("RGB")
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file", hint="check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path}: is a folder, not a picture", hint=hint) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: is not a picture that can be read", hint=hint) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: is too large; at most {MAX_PIXELS // 10**6} megapixels are read: {error}",
            hint="make it smaller first",
        ) from error
    except _BROKEN as error:
        raise ImageError(f"{path}: cannot be read: {error}", hint=hint) from error


def load_face(path: Path, *, fit: Fit = "squash") -> "Tensor":
    """Load a photo that is framed already into the frame: uint8 [3 224 224] RGB.

    Args:
        path: of the photo.
        fit: what becomes of a photo that is no square. `squash` fills the frame; `letterbox`
            keeps the proportions, centred on black.

    Raises:
        ImageError: as `open_photo`.
    """
    import torch  # takes seconds, and who only lists and resizes photos needs no tensors

    photo, frame = open_photo(path), (FRAME, FRAME)
    if photo.size != frame:
        if fit == "letterbox":
            photo = ImageOps.pad(photo, frame, Image.Resampling.LANCZOS, color=(0, 0, 0))
        else:
            photo = photo.resize(frame, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


def to_image(picture: "Tensor") -> Image.Image:
    """Turn a picture [3 h w], RGB 0..1, into an image."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def save_photo(photo: Image.Image, path: Path) -> None:
    """Write a photo in the format of its suffix (a key of `ENCODING`), without metadata."""
    bare = photo.copy()
    bare.info.clear()  # some writers would add what the reader found
    bare.save(path, **ENCODING[path.suffix.lower()])


def encode_png(image: Image.Image, text: Mapping[str, str]) -> bytes:
    """Encode a picture as PNG with text chunks. The same input gives the same bytes."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()
