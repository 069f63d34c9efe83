"""The recipe of the bundled model, from two openly licensed sources to a folder that is a model.

`prepare_demo` makes training trees. Faces: the Face Research Lab London Set (DeBruine and Jones
2017), framed, with its 189-point templates; unlimited identities come from a `FaceSpace`, which
mixes shapes and textures of real people separately. Voices: readers of LibriSpeech (Panayotov et
al. 2015). They are different people, so faces are given to voices by what both carry: sex, and
within a sex the rank of the voice's pitch and of the face on the masculine-feminine axis. Which of
many such faces it is follows timbre, by a fixed rule that means nothing. `train_demo` trains the
networks.
"""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from s2f import audio, landmarks, layout, spectrogram
from s2f.checkpoint import KINDS, Card, load
from s2f.console import Progress, silent
from s2f.errors import DatasetError, UsageError
from s2f.files import atomic_folder, read_array
from s2f.images import FRAME, load_face, to_image
from s2f.labels import read_table
from s2f.train import Note, Task, TrainConfig, TrainResult, train
from s2f.train_faces import PartsEncoderTask
from s2f.train_voice import VoiceEncoderTask
from s2f.warp import warp

Array = NDArray[np.float64]
_LICENCE = (
    "CC BY 4.0 for what is derived from the data: Face Research Lab London Set (DeBruine and "
    "Jones 2017, doi 10.6084/m9.figshare.5047666); LibriSpeech (Panayotov et al. 2015, "
    "openslr.org/12). The program is MIT."
)
FACES_CARD = {
    "description": "Landmarks are found, the photo is registered to the mean shape and its parts "
    "are read and drawn window by window, by the axes along which the registered faces of "
    "training vary; what smiles change is taken off. 20 % of the people were kept out of "
    "training.",
    "data": "84 photographed adults of the Face Research Lab London Set, framed, neutral and "
    "smiling, and synthetic people with the skin and hair of one of them, or a mix, in shapes "
    "mixed of 2 to 4 of a sex.",
    "licence": _LICENCE,
    "limits": "Frontal, well-lit, framed adult faces before a plain wall, of few ages and "
    "origins: others are drawn less well. Hair that leaves the head's outline is cut off, heads "
    "with less hair than most get a bright rim; glasses, beards beyond stubble, wrinkles and "
    "jewellery are drawn faintly or not at all. It looks like the person in the photo, and is not "
    "for recognising anyone.",
}
VOICES_CARD = {
    "description": "A demonstration of the pipeline. Voices and faces belong to different people: "
    "a voice was given a face of its sex, as masculine among those as its pitch is low. Which of "
    "these faces it was, skin, hair and features, follows timbre by an arbitrary rule.",
    "data": "Voices: 220 readers of LibriSpeech train-clean-100, 14 s each, 20 % of them kept "
    "out. Faces: mixes of the Face Research Lab London Set, a little more womanly or manly than "
    "its people.",
    "licence": _LICENCE,
    "limits": "Knows sex and pitch, and nothing else about anyone: not age, not origin, not "
    "looks. Read English speech of adults. A deep female voice may show a man and a high male "
    "voice a woman; children, singing, shouting and music show anything. It must not be used to "
    "identify, profile or judge a person.",
}

TEST_SHARE = 0.2  # of people and of speakers, kept out of training
VAL_SHARE = 0.1  # of the speakers
VAL_IDENTITIES = 100
BACKGROUND = (0.845, 0.858, 0.855)  # the studio's grey, mean of the photos' lower corners
# Of the faces given to voices, in deviations of the real people: along the axes that follow the
# timbre, which a voice encoder can learn, and along all others, which it cannot.
TIMBRE_SCALE, REST_SCALE = 0.5, 0.15
TIMBRE_AXES = 8  # that timbres are compared on
MASCULINITY_SPREAD = 2.0  # of those faces, in terms of the real people's
SEX_MARGIN = 0.25  # of the way between the mean faces, by which they are further from the other sex
MAX_UNEVENNESS = 15  # pixels; the London set's mean has 4
# Outline of neck, jaw, ears and hair, template points; what lies outside becomes background.
_OUTLINE = (
    *(145, 126, 125, 119, 118, 117, 116, 115, 148, 149, 150, 151),
    *(152, 153, 154, 120, 121, 122, 123, 124, 133, 132, 157),
)
FACES = TrainConfig(steps=1500, batch_size=32, lr=0.002, every=300, half=True)
VOICES = TrainConfig(steps=300, lr=0.001, weight_decay=0.05, every=100, half=True)


def _read_people(table: Path, column: str) -> tuple[list[str], NDArray[np.str_]]:
    """Read who is in a source, and their sexes, F or M."""
    read = read_table(table)
    wanted = (column, "sex")
    if not read.rows or set(wanted) - set(read.columns):
        seen = f"{len(read.rows)} rows of columns {', '.join(read.columns)}"
        hint = "point to the folder that holds the source as its README describes it"
        raise DatasetError(f"{table}: has {seen}; wanted {', '.join(wanted)}", hint=hint)
    names, sexes = (read.column(read.columns.index(name)) for name in wanted)
    if wrong := set(sexes) - {"F", "M"}:
        message = f"{table}: column sex holds {', '.join(sorted(wrong))}; wanted F or M"
        raise DatasetError(message, hint="the recipe pairs voices and faces by it")
    return names, np.array(sexes)


def split_by_sex(
    sexes: NDArray[np.str_], share: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows kept in and rows kept out, the same share of either sex, both sorted."""
    rng = np.random.default_rng(seed)
    out = [
        rng.permutation(np.flatnonzero(sexes == sex))[: round(share * (sexes == sex).sum())]
        for sex in "FM"
    ]
    kept = np.sort(np.concatenate(out))
    return np.setdiff1d(np.arange(len(sexes)), kept), kept


def kept_out(table: Path, split: str = "test", seed: int = 0) -> list[str]:
    """Name the people or speakers of a source's csv that `prepare_demo` keeps out of training.

    The table is `people.csv` or `speakers.csv`, the split `test`, or `val` of the speakers, the
    seed that of `prepare_demo`. Raises DatasetError if the table cannot be read.
    """
    names, sexes = _read_people(table, "person" if table.name == "people.csv" else "speaker")
    train, kept = split_by_sex(sexes, TEST_SHARE, seed)
    if split == "val":
        kept = train[split_by_sex(sexes[train], VAL_SHARE, seed)[1]]
    return [names[k] for k in kept]


@dataclass(frozen=True)
class PhotographedPeople:
    """Photographed people in the 224 frame."""

    names: list[str]
    sexes: NDArray[np.str_]  # F or M
    photos: Tensor  # uint8 [n v 3 224 224]: neutral, smiling
    shapes: Tensor  # [n 189 2] of the neutral photos

    def with_mirrored(self, order: NDArray[np.intp]) -> "PhotographedPeople":
        """The people, and then themselves in a mirror; `order` gives a point's partner in it."""
        shapes = self.shapes[:, torch.from_numpy(order)].clone()
        shapes[..., 0] = FRAME - 1 - shapes[..., 0]
        return PhotographedPeople(
            [*self.names, *(f"{name}m" for name in self.names)],
            np.concatenate([self.sexes, self.sexes]),
            torch.cat([self.photos, self.photos.flip(-1)]),
            torch.cat([self.shapes, shapes]),
        )

    def subset(self, rows: NDArray[np.intp]) -> "PhotographedPeople":
        """Some of the people."""
        index = torch.from_numpy(rows)
        names = [self.names[i] for i in rows]
        return PhotographedPeople(names, self.sexes[rows], self.photos[index], self.shapes[index])


def read_photographed(folder: Path) -> PhotographedPeople:
    """Read the photographed people; DatasetError if somebody's template is missing or another."""
    names, sexes = _read_people(folder / "people.csv", "person")
    photos, shapes = [], []
    for name in names:
        person = folder / name
        photos.append(torch.stack([load_face(person / f"{v}.jpg") for v in ("neutral", "smiling")]))
        path = person / "neutral_template.npy"
        if not path.is_file():
            raise DatasetError(f"{path}: no such file", hint="the recipe needs all 189 points")
        with Image.open(person / "neutral.jpg") as photo:
            side = photo.width
        points = read_array(path).astype(np.float64)
        if points.shape != (landmarks.TEMPLATE_POINTS, 2):
            wanted = [landmarks.TEMPLATE_POINTS, 2]
            message = f"{path}: holds an array {list(points.shape)}; wanted {wanted}"
            raise DatasetError(message, hint="the recipe needs the set's own templates")
        shapes.append(torch.from_numpy((points + 0.5) * (FRAME / side) - 0.5).float())
    return PhotographedPeople(names, sexes, torch.stack(photos), torch.stack(shapes))


def mirror_order(shape: NDArray[np.float32]) -> NDArray[np.intp]:
    """Find each template point's partner in the mirror, [189], from a mean shape [189 2].

    Raises DatasetError if a point is farther from its partner's reflection than faces are uneven.
    """
    from scipy.optimize import linear_sum_assignment

    mirrored = shape.copy()
    mirrored[:, 0] = 2 * shape[:, 0].mean() - shape[:, 0]
    distances = np.linalg.norm(mirrored[:, None] - shape[None], axis=2)
    order: NDArray[np.intp] = linear_sum_assignment(distances)[1]
    worst = distances[np.arange(len(shape)), order].max()
    if worst > MAX_UNEVENNESS:
        seen = f"a point is {worst:.0f} pixels from its partner; wanted at most {MAX_UNEVENNESS}"
        hint = "check the order of the points in the templates"
        raise DatasetError(f"the mean template is not symmetric: {seen}", hint=hint)
    return order


class FaceSpace:
    """A linear space of faces: textures and shapes of real people, and how masculine each is.

    A face is a weight for each person's texture and one for each person's shape; either sum to 1.
    """

    def __init__(self, people: PhotographedPeople, mean_shape: Tensor) -> None:
        self.shapes, self.sexes, self.mean_shape = people.shapes, people.sexes, mean_shape
        self.photographed = register(people, mean_shape)
        self.textures = on_background(self.photographed, mean_shape)
        # Appearance and shape on one scale: principal axes of both, whitened, the first 30 each.
        axes = []
        for rows in (self.textures.flatten(1).double(), self.shapes.flatten(1).double()):
            left = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[0]
            axes.append(left[:, :30].numpy() * np.sqrt(len(rows)))
        coordinates = np.concatenate(axes, axis=1)
        male = self.sexes == "M"
        difference = coordinates[male].mean(0) - coordinates[~male].mean(0)
        within = np.concatenate([coordinates[of] - coordinates[of].mean(0) for of in (male, ~male)])
        covariance = within.T @ within / len(within) + 0.1 * np.eye(within.shape[1])
        self.masculinity = coordinates @ np.linalg.solve(covariance, difference)  # [n]

    def of_sex(self, sex: str) -> NDArray[np.intp]:
        """Rows of the people of a sex."""
        return np.flatnonzero(self.sexes == sex)

    def mix(self, sex: str, rng: Generator) -> Array:
        """Weights [2 n] of a convex mix of 2 to 4 people of a sex, texture and shape apart."""
        weights = np.zeros((2, len(self.sexes)))
        for row in weights:
            parents = rng.choice(self.of_sex(sex), rng.integers(2, 5), replace=False)
            row[parents] = rng.dirichlet(np.full(len(parents), 1.5))
        return weights

    def draw(self, sex: str, rng: Generator, scale: float) -> Array:
        """Weights [2 n] of a normal draw with the people's covariance times `scale` squared."""
        rows = self.of_sex(sex)
        weights = np.zeros((2, len(self.sexes)))
        noise = rng.standard_normal((2, len(rows))) * scale / np.sqrt(len(rows))
        weights[:, rows] = 1 / len(rows) + noise - noise.mean(axis=1, keepdims=True)
        return weights

    def axes(self, sex: str) -> Array:
        """Weights [m m] of the people of a sex on its axes of variation, the largest first.

        Textures and shapes count alike, each divided by its total variance.
        """
        rows = torch.from_numpy(self.of_sex(sex))
        total = np.zeros((len(rows), len(rows)))
        for part in (self.textures, self.shapes):
            centred = part[rows].flatten(1) - part[rows].flatten(1).mean(0)
            products = (centred @ centred.T).double().numpy()
            total += products / products.trace()
        vectors: Array = np.linalg.eigh(total)[1][:, ::-1].copy()
        vectors *= np.sign(vectors[0])  # an axis has two directions: always take the same one
        return vectors

    def voiced(self, sex: str, rank: float, timbre: Array, rng: Generator) -> Array:
        """Weights [2 n] of the face for a voice.

        The `rank` of its pitch within the sex is 0 (lowest) to 1: the lower, the more masculine the
        face, as the real people's ranks are spread but wider, and a little further from the other
        sex. `timbre` are normal scores [a], laid on the a largest axes of variation; `rng` is for
        the rest.
        """
        rows = self.of_sex(sex)
        left = self.axes(sex)[:, : len(timbre)]
        noise = rng.standard_normal(len(rows)) * REST_SCALE
        # timbre's axes hold timbre alone
        scores = left @ (TIMBRE_SCALE * timbre - left.T @ noise) + noise
        scores -= scores.mean()
        weights: Array = np.zeros((2, len(self.sexes)))
        weights[:, rows] = 1 / len(rows) + scores / np.sqrt(len(rows))
        real = np.quantile(self.masculinity[rows], (1 - rank, 0.5))
        wanted = real[1] + MASCULINITY_SPREAD * (real[0] - real[1])
        male = self.sexes == "M"
        towards = male / male.sum() - ~male / (~male).sum()  # from the mean woman to the mean man
        step = (wanted - self.masculinity @ weights[0]) / (self.masculinity @ towards)
        # A voice that is hard to tell is given a face between: it is still to be on its own side.
        weights += (step + (SEX_MARGIN if sex == "M" else -SEX_MARGIN)) * towards
        return weights

    def render(self, weights: Array) -> tuple[Tensor, Tensor, Tensor]:
        """Texture [3 224 224], shape [189 2] and photo [3 224 224] of weights [2 n].

        The texture stands on a plain background; the photo has whatever mix of hair and light
        surrounds the real people, so that a face encoder learns to look past it.
        """
        texture_of, shape_of = torch.from_numpy(weights).float()
        mix = "n,n...->..."
        texture = torch.einsum(mix, texture_of, self.textures).clamp(0, 1)
        photographed = torch.einsum(mix, texture_of, self.photographed).clamp(0, 1)
        shape = torch.einsum(mix, shape_of, self.shapes)
        photo = warp(photographed[None], self.mean_shape[None], shape[None])[0]
        return texture, shape, photo


def register(people: PhotographedPeople, mean_shape: Tensor) -> Tensor:
    """Neutral photos warped to the mean shape, [n 3 224 224]."""
    pairs = zip(people.photos, people.shapes, strict=True)
    return torch.cat([warp(v[:1] / 255, shape[None], mean_shape[None]) for v, shape in pairs])


def on_background(textures: Tensor, mean_shape: Tensor) -> Tensor:
    """Cut people out of registered photos [n 3 224 224] and stand them before a plain grey."""
    fine, shape = 4, mean_shape.numpy()
    points = shape.copy()
    # The temples: halfway hair of some is background of others; go a quarter of the way in.
    points[[148, 154]] = 0.75 * shape[[148, 154]] + 0.25 * shape[[135, 143]]
    centre = np.float32(FRAME / 2)
    outline = ((points[list(_OUTLINE)] - centre) * 1.02 + centre) * fine
    bottom = np.float32(FRAME * fine + 40)
    polygon = [(outline[0, 0], bottom), *map(tuple, outline), (outline[-1, 0], bottom)]
    mask = Image.new("L", (FRAME * fine, FRAME * fine), 0)
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in polygon], fill=255)
    mask = mask.resize((FRAME, FRAME), Image.Resampling.LANCZOS)
    soft = mask.filter(ImageFilter.GaussianBlur(2.5))
    # Hair that reaches the border must end there, or the warp would draw it on and on.
    top = torch.arange(FRAME).div(5).clamp(0, 1)[:, None]
    inside = torch.from_numpy(np.asarray(soft, np.float32) / 255) * top  # [224 224]
    background = torch.tensor(BACKGROUND).view(3, 1, 1).expand_as(textures)
    return torch.lerp(background, textures, inside)


def space_of(people: PhotographedPeople) -> tuple[PhotographedPeople, FaceSpace]:
    """Make the space of some people and their mirror images, and tell who they all are."""
    everyone = people.with_mirrored(mirror_order(people.shapes.mean(0).numpy()))
    return everyone, FaceSpace(everyone, everyone.shapes.mean(0))


def training_space(faces: Path, seed: int = 0) -> FaceSpace:
    """Make the space of a source's people whom `prepare_demo` does not keep out of training."""
    people = read_photographed(faces)
    return space_of(people.subset(split_by_sex(people.sexes, TEST_SHARE, seed)[0]))[1]


def median_pitch(waveform: NDArray[np.float32]) -> float:
    """Median fundamental frequency, Hz, of the louder and voiced half of the frames of [n].

    Source: YIN (de Cheveigné and Kawahara 2002), as librosa has it, 60 to 400 Hz.
    """
    import librosa

    frames: dict[str, Any] = {"frame_length": 1024, "hop_length": 256}
    pitch = librosa.yin(waveform, fmin=60, fmax=400, sr=audio.SAMPLE_RATE, **frames)
    level = librosa.feature.rms(y=waveform, **frames)[0]
    n = min(len(pitch), len(level))
    loud = level[:n] > np.quantile(level[:n], 0.5)
    edge = (pitch[:n] > 61) & (pitch[:n] < 395)  # YIN ends at the bounds where nothing is voiced
    return float(np.median(pitch[:n][loud & edge]))


def timbre_of(waveform: NDArray[np.float32]) -> Array:
    """Mean log-mel spectrum [128] of the louder half of the frames of a waveform [n]."""
    plain = spectrogram.FrontEnd("log_mel")
    log_mel = spectrogram.spectrogram(torch.from_numpy(waveform)[None], plain)[0, 0].double()
    level = log_mel.mean(0)
    mean: Array = log_mel[:, level > level.median()].mean(1).numpy()
    return mean


def normal_scores(timbres: Array, pitch: Array, fitted: NDArray[np.intp]) -> Array:
    """Timbres [n 128] on their largest axes within one sex, without what follows from pitch: [n a].

    Fitted on some rows, given for all: ranks among the fitted, as quantiles of a normal.
    """
    from scipy.stats import norm

    log_pitch = np.stack([np.log(pitch), np.ones(len(pitch))], axis=1)
    slope = np.linalg.lstsq(log_pitch[fitted], timbres[fitted], rcond=None)[0]
    rest = timbres - log_pitch @ slope
    axes = np.linalg.svd(rest[fitted], full_matrices=False)[2][:TIMBRE_AXES]
    on_axes = rest @ axes.T  # [n a]
    below = (on_axes[:, None] > on_axes[fitted][None]).mean(1)
    scores: Array = norm.ppf(np.clip(below, 0.02, 0.98))
    return scores


@dataclass(frozen=True)
class DemoReport:
    """What `prepare_demo` made."""

    out: Path
    faces: dict[str, int]  # identities, by split
    voices: dict[str, int]


def prepare_demo(
    faces: Path,
    voices: Path,
    out: Path,
    *,
    identities: int = 3000,
    seed: int = 0,
    progress: Progress = silent,
) -> DemoReport:
    """Make the training trees `out/faces` and `out/voices`; there is nothing until all is done.

    `faces` holds `people.csv` and a folder a person, in the sources' framing, `voices`
    `speakers.csv` and a folder a reader; `identities` are the synthetic people for training. Raises
    UsageError if `out` exists, DatasetError if a source lacks what is needed, OutputError if `out`
    cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already", hint="remove it, or choose another folder")
    with atomic_folder(out) as folder:
        # One generator a part: more identities change neither the splits nor the voices' faces.
        mixing, pairing = (np.random.default_rng([seed, part]) for part in (1, 2))
        space, made = _prepare_faces(faces, folder / "faces", identities, seed, mixing, progress)
        counts = _prepare_voices(voices, folder / "voices", space, seed, pairing, progress)
        done = {"seed": seed, "faces": made, "voices": counts}
        for name, data in (
            ("faces/card", FACES_CARD),
            ("voices/card", VOICES_CARD),
            ("demo", done),
        ):
            (folder / f"{name}.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    return DemoReport(out, made, counts)


def _prepare_faces(
    source: Path, out: Path, identities: int, seed: int, rng: Generator, progress: Progress
) -> tuple[FaceSpace, dict[str, int]]:
    people = read_photographed(source)
    train, test = split_by_sex(people.sexes, TEST_SHARE, seed)
    real, space = space_of(people.subset(train))
    kept = people.subset(test)
    textures = on_background(register(kept, space.mean_shape), space.mean_shape)
    total, done = len(real.names) + len(test) + identities + VAL_IDENTITIES, 0
    for split, some, drawn in (("train", real, space.textures), ("test", kept, textures)):
        for k, name in enumerate(some.names):
            progress(done, total, f"faces: {name}")
            done += 1
            neutral, smiling = some.photos[k] / 255
            _write_face(out / split / name, neutral, some.shapes[k], drawn[k])
            _write_jpeg(out / split / name / "smiling.jpg", smiling)
    for k in range(identities + VAL_IDENTITIES):
        sex = "FM"[k % 2]
        mixed = space.mix(sex, rng) if k % 4 < 2 else space.draw(sex, rng, rng.uniform(0.5, 0.9))
        if k % 8 >= 2:  # most have the texture of one person: skin and hair as photos have them
            mixed[0] = 0
            mixed[0, rng.choice(space.of_sex(sex))] = 1
        texture, shape, face = space.render(mixed)
        identity = out / ("val" if k >= identities else "train") / f"mix{k:05d}"
        progress(done, total, f"faces: {identity.name}")
        done += 1
        _write_face(identity, face, shape, texture)
    splits = [*((i, "train") for i in train), *((i, "test") for i in test)]
    rows = [[people.names[i], people.sexes[i], split] for i, split in splits]
    _write_csv(out / "people.csv", ["person", "sex", "split"], rows)
    made = {"train": len(real.names) + identities, "val": VAL_IDENTITIES, "test": len(test)}
    return space, made


def _prepare_voices(
    source: Path, out: Path, space: FaceSpace, seed: int, rng: Generator, progress: Progress
) -> dict[str, int]:
    names, sexes = _read_people(source / "speakers.csv", "speaker")
    pitches, timbres = np.empty(len(names)), []
    waveforms: list[dict[str, NDArray[np.float32]]] = []
    for k, name in enumerate(names):
        progress(k, len(names), f"voices: {name}")
        files = audio.find_recordings([source / name])
        waveforms.append({file.stem: audio.read_speech(file) for file in files})
        joined = np.concatenate([*waveforms[k].values()])
        pitches[k] = median_pitch(joined)
        timbres.append(timbre_of(joined))
    train, test = split_by_sex(sexes, TEST_SHARE, seed)
    inner, val = split_by_sex(sexes[train], VAL_SHARE, seed)
    splits = {"train": train[inner], "val": train[val], "test": test}
    table = []
    for sex in "FM":
        fitted = splits["train"][sexes[splits["train"]] == sex]
        scores = normal_scores(np.stack(timbres), pitches, fitted)
        for split, members in splits.items():
            for k in members[sexes[members] == sex]:
                rank = float((pitches[fitted] < pitches[k]).mean())
                weights = space.voiced(sex, rank, scores[k], rng)
                identity = out / split / names[k]
                _write_jpeg(identity / "images/face.jpg", space.render(weights)[2])
                (identity / "audios").mkdir(exist_ok=True)
                for name, waveform in waveforms[k].items():
                    samples = np.rint(waveform * 32767).astype(np.int16)
                    np.save(identity / "audios" / f"{name}.npy", samples)
                table.append([names[k], sex, split, f"{pitches[k]:.1f}"])
    _write_csv(out / "speakers.csv", ["speaker", "sex", "split", "pitch_hz"], sorted(table))
    return {split: len(members) for split, members in splits.items()}


def _write_face(identity: Path, face: Tensor, shape: Tensor, texture: Tensor) -> None:
    """Write a neutral face with what is known of it."""
    stem = identity / "neutral"
    points = shape.numpy().astype(np.float32)
    _write_jpeg(stem.with_suffix(".jpg"), face)
    _write_jpeg(layout.beside(stem, layout.TEXTURE), texture)
    np.save(layout.beside(stem, layout.TEMPLATE), points)
    np.save(layout.beside(stem, layout.LANDMARKS), landmarks.to_68(points))


def _write_jpeg(path: Path, face: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(face).save(path, format="JPEG", quality=97, subsampling=0)


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


@dataclass(frozen=True)
class DemoModel:
    """A model that was trained: its folder, and what the two runs found."""

    model: Path
    encoder: TrainResult
    voice: TrainResult


def train_demo(
    data: Path,
    out: Path,
    *,
    device: torch.device,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> DemoModel:
    """Train the face encoder with its decoder, then the voice encoder, and put them together.

    `data` holds the trees of `prepare_demo`, or it is a DatasetError; in `out` there are then the
    runs `encoder` and `voice`, and the folder `model`. Goes on where it was stopped: what is
    trained already is not trained again. Raises UsageError, InputError, OutputError,
    KeyboardInterrupt as `train`.
    """
    for name in ("faces", "voices"):
        if not (data / name).is_dir():
            cure = "make it with s2f prep demo FACES VOICES OUT"
            raise DatasetError(f"{data}: has no folder {name}", hint=cure)

    def run(name: str, tree: str, config: TrainConfig, make: Callable[[Card], Task]) -> TrainResult:
        note(f"training {name} in {out / name} on {device}")
        torch.manual_seed(config.seed)
        task = make(Card.of_data(data / tree, f"demo {name}"))
        for text in task.notes:
            note(text)
        return train(task, out / name, config, device=device, progress=progress, note=note)

    def faces_task(card: Card) -> Task:
        return PartsEncoderTask(data / "faces", "compact", card)

    encoder = run("encoder", "faces", FACES, faces_task)
    files = encoder.best, encoder.best.with_name("decoder.safetensors")

    def voices_task(card: Card) -> Task:
        known = load(files[0], "face_encoder"), load(files[1], "face_decoder")
        how: dict[str, Any] = {"device": device, "progress": progress}
        return VoiceEncoderTask(data / "voices", "compact", *known, card, **how)

    voice = run("voice", "voices", VOICES, voices_task)
    sources = {"face_encoder": files[0], "face_decoder": files[1], "voice_encoder": voice.best}
    with atomic_folder(out / "model", replace=True) as folder:
        for kind in KINDS:
            shutil.copyfile(sources[kind], folder / f"{kind}.safetensors")
    return DemoModel(out / "model", encoder, voice)
