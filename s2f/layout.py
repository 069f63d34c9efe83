"""The tree of files that training reads: names, suffixes, listings. No pixels, no samples.

Face tree: `IDENTITY/NAME.jpg` with `NAME_landmarks.npy` (the 68 points) and, if there are any,
`NAME_template.npy` (a denser template) and `NAME_texture.jpg` (the photo registered to the mean
shape) with `NAME_opacity.jpg` (how far inside the person's outline a place of it is). A name
without landmarks of its own is another view of the identity and shares those of the identity's
first photo that has some.

Voice tree: `IDENTITY/audios/**.npy` (waveforms) and `IDENTITY/images/**`: photos of faces, and
their embeddings `NAME_embedding.npy` where those are made before training. Embeddings may stand
alone there, and may be named `NAME.npy` then.

Both stand under `train`, `val` and `test`, and may be one tree: of a voice tree, too, the photos
are those of a face tree, with what lies beside them.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from s2f import files
from s2f.errors import DatasetError, ImageError
from s2f.files import File

PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
)
UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".gif"}
)  # of photos that are not read
SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
SPLIT_FOLDERS = tuple(name for names in SPLITS.values() for name in names)
# Of these words data sets name the folders above those of people: `dev`, `vox1_test_wav`.
_LEVEL_WORDS = frozenset(
    "train val validation test dev valid eval data dataset raw masked origin hq "
    "vox1 vox2 voxceleb voxceleb1 voxceleb2 vggface vggface1 vggface2 "
    "wav aac m4a mp4 mp3 flac ogg npy txt jpg png audio audios voice voices video videos "
    "image images photo photos face faces unzippedfaces unzippedintervalfaces".split()
)
LANDMARKS, TEMPLATE = "_landmarks.npy", "_template.npy"
TEXTURE, OPACITY = "_texture.jpg", "_opacity.jpg"
EMBEDDING = "_embedding.npy"
BESIDE_PHOTOS = (LANDMARKS, TEMPLATE, EMBEDDING)
BESIDE_TARGETS = (TEMPLATE, TEXTURE, OPACITY, EMBEDDING)


@dataclass(frozen=True)
class PhotoFiles:
    """One photo of a face tree: the picture, and the stem whose landmarks and texture it has."""

    identity: str
    path: Path
    target: Path
    beside: frozenset[str]  # endings of what has the picture's own name, of `BESIDE_TARGETS`


class FaceFiles(NamedTuple):
    """One face of a speaker: files below the folder of the split."""

    name: str  # without their endings: `anna/images/video/1`
    photo: str | None  # None where there is only an embedding
    embedding: str | None  # None where it is still to be made


@dataclass(frozen=True)
class Speaker:
    """One identity of a voice tree."""

    identity: str
    audios: tuple[str, ...]  # files below the folder of the split, sorted
    faces: tuple[FaceFiles, ...]  # in the order that waveforms of these names have


def tree_of(data: Path) -> Path:
    """Find the tree of splits in a folder that `s2f prep dataset` made; any other is the tree."""
    return data / "split" if (data / "split" / "split.json").is_file() else data


def split(tree: Path, name: str) -> Path:
    """Find the folder of a split under a tree, by `tree_of`, or raise a `DatasetError`."""
    tree = tree_of(tree)
    for folder in SPLITS[name]:
        if (tree / folder).is_dir():
            return tree / folder
    hint = "point to the folder that holds train, val and test"
    raise DatasetError(f"{tree}: has no folder {' or '.join(SPLITS[name])}", hint=hint)


def identities(folder: Path) -> list[Path]:
    """List the folders of the identities of one split, sorted, as `files.folders` does.

    Raises as `refuse_levels`.
    """
    names = files.folders(folder)
    refuse_levels(folder, names)
    return [folder / name for name in names]


def is_level(name: str) -> bool:
    """Tell whether a folder's name is that of a part of a data set, as `wav`, and no person's."""
    return all(word in _LEVEL_WORDS for word in re.split("[ _-]", name.lower()))


def refuse_levels(tree: Path, names: Iterable[str]) -> None:
    """Raise a `DatasetError` if one of these folders, which stand for people, `is_level`."""
    if levels := sorted(filter(is_level, names)):
        what = "are parts of a data set, and no people"
        message = f"{tree}: {', '.join(map(repr, levels))} {what}"
        hint = f"give the folder that holds a folder a person, such as {tree / levels[0]}"
        raise DatasetError(message, hint=hint)


def photos(folder: Path) -> Iterator[PhotoFiles]:
    """List the photos of one split, those in an identity's folder and in its `images`, sorted.

    Raises a `DatasetError` if there is none, or an identity has photos and no landmarks.
    """
    n = 0
    for identity in identities(folder):
        names = [path.name for path in identity.iterdir() if files.is_seen(path.name)]
        if "images" in names and (identity / "images").is_dir():
            names += [f"images/{path}" for path in files.names(identity / "images")]
        pictures, there = sorted(filter(is_photo, names)), set(names)
        stems = [files.stem(name) for name in pictures]
        marked = [stem for stem in stems if f"{stem}{LANDMARKS}" in there]
        if pictures and not marked:
            hint = f"put NAME{LANDMARKS}, 68 points [68 2], beside a photo"
            lack = f"{identity}: has {len(pictures)} photos and no *{LANDMARKS}"
            raise DatasetError(lack, hint=hint)
        own = set(marked)
        for picture, stem in zip(pictures, stems, strict=True):
            target = identity / (stem if stem in own else marked[0])
            beside = frozenset(end for end in BESIDE_TARGETS if f"{stem}{end}" in there)
            yield PhotoFiles(identity.name, identity / picture, target, beside)
        n += len(pictures)
    if not n:
        wanted = "wanted IDENTITY/NAME.jpg or IDENTITY/images/NAME.jpg below this folder"
        raise DatasetError(f"{folder}: holds no photo", hint=wanted)


def speakers(folder: Path) -> tuple[list[Speaker], dict[str, list[str]]]:
    """List the speakers of one split, sorted, and the identities that are none, by reason.

    Raises a `DatasetError` if nobody has a voice and a face, or a folder cannot be read.
    """
    found = []
    left_out: dict[str, list[str]] = {"without a voice": [], "without a face": []}
    for identity in identities(folder):
        inside = {}
        for name, wants in (("audios", is_array), ("images", is_face)):
            paths = files.names(identity / name, wants) if (identity / name).is_dir() else ()
            inside[name] = [f"{identity.name}/{name}/{path}" for path in paths]
        audios, own = tuple(inside["audios"]), faces_of(inside["images"])
        if audios and own:
            found.append(Speaker(identity.name, audios, own))
        else:
            left_out["without a face" if audios else "without a voice"].append(identity.name)
    if not found:
        lacking = ", ".join(f"{len(names)} are {reason}" for reason, names in left_out.items())
        hint = "wanted IDENTITY/audios/*.npy and IDENTITY/images/*.jpg below this folder"
        raise DatasetError(f"{folder}: holds no speaker; of its identities, {lacking}", hint=hint)
    return found, left_out


def faces_of(paths: Sequence[str]) -> tuple[FaceFiles, ...]:
    """Bring photos and embeddings of equal names together; of two, `NAME_embedding.npy` counts."""
    embeddings = {_stem(path): path for path in paths if not is_photo(path)}
    photos = [(_stem(path), path) for path in paths if is_photo(path)]
    faces = [FaceFiles(name, photo, embeddings.get(name)) for name, photo in photos]
    alone = embeddings.keys() - dict(photos).keys()
    faces += [FaceFiles(name, None, embeddings[name]) for name in alone]
    return tuple(sorted(faces, key=lambda face: f"{face.name}.".split("/")))


def _stem(path: str) -> str:
    return path.removesuffix(EMBEDDING) if is_embedding(path) else path[: path.rindex(".")]


def clip(path: str) -> str:
    """Name the clip of a waveform or a face: `clip("anna/audios/video/1.npy")` is `video_1`."""
    return path.split("/", 2)[2].removesuffix(".npy").replace("/", "_")


def files_of(
    identity: Path, name: str, wants: files.Wants, *, passed_over: files.PassedOver | None = None
) -> list[File]:
    """List the wanted files of a folder that an identity may have, as `files.list_files` does."""
    folder = identity / name
    found = files.list_files(folder, wants, passed_over=passed_over) if folder.is_dir() else []
    return [file._replace(path=f"{name}/{file.path}") for file in found]


def digest(paths: Iterable[bytes]) -> str:
    """Sum up which files there are, by their paths, in their order: 64 hex digits."""
    summed = hashlib.sha256()
    for path in paths:
        summed.update(path + b"\0")
    return summed.hexdigest()


def beside(stem: Path, suffix: str) -> Path:
    """Name the file of a photo: `beside(Path("a/b"), LANDMARKS)` is `a/b_landmarks.npy`."""
    return stem.with_name(stem.name + suffix)


def renamed(path: str, ending: str) -> str:
    """Name what is made of a file: `renamed("a/b.jpg", LANDMARKS)` is `a/b_landmarks.npy`."""
    return str(PurePosixPath(path).with_suffix("")) + ending


def find_photos(
    paths: Sequence[Path], *, passed_over: files.PassedOver | None = None
) -> list[Path]:
    """List the pictures among files and folders; raises an `ImageError` as `files.find_files`."""
    return files.find_files(paths, is_picture, "photos", ImageError, passed_over=passed_over)


def is_photo(name: str) -> bool:
    """Tell by a file's name whether it is a photo; a texture is none."""
    return Path(name).suffix.lower() in PHOTO_SUFFIXES and not name.endswith((TEXTURE, OPACITY))


def is_picture(name: str) -> bool:
    """Tell by a file's name whether it is a photo, or one of a kind that is refused by name.

    So that a telephone's HEIC photos are told of one by one; in a data tree they are no photos.
    """
    return is_photo(name) or Path(name).suffix.lower() in UNREAD_SUFFIXES


def is_array(name: str) -> bool:
    """Tell by a file's name whether it is an array that belongs to no photo: a waveform."""
    return name.endswith(".npy") and not name.endswith(BESIDE_PHOTOS)


def is_face(name: str) -> bool:
    """Tell by the name of a file among photos whether it is a photo, or the embedding of a face."""
    return is_photo(name) or is_embedding(name) or is_array(name)


def is_embedding(name: str) -> bool:
    """Tell by a file's name whether it is the embedding of a photo."""
    return name.endswith(EMBEDDING)
