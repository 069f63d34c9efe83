"""The nearest of other people's photos. The oracle compares all with all, in NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from face_trees import write_tree
from torch.nn import functional

from s2f import checkpoint, face_data
from s2f.errors import DatasetError
from s2f.face_encoder import VGGFace
from s2f.images import load_face

CPU = torch.device("cpu")


@pytest.fixture
def network(models: Path) -> VGGFace:
    network = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder").network
    assert isinstance(network, VGGFace)
    return network


def some_directions(n: int, d: int = 16) -> torch.Tensor:
    return functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("cells", [1, 400, 10**6])
def test_the_nearest_are_those_of_a_plain_comparison(cells: int) -> None:
    rows, groups = some_directions(60), torch.arange(60) // 3
    found = face_data.nearest(rows, groups, 10, cells=cells).numpy()
    for i in range(60):
        cosines = rows.numpy() @ rows[i].numpy()
        order = [j for j in np.argsort(-cosines) if j // 3 != i // 3]
        assert list(found[i]) == order[:10]


def test_a_row_without_a_group_is_nobodys_neighbour() -> None:
    groups = torch.tensor([0, 1, -1, 2, -1, 3])
    found = face_data.nearest(some_directions(6), groups, 10)
    assert found.shape == (6, 3)
    assert not {2, 4} & set(found.flatten().tolist())


def test_there_are_no_more_neighbours_than_everyone_has() -> None:
    assert face_data.nearest(some_directions(5), torch.tensor([0, 0, 0, 1, 2]), 10).shape == (5, 2)


def test_photos_are_embedded_as_the_network_embeds_them(tmp_path: Path, network: VGGFace) -> None:
    photos = sorted((write_tree(tmp_path, 40) / "train").glob("*/*.jpg"))
    with torch.no_grad():
        expected = network(torch.stack([load_face(path) for path in photos]).float() / 255)
    told: list[int] = []
    found, bad = face_data.directions(
        photos, network, device=CPU, progress=lambda done, total, what: told.append(done)
    )
    assert bad == [] and told == list(range(1, 41))
    torch.testing.assert_close(found, functional.normalize(expected), atol=1e-5, rtol=0)


def test_a_stored_embedding_is_taken_as_it_is(tmp_path: Path, network: VGGFace) -> None:
    photos = sorted((write_tree(tmp_path, 3) / "train").glob("*/*.jpg"))
    stored = np.arange(1, 9, dtype=np.float16)
    np.save(photos[1].with_name("0_embedding.npy"), stored[None])
    photos[1].write_bytes(b"not read")
    found, bad = face_data.directions(photos, network, device=CPU)
    assert bad == []
    np.testing.assert_allclose(found[1], stored / np.linalg.norm(stored), rtol=1e-3)


def test_photos_that_cannot_be_read_are_told_and_the_others_embedded(
    tmp_path: Path, network: VGGFace
) -> None:
    photos = sorted((write_tree(tmp_path, 4) / "train").glob("*/*.jpg"))
    whole = face_data.directions(photos, network, device=CPU)[0]
    for path in (photos[0], photos[3]):
        path.write_bytes(b"broken")
    found, bad = face_data.directions(photos, network, device=CPU)
    assert [str(photos[0]) in bad[0].message, str(photos[3]) in bad[1].message] == [True, True]
    assert not found[[0, 3]].any()
    torch.testing.assert_close(found[1:3], whole[1:3])


@pytest.mark.parametrize(
    "stored", [np.ones(9, np.float32), np.full(8, np.nan), np.array(["a"] * 8), np.ones(8, int)]
)
def test_an_embedding_of_another_kind_is_named(
    tmp_path: Path, network: VGGFace, stored: np.ndarray
) -> None:
    (photo,) = (write_tree(tmp_path, 1) / "train").glob("*/*.jpg")
    np.save(photo.with_name("0_embedding.npy"), stored)
    with pytest.raises(DatasetError, match=r"0_embedding\.npy: holds an array .* wanted \[8\]"):
        face_data.directions([photo], network, device=CPU)
