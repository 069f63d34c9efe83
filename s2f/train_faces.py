"""What is learned from faces: three tasks, whose steps `train` takes.

`FaceEncoderTask` learns an embedding together with a decoder that draws it, `PartsEncoderTask`
learns to read a code that is found from the data at once, with the decoder that draws it, and
`FaceDecoderTask` learns to draw the embedding of an encoder that is there. What the photos are,
and how they are registered, is `face_data`'s to know.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f import appearance_model, augment, face_decoder, face_encoder, layout, losses
from s2f.appearance_model import REDUCED, PartsEncoder, averaged_down, before_ground, in_frame
from s2f.checkpoint import Card, Checkpoint, check_space, save
from s2f.console import Progress, silent
from s2f.dataloader import Item
from s2f.distributed import ALONE, Ranks
from s2f.embeddings import BATCH, Maker
from s2f.errors import CheckpointError, UsageError
from s2f.face_data import FaceData
from s2f.face_decoder import FaceDecoder, draw_faces, finished, sheet
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.images import PREPROCESSING
from s2f.losses import RidgeSums
from s2f.train import Group

ROWS = 1024  # codes that are summed up at a time
NEUTRAL_RIDGE = 0.1  # of what is taken off a code that was read, in units of its variances
# What a drawn face's embedding is to be like: its photo's, as Cole et al. have it; or that of the
# photo's own texture, brought to its own landmarks, as the drawing is.
IdentityTarget = Literal["photo", "drawn"]


class _FaceTask:
    """What the tasks share: an encoder and a decoder, the photos of both splits, and a picture."""

    encoder: FaceEncoder
    decoder: FaceDecoder
    network: nn.Module
    solves = False
    computes: list[tuple[nn.Module, str]]

    def __init__(self, data: FaceData, preset: str, card: Card) -> None:
        self.data, self.card = data, card
        self.train_data, self.val_data, self.notes = data.train, data.val, data.notes
        self.settings: dict[str, object] = {"preset": preset, "photos": len(data.train)}
        self.settings |= {"train_files": data.train.files, "val_files": data.val.files}
        self.defaults: dict[str, object] = {}

    def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
        """Do nothing: there is no way in one go."""

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

    def __init__(self, data: Path, preset: str, card: Card, ranks: Ranks = ALONE) -> None:
        """Open the trees of train and val as `FaceData`, and make the networks of the preset."""
        drawn, preprocessing = face_decoder.CONFIGS[preset], PREPROCESSING[preset]
        faces = FaceData(data, drawn.landmarks, preprocessing.fit, ranks=ranks)
        super().__init__(faces, preset, card)
        config = face_encoder.CONFIGS[preset]
        self.loss_weights = {"landmarks/mse": 0.02, "texture/mae": 10.0}
        if config.identities:
            config = dataclasses.replace(config, identities=self.train_data.counts["identities"])
            self.loss_weights["identity/cross_entropy"] = 0.1
        self.encoder = face_encoder.VGGFace(config, preprocessing)
        self.decoder = self.data.new_decoder(dataclasses.replace(drawn, embedding=config.embedding))
        self.network = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.computes = [(self.encoder, "forward"), (self.decoder, "forward")]
        self.groups = [Group(list(self.network.parameters()))]

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        faces = averaged_down(batch["face"], self.encoder.config.image_size)
        if augmented:
            faces = augment.faces(faces, augment.Noise(batch["seed"]))
        embedding = self.encoder(faces)
        _, target, target_points = self.data.example(batch, self.decoder)
        points, texture = self.decoder(embedding)
        values = {
            "landmarks/mse": losses.landmarks_mse(points, target_points),
            "texture/mae": losses.texture_mae(texture, target),
        }
        # People kept for validation are none of the identities that the logits know.
        if self.encoder.config.identities and self.network.training:
            with torch.autocast(embedding.device.type, enabled=False):
                logits = self.encoder.logits(embedding.float())
            values["identity/cross_entropy"] = losses.identity_cross_entropy(
                logits, batch["identity"]
            )
        return values


class PartsEncoderTask(_FaceTask):
    """Learn to read the code of the parts of faces.

    The code itself is found from the registered training faces at the start, and with it the
    decoder that draws it. Steps teach the finder of landmarks. At the end, what other photos of a
    person say beyond the first, such as a smile, is taken off by ridge regression.
    """

    name = "encoder"
    encoder: PartsEncoder
    solves = True

    def __init__(self, data: Path, preset: str, card: Card, ranks: Ranks = ALONE) -> None:
        """Open the trees of train and val as `FaceData`, and make the networks of the preset.

        Raises an ImageError if no photo can be read.
        """
        drawn, preprocessing = face_decoder.CONFIGS[preset], PREPROCESSING[preset]
        how: dict[str, Any] = {"opacity": drawn.opacity, "ranks": ranks}
        faces = FaceData(data, drawn.landmarks, preprocessing.fit, **how)
        super().__init__(faces, preset, card)
        self.decoder = self.data.new_decoder(drawn)
        code, textures = self.data.start_linear(self.decoder)
        config = appearance_model.CONFIGS[preset]
        opacity = self.decoder.config.opacity
        config = dataclasses.replace(config, landmarks=self.data.landmarks, opacity=opacity)
        self.encoder = PartsEncoder(config, preprocessing)
        self.encoder.fit(code, textures)
        self.network = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.computes = [(self.encoder.finder, "forward")]
        self.groups = [Group(list(self.encoder.finder.parameters()))]
        self.loss_weights = {"landmarks/huber": 1.0}

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample; none where the landmarks are another photo's."""
        faces = functional.avg_pool2d(batch["face"], REDUCED)
        points = (batch["landmarks"] + 0.5) / REDUCED - 0.5
        if augmented:
            noise = augment.Noise(batch["seed"])
            faces, points = augment.bent(faces, points, noise)
            faces = augment.lit(faces, noise)
        found = in_frame(self.encoder.finder(faces))
        values = losses.landmarks_huber(found, in_frame(points))
        return {"landmarks/huber": values * batch["own"]}

    @torch.no_grad()
    def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
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


@dataclass(frozen=True)
class DecoderPreset:
    """How a face decoder is trained; its shape is that of the same name in `face_decoder`."""

    losses: Mapping[str, float]  # weights
    # Of `TrainConfig`, where another; and `epochs`, where no steps are said.
    training: Mapping[str, object] = field(default_factory=dict)
    morph: float = 0.0  # share of training samples that are morphs of two faces


DECODERS: dict[str, DecoderPreset] = {
    # Cole et al. 2017: these three losses, the texture's in the mean-shape frame, the embedding's
    # through the warp and against the photo's; undisturbed photos, and morphs of near faces. No
    # published values were found, and those here are ours, for the three weights, the share of
    # morphs, and all that `TrainConfig` has (optimizer, learning rate, batch and length).
    "paper": DecoderPreset(
        losses={"landmarks/mse": 0.02, "texture/mae": 10.0, "identity/cosine": 2.0},
        training={"augment": False},
        morph=0.5,
    ),
    # Kacper-Pietkun/Speech-to-face, `train_face_decoder.py` and `losses.py`: 1, 100 and 100 times
    # means over all values, of which a landmark has two. There, the embedding's has no gradient.
    "seed": DecoderPreset(
        losses={"landmarks/mse": 0.5, "texture/mae": 100.0, "identity/cosine": 100.0},
        training={
            "optimizer": "adam",
            "lr": 1e-3,
            "schedule": "constant",
            "weight_decay": 0.0,
            "clip": 0.0,
            "batch_size": 16,
            "epochs": 1000,
            "augment": False,
        },
    ),
    "compact": DecoderPreset(
        losses={"landmarks/mse": 0.02, "texture/mae": 10.0, "identity/cosine": 2.0}
    ),
}


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
        ranks: Ranks = ALONE,
        morph: float | None = None,
        no_warp: bool = False,
        identity_target: IdentityTarget = "photo",
        progress: Progress = silent,
    ) -> None:
        """Open the trees of train and val as `FaceData`, and make the decoder, or go on from one.

        A new one has the preset's shape. The face encoder defines the embedding, and computes on
        `device`. A share `morph`, 0..1, of the training samples, None for the preset's, are morphs
        of two faces, for which `progress` is told of the photos that are embedded, each of `ranks`
        its share. With `no_warp` the decoder is to draw the face itself and not its texture, as the
        seed's does; a linear start still is that of registered faces, in whose terms the embedding
        is, and training bends it.

        With the `identity_target` "drawn", a drawing's embedding is to be that of the photo's own
        texture on its own landmarks: the best that the decoder can draw has no loss then. A photo
        is not quite like its warped self, so that "photo" also pulls at what no drawing can have.

        Raises a UsageError if `morph` is no probability, a CheckpointError if the networks do not
        fit each other or the data, an ImageError if no photo can be read, or as `FaceDataset.mix`.
        """
        recipe = DECODERS[preset]
        self.identity_target = identity_target
        morph = recipe.morph if morph is None else morph
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
        how: dict[str, Any] = {"whole": config.is_face, "opacity": config.opacity}
        faces = FaceData(data, config.landmarks, fit, ranks=ranks, progress=progress, **how)
        super().__init__(faces, preset, card if start is None else card.begun_from(start.card))
        self.init = start and start.path
        if start is None:
            self.decoder = self.data.new_decoder(config)
            if config.windows:
                parts = self.encoder if isinstance(self.encoder, PartsEncoder) else None
                self.data.start_linear(self.decoder, parts)
        else:
            if config.landmarks != self.data.landmarks:
                message = f"{start.path}: draws {config.landmarks} landmarks; the photos in {data}"
                hint = f"add NAME{layout.TEMPLATE}, or leave --init out"
                raise CheckpointError(f"{message} have {self.data.landmarks}", hint=hint)
            assert isinstance(start.network, FaceDecoder)
            self.decoder = start.network.requires_grad_(True)
            self.decoder.config = config
        self.network = self.decoder
        self.computes = [(self.decoder, "plain"), (self.encoder, "forward")]
        self.groups = [Group(list(self.network.parameters()))]
        self.loss_weights, self.defaults = dict(recipe.losses), dict(recipe.training)
        self.settings |= {"face_encoder": encoder.sha256, "start": start and start.sha256}
        if identity_target == "photo":  # the other is that of runs begun before there was a choice
            self.settings["identity_target"] = identity_target
        if morph:
            self.settings["morph"] = morph
            embed = batch_embedder(self.encoder, device=device, batch_size=BATCH)
            maker = Maker("the face encoder", width, fit, embed, ranks)
            bad = self.train_data.mix(*(morph, maker, self.space), device=device, progress=progress)
            self.data.note("faces are not mixed with", bad)
        if no_warp:
            self.settings["no_warp"] = True

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        face, target, target_points = self.data.example(batch, self.decoder)
        faces = averaged_down(face, self.encoder.config.image_size)
        disturbed = augment.faces(faces, augment.Noise(batch["seed"])) if augmented else faces
        with torch.no_grad():
            embedding = self.encoder(disturbed).float()
            aim = embedding  # of the photo as it is
            if self.identity_target == "drawn":
                aim = self.encoder(finished(self.decoder, target, target_points)).float()
            elif augmented:
                aim = self.encoder(faces).float()
        points, texture = self.decoder.plain(embedding)
        drawn = self.encoder(finished(self.decoder, texture, points)).float()
        if target.shape[1] == 3:  # photos have no opacity
            texture = before_ground(texture)
        return {
            "landmarks/mse": losses.landmarks_mse(points, target_points),
            "texture/mae": losses.texture_mae(texture, target),
            "identity/cosine": losses.identity_cosine(drawn, aim),
        }

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the decoder as a checkpoint."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        save(path, self.decoder, card=card, embedding_space=self.space, storage=storage)
