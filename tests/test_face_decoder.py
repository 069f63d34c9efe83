"""The face decoder. Sizes from Cole et al. 2017 and, for `seed`, from its published layers."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import DECODER, EMBEDDING, some_landmarks
from torch.nn import functional

from s2f import appearance_model
from s2f.face_decoder import CONFIGS, FaceDecoder, FaceDecoderConfig, draw_faces, sheet
from s2f.warp import warp

STAGED = FaceDecoderConfig(
    embedding=6,
    trunk=(8,),
    landmarks=5,
    landmark_hidden=(8,),
    seed_size=2,
    seed_channels=4,
    seed_relu=False,
    stages=((3, 16, 8),),
    output="linear",
)


# Two windows a side of 16 x 16 pixels, with three values each, and three of the shape.
LINEAR = dataclasses.replace(
    STAGED, embedding=15, trunk=(), landmark_hidden=(), seed_size=4, windows=2, axes=3, stages=()
)


@pytest.mark.parametrize("preset", CONFIGS)
def test_every_preset_draws_224_pixels(preset: str) -> None:
    config = CONFIGS[preset]
    # Autocast, which `detail` turns off, is not known on the device that holds nothing.
    with torch.device("cpu" if config.detail else "meta"), torch.no_grad():
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


@pytest.mark.parametrize("config", [STAGED, LINEAR], ids=["staged", "linear"])
def test_a_fresh_decoder_draws_near_its_mean(config: FaceDecoderConfig) -> None:
    decoder = FaceDecoder(config).eval()
    decoder.mean_landmarks.fill_(7.0)
    landmarks, texture = decoder(torch.zeros(1, config.embedding))
    assert (landmarks - 7).abs().max() < 1
    assert (texture - decoder.mean_texture).abs().max() < 1


def test_sigmoid_textures_stay_within_0_and_1() -> None:
    config = dataclasses.replace(STAGED, output="sigmoid", seed_relu=True)
    texture = FaceDecoder(config)(torch.randn(3, 6) * 100)[1]
    assert 0 <= texture.min() and texture.max() <= 1


def test_the_68_points_are_mixed_from_the_predicted_ones() -> None:
    config = dataclasses.replace(STAGED, landmarks_68=((0, 1, 0.25), (4, 4, 0.0)))
    points = torch.arange(10.0).view(1, 5, 2)
    mixed = FaceDecoder(config).landmarks_68(points)
    np.testing.assert_allclose(mixed[0].numpy(), [[0.5, 1.5], [8.0, 9.0]])


def test_a_decoder_of_68_points_gives_them_as_they_are() -> None:
    points = torch.rand(1, 68, 2)
    config = dataclasses.replace(STAGED, landmarks=68)
    assert FaceDecoder(config).landmarks_68(points) is points


def test_a_last_stage_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(ValueError, match="the last stage gives 4 channels"):
        FaceDecoderConfig(stages=((4, 5, 2),))


def some_faces(n: int, block: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Textures [n 3 32 32] of plain blocks and landmarks [n 5 2] that vary in three ways each."""
    generator = torch.Generator().manual_seed(0)

    def mixes(*shape: int) -> torch.Tensor:
        ways = torch.randn(3, *shape, generator=generator)
        return torch.einsum("nk,k...->n...", torch.randn(n, 3, generator=generator), ways)

    textures = functional.interpolate(mixes(3, 32 // block, 32 // block), scale_factor=block)
    return 0.5 + 0.1 * textures, 100 + 5 * mixes(5, 2)


def test_a_linear_start_draws_the_faces_that_it_was_fitted_to() -> None:
    textures, landmarks = some_faces(20)
    decoder = FaceDecoder(LINEAR)
    code = decoder.start_linear(textures, landmarks)
    with torch.no_grad():
        drawn_landmarks, drawn = decoder(code(textures, landmarks))
    torch.testing.assert_close(drawn, textures, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn_landmarks, landmarks, atol=1e-3, rtol=0)


def test_a_linear_start_does_best_what_few_patterns_can_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    textures, landmarks = some_faces(20, block=1)
    errors = []
    for channels in (6, 48, 192):
        monkeypatch.setattr(appearance_model, "BLOCK_CHANNELS", channels)
        decoder = FaceDecoder(LINEAR)
        code = decoder.start_linear(textures, landmarks)
        with torch.no_grad():
            errors.append(float((decoder(code(textures, landmarks))[1] - textures).abs().mean()))
    assert errors[0] > errors[1] > 100 * errors[2]  # 192 values has a block: all can be shown


def test_a_linear_start_learns_how_sharp_the_photos_are() -> None:
    textures, landmarks = some_faces(20, block=1)
    blurred = functional.avg_pool2d(textures, 5, stride=1, padding=2, count_include_pad=False)
    config = dataclasses.replace(LINEAR, detail=True)
    sharp, soft = FaceDecoder(config), FaceDecoder(LINEAR)
    with torch.no_grad():
        code = sharp.start_linear(textures, landmarks)
        soft.start_linear(textures, landmarks)
        read = code(blurred, landmarks)
        noise = [network(read)[1].diff(dim=3).abs().mean() for network in (soft, sharp)]
    assert noise[0] < 0.9 * noise[1]


def test_values_of_a_window_change_nothing_beyond_it() -> None:
    decoder = FaceDecoder(LINEAR)
    decoder.start_linear(*some_faces(20))
    value = torch.zeros(1, 15)
    value[0, 0] = 1  # of the window around the upper left quarter, 24 pixels of it in the frame
    with torch.no_grad():
        landmarks, texture = decoder(value)
        changed = (texture[0] - decoder.mean_texture).abs().amax(0)
    assert torch.equal(landmarks[0], decoder.mean_landmarks)
    assert changed[:24, :24].max() > 0.01 and changed[24:].max() == changed[:, 24:].max() == 0


def test_a_config_that_cannot_be_linear_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear form"):
        FaceDecoder(STAGED).start_linear(torch.zeros(4, 3, 16, 16), torch.zeros(4, 5, 2))


def drawer(*, is_face: bool = False) -> FaceDecoder:
    torch.manual_seed(0)
    network = FaceDecoder(dataclasses.replace(DECODER, is_face=is_face))
    network.mean_landmarks.copy_(torch.from_numpy(some_landmarks()))
    return network.eval()


@torch.no_grad()
def test_a_texture_is_brought_from_the_mean_shape_to_the_landmarks() -> None:
    network, embeddings = drawer(), torch.randn(2, EMBEDDING)
    points, faces = draw_faces(network, embeddings)
    expected_points, texture = network(embeddings)
    torch.testing.assert_close(points, expected_points)
    moved = warp(texture, network.mean_landmarks[None], points)
    torch.testing.assert_close(faces, moved.clamp(0, 1))
    assert not torch.equal(faces, texture)


@torch.no_grad()
def test_a_texture_that_is_the_face_already_stays_where_it_is() -> None:
    network, embeddings = drawer(is_face=True), torch.randn(2, EMBEDDING)
    torch.testing.assert_close(draw_faces(network, embeddings), network(embeddings))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_sheet_has_its_pictures_side_by_side_in_rows(rows: int) -> None:
    pictures = torch.rand(rows, 3, 3, 4, 5)
    page = sheet(*pictures)
    assert page.shape == (3, rows * 4, 15)
    torch.testing.assert_close(page[:, -4:, 5:10], pictures[-1, 1])
