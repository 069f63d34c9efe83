"""What the two tasks on faces share: photos registered to a mean shape, and decoders of that shape.

Both learn from the same photos and start from the same linear model of them, so that the embedding
of the one is what the other draws.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from s2f import face_decoder, layout
from s2f.errors import DatasetError, ImageError
from s2f.face_dataset import Faces
from s2f.feed import Item, Key
from s2f.images import Fit
from s2f.landmarks import TEMPLATE_POINTS, map_68
from s2f.parts import PartsCode
from s2f.warp import warp

START = 700  # photos that a linear start is fitted to
NAMED = 5  # files that a note names


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
        self.train, self.val = (Faces(f, landmarks=k, fit=fit, whole=whole) for f in folders)
        # The embedding is a code of registered faces even where the photos are to be drawn.
        self._start = Faces(folders[0], landmarks=k, fit=fit) if whole else self.train
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
        if config.windows:
            return self.linear_decoder(config).decoder
        decoder = face_decoder.FaceDecoder(self._fitted(config))
        decoder.mean_landmarks.copy_(self.train.mean_landmarks())
        return decoder

    def linear_decoder(self, config: face_decoder.FaceDecoderConfig) -> "Linear":
        """Make a decoder that is the training data's linear model, as `new_decoder`."""
        decoder = face_decoder.FaceDecoder(self._fitted(config))
        textures, landmarks = self._some(self.train.mean_landmarks())
        return Linear(decoder, decoder.start_linear(textures, landmarks), textures)

    def _fitted(self, config: face_decoder.FaceDecoderConfig) -> face_decoder.FaceDecoderConfig:
        config = dataclasses.replace(config, landmarks=self.landmarks)
        if config.landmarks == TEMPLATE_POINTS:
            mean = self.train.mean_landmarks().numpy()
            config = dataclasses.replace(config, landmarks_68=map_68(mean))
        return config

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


def _texture(faces: Faces, drawing: Tensor, landmarks: Tensor, mean_landmarks: Tensor) -> Tensor:
    """Register drawings [b 3 224 224] with landmarks [b k 2], where they are not yet."""
    if faces.registered:
        return drawing
    return warp(drawing, landmarks, mean_landmarks[None]).clamp(0, 1)  # bicubic: it overshoots
