"""Photos of a face tree: as a torch Dataset, mixed with faces that look alike, and registered.

`FaceDataset` reads a photo with its landmarks and what a decoder is to draw of it, and another face
to mix it with. `FaceData` holds the photos of both splits, registers them to the mean shape, mixes
morphs, and starts decoders at their linear model: all tasks on faces start from the same one, so
that the embedding of the face encoder is what the decoder draws.
"""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from s2f import layout
from s2f.appearance_model import PartsCode, PartsEncoder, before_ground
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key
from s2f.embeddings import Gallery, Maker
from s2f.errors import DatasetError, ImageError, together
from s2f.face_decoder import FaceDecoder, FaceDecoderConfig
from s2f.images import Fit, load_face
from s2f.landmarks import (
    OF_72,
    TEMPLATE_POINTS,
    map_68,
    place,
    read_landmarks,
    refuse_larger_frame,
)
from s2f.layout import FaceFiles
from s2f.warp import warp

NEIGHBOURS = 10  # that a face is mixed with one of
CELLS = 2**24  # cosines held at a time
START = 700  # photos that a linear start is fitted to
NAMED = 5  # files that a note names


class FaceDataset(Dataset[Item]):
    """Photos of a face tree, each with its landmarks and the picture that the decoder draws."""

    share = 0.0  # of items that are morphs
    neighbours: NDArray[np.int64]  # [m q], targets that each target is mixed with

    def __init__(
        self,
        folder: Path,
        *,
        landmarks: int,
        fit: Fit = "squash",
        whole: bool = False,
        opacity: bool = False,
    ) -> None:
        """List the tree of one split.

        A photo has 68 landmarks, the seed's 72, which follow from them, or those of the template.
        The face encoder wants photos that are no squares to `fit`; landmarks and drawings are of
        the squashed photo. Drawings are the textures that whoever made the tree has registered to
        the mean shape; where there are none, or with `whole`, the photos. A texture's opacity, if
        there is one, is its fourth channel with `opacity`, and else it stands before the ground.
        Raises a DatasetError if only some photos have textures or opacities, or as `layout.photos`.
        """
        self.folder, self.photos = folder, layout.photos(folder)
        self.landmarks, self.fit = landmarks, fit
        self.suffix = layout.LANDMARKS if landmarks in (68, 72) else layout.TEMPLATE
        stems = list(dict.fromkeys(photo.target for photo in self.photos))
        self.registered = not whole and self._all_have(layout.TEXTURE, stems)
        self.cut_out = self.registered and self._all_have(layout.OPACITY, stems)
        self.opacity = opacity and self.cut_out
        own = {photo.path.with_suffix(""): photo for photo in self.photos}
        self.targets = [own[stem] for stem in stems]  # the photos that have landmarks of their own
        self._row = {stem: row for row, stem in enumerate(stems)}
        names = sorted({photo.identity for photo in self.photos})
        self.identities = {name: index for index, name in enumerate(names)}
        self.counts = {"identities": len(names)}

    def _all_have(self, suffix: str, stems: list[Path]) -> bool:
        have = [layout.beside(stem, suffix).is_file() for stem in stems]
        if any(have) and not all(have):
            raise DatasetError(
                f"{self.folder}: {stems[have.index(False)].name} has no NAME{suffix} and "
                f"{stems[have.index(True)].name} has one",
                hint="remove them, or make all",
            )
        return all(have)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: Key) -> Item:
        """Read a photo.

        Gives `face` uint8 [3 224 224], `drawing` [c 224 224], c 4 with its opacity, `landmarks`
        [k 2], `identity` [], and `own` [], whether the landmarks are the photo's own. If there are
        morphs also `other_drawing`, `other_landmarks` and `mix` [2], 0..1: the other's share in the
        shape and in the texture, 0 for an item that is no morph. Raises an ImageError if a picture
        cannot be read, or as `points`.
        """
        photo = self.photos[key.item]
        row = self._row[photo.target]
        item = {
            "face": load_face(photo.path, fit=self.fit),
            "drawing": self._drawing(row),
            "landmarks": self.points(row),
            "identity": torch.tensor(self.identities[photo.identity]),
            "own": torch.tensor(photo.path.with_suffix("") == photo.target),
        }
        if not self.share:
            return item
        drawn = random.Random(f"morph {key.seed}")
        if drawn.random() >= self.share:
            other, points, mix = item["drawing"], item["landmarks"], (0.0, 0.0)
        else:
            near = int(drawn.choice(self.neighbours[row]))
            other, points = self._drawing(near), self.points(near)
            mix = drawn.random(), drawn.random()
        return item | {"other_drawing": other, "other_landmarks": points, "mix": torch.tensor(mix)}

    def name(self, index: int) -> str:
        """Name the photo of an item."""
        return str(self.photos[index].path)

    def _drawing(self, row: int) -> Tensor:
        photo = self.targets[row]
        texture = layout.beside(photo.target, layout.TEXTURE)
        drawing = load_face(texture if self.registered else photo.path)
        if not self.cut_out:
            return drawing
        channel = load_face(layout.beside(photo.target, layout.OPACITY))[:1]
        whole = torch.cat([drawing, channel])
        return whole if self.opacity else (before_ground(whole[None] / 255)[0] * 255).round().byte()

    def points(self, row: int) -> Tensor:
        """Read the landmarks [k 2] of a target, xy pixels of the photo squashed to 224 x 224.

        Raises a DatasetError if they are no k points, or none of a face.
        """
        path = layout.beside(self.targets[row].target, self.suffix)
        found = read_landmarks(path, 68 if self.landmarks == 72 else self.landmarks)
        points = torch.from_numpy(found)
        return points[list(OF_72)] if self.landmarks == 72 else points

    def broken_landmarks(self) -> list[DatasetError]:
        """Look at the landmarks of all targets; give why some, or all together, cannot be used."""
        found: list[DatasetError] = []
        places = []
        for row in range(len(self.targets)):
            try:
                places.append(place(self.points(row).numpy()))
            except DatasetError as error:
                found.append(error)
        try:
            refuse_larger_frame(self.folder, places)
        except DatasetError as error:
            found.append(error)
        return found

    def mean_landmarks(self) -> Tensor:
        """Average the landmarks of all targets, [k 2]: the shape that textures are drawn in."""
        return torch.stack([self.points(row) for row in range(len(self.targets))]).mean(0)

    def texture(self, drawings: Tensor, landmarks: Tensor, mean: Tensor) -> Tensor:
        """Register drawings [b c 224 224] to the mean shape [k 2], where they are not yet."""
        if self.registered:
            return drawings
        return warp(drawings, landmarks, mean[None]).clamp(0, 1)  # bicubic: it overshoots

    def mix(
        self, share: float, maker: Maker, *, device: torch.device, progress: Progress = silent
    ) -> list[ImageError]:
        """Make a share of the items morphs, each with a face of another person that looks alike.

        Which look alike is found by the embeddings of a face encoder. Returns why photos that
        cannot be read are nobody's neighbours; raises a DatasetError if the others are of one
        person, or as `Gallery.add`.
        """
        gallery, files = Gallery(self.folder, maker, progress), []
        for photo in self.targets:
            path = photo.path.relative_to(self.folder).as_posix()
            stored = layout.renamed(path, layout.EMBEDDING)
            there = (self.folder / stored).is_file()
            files.append(FaceFiles(path, path, stored if there else None))
        failed = gallery.add(files)
        table, rows = gallery.table(files)
        directions = functional.normalize(torch.from_numpy(table[rows]), dim=1)
        groups = torch.tensor([self.identities[photo.identity] for photo in self.targets])
        unreadable = torch.from_numpy(rows < 0)
        directions[unreadable], groups[unreadable] = 0.0, -1
        if len(torch.unique(groups[~unreadable])) < 2:
            message = f"{self.folder}: its photos that can be read are of one identity: there are"
            hint = "add people, or leave --morph out"
            raise DatasetError(f"{message} no neighbours to mix faces with", hint=hint)
        near = nearest(directions.to(device), groups.to(device), NEIGHBOURS)
        self.share, self.neighbours = share, near.cpu().numpy()
        return list(failed.values())


def nearest(directions: Tensor, groups: Tensor, k: int, *, cells: int = CELLS) -> Tensor:
    """Find for each row [n d] of length 1 the k rows of other groups with the largest cosines.

    The nearest come first; there are fewer where fewer rows lie outside the largest group. A row
    whose group [n], int64, is negative is nobody's neighbour. Holds `cells` cosines at a time.
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


class FaceData:
    """The photos of both splits, and drawings registered to the mean shape."""

    def __init__(
        self, data: Path, k: int, fit: Fit, *, whole: bool = False, opacity: bool = False
    ) -> None:
        """Open the trees of train and val for a decoder that predicts k landmarks.

        Of the dense template's the data may have none: then it is to predict 68. The rest is as for
        `FaceDataset`. Raises a DatasetError as that, if there is one person only, or if landmarks
        of either cannot be used: it names all of these.
        """
        folders = [layout.split(data, split) for split in ("train", "val")]
        first = layout.photos(folders[0])[0]
        if k == TEMPLATE_POINTS and not layout.beside(first.target, layout.TEMPLATE).is_file():
            k = 68
        self.landmarks = k
        how: dict[str, Any] = {"landmarks": k, "fit": fit, "opacity": opacity}
        self.train, self.val = (FaceDataset(f, whole=whole, **how) for f in folders)
        # The embedding is a code of registered faces even where the photos are to be drawn.
        self._start = FaceDataset(folders[0], **how) if whole else self.train
        self.notes: list[str] = []  # what people should know of them
        if len(self.train.identities) < 2:
            message = f"{folders[0]}: has one identity: there is nothing to tell apart"
            hint = "wanted photos of two people at least, IDENTITY/NAME.jpg"
            raise DatasetError(message, hint=hint)
        broken = [error for split in (self.train, self.val) for error in split.broken_landmarks()]
        if broken:
            n = len(self.train.targets) + len(self.val.targets)
            raise together(f"{data}: of {n} files of landmarks", broken)
        if self.train.registered != self.val.registered:
            message = f"{data}: some photos have a {layout.TEXTURE} beside them and some have none"
            raise DatasetError(message, hint="remove them, or make all")

    @torch.no_grad()
    def example(self, batch: Item, decoder: FaceDecoder) -> tuple[Tensor, Tensor, Tensor]:
        """Make what a decoder learns from: face and drawing [b c 224 224], landmarks [b k 2].

        The face is what the face encoder sees, the drawing the registered texture, or the face
        where the decoder draws that. A morph is a face drawn anew: two registered textures and two
        sets of landmarks, mixed, and the one warped to the other. It has what surrounds the faces
        in their drawings, and is of the squashed photo whatever the encoder wants.

        Source: Cole et al. 2017 (morphing of faces as data augmentation). That shape and texture
        are mixed each with a weight of its own is ours.
        """
        mean, is_face = decoder.mean_landmarks, decoder.config.is_face
        face, drawing, landmarks = batch["face"], batch["drawing"], batch["landmarks"]
        if is_face and "mix" not in batch:
            return face, drawing, landmarks
        texture = self.train.texture(drawing, landmarks, mean)
        if "mix" not in batch:
            return face, texture, landmarks
        other, other_landmarks = batch["other_drawing"], batch["other_landmarks"]
        in_shape, in_texture = batch["mix"].T[:, :, None, None]
        other = self.train.texture(other, other_landmarks, mean)
        texture = torch.lerp(texture, other, in_texture[..., None])
        landmarks = torch.lerp(landmarks, other_landmarks, in_shape)
        morph = before_ground(warp(texture, mean[None], landmarks)).clamp(0, 1)
        is_morph = batch["mix"].any(1)[:, None, None, None]
        drawing = torch.where(is_morph, morph, drawing) if is_face else texture
        return torch.where(is_morph, morph, face), drawing, landmarks

    def new_decoder(self, config: FaceDecoderConfig) -> FaceDecoder:
        """Make a decoder of as many landmarks as the data have, at their mean shape."""
        mean = self.train.mean_landmarks()
        opacity = config.opacity and self._start.opacity
        config = dataclasses.replace(config, landmarks=self.landmarks, opacity=opacity)
        if self.landmarks == TEMPLATE_POINTS:
            config = dataclasses.replace(config, landmarks_68=map_68(mean.numpy()))
        decoder = FaceDecoder(config)
        decoder.mean_landmarks.copy_(mean)
        return decoder

    def start_linear(
        self, decoder: FaceDecoder, encoder: PartsEncoder | None = None
    ) -> tuple[PartsCode, Tensor]:
        """Make a new decoder the linear model of up to `START` photos.

        Where the embedding of the `encoder` is the code of other faces, what is drawn from it is
        solved for. Returns the code of these, and the textures [n c 224 224] that it is of. Raises
        an ImageError if none of the photos can be read.
        """
        n = len(self._start)
        faces: list[Tensor] = []
        textures, landmarks, bad = [], [], []
        for i in range(0, n, -(-n // START)):
            try:
                item = self._start[Key(i, i)]
            except ImageError as error:
                bad.append(error)
                continue
            drawing, points = item["drawing"][None] / 255, item["landmarks"][None]
            textures.append(self._start.texture(drawing, points, decoder.mean_landmarks))
            landmarks.append(points)
            faces.append(item["face"])
        if not textures:
            raise bad[0]
        self.note("the linear start leaves out", bad)
        drawn, shapes = torch.cat(textures), torch.cat(landmarks)
        code = decoder.start_linear(drawn, shapes)
        if encoder is not None and not encoder.reads(code):
            device = encoder.reading.device
            embedded = [encoder.one_by_one(face[None].to(device) / 255).cpu() for face in faces]
            decoder.draw_from(torch.cat(embedded), drawn, shapes)
        return code, drawn

    def note(self, what: str, bad: Sequence[ImageError]) -> None:
        """Note photos that could not be read, if there are any."""
        if bad:
            more = f", and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            reasons = "; ".join(error.message for error in bad[:NAMED])
            self.notes.append(f"{what} {len(bad)} photos: {reasons}{more}")
