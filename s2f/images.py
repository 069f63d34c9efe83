"""Pictures: a file becomes an RGB tensor in the 224 frame, and a face becomes a PNG."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from s2f.errors import ImageError

FRAME = 224  # pixels: side of the frame that faces and landmarks live in
MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def open_photo(path: Path) -> Image.Image:
    """Open a photo the way it is looked at: upright, RGB.

    Raises:
        ImageError: if it is missing, not a JPEG, PNG, WebP or BMP, broken, or over 100 megapixels.
    """
    hint = f"give a picture as {', '.join(FORMATS)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ImageError(
                        f"{path}: is {picture.width} x {picture.height} pixels; "
                        f"at most {MAX_PIXELS // 10**6} megapixels are read",
                        hint="make it smaller first",
                    )
                picture.draft("RGB", (2 * FRAME, 2 * FRAME))
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
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read: {error}", hint=hint) from error


def load_face(path: Path) -> Tensor:
    """Load a photo that is framed already, squashed to the frame: uint8 [3 224 224] RGB.

    Raises:
        ImageError: as `open_photo`.
    """
    photo = open_photo(path)
    if photo.size != (FRAME, FRAME):
        photo = photo.resize((FRAME, FRAME), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


def to_image(picture: Tensor) -> Image.Image:
    """Turn a picture [3 h w], RGB 0..1, into an image."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def encode_png(image: Image.Image, text: Mapping[str, str]) -> bytes:
    """Encode a picture as PNG with text chunks. The same input gives the same bytes."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()
