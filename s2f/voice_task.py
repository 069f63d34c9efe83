"""What is learned from voices: the voice encoder, as a training task.

Speech is to reach the embedding that a face encoder, which is not trained here, gives the
speaker's face; `train` runs the task as it runs those of the faces.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from s2f import augment, balance, face_decoder, face_encoder, layout, losses
from s2f.checkpoint import Card, Checkpoint, save
from s2f.drawing import draw_faces, sheet
from s2f.embeddings import BATCH, Maker
from s2f.errors import CheckpointError, DatasetError, ImageError, UsageError
from s2f.face_encoder import batch_embedder
from s2f.feed import Item, Key, load
from s2f.front_end import spectrogram
from s2f.header import check_space
from s2f.images import load_face
from s2f.packed import is_pack
from s2f.pairing import Pairing
from s2f.ridge import Moments, solve_last_layers
from s2f.runtime import Progress, silent
from s2f.voice_dataset import PackedVoices, Voices
from s2f.voice_encoder import VoiceEncoder
from s2f.voice_plan import plan
from s2f.voice_presets import NOTHING_ELSE, VoiceOptions


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
        options: VoiceOptions = NOTHING_ELSE,
        loss_weights: str | None = None,
        contrastive: float | None = None,
        pairing: Pairing = "all-to-all",
        per_identity: int | None = None,
        progress: Progress = silent,
    ) -> None:
        """Make the network and open the data.

        Args:
            data: folder that holds the trees or packs of train and val.
            preset: of the network and of its training: `paper`, `seed` or `compact`.
            encoder: the face encoder that defines the embedding.
            decoder: a face decoder made for it.
            card: of the checkpoint.
            device: that the two frozen networks compute on.
            options: what else is said of the voice encoder.
            loss_weights: which losses, and their weights, as `balance.choose_weights` reads them.
            contrastive: weight of InfoNCE, which is not there without.
            pairing: of recordings with faces, as `Voices` has it.
            per_identity: most recordings of a person; None for all.
            progress: told of faces that are embedded.

        Raises:
            UsageError: if the weights are no weights of this task's losses, or as `plan`.
            DatasetError: as `Voices` and `PackedVoices`, or if `train` has one identity.
            CheckpointError: if the networks or the pack are of different spaces or sizes, or as
                `plan`.
            DependencyError: as `plan`.
        """
        assert isinstance(encoder.network, face_encoder.FaceEncoder)
        assert isinstance(decoder.network, face_decoder.FaceDecoder)
        check_space([encoder, decoder])
        self.encoder, self.decoder = encoder.network.to(device), decoder.network.to(device)
        self.space, self.card = encoder.embedding_space, card
        folders = [layout.split(data, name) for name in ("train", "val")]
        embedding = self.encoder.config.embedding
        if self.decoder.config.embedding != embedding:
            raise CheckpointError(
                f"{decoder.path}: draws from embeddings of {self.decoder.config.embedding} values; "
                f"{encoder.path} gives {embedding}",
                hint="use networks that were trained with the same face encoder",
            )
        self.plan = plan(preset, options, embedding=embedding)
        self.network, self.front_end = self.plan.network, self.plan.front_end
        self.groups, self.defaults = self.plan.groups, self.plan.defaults
        self.loss_weights = self._weights(preset, loss_weights, contrastive)
        self.train_data, self.val_data = (
            self._voices(
                *(folder, device),
                pairing=pairing,
                per_identity=per_identity,
                shortest=self.plan.shortest,
                progress=progress,
            )
            for folder in folders
        )
        self.settings: dict[str, object] = {
            "preset": preset,
            "recordings": len(self.train_data),
            "face_encoder": encoder.sha256,
            "face_decoder": decoder.sha256,
            **self.plan.settings,
        }
        if pairing != "all-to-all":
            self.settings["pairing"] = pairing
        if per_identity is not None:
            self.settings["per_identity"] = per_identity
        for split, voices in (("train", self.train_data), ("val", self.val_data)):
            if isinstance(voices, PackedVoices):
                self.settings[f"{split}_pack"] = voices.sha256
        self.notes = [*self.plan.notes, *self.train_data.notes, *self.val_data.notes]
        self.predicted = torch.empty(0)

    def _weights(
        self, preset: str, choice: str | None, contrastive: float | None
    ) -> dict[str, float]:
        if not 0 < (1.0 if contrastive is None else contrastive) < math.inf:
            raise UsageError(
                f"--contrastive {contrastive}: is no weight above 0",
                hint="leave it out to train without InfoNCE",
            )
        usual = {"decoder/l1": 0.01, "embedding/l2": 1.0, "encoder/distill": 1.0}
        if not self.encoder.config.identities:
            del usual["encoder/distill"]
        known = [*usual, "embedding/mse"]
        if preset == "compact":  # squares, of the code of a linear decoder
            usual = {"embedding/mse": 1.0, "embedding/l2": 0.1}
        weights = balance.choose_weights(choice, usual, known, self.decoder.config.first_width)
        if contrastive is not None:
            weights[balance.CONTRASTIVE] = contrastive
        return weights

    def _voices(
        self,
        folder: Path,
        device: torch.device,
        *,
        pairing: Pairing = "all-to-all",
        per_identity: int | None = None,
        shortest: int | None = None,
        progress: Progress = silent,
    ) -> Voices | PackedVoices:
        clip_samples = self.front_end.clip_samples
        voices: Voices | PackedVoices
        if is_pack(folder):
            voices = PackedVoices(
                folder,
                clip_samples=clip_samples,
                embedding_space=self.space,
                shortest=shortest,
                pairing=pairing,
                per_identity=per_identity,
            )
        else:
            voices = Voices(
                folder,
                Maker(
                    "the face encoder",
                    self.encoder.config.embedding,
                    self.encoder.preprocessing.fit,
                    batch_embedder(self.encoder, device=device, batch_size=BATCH),
                ),
                clip_samples=clip_samples,
                shortest=shortest,
                pairing=pairing,
                per_identity=per_identity,
                progress=progress,
            )
        if voices.n_identities < 2 and folder.name in layout.SPLITS["train"]:
            raise DatasetError(
                f"{folder}: has one identity with a voice and a face: nothing to tell apart",
                hint="add people; s2f prep split makes train, val and test of a tree",
            )
        return voices

    def _hear(self, waveforms: Tensor, *, augmented: bool) -> Tensor:
        """Turn waveforms [b n] into spectrograms; always in single precision."""
        with torch.autocast(waveforms.device.type, enabled=False):
            if augmented:
                waveforms = augment.voices(waveforms, self.plan.augment)
            heard = spectrogram(waveforms, self.front_end)
            return augment.masked(heard) if augmented and self.plan.augment.spec else heard

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample; single precision, whatever the network's is.

        In validation without InfoNCE: its value is one of the batch, and batches there are mostly
        of one person, as recordings come in the order of the people.
        """
        target = batch["embedding"]
        predicted = self.network(self._hear(batch["waveform"], augmented=augmented)).float()
        self.predicted = predicted
        first_layers = self.decoder.first_layers
        terms: dict[str, Callable[[], Tensor]] = {
            "decoder/l1": lambda: losses.decoder_l1(
                first_layers(predicted).float(), first_layers(target).float()
            ),
            "embedding/l2": lambda: losses.embedding_l2(predicted, target),
            "embedding/mse": lambda: losses.embedding_mse(predicted, target),
            "encoder/distill": lambda: losses.encoder_distill(
                self._logits(predicted), self._logits(target)
            ),
            balance.CONTRASTIVE: lambda: losses.infonce(predicted, target, batch["identity"]),
        }
        if not self.network.training:
            del terms[balance.CONTRASTIVE]
        return {name: terms[name]() for name in self.loss_weights if name in terms}

    def _logits(self, embedding: Tensor) -> Tensor:
        assert isinstance(self.encoder, face_encoder.VGGFace)
        return self.encoder.logits(embedding).float()

    @torch.no_grad()
    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        """Solve the last two layers by ridge regression, for presets that are made for it."""
        if not self.plan.passes:
            return False
        assert isinstance(self.network, VoiceEncoder)
        self.network.eval()
        moments = Moments()
        for batch in batches(self.plan.passes):
            heard = self._hear(batch["waveform"], augmented=True)
            moments.add(self.network.features(heard), batch["embedding"])
        features, targets = [], []
        n = len(self.val_data)
        keys = [[Key(i, seed)] for i in range(n) for seed in range(4)]
        for loaded in load(self.val_data, keys, moments.device, workers=0, max_bad=n):
            if loaded.items is None:
                raise loaded.bad[-1]
            heard = self._hear(loaded.items["waveform"], augmented=False)
            features.append(self.network.features(heard))
            targets.append(loaded.items["embedding"])
        x, y = torch.cat(features), torch.cat(targets)
        solve_last_layers(moments, x, y, self.network.hidden, self.network.embedding)
        self.network.train()
        return True

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw photos, faces of their embeddings and faces of the voices, as a picture [3 h w].

        Without the photos where there are none; grey for one that is missing or cannot be read:
        its embedding is all that is learned from.
        """
        self.network.eval()
        voice = self.network(self._hear(batch["waveform"], augmented=False)).float()
        self.network.train()
        rows = [draw_faces(self.decoder, e)[1] for e in (batch["embedding"], voice)]
        photos = [self.val_data.photo(index) for index in batch["index"].tolist()]
        if any(photos):
            row = torch.full_like(rows[0], 0.5)
            for place, path in enumerate(photos):
                if path is not None:
                    with contextlib.suppress(ImageError):
                        row[place] = load_face(path, fit=self.encoder.preprocessing.fit) / 255
            rows.insert(0, row)
        return sheet(*rows)

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
