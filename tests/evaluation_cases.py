"""What evaluations in tests are of: a tree of made people, and cases whose figures are known."""

import dataclasses
from pathlib import Path

import numpy as np
from conftest import noise, some_landmarks
from PIL import Image

from s2f.evaluation_data import WHOLE, Case, People
from s2f.pipeline import Face

N, D = 40, 8  # people, values of an embedding
SEXES = {f"{k:02}": "FM"[k % 2] for k in range(N)}


def write_people(tree: Path) -> Path:
    """Eight people in two splits: men have the lower half of the tones, women the upper."""
    rows = ["name,sex"]
    for split, names in (("test", "abcdefgh"), ("train", "ijklmnop")):
        for k, name in enumerate(names):
            folder = tree / f"{split}/{name}"
            (folder / "audios").mkdir(parents=True)
            for n in range(2):
                np.save(folder / f"audios/{n}.npy", noise(7, seed=k + 10 * n))
            (folder / "images").mkdir()
            patches = np.random.default_rng(len(rows)).integers(0, 256, (7, 7, 3), dtype=np.uint8)
            photo = Image.fromarray(patches).resize((224, 224), Image.Resampling.BICUBIC)
            photo.save(folder / "images/0.png")
            rows.append(f"{name},{'FM'[k % 2]}")
    (tree / "labels.csv").write_text("\n".join(rows))
    return tree


def drawn_face(k: int, noise: float = 0.0) -> Face:
    """The face of a person: landmarks and pixels of their own; men are dark below, women above."""
    own = np.random.default_rng(k)
    points = some_landmarks(k) + own.normal(0, noise, (68, 2)).astype(np.float32)
    pixels = own.integers(90, 160, (28, 28, 3)).astype(np.uint8)
    half = slice(14, None) if k % 2 else slice(None, 14)
    pixels[half] //= 3
    image = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
    return Face(image, points, np.zeros(D, np.float32), "speech", 1, "planted")


def case_of(faces: np.ndarray, voices: np.ndarray) -> Case:
    """People [n d] with one photo and as many voices each; men and women take turns."""
    n, each = len(faces), len(voices) // len(faces)
    names = tuple(f"{k:02}" for k in range(n))
    people = People(
        names,
        tuple(Path(f"{k}.npy") for k in range(len(voices))),
        np.repeat(np.arange(n), each),
        (None,) * n,
        faces,
        np.arange(n),
        (),
    )
    sexes = {"sex": {name: "FM"[k % 2] for k, name in enumerate(names)}}
    return Case(people, sexes, {"3 s": voices, WHOLE: voices}, [], [], voices, faces)


def given_away() -> Case:
    """Voices that give away all but a little of the face; the first value tells the sex."""
    rows = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    rows[:, 0] = [5 if k % 2 else -5 for k in range(N)]
    faces, again = [drawn_face(k) for k in range(N)], [drawn_face(k, 0.5) for k in range(N)]
    return dataclasses.replace(case_of(rows, rows), from_voices=again, from_photos=faces)
