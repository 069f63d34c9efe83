"""Fine detail brought back. Checkerboards are known answers: all of them is in the finest band."""

import pytest
import torch
from torch.nn import functional

from s2f import appearance_model
from s2f.appearance_model import MOST, Detail, _bands, _blur

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


def fitted(textures: torch.Tensor) -> Detail:
    """Fitted to textures, once darker and once lighter: what never varies is background."""
    detail = Detail(64)
    detail.fit(torch.cat([textures - 0.04, textures + 0.04]))
    return detail


def test_at_first_it_leaves_all_as_it_is() -> None:
    torch.testing.assert_close(Detail(64)(photos()), photos(), atol=1e-6, rtol=0)


def test_the_bands_and_the_rest_add_up_to_the_picture() -> None:
    bands, rest = _bands(photos())
    torch.testing.assert_close(rest + torch.stack(bands).sum(0), photos(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("deviation", [0.7, 2.8])
def test_a_blur_is_a_gaussians(deviation: float) -> None:
    point = torch.zeros(1, 1, 31, 31, dtype=torch.double)
    point[0, 0, 15, 15] = 1
    blurred = _blur(point, deviation)[0, 0]
    assert float(blurred.sum()) == pytest.approx(1)
    steps = torch.arange(31).double() - 15
    assert float((blurred.sum(0) * steps).sum()) == pytest.approx(0, abs=1e-12)
    # cut off at three deviations
    assert float((blurred.sum(0) * steps**2).sum()) == pytest.approx(deviation**2, rel=0.05)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0.3, 0.3), (0.6, 0.6), (0.2, 0.3), (0.03, 0.03 * MOST), (0.0, 0.0)],
    ids=["as photos", "stronger", "fainter", "much fainter", "nothing"],
)
def test_what_is_fainter_than_in_photos_is_made_as_strong(given: float, expected: float) -> None:
    found = fitted(board(0.3))(board(given))
    torch.testing.assert_close(found[MIDDLE], board(expected)[MIDDLE], atol=3e-3, rtol=0)


def test_photos_strengths_are_averaged() -> None:
    found = fitted(torch.cat([board(0.1), board(0.4)]))(board(0.15))
    torch.testing.assert_close(found[MIDDLE], board(0.25)[MIDDLE], atol=3e-3, rtol=0)


def test_strength_is_a_share_of_the_brightness() -> None:
    # Half as bright, background of 0.1 included: half the contrast is all there is to be.
    dark = (board(0.05) - 0.5) + 0.2
    found = fitted(board(0.3))(dark)
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


def test_photos_stay_much_as_they_are_and_no_band_is_weakened() -> None:
    detail = fitted(photos())
    given = photos(seed=1)
    found = detail(given)
    assert (found - given).abs().mean() < 0.01
    for before, after in zip(_bands(given)[0], _bands(found)[0], strict=True):
        assert (after.square().sum((1, 2, 3)) >= before.square().sum((1, 2, 3))).all()


def test_a_blurred_texture_comes_towards_the_sharpness_of_photos() -> None:
    def sharpness(x: torch.Tensor) -> float:
        return float(x.diff(dim=3).abs().mean())

    blurred = functional.avg_pool2d(photos(seed=1), 3, stride=1, padding=1, count_include_pad=False)
    found = fitted(photos())(blurred)
    assert sharpness(blurred) < 0.5 * sharpness(photos(seed=1))
    assert 1.5 * sharpness(blurred) < sharpness(found) < 1.05 * sharpness(photos(seed=1))


def test_mean_colours_stay() -> None:
    blurred = functional.avg_pool2d(photos(seed=1), 3, stride=1, padding=1, count_include_pad=False)
    found = fitted(photos())(blurred)
    torch.testing.assert_close(found.mean((2, 3)), blurred.mean((2, 3)), atol=2e-3, rtol=0)


def test_only_the_place_that_is_fainter_is_changed() -> None:
    strong = fitted(board(0.2).where(torch.arange(64) < 32, torch.tensor(0.5)))
    found = strong(board(0.1))
    torch.testing.assert_close(found[..., 56:], board(0.1)[..., 56:], atol=3e-3, rtol=0)
    assert (found - board(0.1))[..., 24:40, 4:12].abs().min() > 0.08


def test_a_texture_is_treated_alike_alone_and_in_a_batch() -> None:
    detail, given = fitted(photos()), photos(4, seed=1) * 0.5
    torch.testing.assert_close(
        detail(given), torch.cat([detail(one) for one in given.split(1)]), atol=1e-6, rtol=0
    )


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


def test_the_strengths_travel_with_the_weights() -> None:
    detail = fitted(photos())
    assert detail.strengths.shape == (3, 8, 8) and (detail.strengths > 0).all()
    again = Detail(64)
    again.load_state_dict(detail.state_dict())
    assert torch.equal(again(photos(seed=1)), detail(photos(seed=1)))
