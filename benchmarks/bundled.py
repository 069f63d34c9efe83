"""Measure a model of the demo on the people and speakers that were kept out of its training.

    python benchmarks/bundled.py ../shared/data [--model demo] [--split val] [--sheets FOLDER]
        [--record]

DATA holds `faces`, `voices` (readers of audiobooks) and `voices_more` (people on phones of their
own, and others). `--split val` measures voices on the speakers that training's validation used, to
choose by; faces are measured with those of `test` alone. `--record` writes the figures into the
cards of the model's checkpoints.

The judge of sex is a classifier fitted on real photographs only: the inner face (brows to chin,
no hair), 32 x 40 pixels, each photo brought to mean 0 and deviation 1, 40 principal components,
linear discriminant. It has never seen a generated face. The judge of identity is dlib's face
descriptor (King 2017), which no part of the project was trained with.
"""

import argparse
import csv
import dataclasses
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from s2f import (
    SpeechToFace,
    Waveform,
    audio,
    augment,
    checkpoint,
    demo,
    face_detection,
    image_quality,
)
from s2f.app import SEMITONES
from s2f.attributes import PixelProbe
from s2f.images import FRAME, to_image
from s2f.pipeline import Face

JUDGE = (
    "sex and femininity: a linear discriminant on 40 principal components of the inner face (brows "
    "to chin, no hair), fitted on the 168 real photographs only; identity: dlib's face descriptor, "
    "ranks among the neutral photos of all 84 people, most of whom the model was made from"
)
AROUND, EDGE = 8, 2.5  # pixels on either side of an outline, and those that its edge may take
BRIGHTER = 0.03  # of 0..1
MORPHS = 40  # convex mixes of training people, half of them women
Vector = NDArray[np.float64]


def table(path: Path) -> list[dict[str, str]]:
    """Read a csv."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fit_judge(faces: Path) -> PixelProbe:
    """Fit the judge of sex on all real photographs of a folder with people.csv: M is above 0."""
    photos, sexes, people = [], [], []
    for row in table(faces / "people.csv"):
        for name in ("neutral", "smiling"):
            with Image.open(faces / row["person"] / f"{name}.jpg") as photo:
                photos.append(photo.convert("RGB"))
            sexes.append(row["sex"])
            people.append(row["person"])
    return PixelProbe.fit(photos, sexes, people)


@dataclasses.dataclass(frozen=True)
class Voices:
    """Kept-out speakers: waveforms at 16 kHz, kinds (F, M, or C of a child), sources, pitches."""

    waveforms: list[NDArray[np.float32]]
    kind: NDArray[np.str_]
    source: NDArray[np.str_]
    pitch: Vector  # medians, Hz

    @property
    def male(self) -> NDArray[np.bool_]:
        """Whether each is a man."""
        return self.kind == "M"

    def where(self, rows: NDArray[np.bool_]) -> "Voices":
        """Some of them."""
        some = [waveform for waveform, of in zip(self.waveforms, rows, strict=True) if of]
        return Voices(some, self.kind[rows], self.source[rows], self.pitch[rows])


def voices(data: Path, split: str, names: tuple[str, ...] = ("voices", "voices_more")) -> Voices:
    """Read the kept-out speakers, the first recording of each."""
    found = [who for name in names for who in demo.read_speakers(data / name) if who.split == split]
    files = [audio.find_recordings(who.files)[0] for who in found]
    waveforms = [audio.read_speech(file, as_recorded=True) for file in files]
    pitches = [demo.median_pitch(waveform) for waveform in waveforms]
    kinds, sources = ([getattr(who, name) for who in found] for name in ("kind", "source"))
    return Voices(waveforms, np.array(kinds), np.array(sources), np.array(pitches))


def telephoned(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hear a waveform [n] through a telephone: 8 kHz, 300 to 3400 Hz, 8 bits by the mu-law."""
    narrow = soxr.resample(waveform, 16_000, 8_000)
    band = signal.butter(4, (300, 3400), "bandpass", fs=8_000, output="sos")
    x = np.clip(signal.sosfilt(band, narrow), -1, 1)
    levels = np.round(127 * np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)) / 127
    heard = np.sign(levels) * np.expm1(np.abs(levels) * np.log(256)) / 255
    return np.asarray(soxr.resample(heard, 8_000, 16_000), np.float32)


def noisy(waveform: NDArray[np.float32], colour: float) -> NDArray[np.float32]:
    """Add noise at 10 dB below a waveform [n]: white, or with `colour` 0.5 pink."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(len(waveform)))
    noise = np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1) ** -colour, len(waveform))
    noise *= np.sqrt(np.mean(waveform**2) / np.mean(noise**2) / 10)
    return (waveform + noise).astype(np.float32)


def in_room(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hear a waveform [n] in a room: 0.5 s of reverberation, as loud as the voice itself."""
    t = np.arange(8_000) / 16_000
    tail = np.random.default_rng(1).standard_normal(len(t)) * 10 ** (-3 * t / 0.5)
    tail *= (t > 0.004) / np.linalg.norm(tail)
    tail[0] = 1
    return np.asarray(signal.fftconvolve(waveform, tail)[: len(waveform)], np.float32)


CONDITIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "by telephone": telephoned,
    "in white noise of 10 dB": lambda x: noisy(x, 0.0),
    "in pink noise of 10 dB": lambda x: noisy(x, 0.5),
    "in a room": in_room,
    "from 3 s": lambda x: x[max(0, len(x) // 2 - 24_000) :][:48_000],
}


def hear(model: SpeechToFace, waveforms: list[NDArray[np.float32]]) -> list[Image.Image]:
    """Faces of waveforms at 16 kHz."""
    return [model.generate(Waveform(waveform, 16_000)).image for waveform in waveforms]


def people(model: SpeechToFace, folder: Path) -> list[tuple[Path, Face, Face]]:
    """Kept-out people: neutral photo, and reconstructions of the neutral and the smiling one."""
    made = []
    for name in demo.kept_out(folder / "people.csv"):
        photos = [folder / name / f"{view}.jpg" for view in ("neutral", "smiling")]
        made.append((photos[0], *(model.reconstruct(photo, align=False) for photo in photos)))
    return made


def sharpness(images: list[Image.Image]) -> float:
    """Mean sharpness of images."""
    return float(np.mean([image_quality.sharpness(image) for image in images]))


def distance(images: list[Image.Image]) -> float:
    """Mean absolute difference of two different images, 0..255."""
    return float(image_quality.diversity(images).mean())


def wall(pixels: Vector) -> Vector:
    """The plain wall behind a face, [h w 3] as the picture: a polynomial of degree 2.

    Fitted to what is pale or alike beside the head, ever closer.
    """
    h, w = pixels.shape[:2]
    y, x = np.mgrid[:h, :w] / (h / 2) - 1
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 2)
    beside = (np.abs(x) > 0.8) & (y < 0.7)
    found = np.broadcast_to(np.median(pixels[beside], axis=0), pixels.shape)
    for within in (0.1, 0.06, 0.04, 0.03, 0.03):
        like = (np.abs(pixels - found).max(2) < within) & ((np.abs(x) > 0.5) | (y < -0.8))
        rows, flat = terms[like], np.diag([0, 1e-3, 1e-3, 3e-2, 3e-2, 3e-2]) * like.sum()
        system = rows.T @ rows + flat + 1e-6 * np.eye(6)
        found = terms @ np.linalg.solve(system, rows.T @ pixels[like])
    return found


def rim(image: Image.Image) -> tuple[float, float]:
    """Shares of the pixels around the head's outline that are a bright band, and a grey one.

    The outline is where a face, scaled to 224, ends before the plain wall; around it are the
    `AROUND` pixels on either side, above the neck's end. A pixel of a bright band is lighter than
    the wall and than the person further in. One of a grey band lies further than `EDGE` pixels from
    the outline, and is of a colour between both: hair that stands off does so in photos, too, so
    that a share tells nothing beside that of photos.
    """
    pixels = np.asarray(image.convert("RGB").resize((FRAME, FRAME)), np.float64) / 255
    behind = wall(pixels)
    distance = np.linalg.norm(pixels - behind, axis=2)
    labels = ndimage.label(distance > 0.15)[0]
    head = ndimage.binary_fill_holes(labels == labels[int(0.6 * FRAME), FRAME // 2])
    inside, outside = (ndimage.distance_transform_edt(x) for x in (head, ~head))
    ring = (inside + outside <= AROUND) & (np.arange(FRAME)[:, None] < 0.9 * FRAME)
    deep = inside > AROUND  # whose nearest pixel stands for the person further in
    where = ndimage.distance_transform_edt(~deep, return_distances=False, return_indices=True)
    person = ndimage.gaussian_filter(pixels, (2, 2, 0))[tuple(where)]
    light, light_behind, light_person = (x.mean(2) for x in (pixels, behind, person))
    bright = light > np.maximum(light_behind, light_person) + BRIGHTER
    way = person - behind
    share = ((pixels - behind) * way).sum(2) / np.maximum((way**2).sum(2), 1e-3)
    off = np.linalg.norm(pixels - behind - share[..., None] * way, axis=2)
    between = (share > 0.2) & (share < 0.7) & (off < 0.1) & (inside + outside > EDGE)
    return float(bright[ring].mean()), float(between[ring].mean())


def rims(images: list[Image.Image]) -> tuple[float, float]:
    """Mean shares of `rim`."""
    bright, grey = np.mean([rim(image) for image in images], axis=0)
    return float(bright), float(grey)


def rim_figures(
    whose: str, images: list[Image.Image], photos: list[Image.Image]
) -> dict[str, float]:
    """Figures of the rims of images, beside those of photos."""
    figures = {}
    for name, here, there in zip(("bright", "grey"), rims(images), rims(photos), strict=True):
        figures[f"{name} band around {whose} (share of the rim)"] = here
        figures[f"{name} band around photos (share of the rim), beside {whose}"] = there
    return figures


class Identity:
    """Who somebody is to dlib's face descriptor, among the neutral photos of all people."""

    def __init__(self, folder: Path) -> None:
        origin = importlib.util.find_spec("face_recognition_models")
        if origin is None or origin.origin is None:
            raise SystemExit("the judge of identity needs: pip install '.[dlib]'")
        import dlib

        self.dlib = dlib
        weights = Path(origin.origin).parent / "models"
        self.detector = face_detection.load_detector("dlib", "cpu")
        self.network = self.dlib.face_recognition_model_v1(
            str(weights / "dlib_face_recognition_resnet_model_v1.dat")
        )
        self.names = [row["person"] for row in table(folder / "people.csv")]
        photos = [photo(folder / name / "neutral.jpg") for name in self.names]
        self.gallery = self.describe(photos)

    def describe(self, images: list[Image.Image]) -> Vector:
        """Descriptors [n 128]; those of pictures in which no face is found are nobody's."""
        found = np.full((len(images), 128), np.nan)
        for k, image in enumerate(images):
            picture = np.asarray(image.convert("RGB"))
            (faces,) = self.detector([picture])
            if faces:
                corners = [round(float(x)) for x in faces[0].box]
                at = [(round(float(x)), round(float(y))) for x, y in faces[0].points]
                shape = self.dlib.full_object_detection(
                    self.dlib.rectangle(*corners), [self.dlib.point(*place) for place in at]
                )
                found[k] = self.network.compute_face_descriptor(picture, shape)
        return found

    def ranks(self, images: list[Image.Image], names: list[str]) -> NDArray[np.int64]:
        """How many people are nearer than the right one, for each picture; all if none is found."""
        distances = np.linalg.norm(self.describe(images)[:, None] - self.gallery[None], axis=2)
        right = distances[np.arange(len(names)), [self.names.index(name) for name in names]]
        nearer = (distances < right[:, None]).sum(1)
        return np.where(np.isnan(right), len(self.names), nearer)


def spread(descriptors: Vector) -> float:
    """Mean distance of two descriptors, of [n 128], of pictures in which faces are found."""
    return float(pdist(descriptors[np.isfinite(descriptors).all(1)]).mean())


def photo(path: Path) -> Image.Image:
    """A photo in the frame of the faces."""
    with Image.open(path) as opened:
        return opened.convert("RGB").resize((FRAME, FRAME), Image.Resampling.LANCZOS)


def another_camera(picture: Image.Image, number: int) -> Image.Image:
    """A photo as of another camera: gamma, exposure and white balance, smaller, and a JPEG."""
    rng = np.random.default_rng([11, number])
    gamma, gain = np.exp(rng.uniform((-0.2, -0.12), (0.2, 0.08)))
    cast = np.exp(rng.uniform(-0.07, 0.07, 3))
    light = np.clip((np.asarray(picture, np.float64) / 255) ** gamma * gain * cast, 0, 1)
    small = Image.fromarray(np.rint(light * 255).astype(np.uint8)).resize((150, 150))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=75)
    return Image.open(file).resize((FRAME, FRAME))


def morphs(folder: Path) -> list[Image.Image]:
    """Convex mixes of the training people, before the plain background that voices' faces have."""
    space = demo.training_space(folder)
    rng = np.random.default_rng(0)
    made = []
    for k in range(MORPHS):
        made.append(to_image(space.render(space.mix("FM"[k % 2], rng))[2]))
    return made


def wilson(right: NDArray[np.bool_]) -> tuple[float, float]:
    """Interval of 95 % of a share. Source: Wilson 1927."""
    n, share, z = len(right), right.mean(), 1.96
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return round(float(centre - half), 3), round(float(centre + half), 3)


SAID = {"voices": "readers", "speechocean_train": "own phones", "vctk_excerpts": "VCTK"}
SAID["libritts_test_clean"] = "LibriTTS"


def of_sex(score: Vector, heard: Voices) -> tuple[dict[str, float], dict[str, object]]:
    """Shares shown with their sex, and how many each is of, with its interval."""
    right = (score > 0) == heard.male
    readers = heard.source == "voices"
    groups = {"": np.ones(len(right), bool), ", readers": readers, ", others": ~readers}
    groups |= {f", {SAID[name]}": heard.source == name for name in np.unique(heard.source)}
    figures, intervals = {}, {}
    for group, rows in groups.items():
        for name, of in ((group, rows), *_by_sex(group, rows, heard)):
            if of.any():
                figures[f"sex agreement{name}"] = float(right[of].mean())
                intervals[f"sex agreement{name}"] = [int(of.sum()), *wilson(right[of])]
    return figures, intervals


def _by_sex(
    group: str, rows: NDArray[np.bool_], heard: Voices
) -> list[tuple[str, NDArray[np.bool_]]]:
    return [(f"{group}, women", rows & ~heard.male), (f"{group}, men", rows & heard.male)]


def of_confidence(faces: list[Face], everyone: Voices) -> dict[str, float]:
    """How well a voice encoder that says what it hears knows how sure it may be."""
    male = np.array([face.voice["male"] for face in faces])
    sure, adult = np.maximum(male, 1 - male), everyone.kind != "C"
    right = (male > 0.5) == everyone.male
    figures = {
        "confidence, mean of adults": float(sure[adult].mean()),
        "right when sure of 0.9": float(right[adult & (sure >= 0.9)].mean()),
        "adults it is less than 0.8 sure of": float((sure[adult] < 0.8).mean()),
        "taken for a voice": float(np.mean([face.voice["voice"] >= 0.5 for face in faces])),
    }
    if not adult.all():
        figures["children it is less than 0.8 sure of"] = float((sure[~adult] < 0.8).mean())
    return figures


def of_no_voice(model: SpeechToFace) -> float:
    """The share of made noises, places and pieces of music that are taken for no voice."""
    rngs = [np.random.default_rng([99, k]) for k in range(60)]
    faces = [model.generate(Waveform(augment.no_voice(96_000, rng), 16_000)) for rng in rngs]
    return float(np.mean([face.voice["voice"] < 0.5 for face in faces]))


def of_voices(
    model: SpeechToFace, data: Path, identity: Identity, split: str = "test"
) -> dict[str, object]:
    """Figures of the faces from voices."""
    judge = fit_judge(data / "faces")
    everyone = voices(data, split)
    heard = everyone.where(everyone.kind != "C")
    faces = [model.generate(Waveform(x, 16_000)) for x in everyone.waveforms]
    images = [face.image for face, kind in zip(faces, everyone.kind, strict=True) if kind != "C"]
    score = judge.score(images)
    real = [photo(path) for path in sorted((data / "faces").glob("*/neutral.jpg"))]
    detector = face_detection.load_detector("dlib", "cpu")
    shares, intervals = of_sex(score, heard)
    figures: dict[str, object] = {
        "judge accuracy on real people": judge.accuracy,
        "kept-out adults": len(images),
        **shares,
    }
    for name, change in CONDITIONS.items():
        changed = judge.score(hear(model, [change(waveform) for waveform in heard.waveforms]))
        right = (changed > 0) == heard.male
        for group, of in (
            (f" {name}", right == right),
            *_by_sex(f" {name}", right == right, heard),
        ):
            figures[f"sex agreement{group}"] = float(right[of].mean())
            intervals[f"sex agreement{group}"] = [int(of.sum()), *wilson(right[of])]
    readers = heard.source == "voices"
    for group, rows in (("readers", readers), ("others", ~readers)):
        for name, of in _by_sex(group, rows, heard):
            figures[f"pitch and femininity, {name} (rank correlation)"] = float(
                spearmanr(heard.pitch[of], -score[of]).statistic
            )
    lower, higher = (
        judge.score(hear(model, [augment.moved(x, 2 ** (t / 12)) for x in heard.waveforms]))
        for t in (-SEMITONES, SEMITONES)
    )
    for name, of in (("", readers == readers), *_by_sex("", readers == readers, heard)):
        figures[f"more womanly where the page's slider makes the voice higher{name}"] = float(
            (higher < lower)[of].mean()
        )
    if faces[0].voice:
        figures |= of_confidence(faces, everyone)
        figures["noise and music taken for no voice"] = of_no_voice(model)
    between, scale = distance(images), distance(morphs(data / "faces"))
    return figures | {
        "distance of faces of different voices (of 255)": between,
        "distance of morphs of training people (of 255)": scale,
        "distance of voices' faces / of morphs": between / scale,
        "distance by dlib's descriptor, voices' faces / photos": spread(identity.describe(images))
        / spread(identity.gallery),
        "voices' faces with all 68 points": float(
            image_quality.all_points_inside(image_quality.find_points(images, detector)).mean()
        ),
        "sharpness of faces from voices / photos": sharpness(images) / sharpness(real),
        **rim_figures("voices' faces", images, real),
        "intervals (of how many; 95 %)": intervals,
    }


def of_people(model: SpeechToFace, data: Path, identity: Identity) -> dict[str, object]:
    """Figures of the faces from photos."""
    folk = people(model, data / "faces")
    names = [path.parent.name for path, _, _ in folk]
    neutral = np.stack([a.embedding for _, a, _ in folk])
    smiling = np.stack([b.embedding for _, _, b in folk])
    cosine = _unit(neutral) @ _unit(smiling).T
    drawn = [a.image for _, a, _ in folk]
    photos = [photo(path) for path, _, _ in folk]
    detector = face_detection.load_detector("dlib", "cpu")
    figures: dict[str, object] = {
        "kept-out people": float(len(folk)),
        "distance of reconstructions (of 255)": distance(drawn),
        "cosine of neutral and smiling, same person": float(cosine.diagonal().mean()),
        "cosine of different people": float(cosine[~np.eye(len(cosine), dtype=bool)].mean()),
        "smiling photo finds its person first": float(
            (cosine.argmax(0) == np.arange(len(cosine))).mean()
        ),
        "sharpness of reconstructions / photos": sharpness(drawn) / sharpness(photos),
        **rim_figures("reconstructions", drawn, photos),
        "reconstructions in which a face is found": float(
            np.isfinite(identity.describe(drawn)).all(1).mean()
        ),
        "reconstructions with all 68 points inside": float(
            image_quality.all_points_inside(image_quality.find_points(drawn, detector)).mean()
        ),
        "photos with all 68 points inside": float(
            image_quality.all_points_inside(image_quality.find_points(photos, detector)).mean()
        ),
    }
    views = {"neutral": drawn, "smiling": [b.image for _, _, b in folk]}
    for v, view in enumerate(("neutral", "smiling")):
        others = [photo(path.with_name(f"{view}.jpg")) for path, _, _ in folk]
        others = [another_camera(other, 2 * k + v) for k, other in enumerate(others)]
        made = [model.reconstruct(other, align=False).image for other in others]
        views[f"{view} photo of another camera"] = made
    for view, faces in views.items():
        ranks = identity.ranks(faces, names)
        for k in (1, 5):
            whose = view if " " in view else f"{view} photo"
            said = f"reconstruction of a {whose}: right person of 84 in the first {k}"
            figures[said] = float((ranks < k).mean())
    return figures


def measure(model: SpeechToFace, data: Path, split: str = "test") -> dict[str, object]:
    """All figures of a model."""
    identity = Identity(data / "faces")
    return of_voices(model, data, identity, split) | of_people(model, data, identity)


def _unit(rows: Vector) -> Vector:
    centred = rows - rows.mean(0)
    unit: Vector = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit


def sheet(images: list[Image.Image], columns: int, size: int) -> Image.Image:
    """Pictures in rows."""
    page = Image.new("RGB", (columns * size, -(-len(images) // columns) * size), "white")
    for k, image in enumerate(images):
        tile = image.resize((size, size), Image.Resampling.LANCZOS)
        page.paste(tile, (k % columns * size, k // columns * size))
    return page


def record(model: SpeechToFace, figures: dict[str, object]) -> None:
    """Write figures into the cards of a model's half-precision checkpoints; tensors stay."""
    metrics = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    for kind, loaded in model.model.checkpoints.items():
        name = f"{model.model.name} {kind}"
        said = metrics | {"judge": JUDGE} if kind == "voice_encoder" else metrics
        checkpoint.save(
            loaded.path,
            loaded.network,
            card=dataclasses.replace(loaded.card, name=name, metrics=said),
            embedding_space=loaded.embedding_space,
            front_end=loaded.front_end,
            storage=torch.float16,
        )


def main() -> None:
    """Print the figures; write the contact sheets where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--split", default="test", choices=["test", "val"])
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    model = SpeechToFace.load(options.model, device="cpu")
    figures = measure(model, options.data, options.split)
    print(json.dumps(figures, indent=1))
    if options.record:
        record(model, figures)
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
        heard = voices(options.data, options.split, ("voices",))
        faces = hear(model, heard.waveforms)
        order = sorted(range(len(faces)), key=lambda k: (bool(heard.male[k]), -heard.pitch[k]))
        both = [[k for k in order if heard.male[k] == sex][:20] for sex in (False, True)]
        chosen = [faces[k] for k in both[0] + both[1]]
        sheet(chosen, 10, 112).save(options.sheets / "voices.jpg", quality=90)
        sheet(chosen, 8, 224).save(options.sheets / "voices.png")
        tiles = []
        for photo, neutral, smiling in people(model, options.data / "faces"):
            with Image.open(photo) as a, Image.open(photo.with_name("smiling.jpg")) as b:
                tiles += [a.convert("RGB"), neutral.image, b.convert("RGB"), smiling.image]
        sheet(tiles, 8, 224).save(options.sheets / "people.png")


if __name__ == "__main__":
    main()
