"""The recipe of the bundled model, from openly licensed sources to a folder that is a model.

`prepare_demo` makes training trees. Faces: the Face Research Lab London Set (DeBruine and Jones
2017), framed, with its 189-point templates; unlimited identities come from a `FaceSpace`, which
mixes shapes and textures of real people separately. Voices: readers of LibriSpeech (Panayotov et
al. 2015), and people on phones of their own. They are different people, so faces are given to
voices by what both carry: sex, and within a sex the rank of the voice's pitch and of the face on
the masculine-feminine axis. Which of many such faces it is follows timbre, by a fixed rule that
means nothing. `train_demo` trains the networks; of the voice encoder, a pretrained speaker encoder
hears, and what it says is solved for, on recordings as the world makes them (`augment`).
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from s2f import audio, augment, landmarks, layout, spectrogram
from s2f.appearance_model import SHARP, PartsEncoder, depth, opacity, placed, warp_head
from s2f.audio import FloatArray
from s2f.checkpoint import KINDS, Card, Checkpoint, load, payload_sha256, save
from s2f.console import Progress, silent
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.face_encoder import FaceEncoder
from s2f.files import atomic_folder, atomic_write, inside, read_array, read_table
from s2f.images import FRAME, load_face, to_image
from s2f.speaker_encoder import AttributeEncoder, AttributeEncoderConfig, SpeakerEncoder, body_of
from s2f.train import Note, TrainConfig, TrainResult, train
from s2f.train_faces import PartsEncoderTask

Array = NDArray[np.float64]
_LICENCE = (
    "CC BY 4.0 for what is derived from the data: Face Research Lab London Set (DeBruine and "
    "Jones 2017, doi 10.6084/m9.figshare.5047666); LibriSpeech (Panayotov et al. 2015, "
    "openslr.org/12). The program is MIT."
)
FACES_CARD = {
    "description": "Landmarks are found, the photo is registered to the mean shape and its parts "
    "are read and drawn window by window, by the axes along which the registered faces of "
    "training vary, of colours and of opacity; what smiles change is taken off, and light that no "
    "skin of training has. 20 % of the people were kept out of training.",
    "data": "84 photographed adults of the Face Research Lab London Set, framed, neutral and "
    "smiling, and synthetic people with the skin and hair of one of them, or a mix, in shapes "
    "mixed of 2 to 4 of a sex.",
    "licence": _LICENCE,
    "limits": "Frontal, well-lit, framed adult faces before a plain wall, of few ages and "
    "origins: others are drawn less well. Single curls and strands are not drawn, before a wall "
    "that is not plain hair has the usual outline; glasses, beards beyond stubble, wrinkles and "
    "jewellery are drawn faintly or not at all. Most photos with dark glasses, burnt out or of no "
    "face are drawn with a remark. It looks like the person in the photo, and is not "
    "for recognising anyone.",
}
VOICES_CARD = {
    "description": "A demonstration of the pipeline. Voices and faces belong to different people: "
    "a voice is given a face of its sex, as masculine among those as its pitch is low, or one "
    "between where it does not tell the sex. Which of these faces it is, skin, hair and features, "
    "follows timbre by an arbitrary rule. It hears by Resemblyzer's speaker encoder, of which what "
    "it says is solved for on recordings disturbed by rooms, other sounds, microphones and codecs.",
    "data": "Voices: 220 readers of LibriSpeech train-clean-100, and 133 people of VCTK, LibriTTS "
    "test-clean and speechocean762, 58 of them children, of whom it learns that they tell no sex; "
    "20 % of the readers and 30 % of the others were kept out, and others for validation. The "
    "speaker encoder was trained by its authors on LibriSpeech-other, VoxCeleb1 and VoxCeleb2, "
    "without labels of sex. Faces: mixes of the Face Research Lab London Set, a little more "
    "womanly or manly than its people.",
    "licence": f"{_LICENCE} VCTK (Yamagishi et al. 2019), LibriTTS (Zen et al. 2019): CC BY 4.0; "
    "speechocean762 (Zhang et al. 2021, openslr.org/101): free for commercial and non-commercial "
    "purposes, as its authors say. Speaker encoder: Resemblyzer, copyright 2019 Resemble.AI, "
    "Apache-2.0; its weights are used as they are, with another head.",
    "limits": "Knows sex and pitch, and nothing else about anyone: not age, not origin, not "
    "looks. A deep female voice may show a man and a high male voice a woman; children are shown "
    "as young adults of neither sex or of either; singing and shouting show anything. It must not "
    "be used to identify, profile or judge a person.",
}

TEST_SHARE = 0.2  # of people and of speakers, kept out of training
VAL_SHARE = 0.1  # of the speakers
MORE_TEST_SHARE, MORE_VAL_SHARE = 0.3, 0.2  # of those of other sources than audiobooks
SHORTEST_SECONDS, ADULT_YEARS = 2.2, 18
VAL_IDENTITIES = 100
CERTAINLY = 0.15  # distance of a colour from the wall's, 0..1, of what certainly is no wall
MIN_WALL = 1000  # pixels
# Of the faces given to voices, in deviations of the real people: along the axes that follow the
# timbre, which a voice encoder can learn, and along all others, which it cannot.
TIMBRE_SCALE, REST_SCALE = 1.0, 0.0
TIMBRE_AXES, FAR_TIMBRE = 8, 2.5  # that timbres are compared on; deviations at most
SEEN_AXES = 10  # of textures and of shapes, by which faces are masculine
MASCULINITY_SPREAD = 2.5  # of those faces, in terms of the real people's
LOWEST = 217.0  # pixels, of chins: where dlib finds them is some pixels lower
SEX_MARGIN = 0.6  # of the way between the mean faces, by which they are further from the other sex
MAX_UNEVENNESS = 15  # pixels; the London set's mean has 4
# Outline of neck, jaw, ears and hair, template points; what lies outside becomes background.
_OUTLINE = (
    *(145, 126, 125, 119, 118, 117, 116, 115, 148, 149, 150, 151),
    *(152, 153, 154, 120, 121, 122, 123, 124, 133, 132, 157),
)
FACES = TrainConfig(steps=1500, batch_size=32, lr=0.002, every=300, half=True)
IMAGINED = 300  # faces of voices that nobody has, from which follows what faces voices get
ROUNDS = 10  # in which each speaker of training and validation is heard, recorded anew
TOGETHER = 16  # clips of one length that are heard at a time
CLIP_SECONDS = 1.8, 9.0
MOVED_PITCH, MOVED_FORMANTS = 0.25, 0.06  # at most, logarithmic
# Of the logistic regression: the inverse strength of the penalty, and the weights of the kinds, of
# which audiobooks have half. Chosen by the unlikeliness in validation.
SEX_C, SEX_SHARES = 0.003, {"F": 0.35, "M": 0.6, "C": 0.05}
VOICE_C = 0.03  # of that which tells voices from other sounds
NEVER = 30.0  # below the logits of what may be
PITCH_RIDGE, TIMBRE_RIDGE = 30.0, 300.0
SHOWN_TIMBRE = 0.85  # deviation of what is said of timbre, of speakers of training
FACE_STEPS, FACES_LR = 400, 0.01


def _read_table(table: Path, columns: tuple[str, ...]) -> dict[str, list[str]]:
    """Read columns of a source's table, of which `sex` is F or M."""
    read = read_table(table)
    if not read.rows or set(columns) - set(read.columns):
        seen = f"{len(read.rows)} rows of columns {', '.join(read.columns)}"
        hint = "point to the folder that holds the source as its README describes it"
        raise DatasetError(f"{table}: has {seen}; wanted {', '.join(columns)}", hint=hint)
    values = {name: list(read.column(read.columns.index(name))) for name in columns}
    if wrong := set(values["sex"]) - {"F", "M"}:
        message = f"{table}: column sex holds {', '.join(sorted(wrong))}; wanted F or M"
        raise DatasetError(message, hint="the recipe pairs voices and faces by it")
    return values


def _read_people(table: Path, column: str) -> tuple[list[str], NDArray[np.str_]]:
    """Read who is in a source, each of whom has a folder there, and their sexes, F or M."""
    read = _read_table(table, (column, "sex"))
    for name in read[column]:
        inside(table.parent, name, table, is_one=True)
    return read[column], np.array(read["sex"])


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

    The table is `people.csv` or a `speakers.csv`, the split `test`, or `val` of speakers, the
    seed that of `prepare_demo`. Raises DatasetError if the table cannot be read.
    """
    if table.name == "people.csv":
        names, sexes = _read_people(table, "person")
        return [names[k] for k in split_by_sex(sexes, TEST_SHARE, seed)[1]]
    return [who.name for who in read_speakers(table.parent, seed) if who.split == split]


@dataclass(frozen=True)
class RecordedSpeaker:
    """Somebody whose voice was recorded."""

    name: str
    sex: str  # F or M
    is_child: bool  # whose voice does not tell the sex
    source: str
    split: str  # train, val or test
    files: list[Path]

    @property
    def kind(self) -> str:
        """F or M, or C of a child."""
        return "C" if self.is_child else self.sex


def read_speakers(folder: Path, seed: int = 0) -> list[RecordedSpeaker]:
    """Read who speaks in a source, and in which split of `prepare_demo` they are.

    Its `speakers.csv` has speaker and sex, and there is a folder a speaker; or it has file,
    speaker, sex, age, seconds and source, a row a recording, of which the shortest are left out.
    There the same shares of each source's women, men and children are kept out. Raises
    DatasetError if the table cannot be read.
    """
    table = folder / "speakers.csv"
    if "source" not in read_table(table).columns:
        names, sexes = _read_people(table, "speaker")
        splits = np.full(len(names), "train", object)
        train, test = split_by_sex(sexes, TEST_SHARE, seed)
        splits[test], splits[train[split_by_sex(sexes[train], VAL_SHARE, seed)[1]]] = "test", "val"
        return [
            RecordedSpeaker(name, str(sex), False, folder.name, split, [folder / name])
            for name, sex, split in zip(names, sexes, splits, strict=True)
        ]
    columns = ("speaker", "file", "sex", "age", "seconds")
    people: dict[str, RecordedSpeaker] = {}
    for name, file, sex, age, seconds in zip(*_read_table(table, columns).values(), strict=True):
        if float(seconds) >= SHORTEST_SECONDS:
            is_child = bool(age) and float(age) < ADULT_YEARS
            new = RecordedSpeaker(name, sex, is_child, file.split("/")[0], "train", [])
            inside(folder, name, table, is_one=True)  # which becomes a folder's
            people.setdefault(name, new).files.append(inside(folder, file, table))
    rng = np.random.default_rng([seed, 5])
    for group in sorted({(who.source, who.kind) for who in people.values()}):
        of = sorted(n for n, who in people.items() if (who.source, who.kind) == group)
        ends = round(MORE_TEST_SHARE * len(of)), round((MORE_TEST_SHARE + MORE_VAL_SHARE) * len(of))
        for k, name in enumerate(rng.permutation(of)[: ends[1]]):
            people[name] = replace(people[name], split="test" if k < ends[0] else "val")
    return list(people.values())


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
        self.textures = register(people, mean_shape)
        # Appearance and shape on one scale: principal axes of both, whitened; the first of each,
        # which are seen.
        axes = []
        for rows in (self.textures.flatten(1).double(), self.shapes.flatten(1).double()):
            left = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[0]
            axes.append(left[:, :SEEN_AXES].numpy() * np.sqrt(len(rows)))
        coordinates = np.concatenate(axes, axis=1)
        male = self.sexes == "M"
        difference = coordinates[male].mean(0) - coordinates[~male].mean(0)
        within = np.concatenate([coordinates[of] - coordinates[of].mean(0) for of in (male, ~male)])
        covariance = within.T @ within / len(within) + 0.1 * np.eye(within.shape[1])
        self.masculinity = coordinates @ np.linalg.solve(covariance, difference)  # [n]
        self.axes = {sex: self._axes(sex) for sex in "FM"}  # [m m], of the people of a sex

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

    def _axes(self, sex: str) -> Array:
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
        left = self.axes[sex][:, : len(timbre)]
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
        """Texture [4 224 224], shape [189 2] and photo [3 224 224] of weights [2 n]."""
        texture_of, shape_of = torch.from_numpy(weights).float()
        mix = "n,n...->..."
        some = texture_of != 0
        texture = torch.einsum(mix, texture_of[some], self.textures[some])
        # no outline is further from all than people's are: heads would get points, and necks wisps
        outline_of = texture_of[some].clamp_min(0)
        outline_of = outline_of / outline_of.sum()
        texture[3] = torch.einsum(mix, outline_of, self.textures[some, 3])
        texture = texture.clamp(0, 1)
        shape = torch.einsum(mix, shape_of, self.shapes)
        drawn = placed(texture[None], self.mean_shape[None], shape[None])
        return texture, shape, drawn[0].clamp(0, 1)


def register(people: PhotographedPeople, mean_shape: Tensor) -> Tensor:
    """Cut people out of their neutral photos, and register them: textures [n 4 224 224].

    Red, green and blue go on beyond the person's outline; the fourth channel is as `opacity` wants
    it, by the distance from the outline.
    """
    made = []
    for photos, shape in zip(people.photos, people.shapes, strict=True):
        cut = cut_out(photos[0] / 255, shape)
        cut[3] = 0.5 + (cut[3] - 0.5) / SHARP  # as `opacity` wants it
        cut = warp_head(cut[None], shape[None], mean_shape[None])[0]
        distance = outline_distance(opacity(cut[3]).numpy())
        channel = depth(torch.from_numpy(distance)).to(cut)
        made.append(torch.cat([cut[:3].clamp(0, 1), channel[None]]))
    return torch.stack(made)


def cut_out(photo: Tensor, shape: Tensor) -> Tensor:
    """Cut a person out of a photo [3 224 224] before a plain wall: RGB and opacity, [4 224 224].

    The wall's colour is a polynomial of the place. Where hair lets it through, the share of either
    is found by the colours of the wall and of the person nearby; the person's colours go on where
    nothing is seen of them.
    """
    from scipy import ndimage

    pixels = photo.permute(1, 2, 0).double().numpy()
    wall = _wall(pixels, shape)
    away = pixels - wall
    grey = away.mean(2, keepdims=True)
    distance = np.sqrt(grey[..., 0] ** 2 + 4 * ((away - grey) ** 2).sum(2))  # colour tells more
    core = _head(shape, 0.8)
    sure = _joined(core | (distance > CERTAINLY))
    # bright spots within are no wall
    filled = ndimage.binary_fill_holes(sure) & (_head(shape, 0.93))
    solid = ndimage.binary_erosion(sure | filled, iterations=2, border_value=1)
    towards = _spread(photo, solid).permute(1, 2, 0).double().numpy() - wall
    share = (away * towards).sum(2) / np.maximum((towards**2).sum(2), 0.02)
    alpha = np.clip((share - 0.08) / 0.84, 0, 1)
    filled = ndimage.binary_erosion(filled, border_value=1)
    alpha[filled | core] = 1
    alpha[~ndimage.binary_dilation(_joined(alpha > 0.15))] = 0
    solid = ndimage.binary_erosion(alpha > 0.97, border_value=1)
    return torch.cat([_spread(photo, solid), torch.from_numpy(alpha).to(photo)[None]])


def _wall(pixels: Array, shape: Tensor) -> Array:
    """The wall behind a person, [h w 3]: a polynomial of degree 2, fitted to what is like it."""
    y, x = np.mgrid[:FRAME, :FRAME] / (FRAME / 2) - 1
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 2)
    pale = (pixels.min(2) > 0.6) & (np.ptp(pixels, axis=2) < 0.08)
    outside = ~_head(shape, 1.06) & pale
    if outside.sum() < MIN_WALL:
        message = "a photo shows no plain and pale wall behind the person"
        raise DatasetError(message, hint="the recipe needs the source's own photos")
    wall = np.broadcast_to(np.median(pixels[outside], axis=0), pixels.shape)
    within = 0.08
    for _ in range(6):
        like = outside & (np.abs(pixels - wall).max(2) < within)
        rows, flat = terms[like], np.diag([0, 1e-4, 1e-4, 3e-3, 3e-3, 3e-3]) * like.sum()
        wall = terms @ np.linalg.solve(rows.T @ rows + flat, rows.T @ pixels[like])
        within = 0.03
    return wall


def _head(shape: Tensor, scale: float) -> NDArray[np.bool_]:
    """The outline of the template's head and neck, scaled about its middle, as a mask [h w]."""
    points = shape.numpy()
    centre = points.mean(0)
    outline = (points[list(_OUTLINE)] - centre) * scale + centre
    bottom = 2 * FRAME
    polygon = [(outline[0, 0], bottom), *map(tuple, outline), (outline[-1, 0], bottom)]
    mask = Image.new("L", (FRAME, FRAME), 0)
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in polygon], fill=255)
    return np.asarray(mask) > 0


def _joined(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What of a mask is joined to the middle of the face."""
    from scipy import ndimage

    labels = ndimage.label(mask)[0]
    return np.asarray(labels == labels[int(0.6 * FRAME), FRAME // 2])


def _spread(colours: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    """Let colours [3 h w] go on from where a mask holds to where it does not, ever smoother."""
    weight = torch.from_numpy(mask).to(colours)[None]
    levels = [(colours, weight)]
    while max(levels[-1][1].shape) > 1:
        both = torch.cat([levels[-1][0] * levels[-1][1], levels[-1][1]])[None]
        half = functional.avg_pool2d(both, 2, ceil_mode=True, count_include_pad=False)[0]
        levels.append((half[:3] / half[3:].clamp_min(1e-6), (4 * half[3:]).clamp_max(1)))
    filled = levels.pop()[0]
    for some, share in reversed(levels):
        size = list(share.shape[1:])
        filled = functional.interpolate(filled[None], size, mode="bilinear")[0]
        filled = torch.lerp(filled, some, share)
    return filled


def outline_distance(alpha: NDArray[np.float32]) -> Array:
    """Distance of each pixel from the outline of what is opaque, [h w], negative outside."""
    from scipy import ndimage

    fine = ndimage.zoom(alpha, 2, order=1, mode="nearest", grid_mode=True) > 0.5
    distance = ndimage.distance_transform_edt(fine) - ndimage.distance_transform_edt(~fine)
    distance = (distance - np.sign(distance) * 0.5) / 2
    mean: Array = distance.reshape(FRAME, 2, FRAME, 2).mean((1, 3))
    return mean


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


def timbre_scores(
    heard: Array, sexes: NDArray[np.str_], pitch: Array, fitted: NDArray[np.intp]
) -> Array:
    """What voices sound like beside sex and pitch, on the axes that they vary most along: [n a].

    Of features [n f], fitted on some rows and given for all; of a deviation of 1 within each sex.
    """
    rest = np.empty_like(heard)
    for sex in np.unique(sexes):
        of, known = sexes == sex, fitted[sexes[fitted] == sex]
        along = np.stack([np.log(pitch), np.ones(len(pitch))], axis=1)
        slope = np.linalg.lstsq(along[known], heard[known], rcond=None)[0]
        rest[of] = heard[of] - along[of] @ slope
    axes = np.linalg.svd(rest[fitted], full_matrices=False)[2][:TIMBRE_AXES]
    axes *= np.sign(axes[:, :1])  # an axis has two directions: always take the same one
    scores: Array = rest @ axes.T
    for sex in np.unique(sexes):
        scores[sexes == sex] /= scores[fitted[sexes[fitted] == sex]].std(axis=0)
    return scores.clip(-FAR_TIMBRE, FAR_TIMBRE)


@dataclass(frozen=True)
class DemoReport:
    """What `prepare_demo` made."""

    out: Path
    faces: dict[str, int]  # identities, by split
    voices: dict[str, int]


def prepare_demo(
    faces: Path,
    voices: Path,
    speaker: Path,
    out: Path,
    *,
    more: Path | None = None,
    identities: int = 3000,
    seed: int = 0,
    progress: Progress = silent,
) -> DemoReport:
    """Make the training trees `out/faces` and `out/voices`; there is nothing until all is done.

    `faces` holds `people.csv` and a folder a person, in the sources' framing; `voices`, and `more`
    for those of other sources, what `read_speakers` reads; `speaker` is a speaker encoder, as
    `s2f convert resemblyzer` writes it. `identities` are the synthetic people for training. Raises
    UsageError if `out` exists, DatasetError if a source lacks what is needed, CheckpointError if
    the speaker encoder is none, OutputError if `out` cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already", hint="remove it, or choose another folder")
    hears = listener(speaker)
    speakers = [who for folder in (voices, more) if folder for who in read_speakers(folder, seed)]
    with atomic_folder(out) as folder:
        # One generator a part: more identities change neither the splits nor the voices' faces.
        mixing, pairing = (np.random.default_rng([seed, part]) for part in (1, 2))
        space, made = _prepare_faces(faces, folder / "faces", identities, seed, mixing, progress)
        counts = _prepare_voices(speakers, hears, folder, space, pairing, progress)
        shutil.copyfile(speaker, folder / "speaker.safetensors")
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
    textures = register(kept, space.mean_shape)
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


def listener(speaker: Path, embedding: int = 1024) -> AttributeEncoder:
    """Make an encoder by attributes that hears as a speaker encoder does, and says nothing yet.

    Raises a CheckpointError if the file holds none.
    """
    known = load(speaker, "voice_encoder").network
    if not isinstance(known, SpeakerEncoder):
        hint = "make one with s2f convert resemblyzer"
        raise CheckpointError(f"{speaker}: holds another voice encoder", hint=hint)
    config = known.config
    made = AttributeEncoder(
        AttributeEncoderConfig(
            config.n_freqs, config.layers, config.width, timbre=TIMBRE_AXES, embedding=embedding
        )
    )
    made.load_state_dict(made.state_dict() | body_of(known))
    return made.requires_grad_(False).eval()


def _heard(network: AttributeEncoder, waveforms: list[FloatArray]) -> Tensor:
    """Features [b f] of waveforms, which are looped to the length of the longest."""
    n = max(map(len, waveforms))
    clips = torch.from_numpy(np.stack([np.resize(x, n) for x in waveforms]))
    device = network.linear.weight.device
    with torch.inference_mode():
        spectrograms = spectrogram.spectrogram(clips.to(device), spectrogram.FRONT_ENDS["speaker"])
        return network.features(spectrograms).cpu()


def _prepare_voices(
    speakers: list[RecordedSpeaker],
    hears: AttributeEncoder,
    out: Path,
    space: FaceSpace,
    rng: Generator,
    progress: Progress,
) -> dict[str, int]:
    """Write recordings, faces for adults, and faces of voices that nobody has, to learn drawing."""
    table, features, pitches = out / "voices/speakers.csv", [], []
    total = len(speakers) + IMAGINED
    for k, who in enumerate(speakers):
        progress(k, total, f"voices: {who.name}")
        folder = out / "voices" / who.split / who.name / "audios"
        folder.mkdir(parents=True)
        waveforms = []
        for file in audio.find_recordings(who.files):
            waveforms.append(audio.read_speech(file))
            np.save(folder / f"{file.stem}.npy", np.rint(waveforms[-1] * 32767).astype(np.int16))
        joined = np.concatenate(waveforms)
        pitches.append(median_pitch(joined))
        features.append(_heard(hears, [joined])[0].double().numpy())
    kinds = np.array([who.kind for who in speakers])
    adults, pitch = np.flatnonzero(kinds != "C"), np.array(pitches)
    fitted = np.flatnonzero([speakers[k].split == "train" for k in adults])
    timbre = np.zeros((len(speakers), TIMBRE_AXES))
    timbre[adults] = timbre_scores(np.stack(features)[adults], kinds[adults], pitch[adults], fitted)
    rows = []
    for k in np.argsort([who.name for who in speakers]):
        who = speakers[k]
        row = [who.name, who.kind, who.split, who.source, f"{pitch[k]:.1f}"]
        rows.append([*row, *(f"{x:.3f}" for x in timbre[k])])
        if not who.is_child:
            known = adults[fitted][kinds[adults[fitted]] == who.sex]
            rank = float((pitch[known] < pitch[k]).mean())
            weights = space.voiced(who.sex, rank, timbre[k], rng)
            folder = out / "voices" / who.split / who.name
            _write_jpeg(folder / "images/face.jpg", space.render(weights)[2])
    axes = [f"timbre_{a}" for a in range(TIMBRE_AXES)]
    _write_csv(table, ["speaker", "kind", "split", "source", "pitch_hz", *axes], rows)
    imagine(space, out / "imagined", rng, lambda k: progress(len(speakers) + k, total, "imagined"))
    return {split: sum(w.split == split for w in speakers) for split in ("train", "val", "test")}


def imagine(
    space: FaceSpace, out: Path, rng: Generator, progress: Callable[[int], None] = lambda k: None
) -> None:
    """Write faces of `IMAGINED` voices that nobody has, from which faces of voices are learned."""
    rows = []
    for k in range(IMAGINED):
        sex, rank = "FM"[k % 2], float(rng.uniform())
        timbre = rng.standard_normal(TIMBRE_AXES).clip(-FAR_TIMBRE, FAR_TIMBRE)
        progress(k)
        _write_jpeg(out / f"{k:04d}.jpg", space.render(space.voiced(sex, rank, timbre, rng))[2])
        rows.append([f"{k:04d}", sex, f"{rank:.4f}", *(f"{x:.3f}" for x in timbre)])
    axes = [f"timbre_{a}" for a in range(TIMBRE_AXES)]
    _write_csv(out / "faces.csv", ["face", "sex", "rank", *axes], rows)


def _write_face(identity: Path, face: Tensor, shape: Tensor, texture: Tensor) -> None:
    """Write a neutral face with what is known of it."""
    stem = identity / "neutral"
    points = shape.numpy().astype(np.float32)
    _write_jpeg(stem.with_suffix(".jpg"), face)
    _write_jpeg(layout.beside(stem, layout.TEXTURE), texture[:3])
    _write_jpeg(layout.beside(stem, layout.OPACITY), texture[3:].expand(3, -1, -1))
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
    """A model that was trained: its folder, and what was found in validation."""

    model: Path
    encoder: TrainResult
    voice: dict[str, float]


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
    trained or heard already is not trained or heard again. Raises UsageError, InputError,
    OutputError, KeyboardInterrupt as `train`.
    """
    for name in ("faces", "voices", "imagined"):
        if not (data / name).is_dir():
            cure = "make it with s2f prep demo FACES VOICES SPEAKER OUT"
            raise DatasetError(f"{data}: has no folder {name}", hint=cure)
    _speakers(data / "voices"), _imagined(data / "imagined")  # better refused before it is trained
    note(f"training encoder in {out / 'encoder'} on {device}")
    torch.manual_seed(FACES.seed)
    task = PartsEncoderTask(data / "faces", "compact", Card.of_data(data / "faces", "demo encoder"))
    for text in task.notes:
        note(text)
    run: dict[str, Any] = {"device": device, "progress": progress}
    encoder = train(task, out / "encoder", FACES, note=note, **run)
    note(f"training voice in {out / 'voice'} on {device}")
    voice = train_voices(data, out / "voice", encoder.best, **run)
    files = {
        "face_encoder": encoder.best,
        "face_decoder": encoder.best.with_name("decoder.safetensors"),
        "voice_encoder": out / "voice/best.safetensors",
    }
    with atomic_folder(out / "model", replace=True) as folder:
        for kind in KINDS:
            shutil.copyfile(files[kind], folder / f"{kind}.safetensors")
    return DemoModel(out / "model", encoder, voice)


def _speakers(voices: Path) -> tuple[dict[str, list[str]], list[Path]]:
    """Read the columns of the speakers of a tree of `prepare_demo`, and name their folders."""
    table = voices / "speakers.csv"
    columns = _columns(table)
    folders = [inside(voices, split, table, is_one=True) for split in columns["split"]]
    named = zip(folders, columns["speaker"], strict=True)
    return columns, [inside(folder, name, table, is_one=True) for folder, name in named]


def _imagined(folder: Path) -> tuple[dict[str, list[str]], list[Path]]:
    """Read the columns of the voices that nobody has, and name their photos."""
    table = folder / "faces.csv"
    columns = _columns(table)
    return columns, [inside(folder, f"{name}.jpg", table) for name in columns["face"]]


def _columns(table: Path) -> dict[str, list[str]]:
    read = read_table(table)
    return {name: read.column(k) for k, name in enumerate(read.columns)}


def train_voices(
    data: Path, out: Path, face_encoder: Path, *, device: torch.device, progress: Progress = silent
) -> dict[str, float]:
    """Solve for what the bundled voice encoder says, and for the faces that follow from it.

    `data` is the folder of `prepare_demo`; `out` becomes a folder of what was heard and of
    `best.safetensors`. Returns the figures on the speakers of validation. Raises as `train_demo`.
    """
    faces = load(face_encoder, "face_encoder")
    network = listener(data / "speaker.safetensors", faces.embedding).to(device)
    clips = hear_clips(data / "voices", out / "heard", network, progress)
    network = network.cpu()
    figures = fit_attributes(network, clips)
    explained = fit_faces(network, data / "imagined", faces, device, progress)
    figures["share of the variance of imagined faces"] = explained
    card = replace(Card.of_data(data / "voices", "demo voice"), metrics=figures)
    save(
        out / "best.safetensors",
        network,
        card=card,
        embedding_space=faces.embedding_space,
        front_end=spectrogram.FRONT_ENDS["speaker"],
        storage=torch.float16,
    )
    return figures


class HeardClips(NamedTuple):
    """What an encoder heard in clips of speakers, each recorded in another way."""

    features: Array  # [n f]
    kind: NDArray[np.str_]  # [n]: F, M, C of a child, and 0 where nobody speaks
    split: NDArray[np.str_]  # [n]: train or val
    source: NDArray[np.str_]  # [n]
    log_pitch: Array  # [n], Hz, of the speaker
    move: Array  # [n], that the clip's pitch was moved by, logarithmic
    timbre: Array  # [n a]


def hear_clips(
    voices: Path, out: Path, network: AttributeEncoder, progress: Progress
) -> HeardClips:
    """Hear all speakers of train and val of a tree in `ROUNDS` rounds, each clip recorded anew.

    A round's features are a file in `out`, and are not made again by the same network of the same
    speakers, whose table and weights it is named after.
    """
    of = hashlib.sha256((voices / "speakers.csv").read_bytes())
    of.update(payload_sha256(body_of(network)).encode())
    columns, folders = _speakers(voices)
    rows = [k for k, split in enumerate(columns["split"]) if split != "test"]
    splits, kinds = (np.array([columns[name][k] for k in rows]) for name in ("split", "kind"))
    files = [sorted((folders[k] / "audios").glob("*.npy")) for k in rows]
    others = [some[0] for some, split in zip(files, splits, strict=True) if split == "train"]
    who, features, moves = [], [], []
    for r in range(ROUNDS):
        path = out / f"{of.hexdigest()[:16]}_{r:02d}.npz"
        if not path.is_file():
            heard = _hear_round(r, files, others, network, progress)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.savez(file, allow_pickle=False, **heard)
        with np.load(path) as stored:
            who.append(stored["who"])
            features.append(stored["features"])
            moves.append(stored["move"])
    index, nobody = np.concatenate(who), np.concatenate(who) < 0
    pitch = np.log([float(columns["pitch_hz"][k]) for k in rows])
    source = np.array([columns["source"][k] for k in rows])
    # Of recordings in which nobody speaks, the last rounds' are for validation.
    first = ROUNDS - max(1, ROUNDS // 5)
    late = np.concatenate([np.full(len(some), r >= first) for r, some in enumerate(who)])
    return HeardClips(
        np.concatenate(features).astype(np.float64),
        np.where(nobody, "0", kinds[index]),
        np.where(nobody, np.where(late, "val", "train"), splits[index]),
        source[index],
        pitch[index],
        np.concatenate(moves),
        _timbre(columns)[rows][index],
    )


def _hear_round(
    r: int,
    files: list[list[Path]],
    others: list[Path],
    network: AttributeEncoder,
    progress: Progress,
) -> dict[str, NDArray[Any]]:
    """Hear a clip of each speaker, and as many as a quarter in which nobody speaks, numbered -1."""
    rng = np.random.default_rng([7, r])
    babble = [_read(others[k]) for k in rng.permutation(len(others))[:40]]
    chosen = np.concatenate([rng.permutation(len(files)), np.full(len(files) // 4, -1)])
    features, moves = [], []
    for start in range(0, len(chosen), TOGETHER):
        progress(r * len(chosen) + start, ROUNDS * len(chosen), "voices: heard")
        n = round(audio.SAMPLE_RATE * np.exp(rng.uniform(*np.log(CLIP_SECONDS))))
        clips = []
        for k in chosen[start : start + TOGETHER]:
            if k < 0:
                clip, move = augment.no_voice(n, rng), 0.0
            else:
                clip, move = _recorded(files[k], n, rng, babble)
            clips.append(clip[:n])
            moves.append(move)
        features.append(_heard(network, clips).numpy())
    return {"who": chosen, "features": np.concatenate(features), "move": np.array(moves)}


def _recorded(
    files: list[Path], n: int, rng: Generator, babble: list[FloatArray]
) -> tuple[FloatArray, float]:
    """A clip of one of the files as the world would record it, and the move of its pitch."""
    samples = _read(files[rng.integers(len(files))])
    start = rng.integers(max(1, len(samples) - n + 1))
    pitch, formants = np.exp(rng.uniform(-1, 1, 2) * (MOVED_PITCH, MOVED_FORMANTS))
    if rng.random() < 0.4:
        pitch = 1.0
    if rng.random() < 0.5:
        formants = 1.0
    clip = augment.moved(samples[start : start + round(n * pitch)], pitch, formants)
    if rng.random() < 0.9:
        clip = augment.recorded(clip, rng, babble)
    return clip, float(np.log(pitch))


def _timbre(columns: dict[str, list[str]]) -> Array:
    return np.array([columns[f"timbre_{a}"] for a in range(TIMBRE_AXES)], float).T


def _read(file: Path) -> FloatArray:
    return np.asarray(read_array(file), np.float32) / np.float32(32768)


def fit_attributes(network: AttributeEncoder, clips: HeardClips) -> dict[str, float]:
    """Solve for the layer that says attributes, and return the figures of validation.

    Sex and whether it is a voice by logistic regression, pitch and timbre by ridge regression, on
    the speakers of training. How sure it is, one temperature, is of those of validation. Source:
    Guo et al. 2017, "On calibration of modern neural networks".
    """
    from scipy.optimize import minimize_scalar
    from scipy.stats import spearmanr
    from sklearn.linear_model import LogisticRegression, Ridge

    voice, adult = clips.kind != "0", np.isin(clips.kind, ("F", "M"))
    train, val = clips.split == "train", clips.split == "val"
    known = clips.features[train & voice]
    mean, deviation = known.mean(0), known.std(0) + 1e-6
    x = (clips.features - mean) / deviation
    weights, biases = [], []

    def logistic(
        groups: NDArray[Any], labels: NDArray[Any], share: dict[Any, float], strength: float
    ) -> Any:
        """Weigh groups of clips of training so, and all clips of one alike."""
        rows = train & np.isin(groups, list(share))
        count = {group: (groups[rows] == group).sum() for group in share}
        weight = [share[group] / count[group] * rows.sum() for group in groups[rows]]
        machine = LogisticRegression(C=strength, max_iter=2000)
        return machine.fit(x[rows], labels[rows], sample_weight=weight)

    # Audiobooks are most of the clips, and the least like what a visitor says.
    sources, counts = np.unique(clips.source[train & adult], return_counts=True)
    usual = clips.source == sources[counts.argmax()]
    groups = np.where(adult & usual, np.char.add(clips.kind, "-"), clips.kind)
    shares = {
        group: SEX_SHARES[group[0]]
        / (2 if adult[groups == group].any() and len(sources) > 1 else 1)
        for group in np.unique(groups[train & voice])
    }
    sexes = logistic(groups, clips.kind, shares, SEX_C)
    if "C" not in shares:  # of no children: nothing is one's; and scikit-learn gives one logit, M's
        coefficients = np.concatenate([0 * sexes.coef_, sexes.coef_, 0 * sexes.coef_])
        intercepts = np.array([0, sexes.intercept_[0], -NEVER])
    else:
        order = [list(sexes.classes_).index(kind) for kind in SEX_SHARES]
        coefficients, intercepts = sexes.coef_[order], sexes.intercept_[order]
    logits = x @ coefficients.T + intercepts
    male = clips.kind == "M"

    def unlikeliness(log_heat: float) -> float:
        likely = _male(logits[val & adult] / np.exp(log_heat))
        right = np.where(male[val & adult], likely, 1 - likely)
        return float(-np.log(right + 1e-6).mean())

    heat = np.exp(minimize_scalar(unlikeliness, bounds=(-2, 2), method="bounded").x)
    weights += list(coefficients / heat)
    biases += list(intercepts / heat)
    voices = logistic(voice, voice, {True: 0.5, False: 0.5}, VOICE_C)
    weights.append(voices.coef_[0])
    biases.append(voices.intercept_[0])
    moved = (clips.log_pitch + clips.move)[train & voice]
    pitch = Ridge(alpha=PITCH_RIDGE).fit(x[train & voice], moved)
    timbre = Ridge(alpha=TIMBRE_RIDGE).fit(x[train & adult], clips.timbre[train & adult])
    # A ridge holds back what it is not sure of: by how much differs with the material.
    told = timbre.predict(x[train & adult]).std(0)
    held_back = np.where(
        told > 1e-6, told / SHOWN_TIMBRE, 1
    )  # of few people some axes tell nothing
    weights += [pitch.coef_, *(timbre.coef_.T / held_back).T]
    biases += [pitch.intercept_, *(timbre.intercept_ / held_back)]
    weight = np.stack(weights) / deviation
    network.said.weight.copy_(torch.from_numpy(weight))
    network.said.bias.copy_(torch.from_numpy(np.array(biases) - weight @ mean))
    said = pitch.predict(x)
    still = adult & (clips.move == 0)
    for k, sex in enumerate("FM"):
        of = said[train & still & (clips.kind == sex)]
        network.pitch[k] = torch.tensor([of.mean(), of.std()])
    likely = _male(logits / heat)
    figures = {
        "validation: unlikeliness of the sex (nats)": unlikeliness(float(np.log(heat))),
        "validation: error of confidence": _calibration_error(likely, male, val & adult),
        "validation: voice told from noise and music": float(
            np.mean([(voices.predict(x) == voice)[val & of].mean() for of in (voice, ~voice)])
        ),
        "validation: timbre explained": float(
            timbre.score(x[val & adult], clips.timbre[val & adult])
        ),
    }
    for sex, name in (("F", "women"), ("M", "men")):
        of = val & (clips.kind == sex)
        figures[f"validation: sex of {name}"] = float(((likely > 0.5) == male)[of].mean())
        of = of & still
        if len(np.unique(clips.log_pitch[of])) > 2:  # of one speaker or two there is no rank
            figures[f"validation: pitch of {name} (rank correlation)"] = float(
                spearmanr(said[of], clips.log_pitch[of]).statistic
            )
    return figures


def within_frame(codes: Tensor, encoder: FaceEncoder) -> Tensor:
    """Bring shapes of codes [n d] nearer to the mean, whose chins would lie below `LOWEST`."""
    if not isinstance(encoder, PartsEncoder) or encoder.config.landmarks == 68:
        return codes
    mean, axes = encoder.mean_landmarks.cpu().float(), encoder.shape_axes.cpu().float()
    shapes = (codes[:, -len(axes) :] @ axes).view(-1, *mean.shape)
    chins = [float(landmarks.to_68((mean + x).numpy())[:, 1].max()) for x in (0 * mean, *shapes)]
    usual, found = chins[0], torch.tensor(chins[1:])
    share = ((LOWEST - usual) / (found - usual).clamp_min(1e-3)).clamp(0, 1)
    share = torch.where(found > LOWEST, share, 1)
    return torch.cat([codes[:, : -len(axes)], codes[:, -len(axes) :] * share[:, None]], 1)


def _male(logits: Array) -> Array:
    """How likely voices are men's, of logits [n 3] of a woman, a man and a child."""
    from scipy.special import softmax

    likely: Array = softmax(logits, axis=1)
    return likely[:, 1] + likely[:, 2] / 2


def _calibration_error(likely: Array, male: NDArray[np.bool_], rows: NDArray[np.bool_]) -> float:
    """Mean difference of how sure and how right it is, in 10 parts from less sure to surer."""
    sure = np.maximum(likely, 1 - likely)[rows]
    right = ((likely > 0.5) == male)[rows]
    parts = np.array_split(np.argsort(sure), min(10, len(sure)))
    return float(np.mean([abs(sure[part].mean() - right[part].mean()) for part in parts]))


def fit_faces(
    network: AttributeEncoder,
    imagined: Path,
    faces: Checkpoint,
    device: torch.device,
    progress: Progress,
) -> float:
    """Learn which face follows from what is said, from faces of imagined voices.

    Returns how much of their embeddings' variance is explained on every tenth, not learned from.
    """
    from scipy.stats import norm

    columns, photos = _imagined(imagined)
    encoder = faces.network.to(device)
    assert isinstance(encoder, FaceEncoder)
    wanted = []
    for k, path in enumerate(photos):
        progress(k, len(photos), "faces of voices")
        photo = load_face(path, fit=encoder.preprocessing.fit)
        with torch.inference_mode():
            wanted.append(encoder(photo[None].to(device).float() / 255)[0].float().cpu())
    target = within_frame(torch.stack(wanted), encoder)
    male = torch.tensor([float(sex == "M") for sex in columns["sex"]])
    mean, deviation = network.pitch[male.long()].unbind(1)
    rank = torch.tensor([float(rank) for rank in columns["rank"]])
    log_pitch = mean + deviation * torch.from_numpy(norm.ppf(rank.clamp(0.005, 0.995))).float()
    timbre = torch.from_numpy(_timbre(columns)).float()
    kept = torch.arange(len(male)) % 10 == 9
    scale = target[~kept].var(0).sum()
    torch.manual_seed(0)
    layers = network.hidden, network.embedding
    for layer in layers:
        layer.reset_parameters()
        layer.requires_grad_(True)
    network.embedding.bias.data.copy_(target[~kept].mean(0))
    learned = [weight for layer in layers for weight in layer.parameters()]
    optimizer = torch.optim.Adam(learned)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, FACES_LR, FACE_STEPS)

    def error(rows: Tensor) -> Tensor:
        drawn = network.faces(male[rows], log_pitch[rows], timbre[rows])
        return (drawn - target[rows]).square().sum(1).mean() / scale

    for k in range(FACE_STEPS):
        progress(k, FACE_STEPS, "faces of voices: learning")
        optimizer.zero_grad()
        error(~kept).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    network.requires_grad_(False)
    with torch.no_grad():
        return 1 - float(error(kept))
