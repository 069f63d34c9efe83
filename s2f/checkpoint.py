"""Checkpoints: one safetensors file a network, with everything needed to run it.

The file's metadata holds one JSON: format version, kind, config, preprocessing, the embedding
space, a card, and the SHA-256 of the payload. Plain tensors and JSON: nothing is unpickled.

The embedding space is a hash of the face encoder's payload and preprocessing. It ties a voice
encoder and a decoder to the face encoder that they were made for.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from torch import nn

import s2f
from s2f import ast_encoder, face_decoder, face_encoder, voice_encoder
from s2f.catalogue import Choice
from s2f.errors import CheckpointError
from s2f.front_end import FrontEnd
from s2f.header import (
    VERSION,
    check_header,
    check_sha256,
    check_space,
    hash_file,
    not_ours,
    read_header,
)
from s2f.parts_encoder import PartsEncoder, PartsEncoderConfig
from s2f.payload import payload_sha256, write
from s2f.preprocessing import Preprocessing
from s2f.runtime import atomic_write

AnyVoiceEncoder = voice_encoder.VoiceEncoder | ast_encoder.ASTEncoder
Network = AnyVoiceEncoder | face_encoder.FaceEncoder | face_decoder.FaceDecoder


@dataclass(frozen=True)
class Card:
    """What a model was made from, what it measures and how it fails."""

    name: str
    description: str = ""
    data: str = ""
    licence: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    limits: str = ""

    @classmethod
    def of_data(cls, data: Path, name: str) -> "Card":
        """Start the card of a model trained on a data tree, from the tree's `card.json` if any.

        Raises:
            CheckpointError: if that file is not a card.
        """
        path = data / "card.json"
        if not path.is_file():
            return cls(name)
        try:
            return cls(**{"name": name, **json.loads(path.read_text(encoding="utf-8"))})
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: is not a card: {error}",
                hint="wanted a JSON object of description, data, licence and limits",
            ) from error


@dataclass(frozen=True)
class Checkpoint:
    """A network read from a file, with what the file says of it.

    Attributes:
        path: the file.
        network: in evaluation mode, on the CPU; float32 unless half precision was kept.
        front_end: the spectrogram that a voice encoder hears; None for the other kinds.
        embedding_space: hash of the face encoder that defines the embedding.
        sha256: of this file's payload.
    """

    path: Path
    kind: str
    network: Network
    front_end: FrontEnd | None
    embedding_space: str
    card: Card
    sha256: str


def save(
    path: Path,
    network: Network,
    *,
    card: Card,
    embedding_space: str | None = None,
    front_end: FrontEnd | None = None,
    storage: torch.dtype = torch.float32,
) -> str:
    """Write a network as a checkpoint, whole or not at all.

    Args:
        path: where to.
        network: its class decides the kind.
        card: what it was made from.
        embedding_space: of the face encoder that a voice encoder or a decoder was made for. A
            face encoder defines its own.
        front_end: of a voice encoder.
        storage: type of the floating-point tensors in the file.

    Returns:
        The embedding space.

    Raises:
        OutputError: if the file cannot be written.
    """
    tensors = {
        name: (tensor.to(storage) if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in network.state_dict().items()
    }
    sha256 = payload_sha256(tensors)
    preparation = (
        network.preprocessing if isinstance(network, face_encoder.FaceEncoder) else front_end
    )
    preprocessing = dataclasses.asdict(preparation) if preparation else None
    space = embedding_space
    if space is None:  # the same weights embed pictures that are prepared otherwise elsewhere
        prepared = json.dumps(preprocessing, sort_keys=True)
        space = hashlib.sha256(f"{sha256} {prepared}".encode()).hexdigest()
    header = {
        "version": VERSION,
        "kind": kind_of(network),
        "config": dataclasses.asdict(network.config),
        "preprocessing": preprocessing,
        "embedding_space": space,
        "card": dataclasses.asdict(card),
        "sha256": sha256,
        "s2f": s2f.__version__,
    }
    with atomic_write(path) as file:
        write(file, tensors, {"s2f": json.dumps(header, sort_keys=True)})
    return space


def kind_of(network: Network) -> str:
    """Name the kind of a network, as in `KINDS`."""
    if isinstance(network, AnyVoiceEncoder):
        return "voice_encoder"
    return "face_encoder" if isinstance(network, face_encoder.FaceEncoder) else "face_decoder"


def load(
    path: Path, kind: str, *, sha256: str | None = None, keep_half: bool = False
) -> Checkpoint:
    """Read a checkpoint, check it, and build its network.

    The tensors stay in the file, and are mapped into memory where they are used as stored.

    Args:
        path: the file.
        kind: of network, as in `KINDS`.
        sha256: of the file's tensors, by `header.hash_file`, if that is known already.
        keep_half: whether the weights of linear layers and convolutions that are float16 stay so,
            for autocast. All else becomes float32.

    Raises:
        CheckpointError: if the file is missing, damaged, not ours, of another kind or version, or
            its tensors do not fit its config.
        DependencyError: if it is an AST voice encoder and transformers is not installed.
    """
    read_header(path, kind)
    sha256 = sha256 or hash_file(path)
    try:
        # Header and tensors of one open file: another that takes its name after it was hashed is
        # refused. Not seen: bytes that change in the file itself, now or while it is used.
        with safetensors.safe_open(path, framework="pt") as file:
            header = check_header(path, file.metadata() or {}, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise not_ours(path, error) from error
    check_sha256(path, header, sha256)
    try:
        network, front_end = _build(kind, header["config"], header["preprocessing"])
        card = Card(**header["card"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its header does not describe a {kind}: {error}",
            hint="it was made by another version of s2f",
        ) from error
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != found:
        name = min(n for n in wanted | found if wanted.get(n) != found.get(n))
        raise CheckpointError(
            f"{path}: tensor {name!r} is {found.get(name)}; its config wants {wanted.get(name)}",
            hint="it was made by another version of s2f",
        )
    kept = _weights(network) if keep_half else set()
    for name, tensor in tensors.items():
        stays = name in kept and tensor.dtype == torch.float16
        if tensor.is_floating_point() and not stays:
            tensors[name] = tensor.float()
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(False).eval()
    return Checkpoint(path, kind, network, front_end, header["embedding_space"], card, sha256)


def _weights(network: nn.Module) -> set[str]:
    """Name the weights of linear layers and convolutions: what is large, and bears rounding."""
    layers = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    return {f"{name}.weight" for name, m in network.named_modules() if isinstance(m, layers)}


def _build(
    kind: str, config: dict[str, Any], preprocessing: dict[str, Any] | None
) -> tuple[Network, FrontEnd | None]:
    config = {name: _tuples(value) for name, value in config.items()}
    with torch.device("meta"):  # no time spent on random weights that `assign` replaces
        if kind == "voice_encoder":
            voice = _voice_encoder(**config)
            front_end = FrontEnd(**(preprocessing or {}))
            heard = front_end.n_channels, front_end.n_freqs
            if heard != (voice.config.in_channels, voice.config.n_freqs):
                raise ValueError(f"its front end gives {heard[0]} x {heard[1]} frequencies")
            voice.config.check_frames(front_end.n_frames(front_end.clip_samples))
            return voice, front_end
        if kind == "face_decoder":
            return face_decoder.FaceDecoder(face_decoder.FaceDecoderConfig(**config)), None
    preparation = {name: _tuples(value) for name, value in (preprocessing or {}).items()}
    with torch.device("meta"):
        face = _face_encoder(Preprocessing(**preparation), **config)
    if isinstance(face, face_encoder.VGGFace):
        face.mean = torch.tensor(face.preprocessing.mean).view(3, 1, 1)
    return face, None


def _face_encoder(
    preprocessing: Preprocessing, architecture: str = "vgg", **config: Any
) -> face_encoder.FaceEncoder:
    """Make the face encoder that a config names; `vgg` goes without saying."""
    if architecture == "parts":
        return PartsEncoder(PartsEncoderConfig(**config), preprocessing)
    if architecture == "vgg":
        return face_encoder.VGGFace(face_encoder.VGGFaceConfig(**config), preprocessing)
    raise ValueError(f"its architecture is {architecture!r}; wanted vgg or parts")


def _voice_encoder(architecture: str = "conv", **config: Any) -> AnyVoiceEncoder:
    """Make the voice encoder that a config names; `conv` goes without saying."""
    if architecture == "ast":
        return ast_encoder.ASTEncoder(ast_encoder.ASTEncoderConfig(**config))
    if architecture == "conv":
        return voice_encoder.VoiceEncoder(voice_encoder.VoiceEncoderConfig(**config))
    raise ValueError(f"its architecture is {architecture!r}; wanted conv or ast")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Model:
    """The networks of a model that a command asked for; they share one space."""

    name: str
    checkpoints: Mapping[str, Checkpoint]


def load_model(choice: Choice, *, keep_half: bool = False) -> Model:
    """Read the networks that `catalogue.choose` found.

    Args:
        choice: whose hashes are waited for.
        keep_half: as for `load`.

    Raises:
        CheckpointError: if the networks were made for different face encoders, or as `load`.
    """
    checkpoints = {
        kind: load(path, kind, sha256=choice.hashes[kind].result(), keep_half=keep_half)
        for kind, path in choice.paths.items()
    }
    check_space(list(checkpoints.values()))
    return Model(choice.name, checkpoints)
