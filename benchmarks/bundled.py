"""Measure a model of the demo on the people and speakers that were kept out of its training.

    python benchmarks/bundled.py ../shared/data [--model demo] [--sheets FOLDER] [--record]

`--record` writes the figures into the cards of the model's checkpoints.

The judge of sex is a classifier fitted on real photographs only: the inner face (brows to chin,
no hair), 32 x 40 pixels, each photo brought to mean 0 and deviation 1, 40 principal components,
linear discriminant. It has never seen a generated face.
"""

import argparse
import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr

from s2f import SpeechToFace, audio, checkpoint, demo, face_quality, voice_traits
from s2f.infer import Face
from s2f.probes import PixelProbe

JUDGE = (
    "sex and femininity: a linear discriminant on 40 principal components of the inner face (brows "
    "to chin, no hair), fitted on the 168 real photographs only. The kept-out speakers were in "
    "view while six variants of the voice encoder were compared, so these figures flatter it"
)
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


def voices(model: SpeechToFace, folder: Path) -> tuple[list[Face], NDArray[np.bool_], Vector]:
    """Faces of the kept-out speakers, whether each is a man, and their median pitch, Hz."""
    sexes = {row["speaker"]: row["sex"] for row in table(folder / "speakers.csv")}
    names = demo.kept_out(folder / "speakers.csv")
    recordings = [audio.find([folder / name])[0] for name in names]
    pitches = [voice_traits.median_pitch(audio.load(path)) for path in recordings]
    faces = [model.generate(path) for path in recordings]
    return faces, np.array([sexes[name] == "M" for name in names]), np.array(pitches)


def people(model: SpeechToFace, folder: Path) -> list[tuple[Path, Face, Face]]:
    """Kept-out people: neutral photo, and reconstructions of the neutral and the smiling one."""
    made = []
    for name in demo.kept_out(folder / "people.csv"):
        photos = [folder / name / f"{view}.jpg" for view in ("neutral", "smiling")]
        made.append((photos[0], *(model.reconstruct(photo, align=False) for photo in photos)))
    return made


def sharpness(images: list[Image.Image]) -> float:
    """Mean sharpness of images."""
    return float(np.mean([face_quality.sharpness(image) for image in images]))


def distance(images: list[Image.Image]) -> float:
    """Mean absolute difference of two different images, 0..255."""
    return float(face_quality.diversity(images).mean())


def measure(model: SpeechToFace, data: Path) -> dict[str, float]:
    """All figures of a model."""
    judge = fit_judge(data / "faces")
    faces, male, pitch = voices(model, data / "voices")
    score = judge.score([face.image for face in faces])
    folk = people(model, data / "faces")
    neutral = np.stack([a.embedding for _, a, _ in folk])
    smiling = np.stack([b.embedding for _, _, b in folk])
    cosine = _unit(neutral) @ _unit(smiling).T
    photos = [Image.open(photo).convert("RGB").resize((224, 224)) for photo, _, _ in folk]
    return {
        "judge accuracy on real people": judge.accuracy,
        "kept-out speakers": len(faces),
        "sex agreement": float(((score > 0) == male).mean()),
        "pitch and femininity, women (rank correlation)": float(
            spearmanr(pitch[~male], -score[~male]).statistic
        ),
        "pitch and femininity, men (rank correlation)": float(
            spearmanr(pitch[male], -score[male]).statistic
        ),
        "distance of faces of different voices (of 255)": distance([f.image for f in faces]),
        "kept-out people": len(folk),
        "distance of reconstructions (of 255)": distance([a.image for _, a, _ in folk]),
        "cosine of neutral and smiling, same person": float(cosine.diagonal().mean()),
        "cosine of different people": float(cosine[~np.eye(len(cosine), dtype=bool)].mean()),
        "smiling photo finds its person first": float(
            (cosine.argmax(0) == np.arange(len(cosine))).mean()
        ),
        "sharpness of reconstructions / photos": sharpness([a.image for _, a, _ in folk])
        / sharpness(photos),
        "sharpness of faces from voices / photos": sharpness([f.image for f in faces])
        / sharpness(photos),
    }


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
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    model = SpeechToFace.load(options.model, device="cpu")
    figures = measure(model, options.data)
    print(json.dumps(figures, indent=1))
    if options.record:
        record(model, figures)
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
        faces, male, pitch = voices(model, options.data / "voices")
        order = sorted(range(len(faces)), key=lambda k: (bool(male[k]), -pitch[k]))
        chosen = [k for sex in (False, True) for k in [k for k in order if male[k] == sex][:20]]
        page = sheet([faces[k].image for k in chosen], 10, 112)
        page.save(options.sheets / "voices.jpg", quality=90)
        sheet([faces[k].image for k in chosen], 8, 224).save(options.sheets / "voices.png")
        tiles = []
        for photo, neutral, smiling in people(model, options.data / "faces"):
            with Image.open(photo) as a, Image.open(photo.with_name("smiling.jpg")) as b:
                tiles += [a.convert("RGB"), neutral.image, b.convert("RGB"), smiling.image]
        sheet(tiles, 8, 224).save(options.sheets / "people.png")


if __name__ == "__main__":
    main()
