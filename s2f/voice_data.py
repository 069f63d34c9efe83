"""Recordings of a voice tree, or clips of a pack, each with the embedding of a face of its person.

Recordings and faces are numbered through, person by person, in the order of their names. `pair`
decides by these numbers which goes with which; `Voices` reads what was paired. What is heard in a
clip, and who made an embedding, is not known here.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from s2f import layout
from s2f.audio import (
    FRAME_SAMPLES,
    SAMPLE_RATE,
    check_waveform,
    is_plain,
    least_sound,
    map_waveform,
    sounding,
    stored_powers,
)
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key
from s2f.distributed import Ranks
from s2f.embeddings import Gallery, Maker
from s2f.errors import CheckpointError, DatasetError, ImageError, UsageError
from s2f.layout import FaceFiles, Speaker
from s2f.pack import Index, Pack, is_pack

# `all-to-all`: each recording with any face of the person. `one-to-one`: the first recording with
# the first face and so on; what is over of either is left out. `all-to-one`: each recording with
# the person's first face. `same-clip`: those whose names match: `audios/VIDEO/1.npy` goes with
# `images/VIDEO/1.jpg`, and so does `images/VIDEO_1.jpg`.
Pairing = Literal["all-to-all", "one-to-one", "all-to-one", "same-clip"]
SHOWN = 5  # names in a note
# How many of random clips. oneDNN keeps what it makes for each, and between these the C library
# cannot give memory back: 17 MB a step of 32 clips.
LENGTHS = 17
CHECKED_SAMPLES = 2**31  # of a tree that are looked at before training, at most, of all its files
CHECKED_AT_ONCE = 8  # files: where they lie on another machine, most of the time is waiting

_Numbers = NDArray[Any]  # int32 where they are small enough, else int64
_Absent = dict[str, list[str]]  # names by reason


@dataclass(frozen=True)
class Sampling:
    """Which recordings are items, and how long a clip of them is, in samples."""

    clip_samples: int
    shortest: int | None = None  # clips, where their length is random; 1 to `clip_samples`
    pairing: Pairing = "all-to-all"
    per_identity: int | None = None  # items of a person at most, spread evenly over all of them
    anywhere: bool = True  # whether a clip comes from anywhere, or is the first of its recording

    def __post_init__(self) -> None:
        if self.per_identity is not None and self.per_identity < 1:
            message = f"at most {self.per_identity} recordings of a person leaves none"
            raise UsageError(message, hint="give --per-identity 1 or more, or leave it out")

    def length(self, share: float) -> int:
        """Choose one of `LENGTHS`, even in their logarithm; the whole at a share of 1."""
        if self.shortest is None:
            return self.clip_samples
        power = min(int(share * LENGTHS), LENGTHS - 1) / (LENGTHS - 1)
        return round(self.shortest * math.pow(self.clip_samples / self.shortest, power))


class Pairs(NamedTuple):
    """The items [n] of a data set, by number.

    Item k is a recording of a person; it may come with any of the faces `faces[k]`,
    `faces[k] + 1`, ..., which are `choices[k]`; the first face says how many.
    """

    recordings: _Numbers
    people: _Numbers
    faces: _Numbers
    choices: _Numbers
    notes: list[str]  # sentences on what was left out

    def all_faces(self) -> list[int]:
        """List the faces that any recording may come with, sorted."""
        firsts, items = np.unique(self.faces, return_index=True)
        ranges = zip(firsts.tolist(), self.choices[items].tolist(), strict=True)
        return sorted({face for first, n in ranges for face in range(first, first + n)})


def pair(
    recordings: Sequence[int] | _Numbers,
    faces: Sequence[int] | _Numbers,
    sampling: Sampling,
    same_clip: _Numbers | None = None,
) -> Pairs:
    """Pair recordings with faces of the same people, who have so many of each.

    `same_clip` is for that pairing the face of each recording [m]; -1 where there is none.
    """
    n_recordings, n_faces = np.asarray(recordings, np.int64), np.asarray(faces, np.int64)
    most_of_any = max(int(n_recordings.sum()), int(n_faces.sum()), len(n_faces))
    dtype: Any = np.int32 if most_of_any < 2**31 else np.int64  # of tens of millions it is much
    people = np.repeat(np.arange(len(n_recordings), dtype=dtype), n_recordings)
    n_faces = n_faces.astype(dtype)
    first = (np.cumsum(n_faces, dtype=dtype) - n_faces)[people]
    choices = np.ones_like(people)
    if sampling.pairing == "same-clip":
        assert same_clip is not None
        first, kept = same_clip, same_clip >= 0
    elif sampling.pairing == "one-to-one":
        place = _places(people, n_recordings)
        first, kept = first + place, place < n_faces[people]
    else:
        kept = n_faces[people] > 0
        if sampling.pairing == "all-to-all":
            choices = n_faces[people]
    items = np.arange(len(kept), dtype=dtype) if kept.all() else np.flatnonzero(kept)
    notes = []
    if sampling.pairing != "all-to-all":
        unpaired = int(n_faces.sum()) - len(np.unique(first[items]))
        left = {"recording": len(people) - len(items), "face": unpaired}
        told = " and ".join(_count(n, what) for what, n in left.items() if n)
        notes = [f"{told} left out: the pairing is {sampling.pairing}"] if told else []
    if (most := sampling.per_identity) is not None:
        counts = np.bincount(people[items], minlength=len(n_recordings))
        k, n = _places(people[items], counts), counts[people[items]]
        # Of n recordings those numbered floor(j * n / most) for some j: `most` of them, or all.
        spread = items[-((k + 1) * -most // n) > -(k * -most // n)]
        if n_over := len(items) - len(spread):
            over = _count(n_over, "recording")
            notes.append(f"{over} left out: at most {most} of a person")
        items = spread
    columns = (people, first, choices)
    if len(items) < len(people):
        columns = (people[items], first[items], choices[items])
    return Pairs(items, *columns, notes)


def _places(people: _Numbers, counts: _Numbers) -> _Numbers:
    """Number the recordings [n] of each person from 0."""
    places: _Numbers = np.arange(len(people)) - (np.cumsum(counts) - counts)[people]
    return places


def _same_clip(speakers: Sequence[Speaker]) -> _Numbers:
    """Find the face of each recording's clip, the first of several; -1 where there is none."""
    faces = [(s.identity, layout.clip(face.name)) for s in speakers for face in s.faces]
    known = {clip: number for number, clip in reversed(list(enumerate(faces)))}
    heard = ((s.identity, layout.clip(path)) for s in speakers for path in s.audios)
    return np.array([known.get(clip, -1) for clip in heard], np.int64)


class Voices(Dataset[Item]):
    """Recordings of a tree, or clips of a pack, each with the embedding of a face of its person."""

    pack: Pack | None = None  # None for a tree
    table: NDArray[np.float32]  # of a tree: embeddings [m d], and below the row of each face
    rows: _Numbers
    photos: Sequence[str | None] = ()  # of the faces
    paths: NDArray[np.bytes_]  # of the recordings
    broken: Sequence[DatasetError] = ()  # why recordings of a tree cannot be used
    files: str  # digest of the recordings and faces of a tree, or of a pack's index

    def __init__(
        self,
        folder: Path,
        sampling: Sampling,
        maker: Maker,
        space: str,
        progress: Progress = silent,
    ) -> None:
        """List a split; of a tree also read or make the embeddings of the faces that are paired.

        And look at each waveform of a tree that is paired: at all samples of trees of up to 2^31 of
        them (37 hours; 0.6 ms for a file of 8 s), else at so many in all, from the middle of each
        file (of a million files 0.13 s each; 0.5 ms), and at all of a file whose middle is no plain
        sound. What is wrong is in `broken`. Those of a pack were looked at when it was made.

        The face encoder that they are made by is the `maker`, the embeddings of a pack are to be of
        its `space`, and `progress` is told of faces. Raises a DatasetError if nothing can be
        paired, all photos of a person are broken, a pack's clips are shorter or are to be paired by
        names, or as `layout.speakers`, `read_embedding` and `Pack`; an ImageError if the photos
        that would tell who made the stored embeddings are broken; a CheckpointError if another face
        encoder did.
        """
        self.folder, self.sampling = folder, sampling
        self.notes: list[str] = []  # sentences on what was left out
        if is_pack(folder):
            self.pack = Pack(folder)
            self.files = self.pack.index.sha256
            people, absent = self._pair_pack(self.pack.index, space)
        else:
            people, absent = self._pair_tree(maker, progress)
        there = set(np.unique(self.pairs.people).tolist())
        unpaired = f"without a voice{' and a face of one clip' if self.pack is None else ''}"
        absent[unpaired] = [name for k, name in enumerate(people) if k not in there]
        reasons = [f"{len(who)} {why} ({_some(who)})" for why, who in absent.items() if who]
        notes = [*self.pairs.notes, *self.notes]
        if reasons:
            many = sum(map(len, absent.values()))
            notes.insert(0, f"identities left out, {many}: {', '.join(reasons)}")
        self.notes = [f"{folder.name}: {note}" for note in notes]
        if self.pack is None:
            self.broken = self._check(maker.ranks, progress)
        self.n_identities = len(there)
        self.counts = {"identities": len(there), "pairs": int(self.pairs.choices.sum())}

    def _pair(
        self,
        recordings: Sequence[int] | _Numbers,
        faces: Sequence[int] | _Numbers,
        same_clip: _Numbers | None = None,
    ) -> None:
        self.pairs = pair(recordings, faces, self.sampling, same_clip)
        if not len(self):
            message = f"{self.folder}: no recording has a face to be paired with"
            hint = "choose another --pairing; same-clip wants audios/VIDEO/1.npy with "
            raise DatasetError(message, hint=f"{hint}images/VIDEO/1.jpg")

    def _pair_pack(self, index: Index, space: str) -> tuple[list[str], _Absent]:
        """Give who there is, and who is not, by reason."""
        folder, wanted = self.folder, self.sampling.clip_samples
        if index.embedding_space != space:
            raise CheckpointError(
                f"{folder}: its embeddings are of the space {index.embedding_space[:8]}; "
                f"the face encoder's is {space[:8]}",
                hint="give the face encoder that it was packed with, or pack the tree again",
            )
        if index.clip_samples < wanted:
            message = f"{folder}: its clips have {index.clip_samples} samples; wanted {wanted}"
            hint = f"pack the tree again, with clips of {wanted / SAMPLE_RATE:g} s"
            raise DatasetError(message, hint=hint)
        if self.sampling.pairing == "same-clip":
            message = f"{folder}: is a pack, which does not keep the names that same-clip goes by"
            hint = "train from the tree that was packed, or choose another --pairing"
            raise DatasetError(message, hint=hint)
        people = index.identities
        clips, faces, recordings = people.counts()
        if self.sampling.anywhere:
            self._pair(clips, faces)
        else:  # each recording's first clip stands for it
            if people.recordings is None:
                message = f"{folder}: does not say which clips begin a recording: it is a pack of"
                message += " format version 1, and recordings' beginnings alone are learned from"
                hint = "give its s2f prep pack command again, or train from the tree; a run that "
                hint += "was begun with it has to begin anew, in another folder"
                raise DatasetError(message, hint=hint)
            self._pair(recordings, faces)
            firsts = people.recordings[self.pairs.recordings]
            self.pairs = self.pairs._replace(recordings=firsts)
        return [*map(os.fsdecode, people.names)], {}

    def _check(self, ranks: Ranks, progress: Progress) -> list[DatasetError]:
        """Look at the waveforms that are paired, each of `ranks` at its share.

        Gives why some cannot be used, in the order of the recordings.
        """
        recordings = np.unique(self.pairs.recordings).tolist()
        most = max(FRAME_SAMPLES, CHECKED_SAMPLES // len(recordings))
        mine, found = recordings[ranks.rank :: ranks.size], dict[int, DatasetError]()

        def check(recording: int) -> None:
            try:
                check_waveform(self._samples(recording), self._path(recording), most=most)
            except DatasetError as error:
                found[recording] = error

        with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
            for k in range(0, len(mine), 1024):
                progress(k, len(mine), "looking at waveforms")
                list(pool.map(check, mine[k : k + 1024]))
        everyones = {k: error for some in ranks.gather(found) for k, error in some.items()}
        return [everyones[recording] for recording in sorted(everyones)]

    def _pair_tree(self, maker: Maker, progress: Progress) -> tuple[list[str], _Absent]:
        folder = self.folder
        speakers, absent = layout.speakers(folder)
        named = (path for s in speakers for path in (*s.audios, *(face.name for face in s.faces)))
        self.files = layout.digest(map(os.fsencode, named))
        gallery = Gallery(folder, maker, progress)
        broken: dict[FaceFiles, ImageError] = {}
        while True:  # a face that is broken gives way to the next one
            faces = [face for speaker in speakers for face in speaker.faces]
            same_clip = _same_clip(speakers) if self.sampling.pairing == "same-clip" else None
            recordings = [len(speaker.audios) for speaker in speakers]
            self._pair(recordings, [len(speaker.faces) for speaker in speakers], same_clip)
            failed = gallery.add([faces[k] for k in self.pairs.all_faces()])
            if not failed:
                break
            broken |= failed
            speakers = [_without(failed, speaker, folder) for speaker in speakers]
        if broken:
            told = _some([error.message for error in broken.values()], "; ")
            self.notes = [f"photos left out, {len(broken)}: {told}"]
        if gallery.n_unchecked:
            many = f"embeddings without a photo, {gallery.n_unchecked}"
            self.notes.append(f"{many}: nothing tells whether {maker.name} made them")
        self.photos = [face.photo for face in faces]
        self.table, self.rows = gallery.table(faces)
        # One array: processes that are forked would copy a list by and by.
        self.paths = np.array([os.fsencode(path) for s in speakers for path in s.audios])
        return [speaker.identity for speaker in speakers], absent

    def __len__(self) -> int:
        return len(self.pairs.recordings)

    def __getitem__(self, key: Key) -> Item:
        """Give `waveform` [n], a clip, `embedding` [d], `identity` [] and `index` [].

        It starts as `Sampling.anywhere` has it, and n is as `Sampling.length` has it for the key's
        share; a recording that is shorter is looped.
        A silent clip, as in `clips_that_sound`, is drawn again from where the recording sounds.
        Raises a DatasetError if it cannot be read, or as `check_waveform`.
        """
        face, generator = self._draw_face(key.item, key.seed)
        n = self.sampling.length(key.share)
        samples = self._samples(int(self.pairs.recordings[key.item]))
        starts = max(1, len(samples) - n + 1) if self.sampling.anywhere else 1
        start = int(torch.randint(starts, (), generator=generator))
        clip = _cut(samples, start, n)
        if not is_plain(clip):
            if self.pack is None:  # whose clips packing judged, within their recordings
                check_waveform(samples, self.name(key.item))
            clip = _cut(samples, _where_it_sounds(samples, start, n, generator), n)
        pack = self.pack
        embedding = self.table[self.rows[face]] if pack is None else pack.embedding(face)
        return {
            "waveform": torch.from_numpy(clip),
            "embedding": torch.from_numpy(embedding),
            "identity": torch.tensor(int(self.pairs.people[key.item])),
            "index": torch.tensor(key.item),
        }

    def _draw_face(self, index: int, seed: int) -> tuple[int, torch.Generator]:
        generator = torch.Generator().manual_seed(seed)
        choice = torch.randint(int(self.pairs.choices[index]), (), generator=generator)
        return int(self.pairs.faces[index]) + int(choice), generator

    def _samples(self, recording: int) -> NDArray[Any]:
        if self.pack is not None:
            return self.pack[recording][0]
        return map_waveform(Path(self._path(recording)))

    def name(self, index: int) -> str:
        """Name the recording of an item: its path, or its person and its number in the pack."""
        recording = self.pairs.recordings[index]
        if self.pack is not None:
            person = self.pack.index.identities.name(int(self.pairs.people[index]))
            return f"{person} (clip {recording})"
        return self._path(recording)

    def _path(self, recording: int) -> str:
        return str(self.folder / os.fsdecode(self.paths[recording]))

    def people(self) -> tuple[NDArray[np.float32], _Numbers]:
        """Give a face of each person who has items, the first that is paired [p d], and who [p]."""
        who, items = np.unique(self.pairs.people, return_index=True)
        faces = self.pairs.faces[items]
        if self.pack is None:
            return self.table[self.rows[faces]], who
        return np.stack([self.pack.embedding(face) for face in faces.tolist()]), who

    def photo(self, index: int) -> Path | None:
        """Name the photo of the face that `Key(index, index)` comes with, where there is one."""
        photo = self.photos[self._draw_face(index, index)[0]] if self.photos else None
        return None if photo is None else self.folder / photo


def _cut(samples: NDArray[Any], start: int, n: int) -> NDArray[np.float32]:
    """Cut a clip [n], -1..1, out of a waveform, which is looped where it is shorter."""
    clip = np.resize(samples[start : start + n], n)
    with np.errstate(over="ignore"):  # it becomes infinite, which is refused
        values: NDArray[np.float32] = clip.astype(np.float32)
    if clip.dtype == np.int16:
        values /= 32768
    return values


def _where_it_sounds(samples: NDArray[Any], start: int, n: int, generator: torch.Generator) -> int:
    """Keep the start of a clip [n] that sounds as `clips_that_sound` wants it, or draw one."""
    sums = np.concatenate([[0], np.cumsum(sounding(stored_powers(samples)))])
    starts = np.arange(0, max(1, len(samples) - n + 1), FRAME_SAMPLES)
    ends = np.minimum((starts + n) // FRAME_SAMPLES, len(sums) - 1)
    frames = sums[ends] - sums[starts // FRAME_SAMPLES]
    least = least_sound(n) // FRAME_SAMPLES
    sounds = frames >= min(frames.max(), least)
    if sounds[start // FRAME_SAMPLES]:
        return start
    there = starts[sounds]
    return int(there[int(torch.randint(len(there), (), generator=generator))])


def _without(failed: dict[FaceFiles, ImageError], speaker: Speaker, folder: Path) -> Speaker:
    """Take broken faces from a speaker, who must keep another."""
    faces = tuple(face for face in speaker.faces if face not in failed)
    if not faces:
        error = failed[speaker.faces[0]]
        raise DatasetError(
            f"{folder / speaker.identity}: none of its photos can be read: {error.message}",
            hint="put a photo there that can be read, or remove the person",
        ) from error
    return Speaker(speaker.identity, speaker.audios, faces)


def _some(names: Sequence[str], between: str = ", ") -> str:
    """Name the first few of many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
