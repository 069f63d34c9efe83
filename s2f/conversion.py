"""What every conversion shares: reading, proving, and the card of what comes out.

Knows nothing of any one published file: those are `convert_keras` and `convert_pietkun`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2f import face_encoder, foreign, proof
from s2f.checkpoint import Card
from s2f.errors import CheckpointError
from s2f.preprocessing import PREPROCESSING


@dataclass(frozen=True)
class Converted:
    """A network that was converted.

    Attributes:
        path: the checkpoint.
        source: the foreign file.
        kind: as in `header.KINDS`.
        embedding_space: that it defines, or was made for.
        proven: largest error of each tap against NumPy, relative to the tap's largest value.
        verified: the same against Keras; None where that was not asked for.
    """

    path: Path
    source: Path
    kind: str
    embedding_space: str
    proven: Mapping[str, float]
    verified: Mapping[str, float] | None = None


def read(source: Path, kind: str) -> foreign.Weights:
    """Read foreign weights that must be of one kind, `keras` or `torch`.

    Raises:
        CheckpointError: as `foreign.read`, or if they are of the other kind.
    """
    weights = foreign.read(source)
    if weights.kind != kind:
        names = {"keras": "Keras (.h5)", "torch": "torch (.pt)"}
        raise CheckpointError(
            f"{source}: holds weights of {names[weights.kind]}; wanted those of {names[kind]}",
            hint="is it the file of another network? See s2f convert inspect",
        )
    return weights


def arrays(weights: foreign.Weights) -> dict[str, proof.Array]:
    """Give the tensors to NumPy, without copying them."""
    return {name: tensor.numpy() for name, tensor in weights.tensors.items()}


def empty_vgg_face(preprocessing: str) -> face_encoder.VGGFace:
    """Make a full-size VGG-Face without weights, with a preset of `PREPROCESSING`."""
    preparation = PREPROCESSING[preprocessing]
    with torch.device("meta"):
        network = face_encoder.VGGFace(face_encoder.CONFIGS["paper"], preparation)
    network.mean = torch.tensor(preparation.mean).view(3, 1, 1)
    return network


def noise(*shape: int) -> Tensor:
    """Make asymmetric input, the same every time: normally distributed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def some_faces(network: face_encoder.VGGFace, n: int) -> Tensor:
    """Make pictures [n 3 h w], RGB 0..1, of noise for VGG-Face."""
    size = network.config.image_size
    return noise(n, 3, size, size).mul(0.25).add(0.5).clamp(0, 1)


def prepared(network: face_encoder.VGGFace, faces: Tensor) -> proof.Array:
    """Prepare pictures [n 3 h w] as a network does, channels last: [n h w 3]."""
    images: proof.Array = network.preprocess(faces).permute(0, 2, 3, 1).contiguous().numpy()
    return images


@torch.inference_mode()
def vgg_face_taps(network: face_encoder.VGGFace, faces: Tensor) -> dict[str, Tensor]:
    """Run VGG-Face: features [n 7 7 c], embedding [n d] and logits [n i]."""
    features = network.eval().features(faces)
    embedding = network.embed(features)
    logits = network.logits(embedding)
    return {"features": features.permute(0, 2, 3, 1), "embedding": embedding, "logits": logits}


def prove(
    source: Path, judge: str, expected: proof.Arrays, found: Mapping[str, Tensor]
) -> dict[str, float]:
    """Make sure that a converted network gives what a judge makes of the foreign file.

    Returns:
        The largest error of each tap, relative to the tap's largest value.

    Raises:
        CheckpointError: if one is over `proof.TOLERANCE`.
    """
    errors = proof.compare(expected, {tap: tensor.numpy() for tap, tensor in found.items()})
    if max(errors.values()) > proof.TOLERANCE:
        seen = ", ".join(f"{tap} {error:.1e}" for tap, error in errors.items())
        raise CheckpointError(
            f"{source}: the converted network does not give what {judge} makes of the file: "
            f"relative errors {seen}; wanted at most {proof.TOLERANCE:g}",
            hint="nothing was written; are its weights those of a trained network?",
        )
    return errors


def card(origin: dict[str, Any], source: Path) -> Card:
    """Make the card of a converted network: what is published, and which file this one is of."""
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Card(**origin, data=f"Converted from {source.name}, SHA-256 {sha256}.")
