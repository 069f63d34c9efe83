"""A pack: the clips and embeddings of a voice tree in a few large files, read by mapping them.

Each split of a pack is a folder of index.json, clips-00000.npy ... and embeddings-00000.npy ...
The clips are int16 [n clip_samples] at 16 kHz, the embeddings float16 [m d]. The rows of all files
together are in the order of the identities in the index, which says how many of each they have,
and how many clips are of which recording; this lies beside it, index.arrays/NAME.npy.

From top to bottom: the index; `Pack`, which reads; `verify_pack`; and `pack_tree`, which makes one
by the engine of `prep`. An utterance becomes consecutive clips of one length, as `audio.clips` cuts
them, but for silent ones. Of faces the embeddings that stand there are packed. A file depends on
nothing but its sources, so that those that stand are kept. Knows no network.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import time
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from s2f import files, layout, prep
from s2f.audio import (
    SAMPLE_RATE,
    FloatArray,
    check_waveform,
    clips_that_sound,
    map_waveform,
    to_int16,
)
from s2f.console import Progress, silent
from s2f.embeddings import read_embedding
from s2f.errors import DatasetError, S2FError, UsageError
from s2f.files import File, Names, VerifyReport, read_array, unwritable
from s2f.journal import Item, Journal
from s2f.layout import SPLIT_FOLDERS
from s2f.prep import Failure
from s2f.prep_faces import check_photo_embeddings, read_space
from s2f.stores import Place, Store, copy_to, hash_place, open_journal, write_whole

INDEX, ARRAYS = "index.json", "index.arrays"  # the file, and the folder of what it says of people
VERSION = 3  # 2 says it all in its JSON; 1 does not say which clips are of one recording
HEADER = 128  # bytes before the rows of a file
DTYPES = {"clips": np.dtype("<i2"), "embeddings": np.dtype("<f2")}  # of the two kinds of files
SHARD_BYTES = 1_000_000_000
SHARD_SECONDS = 86_400.0  # that one may take: a slow disk is no crash
REPAIR = "remove it and give the same s2f prep pack command again, or copy it again"


@dataclass(frozen=True)
class Shard:
    """One file: its name, how many rows it has, and its SHA-256."""

    name: str
    rows: int
    sha256: str


class Identity(NamedTuple):
    """One person: the name, and how many clips and embeddings belong to it."""

    name: str
    clips: int
    embeddings: int
    recordings: tuple[int, ...] | None = None  # clips of each, in order; None in version 1


class Identities(Sequence[Identity]):
    """The people of a split, sorted by name, as arrays, which may be mapped."""

    def __init__(
        self, names: Names, starts: NDArray[np.int64], recordings: NDArray[np.int64] | None
    ) -> None:
        """Take names [p]; each one's first clip, embedding and recording, and how many there are.

        These are `starts` [3 p + 1]. `recordings` [r + 1] are the first clips of recordings, and
        how many clips there are; None in version 1, which does not say.
        """
        self.names, self.starts, self.recordings = names, starts, recordings

    @classmethod
    def of(cls, identities: Iterable[Identity]) -> "Identities":
        """Bring people into arrays."""
        starts, firsts = array("q", [0, 0, 0]), array("q", [0])
        is_told = True

        def names() -> Iterator[bytes]:
            nonlocal is_told
            for name, clips, embeddings, recordings in identities:
                is_told &= recordings is not None
                firsts.extend(itertools.accumulate(recordings or (), initial=firsts.pop()))
                starts.extend((starts[-3] + clips, starts[-2] + embeddings, len(firsts) - 1))
                yield os.fsencode(name)

        every = Names.of(names())
        table = np.array(starts, np.int64).reshape(-1, 3).T.copy()
        return cls(every, table, np.array(firsts, np.int64) if is_told else None)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, k: Any) -> Any:
        name = self.name(k)
        (clip, clips), (embedding, embeddings), (first, end) = self.starts[:, k : k + 2].tolist()
        own = self.recordings
        recordings = None if own is None else tuple(np.diff(own[first : end + 1]).tolist())
        return Identity(name, clips - clip, embeddings - embedding, recordings)

    def name(self, k: int) -> str:
        """Name a person."""
        return os.fsdecode(self.names[k])

    def counts(self) -> NDArray[np.int64]:
        """Count the clips, embeddings and recordings [3 p] of each."""
        n: NDArray[np.int64] = np.diff(self.starts)
        return n


@dataclass(frozen=True)
class Index:
    """What a split of a pack holds."""

    clip_samples: int
    embedding: int  # values of an embedding
    embedding_space: str  # hash of the face encoder that made them
    shard_bytes: int  # that the files were to have, at most
    identities: Identities
    clips: tuple[Shard, ...]
    embeddings: tuple[Shard, ...]
    sha256: str = ""  # of all that its file says, where it was read from one


def write_index(folder: Place, index: Index) -> None:
    """Write the index of a split for `read_index`, its arrays first; raises an `OutputError`."""
    if isinstance(folder, Store):
        with files.scratch_folder() as local:
            write_index(local, index)
            content = (local / INDEX).read_bytes()
            if (folder / INDEX).is_file() and (folder / INDEX).read_bytes() == content:
                return
            (folder / INDEX).unlink()  # from now on, it is of other arrays
            for file in sorted((local / ARRAYS).iterdir()):
                (folder / ARRAYS / file.name).put(file)
        (folder / INDEX).write_bytes(content)
        return
    people, path = index.identities, folder / INDEX
    assert people.recordings is not None
    arrays: dict[str, Any] = {"names": people.names.text, "names_starts": people.names.starts}
    arrays |= {"starts": people.starts, "recordings": people.recordings}
    settings = ("clip_samples", "embedding", "embedding_space", "shard_bytes")
    fields: dict[str, Any] = {"version": VERSION}
    fields |= {name: getattr(index, name) for name in settings}
    shards = {table: [dataclasses.asdict(s) for s in getattr(index, table)] for table in DTYPES}
    with files.atomic_folder(folder / ARRAYS, replace=True) as new:
        fields["identities"] = files.write_arrays(arrays, new)
        content = _sealed({**fields, **shards})
        is_there = path.is_file() and path.read_bytes() == content
        if not is_there:
            path.unlink(missing_ok=True)  # from now on, it is of other arrays
    if not is_there:
        files.write_bytes(path, content)


def _sealed(fields: Mapping[str, Any]) -> bytes:
    sha256 = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return json.dumps({**fields, "sha256": sha256}).encode() + b"\n"


def _read_fields(folder: Place) -> dict[str, Any]:
    """Read what the file of an index says, or raise as `read_index`."""
    path = folder / INDEX
    with _reading(folder):
        content = path.read_bytes()
        fields: dict[str, Any] = json.loads(content)
        version, sha256 = fields["version"], fields.pop("sha256")
        if version not in (1, 2, VERSION):
            message = f"{path}: has format version {version}; this program reads 1 to {VERSION}"
            hint = "pack the tree again, or install the version of s2f that made it"
            raise DatasetError(message, hint=hint)
        if _sealed(fields) != content:
            raise ValueError("its SHA-256 is another")
        for table in DTYPES:
            fields[table] = tuple(Shard(**shard) for shard in fields[table])
            for shard in fields[table]:  # else it might be a file anywhere
                if not re.fullmatch(rf"{table}-[0-9]{{5,}}\.npy", shard.name):
                    raise ValueError(f"{shard.name!r} is no name of its {table}")
        return {**fields, "sha256": sha256}


@contextlib.contextmanager
def _reading(folder: Place) -> Iterator[None]:
    path = folder / INDEX
    try:
        yield
    except FileNotFoundError as error:
        message = f"{folder}: is a pack without {INDEX}: it was not finished"
        if path.is_file():
            message = f"{error.filename}: is missing"
        raise DatasetError(message, hint="give the same s2f prep pack command again") from error
    except OSError as error:
        message = f"{error.filename or path}: cannot be read: {error.strerror or error}"
        raise DatasetError(message, hint="check its permissions") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DatasetError(f"{path}: is damaged: {error}", hint=REPAIR) from error
    except RecursionError as error:
        raise DatasetError(f"{path}: is damaged: it is nested too deep", hint=REPAIR) from error


def read_index(folder: Place) -> Index:
    """Read the index of a split; a `DatasetError` if it is not exactly what was written.

    Of arrays of more than `files.CHECKED` bytes `verify_pack` finds out.
    """
    if isinstance(folder, Store):
        with files.scratch_folder() as local:  # what is mapped stays, without its name
            _copy_index(folder, local)
            return read_index(local)
    fields = _read_fields(folder)
    version, told = fields.pop("version"), fields.pop("identities")
    with _reading(folder):
        if version == VERSION:
            arrays = files.map_arrays(told, folder / ARRAYS, folder / INDEX)
            names = Names(arrays.pop("names"), arrays.pop("names_starts"))
            people = Identities(names, **arrays)
        else:
            people = Identities.of(Identity(*p[:3], *map(tuple, p[3:])) for p in told)
        return Index(**fields, identities=people)


def is_pack(folder: Place) -> bool:
    """Tell whether a folder is a split of a pack, finished or not."""
    return (folder / INDEX).is_file() or any(folder.glob("embeddings-*.npy"))


class Pack:
    """A split of a pack, open for reading: clips by number, and whose embeddings go with them.

    Its files are mapped when they are first read, in each process by itself, so that it can be
    forked and pickled.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index and look at the sizes of the files.

        Raises a `DatasetError` as `read_index`, or if a file is missing or has another size.
        """
        self.folder, self.index = folder, (index := read_index(folder))
        self._clips = _Table(folder, index.clips, index.clip_samples, DTYPES["clips"])
        self._embeddings = _Table(folder, index.embeddings, index.embedding, DTYPES["embeddings"])

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.index.sha256)

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> tuple[NDArray[Any], range]:
        """Give a clip, int16 [clip_samples], and the numbers of its person's embeddings."""
        clip, person = self._clips[number], self.identity(number)
        return clip, range(*self.index.identities.starts[1, person : person + 2].tolist())

    def identity(self, number: int) -> int:
        """Find whose a clip is: a place in `index.identities`."""
        return int(self.index.identities.starts[0].searchsorted(number, "right")) - 1

    def embedding(self, number: int) -> NDArray[np.float32]:
        """Read an embedding [d]."""
        values: NDArray[np.float32] = self._embeddings[number].astype(np.float32)
        return values


def _reopen(folder: Path, sha256: str) -> Pack:
    """Open a pack again in another process."""
    pack = Pack(folder)
    if pack.index.sha256 != sha256:
        hint = "give the command again when nothing packs there"
        raise DatasetError(f"{folder}: is another pack than a moment ago", hint=hint)
    return pack


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


def _starts(counts: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(counts, initial=0))


def _splits_of(folder: Place) -> list[str]:
    """List the splits of a pack, of which one alone has no name, or raise a `DatasetError`."""
    names = [name for name in ("", *SPLIT_FOLDERS) if is_pack(folder / name)]
    if not names:
        hint = f"name a folder that s2f prep pack made, with {INDEX}"
        raise DatasetError(f"{folder}: is no pack", hint=hint)
    return names


def _check_shard(path: Path, shard: Shard, name: object) -> None:
    """Raise a `DatasetError` if a file is not what its index says."""
    try:
        sha256 = files.hash_file(path)
    except OSError as error:
        message = f"{name}: cannot be read: {error.strerror or error}"
        raise DatasetError(message, hint=REPAIR) from error
    if sha256 != shard.sha256:
        raise DatasetError(f"{name}: is damaged: its SHA-256 is another", hint=REPAIR)


def stage_pack(source: Place, cache: Path, *, progress: Progress = silent) -> Path:
    """Give a copy of a pack in a folder of a cache on this machine, made where there is none.

    The folder is named by what the pack holds. Each file is checked by its hash when it comes, and
    each index comes last. Of several processes that want it one copies, and the others wait; one
    that was killed is gone on with. Raises a `DatasetError` if it is no whole pack, or as
    `copy_to`.
    """
    from filelock import FileLock  # slow to import

    indices = {name: _read_fields(source / name) for name in _splits_of(source)}
    card = source / "card.json"
    told = card.read_bytes() if card.is_file() else None
    key = repr(([(name, index["sha256"]) for name, index in indices.items()], told))
    target = cache / hashlib.sha256(key.encode()).hexdigest()[:20]
    with files.writing(target):
        target.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target / ".lock", mode=0o666)
        with lock:
            _stage(source, target, indices, progress)
    if told is not None and not (target / "card.json").is_file():
        files.write_bytes(target / "card.json", told)
    return target


def staged(place: Place, cache: Path | None = None, *, progress: Progress = silent) -> Path:
    """Give what training reads: a folder as it lies there, or a copy of a pack, by `stage_pack`.

    Copied is what is in a store, by default to `s2f/packs` in $XDG_CACHE_HOME or ~/.cache, and a
    folder where there is a `cache`.
    """
    if isinstance(place, Path) and cache is None:
        return place
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return stage_pack(place, cache or Path(caches, "s2f", "packs"), progress=progress)


def _stage(
    source: Place, target: Path, indices: Mapping[str, dict[str, Any]], progress: Progress
) -> None:
    missing = {
        name: index
        for name, index in indices.items()
        if not _is_whole(target / name, index["sha256"])
    }
    wanted = [
        (f"{name}/{shard.name}".lstrip("/"), shard, HEADER + shard.rows * width * dtype.itemsize)
        for name, index in missing.items()
        for table, dtype in DTYPES.items()
        for width in [index["clip_samples" if table == "clips" else "embedding"]]
        for shard in index[table]
    ]
    for k, (name, shard, size) in enumerate(wanted):
        progress(k, len(wanted), f"copying {source / name}")
        if (target / name).is_file() and (target / name).stat().st_size == size:
            continue  # it was checked when it came
        with files.atomic_path(target / name) as part:
            copy_to(part, source / name)
            _check_shard(part, shard, source / name)
    for name in missing:
        _copy_index(source / name, target / name)


def _copy_index(source: Place, target: Path) -> None:
    """Copy the index of a split, its arrays first."""
    fields = _read_fields(source)
    for name, sha256 in _arrays_of(source, fields):
        with files.atomic_path(target / name) as part:
            copy_to(part, source / name)
            if files.hash_file(part) != sha256:
                raise DatasetError(
                    f"{source / name}: is damaged: its SHA-256 is another", hint=REPAIR
                )
    with files.atomic_path(target / INDEX) as part:
        copy_to(part, source / INDEX)


def _arrays_of(split: Place, fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the arrays of an index by their names below its split, each with its SHA-256."""
    if fields["version"] != VERSION:
        return []
    with _reading(split):
        found = [(f"{name}.npy", what["sha256"]) for name, what in fields["identities"].items()]
    for name, _ in found:
        files.refuse_outside(Path(ARRAYS), name, split / INDEX, is_one=True)
    return [(f"{ARRAYS}/{name}", sha256) for name, sha256 in found]


def _is_whole(folder: Path, sha256: str) -> bool:
    """Tell whether a split was staged: its index is there, and files of the right sizes."""
    try:
        return Pack(folder).index.sha256 == sha256
    except DatasetError:
        return False


def verify_pack(folder: Place, *, progress: Progress = silent) -> VerifyReport:
    """Read all of a pack, of one split or of several, and compare it with its indices' hashes.

    Raises a `DatasetError` if it is no pack.
    """
    splits = [folder / name for name in _splits_of(folder)]
    damaged: list[DatasetError] = []
    hashes: list[tuple[Place, str]] = []
    for split in splits:
        try:
            fields = _read_fields(split)
            shards = [(shard.name, shard.sha256) for table in DTYPES for shard in fields[table]]
            named = [*_arrays_of(split, fields), *shards]
        except DatasetError as error:
            damaged.append(error)
        else:
            hashes += [(split / name, sha256) for name, sha256 in named]
    report = files.verify_hashes(hashes, REPAIR, hash_of=hash_place, progress=progress)
    return VerifyReport(report.files + len(splits), (*damaged, *report.damaged))


@dataclass(frozen=True)
class PackReport:
    """What became of a tree."""

    out: Place  # the folder of the pack
    identities: int  # people whose clips it holds
    clips: int  # of all splits
    embeddings: int
    made: int  # files written now, without the indices
    skipped: int  # files that were up to date
    failed: tuple[Failure, ...]  # what could not be used: people, waveforms and embeddings
    seconds: float  # that it took
    passed_over: Mapping[str, int]  # other files in audios and images, by suffix
    unchecked: int  # embeddings without a photo, which nothing tells who made


def pack_tree(
    tree: Path,
    out: Place,
    *,
    face_encoder: Path,
    clip_seconds: float = 6.0,
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PackReport:
    """Bring a pack up to date with a voice tree, or with a folder of splits of one.

    That is IDENTITY/audios/**.npy and the embeddings in IDENTITY/images, NAME_embedding.npy or
    NAME.npy; `face_encoder` is the checkpoint of the one that made these: of those that have their
    photo beside them a few are made again to make sure of it. Files
    (of about `shard_bytes`) whose sources have not changed are kept, so that a run that was killed
    goes on where it stopped, and ends with the same bytes as if it had not been. A pack with other
    settings or of another tree, or what else is in the way, is replaced only with `overwrite`.

    Raises a `DatasetError` if there is nothing to pack, and an `ImageError` if none of these photos
    can be read; a `CheckpointError` if that is no face encoder, or did not make the embeddings; a
    `UsageError` if `out` and the tree overlap, `out` holds something else, or another run is at
    work there; an `OutputError` if it cannot be written.
    """
    started, tree = time.perf_counter(), layout.tree_of(tree)
    progress(0, 0, "listing")
    space = read_space(face_encoder)
    settings = {
        "clip_samples": round(clip_seconds * SAMPLE_RATE),
        "embedding": space.embedding,
        "embedding_space": space.sha256,
        "shard_bytes": shard_bytes,
    }
    failed: list[Failure] = []
    passed_over = files.PassedOver()
    splits = _list_splits(tree, failed, passed_over)
    if isinstance(out, Path):
        files.refuse_overlap(tree, out)
    if not overwrite:
        for split in splits:
            _refuse_another(out / split.name, settings)
    with open_journal(out, "pack", settings) as journal:
        if not overwrite:
            _refuse_another_tree(journal, out, tree)
        way = files.way(out, tree) if isinstance(out, Path) else os.path.realpath(tree)
        run = _Run(journal, out, way, settings, workers, overwrite, progress, failed)
        paths: list[Path] = []
        for split in splits:
            if any(map(run.is_due, run.plan(split, "embeddings", split.tables["embeddings"]))):
                paths += [split.folder / path for path in split.with_photo]
        if paths:
            check_photo_embeddings(paths, face_encoder)
        if (tree / "card.json").is_file():
            write_whole(out / "card.json", (tree / "card.json").read_bytes())
        indices = [run.make(split) for split in splits]
        journal.finish()
    n_people = sum(int((i.identities.counts()[0] > 0).sum()) for i in indices)
    n_clips, n_embeddings = (
        sum(shard.rows for index in indices for shard in getattr(index, table)) for table in DTYPES
    )
    counts = (n_people, n_clips, n_embeddings, run.made, run.skipped)
    seconds = time.perf_counter() - started
    unchecked = sum(len(s.tables["embeddings"]) - len(s.with_photo) for s in splits)
    return PackReport(out, *counts, tuple(failed), seconds, dict(passed_over), unchecked)


class _Split(NamedTuple):
    """The sources of a split, of people who have audios and embeddings."""

    name: str
    folder: Path
    tables: dict[str, list[File]]  # paths below the folder, which begin with whose they are
    with_photo: list[str]  # paths of the embeddings that have their photo beside them


def _list_splits(tree: Path, failed: list[Failure], passed_over: files.PassedOver) -> list[_Split]:
    """List a tree of splits, or one split, which has no name; people who lack a kind failed."""
    if not tree.is_dir():
        raise DatasetError(f"{tree}: is no folder", hint="name the folder of a voice tree")
    names = [name for name in SPLIT_FOLDERS if (tree / name).is_dir()] or [""]
    splits = [_Split(name, tree / name, {table: [] for table in DTYPES}, []) for name in names]
    wanted = "audios/*.npy and images/*_embedding.npy, which s2f prep embeddings makes"
    for split in splits:
        for person in layout.identities(split.folder):
            audios = layout.files_of(person, "audios", layout.is_array, passed_over=passed_over)
            images = layout.files_of(person, "images", layout.is_face, passed_over=passed_over)
            faces = layout.faces_of([file.path for file in images])
            photos = {face.embedding: face.photo for face in faces if face.embedding}
            embeddings = [file for file in images if file.path in photos]
            others = (file.path for file in images if file.path not in photos)
            passed_over.update(Path(path).suffix.lower() for path in others)
            if not (audios and embeddings):
                has = f"{len(audios)} files in audios and {len(embeddings)} embeddings in images"
                hint = f"wanted at least one of each: {wanted}"
                failed.append(Failure(person, DatasetError(f"{person}: has {has}", hint=hint)))
                continue
            for table, found in (("clips", audios), ("embeddings", embeddings)):
                split.tables[table] += [f._replace(path=f"{person.name}/{f.path}") for f in found]
            with_photo = (file.path for file in embeddings if photos[file.path])
            split.with_photo.extend(f"{person.name}/{path}" for path in with_photo)
        if not split.tables["clips"]:
            message = f"{split.folder}: holds nobody who has audios and embeddings"
            raise DatasetError(message, hint=f"wanted in IDENTITY: {wanted}")
    return splits


def _whose(source: File) -> str:
    return source.path.partition("/")[0]


def _refuse_another(folder: Place, settings: dict[str, Any]) -> None:
    if not (folder / INDEX).is_file():
        return
    index = read_index(folder)
    for name, wanted in settings.items():
        has = getattr(index, name)
        if has != wanted:
            message = f"{folder}: is a pack with {name} {has}; this one has {wanted}"
            hint = "give --overwrite to replace it, or another folder"
            raise UsageError(message, hint=hint)


def _refuse_another_tree(journal: Journal, out: Place, tree: Path) -> None:
    notes = [entry.note for entry in journal.entries.values() if entry.note]
    for way in {note["tree"] for note in notes if "tree" in note}:
        before = journal.folder / way  # of one in a store, where it was
        # One that is gone was moved, for all that is known.
        if before.is_dir() and not before.samefile(tree):
            message = f"{out}: is a pack of {os.path.normpath(before)}, not of {tree}"
            hint = "give another folder, or --overwrite to replace it"
            raise UsageError(message, hint=hint)


@dataclass(frozen=True)
class ShardPlan:
    """A file to be: its name below the pack, and the small files that become its rows [width]."""

    name: str
    table: str
    width: int
    folder: Path
    sources: tuple[File, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def fingerprint(self) -> str:
        """Hash of the names, sizes and times of the sources, and of what is noted of clips."""
        # Version 1 noted too little of clips; its files of embeddings are as good as ours.
        digest = hashlib.sha256(f"{VERSION}\n".encode() if self.table == "clips" else b"")
        for file in self.sources:
            source = f"{_whose(file)}\0{file.path}\0{file.size}\0{file.mtime_ns}\n"
            digest.update(os.fsencode(source))  # a name may be no text
        return digest.hexdigest()

    def item(self) -> Item:
        """Describe it to the journal."""
        size = max(0, sum(source.size for source in self.sources))  # -1 each: no regular file
        return Item(self.name, File(self.name, size, 0), self)


@dataclass
class _Run:
    """One run: what is due, making it, and what failed."""

    journal: Journal
    out: Place
    tree: str  # the way to it from the pack
    settings: dict[str, Any]
    workers: int | None
    overwrite: bool
    progress: Progress
    failed: list[Failure]
    made: int = 0
    skipped: int = 0

    def plan(self, split: _Split, table: str, sources: Sequence[File]) -> list[ShardPlan]:
        """Divide sources in order into files of about one size."""
        width = self.settings["clip_samples" if table == "clips" else "embedding"]
        shards: list[list[File]] = []
        room = 0
        for source in sources:
            # Exact for int16 waveforms but for the rests of clips; too much for floating point.
            needed = max(width * DTYPES[table].itemsize, source.size)
            if not shards or needed > room:
                shards.append([])
                room = self.settings["shard_bytes"]
            shards[-1].append(source)
            room -= needed
        prefix = f"{split.name}/{table}" if split.name else table
        return [
            ShardPlan(f"{prefix}-{k:05}.npy", table, width, split.folder, tuple(shard))
            for k, shard in enumerate(shards)
        ]

    def is_due(self, plan: ShardPlan) -> bool:
        """Decide whether a file has to be made; one that is not ours is refused."""
        due = self.journal.is_due(plan.item(), self.overwrite)
        return due or self.journal.entries[plan.name].note["sources"] != plan.fingerprint

    def make(self, split: _Split) -> Index:
        """Make the files of a split that are due, and its index."""
        folder = self.out / split.name
        faces, embeddings = self._make_table(split, "embeddings", split.tables["embeddings"])
        for person in sorted(set(map(_whose, split.tables["embeddings"])) - set(faces)):
            message = f"{split.folder / person}: none of its embeddings can be used"
            error = DatasetError(message, hint="make them again with s2f prep embeddings")
            self.failed.append(Failure(split.folder / person, error))
        audios = [source for source in split.tables["clips"] if _whose(source) in faces]
        heard, clips = self._make_table(split, "clips", audios)
        if not heard:
            message = f"{split.folder}: none of its waveforms can be used with an embedding"
            raise DatasetError(message, hint=self.failed[0].error.message)
        people = Identities.of(
            Identity(name, sum(heard[name]), len(n), tuple(heard[name]))
            for name, n in faces.items()
        )
        index = Index(**self.settings, identities=people, clips=clips, embeddings=embeddings)
        write_index(folder, index)
        wanted = {shard.name for shard in (*clips, *embeddings)}
        for name in self.journal.entries:  # of an earlier tree, which had more
            of, _, file = name.rpartition("/")
            if of == split.name and file not in wanted and self.journal.is_there(name):
                (folder / file).unlink()
        return index

    def _make_table(
        self, split: _Split, table: str, sources: Sequence[File]
    ) -> tuple[dict[str, list[int]], tuple[Shard, ...]]:
        """Make what is due; give the rows of each source of each identity, in order, and files."""
        plans = self.plan(split, table, sources)
        due = [plan for plan in plans if self.is_due(plan)]
        done = len(plans) - len(due)
        self.skipped += done
        self.made += len(due)
        self.progress(done, len(plans), table)
        if due:
            index = self.out / split.name / INDEX
            try:
                index.unlink(missing_ok=True)  # from now on, it is of other files
            except OSError as error:
                raise unwritable(f"{index.parent}", error) from error
        made = prep.make_outputs(
            self.journal,
            [plan.item() for plan in due],
            write_shard,
            workers=self.workers,
            preload=("s2f.pack",),
            seconds=SHARD_SECONDS,
        )
        with contextlib.closing(made):
            for item, part, note in made:
                if isinstance(note, S2FError):
                    raise note
                self.journal.place(item, part, note)
                done += 1
                self.progress(done, len(plans), item.output)
        rows: dict[str, list[int]] = defaultdict(list)
        shards = []
        for plan in plans:
            note = self.journal.entries[plan.name].note
            if note.get("tree") != self.tree:  # it was moved, or this is what shall replace it
                note |= {"tree": self.tree}
                self.journal.note("done", plan.name, plan.item().source, note)
            n_rows = 0
            for name, noted in note["rows"].items():
                # Version 1 noted sums, here of embeddings, of which each source gave one row.
                of_each = [1] * noted if isinstance(noted, int) else noted
                rows[name] += of_each
                n_rows += sum(of_each)
            shards.append(Shard(Path(plan.name).name, n_rows, note["sha256"]))
            for path, message, hint in note["failed"]:
                why = DatasetError(message, hint=hint)
                self.failed.append(Failure(split.folder / path, why))
        return rows, tuple(shards)


def write_shard(plan: ShardPlan, part: Path) -> dict[str, Any]:
    """Write a file of a pack, going on past sources that cannot be used.

    Gives for the journal `sources`, the fingerprint of the plan; `rows`, how many each source of
    each identity gave, in their order; `sha256` of the file; and `failed`, path, message and hint
    of the sources that could not be used. An `OSError` if it cannot be written.
    """
    read = _read_clips if plan.table == "clips" else _read_embedding
    dtype = DTYPES[plan.table]
    rows: dict[str, list[int]] = defaultdict(list)
    failed = []
    with part.open("wb+") as output:
        output.write(bytes(HEADER))
        for file in plan.sources:
            path = plan.folder / file.path
            try:
                if not path.is_file():  # opening a pipe would wait for ever
                    raise DatasetError(f"{path}: is no regular file", hint="remove it")
                values = read(path, plan.width)
            except DatasetError as error:
                failed.append([file.path, error.message, error.hint])
                continue
            output.write(np.ascontiguousarray(values, dtype).data)
            rows[_whose(file)].append(len(values))
        output.seek(0)
        shape = sum(map(sum, rows.values())), plan.width
        fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(output, fields)
        assert output.tell() == HEADER
        output.seek(0)
        sha256 = hashlib.file_digest(output, "sha256").hexdigest()
    return {"sources": plan.fingerprint, "rows": {**rows}, "sha256": sha256, "failed": failed}


def _read_clips(path: Path, clip_samples: int) -> NDArray[np.int16]:
    """Cut a stored waveform into clips [m clip_samples] that sound."""
    waveform = map_waveform(path)
    check_waveform(waveform, str(path))
    if waveform.dtype != np.int16:
        waveform = to_int16(cast(FloatArray, waveform))
    return np.stack(clips_that_sound(waveform, clip_samples))


def _read_embedding(path: Path, width: int) -> NDArray[np.float16]:
    """Read an embedding as one row [1 d]."""
    values = read_embedding(path, width)
    with np.errstate(over="ignore"):  # found on the next line
        row = values.astype(np.float16)[np.newaxis]
    if not np.isfinite(row).all():
        message = f"{path}: holds values that are not finite in half precision"
        raise DatasetError(message, hint="make it again with s2f prep embeddings")
    return row
