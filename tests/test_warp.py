"""The spline warp: identity, hits, gradients. Expected values are closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from s2f.warp import _bicubic, _gathered, flow, warp

FACES = Path(__file__).parents[2] / "shared/data/faces"


def points(n: int = 20, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Points inside a frame, no two closer than a sixth of the grid's pitch: [1 n 2]."""
    generator = torch.Generator().manual_seed(seed)
    pitch = size / (int(np.ceil(np.sqrt(n))) + 1)
    places = torch.stack(torch.meshgrid(*2 * [torch.arange(1, size / pitch - 0.5)], indexing="xy"))
    grid = places.flatten(1).T[:n] * pitch
    return (grid + (torch.rand(grid.shape, generator=generator) - 0.5) * pitch / 3)[None]


def test_nothing_moves_when_the_landmarks_do_not() -> None:
    picture = torch.rand(2, 3, 48, 64)
    still = points().expand(2, -1, -1)
    torch.testing.assert_close(warp(picture, still, still), picture, atol=1e-5, rtol=0)


def test_marked_points_come_to_their_landmarks_within_half_a_pixel() -> None:
    # A picture whose two channels are its own x and y says where each pixel came from.
    size = 224
    x = torch.arange(size).float()
    places = torch.stack(torch.meshgrid(x, x, indexing="xy"))[None]
    source = points(49, size, seed=1)
    step = torch.randn(source.shape, generator=torch.Generator().manual_seed(2)) * 4
    target = (source + step).clamp(0, size - 1)
    moved = warp(places, source, target)
    grid = (2 * target / (size - 1) - 1)[:, None]
    came_from = torch.nn.functional.grid_sample(moved, grid, align_corners=True)[:, :, 0].mT
    assert step.norm(dim=2).max() > 8
    assert (came_from - source).norm(dim=2).max() < 0.5


@pytest.mark.data
@pytest.mark.skipif(not FACES.is_dir(), reason="needs the real faces beside the repository")
def test_real_landmarks_are_hit_within_half_a_pixel() -> None:
    names = sorted(FACES.glob("*/neutral_landmarks.npy"))
    shapes = torch.from_numpy(np.stack([np.load(name) for name in names])) * (224 / 256)
    mean = shapes.mean(0, keepdim=True)
    moves = flow(mean.expand(len(shapes), -1, -1), shapes, 224, 224)
    grid = (2 * shapes / 223 - 1)[:, None]
    at = torch.nn.functional.grid_sample(moves, grid, align_corners=True)[:, :, 0].mT
    inside = ((shapes >= 0) & (shapes <= 223)).all(2)
    assert inside.sum() > 5600
    assert (shapes + at - mean).norm(dim=2)[inside].max() < 0.5


def test_a_batch_is_warped_as_its_items_are() -> None:
    picture, source = torch.rand(3, 3, 40, 40), points(9, 40)
    target = source + torch.randn(3, 9, 2)
    alone = [warp(picture[i : i + 1], source, target[i : i + 1]) for i in range(3)]
    # noise, so that a thousandth of a pixel shows
    torch.testing.assert_close(warp(picture, source, target), torch.cat(alone), atol=5e-3, rtol=0)


def test_a_picture_that_is_moved_there_and_back_keeps_its_sharpness() -> None:
    """Half a pixel there and half a pixel back; bilinear sampling would keep half of its detail."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.avg_pool2d(
        torch.rand(1, 3, 64, 64, generator=generator), 2, stride=1, padding=1
    )[..., :64, :64]
    source = points(36)
    target = source + 0.5
    back = warp(warp(picture, source, target), target, source)
    middle = (..., slice(20, 44), slice(20, 44))
    sharpness = [float(p[middle].diff(dim=3).abs().mean()) for p in (picture, back)]
    assert sharpness[1] > 0.8 * sharpness[0]


def test_gradients_are_exact_in_picture_and_both_point_sets() -> None:
    # away from whole pixels, where the second derivative of bicubic sampling jumps
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 1, 9, 9, dtype=torch.double, generator=generator).requires_grad_()
    source = (points(4, 9).double() + 0.123).requires_grad_()
    target = source.detach() + torch.randn(1, 4, 2, generator=generator).double() * 0.3
    target.requires_grad_()
    assert torch.autograd.gradcheck(warp, (picture, source, target), atol=1e-4)


def test_gradients_stay_finite_where_two_landmarks_fall_together() -> None:
    source = points(6, 32)
    target = source.clone()
    target[0, 1] = target[0, 0]
    target.requires_grad_()
    warp(torch.rand(1, 3, 32, 32), source, target).sum().backward()
    assert target.grad is not None and target.grad.isfinite().all()


def test_point_sets_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        warp(torch.rand(1, 3, 8, 8), points(4, 8), points(3, 8))


def test_a_batch_of_many_landmarks_is_warped_with_several_threads() -> None:
    # Batched LU of this size fails in MKL on some processors once threads have been set by hand.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        source = points(189, 224)
        target = source + torch.randn(9, 189, 2)
        moved = warp(torch.rand(9, 3, 224, 224), source, target)
    finally:
        torch.set_num_threads(threads)
    assert moved.isfinite().all()


def test_half_precision_around_it_changes_nothing() -> None:
    picture, source = torch.rand(1, 3, 40, 40), points(9, 40)
    target = source + torch.randn(1, 9, 2)
    expected = warp(picture, source, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(picture, source, target), expected)
        rounded = warp(picture.bfloat16(), source, target)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, atol=4e-3, rtol=0)


def test_the_sampling_of_deterministic_training_is_the_same_with_the_same_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 12, 10, generator=generator).double().requires_grad_()
    x = (torch.rand(2, 12, 10, generator=generator).double() * 14 - 2).requires_grad_()
    y = (torch.rand(2, 12, 10, generator=generator).double() * 16 - 2).requires_grad_()
    grid = torch.stack([2 * x / 9 - 1, 2 * y / 11 - 1], dim=-1)
    weights = torch.rand(2, 3, 12, 10, generator=generator).double()
    both = []
    for sampled in (
        _gathered(picture, x, y),
        torch.nn.functional.grid_sample(
            picture, grid, mode="bicubic", padding_mode="border", align_corners=True
        ),
    ):
        both.append((sampled, *torch.autograd.grad((weights * sampled).sum(), (picture, x, y))))
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("n", [2, 9, 223, 224])
def test_the_flow_between_nodes_is_bicubic(n: int) -> None:
    matrix = _bicubic(n)
    at_nodes = torch.randn(1, 2, matrix.shape[1], matrix.shape[1])
    expected = torch.nn.functional.interpolate(
        at_nodes, size=(n, n), mode="bicubic", align_corners=True
    )
    torch.testing.assert_close(matrix @ at_nodes @ matrix.T, expected, atol=1e-5, rtol=0)
