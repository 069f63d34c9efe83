"""What is learned from faces, part one: the face encoder, as a training task; `train` runs it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from s2f import augment, face_decoder, face_encoder, losses
from s2f.checkpoint import Card, save
from s2f.drawing import draw_faces, sheet
from s2f.feed import Item, Key, load
from s2f.registration import FaceData
from s2f.ridge import Moments, solve_last_layers
from s2f.task import Group

PASSES = 2  # through the training data, each photo disturbed anew


class FaceEncoderTask:
    """Learn an embedding that a decoder can draw from: any photo of a person to their one face.

    Every photo (smiling, turned, dim, blurred) is to give the landmarks and the registered
    texture of the identity's first photo, so the photos of one person have to land close. Where
    the decoder has a linear form, the embedding is that model's code and the encoder learns the
    code itself; the decoder, still linear, is saved beside the encoder to start `train decoder`.
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
        preprocessing, drawn = face_encoder.PREPROCESSING[preset], face_decoder.CONFIGS[preset]
        self.data = FaceData(data, drawn.landmarks, preprocessing.fit)
        self.train_data, self.val_data = self.data.train, self.data.val
        config = face_encoder.CONFIGS[preset]
        if config.identities:
            config = dataclasses.replace(config, identities=len(self.train_data.identities))
        self.settings = {"preset": preset, "photos": len(self.train_data)}
        self.card = card
        self.encoder = face_encoder.VGGFace(config, preprocessing)
        self.decoder, self.code = self.data.new_decoder(
            dataclasses.replace(drawn, embedding=config.embedding)
        )
        self.network = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.defaults: dict[str, object] = {}
        self.notes = self.data.notes
        self.loss_weights = {"landmarks/mse": 0.02, "texture/mae": 10.0}
        if self.code is not None:
            self.decoder.requires_grad_(False)
            self.loss_weights = {"embedding/mse": 1.0}
        self.groups = [Group([p for p in self.network.parameters() if p.requires_grad])]
        if config.identities:
            self.loss_weights["identity/cross_entropy"] = 0.1

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        faces = self.encoder.resize(batch["face"])
        if augmented:
            faces = augment.faces(faces)
        embedding = self.encoder(faces)
        _, target, target_points = self.data.example(batch, self.decoder)
        if self.code is not None:
            self.code = self.code.to(embedding.device)
            code = self.code(target, target_points)
            values = {"embedding/mse": losses.embedding_mse(embedding.float(), code)}
        else:
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

    @torch.no_grad()
    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        """Solve the last two layers for the code: ridge regression on the features.

        What gradient steps find of the code's 256 numbers in thousands of steps are the first
        few; the least squares are exact. The ridge is the one that does best in validation.
        """
        if self.code is None or self.encoder.config.final_relu:
            return False
        self.network.eval()
        moments = Moments()
        for batch in batches(PASSES):
            faces = augment.faces(self.encoder.resize(batch["face"]))
            moments.add(*self._features_and_code(faces, batch))
        features, codes = [], []
        n = len(self.val_data)
        keys = [[Key(i, i)] for i in range(n)]
        for loaded in load(self.val_data, keys, moments.device, workers=0, max_bad=n):
            if loaded.items is None:
                raise loaded.bad[-1]
            faces = self.encoder.resize(loaded.items["face"])
            x, code = self._features_and_code(faces, loaded.items)
            features.append(x)
            codes.append(code)
        x, code = torch.cat(features), torch.cat(codes)
        solve_last_layers(moments, x, code, self.encoder.fc6, self.encoder.fc7)
        self.network.train()
        return True

    def _features_and_code(self, faces: Tensor, batch: Item) -> tuple[Tensor, Tensor]:
        assert self.code is not None
        self.code = self.code.to(faces.device)
        _, target, points = self.data.example(batch, self.decoder)
        return self.encoder.features(faces).flatten(1), self.code(target, points)

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
