"""The linear space of faces, on made people whose properties are known."""

import numpy as np
import pytest
import torch

from s2f.demo import (
    MASCULINITY_SPREAD,
    SEX_MARGIN,
    FaceSpace,
    PhotographedPeople,
    join_people,
    mirror_order,
    on_background,
)
from s2f.errors import DatasetError

RNG = np.random.default_rng(0)
# Symmetric about x = 111.5: 94 pairs of points and one in the middle.
RIGHT = RNG.uniform((115, 20), (200, 200), (94, 2))
MEAN = np.concatenate([RIGHT, [[111.5, 100]], [223, 0] + RIGHT * [-1, 1]]).astype(np.float32)


def people(n: int = 80) -> PhotographedPeople:
    """People of two sexes: men have wider faces and darker photos."""
    sexes = np.array(["F", "M"] * (n // 2))
    width = np.where(sexes == "M", 1.05, 0.95) + RNG.normal(0, 0.01, n)
    shapes = np.repeat(MEAN[None], n, axis=0) + RNG.normal(0, 0.5, (n, 189, 2))
    shapes[..., 0] = (shapes[..., 0] - 111.5) * width[:, None] + 111.5
    photos = RNG.integers(0, 40, (n, 2, 3, 224, 224))
    photos += np.where(sexes == "M", 60, 160)[:, None, None, None, None]
    return PhotographedPeople(
        [str(k) for k in range(n)],
        sexes,
        torch.from_numpy(photos.astype(np.uint8)),
        torch.from_numpy(shapes.astype(np.float32)),
    )


@pytest.fixture(scope="module")
def space() -> FaceSpace:
    folk = people()
    return FaceSpace(folk, folk.shapes.mean(0))


def test_partners_in_the_mirror_are_found() -> None:
    order = mirror_order(MEAN)
    np.testing.assert_array_equal(order, [*range(95, 189), 94, *range(94)])


def test_templates_that_are_not_symmetric_are_refused() -> None:
    lopsided = MEAN.copy()
    lopsided[:95, 1] += RNG.normal(0, 60, 95)
    with pytest.raises(DatasetError, match="not symmetric"):
        mirror_order(lopsided)


def test_a_mirror_twice_is_no_mirror() -> None:
    folk, order = people(), mirror_order(MEAN)
    twice = folk.mirrored(order).mirrored(order)
    assert torch.equal(twice.photos, folk.photos)
    torch.testing.assert_close(twice.shapes, folk.shapes)
    assert len(join_people(folk, twice).names) == 160


@pytest.mark.parametrize("sex", ["F", "M"])
def test_weights_of_mixes_and_draws_sum_to_one_within_the_sex(space: FaceSpace, sex: str) -> None:
    other = space.of_sex("F" if sex == "M" else "M")
    for weights in (space.mix(sex, RNG), space.draw(sex, RNG, 0.8)):
        np.testing.assert_allclose(weights.sum(1), 1)
        assert (weights[:, other] == 0).all()
    assert (space.mix(sex, RNG) >= 0).all()


def test_men_are_more_masculine_than_women(space: FaceSpace) -> None:
    women, men = (space.masculinity[space.of_sex(sex)] for sex in "FM")
    assert women.max() < men.min()


@pytest.mark.parametrize("sex", ["F", "M"])
def test_the_higher_the_voice_the_less_masculine_its_face(space: FaceSpace, sex: str) -> None:
    timbre = np.zeros(4)
    scores = [
        float(space.masculinity @ space.voiced(sex, rank, timbre, RNG)[0])
        for rank in (0.0, 0.3, 0.7, 1.0)
    ]
    real = space.masculinity[space.of_sex(sex)]
    expected = np.quantile(real, [1.0, 0.7, 0.3, 0.0]) - np.median(real)
    found = np.array(scores) - np.median(real)
    assert found[0] > found[1] > found[2] > found[3]
    # And all by as much further from the other sex.
    women, men = (space.masculinity[space.of_sex(each)].mean() for each in "FM")
    margin = SEX_MARGIN * (men - women) * (1 if sex == "M" else -1)
    np.testing.assert_allclose(found, MASCULINITY_SPREAD * expected + margin, rtol=1e-6)


def test_different_timbres_get_different_faces_of_the_same_masculinity(space: FaceSpace) -> None:
    a, b = (space.voiced("F", 0.5, RNG.standard_normal(4), RNG) for _ in range(2))
    assert np.abs(a - b).max() > 0.01
    np.testing.assert_allclose(space.masculinity @ a[0], space.masculinity @ b[0], rtol=1e-6)


def test_a_person_alone_is_drawn_as_the_person(space: FaceSpace) -> None:
    weights = np.zeros((2, 80))
    weights[:, 3] = 1
    texture, shape, photo = space.render(weights)
    torch.testing.assert_close(texture, space.textures[3])
    torch.testing.assert_close(shape, space.shapes[3])
    assert photo.shape == (3, 224, 224)


def test_what_is_outside_the_outline_becomes_the_plain_background() -> None:
    textures = on_background(torch.zeros(1, 3, 224, 224), torch.from_numpy(MEAN))
    np.testing.assert_allclose(textures[0, :, 0, 0], (0.845, 0.858, 0.855), rtol=1e-4)
