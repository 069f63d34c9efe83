"""What a checkpoint says of itself: the JSON in its file, read without its tensors or torch."""

import json
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError

from s2f.errors import CheckpointError

VERSION = 1
FIELDS = frozenset({"kind", "config", "preprocessing", "embedding_space", "card", "sha256"})


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """Read the header of a checkpoint; whether the tensors agree with it, `checkpoint.load` says.

    Returns:
        The header, with the `FIELDS`.

    Raises:
        CheckpointError: if the file is missing, not ours, or of another kind or version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint", hint="check the path")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})["s2f"])
    except (SafetensorError, OSError, ValueError) as error:
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
    missing = FIELDS - set(header)
    if missing:
        raise CheckpointError(
            f"{path}: its header lacks {', '.join(sorted(missing))}",
            hint="it was not written by s2f as it stands",
        )
    if header["kind"] != kind:
        raise CheckpointError(
            f"{path}: is a {header['kind']}; wanted a {kind}", hint="check the order of the files"
        )
    return header


def not_ours(path: Path, error: Exception) -> CheckpointError:
    """Return the error of a file that is no checkpoint."""
    return CheckpointError(
        f"{path}: is not a checkpoint of s2f: {error}",
        hint="wanted a .safetensors file that s2f train wrote",
    )
