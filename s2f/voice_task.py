"""What is learned from voices: the voice encoder, as a training task.

Speech is to reach the embedding that a face encoder, which is not trained here, gives the
speaker's face; `train` runs the task as it runs those of the faces.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from s2f import augment, balance, face_decoder, face_encoder, layout, losses, voice_encoder
from s2f.checkpoint import Card, Checkpoint, check_space, save
from s2f.dataset import Item, PackedVoices, Voices
from s2f.drawing import draw_faces, sheet
from s2f.errors import DatasetError, UsageError
from s2f.front_end import FRONT_ENDS, spectrogram
from s2f.images import load_face
from s2f.packed import is_pack
from s2f.ridge import Moments, solve_last_layers

# Presets whose last layers are solved, and how often that goes through the training data, each
# recording disturbed anew. The paper's are learned by gradient steps alone.
PASSES = {"compact": 25}
FRONT_END_OF = {  # of each preset of the voice encoder
    "paper": FRONT_ENDS["paper"],
    "seed": FRONT_ENDS["seed"],
    "compact": dataclasses.replace(FRONT_ENDS["ast"], clip_samples=96_000),
}


class VoiceEncoderTask:
    """Learn to reach from speech the embedding of a face. Source: Oh et al. 2019.

    Attributes:
        predicted: the embeddings [b d] that `losses` compared last.
    """

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
        loss_weights: str | None = None,
        contrastive: float | None = None,
    ) -> None:
        """Open the data and make the network.

        Args:
            data: folder that holds the trees or packs of train and val.
            preset: shape of the network.
            encoder: the face encoder that defines the embedding.
            decoder: a face decoder made for it.
            card: of the checkpoint.
            device: that the two frozen networks compute on.
            loss_weights: which losses, and their weights, as `balance.choose_weights` reads them.
            contrastive: weight of InfoNCE, which is not there without.

        Raises:
            UsageError: if the weights are no weights of this task's losses.
            DatasetError: as `Voices` and `PackedVoices`, or if there is nothing to contrast.
            CheckpointError: if the networks or the pack are of different spaces.
        """
        assert isinstance(encoder.network, face_encoder.VGGFace)
        assert isinstance(decoder.network, face_decoder.FaceDecoder)
        check_space([encoder, decoder])
        self.encoder, self.decoder = encoder.network.to(device), decoder.network.to(device)
        self.preset, front_end = preset, FRONT_END_OF[preset]
        self.space, self.front_end, self.card = encoder.embedding_space, front_end, card
        self.train_data = self._voices(layout.split(data, "train"), device)
        self.val_data = self._voices(layout.split(data, "val"), device)
        config = dataclasses.replace(
            voice_encoder.CONFIGS[preset],
            in_channels=front_end.n_channels,
            n_freqs=front_end.n_freqs,
            embedding=self.encoder.config.embedding,
        )
        if preset in PASSES:  # two linear layers that are to be one regression
            config = dataclasses.replace(config, hidden=config.embedding)
        self.network = voice_encoder.VoiceEncoder(config)
        self.settings = {
            "preset": preset,
            "recordings": len(self.train_data),
            "face_encoder": encoder.sha256,
            "face_decoder": decoder.sha256,
        }
        for split, voices in (("train", self.train_data), ("val", self.val_data)):
            if isinstance(voices, PackedVoices):
                self.settings[f"{split}_pack"] = voices.sha256
        self.loss_weights = {"decoder/l1": 0.01, "embedding/l2": 1.0, "encoder/distill": 1.0}
        if not self.encoder.config.identities:
            del self.loss_weights["encoder/distill"]
        if preset in PASSES:  # squares, of the code of a linear decoder, as the regression has
            self.loss_weights = {"embedding/mse": 1.0, "embedding/l2": 0.1}
        if not 0 < (1.0 if contrastive is None else contrastive) < math.inf:
            raise UsageError(
                f"--contrastive {contrastive}: is no weight above 0",
                hint="leave it out to train without InfoNCE",
            )
        known = ["decoder/l1", "embedding/l2", "embedding/mse"]
        known += ["encoder/distill"] if self.encoder.config.identities else []
        width = self.decoder.config.trunk[0]
        self.loss_weights = balance.choose_weights(loss_weights, self.loss_weights, known, width)
        if contrastive is not None:
            self.loss_weights[balance.CONTRASTIVE] = contrastive
            if self.train_data.n_identities < 2:
                raise DatasetError(
                    f"{layout.split(data, 'train')}: has one identity: nothing to contrast",
                    hint="add people, or leave --contrastive out",
                )
        self.predicted = torch.empty(0)
        self.min_samples = 160 * self.network.config.min_frames + 400

    @torch.no_grad()
    def _voices(self, folder: Path, device: torch.device) -> Voices | PackedVoices:
        clip_samples = self.front_end.clip_samples
        if is_pack(folder):
            return PackedVoices(folder, clip_samples=clip_samples, embedding_space=self.space)
        embeddings, fit = [], self.encoder.preprocessing.fit
        for speaker in layout.speakers(folder):
            faces = torch.stack([load_face(path, fit=fit) for path in speaker.images])
            embeddings.append(self.encoder(faces.to(device) / 255).cpu())
        return Voices(folder, embeddings, clip_samples=clip_samples)

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample.

        In validation without InfoNCE: its value is one of the batch, and batches there are mostly
        of one person, as recordings come in the order of the people.
        """
        waveform, target = batch["waveform"], batch["embedding"]
        if augmented:
            shortest = max(self.min_samples, waveform.shape[1] // 3)
            waveform = waveform[:, : augment.random_length(waveform.shape[1], shortest)]
            waveform = augment.voices(waveform)
        self.predicted = predicted = self.network(spectrogram(waveform, self.front_end))
        terms: dict[str, Callable[[], Tensor]] = {
            "decoder/l1": lambda: losses.decoder_l1(
                self.decoder.first_layers(predicted), self.decoder.first_layers(target)
            ),
            "embedding/l2": lambda: losses.embedding_l2(predicted, target),
            "embedding/mse": lambda: losses.embedding_mse(predicted, target),
            "encoder/distill": lambda: losses.encoder_distill(
                self.encoder.logits(predicted), self.encoder.logits(target)
            ),
            balance.CONTRASTIVE: lambda: losses.infonce(predicted, target, batch["identity"]),
        }
        if not self.network.training:
            del terms[balance.CONTRASTIVE]
        return {name: terms[name]() for name in self.loss_weights if name in terms}

    @torch.no_grad()
    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        """Solve the last two layers by ridge regression, for presets that are made for it."""
        if self.preset not in PASSES:
            return False
        self.network.eval()
        moments = Moments()
        for batch in batches(PASSES[self.preset]):
            heard = spectrogram(augment.voices(batch["waveform"]), self.front_end)
            moments.add(self.network.features(heard), batch["embedding"])
        features, targets = [], []
        for i in range(len(self.val_data)):
            for seed in range(4):
                item = self.val_data[i, seed]
                heard = spectrogram(item["waveform"][None].to(moments.device), self.front_end)
                features.append(self.network.features(heard))
                targets.append(item["embedding"][None].to(moments.device))
        x, y = torch.cat(features), torch.cat(targets)
        solve_last_layers(moments, x, y, self.network.hidden, self.network.embedding)
        self.network.train()
        return True

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw faces of the targets above faces of the voices, as one picture [3 h w]."""
        self.network.eval()
        voice = self.network(spectrogram(batch["waveform"], self.front_end))
        self.network.train()
        return sheet(*(draw_faces(self.decoder, e)[1] for e in (batch["embedding"], voice)))

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
