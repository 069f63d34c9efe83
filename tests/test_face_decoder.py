"""The face decoder. Sizes from Cole et al. 2017 and, for `seed`, from its published layers."""

import dataclasses

import numpy as np
import pytest
import torch

from s2f.face_decoder import CONFIGS, FaceDecoder, FaceDecoderConfig

TINY = dataclasses.replace(
    CONFIGS["compact"],
    embedding=6,
    trunk=(8,),
    landmarks=5,
    landmark_hidden=(8,),
    seed_size=2,
    seed_channels=4,
    rank=3,
)
LINEAR = dataclasses.replace(TINY, trunk=(12,), landmark_hidden=(), seed_size=3, seed_channels=192)


@pytest.mark.parametrize("preset", CONFIGS)
def test_every_preset_draws_224_pixels(preset: str) -> None:
    config = CONFIGS[preset]
    with torch.device("meta"):
        landmarks, texture = FaceDecoder(config).eval()(torch.empty(2, config.embedding))
    assert landmarks.shape == (2, config.landmarks, 2)
    assert texture.shape == (2, 3, 224, 224)


def test_the_papers_maps_double_from_14_to_224() -> None:
    with torch.device("meta"):
        decoder = FaceDecoder(CONFIGS["paper"])
        x = torch.empty(1, 256, 14, 14)
        shapes = []
        for stage in decoder.stages:
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(128, 28, 28), (64, 56, 56), (32, 112, 112), (32, 224, 224), (3, 224, 224)]


def test_the_papers_first_layer_is_1000_wide() -> None:
    with torch.device("meta"):
        first = FaceDecoder(CONFIGS["paper"]).first_layers(torch.empty(2, 4096))
    assert first.shape == (2, 1000)


def test_the_seeds_decoder_has_as_many_parameters_as_its_published_layers() -> None:
    # Counted from the layer table of the seed's repository, BatchNorm's scale and shift included.
    def linear(a: int, b: int) -> int:
        return a * b + b

    trunk = linear(4096, 3072) + 2 * 3072 + linear(3072, 2048) + 2 * 2048
    heads = linear(2048, 1024) + linear(1024, 512) + linear(512, 256) + 2 * (1024 + 512 + 256)
    heads += linear(256, 144) + linear(2048, 256 * 14 * 14)
    convs = [(256, 128, 5), (128, 64, 5), (64, 32, 5), (32, 32, 5), (32, 3, 1)]
    texture = sum(a * b * k * k + b for a, b, k in convs)
    with torch.device("meta"):
        decoder = FaceDecoder(CONFIGS["seed"])
    assert sum(p.numel() for p in decoder.parameters()) == trunk + heads + texture


def test_a_fresh_decoder_draws_near_its_mean() -> None:
    decoder = FaceDecoder(TINY).eval()
    decoder.mean_landmarks.fill_(7.0)
    landmarks, texture = decoder(torch.zeros(1, 6))
    assert (landmarks - 7).abs().max() < 1
    assert (texture - decoder.mean_texture).abs().max() < 1


def test_sigmoid_textures_stay_within_0_and_1() -> None:
    config = dataclasses.replace(TINY, output="sigmoid", seed_relu=True)
    texture = FaceDecoder(config)(torch.randn(3, 6) * 100)[1]
    assert 0 <= texture.min() and texture.max() <= 1


def test_the_68_points_are_mixed_from_the_predicted_ones() -> None:
    config = dataclasses.replace(TINY, landmarks_68=((0, 1, 0.25), (4, 4, 0.0)))
    points = torch.arange(10.0).view(1, 5, 2)
    mixed = FaceDecoder(config).landmarks_68(points)
    np.testing.assert_allclose(mixed[0].numpy(), [[0.5, 1.5], [8.0, 9.0]])


def test_a_decoder_of_68_points_gives_them_as_they_are() -> None:
    points = torch.rand(1, 68, 2)
    config = dataclasses.replace(TINY, landmarks=68)
    assert FaceDecoder(config).landmarks_68(points) is points


def test_a_last_stage_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(ValueError, match="the last stage gives 4 channels"):
        FaceDecoderConfig(stages=((4, 5, 2),))


def some_faces(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Textures [n 3 24 24] and landmarks [n 5 2] that vary in three ways each."""
    generator = torch.Generator().manual_seed(0)

    def mixes(*shape: int) -> torch.Tensor:
        ways = torch.randn(3, *shape, generator=generator)
        return torch.einsum("nk,k...->n...", torch.randn(n, 3, generator=generator), ways)

    return 0.5 + 0.1 * mixes(3, 24, 24), 100 + 5 * mixes(5, 2)


def test_a_linear_start_draws_the_faces_that_it_was_fitted_to() -> None:
    textures, landmarks = some_faces(20)
    decoder = FaceDecoder(LINEAR)
    code = decoder.start_linear(textures, landmarks)
    with torch.no_grad():
        drawn_landmarks, drawn = decoder(code(textures, landmarks))
    torch.testing.assert_close(drawn, textures, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn_landmarks, landmarks, atol=1e-3, rtol=0)


def test_a_linear_start_does_best_what_few_patterns_can_show() -> None:
    textures, landmarks = some_faces(20)
    errors = []
    for channels in (10, 40, 192):
        decoder = FaceDecoder(dataclasses.replace(LINEAR, seed_channels=channels))
        code = decoder.start_linear(textures, landmarks)
        with torch.no_grad():
            errors.append(float((decoder(code(textures, landmarks))[1] - textures).abs().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_the_code_gives_large_components_more_weight_and_averages_1() -> None:
    textures, landmarks = some_faces(200)
    code = FaceDecoder(LINEAR).start_linear(textures, landmarks)(textures, landmarks)
    torch.testing.assert_close(code.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    variance = code.var(0, correction=0)
    for part in (variance[:3], variance[3:]):
        assert (part.diff() <= 1e-3).all()
        assert float(part.mean()) == pytest.approx(1, rel=0.01)


def test_a_config_that_cannot_be_linear_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear form"):
        FaceDecoder(TINY).start_linear(torch.zeros(4, 3, 16, 16), torch.zeros(4, 5, 2))
