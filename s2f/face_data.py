"""Photos of a face tree: as a torch Dataset, as faces that look alike, and registered.

`FaceDataset` reads a photo with its landmarks and what a decoder is to draw of it, and another
face to mix it with: one that looks alike, as `find_neighbours` finds by embeddings. `FaceData`
holds the photos of both splits, registers them to the mean shape, mixes morphs, and makes decoders
that start at their linear model: all tasks on faces start from the same one, so that the embedding
of the face encoder is what the decoder draws.
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from s2f import layout
from s2f.appearance_model import PartsCode
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key
from s2f.embeddings import Gallery, Maker
from s2f.errors import DatasetError, ImageError
from s2f.face_decoder import FaceDecoder, FaceDecoderConfig
from s2f.files import read_array
from s2f.images import Fit, load_face
from s2f.landmarks import OF_72, TEMPLATE_POINTS, map_68
from s2f.layout import FaceFiles
from s2f.warp import warp

NEIGHBOURS = 10  # that a face is mixed with one of
CELLS = 2**24  # cosines held at a time
START = 700  # photos that a linear start is fitted to
NAMED = 5  # files that a note names


@dataclass(frozen=True)
class Morphs:
    """How often an item is a morph, 0..1, and with which targets [m q] each of these is mixed."""

    probability: float
    neighbours: NDArray[np.int64]


class FaceDataset(Dataset[Item]):
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
            fit: how the face encoder wants photos that are no squares. Only `face` follows it:
                landmarks and drawings are of the squashed photo.
            whole: whether the drawings are the photos even where there are textures.

        Raises:
            DatasetError: as `layout.photos`, or if some photos have textures and some have none.
        """
        self.folder, self.photos = folder, layout.photos(folder)
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
        texture = layout.beside(photo.target, layout.TEXTURE)
        return load_face(texture if self.registered else photo.path)

    def points(self, row: int) -> NDArray[np.float32]:
        """Read the landmarks [k 2] of a target.

        Raises:
            DatasetError: if they are missing or are not k points.
        """
        path = layout.beside(self.targets[row].target, self.suffix)
        found = read_array(path)
        k = 68 if self.landmarks == 72 else self.landmarks
        if found.shape != (k, 2) or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
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


def find_neighbours(
    faces: FaceDataset, maker: Maker, *, device: torch.device, progress: Progress = silent
) -> tuple[NDArray[np.int64], list[ImageError]]:
    """Find the photos that look like each target of a tree, by the embeddings of a face encoder.

    Returns:
        Rows of the targets of other people [m q], the nearest first, and why photos that cannot
        be read are nobody's neighbours.

    Raises:
        DatasetError: if those that can be read are of one person, or as `Gallery.add`.
        CheckpointError, ImageError: as `Gallery.add`.
    """
    gallery, files = Gallery(faces.folder, maker, progress), []
    for photo in faces.targets:
        path = photo.path.relative_to(faces.folder).as_posix()
        stored = layout.renamed(path, layout.EMBEDDING)
        files.append(FaceFiles(path, path, stored if (faces.folder / stored).is_file() else None))
    failed = gallery.add(files)
    table, rows = gallery.table(files)
    directions = functional.normalize(torch.from_numpy(table[rows]), dim=1)
    groups = torch.tensor([faces.identities[photo.identity] for photo in faces.targets])
    unreadable = torch.from_numpy(rows < 0)
    directions[unreadable], groups[unreadable] = 0.0, -1
    if len(torch.unique(groups[~unreadable])) < 2:
        raise DatasetError(
            f"{faces.folder}: its photos that can be read are of one identity: there are no "
            "neighbours to mix faces with",
            hint="add people, or leave --morph out",
        )
    near = nearest(directions.to(device), groups.to(device), NEIGHBOURS)
    return near.cpu().numpy(), list(failed.values())


def nearest(directions: Tensor, groups: Tensor, k: int, *, cells: int = CELLS) -> Tensor:
    """Find for each row the k rows of other groups with the largest cosines, the nearest first.

    Args:
        directions: rows of length 1, [n d].
        groups: [n] int64; a row with a negative one is nobody's neighbour.
        k: how many, where there are as many rows outside the largest group.
        cells: cosines held at a time.
    """
    sizes = torch.bincount(groups[groups >= 0])
    k = min(k, int(sizes.sum() - sizes.max()))
    rows = max(1, cells // len(groups))
    found = []
    for part, own in zip(torch.split(directions, rows), torch.split(groups, rows), strict=True):
        cosines = part @ directions.T
        cosines.masked_fill_((own[:, None] == groups) | (groups < 0), -torch.inf)
        found.append(cosines.topk(k, dim=1).indices)
    return torch.cat(found)


class Example(NamedTuple):
    """What is learned from: RGB 0..1 [b 3 224 224] and landmarks [b k 2].

    `face` is what the face encoder sees, `drawing` the registered texture, or the face where the
    decoder draws that.
    """

    face: Tensor
    drawing: Tensor
    landmarks: Tensor


class Linear(NamedTuple):
    """A decoder that draws a linear model, its code, and the textures [n 3 224 224] it is of."""

    decoder: FaceDecoder
    code: PartsCode
    textures: Tensor


class FaceData:
    """The photos of both splits, and drawings registered to the mean shape.

    Attributes:
        landmarks: points a photo. 68 where a decoder would predict the dense template and the data
            have none.
        notes: what people should know of them.
    """

    def __init__(self, data: Path, k: int, fit: Fit, *, whole: bool = False) -> None:
        """Open the trees of train and val.

        Args:
            data: folder that holds them.
            k: landmarks that the decoder predicts.
            fit: how the face encoder wants photos that are no squares.
            whole: whether photos are to be drawn as they are, even where there are textures.

        Raises:
            DatasetError: as `FaceDataset`, or if there is one person only to learn from.
        """
        folders = [layout.split(data, split) for split in ("train", "val")]
        first = layout.photos(folders[0])[0]
        if k == TEMPLATE_POINTS and not layout.beside(first.target, layout.TEMPLATE).is_file():
            k = 68
        self.landmarks = k
        self.train, self.val = (FaceDataset(f, landmarks=k, fit=fit, whole=whole) for f in folders)
        # The embedding is a code of registered faces even where the photos are to be drawn.
        self._start = FaceDataset(folders[0], landmarks=k, fit=fit) if whole else self.train
        self.notes: list[str] = []
        if len(self.train.identities) < 2:
            raise DatasetError(
                f"{folders[0]}: has one identity: there is nothing to tell apart",
                hint="wanted photos of two people at least, IDENTITY/NAME.jpg",
            )
        if self.train.registered != self.val.registered:
            raise DatasetError(
                f"{data}: some photos have a {layout.TEXTURE} beside them and some have none",
                hint="remove them, or make all",
            )

    @torch.no_grad()
    def example(self, batch: Item, decoder: FaceDecoder) -> Example:
        """Make what a decoder learns from a batch, its morphs mixed.

        A morph is a face drawn anew: two registered textures and two sets of landmarks, mixed, and
        the one warped to the other. It has what surrounds the faces in their drawings, and is
        of the squashed photo whatever the encoder wants.

        Source: Cole et al. 2017 (morphing of faces as data augmentation). That shape and texture
        are mixed each with a weight of its own is ours.
        """
        mean, is_face = decoder.mean_landmarks, decoder.config.is_face
        face, drawing, landmarks = (batch[name] for name in Example._fields)
        if is_face and "mix" not in batch:
            return Example(face, drawing, landmarks)
        texture = _texture(self.train, drawing, landmarks, mean)
        if "mix" not in batch:
            return Example(face, texture, landmarks)
        other, other_landmarks = batch["other_drawing"], batch["other_landmarks"]
        in_shape, in_texture = batch["mix"].T[:, :, None, None]
        other = _texture(self.train, other, other_landmarks, mean)
        texture = torch.lerp(texture, other, in_texture[..., None])
        landmarks = torch.lerp(landmarks, other_landmarks, in_shape)
        morph = warp(texture, mean[None], landmarks).clamp(0, 1)
        is_morph = batch["mix"].any(1)[:, None, None, None]
        drawing = torch.where(is_morph, morph, drawing) if is_face else texture
        return Example(torch.where(is_morph, morph, face), drawing, landmarks)

    def new_decoder(self, config: FaceDecoderConfig) -> FaceDecoder:
        """Make a decoder that starts at the training data's linear model, or at its mean shape.

        Args:
            config: its shape; the number of landmarks and their map follow the data.

        Raises:
            ImageError: if none of the photos that it starts from can be read.
            DatasetError: if landmarks cannot be read.
        """
        return self.linear_decoder(config).decoder if config.windows else self._decoder(config)

    def _decoder(self, config: FaceDecoderConfig) -> FaceDecoder:
        mean = self.train.mean_landmarks()
        config = dataclasses.replace(config, landmarks=self.landmarks)
        if self.landmarks == TEMPLATE_POINTS:
            config = dataclasses.replace(config, landmarks_68=map_68(mean.numpy()))
        decoder = FaceDecoder(config)
        decoder.mean_landmarks.copy_(mean)
        return decoder

    def linear_decoder(self, config: FaceDecoderConfig) -> Linear:
        """Make a decoder that is the linear model of up to `START` photos, as `new_decoder`."""
        decoder = self._decoder(config)
        n = len(self._start)
        textures, landmarks, bad = [], [], []
        for i in range(0, n, -(-n // START)):
            try:
                item = self._start[Key(i, i)]
            except ImageError as error:
                bad.append(error)
                continue
            drawing, points = item["drawing"][None] / 255, item["landmarks"][None]
            textures.append(_texture(self._start, drawing, points, decoder.mean_landmarks))
            landmarks.append(points)
        if not textures:
            raise bad[0]
        self.note("the linear start leaves out", bad)
        together = torch.cat(textures)
        return Linear(decoder, decoder.start_linear(together, torch.cat(landmarks)), together)

    def note(self, what: str, bad: Sequence[ImageError]) -> None:
        """Note photos that could not be read, if there are any."""
        if bad:
            more = f", and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            reasons = "; ".join(error.message for error in bad[:NAMED])
            self.notes.append(f"{what} {len(bad)} photos: {reasons}{more}")


def _texture(faces: FaceDataset, drawing: Tensor, landmarks: Tensor, mean: Tensor) -> Tensor:
    """Register drawings [b 3 224 224] to the mean shape, where they are not yet."""
    if faces.registered:
        return drawing
    return warp(drawing, landmarks, mean[None]).clamp(0, 1)  # bicubic: it overshoots
