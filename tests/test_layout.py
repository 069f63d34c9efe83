"""The data tree: what is found in it, in which order, and what is missing by name."""

from pathlib import Path

import pytest

from s2f import layout
from s2f.errors import DatasetError, ImageError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_photos_come_sorted_with_their_identity(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "a/0"):
        touch(tmp_path / f"{name}.jpg", tmp_path / f"{name}_landmarks.npy")
    found = [(photo.identity, photo.path.name) for photo in layout.photos(tmp_path)]
    assert found == [("a", "0.jpg"), ("a", "1.jpg"), ("b", "2.jpg")]


def test_a_view_without_landmarks_shares_those_of_its_identity(tmp_path: Path) -> None:
    touch(tmp_path / "a/smiling.jpg", tmp_path / "a/neutral.jpg")
    touch(tmp_path / "a/neutral_landmarks.npy")
    assert {photo.target for photo in layout.photos(tmp_path)} == {tmp_path / "a/neutral"}


def test_textures_are_not_photos(tmp_path: Path) -> None:
    touch(tmp_path / "a/0.jpg", tmp_path / "a/0_landmarks.npy", tmp_path / "a/0_texture.jpg")
    assert [photo.path.name for photo in layout.photos(tmp_path)] == ["0.jpg"]


def test_photos_without_landmarks_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "ann/0.jpg")
    with pytest.raises(DatasetError, match="ann: has 1 photos and no"):
        layout.photos(tmp_path)


def test_a_tree_without_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no photo"):
        layout.photos(tmp_path)


def test_hidden_files_are_no_photos(tmp_path: Path) -> None:
    touch(tmp_path / "bob/a.jpg", tmp_path / "bob/._a.jpg", tmp_path / "bob/a_landmarks.npy")
    assert [photo.path.name for photo in layout.photos(tmp_path)] == ["a.jpg"]


def test_speakers_come_with_recordings_and_faces(tmp_path: Path) -> None:
    touch(tmp_path / "s/audios/v/1.npy", tmp_path / "s/audios/0.npy", tmp_path / "s/images/f.jpg")
    (speaker,) = layout.speakers(tmp_path)
    assert [path.name for path in speaker.audios] == ["0.npy", "1.npy"]
    assert [path.name for path in speaker.images] == ["f.jpg"]


def test_neither_textures_nor_hidden_files_are_faces_or_speech(tmp_path: Path) -> None:
    """What macOS and `s2f prep` leave, and what lies beside photos, must not be trained on."""
    touch(tmp_path / "s/audios/0.npy", tmp_path / "s/audios/._0.npy")
    touch(tmp_path / "s/audios/.s2f/audio/0.npy", tmp_path / "s/audios/f_embedding.npy")
    touch(tmp_path / "s/images/f.jpg", tmp_path / "s/images/f_texture.jpg")
    touch(tmp_path / "s/images/__MACOSX/f.jpg", tmp_path / "s/images/._f.jpg")
    (speaker,) = layout.speakers(tmp_path)
    assert speaker.audios == (tmp_path / "s/audios/0.npy",)
    assert speaker.images == (tmp_path / "s/images/f.jpg",)


def test_a_speaker_without_faces_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "bob/audios/0.npy")
    with pytest.raises(DatasetError, match="bob: has 1 files in audios and 0 in images"):
        layout.speakers(tmp_path)


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_validation_goes_by_either_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    assert layout.split(tmp_path, "val") == tmp_path / folder


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no folder train"):
        layout.split(tmp_path, "train")


def test_photos_are_found_below_a_folder_and_hidden_ones_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "x/b.PNG", tmp_path / "a.jpg", tmp_path / ".c.jpg", tmp_path / "d.txt")
    assert layout.find_photos([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "x/b.PNG"]


def test_a_folder_without_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no photo"):
        layout.find_photos([tmp_path])


def test_a_missing_photo_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg: does not exist"):
        layout.find_photos([tmp_path / "none.jpg"])
