"""Landmarks found as centres of mass. Known answers: likelihood that lies in one cell of a map."""

import pytest
import torch
from torch import nn

from s2f.appearance_model import REACH, LandmarkFinder

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


def test_points_may_lie_outside_the_picture() -> None:
    assert place(0) < 0 and place(7) > SIZE - 1
    assert place(-0.5) == pytest.approx(-0.1 * SIZE - 0.5)


def test_likelihood_in_two_cells_is_a_point_between_them() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 4, 2], maps[0, 0, 4, 3] = 100, 100 + torch.tensor(3.0).log()
    expected = torch.tensor([[[place(2.75), place(4)]]])
    torch.testing.assert_close(found_in(maps), expected)


def test_likelihood_everywhere_is_a_point_in_the_middle() -> None:
    torch.testing.assert_close(found_in(torch.zeros(2, 3, 8, 8)), torch.full((2, 3, 2), 15.5))


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


def test_every_weight_gets_a_gradient() -> None:
    torch.manual_seed(0)
    finder = LandmarkFinder(5, CHANNELS)
    finder(torch.rand(4, 3, SIZE, SIZE)).square().sum().backward()
    for name, p in finder.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        # a shift of a whole map changes no share of it
        assert name == "maps.bias" or p.grad.abs().sum() > 0, name


def test_a_face_is_read_alike_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    finder = LandmarkFinder(5, CHANNELS).eval()
    faces = torch.rand(3, 3, SIZE, SIZE)
    with torch.no_grad():
        alone = torch.cat([finder(face) for face in faces.split(1)])
        torch.testing.assert_close(finder(faces), alone, atol=1e-4, rtol=0)


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


@pytest.mark.parametrize("size", [16, 32, 48, 112])
def test_pictures_may_be_of_any_side_that_halves_four_times(size: int) -> None:
    finder = LandmarkFinder(5, CHANNELS).eval()
    with torch.no_grad():
        assert finder(torch.rand(1, 3, size, size)).shape == (1, 5, 2)
