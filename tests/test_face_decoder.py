"""The face decoder. Sizes from Cole et al. 2017 and, for `seed`, from its published layers."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import DECODER, EMBEDDING, normal, some_faces, some_landmarks

from s2f import face_decoder
from s2f.appearance_model import GROUND_COLOUR
from s2f.face_decoder import CONFIGS, FaceDecoder, FaceDecoderConfig, draw_faces, sheet
from s2f.warp import warp

STAGED = FaceDecoderConfig(6, (8,), 5, (8,), 2, 4, stages=((3, 16, 8),))
# Two windows a side of 16 x 16 pixels, with three values each, and three of the shape.
LINEAR = dataclasses.replace(
    FaceDecoderConfig(15, (), 5, (), 4), windows=2, axes=3, stages=(), output="linear"
)


@pytest.mark.parametrize("preset", CONFIGS)
def test_every_preset_draws_224_pixels(preset):
    config = CONFIGS[preset]
    # Autocast, which `detail` turns off, is not known on the device that holds nothing.
    with torch.device("cpu" if config.detail else "meta"), torch.no_grad():
        landmarks, texture = FaceDecoder(config).eval()(torch.empty(2, config.embedding))
    assert landmarks.shape == (2, config.landmarks, 2)
    assert texture.shape == (2, 4 if config.opacity else 3, 224, 224)


def test_the_seeds_decoder_has_as_many_parameters_as_its_published_layers():
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


def test_the_68_points_are_mixed_from_the_predicted_ones():
    config = dataclasses.replace(STAGED, landmarks_68=((0, 1, 0.25), (4, 4, 0.0)))
    points = torch.arange(10.0).view(1, 5, 2)
    mixed = FaceDecoder(config).landmarks_68(points)
    np.testing.assert_allclose(mixed[0].numpy(), [[0.5, 1.5], [8.0, 9.0]])
    assert FaceDecoder(STAGED).landmarks_68(points) is points  # that are the 68


def test_the_distance_of_an_embedding_is_in_deviations_of_the_faces_of_training():
    textures, landmarks = some_faces(20, size=64)
    config = dataclasses.replace(LINEAR, embedding=51, seed_size=8, windows=4)
    decoder = FaceDecoder(config)
    code = decoder.start_linear(textures, landmarks)(textures, landmarks)
    shapes = code.clone()
    shapes[:, :48] = 0
    # By definition: of all values of all shapes of training the root mean square is 1.
    torch.testing.assert_close(decoder.distance(shapes).square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(decoder.distance(3 * code), 3 * decoder.distance(code))
    assert decoder.distance(torch.zeros(2, 51)).tolist() == [0, 0]
    for window, heeded in ((5, True), (0, False)):  # of 4 x 4: one of the middle, and a corner
        odd = torch.zeros(1, 51)
        odd[:, 3 * window : 3 * window + 3] = 100
        assert (float(decoder.distance(odd)) > 10) == heeded
    assert FaceDecoder(STAGED).distance(torch.zeros(1, 6)) is None


def test_a_linear_start_draws_the_faces_that_it_was_fitted_to():
    textures, landmarks = some_faces(20, size=32)
    decoder = FaceDecoder(LINEAR)
    code = decoder.start_linear(textures, landmarks)
    with torch.no_grad():
        drawn_landmarks, drawn = decoder(code(textures, landmarks))
    torch.testing.assert_close(drawn, textures, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn_landmarks, landmarks, atol=1e-3, rtol=0)
    sharpened = FaceDecoder(dataclasses.replace(LINEAR, detail=True))
    with torch.no_grad():
        faint = sharpened.start_linear(textures, landmarks)(0.5 * textures + 0.25, landmarks)
        contrasts = [network(faint)[1].diff(dim=3).abs().mean() for network in (decoder, sharpened)]
    assert contrasts[1] > 1.1 * contrasts[0]  # as strong again as in the photos


@torch.no_grad()
def test_a_linear_start_can_draw_from_the_code_of_other_faces(monkeypatch):
    """That is any linear map of each part's values: the regression finds it again."""
    textures, landmarks = some_faces(20, size=32)
    decoder = FaceDecoder(LINEAR)
    code = decoder.start_linear(textures, landmarks)(textures, landmarks)
    parts = torch.split(code, [3] * 4 + [code.shape[1] - 12], dim=1)
    foreign = [
        part @ normal(part.shape[1], part.shape[1], seed=k) + 2 for k, part in enumerate(parts)
    ]
    embeddings = torch.cat(foreign, 1)
    before = float((decoder(embeddings)[1] - textures).abs().mean())
    decoder.draw_from(embeddings, textures, landmarks)
    assert (decoder(embeddings)[1] - textures).abs().mean() < 0.2 * before  # held by its ridge
    monkeypatch.setattr(face_decoder, "FOREIGN_RIDGE", 0.0)
    decoder.start_linear(textures, landmarks)
    decoder.draw_from(embeddings, textures, landmarks)
    drawn_landmarks, drawn = decoder(embeddings)
    torch.testing.assert_close(drawn, textures, atol=5e-3, rtol=0)
    torch.testing.assert_close(drawn_landmarks, landmarks, atol=0.1, rtol=0)


def test_values_of_a_window_change_nothing_beyond_it():
    decoder = FaceDecoder(LINEAR)
    decoder.start_linear(*some_faces(20, size=32))
    value = torch.zeros(1, 15)
    value[0, 0] = 1  # of the window around the upper left quarter, 24 pixels of it in the frame
    with torch.no_grad():
        landmarks, texture = decoder(value)
        changed = (texture[0] - decoder.mean_texture).abs().amax(0)
    assert torch.equal(landmarks[0], decoder.mean_landmarks)
    assert changed[:24, :24].max() > 0.01 and changed[24:].max() == changed[:, 24:].max() == 0


def test_a_config_that_cannot_be_linear_is_refused():
    with pytest.raises(ValueError, match="the last stage gives no RGB"):
        FaceDecoderConfig(stages=((4, 5, 2),))
    with pytest.raises(ValueError, match="no linear form"):
        FaceDecoder(STAGED).start_linear(torch.zeros(4, 3, 16, 16), torch.zeros(4, 5, 2))


@torch.no_grad()
@pytest.mark.parametrize("is_face", [False, True])
def test_a_texture_is_brought_from_the_mean_shape_to_the_landmarks(is_face):
    """But one that is the face already stays where it is."""
    network = FaceDecoder(dataclasses.replace(DECODER, is_face=is_face)).eval()
    network.mean_landmarks.copy_(torch.from_numpy(some_landmarks()))
    embeddings = torch.randn(2, EMBEDDING)
    points, faces = draw_faces(network, embeddings)
    expected_points, texture = network(embeddings)
    torch.testing.assert_close(points, expected_points)
    moved = warp(texture, network.mean_landmarks[None], points).clamp(0, 1)
    torch.testing.assert_close(faces, texture if is_face else moved)
    assert torch.equal(faces, texture) == is_face


@torch.no_grad()
@pytest.mark.parametrize("is_face", [False, True])
def test_a_texture_with_an_opacity_is_drawn_before_the_ground(is_face):
    config = dataclasses.replace(LINEAR, opacity=True, is_face=is_face)
    textures, landmarks = some_faces(20, size=32)
    channel = torch.full((20, 1, 32, 32), 0.1)
    channel[..., :16] = 0.9
    decoder = FaceDecoder(config)
    code = decoder.start_linear(torch.cat([textures, channel], 1), landmarks)
    embedding = code(torch.cat([textures, channel], 1), landmarks)[:1]
    drawn = draw_faces(decoder, embedding)[1][0]
    ground = torch.tensor(GROUND_COLOUR).view(3, 1, 1).expand(3, 32, 8)
    torch.testing.assert_close(drawn[..., 24:], ground)
    if is_face:
        torch.testing.assert_close(drawn[..., :8], textures[0, ..., :8], atol=1e-4, rtol=0)
    assert decoder(embedding)[1].shape == (1, 4, 32, 32)
    with pytest.raises(ValueError, match="only textures that are drawn in windows"):
        FaceDecoderConfig(opacity=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_sheet_has_its_pictures_side_by_side_in_rows(rows):
    pictures = torch.rand(rows, 3, 3, 4, 5)
    page = sheet(*pictures)
    assert page.shape == (3, rows * 4, 15)
    torch.testing.assert_close(page[:, -4:, 5:10], pictures[-1, 1])
