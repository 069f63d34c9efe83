"""What is learned from faces, part two: the face decoder, as a training task; `train` runs it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from s2f import augment, face_decoder, face_encoder, layout, losses, neighbours
from s2f.checkpoint import Card, Checkpoint, save
from s2f.drawing import draw_faces, finished, sheet
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.face_dataset import Morphs
from s2f.feed import Item
from s2f.header import check_space
from s2f.registration import FaceData
from s2f.runtime import Progress, silent
from s2f.task import Group

NEIGHBOURS = 10  # that a face is mixed with one of


class FaceDecoderTask:
    """Learn to draw the face of an embedding. Source: Cole et al. 2017."""

    name = "decoder"

    def __init__(
        self,
        data: Path,
        preset: str,
        encoder: Checkpoint,
        start: Checkpoint | None,
        card: Card,
        *,
        device: torch.device,
        morph: float = 0.0,
        no_warp: bool = False,
        progress: Progress = silent,
    ) -> None:
        """Open the data and make the network.

        Args:
            data: folder that holds the trees of train and val.
            preset: shape of the network, one of `face_decoder.CONFIGS`, if there is no start.
            encoder: the face encoder that defines the embedding.
            start: a decoder made for it, to go on from.
            card: of the checkpoint.
            device: that the face encoder computes on.
            morph: probability that a training sample is a morph of two faces, 0..1.
            no_warp: whether the decoder is to draw the face itself and not its texture, as the
                seed's does. A linear start still is that of registered faces, in whose terms the
                embedding is; training bends it.
            progress: told of the photos that are embedded, if there are to be morphs.

        Raises:
            UsageError: if `morph` is no probability.
            DatasetError: as `FaceData`, or if stored embeddings are not of this encoder's length,
                or faces have no neighbours.
            ImageError: if no photo can be read.
            CheckpointError: if the networks do not fit each other or the data.
        """
        if not 0 <= morph <= 1:
            raise UsageError(
                f"--morph {morph}: is no probability", hint="give a number from 0 to 1"
            )
        assert isinstance(encoder.network, face_encoder.FaceEncoder)
        self.encoder, self.space, self.card = encoder.network, encoder.embedding_space, card
        self.encoder.to(device)
        fit = self.encoder.preprocessing.fit
        if start is None:
            config = dataclasses.replace(
                _fitting(preset, encoder), embedding=self.encoder.config.embedding
            )
        else:
            assert isinstance(start.network, face_decoder.FaceDecoder)
            check_space([encoder, start])
            config = start.network.config
        config = dataclasses.replace(config, is_face=config.is_face or no_warp)
        self.data = FaceData(data, config.landmarks, fit, whole=config.is_face)
        if start is None:
            self.network = self.data.new_decoder(config)
        elif config.landmarks != self.data.landmarks:
            raise CheckpointError(
                f"{start.path}: draws {config.landmarks} landmarks; the photos in {data} have "
                f"{self.data.landmarks}",
                hint=f"add NAME{layout.TEMPLATE}, or leave --start out",
            )
        else:
            assert isinstance(start.network, face_decoder.FaceDecoder)
            self.network = start.network.requires_grad_(True)
            self.network.config = config
        self.train_data, self.val_data = self.data.train, self.data.val
        self.settings: dict[str, object] = {
            "preset": preset,
            "photos": len(self.train_data),
            "face_encoder": encoder.sha256,
            "start": start and start.sha256,
        }
        self.settings |= {"morph": morph} if morph else {}
        self.settings |= {"no_warp": True} if no_warp else {}
        if morph:
            self.train_data.morphs = self._morphs(morph, device, progress)
        self.defaults: dict[str, object] = {}
        self.notes = self.data.notes
        self.groups = [Group(list(self.network.parameters()))]
        self.loss_weights = {"landmarks/mse": 0.02, "texture/mae": 10.0, "identity/cosine": 2.0}

    def _morphs(self, probability: float, device: torch.device, progress: Progress) -> Morphs:
        """Find the neighbours of the training photos, by the embeddings of this encoder."""
        faces = self.train_data
        paths = [photo.path for photo in faces.targets]
        found, bad = neighbours.directions(paths, self.encoder, device=device, progress=progress)
        self.data.note("faces are not mixed with", bad)
        readable = found.any(1)
        groups = torch.tensor([faces.identities[photo.identity] for photo in faces.targets])
        groups = torch.where(readable, groups, -1)
        if len(torch.unique(groups[readable])) < 2:
            raise DatasetError(
                f"{paths[0].parents[1]}: its photos that can be read are of one identity: there "
                "are no neighbours to mix faces with",
                hint="add people, or leave --morph out",
            )
        rows = neighbours.nearest(found.to(device), groups.to(device), NEIGHBOURS)
        return Morphs(probability, rows.cpu().numpy())

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        face, target, target_points = self.data.example(batch, self.network)
        faces = self.encoder.resize(face)
        if augmented:
            faces = augment.faces(faces)
        with torch.no_grad():
            embedding = self.encoder(faces).float()
            aim = self.encoder(finished(self.network, target, target_points)).float()
        points, texture = self.network.plain(embedding)
        drawn = self.encoder(finished(self.network, texture, points)).float()
        return {
            "landmarks/mse": losses.landmarks_mse(points, target_points),
            "texture/mae": losses.texture_mae(texture, target),
            "identity/cosine": losses.identity_cosine(drawn, aim),
        }

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        """Do nothing: there is no way in one go."""
        return False

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw photos above their reconstructions, as one picture [3 h w]."""
        self.network.eval()
        _, drawn = draw_faces(self.network, self.encoder(batch["face"]))
        self.network.train()
        return sheet(batch["face"], drawn)

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the network as a checkpoint."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        save(path, self.network, card=card, embedding_space=self.space, storage=storage)


def _fitting(preset: str, encoder: Checkpoint) -> face_decoder.FaceDecoderConfig:
    """The config of a preset, if it can draw from an encoder's embedding."""
    assert isinstance(encoder.network, face_encoder.FaceEncoder)
    given, wanted = encoder.network.config, face_decoder.CONFIGS[preset]
    fits = wanted.embedding == given.embedding
    if wanted.output == "linear" and (given.final_relu or not fits):
        raise CheckpointError(
            f"{encoder.path}: its embedding, {given.embedding} values, is no code that the "
            f"{preset} decoder draws from, of {wanted.embedding}",
            hint=f"train the encoder with --preset {preset} too, or this with paper",
        )
    return wanted
