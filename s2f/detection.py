"""Faces in photos, each with its 68 points, by two detectors of others behind one call.

`dlib`: a histogram-of-gradients detector and an ensemble of regression trees, on the CPU. Needs
no download: the trees come with the package face_recognition_models. They were trained on
iBUG 300-W, whose terms exclude commercial use.
`face-alignment`: two convolutional networks, S3FD and 2DFAN-4, on any device.

Both look at a copy of bounded size, so that a photo may have any, and then at each face enlarged
or shrunk to one size, so that the points are as exact on small faces as they can be.

Source: King 2009, "Dlib-ml"; Bulat and Tzimiropoulos 2017, "How far are we from solving the 2D &
3D face alignment problem?"; the packages' own code for how they are called.
"""

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2f.errors import DependencyError, DeviceError, UsageError
from s2f.framing import around, eyes
from s2f.runtime import choose_device
from s2f.weights import WeightFile, locate

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class FoundFace:
    """A face in a picture.

    Attributes:
        box: float32 [4]: left, top, right, bottom, pixels from the picture's corner.
        points: float32 [68 2] xy pixels, (0, 0) at the centre of the first; iBUG order.
    """

    box: NDArray[np.float32]
    points: NDArray[np.float32]

    @property
    def size(self) -> float:
        """Spread of the points, pixels: unlike a box, no larger for a face that is turned."""
        return float(self.points.std(axis=0).max())


class Detector(Protocol):
    """Finds the faces of pictures."""

    def __call__(self, pictures: Sequence[Picture], /) -> list[list[FoundFace]]:
        """Find the faces in each picture, uint8 [h w 3] RGB, the largest face first."""


@dataclass(frozen=True)
class _Requirement:
    packages: tuple[str, ...]
    extra: str


DETECTORS = {
    "dlib": _Requirement(("dlib", "face_recognition_models"), "dlib"),
    "face-alignment": _Requirement(("face_alignment",), "landmarks"),
}


def check_detector(name: str, device: str) -> None:
    """See, without importing it, that a detector can be had.

    Raises:
        UsageError: if there is no such detector.
        DependencyError: if its packages are not installed.
        DeviceError: if it cannot run on the device.
    """
    if name not in DETECTORS:
        raise UsageError(
            f"there is no detector {name!r}", hint=f"choose one of {', '.join(DETECTORS)}"
        )
    for package in DETECTORS[name].packages:
        if importlib.util.find_spec(package) is None:
            raise DependencyError(
                f"the detector {name} needs the package {package}, which is not installed",
                hint=f"pip install 's2f[{DETECTORS[name].extra}]'",
            )
    if name == "dlib" and device not in ("auto", "cpu"):
        raise DeviceError(
            f"the detector dlib runs on the CPU, not on {device!r}",
            hint="use --device cpu, or --detector face-alignment",
        )


@functools.cache
def load_detector(name: str, device: str = "cpu") -> Detector:
    """Load a detector, once a process.

    Args:
        name: a key of `DETECTORS`.
        device: as for `runtime.choose_device`.

    Raises:
        UsageError, DependencyError, DeviceError: as `check_detector`, and if the model files are
            missing, damaged or cannot be fetched.
    """
    check_detector(name, device)
    return _Dlib() if name == "dlib" else _FaceAlignment(str(choose_device(device)))


class _Dlib:
    # Copies that are searched: longest side, and how much larger than the photo, at most.
    COPIES = ((1024, 1.0), (2048, 4.0))
    # Box, in pixels: smaller ones are of the finest scale, which also holds faces that are smaller
    # than the box, with points beside them. The next copy is searched too.
    CLEAR = 80
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
            raise DependencyError(
                f"{path}: cannot be read: {error}",
                hint="pip install --force-reinstall face_recognition_models==0.3.0",
            ) from error
        self.detector = dlib.get_frontal_face_detector()
        self.rectangle = dlib.rectangle

    def __call__(self, pictures: Sequence[Picture], /) -> list[list[FoundFace]]:
        found = []
        for picture in pictures:
            photo = Image.fromarray(picture)
            faces = [FoundFace(box, self._points(photo, box)) for box in self._boxes(photo)]
            found.append(sorted(faces, key=lambda face: -face.size))
        return found

    def _boxes(self, photo: Image.Image) -> list[NDArray[np.float32]]:
        boxes: list[NDArray[np.float32]] = []
        for side, enlarge in self.COPIES:
            copy, scale = _scaled(photo, min(enlarge, side / max(photo.size)))
            if found := self.detector(np.asarray(copy), 0):
                edges = [(b.left(), b.top(), b.right() + 1, b.bottom() + 1) for b in found]
                boxes = [np.asarray(np.array(e) / scale, np.float32) for e in edges]
                if max(b.width() for b in found) >= self.CLEAR:
                    break
        return boxes

    def _points(self, photo: Image.Image, box: NDArray[np.float32]) -> NDArray[np.float32]:
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


FAN = WeightFile(
    "https://www.adrianbulat.com/downloads/python-fan/2DFAN4-11f355bf06.pth.tar",
    "11f355bf0693120222f5955ce3f9dc8fb5763ebb30a47d7906e509490d32e4aa",
)
S3FD = WeightFile(
    "https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
    "619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
)


class _FaceAlignment:
    SIDE = 640  # of the copy that is searched, pixels, at most
    STRIDE = 128  # of the detector's coarsest map: sides are filled up to a multiple
    PIXELS = 2**20  # that are searched at once
    TILE, SHARE = 640, 0.4  # of a face whose points are predicted; the network sees 2.3 boxes
    FACES = 8  # that are predicted at once

    def __init__(self, device: str) -> None:
        import face_alignment

        locate(FAN)  # the package looks for it where this does
        s3fd = locate(S3FD)
        self.network = face_alignment.FaceAlignment(
            face_alignment.LandmarksType.TWO_D,
            device=device,
            flip_input=False,
            compile=False,
            face_detector="sfd",
            face_detector_kwargs={"path_to_detector": str(s3fd)},
            max_batch_size=self.FACES,
        )

    def __call__(self, pictures: Sequence[Picture], /) -> list[list[FoundFace]]:
        photos = [Image.fromarray(picture) for picture in pictures]
        boxes = self._boxes(photos)
        owners = [k for k, found in enumerate(boxes) for _ in found]
        flat = [box for found in boxes for box in found]
        found: list[list[FoundFace]] = [[] for _ in photos]
        for start in range(0, len(flat), self.FACES):
            part = slice(start, start + self.FACES)
            points = self._points([photos[k] for k in owners[part]], flat[part])
            for k, box, marks in zip(owners[part], flat[part], points, strict=True):
                found[k].append(FoundFace(box, marks))
        return [sorted(faces, key=lambda face: -face.size) for faces in found]

    def _boxes(self, photos: list[Image.Image]) -> list[list[NDArray[np.float32]]]:
        """Search pictures, those of one size together."""
        import torch

        copies = [_scaled(photo, min(1.0, self.SIDE / max(photo.size))) for photo in photos]
        groups: dict[tuple[int, ...], list[int]] = {}
        arrays = []
        for k, (copy, _) in enumerate(copies):
            h, w = (-side % self.STRIDE for side in reversed(copy.size))
            arrays.append(np.pad(np.asarray(copy), ((0, h), (0, w), (0, 0))))
            groups.setdefault(arrays[k].shape, []).append(k)
        boxes: list[list[NDArray[np.float32]]] = [[] for _ in photos]
        for (h, w, _), members in groups.items():
            n = max(1, self.PIXELS // (h * w))
            for part in (members[i : i + n] for i in range(0, len(members), n)):
                batch = torch.from_numpy(np.stack([arrays[k] for k in part])).permute(0, 3, 1, 2)
                found = self.network.face_detector.detect_from_batch(batch)
                for k, edges in zip(part, found, strict=True):
                    boxes[k] = [np.asarray(e[:4] / copies[k][1], np.float32) for e in edges]
        return boxes

    def _points(
        self, photos: list[Image.Image], boxes: list[NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """Predict the points of faces: one picture of all of them, one below the other."""
        cuts = [around(box, self.TILE, self.SHARE) for box in boxes]
        tiles = [np.asarray(c.take(photo)) for c, photo in zip(cuts, photos, strict=True)]
        places = []
        for k, (cut, (left, top, right, bottom)) in enumerate(zip(cuts, boxes, strict=True)):
            w, h = (right - left) / abs(cut.zoom) / 2, (bottom - top) / abs(cut.zoom) / 2
            x, y = self.TILE / 2, (k + 0.5) * self.TILE
            places.append(np.array([x - w, y - h, x + w, y + h], np.float64))
        marks = self.network.get_landmarks_from_image(np.concatenate(tiles), places)
        return [
            cut.to_photo(points - (0, k * self.TILE)).astype(np.float32)
            for k, (cut, points) in enumerate(zip(cuts, marks, strict=True))
        ]


def _scaled(photo: Image.Image, scale: float) -> tuple[Image.Image, NDArray[np.float64]]:
    """Resize a photo: (copy, [4] by how much the edges of a box in it have grown)."""
    if scale == 1:
        return photo, np.ones(4)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    copy = photo.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return copy, np.array(2 * [width / photo.width, height / photo.height])
