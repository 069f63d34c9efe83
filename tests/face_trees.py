"""Face trees of smooth pictures, each of its own colours and landmarks; and who finds a face."""

import itertools
from pathlib import Path

import numpy as np
from conftest import some_landmarks
from PIL import Image

from s2f import layout
from s2f.face_detection import FoundFace


def write_face(stem: Path, seed: int, *, texture: bool = False) -> None:
    """Write a smooth picture with 68 landmarks that are its own, and a texture if wanted."""
    rng = np.random.default_rng(seed)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending in (".jpg", layout.TEXTURE)[: 1 + texture]:
        coarse = Image.fromarray(rng.integers(30, 220, (5, 5, 3), dtype=np.uint8))
        picture = coarse.resize((224, 224), Image.Resampling.BICUBIC)
        picture.save(layout.beside(stem, ending), quality=95)
    np.save(layout.beside(stem, layout.LANDMARKS), some_landmarks(seed))


def write_tree(tree: Path, people: int, photos: int = 1, *, texture: bool = False) -> Path:
    """Write the same people to train and val: `id0/0.jpg` ..., with landmarks each."""
    for split, k in itertools.product(("train", "val"), range(people * photos)):
        write_face(tree / split / f"id{k // photos}" / str(k % photos), k, texture=texture)
    return tree


class Found:
    """In the place of a net: the points of a face, as far right as the picture is bright."""

    points = 0.4 * some_landmarks()

    def __call__(self, pictures: list[np.ndarray]) -> list[list[FoundFace]]:
        box = np.zeros(4, np.float32)
        faces = [FoundFace(box, self.points + np.float32((p.max(), 0))) for p in pictures]
        return [[face] if p.max() else [] for face, p in zip(faces, pictures, strict=True)]
