"""The code of parts. Oracles: scikit-learn's PCA for one window, the SVD for the patterns."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional

from s2f.appearance_model import BLOCK_CHANNELS, LocalTexture, PartsCode, Windows

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


@pytest.mark.parametrize("windows", GRIDS, ids=str)
def test_cutting_and_joining_are_adjoint(windows: Windows) -> None:
    pictures = normal(2, 3, windows.size, windows.size).double()
    parts = normal(2, windows.count**2, 3 * (2 * windows.pitch) ** 2, seed=1).double()
    torch.testing.assert_close(
        (windows.cut(pictures) * parts).sum(), (pictures * windows.join(parts)).sum()
    )


def test_a_window_is_the_patch_around_its_place_in_the_grid() -> None:
    picture = normal(1, 1, 48, 48)
    middle = WINDOWS.cut(picture)[0, 4].view(32, 32)
    assert torch.equal(middle, picture[0, 0, 8:40, 8:40])
    corner = WINDOWS.cut(picture)[0, 0].view(32, 32)
    assert torch.equal(corner[8:, 8:], picture[0, 0, :24, :24])
    assert not corner[:8].any() and not corner[:, :8].any()  # outside of the picture


def test_fades_are_the_same_mirrored() -> None:
    fade = WINDOWS.fade().view(3, 3, 32, 32)
    torch.testing.assert_close(fade, fade.flip(0, 2))
    torch.testing.assert_close(fade, fade.transpose(0, 1).transpose(2, 3))


def test_faces_that_vary_in_few_ways_are_drawn_again_from_their_code() -> None:
    textures, landmarks = some_faces()
    code = PartsCode.fit(textures, landmarks, WINDOWS, 3, 3)
    values = code(textures, landmarks)
    assert values.shape == (30, 9 * 3 + 3)
    local = LocalTexture(WINDOWS, 3)
    local.fit(code.texture_axes, WINDOWS)
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


def test_the_code_of_the_mean_is_zero() -> None:
    code = PartsCode.fit(*some_faces(), WINDOWS, 3, 3)
    assert not code(code.mean_texture[None], code.mean_landmarks[None]).any()


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
    local.fit(code.texture_axes, WINDOWS)
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
    local.fit(code.texture_axes, WINDOWS)
    with torch.no_grad():
        drawn = code.mean_texture + local(values[:, :54].view(4, 9, 6))
    torch.testing.assert_close(drawn, textures, atol=1e-3, rtol=0)


def test_a_unit_of_shape_is_read_as_one() -> None:
    code = PartsCode.fit(*some_faces(), WINDOWS, 3, 3)
    for k, axis in enumerate(code.shape_axes):
        read = code(code.mean_texture[None], (code.mean_landmarks + axis.view(5, 2))[None])
        expected = torch.zeros(1, 30)
        expected[0, 27 + k] = 1
        torch.testing.assert_close(read, expected, atol=1e-4, rtol=0)


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
    local.fit(axes, windows)
    with torch.no_grad():
        shown = local(torch.eye(20)[:, None])
    # The window's middle is the picture; what lies outside of it has to be shown as well.
    blocks = axes.view(20, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(320, 192)
    u, s, v = torch.linalg.svd(blocks.double(), full_matrices=False)
    best = (u[:, :BLOCK_CHANNELS] * s[:BLOCK_CHANNELS]) @ v[:BLOCK_CHANNELS]
    expected = best.view(20, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(20, 3, 32, 32)
    torch.testing.assert_close(shown, expected[..., 8:24, 8:24].float(), atol=1e-4, rtol=0)


def test_what_is_drawn_is_linear_in_the_values() -> None:
    local = LocalTexture(WINDOWS, 3)
    local.fit(PartsCode.fit(*some_faces(), WINDOWS, 3, 3).texture_axes, WINDOWS)
    a, b = normal(2, 9, 3), normal(2, 9, 3, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(local(2 * a - b), 2 * local(a) - local(b), atol=1e-5, rtol=1e-5)
        assert not local(torch.zeros(1, 9, 3)).any()
