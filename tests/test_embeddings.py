"""Embeddings beside photos, alone, or still to be made; with a face encoder that is one sum."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2f.distributed import Ranks
from s2f.embeddings import BATCH, Gallery, Maker, read_embedding
from s2f.errors import CheckpointError, DatasetError, ImageError
from s2f.layout import FaceFiles


@pytest.fixture
def maker() -> Maker:
    """Embeds a photo as the means of red, green and blue, and 1; remembers its batches."""

    def embed(photos: torch.Tensor) -> torch.Tensor:
        assert photos.dtype == torch.float32 and photos.shape[1:] == (3, 224, 224)
        embed.batches.append(len(photos))
        return torch.cat([photos.mean((2, 3)), torch.ones(len(photos), 1)], 1)

    embed.batches = []
    return Maker("the face encoder", 4, "squash", embed)


def colour(k: int) -> tuple[int, int, int]:
    return (k % 251, 255 - k % 199, 3 * k % 256)


def expected(k: int) -> np.ndarray:
    return np.array([*(value / 255 for value in colour(k)), 1], np.float32)


def make_face(folder: Path, k: int, *, photo=True, embedding=None) -> FaceFiles:
    """Write the photo of one colour, or an embedding [4], or both."""
    stored = None if embedding is None else f"{k}_embedding.npy"
    if photo:
        Image.new("RGB", (20, 20), colour(k)).save(folder / f"{k}.png")
    if stored:
        np.save(folder / stored, np.array(embedding, np.float32))
    return FaceFiles(f"{k}", f"{k}.png" if photo else None, stored)


def test_photos_are_embedded_in_batches_but_for_those_that_cannot_be_read(tmp_path, maker):
    faces = [make_face(tmp_path, k) for k in range(BATCH + 3)]
    (tmp_path / "1.png").write_bytes(b"no picture")
    told = []
    gallery = Gallery(tmp_path, maker, lambda *step: told.append(step))
    failed = gallery.add(faces)
    assert list(failed) == [faces[1]] and "1.png" in failed[faces[1]].message
    table, rows = gallery.table(faces[::-1])
    for k, row in enumerate(rows[::-1]):
        if k == 1:
            assert row == -1
        else:
            np.testing.assert_allclose(table[row], expected(k), atol=1e-6)
    assert maker.embed.batches == [BATCH - 1, 3]
    assert told == [(k, BATCH + 3, "embedding photos") for k in (0, BATCH)]
    assert table.dtype == np.float32 and table.shape == (BATCH + 3, 4)


def test_what_stands_is_not_made_again(tmp_path, maker):
    near = expected(1) * 1.005
    faces = [
        make_face(tmp_path, 0, photo=False, embedding=[5, 6, 7, 8]),
        make_face(tmp_path, 1, embedding=near),
        make_face(tmp_path, 2),
    ]
    gallery = Gallery(tmp_path, maker)
    assert gallery.add(faces) == {} and gallery.add(faces[:2]) == {}
    table, rows = gallery.table(faces)
    np.testing.assert_allclose(table[rows], [[5, 6, 7, 8], near, expected(2)], atol=1e-6)
    assert gallery.n_unchecked == 1 and maker.embed.batches == [1, 1]


def test_embeddings_of_another_face_encoder_are_refused(tmp_path, maker):
    faces = [make_face(tmp_path, k, embedding=expected(k)) for k in range(8)]
    faces[3] = make_face(tmp_path, 3, embedding=-expected(3))
    message = r"3_embedding\.npy: is not what the face encoder makes of its photo: .* 2 of its norm"
    with pytest.raises(CheckpointError, match=message):
        Gallery(tmp_path, maker).add(faces)
    for k in range(7):  # a broken photo tells nothing of its embedding
        (tmp_path / f"{k}.png").write_bytes(b"no picture")
    assert Gallery(tmp_path, maker).add(faces) == {} and maker.embed.batches == [8, 1]
    (tmp_path / "7.png").unlink()
    with pytest.raises(ImageError, match=r"0\.png"):
        Gallery(tmp_path, maker).add(faces)


def test_an_embedding_is_a_row_of_any_precision_and_what_is_none_is_named(tmp_path):
    for values in (np.arange(4, dtype=np.float16), np.arange(4.0)[np.newaxis]):
        np.save(tmp_path / "e.npy", values)
        found = read_embedding(tmp_path / "e.npy", 4)
        assert found.dtype == np.float32 and found.tolist() == [0, 1, 2, 3]
    for values, message in [
        (np.zeros(5, np.float32), r"holds float32 values \[5\]; wanted an embedding \[4\]"),
        (np.zeros(4, np.int16), r"holds int16 values \[4\]"),
        (np.array([1, 2, 1e300, 4]), "holds values that are not finite"),
    ]:
        np.save(tmp_path / "e.npy", values)
        with pytest.raises(DatasetError, match=rf"e\.npy: {message}"):
            read_embedding(tmp_path / "e.npy", 4)


@dataclasses.dataclass(frozen=True)
class Threads(Ranks):
    """Processes as threads of this one."""

    told: dict[int, object] = dataclasses.field(default_factory=dict)
    barrier: threading.Barrier = dataclasses.field(default_factory=lambda: threading.Barrier(2))

    def gather(self, value):
        self.told[self.rank] = value
        self.barrier.wait(60)
        values = [self.told[rank] for rank in range(self.size)]
        self.barrier.wait(60)
        return values


def test_each_process_embeds_its_share_of_the_photos_and_has_all(tmp_path, maker):
    n = 2 * BATCH + 3
    faces = [make_face(tmp_path, k) for k in range(n)]
    for k in (1, BATCH + 1):
        (tmp_path / f"{k}.png").write_bytes(b"no picture")
    alone = Gallery(tmp_path, maker)
    failed = alone.add(faces)
    maker.embed.batches.clear()
    ranks = Threads(0, 2)
    galleries = [
        Gallery(tmp_path, dataclasses.replace(maker, ranks=dataclasses.replace(ranks, rank=rank)))
        for rank in (0, 1)
    ]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda gallery: gallery.add(faces), galleries))
    assert sorted(maker.embed.batches) == [3, BATCH - 1, BATCH - 1]  # each photo once
    for gallery, broken in zip(galleries, found, strict=True):
        assert set(broken) == set(failed) == {faces[1], faces[BATCH + 1]}
        assert all(broken[face].message == failed[face].message for face in broken)
        (mine, rows), (theirs, same) = gallery.table(faces), alone.table(faces)
        np.testing.assert_array_equal(rows, same)
        np.testing.assert_array_equal(mine[rows[rows >= 0]], theirs[rows[rows >= 0]])
