"""The two sources of the bundled model: who is in them, and who is kept out of training."""

import csv
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from s2f import landmarks
from s2f.arrays import read_array
from s2f.errors import DatasetError
from s2f.face_space import FaceSpace, People, join, mirror_order
from s2f.images import FRAME, load_face

TEST_SHARE = 0.2  # of people and of speakers, kept out of training
VAL_SHARE = 0.1  # of the speakers


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read a csv that has some columns.

    Raises:
        DatasetError: if it cannot be read or lacks one, or if a sex is neither F nor M.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path}: cannot be read: {getattr(error, 'strerror', error)}",
            hint=f"wanted {', '.join(columns)} in it",
        ) from error
    if not rows or set(columns) - set(rows[0]):
        raise DatasetError(
            f"{path}: has columns {', '.join(rows[0]) if rows else 'none'}; "
            f"wanted {', '.join(columns)}",
            hint="point to the folder that holds the source as its README describes it",
        )
    wrong = {row["sex"] for row in rows} - {"F", "M"} if "sex" in columns else set()
    if wrong:
        raise DatasetError(
            f"{path}: column sex holds {', '.join(sorted(map(str, wrong)))}; wanted F or M",
            hint="the recipe pairs voices and faces by it",
        )
    return rows


def read_people(folder: Path) -> People:
    """Read the photographed people, with their templates.

    Raises:
        DatasetError: if somebody's photos or template are missing or of another kind.
    """
    rows = read_table(folder / "people.csv", ("person", "sex"))
    photos, shapes = [], []
    for row in rows:
        person = folder / row["person"]
        photos.append(torch.stack([load_face(person / f"{v}.jpg") for v in ("neutral", "smiling")]))
        path = person / "neutral_template.npy"
        if not path.is_file():
            raise DatasetError(f"{path}: no such file", hint="the recipe needs all 189 points")
        with Image.open(person / "neutral.jpg") as photo:
            side = photo.width
        points = read_array(path).astype(np.float64)
        if points.shape != (landmarks.TEMPLATE_POINTS, 2):
            raise DatasetError(
                f"{path}: holds an array {list(points.shape)}; "
                f"wanted {[landmarks.TEMPLATE_POINTS, 2]}",
                hint="the recipe needs the set's own templates",
            )
        shapes.append(torch.from_numpy((points + 0.5) * (FRAME / side) - 0.5).float())
    sexes = np.array([row["sex"] for row in rows])
    return People([row["person"] for row in rows], sexes, torch.stack(photos), torch.stack(shapes))


def kept_out(table: Path, split: str = "test", seed: int = 0) -> list[str]:
    """Name the people or speakers of a source's csv that `prepare` keeps out of training.

    Args:
        table: `people.csv` or `speakers.csv`.
        split: `test`, or `val`, of the speakers.
        seed: that `prepare` had.

    Raises:
        DatasetError: if the table cannot be read.
    """
    name = "person" if table.name == "people.csv" else "speaker"
    rows = read_table(table, (name, "sex"))
    sexes = np.array([row["sex"] for row in rows])
    train, kept = split_by_sex(sexes, TEST_SHARE, seed)
    if split == "val":
        kept = train[split_by_sex(sexes[train], VAL_SHARE, seed)[1]]
    return [rows[k][name] for k in kept]


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


def space_of(people: People) -> tuple[People, FaceSpace]:
    """Make the space of some people and their mirror images, and tell who they all are."""
    order = mirror_order(people.shapes.mean(0).numpy())
    everyone = join(people, people.mirrored(order))
    return everyone, FaceSpace(everyone, everyone.shapes.mean(0))


def training_space(faces: Path, seed: int = 0) -> FaceSpace:
    """Make the space of the people of a source whom `prepare` does not keep out of training.

    Raises:
        DatasetError: if the source lacks what is needed.
    """
    people = read_people(faces)
    return space_of(people.subset(split_by_sex(people.sexes, TEST_SHARE, seed)[0]))[1]
