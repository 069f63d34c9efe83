"""What `s2f prep` makes of photos: resized ones, framed faces, landmarks, embeddings.

In that order. Photos are read in the workers; networks run in this process, on batches, and are
loaded when the first one comes: a tree is planned before anything is loaded. Last, the embeddings
that stand beside photos are checked with the face encoder that is said to have made them.
"""

import functools
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from s2f import checkpoint, embeddings, face_detection, layout
from s2f.device import choose_device
from s2f.errors import CheckpointError, DatasetError, ImageError
from s2f.face_detection import (
    FoundFace,
    Pixels,
    check_detector,
    frame,
    largest,
    load_detector,
    open_to_search,
)
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.files import save_array
from s2f.images import ENCODING, FORMATS, FRAME, Fit, load_face, open_photo, save_photo
from s2f.layout import LANDMARKS, is_photo, renamed
from s2f.prep import Step

BATCH = 16  # photos that go through a network together

MakeFromFaces = Callable[[str, Image.Image, list[FoundFace]], Any]


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
        preload=("s2f.prep_faces",),
    )


def faces_step(detector: str, device: str = "cpu") -> Step:
    """Cut out the largest face of each photo: level, 224 x 224, as `face_detection.frame` does it.

    Raises:
        UsageError, DependencyError, DeviceError: as `face_detection.check_detector`.
    """
    place = [face_detection.EYES_AT.real, face_detection.EYES_AT.imag, face_detection.EYE_DISTANCE]
    settings = {"detector": detector, "size": FRAME, "eyes": place}
    return _step("faces", detector, device, str, settings, frame, save_photo)


def landmarks_step(detector: str, device: str = "cpu") -> Step:
    """Find the 68 points of the largest face of each photo.

    Files are float32 [68 2], xy in the photo squashed to 224 x 224, as training reads it.

    Raises:
        UsageError, DependencyError, DeviceError: as `face_detection.check_detector`.
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
    make: MakeFromFaces,
    save: Callable[[Any, Path], None],
) -> Step:
    check_detector(detector, device)
    common = functools.partial(
        Step, name=name, wants=is_photo, sources="photos", rename=rename, settings=settings
    )
    if detector == "dlib":
        work = functools.partial(_find_one, detector=detector, make=make, save=save)
        return common(work=work, preload=("s2f.prep_faces", "dlib"))
    return common(
        work=functools.partial(_open, detector=detector),
        net=functools.partial(_find_many, detector=detector, device=device, make=make),
        save=save,
        batch_size=BATCH,
        preload=("s2f.prep_faces",),
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
    source: Path,
    part: Path,
    *,
    detector: str,
    make: MakeFromFaces,
    save: Callable[[Any, Path], None],
) -> None:
    photo = open_to_search(source, detector)
    faces = load_detector(detector)([np.asarray(photo)])[0]
    save(make(str(source), photo, faces), part)


def _open(source: Path, part: Path, *, detector: str) -> tuple[str, Pixels]:
    return str(source), np.asarray(open_to_search(source, detector))


def _find_many(
    items: list[tuple[str, Pixels]], *, detector: str, device: str, make: MakeFromFaces
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
    return face_detection.squashed(largest(name, faces).points, photo.size, FRAME)


@dataclass(frozen=True)
class Space:
    """What the embeddings of a face encoder are, by the header of its checkpoint.

    Attributes:
        sha256: the embedding space.
        embedding: values of an embedding.
        fit: how photos are brought to its input.
        preprocessing: all of it, plain JSON.
    """

    sha256: str
    embedding: int
    fit: Fit
    preprocessing: Mapping[str, Any]


def read_space(checkpoint_path: Path) -> Space:
    """Read what the embeddings of a face encoder are, without its weights.

    Raises:
        CheckpointError: if it is not the checkpoint of a face encoder.
    """
    header = checkpoint.read_header(checkpoint_path, "face_encoder")
    config, preprocessing = header["config"], header["preprocessing"]
    try:
        values, fit = int(config["embedding"]), preprocessing["fit"]
    except (KeyError, TypeError, ValueError) as error:
        raise _undescribed(checkpoint_path, f"{error!r}") from error
    if fit not in get_args(Fit):
        raise _undescribed(checkpoint_path, f"fit {fit!r}")
    return Space(header["embedding_space"], values, fit, preprocessing)


def _undescribed(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: its header does not describe a face encoder: {what}",
        hint="it was made by another version of s2f",
    )


def embeddings_step(checkpoint_path: Path, device: str = "auto", batch_size: int = 32) -> Step:
    """Describe how photos become embeddings, float32 [d].

    Args:
        checkpoint_path: of a face encoder; what it makes depends on its weights and its
            preprocessing, and hardly on the device.
        device: as `device.choose_device` takes it.
        batch_size: photos at a time.

    Raises:
        CheckpointError: if it is not the checkpoint of a face encoder.
        DeviceError: if the device is not there.
    """
    space = read_space(checkpoint_path)
    chosen = choose_device(device)
    load = functools.cache(functools.partial(_embedder, checkpoint_path, chosen, batch_size))
    return Step(
        name="embeddings",
        wants=is_photo,
        sources="photos",
        rename=functools.partial(renamed, ending=layout.EMBEDDING),
        settings={"embedding_space": space.sha256, "preprocessing": space.preprocessing},
        work=functools.partial(read_photo, fit=space.fit),
        net=functools.partial(_embed, load, chosen),
        save=save_array,
        batch_size=batch_size,
        preload=(__name__,),
    )


def _embed(
    load: Callable[[], Callable[[Tensor], Tensor]],
    device: torch.device,
    photos: list[NDArray[np.uint8]],
) -> list[NDArray[np.float32]]:
    """Embed photos [3 h w], as `read_photo` gives them: [d] each."""
    faces = torch.from_numpy(np.stack(photos)).to(device).float() / 255
    return list(load()(faces).cpu().numpy())


def _embedder(path: Path, device: torch.device, batch_size: int) -> Callable[[Tensor], Tensor]:
    network = checkpoint.load(path, "face_encoder").network
    assert isinstance(network, FaceEncoder)
    return batch_embedder(network, device=device, batch_size=batch_size)


def read_photo(path: Path, part: Path | None = None, *, fit: Fit) -> NDArray[np.uint8]:
    """Read a photo as the face encoder wants it: [3 224 224] RGB.

    Raises:
        ImageError: if it cannot be read.
    """
    return np.ascontiguousarray(load_face(path, fit=fit).numpy())


def check_photo_embeddings(paths: Sequence[Path], checkpoint_path: Path) -> None:
    """Make sure that a face encoder made the embeddings beside photos.

    Args:
        paths: of the embeddings.
        checkpoint_path: of the face encoder.

    Raises:
        DatasetError: if one has no photo beside it, or cannot be read.
        ImageError: if none of their photos can be read.
        CheckpointError: if another face encoder made one.
    """
    space = read_space(checkpoint_path)
    embed = _embedder(checkpoint_path, torch.device("cpu"), embeddings.BATCH)
    maker = embeddings.Maker(str(checkpoint_path), space.embedding, space.fit, embed)
    embeddings.check_embeddings(maker, paths, _photo)


def _photo(embedding: Path) -> Path:
    stem = embedding.name.removesuffix(layout.EMBEDDING)
    beside = sorted(path for path in embedding.parent.iterdir() if path.stem == stem)
    for path in beside:
        if is_photo(path.name):
            return path
    raise DatasetError(
        f"{embedding}: has no photo beside it to check it with",
        hint=f"keep NAME.jpg, for instance, beside NAME{layout.EMBEDDING}",
    )
