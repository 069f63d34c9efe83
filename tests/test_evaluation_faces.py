"""Geometry, quality and pictures of faces whose figures are known."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import some_landmarks
from PIL import Image

from s2f.evaluation_data import WHOLE, Case, People
from s2f.image_quality import geometry, quality, sheets
from s2f.pipeline import Face
from s2f.report import Picture, Table

N, D = 40, 8
RNG = np.random.default_rng(0)
SEXES = {f"{k:02}": "FM"[k % 2] for k in range(N)}


def drawn(k: int, noise: float = 0.0) -> Face:
    """The face of a person: landmarks and pixels of their own; men are dark below, women above."""
    own = np.random.default_rng(k)
    points = some_landmarks(k) + RNG.normal(0, noise, (68, 2)).astype(np.float32)
    pixels = own.integers(90, 160, (28, 28, 3)).astype(np.uint8)
    half = slice(14, None) if k % 2 else slice(None, 14)
    pixels[half] //= 3
    image = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
    return Face(image, points, np.zeros(D, np.float32), "speech", 1, "planted")


@pytest.fixture(scope="module")
def case() -> Case:
    """Voices that give away all but a little of the face."""
    embeddings = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    embeddings[:, 0] = [5 if k % 2 else -5 for k in range(N)]
    everyone = np.arange(N)
    people = People(
        tuple(SEXES),
        tuple(Path(f"{k}.npy") for k in everyone),
        everyone,
        (None,) * N,
        embeddings,
        everyone,
        (),
    )
    faces, again = [drawn(k) for k in everyone], [drawn(k, 0.5) for k in everyone]
    return Case(people, {"sex": SEXES}, {WHOLE: embeddings}, again, faces, embeddings, embeddings)


def test_proportions_that_voices_give_away_correlate(case: Case) -> None:
    (table,) = geometry(case)[0].parts
    assert isinstance(table, Table)
    for name, r, p, shuffled, n in table.rows[:-1]:
        assert r > 0.6 and p < 1e-3 and abs(shuffled) < 0.1 and n == N, name


def test_faces_are_measured_as_pictures(case: Case) -> None:
    photos = [face.image for face in case.from_photos]
    (table,) = quality(case, photos, None, np.eye(N, dtype=np.float32) * 50)[0].parts
    assert isinstance(table, Table)
    found = {row[0]: row[1:] for row in table.rows}
    assert found["sharpness, that of real photos being 1"] == pytest.approx((1, 1, 1))
    assert found["VGGFace score"][2] > 7  # of 8 in each of five parts
    assert found["faces"] == (N, N, N)
    assert not any("68 points" in name for name in found)


def test_pictures_show_the_best_and_the_worst(case: Case) -> None:
    pictures = sheets(case).parts
    assert [part.title for part in pictures] == ["The best 8", "The middle 8", "The worst 8"]
    for part in pictures:
        assert isinstance(part, Picture)
        with Image.open(io.BytesIO(part.png)) as image:
            assert image.size == (8 * 112, 3 * 112)
