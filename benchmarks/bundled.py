"""Measure a model of the demo on the people and speakers that were kept out of its training.

    python benchmarks/bundled.py ../shared/data [--model demo] [--split val] [--sheets FOLDER]
        [--record]

`--split val` measures voices on the speakers that training's validation used, to choose by;
faces are measured with those of `test` alone. `--record` writes the figures into the cards of the
model's checkpoints.

The judge of sex is a classifier fitted on real photographs only: the inner face (brows to chin,
no hair), 32 x 40 pixels, each photo brought to mean 0 and deviation 1, 40 principal components,
linear discriminant. It has never seen a generated face. The judge of identity is dlib's face
descriptor (King 2017), which no part of the project was trained with.
"""

import argparse
import csv
import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import signal
from scipy.stats import spearmanr

from s2f import SpeechToFace, Waveform, audio, checkpoint, demo, face_detection, image_quality
from s2f.attributes import PixelProbe
from s2f.images import FRAME, to_image
from s2f.pipeline import Face
from s2f.warp import warp

JUDGE = (
    "sex and femininity: a linear discriminant on 40 principal components of the inner face (brows "
    "to chin, no hair), fitted on the 168 real photographs only; identity: dlib's face descriptor, "
    "ranks among the neutral photos of all 84 people, most of whom the model was made from"
)
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
    """Kept-out speakers: waveforms at 16 kHz, whether each is a man, median pitches in Hz."""

    waveforms: list[NDArray[np.float32]]
    male: NDArray[np.bool_]
    pitch: Vector


def voices(folder: Path, split: str) -> Voices:
    """Read the kept-out speakers."""
    sexes = {row["speaker"]: row["sex"] for row in table(folder / "speakers.csv")}
    names = demo.kept_out(folder / "speakers.csv", split)
    files = [audio.find_recordings([folder / name])[0] for name in names]
    waveforms = [audio.read_speech(file, as_recorded=True) for file in files]
    pitches = [demo.median_pitch(waveform) for waveform in waveforms]
    return Voices(waveforms, np.array([sexes[n] == "M" for n in names]), np.array(pitches))


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


CONDITIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "by telephone": telephoned,
    "in white noise of 10 dB": lambda x: noisy(x, 0.0),
    "in pink noise of 10 dB": lambda x: noisy(x, 0.5),
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


def photo(path: Path) -> Image.Image:
    """A photo in the frame of the faces."""
    with Image.open(path) as opened:
        return opened.convert("RGB").resize((FRAME, FRAME), Image.Resampling.LANCZOS)


def morphs(folder: Path) -> list[Image.Image]:
    """Convex mixes of the training people, before the plain background that voices' faces have."""
    space = demo.training_space(folder)
    rng = np.random.default_rng(0)
    made = []
    for k in range(MORPHS):
        texture, shape, _ = space.render(space.mix("FM"[k % 2], rng))
        face = warp(texture[None], space.mean_shape[None], shape[None])[0]
        made.append(to_image(face.clamp(0, 1)))
    return made


def of_voices(model: SpeechToFace, data: Path, split: str = "test") -> dict[str, float]:
    """Figures of the faces from voices."""
    judge = fit_judge(data / "faces")
    heard = voices(data / "voices", split)
    images = hear(model, heard.waveforms)
    score = judge.score(images)
    real = [photo(path) for path in sorted((data / "faces").glob("*/neutral.jpg"))]
    detector = face_detection.load_detector("dlib", "cpu")
    figures = {
        "judge accuracy on real people": judge.accuracy,
        "kept-out speakers": len(images),
        "sex agreement": float(((score > 0) == heard.male).mean()),
    }
    for name, change in CONDITIONS.items():
        changed = judge.score(hear(model, [change(waveform) for waveform in heard.waveforms]))
        figures[f"sex agreement {name}"] = float(((changed > 0) == heard.male).mean())
    for sex, of in (("women", ~heard.male), ("men", heard.male)):
        figures[f"pitch and femininity, {sex} (rank correlation)"] = float(
            spearmanr(heard.pitch[of], -score[of]).statistic
        )
    between, scale = distance(images), distance(morphs(data / "faces"))
    return figures | {
        "distance of faces of different voices (of 255)": between,
        "distance of morphs of training people (of 255)": scale,
        "distance of voices' faces / of morphs": between / scale,
        "voices' faces with all 68 points": float(
            image_quality.all_points_found(images, detector).mean()
        ),
        "sharpness of faces from voices / photos": sharpness(images) / sharpness(real),
    }


def of_people(model: SpeechToFace, data: Path) -> dict[str, float]:
    """Figures of the faces from photos."""
    folk = people(model, data / "faces")
    names = [path.parent.name for path, _, _ in folk]
    neutral = np.stack([a.embedding for _, a, _ in folk])
    smiling = np.stack([b.embedding for _, _, b in folk])
    cosine = _unit(neutral) @ _unit(smiling).T
    drawn = [a.image for _, a, _ in folk]
    photos = [photo(path) for path, _, _ in folk]
    identity, detector = Identity(data / "faces"), face_detection.load_detector("dlib", "cpu")
    figures = {
        "kept-out people": float(len(folk)),
        "distance of reconstructions (of 255)": distance(drawn),
        "cosine of neutral and smiling, same person": float(cosine.diagonal().mean()),
        "cosine of different people": float(cosine[~np.eye(len(cosine), dtype=bool)].mean()),
        "smiling photo finds its person first": float(
            (cosine.argmax(0) == np.arange(len(cosine))).mean()
        ),
        "sharpness of reconstructions / photos": sharpness(drawn) / sharpness(photos),
        "reconstructions in which a face is found": float(
            np.isfinite(identity.describe(drawn)).all(1).mean()
        ),
        "reconstructions with all 68 points inside": float(
            image_quality.all_points_found(drawn, detector).mean()
        ),
        "photos with all 68 points inside": float(
            image_quality.all_points_found(photos, detector).mean()
        ),
    }
    for view, faces in (("neutral", drawn), ("smiling", [b.image for _, _, b in folk])):
        ranks = identity.ranks(faces, names)
        for k in (1, 5):
            said = f"reconstruction of a {view} photo: right person of 84 in the first {k}"
            figures[said] = float((ranks < k).mean())
    return figures


def measure(model: SpeechToFace, data: Path, split: str = "test") -> dict[str, float]:
    """All figures of a model."""
    return of_voices(model, data, split) | of_people(model, data)


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


def record(model: SpeechToFace, figures: dict[str, float]) -> None:
    """Write figures into the cards of a model's half-precision checkpoints; tensors stay."""
    metrics: dict[str, object] = {name: round(value, 4) for name, value in figures.items()}
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
        heard = voices(options.data / "voices", options.split)
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
