"""The recipe of the bundled model: training trees from two openly licensed sources.

Faces: the Face Research Lab London Set (DeBruine and Jones 2017), framed, with its 189-point
templates. Voices: readers of LibriSpeech (Panayotov et al. 2015). They are different people, so
faces are given to voices by what both carry: sex, and within a sex the rank of the voice's pitch
and the rank of the face on the masculine-feminine axis. Which of the many faces of that rank a
voice gets follows its timbre by a fixed rule that means nothing; it only makes sure that
different voices get different faces.

Unlimited identities come from a linear space of registered faces: shapes and textures of real
people, mirrored too, mixed separately. Mixes look photographic and their landmarks are exact.
"""

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from s2f import audio, landmarks, layout, voice_traits
from s2f.demo_cards import FACES_CARD, VOICES_CARD
from s2f.demo_sources import (
    TEST_SHARE,
    VAL_SHARE,
    read_people,
    read_table,
    space_of,
    split_by_sex,
)
from s2f.errors import UsageError
from s2f.face_space import FaceSpace, People, on_background, register
from s2f.images import to_image
from s2f.runtime import Progress, atomic_folder, atomic_write, silent

VAL_IDENTITIES = 100


@dataclass(frozen=True)
class DemoReport:
    """What `prepare` made: numbers of identities and files, by split."""

    out: Path
    faces: dict[str, int]
    voices: dict[str, int]


def prepare(
    faces: Path,
    voices: Path,
    out: Path,
    *,
    identities: int = 3000,
    seed: int = 0,
    progress: Progress = silent,
) -> DemoReport:
    """Make the training trees `out/faces` and `out/voices` from the two sources.

    Args:
        faces: `people.csv` and a folder a person, as in the sources' framing.
        voices: `speakers.csv` and a folder a reader.
        out: where to; there is nothing until all is done.
        identities: synthetic people for training.
        seed: of the split and of the mixes.
        progress: told of each identity.

    Raises:
        UsageError: if `out` exists.
        DatasetError: if a source lacks what is needed.
        OutputError: if `out` cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already", hint="remove it, or choose another folder")
    with atomic_folder(out) as folder:
        return dataclasses.replace(
            _prepare(faces, voices, folder, identities, seed, progress), out=out
        )


def _prepare(
    faces: Path, voices: Path, out: Path, identities: int, seed: int, progress: Progress
) -> DemoReport:
    # One generator a part: more identities change neither the splits nor the voices' faces.
    mixing, pairing = (np.random.default_rng([seed, part]) for part in (1, 2))
    people = read_people(faces)
    train, test = split_by_sex(people.sexes, TEST_SHARE, seed)
    real, space = space_of(people.subset(train))
    mean_shape = space.mean_shape
    total = len(people.names) + identities + VAL_IDENTITIES
    done = 0
    for k in range(len(real.names)):
        _write_real(out / "faces/train", real, k, space.textures[k])
        done += k % 2
        progress(done, total, f"faces: {real.names[k]}")
    kept = people.subset(test)
    textures = on_background(register(kept, mean_shape), mean_shape)
    for k in range(len(kept.names)):
        _write_real(out / "faces/test", kept, k, textures[k])
        done += 1
    for k in range(identities + VAL_IDENTITIES):
        sex = "FM"[k % 2]
        if k % 4 < 2:
            weights = space.mix(sex, mixing)
        else:
            weights = space.draw(sex, mixing, mixing.uniform(0.5, 0.9))
        if k % 8 >= 2:  # most have the texture of one person: skin and hair as photos have them
            weights[0] = 0
            weights[0, mixing.choice(space.of_sex(sex))] = 1
        texture, shape, face = space.render(weights)
        where = "val" if k >= identities else "train"
        identity = out / "faces" / where / f"mix{k:05d}"
        _write(identity, "neutral", face, shape, texture)
        done += 1
        progress(done, total, f"faces: {identity.name}")
    _write_csv(
        out / "faces/people.csv",
        ["person", "sex", "split"],
        [
            *([people.names[i], people.sexes[i], "train"] for i in train),
            *([people.names[i], people.sexes[i], "test"] for i in test),
        ],
    )
    for name, data in (("faces", FACES_CARD), ("voices", VOICES_CARD)):
        with atomic_write(out / name / "card.json") as file:
            file.write(json.dumps(data, indent=1).encode())
    counts = _prepare_voices(voices, out / "voices", space, seed, pairing, progress)
    made = {"train": len(real.names) + identities, "val": VAL_IDENTITIES, "test": len(test)}
    with atomic_write(out / "demo.json") as file:
        report = {"seed": seed, "faces": made, "voices": counts}
        file.write(json.dumps(report, indent=1).encode())
    return DemoReport(out, made, counts)


def _write_real(folder: Path, people: People, k: int, texture: Tensor) -> None:
    """Write a person: the two photos as they are."""
    identity = folder / people.names[k]
    neutral, smiling = people.photos[k] / 255
    _write(identity, "neutral", neutral, people.shapes[k], texture)
    _write_jpeg(identity / "smiling.jpg", smiling)


def _write(identity: Path, name: str, face: Tensor, shape: Tensor, texture: Tensor) -> None:
    stem = identity / name
    points = shape.numpy().astype(np.float32)
    _write_jpeg(stem.with_suffix(".jpg"), face)
    _write_jpeg(layout.beside(stem, layout.TEXTURE), texture)
    _write_array(layout.beside(stem, layout.TEMPLATE), points)
    _write_array(layout.beside(stem, layout.LANDMARKS), landmarks.to_68(points))


def _write_jpeg(path: Path, face: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(face).save(path, format="JPEG", quality=97, subsampling=0)


def _write_array(path: Path, array: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _prepare_voices(
    source: Path,
    out: Path,
    space: FaceSpace,
    seed: int,
    rng: np.random.Generator,
    progress: Progress,
) -> dict[str, int]:
    rows = read_table(source / "speakers.csv", ("speaker", "sex"))
    sexes = np.array([row["sex"] for row in rows])
    pitches, timbres = np.empty(len(rows)), []
    waveforms: list[list[tuple[str, NDArray[np.float32]]]] = []
    for k, row in enumerate(rows):
        progress(k, len(rows), f"voices: {row['speaker']}")
        files = audio.find([source / row["speaker"]])
        speech = [(f.stem, audio.read_speech(f)) for f in files]
        waveforms.append(speech)
        joined = np.concatenate([waveform for _, waveform in speech])
        pitches[k] = voice_traits.median_pitch(joined)
        timbres.append(voice_traits.timbre(joined))
    train, test = split_by_sex(sexes, TEST_SHARE, seed)
    inner, val = split_by_sex(sexes[train], VAL_SHARE, seed)
    train, val = train[inner], train[val]
    timbre = np.stack(timbres)
    counts = {"train": len(train), "val": len(val), "test": len(test)}
    table = []
    for sex in "FM":
        fitted = train[sexes[train] == sex]
        scores = voice_traits.normal_scores(timbre, pitches, fitted)
        for split, members in (("train", train), ("val", val), ("test", test)):
            for k in members[sexes[members] == sex]:
                rank = float((pitches[fitted] < pitches[k]).mean())
                identity = out / split / rows[k]["speaker"]
                weights = space.voiced(sex, rank, scores[k], rng)
                _write_jpeg(identity / "images/face.jpg", space.render(weights)[2])
                for name, waveform in waveforms[k]:
                    samples = np.rint(waveform * 32767).astype(np.int16)
                    _write_array(identity / "audios" / f"{name}.npy", samples)
                table.append([rows[k]["speaker"], sex, split, f"{pitches[k]:.1f}"])
    _write_csv(out / "speakers.csv", ["speaker", "sex", "split", "pitch_hz"], sorted(table))
    return counts
