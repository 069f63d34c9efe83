"""What a model is evaluated on: people with voices and faces, photos to judge by, labels.

DATA is a voice tree (`SPLIT/IDENTITY/audios/*.npy`, `images/*`), or a folder with such a tree
`voices` and a face tree `faces`, as `s2f prep demo` makes.

What an evaluation measures: embeddings and faces of the people of a split, made once.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from s2f import files, labels, layout, split
from s2f.audio import SAMPLE_RATE, Waveform
from s2f.console import Progress, silent
from s2f.device import computing
from s2f.embeddings import BATCH, Gallery, Maker
from s2f.errors import DatasetError, UsageError
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.files import map_waveform
from s2f.labels import canonical, read_table
from s2f.layout import is_photo
from s2f.pipeline import Embedded, Face, SpeechToFace

T = TypeVar("T")
LABELS = ("labels.csv", "people.csv", "speakers.csv")  # in DATA, or in its trees
COLUMNS = (
    "sex",
    "gender",
    "age",
    "ethnicity",
    "nationality",
)  # labels, unless others are asked for
SEX = ("sex", "gender")


@dataclass(frozen=True)
class People:
    """The people of a split, who have voices and faces.

    Attributes:
        names: of the identities, sorted.
        recordings: waveforms of people, [q] paths.
        speakers: whose each recording is, [q].
        photos: of people, [g] paths; None where there is only an embedding.
        embeddings: of the photos, by the model's face encoder, [g d].
        owners: whose each photo is, [g].
        notes: sentences on what was left out.
    """

    names: tuple[str, ...]
    recordings: tuple[Path, ...]
    speakers: NDArray[np.int64]
    photos: tuple[Path | None, ...]
    embeddings: NDArray[np.float32]
    owners: NDArray[np.int64]
    notes: tuple[str, ...]

    def means(self) -> NDArray[np.float32]:
        """Mean embedding of each person's photos, [n d]."""
        total = np.zeros((len(self.names), self.embeddings.shape[1]), np.float64)
        np.add.at(total, self.owners, self.embeddings)
        counts = np.bincount(self.owners, minlength=len(self.names))
        return np.asarray(total / counts[:, None], np.float32)


@dataclass(frozen=True)
class Sources:
    """Where the parts of DATA are.

    Attributes:
        voices: the voice tree.
        faces: the tree of photos that faces are judged by: the face tree, or the voice tree.
        labels: csv files.
    """

    voices: Path
    faces: Path
    labels: tuple[Path, ...]


def find_sources(data: Path, labels: Sequence[Path] = ()) -> Sources:
    """Find the parts of DATA.

    Args:
        data: a voice tree, or a folder of `voices` and `faces`.
        labels: csv files; by default those of the names in `LABELS` that are there.

    Raises:
        DatasetError: if there is no such folder.
    """
    if not data.is_dir():
        raise DatasetError(
            f"{data}: is no folder", hint="give a voice tree, or what prep demo made"
        )
    voices = data / "voices" if (data / "voices").is_dir() else data
    faces = data / "faces" if (data / "faces").is_dir() else voices
    places = dict.fromkeys([data, voices, faces])
    found = [place / name for place in places for name in LABELS if (place / name).is_file()]
    return Sources(voices, faces, tuple(labels) or tuple(found))


def read_people(
    tree: Path,
    split: str,
    maker: Maker,
    *,
    most: int,
    people: int | None = None,
    progress: Progress = silent,
) -> People:
    """Read the people of a split of a voice tree, and embed their photos where that is to be done.

    Args:
        tree: the voice tree.
        split: `train`, `val` or `test`.
        maker: the model's face encoder.
        most: recordings and photos of one person, spread evenly over what there is.
        people: how many of them, spread likewise; by default all.
        progress: told of photos.

    Raises:
        DatasetError: if the split has nobody with a voice and a face, or a file cannot be read.
        CheckpointError: if stored embeddings are of another face encoder.
    """
    folder = layout.split(tree, split)
    speakers, left_out = layout.speakers(folder)
    speakers = spread(speakers, people or len(speakers))
    notes = [f"{len(names)} identities {why}" for why, names in left_out.items() if names]
    gallery = Gallery(folder, maker, progress)
    failed = gallery.add([face for who in speakers for face in spread(who.faces, most)])
    notes += [f"{error.message}" for error in failed.values()]
    if gallery.n_unchecked:
        notes.append(
            f"{gallery.n_unchecked} embeddings have no photo to tell which face encoder made them"
        )
    seen = [(who, [f for f in spread(who.faces, most) if f not in failed]) for who in speakers]
    seen = [(who, faces) for who, faces in seen if faces]
    if len(seen) < 2:
        raise DatasetError(
            f"{folder}: has {len(seen)} people with a voice and a face",
            hint="wanted two or more, who can be told apart",
        )
    recordings = [
        (folder / audio, k) for k, (who, _) in enumerate(seen) for audio in spread(who.audios, most)
    ]
    faces = [(face, k) for k, (_, mine) in enumerate(seen) for face in mine]
    table, rows = gallery.table([face for face, _ in faces])
    return People(
        tuple(who.identity for who, _ in seen),
        tuple(path for path, _ in recordings),
        np.array([k for _, k in recordings], np.int64),
        tuple(folder / face.photo if face.photo else None for face, _ in faces),
        table[rows],
        np.array([k for _, k in faces], np.int64),
        tuple(notes),
    )


def spread(items: Sequence[T], most: int) -> list[T]:
    """Choose `most` of some items, evenly."""
    if len(items) <= most:
        return list(items)
    return [items[k * len(items) // most] for k in range(most)]


def split_names(tree: Path, split: str) -> set[str]:
    """Name the identities of a split; none if the tree has no such split."""
    try:
        folder = layout.split(tree, split)
    except DatasetError:
        return set()
    return {identity.name for identity in layout.identities(folder)}


def photos_of(tree: Path, split: str, names: Collection[str], most: int) -> list[tuple[Path, str]]:
    """List photos of people of a split: paths, and whose they are.

    Args:
        tree: a face tree or a voice tree.
        split: `train`, `val` or `test`.
        names: of the people.
        most: photos of one person.
    """
    found = []
    for name in sorted(split_names(tree, split) & set(names)):
        identity = layout.split(tree, split) / name
        inside = list(files.names(identity, is_photo))
        found += [(identity / path, name) for path in spread(inside, most)]
    return found


def read_labels(
    paths: Sequence[Path],
    names: Sequence[str],
    columns: Sequence[str] = (),
    *,
    notes: list[str] | None = None,
) -> dict[str, dict[str, str]]:
    """Read labels of people: by the label's name, the value of each person who has one.

    Args:
        paths: csv files; a file that names none of the people is passed over.
        names: of the people.
        columns: which labels; by default those of `COLUMNS` that a file has.
        notes: is told of columns nobody asked for that are no labels.

    Raises:
        DatasetError: if a file cannot be read, or as `split.labels_of`.
        UsageError: if no file has a label that was asked for.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in columns}
    seen: set[str] = set()
    known = set(names)
    for path in paths:
        table = read_table(path)
        seen.update(table.columns)
        if not any(cell in known for row in table.rows for cell in row):
            continue  # it is of others
        for name in table.columns:
            if not (name in columns or (not columns and _is_label(name))):
                continue
            try:
                labels = split.labels_of(path, names, [name])
            except DatasetError as error:
                if columns or notes is None:
                    raise
                notes.append(error.message)
                continue
            for who, (value,) in (labels.values or {}).items():
                if value:
                    found.setdefault(name, {})[who] = value
    for name in columns:
        if name not in seen:
            raise UsageError(
                f"no label {name!r} in {', '.join(map(str, paths)) or 'any csv file'}",
                hint=f"there are {', '.join(sorted(seen)) or 'none'}; give files with --labels",
            )
    return {name: values for name, values in found.items() if values}


def _is_label(column: str) -> bool:
    return labels.canonical(column) in COLUMNS


SECONDS = (3, 6)  # of speech, in the papers' tables
WHOLE = "whole recordings"

Samples = Mapping[str, Mapping[str, float]]
"""By the name of a measure: each person's mean. It is what two models are compared by."""


@dataclass(frozen=True)
class Case:
    """The people of a split, and what a model makes of them.

    Attributes:
        people: n people, with q recordings and g photos.
        labels: by the label's name: the value of each person who has one.
        heard: embeddings of the recordings [q d], by how much of them was heard; `WHOLE` last.
        from_voices: faces of the whole recordings, [q].
        from_photos: faces of the people's mean embeddings, [n]: the best the decoder could do.
        voices_again: embeddings of `from_voices`, [q d].
        photos_again: embeddings of `from_photos`, [n d].
    """

    people: People
    labels: Mapping[str, Mapping[str, str]]
    heard: Mapping[str, NDArray[np.float32]]
    from_voices: Sequence[Face]
    from_photos: Sequence[Face]
    voices_again: NDArray[np.float32]
    photos_again: NDArray[np.float32]

    @property
    def sexes(self) -> NDArray[np.int64] | None:
        """A number for the sex of each person, [n], -1 where it is not known; None without any."""
        for name in self.labels:
            if canonical(name) in SEX:
                values = [self.labels[name].get(who, "") for who in self.people.names]
                kinds = {value: k for k, value in enumerate(sorted({*values} - {""}))}
                return np.array([kinds.get(value, -1) for value in values], np.int64)
        return None

    def by_person(self, values: NDArray[np.floating]) -> dict[str, float]:
        """Mean of what was measured on each recording [q], by person; NaN was not measured."""
        there = np.isfinite(values)
        found = {}
        for k, name in enumerate(self.people.names):
            mine = there & (self.people.speakers == k)
            if mine.any():
                found[name] = float(values[mine].mean())
        return found


def maker_of(model: SpeechToFace) -> Maker:
    """Make a model's face encoder ready to embed many photos."""
    encoder = model.model.checkpoints["face_encoder"].network
    assert isinstance(encoder, FaceEncoder)
    quick = batch_embedder(encoder, device=model.device, batch_size=BATCH)

    def embed(faces: Tensor) -> Tensor:
        with computing(model.device, model.precision):
            return quick(faces).float()

    return Maker("the face encoder", encoder.config.embedding, encoder.preprocessing.fit, embed)


def embed_images(maker: Maker, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Embed faces of 224 x 224 pixels, [n d]."""
    parts = []
    for k in range(0, len(images), BATCH):
        arrays = [torch.from_numpy(np.array(image)) for image in images[k : k + BATCH]]
        parts.append(maker.of([array.permute(2, 0, 1) for array in arrays]))
    return np.concatenate(parts)


def build_case(
    model: SpeechToFace,
    people: People,
    labels: Mapping[str, Mapping[str, str]],
    maker: Maker,
    progress: Progress = silent,
) -> Case:
    """Hear all recordings, and draw all faces.

    Recordings that hold no speech are left out, with a note.

    Raises:
        DatasetError: if a recording cannot be read, or none holds speech.
    """
    found: dict[str, list[Embedded]] = {}
    for seconds in (*SECONDS, None):
        name = WHOLE if seconds is None else f"{seconds} s"
        found[name] = []
        for item in _hear(model, people, seconds):
            progress(len(found[name]), len(people.recordings), f"listening, {name}")
            found[name].append(item)
    kept, notes = [], []
    for k, (path, *items) in enumerate(zip(people.recordings, *found.values(), strict=True)):
        if error := next((item.error for item in items if item.error), None):
            notes.append(f"{path}: {error.message}")
        else:
            kept.append(k)
    if not kept:
        raise DatasetError(f"no recording holds speech: {notes[0]}", hint="prepare them again")
    people = dataclasses.replace(
        people,
        recordings=tuple(people.recordings[k] for k in kept),
        speakers=people.speakers[kept],
        notes=(*people.notes, *notes),
    )
    heard = {name: np.stack([items[k].embedding for k in kept]) for name, items in found.items()}
    from_voices, from_photos = (
        _draw(model, rows, what, progress)
        for rows, what in ((heard[WHOLE], "voices"), (people.means(), "photos"))
    )
    return Case(
        people,
        labels,
        heard,
        from_voices,
        from_photos,
        embed_images(maker, [face.image for face in from_voices]),
        embed_images(maker, [face.image for face in from_photos]),
    )


def _hear(model: SpeechToFace, people: People, seconds: float | None) -> Iterator[Embedded]:
    def recordings() -> Iterator[Waveform]:
        for path in people.recordings:
            samples = map_waveform(path)
            stop = None if seconds is None else round(seconds * SAMPLE_RATE)
            yield Waveform(np.asarray(samples[:stop]), SAMPLE_RATE)

    return model.embed_voices(recordings())


def _draw(
    model: SpeechToFace, rows: NDArray[np.float32], what: str, progress: Progress
) -> list[Face]:
    faces = []
    for k, row in enumerate(rows):
        progress(k, len(rows), f"drawing faces from {what}")
        faces.append(model.decode(row))
    return faces
