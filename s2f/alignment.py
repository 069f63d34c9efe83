"""The largest face of a photo: found, cut out level and framed, as `s2f prep faces` does it."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from s2f import framing
from s2f.detection import DETECTORS, FoundFace, check_detector, load_detector
from s2f.errors import DependencyError, ImageError
from s2f.images import FRAME, Source, called, open_photo

Photo = str | Source
SIDE = 2048  # pixels: longest side of a photo that is handed to a network, which bounds a batch


def open_face(
    photo: Photo, *, align: bool = True, detector: str | None = None, device: str = "cpu"
) -> Image.Image:
    """Open a photo, and cut out its largest face, unless the photo is framed already.

    Args:
        photo: a path, or as for `images.open_photo`.
        align: whether its face is to be cut out.
        detector: that finds it; by default the one that is installed.
        device: as for `cut_face`.

    Returns:
        RGB; 224 x 224 if it was aligned.

    Raises:
        ImageError, UsageError, DependencyError, DeviceError: as `cut_face`, `choose_detector`.
    """
    source = Path(photo) if isinstance(photo, str) else photo
    if not align:
        return open_photo(source)
    return cut_face(source, detector=choose_detector(detector), device=device)


def cut_face(
    source: Source, *, detector: str, device: str = "cpu", name: str | None = None
) -> Image.Image:
    """Cut out the largest face of a photo: level, 224 x 224, framed as in `framing`.

    Args:
        source: as for `images.open_photo`. Of a file, as much is decoded as the detector wants.
        detector: a key of `DETECTORS`.
        device: that a detector of networks runs on; `dlib` is always on the CPU.
        name: as for `images.open_photo`.

    Returns:
        The picture that `s2f prep faces` writes of the photo.

    Raises:
        ImageError: as `images.open_photo`; if no face is found, or it cannot be framed.
        UsageError, DependencyError, DeviceError: as `detection.load_detector`.
    """
    name = name or called(source)
    photo = open_to_search(source, detector, name=name)
    found = load_detector(detector, "cpu" if detector == "dlib" else device)
    return frame(name, photo, found([np.asarray(photo)])[0])


def open_to_search(source: Source, detector: str, *, name: str | None = None) -> Image.Image:
    """Open a photo as large as a detector wants it: all of it, or at most 2048 pixels a side.

    Args:
        source: as for `images.open_photo`.
        detector: a key of `DETECTORS`.
        name: as for `images.open_photo`.

    Raises:
        ImageError: as `images.open_photo`.
    """
    if detector == "dlib":
        return open_photo(source, enough=None, name=name)
    photo = open_photo(source, enough=SIDE, name=name)
    photo.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return photo


def largest(name: str, faces: list[FoundFace]) -> FoundFace:
    """Take the largest of the faces of a photo, which is called `name`.

    Raises:
        ImageError: if there is none.
    """
    if not faces:
        raise ImageError(
            f"{name}: no face was found in it",
            hint="wanted a face that looks at the camera; leave the photo out, or crop it",
        )
    return faces[0]


def frame(name: str, photo: Image.Image, faces: list[FoundFace]) -> Image.Image:
    """Cut out the largest of the faces of a photo, which is called `name`.

    Raises:
        ImageError: if there is none, or its eyes lie in one place.
    """
    try:
        cut = framing.framed(largest(name, faces).points, FRAME)
    except ValueError as error:
        raise ImageError(
            f"{name}: its largest face cannot be framed: {error}", hint="leave the photo out"
        ) from error
    return cut.take(photo, oversample=2)


def installed_detector() -> str | None:
    """Name the detector that can be used without asking: the first one that is installed."""
    for name, needs in DETECTORS.items():
        if all(importlib.util.find_spec(package) for package in needs.packages):
            return name
    return None


def choose_detector(name: str | None) -> str:
    """Choose the detector that was asked for, or else the one that is installed.

    Whatever the device of the model is: `cut_face` runs dlib on the CPU.

    Raises:
        UsageError: if there is no such detector.
        DependencyError: if its packages are not installed, or those of none are.
    """
    chosen = name or installed_detector()
    if chosen is None:
        extras = " or ".join(f"pip install 's2f[{needs.extra}]'" for needs in DETECTORS.values())
        raise DependencyError(
            "no detector of faces is installed",
            hint=f"{extras}; or give --no-align for photos that are framed already",
        )
    check_detector(chosen, "cpu")
    return chosen
