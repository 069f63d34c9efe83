"""Spline warp: move a picture so that its marked points come to rest on given landmarks.

Tensors in, tensors out: batched, differentiable in the picture and in both point sets, the same
code on CPU and GPU. Points are xy pixels with (0, 0) at the centre of the first pixel.

Source: Cole et al. 2017. Departures: one spline moves x and y together and has an affine part; and
the points that stand still lie on a ring around the frame instead of on its border, so that hair
and neck near the border may move.
"""

import torch
from torch import Tensor
from torch.nn import functional

RING_MARGIN = 0.25  # of the frame's side: from the border to the points that stand still
RING_POINTS = 8  # a side
STEP = 3  # pixels between the nodes where the spline is evaluated; cubic in between
ROUNDING = 0.02  # of the frame's side: within it the spline's cusp at a landmark is rounded
CONSTANT = 4.0  # in units of the frame's side: more than any distance between points
SMOOTHING = 1e-4  # lets two landmarks that fall together disagree, instead of no solution


def warp(picture: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Warp pictures [b c h w] so that what is at the source points comes to the target points.

    Points are [b k 2] or [1 k 2]. The result is [b c h w], float32 at least, whatever autocast is
    on; what comes from outside the frame repeats its border. Raises ValueError if the point sets
    differ in shape.
    """
    if source.shape[1:] != target.shape[1:]:
        raise ValueError(f"points {list(source.shape)} and {list(target.shape)} do not pair up")
    b, _, height, width = picture.shape
    with torch.autocast(picture.device.type, enabled=False):
        picture, source, target = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in (picture, source, target)
        )
        moves = flow(source.expand(b, -1, -1), target.expand(b, -1, -1), height, width)
        x = torch.arange(width).to(picture) + moves[:, 0]
        y = torch.arange(height).to(picture)[:, None] + moves[:, 1]
        repeatable = torch.are_deterministic_algorithms_enabled()
        if picture.device.type not in ("cpu", "cuda") or (picture.is_cuda and repeatable):
            return _gathered(picture, x, y)  # whose gradients CUDA adds up in one order
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
        # Not bilinear: a face that is registered and drawn again loses 43 % of its sharpness to
        # that, and 13 % to this.
        return functional.grid_sample(
            picture, grid, mode="bicubic", padding_mode="border", align_corners=True
        )


def flow(source: Tensor, target: Tensor, height: int, width: int) -> Tensor:
    """Fit the field that leads from each target point back to its source point, both [b k 2].

    The result [b 2 h w] is xy pixels to add to a position of the warped picture to find it in the
    source; zero everywhere if the points are equal. The basis is -sqrt(r^2 + c^2): near a landmark
    as smooth as a thin plate, so that coarse nodes catch it, and farther off linear, so that it
    does not overshoot between points that lie close and move apart, as lips and eyelids do.
    """
    b, k, _ = target.shape
    side = max(height, width)  # the fit is done in units of it, well scaled in float32
    ring = (_ring(height, width).to(target) / side).expand(b, -1, -1)
    centres = torch.cat([target / side, ring], dim=1)  # [b m 2]
    moves = functional.pad((source - target) / side, (0, 0, 0, ring.shape[1]))  # [b m 2]
    affine = functional.pad(centres, (1, 0), value=1.0)  # [b m 3]
    smooth = functional.pad(torch.full((k,), SMOOTHING).to(target), (0, ring.shape[1]))
    # The weights sum to zero, so the constant changes nothing but makes the matrix definite.
    kernel = _kernel(centres, centres) + CONSTANT + torch.diag(smooth)
    factor = torch.linalg.cholesky_ex(kernel).L  # definite, so that no GPU is asked whether it is
    both = torch.cholesky_solve(torch.cat([affine, moves], dim=2), factor)
    inner = affine.mT @ both  # [b 3 5]
    plane = torch.cholesky_solve(inner[..., 3:], torch.linalg.cholesky_ex(inner[..., :3]).L)
    weights = both[..., 3:] - both[..., :3] @ plane  # [b m 2]
    down, across = (_bicubic(n).to(target) for n in (height, width))
    x = torch.linspace(0, (width - 1) / side, across.shape[1]).to(target)
    y = torch.linspace(0, (height - 1) / side, down.shape[1]).to(target)
    # Nodes are a grid: squares of distances add up from those along x and along y.
    along_x = (x - centres[..., :1]).square()  # [b m nx]
    along_y = (y - centres[..., 1:]).square()
    squares = (along_y + ROUNDING**2)[..., None] + along_x[:, :, None]  # [b m ny nx]
    bent = (weights.mT @ squares.sqrt().flatten(2)).view(b, 2, len(y), len(x))
    offset, by_x, by_y = plane[..., None, None].unbind(1)
    at_nodes = side * (offset + by_x * x + by_y * y[:, None] - bent)
    return down @ at_nodes @ across.T


def _ring(height: int, width: int) -> Tensor:
    """Points around the frame that stand still, xy pixels [4 RING_POINTS, 2]."""
    t = torch.arange(RING_POINTS) / RING_POINTS
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    sides = [(t, zero), (one, t), (1 - t, one), (zero, 1 - t)]
    unit = torch.cat([torch.stack(side, dim=1) for side in sides])
    around = unit * (1 + 2 * RING_MARGIN) - RING_MARGIN
    return around * torch.tensor([width - 1.0, height - 1.0])


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Multiquadric basis between points, [b m 2] x [b k 2] -> [b m k]."""
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return -(distance.square() + ROUNDING**2).sqrt()


def _bicubic(n: int) -> Tensor:
    """Cubic interpolation from the nodes of a side to its pixels, as a matrix [n nodes]."""
    # That of `interpolate`, whose own gradient CUDA adds up in any order.
    nodes = 1 + -(-(n - 1) // STEP)
    return functional.interpolate(
        torch.eye(nodes)[None, None], size=(n, nodes), mode="bicubic", align_corners=True
    )[0, 0]


def _gathered(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample pictures [b c h w] at x, y [b h w] as bicubic `grid_sample` does, on any device."""
    _, c, height, width = picture.shape
    left, top = x.detach().floor(), y.detach().floor()
    across, down = _cubic(x - left), _cubic(y - top)
    flat = picture.flatten(2)
    total = torch.zeros_like(picture)
    for i, row in enumerate(down, start=-1):
        for j, column in enumerate(across, start=-1):
            at_y, at_x = (top + i).clamp(0, height - 1), (left + j).clamp(0, width - 1)
            place = (at_y * width + at_x).long().flatten(1)[:, None].expand(-1, c, -1)
            total = total + flat.gather(2, place).view_as(picture) * (row * column)[:, None]
    return total


def _cubic(t: Tensor) -> list[Tensor]:
    """Shares of the pixels at -1, 0, 1 and 2 in what lies at t, 0..1. Source: Keys 1981."""
    a = -0.75
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
    return [far[0], *near, far[1]]
