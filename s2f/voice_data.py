"""Recordings of a voice tree, or clips of a pack, each with the embedding of a face of its person.

Recordings and faces are numbered through, person by person, in the order of their names. `pair`
decides by these numbers which goes with which; `Voices` reads what was paired. What is heard in a
clip, and who made an embedding, is not known here.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from s2f import layout
from s2f.audio import SAMPLE_RATE
from s2f.console import Progress, silent
from s2f.dataloader import Item, Key
from s2f.embeddings import Gallery, Maker
from s2f.errors import CheckpointError, DatasetError, ImageError, UsageError
from s2f.files import map_waveform
from s2f.layout import FaceFiles, Speaker
from s2f.pack import Index, Pack, is_pack

# `all-to-all`: each recording with any face of the person. `one-to-one`: the first recording with
# the first face and so on; what is over of either is left out. `all-to-one`: each recording with
# the person's first face. `same-clip`: those whose names match: `audios/VIDEO/1.npy` goes with
# `images/VIDEO/1.jpg`, and so does `images/VIDEO_1.jpg`.
Pairing = Literal["all-to-all", "one-to-one", "all-to-one", "same-clip"]
SHOWN = 5  # names in a note

_Numbers = NDArray[np.int64]
_Absent = dict[str, list[str]]  # names by reason


@dataclass(frozen=True)
class Sampling:
    """Which recordings are items, and how long a clip of them is, in samples."""

    clip_samples: int
    shortest: int | None = None  # clips, where their length is random; 1 to `clip_samples`
    pairing: Pairing = "all-to-all"
    per_identity: int | None = None  # items of a person at most, spread evenly over all of them

    def __post_init__(self) -> None:
        if self.per_identity is not None and self.per_identity < 1:
            message = f"at most {self.per_identity} recordings of a person leaves none"
            raise UsageError(message, hint="give --per-identity 1 or more, or leave it out")

    def length(self, share: float) -> int:
        """Choose the length of a step's clips: even in its logarithm, whole at a share of 1."""
        if self.shortest is None:
            return self.clip_samples
        return round(self.shortest * math.pow(self.clip_samples / self.shortest, share))


class Pairs(NamedTuple):
    """The items [n] of a data set, by number.

    Item k is a recording of a person; it may come with any of the faces `faces[k]`,
    `faces[k] + 1`, ..., which are `choices[k]`.
    """

    recordings: _Numbers
    people: _Numbers
    faces: _Numbers
    choices: _Numbers
    notes: list[str]  # sentences on what was left out

    def all_faces(self) -> list[int]:
        """List the faces that any recording may come with, sorted."""
        ranges = set(zip(self.faces.tolist(), self.choices.tolist(), strict=True))
        return sorted({face for first, n in ranges for face in range(first, first + n)})


def pair(
    recordings: Sequence[int],
    faces: Sequence[int],
    sampling: Sampling,
    same_clip: _Numbers | None = None,
) -> Pairs:
    """Pair recordings with faces of the same people, who have so many of each.

    `same_clip` is for that pairing the face of each recording [m]; -1 where there is none.
    """
    n_recordings, n_faces = np.asarray(recordings, np.int64), np.asarray(faces, np.int64)
    people = np.repeat(np.arange(len(n_recordings)), n_recordings)
    first = (np.cumsum(n_faces) - n_faces)[people]
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
    items = np.flatnonzero(kept)
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
    return Pairs(items, people[items], first[items], choices[items], notes)


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

    def __init__(
        self,
        folder: Path,
        sampling: Sampling,
        maker: Maker,
        space: str,
        progress: Progress = silent,
    ) -> None:
        """List a split; of a tree also read or make the embeddings of the faces that are paired.

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
        self.n_identities = len(there)
        self.counts = {"identities": len(there), "pairs": int(self.pairs.choices.sum())}

    def _pair(
        self, recordings: list[int], faces: list[int], same_clip: _Numbers | None = None
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
        self._pair([person.clips for person in people], [person.embeddings for person in people])
        return [person.name for person in people], {}

    def _pair_tree(self, maker: Maker, progress: Progress) -> tuple[list[str], _Absent]:
        folder = self.folder
        speakers, absent = layout.speakers(folder)
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
        """Give `waveform` [n], a clip from anywhere, `embedding` [d], `identity` [] and `index` [].

        n is as `Sampling.length` has it for the key's share; a recording that is shorter is looped.
        Raises a DatasetError if it cannot be read, or holds NaN or infinite samples.
        """
        face, generator = self._draw_face(key.item, key.seed)
        n = self.sampling.length(key.share)
        samples = self._samples(int(self.pairs.recordings[key.item]))
        start = int(torch.randint(max(1, len(samples) - n + 1), (), generator=generator))
        clip = np.resize(samples[start : start + n], n)
        if clip.dtype == np.int16:
            clip = clip.astype(np.float32) / 32768
        elif not np.isfinite(clip).all():
            message = f"{self.name(key.item)}: holds NaN or infinite samples"
            raise DatasetError(message, hint="make it again")
        pack = self.pack
        embedding = self.table[self.rows[face]] if pack is None else pack.embedding(face)
        return {
            "waveform": torch.from_numpy(np.ascontiguousarray(clip, np.float32)),
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
        path = self.folder / os.fsdecode(self.paths[recording])
        with contextlib.suppress(OSError, ValueError, EOFError):
            samples: NDArray[Any] = np.load(path, mmap_mode="r")
            if samples.ndim == 1 and len(samples) and samples.dtype in (np.int16, np.float32):
                return samples
        return map_waveform(path)  # of a rarer type, or no waveform, which it says why

    def name(self, index: int) -> str:
        """Name the recording of an item: its path, or its person and its number in the pack."""
        recording = self.pairs.recordings[index]
        if self.pack is not None:
            person = self.pack.index.identities[int(self.pairs.people[index])]
            return f"{person.name} (clip {recording})"
        return str(self.folder / os.fsdecode(self.paths[recording]))

    def photo(self, index: int) -> Path | None:
        """Name the photo of the face that `Key(index, index)` comes with, where there is one."""
        photo = self.photos[self._draw_face(index, index)[0]] if self.photos else None
        return None if photo is None else self.folder / photo


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
