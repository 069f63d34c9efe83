"""Face landmarks: the dense template, the 68 points it holds, files and pictures of both.

Points are xy pixels with (0, 0) at the centre of the first pixel; left and right are the picture's.
The 68 are in iBUG order: 0-16 jaw, 17-26 brows, 27-35 nose, 36-47 eyes, 48-67 mouth. The template
is the 189-point one of the Face Research Lab London Set (DeBruine and Jones 2017); which of its
points make up the 68 is ours.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from s2f.errors import DatasetError
from s2f.files import read_array
from s2f.images import FRAME

TEMPLATE_POINTS = 189
OUTSIDE = 0.25  # of the frame's side: so far beyond the frame a point of a face may lie
SPREAD = 1 / 16  # of it: the least width and height of a face
ASIDE = 10  # pixels right of the middle that the centres of faces do not lie on the whole

# The jaw of the template, ear to ear; its 17 points are spaced evenly along this line.
_JAW = (109, 185, 110, 186, 111, *range(125, 134), 114, 188, 113, 187, 112)
# The other 51 points: one template point each, or the midpoint of two.
_REST: tuple[tuple[int, ...], ...] = (
    *zip((71, 72, 73, 74, 75, 78, 79, 80, 81, 82)),
    *((51, 57), (52, 58), (53, 59), (54, 60)),
    *zip((64, 180, 55, 181, 69)),
    *zip((18, 19, 21, 22, 30, 28, 23, 24, 26, 27, 33, 31)),
    *zip((87, 88, 89, 90, 91, 92, 93, 108, 107, 106, 105, 104)),
    *zip((94, 95, 96, 97, 98, 102, 101, 100)),
)
_FIRST, _LAST = ([points[k] for points in _REST] for k in (0, -1))
_PARTS = (  # (first, end, closed) of each line of the 68
    *((0, 17, False), (17, 22, False), (22, 27, False), (27, 31, False), (31, 36, False)),
    *((36, 42, True), (42, 48, True), (48, 60, True), (60, 68, True)),
)

# The seed's 72 points as indices of the 68, in the order of face_recognition's dictionary: the
# corners of the lips are there twice, once for each lip.
OF_72 = (*range(55), 64, 63, 62, 61, 60, *range(54, 60), 48, 60, 67, 66, 65, 64)
# The 68 points in the 72, as `map_68` gives those in the template.
_PLACES = [*map(OF_72.index, range(68))]
MAP_72 = tuple(zip(_PLACES, _PLACES, [0.0] * 68, strict=True))


def map_68(template: NDArray[np.floating]) -> tuple[tuple[int, int, float], ...]:
    """Find the 68 points in a template [189 2], as (i, j, w): (1 - w) P_i + w P_j.

    Taken from one face the map is exact for it; taken from the mean face it is a fixed linear map
    that any predicted template can go through (jaw points then may slide along the jaw line).
    """
    jaw = np.asarray(template, np.float64)[list(_JAW)]
    along = np.concatenate([[0.0], np.linalg.norm(np.diff(jaw, axis=0), axis=1).cumsum()])
    places: list[tuple[int, int, float]] = []
    for s in np.linspace(0, along[-1], 17):
        k = min(int(np.searchsorted(along, s, side="right")) - 1, len(_JAW) - 2)
        w = (s - along[k]) / (along[k + 1] - along[k])
        places.append((_JAW[k], _JAW[k + 1], float(w)))
    places += [(points[0], points[-1], 0.5 * (len(points) - 1)) for points in _REST]
    return tuple(places)


def to_68(template: NDArray[np.floating]) -> NDArray[np.float32]:
    """Take the 68 points [68 2] out of a template [189 2]."""
    i, j, w = (np.array(column) for column in zip(*map_68(template), strict=True))
    points = np.asarray(template, np.float64)
    mixed = points[i] + w[:, None] * (points[j] - points[i])
    return np.asarray(mixed, np.float32)


def implausible(points: NDArray[Any], side: int) -> str:
    """Tell why these are no landmarks of a face in a frame of `side` pixels; "" if they may be.

    They are the 68 points [68 2], finite, or the template [189 2]. The reasons: a face so small,
    points far outside, and eyes, brows and mouth where those of no face are: mirrored or as (y, x),
    in another order, upside down. The limits lie between 84 hand-placed faces and each of these,
    and leave room for profiles, tilted heads and points that a crop has cut off.
    """
    xy = np.asarray(points, np.float64)
    low, high = xy.min(axis=0), xy.max(axis=0)
    range_ = f"x {low[0]:.4g} to {high[0]:.4g}, y {low[1]:.4g} to {high[1]:.4g}"
    if (high - low).min() < SPREAD * side:
        shares = (
            ": shares of a frame, and no pixels" if low.min() >= -1.5 and high.max() <= 1.5 else ""
        )
        return f"are hardly spread ({range_}){shares}"
    if low.min() < -OUTSIDE * side or high.max() > (1 + OUTSIDE) * side:
        return f"lie outside the frame of {side} x {side} pixels ({range_})"
    inner = xy[17:] if len(xy) == 68 else (xy[_FIRST] + xy[_LAST]) / 2  # all but the jaw
    brows, left, right, mouth = (
        inner[first:end].mean(axis=0) for first, end in ((0, 10), (19, 25), (25, 31), (31, 51))
    )
    eyes = (left + right) / 2
    down, across = mouth - eyes, right - left
    # In units of the way from the eyes to the mouth: 0.8 to 1.1 of faces, and the negative of it
    # of mirrored ones and of (y, x).
    if across[0] * down[1] - across[1] * down[0] < -0.25 * (down @ down):
        return "are mirrored, or (y, x): the left eye is on the right"
    if (brows - eyes) @ down > 0:  # -0.4 to -0.2 of faces; 0.3 to 0.5 from the last to the first
        return "are in another order: the brows are on the mouth's side of the eyes"
    if down[1] < 0:
        return "are upside down: the eyes lie below the mouth"
    return ""


def read_landmarks(path: Path, k: int = 68) -> NDArray[np.float32]:
    """Read the points [k 2] of a face, xy pixels of the photo squashed to 224 x 224.

    Raises a `DatasetError` if they are no k points, or none of a face.
    """
    found = read_array(path)
    if found.shape != (k, 2) or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        message = f"{path}: holds an array {list(found.shape)} of {found.dtype}"
        hint = "make the landmarks again"
        raise DatasetError(f"{message}; wanted {[k, 2]} finite values", hint=hint)
    if why := implausible(found, FRAME):
        hint = f"wanted xy pixels of the photo squashed to {FRAME} x {FRAME}, in iBUG order, "
        hint += "as s2f prep landmarks makes them"
        raise DatasetError(f"{path}: its points {why}", hint=hint)
    return found.astype(np.float32)


def place(points: NDArray[Any]) -> tuple[float, bool]:
    """Tell where landmarks lie: the mean of their x, and whether any is beyond the frame of 224."""
    return float(points[:, 0].mean()), bool(points.max() > FRAME)


def refuse_larger_frame(folder: Path, places: Sequence[tuple[float, bool]]) -> None:
    """Raise a `DatasetError` if the landmarks of many faces, by their `place`, are no frame's.

    One face may lie anywhere. But those of a larger frame, as of 256 pixels, lie right of the
    middle on the whole (hand-placed ones of 84 people: at 110 to 114 of 224), and beyond it.
    """
    middle = statistics.median(x for x, _ in places) if places else 0.0
    if 2 * sum(beyond for _, beyond in places) > len(places) and middle > FRAME / 2 + ASIDE:
        message = f"{folder}: its landmarks lie around x = {middle:.0f}, most of "
        message += f"them beyond {FRAME} x {FRAME} pixels: they are of a larger frame"
        hint = f"multiply them by {FRAME} and divide by the side of the pictures they are of"
        raise DatasetError(message, hint=hint)


def draw_landmarks(face: Image.Image, points: NDArray[np.floating]) -> Image.Image:
    """Draw the 68 points [68 2] and the lines through them on a copy of a face."""
    overlay = face.convert("RGB")
    pen = ImageDraw.Draw(overlay)
    radius = max(1.0, overlay.width / 200)
    xy = [(float(x), float(y)) for x, y in points]
    for first, end, closed in _PARTS:
        line = xy[first:end] + ([xy[first]] if closed else [])
        pen.line(line, fill=(90, 220, 255), width=max(1, round(radius / 2)))
    for x, y in xy:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 80, 60))
    return overlay
