"""What is learned from faces: the face encoder and the face decoder, as training tasks.

A task is networks, data, and how a batch becomes losses; `train` runs any of them. These two
learn from the same photos and start from the same linear model of them, so that the embedding
of the one is what the other draws.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from s2f import augment, face_decoder, face_encoder, layout, losses
from s2f.checkpoint import Card, Checkpoint, check_space, save
from s2f.dataset import Faces, Item
from s2f.drawing import draw_faces, sheet
from s2f.errors import CheckpointError, DatasetError
from s2f.landmarks import TEMPLATE_POINTS, map_68
from s2f.ridge import Moments, solve_last_layers
from s2f.warp import warp

START = 700  # photos that a linear start is fitted to
PASSES = 2  # through the training data, each photo disturbed anew


class _FaceData:
    """What the two face tasks share: the data, and drawings registered to the mean shape.

    Where a decoder would predict the dense template and the data have none, `landmarks` is 68.
    """

    def __init__(self, data: Path, k: int, preprocessing: face_encoder.Preprocessing) -> None:
        first = layout.photos(layout.split(data, "train"))[0]
        if k == TEMPLATE_POINTS and not layout.beside(first.target, layout.TEMPLATE).is_file():
            k = 68
        self.landmarks = k
        fit = preprocessing.fit
        self.train_data = Faces(layout.split(data, "train"), landmarks=k, fit=fit)
        self.val_data = Faces(layout.split(data, "val"), landmarks=k, fit=fit)
        if self.train_data.registered != self.val_data.registered:
            raise DatasetError(
                f"{data}: some photos have a {layout.TEXTURE} beside them and some have none",
                hint="remove them, or make all",
            )

    def texture(self, batch: Item, mean_landmarks: Tensor) -> Tensor:
        if self.train_data.registered:
            return batch["drawing"]
        return warp(batch["drawing"], batch["landmarks"], mean_landmarks[None])

    def some(self, mean_landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """Registered textures [n 3 224 224] and landmarks [n k 2] of up to `START` photos."""
        n = len(self.train_data)
        items = [self.train_data[(i, i)] for i in range(0, n, -(-n // START))]
        points = torch.stack([item["landmarks"] for item in items])
        textures = [
            self.texture({"drawing": item["drawing"][None] / 255, "landmarks": p}, mean_landmarks)
            for item, p in zip(items, torch.split(points, 1), strict=True)  # one by one: memory
        ]
        return torch.cat(textures), points


def _new_decoder(
    preset: str, data: _FaceData, embedding: int
) -> tuple[face_decoder.FaceDecoder, face_decoder.LinearCode | None]:
    """Make a decoder that starts at the training data's linear model, or at its mean shape."""
    config = dataclasses.replace(
        face_decoder.CONFIGS[preset], embedding=embedding, landmarks=data.landmarks
    )
    mean = data.train_data.mean_landmarks()
    if config.landmarks == TEMPLATE_POINTS:
        config = dataclasses.replace(config, landmarks_68=map_68(mean.numpy()))
    decoder = face_decoder.FaceDecoder(config)
    decoder.mean_landmarks.copy_(mean)
    if config.output != "linear":
        return decoder, None
    return decoder, decoder.start_linear(*data.some(mean))


class FaceEncoderTask:
    """Learn an embedding that a decoder can draw from: any photo of a person to their one face.

    Every photo (smiling, turned, dim, blurred) is to give the landmarks and the registered
    texture of the identity's first photo, so the photos of one person have to land close. Where
    the decoder has a linear form, the embedding is that model's code and the encoder learns the
    code itself; the decoder, still linear, is saved beside the encoder to start `train decoder`.
    """

    name = "encoder"

    def __init__(self, data: Path, preset: str, card: Card) -> None:
        preprocessing = face_encoder.PREPROCESSING[preset]
        self.data = _FaceData(data, face_decoder.CONFIGS[preset].landmarks, preprocessing)
        self.train_data, self.val_data = self.data.train_data, self.data.val_data
        config = face_encoder.CONFIGS[preset]
        if config.identities:
            config = dataclasses.replace(config, identities=len(self.train_data.identities))
        self.settings = {"preset": preset, "photos": len(self.train_data)}
        self.card = card
        self.encoder = face_encoder.VGGFace(config, preprocessing)
        self.decoder, self.code = _new_decoder(preset, self.data, config.embedding)
        self.network = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.loss_weights = {"landmarks/mse": 0.02, "texture/mae": 10.0}
        if self.code is not None:
            self.decoder.requires_grad_(False)
            self.loss_weights = {"embedding/mse": 1.0}
        if config.identities:
            self.loss_weights["identity/cross_entropy"] = 0.1

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        faces = self.encoder.resize(batch["face"])
        if augmented:
            faces = augment.faces(faces)
        embedding = self.encoder(faces)
        target = self.data.texture(batch, self.decoder.mean_landmarks)
        if self.code is not None:
            self.code = self.code.to(embedding.device)
            code = self.code(target, batch["landmarks"])
            values = {"embedding/mse": losses.embedding_mse(embedding, code)}
        else:
            points, texture = self.decoder(embedding)
            values = {
                "landmarks/mse": losses.landmarks_mse(points, batch["landmarks"]),
                "texture/mae": losses.texture_mae(texture, target),
            }
        # People kept for validation are none of the identities that the logits know.
        if self.encoder.config.identities and self.network.training:
            logits = self.encoder.logits(embedding)
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
        for i in range(len(self.val_data)):
            item = self.val_data[i, i]
            batch = {k: v[None].to(moments.device) for k, v in item.items()}
            batch |= {k: batch[k].float() / 255 for k in ("face", "drawing")}
            x, code = self._features_and_code(self.encoder.resize(batch["face"]), batch)
            features.append(x)
            codes.append(code)
        x, code = torch.cat(features), torch.cat(codes)
        solve_last_layers(moments, x, code, self.encoder.fc6, self.encoder.fc7)
        self.network.train()
        return True

    def _features_and_code(self, faces: Tensor, batch: Item) -> tuple[Tensor, Tensor]:
        assert self.code is not None
        self.code = self.code.to(faces.device)
        target = self.data.texture(batch, self.decoder.mean_landmarks)
        return self.encoder.features(faces).flatten(1), self.code(target, batch["landmarks"])

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


class FaceDecoderTask:
    """Learn to draw the face of an embedding. Source: Cole et al. 2017."""

    name = "decoder"

    def __init__(
        self, data: Path, preset: str, encoder: Checkpoint, start: Checkpoint | None, card: Card
    ) -> None:
        assert isinstance(encoder.network, face_encoder.VGGFace)
        self.encoder, self.space, self.card = encoder.network, encoder.embedding_space, card
        if start is None:
            wanted = face_decoder.CONFIGS[preset]
            fits = wanted.embedding == self.encoder.config.embedding
            if wanted.output == "linear" and (self.encoder.config.final_relu or not fits):
                raise CheckpointError(
                    f"{encoder.path}: its embedding, {self.encoder.config.embedding} values, is "
                    f"no code that the {preset} decoder draws from, of {wanted.embedding}",
                    hint=f"train the encoder with --preset {preset} too, or this with paper",
                )
            self.data = _FaceData(data, wanted.landmarks, self.encoder.preprocessing)
            self.network, _ = _new_decoder(preset, self.data, self.encoder.config.embedding)
        else:
            assert isinstance(start.network, face_decoder.FaceDecoder)
            check_space([encoder, start])
            k = start.network.config.landmarks
            self.data = _FaceData(data, k, self.encoder.preprocessing)
            self.network = start.network.requires_grad_(True)
        self.train_data, self.val_data = self.data.train_data, self.data.val_data
        self.settings = {
            "preset": preset,
            "photos": len(self.train_data),
            "face_encoder": encoder.sha256,
            "start": start and start.sha256,
        }
        self.loss_weights = {"landmarks/mse": 0.02, "texture/mae": 10.0, "identity/cosine": 2.0}

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        self.encoder.to(batch["face"].device)
        faces = self.encoder.resize(batch["face"])
        if augmented:
            faces = augment.faces(faces)
        with torch.no_grad():
            embedding = self.encoder(faces)
        points, texture = self.network(embedding)
        mean = self.network.mean_landmarks
        target = self.data.texture(batch, mean)
        with torch.no_grad():
            aim = self.encoder(warp(target, mean[None], batch["landmarks"]))
        drawn = self.encoder(warp(texture, mean[None], points))
        return {
            "landmarks/mse": losses.landmarks_mse(points, batch["landmarks"]),
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
