"""A pack: the clips and embeddings of a voice tree in a few large files, read by mapping them.

Each split of a pack is a folder of

    index.json  clips-00000.npy ...  embeddings-00000.npy ...

The clips are int16 [n clip_samples] at 16 kHz, the embeddings float16 [m d], plain .npy files. The
rows of all files together are in the order of the identities in the index, which says how many
clips and embeddings each has. `pack` makes packs, `verify` reads them through.

The files of a pack: the small files of a tree, which go into which, and writing one.

A shard depends on nothing but its sources, so that shards can be made in any order and by any
process, and those that stand are kept.

A voice tree becomes a pack. What a pack is, `packed` says; what goes into a file, `shards`.

An utterance becomes consecutive clips of one length, as `audio.clips` cuts them: a short one is
looped, and a rest of less than half a clip is dropped. Photos become the embeddings that stand
beside them. Files are made in worker processes; a journal lets a run that was killed go on.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from s2f import files, layout, prep
from s2f.audio import SAMPLE_RATE, FloatArray, clips, to_int16
from s2f.console import Progress, silent
from s2f.embeddings import read_embedding
from s2f.errors import DatasetError, S2FError, UsageError
from s2f.files import File, map_waveform, read_array, unwritable, write_bytes
from s2f.layout import SPLIT_FOLDERS
from s2f.prep import Failure, Journal, not_in_journal
from s2f.prep_faces import check_embeddings, read_space

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


def verify_pack(folder: Path, *, progress: Progress = silent) -> VerifyReport:
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


DTYPES = {"clips": CLIPS, "embeddings": EMBEDDINGS}


class ShardSource(NamedTuple):
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
        self.audios: list[ShardSource] = []
        self.embeddings: list[ShardSource] = []
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


def _sources(identity: str, files: Sequence[File]) -> list[ShardSource]:
    return [ShardSource(identity, f._replace(path=f"{identity}/{f.path}")) for f in files]


@dataclass(frozen=True)
class Plan:
    """A shard to be: its file's name below the pack, and the small files that become its rows."""

    name: str
    sources: tuple[ShardSource, ...]

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


def plan_shards(
    name: str, table: str, sources: Sequence[ShardSource], width: int, shard_bytes: int
) -> Iterator[Plan]:
    """Divide sources, in their order, into shards NAME-00000.npy of about `shard_bytes`.

    A source counts as its size, or as one row if that is more: exact for int16 waveforms but for
    the rests of clips, and too much for floating-point ones.
    """
    row = width * DTYPES[table].itemsize
    taken: list[ShardSource] = []
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


def write_shard(
    part: Path, table: str, folder: Path, sources: Sequence[ShardSource], width: int
) -> Made:
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


SHARD_BYTES = 1_000_000_000
SHARD_SECONDS = 86_400.0  # that one may take: a slow disk is no crash


@dataclass(frozen=True)
class PackReport:
    """What became of a tree.

    Attributes:
        out: the folder of the pack.
        identities: people whose clips it holds.
        clips: of all splits.
        embeddings: of all splits.
        made: files written now, without the indices.
        skipped: files that were up to date.
        failed: what could not be used: people, waveforms and embeddings.
        seconds: that it took.
    """

    out: Path
    identities: int
    clips: int
    embeddings: int
    made: int
    skipped: int
    failed: tuple[Failure, ...]
    seconds: float


def pack(
    tree: Path,
    out: Path,
    *,
    face_encoder: Path,
    clip_seconds: float = 6.0,
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PackReport:
    """Bring a pack up to date with a voice tree.

    Files whose sources have not changed are kept, so that a run that was killed goes on where it
    stopped, and ends with the same bytes as if it had not been.

    Args:
        tree: IDENTITY/audios/**.npy and IDENTITY/images/**_embedding.npy, or a folder of splits
            of these.
        out: the folder of the pack.
        face_encoder: checkpoint of the face encoder that made the embeddings; a few are made
            again to make sure of it.
        clip_seconds: length of the clips.
        shard_bytes: about the size of the files.
        workers: processes; by default one a core.
        overwrite: whether a pack with other settings, or what else is in the way, is replaced.
        progress: told of waveforms and embeddings.

    Raises:
        DatasetError: if there is nothing to pack, or no photo to check the face encoder with.
        ImageError: if such a photo cannot be read.
        CheckpointError: if that is no face encoder, or did not make the embeddings.
        UsageError: if `out` and the tree overlap, `out` holds something else, or another run is
            at work there.
        OutputError: if a file cannot be written.
    """
    started = time.perf_counter()
    progress(0, 0, "listing")
    space = read_space(face_encoder)
    settings = {
        "clip_samples": round(clip_seconds * SAMPLE_RATE),
        "embedding": space.embedding,
        "embedding_space": space.sha256,
        "shard_bytes": shard_bytes,
    }
    failed: list[Failure] = []
    splits = [Split(*place, failed) for place in find_splits(tree)]
    files.refuse_overlap(tree, out)
    if not overwrite:
        for split in splits:
            _refuse_others(out / split.name, settings)
    with Journal(out, "pack", settings) as journal:
        run = _Run(out, settings, journal, overwrite, workers or prep.usable_cores(), progress)
        run.total = sum(len(split.embeddings) + len(split.audios) for split in splits)
        new = [split for split in splits if any(map(run.is_due, run.plan_embeddings(split)))]
        paths = [split.folder / source.file.path for split in new for source in split.embeddings]
        if paths:
            check_embeddings(paths, face_encoder)
        indices = [run.make(split, failed) for split in splits]
        journal.finish()
    if (tree / "card.json").is_file():
        write_bytes(out / "card.json", (tree / "card.json").read_bytes())
    return PackReport(
        out,
        sum(person.clips > 0 for index in indices for person in index.identities),
        sum(shard.rows for index in indices for shard in index.clips),
        sum(shard.rows for index in indices for shard in index.embeddings),
        run.made,
        run.skipped,
        tuple(failed),
        time.perf_counter() - started,
    )


def _refuse_others(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to replace a pack that was made with other settings."""
    if not (folder / INDEX).is_file():
        return
    index = read_index(folder)
    for name, wanted in settings.items():
        if getattr(index, name) != wanted:
            raise UsageError(
                f"{folder}: is a pack with {name} {getattr(index, name)}; this one has {wanted}",
                hint="give --overwrite to replace it, or another folder",
            )


class _Run:
    """One run: what is due, and making it."""

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        journal: Journal,
        overwrite: bool,
        workers: int,
        progress: Progress,
    ) -> None:
        self.out, self.settings, self.journal = out, settings, journal
        self.overwrite, self.workers, self.progress = overwrite, workers, progress
        self.made = self.skipped = self.done = self.total = 0

    def plan_embeddings(self, split: Split) -> list[Plan]:
        """Plan the files of a split's embeddings."""
        return self._plan(split, "embeddings", split.embeddings)

    def _plan(self, split: Split, table: str, sources: Sequence[ShardSource]) -> list[Plan]:
        name = f"{split.name}/{table}" if split.name else table
        width, size = self._width(table), self.settings["shard_bytes"]
        return list(plan_shards(name, table, sources, width, size))

    def _width(self, table: str) -> int:
        return int(self.settings["clip_samples" if table == "clips" else "embedding"])

    def is_due(self, plan: Plan) -> bool:
        """Decide whether a file has to be made.

        Raises:
            UsageError: if it is there and not ours.
        """
        path, entry = self.out / plan.name, self.journal.known(plan.name)
        there = os.path.lexists(path)
        if there and entry is None and not self.overwrite:
            raise not_in_journal(path)
        done = entry and entry.event == "done" and entry.note["sources"] == plan.fingerprint
        return not (there and done)

    def make(self, split: Split, failed: list[Failure]) -> Index:
        """Make the files of a split that are due, and its index."""
        faces, embeddings = self._make_table(
            split, "embeddings", self.plan_embeddings(split), failed
        )
        for person in sorted({source.identity for source in split.embeddings} - set(faces)):
            error = DatasetError(
                f"{split.folder / person}: none of its embeddings can be used",
                hint="make them again with s2f prep embeddings",
            )
            failed.append(Failure(split.folder / person, error))
        audios = [source for source in split.audios if source.identity in faces]
        heard, clips = self._make_table(split, "clips", self._plan(split, "clips", audios), failed)
        if not heard:
            raise DatasetError(
                f"{split.folder}: none of its waveforms can be used with an embedding",
                hint=failed[0].error.message,
            )
        people = tuple(Identity(name, heard.get(name, 0), n) for name, n in faces.items())
        index = Index(**self.settings, identities=people, clips=clips, embeddings=embeddings)
        folder = self.out / split.name
        if not (folder / INDEX).is_file() or (folder / INDEX).read_bytes() != index.encode():
            write_bytes(folder / INDEX, index.encode())
        self._remove_others(folder, {shard.name for shard in (*clips, *embeddings)})
        return index

    def _make_table(
        self, split: Split, table: str, plans: Sequence[Plan], failed: list[Failure]
    ) -> tuple[dict[str, int], tuple[Shard, ...]]:
        due = [plan for plan in plans if self.is_due(plan)]
        self.skipped += len(plans) - len(due)
        self._advance([plan for plan in plans if plan not in due], "up to date")
        if due:  # from now on, the index is of other files
            self._write(split, table, due)
        rows: dict[str, int] = {}
        files = []
        for plan in plans:
            entry = self.journal.known(plan.name)
            assert entry is not None
            made = entry.note
            for identity, n in made["rows"].items():
                rows[identity] = rows.get(identity, 0) + n
            files.append(Shard(Path(plan.name).name, sum(made["rows"].values()), made["sha256"]))
            for path, message, hint in made["failed"]:
                failed.append(Failure(split.folder / path, DatasetError(message, hint=hint)))
        return rows, tuple(files)

    def _write(self, split: Split, table: str, due: Sequence[Plan]) -> None:
        folder = self.out / split.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INDEX).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        items = (self._begin(split, table, plan) for plan in due)
        made = prep.run_in_workers(
            write_shard,
            items,
            workers=min(self.workers, len(due)),
            preload=("s2f.pack",),
            seconds=SHARD_SECONDS,
        )
        with contextlib.closing(made) as results:
            for place, value in results:
                if isinstance(value, S2FError):
                    raise value
                self._end(due[place], value)

    def _begin(self, split: Split, table: str, plan: Plan) -> tuple[Any, ...]:
        self.journal.start(plan.name, _file(plan))
        part = self.journal.parts / Path(plan.name).name
        return part, table, split.folder, plan.sources, self._width(table)

    def _end(self, plan: Plan, made: Made) -> None:
        path = self.out / plan.name
        try:
            (self.journal.parts / path.name).replace(path)
        except OSError as error:
            raise unwritable(path, error) from error
        note = {"sources": plan.fingerprint, **made._asdict()}
        self.journal.done(plan.name, _file(plan), note)
        self.made += 1
        self._advance([plan], plan.name)

    def _advance(self, plans: Sequence[Plan], what: str) -> None:
        self.done += sum(len(plan.sources) for plan in plans)
        self.progress(self.done, self.total, what)

    def _remove_others(self, folder: Path, names: set[str]) -> None:
        """Remove our files of an earlier tree, which had more."""
        for path in sorted(folder.glob("*-*.npy")):
            known = self.journal.known(str(path.relative_to(self.out).as_posix()))
            if path.name not in names and known:
                path.unlink()


def _file(plan: Plan) -> File:
    return File(plan.name, sum(source.file.size for source in plan.sources), 0)
