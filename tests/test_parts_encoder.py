"""The encoder of parts. Most are told where landmarks are, as a known answer."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PARTS, some_landmarks
from torch import nn
from torch.nn import functional

from s2f import face_decoder
from s2f.appearance_model import (
    CONFIGS,
    LandmarkFinder,
    PartsCode,
    PartsEncoder,
    PartsEncoderConfig,
    Windows,
    in_frame,
)
from s2f.face_encoder import batch_embedder
from s2f.images import PREPROCESSING
from s2f.warp import warp

FACES = Path(__file__).parents[2] / "shared/data/faces"
# four windows of three values, and four of the shape
CONFIG = dataclasses.replace(PARTS, embedding=16, axes=3)
N = 12  # faces that a code is found from
MEAN = torch.from_numpy(some_landmarks())
# Points of an eye, of which the pupil is the middle: the template begins with the pupils.
EYES = {68: (slice(36, 42), slice(42, 48)), 189: (slice(0, 1), slice(1, 2))}
PUPILS = torch.stack([MEAN[eye].mean(0) for eye in EYES[68]])
MEANS = {68: MEAN, 189: torch.cat([PUPILS, MEAN, MEAN + 3, MEAN[:51] - 3])}


class Told(nn.Module):
    """In the place of a finder: it tells landmarks of the 224 frame that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.points = MEAN[None]

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        assert faces.shape[-1] == 112
        return ((self.points + 0.5) / 2 - 0.5).expand(len(faces), -1, -1)


def some_textures(n: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures [n 3 224 224] that vary in three ways in the middle of plain grey."""
    generator = torch.Generator().manual_seed(0)
    ways = torch.randn(4, 3, 5, 5, generator=generator)
    x = torch.linspace(-1, 1, 224)
    hill = (1 - x**2 - x[:, None] ** 2).clamp_min(0) ** 2
    ways = functional.interpolate(ways, size=224, mode="bicubic", align_corners=True) * hill
    weights = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return 0.5 + 0.3 * ways[3] + 0.1 * torch.einsum("nk,k...->n...", weights, ways[:3])


def some_shapes(n: int, seed: int = 0, k: int = 68) -> torch.Tensor:
    """Landmarks [n k 2] that vary in three ways, and never in where the pupils are."""
    generator = torch.Generator().manual_seed(0)
    ways = torch.randn(3, k, 2, generator=generator)
    for eye in EYES[k]:
        ways[:, eye] -= ways[:, eye].mean(1, keepdim=True)
    weights = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return MEANS[k] + torch.einsum("nk,k...->n...", weights, ways)


def fitted(k: int = 68) -> tuple[PartsEncoder, PartsCode]:
    """An encoder that has learned to read the code of some faces, and is told landmarks."""
    torch.manual_seed(0)
    textures, shapes = some_textures(N), some_shapes(N, k=k)
    code = PartsCode.fit(textures, shapes, Windows(224, 2), CONFIG.axes, CONFIG.shape_axes)
    encoder = PartsEncoder(dataclasses.replace(CONFIG, landmarks=k), PREPROCESSING["compact"])
    encoder.fit(code, textures)
    encoder.finder = Told()
    return encoder.eval(), code


def tell(encoder: PartsEncoder, points: torch.Tensor) -> None:
    assert isinstance(encoder.finder, Told)
    encoder.finder.points = points


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far embeddings are off, in units of how far they vary."""
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def turned(
    picture: torch.Tensor, points: torch.Tensor, degrees: float, scale: float, move: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a picture around its middle, enlarge and move it, and points with it."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    matrix = torch.tensor([[c, -s], [s, c]])
    shift = torch.tensor(move)
    x = torch.arange(224.0) - 111.5
    places = torch.stack(torch.meshgrid(x, x, indexing="xy"), -1)
    grid = (places - shift) @ torch.linalg.inv(matrix).T / 111.5
    there = functional.grid_sample(
        picture, grid[None], mode="bicubic", padding_mode="border", align_corners=True
    )
    return there, (points - 111.5) @ matrix.T + 111.5 + shift


def test_an_embedding_without_room_for_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="of 980 has no room for 7² windows of 20 values and a"):
        PartsEncoderConfig(embedding=980)
    assert PartsEncoderConfig(embedding=981).shape_axes == 1


def test_the_bundled_encoder_gives_as_many_values_as_its_config_says() -> None:
    config = CONFIGS["compact"]
    assert (config.embedding, config.shape_axes) == (1024, 44)
    encoder = PartsEncoder(config, PREPROCESSING["compact"]).eval()
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 224, 224)).shape == (1, 1024)


def test_the_bundled_decoder_draws_what_the_bundled_encoder_reads() -> None:
    encoder, decoder = CONFIGS["compact"], face_decoder.CONFIGS["compact"]
    for field in ("embedding", "landmarks", "windows", "axes", "image_size"):
        assert getattr(encoder, field) == getattr(decoder, field), field


def test_the_middle_of_four_pixels_is_that_of_one_that_is_twice_as_wide() -> None:
    points = torch.tensor([[[0.0, 0.0], [111.0, 3.0]]])
    torch.testing.assert_close(in_frame(points), torch.tensor([[[0.5, 0.5], [222.5, 6.5]]]))


def test_landmarks_are_found_in_the_frame_whatever_the_photos_size() -> None:
    encoder, _ = fitted()
    for size in (224, 448):
        found = encoder.find(torch.rand(1, 3, size, size))
        torch.testing.assert_close(found, MEAN[None], atol=1e-4, rtol=0)


def test_the_code_of_textures_is_read_at_half_their_size() -> None:
    encoder, code = fitted()
    textures = some_textures(N)
    expected = code(textures, MEAN.expand(N, -1, -1))[:, :12]
    tell(encoder, code.mean_landmarks[None])
    with torch.no_grad():
        found = encoder.read(textures)
    assert far(found[:, :12], expected) < 0.02
    torch.testing.assert_close(found[:, 12:], torch.zeros(N, 4), atol=1e-3, rtol=0)


def test_people_whom_the_code_was_not_found_from_are_read_too() -> None:
    encoder, code = fitted()
    textures = some_textures(5, seed=1)
    tell(encoder, code.mean_landmarks[None])
    with torch.no_grad():
        found = encoder.read(textures)
    assert far(found[:, :12], code(textures, MEAN.expand(5, -1, -1))[:, :12]) < 0.05


def test_the_embedding_of_a_photo_is_the_code_of_its_texture_and_shape() -> None:
    encoder, code = fitted()
    textures, shapes = some_textures(3, seed=1), some_shapes(3, seed=2)
    photos = warp(textures, code.mean_landmarks[None], shapes)
    expected = code(textures, shapes)
    tell(encoder, shapes)
    with torch.no_grad():
        found = encoder(photos)
    assert far(found[:, 12:], expected[:, 12:]) < 1e-3
    assert far(found[:, :12], expected[:, :12]) < 0.1
    assert far(expected[:1], expected[1:2]) > 0.5  # of two people


@pytest.mark.parametrize("landmarks", [68, 189])
@pytest.mark.parametrize(
    ("degrees", "scale", "move"),
    [
        (10.0, 1.0, [0.0, 0.0]),
        (0.0, 0.9, [0.0, 0.0]),
        (0.0, 1.0, [9.0, -7.0]),
        (-8.0, 1.05, [4.0, 6.0]),
    ],
    ids=["turned", "smaller", "moved", "all of it"],
)
def test_a_photo_that_is_turned_scaled_or_moved_has_the_same_embedding(
    landmarks: int, degrees: float, scale: float, move: list[float]
) -> None:
    encoder, code = fitted(landmarks)
    texture, points = some_textures(1, seed=1), some_shapes(1, seed=2, k=landmarks)
    photo = warp(texture, code.mean_landmarks[None], points)
    tell(encoder, points)
    with torch.no_grad():
        expected = encoder(photo)
        moved, there = turned(photo, points, degrees, scale, move)
        tell(encoder, there)
        found = encoder(moved)
        tell(encoder, points)
        unseen = encoder(moved)
    assert far(found[:, 12:], expected[:, 12:]) < 1e-3
    assert far(found, expected) < 0.1
    assert far(unseen, expected) > 2 * far(found, expected)


@pytest.mark.data
@pytest.mark.skipif(not FACES.is_dir(), reason="needs the real faces beside the repository")
def test_the_template_begins_with_the_pupils() -> None:
    names = sorted(FACES.glob("*/neutral_template.npy"))
    dense = np.stack([np.load(name) for name in names])
    points = np.stack([np.load(name.with_name("neutral_landmarks.npy")) for name in names])
    for k, eye in enumerate(EYES[68]):
        apart = np.linalg.norm(dense[:, k] - points[:, eye].mean(1), axis=1)
        assert apart.max() < 0.15 * np.linalg.norm(dense[:, 0] - dense[:, 1], axis=1).min()


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_landmarks_that_fall_together_give_finite_values(spread: float) -> None:
    encoder, _ = fitted()
    tell(encoder, 111.5 + spread * torch.randn(2, 68, 2))
    with torch.no_grad():
        assert encoder(some_textures(2)).isfinite().all()


def test_a_finder_that_has_learned_nothing_gives_finite_values() -> None:
    encoder, _ = fitted()
    encoder.finder = LandmarkFinder(68, CONFIG.finder)
    faces = some_textures(2)
    with torch.no_grad():
        for network in (encoder.train(), encoder.eval()):
            assert network(faces).isfinite().all()


def test_what_is_added_is_linear_in_what_was_read_and_nothing_at_first() -> None:
    encoder, _ = fitted()
    faces = some_textures(2)
    with torch.no_grad():
        read = encoder.read(faces)
        assert torch.equal(encoder(faces), read)
        encoder.neutral.weight.normal_()
        encoder.neutral.bias.normal_()
        expected = read @ (torch.eye(16) + encoder.neutral.weight.T) + encoder.neutral.bias
        torch.testing.assert_close(encoder(faces), expected)


def test_half_precision_around_it_changes_no_place() -> None:
    encoder, _ = fitted()
    faces = some_textures(2)
    tell(encoder, some_shapes(2))
    with torch.no_grad():
        expected = encoder(faces)
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder(faces)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_face_has_the_same_bits_in_any_company() -> None:
    torch.manual_seed(0)
    encoder, _ = fitted()
    encoder.finder = LandmarkFinder(68, CONFIG.finder).eval()
    faces = some_textures(3)
    alone = encoder.embed_each(faces[:1])
    assert alone.any() and torch.equal(encoder.embed_each(faces)[:1], alone)
    assert torch.equal(encoder.embed_each(faces.flip(0))[2:], alone)


def test_very_many_photos_are_embedded_as_one_is() -> None:
    encoder, _ = fitted()
    encoder.finder = LandmarkFinder(68, CONFIG.finder)
    faces = some_textures(3)
    embed = batch_embedder(encoder.train(), device=torch.device("cpu"), batch_size=4)
    found = embed(faces)
    assert not encoder.training and not found.requires_grad
    assert torch.equal(found, encoder.embed_each(faces))
    with torch.no_grad():
        torch.testing.assert_close(encoder(faces), found, atol=1e-3, rtol=1e-3)


def test_gradients_reach_the_picture_through_its_registration() -> None:
    encoder, _ = fitted()
    encoder.finder = LandmarkFinder(68, CONFIG.finder).eval()
    faces = some_textures(2).requires_grad_()
    encoder(faces).square().sum().backward()
    assert faces.grad is not None and faces.grad.isfinite().all()
    assert (faces.grad.abs().sum((1, 2, 3)) > 0).all()


def test_larger_photos_are_averaged() -> None:
    encoder, _ = fitted()
    faces = some_textures(1)
    large = functional.interpolate(faces, scale_factor=2, mode="nearest")
    with torch.no_grad():
        torch.testing.assert_close(encoder(large), encoder(faces), atol=1e-4, rtol=1e-4)


def test_a_size_that_is_no_multiple_is_refused() -> None:
    encoder = PartsEncoder(PARTS, PREPROCESSING["compact"])
    with pytest.raises(ValueError, match="300 pixels are no multiple of 224"):
        encoder(torch.rand(1, 3, 300, 300))


def test_a_plain_background_is_read_as_nothing() -> None:
    textures, shapes = some_textures(N), some_shapes(N)
    textures[:, :, :112] = 0.5
    code = PartsCode.fit(textures, shapes, Windows(224, 4), 1, 1)
    config = dataclasses.replace(PARTS, embedding=17, windows=4)
    encoder = PartsEncoder(config, PREPROCESSING["compact"])
    encoder.fit(code, textures)
    assert encoder.reading.isfinite().all()
    assert not encoder.reading[:4].any() and encoder.reading[8:].any()
