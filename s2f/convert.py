"""Weights that others published become checkpoints of ours, and each conversion is proven.

    file -> `read_foreign` -> `fill` our network -> `prove` it by `reference` -> checkpoint

A published network is described once, as `Layer`s: what each does, its name in the file and the
name of our module for it. From that follow how our network is filled, and `reference`, an
independent way to what it must give: NumPy on the file's own arrays, in the file's own layout,
channels last. Where the two differ nothing is written. For VGG-Face, Keras can be asked too.

Layouts: the kernel of a convolution is H W in out in Keras and out in H W in torch, that of a
dense layer in out and out in. A Flatten before a dense layer gives H W C in Keras and C H W in
torch; the seed's torch file of rcmalli's weights still wants H W C.

Source: the layers of serengil/deepface, rcmalli/keras-vggface and Kacper-Pietkun/Speech-to-face
(VGG-Face, VE_conv and its face decoder); Gong et al. 2021 (AST); Wan et al. 2018 and
resemble-ai/Resemblyzer (the speaker encoder).
"""

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2f import (
    ast_encoder,
    face_decoder,
    face_encoder,
    foreign_weights,
    speaker_encoder,
    voice_encoder,
)
from s2f.ast_encoder import LAYER_NORM_EPS, ASTEncoder, published_name
from s2f.checkpoint import KINDS, Card, Network, kind_of, save
from s2f.console import Progress, silent
from s2f.errors import CheckpointError, OutputError, UsageError
from s2f.face_decoder import FaceDecoder
from s2f.face_encoder import VGGFace
from s2f.files import atomic_folder, check_writable
from s2f.foreign_weights import OTHER
from s2f.images import PREPROCESSING, Preprocessing
from s2f.keras_check import Origin, keras_taps, require_tensorflow
from s2f.speaker_encoder import SpeakerEncoder
from s2f.spectrogram import FRONT_ENDS, WINDOW_FRAMES, WINDOW_STEP, FrontEnd
from s2f.voice_encoder import VoiceEncoder

Array = NDArray[np.float32]
Arrays = Mapping[str, Array]

TOLERANCE = 1e-4  # of a tap's largest error, relative to its largest value
PUBLISHED_SPACE = "pietkun: embeddings of serengil's VGG-Face, preprocessing seed"
"""The embedding space of the seed's published networks where their face encoder is not given."""

SPEAKER_SPACE = "resemblyzer: d-vectors of its speaker encoder"
"""The embedding space of the converted speaker encoder: of no face, so that no decoder fits it."""
# What only its training used.
SPEAKER_UNUSED = ("similarity_weight", "similarity_bias")

# Features of the published AST: Kacper-Pietkun/Speech-to-face.
AST_FRONT_END = dataclasses.replace(FRONT_ENDS["ast"], mean=-5.460994, std=3.1129124)

# What the cards say of weights that people can download; `data` is added.
CARDS = {
    name: Card(
        f"VGG-Face ({name}/{repository})",
        f"As published at https://github.com/{name}/{repository}{file}",
        licence="Not stated in the file. VGG-Face is of academic origin, for non-commercial "
        "research; the licence of the repository that the file is published in does not change "
        "that.",
    )
    for name, repository, file in (
        ("serengil", "deepface", "_models/releases/download/v1.0/vgg_face_weights.h5"),
        (
            *("rcmalli", "keras-vggface"),
            "/releases/download/v2.0/rcmalli_vggface_tf_vgg16.h5, itself converted from Caffe",
        ),
    )
} | {
    name: Card(
        f"{title} (Kacper-Pietkun/Speech-to-face)",
        f"As published with https://github.com/Kacper-Pietkun/Speech-to-face{what}",
        licence="Not stated in the file: ask its authors before any use beyond research.",
        limits="Trained with embeddings of serengil's VGG-Face on RGB 0..1, squashed: other face "
        "encoders, and this one with other preprocessing, do not fit. Not for recognising anyone.",
    )
    for name, title, what in (
        ("face_decoder", "face decoder", "; its texture is the face itself, unwarped"),
        ("ve_conv", "VE_conv", ": the convolutional voice encoder"),
        ("ast", "AST", ": a fine-tuned MIT/ast-finetuned-audioset-10-10-0.4593"),
    )
}
CARDS["resemblyzer"] = Card(
    "speaker encoder (resemble-ai/Resemblyzer)",
    "GE2E d-vectors, Wan et al. 2018: as published in the Python package resemblyzer, "
    "https://github.com/resemble-ai/Resemblyzer. Its embedding is the d-vector itself: a start for "
    "voice encoders, whose head leads from it to a face.",
    data="Trained by its authors on LibriSpeech-other, VoxCeleb1 and VoxCeleb2.",
    licence="Weights of the speaker encoder: Resemblyzer, copyright 2019 Resemble.AI, Apache-2.0.",
    limits="Tells speakers apart, so that figures on the recordings that it was trained on flatter "
    "it. Not for recognising anyone.",
)


@dataclass(frozen=True)
class Converted:
    """A network that was converted."""

    path: Path  # the checkpoint
    source: Path  # the foreign file
    kind: str  # as in `checkpoint.KINDS`
    embedding_space: str  # that it defines, or was made for
    proven: Mapping[str, float]  # largest error of each tap against NumPy, as `prove` returns
    verified: Mapping[str, float] | None = None  # the same against Keras, where that was asked for
    remarks: tuple[str, ...] = ()  # what was taken off the names in the file


def convert_vgg_face(
    source: Path,
    out: Path,
    *,
    origin: Origin,
    preprocessing: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Converted:
    """Convert the Keras weights (legacy HDF5 or Keras 3's) of a VGG-Face into a checkpoint.

    Pictures are prepared as `images.PREPROCESSING` has it, by default as the origin does; `verify`
    asks Keras itself too. Raises a `CheckpointError` if the file is not of such weights or the
    proof fails, a `DependencyError` if TensorFlow is needed and not installed, and an `OutputError`
    if `out` is there already or cannot be written.
    """
    if verify:
        require_tensorflow()
    if out.is_dir():
        raise OutputError(f"{out}: is a folder", hint="name the file to write with -o")
    _require_other(out, [source])
    _require_free(out, overwrite)
    steps = 2 + verify
    progress(0, steps, "converting and proving")
    prepared = PREPROCESSING[preprocessing or origin]
    published, proven, remarks = convert_file(
        source,
        "keras",
        lambda names: published_vgg_face(origin, keras_names(origin, names), prepared),
    )
    verified = None
    if verify:
        progress(1, steps, "verifying with Keras")
        faces, images = published.example(2)
        expected = keras_taps(source, origin, dataclasses.asdict(published.network.config), images)
        verified = prove(source, "Keras", expected, published.taps(faces))
    progress(steps - 1, steps, "writing")
    space = save(out, published.network, card=_card(origin, source))
    return Converted(out, source, "face_encoder", space, proven, verified, remarks)


def convert_pietkun(
    out: Path,
    *,
    face_decoder: Path,
    ast: Path | None = None,
    ve_conv: Path | None = None,
    face_encoder: Path | None = None,
    kind: Origin | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[Converted]:
    """Convert the checkpoints of Kacper-Pietkun/Speech-to-face into a model folder `out`.

    A model has one voice encoder, `ast` or `ve_conv`; a face encoder is the VGG-Face of `kind` as
    the seed converted it to torch. The others were made for serengil's VGG-Face with preprocessing
    `seed`: they share its embedding space if it is given, or else `PUBLISHED_SPACE`. rcmalli's has
    a space of its own, so that the folder's decoder does not fit it; it is put right in the file,
    and must not be mixed with what was trained on the scrambled one.

    Raises a `CheckpointError` if a file is not of such weights or a proof fails, a
    `DependencyError` if transformers is needed and not installed, an `OutputError` if `out` is
    there already or cannot be written, and a `UsageError` if both voice encoders are given, or one
    of face encoder and kind is missing.
    """
    if ast and ve_conv:
        raise UsageError("a model has one voice encoder: AST and VE_conv were both given")
    if (face_encoder is None) != (kind is None):
        raise UsageError("a face encoder and its kind go together: only one of them was given")
    if ast:
        ast_encoder.require_transformers()
    origin, seed = kind or "", PREPROCESSING["seed"]
    described: dict[str, tuple[Path | None, Callable[[Any], Published]]] = {
        origin: (face_encoder, lambda _: published_vgg_face(origin, seed_names(origin), seed)),
        "face_decoder": (face_decoder, lambda _: published_face_decoder()),
        "ve_conv": (ve_conv, lambda _: published_voice_encoder()),
        "ast": (ast, lambda _: published_ast()),
    }
    jobs = [(name, source, make) for name, (source, make) in described.items() if source]
    parts = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or parts - {f"{kind}.safetensors" for kind in KINDS}:
        raise OutputError(f"{out}: is there and is no model folder", hint="choose another place")
    _require_other(out, [source for _, source, _ in jobs])
    _require_free(out, overwrite or not parts)
    made: list[Converted] = []
    published_space = PUBLISHED_SPACE
    with atomic_folder(out, replace=overwrite) as folder:
        for name, source, make in jobs:
            progress(len(made), len(jobs), source.name)
            published, proven, remarks = convert_file(source, "torch", make)
            part = kind_of(published.network)
            space = save(
                folder / f"{part}.safetensors",
                published.network,
                card=_card(name, source),
                embedding_space=None if part == "face_encoder" else published_space,
                front_end=published.front_end,
            )
            if name == "serengil":
                published_space = space
            target = out / f"{part}.safetensors"
            made.append(Converted(target, source, part, space, proven, remarks=remarks))
            del published  # before the next needs its memory
    return made


def convert_resemblyzer(
    source: Path, out: Path, *, overwrite: bool = False, progress: Progress = silent
) -> Converted:
    """Convert the speaker encoder of resemble-ai/Resemblyzer, its pretrained.pt, to a checkpoint.

    It becomes a voice encoder whose embedding is the d-vector itself, by a linear head that changes
    nothing: what `VoiceOptions.pretrained` starts from. Raises a `CheckpointError` if the file is
    not of such weights or the proof fails, and an `OutputError` if `out` is there already or cannot
    be written.
    """
    if out.is_dir():
        raise OutputError(f"{out}: is a folder", hint="name the file to write with -o")
    _require_other(out, [source])
    _require_free(out, overwrite)
    progress(0, 2, "converting and proving")
    published, proven, remarks = convert_file(source, "torch", lambda _: published_speaker())
    progress(1, 2, "writing")
    space = save(
        out,
        published.network,
        card=_card("resemblyzer", source),
        embedding_space=SPEAKER_SPACE,
        front_end=published.front_end,
    )
    return Converted(out, source, "voice_encoder", space, proven, remarks=remarks)


def _require_other(out: Path, sources: Sequence[Path]) -> None:
    """Make sure that no source is the output, or lies in it, by whatever name."""
    inside = [out, *out.iterdir()] if out.is_dir() else [out]
    for source in sources:
        for path in inside:
            if path.exists() and source.exists() and path.samefile(source):
                hint = "give another place with -o: a source is never replaced"
                raise OutputError(f"{path}: is the source, {source}", hint=hint)


def _require_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        hint = "give --overwrite to replace it, or another name"
        raise OutputError(f"{out}: is there already", hint=hint)
    check_writable(out)


def _card(name: str, source: Path) -> Card:
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    card, made = CARDS[name], f"Converted from {source.name}, SHA-256 {sha256}."
    return dataclasses.replace(card, data=f"{card.data} {made}".lstrip())


class Layer(NamedTuple):
    """A step of a published network: what the file's and our names of its weights begin with."""

    operation: Callable[..., Any]  # in NumPy, of the values, the arrays of the layer and options
    theirs: str = ""
    ours: str = ""
    options: Mapping[str, Any] = {}
    layout: str = ""  # of its weight in the file, as in `LAYOUTS`


# A network: what leads to each tap, and the tap that it starts from ("" is the input).
Taps = Mapping[str, tuple[str, Sequence[Layer]]]


@dataclass(frozen=True)
class Published:
    """A published network in its own terms and in ours."""

    layers: Taps
    network: Network  # ours, on `meta` until it is filled
    shape: tuple[int, ...]  # of one input of ours
    run: Callable[[Tensor], dict[str, Tensor]]  # gives the taps of our network, by the same names
    front_end: FrontEnd | None = None  # of a voice encoder
    unused: Sequence[str] = ()  # what else the file may hold, that ours has no place for

    def example(self, n: int) -> tuple[Tensor, Array]:
        """Make n inputs of noise for our network, and the same, prepared and channels last."""
        # the same every time; no swap of axes leaves it alone
        prepared = x = torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(0))
        if isinstance(self.network, VGGFace):
            x = x.mul(0.25).add(0.5).clamp(0, 1)  # pictures, RGB 0..1
            prepared = self.network.preprocess(x)
        return x, _channels_last(prepared).numpy()

    @torch.inference_mode()
    def taps(self, x: Tensor) -> dict[str, Tensor]:
        """Run our network, channels last."""
        self.network.eval()
        return {tap: _channels_last(tensor) for tap, tensor in self.run(x).items()}


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x


RELU = Layer(lambda x, _: np.maximum(x, 0))
# The names of rcmalli's layers; for the error where a file has none that are known.
_CONVS = (f"conv{k}_{n + 1}" for k, size in enumerate((2, 2, 3, 3, 3), 1) for n in range(size))
VGG16_NAMES = (*_CONVS, "fc6", "fc7", "fc8")


def keras_names(origin: str, names: Sequence[str]) -> tuple[str, ...]:
    """Name the layers of a Keras file in the order of VGG-16's, given the names of its weights.

    serengil's are named by Keras, and so are those of every Keras 3 file: there the order is the
    file's. rcmalli's layers have names of their own, which are wanted then.
    """
    order = tuple(dict.fromkeys(name.rpartition("/")[0] for name in names))
    automatic = all(re.fullmatch(r"(conv2d|convolution2d|dense)(_\d+)?", name) for name in order)
    if len(order) == len(VGG16_NAMES) and (origin == "serengil" or automatic):
        return order
    return VGG16_NAMES  # `fill` then says which of them the file lacks


def seed_names(origin: str) -> tuple[str, ...]:
    """Name the layers of the seed's VGG-Face files in the order of VGG-16's."""
    inner = "1" if origin == "serengil" else "0"  # a padding layer stands before
    heads = ("14.0", "15.0", "16.1") if origin == "serengil" else ("14.1", "15.0", "16.0")
    return tuple(f"layer{n}" for n in (*(f"{k}.{inner}" for k in range(1, 14)), *heads))


def published_vgg_face(
    origin: str, names: Sequence[str], preprocessing: Preprocessing
) -> Published:
    """Describe VGG-Face, with taps features, embedding and logits, by the names in its file."""
    with torch.device("meta"):
        network = VGGFace(face_encoder.CONFIGS["paper"], preprocessing)
    network.mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    config, theirs = network.config, iter(names)
    convs: list[Layer] = []
    for layer in config.layers:  # of ours, a ReLU follows each convolution
        if layer == "M":
            convs.append(Layer(_max_pool, options={"size": (2, 2)}))
        else:
            convs += [Layer(_conv, next(theirs), f"convs.{len(convs)}", {"padding": 1}), RELU]
    # In rcmalli's, dense layers, of a map in H W C.
    head, layout = (_conv, "") if origin == "serengil" else (_dense, "flat map")
    fc6, fc7, fc8 = (Layer(head, next(theirs), n, layout=layout) for n in ("fc6", "fc7", "fc8"))
    layers: Taps = {
        "features": ("", convs),
        "embedding": ("features", [fc6, RELU, fc7, RELU]),
        "logits": ("embedding", [fc8]),
    }

    def run(x: Tensor) -> dict[str, Tensor]:
        features = network.features(x)
        embedding = network.embed(features)
        logits = network.logits(embedding)
        return {"features": features, "embedding": embedding, "logits": logits}

    return Published(layers, network, (3, config.image_size, config.image_size), run)


def published_face_decoder() -> Published:
    """Describe the seed's face decoder, with taps landmarks and texture."""
    with torch.device("meta"):
        network = FaceDecoder(face_decoder.CONFIGS["seed"])
    config = network.config
    network.mean_landmarks = torch.zeros(config.landmarks, 2)

    def mlp(theirs: str, ours: str, n: int) -> list[Layer]:
        layers: list[Layer] = []
        for i in range(n):
            layers.append(Layer(_dense, f"{theirs}.{i}.0", f"{ours}.{i}.0"))
            layers += [Layer(_batch_norm, f"{theirs}.{i}.1", f"{ours}.{i}.1"), RELU]
        return layers

    n, last = len(config.landmark_hidden), len(config.stages)
    points = mlp("landmark_layers", "landmarks", n)
    points.append(Layer(_dense, f"landmark_layers.{n}.0", f"landmarks.{n}"))
    seed = (config.seed_channels, config.seed_size, config.seed_size)  # torch's Flatten is C H W
    texture = [Layer(_dense, "texture_layers.0.0", "seed.0"), RELU]
    texture.append(Layer(lambda x, _: x.reshape(len(x), *seed).transpose(0, 2, 3, 1)))
    for i in range(last - 1):  # an Unflatten stands before the first
        name = f"texture_layers.{i + 1}.{int(i == 0)}"
        texture += [Layer(_double, name, f"stages.{i}"), RELU]
    to_rgb, ours = f"texture_layers.{last}.0", f"stages.{last - 1}"
    texture.append(Layer(_conv, to_rgb, ours, layout="swapped"))
    texture.append(Layer(lambda x, _: 1 / (1 + np.exp(-x))))
    layers: Taps = {
        "trunk": ("", mlp("pre_layers", "trunk", len(config.trunk))),
        "landmarks": ("trunk", points),
        "texture": ("trunk", texture),
    }

    def run(x: Tensor) -> dict[str, Tensor]:
        return dict(zip(("landmarks", "texture"), network(x), strict=True))

    return Published(layers, network, (config.embedding,), run)


def published_voice_encoder() -> Published:
    """Describe the seed's VE_conv, with taps features, pooled over time, and embedding."""
    with torch.device("meta"):
        network = VoiceEncoder(voice_encoder.CONFIGS["seed"])
    config = network.config
    convs: list[Layer] = []
    last = len(config.channels)
    for n, (stride, pool) in enumerate(zip(config.strides, config.pools, strict=True), start=1):
        convs.append(Layer(_conv, f"layer{n}.0", f"convs.{n - 1}.0", {"stride": stride}))
        if n < last:
            convs += [RELU, Layer(_batch_norm, f"layer{n}.2", f"convs.{n - 1}.2")]
            convs.append(Layer(_max_pool, options={"size": pool}))
    convs += [Layer(lambda x, _: x.mean(axis=2, keepdims=True)), RELU]  # over time
    convs.append(Layer(_batch_norm, f"layer{last}.3", "norm"))
    convs.append(Layer(lambda x, _: x.transpose(0, 3, 1, 2).reshape(len(x), -1)))  # as C H W
    hidden = Layer(_dense, f"layer{last + 1}.1", "hidden")
    embedding = Layer(_dense, f"layer{last + 2}.0", "embedding")
    head = [hidden, RELU, embedding, RELU]
    layers: Taps = {"features": ("", convs), "embedding": ("features", head)}

    def run(x: Tensor) -> dict[str, Tensor]:
        return {"features": network.features(x), "embedding": network(x)}

    shape = (config.in_channels, config.n_freqs, config.min_frames)
    return Published(layers, network, shape, run, FRONT_ENDS["seed"])


def published_ast() -> Published:
    """Describe the seed's AST, with the tap embedding and the names before transformers 5."""
    with torch.device("meta"):
        network = ASTEncoder(ast_encoder.CONFIGS["seed"])
    config, body = network.config, "audio_spectrogram_transformer"
    layers = [Layer(_patches, f"{body}.embeddings", "ast.embeddings", {"stride": config.stride})]
    for n in range(config.layers):
        theirs, ours = f"{body}.encoder.layer.{n}", f"ast.encoder.layer.{n}"
        layers.append(Layer(_attention_block, theirs, ours, {"heads": config.heads}))
    mean_of_two = Layer(lambda x, _: x[:, :2].mean(axis=1))
    layers += [Layer(_layer_norm, f"{body}.layernorm", "ast.layernorm"), mean_of_two]
    layers.append(Layer(_layer_norm, "classifier.0.layernorm", "norm"))
    layers += [Layer(_dense, "classifier.0.dense", "embedding"), RELU]
    shape = (1, config.n_freqs, config.n_frames)
    taps: Taps = {"embedding": ("", layers)}
    return Published(taps, network, shape, lambda x: {"embedding": network(x)}, AST_FRONT_END)


def published_speaker() -> Published:
    """Describe Resemblyzer's speaker encoder, with taps windows, each one's, and embedding."""
    with torch.device("meta"):
        network = SpeakerEncoder(speaker_encoder.CONFIGS["resemblyzer"])
    config, scale = network.config, math.sqrt(network.config.width)
    head = torch.nn.Linear(config.width, config.width)
    same, bias = torch.eye(config.width) / scale, torch.zeros(config.width)
    head.load_state_dict({"weight": same, "bias": bias})
    network.embedding = head  # of ours alone: it gives the d-vector as it is
    lstm = Layer(_lstm, "lstm", "lstm", {"layers": config.layers})
    each = [Layer(_windows), lstm, Layer(_dense, "linear", "linear"), RELU, Layer(_unit)]
    mean = [Layer(lambda x, _: x.mean(axis=0, keepdims=True)), Layer(_unit)]
    frames = WINDOW_FRAMES + 2 * WINDOW_STEP  # of three windows
    shape = (config.in_channels, config.n_freqs, frames)

    def run(x: Tensor) -> dict[str, Tensor]:
        windows = x.unfold(3, WINDOW_FRAMES, WINDOW_STEP).permute(3, 0, 1, 2, 4)[:, 0]
        return {"windows": network.d_vectors(windows), "embedding": network(x)}

    taps: Taps = {"windows": ("", each), "embedding": ("windows", mean)}
    return Published(taps, network, shape, run, FRONT_ENDS["speaker"], SPEAKER_UNUSED)


def convert_file(
    source: Path, kind: str, make: Callable[[Sequence[str]], Published]
) -> tuple[Published, dict[str, float], tuple[str, ...]]:
    """Fill the network that `make` describes, given the names in a file, and prove it with NumPy.

    What all names begin with, as `module.`, is taken off. Returns the network, what `prove` does,
    and remarks on what was taken off; raises as `read_foreign`, `fill` and `prove`.
    """
    given, found = foreign_weights.read_foreign(source, kind)
    prefix = shared_prefix([*given], "/" if kind == "keras" else ".")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    remarks = [f"the weights lie under {found.wrapper!r}"] if found.wrapper else []
    remarks += [f"all names begin with {prefix!r}, which was taken off"] if prefix else []
    published = make([*tensors])
    if unused := [name for name in published.unused if tensors.pop(name, None) is not None]:
        remarks.append(f"{' and '.join(unused)} were of its training, and are left out")
    if isinstance(published.network, ASTEncoder):  # whose file may be of any transformers
        tensors = {published_name(name): tensor for name, tensor in tensors.items()}
    fill(published, kind, tensors, source)
    x, prepared = published.example(1)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    expected = reference(published.layers, arrays, prepared)
    del given, tensors, arrays  # before torch, too, needs memory of its own
    return published, prove(source, "NumPy", expected, published.taps(x)), tuple(remarks)


def shared_prefix(names: Sequence[str], separator: str) -> str:
    """Find the parts that all names begin with, as DataParallel's `module.`; no layout has any."""
    parts = [name.split(separator)[:-1] for name in names]  # the last is the weight's own
    shared = itertools.takewhile(lambda part: len(set(part)) == 1, zip(*parts, strict=False))
    return "".join(f"{part[0]}{separator}" for part in shared)


def _unflatten_map(weight: Tensor, shape: torch.Size) -> Tensor:
    _, i, h, w = shape
    return torch.unflatten(weight, 1, (h, w, i)).permute(0, 3, 1, 2)


# How weights become those of ours, by the kind of file and `Layer.layout`; as they are if none is.
LAYOUTS: dict[tuple[str, str], Callable[[Tensor, torch.Size], Tensor]] = {
    ("keras", ""): lambda kernel, _: kernel.permute(3, 2, 0, 1),
    ("keras", "flat map"): lambda kernel, shape: _unflatten_map(kernel.transpose(0, 1), shape),
    ("torch", "flat map"): _unflatten_map,  # H W C
    ("torch", "swapped"): lambda weight, _: weight.transpose(0, 1),  # ours is a transposed one
}


def fill(published: Published, kind: str, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Give a network, which may be on `meta`, the weights of a file, copied: the file can go.

    Buffers that no foreign tensor is for keep their values. Raises a `CheckpointError` if the names
    are not exactly those described, or a shape does not fit.
    """
    state = published.network.state_dict()
    table = {}  # their name -> ours, layout
    for layer in (layer for _, layers in published.layers.values() for layer in layers):
        for ours in state if layer.theirs else ():
            if ours.startswith(f"{layer.ours}."):
                part = ours.removeprefix(f"{layer.ours}.")
                is_weight = part == "weight"
                theirs = f"/{'kernel' if is_weight else part}" if kind == "keras" else f".{part}"
                table[layer.theirs + theirs] = ours, (kind, layer.layout) if is_weight else None
    missing, unknown = sorted(table.keys() - tensors.keys()), sorted(tensors.keys() - table.keys())
    if names := missing or unknown:
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        seen = f"it lacks {some}" if missing else f"it holds {some} beside them"
        raise CheckpointError(f"{source}: has not the layers that were wanted: {seen}", hint=OTHER)
    for name, (ours, layout) in table.items():
        found, wanted = tensors[name], state[ours]
        change = LAYOUTS.get(layout) if layout else None
        try:
            laid_out = change(found, wanted.shape) if change else found
        except (RuntimeError, IndexError):  # torch's, for another number of axes or of values
            laid_out = found
        same_type = found.is_floating_point() == wanted.is_floating_point()
        if laid_out.shape != wanted.shape or not same_type:
            if kind == "keras" and found.ndim == 4 and found.shape == wanted.shape:
                seen = f"{source}: {name} has its channels first, {tuple(found.shape)}"
                raise CheckpointError(seen, hint=foreign_weights.CHANNELS_LAST)
            seen = f"{name} is {found.dtype} {tuple(found.shape)}"
            place = f"{ours}, which is {wanted.dtype} {tuple(wanted.shape)}"
            raise CheckpointError(f"{source}: {seen}; it cannot become {place}", hint=OTHER)
        state[ours] = copy = torch.empty(laid_out.shape, dtype=wanted.dtype)
        if copy.ndim < 2:
            copy.copy_(laid_out)
            continue
        # a few input channels at a time: of fc6, that takes half the time
        for target, few in zip(torch.split(copy, 8, 1), torch.split(laid_out, 8, 1), strict=True):
            target.copy_(few)
    published.network.load_state_dict(state, assign=True)


def prove(
    source: Path, judge: str, expected: Arrays, found: Mapping[str, Tensor]
) -> dict[str, float]:
    """Make sure that a converted network gives what a judge makes of the foreign file.

    Both give taps [b ...], channels last; those that are not in `found` do not count. Returns the
    largest error of each, relative to the tap's largest value, or raises a `CheckpointError` where
    one is over `TOLERANCE`. A tap that is zero everywhere, or not finite, proves nothing: its error
    is infinite.
    """
    errors = {}
    for tap, tensor in found.items():
        wanted, values = (x.reshape(len(x), -1) for x in (expected[tap], tensor.numpy()))
        size = float(np.abs(wanted).max())
        usable = size > 0 and wanted.shape == values.shape
        error = float(np.abs(values - wanted).max()) / size if usable else math.inf
        errors[tap] = error if math.isfinite(error) else math.inf
    if max(errors.values()) > TOLERANCE:
        seen = ", ".join(f"{tap} {error:.1e}" for tap, error in errors.items())
        wrong = f"{source}: the converted network does not give what {judge} makes of the file"
        hint = "nothing was written; are its weights those of a trained network?"
        seen = f"{wrong}: relative errors {seen}; wanted at most {TOLERANCE:g}"
        raise CheckpointError(seen, hint=hint)
    return errors


def reference(taps: Taps, arrays: Arrays, x: Array) -> dict[str, Array]:
    """Run a network on the arrays of its file, from x [b h w c] or [b d], to its taps by name."""
    values = {"": x}
    for tap, (start, layers) in taps.items():
        x = values[start]
        for layer in layers:
            weights = _of(arrays, layer.theirs) if layer.theirs else {}
            x = layer.operation(x, weights, **layer.options)
        values[tap] = x
    del values[""]
    return values


def _kernel(weights: Arrays) -> Array:
    """The kernel, [h w i o] or [i o], of a file of either layout."""
    if "kernel" in weights:
        return weights["kernel"]
    weight = weights["weight"]
    return weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)


def _conv(x: Array, weights: Arrays, stride: int = 1, padding: int = 0) -> Any:
    kernel, around = _kernel(weights), (padding, padding)
    x = np.pad(x, ((0, 0), around, around, (0, 0)))
    kh, kw = kernel.shape[:2]
    h, w = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    out = np.zeros((len(x) * h * w, kernel.shape[3]), np.float32)
    for i, j in np.ndindex(kh, kw):
        seen = x[:, i : i + stride * h : stride, j : j + stride * w : stride]
        out += seen.reshape(-1, x.shape[3]) @ kernel[i, j]
    return out.reshape(len(x), h, w, -1) + weights["bias"]


def _double(x: Array, weights: Arrays) -> Any:
    """Apply a transposed 5x5 convolution: stride 2, padding 2, output padding 1."""
    b, h, w, _ = x.shape
    weight = weights["weight"]  # [i o 5 5]
    canvas = np.zeros((b, 2 * h + 3, 2 * w + 3, weight.shape[1]), np.float32)
    for i, j in np.ndindex(5, 5):
        canvas[:, i : i + 2 * h : 2, j : j + 2 * w : 2] += x @ weight[:, :, i, j]
    return canvas[:, 2 : 2 + 2 * h, 2 : 2 + 2 * w] + weights["bias"]


def _dense(x: Array, weights: Arrays) -> Any:
    """Apply a dense layer to the last axis, or to all of a map."""
    return (x.reshape(len(x), -1) if x.ndim == 4 else x) @ _kernel(weights) + weights["bias"]


def _normed(x: Array, mean: Array, variance: Array, eps: float, weights: Arrays) -> Any:
    scale = weights["weight"] / np.sqrt(variance + np.float32(eps))
    return (x - mean) * scale + weights["bias"]


def _batch_norm(x: Array, weights: Arrays) -> Any:
    return _normed(x, weights["running_mean"], weights["running_var"], 1e-5, weights)  # torch's


def _layer_norm(x: Array, weights: Arrays) -> Any:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return _normed(x, mean, variance, LAYER_NORM_EPS, weights)


def _max_pool(x: Array, weights: Arrays, size: tuple[int, int]) -> Any:
    height, width = size
    b, h, w, c = x.shape
    x = x[:, : h // height * height, : w // width * width]
    return x.reshape(b, h // height, height, w // width, width, c).max(axis=(2, 4))


def _patches(x: Array, weights: Arrays, stride: int) -> Any:
    """Turn a spectrogram [b f t 1] into tokens, the two of the summary first."""
    x = _conv(x, _of(weights, "patch_embeddings.projection"), stride)
    x = x.reshape(len(x), -1, x.shape[-1])
    summary = [np.repeat(weights[f"{kind}_token"], len(x), 0) for kind in ("cls", "distillation")]
    return np.concatenate([*summary, x], axis=1) + weights["position_embeddings"]


def _attention_block(x: Array, weights: Arrays, heads: int) -> Any:
    from scipy.special import erf, softmax

    def linear(x: Array, name: str) -> Any:
        return _dense(x, _of(weights, name))

    y = _layer_norm(x, _of(weights, "layernorm_before"))
    q, k, v = (
        np.stack(np.split(linear(y, f"attention.attention.{part}"), heads, -1))
        for part in ("query", "key", "value")
    )  # [heads b n d]
    scores = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), axis=-1)
    x = x + linear(np.concatenate(list(scores @ v), axis=-1), "attention.output.dense")
    y = linear(_layer_norm(x, _of(weights, "layernorm_after")), "intermediate.dense")
    y = y * np.float32(0.5) * (1 + erf(y / np.float32(math.sqrt(2))))  # the exact GELU
    return x + linear(y, "output.dense")


def _windows(x: Array, weights: Arrays) -> Any:
    """Cut a spectrogram [1 f t 1] into windows [k t f]."""
    starts = range(0, x.shape[2] - WINDOW_FRAMES + 1, WINDOW_STEP)
    return np.stack([x[0, :, start : start + WINDOW_FRAMES, 0].T for start in starts])


def _lstm(x: Array, weights: Arrays, layers: int) -> Any:
    """Run an LSTM over x [k t f], to its last hidden state [k d]; torch's order of the gates."""
    from scipy.special import expit

    for n in range(layers):
        recurrent = weights[f"weight_hh_l{n}"].T
        inputs = x @ weights[f"weight_ih_l{n}"].T + weights[f"bias_ih_l{n}"]
        state = memory = np.zeros((len(x), len(recurrent)), np.float32)
        states = []
        for now in inputs.swapaxes(0, 1):
            gates = now + state @ recurrent + weights[f"bias_hh_l{n}"]
            let_in, keep, new, out = np.split(gates, 4, axis=1)
            memory = expit(keep) * memory + expit(let_in) * np.tanh(new)
            state = expit(out) * np.tanh(memory)
            states.append(state)
        x = np.stack(states, axis=1)
    return state


def _unit(x: Array, weights: Arrays) -> Any:
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)  # zeros stay zeros


def _of(weights: Arrays, layer: str) -> Arrays:
    """The arrays whose names begin with a layer's, by what follows."""
    starts = (f"{layer}.", f"{layer}/")
    return {name[len(layer) + 1 :]: a for name, a in weights.items() if name.startswith(starts)}
