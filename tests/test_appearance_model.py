"""The bundled model's networks, part by part.

Oracles: scikit-learn's PCA for a code of one window, the SVD for the patterns of blocks;
checkerboards, all of which is in the finest band of detail; likelihood that lies in one cell of a
landmark's map; and encoders that are told where landmarks are.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import PARTS, some_landmarks
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from s2f import appearance_model, face_decoder
from s2f.appearance_model import (
    BLOCK_CHANNELS,
    CONFIGS,
    MOST,
    REACH,
    Detail,
    LandmarkFinder,
    LocalTexture,
    PartsCode,
    PartsEncoder,
    PartsEncoderConfig,
    Windows,
)
from s2f.face_encoder import batch_embedder
from s2f.images import PREPROCESSING
from s2f.warp import warp

GRIDS = [Windows(32, 1), Windows(32, 2), Windows(48, 3), Windows(28, 7)]
WINDOWS = Windows(48, 3)  # of 32 x 32 pixels each


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_faces(
    n: int = 30, ways: int = 3, size: int = 48, block: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Textures [n 3 s s] of plain blocks, and landmarks [n 5 2], that vary in a few ways each."""
    coarse = normal(ways, 3, size // block, size // block, seed=1)
    textures = torch.einsum("nk,k...->n...", normal(n, ways), coarse)
    landmarks = torch.einsum("nk,k...->n...", normal(n, ways, seed=2), normal(ways, 5, 2, seed=3))
    return 0.5 + 0.1 * functional.interpolate(textures, scale_factor=block), 50 + 5 * landmarks


@pytest.mark.parametrize("windows", GRIDS, ids=str)
def test_the_fades_squared_add_up_to_1_in_each_pixel(windows: Windows) -> None:
    total = windows.join(windows.fade().square()[None])
    torch.testing.assert_close(total, torch.ones(1, 1, windows.size, windows.size))


@pytest.mark.parametrize("windows", GRIDS, ids=str)
def test_windows_that_are_cut_and_joined_with_their_fades_are_the_picture(windows: Windows) -> None:
    pictures = normal(2, 3, windows.size, windows.size)
    cut = windows.cut(pictures)
    assert cut.shape == (2, windows.count**2, 3 * (2 * windows.pitch) ** 2)
    faded = cut * windows.fade().square().repeat(1, 3)
    torch.testing.assert_close(windows.join(faded), pictures, atol=1e-5, rtol=0)


def test_a_window_is_the_patch_around_its_place_in_the_grid() -> None:
    picture = normal(1, 1, 48, 48)
    middle = WINDOWS.cut(picture)[0, 4].view(32, 32)
    assert torch.equal(middle, picture[0, 0, 8:40, 8:40])
    corner = WINDOWS.cut(picture)[0, 0].view(32, 32)
    assert torch.equal(corner[8:, 8:], picture[0, 0, :24, :24])
    assert not corner[:8].any() and not corner[:, :8].any()  # outside of the picture


def test_faces_that_vary_in_few_ways_are_drawn_again_from_their_code() -> None:
    textures, landmarks = some_faces()
    code = PartsCode.fit(textures, landmarks, WINDOWS, 3, 3)
    values = code(textures, landmarks)
    assert values.shape == (30, 9 * 3 + 3)
    local = LocalTexture(WINDOWS, 3)
    local.fit(code.texture_axes)
    with torch.no_grad():
        drawn = code.mean_texture + local(values[:, :27].view(30, 9, 3))
    torch.testing.assert_close(drawn, textures, atol=1e-4, rtol=0)
    points = code.mean_landmarks + (values[:, 27:] @ code.shape_axes).view(30, 5, 2)
    torch.testing.assert_close(points, landmarks, atol=1e-3, rtol=0)


def test_with_one_window_the_code_is_that_of_principal_components() -> None:
    textures, landmarks = normal(40, 3, 8, 8), normal(40, 5, 2, seed=1)
    code = PartsCode.fit(textures, landmarks, Windows(8, 1), 4, 3)(textures, landmarks)
    for rows, found in ((textures, code[:, :4]), (landmarks, code[:, 4:])):
        flat = rows.flatten(1).double().numpy()
        scores = PCA(found.shape[1], svd_solver="full").fit_transform(flat)
        deviation = scores.std(0)
        expected = scores / np.sqrt(deviation * deviation.mean())  # between whitened and not
        np.testing.assert_allclose(found.abs().numpy(), np.abs(expected), atol=1e-3)


def test_large_components_weigh_more_and_variances_average_1() -> None:
    textures, landmarks = some_faces(60, ways=5)
    variance = PartsCode.fit(textures, landmarks, WINDOWS, 4, 3)(textures, landmarks).var(
        0, correction=0
    )
    texture, shape = variance[:36].view(9, 4), variance[36:]
    assert (texture.diff(dim=1) < 1e-4).all() and (shape.diff() < 1e-4).all()
    assert float(texture.mean()) == pytest.approx(1, rel=1e-3)
    assert float(shape.mean()) == pytest.approx(1, rel=1e-3)
    # the variance goes with the root of the component's, in all windows by one measure
    deviations = []
    faded = WINDOWS.cut(textures - textures.mean(0)) * WINDOWS.fade().repeat(1, 3)
    for rows in faded.unbind(1):
        deviations.append(torch.linalg.svdvals(rows.double())[:4] / 60**0.5)
    expected = torch.stack(deviations)
    torch.testing.assert_close(texture, (expected / expected.mean()).float(), atol=1e-3, rtol=1e-3)


def test_a_plain_background_has_no_values_and_does_no_harm() -> None:
    textures, landmarks = some_faces()
    textures[:, :, :, 24:] = 0.7  # all that the windows on the right see
    code = PartsCode.fit(textures, landmarks, WINDOWS, 3, 3)
    values = code(textures, landmarks)
    assert all(part.isfinite().all() for part in (values, code.texture_axes, code.texture_code))
    by_window = values[:, :27].view(30, 3, 3, 3)
    assert not by_window[:, :, 2].any() and by_window[:, :, 0].abs().max() > 0.1
    other = code(textures + normal(30, 3, 48, 48), landmarks)[:, :27].view(30, 3, 3, 3)
    assert not other[:, :, 2].any()
    local = LocalTexture(WINDOWS, 3)
    local.fit(code.texture_axes)
    with torch.no_grad():
        drawn = code.mean_texture + local(values[:, :27].view(30, 9, 3))
    torch.testing.assert_close(drawn, textures, atol=1e-4, rtol=0)


def test_faces_that_are_all_the_same_have_no_code() -> None:
    textures = torch.full((5, 3, 48, 48), 0.7)
    code = PartsCode.fit(textures, torch.full((5, 5, 2), 50.1), WINDOWS, 3, 3)
    assert not code(*some_faces(5)).any()


def test_fewer_faces_than_axes_are_drawn_again_and_leave_the_rest_empty() -> None:
    textures, landmarks = some_faces(4, ways=6)
    code = PartsCode.fit(textures, landmarks, WINDOWS, 6, 5)
    values = code(textures, landmarks)
    assert values.isfinite().all()
    assert not values[:, :54].view(4, 9, 6)[:, :, 3:].any() and not values[:, 57:].any()
    local = LocalTexture(WINDOWS, 6)
    local.fit(code.texture_axes)
    with torch.no_grad():
        drawn = code.mean_texture + local(values[:, :54].view(4, 9, 6))
    torch.testing.assert_close(drawn, textures, atol=1e-3, rtol=0)


def test_the_code_is_exact_in_half_precision_around_it_too() -> None:
    textures, landmarks = some_faces()
    code = PartsCode.fit(textures, landmarks, WINDOWS, 3, 3)
    expected = code(textures, landmarks)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(code(textures, landmarks), expected)


def test_the_patterns_are_the_best_of_their_number() -> None:
    windows = Windows(16, 1)
    axes = normal(1, 20, 3 * 32 * 32)
    local = LocalTexture(windows, 20)
    local.fit(axes)
    with torch.no_grad():
        shown = local(torch.eye(20)[:, None])
    # The window's middle is the picture; what lies outside of it has to be shown as well.
    blocks = axes.view(20, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(320, 192)
    u, s, v = torch.linalg.svd(blocks.double(), full_matrices=False)
    best = (u[:, :BLOCK_CHANNELS] * s[:BLOCK_CHANNELS]) @ v[:BLOCK_CHANNELS]
    expected = best.view(20, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(20, 3, 32, 32)
    torch.testing.assert_close(shown, expected[..., 8:24, 8:24].float(), atol=1e-4, rtol=0)


MIDDLE = (..., slice(24, 40), slice(24, 40))  # away from where the border is repeated


@pytest.fixture(autouse=True)
def unwarped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn here, so nothing is made up for."""
    monkeypatch.setattr(appearance_model, "WARPED", 1.0)


def board(contrast: float) -> torch.Tensor:
    """A grey checkerboard of single pixels, [1 3 64 64]."""
    x = torch.arange(64)
    return 0.5 + contrast * (1 - 2 * ((x[:, None] + x) % 2)).float().expand(1, 3, -1, -1)


def photos(n: int = 6, seed: int = 0) -> torch.Tensor:
    """Noise of all sizes, [n 3 64 64]."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.full((n, 3, 64, 64), 0.5)
    for side in (4, 16, 64):
        noise = torch.randn(n, 3, side, side, generator=generator)
        total = total + 0.05 * functional.interpolate(noise, size=64, mode="bilinear")
    return total


def sharpened(textures: torch.Tensor) -> Detail:
    """Fitted to textures, once darker and once lighter: what never varies is background."""
    detail = Detail(64)
    detail.fit(torch.cat([textures - 0.04, textures + 0.04]))
    return detail


def test_at_first_it_leaves_all_as_it_is() -> None:
    torch.testing.assert_close(Detail(64)(photos()), photos(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0.3, 0.3), (0.6, 0.6), (0.2, 0.3), (0.03, 0.03 * MOST), (0.0, 0.0)],
    ids=["as photos", "stronger", "fainter", "much fainter", "nothing"],
)
def test_what_is_fainter_than_in_photos_is_made_as_strong(given: float, expected: float) -> None:
    found = sharpened(board(0.3))(board(given))
    torch.testing.assert_close(found[MIDDLE], board(expected)[MIDDLE], atol=3e-3, rtol=0)


def test_strength_is_a_share_of_the_brightness() -> None:
    # Half as bright, background of 0.1 included: half the contrast is all there is to be.
    dark = (board(0.05) - 0.5) + 0.2
    found = sharpened(board(0.3))(dark)
    expected = (board(0.15) - 0.5) + 0.2
    torch.testing.assert_close(found[MIDDLE], expected[MIDDLE], atol=3e-3, rtol=0)


def test_nothing_is_amplified_near_a_background_that_all_share() -> None:
    textures = torch.cat([board(0.3) - 0.04, board(0.3) + 0.04])
    textures[..., 48:] = 0.8
    detail = Detail(64)
    detail.fit(textures)
    found = detail(board(0.15))
    torch.testing.assert_close(found[..., 48:], board(0.15)[..., 48:], atol=1e-6, rtol=0)
    assert (found - board(0.15))[..., 24:40, 4:12].abs().min() > 0.1


def test_a_blurred_texture_comes_towards_the_sharpness_of_photos() -> None:
    def sharpness(x: torch.Tensor) -> float:
        return float(x.diff(dim=3).abs().mean())

    blurred = functional.avg_pool2d(photos(seed=1), 3, stride=1, padding=1, count_include_pad=False)
    found = sharpened(photos())(blurred)
    assert sharpness(blurred) < 0.5 * sharpness(photos(seed=1))
    assert 1.5 * sharpness(blurred) < sharpness(found) < 1.05 * sharpness(photos(seed=1))


def test_gradients_are_exact_and_finite_where_all_is_plain() -> None:
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


class Given(nn.Module):
    """In the place of a network's last layer: maps that are given."""

    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.given = maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-2:] == self.given.shape[-2:]
        return self.given.to(x.dtype)


def found_in(maps: torch.Tensor) -> torch.Tensor:
    """What is found where the maps [b k 8 8] of a network are given."""
    finder = LandmarkFinder(maps.shape[1], CHANNELS)
    finder.maps = Given(maps)
    with torch.no_grad():
        points: torch.Tensor = finder(torch.rand(len(maps), 3, SIZE, SIZE))
    return points


def place(cell: float) -> float:
    """Where the middle of a cell is: the maps reach a tenth of the side beyond the picture."""
    return ((cell + 0.5) / 8 * REACH - (REACH - 1) / 2) * SIZE - 0.5


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 7), (7, 0), (3, 5)])
def test_likelihood_in_one_cell_is_a_point_in_its_middle(row: int, column: int) -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, row, column] = 100
    expected = torch.tensor([[[place(column), place(row)]]])
    torch.testing.assert_close(found_in(maps), expected)


def test_likelihood_in_two_cells_is_a_point_between_them() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 4, 2], maps[0, 0, 4, 3] = 100, 100 + torch.tensor(3.0).log()
    expected = torch.tensor([[[place(2.75), place(4)]]])
    torch.testing.assert_close(found_in(maps), expected)


def test_it_learns_where_dots_are_within_half_a_pixel() -> None:
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


def test_points_are_in_whole_precision_where_the_network_is_not() -> None:
    torch.manual_seed(0)
    finder, faces = LandmarkFinder(5, CHANNELS).eval(), torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = finder(faces)
        with torch.autocast("cpu", torch.bfloat16):
            found = finder(faces)
        exact = finder.double()(faces.double())
    assert found.dtype == torch.float32 and exact.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)
    torch.testing.assert_close(exact.float(), expected, atol=1e-4, rtol=0)


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
    ("degrees", "scale", "move"), [(0.0, 0.9, [0.0, 0.0]), (-8.0, 1.05, [4.0, 6.0])]
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


def test_gradients_reach_the_picture_through_its_registration() -> None:
    encoder, _ = fitted()
    encoder.finder = LandmarkFinder(68, CONFIG.finder).eval()
    faces = some_textures(2).requires_grad_()
    encoder(faces).square().sum().backward()
    assert faces.grad is not None and faces.grad.isfinite().all()
    assert (faces.grad.abs().sum((1, 2, 3)) > 0).all()


def test_a_plain_background_is_read_as_nothing() -> None:
    textures, shapes = some_textures(N), some_shapes(N)
    textures[:, :, :112] = 0.5
    code = PartsCode.fit(textures, shapes, Windows(224, 4), 1, 1)
    config = dataclasses.replace(PARTS, embedding=17, windows=4)
    encoder = PartsEncoder(config, PREPROCESSING["compact"])
    encoder.fit(code, textures)
    assert encoder.reading.isfinite().all()
    assert not encoder.reading[:4].any() and encoder.reading[8:].any()


def test_landmarks_that_fall_together_give_finite_values() -> None:
    encoder, _ = fitted()
    tell(encoder, 111.5 + torch.zeros(2, 68, 2))
    with torch.no_grad():
        assert encoder(some_textures(2)).isfinite().all()
        encoder.finder = LandmarkFinder(68, CONFIG.finder)  # that has learned nothing
        assert encoder.train()(some_textures(2)).isfinite().all()


def test_a_face_has_the_same_bits_in_any_company() -> None:
    torch.manual_seed(0)
    encoder, _ = fitted()
    encoder.finder = LandmarkFinder(68, CONFIG.finder)
    faces = some_textures(3)
    embed = batch_embedder(encoder.train(), device=torch.device("cpu"), batch_size=4)
    found = embed(faces)
    assert not encoder.training and not found.requires_grad and found.any()
    assert torch.equal(embed(faces[:1]), found[:1]) and torch.equal(
        embed(faces.flip(0))[2:], found[:1]
    )
    with torch.no_grad():
        torch.testing.assert_close(encoder(faces), found, atol=1e-3, rtol=1e-3)


def test_larger_photos_are_averaged_and_other_sizes_refused() -> None:
    encoder, _ = fitted()
    faces = some_textures(1)
    large = functional.interpolate(faces, scale_factor=2, mode="nearest")
    with torch.no_grad():
        torch.testing.assert_close(encoder(large), encoder(faces), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="300 pixels are no multiple of 224"):
        encoder(torch.rand(1, 3, 300, 300))
