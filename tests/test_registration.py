"""What both tasks on faces learn from: registered drawings, and morphs of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DECODER, STAGED, some_landmarks
from face_trees import write_tree

from s2f import face_decoder
from s2f.dataloader import Item, Key
from s2f.errors import DatasetError, ImageError
from s2f.face_data import FaceData, Morphs
from s2f.warp import warp

TEXTURES = pytest.mark.parametrize("texture", [False, True], ids=["photos", "textures"])


def batch_of(data: FaceData, keys: list[Key]) -> Item:
    items = [data.train[key] for key in keys]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    return {k: v.float() / 255 if v.dtype == torch.uint8 else v for k, v in batch.items()}


def open_tree(tree: Path, *, texture: bool, whole: bool = False) -> tuple[FaceData, Item]:
    """A tree of two, who are each other's neighbours, and a batch of both as morphs."""
    data = FaceData(write_tree(tree, 2, texture=texture), 68, "squash", whole=whole)
    data.train.morphs = Morphs(1.0, np.array([[1], [0]]))
    return data, batch_of(data, [Key(0, 0), Key(1, 1)])


def decoder(data: FaceData, *, is_face: bool = False) -> face_decoder.FaceDecoder:
    config = dataclasses.replace(STAGED, is_face=is_face)
    return data.new_decoder(config)


def plain(batch: Item) -> Item:
    return {k: v for k, v in batch.items() if not k.startswith(("other", "mix"))}


@TEXTURES
@pytest.mark.parametrize("is_face", [False, True])
def test_a_morph_with_none_of_the_other_is_no_morph(
    tmp_path: Path, texture: bool, is_face: bool
) -> None:
    data, batch = open_tree(tmp_path, texture=texture, whole=is_face)
    network = decoder(data, is_face=is_face)
    batch["mix"] = torch.zeros(2, 2)
    for found, expected in zip(
        data.example(batch, network), data.example(plain(batch), network), strict=True
    ):
        assert torch.equal(found, expected)


@TEXTURES
def test_a_morph_with_all_of_the_other_is_the_other(tmp_path: Path, texture: bool) -> None:
    data, batch = open_tree(tmp_path, texture=texture)
    network = decoder(data)
    batch["mix"] = torch.ones(2, 2)
    found, other = data.example(batch, network), data.example(plain(batch), network)
    assert torch.equal(found.landmarks, other.landmarks.flip(0))
    assert torch.equal(found.drawing, other.drawing.flip(0))
    if not texture:  # warped there and back, the photo hardly changes inside the frame
        inner = (slice(None), slice(None), slice(30, 194), slice(30, 194))
        assert (found.face - other.face.flip(0))[inner].abs().mean() < 0.01


def test_shape_and_texture_are_mixed_each_with_its_weight(tmp_path: Path) -> None:
    data, batch = open_tree(tmp_path, texture=True)
    network = decoder(data)
    batch["mix"] = torch.tensor([[0.25, 0.5], [0.0, 1.0]])
    face, drawing, landmarks = data.example(batch, network)
    points, drawn = batch["landmarks"], batch["drawing"]
    torch.testing.assert_close(landmarks[0], 0.75 * points[0] + 0.25 * points[1])
    torch.testing.assert_close(drawing[0], (drawn[0] + drawn[1]) / 2)
    torch.testing.assert_close(landmarks[1], points[1])
    torch.testing.assert_close(drawing[1], drawn[0])
    expected = warp(drawing, network.mean_landmarks[None], landmarks)
    torch.testing.assert_close(face, expected)


def test_a_morph_that_is_drawn_without_warp_is_the_morphed_face(tmp_path: Path) -> None:
    data, batch = open_tree(tmp_path, texture=True, whole=True)
    batch["mix"] = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    assert not data.train.registered
    face, drawing, _ = data.example(batch, decoder(data, is_face=True))
    assert torch.equal(face[0], drawing[0]) and not torch.equal(drawing[0], batch["drawing"][0])
    assert torch.equal(drawing[1], batch["drawing"][1])


def test_a_decoder_starts_at_the_mean_shape(tmp_path: Path) -> None:
    data = FaceData(write_tree(tmp_path, 3), 68, "squash")
    mean = torch.from_numpy(np.mean([some_landmarks(k) for k in range(3)], axis=0))
    torch.testing.assert_close(decoder(data).mean_landmarks, mean)


def test_a_linear_start_is_that_of_the_textures_even_where_photos_are_drawn(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, 4, texture=True)
    starts = [FaceData(tree, 68, "squash", whole=w).new_decoder(DECODER) for w in (False, True)]
    for name, value in starts[0].state_dict().items():
        assert torch.equal(value, starts[1].state_dict()[name])


def test_a_linear_model_draws_the_textures_that_it_was_found_from(tmp_path: Path) -> None:
    data = FaceData(write_tree(tmp_path, 6, texture=True), 68, "squash")
    decoder, code, textures = data.linear_decoder(
        dataclasses.replace(DECODER, embedding=25, axes=5, detail=False)
    )
    batch = batch_of(data, [Key(k, 0) for k in range(6)])
    assert torch.equal(textures, batch["drawing"])
    torch.testing.assert_close(decoder.mean_landmarks, data.train.mean_landmarks())
    with torch.no_grad():
        landmarks, drawn = decoder(code(textures, batch["landmarks"]))
    torch.testing.assert_close(landmarks, batch["landmarks"], atol=1e-2, rtol=0)
    assert (drawn - textures).abs().mean() < 0.01  # what the blocks' patterns cannot show


def test_photos_without_textures_are_registered_for_the_linear_model(tmp_path: Path) -> None:
    data = FaceData(write_tree(tmp_path, 3), 68, "squash")
    batch = batch_of(data, [Key(k, 0) for k in range(3)])
    expected = warp(batch["drawing"], batch["landmarks"], data.train.mean_landmarks()[None])
    torch.testing.assert_close(data.linear_decoder(DECODER).textures, expected, atol=1e-3, rtol=0)


def test_a_linear_start_leaves_out_what_cannot_be_read_and_says_so(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, 8)
    broken = [tree / f"train/id{k}/0.jpg" for k in range(7)]
    for path in broken[:6]:
        path.write_bytes(b"broken")
    data = FaceData(tree, 68, "squash")
    code = data.linear_decoder(DECODER).code
    assert code is not None
    (note,) = data.notes
    assert note.startswith("the linear start leaves out 6 photos: ")
    assert all(str(path) in note for path in broken[:5]) and note.endswith(", and 1 more")
    broken[6].write_bytes(b"broken")
    (tree / "train/id7/0.jpg").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"id0/0\.jpg"):
        FaceData(tree, 68, "squash").new_decoder(DECODER)


def test_textures_in_one_split_only_are_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, 2, texture=True)
    for path in (tree / "val").glob("*/*_texture.jpg"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"some photos have a _texture\.jpg beside"):
        FaceData(tree, 68, "squash")


def test_one_identity_is_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="train: has one identity: there is nothing to tell"):
        FaceData(write_tree(tmp_path, 1, photos=3), 68, "squash")


def test_one_identity_is_enough_for_validation(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, 2)
    for path in (tree / "val/id1").iterdir():
        path.unlink()
    assert len(FaceData(tree, 68, "squash").val) == 1


def test_a_tree_without_photos_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with pytest.raises(DatasetError, match="train: holds no photo"):
        FaceData(tmp_path, 68, "squash")
