"""Whose a folder is: ids anywhere, names in any spelling, and no guess."""

from pathlib import Path

import pytest
from test_meta import FULL_VOX2, VOX1, read
from trees import grow

from s2f.audio import is_voice
from s2f.errors import DatasetError
from s2f.pair import Found, MetaPeople, find_people, is_face_file, match_people


def labels(found: list[Found]) -> dict[str | None, set[str]]:
    return {one.label: {f"{one.inside}|{name}" for name in one.names} for one in found}


@pytest.mark.parametrize(
    ("path", "label", "inside", "name"),
    [
        ("id10001/vid/00001.wav", "id10001", "id10001", "vid/00001.wav"),
        ("wav/id10001/vid/00001.wav", "id10001", "wav/id10001", "vid/00001.wav"),
        ("dev/aac/id00012/vid/1.m4a", "id00012", "dev/aac/id00012", "vid/1.m4a"),
        ("vox2/test/id00012/vid/1.npy", "id00012", "vox2/test/id00012", "vid/1.npy"),
        ("A.J._Buckley/id10001_v_1.npy", "A.J._Buckley", "A.J._Buckley", "id10001_v_1.npy"),
        ("unheard_of/id00012/1.npy", "id00012", "unheard_of/id00012", "1.npy"),
        ("flat/id00012_vid_1.npy", "id00012", "flat", "id00012_vid_1.npy"),
        ("id00012.wav", "id00012", "", "id00012.wav"),
        ("id000123.wav", None, "", "id000123.wav"),
        ("wav/1.wav", None, "wav", "1.wav"),
        ("train/ann/vid/1.wav", "ann", "train/ann", "vid/1.wav"),
    ],
)  # fmt: skip
def test_a_path_names_the_person(
    path: str, label: str | None, inside: str, name: str, tmp_path: Path
) -> None:
    grow(tmp_path / "tree", [path])
    people = read(tmp_path, VOX1, FULL_VOX2)
    assert labels(find_people(tmp_path / "tree", "voice", people)) == {label: {f"{inside}|{name}"}}


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("HQ-VoxCeleb/HQ-VoxCeleb/vox1/masked_faces/A.J._Buckley/1.jpg", "A.J._Buckley"),
        ("train/n000012/0001_01.jpg", "n000012"),
        ("Somebody/1.jpg", "Somebody"),
    ],
)
def test_faces_are_found_below_any_levels(path: str, label: str, tmp_path: Path) -> None:
    grow(tmp_path, [path])
    assert set(labels(find_people(tmp_path, "face", MetaPeople()))) == {label}


@pytest.mark.parametrize("name", ["1.jpg", "1.PNG", "1_landmarks.npy", "1_embedding.npy"])
def test_what_belongs_to_a_face_is_no_voice(name: str) -> None:
    assert is_face_file(name)
    assert not is_voice(name)


@pytest.mark.parametrize("name", ["1.wav", "1.M4A", "1.npy", "1.mp4"])
def test_recordings_and_arrays_are_voices(name: str) -> None:
    assert is_voice(name)
    assert not is_face_file(name)


def test_a_tree_without_files_of_a_kind_is_refused(tmp_path: Path) -> None:
    grow(tmp_path, ["ann/1.jpg"])
    with pytest.raises(DatasetError, match="no voice"):
        find_people(tmp_path, "voice", MetaPeople())


def why(tmp_path: Path, faces: list[str], voices: list[str], people: MetaPeople) -> dict[str, str]:
    grow(tmp_path / "faces", [f"{name}/1.jpg" for name in faces])
    grow(tmp_path / "voices", [f"{name}/1.wav" for name in voices])
    found = [
        *find_people(tmp_path / "faces", "face", people),
        *find_people(tmp_path / "voices", "voice", people),
    ]
    return {f"{one.kind} {one.name}": one.why for one in match_people(found, people)[1]}


def test_every_folder_that_is_left_out_has_its_reason(tmp_path: Path) -> None:
    people = read(tmp_path, VOX1, FULL_VOX2)
    assert why(
        tmp_path,
        ["Harry_Connick_Jr.", "n000012", "Nobody"],
        ["id00012", "id00017", "id09999"],
        people,
    ) == {
        "face Harry_Connick_Jr.": "no voice",
        "face Nobody": "no meta row",
        "voice id00012": "no face",
        "voice id09999": "no meta row",
    }


def test_a_name_of_several_people_is_nobodys(tmp_path: Path) -> None:
    twins = "José_X,id00100\nJose_X,id00101\n"
    people = read(tmp_path, f"Name,VoxCeleb2 ID\n{twins}")
    reasons = why(tmp_path, ["JOSE_X"], ["id00100"], people)
    assert reasons["face JOSE_X"] == "ambiguous: may be Jose_X_id00100, Jose_X_id00101"


def test_spellings_without_a_meta_file_are_joined_only_across_the_trees(tmp_path: Path) -> None:
    assert why(tmp_path / "a", ["José"], ["Jose"], MetaPeople()) == {}
    reasons = why(tmp_path / "b", ["José", "Ann"], ["Jose", "José", "Ann"], MetaPeople())
    assert set(reasons) == {"face José", "voice Jose", "voice José"}
    assert all("ambiguous" in reason for reason in reasons.values())


def test_a_name_that_is_not_text_is_left_out_with_its_reason(tmp_path: Path) -> None:
    reasons = why(tmp_path, ["\udce9", "ann"], ["\udce9", "ann"], MetaPeople())
    assert set(reasons) == {"face \udce9", "voice \udce9"}
    assert all("not text" in reason for reason in reasons.values())
