"""A voice tree becomes a pack. What a pack is, `packed` says; what goes into a file, `shards`.

An utterance becomes consecutive clips of one length, as `audio.clips` cuts them: a short one is
looped, and a rest of less than half a clip is dropped. Photos become the embeddings that stand
beside them. Files are made in worker processes; a journal lets a run that was killed go on.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2f import links, packed, shards
from s2f import workers as processes
from s2f.decoding import SAMPLE_RATE
from s2f.errors import DatasetError, S2FError, UsageError
from s2f.journal import Journal, not_ours
from s2f.listing import File
from s2f.packed import INDEX, Identity, Index, Shard
from s2f.prep import Failure
from s2f.prep_embeddings import check_embeddings, read_space
from s2f.runtime import Progress, silent, unwritable, write
from s2f.shards import Plan, Source, Split, find_splits

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
    links.refuse_overlap(tree, out)
    if not overwrite:
        for split in splits:
            _refuse_others(out / split.name, settings)
    with Journal(out, "pack", settings) as journal:
        run = _Run(out, settings, journal, overwrite, workers or processes.count(), progress)
        run.total = sum(len(split.embeddings) + len(split.audios) for split in splits)
        new = [split for split in splits if any(map(run.is_due, run.plan_embeddings(split)))]
        paths = [split.folder / source.file.path for split in new for source in split.embeddings]
        if paths:
            check_embeddings(paths, face_encoder)
        indices = [run.make(split, failed) for split in splits]
        journal.finish()
    if (tree / "card.json").is_file():
        write(out / "card.json", (tree / "card.json").read_bytes())
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
    index = packed.read_index(folder)
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

    def _plan(self, split: Split, table: str, sources: Sequence[Source]) -> list[Plan]:
        name = f"{split.name}/{table}" if split.name else table
        width, size = self._width(table), self.settings["shard_bytes"]
        return list(shards.plan(name, table, sources, width, size))

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
            raise not_ours(path)
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
            write(folder / INDEX, index.encode())
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
        made = processes.run(
            shards.write,
            items,
            workers=min(self.workers, len(due)),
            preload=("s2f.shards",),
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

    def _end(self, plan: Plan, made: shards.Made) -> None:
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
