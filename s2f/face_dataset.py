"""Photos of a face tree as a torch Dataset."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from s2f import layout
from s2f.arrays import read_array
from s2f.errors import DatasetError
from s2f.feed import Item, Key
from s2f.images import Fit, load_face
from s2f.landmarks import OF_72


@dataclass(frozen=True)
class Morphs:
    """Which faces are mixed with which, and how often.

    Attributes:
        probability: that an item is a morph, 0..1.
        neighbours: [m q]: rows of `Faces.targets` that each of these is mixed with.
    """

    probability: float
    neighbours: NDArray[np.int64]


class Faces(Dataset[Item]):
    """Photos of a face tree, each with its landmarks and the picture that the decoder draws.

    Attributes:
        registered: whether the drawings are textures, registered to the mean shape by whoever
            made the tree; otherwise they are photos, still to be warped from their landmarks.
        counts: how many of what there is, for people.
        targets: the photos that have landmarks of their own; each photo has those of one.
        morphs: None where items are no morphs.
    """

    def __init__(
        self, folder: Path, *, landmarks: int, fit: Fit = "squash", whole: bool = False
    ) -> None:
        """List the tree.

        Args:
            folder: of one split.
            landmarks: points a photo: 68, the seed's 72, which follow from the 68, or those of
                the template.
            fit: how the face encoder wants photos that are no squares, as for `load_face`. Only
                `face` follows it: landmarks and drawings are of the squashed photo.
            whole: whether the drawings are the photos even where there are textures.

        Raises:
            DatasetError: as `layout.photos`, or if some photos have textures and some have none.
        """
        self.photos = layout.photos(folder)
        self.landmarks, self.fit = landmarks, fit
        self.suffix = layout.LANDMARKS if landmarks in (68, 72) else layout.TEMPLATE
        stems = list(dict.fromkeys(photo.target for photo in self.photos))
        have = [not whole and layout.beside(stem, layout.TEXTURE).is_file() for stem in stems]
        self.registered = all(have)
        if any(have) and not self.registered:
            raise DatasetError(
                f"{folder}: {stems[have.index(False)].name} has no NAME{layout.TEXTURE} and "
                f"{stems[have.index(True)].name} has one",
                hint="remove the textures, or make all",
            )
        own = {photo.path.with_suffix(""): photo for photo in self.photos}
        self.targets = [own[stem] for stem in stems]
        self._row = {stem: row for row, stem in enumerate(stems)}
        names = sorted({photo.identity for photo in self.photos})
        self.identities = {name: index for index, name in enumerate(names)}
        self.counts = {"identities": len(names)}
        self.morphs: Morphs | None = None

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: Key) -> Item:
        """Read a photo.

        Returns:
            `face` and `drawing`, uint8 [3 224 224], `landmarks` [k 2], `identity` [], and `own`
            [], whether the landmarks are the photo's own. If there are morphs also
            `other_drawing`, `other_landmarks` and `mix` [2], 0..1: the other's share in the shape
            and in the texture. Both are 0 for an item that is no morph.

        Raises:
            ImageError: if a picture cannot be read.
            DatasetError: if the landmarks are missing or are not k points.
        """
        photo = self.photos[key.item]
        row = self._row[photo.target]
        item = {
            "face": load_face(photo.path, fit=self.fit),
            "drawing": self._drawing(row),
            "landmarks": torch.from_numpy(self.points(row)),
            "identity": torch.tensor(self.identities[photo.identity]),
            "own": torch.tensor(photo.path.with_suffix("") == photo.target),
        }
        if self.morphs is None:
            return item
        drawn = random.Random(f"morph {key.seed}")
        if drawn.random() >= self.morphs.probability:
            other, points, mix = item["drawing"], item["landmarks"], (0.0, 0.0)
        else:
            near = int(drawn.choice(self.morphs.neighbours[row]))
            other, points = self._drawing(near), torch.from_numpy(self.points(near))
            mix = drawn.random(), drawn.random()
        return item | {"other_drawing": other, "other_landmarks": points, "mix": torch.tensor(mix)}

    def name(self, index: int) -> str:
        """Name the photo of an item."""
        return str(self.photos[index].path)

    def _drawing(self, row: int) -> Tensor:
        photo = self.targets[row]
        if not self.registered:
            return load_face(photo.path)
        return load_face(layout.beside(photo.target, layout.TEXTURE))

    def points(self, row: int) -> NDArray[np.float32]:
        """Read the landmarks [k 2] of a target.

        Raises:
            DatasetError: if they are missing or are not k points.
        """
        path = layout.beside(self.targets[row].target, self.suffix)
        found = read_array(path)
        k = 68 if self.landmarks == 72 else self.landmarks
        numbers = found.dtype.kind in "fiu" and np.isfinite(found).all()
        if found.shape != (k, 2) or not numbers:
            raise DatasetError(
                f"{path}: holds an array {list(found.shape)} of {found.dtype}; wanted {[k, 2]} "
                "finite values",
                hint="make the landmarks again",
            )
        points = found.astype(np.float32)
        return points[list(OF_72)] if self.landmarks == 72 else points

    def mean_landmarks(self) -> Tensor:
        """Average the landmarks of all targets, [k 2]: the shape that textures are drawn in."""
        rows = range(len(self.targets))
        return torch.from_numpy(np.mean([self.points(row) for row in rows], axis=0))
