"""The data tree: what is found in it, in which order, and what is missing by name."""

import pytest
from trees import grow

from s2f import layout
from s2f.errors import DatasetError, ImageError


def test_photos_come_sorted_and_share_the_landmarks_of_their_identity(tmp_path):
    grow(tmp_path, ["b/2.jpg", "b/2_landmarks.npy", "b/3.png", "b/1.jpg", "a/1.jpg", "a/._1.jpg"])
    grow(tmp_path, ["a/1_landmarks.npy", "a/1_texture.jpg"])
    found = [(p.identity, p.path.name, p.target.name) for p in layout.photos(tmp_path)]
    assert found == [("a", "1.jpg", "1"), *(("b", n, "2") for n in ("1.jpg", "2.jpg", "3.png"))]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no photo"):
        list(layout.photos(tmp_path / "empty"))
    grow(tmp_path, ["ann/0.jpg", "ann/0_texture.jpg"])
    with pytest.raises(DatasetError, match="ann: has 1 photos and no"):
        list(layout.photos(tmp_path))


def test_neither_textures_nor_hidden_files_are_faces_or_speech(tmp_path):
    """What macOS and `s2f prep` leave, and what lies beside photos, must not be trained on."""
    audios = ("v/1.npy", "0.npy", "._0.npy", ".s2f/audio/0.npy", "f_embedding.npy")
    images = ("f.jpg", "f_texture.jpg", "f_opacity.jpg", "f_landmarks.npy", "f_template.npy")
    grow(tmp_path / "s/audios", audios)
    grow(tmp_path / "s/images", [*images, "__MACOSX/f.jpg", "._f.jpg"])
    (speaker,), left_out = layout.speakers(tmp_path)
    assert speaker.identity == "s" and not any(left_out.values())
    assert speaker.audios == ("s/audios/0.npy", "s/audios/v/1.npy")
    assert speaker.faces == (layout.FaceFiles("s/images/f", "s/images/f.jpg", None),)
    grow(tmp_path / "p", ["x/b.PNG", "a.jpg", ".c.jpg", "d.txt"])
    assert layout.find_photos([tmp_path / "p"]) == [tmp_path / "p/a.jpg", tmp_path / "p/x/b.PNG"]
    with pytest.raises(ImageError, match=r"none\.jpg: does not exist"):
        layout.find_photos([tmp_path / "none.jpg"])


def test_an_embedding_belongs_to_the_photo_of_its_name_or_is_a_face_alone(tmp_path):
    names = ["v/a.jpg", "v/a_embedding.npy", "b.png", "c_embedding.npy", "d.npy", "e.v2.jpg"]
    grow(tmp_path / "s", ["audios/0.npy", *(f"images/{name}" for name in [*names, "e.npy"])])
    (speaker,), _ = layout.speakers(tmp_path)
    found = [f"{face.name} {face.photo} {face.embedding}" for face in speaker.faces]
    expected = "b b.png None, c None c_embedding.npy, d None d.npy, e None e.npy, "
    expected += "e.v2 e.v2.jpg None, v/a v/a.jpg v/a_embedding.npy"
    assert ", ".join(found).replace("s/images/", "") == expected


def test_faces_come_in_the_order_of_recordings_of_their_names(tmp_path):
    """What `one-to-one` pairs must not hang on how the names of files end."""
    names = ["a", "a b", "a1", "a-", "a_b", "a/x", "a/x2", "A", "b/1"]
    for k, name in enumerate(names):
        ending = (".jpg", "_embedding.npy", ".npy")[k % 3]
        grow(tmp_path, [f"s/audios/{name}.npy", f"s/images/{name}{ending}"])
    (speaker,), _ = layout.speakers(tmp_path)
    heard = [path.removesuffix(".npy").removeprefix("s/audios/") for path in speaker.audios]
    seen = [face.name.removeprefix("s/images/") for face in speaker.faces]
    assert heard == seen and sorted(heard) == sorted(names)


def test_splits_go_by_either_name_and_names_are_made_of_names(tmp_path):
    for name in ("validation", "val"):
        (tmp_path / name).mkdir()
        assert layout.split(tmp_path, "val") == tmp_path / name
    with pytest.raises(DatasetError, match="has no folder train"):
        layout.split(tmp_path, "train")
    names = ("s/audios/v/1.npy", "s/audios/v_1.npy", "s/images/v/1", "s/images/v_1")
    assert {layout.clip(name) for name in names} == {"v_1"}
    grow(tmp_path, ["s/audios/v/1.npy"])
    (file,) = layout.files_of(tmp_path / "s", "audios", layout.is_array)
    assert file.path == "audios/v/1.npy"
    assert layout.files_of(tmp_path / "s", "images", layout.is_embedding) == []
    assert layout.renamed(file.path, layout.EMBEDDING) == "audios/v/1_embedding.npy"


def test_identities_without_a_voice_or_a_face_are_named(tmp_path):
    grow(tmp_path, ["bob/audios/0.npy", "eve/images/0.jpg", "joe/audios/x"])
    with pytest.raises(DatasetError, match="2 are without a voice, 1 are without a face"):
        layout.speakers(tmp_path)
    grow(tmp_path, ["ann/audios/0.npy", "ann/images/0.jpg"])
    speakers, left_out = layout.speakers(tmp_path)
    assert [speaker.identity for speaker in speakers] == ["ann"]
    assert left_out == {"without a voice": ["eve", "joe"], "without a face": ["bob"]}


def test_folders_of_data_sets_are_not_taken_for_people(tmp_path):
    """As VoxCeleb, VGGFace2, HQ-VoxCeleb and this program name them; and how people are called."""
    levels = "wav dev test aac faces mp4 train val vox1_test_wav Vox2 HQ-VoxCeleb masked_faces"
    assert all(map(layout.is_level, [*levels.split(), "raw_wav", "unzippedIntervalFaces"]))
    people = ("id10001", "n000012", "A.J._Buckley", "Dev_Patel", "Val_Kilmer", "wave", "faces 2")
    assert not any(map(layout.is_level, people))
    grow(tmp_path, ["wav/audios/0.npy", "wav/images/0.jpg", "ann/audios/0.npy", "ann/images/0.jpg"])
    grow(tmp_path, ["wav/0.jpg", "wav/0_landmarks.npy"])
    for read in (layout.speakers, layout.photos, layout.identities):
        with pytest.raises(DatasetError, match="'wav' are parts of a data set") as caught:
            list(read(tmp_path))
        assert str(tmp_path / "wav") in caught.value.hint
