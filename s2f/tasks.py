"""What is learned: the face encoder, the face decoder and the voice encoder, as training tasks.

A task is networks, data, and how a batch becomes losses; `train` runs any of them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from s2f import augment, face_decoder, face_encoder, landmarks, layout, losses, voice_encoder
from s2f.audio import FRONT_ENDS, spectrogram
from s2f.checkpoint import Card, Checkpoint, check_space, save
from s2f.dataset import Faces, Item, Voices
from s2f.errors import DatasetError
from s2f.images import load_face
from s2f.ridge import Moments
from s2f.warp import warp

START = 700  # photos that a linear start is fitted to
RIDGES = (0.03, 0.1, 0.3, 1.0)  # that the face encoder's last layers are tried with
RIDGE_PASSES = 2  # through the training data, each photo disturbed anew
MARGIN = 12.0  # deviations by which those layers keep clear of the ReLU between them
FRONT_END_OF = {  # of each preset of the voice encoder
    "paper": FRONT_ENDS["paper"],
    "seed": FRONT_ENDS["seed"],
    "compact": dataclasses.replace(FRONT_ENDS["ast"], clip_samples=96_000),
}


def _grid(*rows: Tensor) -> Tensor:
    """Rows of pictures [b 3 h w], one below the other, as one picture."""
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)


class _FaceData:
    """What the two face tasks share: the data, and drawings registered to the mean shape."""

    def __init__(self, data: Path, k: int) -> None:
        self.train_data = Faces(layout.split(data, "train"), landmarks=k)
        self.val_data = Faces(layout.split(data, "val"), landmarks=k)
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
        drawings = torch.stack([item["drawing"] for item in items]) / 255
        batch = {"drawing": drawings, "landmarks": points}
        return self.texture(batch, mean_landmarks), points


def _new_decoder(
    preset: str, data: _FaceData, embedding: int
) -> tuple[face_decoder.FaceDecoder, face_decoder.LinearCode | None]:
    """Make a decoder that starts at the training data's linear model, or at its mean shape."""
    config = dataclasses.replace(face_decoder.CONFIGS[preset], embedding=embedding)
    mean = data.train_data.mean_landmarks()
    if config.landmarks == landmarks.TEMPLATE_POINTS:
        config = dataclasses.replace(config, landmarks_68=landmarks.map_68(mean.numpy()))
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
        self.data = _FaceData(data, face_decoder.CONFIGS[preset].landmarks)
        self.train_data, self.val_data = self.data.train_data, self.data.val_data
        config = face_encoder.CONFIGS[preset]
        if config.identities:
            config = dataclasses.replace(config, identities=len(self.train_data.identities))
        self.settings = {"preset": preset, "photos": len(self.train_data)}
        self.card = card
        self.encoder = face_encoder.VGGFace(config, face_encoder.PREPROCESSING[preset])
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
    def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
        """Solve the last two layers for the code: ridge regression on the features.

        What gradient steps find of the code's 256 numbers in thousands of steps are the first
        few; the least squares are exact. The ridge is the one that does best in validation.
        """
        if self.code is None or self.encoder.config.final_relu:
            return
        self.network.eval()
        moments = Moments()
        for batch in batches(RIDGE_PASSES):
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
        solved = [moments.solve(ridge) for ridge in RIDGES]
        errors = [float((x @ weight + bias - code).square().mean()) for weight, bias in solved]
        weight, bias = solved[errors.index(min(errors))]
        # The ReLU between the layers passes everything that a shift has made positive.
        shift = (MARGIN * moments.deviation(weight)).ceil()  # whole: exact in half precision
        through = torch.eye(len(bias), device=bias.device)
        for layer, w, b in (
            (self.encoder.fc6, weight.T, bias + shift),
            (self.encoder.fc7, through, -shift),
        ):
            layer.load_state_dict({"weight": w.reshape(layer.weight.shape), "bias": b})
        self.network.train()

    def _features_and_code(self, faces: Tensor, batch: Item) -> tuple[Tensor, Tensor]:
        assert self.code is not None
        self.code = self.code.to(faces.device)
        target = self.data.texture(batch, self.decoder.mean_landmarks)
        return self.encoder.features(faces).flatten(1), self.code(target, batch["landmarks"])

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw photos above their reconstructions, as one picture [3 h w]."""
        self.network.eval()
        drawn = _draw(self.decoder, self.encoder(batch["face"]))
        self.network.train()
        return _grid(batch["face"], drawn)

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the network as a checkpoint."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        space = save(path, self.encoder, card=card, storage=storage)
        beside = path.with_name("decoder.safetensors")
        save(beside, self.decoder, card=card, embedding_space=space)


class FaceDecoderTask:
    """Learn to draw the face of an embedding. Source: Cole et al. 2017, section 3."""

    name = "decoder"

    def __init__(
        self, data: Path, preset: str, encoder: Checkpoint, start: Checkpoint | None, card: Card
    ) -> None:
        assert isinstance(encoder.network, face_encoder.VGGFace)
        self.encoder, self.space, self.card = encoder.network, encoder.embedding_space, card
        if start is None:
            self.data = _FaceData(data, face_decoder.CONFIGS[preset].landmarks)
            self.network, _ = _new_decoder(preset, self.data, self.encoder.config.embedding)
        else:
            assert isinstance(start.network, face_decoder.FaceDecoder)
            check_space([encoder, start])
            self.data = _FaceData(data, start.network.config.landmarks)
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

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
        """Do nothing: there is no way in one go."""

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw photos above their reconstructions, as one picture [3 h w]."""
        self.network.eval()
        drawn = _draw(self.network, self.encoder(batch["face"]))
        self.network.train()
        return _grid(batch["face"], drawn)

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the network as a checkpoint."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        save(path, self.network, card=card, embedding_space=self.space, storage=storage)


class VoiceEncoderTask:
    """Learn to reach from speech the embedding of a face. Source: Oh et al. 2019, section 3."""

    name = "voice"

    def __init__(
        self,
        data: Path,
        preset: str,
        encoder: Checkpoint,
        decoder: Checkpoint,
        card: Card,
        *,
        device: torch.device,
    ) -> None:
        assert isinstance(encoder.network, face_encoder.VGGFace)
        assert isinstance(decoder.network, face_decoder.FaceDecoder)
        check_space([encoder, decoder])
        self.encoder, self.decoder = encoder.network.to(device), decoder.network.to(device)
        front_end = FRONT_END_OF[preset]
        self.space, self.front_end, self.card = encoder.embedding_space, front_end, card
        self.train_data = self._voices(layout.split(data, "train"), device)
        self.val_data = self._voices(layout.split(data, "val"), device)
        config = dataclasses.replace(
            voice_encoder.CONFIGS[preset],
            in_channels=front_end.n_channels,
            n_freqs=front_end.n_freqs,
            embedding=self.encoder.config.embedding,
        )
        self.network = voice_encoder.VoiceEncoder(config)
        self.settings = {
            "preset": preset,
            "recordings": len(self.train_data),
            "face_encoder": encoder.sha256,
            "face_decoder": decoder.sha256,
        }
        self.loss_weights = {"decoder/l1": 0.01, "embedding/l2": 1.0, "encoder/distill": 1.0}
        if not self.encoder.config.identities:
            del self.loss_weights["encoder/distill"]
        self.min_samples = 160 * self.network.config.min_frames + 400

    @torch.no_grad()
    def _voices(self, folder: Path, device: torch.device) -> Voices:
        embeddings = []
        for speaker in layout.speakers(folder):
            faces = torch.stack([load_face(path) for path in speaker.images])
            embeddings.append(self.encoder(faces.to(device) / 255).cpu())
        return Voices(folder, embeddings, clip_samples=self.front_end.clip_samples)

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        waveform, target = batch["waveform"], batch["embedding"]
        if augmented:
            shortest = max(self.min_samples, waveform.shape[1] // 3)
            waveform = waveform[:, : augment.random_length(waveform.shape[1], shortest)]
            waveform = augment.voices(waveform)
        predicted = self.network(spectrogram(waveform, self.front_end))
        values = {
            "decoder/l1": losses.decoder_l1(
                self.decoder.first_layers(predicted), self.decoder.first_layers(target)
            ),
            "embedding/l2": losses.embedding_l2(predicted, target),
        }
        if self.encoder.config.identities:
            values["encoder/distill"] = losses.encoder_distill(
                self.encoder.logits(predicted), self.encoder.logits(target)
            )
        return values

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
        """Do nothing: there is no way in one go."""

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw faces of the targets above faces of the voices, as one picture [3 h w]."""
        self.network.eval()
        voice = self.network(spectrogram(batch["waveform"], self.front_end))
        self.network.train()
        return _grid(_draw(self.decoder, batch["embedding"]), _draw(self.decoder, voice))

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the network as a checkpoint."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        save(
            path,
            self.network,
            card=card,
            embedding_space=self.space,
            front_end=self.front_end,
            storage=storage,
        )


def _draw(decoder: face_decoder.FaceDecoder, embedding: Tensor) -> Tensor:
    """Finished faces [b 3 s s] of embeddings [b d]."""
    points: Tensor
    texture: Tensor
    points, texture = decoder(embedding)
    if decoder.config.is_face:
        return texture
    return warp(texture, decoder.mean_landmarks[None], points).clamp(0, 1)
