"""What is learned from faces, part one: the face encoder, as a training task; `train` runs it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from s2f import augment, face_decoder, face_encoder, losses
from s2f.checkpoint import Card, save
from s2f.drawing import draw_faces, sheet
from s2f.feed import Item
from s2f.preprocessing import PREPROCESSING
from s2f.registration import FaceData
from s2f.task import Group


class FaceEncoderTask:
    """Learn an embedding that a decoder can draw from: any photo of a person to their one face.

    Every photo (smiling, turned, dim, blurred) is to give the landmarks and the registered
    texture of the identity's first photo, so the photos of one person have to land close. The
    decoder that learns with it is saved beside it, for `train decoder` to start from.
    """

    name = "encoder"

    def __init__(self, data: Path, preset: str, card: Card) -> None:
        """Open the data and make the networks.

        Args:
            data: folder that holds the trees of train and val.
            preset: shape of the networks, one of `face_encoder.CONFIGS`.
            card: of the checkpoint.

        Raises:
            DatasetError: as `FaceData`.
            ImageError: if no photo can be read.
        """
        preprocessing, drawn = PREPROCESSING[preset], face_decoder.CONFIGS[preset]
        self.data = FaceData(data, drawn.landmarks, preprocessing.fit)
        self.train_data, self.val_data = self.data.train, self.data.val
        config = face_encoder.CONFIGS[preset]
        if config.identities:
            config = dataclasses.replace(config, identities=len(self.train_data.identities))
        self.settings = {"preset": preset, "photos": len(self.train_data)}
        self.card = card
        self.encoder = face_encoder.VGGFace(config, preprocessing)
        self.decoder = self.data.new_decoder(dataclasses.replace(drawn, embedding=config.embedding))
        self.network = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.defaults: dict[str, object] = {}
        self.notes = self.data.notes
        self.loss_weights = {"landmarks/mse": 0.02, "texture/mae": 10.0}
        self.groups = [Group(list(self.network.parameters()))]
        if config.identities:
            self.loss_weights["identity/cross_entropy"] = 0.1

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        faces = self.encoder.resize(batch["face"])
        if augmented:
            faces = augment.faces(faces)
        embedding = self.encoder(faces)
        _, target, target_points = self.data.example(batch, self.decoder)
        points, texture = self.decoder(embedding)
        values = {
            "landmarks/mse": losses.landmarks_mse(points, target_points),
            "texture/mae": losses.texture_mae(texture, target),
        }
        # People kept for validation are none of the identities that the logits know.
        if self.encoder.config.identities and self.network.training:
            logits = self.encoder.logits(embedding).float()
            values["identity/cross_entropy"] = losses.identity_cross_entropy(
                logits, batch["identity"]
            )
        return values

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        """Do nothing: there is no way in one go."""
        return False

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw photos above their reconstructions, as one picture [3 h w]."""
        self.network.eval()
        _, drawn = draw_faces(self.decoder, self.encoder(batch["face"]))
        self.network.train()
        return sheet(batch["face"], drawn)

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the network as a checkpoint."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        space = save(path, self.encoder, card=card, storage=storage)
        decoder = path.with_name("decoder.safetensors")
        save(decoder, self.decoder, card=card, embedding_space=space)
