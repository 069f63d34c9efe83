"""What is learned from faces, part two: the face decoder, as a training task; `train` runs it.

What is learned from faces, part one: the face encoder, as a training task; `train` runs it.

What is learned from faces by the small encoder: where landmarks are, and what smiles change.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f import appearance_model, augment, face_data, face_decoder, face_encoder, layout, losses
from s2f.appearance_model import REDUCED, PartsEncoder, averaged_down, in_frame
from s2f.checkpoint import Card, Checkpoint, check_space, save
from s2f.console import Progress, silent
from s2f.dataloader import Item
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.face_data import FaceData, Morphs
from s2f.face_decoder import draw_faces, finished, sheet
from s2f.images import PREPROCESSING
from s2f.ridge import RidgeSums
from s2f.train import Group

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
        found, bad = face_data.directions(paths, self.encoder, device=device, progress=progress)
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
        rows = face_data.nearest(found.to(device), groups.to(device), NEIGHBOURS)
        return Morphs(probability, rows.cpu().numpy())

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample."""
        face, target, target_points = self.data.example(batch, self.network)
        faces = averaged_down(face, self.encoder.config.image_size)
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


ROWS = 1024  # codes that are summed up at a time
NEUTRAL_RIDGE = 0.1  # of what is taken off a code that was read, in units of its variances


class PartsEncoderTask:
    """Learn to read the code of the parts of faces.

    The code itself is found from the registered training faces at the start, and with it the
    decoder that draws it, which is saved beside the encoder. Steps teach the finder of landmarks.
    At the end, what other photos of a person say beyond the first, such as a smile, is taken off
    by ridge regression.
    """

    name = "encoder"

    def __init__(self, data: Path, preset: str, card: Card) -> None:
        """Open the data and make the networks.

        Args:
            data: folder that holds the trees of train and val.
            preset: shape of the networks, one of `appearance_model.CONFIGS`.
            card: of the checkpoint.

        Raises:
            DatasetError: as `FaceData`.
            ImageError: if no photo can be read.
        """
        config, drawn = appearance_model.CONFIGS[preset], face_decoder.CONFIGS[preset]
        preprocessing = PREPROCESSING[preset]
        self.data = FaceData(data, drawn.landmarks, preprocessing.fit)
        self.train_data, self.val_data = self.data.train, self.data.val
        self.settings: dict[str, object] = {"preset": preset, "photos": len(self.train_data)}
        self.card = card
        self.decoder, code, textures = self.data.linear_decoder(drawn)
        config = dataclasses.replace(config, landmarks=self.data.landmarks)
        self.encoder = PartsEncoder(config, preprocessing)
        self.decoder.requires_grad_(False)
        self.network = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.encoder.fit(code, textures)
        self.encoder.neutral.requires_grad_(False)
        self.defaults: dict[str, object] = {}
        self.notes = self.data.notes
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
        reads, people, owns = [], [], []
        for batch in batches(1):
            reads.append(self.encoder.read(batch["face"]).float())
            people.append(batch["identity"])
            owns.append(batch["own"])
        read, identity, own = (torch.cat(parts) for parts in (reads, people, owns))
        n = len(read)
        first = torch.full((int(identity.max()) + 1,), n, device=read.device)
        first.scatter_reduce_(0, identity[own], torch.nonzero(own)[:, 0], "amin")
        wanted = torch.where(own, torch.arange(n, device=read.device), first[identity])
        moments = RidgeSums()
        for part in torch.split(torch.nonzero(wanted < n)[:, 0], ROWS):
            moments.add(read[part], read[wanted[part]] - read[part])
        weight, bias = moments.solve(NEUTRAL_RIDGE)
        self.encoder.neutral.weight.copy_(weight.T)
        self.encoder.neutral.bias.copy_(bias)
        self.encoder.train()
        return True

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw photos above their reconstructions, as one picture [3 h w]."""
        self.encoder.eval()
        _, drawn = draw_faces(self.decoder, self.encoder(batch["face"]))
        self.encoder.train()
        return sheet(batch["face"], drawn)

    def save(self, path: Path, storage: torch.dtype, metrics: Mapping[str, float]) -> None:
        """Write the encoder as a checkpoint, and beside it the decoder."""
        card = dataclasses.replace(self.card, metrics=dict(metrics))
        space = save(path, self.encoder, card=card, storage=storage)
        decoder = path.with_name("decoder.safetensors")
        save(decoder, self.decoder, card=card, embedding_space=space, storage=storage)
