"""How good faces are: known answers, and brute force on small pictures."""

import dataclasses
import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_cases import D, N, case_of, drawn_face
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageFilter

from s2f import image_quality
from s2f.errors import UsageError
from s2f.evaluation_data import Case
from s2f.face_detection import FoundFace, load_detector
from s2f.image_quality import all_points_found, diversity, sharpness, vgg_face_score
from s2f.report import Picture, Table

FACES = Path(__file__).parents[2] / "shared/data/faces"


def noise(seed: int, size: tuple[int, int] = (224, 224)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def test_sharpness_of_stripes_is_what_the_laplacian_says() -> None:
    """Stripes 20 apart: +-40 inside, +-20 in the 2 of 100 columns that have one neighbour."""
    stripes = np.tile(np.array([100, 120], np.uint8), (224, 112))
    expected = 20 * np.sqrt((98 * 4 + 2 * 1) / 100)
    assert sharpness(Image.fromarray(stripes)) == pytest.approx(expected)


def test_a_blurred_face_is_less_sharp_and_what_lies_around_it_does_not_count() -> None:
    face = noise(0)
    values = [sharpness(face.filter(ImageFilter.GaussianBlur(r))) for r in (0, 0.5, 1, 2)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.2 * values[0]
    assert sharpness(Image.new("RGB", (224, 224), (90, 120, 40))) == 0
    alone = Image.new("RGB", (224, 224))
    alone.paste(face.crop(image_quality.INNER), image_quality.INNER[:2])
    assert sharpness(alone) == sharpness(face)


pictures = arrays.arrays(np.uint8, st.tuples(st.integers(2, 6), st.just(3), st.just(4), st.just(3)))


@given(pictures, st.sampled_from([1, 50, 10_000]))
def test_diversity_is_the_mean_over_all_others_whatever_is_compared_at_once(
    values: np.ndarray, at_once: int
) -> None:
    flat = values.reshape(len(values), -1).astype(float)
    apart = np.abs(flat[:, None] - flat[None]).mean(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_quality, "AT_ONCE", at_once)
        found = diversity([Image.fromarray(picture) for picture in values])
    np.testing.assert_allclose(found, apart.sum(1) / (len(values) - 1), rtol=1e-12, atol=1e-12)


def test_one_picture_has_no_diversity_and_different_sizes_are_refused() -> None:
    assert diversity([noise(0)]).tolist() == [0] and diversity([]).tolist() == []
    with pytest.raises(UsageError, match=r"\(4, 4\), \(4, 5\)"):
        diversity([noise(0, (4, 5)), noise(0, (4, 4))])


def told(*faces: list[tuple[float, float]]) -> Callable[[Sequence[np.ndarray]], Any]:
    """A detector of faces whose 68 points lie at (5, 5) but for one; it takes a few pictures."""
    left = list(faces)

    def detect(pictures: Sequence[np.ndarray], /) -> list[list[FoundFace]]:
        assert len(pictures) <= 32
        points = [[np.float32([*[(5, 5)] * 67, place]) for place in left.pop(0)] for _ in pictures]
        return [[FoundFace(np.zeros(4, np.float32), p) for p in mine] for mine in points]

    return detect


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        *(((-0.5, -0.5), True), ((-0.6, 5), False), ((5, -0.6), False)),
        *(((19.5, 9.5), True), ((19.6, 5), False), ((5, 9.6), False), ((np.nan, 5), False)),
    ],
)
def test_a_picture_reaches_half_a_pixel_beyond_the_centres(
    place: tuple[float, float], inside: bool
) -> None:
    assert all_points_found([noise(0, (20, 10))], told([place])).tolist() == [inside]
    faces = [[place] if k % 3 else [] for k in range(70)]
    found = all_points_found([noise(0, (20, 10)).convert("L")] * 70, told(*faces))
    assert found.tolist() == [inside and k % 3 > 0 for k in range(70)]
    assert all_points_found([], told()).tolist() == []


@pytest.mark.data
@pytest.mark.skipif(not FACES.is_dir(), reason="needs the real faces beside the repository")
@pytest.mark.skipif(not importlib.util.find_spec("dlib"), reason="needs the extra dlib")
def test_most_real_faces_are_faces_and_half_of_one_is_not() -> None:
    """Of 7; of all 168 photos, 17 have a chin that dlib places below the picture."""
    faces = [Image.open(path) for path in sorted(FACES.glob("*/neutral.jpg"))[::12]]
    detector = load_detector("dlib")
    assert all_points_found(faces, detector).mean() > 0.8
    cut = [face.crop((0, 0, 256, 130)) for face in faces]
    assert not all_points_found(cut, detector).any()


@pytest.mark.parametrize("identities", [1, 2, 10])
def test_faces_certain_and_even_over_some_identities_score_their_number(identities: int) -> None:
    logits = 1000 * np.eye(30)[np.arange(40 * identities) % identities]
    assert vgg_face_score(logits, splits=1) == pytest.approx((identities, 0))
    mean, deviation = vgg_face_score(logits)
    assert 0.9 * identities < mean <= identities and deviation < 0.1 * identities


def test_the_score_is_the_divergence_by_its_definition_whatever_the_order() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 6)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert vgg_face_score(logits + 500, splits=1)[0] == pytest.approx(expected, rel=1e-5)
    order = np.random.default_rng(1).permutation(50)
    assert vgg_face_score(logits[order]) == pytest.approx(vgg_face_score(logits))
    assert vgg_face_score(np.eye(3), splits=10) == pytest.approx((1, 0))  # a split each
    with pytest.raises(UsageError, match="no faces"):
        vgg_face_score(np.empty((0, 5)))


@pytest.fixture(scope="module")
def case() -> Case:
    """Voices that give away all but a little of the face."""
    rows = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    faces, again = [drawn_face(k) for k in range(N)], [drawn_face(k, 0.5) for k in range(N)]
    return dataclasses.replace(case_of(rows, rows), from_voices=again, from_photos=faces)


def test_proportions_that_voices_give_away_correlate(case: Case) -> None:
    (table,) = image_quality.geometry_section(case)[0].parts
    assert isinstance(table, Table)
    for name, r, p, shuffled, n in table.rows[:-1]:
        assert r > 0.6 and p < 1e-3 and abs(shuffled) < 0.1 and n == N, name


def test_faces_are_measured_as_pictures(case: Case) -> None:
    photos = [face.image for face in case.from_photos]
    logits = np.eye(N, dtype=np.float32) * 50
    (table,) = image_quality.quality_section(case, photos, None, logits)[0].parts
    assert isinstance(table, Table)
    found = {row[0]: row[1:] for row in table.rows}
    assert found["sharpness, that of real photos being 1"] == pytest.approx((1, 1, 1))
    assert found["VGGFace score"][2] > 7  # of 8 in each of five parts
    assert found["faces"] == (N, N, N)
    assert not any("68 points" in name for name in found)


def test_pictures_show_the_best_and_the_worst(case: Case) -> None:
    pictures = image_quality.faces_section(case)[0].parts
    assert [part.title for part in pictures] == ["The best 8", "The middle 8", "The worst 8"]
    for part in pictures:
        assert isinstance(part, Picture)
        with Image.open(io.BytesIO(part.png)) as image:
            assert image.size == (8 * 112, 3 * 112)
