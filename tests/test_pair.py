"""Pairing trees: every trap of the datasets at once, and every file in its place."""

import os
from pathlib import Path

import pytest
from test_meta import FULL_VOX2, VGGFACE2, VOX1, VOX2_OFFICIAL
from trees import contents, grow

from s2f.errors import DatasetError, UsageError
from s2f.files import Link
from s2f.pair import pair_identities
from s2f.split import split_tree

FACES = [
    "HQ-VoxCeleb/HQ-VoxCeleb/vox1/masked_faces/A.J._Buckley/1.jpg",
    "HQ-VoxCeleb/HQ-VoxCeleb/vox1/masked_faces/A.J._Buckley/1_landmarks.npy",
    "HQ-VoxCeleb/HQ-VoxCeleb/vox1/masked_faces/A.J._Buckley/1_embedding.npy",
    "HQ-VoxCeleb/HQ-VoxCeleb/vox1/masked_faces/A.J._Buckley/notes.txt",
    "HQ-VoxCeleb/HQ-VoxCeleb/vox1/masked_faces/Harry_Connick_Jr./1.jpg",
    "HQ-VoxCeleb/HQ-VoxCeleb/vox2/masked_faces/Harry_Connick_Jr./1.jpg",
    "HQ-VoxCeleb/HQ-VoxCeleb/vox2/masked_faces/Z\u030cydru\u0304nas_Savickas/1.jpg",
    "HQ-VoxCeleb/HQ-VoxCeleb/vox2/masked_faces/Carlos_Sainz_Jr./1.jpg",
    "HQ-VoxCeleb/__MACOSX/vox1/masked_faces/A.J._Buckley/._1.jpg",
]
VOICES = [
    "vox1/dev/wav/id10001/1zcIwhmdeo4/00001.wav",
    "vox1/test/wav/id10270/5r0dWxy17C8/00001.wav",
    "vox2/dev/aac/id00012/21Uxsk56VDQ/00001.m4a",
    "vox2/dev/aac/id00012/-1Uxsk56VDQ/00001.m4a",
    "vox2/dev/aac/id00017/01dfn2spqyE/00001.m4a",
    "vox2/test/aac/id00019/01dfn2spqyE/00001.m4a",
    "vox2/dev/aac/id09272/01dfn2spqyE/00001.m4a",
]
WANTED = {
    "A.J._Buckley/audios/1zcIwhmdeo4/00001.wav": VOICES[0],
    "A.J._Buckley/images/1.jpg": FACES[0],
    "A.J._Buckley/images/1_landmarks.npy": FACES[1],
    "A.J._Buckley/images/1_embedding.npy": FACES[2],
    "Carlos_Sainz_Jr./audios/01dfn2spqyE/00001.m4a": VOICES[4],
    "Carlos_Sainz_Jr./images/1.jpg": FACES[7],
    f"Harry_Connick_Jr./audios/{VOICES[1]}": VOICES[1],
    f"Harry_Connick_Jr./audios/{VOICES[5]}": VOICES[5],
    f"Harry_Connick_Jr./images/{FACES[4]}": FACES[4],
    f"Harry_Connick_Jr./images/{FACES[5]}": FACES[5],
    "Zydrunas_Savickas/audios/21Uxsk56VDQ/00001.m4a": VOICES[2],
    "Zydrunas_Savickas/audios/-1Uxsk56VDQ/00001.m4a": VOICES[3],
    "Zydrunas_Savickas/images/1.jpg": FACES[6],
}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[Path]]:
    """Trees as the datasets unpack, and their meta files."""
    grow(tmp_path / "faces", FACES)
    grow(tmp_path / "voices", VOICES)
    (tmp_path / "vox1_meta.csv").write_text(VOX1, encoding="utf-8")
    (tmp_path / "full_vox2_meta.csv").write_text(FULL_VOX2, encoding="utf-8")
    metas = [tmp_path / "vox1_meta.csv", tmp_path / "full_vox2_meta.csv"]
    return {"faces": [tmp_path / "faces"], "voices": [tmp_path / "voices"], "metas": metas}


@pytest.mark.parametrize("link", Link)
def test_everybody_gets_their_own_voices_and_faces(
    link: Link, sources: dict[str, list[Path]], tmp_path: Path
) -> None:
    report = pair_identities(**sources, out=tmp_path / "out", link=link)
    wanted = {path: os.fsencode(source) for path, source in WANTED.items()}
    assert contents(tmp_path / "out") == wanted
    assert {pair.identity: pair.how for pair in report.pairs} == {
        "A.J._Buckley": "name",
        "Carlos_Sainz_Jr.": "transliterated",
        "Harry_Connick_Jr.": "name",
        "Zydrunas_Savickas": "name",
    }
    assert [(one.name, one.why) for one in report.unmatched] == [("id09272", "no meta row")]
    assert report.shared == ("Harry_Connick_Jr.",)
    assert report.datasets == {
        "vox1": {"people": 2, "voices": 2, "faces": 2, "pairs": 2},
        "vox2": {"people": 3, "voices": 3, "faces": 3, "pairs": 3},
        "own": {"people": 0, "voices": 1, "faces": 0, "pairs": 0},
    }


def test_the_person_in_both_sets_is_never_in_two_splits(
    sources: dict[str, list[Path]], tmp_path: Path
) -> None:
    pair_identities(**sources, out=tmp_path / "out")
    for seed in range(5):
        split_tree(tmp_path / "out", tmp_path / f"split{seed}", train=0.5, seed=seed)
        paths = [path for path in contents(tmp_path / f"split{seed}") if "Harry" in path]
        assert len(paths) == 4
        assert len({path.split("/")[0] for path in paths}) == 1


def test_a_dry_run_reports_the_same_and_makes_nothing(
    sources: dict[str, list[Path]], tmp_path: Path
) -> None:
    planned = pair_identities(**sources, out=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    done = pair_identities(**sources, out=tmp_path / "out")
    assert (planned.pairs, planned.unmatched) == (done.pairs, done.unmatched)
    assert (planned.made, done.made) == (0, len(WANTED))


def test_a_second_run_changes_nothing(sources: dict[str, list[Path]], tmp_path: Path) -> None:
    pair_identities(**sources, out=tmp_path / "out")
    before = {path: path.lstat() for path in (tmp_path / "out").rglob("*")}
    again = pair_identities(**sources, out=tmp_path / "out")
    assert {path: path.lstat() for path in (tmp_path / "out").rglob("*")} == before
    assert (again.made, again.kept) == (0, len(WANTED))


def test_other_people_in_the_output_are_refused(
    sources: dict[str, list[Path]], tmp_path: Path
) -> None:
    """Without names Zydrunas_Savickas would be id00012: one person in two folders."""
    pair_identities(**sources, out=tmp_path / "out")
    meta = tmp_path / "vox2_meta.csv"
    meta.write_text(VOX2_OFFICIAL, encoding="utf-8")
    grow(tmp_path / "vggface2", ["train/n009999/1.jpg"])
    sources |= {"metas": [meta], "faces": [tmp_path / "vggface2"]}
    with pytest.raises(UsageError, match="in no pair"):
        pair_identities(**sources, out=tmp_path / "out")


def test_classes_of_vggface2_are_joined_through_the_meta_files(tmp_path: Path) -> None:
    for name, text in (("a", VOX2_OFFICIAL), ("b", VGGFACE2)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    grow(tmp_path / "faces", ["train/n000012/1_01.jpg", "train/n000019/1_01.jpg"])
    grow(tmp_path / "voices", ["id00012/v/1.npy", "id00017/v/1.npy", "id00019/v/1.npy"])
    report = pair_identities(
        [tmp_path / "faces"],
        [tmp_path / "voices"],
        tmp_path / "out",
        metas=[tmp_path / "a", tmp_path / "b"],
    )
    assert [(pair.identity, pair.how) for pair in report.pairs] == [("Carlos_Sainz_Jr.", "id")]


def test_a_name_in_a_meta_file_leads_out_of_nothing(tmp_path: Path) -> None:
    grow(tmp_path, ["voices/id00012/1.wav", "faces/id00012/1.jpg"])
    meta = tmp_path / "meta.csv"
    meta.write_text("VoxCeleb2 ID,Name\nid00012,..\n")
    report = pair_identities(
        [tmp_path / "faces"], [tmp_path / "voices"], tmp_path / "a/out", metas=[meta]
    )
    assert [pair.identity for pair in report.pairs] == ["_.."]
    assert set(contents(tmp_path / "a")) == {"out/_../audios/1.wav", "out/_../images/1.jpg"}


def test_own_folders_are_joined_by_equal_names(tmp_path: Path) -> None:
    grow(tmp_path / "faces", ["Ann/1.jpg", "Ž/1.jpg", "bob/1.jpg"])
    grow(tmp_path / "voices", ["Ann/1.wav", "Z\u030c/x/1.wav", "dan/1.wav"])
    report = pair_identities([tmp_path / "faces"], [tmp_path / "voices"], tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {
        "Ann/audios/1.wav",
        "Ann/images/1.jpg",
        "Z/audios/x/1.wav",
        "Z/images/1.jpg",
    }
    assert {one.name: one.why for one in report.unmatched} == {"bob": "no voice", "dan": "no face"}


def test_one_tree_may_hold_both(tmp_path: Path) -> None:
    grow(tmp_path / "tree", ["ann/1.jpg", "ann/1_landmarks.npy", "ann/2.npy", "ann/3.wav"])
    pair_identities([tmp_path / "tree"], [tmp_path / "tree"], tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {
        "ann/images/1.jpg",
        "ann/images/1_landmarks.npy",
        "ann/audios/2.npy",
        "ann/audios/3.wav",
    }


def test_several_trees_of_a_kind_keep_their_files_apart(tmp_path: Path) -> None:
    for tree in ("v1", "v2"):
        grow(tmp_path / tree, ["ann/1.wav"])
    grow(tmp_path / "faces", ["ann/1.jpg"])
    voices = [tmp_path / "v1", tmp_path / "v2"]
    pair_identities([tmp_path / "faces"], voices, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {
        "ann/audios/v1/ann/1.wav",
        "ann/audios/v2/ann/1.wav",
        "ann/images/1.jpg",
    }


def test_two_folders_that_would_be_one_are_refused(tmp_path: Path) -> None:
    for tree in ("a/v", "b/v"):
        grow(tmp_path / tree, ["ann/1.wav"])
    grow(tmp_path / "faces", ["ann/1.jpg"])
    with pytest.raises(UsageError, match="would both be"):
        pair_identities(
            [tmp_path / "faces"], [tmp_path / "a/v", tmp_path / "b/v"], tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_no_pair_at_all_is_an_error_but_not_in_a_dry_run(tmp_path: Path) -> None:
    grow(tmp_path / "faces", ["ann/1.jpg"])
    grow(tmp_path / "voices", ["bob/1.wav"])
    arguments = ([tmp_path / "faces"], [tmp_path / "voices"], tmp_path / "out")
    with pytest.raises(DatasetError, match="nobody of 2 people"):
        pair_identities(*arguments)
    assert len(pair_identities(*arguments, dry_run=True).unmatched) == 2
