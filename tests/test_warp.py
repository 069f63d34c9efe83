"""The spline warp: identity, hits, gradients. Expected values are closed form."""

import numpy as np
import pytest
import torch
from conftest import FACES, real_faces

from s2f.warp import _gathered, flow, warp


def points(n: int = 20, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Points inside a frame, no two closer than a sixth of the grid's pitch: [1 n 2]."""
    generator = torch.Generator().manual_seed(seed)
    pitch = size / (int(np.ceil(np.sqrt(n))) + 1)
    places = torch.stack(torch.meshgrid(*2 * [torch.arange(1, size / pitch - 0.5)], indexing="xy"))
    grid = places.flatten(1).T[:n] * pitch
    return (grid + (torch.rand(grid.shape, generator=generator) - 0.5) * pitch / 3)[None]


def test_nothing_moves_when_the_landmarks_do_not():
    picture = torch.rand(2, 3, 48, 64)
    still = points().expand(2, -1, -1)
    torch.testing.assert_close(warp(picture, still, still), picture, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="do not pair up"):
        warp(picture, still, still[:, :3])


def test_marked_points_come_to_their_landmarks_within_half_a_pixel():
    # A picture whose two channels are its own x and y says where each pixel came from.
    x = torch.arange(224).float()
    places = torch.stack(torch.meshgrid(x, x, indexing="xy"))[None]
    source = points(49, 224, seed=1)
    step = torch.randn(source.shape, generator=torch.Generator().manual_seed(2)) * 4
    target = (source + step).clamp(0, 223)
    moved = warp(places, source, target)
    grid = (2 * target / 223 - 1)[:, None]
    came_from = torch.nn.functional.grid_sample(moved, grid, align_corners=True)[:, :, 0].mT
    assert step.norm(dim=2).max() > 8
    assert (came_from - source).norm(dim=2).max() < 0.5


@pytest.mark.data
@real_faces
def test_real_landmarks_are_hit_within_half_a_pixel():
    names = sorted(FACES.glob("*/neutral_landmarks.npy"))
    shapes = torch.from_numpy(np.stack([np.load(name) for name in names])) * (224 / 256)
    mean = shapes.mean(0, keepdim=True)
    moves = flow(mean.expand(len(shapes), -1, -1), shapes, 224, 224)
    grid = (2 * shapes / 223 - 1)[:, None]
    at = torch.nn.functional.grid_sample(moves, grid, align_corners=True)[:, :, 0].mT
    inside = ((shapes >= 0) & (shapes <= 223)).all(2)
    assert inside.sum() > 5600
    assert (shapes + at - mean).norm(dim=2)[inside].max() < 0.5


def test_a_picture_that_is_moved_there_and_back_keeps_its_sharpness():
    """Half a pixel there and half a pixel back; bilinear sampling would keep half of its detail."""
    noise = torch.rand(1, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.avg_pool2d(noise, 2, stride=1)
    source = points(36)
    target = source + 0.5
    back = warp(warp(picture, source, target), target, source)
    middle = (..., slice(20, 44), slice(20, 44))
    sharpness = [float(p[middle].diff(dim=3).abs().mean()) for p in (picture, back)]
    assert sharpness[1] > 0.8 * sharpness[0]


def test_gradients_are_exact_in_picture_and_both_point_sets():
    # away from whole pixels, where the second derivative of bicubic sampling jumps
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 1, 9, 9, dtype=torch.double, generator=generator).requires_grad_()
    source = (points(4, 9).double() + 0.123).requires_grad_()
    target = source.detach() + torch.randn(1, 4, 2, generator=generator).double() * 0.3
    target.requires_grad_()
    assert torch.autograd.gradcheck(warp, (picture, source, target), atol=1e-4)
    together = points(6, 32)[:, [0, 0, 2, 3, 4, 5]].requires_grad_()
    warp(torch.rand(1, 3, 32, 32), points(6, 32), together).sum().backward()
    assert together.grad is not None and together.grad.isfinite().all()


def test_half_precision_around_it_changes_nothing():
    picture, source = torch.rand(1, 3, 40, 40), points(9, 40)
    target = source + torch.randn(1, 9, 2)
    expected = warp(picture, source, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(picture, source, target), expected)
        rounded = warp(picture.bfloat16(), source, target)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, atol=4e-3, rtol=0)


def test_the_sampling_of_deterministic_training_is_the_same_with_the_same_gradients():
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 12, 10, generator=generator).double().requires_grad_()
    x = (torch.rand(2, 12, 10, generator=generator).double() * 14 - 2).requires_grad_()
    y = (torch.rand(2, 12, 10, generator=generator).double() * 16 - 2).requires_grad_()
    grid = torch.stack([2 * x / 9 - 1, 2 * y / 11 - 1], dim=-1)
    weights = torch.rand(2, 3, 12, 10, generator=generator).double()
    how = {"mode": "bicubic", "padding_mode": "border", "align_corners": True}
    sampled = _gathered(picture, x, y), torch.nn.functional.grid_sample(picture, grid, **how)
    found, wanted = (
        (one, *torch.autograd.grad((weights * one).sum(), (picture, x, y))) for one in sampled
    )
    torch.testing.assert_close(found, wanted)
