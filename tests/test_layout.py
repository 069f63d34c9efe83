"""The data tree: what is found in it, in which order, and what is missing by name."""

from pathlib import Path

import pytest

from s2f import layout
from s2f.errors import DatasetError, ImageError
from s2f.layout import FaceFiles


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


def test_a_tree_without_photos_or_their_landmarks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no photo"):
        layout.photos(tmp_path)
    touch(tmp_path / "ann/0.jpg", tmp_path / "ann/0_texture.jpg")
    with pytest.raises(DatasetError, match="ann: has 1 photos and no"):
        layout.photos(tmp_path)


def test_speakers_come_with_recordings_and_faces(tmp_path: Path) -> None:
    touch(tmp_path / "s/audios/v/1.npy", tmp_path / "s/audios/0.npy", tmp_path / "s/images/f.jpg")
    (speaker,), left_out = layout.speakers(tmp_path)
    assert speaker.identity == "s" and not any(left_out.values())
    assert speaker.audios == ("s/audios/0.npy", "s/audios/v/1.npy")
    assert speaker.faces == (FaceFiles("s/images/f", "s/images/f.jpg", None),)


def test_neither_textures_nor_hidden_files_are_faces_or_speech(tmp_path: Path) -> None:
    """What macOS and `s2f prep` leave, and what lies beside photos, must not be trained on."""
    touch(tmp_path / "s/audios/0.npy", tmp_path / "s/audios/._0.npy")
    touch(tmp_path / "s/audios/.s2f/audio/0.npy", tmp_path / "s/audios/f_embedding.npy")
    touch(tmp_path / "s/images/f.jpg", tmp_path / "s/images/f_texture.jpg")
    touch(tmp_path / "s/images/f_landmarks.npy", tmp_path / "s/images/f_template.npy")
    touch(tmp_path / "s/images/__MACOSX/f.jpg", tmp_path / "s/images/._f.jpg")
    (speaker,), _ = layout.speakers(tmp_path)
    assert speaker.audios == ("s/audios/0.npy",)
    assert [face.photo for face in speaker.faces] == ["s/images/f.jpg"]


def test_an_embedding_belongs_to_the_photo_of_its_name_or_is_a_face_alone(tmp_path: Path) -> None:
    touch(*(tmp_path / "s" / name for name in ("audios/0.npy", "images/v/a.jpg")))
    for name in ("v/a_embedding.npy", "b.png", "c_embedding.npy", "d.npy", "e.v2.jpg", "e.npy"):
        touch(tmp_path / "s/images" / name)
    (speaker,), _ = layout.speakers(tmp_path)
    found = [(face.name[9:], face.photo, face.embedding) for face in speaker.faces]
    assert found == [
        ("b", "s/images/b.png", None),
        ("c", None, "s/images/c_embedding.npy"),
        ("d", None, "s/images/d.npy"),
        ("e", None, "s/images/e.npy"),
        ("e.v2", "s/images/e.v2.jpg", None),
        ("v/a", "s/images/v/a.jpg", "s/images/v/a_embedding.npy"),
    ]


def test_faces_come_in_the_order_of_recordings_of_their_names(tmp_path: Path) -> None:
    """What `one-to-one` pairs must not hang on how the names of files end."""
    names = ["a", "a b", "a1", "a-", "a_b", "a/x", "a/x2", "A", "b/1"]
    for k, name in enumerate(names):
        ending = (".jpg", "_embedding.npy", ".npy")[k % 3]
        touch(tmp_path / f"s/audios/{name}.npy", tmp_path / f"s/images/{name}{ending}")
    (speaker,), _ = layout.speakers(tmp_path)
    heard = [path.removesuffix(".npy").removeprefix("s/audios/") for path in speaker.audios]
    seen = [face.name.removeprefix("s/images/") for face in speaker.faces]
    assert heard == seen and sorted(heard) == sorted(names)


def test_the_parts_of_a_clips_name_are_joined_alike() -> None:
    names = ("s/audios/v/1.npy", "s/audios/v_1.npy", "s/images/v/1", "s/images/v_1")
    assert {layout.clip(name) for name in names} == {"v_1"}


def test_the_files_of_a_folder_are_below_the_identity(tmp_path: Path) -> None:
    touch(tmp_path / "s/audios/v/1.npy")
    (file,) = layout.files_of(tmp_path / "s", "audios", layout.is_array)
    assert file.path == "audios/v/1.npy"
    assert layout.files_of(tmp_path / "s", "images", layout.is_embedding) == []
    assert layout.renamed(file.path, layout.EMBEDDING) == "audios/v/1_embedding.npy"


def test_identities_without_a_voice_or_a_face_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "bob/audios/0.npy", tmp_path / "eve/images/0.jpg")
    touch(tmp_path / "ann/audios/0.npy", tmp_path / "ann/images/0.jpg")
    (tmp_path / "joe/audios").mkdir(parents=True)
    speakers, left_out = layout.speakers(tmp_path)
    assert [speaker.identity for speaker in speakers] == ["ann"]
    assert left_out == {"without a voice": ["eve", "joe"], "without a face": ["bob"]}


def test_a_split_of_which_nobody_has_both_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "bob/audios/0.npy", tmp_path / "eve/images/0.jpg")
    with pytest.raises(DatasetError, match="1 are without a voice, 1 are without a face"):
        layout.speakers(tmp_path)
    with pytest.raises(DatasetError, match="holds no speaker"):
        layout.speakers(tmp_path / "bob")


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
    with pytest.raises(ImageError, match=r"none\.jpg: does not exist"):
        layout.find_photos([tmp_path / "none.jpg"])
