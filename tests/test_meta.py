"""Meta files: all dialects in the wild say the same, and nobody is taken for somebody else."""

import unicodedata
from pathlib import Path

import pytest

from s2f import pair
from s2f.errors import DatasetError

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


def read(folder: Path, *texts: str) -> pair.MetaPeople:
    paths = [folder / f"{k}.csv" for k in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return pair.read_meta(paths)


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


def test_without_names_people_are_their_ids(tmp_path: Path) -> None:
    people = read(tmp_path, VOX2_OFFICIAL)
    assert [person.identity for person in people.people] == ["id00012", "id00017", "id00019"]
    assert people.find("n000012")[0][0].identity == "id00017"


def test_digits_of_an_id_do_not_make_a_class(tmp_path: Path) -> None:
    assert read(tmp_path, VOX2_OFFICIAL).find("n000019") == ((), "transliterated")


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


def test_a_face_class_finds_a_voxceleb1_person_by_name(tmp_path: Path) -> None:
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


def test_no_meta_file_knows_nobody() -> None:
    assert pair.read_meta([]).find("id10001") == ((), "transliterated")
