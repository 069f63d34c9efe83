"""A pack: the clips and embeddings of a voice tree in a few large files, read by mapping them.

Each split of a pack is a folder of

    index.json  clips-00000.npy ...  embeddings-00000.npy ...

The clips are int16 [n clip_samples] at 16 kHz, the embeddings float16 [m d], plain .npy files. The
rows of all files together are in the order of the identities in the index, which says how many
clips and embeddings each has. `pack` makes packs, `verify` reads them through.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2f.arrays import read_array
from s2f.errors import DatasetError
from s2f.layout import SPLIT_FOLDERS
from s2f.runtime import Progress, silent

INDEX = "index.json"
VERSION = 1
HEADER = 128  # bytes before the rows of a file
CLIPS, EMBEDDINGS = np.dtype("<i2"), np.dtype("<f2")
REPAIR = "remove it and give the same s2f prep pack command again, or copy it again"


@dataclass(frozen=True)
class Shard:
    """One file: its name, how many rows it has, and its SHA-256."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Identity:
    """One person: the name, and how many clips and embeddings belong to it."""

    name: str
    clips: int
    embeddings: int


@dataclass(frozen=True)
class Index:
    """What a split of a pack holds.

    Attributes:
        clip_samples: length of the clips.
        embedding: length of the embeddings.
        embedding_space: hash of the face encoder that made these.
        shard_bytes: that the files were to have, at most.
        identities: sorted by name.
        clips: the files of the clips.
        embeddings: the files of the embeddings.
    """

    clip_samples: int
    embedding: int
    embedding_space: str
    shard_bytes: int
    identities: tuple[Identity, ...]
    clips: tuple[Shard, ...]
    embeddings: tuple[Shard, ...]

    @property
    def sha256(self) -> str:
        """Hash of all that it says; it stands in the file too."""
        return hashlib.sha256(json.dumps(self._fields()).encode()).hexdigest()

    def _fields(self) -> dict[str, Any]:
        fields = {"version": VERSION, **dataclasses.asdict(self)}
        fields["identities"] = [dataclasses.astuple(person) for person in self.identities]
        return fields

    def encode(self) -> bytes:
        """Write it as the only JSON that `read_index` takes."""
        return json.dumps({**self._fields(), "sha256": self.sha256}).encode() + b"\n"


def read_index(folder: Path) -> Index:
    """Read the index of a split.

    Raises:
        DatasetError: if it is missing or not exactly what `Index.encode` wrote.
    """
    path = folder / INDEX
    try:
        content = path.read_bytes()
        fields = json.loads(content)
        version = fields.pop("version")
        if version == VERSION:
            del fields["sha256"]
            fields["identities"] = tuple(Identity(*person) for person in fields["identities"])
            for table in ("clips", "embeddings"):
                fields[table] = tuple(Shard(**shard) for shard in fields[table])
            index = Index(**fields)
            if index.encode() == content:
                return index
    except FileNotFoundError as error:
        raise DatasetError(
            f"{folder}: is a pack without {INDEX}: it was not finished",
            hint="give the same s2f prep pack command again",
        ) from error
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read: {error.strerror or error}", hint="check its permissions"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path}: is damaged: {error}", hint=REPAIR) from error
    if version != VERSION:
        raise DatasetError(
            f"{path}: has format version {version}; this program reads {VERSION}",
            hint="pack the tree again, or install the version of s2f that made it",
        )
    raise DatasetError(f"{path}: is damaged: its SHA-256 is another", hint=REPAIR)


@dataclass(frozen=True)
class VerifyReport:
    """What became of a pack: how many files and bytes it has, and what is damaged."""

    folder: Path
    files: int
    bytes: int
    damaged: tuple[DatasetError, ...]


def verify(folder: Path, *, progress: Progress = silent) -> VerifyReport:
    """Read all of a pack again and compare it with the hashes in its indices.

    Args:
        folder: the pack, of one split or of several.
        progress: told of each file.

    Raises:
        DatasetError: if it is no pack.
    """
    splits = [folder / name for name in ("", *SPLIT_FOLDERS) if is_pack(folder / name)]
    if not splits:
        raise DatasetError(
            f"{folder}: is no pack", hint=f"name a folder that s2f prep pack made, with {INDEX}"
        )
    damaged: list[DatasetError] = []
    shards: list[tuple[Path, Shard]] = []
    for split in splits:
        try:
            index = read_index(split)
        except DatasetError as error:
            damaged.append(error)
        else:
            shards += [(split / s.name, s) for s in (*index.clips, *index.embeddings)]
    size = 0
    for k, (path, shard) in enumerate(shards):
        progress(k, len(shards), path.name)
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size += file.tell()
        except OSError as error:
            message = f"{path}: cannot be read: {error.strerror or error}"
            damaged.append(DatasetError(message, hint=REPAIR))
            continue
        if sha256 != shard.sha256:
            message = f"{path}: is damaged: its SHA-256 is another"
            damaged.append(DatasetError(message, hint=REPAIR))
    progress(len(shards), len(shards), "done")
    return VerifyReport(folder, len(shards) + len(splits), size, tuple(damaged))


def is_pack(folder: Path) -> bool:
    """Tell whether a folder is a split of a pack, finished or not."""
    return (folder / INDEX).is_file() or any(folder.glob("embeddings-*.npy"))


class Pack:
    """A split of a pack, open for reading: clips by number, and whose embeddings go with them.

    Its files are mapped when they are first read, in each process by itself, so that it can be
    forked and pickled.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index and look at the sizes of the files.

        Raises:
            DatasetError: as `read_index`, or if a file is missing or has another size.
        """
        self.index = index = read_index(folder)
        self._clips = _Table(folder, index.clips, index.clip_samples, CLIPS)
        self._embeddings = _Table(folder, index.embeddings, index.embedding, EMBEDDINGS)
        self._first_clip = _starts([person.clips for person in index.identities])
        self._first_embedding = _starts([person.embeddings for person in index.identities])

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> tuple[NDArray[Any], range]:
        """Give a clip, int16 [clip_samples], and the numbers of its person's embeddings."""
        clip, person = self._clips[number], self.identity(number)
        return clip, range(*self._first_embedding[person : person + 2])

    def identity(self, number: int) -> int:
        """Find whose a clip is: a place in `index.identities`."""
        return bisect.bisect_right(self._first_clip, number) - 1

    def embedding(self, number: int) -> NDArray[np.float32]:
        """Read an embedding [d]."""
        values: NDArray[np.float32] = self._embeddings[number].astype(np.float32)
        return values


class _Table:
    """Rows [width] of several files, by number."""

    def __init__(
        self, folder: Path, shards: Sequence[Shard], width: int, dtype: np.dtype[Any]
    ) -> None:
        self._paths = [folder / shard.name for shard in shards]
        self._starts = _starts([shard.rows for shard in shards])
        self._maps: dict[int, NDArray[Any]] = {}
        for path, shard in zip(self._paths, shards, strict=True):
            wanted = HEADER + shard.rows * width * dtype.itemsize
            found = path.stat().st_size if path.is_file() else None
            if found != wanted:
                has = "is missing" if found is None else f"has {found} bytes; wanted {wanted}"
                raise DatasetError(f"{path}: {has}", hint=REPAIR)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> NDArray[Any]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        k = bisect.bisect_right(self._starts, row) - 1
        if k not in self._maps:
            self._maps[k] = read_array(self._paths[k], mmap=True)
        rows: NDArray[Any] = self._maps[k][row - self._starts[k]]
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a mapped file would be pickled whole


def _starts(counts: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(counts, initial=0))
