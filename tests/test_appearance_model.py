"""The bundled model's networks, part by part; oracles are scikit-learn's PCA and the SVD."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import PARTS, mixes, normal, some_faces, some_landmarks
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from s2f import appearance_model, face_decoder
from s2f.appearance_model import (
    GROUND_COLOUR,
    Detail,
    LandmarkFinder,
    PartsCode,
    PartsEncoder,
    Windows,
    arch,
    placed,
    warp_head,
)
from s2f.face_encoder import batch_embedder
from s2f.images import PREPROCESSING
from s2f.warp import warp

WINDOWS = Windows(48, 3)  # of 32 x 32 pixels each


@torch.no_grad()
def drawn_again(code: PartsCode, values: torch.Tensor) -> torch.Tensor:
    axes = code.texture_axes.shape[1]
    local = appearance_model.LocalTexture(WINDOWS, axes)
    local.fit(code.texture_axes)
    return code.mean_texture + local(values[:, : 9 * axes].view(-1, 9, axes))


@pytest.mark.parametrize(
    "windows", [Windows(32, 1), Windows(32, 2), Windows(48, 3), Windows(28, 7)], ids=str
)
def test_windows_that_are_cut_and_joined_with_their_fades_are_the_picture(windows):
    pictures = normal(2, 3, windows.size, windows.size)
    cut = windows.cut(pictures)
    assert cut.shape == (2, windows.count**2, 3 * (2 * windows.pitch) ** 2)
    faded = cut * windows.fade().square().repeat(1, 3)
    torch.testing.assert_close(windows.join(faded), pictures, atol=1e-5, rtol=0)
    for k in range(windows.count**2):
        assert torch.equal(windows.one(pictures, k), cut[:, k])


def test_with_one_window_the_code_is_that_of_principal_components():
    textures, landmarks = normal(40, 3, 8, 8), normal(40, 5, 2, seed=1)
    code = PartsCode.fit(textures, landmarks, Windows(8, 1), 4, 3)(textures, landmarks)
    for rows, found in ((textures, code[:, :4]), (landmarks, code[:, 4:])):
        flat = rows.flatten(1).double().numpy()
        scores = PCA(found.shape[1], svd_solver="full").fit_transform(flat)
        deviation = scores.std(0)
        expected = scores / np.sqrt(deviation * deviation.mean())  # between whitened and not
        np.testing.assert_allclose(found.abs().numpy(), np.abs(expected), atol=1e-3)


def test_a_plain_background_has_no_values_and_does_no_harm():
    textures, landmarks = some_faces()
    textures[:, :, :, 24:] = 0.7  # all that the windows on the right see
    code = PartsCode.fit(textures, landmarks, WINDOWS, 3, 3)
    values = code(textures, landmarks)
    by_window = values[:, :27].view(30, 3, 3, 3)
    assert not by_window[:, :, 2].any() and by_window[:, :, 0].abs().max() > 0.1
    other = code(textures + normal(30, 3, 48, 48), landmarks)[:, :27].view(30, 3, 3, 3)
    assert not other[:, :, 2].any()
    torch.testing.assert_close(drawn_again(code, values), textures, atol=1e-4, rtol=0)


def test_fewer_faces_than_axes_are_drawn_again_and_leave_the_rest_empty():
    textures, landmarks = some_faces(4, ways=6)
    code = PartsCode.fit(textures, landmarks, WINDOWS, 6, 5)
    values = code(textures, landmarks)
    assert values.isfinite().all()
    assert not values[:, :54].view(4, 9, 6)[:, :, 3:].any() and not values[:, 57:].any()
    torch.testing.assert_close(drawn_again(code, values), textures, atol=1e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(code(textures, landmarks), values)


def test_the_patterns_are_the_best_of_their_number():
    axes, local = normal(1, 20, 3 * 32 * 32), appearance_model.LocalTexture(Windows(16, 1), 20)
    local.fit(axes)
    with torch.no_grad():
        shown = local(torch.eye(20)[:, None])
    # The window's middle is the picture; what lies outside of it has to be shown as well.
    blocks = axes.view(20, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(320, 192)
    u, s, v = torch.linalg.svd(blocks.double(), full_matrices=False)
    n = appearance_model.BLOCK_CHANNELS
    best = (u[:, :n] * s[:n]) @ v[:n]
    expected = best.view(20, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(20, 3, 32, 32)
    torch.testing.assert_close(shown, expected[..., 8:24, 8:24].float(), atol=1e-4, rtol=0)


MIDDLE = (..., slice(24, 40), slice(24, 40))  # away from where the border is repeated


@pytest.fixture(autouse=True)
def unwarped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn here, so nothing is made up for, and there is no face."""
    monkeypatch.setattr(appearance_model, "WARPED", (1.0, 1.0, 1.0))
    monkeypatch.setattr(appearance_model, "AROUND_FACE", 1.0)


def board(contrast: float, grey: float = 0.5) -> torch.Tensor:
    """A grey checkerboard of single pixels, [1 3 64 64]."""
    x = torch.arange(64)
    return grey + contrast * (1 - 2 * ((x[:, None] + x) % 2)).float().expand(1, 3, -1, -1)


def sharpened(contrast: float, plain: int = 64) -> Detail:
    """Fitted to boards, one darker and one lighter, which are background from a column on."""
    textures = torch.cat([board(contrast, 0.46), board(contrast, 0.54)])
    textures[..., plain:] = 0.8
    detail = Detail(64)
    detail.fit(textures)
    return detail


FAINTEST = (0.03, 0.03 * appearance_model.MOST)


@pytest.mark.parametrize(
    ("given", "expected"), [(0.3, 0.3), (0.6, 0.6), (0.2, 0.3), FAINTEST, (0.0, 0.0)]
)
def test_what_is_fainter_than_in_photos_is_made_as_strong(given, expected):
    found = sharpened(0.3)(board(given))
    torch.testing.assert_close(found[MIDDLE], board(expected)[MIDDLE], atol=3e-3, rtol=0)
    torch.testing.assert_close(Detail(64)(board(given)), board(given), atol=1e-6, rtol=0)


def test_nothing_is_amplified_near_a_background_that_all_share():
    found = sharpened(0.3, plain=48)(board(0.15))
    torch.testing.assert_close(found[..., 48:], board(0.15)[..., 48:], atol=1e-6, rtol=0)
    assert (found - board(0.15))[..., 24:40, 4:12].abs().min() > 0.1


def test_hair_is_amplified_less_than_the_face(monkeypatch):
    before = sharpened(0.3).strengths[0]
    monkeypatch.setattr(appearance_model, "AROUND_FACE", 0.5)
    share = sharpened(0.3).strengths[0] / before
    assert share[4, 4] == 1  # of 8 rows and columns, the face's middle
    torch.testing.assert_close(share[0], torch.full((8,), 0.5))
    torch.testing.assert_close(share[:, 0], torch.full((8,), 0.5))


def head(top: int, width: int) -> torch.Tensor:
    """A brown head from a row down, and a spot in the lower corner, [1 4 224 224]."""
    texture = torch.full((1, 4, 224, 224), 0.2)
    texture[:, 0] = 0.4
    texture[:, 3, top:, 112 - width // 2 : 112 + width // 2] = 0.8
    texture[:, 3, 200:, 200:] = 0.8
    return texture


def test_what_is_not_joined_to_the_face_is_not_drawn():
    still = torch.rand(1, 5, 2) * 100 + 60
    drawn = placed(head(20, 100), still, still)[0]
    ground = torch.tensor(GROUND_COLOUR).view(3, 1, 1)
    torch.testing.assert_close(drawn[:, 190:, 190:], ground.expand(3, 34, 34), atol=1e-4, rtol=0)
    brown = torch.tensor([0.4, 0.2, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(drawn[:, 30:, 70:150], brown.expand(3, 194, 80), atol=1e-4, rtol=0)


def test_a_head_that_the_border_cut_ends_in_an_arch_where_it_is_drawn_lower():
    points = torch.cartesian_prod(torch.linspace(0, 223, 5), torch.linspace(0, 223, 5))[None]
    drawn = placed(head(0, 100), points, points + torch.tensor([0.0, 28.0]))[0]
    widths = [(drawn[2, y] < 0.5).sum().item() for y in (2, 14, 22, 40)]
    assert widths[0] == 0 < widths[1] < widths[2] < widths[3] == 100


def test_a_round_head_goes_on_round_above_the_frame():
    y, x = torch.meshgrid(torch.arange(-32, 224), torch.arange(224), indexing="ij")
    within = 60.0 - ((x - 100).square() + (y - 45).square()).sqrt()  # pixels, of a disc
    found = arch((0.5 + within[32:]).clamp(0, 1)[None], 32)[0]
    near = within[:32].abs() < 3
    torch.testing.assert_close(found[near], within[:32][near], atol=0.5, rtol=0)
    assert (arch(torch.zeros(1, 224, 224), 32) < 0).all()


def test_what_the_side_borders_and_the_lower_one_hide_is_not_made_of_what_they_show():
    points = torch.cartesian_prod(torch.linspace(0, 223, 5), torch.linspace(0, 223, 5))[None]
    shown = head(20, 100)
    shown[:, 0, :, :16], shown[:, 0, 208:] = 0.8, 0.8  # no brown
    shown[:, 0, 100:140, 4:8], shown[:, 0, 214:218, 80:140] = 0.4, 0.4  # an ear and a chin
    moved = warp_head(shown, points, points + torch.tensor([16.0, -16.0]))[0, 0]
    brown = (moved < 0.6).float()
    assert brown[84:124, 16:32].sum() > 100 < brown[190:208, 96:156].sum()
    assert brown[84:124, :16].sum() == 0 == brown[208:, 96:156].sum()


def test_gradients_are_exact_and_finite_where_all_is_plain():
    detail = Detail(16).double()
    detail.strengths.fill_(0.02)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.double)
    given = (0.5 + 0.015 * noise).requires_grad_()
    assert torch.autograd.gradcheck(detail, given, atol=1e-5, fast_mode=True)
    plain = torch.full((1, 3, 16, 16), 0.5, dtype=torch.double, requires_grad=True)
    detail(plain).square().sum().backward()
    assert plain.grad is not None and plain.grad.isfinite().all()


CHANNELS = (4, 4, 8, 8, 8, 8, 8)
SIZE = 32  # of the pictures; the maps are a quarter of it


def place(cell: float) -> float:
    """Where the middle of a cell is: the maps reach a tenth of the side beyond the picture."""
    reach = appearance_model.REACH
    return ((cell + 0.5) / 8 * reach - (reach - 1) / 2) * SIZE - 0.5


@pytest.mark.parametrize(
    ("cells", "row", "column"),
    [({(0, 7): 1}, 0, 7), ({(7, 0): 1}, 7, 0), ({(4, 2): 1, (4, 3): 3}, 4, 2.75)],
)
def test_a_point_is_the_centre_of_mass_of_its_likelihood(cells, row, column):
    maps = torch.zeros(1, 1, 8, 8)
    for cell, weight in cells.items():
        maps[0, 0][cell] = 100 + math.log(weight)
    finder = LandmarkFinder(1, CHANNELS)
    finder.maps = nn.Conv2d(8, 1, 1)
    finder.maps.forward = lambda x: maps  # type: ignore[method-assign]
    with torch.no_grad():
        found = finder(torch.rand(1, 3, SIZE, SIZE))
    torch.testing.assert_close(found, torch.tensor([[[place(column), place(row)]]]))


def test_it_learns_where_dots_are_within_half_a_pixel():
    """A bright and a dark dot on grey, told apart and found between the pixels."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.arange(SIZE).float()

    def dots(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        points = 6 + (SIZE - 13) * torch.rand(n, 2, 2, generator=generator)  # xy
        x, y = points[..., 0, None, None], points[..., 1, None, None]
        spots = torch.exp(-((grid - x) ** 2 + (grid[:, None] - y) ** 2) / 8)  # [n 2 s s]
        faces = 0.5 + 0.4 * (spots[:, 0] - spots[:, 1])
        return faces[:, None].expand(-1, 3, -1, -1), points

    torch.manual_seed(0)
    finder = LandmarkFinder(2, CHANNELS)
    optimizer = torch.optim.Adam(finder.parameters(), lr=0.02)
    for step in range(STEPS := 150):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / STEPS)
        faces, points = dots(16)
        loss = (finder(faces) - points).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    faces, points = dots(64)
    apart = (points[:, 0] - points[:, 1]).norm(dim=1) > 6  # they cancel where they fall together
    with torch.no_grad():
        found = finder.eval()(faces)
    assert (found - points)[apart].norm(dim=2).mean() < 0.5


def test_points_are_in_whole_precision_where_the_network_is_not():
    torch.manual_seed(0)
    finder, faces = LandmarkFinder(5, CHANNELS).eval(), torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = finder(faces)
        with torch.autocast("cpu", torch.bfloat16):
            found = finder(faces)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)


CONFIG = dataclasses.replace(PARTS, embedding=16, axes=3)  # four windows of three, and the shape
MEAN = torch.from_numpy(some_landmarks())


class Told(nn.Module):
    """In the place of a finder: it tells landmarks of the 224 frame that it was told."""

    points = MEAN[None]

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        assert faces.shape[-1] == 112
        return ((self.points + 0.5) / 2 - 0.5).expand(len(faces), -1, -1)


def some_textures(n: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures [n 3 224 224] that vary in three ways in the middle of plain grey."""
    x = torch.linspace(-1, 1, 224)
    hill = (1 - x**2 - x[:, None] ** 2).clamp_min(0) ** 2
    coarse = normal(4, 3, 5, 5)
    ways = functional.interpolate(coarse, size=224, mode="bicubic", align_corners=True) * hill
    return 0.5 + 0.3 * ways[3] + 0.1 * mixes(ways[:3], n, seed)


def some_shapes(n: int, seed: int = 0) -> torch.Tensor:
    """Landmarks [n 68 2] that vary in three ways, and never in where the pupils are."""
    ways = normal(3, 68, 2)
    for eye in (slice(36, 42), slice(42, 48)):
        ways[:, eye] -= ways[:, eye].mean(1, keepdim=True)
    return MEAN + mixes(ways, n, seed)


def fitted() -> tuple[PartsEncoder, PartsCode]:
    """An encoder that has learned to read the code of some faces, and is told landmarks."""
    torch.manual_seed(0)
    textures, shapes = some_textures(12), some_shapes(12)
    code = PartsCode.fit(textures, shapes, Windows(224, 2), CONFIG.axes, CONFIG.shape_axes)
    encoder = PartsEncoder(CONFIG, PREPROCESSING["compact"])
    encoder.fit(code, textures)
    encoder.finder = Told()
    return encoder.eval(), code


@torch.no_grad()
def told(encoder: PartsEncoder, faces: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """What an encoder makes of faces when it is told where their landmarks are."""
    assert isinstance(encoder.finder, Told)
    encoder.finder.points = points
    return encoder(faces)


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far embeddings are off, in units of how far they vary."""
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def turned(picture, points, degrees, scale, move):
    """Turn a picture around its middle, enlarge and move it, and points with it."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    matrix, shift = torch.tensor([[c, -s], [s, c]]), torch.tensor(move)
    back = torch.linalg.inv(matrix)
    back = torch.cat([back, -(back @ shift)[:, None] / 111.5], 1)
    grid = functional.affine_grid(back[None], list(picture.shape), align_corners=True)
    how = {"mode": "bicubic", "padding_mode": "border", "align_corners": True}
    there = functional.grid_sample(picture, grid, **how)
    return there, (points - 111.5) @ matrix.T + 111.5 + shift


def test_an_embedding_without_room_for_a_shape_is_refused():
    with pytest.raises(ValueError, match="of 980 has no room for 7² windows of 20 values and a"):
        appearance_model.PartsEncoderConfig(embedding=980)
    assert appearance_model.PartsEncoderConfig(embedding=981).shape_axes == 1
    with pytest.raises(ValueError, match="3 windows a side do not fit into 32"):
        Windows(32, 3)


def test_the_bundled_decoder_draws_what_the_bundled_encoder_reads():
    encoder, decoder = appearance_model.CONFIGS["compact"], face_decoder.CONFIGS["compact"]
    for field in ("embedding", "landmarks", "windows", "axes", "image_size"):
        assert getattr(encoder, field) == getattr(decoder, field), field
    network = PartsEncoder(encoder, PREPROCESSING["compact"]).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 224, 224)).shape == (1, 1024)


def test_the_embedding_of_a_photo_is_the_code_of_its_texture_and_shape():
    encoder, code = fitted()
    textures, shapes = some_textures(3, seed=1), some_shapes(3, seed=2)
    expected = code(textures, shapes)
    found = told(encoder, warp(textures, code.mean_landmarks[None], shapes), shapes)
    assert far(found[:, 12:], expected[:, 12:]) < 1e-3
    assert far(found[:, :12], expected[:, :12]) < 0.1
    assert far(expected[:1], expected[1:2]) > 0.5  # of two people
    with torch.autocast("cpu", torch.bfloat16):
        half = told(encoder, warp(textures, code.mean_landmarks[None], shapes), shapes)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found, atol=1e-4, rtol=1e-4)


def people(n: int, seed: int = 0) -> torch.Tensor:
    """Textures [n 4 224 224] of discs of many sizes and colours, their outlines as wanted."""
    x = torch.arange(224) - 111.5
    radius = 70 + 12 * mixes(normal(1, 1, 1), n, seed).tanh()
    distance = radius - (x**2 + x[:, None] ** 2).sqrt()
    shades = 0.45 + 0.1 * mixes(normal(3, 3, 1, 1), n, seed + 1).tanh()
    colours = shades + 0 * some_textures(n, seed) + 0.3 * (some_textures(n, seed) - 0.5)
    return torch.cat([colours.clamp(0, 1), 0.5 + 0.3 * (distance[:, None] / 8).tanh()], 1)


@torch.no_grad()
def test_a_person_is_seen_before_any_plain_ground_and_in_usual_light():
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, opacity=True)
    textures, shapes = people(12), some_shapes(12)
    code = PartsCode.fit(textures, shapes, Windows(224, 2), config.axes, config.shape_axes)
    encoder = PartsEncoder(config, PREPROCESSING["compact"])
    encoder.fit(code, textures)
    alpha = functional.avg_pool2d(appearance_model.opacity(textures[:3, 3:]), 2)
    colours = functional.avg_pool2d(textures[:3, :3], 2)

    def seen(ground: list[float], cast: list[float]) -> torch.Tensor:
        behind, light = (torch.tensor(x).view(3, 1, 1) for x in (ground, cast))
        return encoder.seen(torch.lerp(behind, colours, alpha) * light)

    usual = seen([0.85, 0.85, 0.85], [1, 1, 1])
    assert (usual[:, 3:] - (alpha > 0.1).float()).abs().mean() < 0.01
    assert ((usual[:, :3] - colours).abs() * (alpha > 0.9)).max() < 0.06
    assert (seen([0.95, 0.9, 0.9], [1, 1, 1]) - usual).abs().mean() < 0.02
    # No skin of theirs is so red: what light adds is taken off, as far as that is done at all.
    skin = encoder.skin
    red = [seen([0.85] * 3, [cast, 1, 1])[:, 0, skin].mean() for cast in (1.5, 1.0)]
    assert red[0] / red[1] < 1.3
    littered = encoder.seen(torch.rand(1, 3, 112, 112))[:, 3:]
    outside = ~encoder.within
    torch.testing.assert_close(littered[0, 0, outside], encoder.mean_texture[3, outside])


@pytest.mark.parametrize(
    ("degrees", "scale", "move"), [(0.0, 0.9, [0.0, 0.0]), (-8.0, 1.05, [4.0, 6.0])]
)
def test_a_photo_that_is_turned_scaled_or_moved_has_the_same_embedding(degrees, scale, move):
    encoder, code = fitted()
    texture, points = some_textures(1, seed=1), some_shapes(1, seed=2)
    photo = warp(texture, code.mean_landmarks[None], points)
    moved, there = turned(photo, points, degrees, scale, move)
    expected, found = told(encoder, photo, points), told(encoder, moved, there)
    assert far(found[:, 12:], expected[:, 12:]) < 1e-3
    assert far(found, expected) < 0.1
    assert far(told(encoder, moved, points), expected) > 2 * far(found, expected)


def test_gradients_reach_the_picture_through_its_registration():
    encoder, _ = fitted()
    encoder.finder = LandmarkFinder(68, CONFIG.finder).eval()
    faces = some_textures(2).requires_grad_()
    encoder(faces).square().sum().backward()
    assert faces.grad is not None and faces.grad.isfinite().all()
    assert (faces.grad.abs().sum((1, 2, 3)) > 0).all()


def test_landmarks_that_fall_together_give_finite_values():
    encoder, _ = fitted()
    assert told(encoder, some_textures(2), 111.5 + torch.zeros(2, 68, 2)).isfinite().all()
    encoder.finder = LandmarkFinder(68, CONFIG.finder)  # that has learned nothing
    assert encoder.train()(some_textures(2)).isfinite().all()


def test_a_face_has_the_same_bits_in_any_company():
    encoder, _ = fitted()
    encoder.finder = LandmarkFinder(68, CONFIG.finder)
    faces = some_textures(3)
    embed = batch_embedder(encoder.train(), device=torch.device("cpu"), batch_size=4)
    found = embed(faces)
    assert not encoder.training and not found.requires_grad and found.any()
    for company in (faces[:1], faces.flip(0)[2:]):
        assert torch.equal(embed(company), found[:1])
    with torch.no_grad():
        torch.testing.assert_close(encoder(faces), found, atol=1e-3, rtol=1e-3)
        large = functional.interpolate(faces, scale_factor=2, mode="nearest")
        torch.testing.assert_close(encoder(large), found, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="300 pixels are no multiple of 224"):
        encoder(torch.rand(1, 3, 300, 300))
