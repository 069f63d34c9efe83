"""What is learned from faces by the small encoder: where landmarks are, and what smiles change."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2f import augment, face_decoder, losses, parts_encoder
from s2f.checkpoint import Card, save
from s2f.drawing import draw_faces, sheet
from s2f.feed import Item
from s2f.parts_encoder import REDUCED, PartsEncoder, in_frame
from s2f.preprocessing import PREPROCESSING
from s2f.registration import FaceData
from s2f.ridge import Moments
from s2f.task import Group

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
            preset: shape of the networks, one of `parts_encoder.CONFIGS`.
            card: of the checkpoint.

        Raises:
            DatasetError: as `FaceData`.
            ImageError: if no photo can be read.
        """
        config, drawn = parts_encoder.CONFIGS[preset], face_decoder.CONFIGS[preset]
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
        moments = Moments()
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
