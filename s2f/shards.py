"""The files of a pack: the small files of a tree, which go into which, and writing one.

A shard depends on nothing but its sources, so that shards can be made in any order and by any
process, and those that stand are kept.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from s2f import layout
from s2f.arrays import map_waveform
from s2f.audio import clips, to_int16
from s2f.decoding import FloatArray
from s2f.embeddings import read_embedding
from s2f.errors import DatasetError
from s2f.listing import File
from s2f.packed import CLIPS, EMBEDDINGS, HEADER
from s2f.prep import Failure
from s2f.runtime import unwritable

DTYPES = {"clips": CLIPS, "embeddings": EMBEDDINGS}


class Source(NamedTuple):
    """A small file, and whose it is."""

    identity: str
    file: File


def find_splits(tree: Path) -> list[tuple[str, Path]]:
    """Find the splits of a tree, or take it for one split without a name.

    Returns:
        The name and the folder of each.

    Raises:
        DatasetError: if there is no such folder.
    """
    if not tree.is_dir():
        raise DatasetError(f"{tree}: is no folder", hint="name the folder of a voice tree")
    found = [(name, tree / name) for name in layout.SPLIT_FOLDERS if (tree / name).is_dir()]
    return found or [("", tree)]


class Split:
    """The sources of a split: those of people who have audios and embeddings."""

    def __init__(self, name: str, folder: Path, failed: list[Failure]) -> None:
        """List the split; people who lack one of the two are added to `failed`.

        Raises:
            DatasetError: if nobody has both, or a folder cannot be read.
        """
        self.name, self.folder = name, folder
        self.audios: list[Source] = []
        self.embeddings: list[Source] = []
        for person in layout.identities(folder):
            audios = layout.files_of(person, "audios", layout.is_array)
            embeddings = layout.files_of(person, "images", layout.is_embedding)
            if audios and embeddings:
                self.audios += _sources(person.name, audios)
                self.embeddings += _sources(person.name, embeddings)
                continue
            error = DatasetError(
                f"{person}: has {len(audios)} files in audios and {len(embeddings)} embeddings in "
                "images",
                hint="wanted at least one of each: audios/*.npy, images/*_embedding.npy, which "
                "s2f prep embeddings makes",
            )
            failed.append(Failure(person, error))
        if not self.audios:
            raise DatasetError(
                f"{folder}: holds nobody who has audios and embeddings",
                hint="wanted IDENTITY/audios/*.npy and IDENTITY/images/*_embedding.npy",
            )


def _sources(identity: str, files: Sequence[File]) -> list[Source]:
    return [Source(identity, f._replace(path=f"{identity}/{f.path}")) for f in files]


@dataclass(frozen=True)
class Plan:
    """A shard to be: its file's name below the pack, and the small files that become its rows."""

    name: str
    sources: tuple[Source, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the names, sizes and times of the sources."""
        digest = hashlib.sha256()
        for identity, file in self.sources:
            source = f"{identity}\0{file.path}\0{file.size}\0{file.mtime_ns}\n"
            digest.update(os.fsencode(source))  # a name may be no text
        return digest.hexdigest()


class Made(NamedTuple):
    """What a shard holds.

    Attributes:
        rows: how many each identity has, in their order.
        sha256: of the file.
        failed: the sources that could not be used: path, message and hint of each.
    """

    rows: dict[str, int]
    sha256: str
    failed: list[tuple[str, str, str | None]]


def plan(
    name: str, table: str, sources: Sequence[Source], width: int, shard_bytes: int
) -> Iterator[Plan]:
    """Divide sources, in their order, into shards NAME-00000.npy of about `shard_bytes`.

    A source counts as its size, or as one row if that is more: exact for int16 waveforms but for
    the rests of clips, and too much for floating-point ones.
    """
    row = width * DTYPES[table].itemsize
    taken: list[Source] = []
    size = n = 0
    for source in sources:
        needed = max(row, source.file.size)
        if taken and size + needed > shard_bytes:
            yield Plan(f"{name}-{n:05}.npy", tuple(taken))
            taken, size, n = [], 0, n + 1
        taken.append(source)
        size += needed
    if taken:
        yield Plan(f"{name}-{n:05}.npy", tuple(taken))


def write(part: Path, table: str, folder: Path, sources: Sequence[Source], width: int) -> Made:
    """Write a shard, going on past sources that cannot be used.

    Args:
        part: the file.
        table: `clips` or `embeddings`.
        folder: that the sources are below.
        sources: .npy files of waveforms or of embeddings.
        width: of a row.

    Raises:
        OutputError: if it cannot be written.
    """
    read = _read_clips if table == "clips" else _read_embedding
    rows: dict[str, int] = {}
    failed: list[tuple[str, str, str | None]] = []
    try:
        with part.open("wb+") as output:
            output.write(bytes(HEADER))
            for identity, file in sources:
                try:
                    values = read(folder / file.path, width)
                except DatasetError as error:
                    failed.append((file.path, error.message, error.hint))
                    continue
                output.write(np.ascontiguousarray(values, DTYPES[table]).data)
                rows[identity] = rows.get(identity, 0) + len(values)
            output.seek(0)
            output.write(_header(DTYPES[table], sum(rows.values()), width))
            output.flush()
            os.fsync(output.fileno())
            output.seek(0)
            sha256 = hashlib.file_digest(output, "sha256").hexdigest()
    except OSError as error:
        raise unwritable(part, error) from error
    return Made(rows, sha256, failed)


def _header(dtype: np.dtype[Any], rows: int, width: int) -> bytes:
    buffer = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(buffer, fields)
    header = buffer.getvalue()
    assert len(header) == HEADER
    return header


def _read_clips(path: Path, clip_samples: int) -> NDArray[np.int16]:
    """Cut a stored waveform into clips [m clip_samples], as `audio.clips` does."""
    _check_file(path)
    waveform = map_waveform(path)
    if waveform.dtype != np.int16:
        if not np.isfinite(waveform).all():
            raise DatasetError(f"{path}: holds NaN or infinite samples", hint="make it again")
        waveform = to_int16(cast(FloatArray, waveform))
    return cast(NDArray[np.int16], clips(cast(FloatArray, waveform), clip_samples))


def _read_embedding(path: Path, width: int) -> NDArray[np.float16]:
    """Read an embedding as one row [1 d]."""
    _check_file(path)
    values = read_embedding(path, width)
    with np.errstate(over="ignore"):  # found on the next line
        row = values.astype(np.float16)[np.newaxis]
    if not np.isfinite(row).all():
        raise DatasetError(
            f"{path}: holds values that are not finite in half precision",
            hint="make it again with s2f prep embeddings",
        )
    return row


def _check_file(path: Path) -> None:
    if not path.is_file():  # opening a pipe would wait for ever
        raise DatasetError(f"{path}: is no regular file", hint="remove it")
