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
from torch import Tensor, nn

from s2f import ast_encoder, augment, face_decoder, face_encoder, layout, losses, voice_encoder
from s2f.ast_encoder import ASTEncoder, ASTEncoderConfig, read_ast
from s2f.audio import SAMPLE_RATE
from s2f.checkpoint import (
    AnyVoiceEncoder,
    Card,
    Checkpoint,
    check_space,
    load,
    payload_sha256,
    save,
)
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key, load_batches
from s2f.distributed import ALONE, Ranks
from s2f.embeddings import BATCH, Maker
from s2f.errors import CheckpointError, DatasetError, ImageError, UsageError
from s2f.face_decoder import draw_faces, sheet
from s2f.face_encoder import batch_embedder
from s2f.images import load_face
from s2f.losses import RidgeSums, solve_last_layers
from s2f.pack import is_pack, read_index
from s2f.speaker_encoder import CONFIGS as SPEAKER_CONFIGS
from s2f.speaker_encoder import AttributeEncoder, SpeakerEncoder, SpeakerEncoderConfig, body_of
from s2f.spectrogram import FRONT_ENDS, HOP_LENGTH, WIN_LENGTH, FrontEnd, read_stats, spectrogram
from s2f.train import Group
from s2f.voice_data import Pairing, Sampling, Voices
from s2f.voice_encoder import VoiceEncoder, VoiceEncoderConfig

EXAMPLES = {  # of what a network starts from: an id of Hugging Face's hub, or a checkpoint
    "ast": "MIT/ast-finetuned-audioset-10-10-0.4593 (or a folder)",
    "speaker": "speaker.safetensors, as s2f convert resemblyzer makes it",
}
SAME = "give the --arch and --preset that it was trained with, or leave --init out"
HEAD_STEPS = 1000  # that train the head of a pretrained network alone; ours
BODY_LR = 0.1  # of its body: its share of the learning rate, which is the head's
HEAD_DROPOUT = 0.3  # of the hidden layer in the head of a speaker encoder; ours


@dataclass(frozen=True)
class VoicePreset:
    """A voice encoder, what it hears, and how it is trained."""

    # Its shape. The front end decides how many channels and frequencies it has, the face encoder
    # how many values its embedding has, and a pretrained network all but its head.
    network: VoiceEncoderConfig | ASTEncoderConfig | SpeakerEncoderConfig
    front_end: FrontEnd  # what it hears; an AST clips of the length that its positions have
    losses: Mapping[str, float]  # weights; `encoder/distill` only if the encoder knows identities
    compared: int = 1  # layers of the decoder's trunk whose features `decoder/...` compares
    # Of `TrainConfig`, where another; and `epochs`, where no steps are said.
    training: Mapping[str, object] = field(default_factory=dict)
    augment: tuple[str, ...] = ()  # of `augment.WAYS`: how recordings are disturbed
    shortest: int | None = None  # samples of the shortest clips; None: all have the front end's
    anywhere: bool = True  # whether clips are cut out anywhere, or are the recordings' first
    # Through the training data, each recording disturbed anew, from which the last layers are
    # solved in the end; 0 where all is learned by gradient steps.
    passes: int = 0


# Oh et al. 2019. Their data have a frame of each clip's own: `--pairing same-clip`.
_PAPER = VoicePreset(
    network=voice_encoder.CONFIGS["paper"],
    front_end=FRONT_ENDS["paper"],
    # They weigh so throughout, by the rule that we follow: from `calibrate_at` on the weights are
    # those that make the gradients by the predicted embedding equally long. Before it, theirs.
    losses={"decoder/l1": 1.0, "embedding/l2": 0.025, "encoder/distill": 200.0},
    compared=1,
    training={
        "optimizer": "adam",
        "betas": (0.5, 0.999),  # the second is not published: Adam's own
        "eps": 1e-4,
        "lr": 1e-3,
        "schedule": "paper",  # x 0.95 every 10,000 steps
        "weight_decay": 0.0,
        "clip": 0.0,
        "batch_size": 8,
        "epochs": 3,
        "calibrate_at": 1000,
    },
    anywhere=False,
)
# Kacper-Pietkun/Speech-to-face, `train_ve_conv.py` and `losses.py`. There embeddings are divided by
# the norm of the whole batch, which comes to the same where they are equally long.
_SEED = VoicePreset(
    network=voice_encoder.CONFIGS["seed"],
    front_end=FRONT_ENDS["seed"],
    # The distillation is summed over the batch, of 4, where ours is a mean.
    losses={"decoder/mae": 1.0, "embedding/l2": 0.025, "encoder/distill": 4 * 200.0},
    compared=2,
    training={
        "optimizer": "adam",
        "betas": (0.5, 0.999),
        "eps": 1e-4,
        "lr": 1e-3,
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip": 0.0,
        "batch_size": 4,
        "epochs": 100,
    },
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
# Oh et al.'s losses, and no more of theirs; a body that learns at 1e-4 by AdamW. Source: Vox2Face,
# stage I.
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
        "calibrate_at": 1000,
    },
)
# The losses of Kacper-Pietkun/Speech-to-face, `train_ast.py`; trained as the one before.
_AST_SEED = dataclasses.replace(
    _AST_PAPER,
    network=ast_encoder.CONFIGS["seed"],
    # The distillation is summed over the batch, of 8.
    losses={"decoder/mae": 50.0, "embedding/l2": 30.0, "encoder/distill": 8 * 2.0},
    compared=2,
    training={k: v for k, v in _AST_PAPER.training.items() if k != "calibrate_at"},
)
PRESETS = {
    ("conv", "paper"): _PAPER,
    ("conv", "seed"): _SEED,
    ("conv", "compact"): _COMPACT,
    ("ast", "paper"): _AST_PAPER,
    ("ast", "seed"): _AST_SEED,
    ("ast", "compact"): VoicePreset(
        network=ast_encoder.CONFIGS["compact"],
        front_end=FRONT_ENDS["ast"],
        losses=_COMPACT.losses,
        augment=_COMPACT.augment,
    ),
    # Ours: a head on d-vectors, which is linear, and solved for, unless it has a hidden layer.
    ("speaker", "compact"): VoicePreset(
        network=SPEAKER_CONFIGS["resemblyzer"],
        front_end=FRONT_ENDS["speaker"],
        losses=_COMPACT.losses,
        training={"steps": 2000},
        augment=_COMPACT.augment,
        passes=10,
    ),
}
# Whose weights `--loss-weights` knows by name; the layers that they compare go along.
WEIGHTS = {"published": _PAPER, "seed": _SEED, "seed-ast": _AST_SEED}


@dataclass(frozen=True)
class VoiceOptions:
    """What can be said of a voice encoder besides its preset; None is the preset's."""

    # As in the paper, an Audio Spectrogram Transformer, or a speaker encoder with a head.
    arch: Literal["conv", "ast", "speaker"] = "conv"
    # Where AST starts, a folder or an id of Hugging Face's hub; or where a speaker encoder does, a
    # checkpoint of one.
    pretrained: str | None = None
    random_init: bool = False  # whether it starts at random; goes without saying for compact AST
    head_steps: int | None = None  # that train the head of a pretrained one alone; None: 1000
    # Last layers that are trained after these; None: all of AST, none of a speaker encoder.
    unfreeze: int | None = None
    hidden: int | None = None  # values of a hidden layer in the head of a speaker encoder
    stats: Path | None = None  # file of the mean and standard deviation of the log-mel
    augment: str | None = None  # as `augment.read_ways`
    min_seconds: float | None = None  # length of the shortest clips that are trained on
    loss_weights: str | None = None  # as `losses.choose_weights`, of `WEIGHTS`
    contrastive: float | None = None  # weight of InfoNCE, which is not there without
    pairing: Pairing = "all-to-all"  # of recordings with faces
    per_identity: int | None = None  # most recordings of a person; None for all


NOTHING_ELSE = VoiceOptions()


class VoicePlan(NamedTuple):
    """The preset as the options have it, and its network."""

    recipe: VoicePreset
    network: AnyVoiceEncoder
    groups: Sequence[Group]
    settings: Mapping[str, object]  # what tells it from others of its preset's name
    notes: Sequence[str]  # for people
    start: Card | None  # of the checkpoint that it starts from


def plan_voice(
    preset: str,
    options: VoiceOptions,
    *,
    embedding: int,
    longest: int | None = None,
    init: Checkpoint | None = None,
    space: str = "",
) -> VoicePlan:
    """Make the network of a preset for embeddings of so many values, and decide how it is trained.

    A pretrained network has its own shape; there the preset decides on the head and the recipe.
    So has a transformer or speaker encoder that starts as `init`; of the convolutional one the
    preset decides, and the body of `init` has to fit. Its head is taken as far as it has the same
    shapes and, in the last layer, is for the same embedding `space`; a note names what is new.
    `longest` is how many samples the longest clips have that there are, if they are cut already: a
    speaker encoder learns from these where its own are longer, if they hold a window of it.
    Raises a UsageError if the options contradict each other, the preset or the network, a
    CheckpointError if a checkpoint to start from is none of a speaker encoder, or as `read_ast` and
    `read_stats`; and one if `init` has another body or another front end.
    """
    recipe = choose_preset(options.arch, preset)
    _check(preset, options, init is not None)
    if init is not None:
        theirs = getattr(init.network.config, "architecture", "conv")
        if theirs not in {options.arch, *(["attributes"] if options.arch == "speaker" else [])}:
            message = f"{init.path}: its architecture is {theirs}; this one's is {options.arch}"
            hint = "give --arch speaker, or leave --init out" if theirs == "attributes" else SAME
            raise CheckpointError(message, hint=hint)
    front_end, shortest = recipe.front_end, recipe.shortest
    network: AnyVoiceEncoder
    settings: dict[str, object] = {}
    notes: list[str] = []
    begun: Card | None = None
    if isinstance(recipe.network, VoiceEncoderConfig):
        config = dataclasses.replace(
            recipe.network,
            in_channels=front_end.n_channels,
            n_freqs=front_end.n_freqs,
            hidden=embedding if recipe.passes else recipe.network.hidden,  # one regression
            embedding=embedding,
        )
        network = VoiceEncoder(config)
        new = [] if init is None else _begin(network, init, space)
        groups = [Group(list(network.parameters()))]
    elif isinstance(recipe.network, SpeakerEncoderConfig):
        own, body = recipe.network, dict[str, Tensor]()
        if init is not None:
            _, front_end, own, _ = _ears(init)
        elif options.pretrained is not None:
            path = Path(options.pretrained)
            begun, front_end, own, body = _ears(load(path, "voice_encoder"))
            settings["pretrained"] = payload_sha256(body)
        if longest is not None and _fewest(own, front_end) <= longest < front_end.clip_samples:
            whole = f"{front_end.clip_samples / SAMPLE_RATE:g} s"
            notes.append(f"clips have {longest / SAMPLE_RATE:g} s, as in the pack, and not {whole}")
            front_end = dataclasses.replace(front_end, clip_samples=longest)
        if front_end.clip_samples != recipe.front_end.clip_samples:
            settings["clip_samples"] = front_end.clip_samples
        hidden, dropout = recipe.network.hidden, recipe.network.dropout
        if options.hidden is not None:
            hidden, dropout, settings["hidden"] = options.hidden, HEAD_DROPOUT, options.hidden
            recipe = dataclasses.replace(recipe, passes=0)  # what is not linear cannot be solved
        sizes = dataclasses.replace(
            own,
            hidden=hidden,
            dropout=dropout,
            embedding=embedding,
            final_relu=recipe.network.final_relu,
        )
        network = SpeakerEncoder(sizes)
        network.begin(body)
        new = [] if init is None else _begin(network, init, space)
        groups = _thawing(network, options, settings, init, new)
        settings["arch"] = "speaker"
    else:
        shape, start, features = recipe.network, None, None
        if options.pretrained is not None:
            start = read_ast(options.pretrained)
            shape = dataclasses.replace(start.config, final_relu=shape.final_relu)
            features = start.features
            settings["pretrained"] = payload_sha256(start.body)
        elif init is not None and isinstance(init.network, ASTEncoder):
            shape = dataclasses.replace(init.network.config, final_relu=shape.final_relu)
        network = ASTEncoder(dataclasses.replace(shape, embedding=embedding))
        if start is not None:
            start.begin(network)
        new = [] if init is None else _begin(network, init, space)
        groups = _thawing(network, options, settings, init, new)
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
    if init is not None:
        begun, heard = init.card, init.front_end
        assert heard is not None
        if heard.kind != front_end.kind:
            message = f"{init.path}: hears by the front end {heard.kind}; this one by"
            raise CheckpointError(f"{message} {front_end.kind}", hint=SAME)
        front_end = dataclasses.replace(front_end, mean=heard.mean, std=heard.std)
        settings["init"] = init.sha256
        notes.append(f"the weights start as those of {init.path}; {_told(new, network)}")
    if options.min_seconds is not None:
        assert not isinstance(network, ASTEncoder)
        shortest = _shortest(options.min_seconds, network.config, front_end)
        settings["min_seconds"] = options.min_seconds
    if options.stats is not None:
        stats = read_stats(options.stats)
        front_end = dataclasses.replace(front_end, mean=stats.mean, std=stats.std)
    if (front_end.mean, front_end.std) != (recipe.front_end.mean, recipe.front_end.std):
        settings["log_mel"] = [front_end.mean, front_end.std]
    ways = recipe.augment if options.augment is None else augment.read_ways(options.augment)
    if ways != recipe.augment:
        settings["augment"] = ",".join(ways) or "none"
    training = dict(recipe.training)
    if options.loss_weights == losses.AUTO:
        training["calibrate_at"] = _PAPER.training["calibrate_at"]
    elif options.loss_weights is not None:
        training.pop("calibrate_at", None)
    recipe = dataclasses.replace(
        recipe,
        network=network.config,
        front_end=front_end,
        training=training | ({} if ways else {"augment": False}),
        compared=WEIGHTS.get(options.loss_weights or "", recipe).compared,
        augment=ways,
        shortest=shortest,
    )
    # Told where they are not what runs had that were begun before there was a choice.
    settings |= {} if recipe.anywhere else {"clips": "first"}
    settings |= {} if recipe.compared == 1 else {"compared": recipe.compared}
    return VoicePlan(recipe, network, groups, settings, notes, begun)


def choose_preset(arch: str, preset: str) -> VoicePreset:
    """Find a preset of an architecture, or raise a `UsageError`."""
    if (arch, preset) not in PRESETS:
        there = " or ".join(name for known, name in PRESETS if known == arch)
        message = f"--preset {preset}: there is none of --arch {arch}"
        raise UsageError(message, hint=f"give --preset {there}")
    return PRESETS[arch, preset]


def _ears(start: Checkpoint) -> tuple[Card, FrontEnd, SpeakerEncoderConfig, dict[str, Tensor]]:
    """Give what a speaker encoder starts from: its card, what it hears, its shape and body.

    The body of an encoder by attributes is one, too.
    """
    network = start.network
    if not isinstance(network, SpeakerEncoder | AttributeEncoder):
        message = f"{start.path}: is a voice encoder, but none with the body of a speaker encoder"
        raise CheckpointError(message, hint=f"give {EXAMPLES['speaker']}")
    assert start.front_end
    sizes = {name: getattr(network.config, name) for name in ("n_freqs", "layers", "width")}
    return start.card, start.front_end, SpeakerEncoderConfig(**sizes), body_of(network)


def _begin(
    network: VoiceEncoder | ASTEncoder | SpeakerEncoder, init: Checkpoint, space: str
) -> list[str]:
    """Take the weights of a trained encoder, and name the tensors of the head that are new.

    The body has to be the same; the head's tensors are taken where they have the same shapes, those
    of the last layer where they are for the same embedding `space`.
    """
    other, names = init.network, {id(p): name for name, p in network.named_parameters()}
    head = {names[id(p)] for p in network.head()}
    mine, given = network.state_dict(), other.state_dict()
    if isinstance(other, AttributeEncoder):
        given = body_of(other)  # its head says something else
    elif type(other) is type(network):
        head |= {name for name in given if name.partition(".")[0] in ("hidden", "embedding")}
    for name in sorted((mine.keys() | given.keys()) - head):
        found, wanted = (
            list(some[name].shape) if name in some else "missing" for some in (given, mine)
        )
        if found != wanted:
            message = f"{init.path}: has another body: its {name} is {found}; this one's {wanted}"
            raise CheckpointError(message, hint=SAME)
    new = [
        name
        for name in sorted(head & mine.keys())
        if name not in given
        or given[name].shape != mine[name].shape
        or (name.startswith("embedding.") and init.embedding_space != space)
    ]
    network.load_state_dict({k: mine[k] if k in new else given[k] for k in mine})
    return new


def _told(new: Sequence[str], network: AnyVoiceEncoder) -> str:
    """Tell which tensors are new."""
    state = network.state_dict()
    told = ", ".join(f"{name} {list(state[name].shape)}" for name in new)
    return f"new are {told}" if told else "none are new"


def _thawing(
    network: ASTEncoder | SpeakerEncoder,
    options: VoiceOptions,
    settings: dict[str, object],
    init: Checkpoint | None,
    new: Sequence[str],
) -> list[Group]:
    """Decide which layers of a network with a head are trained, and from which step on.

    Where it starts as `init`, the head goes first alone only if some of it is `new`.
    """
    layers, head_steps, last = network.config.layers, 0, network.config.layers
    source = options.pretrained if init is None else init.path
    if source is not None:
        is_frozen = options.unfreeze is None and isinstance(network, SpeakerEncoder)
        last = 0 if is_frozen else layers if options.unfreeze is None else options.unfreeze
        if not 0 <= last <= layers:
            kind = "transformer" if isinstance(network, ASTEncoder) else "LSTM"
            has = f"{source} has {layers} {kind} layers"
            hint = f"give 0 to {layers}, or leave it out: all of AST, none of a speaker encoder"
            raise UsageError(f"--unfreeze {last}: {has}", hint=hint)
        if not last and options.head_steps is not None:
            message = f"--head-steps {options.head_steps}: nothing is trained but the head"
            hint = f"leave it out, or give --unfreeze 1 to {layers} for what is trained after them"
            raise UsageError(message, hint=hint)
        if last:
            usual = HEAD_STEPS if init is None or new else 0
            head_steps = usual if options.head_steps is None else options.head_steps
        settings |= {"head_steps": head_steps} if head_steps else {}
        settings["unfreeze"] = last
    groups = [Group(network.head())]
    return [*groups, Group(network.body(last), head_steps, BODY_LR)] if last else groups


def _check(preset: str, options: VoiceOptions, has_init: bool) -> None:
    """See that the options fit together and to a preset, and to a start as another."""
    of_body = ("pretrained", "random_init", "head_steps", "unfreeze")
    given = [n for n in of_body if getattr(options, n) != getattr(NOTHING_ELSE, n)]
    if options.head_steps == 0 and options.pretrained is None:  # as it is anyway
        given.remove("head_steps")
    flags = [f"--{name.replace('_', '-')}" for name in given]
    starts = [name for name in given if name in ("pretrained", "random_init")]
    both = " and ".join(("--init", *flags[: len(starts)]))
    message, hint = "", "leave it out"
    arch, log_mel = options.arch, PRESETS[options.arch, preset].front_end.is_log_mel
    begins, by_itself = arch != "conv", (arch, preset) == ("ast", "compact")
    if given and not begins:
        message = f"{flags[0]}: a convolutional encoder is trained from the start, all at once"
        hint += f", or give --arch ast or speaker; that is where {flags[0]} belongs"
    elif options.stats is not None and not log_mel:
        message = f"--stats {options.stats}: the preset {preset} hears no log-mel"
        hint += ", or give --arch ast, or --arch conv --preset compact"
    elif options.hidden is not None and arch != "speaker":
        message = f"--hidden {options.hidden}: only --arch speaker has a head with a hidden layer"
        hint += ", or give --arch speaker"
    elif options.hidden is not None and options.hidden < 1:
        message = f"--hidden {options.hidden}: is no hidden layer in the head of a speaker encoder"
        hint += " for a linear head, or give 1 or more"
    elif has_init and starts:
        message, hint = f"{both} were given: a network starts from one", "leave all but one out"
    elif begins and (len(starts) == 2 or not (starts or by_itself or has_init)):
        said = "both --pretrained and --random-init were given" if starts else "nothing says so"
        message = f"--arch {arch} starts either from pretrained weights or at random, and {said}"
        hint = f"give --pretrained {EXAMPLES[arch]}, or --random-init"
    elif begins and options.pretrained is None and not has_init and (extra := flags[len(starts) :]):
        message = f"{extra[0]}: weights that start at random are all trained from the first step"
        hint += f", or give --pretrained {EXAMPLES[arch]}"
    elif options.min_seconds is not None and arch == "ast":
        message = "--min-seconds: AST's table of positions has one length, and so have its clips"
    if message:
        raise UsageError(message, hint=hint)


def _fewest(config: VoiceEncoderConfig | SpeakerEncoderConfig, front_end: FrontEnd) -> int:
    """Tell how many samples the shortest clips need that an encoder hears."""
    least = HOP_LENGTH * (config.min_frames - 1)
    return least if front_end.is_centred else least + WIN_LENGTH


def _shortest(
    seconds: float, config: VoiceEncoderConfig | SpeakerEncoderConfig, front_end: FrontEnd
) -> int:
    """Check the length of the shortest clips, and give it in samples."""
    whole = front_end.clip_samples
    least = _fewest(config, front_end)
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
        ranks: Ranks = ALONE,
        init: Checkpoint | None = None,
        options: VoiceOptions = NOTHING_ELSE,
        progress: Progress = silent,
    ) -> None:
        """Make the network, and open the trees or packs of train and val in `data`.

        The network starts as `init`, if that is given. The face encoder defines the embedding, the
        face decoder is one made for it; both compute on `device`, and stay as they are. `progress`
        is told of faces that are embedded, of which each of `ranks` does its share. Raises a
        CheckpointError if they are of different spaces or sizes, a UsageError if the weights are no
        weights of this task's losses, a DatasetError if `train` has one identity, or as
        `plan_voice` and `Voices`.
        """
        assert isinstance(encoder.network, face_encoder.FaceEncoder)
        assert isinstance(decoder.network, face_decoder.FaceDecoder)
        check_space([encoder, decoder])
        self.encoder, self.decoder = encoder.network.to(device), decoder.network.to(device)
        self.space = encoder.embedding_space
        folders = [layout.split(data, name) for name in ("train", "val")]
        embedding = self.encoder.config.embedding
        if self.decoder.config.embedding != embedding:
            message = f"{decoder.path}: draws from embeddings of {self.decoder.config.embedding}"
            message += f" values; {encoder.path} gives {embedding}"
            hint = "use networks that were trained with the same face encoder"
            raise CheckpointError(message, hint=hint)
        cut = [read_index(folder).clip_samples for folder in folders if is_pack(folder)]
        longest = min(cut, default=None)
        given = preset, options
        space = self.space
        plan = plan_voice(*given, embedding=embedding, longest=longest, init=init, space=space)
        self.init = init and init.path
        self.network, self.groups, self.recipe = plan.network, plan.groups, plan.recipe
        self.card = card if plan.start is None else card.begun_from(plan.start)
        self.front_end, self.defaults = plan.recipe.front_end, plan.recipe.training
        self.solves = plan.recipe.passes > 0
        self.computes: list[tuple[nn.Module, str]] = [
            (self.network, "forward"),
            (self.decoder, "first_layers"),
        ]
        if self.encoder.config.identities:
            self.computes.append((self.encoder, "logits"))
        if options.contrastive is not None and not 0 < options.contrastive < math.inf:
            message = f"--contrastive {options.contrastive}: is no weight above 0"
            raise UsageError(message, hint="leave it out to train without InfoNCE")
        known = ["decoder/l1", "decoder/mae", "embedding/l2", "embedding/mse"]
        if self.encoder.config.identities:
            known.append("encoder/distill")
        said, named = options.loss_weights, {name: of.losses for name, of in WEIGHTS.items()}
        self.loss_weights = losses.choose_weights(said, self.recipe.losses, known, named)
        if options.contrastive is not None:
            self.loss_weights[losses.CONTRASTIVE] = options.contrastive
        sampling = Sampling(
            *(self.front_end.clip_samples, self.recipe.shortest),
            *(options.pairing, options.per_identity),
            anywhere=self.recipe.anywhere,
        )
        embed = batch_embedder(self.encoder, device=device, batch_size=BATCH)
        maker = Maker("the face encoder", embedding, self.encoder.preprocessing.fit, embed, ranks)
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
            # A pack's index knows the hashes of all its files; of a tree the names are told.
            kind = "files" if voices.pack is None else "pack"
            self.settings[f"{split}_{kind}"] = voices.files
        self.notes = [*plan.notes, *self.train_data.notes, *self.val_data.notes]
        left_out = self.recipe.losses.keys() - set(known)
        if left_out and said in (None, losses.AUTO, *WEIGHTS):
            lacks = f"{' and '.join(sorted(left_out))}: the face encoder knows no identities"
            self.notes.append(f"the {preset} preset's recipe lacks {lacks}")
        self.predicted = torch.empty(0)
        self.gallery = self.val_data.people()

    def _hear(self, waveforms: Tensor, noise: augment.Noise | None = None) -> Tensor:
        """Turn waveforms [b n], disturbed by noise, into spectrograms; in single precision."""
        with torch.autocast(waveforms.device.type, enabled=False):
            if noise is None:
                return spectrogram(waveforms, self.front_end)
            ways = self.recipe.augment
            heard = spectrogram(augment.voices(waveforms, ways, noise), self.front_end)
            if "spec" not in ways:
                return heard
            # Of power the mean is loud: nearly all is far below it.
            behind = 0.0 if self.front_end.kind == "speaker" else None
            return augment.masked(heard, noise, behind)

    def _embed(self, batch: Item, *, augmented: bool) -> Tensor:
        """Embed waveforms, [b d]; what is random follows from the seed of each."""
        noise, network = augment.Noise(batch["seed"]), self.network
        heard = self._hear(batch["waveform"], noise if augmented else None)
        chances: tuple[Tensor, ...] = ()
        if isinstance(network, VoiceEncoder | SpeakerEncoder) and network.training:
            if network.config.dropout:  # so that there is a hidden layer
                chances = (noise.uniform(0, 1, network.config.hidden),)
        embedding: Tensor = network(heard, *chances).float()
        return embedding

    def losses(self, batch: Item, *, augmented: bool) -> dict[str, Tensor]:
        """Losses of a batch, one value a sample; single precision, whatever the network's is.

        In validation without InfoNCE, which `judge` has.
        """
        target = batch["embedding"]
        self.predicted = predicted = self._embed(batch, augmented=augmented)
        terms: dict[str, Callable[[], Tensor]] = {
            "decoder/l1": lambda: losses.decoder_l1(*self._decoded(predicted, target)),
            "decoder/mae": lambda: losses.decoder_mae(*self._decoded(predicted, target)),
            "embedding/l2": lambda: losses.embedding_l2(predicted, target),
            "embedding/mse": lambda: losses.embedding_mse(predicted, target),
            "encoder/distill": lambda: losses.encoder_distill(
                *(self._logits(e) for e in (predicted, target))
            ),
        }
        if self.network.training:
            terms[losses.CONTRASTIVE] = lambda: losses.infonce(predicted, target, batch["identity"])
        # What is compared differs by less than bfloat16 tells apart.
        with torch.autocast(predicted.device.type, enabled=False):
            return {name: terms[name]() for name in self.loss_weights if name in terms}

    def embedded(self, batch: Item) -> Item:
        """Give what of a batch whose losses were computed last is judged."""
        return {
            "predicted": self.predicted,
            "target": batch["embedding"],
            "identity": batch["identity"],
        }

    def judge(self, rows: Item, *, batch_size: int) -> tuple[dict[str, float], dict[str, float]]:
        """Judge embeddings [n d]: InfoNCE, where it is a loss, and recall among people.

        InfoNCE is over batches of the size of training's, mixed always the same way: as recordings
        come they are mostly one person's. Recall is the share of embeddings whose person's face is
        among the nearest 1, 5 or 10 of all `people` by cosine, of each the first face that is
        paired; as near as the own one counts against it.
        """
        from s2f.retrieval import place_queries, recall  # brings all of evaluation along

        order = torch.randperm(
            len(rows["predicted"]), generator=torch.Generator().manual_seed(0)
        ).to(rows["predicted"].device)
        measured = {}
        if losses.CONTRASTIVE in self.loss_weights:
            three = [rows[name][order] for name in ("predicted", "target", "identity")]
            parts = zip(*(torch.split(part, batch_size) for part in three), strict=True)
            values = torch.cat([losses.infonce(*part) for part in parts])
            measured[losses.CONTRASTIVE] = float(values.mean())
        queries, truth = (rows[name].cpu().numpy() for name in ("predicted", "identity"))
        placed = place_queries(queries, truth, *self.gallery)
        found = {f"r{k}": float(recall(placed, k).mean()) for k in (1, 5, 10)}
        return measured, {"people": len(self.gallery[1]), "samples": len(queries), **found}

    def _decoded(self, *embeddings: Tensor) -> Iterator[Tensor]:
        layers = self.recipe.compared
        return (self.decoder.first_layers(e, layers) for e in embeddings)

    def _logits(self, embedding: Tensor) -> Tensor:
        assert isinstance(self.encoder, face_encoder.VGGFace)
        return self.encoder.logits(embedding)

    @torch.no_grad()
    def finish(self, batches: Callable[[int], Iterator[Item]]) -> None:
        """Solve the layers of the head by ridge regression, with the ridges best in validation."""
        network = self.network
        assert isinstance(network, VoiceEncoder | SpeakerEncoder)
        network.eval()
        sums = RidgeSums()
        for batch in batches(self.recipe.passes):
            heard = self._hear(batch["waveform"], augment.Noise(batch["seed"]))
            sums.add(network.features(heard), batch["embedding"])
        x, y = [], []
        n, device = len(self.val_data), network.embedding.weight.device
        keys = [[Key(i, seed)] for i in range(n) for seed in range(4)]
        for loaded in load_batches(self.val_data, keys, device, workers=0, max_bad=n):
            if loaded.items is None:
                raise loaded.bad[-1]
            x.append(network.features(self._hear(loaded.items["waveform"])))
            y.append(loaded.items["embedding"])
        solve_last_layers(sums, torch.cat(x), torch.cat(y), network.hidden, network.embedding)
        network.train()

    @torch.no_grad()
    def sample(self, batch: Item) -> Tensor:
        """Draw photos, faces of their embeddings and faces of the voices, as a picture [3 h w].

        Without the photos where there are none; grey for one that is missing or cannot be read:
        its embedding is all that is learned from.
        """
        self.network.eval()
        voice = self.network(self._hear(batch["waveform"])).float()
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
