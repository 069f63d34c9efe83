"""How good faces are: known answers, and brute force on small pictures."""

import dataclasses
import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_cases import N, drawn_face, given_away
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageFilter

from s2f import image_quality
from s2f.errors import UsageError
from s2f.evaluation_data import Case
from s2f.face_detection import FoundFace, load_detector
from s2f.image_quality import (
    all_points_inside,
    diversity,
    find_points,
    search_faces,
    sharpness,
    vgg_face_score,
)
from s2f.report import Picture, Table

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


@given(pictures, st.sampled_from([1, 50, 10_000]), st.sampled_from([0, image_quality.FEW]))
def test_diversity_is_the_mean_over_all_others_whatever_is_compared_at_once(
    values: np.ndarray, at_once: int, few: int
) -> None:
    flat = values.reshape(len(values), 36).astype(float)
    apart = np.abs(flat[:, None] - flat[None]).mean(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_quality, "AT_ONCE", at_once)
        patch.setattr(image_quality, "FEW", few)
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
        points = find_points([noise(0, (20, 10)).convert("L")] * 70, told(*faces))
        found = all_points_inside(points, (20, 10))
        assert found.tolist() == [place not in outside and k % 3 > 0 for k in range(70)]
    assert all_points_inside(find_points([], told())).tolist() == []


@pytest.mark.data
@pytest.mark.skipif(not FACES.is_dir(), reason="needs the real faces beside the repository")
@pytest.mark.skipif(not importlib.util.find_spec("dlib"), reason="needs the extra dlib")
def test_most_real_faces_are_faces_and_half_of_one_is_not() -> None:
    """Of 7; of all 168 photos, 17 have a chin that dlib places below the picture."""
    faces = [Image.open(path) for path in sorted(FACES.glob("*/neutral.jpg"))[::12]]
    detector = load_detector("dlib")
    assert all_points_inside(find_points(faces, detector), (256, 256)).mean() > 0.8
    halves = [face.crop((0, 0, 256, 130)) for face in faces]
    assert not all_points_inside(find_points(halves, detector), (256, 130)).any()


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


def geometry(case: Case, detector: Any = None) -> tuple[dict[str, Any], str]:
    """Rows of the table of measures by name, and its note."""
    searched = search_faces(case, [], detector)
    (table,) = image_quality.geometry_section(case, searched)[0].parts
    assert isinstance(table, Table)
    return {str(row[0]): row[1:] for row in table.rows}, table.note


def test_measures_of_faces_given_away_correlate_and_the_mean_is_of_the_twelve() -> None:
    rows, note = geometry(given_away())
    assert "that the decoder drew by" in note
    mean = rows.pop("mean of the twelve")
    chance = rows.pop("chance: mean |r| of the twelve, people shuffled")
    assert chance[0] == pytest.approx(0.128, abs=0.02)  # E|r| of 40 normal pairs: (2 / pi / 39)**.5
    for name, (r, p, shuffled, *_, n) in rows.items():
        assert r > 0.6 and p == 1 / 2000 and n == N, name
        # Of 40 pairs |r| is below 0.31 in 95 % (Student's t).
        assert shuffled == pytest.approx(0.31, abs=0.06)
    twelve = [row for name, row in rows.items() if name != "philtrum width"]
    assert len(twelve) == 12 and mean[0] == pytest.approx(np.mean([row[0] for row in twelve]))
    assert mean[2] < 0.2 and mean[1] == 1 / 2000


def test_measures_are_of_points_found_in_the_pictures_and_of_each_recording() -> None:
    """The decoder's points would say r = 1: the pictures are of others, but for 20's."""
    case = given_away()
    voices = [face for face in case.from_photos for _ in range(3)]
    speakers = np.arange(N).repeat(3)
    people = dataclasses.replace(case.people, speakers=speakers)
    case = dataclasses.replace(case, from_voices=voices, people=people)
    rng = np.random.default_rng(0)
    drawn = [drawn_face(1000 + k) for k in range(3 * N)]
    for k, face in enumerate(voices):
        case.from_voices[k] = dataclasses.replace(face, image=drawn[k].image)  # type: ignore[index]
    shown = {np.asarray(face.image).tobytes(): face.landmarks for face in case.from_photos}
    for k, face in enumerate(case.from_voices):
        who = k // 3 if k < 60 else int(rng.integers(N))
        shown[np.asarray(face.image).tobytes()] = drawn_face(who, 0.3).landmarks
    lost = {np.asarray(case.from_voices[k].image).tobytes() for k in (0, 1, 2, 7)}

    def detect(pictures: Sequence[np.ndarray], /) -> list[list[FoundFace]]:
        box = np.zeros(4, np.float32)
        seen = [picture.tobytes() for picture in pictures]
        return [[] if one in lost else [FoundFace(box, shown[one])] for one in seen]

    assert geometry(case)[0]["nose width"][0] == pytest.approx(1)
    rows, note = geometry(case, detect)
    assert "finds none in 4 of 120" in note
    r, p, shuffled, *_, n = rows["nose width"]
    assert n == 116 and 0.2 < r < 0.8 and p < 0.05
    assert shuffled > 0.2  # of 40 people, not of 116 pairs, which would say 0.18


def test_faces_given_away_are_measured_as_pictures_and_shown() -> None:
    case = given_away()
    photos = [face.image for face in case.from_photos]
    logits = np.eye(N, dtype=np.float32) * 50
    searched = search_faces(case, photos, None)
    (table,) = image_quality.quality_section(case, photos, searched, logits)[0].parts
    found = {row[0]: row[1:4] for row in table.rows}
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
