"""The voice encoder: its presets, what can be said besides, and the task that trains it.

Speech is to reach the embedding that a face encoder, which is not trained here, gives the
speaker's face. A preset and options become a plan: a network, what it hears, and a recipe. The
task adds the data and the losses; the loop is `train`'s.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from s2f import ast_encoder, augment, face_decoder, face_encoder, layout, losses, voice_encoder
from s2f.ast_encoder import ASTEncoder, ASTEncoderConfig, read_ast
from s2f.audio import SAMPLE_RATE
from s2f.checkpoint import AnyVoiceEncoder, Card, Checkpoint, check_space, payload_sha256, save
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key, load_batches
from s2f.embeddings import BATCH, Maker
from s2f.errors import CheckpointError, DatasetError, ImageError, UsageError
from s2f.face_decoder import draw_faces, sheet
from s2f.face_encoder import batch_embedder
from s2f.images import load_face
from s2f.ridge import RidgeSums, solve_last_layers
from s2f.spectrogram import FRONT_ENDS, HOP_LENGTH, WIN_LENGTH, FrontEnd, read_stats, spectrogram
from s2f.train import Group
from s2f.voice_data import Pairing, Sampling, Voices
from s2f.voice_encoder import VoiceEncoder, VoiceEncoderConfig

EXAMPLE = "MIT/ast-finetuned-audioset-10-10-0.4593"  # an id of Hugging Face's hub
HEAD_STEPS = 1000  # that train the head of a pretrained AST alone; ours
BODY_LR = 0.1  # of AST's body: its share of the learning rate, which is the head's


@dataclass(frozen=True)
class VoicePreset:
    """A voice encoder, what it hears, and how it is trained."""

    # Its shape. The front end decides how many channels and frequencies it has, the face encoder
    # how many values its embedding has, and a pretrained AST all but its ReLU.
    network: VoiceEncoderConfig | ASTEncoderConfig
    front_end: FrontEnd  # what it hears; an AST clips of the length that its positions have
    losses: Mapping[str, float]  # weights; `encoder/distill` only if the encoder knows identities
    training: Mapping[str, object] = field(default_factory=dict)  # of TrainConfig, where another
    augment: tuple[str, ...] = ()  # of `augment.WAYS`: how recordings are disturbed
    shortest: int | None = None  # samples of the shortest clips; None: all have the front end's
    # Through the training data, each recording disturbed anew, from which the last layers are
    # solved in the end; 0 where all is learned by gradient steps.
    passes: int = 0


# Source: Oh et al. 2019, of which beta 2 is not known.
_PAPER = VoicePreset(
    network=voice_encoder.CONFIGS["paper"],
    front_end=FRONT_ENDS["paper"],
    losses={"decoder/l1": 0.01, "embedding/l2": 1.0, "encoder/distill": 1.0},
    training={
        "optimizer": "adam",
        "betas": (0.5, 0.999),
        "eps": 1e-4,
        "lr": 1e-3,
        "schedule": "paper",
        "weight_decay": 0.0,
        "batch_size": 8,
    },
)
# Source: Kacper-Pietkun/Speech-to-face: the paper's, at a constant rate and in batches of 4.
_SEED = dataclasses.replace(
    _PAPER,
    network=voice_encoder.CONFIGS["seed"],
    front_end=FRONT_ENDS["seed"],
    training={**_PAPER.training, "schedule": "constant", "batch_size": 4},
)
# Ours, for a laptop: squares, of the code of a linear decoder; its last layers are solved.
_COMPACT = VoicePreset(
    network=voice_encoder.CONFIGS["compact"],
    front_end=dataclasses.replace(FRONT_ENDS["ast"], kind="log_mel", clip_samples=96_000),
    losses={"embedding/mse": 1.0, "embedding/l2": 0.1},
    augment=("noise", "gain", "speed", "band"),
    shortest=32_000,
    passes=25,
)
# The paper's losses; a body that learns at 1e-4 by AdamW. Source: Vox2Face, stage I.
_AST_PAPER = VoicePreset(
    network=ast_encoder.CONFIGS["paper"],
    front_end=FRONT_ENDS["ast"],
    losses=_PAPER.losses,
    training={
        "optimizer": "adamw",
        "betas": (0.9, 0.999),
        "lr": 1e-3,
        "schedule": "cosine",
        "weight_decay": 1e-4,
    },
)
PRESETS = {
    ("conv", "paper"): _PAPER,
    ("conv", "seed"): _SEED,
    ("conv", "compact"): _COMPACT,
    ("ast", "paper"): _AST_PAPER,
    ("ast", "seed"): dataclasses.replace(_AST_PAPER, network=ast_encoder.CONFIGS["seed"]),
    ("ast", "compact"): VoicePreset(
        network=ast_encoder.CONFIGS["compact"],
        front_end=FRONT_ENDS["ast"],
        losses=_COMPACT.losses,
        augment=_COMPACT.augment,
    ),
}


@dataclass(frozen=True)
class VoiceOptions:
    """What can be said of a voice encoder besides its preset; None is the preset's."""

    arch: Literal["conv", "ast"] = "conv"  # as in the paper, or an Audio Spectrogram Transformer
    pretrained: str | None = None  # where AST starts: a folder, or an id of Hugging Face's hub
    random_init: bool = False  # whether AST starts at random; goes without saying for `compact`
    head_steps: int | None = None  # that train the head of a pretrained AST alone; None: 1000
    unfreeze: int | None = None  # last layers of it that are trained after these; None: all of it
    stats: Path | None = None  # file of the mean and standard deviation of the log-mel
    augment: str | None = None  # as `augment.read_ways`
    min_seconds: float | None = None  # length of the shortest clips that are trained on
    loss_weights: str | None = None  # as `losses.choose_weights`
    contrastive: float | None = None  # weight of InfoNCE, which is not there without
    pairing: Pairing = "all-to-all"  # of recordings with faces
    per_identity: int | None = None  # most recordings of a person; None for all


NOTHING_ELSE = VoiceOptions()


class VoicePlan(NamedTuple):
    """The preset as the options have it, and its network."""

    recipe: VoicePreset
    network: AnyVoiceEncoder
    groups: Sequence[Group]
    settings: Mapping[str, object]  # of options that are not at their defaults
    notes: Sequence[str]  # for people


def plan_voice(preset: str, options: VoiceOptions, *, embedding: int) -> VoicePlan:
    """Make the network of a preset for embeddings of so many values, and decide how it is trained.

    A pretrained AST has its own shape; there the preset decides on the final ReLU and the recipe.
    Raises a UsageError if the options contradict each other, the preset or the network, or as
    `read_ast` and `read_stats`.
    """
    _check(preset, options)
    recipe = PRESETS[options.arch, preset]
    front_end, shortest = recipe.front_end, recipe.shortest
    network: AnyVoiceEncoder
    settings: dict[str, object] = {}
    notes: list[str] = []
    if isinstance(recipe.network, VoiceEncoderConfig):
        config = dataclasses.replace(
            recipe.network,
            in_channels=front_end.n_channels,
            n_freqs=front_end.n_freqs,
            hidden=embedding if recipe.passes else recipe.network.hidden,  # one regression
            embedding=embedding,
        )
        network = VoiceEncoder(config)
        groups = [Group(list(network.parameters()))]
        if options.min_seconds is not None:
            shortest = _shortest(options.min_seconds, config, front_end)
            settings["min_seconds"] = options.min_seconds
    else:
        shape, start, features, head_steps = recipe.network, None, None, 0
        if options.pretrained is not None:
            start = read_ast(options.pretrained)
            shape = dataclasses.replace(start.config, final_relu=shape.final_relu)
            features = start.features
            settings["pretrained"] = payload_sha256(start.body)
            head_steps = HEAD_STEPS if options.head_steps is None else options.head_steps
            settings["head_steps"], settings["unfreeze"] = head_steps, options.unfreeze
        last = shape.layers if options.unfreeze is None else options.unfreeze
        if not 0 <= last <= shape.layers:
            has = f"{options.pretrained} has {shape.layers} transformer layers"
            hint = f"give 0 to {shape.layers}, or leave it out to train all"
            raise UsageError(f"--unfreeze {last}: {has}", hint=hint)
        network = ASTEncoder(dataclasses.replace(shape, embedding=embedding))
        if start is not None:
            start.begin(network)
        groups = [Group(network.head())]
        if last:
            groups.append(Group(network.body(last), head_steps, BODY_LR))
        settings["arch"] = "ast"
        # 10.26 s of 1024 frames, 6 s of 598
        clip_samples = HOP_LENGTH * (network.config.n_frames + 2)
        # At another length than the published AST's, a checkpoint is read as our own log-mel's.
        kind = front_end.kind if clip_samples == front_end.clip_samples else "log_mel"
        front_end = dataclasses.replace(front_end, kind=kind, clip_samples=clip_samples)
        if features is not None:
            front_end = dataclasses.replace(front_end, mean=features[0], std=features[1])
        elif start is not None and options.stats is None:
            notes.append(
                f"{options.pretrained} has no preprocessor_config.json: its features are "
                "taken to be normalised by the mean and std of AudioSet"
            )
    if options.stats is not None:
        stats = read_stats(options.stats)
        front_end = dataclasses.replace(front_end, mean=stats.mean, std=stats.std)
    if (front_end.mean, front_end.std) != (recipe.front_end.mean, recipe.front_end.std):
        settings["log_mel"] = [front_end.mean, front_end.std]
    ways = recipe.augment if options.augment is None else augment.read_ways(options.augment)
    if ways != recipe.augment:
        settings["augment"] = ",".join(ways) or "none"
    recipe = dataclasses.replace(
        recipe,
        network=network.config,
        front_end=front_end,
        training={**recipe.training, **({} if ways else {"augment": False})},
        augment=ways,
        shortest=shortest,
    )
    return VoicePlan(recipe, network, groups, settings, notes)


def _check(preset: str, options: VoiceOptions) -> None:
    """See that the options fit together and to a preset."""
    of_ast = ("pretrained", "random_init", "head_steps", "unfreeze")
    given = [n for n in of_ast if getattr(options, n) != getattr(NOTHING_ELSE, n)]
    if options.head_steps == 0 and options.pretrained is None:  # as it is anyway
        given.remove("head_steps")
    flags = [f"--{name.replace('_', '-')}" for name in given]
    starts = [name for name in given if name in ("pretrained", "random_init")]
    message, hint = "", "leave it out"
    if options.arch == "conv":
        if given:
            message = f"{flags[0]}: a convolutional encoder is trained from the start, all at once"
            hint += f", or give --arch ast; that is where {flags[0]} belongs"
        elif options.stats is not None and not PRESETS["conv", preset].front_end.is_log_mel:
            message = f"--stats {options.stats}: the preset {preset} hears no log-mel"
            hint += ", or give --preset compact or --arch ast"
    elif len(starts) == 2 or (not starts and preset != "compact"):
        said = "both --pretrained and --random-init were given" if starts else "nothing says so"
        message = f"--arch ast starts either from pretrained weights or at random, and {said}"
        hint = f"give --pretrained {EXAMPLE} (or a folder), or --random-init"
    elif options.pretrained is None and (extra := flags[len(starts) :]):
        message = f"{extra[0]}: weights that start at random are all trained from the first step"
        hint += f", or give --pretrained {EXAMPLE} (or a folder)"
    elif options.min_seconds is not None:
        message = "--min-seconds: AST's table of positions has one length, and so have its clips"
    if message:
        raise UsageError(message, hint=hint)


def _shortest(seconds: float, config: VoiceEncoderConfig, front_end: FrontEnd) -> int:
    """Check the length of the shortest clips, and give it in samples."""
    whole = front_end.clip_samples
    least = HOP_LENGTH * (config.min_frames - 1)
    if front_end.kind != "seed":  # whose frames reach beyond the ends
        least += WIN_LENGTH
    shortest = round(seconds * SAMPLE_RATE) if math.isfinite(seconds) else -1
    if not least <= shortest <= whole:
        bounds = f"{least / SAMPLE_RATE:g} to {whole / SAMPLE_RATE:g}"
        message = f"--min-seconds {seconds:g}: this encoder learns from clips of {bounds} s"
        raise UsageError(message, hint=f"give {bounds}")
    return shortest


class VoiceEncoderTask:
    """Learn to reach from speech the embedding of a face. Source: Oh et al. 2019.

    `predicted` are the embeddings [b d] that `losses` compared last.
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
        progress: Progress = silent,
    ) -> None:
        """Make the network, and open the trees or packs of train and val in `data`.

        The face encoder defines the embedding, the face decoder is one made for it; both compute
        on `device`, and stay as they are. `progress` is told of faces that are embedded. Raises a
        CheckpointError if they are of different spaces or sizes, a UsageError if the weights are no
        weights of this task's losses, a DatasetError if `train` has one identity, or as
        `plan_voice` and `Voices`.
        """
        assert isinstance(encoder.network, face_encoder.FaceEncoder)
        assert isinstance(decoder.network, face_decoder.FaceDecoder)
        check_space([encoder, decoder])
        self.encoder, self.decoder = encoder.network.to(device), decoder.network.to(device)
        self.space, self.card = encoder.embedding_space, card
        folders = [layout.split(data, name) for name in ("train", "val")]
        embedding = self.encoder.config.embedding
        if self.decoder.config.embedding != embedding:
            message = f"{decoder.path}: draws from embeddings of {self.decoder.config.embedding}"
            message += f" values; {encoder.path} gives {embedding}"
            hint = "use networks that were trained with the same face encoder"
            raise CheckpointError(message, hint=hint)
        plan = plan_voice(preset, options, embedding=embedding)
        self.network, self.groups, self.recipe = plan.network, plan.groups, plan.recipe
        self.front_end, self.defaults = plan.recipe.front_end, plan.recipe.training
        if options.contrastive is not None and not 0 < options.contrastive < math.inf:
            message = f"--contrastive {options.contrastive}: is no weight above 0"
            raise UsageError(message, hint="leave it out to train without InfoNCE")
        known = ["decoder/l1", "embedding/l2", "embedding/mse"]
        if self.encoder.config.identities:
            known.append("encoder/distill")
        usual = {name: weight for name, weight in self.recipe.losses.items() if name in known}
        width = self.decoder.config.first_width
        self.loss_weights = losses.choose_weights(options.loss_weights, usual, known, width)
        if options.contrastive is not None:
            self.loss_weights[losses.CONTRASTIVE] = options.contrastive
        sampling = Sampling(
            *(self.front_end.clip_samples, self.recipe.shortest),
            *(options.pairing, options.per_identity),
        )
        embed = batch_embedder(self.encoder, device=device, batch_size=BATCH)
        maker = Maker("the face encoder", embedding, self.encoder.preprocessing.fit, embed)
        self.train_data, self.val_data = (
            Voices(folder, sampling, maker, self.space, progress) for folder in folders
        )
        if self.train_data.n_identities < 2:
            message = (
                f"{folders[0]}: has one identity with a voice and a face: nothing to tell apart"
            )
            hint = "add people; s2f prep split makes train, val and test of a tree"
            raise DatasetError(message, hint=hint)
        self.settings: dict[str, object] = {
            "preset": preset,
            "recordings": len(self.train_data),
            "face_encoder": encoder.sha256,
            "face_decoder": decoder.sha256,
            **plan.settings,
        }
        for name in ("pairing", "per_identity"):
            if (value := getattr(options, name)) != getattr(NOTHING_ELSE, name):
                self.settings[name] = value
        for split, voices in (("train", self.train_data), ("val", self.val_data)):
            if voices.pack is not None:  # its index knows the hashes of all its files
                self.settings[f"{split}_pack"] = voices.pack.index.sha256
        self.notes = [*plan.notes, *self.train_data.notes, *self.val_data.notes]
        self.predicted = torch.empty(0)

    def _hear(self, waveforms: Tensor, *, augmented: bool) -> Tensor:
        """Turn waveforms [b n] into spectrograms; always in single precision."""
        with torch.autocast(waveforms.device.type, enabled=False):
            if augmented:
                waveforms = augment.voices(waveforms, self.recipe.augment)
            heard = spectrogram(waveforms, self.front_end)
            return augment.masked(heard) if augmented and "spec" in self.recipe.augment else heard

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample; single precision, whatever the network's is.

        In validation without InfoNCE: its value is one of the batch, and batches there are mostly
        of one person, as recordings come in the order of the people.
        """
        target, heard = batch["embedding"], self._hear(batch["waveform"], augmented=augmented)
        self.predicted = predicted = self.network(heard).float()
        terms: dict[str, Callable[[], Tensor]] = {
            "decoder/l1": lambda: losses.decoder_l1(
                *(self.decoder.first_layers(e).float() for e in (predicted, target))
            ),
            "embedding/l2": lambda: losses.embedding_l2(predicted, target),
            "embedding/mse": lambda: losses.embedding_mse(predicted, target),
            "encoder/distill": lambda: losses.encoder_distill(
                *(self._logits(e) for e in (predicted, target))
            ),
        }
        if self.network.training:
            terms[losses.CONTRASTIVE] = lambda: losses.infonce(predicted, target, batch["identity"])
        return {name: terms[name]() for name in self.loss_weights if name in terms}

    def _logits(self, embedding: Tensor) -> Tensor:
        assert isinstance(self.encoder, face_encoder.VGGFace)
        return self.encoder.logits(embedding).float()

    @torch.no_grad()
    def finish(self, batches: Callable[[int], Iterator[Item]]) -> bool:
        """Solve the last two layers by ridge regression, for presets that are made for it."""
        network = self.network
        if not self.recipe.passes:
            return False
        assert isinstance(network, VoiceEncoder)
        network.eval()
        sums = RidgeSums()
        for batch in batches(self.recipe.passes):
            heard = self._hear(batch["waveform"], augmented=True)
            sums.add(network.features(heard), batch["embedding"])
        x, y = [], []
        n, device = len(self.val_data), network.embedding.weight.device
        keys = [[Key(i, seed)] for i in range(n) for seed in range(4)]
        for loaded in load_batches(self.val_data, keys, device, workers=0, max_bad=n):
            if loaded.items is None:
                raise loaded.bad[-1]
            x.append(network.features(self._hear(loaded.items["waveform"], augmented=False)))
            y.append(loaded.items["embedding"])
        solve_last_layers(sums, torch.cat(x), torch.cat(y), network.hidden, network.embedding)
        network.train()
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
        save(
            path,
            self.network,
            card=dataclasses.replace(self.card, metrics=dict(metrics)),
            embedding_space=self.space,
            front_end=self.front_end,
            storage=storage,
        )
