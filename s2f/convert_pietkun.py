"""The seed's published checkpoints become a model folder: `s2f convert pietkun`.

foreign files -> `foreign` -> `weight_tables` -> networks -> `proof` -> checkpoints in one folder

A check that fails leaves an error and no folder.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from s2f import (
    ast_encoder,
    conversion,
    face_decoder,
    proof,
    published,
    voice_encoder,
    weight_tables,
)
from s2f.checkpoint import Network, kind_of, save
from s2f.conversion import Converted
from s2f.errors import OutputError, UsageError
from s2f.front_end import FRONT_ENDS, FrontEnd
from s2f.header import KINDS
from s2f.keras_network import Origin
from s2f.runtime import Progress, atomic_folder, silent

PUBLISHED_SPACE = "pietkun: embeddings of serengil's VGG-Face, preprocessing seed"
"""The embedding space of the seed's published networks where their face encoder is not given."""

# Features of the published AST: Kacper-Pietkun/Speech-to-face.
AST_FRONT_END = FrontEnd(
    "ast", clip_samples=FRONT_ENDS["ast"].clip_samples, mean=-5.460994, std=3.1129124
)


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
    """Convert the checkpoints of Kacper-Pietkun/Speech-to-face into a model folder.

    Decoder and voice encoder were made for serengil's VGG-Face with preprocessing `seed`: they
    share its embedding space if it is given, or else `PUBLISHED_SPACE`. A face encoder of kind
    `rcmalli` has a space of its own, so that the folder's decoder does not fit it; it is put right
    in the file, and must not be mixed with what was trained on the scrambled one.

    Args:
        out: the model folder.
        face_decoder: the file of the face decoder.
        ast: of the AST voice encoder; at most one of this and `ve_conv`.
        ve_conv: of the convolutional voice encoder.
        face_encoder: of the VGG-Face, as the seed converted it to torch.
        kind: which VGG-Face that is.
        overwrite: whether a model folder that is there is replaced.
        progress: told what happens.

    Raises:
        CheckpointError: if a file is not of such weights, or a proof fails.
        DependencyError: if `ast` is given and transformers is not installed.
        OutputError: if `out` is there already or cannot be written.
        UsageError: if both voice encoders are given, or one of face encoder and kind is missing.
    """
    if ast and ve_conv:
        raise UsageError("a model has one voice encoder: AST and VE_conv were both given")
    if (face_encoder is None) != (kind is None):
        raise UsageError("a face encoder and its kind go together: only one of them was given")
    if ast:
        ast_encoder.require()
    jobs: list[tuple[Path, dict[str, Any], _Convert, FrontEnd | None]] = []
    if face_encoder and kind:
        card = published.FACE_ENCODERS[kind]
        jobs.append((face_encoder, card, functools.partial(_torch_vgg_face, origin=kind), None))
    jobs.append((face_decoder, published.PIETKUN["face_decoder"], _face_decoder, None))
    if ve_conv:
        jobs.append((ve_conv, published.PIETKUN["ve_conv"], _ve_conv, FRONT_ENDS["seed"]))
    if ast:
        jobs.append((ast, published.PIETKUN["ast"], _ast, AST_FRONT_END))
    made = []
    published_space = PUBLISHED_SPACE
    with _model_folder(out, overwrite) as folder:
        for done, (source, card, convert, front_end) in enumerate(jobs):
            progress(done, len(jobs), source.name)
            network, proven = convert(source)
            name = kind_of(network)
            space = save(
                folder / f"{name}.safetensors",
                network,
                card=conversion.card(card, source),
                embedding_space=None if name == "face_encoder" else published_space,
                front_end=front_end,
            )
            if name == "face_encoder" and kind == "serengil":
                published_space = space
            made.append(Converted(out / f"{name}.safetensors", source, name, space, proven))
            del network  # before the next needs its memory
    return made


_Convert = Callable[[Path], tuple[Network, dict[str, float]]]


def _torch_vgg_face(source: Path, *, origin: Origin) -> tuple[Network, dict[str, float]]:
    weights = conversion.read(source, "torch")
    network = conversion.empty_vgg_face("seed")
    table = weight_tables.torch_vgg(origin, network.config)
    weight_tables.fill(network, table, weights.tensors, str(source))
    faces, arrays = conversion.some_faces(network, 1), conversion.arrays(weights)
    layers = [
        (proof.keras_layout(arrays[f"{name}.weight"]), arrays[f"{name}.bias"])
        for name in weight_tables.torch_layers(origin)
    ]
    expected = proof.vgg(layers, conversion.prepared(network, faces))
    del weights, arrays, layers  # before torch, too, needs memory of its own
    found = conversion.vgg_face_taps(network, faces)
    return network, conversion.prove(source, "NumPy", expected, found)


def _face_decoder(source: Path) -> tuple[Network, dict[str, float]]:
    weights = conversion.read(source, "torch")
    with torch.device("meta"):
        network = face_decoder.FaceDecoder(face_decoder.CONFIGS["seed"])
    network.mean_landmarks = torch.zeros(network.config.landmarks, 2)
    table = weight_tables.face_decoder(network)
    weight_tables.fill(network, table, weights.tensors, str(source))
    embedding = conversion.noise(2, network.config.embedding).relu()
    expected = proof.face_decoder(conversion.arrays(weights), embedding.numpy())
    del weights
    with torch.inference_mode():
        landmarks, texture = network.eval()(embedding)
    found = {"landmarks": landmarks.flatten(1), "texture": texture.permute(0, 2, 3, 1)}
    return network, conversion.prove(source, "NumPy", expected, found)


def _ve_conv(source: Path) -> tuple[Network, dict[str, float]]:
    weights = conversion.read(source, "torch")
    config = voice_encoder.CONFIGS["seed"]
    with torch.device("meta"):
        network = voice_encoder.VoiceEncoder(config)
    weight_tables.fill(network, weight_tables.voice_encoder(), weights.tensors, str(source))
    heard = conversion.noise(1, config.in_channels, config.n_freqs, config.min_frames)
    expected = proof.voice_encoder(conversion.arrays(weights), heard.permute(0, 2, 3, 1).numpy())
    del weights
    with torch.inference_mode():
        found = {"features": network.eval().features(heard), "embedding": network(heard)}
    return network, conversion.prove(source, "NumPy", expected, found)


def _ast(source: Path) -> tuple[Network, dict[str, float]]:
    weights = conversion.read(source, "torch")
    config = ast_encoder.CONFIGS["seed"]
    with torch.device("meta"):
        network = ast_encoder.ASTEncoder(config)
    table = weight_tables.ast_encoder(network, weights.tensors)
    weight_tables.fill(network, table, weights.tensors, str(source))
    heard = conversion.noise(1, 1, config.n_freqs, config.n_frames)
    with torch.inference_mode():
        found = {"embedding": network.eval()(heard)}
    arrays = {ast_encoder.published_name(name): a for name, a in conversion.arrays(weights).items()}
    eps, features = ast_encoder.LAYER_NORM_EPS, heard[:, 0].permute(0, 2, 1).numpy()
    expected = proof.ast_encoder(
        arrays, features, heads=config.heads, stride=config.stride, eps=eps
    )
    return network, conversion.prove(source, "NumPy", expected, found)


@contextlib.contextmanager
def _model_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Make a model folder, whole or not at all, in the place of one that is there if allowed."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or there - {f"{k}.safetensors" for k in KINDS}:
        raise OutputError(f"{out}: is there and is no model folder", hint="choose another place")
    if there and not overwrite:
        raise OutputError(
            f"{out}: is there already", hint="give --overwrite to replace it, or another folder"
        )
    with atomic_folder(out, replace=overwrite) as folder:
        yield folder
