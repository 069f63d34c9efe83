"""Pairing trees: nobody is taken for somebody else, and every file gets its place."""

import os
import unicodedata

import pytest
from trees import contents, grow

from s2f.errors import DatasetError, UsageError
from s2f.files import Link
from s2f.pair import find_people, pair_identities, read_meta
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


def write(folder, *texts):
    for k, text in enumerate(texts):
        (folder / f"{k}.csv").write_text(text, encoding="utf-8")
    return [folder / f"{k}.csv" for k in range(len(texts))]


def read(folder, *texts):
    return read_meta(write(folder, *texts))


@pytest.mark.parametrize(
    "texts",
    [
        *((VOX2_OLD,), (FULL_VOX2,), (VOX2_OFFICIAL, VGGFACE2), (VGGFACE2, VOX2_OFFICIAL)),
        *((VOX2_OFFICIAL, FULL_VOX2), (VOX2_OLD, FULL_VOX2)),
        (unicodedata.normalize("NFD", VOX2_OLD),),
        ("\ufeff" + FULL_VOX2.replace("\n", "\r\n"),),
    ],
)
def test_all_dialects_of_voxceleb2_know_the_same_people(texts, tmp_path):
    people = read(tmp_path, *texts)
    assert [(person.identity, person.voices) for person in people.people] == [
        ("Carlos_Sainz_Jr.", ("id00017",)),
        ("Harry_Connick_Jr.", ("id00019",)),
        ("Zydrunas_Savickas", ("id00012",)),
    ]
    names = ("Žydrūnas_Savickas", "Z\u030cydru\u0304nas_Savickas", "Zydrunas_Savickas")
    found = [people.find(label) for label in ("id00012", "n009999", *names)]
    zydrunas = (people.people[2],)
    assert found == [(zydrunas, how) for how in ("id", "id", "name", "name", "transliterated")]
    for label in ("Carlos_Sainz,_Jr.", "Carlos_Sainz_Jr."):
        assert people.find(label)[0] == (people.people[0],)


def test_digits_of_an_id_do_not_make_a_class_which_has_only_a_name(tmp_path):
    """And without names people are their ids."""
    people = read(tmp_path, VOX2_OFFICIAL)
    assert [person.identity for person in people.people] == ["id00012", "id00017", "id00019"]
    assert people.find("n000012")[0][0].identity == "id00017"
    assert people.find("n000019") == ((), "transliterated")
    people = read(tmp_path, VOX2_OFFICIAL, VGGFACE2)
    assert (people.find("n000001")[0], people.names["n000001"]) == ((), "14th_Dalai_Lama")
    people = read(tmp_path, VOX1, 'Class_ID, Name\nn000777, "A.J._Buckley"\n')
    assert people.find("n000777")[0][0].voices == ("id10001",)


def test_the_person_in_both_voxcelebs_is_one_and_namesakes_in_one_are_not(tmp_path):
    twins = "José_X\tid00100\tn000100\tm\tdev\nJose_X\tid00101\tn000101\tm\tdev\n"
    people = read(tmp_path, VOX1, VOX2_OLD + twins)
    for label in ("id00019", "id10270", "n003333", "Harry_Connick_Jr."):
        (harry,) = people.find(label)[0]
        assert harry.voices == ("id00019", "id10270") and harry.datasets == ("vox1", "vox2")
    assert people.collisions == ("Jose_X_id00100", "Jose_X_id00101")
    assert [person.voices for person in people.find("José_X")[0]] == [("id00100",)]
    assert [person.voices for person in people.find("n000101")[0]] == [("id00101",)]
    assert len(people.find("JOSÉ_X")[0]) == 2


def test_meta_files_that_cannot_be_right_are_refused(tmp_path):
    for texts, why in (
        (("Name,Gender\nAnn,f\n",), "no ids"),
        (("VoxCeleb1 ID,Name\n10001,Ann\n",), "line 2.*'10001'"),
        ((VOX2_OFFICIAL, VOX2_OFFICIAL.replace("n009999", "n008888")), "id00012"),
        ((VOX2_OLD, FULL_VOX2.replace("Harry_Connick_Jr.", "Harry")), "id00019"),
        ((VOX2_OFFICIAL + "id00020,n1,m,dev\n",), "line 5.*'n1'"),
    ):
        with pytest.raises(DatasetError, match=why):
            read(tmp_path, *texts)


@pytest.mark.parametrize(
    ("path", "label", "inside"),
    [
        *(("id10001/1.wav", "id10001", "id10001"), ("wav/id10001/1.wav", "id10001", "wav/id10001")),
        ("dev/aac/id00012/vid/1.m4a", "id00012", "dev/aac/id00012"),
        ("A.J._Buckley/id10001_v_1.npy", "A.J._Buckley", "A.J._Buckley"),
        ("unheard_of/id00012/1.npy", "id00012", "unheard_of/id00012"),
        *(("flat/id00012_vid_1.npy", "id00012", "flat"), ("id00012.wav", "id00012", "")),
        *(("id000123.wav", None, ""), ("wav/1.wav", None, "wav")),
        ("train/ann/vid/1.wav", "ann", "train/ann"),
    ],
)
def test_a_path_names_the_person(path, label, inside, tmp_path):
    grow(tmp_path / "tree", [path])
    (found,) = find_people(tmp_path / "tree", "voice", read(tmp_path, VOX1, FULL_VOX2))
    names = (path.removeprefix(f"{inside}/"),)
    assert (found.label, found.inside, found.names) == (label, inside, names)


HQ1, HQ2 = (f"HQ-VoxCeleb/HQ-VoxCeleb/vox{k}/masked_faces" for k in (1, 2))
BUCKLEY = ("1.jpg", "1_landmarks.npy", "1_embedding.npy")
FACES = [
    *(f"{HQ1}/A.J._Buckley/{name}" for name in (*BUCKLEY, "notes.txt")),
    *(f"{hq}/Harry_Connick_Jr./1.jpg" for hq in (HQ1, HQ2)),
    *(f"{HQ2}/{who}/1.jpg" for who in ("Z\u030cydru\u0304nas_Savickas", "Carlos_Sainz_Jr.")),
    "HQ-VoxCeleb/__MACOSX/vox1/masked_faces/A.J._Buckley/._1.jpg",
]
VOICES = [
    *("vox1/dev/wav/id10001/1zcIwhmdeo4/00001.wav", "vox1/test/wav/id10270/5r0dWxy17C8/00001.wav"),
    *("vox2/dev/aac/id00012/21Uxsk56VDQ/00001.m4a", "vox2/dev/aac/id00012/-1Uxsk56VDQ/00001.m4a"),
    *("vox2/dev/aac/id00017/01dfn2spqyE/00001.m4a", "vox2/test/aac/id00019/01dfn2spqyE/00001.m4a"),
    "vox2/dev/aac/id09272/01dfn2spqyE/00001.m4a",
]
WANTED = {
    "A.J._Buckley/audios/1zcIwhmdeo4/00001.wav": VOICES[0],
    **{f"A.J._Buckley/images/{name}": f"{HQ1}/A.J._Buckley/{name}" for name in BUCKLEY},
    "Carlos_Sainz_Jr./audios/01dfn2spqyE/00001.m4a": VOICES[4],
    "Carlos_Sainz_Jr./images/1.jpg": FACES[7],
    **{f"Harry_Connick_Jr./audios/{path}": path for path in (VOICES[1], VOICES[5])},
    **{f"Harry_Connick_Jr./images/{path}": path for path in FACES[4:6]},
    "Zydrunas_Savickas/audios/21Uxsk56VDQ/00001.m4a": VOICES[2],
    "Zydrunas_Savickas/audios/-1Uxsk56VDQ/00001.m4a": VOICES[3],
    "Zydrunas_Savickas/images/1.jpg": FACES[6],
}


@pytest.fixture
def sources(tmp_path):
    """Trees as the datasets unpack, and their meta files."""
    faces, voices = grow(tmp_path / "faces", FACES), grow(tmp_path / "voices", VOICES)
    return {"faces": [faces], "voices": [voices], "metas": write(tmp_path, VOX1, FULL_VOX2)}


@pytest.mark.parametrize("link", Link)
def test_everybody_gets_their_own_voices_and_faces(link, sources, tmp_path):
    out = tmp_path / "out"
    planned = pair_identities(**sources, out=out, link=link, dry_run=True)
    assert not out.exists()
    report = pair_identities(**sources, out=out, link=link)
    assert contents(out) == {path: os.fsencode(source) for path, source in WANTED.items()}
    assert sorted({path.split("/")[0] for path in WANTED}) == [one.identity for one in report.pairs]
    assert [pair.how for pair in report.pairs] == ["name", "transliterated", "name", "name"]
    assert [(one.name, one.why) for one in report.unmatched] == [("id09272", "no meta row")]
    assert report.shared == ("Harry_Connick_Jr.",)
    counts = {"vox1": (2, 2, 2, 2), "vox2": (3, 3, 3, 3), "own": (0, 1, 0, 0)}
    kinds = ("people", "voices", "faces", "pairs")
    assert report.datasets == {k: dict(zip(kinds, n, strict=True)) for k, n in counts.items()}
    assert (planned.pairs, planned.unmatched) == (report.pairs, report.unmatched)
    before = {path: path.lstat() for path in out.rglob("*")}
    again = pair_identities(**sources, out=out, link=link)
    assert {path: path.lstat() for path in out.rglob("*")} == before
    counts = [(r.made, r.kept) for r in (planned, report, again)]
    assert counts == [(0, 0), (len(WANTED), 0), (0, len(WANTED))]
    for seed in range(5):  # the person of both sets is never in two splits
        split_tree(out, tmp_path / f"split{seed}", train=0.5, seed=seed)
        paths = [path for path in contents(tmp_path / f"split{seed}") if "Harry" in path]
        assert len(paths) == 4 and len({path.split("/")[0] for path in paths}) == 1


def test_other_people_in_the_output_are_refused(sources, tmp_path):
    """Without names Zydrunas_Savickas would be id00012: one person in two folders."""
    pair_identities(**sources, out=tmp_path / "out")
    sources |= {"metas": write(tmp_path, VOX2_OFFICIAL)}
    sources |= {"faces": [grow(tmp_path / "vggface2", ["train/n009999/1.jpg"])]}
    with pytest.raises(UsageError, match="in no pair"):
        pair_identities(**sources, out=tmp_path / "out")


TWINS = "Name,VoxCeleb2 ID\nJosé_X,id00100\nJose_X,id00101\n"
META = "VoxCeleb2 ID,Name\nid00012,"
MAY_BE = "ambiguous: may be Jose_X_id00100, Jose_X_id00101"
SEVERAL = "ambiguous: Jose, José are one name"


@pytest.mark.parametrize(
    ("metas", "faces", "voices", "pairs", "left"),
    [
        (
            (VOX1, FULL_VOX2),
            ["Harry_Connick_Jr.", "n000012", "Nobody"],
            ["id00012", "id00017", "id09999"],
            ["Carlos_Sainz_Jr."],
            {"id00012": "no face", "id09999": "no meta row"}
            | {"Harry_Connick_Jr.": "no voice", "Nobody": "no meta row"},
        ),
        ((TWINS,), ["JOSE_X"], ["id00100"], [], {"id00100": "no face", "JOSE_X": MAY_BE}),
        # Without a meta file, spellings are joined only across the trees.
        ((), ["José"], ["Jose"], ["Jose"], {}),
        ((), ["José", "Ann"], ["Jose", "José", "Ann"], ["Ann"], {"Jose": SEVERAL, "José": SEVERAL}),
        ((), ["\udce9", "ann"], ["\udce9", "ann"], ["ann"], {"\udce9": "\udce9: is not text"}),
        ((), ["Ann", "bob"], ["Ann", "dan"], ["Ann"], {"bob": "no voice", "dan": "no face"}),
        # A name in a meta file leads out of nothing.
        ((f"{META}..",), ["id00012"], ["id00012"], ["_.."], {}),
        ((f'{META}",,"',), ["id00012"], ["id00012"], ["id00012"], {}),
    ],
)
def test_every_folder_is_a_persons_or_left_out_with_its_reason(
    metas, faces, voices, pairs, left, tmp_path
):
    seen = grow(tmp_path / "faces", [f"{name}/1.jpg" for name in faces])
    heard = grow(tmp_path / "voices", [f"{name}/1.wav" for name in voices])
    metas = write(tmp_path, *metas)
    report = pair_identities([seen], [heard], tmp_path / "out", metas=metas, dry_run=True)
    assert [pair.identity for pair in report.pairs] == pairs
    found = {one.name: one.why for one in report.unmatched}
    assert found.keys() == left.keys()
    assert all(found[name].startswith(why) for name, why in left.items())


def test_several_trees_of_a_kind_keep_their_files_apart_and_one_may_hold_both(tmp_path):
    paths = ["t/ann/1.jpg", "t/ann/1_landmarks.npy", "t/ann/2.npy", "t/ann/x/3.wav", "t/4.wav"]
    grow(tmp_path, [*paths, "v/ann/1.wav"])
    voices = [tmp_path / "t", tmp_path / "v"]
    report = pair_identities([tmp_path / "t"], voices, tmp_path / "out")
    audios = {"audios/t/ann/2.npy", "audios/t/ann/x/3.wav", "audios/v/ann/1.wav"}
    wanted = {f"ann/{path}" for path in (*audios, "images/1.jpg", "images/1_landmarks.npy")}
    assert set(contents(tmp_path / "out")) == wanted
    (left,) = report.unmatched
    assert (left.name, left.why) == ("4.wav", "not in an identity's folder")


def test_of_a_recording_in_two_formats_the_preferred_is_linked(tmp_path):
    """Public scripts for VoxCeleb2 leave 00001.wav beside 00001.m4a."""
    clips = [f"v/id00012/aaa/{k}.{suffix}" for k in (1, 2) for suffix in ("m4a", "wav")]
    grow(tmp_path, [*clips, "v/id00012/aaa/3.m4a", "v/list.txt", "f/id00012/1.jpg", "f/id00012/x"])
    arguments = [tmp_path / "f"], [tmp_path / "v"], tmp_path / "out"
    with pytest.raises(DatasetError, match=r"v: 2 names have .* \(\.m4a beside \.wav 2\)"):
        pair_identities(*arguments)
    with pytest.raises(UsageError, match="'foo' is no suffix of voices"):
        pair_identities(*arguments, prefer="foo")
    report = pair_identities(*arguments, prefer=".WAV")
    assert report.passed_over == {".m4a": 2, ".txt": 1, "": 1}
    audios = tmp_path / "out/id00012/audios/aaa"
    assert sorted(path.name for path in audios.iterdir()) == ["1.wav", "2.wav", "3.m4a"]


def test_what_cannot_be_paired_is_an_error_but_not_in_a_dry_run(tmp_path):
    grow(tmp_path, ["a/v/ann/1.wav", "b/v/ann/1.wav", "faces/ann/1.jpg", "voices/bob/1.wav"])
    faces, voices, out = [tmp_path / "faces"], [tmp_path / "voices"], tmp_path / "out"
    with pytest.raises(UsageError, match="would both be"):
        pair_identities(faces, [tmp_path / "a/v", tmp_path / "b/v"], out)
    with pytest.raises(DatasetError, match="no voice"):
        pair_identities(faces, faces, out)
    with pytest.raises(DatasetError, match="nobody of 2 people"):
        pair_identities(faces, voices, out)
    assert len(pair_identities(faces, voices, out, dry_run=True).unmatched) == 2
    assert not out.exists()
