"""What a model is evaluated on, and what it makes of that.

DATA is a voice tree (`SPLIT/IDENTITY/audios/*.npy`, `images/*`), or a folder with such a tree
`voices` and a face tree `faces`, as `s2f prep demo` makes. Knows nothing of figures and reports.

DATA -> people of a split with voices and faces, labels -> examples that judges learn from
     -> the case: embeddings of all voices, faces drawn from voices and photos, made once
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from s2f import files
from s2f.appearance_model import PartsEncoder
from s2f.audio import SAMPLE_RATE, Waveform
from s2f.console import Progress, silent
from s2f.device import computing
from s2f.embeddings import BATCH, Gallery, Maker
from s2f.errors import DatasetError, ImageError, UsageError
from s2f.images import FRAME, open_photo
from s2f.layout import identities, is_photo, speakers
from s2f.layout import split as split_folder
from s2f.pipeline import Embedded, Face, SpeechToFace

T = TypeVar("T")
LABELS = ("labels.csv", "people.csv", "speakers.csv")  # in DATA, or in its trees
COLUMNS = ("sex", "gender", "age", "ethnicity", "nationality")  # unless others are asked for
SECONDS = (3, 6)  # of speech, in the papers' tables
WHOLE = "whole recordings"
TRAINING_PEOPLE, TRAINING_PHOTOS = 1000, 3  # that a judge is fitted on; photos of each
MOST = 1000  # faces of a kind that are compared with each other, judged or searched for points

Labels = Mapping[str, Mapping[str, str]]
"""By the label's name, the value of each person who has one."""
Samples = dict[str, dict[str, float]]
"""By the name of a measure: each person's mean. It is what two models are compared by."""
Photos = list[tuple[Image.Image, str]]
"""Photos in the frame, and who is on each."""


@dataclass(frozen=True)
class People:
    """The people of a split, who have voices and faces."""

    names: tuple[str, ...]  # of the identities, sorted
    recordings: tuple[Path, ...]  # waveforms, [q]
    speakers: NDArray[np.int64]  # whose each recording is, [q]
    photos: tuple[Path | None, ...]  # [g]; None where there is only an embedding
    embeddings: NDArray[np.float32]  # of the photos, by the model's face encoder, [g d]
    owners: NDArray[np.int64]  # whose each photo is, [g]
    notes: tuple[str, ...]  # sentences on what was left out

    def means(self) -> NDArray[np.float32]:
        """Mean embedding of each person's photos, [n d]."""
        photos = (self.embeddings[self.owners == k] for k in range(len(self.names)))
        return np.stack([mine.mean(0, np.float64) for mine in photos]).astype(np.float32)


@dataclass(frozen=True)
class Examples:
    """What judges of labels are fitted on, and real photos that they are tried on."""

    names: Sequence[str]  # of people of the training split, whose each embedding is
    embeddings: NDArray[np.float32]  # of their photos, [m d]
    labels: Labels  # of these people
    photos: Photos  # labelled ones, to judge pixels by
    photo_labels: Labels  # of those people, who may be called otherwise in the same csv file
    own: Photos  # of the people that are evaluated
    fresh: Photos  # of the evaluated split's faces; with a face tree those are other people
    notes: tuple[str, ...] = ()  # sentences on what is missing


@dataclass(frozen=True)
class Case:
    """n people of a split with q recordings, and what a model makes of them."""

    people: People
    labels: Labels
    heard: Mapping[str, NDArray[np.float32]]  # the recordings [q d], by how much; `WHOLE` last
    from_voices: Sequence[Face]  # of the whole recordings, [q]
    from_photos: Sequence[Face]  # of people's mean embeddings, [n]: the best the decoder could do
    voices_again: NDArray[np.float32]  # embeddings of `from_voices`, [q d]
    photos_again: NDArray[np.float32]  # embeddings of `from_photos`, [n d]

    def by_person(self, values: NDArray[np.floating]) -> dict[str, float]:
        """Mean of what was measured on each recording [q], by person; NaN was not measured."""
        found = {}
        for k, name in enumerate(self.people.names):
            mine = np.isfinite(values) & (self.people.speakers == k)
            if mine.any():
                found[name] = float(values[mine].mean())
        return found


def find_sources(data: Path, labels: Sequence[Path] = ()) -> tuple[Path, Path, list[Path]]:
    """Find the voice tree of DATA, the tree of photos that faces are judged by, and csv of labels.

    Both trees may be the same. Labels not given are the files of the names in `LABELS` that are
    there. Raises DatasetError if there is no such folder.
    """
    if not data.is_dir():
        hint = "give a voice tree, or what prep demo made"
        raise DatasetError(f"{data}: is no folder", hint=hint)
    voices = data / "voices" if (data / "voices").is_dir() else data
    faces = data / "faces" if (data / "faces").is_dir() else voices
    places = dict.fromkeys([data, voices, faces])
    found = [place / name for place in places for name in LABELS if (place / name).is_file()]
    return voices, faces, list(labels) or found


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

    `most` bounds the recordings and photos of one person, and `people` how many there are, both
    spread evenly over what is there. Raises DatasetError if the split has not two people with a
    voice and a face, or a file cannot be read, and CheckpointError if stored embeddings are not by
    the maker, the model's face encoder.
    """
    folder = split_folder(tree, split)
    found, left_out = speakers(folder)
    found = spread(found, people or len(found))
    notes = [f"{len(names)} identities {why}" for why, names in left_out.items() if names]
    gallery = Gallery(folder, maker, progress)
    failed = gallery.add([face for who in found for face in spread(who.faces, most)])
    notes += [error.message for error in failed.values()]
    if gallery.n_unchecked:
        why = "have no photo to tell which face encoder made them"
        notes.append(f"{gallery.n_unchecked} embeddings {why}")
    seen = [(who, [f for f in spread(who.faces, most) if f not in failed]) for who in found]
    seen = [(who, faces) for who, faces in seen if faces]
    if len(seen) < 2:
        message = f"{folder}: has {len(seen)} people with a voice and a face"
        raise DatasetError(message, hint="wanted two or more, who can be told apart")
    recordings = [spread(who.audios, most) for who, _ in seen]
    faces = [face for _, mine in seen for face in mine]
    table, rows = gallery.table(faces)
    order = np.arange(len(seen))
    return People(
        tuple(who.identity for who, _ in seen),
        tuple(folder / audio for mine in recordings for audio in mine),
        order.repeat([len(mine) for mine in recordings]),
        tuple(folder / face.photo if face.photo else None for face in faces),
        table[rows],
        order.repeat([len(mine) for _, mine in seen]),
        tuple(notes),
    )


def spread(items: Sequence[T], most: int) -> list[T]:
    """Choose `most` of some items, evenly, or all where there are fewer."""
    n = min(most, len(items))
    return [items[k * len(items) // n] for k in range(n)]


def read_labels(
    paths: Sequence[Path], people: Collection[str], columns: Sequence[str], notes: list[str]
) -> dict[str, dict[str, str]]:
    """Read labels of people: by the label's name, the value of each person who has one.

    A csv file that names none of the people is passed over. Without columns they are those of
    `COLUMNS` that a file has, and notes are told of those that are no labels. Raises UsageError if
    no file has a label that was asked for, and DatasetError if a file cannot be read, or as
    `split.labels_of`.
    """
    if not paths and not columns:
        return {}
    from s2f.labels import canonical, read_table
    from s2f.split import labels_of

    found: dict[str, dict[str, str]] = {name: {} for name in columns}
    seen: set[str] = set()
    for path in paths:
        table = read_table(path)
        seen.update(table.columns)
        if not any(cell in people for row in table.rows for cell in row):
            continue  # it is of others
        for name in table.columns:
            if name not in columns if columns else canonical(name) not in COLUMNS:
                continue
            try:
                labels = labels_of(path, people, [name])
            except DatasetError as error:
                if columns:
                    raise
                notes.append(error.message)
                continue
            for who, (value,) in (labels.values or {}).items():
                if value:
                    found.setdefault(name, {})[who] = value
    for name in columns:
        if name not in seen:
            where = ", ".join(map(str, paths)) or "any csv file"
            hint = f"there are {', '.join(sorted(seen)) or 'none'}; give files with --labels"
            raise UsageError(f"no label {name!r} in {where}", hint=hint)
    return {name: values for name, values in found.items() if values}


def read_examples(
    sources: tuple[Path, Path, Sequence[Path]],
    columns: Sequence[str],
    maker: Maker,
    split: str,
    people: People,
    progress: Progress = silent,
) -> Examples:
    """Read what judges are fitted on: people of the training split, and labelled photos.

    Sources are as `find_sources` gives them, columns as for `read_labels`; the people are those of
    the split that are evaluated, and nobody of them is among the examples. What is missing is
    noted. Raises DatasetError if a file of labels cannot be read, CheckpointError as `read_people`.
    """
    voices, faces, tables = sources
    notes: list[str] = []
    names: list[str] = []
    embeddings = np.empty((0, maker.width), np.float32)
    labels: Labels = {}
    photo_labels: Labels = {}
    labelled: list[tuple[Path, str]] = []
    evaluated = names_in_split(faces, split)
    if split == "train":
        notes.append("No judges: they would be fitted on the very people that they judge.")
    else:
        much = {"most": TRAINING_PHOTOS, "people": TRAINING_PEOPLE}
        try:
            training = read_people(voices, "train", maker, progress=progress, **much)
        except DatasetError as error:
            notes.append(f"Nobody to fit a judge of embeddings on: {error.message}.")
        else:
            owners = [training.names[owner] for owner in training.owners]
            new = [k for k, who in enumerate(owners) if who not in people.names]
            names, embeddings = [owners[k] for k in new], training.embeddings[new]
            labels = read_labels(tables, training.names, columns, [])
        seen = evaluated | set(people.names)
        everyone = sorted(names_in_split(faces, "train") | seen)
        photo_labels = read_labels(tables, everyone, columns, [])
        known = {who for values in photo_labels.values() for who in values} - seen
        labelled = photos_of(faces, "train", known, TRAINING_PHOTOS)
    whose = zip(people.photos, people.owners, strict=True)
    own = [(path, people.names[owner]) for path, owner in whose if path is not None]
    real = photos_of(faces, split, evaluated, TRAINING_PHOTOS)
    photos = _open_photos(spread(labelled, TRAINING_PEOPLE * TRAINING_PHOTOS), notes)
    mine, fresh = (_open_photos(spread(some, MOST), notes) for some in (own, real))
    return Examples(names, embeddings, labels, photos, photo_labels, mine, fresh, tuple(notes))


def names_in_split(tree: Path, split: str) -> set[str]:
    """Name the identities of a split; none if the tree has no such split."""
    try:
        folder = split_folder(tree, split)
    except DatasetError:
        return set()
    return {identity.name for identity in identities(folder)}


def photos_of(tree: Path, split: str, people: Collection[str], most: int) -> list[tuple[Path, str]]:
    """List photos of people of a split, at most so many of one: paths, and whose they are."""
    found = []
    for name in sorted(names_in_split(tree, split) & set(people)):
        identity = split_folder(tree, split) / name
        inside = spread(list(files.names(identity, is_photo)), most)
        found += [(identity / path, name) for path in inside]
    return found


def _open_photos(photos: Sequence[tuple[Path, str]], notes: list[str]) -> Photos:
    """Open photos in the frame; those that cannot be read are noted."""
    opened: Photos = []
    for path, name in photos:
        try:
            photo = open_photo(path).resize((FRAME, FRAME), Image.Resampling.LANCZOS)
            opened.append((photo, name))
        except ImageError as error:
            notes.append(f"Left out: {error.message}.")
    return opened


def face_encoder_of(model: SpeechToFace) -> Maker:
    """Make a model's face encoder ready to embed many photos."""
    encoder = model.model.checkpoints["face_encoder"].network
    if isinstance(encoder, PartsEncoder):
        quick: Callable[[Tensor], Tensor] = encoder.to(model.device).eval().one_by_one
    else:
        from s2f.face_encoder import VGGFace, batch_embedder

        assert isinstance(encoder, VGGFace)
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
    model: SpeechToFace, people: People, labels: Labels, maker: Maker, progress: Progress = silent
) -> Case:
    """Hear all recordings, and draw all faces; a recording without speech is left out, with a note.

    Raises DatasetError if a recording cannot be read, or none holds speech.
    """
    found: dict[str, list[Embedded]] = {}
    for name, stop in {**{f"{s} s": s * SAMPLE_RATE for s in SECONDS}, WHOLE: None}.items():
        waveforms = (  # read one by one, as they are heard
            Waveform(np.asarray(files.map_waveform(path)[:stop]), SAMPLE_RATE)
            for path in people.recordings
        )
        found[name] = []
        for item in model.embed_voices(waveforms):
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
    drawn: list[list[Face]] = []
    for rows, what in ((heard[WHOLE], "voices"), (people.means(), "photos")):
        drawn.append([])
        for row in rows:
            progress(len(drawn[-1]), len(rows), f"drawing faces from {what}")
            drawn[-1].append(model.decode(row))
    voices, photos = (embed_images(maker, [face.image for face in faces]) for faces in drawn)
    return Case(people, labels, heard, drawn[0], drawn[1], voices, photos)
