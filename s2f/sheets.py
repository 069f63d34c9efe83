"""Several faces in one picture: side by side, as a contact sheet, and one becoming another."""

import io
import itertools
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from s2f.errors import UsageError
from s2f.images import FRAME, exif

SHEET = 4096  # pixels a side of a contact sheet, at most, where its faces stay large enough
SMALLEST = 48  # pixels a side of a face on it
MOST = 20_000  # faces on it
CAPTIONED = 96  # pixels: width of a face from which on it has a caption
INK = (60, 60, 60)
HOLD = 500  # milliseconds that the first and the last picture of an animation stay longer
ANIMATION: dict[str, Any] = {"format": "WEBP", "quality": 90, "method": 4}


def compare(columns: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Lay pictures side by side on white, each above its caption.

    Args:
        columns: caption and picture of each. Pictures are RGB, all of one size; captions are cut
            to their width.
    """
    width, height = columns[0][1].size
    gap = _gap(width)
    size = (gap + len(columns) * (width + gap), gap + height + _band(width) + gap)
    ground = Image.new("RGB", size, "white")
    for k, (caption, picture) in enumerate(columns):
        x = gap + k * (width + gap)
        ground.paste(picture, (x, gap))
        _write(ground, caption, x, gap + height, width)
    return ground


class ContactSheet:
    """A sheet of the faces of a batch, which are added one by one and shrunk at once.

    Attributes:
        side: pixels of a face on it.
        columns: faces in a row.
        added: faces so far.

    Example:
        >>> sheet = ContactSheet(5)
        >>> sheet.add("anna", Image.new("RGB", (224, 224)))
        >>> sheet.side, sheet.columns, sheet.added
        (224, 3, 1)
    """

    def __init__(self, n: int) -> None:
        """Plan a sheet, about as wide as high: at most 4096 pixels, if 48 a face allow it.

        Args:
            n: faces that are expected. Those that never come leave no hole.

        Raises:
            UsageError: if they are too many to be looked at.
        """
        if n > MOST:
            raise UsageError(
                f"a contact sheet shows at most {MOST} faces, not {n}",
                hint="leave the sheet out, or make several of a part of the files each",
            )
        self.added = 0
        for self.side in range(FRAME, SMALLEST - 1, -1):
            self.gap = _gap(self.side)
            band = _band(self.side) if self.side >= CAPTIONED else 0
            width = self.side + self.gap
            height = width + band
            self.columns = max(1, math.ceil(math.sqrt(n * height / width)))
            rows = math.ceil(n / self.columns)
            if max(self.columns * width, rows * height) + self.gap <= SHEET:
                break
        self.cell = (width, height)
        self.ground = Image.new("RGB", self._size(self.columns, rows), "white")

    def add(self, caption: str, face: Image.Image) -> None:
        """Put the next face on the sheet, above its caption where there is room for one."""
        row, column = divmod(self.added, self.columns)
        x, y = (n * step + self.gap for n, step in zip((column, row), self.cell, strict=True))
        small = face.resize((self.side, self.side), Image.Resampling.LANCZOS)
        self.ground.paste(small, (x, y))
        if self.side >= CAPTIONED:
            _write(self.ground, caption, x, y + self.side, self.side)
        self.added += 1

    def image(self) -> Image.Image:
        """Show the faces that were added."""
        columns, rows = min(self.added, self.columns), math.ceil(self.added / self.columns)
        return self.ground.crop((0, 0, *self._size(columns, rows)))

    def _size(self, columns: int, rows: int) -> tuple[int, int]:
        width, height = self.cell
        return columns * width + self.gap, rows * height + self.gap


def animate(frames: Iterable[Image.Image], *, seconds: float, text: Mapping[str, str]) -> bytes:
    """Encode pictures as an animated WebP that starts again for ever.

    All frames are kept, and take the same time: an encoder of animations would drop those that
    hardly differ from the one before.

    Args:
        frames: two or more RGB pictures of one size.
        seconds: that they take, without the half second more that the first and the last stay.
        text: facts that travel along, as for `images.encode`.
    """
    pictures: list[bytes] = []
    for frame in frames:
        width, height = frame.size
        buffer = io.BytesIO()
        frame.save(buffer, **ANIMATION)
        pictures.append(buffer.getvalue()[12:])  # after RIFF, size and WEBP
    n = len(pictures)
    times = [round(1000 * seconds * k / n) for k in range(n + 1)]
    milliseconds = [end - start for start, end in itertools.pairwise(times)]
    milliseconds[0] += HOLD
    milliseconds[-1] += HOLD
    facts = exif(text).removeprefix(b"Exif\0\0")
    flags = 0x02 | (0x08 if facts else 0)  # it is animated, and has EXIF
    chunks = [_chunk(b"VP8X", struct.pack("<I", flags) + _24(width - 1) + _24(height - 1))]
    chunks.append(_chunk(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, 0)))  # on white, without an end
    for picture, stay in zip(pictures, milliseconds, strict=True):
        place = _24(0) + _24(0) + _24(width - 1) + _24(height - 1)
        chunks.append(_chunk(b"ANMF", place + _24(stay) + b"\x02" + picture))  # 2: not blended
    if facts:
        chunks.append(_chunk(b"EXIF", facts))
    return _chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _gap(width: int) -> int:
    return max(3, width // 16)


def _letters(width: int) -> int:
    """Size of captions below pictures of a width, pixels."""
    return max(11, width // 14)


def _band(width: int) -> int:
    """Height of the captions below pictures of a width, pixels."""
    return _letters(width) * 3 // 2


def _write(ground: Image.Image, caption: str, x: int, y: int, width: int) -> None:
    """Write a caption below a picture whose lower edge starts at (x, y), cut in its middle."""
    font = ImageFont.load_default(_letters(width))
    caption = "".join(letter if letter.isprintable() else "?" for letter in caption)
    shown, keep = caption, len(caption)
    while keep > 0 and font.getlength(shown) > width:
        keep -= 1
        shown = f"{caption[: (keep + 1) // 2]}…{caption[len(caption) - keep // 2 :]}"
    middle = (x + width / 2, y + _letters(width) // 4)
    ImageDraw.Draw(ground).text(middle, shown, fill=INK, font=font, anchor="ma")
