"""What a model is evaluated on, and what it makes of that.

DATA is a voice tree (`SPLIT/IDENTITY/audios/*.npy`, `images/*`), or a folder with such a tree
`voices` and a face tree `faces`, as `s2f prep demo` makes; of a public data set as it is downloaded
`gather_dataset`, at the end, makes a voice tree. Knows nothing of figures and reports.

DATA -> people of a split with voices and faces, labels -> examples that judges learn from
     -> the case: embeddings of all voices, faces drawn from voices and photos, made once
"""

import csv
import dataclasses
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from s2f import files
from s2f.appearance_model import PartsEncoder
from s2f.audio import SAMPLE_RATE, Waveform, map_waveform
from s2f.console import Progress, silent
from s2f.device import computing
from s2f.embeddings import BATCH, Gallery, Maker
from s2f.errors import DatasetError, ImageError, InputError, OutputError, UsageError
from s2f.images import FRAME, open_photo
from s2f.layout import identities, is_photo, speakers, tree_of
from s2f.layout import split as split_folder
from s2f.metrics import compare_embeddings
from s2f.pipeline import Face, SpeechToFace

T = TypeVar("T")
LABELS = ("labels.csv", "people.csv", "speakers.csv")  # in DATA, or in its trees
COLUMNS = ("sex", "gender", "age", "ethnicity", "nationality")  # unless others are asked for
SECONDS = (3, 6)  # of speech, in the papers' tables
WHOLE = "whole recordings"
TRAINING_PEOPLE, TRAINING_PHOTOS = 1000, 3  # that a judge is fitted on; photos of each
MOST = 1000  # faces of a kind that are compared with each other, judged or searched for points
ROWS = 512  # embeddings that are read at a time
PHOTOS = 1024  # that are embedded at a time
BLANK, NONE = Image.new("RGB", (1, 1)), np.empty(0, np.float32)  # in the place of what is stored

Labels = Mapping[str, Mapping[str, str]]
"""By the label's name, the value of each person who has one."""
Samples = dict[str, dict[str, float]]
"""By the name of a measure: each person's mean. It is what two models are compared by."""


class Embeddings(Protocol):
    """Rows [n d], in memory, mapped or `Stored`; a part of them is a copy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and values of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, which: Any, /) -> Any: ...


class Stored:
    """Rows of one shape in a file, put there one by one, and read in pieces.

    However many there are, they take no memory: nothing is kept of what was read.
    """

    def __init__(self, path: Path, row: tuple[int, ...], dtype: Any = np.float32) -> None:
        """Name the file, which is not there yet, and say what a row is."""
        self.path, self.dtype, self._row, self._n = path, np.dtype(dtype), row, 0

    @property
    def shape(self) -> tuple[int, ...]:
        """How many rows there are, and the shape of one."""
        return (self._n, *self._row)

    def append(self, row: NDArray[Any]) -> None:
        """Put a row there; raises an `OutputError` if there is no room for it."""
        try:
            with self.path.open("ab") as file:
                file.write(np.asarray(row, self.dtype).reshape(self._row).tobytes())
        except OSError as error:
            message = f"{self.path}: cannot be written: {error.strerror}"
            hint = "set TMPDIR to a folder with more room"
            raise OutputError(message, hint=hint) from error
        self._n += 1

    def __len__(self) -> int:
        """Count the rows."""
        return self._n

    def __getitem__(self, which: Any) -> NDArray[Any]:
        """Read some rows, as an array is indexed."""
        there: NDArray[Any] = np.empty((0, *self._row), self.dtype)
        if self._n:  # mapped anew each time: pages that stay mapped stay in memory
            there = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        read: NDArray[Any] = np.array(there[which])
        return read


@dataclass(frozen=True)
class Chosen:
    """Some rows of others, which are read when they are asked for."""

    rows: Embeddings
    which: NDArray[np.int64]  # their places

    @property
    def shape(self) -> tuple[int, ...]:
        """How many are chosen, and the shape of one."""
        return (len(self.which), *self.rows.shape[1:])

    def __len__(self) -> int:
        """Count those chosen."""
        return len(self.which)

    def __getitem__(self, which: Any) -> Any:
        """Read some of them."""
        return self.rows[self.which[which]]


class StoredImages(Sequence[Image.Image]):
    """RGB pictures of 224 x 224 pixels in a file: each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Name the file, which is not there yet."""
        self._pixels = Stored(path, (FRAME, FRAME, 3), np.uint8)

    def append(self, image: Image.Image) -> None:
        """Put a picture there; raises an `OutputError` as `Stored.append`."""
        self._pixels.append(np.asarray(image))

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._pixels)

    @overload
    def __getitem__(self, which: int) -> Image.Image: ...

    @overload
    def __getitem__(self, which: slice) -> list[Image.Image]: ...

    def __getitem__(self, which: int | slice) -> Image.Image | list[Image.Image]:
        """Read a picture."""
        if isinstance(which, slice):
            return [self[k] for k in range(len(self))[which]]
        return Image.fromarray(self._pixels[range(len(self))[which]])


class Photos(NamedTuple):
    """Photos in the frame, and who is on each."""

    images: Sequence[Image.Image]
    who: Sequence[str]


class StoredFaces(Sequence[Face]):
    """Faces that a model drew, whose pixels are in a file: each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Name the file, which is not there yet."""
        self._images = StoredImages(path)
        # In a file, too: each would lie between two pictures, and keep the room of the first.
        self._points = Stored(path.with_name(f"{path.name}, points"), (68, 2))
        self._bare: list[Face] = []  # without arrays, most faces are one
        self._kinds: dict[str, int] = {}
        self._which = array("L")

    def append(self, face: Face) -> None:
        """Put a face of 224 x 224 pixels there; raises an `OutputError` as `Stored.append`."""
        self._images.append(face.image)
        self._points.append(face.landmarks)
        bare = dataclasses.replace(face, image=BLANK, landmarks=NONE, embedding=NONE)
        kind = self._kinds.setdefault(repr(bare), len(self._bare))
        self._bare += [bare] * (kind == len(self._bare))
        self._which.append(kind)

    def __len__(self) -> int:
        """Count the faces."""
        return len(self._which)

    @overload
    def __getitem__(self, which: int) -> Face: ...

    @overload
    def __getitem__(self, which: slice) -> list[Face]: ...

    def __getitem__(self, which: int | slice) -> Face | list[Face]:
        """Read a face, all but its embedding."""
        if isinstance(which, slice):
            return [self[k] for k in range(len(self))[which]]
        image, points = self._images[which], self._points[which]
        return dataclasses.replace(self._bare[self._which[which]], image=image, landmarks=points)


@dataclass(frozen=True)
class People:
    """The people of a split, who have voices and faces."""

    names: tuple[str, ...]  # of the identities, sorted
    recordings: tuple[str, ...]  # paths of waveforms, [q]: as text they take a fifth
    speakers: NDArray[np.int64]  # whose each recording is, [q]
    photos: tuple[Path | None, ...]  # [g]; None where there is only an embedding
    embeddings: Embeddings  # of the photos, by the model's face encoder, [g d]
    owners: NDArray[np.int64]  # whose each photo is, [g]
    # Mean of the embeddings, brought to length 1, of all photos that a person has, [n d]: also of
    # those that are not among `photos`.
    centres: Embeddings
    notes: tuple[str, ...]  # sentences on what was left out
    known_means: Embeddings | None = None  # what `means` gives, where it is known

    def means(self) -> Embeddings:
        """Mean embedding of each person's photos, [n d]."""
        if self.known_means is not None:
            return self.known_means
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
    heard: Mapping[str, Embeddings]  # the recordings [q d], by how much; `WHOLE` last
    # Faces of the whole recordings, [q], and of people's mean embeddings, [n]: the best that the
    # decoder could do. Go through them one by one: all at once may not fit into memory.
    from_voices: Sequence[Face]
    from_photos: Sequence[Face]
    voices_again: Embeddings  # of `from_voices`, [q d]
    photos_again: Embeddings  # of `from_photos`, [n d]

    def compare(self, targets: Embeddings, rows: Embeddings) -> dict[str, NDArray[np.float64]]:
        """Measure as `compare_embeddings` how far recordings' rows [q d] are from their targets.

        Those are of people, [n d]: a recording's is its speaker's.
        """
        parts = [
            compare_embeddings(targets[self.people.speakers[start : start + ROWS]], part)
            for start, part in pieces(rows)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def by_person(self, values: NDArray[np.floating]) -> dict[str, float]:
        """Mean of what was measured on each recording [q], by person; NaN was not measured."""
        found = {}
        for k, name in enumerate(self.people.names):
            mine = np.isfinite(values) & (self.people.speakers == k)
            if mine.any():
                found[name] = float(values[mine].mean())
        return found


def pieces(rows: Embeddings) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Read rows [n d] in pieces, each with the number of its first row."""
    for start in range(0, len(rows), ROWS):
        yield start, rows[start : start + ROWS]


def find_sources(data: Path, labels: Sequence[Path] = ()) -> tuple[Path, Path, list[Path]]:
    """Find the voice tree of DATA, the tree of photos that faces are judged by, and csv of labels.

    Both trees may be the same. Labels not given are the files of the names in `LABELS` that are
    there. Raises DatasetError if there is no such folder.
    """
    if not data.is_dir():
        hint = "give a voice tree, or what prep demo or prep dataset made"
        raise DatasetError(f"{data}: is no folder", hint=hint)
    data = tree_of(data)
    voices = data / "voices" if (data / "voices").is_dir() else data
    faces = data / "faces" if (data / "faces").is_dir() else voices
    places = dict.fromkeys([data, voices, faces])
    found = [place / name for place in places for name in LABELS if (place / name).is_file()]
    return voices, faces, list(labels) or found


def read_people(
    tree: Path,
    split: str,
    maker: Maker,
    files_in: Path | None = None,
    *,
    most: int,
    every: bool = False,
    people: int | None = None,
    progress: Progress = silent,
) -> People:
    """Read the people of a split of a voice tree, and embed their photos where that is to be done.

    `most` bounds the recordings and photos of one person, and `people` how many there are, both
    spread evenly over what is there; of `every` photo there is, or else of those, are the centres.
    Embeddings are kept in memory, or in files of a folder, which has to stay as long as the people.
    Raises DatasetError if the split has not two people with a voice and a face, or a file cannot be
    read, and CheckpointError if stored embeddings are not by the maker, the model's face encoder.
    """
    folder = split_folder(tree, split)
    found, left_out = speakers(folder)
    found = spread(found, people or len(found))
    notes = [f"{len(names)} identities {why}" for why, names in left_out.items() if names]
    kept = {face for who in found for face in spread(who.faces, most)}
    read = [(k, face) for k, who in enumerate(found) for face in who.faces if every or face in kept]
    embeddings, centres, means = (
        Stored(files_in / name, (maker.width,)) if files_in else list[NDArray[np.float32]]()
        for name in ("photos", "centres", "means")
    )
    photos: list[Path | None] = []
    owners: list[int] = []
    # Sums of the person whose photos are read, and of the one before none: of all, and of those
    # that are kept; and how many these are.
    whole, own, n_whole, n_own = np.zeros(maker.width), np.zeros(maker.width), 0, 0
    n_unchecked = 0

    def end_person() -> None:
        nonlocal n_whole, n_own
        if n_own:
            centres.append((whole / n_whole).astype(np.float32))
            means.append((own / n_own).astype(np.float32))
        whole[:], own[:], n_whole, n_own = 0, 0, 0, 0

    last = 0
    for start in range(0, len(read), PHOTOS):  # so that they never are in memory together
        some = read[start : start + PHOTOS]

        def told(done: int, _: int, what: str, start: int = start) -> None:
            progress(start + done, len(read), what)

        gallery = Gallery(folder, maker, told)
        failed = gallery.add([face for _, face in some])
        notes += [error.message for error in failed.values()]
        n_unchecked += gallery.n_unchecked
        table, rows = gallery.table([face for _, face in some])
        for (k, face), row in zip(some, rows, strict=True):
            if k != last:
                end_person()
                last = k
            if row < 0:
                continue
            embedding = table[row].astype(np.float64)
            whole += embedding / (np.linalg.norm(embedding) or 1)
            n_whole += 1
            if face in kept:
                embeddings.append(table[row])
                own += embedding
                n_own += 1
                owners.append(k)
                photos.append(folder / face.photo if face.photo else None)
    end_person()
    if n_unchecked:
        notes.append(f"{n_unchecked} embeddings have no photo to tell which face encoder made them")
    seen, order = np.unique(owners, return_inverse=True)
    if len(seen) < 2:
        message = f"{folder}: has {len(seen)} people with a voice and a face"
        raise DatasetError(message, hint="wanted two or more, who can be told apart")
    recordings = [spread(found[k].audios, most) for k in seen]
    kinds = embeddings, centres, means
    own_rows, centre_rows, mean_rows = (np.stack(k) if isinstance(k, list) else k for k in kinds)
    return People(
        tuple(found[k].identity for k in seen),
        tuple(f"{folder}/{audio}" for mine in recordings for audio in mine),
        np.arange(len(seen)).repeat([len(mine) for mine in recordings]),
        tuple(photos),
        own_rows,
        order,
        centre_rows,
        tuple(notes),
        mean_rows,
    )


def spread(items: Sequence[T], most: int) -> list[T]:
    """Choose `most` of some items, evenly, or all where there are fewer."""
    n = min(most, len(items))
    return [items[k * len(items) // n] for k in range(n)]


def read_labels(
    paths: Sequence[Path], people: Collection[str], columns: Sequence[str], notes: list[str]
) -> dict[str, dict[str, str]]:
    """Read labels of people: by the label's name, the value of each person who has one.

    People are found in any spelling, as by `split.labels_of`; a csv file that names none of them is
    passed over. Without columns they are those of `COLUMNS` that a file has. Notes are told of
    files passed over, of people without a row, and of columns that are no labels. Raises UsageError
    if no file has a label that was asked for, and DatasetError if a file cannot be read, or as
    `split.labels_of`.
    """
    if not paths and not columns:
        return {}
    from s2f.files import canonical, read_table
    from s2f.split import labels_of, matcher

    found: dict[str, dict[str, str]] = {name: {} for name in columns}
    seen: set[str] = set()
    match = matcher(people)
    for path in paths:
        table = read_table(path)
        seen.update(table.columns)
        if not any(match(cell) for row in table.rows for cell in row):
            notes.append(f"{path}: names nobody of {len(people)} people, and is passed over")
            continue
        rowless: set[str] = set()
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
            rowless = set(people) - labels.values.keys()
            for who, (value,) in labels.values.items():
                if value:
                    found.setdefault(name, {})[who] = value
        if rowless:
            some = ", ".join(sorted(rowless)[:5]) + ", ..." * (len(rowless) > 5)
            notes.append(f"{path}: has no row for {len(rowless)} of {len(people)} people: {some}")
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
    folder: Path,
    progress: Progress = silent,
) -> Examples:
    """Read what judges are fitted on: people of the training split, and labelled photos.

    Sources are as `find_sources` gives them, columns as for `read_labels`; the people are those of
    the split that are evaluated, and nobody of them is among the examples. What is missing is
    noted. Photos, 0.15 MB each, are kept in files of a folder, which has to stay as long as they.
    Raises DatasetError if a file of labels cannot be read, CheckpointError as `read_people`, and
    OutputError if the folder has no room.
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
        most, n = TRAINING_PHOTOS, TRAINING_PEOPLE
        try:
            training = read_people(voices, "train", maker, most=most, people=n, progress=progress)
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
    wanted = {
        "labelled": spread(labelled, TRAINING_PEOPLE * TRAINING_PHOTOS),
        "own": spread(own, MOST),
        "fresh": spread(real, MOST),
    }
    photos, mine, fresh = (
        _open_photos(some, folder / f"photos, {name}", notes) for name, some in wanted.items()
    )
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


def _open_photos(photos: Sequence[tuple[Path, str]], file: Path, notes: list[str]) -> Photos:
    """Open photos in the frame, and put them into a file; those that cannot be read are noted."""
    images, who = StoredImages(file), list[str]()
    for path, name in photos:
        try:
            images.append(open_photo(path).resize((FRAME, FRAME), Image.Resampling.LANCZOS))
            who.append(name)
        except ImageError as error:
            notes.append(f"Left out: {error.message}.")
    return Photos(images, who)


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


def embed_images(maker: Maker, images: Iterable[Image.Image]) -> Iterator[NDArray[np.float32]]:
    """Embed faces of 224 x 224 pixels: yield rows [d]."""
    left = iter(images)
    while some := list(islice(left, BATCH)):
        arrays = [torch.from_numpy(np.array(image)) for image in some]
        yield from maker.of([array.permute(2, 0, 1) for array in arrays])


def build_case(
    model: SpeechToFace,
    people: People,
    labels: Labels,
    maker: Maker,
    folder: Path,
    progress: Progress = silent,
) -> Case:
    """Hear all recordings, and draw all faces; a recording without speech is left out, with a note.

    What grows with the number of recordings is kept in files of a folder, which has to stay as long
    as the case: 0.15 MB a recording for its face, and 16 bytes for each value of an embedding.
    Raises DatasetError if a recording cannot be read, or none holds speech, and OutputError if the
    folder has no room.
    """
    people, heard = _hear(model, people, folder, maker.width, progress)
    drawn: dict[str, tuple[StoredFaces, Stored]] = {}
    sources: dict[str, Embeddings] = {"voices": heard[WHOLE], "photos": people.means()}
    for name, rows in sources.items():
        faces = StoredFaces(folder / f"faces from {name}")
        again = Stored(folder / f"embeddings of faces from {name}", (maker.width,))
        for start in range(0, len(rows), BATCH):
            progress(start, len(rows), f"drawing faces from {name}")
            for row in rows[start : start + BATCH]:
                faces.append(model.decode(row))
            for row in embed_images(maker, (face.image for face in faces[start:])):
                again.append(row)
        drawn[name] = faces, again
    (voices, voices_again), (photos, photos_again) = drawn["voices"], drawn["photos"]
    return Case(people, labels, heard, voices, photos, voices_again, photos_again)


def _hear(
    model: SpeechToFace, people: People, folder: Path, width: int, progress: Progress
) -> tuple[People, dict[str, Stored]]:
    """Embed the beginnings of recordings and all of them; give those who are heard, and how."""
    stops = {**{f"{s} s": s * SAMPLE_RATE for s in SECONDS}, WHOLE: None}
    heard = {name: Stored(folder / f"voices, {name}", (width,)) for name in stops}
    read: deque[int] = deque()  # recordings whose embeddings are still to come
    kept: list[int] = []
    notes: list[str] = []

    def waveforms() -> Iterator[Waveform]:  # read one by one, as they are heard
        for k, path in enumerate(people.recordings):
            progress(k, len(people.recordings), "listening")
            samples = map_waveform(Path(path))
            read.append(k)
            for stop in stops.values():
                yield Waveform(np.asarray(samples[:stop]), SAMPLE_RATE)

    embedded = model.embed_voices(waveforms())
    for items in zip(*[embedded] * len(stops), strict=True):
        k = read.popleft()
        if error := next((item.error for item in items if item.error), None):
            notes.append(f"{people.recordings[k]}: {error.message}")
            continue
        kept.append(k)
        for rows, item in zip(heard.values(), items, strict=True):
            rows.append(item.embedding)
    if not kept:
        raise DatasetError(f"no recording holds speech: {notes[0]}", hint="prepare them again")
    left = dataclasses.replace(
        people,
        recordings=tuple(people.recordings[k] for k in kept),
        speakers=people.speakers[kept],
        notes=(*people.notes, *notes),
    )
    return left, heard


DATASETS = ("hq-voxceleb", "hq-voxceleb-cmu")
HQ_COUNTS = {  # people, photos and segments of speech of HQ-VoxCeleb; Vox2Face, Table 1
    "train": (2890, 6375, 478_009),
    "val": (370, 859, 63_337),
    "test": (378, 794, 68_354),
}
CMU_COUNTS = {"train": 924, "val": 112, "test": 189}  # people of Wen et al.
META = {"vox1": "vox1_meta.csv", "vox2": "full_vox2_meta.csv"}  # lists of people, in SF2F's order
META_COLUMNS = {  # what a column is, by its letters and digits
    "name": ("name", "vggface1id"),
    "voice": ("voxceleb1id", "voxceleb2id"),
    "sex": ("gender", "gendery", "genderx"),
}
DEPTH = 6  # folders below the root in which parts of a data set are looked for


@dataclass(frozen=True)
class Member:
    """A person of HQ-VoxCeleb, who has photos and recordings."""

    identity: str  # `vox1_A.J._Buckley`: one name may be in both parts
    split: str
    sex: str  # `m`, `f` or nothing
    photos: Path  # a folder
    voices: tuple[Path, ...]  # folders


def hq_voxceleb(root: Path, *, by_initial: bool = False) -> tuple[list[Member], list[str]]:
    """Find the people of HQ-VoxCeleb, by identity, and which split each is in; with notes.

    Photos lie in `vox1|vox2/masked_faces/NAME`, or else in `origin_faces`; recordings in folders of
    a voice's id (`id10001`); who is who, and the order of people, in `vox1_meta.csv` and
    `full_vox2_meta.csv`. All are found at any place below the root. Of each list row i, from 0, is
    test if i % 10 is 8, val if it is 9, and else train: SF2F's rule. Or `by_initial` those of
    VoxCeleb1 whose name begins with A to E are test, and the others train: Wen et al. kept the
    former for val and test, and did not say which.

    Raises DatasetError if a list is missing, of other columns, or nobody is found.

    Source: Bai et al. 2022, `scripts/create_split_json.py`; Wen et al. 2019, the README of
    cmu-mlsp/reconstructing_faces_from_voices.
    """
    from s2f.names import composed, key
    from s2f.pair import VOICE

    voices: dict[str, list[Path]] = {}
    faces: dict[tuple[str, str], Path] = {}  # by part and kind
    lists: dict[str, Path] = {}
    left = [(root, 0)]
    for here, depth in left:  # grows
        for part, name in META.items():
            if (here / name).is_file():
                lists.setdefault(part, here / name)
        for name in files.folders(here):
            if VOICE.fullmatch(name):
                voices.setdefault(name, []).append(here / name)
            elif name in ("masked_faces", "origin_faces"):
                above = next((one for one in reversed(here.parts) if one in META), "")
                faces.setdefault((above, name), here / name)
            elif depth < DEPTH:
                left.append((here / name, depth + 1))
    members, notes = [], []
    for part, list_name in META.items():
        kinds = (faces.get((part, kind)) for kind in ("masked_faces", "origin_faces"))
        photos = next((folder for folder in kinds if folder), None)
        if photos is None or (by_initial and part == "vox2"):
            if photos is None:
                notes.append(f"{root}: has no folder {part}/masked_faces or {part}/origin_faces")
            continue
        if part not in lists:
            hint = f"put {list_name} there, as SF2F's repository has it"
            raise DatasetError(f"{root}: has photos of {part} and no {list_name}", hint=hint)
        exact: dict[str, str] = {}
        alike: dict[str, list[str]] = {}
        for name in files.folders(photos):
            exact[composed(name)] = name
            alike.setdefault(key(name), []).append(name)
        for i, (name, voice, sex) in enumerate(read_list(lists[part])):
            others = alike.get(key(name), ())
            found = exact.get(composed(name)) or (others[0] if len(others) == 1 else None)
            if found is None or voice not in voices:
                continue
            split = sf2f_split(i)
            if by_initial:
                split = "test" if name[:1].upper() in "ABCDE" else "train"
            who = f"{part}_{found}"
            members.append(Member(who, split, sex, photos / found, tuple(voices[voice])))
    if not members:
        seen = f"{len(voices)} voices and photos in {len(faces)} folders"
        hint = "wanted ROOT/vox1/masked_faces/NAME/1.jpg, ROOT/vox1/vox1_meta.csv and "
        hint += "ROOT/raw_wav/vox1/dev/id10001/VIDEO/00001.wav"
        message = f"{root}: nobody of HQ-VoxCeleb has photos and recordings here: {seen}"
        raise DatasetError(message, hint=hint)
    return sorted(members, key=lambda member: member.identity), notes


def sf2f_split(row: int) -> str:
    """Tell which split SF2F puts the person in whom a row of a list, from 0, names.

    Source: Bai et al. 2022, `scripts/create_split_json.py`.
    """
    return {8: "test", 9: "val"}.get(row % 10, "train")


def read_list(path: Path) -> Iterator[tuple[str, str, str]]:
    """Give name, voice id and sex of the people of a list of `META`, in order.

    Raises a DatasetError if it has no such columns, or as `files.read_table`.
    """
    from s2f.files import canonical, read_table

    table = read_table(path)
    columns = [canonical(column) for column in table.columns]
    at = {
        what: next((columns.index(one) for one in known if one in columns), None)
        for what, known in META_COLUMNS.items()
    }
    name, voice, sex = at["name"], at["voice"], at["sex"]
    if name is None or voice is None:
        hint = "wanted a person's name and voice id, as in the lists of VoxCeleb1 and HQ-VoxCeleb"
        raise DatasetError(f"{path}: has columns {', '.join(table.columns)}", hint=hint)
    for row in table.rows:
        yield row[name], row[voice], "" if sex is None else row[sex].lower()[:1]


def gather_dataset(
    dataset: str,
    root: Path,
    tree: Path,
    split: str,
    *,
    most: int,
    frame: Callable[[Path], Image.Image],
    progress: Progress = silent,
) -> list[str]:
    """Make a voice tree of a split of a data set of `DATASETS`, as it is downloaded, and notes.

    People of the split have at most so many recordings, spread evenly, and all of their photos,
    each cut out by `frame`; those of training, whom judges are fitted on, one recording and three
    photos. What cannot be read is left out, with a note. Raises as `hq_voxceleb`, and UsageError if
    there is no such split.
    """
    from s2f.audio import hear, is_voice, to_int16

    if dataset == "hq-voxceleb-cmu" and split == "val":
        message = "Wen et al. did not say who of those named A to E is val, and who is test"
        raise UsageError(message, hint="give --split test, which has all of them")
    members, notes = hq_voxceleb(root, by_initial=dataset == "hq-voxceleb-cmu")
    there = [member for member in members if member.split == split]
    training = [member for member in members if member.split == "train"]
    training = [] if split == "train" else spread(training, TRAINING_PEOPLE)
    for k, member in enumerate([*there, *training]):
        progress(k, len(there) + len(training), f"reading {member.identity}")
        folder = tree / member.split / member.identity
        is_own = member.split == split
        heard = [
            (f"{voice.name}/{name}", voice / name)
            for voice in member.voices
            for name in files.names(voice, is_voice)
        ]
        seen = [member.photos / name for name in files.names(member.photos, is_photo)]
        for kind in ("audios", "images"):
            (folder / kind).mkdir(parents=True)
        for name, path in spread(heard, most if is_own else 1):
            try:
                samples = map_waveform(path) if path.suffix == ".npy" else hear(path).waveform
            except InputError as error:
                notes.append(error.message)
                continue
            stored = samples if path.suffix == ".npy" else to_int16(samples)
            np.save(folder / "audios" / f"{name.replace('/', '_').rpartition('.')[0]}.npy", stored)
        for n, path in enumerate(seen if is_own else spread(seen, TRAINING_PHOTOS)):
            try:
                frame(path).save(folder / "images" / f"{n:03}_{path.stem}.png", compress_level=1)
            except ImageError as error:
                notes.append(error.message)
    with (tree / LABELS[0]).open("w", encoding="utf-8", newline="") as file:
        rows = [(member.identity, member.sex) for member in members]
        csv.writer(file).writerows([("identity", "sex"), *rows])
    return notes
