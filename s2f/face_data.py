"""Photos of a face tree: as a torch Dataset, as faces that look alike, and registered.

`FaceDataset` reads a photo with its landmarks and what a decoder is to draw of it. Of photos that
look alike (`find_neighbours`) it gives pairs to be mixed. `FaceData` holds the photos of both
splits, registers them to the mean shape, mixes morphs, and makes decoders that start at their
linear model: all tasks on faces start from the same one, so that the embedding of the face encoder
is what the decoder draws.
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

from s2f import face_decoder, layout
from s2f.appearance_model import PartsCode
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key
from s2f.embeddings import Gallery, Maker
from s2f.errors import DatasetError, ImageError
from s2f.files import read_array
from s2f.images import Fit, load_face
from s2f.landmarks import OF_72, TEMPLATE_POINTS, map_68
from s2f.layout import FaceFiles, PhotoFiles
from s2f.warp import warp

NEIGHBOURS = 10  # that a face is mixed with one of
CELLS = 2**24  # cosines held at a time
START = 700  # photos that a linear start is fitted to
NAMED = 5  # files that a note names


@dataclass(frozen=True)
class Morphs:
    """Which faces are mixed with which, and how often.

    Attributes:
        probability: that an item is a morph, 0..1.
        neighbours: [m q]: rows of `FaceDataset.targets` that each of these is mixed with.
    """

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
            fit: how the face encoder wants photos that are no squares, as for `load_face`. Only
                `face` follows it: landmarks and drawings are of the squashed photo.
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


def find_neighbours(
    faces: FaceDataset, maker: Maker, *, device: torch.device, progress: Progress = silent
) -> tuple[NDArray[np.int64], list[ImageError]]:
    """Find the photos that look like each photo of a tree, by the embeddings of a face encoder.

    Args:
        faces: whose targets are compared, each with those of all other people.
        maker: the face encoder, of which the embeddings beside the photos have to be.
        device: to compare on.
        progress: told of photos.

    Returns:
        Rows of the targets [m q], the nearest first, and why photos that cannot be read are
        nobody's neighbours.

    Raises:
        DatasetError: if those that can be read are of one person, or as `Gallery.add`.
        CheckpointError, ImageError: as `Gallery.add`.
    """
    gallery = Gallery(faces.folder, maker, progress)
    targets = [_face_files(photo, faces.folder) for photo in faces.targets]
    failed = gallery.add(targets)
    table, rows = gallery.table(targets)
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


def _face_files(photo: PhotoFiles, folder: Path) -> FaceFiles:
    path = photo.path.relative_to(folder).as_posix()
    embedding = layout.renamed(path, layout.EMBEDDING)
    return FaceFiles(path, path, embedding if (folder / embedding).is_file() else None)


@torch.no_grad()
def nearest(directions: Tensor, groups: Tensor, k: int, *, cells: int = CELLS) -> Tensor:
    """Find for each row the rows of other groups with the largest cosines.

    Args:
        directions: rows of length 1, [n d].
        groups: [n] int64; a row with a negative one is nobody's neighbour.
        k: how many, where there are as many rows outside the largest group.
        cells: cosines held at a time.

    Returns:
        Rows [n k], the nearest first.
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
    """What is learned from: faces, and how they are to be drawn.

    Attributes:
        face: what the face encoder sees, [b 3 224 224] RGB 0..1.
        drawing: registered textures, or the faces where the decoder draws these, [b 3 224 224].
        landmarks: [b k 2].
    """

    face: Tensor
    drawing: Tensor
    landmarks: Tensor


class Linear(NamedTuple):
    """A linear model of registered faces.

    Attributes:
        decoder: that draws it.
        code: that it draws from.
        textures: it was found from, [n 3 224 224].
    """

    decoder: face_decoder.FaceDecoder
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
        """Open the data.

        Args:
            data: folder that holds the trees of train and val.
            k: landmarks that the decoder predicts.
            fit: how the face encoder wants photos that are no squares.
            whole: whether photos are to be drawn as they are, even where there are textures.

        Raises:
            DatasetError: as `Faces`, or if there is one person only to learn from.
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
    def example(self, batch: Item, decoder: face_decoder.FaceDecoder) -> Example:
        """Make what a decoder learns from a batch, its morphs mixed.

        A morph is a face drawn anew: two registered textures and two sets of landmarks, mixed, and
        the one warped to the other. It has what surrounds the faces in their drawings, and is
        of the squashed photo whatever the encoder wants.

        Source: Cole et al. 2017 (morphing of faces as data augmentation). That shape and texture
        are mixed each with a weight of its own is ours.
        """
        mean, is_face = decoder.mean_landmarks, decoder.config.is_face
        face, drawing, landmarks = (batch[name] for name in Example._fields)
        if "mix" not in batch:
            if not is_face:
                drawing = _texture(self.train, drawing, landmarks, mean)
            return Example(face, drawing, landmarks)
        other, other_landmarks = batch["other_drawing"], batch["other_landmarks"]
        in_shape, in_texture = batch["mix"].T
        texture = torch.lerp(
            _texture(self.train, drawing, landmarks, mean),
            _texture(self.train, other, other_landmarks, mean),
            in_texture[:, None, None, None],
        )
        landmarks = torch.lerp(landmarks, other_landmarks, in_shape[:, None, None])
        morph = warp(texture, mean[None], landmarks).clamp(0, 1)
        is_morph = batch["mix"].any(1)[:, None, None, None]
        face = torch.where(is_morph, morph, face)
        return Example(
            face, torch.where(is_morph, morph, drawing) if is_face else texture, landmarks
        )

    def new_decoder(self, config: face_decoder.FaceDecoderConfig) -> face_decoder.FaceDecoder:
        """Make a decoder that starts at the training data's linear model, or at its mean shape.

        Args:
            config: its shape; the number of landmarks and their map follow the data.

        Raises:
            ImageError: if none of the photos that it starts from can be read.
            DatasetError: if landmarks cannot be read.
        """
        return self.linear_decoder(config).decoder if config.windows else self._decoder(config)

    def linear_decoder(self, config: face_decoder.FaceDecoderConfig) -> Linear:
        """Make a decoder that is the training data's linear model, as `new_decoder`."""
        decoder = self._decoder(config)
        textures, landmarks = self._some(decoder.mean_landmarks)
        return Linear(decoder, decoder.start_linear(textures, landmarks), textures)

    def _decoder(self, config: face_decoder.FaceDecoderConfig) -> face_decoder.FaceDecoder:
        mean = self.train.mean_landmarks()
        config = dataclasses.replace(config, landmarks=self.landmarks)
        if self.landmarks == TEMPLATE_POINTS:
            config = dataclasses.replace(config, landmarks_68=map_68(mean.numpy()))
        decoder = face_decoder.FaceDecoder(config)
        decoder.mean_landmarks.copy_(mean)
        return decoder

    def _some(self, mean_landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """Registered textures [n 3 224 224] and landmarks [n k 2] of up to `START` photos."""
        faces, n = self._start, len(self._start)
        textures, landmarks, bad = [], [], []
        for i in range(0, n, -(-n // START)):
            try:
                item = faces[Key(i, i)]
            except ImageError as error:
                bad.append(error)
                continue
            points = item["landmarks"][None]
            drawing = item["drawing"][None] / 255
            textures.append(_texture(faces, drawing, points, mean_landmarks))
            landmarks.append(points)
        if not textures:
            raise bad[0]
        self.note("the linear start leaves out", bad)
        return torch.cat(textures), torch.cat(landmarks)

    def note(self, what: str, bad: Sequence[ImageError]) -> None:
        """Note photos that could not be read, if there are any."""
        if bad:
            more = f", and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            reasons = "; ".join(error.message for error in bad[:NAMED])
            self.notes.append(f"{what} {len(bad)} photos: {reasons}{more}")


def _texture(
    faces: FaceDataset, drawing: Tensor, landmarks: Tensor, mean_landmarks: Tensor
) -> Tensor:
    """Register drawings [b 3 224 224] with landmarks [b k 2], where they are not yet."""
    if faces.registered:
        return drawing
    return warp(drawing, landmarks, mean_landmarks[None]).clamp(0, 1)  # bicubic: it overshoots
