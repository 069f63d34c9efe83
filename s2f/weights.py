"""Published weight files of others: found in the cache of torch hub, or fetched there once.

A file is used only if its SHA-256 is the wanted one.
"""

import hashlib
import http.client
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from s2f.errors import DependencyError
from s2f.runtime import atomic_write

TIMEOUT = 30  # seconds that a server may stay silent
CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class WeightFile:
    """A published file: where it is, and the SHA-256 of what it holds, hexadecimal."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its name, in the cache too."""
        return self.url.rsplit("/", 1)[-1]


def locate(weights: WeightFile) -> Path:
    """Find a file in `checkpoints` of the torch hub folder (under $TORCH_HOME); else fetch it.

    Raises:
        DependencyError: if it is not there and cannot be fetched, or is another file.
        OutputError: if the folder cannot be written.
    """
    import torch  # takes seconds, and who plans a tree needs no weights yet

    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.name
    hint = f"put {weights.url} there, as {path}"
    try:
        with path.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        _fetch(weights, path, hint)
        return path
    except OSError as error:
        raise DependencyError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    if seen != weights.sha256:
        raise DependencyError(
            f"{path}: its SHA-256 is {seen}; wanted {weights.sha256}",
            hint="remove it: it was not received whole, or is another file",
        )
    return path


def _fetch(weights: WeightFile, path: Path, hint: str) -> None:
    received = hashlib.sha256()
    with atomic_write(path) as file:
        for chunk in _download(weights, path, hint):
            received.update(chunk)
            file.write(chunk)
        if received.hexdigest() != weights.sha256:
            raise DependencyError(
                f"{weights.url}: gave a file whose SHA-256 is {received.hexdigest()}; "
                f"wanted {weights.sha256}",
                hint=hint,
            )


def _download(weights: WeightFile, path: Path, hint: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(weights.url, timeout=TIMEOUT) as response:
            while chunk := response.read(CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise DependencyError(
            f"{path}: is not there, and {weights.url} cannot be fetched: {error}", hint=hint
        ) from error
