"""Finished faces of embeddings, and sheets of faces."""

import dataclasses

import pytest
import torch
from conftest import DECODER, EMBEDDING, some_landmarks

from s2f.face_decoder import FaceDecoder, draw_faces, sheet
from s2f.warp import warp


def decoder(*, is_face: bool = False) -> FaceDecoder:
    torch.manual_seed(0)
    network = FaceDecoder(dataclasses.replace(DECODER, is_face=is_face))
    network.mean_landmarks.copy_(torch.from_numpy(some_landmarks()))
    return network.eval()


@torch.no_grad()
def test_a_texture_is_brought_from_the_mean_shape_to_the_landmarks() -> None:
    network, embeddings = decoder(), torch.randn(2, EMBEDDING)
    points, faces = draw_faces(network, embeddings)
    expected_points, texture = network(embeddings)
    torch.testing.assert_close(points, expected_points)
    moved = warp(texture, network.mean_landmarks[None], points)
    torch.testing.assert_close(faces, moved.clamp(0, 1))
    assert not torch.equal(faces, texture)


@torch.no_grad()
def test_a_texture_that_is_the_face_already_stays_where_it_is() -> None:
    network, embeddings = decoder(is_face=True), torch.randn(2, EMBEDDING)
    torch.testing.assert_close(draw_faces(network, embeddings), network(embeddings))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_sheet_has_its_pictures_side_by_side_in_rows(rows: int) -> None:
    pictures = torch.rand(rows, 3, 3, 4, 5)
    page = sheet(*pictures)
    assert page.shape == (3, rows * 4, 15)
    torch.testing.assert_close(page[:, -4:, 5:10], pictures[-1, 1])
