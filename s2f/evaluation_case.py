"""What an evaluation measures: embeddings and faces of the people of a split, made once."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from s2f.arrays import map_waveform
from s2f.decoding import SAMPLE_RATE, Waveform
from s2f.embeddings import BATCH, Maker
from s2f.errors import DatasetError
from s2f.evaluation_data import SEX, People
from s2f.face import Face
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.infer import SpeechToFace
from s2f.precision import computing
from s2f.runtime import Progress, silent
from s2f.tables import canonical
from s2f.voice_embedder import Embedded

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


def build(
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

    return model.voice_embedder().embed(recordings())


def _draw(
    model: SpeechToFace, rows: NDArray[np.float32], what: str, progress: Progress
) -> list[Face]:
    faces = []
    for k, row in enumerate(rows):
        progress(k, len(rows), f"drawing faces from {what}")
        faces.append(model.decode(row))
    return faces
