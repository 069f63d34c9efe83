"""How good faces are: known answers, and brute force on small pictures."""

import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_cases import N, given_away
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageFilter

from s2f import image_quality
from s2f.errors import UsageError
from s2f.face_detection import FoundFace, load_detector
from s2f.image_quality import all_points_found, diversity, sharpness, vgg_face_score
from s2f.report import Picture

FACES = Path(__file__).parents[2] / "shared/data/faces"


def noise(seed: int, size: tuple[int, int] = (224, 224)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def test_sharpness_is_what_the_laplacian_says_of_the_face_and_not_of_what_lies_around() -> None:
    """Stripes 20 apart: +-40 inside, +-20 in the 2 of 100 columns that have one neighbour."""
    stripes = np.tile(np.array([100, 120], np.uint8), (224, 112))
    expected = 20 * np.sqrt((98 * 4 + 2 * 1) / 100)
    assert sharpness(Image.fromarray(stripes)) == pytest.approx(expected)
    face = noise(0)
    values = [sharpness(face.filter(ImageFilter.GaussianBlur(r))) for r in (0, 0.5, 1, 2)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.2 * values[0]
    assert sharpness(Image.new("RGB", (224, 224), (90, 120, 40))) == 0
    alone = Image.new("RGB", (224, 224))
    alone.paste(face.crop(image_quality.INNER), image_quality.INNER[:2])
    assert sharpness(alone) == sharpness(face)


pictures = st.integers(0, 6).flatmap(lambda n: arrays.arrays(np.uint8, (n, 3, 4, 3)))


@given(pictures, st.sampled_from([1, 50, 10_000]))
def test_diversity_is_the_mean_over_all_others_whatever_is_compared_at_once(
    values: np.ndarray, at_once: int
) -> None:
    flat = values.reshape(len(values), 36).astype(float)
    apart = np.abs(flat[:, None] - flat[None]).mean(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_quality, "AT_ONCE", at_once)
        found = diversity([Image.fromarray(picture) for picture in values])
    wanted = apart.sum(1) / max(len(values) - 1, 1)  # one picture has none
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
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


def test_a_picture_reaches_half_a_pixel_beyond_the_centres() -> None:
    outside = ((-0.6, 5.0), (5.0, -0.6), (19.6, 5.0), (5.0, 9.6), (np.nan, 5.0))
    for place in ((-0.5, -0.5), (19.5, 9.5), *outside):
        faces = [[place] if k % 3 else [] for k in range(70)]
        found = all_points_found([noise(0, (20, 10)).convert("L")] * 70, told(*faces))
        assert found.tolist() == [place not in outside and k % 3 > 0 for k in range(70)]
    assert all_points_found([], told()).tolist() == []


@pytest.mark.data
@pytest.mark.skipif(not FACES.is_dir(), reason="needs the real faces beside the repository")
@pytest.mark.skipif(not importlib.util.find_spec("dlib"), reason="needs the extra dlib")
def test_most_real_faces_are_faces_and_half_of_one_is_not() -> None:
    """Of 7; of all 168 photos, 17 have a chin that dlib places below the picture."""
    faces = [Image.open(path) for path in sorted(FACES.glob("*/neutral.jpg"))[::12]]
    detector = load_detector("dlib")
    assert all_points_found(faces, detector).mean() > 0.8
    assert not all_points_found([f.crop((0, 0, 256, 130)) for f in faces], detector).any()


def test_the_score_is_the_divergence_and_of_faces_even_over_identities_their_number() -> None:
    for identities in (1, 2, 10):
        logits = 1000 * np.eye(30)[np.arange(40 * identities) % identities]
        assert vgg_face_score(logits, splits=1) == pytest.approx((identities, 0))
        mean, deviation = vgg_face_score(logits)
        assert 0.9 * identities < mean <= identities and deviation < 0.1 * identities
    logits = np.random.default_rng(0).normal(0, 3, (50, 6)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert vgg_face_score(logits + 500, splits=1)[0] == pytest.approx(expected, rel=1e-5)
    order = np.random.default_rng(1).permutation(50)
    assert vgg_face_score(logits[order]) == pytest.approx(vgg_face_score(logits))
    assert vgg_face_score(np.eye(3), splits=10) == pytest.approx((1, 0))  # a split each
    with pytest.raises(UsageError, match="no faces"):
        vgg_face_score(np.empty((0, 5)))


def test_faces_given_away_correlate_are_measured_as_pictures_and_shown() -> None:
    case = given_away()
    (table,) = image_quality.geometry_section(case)[0].parts
    for name, r, p, shuffled, n in table.rows[:-1]:
        assert r > 0.6 and p < 1e-3 and abs(shuffled) < 0.1 and n == N, name

    photos = [face.image for face in case.from_photos]
    logits = np.eye(N, dtype=np.float32) * 50
    (table,) = image_quality.quality_section(case, photos, None, logits)[0].parts
    found = {row[0]: row[1:] for row in table.rows}
    assert found["sharpness, that of real photos being 1"] == pytest.approx((1, 1, 1))
    assert found["VGGFace score"][2] > 7  # of 8 in each of five parts
    assert found["faces"] == (N, N, N)
    assert not any("68 points" in name for name in found)

    pictures = image_quality.faces_section(case)[0].parts
    assert [part.title for part in pictures] == ["The best 8", "The middle 8", "The worst 8"]
    for part in pictures:
        assert isinstance(part, Picture)
        with Image.open(io.BytesIO(part.png)) as image:
            assert image.size == (8 * 112, 3 * 112)
