"""Photos as items, on small made trees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import some_landmarks
from face_trees import write_face
from PIL import Image

from s2f import layout
from s2f.dataloader import Key
from s2f.errors import DatasetError, ImageError
from s2f.face_data import FaceDataset, Morphs
from s2f.face_decoder import FaceDecoder, FaceDecoderConfig
from s2f.images import load_face
from s2f.landmarks import MAP_72


def make_face(stem: Path, points: int = 68, *, texture: bool = False) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (224, 224), (200, 100, 50))
    image.save(stem.with_suffix(".jpg"))
    suffix = layout.LANDMARKS if points == 68 else layout.TEMPLATE
    np.save(layout.beside(stem, layout.LANDMARKS), np.zeros((68, 2), np.float32))
    np.save(layout.beside(stem, suffix), np.full((points, 2), 7, np.float32))
    if texture:
        Image.new("RGB", (224, 224)).save(layout.beside(stem, layout.TEXTURE))


def test_a_face_comes_with_landmarks_and_drawing(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0", texture=True)
    faces = FaceDataset(tmp_path, landmarks=68)
    item = faces[Key(0, 0)]
    assert faces.registered
    assert item["face"].shape == item["drawing"].shape == (3, 224, 224)
    assert item["drawing"].max() == 0 and item["face"].float().mean() > 100
    assert item["landmarks"].shape == (68, 2)


def test_only_the_encoders_photo_is_put_in_a_letterbox(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    Image.new("RGB", (224, 112), (200, 100, 50)).save(tmp_path / "a/0.jpg")
    item = FaceDataset(tmp_path, landmarks=68, fit="letterbox")[Key(0, 0)]
    assert item["face"][:, :50].max() < 10 and item["face"][0, 60:160].min() > 190
    assert item["drawing"][0].min() > 190


def test_without_textures_the_photo_itself_is_to_be_drawn(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    faces = FaceDataset(tmp_path, landmarks=68)
    assert not faces.registered
    assert torch.equal(faces[Key(0, 0)]["drawing"], faces[Key(0, 0)]["face"])


def test_a_dense_template_is_read_where_it_is_wanted(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0", points=189)
    mean = FaceDataset(tmp_path, landmarks=189).mean_landmarks()
    torch.testing.assert_close(mean, torch.full((189, 2), 7.0))


def test_landmarks_of_another_number_are_named(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    np.save(tmp_path / "a/0_landmarks.npy", np.zeros((5, 2)))
    with pytest.raises(DatasetError, match=r"0_landmarks.npy: holds an array \[5, 2\]"):
        FaceDataset(tmp_path, landmarks=68)[Key(0, 0)]


def test_broken_landmarks_are_named(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    (tmp_path / "a/0_landmarks.npy").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"0_landmarks\.npy: cannot be read"):
        FaceDataset(tmp_path, landmarks=68)[Key(0, 0)]


def test_landmarks_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    np.save(tmp_path / "a/0_landmarks.npy", np.full((68, 2), "x"))
    with pytest.raises(DatasetError, match=r"0_landmarks\.npy: holds an array \[68, 2\] of <U1"):
        FaceDataset(tmp_path, landmarks=68)[Key(0, 0)]


def test_the_seeds_72_points_follow_from_the_68(tmp_path: Path) -> None:
    write_face(tmp_path / "a/0", seed=3)
    points = FaceDataset(tmp_path, landmarks=72)[Key(0, 0)]["landmarks"]
    config = FaceDecoderConfig(landmarks=72, landmarks_68=MAP_72)
    with torch.device("meta"):
        decoder = FaceDecoder(config)
    assert points.shape == (72, 2)
    np.testing.assert_array_equal(decoder.landmarks_68(points[None])[0], some_landmarks(3))


def test_a_broken_photo_is_named_where_it_is_read(tmp_path: Path) -> None:
    for name in "ab":
        write_face(tmp_path / name / "0", seed=0)
    (tmp_path / "b/0.jpg").write_bytes(b"broken")
    faces = FaceDataset(tmp_path, landmarks=68)
    assert faces[Key(0, 0)]["face"].shape == (3, 224, 224)
    with pytest.raises(ImageError, match=r"b/0\.jpg: is not a picture"):
        faces[Key(1, 0)]
    assert faces.name(1) == str(tmp_path / "b/0.jpg")


def test_a_texture_that_is_missing_beside_some_photos_is_named(tmp_path: Path) -> None:
    for name in "ab":
        write_face(tmp_path / name / name, seed=0, texture=name == "a")
    with pytest.raises(DatasetError, match=r"b has no NAME_texture\.jpg and a has one"):
        FaceDataset(tmp_path, landmarks=68)
    assert not FaceDataset(tmp_path, landmarks=68, whole=True).registered


def test_photos_are_drawn_whole_where_that_is_asked_for(tmp_path: Path) -> None:
    write_face(tmp_path / "a/0", seed=0, texture=True)
    item = FaceDataset(tmp_path, landmarks=68, whole=True)[Key(0, 0)]
    assert torch.equal(item["drawing"], item["face"])


def some_people(folder: Path, probability: float) -> FaceDataset:
    """Four people, of two photos each; everybody's neighbour is the next."""
    for k in range(8):
        write_face(folder / f"id{k // 2}" / str(k), seed=k)
    faces = FaceDataset(folder, landmarks=68)
    faces.morphs = Morphs(probability, np.array([[(k + 2) % 8, (k + 3) % 8] for k in range(8)]))
    return faces


def test_a_morph_brings_a_neighbour_and_two_weights(tmp_path: Path) -> None:
    faces = some_people(tmp_path, 1.0)
    seen = set()
    for seed in range(30):
        item = faces[Key(5, seed)]
        (k,) = (k for k in range(8) if np.array_equal(item["other_landmarks"], some_landmarks(k)))
        assert torch.equal(item["other_drawing"], load_face(tmp_path / f"id{k // 2}/{k}.jpg"))
        assert item["mix"].shape == (2,) and ((item["mix"] > 0) & (item["mix"] < 1)).all()
        seen.add((k, *item["mix"].tolist()))
    assert {k for k, *_ in seen} == {7, 0} and len(seen) == 30


def test_as_many_items_are_morphs_as_was_asked_for(tmp_path: Path) -> None:
    faces = some_people(tmp_path, 0.3)
    items = [faces[Key(0, seed)] for seed in range(200)]
    morphs = sum(bool(item["mix"].any()) for item in items)
    assert 40 < morphs < 80
    for item in items:
        if not item["mix"].any():
            assert torch.equal(item["other_drawing"], item["drawing"])
            assert torch.equal(item["other_landmarks"], item["landmarks"])


def test_the_same_key_gives_the_same_morph(tmp_path: Path) -> None:
    faces = some_people(tmp_path, 0.5)
    for seed in range(10):
        a, b = (faces[Key(3, seed, share)] for share in (0.1, 0.9))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_second_photo_is_read_for_morphs_only(tmp_path: Path) -> None:
    faces = some_people(tmp_path, 0.5)
    for k in (2, 3):
        (tmp_path / f"id1/{k}.jpg").unlink()
    read = []
    for seed in range(20):
        try:
            read.append(not faces[Key(0, seed)]["mix"].any())
        except ImageError as error:
            assert "id1" in error.message
            read.append(False)
    assert 5 < sum(read) < 15


def test_without_morphs_an_item_has_no_more_than_it_needs(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    item = FaceDataset(tmp_path, landmarks=68)[Key(0, 0)]
    assert set(item) == {"face", "drawing", "landmarks", "identity", "own"}


def test_a_photo_knows_whether_the_landmarks_are_its_own(tmp_path: Path) -> None:
    for k, name in enumerate(("neutral", "smiling", "turned")):
        write_face(tmp_path / "a" / name, seed=k)
    (tmp_path / "a/smiling_landmarks.npy").unlink()
    faces = FaceDataset(tmp_path, landmarks=68)
    items = [faces[Key(k, 0)] for k in range(3)]
    assert [bool(item["own"]) for item in items] == [True, False, True]
    assert all(item["own"].dtype == torch.bool and item["own"].shape == () for item in items)
    assert torch.equal(items[1]["landmarks"], items[0]["landmarks"])
    assert torch.equal(items[1]["drawing"], items[0]["drawing"])
    assert not torch.equal(items[1]["face"], items[0]["face"])
