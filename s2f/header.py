"""What a checkpoint says of itself: the JSON in its file, read without its tensors or torch."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from s2f.errors import CheckpointError
from s2f.payload import Contents, file_sha256, read_contents

VERSION = 1
KINDS = ("voice_encoder", "face_encoder", "face_decoder")
# And what JSON has in their place; `preprocessing` is of a decoder, which has none, null.
FIELDS: Mapping[str, tuple[type, ...]] = {
    "kind": (str,),
    "config": (dict,),
    "preprocessing": (dict, type(None)),
    "embedding_space": (str,),
    "card": (dict,),
    "sha256": (str,),
}


@dataclass(frozen=True)
class Facts:
    """What a checkpoint's file says, for people to read.

    Attributes:
        path: the file.
        kind: as in `KINDS`.
        parameters: values of its floating-point tensors, running statistics among them.
        n_bytes: of the file.
        storage: types of its floating-point tensors, `float32` or `float16, float32`.
        card: what it was made from, what it measures and how it fails: not trusted, any JSON.
        embedding_space: hash of the face encoder that defines the embedding.
        sha256: of the tensors, as the header has it; whether that is true, `verify` says.
    """

    path: Path
    kind: str
    parameters: int
    n_bytes: int
    storage: str
    card: Mapping[str, Any]
    embedding_space: str
    sha256: str


class Spaced(Protocol):
    """What was made for one embedding space."""

    @property
    def path(self) -> Path:
        """The file that says so."""

    @property
    def embedding_space(self) -> str:
        """Hash of the face encoder that defines it."""


def read_header(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read the header of a checkpoint; whether the tensors agree with it, `verify` says.

    Args:
        path: the file.
        kind: that it has to be of, as in `KINDS`; by default any of them.

    Returns:
        The header, with the `FIELDS`.

    Raises:
        CheckpointError: if the file is missing, not whole, not ours, or of another kind or version.
    """
    return check_header(path, _contents(path).metadata, kind)


def read_facts(path: Path, kind: str | None = None) -> Facts:
    """Read what the file of a checkpoint says of itself.

    Raises:
        CheckpointError: as `read_header`.
    """
    contents = _contents(path)
    header = check_header(path, contents.metadata, kind)
    floats = [t for t in contents.tensors.values() if "float" in t.dtype]
    return Facts(
        path=path,
        kind=header["kind"],
        parameters=sum(math.prod(tensor.shape) for tensor in floats),
        n_bytes=path.stat().st_size,
        storage=", ".join(sorted({tensor.dtype for tensor in floats})),
        card=header["card"],
        embedding_space=header["embedding_space"],
        sha256=header["sha256"],
    )


def check_header(path: Path, metadata: Mapping[str, str], kind: str | None) -> dict[str, Any]:
    """Find the header of a checkpoint in the metadata of its file; as `read_header`."""
    try:
        header = json.loads(metadata["s2f"])
    except (ValueError, RecursionError) as error:
        raise not_ours(path, error) from error
    except KeyError as error:
        raise CheckpointError(
            f"{path}: is a safetensors file, but not one that s2f wrote",
            hint="wanted a .safetensors file that s2f train wrote",
        ) from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        seen = header.get("version") if isinstance(header, dict) else header
        raise CheckpointError(
            f"{path}: has format version {seen}; this program reads {VERSION}",
            hint="install the version of s2f that made it",
        )
    missing = FIELDS.keys() - header.keys()
    if missing:
        raise CheckpointError(
            f"{path}: its header lacks {', '.join(sorted(missing))}",
            hint="it was not written by s2f as it stands",
        )
    for name, types in FIELDS.items():
        if not isinstance(header[name], types):
            raise CheckpointError(
                f"{path}: its header does not describe a checkpoint: {name} is a "
                f"{type(header[name]).__name__}",
                hint="it was not written by s2f as it stands",
            )
    if header["kind"] not in ((kind,) if kind else KINDS):
        raise CheckpointError(
            f"{path}: is a {header['kind']}; wanted a {kind or ' or '.join(KINDS)}",
            hint="check the order of the files",
        )
    return header


def hash_file(path: Path, told: Callable[[int], object] | None = None) -> str:
    """Hash the tensors of a checkpoint: `payload.file_sha256`, with our errors.

    Raises:
        CheckpointError: if it is not a file of tensors, or cannot be read.
    """
    try:
        return file_sha256(path, told)
    except (ValueError, OSError) as error:
        raise not_ours(path, error) from error


def check_sha256(path: Path, header: Mapping[str, Any], sha256: str) -> None:
    """Make sure that the tensors of a file are those that its header was written for.

    Raises:
        CheckpointError: if they are not.
    """
    if sha256 != header["sha256"]:
        raise CheckpointError(
            f"{path}: is damaged: its tensors do not have the SHA-256 in its header",
            hint="copy or download the file again",
        )


def verify(path: Path, told: Callable[[int], object] | None = None) -> Facts:
    """Read what a checkpoint says of itself, and check that its tensors have its SHA-256.

    Args:
        path: the file.
        told: called with the bytes hashed so far, now and then.

    Raises:
        CheckpointError: if the file is missing, damaged, not ours, or named as another kind.
    """
    # A name that says what it is has to be right: a model is found by it.
    facts = read_facts(path, path.stem if path.stem in KINDS else None)
    check_sha256(path, {"sha256": facts.sha256}, hash_file(path, told))
    return facts


def check_space(checkpoints: Sequence[Spaced]) -> None:
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


def not_ours(path: Path, error: Exception) -> CheckpointError:
    """Return the error of a file that is no checkpoint."""
    return CheckpointError(
        f"{path}: is not a checkpoint of s2f: {error}",
        hint="wanted a .safetensors file that s2f train wrote",
    )


def _contents(path: Path) -> Contents:
    if not path.is_file():
        found = "is no regular file" if path.exists() else "no such checkpoint"
        raise CheckpointError(f"{path}: {found}", hint="check the path: a .safetensors file")
    try:
        with path.open("rb") as file:
            return read_contents(file)
    except (ValueError, OSError) as error:
        raise not_ours(path, error) from error
