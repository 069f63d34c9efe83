"""What `s2f prep` makes of photos: resized ones, framed faces, landmarks.

Imports no network: a tree is planned before anything is loaded.
"""

import functools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from s2f import framing
from s2f.alignment import frame, largest, open_to_search
from s2f.arrays import save_array
from s2f.detection import FoundFace, Picture, check_detector, load_detector
from s2f.errors import ImageError
from s2f.images import ENCODING, FORMATS, FRAME, open_photo, save_photo
from s2f.layout import LANDMARKS, is_photo, renamed
from s2f.step import Step

BATCH = 16  # photos that go through a network together

Make = Callable[[str, Image.Image, list[FoundFace]], Any]


def resize_step(size: int = FRAME) -> Step:
    """Squash photos to `size` x `size`, upright RGB, in the format of their suffix.

    A photo that is so already is copied as it is, so that doing it twice changes nothing.
    """
    return Step(
        name="resize",
        wants=is_photo,
        sources="photos",
        rename=str,
        settings={"size": size},
        work=functools.partial(_resize, size=size),
        preload=("s2f.prep_photos",),
    )


def faces_step(detector: str, device: str = "cpu") -> Step:
    """Cut out the largest face of each photo: level, 224 x 224, framed as in `framing`.

    Raises:
        UsageError, DependencyError, DeviceError: as `detection.check_detector`.
    """
    place = [framing.EYES_AT.real, framing.EYES_AT.imag, framing.EYE_DISTANCE]
    settings = {"detector": detector, "size": FRAME, "eyes": place}
    return _step("faces", detector, device, str, settings, frame, save_photo)


def landmarks_step(detector: str, device: str = "cpu") -> Step:
    """Find the 68 points of the largest face of each photo.

    Files are float32 [68 2], xy in the photo squashed to 224 x 224, as training reads it.

    Raises:
        UsageError, DependencyError, DeviceError: as `detection.check_detector`.
    """
    settings = {"detector": detector, "size": FRAME}
    rename = functools.partial(renamed, ending=LANDMARKS)
    return _step("landmarks", detector, device, rename, settings, _mark, save_array)


def _step(
    name: str,
    detector: str,
    device: str,
    rename: Callable[[str], str],
    settings: dict[str, Any],
    make: Make,
    save: Callable[[Any, Path], None],
) -> Step:
    check_detector(detector, device)
    common = functools.partial(
        Step, name=name, wants=is_photo, sources="photos", rename=rename, settings=settings
    )
    if detector == "dlib":
        work = functools.partial(_find_one, detector=detector, make=make, save=save)
        return common(work=work, preload=("s2f.prep_photos", "dlib"))
    return common(
        work=functools.partial(_open, detector=detector),
        net=functools.partial(_find_many, detector=detector, device=device, make=make),
        save=save,
        batch_size=BATCH,
        preload=("s2f.prep_photos",),
    )


def _resize(source: Path, part: Path, *, size: int) -> None:
    photo = open_photo(source, enough=size)
    is_of_size = photo.size == (size, size)
    if is_of_size and _is_plain(source):
        shutil.copyfile(source, part)
        return
    if not is_of_size:
        photo = photo.resize((size, size), Image.Resampling.LANCZOS)
    save_photo(photo, part)


def _is_plain(path: Path) -> bool:
    """Whether a photo that can be read is stored as `save_photo` stores one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `open_photo`, which took it
        with Image.open(path, formats=FORMATS) as photo:
            return (
                photo.mode == "RGB"
                and photo.format == ENCODING[path.suffix.lower()]["format"]
                and photo.getexif().get(ExifTags.Base.Orientation, 1) == 1
            )


def _find_one(
    source: Path, part: Path, *, detector: str, make: Make, save: Callable[[Any, Path], None]
) -> None:
    photo = open_to_search(source, detector)
    faces = load_detector(detector)([np.asarray(photo)])[0]
    save(make(str(source), photo, faces), part)


def _open(source: Path, part: Path, *, detector: str) -> tuple[str, Picture]:
    return str(source), np.asarray(open_to_search(source, detector))


def _find_many(
    items: list[tuple[str, Picture]], *, detector: str, device: str, make: Make
) -> list[Any]:
    found = load_detector(detector, device)([picture for _, picture in items])
    values: list[Any] = []
    for (name, picture), faces in zip(items, found, strict=True):
        try:
            values.append(make(name, Image.fromarray(picture), faces))
        except ImageError as error:
            values.append(error)
    return values


def _mark(name: str, photo: Image.Image, faces: list[FoundFace]) -> Any:
    return framing.squashed(largest(name, faces).points, photo.size, FRAME)
