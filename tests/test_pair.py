"""Pairing trees: nobody is taken for somebody else, and every file gets its place.

The meta files in all their dialects; whose a folder is; and every trap of the datasets at once.
"""

import os
import unicodedata
from pathlib import Path

import pytest
from trees import contents, grow

from s2f.errors import DatasetError, UsageError
from s2f.files import Link
from s2f.pair import Found, MetaPeople, find_people, match_people, pair_identities, read_meta
from s2f.split import split_tree

# The dialects, as FACTS and the datasets' own files have them; digits of ids and classes differ.
VOX1 = (
    "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
    "id10001\tA.J._Buckley\tm\tIreland\tdev\n"
    "id10270\tHarry_Connick_Jr.\tm\tUSA\ttest\n"
)
VOX2_OFFICIAL = (
    "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n"
    "id00012 ,n009999 ,m ,dev \nid00017 ,n000012 ,f ,dev \nid00019 ,n003333 ,m ,test \n"
)
VOX2_OLD = (
    "Name \tVoxCeleb2 ID \tVGGFace2 ID \tGender \tSet\n"
    "Žydrūnas_Savickas \tid00012 \tn009999 \tm \tdev\n"
    "Carlos_Sainz_Jr. \tid00017 \tn000012 \tf \tdev\n"
    "Harry_Connick_Jr. \tid00019 \tn003333 \tm \ttest\n"
)
FULL_VOX2 = (
    "Class_ID,Name,Sample_Num,Flag,Gender_x,VoxCeleb2ID,VGGFace2ID,Gender_y,Set\n"
    "n009999,Žydrūnas_Savickas,100,1,m,id00012,n009999,m,dev\n"
    'n000012,"Carlos_Sainz,_Jr.",100,1,m,id00017,n000012,f,dev\n'
    "n003333,Harry_Connick_Jr.,100,1,m,id00019,n003333,m,test\n"
)
VGGFACE2 = (
    "Class_ID, Name, Sample_Num, Flag, Gender\n"
    'n009999, "Žydrūnas_Savickas", 424, 0, m\n'
    'n000012, "Carlos_Sainz,_Jr.", 1, 1, m\n'
    'n003333, "Harry_Connick_Jr.", 1, 1, m\n'
    'n000001, "14th_Dalai_Lama", 424, 0, m\n'
)


def read(folder: Path, *texts: str) -> MetaPeople:
    paths = [folder / f"{k}.csv" for k in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return read_meta(paths)


@pytest.mark.parametrize(
    "texts",
    [
        (VOX2_OLD,),
        (FULL_VOX2,),
        (VOX2_OFFICIAL, VGGFACE2),
        (VGGFACE2, VOX2_OFFICIAL),
        (VOX2_OFFICIAL, FULL_VOX2),
        (VOX2_OLD, FULL_VOX2),
        (unicodedata.normalize("NFD", VOX2_OLD),),
        ("\ufeff" + FULL_VOX2.replace("\n", "\r\n"),),
    ],
    ids=["old", "full", "official+vggface2", "vggface2+official", "both", "commas", "NFD", "BOM"],
)
def test_all_dialects_of_voxceleb2_know_the_same_people(
    texts: tuple[str, ...], tmp_path: Path
) -> None:
    people = read(tmp_path, *texts)
    assert [(person.identity, person.voices) for person in people.people] == [
        ("Carlos_Sainz_Jr.", ("id00017",)),
        ("Harry_Connick_Jr.", ("id00019",)),
        ("Zydrunas_Savickas", ("id00012",)),
    ]
    zydrunas = people.people[2]
    for label, how in [
        ("id00012", "id"),
        ("n009999", "id"),
        ("Žydrūnas_Savickas", "name"),
        ("Z\u030cydru\u0304nas_Savickas", "name"),
        ("Zydrunas_Savickas", "transliterated"),
    ]:
        assert people.find(label) == ((zydrunas,), how)
    for label in ("Carlos_Sainz,_Jr.", "Carlos_Sainz_Jr."):
        assert people.find(label)[0] == (people.people[0],)


def test_digits_of_an_id_do_not_make_a_class(tmp_path: Path) -> None:
    """And without names people are their ids."""
    people = read(tmp_path, VOX2_OFFICIAL)
    assert [person.identity for person in people.people] == ["id00012", "id00017", "id00019"]
    assert people.find("n000012")[0][0].identity == "id00017"
    assert people.find("n000019") == ((), "transliterated")


def test_the_person_in_both_voxcelebs_is_one(tmp_path: Path) -> None:
    people = read(tmp_path, VOX1, VOX2_OLD)
    harry = next(person for person in people.people if person.identity.startswith("Harry"))
    assert harry.voices == ("id00019", "id10270")
    assert harry.datasets == ("vox1", "vox2")
    for label in (*harry.voices, "n003333", "Harry_Connick_Jr."):
        assert people.find(label)[0] == (harry,)
    assert people.collisions == ()


def test_people_of_one_name_in_one_set_are_kept_apart(tmp_path: Path) -> None:
    people = read(
        tmp_path, VOX2_OLD + "José_X\tid00100\tn000100\tm\tdev\nJose_X\tid00101\tn000101\tm\tdev\n"
    )
    assert people.collisions == ("Jose_X_id00100", "Jose_X_id00101")
    assert [person.voices for person in people.find("José_X")[0]] == [("id00100",)]
    assert [person.voices for person in people.find("n000101")[0]] == [("id00101",)]
    assert len(people.find("JOSÉ_X")[0]) == 2


def test_a_class_without_a_voice_has_only_a_name(tmp_path: Path) -> None:
    people = read(tmp_path, VOX2_OFFICIAL, VGGFACE2)
    assert people.find("n000001")[0] == ()
    assert people.names["n000001"] == "14th_Dalai_Lama"
    people = read(tmp_path, VOX1, 'Class_ID, Name\nn000777, "A.J._Buckley"\n')
    assert people.find("n000777")[0][0].voices == ("id10001",)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (("Name,Gender\nAnn,f\n",), "no ids"),
        (("VoxCeleb1 ID,Name\n10001,Ann\n",), "line 2.*'10001'"),
        ((VOX2_OFFICIAL, VOX2_OFFICIAL.replace("n009999", "n008888")), "id00012"),
        ((VOX2_OLD, FULL_VOX2.replace("Harry_Connick_Jr.", "Harry")), "id00019"),
        ((VOX2_OFFICIAL + "id00020,n1,m,dev\n",), "line 5.*'n1'"),
    ],
)
def test_meta_files_that_cannot_be_right_are_refused(
    texts: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=why):
        read(tmp_path, *texts)


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


def test_a_second_run_changes_nothing(sources: dict[str, list[Path]], tmp_path: Path) -> None:
    planned = pair_identities(**sources, out=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    done = pair_identities(**sources, out=tmp_path / "out")
    assert (planned.pairs, planned.unmatched) == (done.pairs, done.unmatched)
    assert (planned.made, done.made) == (0, len(WANTED))
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


@pytest.mark.parametrize(("name", "identity"), [("..", "_.."), ('",,"', "id00012")])
def test_a_name_in_a_meta_file_leads_out_of_nothing(
    name: str, identity: str, tmp_path: Path
) -> None:
    grow(tmp_path, ["voices/id00012/1.wav", "faces/id00012/1.jpg"])
    meta = tmp_path / "meta.csv"
    meta.write_text(f"VoxCeleb2 ID,Name\nid00012,{name}\n")
    report = pair_identities(
        [tmp_path / "faces"], [tmp_path / "voices"], tmp_path / "a/out", metas=[meta]
    )
    assert [pair.identity for pair in report.pairs] == [identity]
    assert set(contents(tmp_path / "a")) == {
        f"out/{identity}/audios/1.wav",
        f"out/{identity}/images/1.jpg",
    }


def test_own_folders_are_joined_by_equal_names(tmp_path: Path) -> None:
    grow(tmp_path / "faces", ["Ann/1.jpg", "Ž/1.jpg", "bob/1.jpg"])
    grow(tmp_path / "voices", ["Ann/1.wav", "Z\u030c/x/1.wav", "dan/1.wav", "loose.wav"])
    report = pair_identities([tmp_path / "faces"], [tmp_path / "voices"], tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {
        "Ann/audios/1.wav",
        "Ann/images/1.jpg",
        "Z/audios/x/1.wav",
        "Z/images/1.jpg",
    }
    assert {one.name: one.why for one in report.unmatched} == {
        "bob": "no voice",
        "dan": "no face",
        "loose.wav": "not in an identity's folder",
    }


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
    with pytest.raises(DatasetError, match="no voice"):
        pair_identities(arguments[0], arguments[0], arguments[2])
    with pytest.raises(DatasetError, match="nobody of 2 people"):
        pair_identities(*arguments)
    assert len(pair_identities(*arguments, dry_run=True).unmatched) == 2
