"""What is learned from faces: three tasks, whose steps `train` takes.

`FaceEncoderTask` learns an embedding together with a decoder that draws it, `PartsEncoderTask`
learns to read a code that is found from the data at once, with the decoder that draws it, and
`FaceDecoderTask` learns to draw the embedding of an encoder that is there. What the photos are,
and how they are registered, is `face_data`'s to know.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f import appearance_model, augment, face_decoder, face_encoder, layout, losses
from s2f.appearance_model import REDUCED, PartsEncoder, averaged_down, in_frame
from s2f.checkpoint import Card, Checkpoint, check_space, save
from s2f.console import Progress, silent
from s2f.dataloader import Item
from s2f.embeddings import BATCH, Maker
from s2f.errors import CheckpointError, UsageError
from s2f.face_data import FaceData
from s2f.face_decoder import FaceDecoder, draw_faces, finished, sheet
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.images import PREPROCESSING
from s2f.ridge import RidgeSums
from s2f.train import Group

ROWS = 1024  # codes that are summed up at a time
NEUTRAL_RIDGE = 0.1  # of what is taken off a code that was read, in units of its variances


class _FaceTask:
    """What the tasks share: an encoder and a decoder, the photos of both splits, and a picture."""

    encoder: FaceEncoder
    decoder: FaceDecoder
    network: nn.Module

    def __init__(self, data: FaceData, preset: str, card: Card) -> None:
        self.data, self.card = data, card
        self.train_data, self.val_data, self.notes = data.train, data.val, data.notes
        self.settings: dict[str, object] = {"preset": preset, "photos": len(data.train)}
        self.defaults: dict[str, object] = {}

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
        """Write the encoder as a checkpoint, and beside it the decoder, to start another from."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        space = save(path, self.encoder, card=card, storage=storage)
        decoder = path.with_name("decoder.safetensors")
        save(decoder, self.decoder, card=card, embedding_space=space, storage=storage)


class FaceEncoderTask(_FaceTask):
    """Learn an embedding that a decoder can draw from: any photo of a person to their one face.

    Every photo (smiling, turned, dim, blurred) is to give the landmarks and the registered
    texture of the identity's first photo, so the photos of one person have to land close.
    """

    name = "encoder"
    encoder: face_encoder.VGGFace

    def __init__(self, data: Path, preset: str, card: Card) -> None:
        """Open the trees of train and val as `FaceData`, and make the networks of the preset."""
        drawn, preprocessing = face_decoder.CONFIGS[preset], PREPROCESSING[preset]
        super().__init__(FaceData(data, drawn.landmarks, preprocessing.fit), preset, card)
        config = face_encoder.CONFIGS[preset]
        self.loss_weights = {"landmarks/mse": 0.02, "texture/mae": 10.0}
        if config.identities:
            config = dataclasses.replace(config, identities=len(self.train_data.identities))
            self.loss_weights["identity/cross_entropy"] = 0.1
        self.encoder = face_encoder.VGGFace(config, preprocessing)
        self.decoder = self.data.new_decoder(dataclasses.replace(drawn, embedding=config.embedding))
        self.network = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.groups = [Group(list(self.network.parameters()))]

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        faces = averaged_down(batch["face"], self.encoder.config.image_size)
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
            logits, identity = self.encoder.logits(embedding).float(), batch["identity"]
            values["identity/cross_entropy"] = losses.identity_cross_entropy(logits, identity)
        return values


class PartsEncoderTask(_FaceTask):
    """Learn to read the code of the parts of faces.

    The code itself is found from the registered training faces at the start, and with it the
    decoder that draws it. Steps teach the finder of landmarks. At the end, what other photos of a
    person say beyond the first, such as a smile, is taken off by ridge regression.
    """

    name = "encoder"
    encoder: PartsEncoder

    def __init__(self, data: Path, preset: str, card: Card) -> None:
        """Open the trees of train and val as `FaceData`, and make the networks of the preset.

        Raises an ImageError if no photo can be read.
        """
        drawn, preprocessing = face_decoder.CONFIGS[preset], PREPROCESSING[preset]
        super().__init__(FaceData(data, drawn.landmarks, preprocessing.fit), preset, card)
        self.decoder = self.data.new_decoder(drawn)
        code, textures = self.data.start_linear(self.decoder)
        config = appearance_model.CONFIGS[preset]
        config = dataclasses.replace(config, landmarks=self.data.landmarks)
        self.encoder = PartsEncoder(config, preprocessing)
        self.encoder.fit(code, textures)
        self.network = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.groups = [Group(list(self.encoder.finder.parameters()))]
        self.loss_weights = {"landmarks/huber": 1.0}

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample; none where the landmarks are another photo's."""
        faces = functional.avg_pool2d(batch["face"], REDUCED)
        points = (batch["landmarks"] + 0.5) / REDUCED - 0.5
        if augmented:
            faces, points = augment.bent(faces, points)
            faces = augment.lit(faces)
        found = in_frame(self.encoder.finder(faces))
        values = losses.landmarks_huber(found, in_frame(points))
        return {"landmarks/huber": values * batch["own"]}

    @torch.no_grad()
    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        """Solve for what is taken off: what other photos of people say beyond their first.

        Photos with landmarks of their own teach that nothing is to be taken off these.
        """
        self.encoder.eval()
        rows = [(self.encoder.read(b["face"]).float(), b["identity"], b["own"]) for b in batches(1)]
        read, identity, own = (torch.cat(parts) for parts in zip(*rows, strict=True))
        n = len(read)
        first = torch.full((int(identity.max()) + 1,), n, device=read.device)
        first.scatter_reduce_(0, identity[own], torch.nonzero(own)[:, 0], "amin")
        wanted = torch.where(own, torch.arange(n, device=read.device), first[identity])
        sums = RidgeSums()
        for part in torch.split(torch.nonzero(wanted < n)[:, 0], ROWS):
            sums.add(read[part], read[wanted[part]] - read[part])
        weight, bias = sums.solve(NEUTRAL_RIDGE)
        self.encoder.neutral.weight.copy_(weight.T)
        self.encoder.neutral.bias.copy_(bias)
        self.encoder.train()
        return True


class FaceDecoderTask(_FaceTask):
    """Learn to draw the face of an embedding. Source: Cole et al. 2017."""

    name = "decoder"
    network: FaceDecoder

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
        """Open the trees of train and val as `FaceData`, and make the decoder, or go on from one.

        A new one has the preset's shape. The face encoder defines the embedding, and computes on
        `device`. A share `morph`, 0..1, of the training samples are morphs of two faces, for which
        `progress` is told of the photos that are embedded. With `no_warp` the decoder is to draw
        the face itself and not its texture, as the seed's does; a linear start still is that of
        registered faces, in whose terms the embedding is, and training bends it.

        Raises a UsageError if `morph` is no probability, a CheckpointError if the networks do not
        fit each other or the data, an ImageError if no photo can be read, or as `FaceDataset.mix`.
        """
        if not 0 <= morph <= 1:
            message = f"--morph {morph}: is no probability"
            raise UsageError(message, hint="give a number from 0 to 1")
        assert isinstance(encoder.network, FaceEncoder)
        self.encoder, self.space = encoder.network.to(device), encoder.embedding_space
        fit, width = self.encoder.preprocessing.fit, self.encoder.config.embedding
        if start is None:
            config = face_decoder.CONFIGS[preset]
            fits = config.embedding == width and not self.encoder.config.final_relu
            if config.output == "linear" and not fits:
                raise CheckpointError(
                    f"{encoder.path}: its embedding, {width} values, is no code that the {preset} "
                    f"decoder draws from, of {config.embedding}",
                    hint=f"train the encoder with --preset {preset} too, or this with paper",
                )
            config = dataclasses.replace(config, embedding=width)
        else:
            check_space([encoder, start])
            assert isinstance(start.network, FaceDecoder)
            config = start.network.config
        config = dataclasses.replace(config, is_face=config.is_face or no_warp)
        super().__init__(FaceData(data, config.landmarks, fit, whole=config.is_face), preset, card)
        if start is None:
            self.decoder = self.data.new_decoder(config)
            if config.windows:
                self.data.start_linear(self.decoder)
        else:
            if config.landmarks != self.data.landmarks:
                message = f"{start.path}: draws {config.landmarks} landmarks; the photos in {data}"
                hint = f"add NAME{layout.TEMPLATE}, or leave --start out"
                raise CheckpointError(f"{message} have {self.data.landmarks}", hint=hint)
            assert isinstance(start.network, FaceDecoder)
            self.decoder = start.network.requires_grad_(True)
            self.decoder.config = config
        self.network = self.decoder
        self.groups = [Group(list(self.network.parameters()))]
        self.loss_weights = {"landmarks/mse": 0.02, "texture/mae": 10.0, "identity/cosine": 2.0}
        self.settings |= {"face_encoder": encoder.sha256, "start": start and start.sha256}
        if morph:
            self.settings["morph"] = morph
            embed = batch_embedder(self.encoder, device=device, batch_size=BATCH)
            maker = Maker("the face encoder", width, fit, embed)
            bad = self.train_data.mix(morph, maker, device=device, progress=progress)
            self.data.note("faces are not mixed with", bad)
        if no_warp:
            self.settings["no_warp"] = True

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        face, target, target_points = self.data.example(batch, self.decoder)
        faces = averaged_down(face, self.encoder.config.image_size)
        if augmented:
            faces = augment.faces(faces)
        with torch.no_grad():
            embedding = self.encoder(faces).float()
            aim = self.encoder(finished(self.decoder, target, target_points)).float()
        points, texture = self.decoder.plain(embedding)
        drawn = self.encoder(finished(self.decoder, texture, points)).float()
        return {
            "landmarks/mse": losses.landmarks_mse(points, target_points),
            "texture/mae": losses.texture_mae(texture, target),
            "identity/cosine": losses.identity_cosine(drawn, aim),
        }

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the decoder as a checkpoint."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        save(path, self.decoder, card=card, embedding_space=self.space, storage=storage)
