"""What `s2f prep` makes of photos: resized ones, framed faces, landmarks, embeddings.

Photos are read in the workers; networks run in this process, on batches, and are loaded when the
first one comes: a tree is planned before anything is loaded. Last, the embeddings that stand beside
photos are checked with the face encoder that is said to have made them.
"""

import contextlib
import functools
import io
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from s2f import checkpoint, embeddings, face_detection, layout
from s2f.device import choose_device
from s2f.errors import CheckpointError, DatasetError, ImageError, WorkerError
from s2f.face_detection import FoundFace, Pixels, check_detector, frame, load_detector
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.files import save_array
from s2f.images import ENCODING, FORMATS, FRAME, Fit, load_face, open_photo, save_photo
from s2f.landmarks import implausible, place, read_landmarks
from s2f.layout import LANDMARKS, PHOTO_SUFFIXES, is_photo, is_picture, renamed
from s2f.prep import Step
from s2f.workers import Worker

BATCH = 16  # photos that go through a network together

MakeFromFaces = Callable[[str, Image.Image, list[FoundFace]], Any]
Save = Callable[[Any, Path], None]

_photos_step = functools.partial(
    Step, wants=is_picture, sources="photos", preload=("s2f.prep_faces",)
)


def _picture_name(path: str) -> str:
    """Name the picture that is made of one: what no picture is written as becomes a PNG."""
    return path if Path(path).suffix.lower() in ENCODING else f"{path}.png"


def _array_name(path: str, ending: str) -> str:
    """Name the array that is made of a picture; of one that is not read, so that it hides none."""
    return renamed(path, ending) if Path(path).suffix.lower() in PHOTO_SUFFIXES else path + ending


def resize_step(size: int = FRAME) -> Step:
    """Squash photos to `size` x `size`, upright sRGB, in the format of their suffix, or as PNG."""
    work = functools.partial(_resize, size=size)
    return _photos_step(name="resize", rename=_picture_name, settings={"size": size}, work=work)


def _resize(source: Path, part: Path, *, size: int) -> None:
    photo = open_photo(source, enough=size)
    if photo.size != (size, size):
        photo = photo.resize((size, size), Image.Resampling.LANCZOS)
    elif _is_plain(source, part.suffix):  # so that doing it twice changes nothing
        shutil.copyfile(source, part)
        return
    save_photo(photo, part)


def _is_plain(path: Path, suffix: str) -> bool:
    """Whether a photo that can be read is stored with losses as `save_photo` would: bare, RGB."""
    form, data = ENCODING[suffix.lower()]["format"], path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `open_photo`, which took it
        with Image.open(io.BytesIO(data), formats=FORMATS) as photo:
            if (photo.format, photo.mode) != (form, "RGB"):
                return False
            segments = [marker for marker, _ in getattr(photo, "applist", [])]
    if form == "JPEG":  # with nothing of an application, or behind the end
        return segments == ["APP0"] and data.find(b"\xff\xd9") == len(data) - 2
    simple = data[12:16] in (b"VP8 ", b"VP8L")  # WebP's other form has metadata, or may have
    return form == "WEBP" and simple and int.from_bytes(data[4:8], "little") + 8 == len(data)


def faces_step(detector: str, device: str = "cpu") -> Step:
    """Cut out the largest face of each photo, 224 x 224; raises as `check_detector`."""
    place = [face_detection.EYES_AT.real, face_detection.EYES_AT.imag, face_detection.EYE_DISTANCE]
    settings = {"detector": detector, "size": FRAME, "eyes": place}
    return _step("faces", detector, device, _picture_name, settings, frame, save_photo)


def landmarks_step(detector: str, device: str = "cpu") -> Step:
    """Find the points of the largest face of each photo, float32 [68 2].

    They are xy in the photo squashed to 224 x 224, as in training, which has to take them. Raises
    as `check_detector`.
    """
    settings = {"detector": detector, "size": FRAME}
    rename = functools.partial(_array_name, ending=LANDMARKS)
    return _step("landmarks", detector, device, rename, settings, _mark, save_array)


def _mark(name: str, photo: Image.Image, faces: list[FoundFace]) -> Any:
    points = face_detection.largest(name, faces).points
    squashed = face_detection.squashed(points, photo.size, FRAME)
    if why := implausible(squashed, FRAME):  # which training would refuse
        hint = "cut the face out with s2f prep faces first, or place the points by hand"
        raise ImageError(f"{name}: the landmarks that were found {why}", hint=hint)
    return squashed


def marked_step() -> Step:
    """Copy photos that need no search, and the 68 landmarks that lie beside them.

    Training has to take either. What is noted of landmarks is `landmarks.place` of them.
    """
    return _photos_step(
        name="marked",
        wants=lambda name: is_photo(name) or name.endswith(LANDMARKS),
        rename=str,
        settings={"size": FRAME},
        work=_copy_marked,
    )


def _copy_marked(source: Path, part: Path) -> tuple[float, bool] | None:
    note = None
    if source.name.endswith(LANDMARKS):
        note = place(read_landmarks(source))
    else:
        open_photo(source)
    shutil.copyfile(source, part)
    return note


def _step(
    name: str,
    detector: str,
    device: str,
    rename: Callable[[str], str],
    settings: dict[str, Any],
    make: MakeFromFaces,
    save: Save,
) -> Step:
    """Search in the workers with dlib, and in this process, on its device, with a network."""
    check_detector(detector, device)
    step = functools.partial(_photos_step, name=name, rename=rename, settings=settings)
    if detector == "dlib":
        work = functools.partial(_find_one, detector=detector, make=make, save=save)
        return step(work=work, preload=("s2f.prep_faces", "dlib"))
    return step(
        work=functools.partial(_open, detector=detector),
        net=functools.partial(_find_many, detector=detector, device=device, make=make),
        save=save,
        batch_size=BATCH,
        device=device,
    )


def _find_one(source: Path, part: Path, *, detector: str, make: MakeFromFaces, save: Save) -> None:
    photo = open_photo(source, enough=None)
    faces = load_detector(detector)([np.asarray(photo)])[0]
    save(make(str(source), photo, faces), part)


def _open(source: Path, part: Path, *, detector: str) -> tuple[str, Pixels, bool]:
    """Give a photo's name, what is searched of it, and whether that is a smaller copy."""
    photo = open_photo(source, enough=face_detection.SIDE)
    seen = face_detection.to_search(photo, detector)
    return str(source), np.asarray(seen), seen.size != photo.size


def _find_many(
    items: list[tuple[str, Pixels, bool]], *, detector: str, device: str, make: MakeFromFaces
) -> list[Any]:
    find = load_detector(detector, device)
    found = find([picture for _, picture, _ in items])
    values: list[Any] = []
    with contextlib.closing(Worker()) as work:  # where a decoder that crashes ends no run
        for (name, picture, is_copy), faces in zip(items, found, strict=True):
            try:
                photo = Image.fromarray(picture)
                if is_copy and not faces:  # perhaps there is a small one
                    photo = work(functools.partial(open_photo, enough=None), Path(name))
                    faces = find([np.asarray(photo)])[0]
                values.append(make(name, photo, faces))
            except (ImageError, WorkerError) as error:
                values.append(error)
            except MemoryError:
                message = f"{name}: takes more memory to search than there is"
                values.append(ImageError(message, hint="make it smaller first"))
    return values


@dataclass(frozen=True)
class Space:
    """What the embeddings of a face encoder are, by the header of its checkpoint."""

    sha256: str  # the embedding space
    embedding: int  # values of an embedding
    fit: Fit  # how photos are brought to its input
    preprocessing: Mapping[str, Any]  # all of it, plain JSON


def read_space(checkpoint_path: Path) -> Space:
    """Read what the embeddings of a face encoder are; a `CheckpointError` if it is none's file."""
    header = checkpoint.read_header(checkpoint_path, "face_encoder")
    try:
        preprocessing, values = header["preprocessing"], int(header["config"]["embedding"])
        fit = preprocessing["fit"]
        if fit not in get_args(Fit):
            raise ValueError(f"fit {fit!r}")
    except (KeyError, TypeError, ValueError) as error:
        message = f"{checkpoint_path}: its header does not describe a face encoder: {error}"
        raise CheckpointError(message, hint="it was made by another version of s2f") from error
    return Space(header["embedding_space"], values, fit, preprocessing)


def embeddings_step(
    checkpoint_path: Path, device: str = "auto", batch_size: int = 32, *, is_here: bool = True
) -> Step:
    """Describe how photos become embeddings, float32 [d], with a face encoder.

    What it makes depends on its weights and its preprocessing, and hardly on the device. Raises a
    `CheckpointError` as `read_space`, and a `DeviceError` if the device is not there, unless it is
    to be one of other machines, and not here.
    """
    space = read_space(checkpoint_path)
    if is_here:
        choose_device(device)
    return _photos_step(
        name="embeddings",
        rename=functools.partial(_array_name, ending=layout.EMBEDDING),
        settings={"embedding_space": space.sha256, "preprocessing": space.preprocessing},
        work=functools.partial(_read_photo, fit=space.fit),
        net=_Embed(checkpoint_path, device, batch_size),
        save=save_array,
        batch_size=batch_size,
        device=device,
    )


@dataclass(frozen=True)
class _Embed:
    """Embeds photos, each uint8 [3 224 224] RGB; loads its network with the first."""

    checkpoint_path: Path
    device: str
    batch_size: int

    @functools.cached_property
    def maker(self) -> embeddings.Maker:
        return maker_of(self.checkpoint_path, choose_device(self.device), self.batch_size)

    def __call__(self, photos: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return list(self.maker.of([torch.tensor(photo) for photo in photos]))


def maker_of(
    checkpoint_path: Path, device: torch.device, batch_size: int = embeddings.BATCH
) -> embeddings.Maker:
    """Load a face encoder, as what makes embeddings on a device; raises as `read_space`."""
    space, network = read_space(checkpoint_path), checkpoint.load(checkpoint_path, "face_encoder")
    assert isinstance(network.network, FaceEncoder)
    embed = batch_embedder(network.network, device=device, batch_size=batch_size)
    return embeddings.Maker(str(checkpoint_path), space.embedding, space.fit, embed)


def _read_photo(path: Path, part: Path, *, fit: Fit) -> NDArray[np.uint8]:
    """Read a photo as the face encoder wants it: [3 224 224] RGB."""
    return np.ascontiguousarray(load_face(path, fit=fit).numpy())


def check_photo_embeddings(paths: Sequence[Path], checkpoint_path: Path) -> None:
    """Make sure that a face encoder made the embeddings, at `paths`, beside photos.

    Raises a `DatasetError` if one has no photo beside it, or cannot be read, an `ImageError` if
    none of their photos can be read, a `CheckpointError` if another face encoder made one.
    """
    maker = maker_of(checkpoint_path, torch.device("cpu"))
    embeddings.check_embeddings(maker, paths, _photo)


def _photo(embedding: Path) -> Path:
    stem = embedding.name.removesuffix(layout.EMBEDDING).removesuffix(".npy")
    for path in sorted(embedding.parent.iterdir()):
        if path.stem == stem and is_photo(path.name):
            return path
    hint = f"keep NAME.jpg, for instance, beside NAME{layout.EMBEDDING}"
    raise DatasetError(f"{embedding}: has no photo beside it to check it with", hint=hint)
