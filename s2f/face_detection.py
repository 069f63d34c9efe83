"""Faces in photos: found with their 68 points, cut out level, and framed as training's faces are.

A detector is one of two packages (Bulat and Tzimiropoulos 2017; King 2009, "Dlib-ml"): `dlib`, on
the CPU, whose trees were trained on iBUG 300-W, with terms that exclude commercial use; or
`face-alignment`, networks on any device. Both look at a copy of bounded size, so that a photo may
have any, closer where there is no face in it, and then at each face brought to one size, so that
points are as exact on small faces.

Points are xy pixels with (0, 0) at the centre of the first pixel. Within this module a place is a
complex number, measured from the upper left corner; a similarity is then one product and one sum.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f.device import choose_device
from s2f.errors import DependencyError, DeviceError, ImageError, UsageError
from s2f.images import FRAME, Source, called, open_photo

# Where the centres of the eyes' contours lie, as shares of the frame's side. Measured: the mean
# over the 84 hand-placed neutral faces of the Face Research Lab London Set as the bundled model
# was trained on them, whose *pupils* lie at 27 % of the width apart, at 46 % of the height.
EYES_AT = 0.5023 + 0.4703j
EYE_DISTANCE = 0.2677
SIDE = 2048  # pixels: longest side of a photo that is handed to a network, which bounds a batch
DETECTORS = {  # the packages that each needs, and the extra that installs them
    "dlib": (("dlib", "face_recognition_models"), "dlib"),
    "face-alignment": (("face_alignment",), "landmarks"),
}

PhotoSource = str | Source
Floats = NDArray[np.float32]
Points = NDArray[np.floating]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class FoundFace:
    """A face in a picture."""

    box: Floats  # [4]: left, top, right, bottom, pixels from the picture's corner
    points: Floats  # [68 2] xy pixels, (0, 0) at the centre of the first; iBUG order

    @property
    def size(self) -> float:
        """Spread of the points, pixels: unlike a box, no larger for a face that is turned."""
        return float(self.points.std(axis=0).max())


# Finds the faces in each picture, uint8 [h w 3] RGB, the largest face first.
Detector = Callable[[Sequence[Pixels]], list[list[FoundFace]]]


def open_face(
    photo: PhotoSource, *, align: bool = True, detector: str | None = None, device: str = "cpu"
) -> Image.Image:
    """Open a photo, a path or as for `open_photo`, and (`align`) cut out its largest face, framed.

    By default with the detector that is installed. Raises what `cut_face` and `choose_detector` do.
    """
    source = Path(photo) if isinstance(photo, str) else photo
    if not align:
        return open_photo(source)
    return cut_face(source, detector=choose_detector(detector), device=device)


def cut_face(
    source: Source,
    *,
    detector: str,
    device: str = "cpu",
    name: str | None = None,
) -> Image.Image:
    """Cut out the largest face of a photo as `s2f prep faces` does: level, 224 x 224, framed.

    dlib is on the CPU whatever the device. Source and `name` are as for `open_photo`.
    Raises ImageError as that, if no face is found, if it cannot be framed, or if there is too
    little memory; UsageError, DependencyError, DeviceError as `load_detector`.
    """
    name = name or called(source)
    find = load_detector(detector, "cpu" if detector == "dlib" else device)
    try:
        photo = open_photo(source, enough=None, name=name)
        seen = to_search(photo, detector)
        faces = find([np.asarray(seen)])[0]
        if not faces and seen.size != photo.size:  # perhaps there is a small one
            seen, faces = photo, find([np.asarray(photo)])[0]
        return frame(name, seen, faces)
    except MemoryError as error:
        message = f"{name}: takes more memory to search than there is"
        raise ImageError(message, hint="make it smaller first") from error


def to_search(photo: Image.Image, detector: str) -> Image.Image:
    """Give a photo as large as a detector wants it: all of it, or at most 2048 pixels a side."""
    if detector == "dlib" or max(photo.size) <= SIDE:
        return photo
    copy = photo.copy()
    copy.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return copy


def largest(name: str, faces: list[FoundFace]) -> FoundFace:
    """Take the largest of the faces of a photo that is called `name`; ImageError if none."""
    if not faces:
        hint = "wanted a face that looks at the camera; leave the photo out, or crop it"
        raise ImageError(f"{name}: no face was found in it", hint=hint)
    return faces[0]


def frame(name: str, photo: Image.Image, faces: list[FoundFace]) -> Image.Image:
    """Cut out the largest of a photo's faces; ImageError if none, or its eyes are in one place."""
    try:
        cut = framed(largest(name, faces).points, FRAME)
    except ValueError as error:
        message = f"{name}: its largest face cannot be framed: {error}"
        raise ImageError(message, hint="leave the photo out") from error
    return cut.take(photo, oversample=2)


def installed_detector() -> str | None:
    """Name the detector that can be used without asking: the first one that is installed.

    One whose weights would first have to be fetched has to be asked for by its name.
    """
    return next((name for name in DETECTORS if _is_installed(name) and not _unfetched(name)), None)


def _is_installed(name: str) -> bool:
    packages, _ = DETECTORS[name]
    return all(importlib.util.find_spec(package) for package in packages)


def _unfetched(name: str) -> list[str]:
    """List the addresses of weights that a detector would fetch."""
    if name == "dlib":
        return []
    from s2f.checkpoint import place_of

    return [url for url, _ in (FAN, S3FD) if not place_of(url).exists()]


def choose_detector(name: str | None) -> str:
    """Choose the detector that was asked for, or else the one that is installed, for any device.

    Raises UsageError if there is no such detector, DependencyError if its packages are not
    installed, or those of none are, or if weights would have to be fetched that nobody asked for.
    """
    chosen = name or installed_detector()
    if chosen is None:
        for other in filter(_is_installed, DETECTORS):
            message = f"the weights of the detector {other} are not on this machine"
            hint = f"give --detector {other}, which fetches {' and '.join(_unfetched(other))}"
            raise DependencyError(message, hint=hint)
        extras = " or ".join(f"pip install 's2f[{extra}]'" for _, extra in DETECTORS.values())
        hint = f"{extras}; photos that are framed already need none (reconstruct --no-align)"
        raise DependencyError("no detector of faces is installed", hint=hint)
    check_detector(chosen, "cpu")
    return chosen


def check_detector(name: str, device: str) -> None:
    """See, without importing it, that a detector can be had.

    Raises UsageError if there is no such one, DependencyError if its packages are not installed,
    DeviceError if it cannot run on the device.
    """
    if name not in DETECTORS:
        hint = f"choose one of {', '.join(DETECTORS)}"
        raise UsageError(f"there is no detector {name!r}", hint=hint)
    packages, extra = DETECTORS[name]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            message = f"the detector {name} needs the package {package}, which is not installed"
            raise DependencyError(message, hint=f"pip install 's2f[{extra}]'")
    if name == "dlib" and device not in ("auto", "cpu"):
        message = f"the detector dlib runs on the CPU, not on {device!r}"
        raise DeviceError(message, hint="use --device cpu, or --detector face-alignment")


@functools.cache
def load_detector(name: str, device: str = "cpu") -> Detector:
    """Load a detector, once a process, for a device as `choose_device` takes it.

    Raises what `check_detector` does, and DependencyError if the model files are missing, damaged
    or cannot be fetched.
    """
    check_detector(name, device)
    return _Dlib() if name == "dlib" else _FaceAlignment(str(choose_device(device)))


@dataclass(frozen=True)
class Cut:
    """A square that lies in a photo in any place, size and turn; what is cut is never squashed."""

    size: int  # side of the picture that is cut out, pixels
    zoom: complex  # photo pixels a pixel of the cut, times e^(i turn)
    origin: complex  # where in the photo the cut's upper left corner lies

    def to_photo(self, points: Points) -> NDArray[np.float64]:
        """Find points of the cut [k 2] in the photo."""
        places = self.origin + self.zoom * _plane(points)
        return np.stack([places.real, places.imag], axis=-1) - 0.5

    def take(self, photo: Image.Image, *, oversample: int = 1) -> Image.Image:
        """Cut the square out of an RGB photo. What lies outside of it repeats its edge.

        `oversample` is the pixels a side that are sampled for one of the cut: 2 blurs less.
        """
        step = self.zoom / oversample
        side = self.size * oversample
        corners = self.origin + self.zoom * self.size * np.array([0, 1, 1j, 1 + 1j])
        # Sampling alone would skip pixels of a photo that shrinks: it is averaged down first.
        shrink = min(1.0, 1 / abs(step))
        left, right = _within(corners.real, 4 / shrink, photo.width)
        top, bottom = _within(corners.imag, 4 / shrink, photo.height)
        box = left, top, right, bottom
        size = [max(1, round(n * shrink)) for n in (right - left, bottom - top)]
        part = photo.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=3.0)
        fx, fy = part.width / (right - left), part.height / (bottom - top)
        x, y = (corners.real - left) * fx, (corners.imag - top) * fy
        margins = [
            (max(0, int(np.ceil(2 - v.min()))), max(0, int(np.ceil(v.max() + 2 - n))))
            for v, n in ((y, part.height), (x, part.width))
        ]
        padded = Image.fromarray(np.pad(np.asarray(part), [*margins, (0, 0)], mode="edge"))
        (above, _), (before, _) = margins
        start = self.origin - complex(left, top)
        matrix = (
            *(fx * step.real, -fx * step.imag, fx * start.real + before),
            *(fy * step.imag, fy * step.real, fy * start.imag + above),
        )
        how = Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        sampled = padded.transform((side, side), *how)
        whole = (self.size, self.size)
        return sampled if oversample == 1 else sampled.resize(whole, Image.Resampling.LANCZOS)


def eyes(points: Points) -> tuple[complex, complex]:
    """Find the centres of the eyes of 68 points, the picture's left one first."""
    places = _plane(points)
    return complex(places[36:42].mean()), complex(places[42:48].mean())


def framed(points: Points, size: int) -> Cut:
    """Frame 68 points [68 2]: eyes level, in their place; ValueError if less than a pixel apart."""
    left, right = eyes(points)
    if not abs(right - left) >= 1:
        raise ValueError(f"the eyes lie {abs(right - left):.2f} pixels apart")
    zoom = (right - left) / (EYE_DISTANCE * size)
    return Cut(size, zoom, (left + right) / 2 - zoom * size * EYES_AT)


def around(box: Points, size: int, share: float, turn: complex = 1) -> Cut:
    """Cut a square around a box [4]: left, top, right, bottom, from the photo's corner.

    The box lies in its middle, and the longer side takes `share` of the cut's `size`; `turn` is
    e^(i angle) of the square.
    """
    left, top, right, bottom = (float(v) for v in box)
    zoom = turn * max(right - left, bottom - top) / (share * size)
    middle = complex(left + right, top + bottom) / 2
    return Cut(size, zoom, middle - zoom * size * (0.5 + 0.5j))


def squashed(points: Points, photo: tuple[int, int], size: int) -> Floats:
    """Find points [k 2] of a photo (width, height) in the photo squashed to a square."""
    scale = size / np.array(photo)
    return np.asarray((points + 0.5) * scale - 0.5, np.float32)


def _plane(points: Points) -> NDArray[np.complex128]:
    places: NDArray[np.complex128] = points[..., 0] + 0.5 + 1j * (points[..., 1] + 0.5)
    return places


def _within(values: NDArray[np.float64], margin: float, size: int) -> tuple[int, int]:
    """Whole pixels that hold all values and a margin, as far as a photo goes; at least one."""
    first = int(np.clip(np.floor(values.min() - margin), 0, size - 1))
    return first, int(np.clip(np.ceil(values.max() + margin), first + 1, size))


class _Dlib:
    # Copies that are searched: longest side, and how much larger than the photo, at most.
    COPIES = ((1024, 1.0), (2048, 4.0))
    # Box, in pixels: smaller ones are of the finest scale, which also holds faces that are smaller
    # than the box, with points beside them. The next copy is searched too.
    CLEAR = 80
    # What is found closer has to be this clear: there is more to mistake for a face. Of 63 real
    # ones 110 pixels wide or more, the least is at 0.94; of what is none, nothing was above -0.4.
    SCORE = 0.5
    CLOSER = 2048  # side of the parts that are searched closer, pixels
    TILE, FACE = 360, 256  # sides of a cut, and of the face in it, whose points are predicted

    def __init__(self) -> None:
        import dlib

        # The package itself imports pkg_resources, which setuptools no longer has.
        spec = importlib.util.find_spec("face_recognition_models")
        folders = (spec and spec.submodule_search_locations) or [""]
        path = Path(folders[0]) / "models/shape_predictor_68_face_landmarks.dat"
        try:
            self.predictor = dlib.shape_predictor(str(path))
        except RuntimeError as error:
            cure = "pip install --force-reinstall face_recognition_models==0.3.0"
            raise DependencyError(f"{path}: cannot be read: {error}", hint=cure) from error
        self.detector = dlib.get_frontal_face_detector()
        self.rectangle = dlib.rectangle

    def __call__(self, pictures: Sequence[Pixels]) -> list[list[FoundFace]]:
        photos = [Image.fromarray(picture) for picture in pictures]
        found = [[FoundFace(box, self._points(p, box)) for box in self._boxes(p)] for p in photos]
        return [sorted(faces, key=lambda face: -face.size) for faces in found]

    def _boxes(self, photo: Image.Image) -> list[Floats]:
        boxes: list[Floats] = []
        for side, enlarge in self.COPIES:
            copy, scale = _scaled(photo, min(enlarge, side / max(photo.size)))
            if found := self._search(copy, 0.0):
                boxes = [np.asarray(box / scale, np.float32) for box in found]
                if max(box[2] - box[0] for box in found) >= self.CLEAR:
                    break
        clear = functools.partial(self._search, score=self.SCORE)
        return boxes or _search_closer(photo, clear, side, self.CLOSER, 1.0)

    def _search(self, photo: Image.Image, score: float) -> list[NDArray[np.float64]]:
        found, _, _ = self.detector.run(np.asarray(photo), 0, score)
        edges = [(b.left(), b.top(), b.right() + 1, b.bottom() + 1) for b in found]
        return [np.array(e, np.float64) for e in edges]

    def _points(self, photo: Image.Image, box: Floats) -> Floats:
        """Predict the points of a face twice: as it is, then turned so that its eyes are level."""
        first = (self.TILE - self.FACE) // 2
        last = first + self.FACE - 1
        turn = 1 + 0j
        for _ in range(2):
            cut = around(box, self.TILE, self.FACE / self.TILE, turn)
            tile = np.asarray(cut.take(photo))
            shape = self.predictor(tile, self.rectangle(first, first, last, last))
            points = cut.to_photo(np.array([(p.x, p.y) for p in shape.parts()], np.float64))
            left, right = eyes(points)
            turn = (right - left) / abs(right - left) if right != left else turn
        return points.astype(np.float32)


# Addresses of the networks' weights, and their SHA-256.
FAN = (
    "https://www.adrianbulat.com/downloads/python-fan/2DFAN4-11f355bf06.pth.tar",
    "11f355bf0693120222f5955ce3f9dc8fb5763ebb30a47d7906e509490d32e4aa",
)
S3FD = (
    "https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
    "619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
)


class _FaceAlignment:
    SIDE = 640  # of the copy that is searched, pixels, at most
    STRIDE = 128  # of the detector's coarsest map: sides are filled up to a multiple
    PIXELS = 2**20  # that are searched at once
    CLOSER = 1024  # side of the parts that are searched closer, pixels
    FINEST = 0.5  # of the copies then: the network finds faces of 16 pixels, and 32 show little
    TILE, SHARE = 640, 0.4  # of a face whose points are predicted; the network sees 2.3 boxes
    FACES = 8  # that are predicted at once

    def __init__(self, device: str) -> None:
        import face_alignment

        from s2f.checkpoint import locate

        locate(*FAN)  # the package looks for it where this does
        finder = {"path_to_detector": str(locate(*S3FD))}
        how = {"device": device, "flip_input": False, "compile": False, "face_detector": "sfd"}
        how |= {"face_detector_kwargs": finder, "max_batch_size": self.FACES}
        self.network = face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, **how)

    def __call__(self, pictures: Sequence[Pixels]) -> list[list[FoundFace]]:
        photos = [Image.fromarray(picture) for picture in pictures]
        seen = self._boxes(photos)
        for k, photo in enumerate(photos):
            seen[k] = seen[k] or _search_closer(
                photo,
                lambda part: self._boxes([part], self.CLOSER)[0],
                self.SIDE,
                self.CLOSER,
                self.FINEST,
            )
        boxes = [(k, box) for k, found in enumerate(seen) for box in found]
        found: list[list[FoundFace]] = [[] for _ in photos]
        for start in range(0, len(boxes), self.FACES):
            owners, part = zip(*boxes[start : start + self.FACES], strict=True)
            points = self._points([photos[k] for k in owners], part)
            for k, box, marks in zip(owners, part, points, strict=True):
                found[k].append(FoundFace(box, marks))
        return [sorted(faces, key=lambda face: -face.size) for faces in found]

    def _boxes(self, photos: list[Image.Image], side: int = SIDE) -> list[list[Floats]]:
        """Search pictures, those of one size together."""
        import torch

        copies = [_scaled(photo, min(1.0, side / max(photo.size))) for photo in photos]
        groups: dict[tuple[int, ...], list[int]] = {}
        arrays = []
        for k, (copy, _) in enumerate(copies):
            h, w = (-side % self.STRIDE for side in reversed(copy.size))
            arrays.append(np.pad(np.asarray(copy), ((0, h), (0, w), (0, 0))))
            groups.setdefault(arrays[k].shape, []).append(k)
        boxes: list[list[Floats]] = [[] for _ in photos]
        for (h, w, _), members in groups.items():
            n = max(1, self.PIXELS // (h * w))
            for part in (members[i : i + n] for i in range(0, len(members), n)):
                batch = torch.from_numpy(np.stack([arrays[k] for k in part])).permute(0, 3, 1, 2)
                found = self.network.face_detector.detect_from_batch(batch)
                for k, edges in zip(part, found, strict=True):
                    boxes[k] = [np.asarray(e[:4] / copies[k][1], np.float32) for e in edges]
        return boxes

    def _points(self, photos: Sequence[Image.Image], boxes: Sequence[Floats]) -> list[Floats]:
        """Predict the points of faces: one picture of all of them, one below the other."""
        cuts = [around(box, self.TILE, self.SHARE) for box in boxes]
        tiles = [np.asarray(c.take(photo)) for c, photo in zip(cuts, photos, strict=True)]
        places = []
        for k, (cut, box) in enumerate(zip(cuts, boxes, strict=True)):
            half = (box[2:] - box[:2]) / abs(cut.zoom) / 2
            middle = np.array([self.TILE / 2, (k + 0.5) * self.TILE], np.float32)
            places.append(np.concatenate([middle - half, middle + half]).astype(np.float64))
        marks = self.network.get_landmarks_from_image(np.concatenate(tiles), places)
        return [
            cut.to_photo(points - (0, k * self.TILE)).astype(np.float32)
            for k, (cut, points) in enumerate(zip(cuts, marks, strict=True))
        ]


def _search_closer(
    photo: Image.Image,
    search: Callable[[Image.Image], Sequence[Points]],
    side: int,
    part: int,
    finest: float,
) -> list[Floats]:
    """Search a photo that shows no face in a copy of `side` pixels: boxes [4] of its faces.

    Each copy is three times as large as the one before, up to the share `finest` of the photo, and
    is searched in parts, so that memory is bounded. They overlap by an eighth: a face that is
    larger would have been found before.
    """
    most = round(finest * max(photo.size))
    while side < most:
        side = min(3 * side, most)
        copy, scale = _scaled(photo, side / max(photo.size))
        step = part - part // 8
        tops, lefts = (range(0, max(1, n - part // 8), step) for n in (copy.height, copy.width))
        found: list[Floats] = []
        for x, y in ((x, y) for y in tops for x in lefts):
            edges = x, y, min(x + part, copy.width), min(y + part, copy.height)
            boxes = search(copy.crop(edges))
            found += [
                np.asarray((box + np.array([x, y, x, y])) / scale, np.float32) for box in boxes
            ]
        if found:
            return found
    return []


def _scaled(photo: Image.Image, scale: float) -> tuple[Image.Image, NDArray[np.float64]]:
    """Resize a photo: (copy, [4] by how much the edges of a box in it have grown)."""
    if scale == 1:
        return photo, np.ones(4)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    copy = photo.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return copy, np.array(2 * [width / photo.width, height / photo.height])
