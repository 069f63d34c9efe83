"""Checkpoints: one safetensors file a network, with everything needed to run it.

The file's metadata holds one JSON: format version, kind, config, preprocessing, the embedding
space, a card, and the SHA-256 of the payload. Plain tensors and JSON: nothing is unpickled.

The embedding space is a hash of the face encoder's payload and preprocessing. It ties a voice
encoder and a decoder to the face encoder that they were made for.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

import s2f
from s2f import ast_encoder, face_decoder, face_encoder, voice_encoder
from s2f.errors import CheckpointError
from s2f.front_end import FrontEnd
from s2f.header import VERSION, not_ours, read_header
from s2f.payload import payload_sha256, write
from s2f.runtime import atomic_write

KINDS = ("voice_encoder", "face_encoder", "face_decoder")
MODELS = Path(__file__).parent / "models"  # the bundled ones, a folder each
AnyVoiceEncoder = voice_encoder.VoiceEncoder | ast_encoder.ASTEncoder
Network = AnyVoiceEncoder | face_encoder.VGGFace | face_decoder.FaceDecoder


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
        network: in evaluation mode, float32, on the CPU.
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
    preparation = network.preprocessing if isinstance(network, face_encoder.VGGFace) else front_end
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
    return "face_encoder" if isinstance(network, face_encoder.VGGFace) else "face_decoder"


def load(path: Path, kind: str) -> Checkpoint:
    """Read a checkpoint, check it, and build its network.

    Raises:
        CheckpointError: if the file is missing, damaged, not ours, of another kind or version, or
            its tensors do not fit its config.
        DependencyError: if it is an AST voice encoder and transformers is not installed.
    """
    header = read_header(path, kind)
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise not_ours(path, error) from error
    if payload_sha256(tensors) != header["sha256"]:
        raise CheckpointError(
            f"{path}: is damaged: its tensors do not have the SHA-256 in its header",
            hint="copy or download the file again",
        )
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
    network.load_state_dict(
        {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, assign=True
    )
    network.requires_grad_(False).eval()
    space, sha256 = header["embedding_space"], header["sha256"]
    return Checkpoint(path, kind, network, front_end, space, card, sha256)


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
        face = face_encoder.VGGFace(
            face_encoder.VGGFaceConfig(**config), face_encoder.Preprocessing(**preparation)
        )
    face.mean = torch.tensor(face.preprocessing.mean).view(3, 1, 1)
    return face, None


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
    """The networks of a model directory that a command asked for; they share one space."""

    name: str
    checkpoints: Mapping[str, Checkpoint]


def load_model(model: str | Path, kinds: tuple[str, ...]) -> Model:
    """Read the networks of a bundled model, or of a directory of checkpoints.

    Raises:
        CheckpointError: if there is no such model, or its networks were made for different face
            encoders, or as `load`.
    """
    bundled = sorted(path.parent.name for path in MODELS.glob("*/face_decoder.safetensors"))
    folder = MODELS / model if model in bundled else Path(model)
    if not os.path.isdir(folder):
        raise CheckpointError(
            f"{model}: is neither a bundled model ({', '.join(bundled)}) nor a folder of "
            "checkpoints",
            hint=f"a model folder holds {', '.join(f'{kind}.safetensors' for kind in KINDS)}",
        )
    checkpoints = {kind: load(folder / f"{kind}.safetensors", kind) for kind in kinds}
    check_space(list(checkpoints.values()))
    return Model(folder.resolve().name, checkpoints)


def check_space(checkpoints: Sequence[Checkpoint]) -> None:
    """Make sure that checkpoints were made for one and the same face encoder.

    Raises:
        CheckpointError: if two of them were not.
    """
    if len({checkpoint.embedding_space for checkpoint in checkpoints}) > 1:
        seen = ", ".join(f"{c.path} of space {c.embedding_space[:8]}" for c in checkpoints)
        raise CheckpointError(
            f"networks of different embedding spaces do not fit together: {seen}",
            hint="use networks that were trained with the same face encoder",
        )
