"""Embeddings of the faces of a tree: read where they stand, made of photos where they do not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2f.console import Progress, silent
from s2f.distributed import ALONE, Ranks
from s2f.errors import CheckpointError, DatasetError, ImageError
from s2f.files import read_array
from s2f.images import Fit, load_face
from s2f.layout import FaceFiles

BATCH = 32  # photos at a time
CHECKED = 8  # photos that are embedded again
TOLERANCE = 0.02  # of an embedding's norm: devices differ by less, face encoders by far more


@dataclass(frozen=True)
class Maker:
    """A face encoder, as what makes embeddings."""

    name: str  # what messages call it
    width: int  # values of an embedding
    fit: Fit  # how it wants photos that are no squares
    embed: Callable[[Tensor], Tensor]  # photos [b 3 224 224] RGB 0..1, b <= `BATCH`, to [b d]
    ranks: Ranks = ALONE  # processes of which each makes its share, and has all

    def of(self, photos: Sequence[Tensor]) -> NDArray[np.float32]:
        """Embed up to `BATCH` photos, each uint8 [3 224 224] RGB, to [b d]."""
        return self.embed(torch.stack(list(photos)) / 255).cpu().numpy()

    def read(self, photos: Sequence[Path]) -> tuple[dict[int, Tensor], dict[int, ImageError]]:
        """Read photos as `of` takes them; give them, and why others cannot be read, by place."""
        read, failed = {}, {}
        for k, photo in enumerate(photos):
            try:
                read[k] = load_face(photo, fit=self.fit)
            except ImageError as error:
                failed[k] = error
        return read, failed


def read_embedding(path: Path, width: int) -> NDArray[np.float32]:
    """Read a stored embedding [d] or [1 d], as [d].

    Raises a `DatasetError` unless it can be read, and is `width` finite floating-point values.
    """
    values, hint = read_array(path), "make it again with s2f prep embeddings"
    if values.shape not in ((width,), (1, width)) or values.dtype.kind != "f":
        found = f"{path}: holds {values.dtype} values {list(values.shape)}"
        wanted = f"wanted an embedding [{width}] of floating-point values"
        raise DatasetError(f"{found}; {wanted}", hint=hint)
    with np.errstate(over="ignore"):  # found on the next line
        embedding = values.reshape(width).astype(np.float32)
    if not np.isfinite(embedding).all():
        raise DatasetError(f"{path}: holds values that are not finite", hint=hint)
    return embedding


def check_embeddings(maker: Maker, paths: Sequence[Path], photo_of: Callable[[Path], Path]) -> None:
    """Raise a `CheckpointError` unless a face encoder made embeddings: some are made again.

    And a `DatasetError` if one cannot be read, an `ImageError` if none of their photos can.
    """
    n = min(CHECKED, len(paths))
    chosen = [paths[k * len(paths) // n] for k in range(n)]
    # A broken photo tells nothing, and is not needed: its embedding stands.
    photos, broken = maker.read([photo_of(path) for path in chosen])
    if not photos and broken:
        raise broken[0]
    made = maker.of(list(photos.values())) if photos else ()
    for k, wanted in zip(photos, made, strict=True):
        found, error = read_array(chosen[k]), float("inf")
        if found.size == wanted.size and found.dtype.kind == "f":
            difference = found.reshape(-1).astype(np.float32) - wanted
            error = float(np.linalg.norm(difference)) / float(np.linalg.norm(wanted))
        if not error <= TOLERANCE:
            differs = f"is not what {maker.name} makes of its photo: they differ by {error:.2g}"
            hint = "give the face encoder that made the embeddings, or make them again"
            raise CheckpointError(f"{chosen[k]}: {differs} of its norm", hint=hint)


class Gallery:
    """Embeddings of some faces of a split's folder, which are of the maker, as rows of a table."""

    def __init__(self, folder: Path, maker: Maker, progress: Progress = silent) -> None:
        self.folder, self.maker, self.progress = folder, maker, progress
        self.n_unchecked = 0  # stored embeddings without a photo to tell who made them
        self._tables = [np.empty((0, maker.width), np.float32)]
        self._rows: dict[FaceFiles, int] = {}

    def add(self, faces: Sequence[FaceFiles]) -> dict[FaceFiles, ImageError]:
        """Read or make the embeddings of faces; give those whose photos cannot be read, and why.

        Raises as `read_embedding` and `check_embeddings`.
        """
        due = [face for face in faces if face not in self._rows]
        start = sum(map(len, self._tables))
        table = np.empty((len(due), self.maker.width), np.float32)
        photos: dict[Path, Path] = {}  # of embeddings that stand
        todo: list[tuple[int, Path]] = []
        for k, face in enumerate(due):
            if face.embedding is None:
                todo.append((k, self.folder / (face.photo or "")))
                continue
            path = self.folder / face.embedding
            table[k] = read_embedding(path, self.maker.width)
            if face.photo is None:
                self.n_unchecked += 1
            else:
                photos[path] = self.folder / face.photo
            self.progress(k, len(due), "reading embeddings")
        check_embeddings(self.maker, list(photos), photos.__getitem__)
        failed: dict[FaceFiles, ImageError] = {}
        ranks = self.maker.ranks
        for done in range(0, len(todo), BATCH * ranks.size):
            self.progress(done, len(todo), "embedding photos")
            own = done + BATCH * ranks.rank
            mine = todo[own : own + BATCH]
            read, broken = self.maker.read([path for _, path in mine])
            made = self.maker.of(list(read.values())) if read else table[:0]
            told = [mine[k][0] for k in read], made, {mine[k][0]: e for k, e in broken.items()}
            for rows, values, errors in ranks.gather(told):
                table[rows] = values
                failed |= {due[row]: error for row, error in errors.items()}
        self._tables.append(table)
        self._rows.update((f, start + k) for k, f in enumerate(due) if f not in failed)
        return failed

    def table(self, faces: Sequence[FaceFiles]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Give all embeddings [m d], and the row of each face; -1 of those it does not have."""
        filled = [table for table in self._tables if len(table)]
        rows = np.array([self._rows.get(face, -1) for face in faces], np.int64)
        return filled[0] if len(filled) == 1 else np.concatenate(filled), rows
