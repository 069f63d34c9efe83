"""The tree of files that training reads: names, suffixes, listings. No pixels, no samples.

Face tree: `IDENTITY/NAME.jpg` with `NAME_landmarks.npy` (the 68 points) and, optionally beside
them, `NAME_template.npy` (a denser template) and `NAME_texture.jpg` (the photo registered to the
mean shape). A name without landmarks of its own is another view of the
identity and shares those of the identity's first photo that has some.

Voice tree: `IDENTITY/audios/**.npy` (waveforms) and `IDENTITY/images/**` (photos of
faces).

Both stand under `train`, `val` and `test`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s2f import listing
from s2f.errors import DatasetError, ImageError

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
LANDMARKS, TEMPLATE, TEXTURE = "_landmarks.npy", "_template.npy", "_texture.jpg"


@dataclass(frozen=True)
class Photo:
    """One photo of a face tree: the picture, and the stem whose landmarks and texture it has."""

    identity: str
    path: Path
    target: Path


@dataclass(frozen=True)
class Speaker:
    """One identity of a voice tree."""

    identity: str
    audios: tuple[Path, ...]
    images: tuple[Path, ...]


def split(tree: Path, name: str) -> Path:
    """Find the folder of a split under a tree.

    Raises:
        DatasetError: if the tree has no such folder.
    """
    for folder in SPLITS[name]:
        if (tree / folder).is_dir():
            return tree / folder
    raise DatasetError(
        f"{tree}: has no folder {' or '.join(SPLITS[name])}",
        hint="point to the folder that holds train, val and test",
    )


def _identities(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def photos(folder: Path) -> list[Photo]:
    """List the photos of one split, sorted.

    Raises:
        DatasetError: if there is none, or an identity has photos and no landmarks.
    """
    found = []
    for identity in _identities(folder):
        pictures = sorted(path for path in identity.iterdir() if is_photo(path.name))
        stems = [path.with_suffix("") for path in pictures]
        marked = [stem for stem in stems if beside(stem, LANDMARKS).is_file()]
        if pictures and not marked:
            raise DatasetError(
                f"{identity}: has {len(pictures)} photos and no *{LANDMARKS}",
                hint=f"put NAME{LANDMARKS}, 68 points [68 2], beside a photo",
            )
        for path, stem in zip(pictures, stems, strict=True):
            found.append(Photo(identity.name, path, stem if stem in marked else marked[0]))
    if not found:
        raise DatasetError(
            f"{folder}: holds no photo", hint="wanted IDENTITY/NAME.jpg below this folder"
        )
    return found


def speakers(folder: Path) -> list[Speaker]:
    """List the speakers of one split, sorted.

    Raises:
        DatasetError: if there is none, or one lacks its audios or images.
    """
    found = []
    for identity in _identities(folder):
        audios = tuple(sorted((identity / "audios").rglob("*.npy")))
        images = tuple(
            sorted(
                path
                for path in (identity / "images").rglob("*")
                if path.suffix.lower() in PHOTO_SUFFIXES
            )
        )
        if not audios or not images:
            raise DatasetError(
                f"{identity}: has {len(audios)} files in audios and {len(images)} in images",
                hint="wanted at least one of each: audios/*.npy, images/*.jpg",
            )
        found.append(Speaker(identity.name, audios, images))
    if not found:
        raise DatasetError(
            f"{folder}: holds no speaker", hint="wanted IDENTITY/audios and IDENTITY/images"
        )
    return found


def beside(stem: Path, suffix: str) -> Path:
    """Name the file of a photo: `beside(Path("a/b"), LANDMARKS)` is `a/b_landmarks.npy`."""
    return stem.with_name(stem.name + suffix)


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """List photos: files as they are given, directories searched below for known suffixes.

    Raises:
        ImageError: if a path does not exist, or a directory holds no photo.
    """
    return listing.find(paths, is_photo, "photos", ImageError)


def is_photo(name: str) -> bool:
    """Tell by a file's name whether it is a photo; a texture is none."""
    return f".{name.rpartition('.')[2].lower()}" in PHOTO_SUFFIXES and not name.endswith(TEXTURE)
