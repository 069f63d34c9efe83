"""Where a face stands in a photo, and cutting it out: turned, scaled and moved, never squashed.

Points are xy pixels with (0, 0) at the centre of the first pixel. Within this module a place is
a complex number, measured from the upper left corner; a similarity is then one product and one
sum. Knows nothing of files and of how a face is found.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Where the centres of the eyes' contours lie, as shares of the frame's side. Measured: the mean
# over the 84 hand-placed neutral faces of the Face Research Lab London Set as the bundled model
# was trained on them, whose *pupils* lie at 27 % of the width apart, at 46 % of the height.
EYES_AT = 0.5023 + 0.4703j
EYE_DISTANCE = 0.2677

Points = NDArray[np.floating]


@dataclass(frozen=True)
class Cut:
    """A square that lies in a photo in any place, size and turn.

    Attributes:
        size: side of the picture that is cut out, pixels.
        zoom: photo pixels a pixel of the cut, times e^(i turn).
        origin: where in the photo the cut's upper left corner lies.
    """

    size: int
    zoom: complex
    origin: complex

    def to_photo(self, points: Points) -> NDArray[np.float64]:
        """Find points of the cut [k 2] in the photo."""
        return _points(self.origin + self.zoom * _plane(points))

    def to_cut(self, points: Points) -> NDArray[np.float64]:
        """Find points of the photo [k 2] in the cut."""
        return _points((_plane(points) - self.origin) / self.zoom)

    def take(self, photo: Image.Image, *, oversample: int = 1) -> Image.Image:
        """Cut the square out of an RGB photo. What lies outside of it repeats its edge.

        Args:
            photo: RGB.
            oversample: pixels a side that are sampled for one of the cut: 2 blurs less.
        """
        step = self.zoom / oversample
        side = self.size * oversample
        corners = self.origin + self.zoom * self.size * np.array([0, 1, 1j, 1 + 1j])
        width, height = photo.size
        # Sampling alone would skip pixels of a photo that shrinks: it is averaged down first.
        shrink = min(1.0, 1 / abs(step))
        left, right = _within(corners.real, 4 / shrink, width)
        top, bottom = _within(corners.imag, 4 / shrink, height)
        part = photo.resize(
            (max(1, round((right - left) * shrink)), max(1, round((bottom - top) * shrink))),
            Image.Resampling.LANCZOS,
            box=(left, top, right, bottom),
            reducing_gap=3.0,
        )
        fx, fy = part.width / (right - left), part.height / (bottom - top)
        x, y = (corners.real - left) * fx, (corners.imag - top) * fy
        before = [max(0, int(np.ceil(2 - v.min()))) for v in (x, y)]
        after = [
            max(0, int(np.ceil(v.max() + 2 - n))) for v, n in ((x, part.width), (y, part.height))
        ]
        margins = ((before[1], after[1]), (before[0], after[0]), (0, 0))
        padded = Image.fromarray(np.pad(np.asarray(part), margins, mode="edge"))
        start = self.origin - complex(left, top)
        sampled = padded.transform(
            (side, side),
            Image.Transform.AFFINE,
            (
                *(fx * step.real, -fx * step.imag, fx * start.real + before[0]),
                *(fy * step.imag, fy * step.real, fy * start.imag + before[1]),
            ),
            Image.Resampling.BICUBIC,
        )
        if oversample == 1:
            return sampled
        return sampled.resize((self.size, self.size), Image.Resampling.LANCZOS)


def eyes(points: Points) -> tuple[complex, complex]:
    """Find the centres of the eyes of 68 points [68 2], the picture's left one first."""
    places = _plane(points)
    return complex(places[36:42].mean()), complex(places[42:48].mean())


def framed(points: Points, size: int) -> Cut:
    """Frame the face of 68 points [68 2]: eyes level, of their distance and in their place.

    Raises:
        ValueError: if the eyes lie less than a pixel apart.
    """
    left, right = eyes(points)
    if not abs(right - left) >= 1:
        raise ValueError(f"the eyes lie {abs(right - left):.2f} pixels apart")
    zoom = (right - left) / (EYE_DISTANCE * size)
    return Cut(size, zoom, (left + right) / 2 - zoom * size * EYES_AT)


def around(box: Points, size: int, share: float, turn: complex = 1) -> Cut:
    """Cut a square around a box [4] (left, top, right, bottom), in its middle.

    Args:
        box: in photo pixels, from the photo's corner.
        size: of the cut.
        share: of the cut's side that the box's longer side takes.
        turn: e^(i angle) of the square in the photo.
    """
    left, top, right, bottom = (float(v) for v in box)
    zoom = turn * max(right - left, bottom - top) / (share * size)
    middle = complex(left + right, top + bottom) / 2
    return Cut(size, zoom, middle - zoom * size * (0.5 + 0.5j))


def squashed(points: Points, photo: tuple[int, int], size: int) -> NDArray[np.float32]:
    """Find points [k 2] of a photo (width, height) in the photo squashed to a square."""
    scale = size / np.array(photo)
    return np.asarray((points + 0.5) * scale - 0.5, np.float32)


def _plane(points: Points) -> NDArray[np.complex128]:
    places: NDArray[np.complex128] = points[..., 0] + 0.5 + 1j * (points[..., 1] + 0.5)
    return places


def _points(places: NDArray[np.complex128]) -> NDArray[np.float64]:
    return np.stack([places.real, places.imag], axis=-1) - 0.5


def _within(values: NDArray[np.float64], margin: float, size: int) -> tuple[int, int]:
    """Whole pixels that hold all values and a margin, as far as a photo goes; at least one."""
    first = int(np.clip(np.floor(values.min() - margin), 0, size - 1))
    return first, int(np.clip(np.ceil(values.max() + margin), first + 1, size))
