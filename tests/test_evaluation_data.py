"""The people, photos and labels that a model is evaluated on."""

import dataclasses
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_photo
from evaluation_cases import drawn_face, write_hq_voxceleb, write_lists
from PIL import Image

from s2f import evaluation_data
from s2f.audio import hear, to_int16
from s2f.embeddings import Maker
from s2f.errors import DatasetError, ImageError, OutputError, UsageError
from s2f.evaluation_data import (
    Stored,
    StoredFaces,
    find_sources,
    gather_dataset,
    hq_voxceleb,
    photos_of,
    read_labels,
    read_people,
    spread,
)
from s2f.images import open_photo

MAKER = Maker("a test", 2, "squash", lambda faces: faces.mean((2, 3))[:, :2])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    people = {"test/ann": (1, 3), "test/ben": (2, 2), "test/cleo": (3, 1), "test/mute": (0, 1)}
    for seed, (name, (recordings, photos)) in enumerate({**people, "train/dan": (1, 1)}.items()):
        (tmp_path / name / "audios").mkdir(parents=True)
        for k in range(recordings):
            np.save(tmp_path / name / f"audios/{k}.npy", noise(1, seed))
        for k in range(photos):
            write_photo(tmp_path / name / f"images/{k}.jpg", seed + k)
    return tmp_path


def test_people_have_voices_and_faces(tree: Path) -> None:
    people = read_people(tree, "test", MAKER, most=5)
    assert people.names == ("ann", "ben", "cleo")
    assert people.speakers.tolist() == [0, 1, 1, 2, 2, 2]
    assert people.owners.tolist() == [0, 0, 0, 1, 1, 2]
    assert [path.split("/")[-3] for path in people.recordings[:3]] == ["ann", "ben", "ben"]
    assert people.notes == ("1 identities without a voice",)
    wanted = [people.embeddings[people.owners == k].mean(0) for k in range(3)]
    np.testing.assert_allclose(people.means(), wanted, rtol=1e-6)
    people = read_people(tree, "test", MAKER, most=1)
    assert people.speakers.tolist() == people.owners.tolist() == [0, 1, 2]
    kept = read_people(tree, "test", MAKER, files := tree / "files", most=1, every=True)
    held = read_people(tree, "test", MAKER, most=1, every=True)
    assert {path.name for path in files.iterdir()} == {"photos", "centres", "means"}
    for mine, theirs in (
        (kept.embeddings, held.embeddings),
        (kept.centres, held.centres),
        (kept.means(), dataclasses.replace(held, known_means=None).means()),
    ):
        np.testing.assert_array_equal(mine[:], theirs[:])
    assert read_people(tree, "test", MAKER, most=5, people=2).names == ("ann", "ben")
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread([1, 2], 5) == [1, 2]
    with pytest.raises(DatasetError, match="has 1 people with a voice and a face"):
        read_people(tree, "train", MAKER, most=5)
    found = photos_of(tree, "test", {"ann", "cleo", "zoe"}, 2)
    assert [who for _, who in found] == ["ann", "ann", "cleo"]
    assert all(path.is_file() for path, _ in found) and photos_of(tree, "val", {"ann"}, 2) == []
    assert evaluation_data.names_in_split(tree, "val") == set()


def test_a_folder_of_voices_and_faces_is_known(tmp_path: Path, tree: Path) -> None:
    both = tmp_path / "both"
    (both / "voices").mkdir(parents=True)
    (both / "faces").mkdir()
    (both / "faces/people.csv").touch()
    assert find_sources(both) == (both / "voices", both / "faces", [both / "faces/people.csv"])
    assert find_sources(tree, [both]) == (tree, tree, [both])
    with pytest.raises(DatasetError, match="no folder"):
        find_sources(tmp_path / "nowhere")


def test_labels_are_found_by_name_and_other_columns_noted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,sex,split,pitch_hz\nann,F,test,210\nben,M,test,120\n")
    (tmp_path / "b.csv").write_text("who,age\nzoe,31\n")
    (tmp_path / "c.csv").write_text("who,age,sex\nann,31,F\nben,,\n")
    paths = [tmp_path / f"{name}.csv" for name in "abc"]
    labels = read_labels(paths, ["ann", "ben"], (), [])
    assert labels == {"sex": {"ann": "F", "ben": "M"}, "age": {"ann": "30-39"}}
    assert set(read_labels(paths, ["ann", "ben"], ["age"], [])) == {"age"}
    with pytest.raises(UsageError, match="no label 'height'"):
        read_labels(paths, ["ann"], ["height"], [])
    assert read_labels([], ["ann"], (), []) == {}

    rows = "José Müller,F\nŽydrūnas Savickas,M\neve,F\n"  # as lists of people have them
    (tmp_path / "d.csv").write_text(f"who,sex\n{rows}")
    notes: list[str] = []
    plain = ["Jose_Muller", "Zydrunas_Savickas", "zed"]
    found = read_labels([tmp_path / "d.csv", tmp_path / "b.csv"], plain, (), notes)
    assert found == {"sex": {"Jose_Muller": "F", "Zydrunas_Savickas": "M"}}
    assert [note.partition(": ")[2] for note in notes] == [
        "has no row for 1 of 3 people: zed",
        "names nobody of 3 people, and is passed over",
    ]

    names = [f"p{k}" for k in range(20)]
    rows = "\n".join(f"{name},{'FM'[k % 2]},land {k}" for k, name in enumerate(names))
    (tmp_path / "a.csv").write_text(f"who,sex,nationality\n{rows}\n")
    notes = []
    found = read_labels([tmp_path / "a.csv"], names, (), notes)
    assert set(found) == {"sex"} and "nationality" in notes[0]
    with pytest.raises(DatasetError, match="nationality"):
        read_labels([tmp_path / "a.csv"], names, ["nationality"], [])


def test_stored_rows_are_read_as_an_array_is_and_stored_faces_are_those_drawn(
    tmp_path: Path,
) -> None:
    rows = np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    stored = Stored(tmp_path / "rows", (3,))
    assert stored.shape == (0, 3) and stored[:5].shape == (0, 3) and len(stored) == 0
    for row in rows:
        stored.append(row)
    assert stored.shape == rows.shape and len(stored) == 70
    for which in (0, -1, slice(3, 50), slice(None), rows[:, 0] > 0, np.array([5, 1, 1])):
        np.testing.assert_array_equal(stored[which], rows[which])
    faces = StoredFaces(tmp_path / "faces")
    drawn = [drawn_face(k) for k in range(3)]
    for face in drawn:
        faces.append(face)
    assert len(faces) == 3 and [len(faces[1:]), len(list(faces))] == [2, 3]
    for face, read in zip(drawn, faces, strict=True):
        assert face.image.tobytes() == read.image.tobytes()
        assert face.landmarks.tolist() == read.landmarks.tolist()
    with pytest.raises(OutputError, match=r"nowhere/rows: cannot be written"):
        Stored(tmp_path / "nowhere/rows", (3,)).append(rows[0])


def test_the_splits_of_hq_voxceleb_are_those_of_sf2f_and_of_names(tmp_path: Path) -> None:
    """SF2F's rule leaves 1001, 125 and 125 of the 1,251 people in VoxCeleb1's list."""
    names = [f"{'AEFZ'[k % 4]}.{k}" for k in range(1251)]
    write_lists(tmp_path, names, [])
    for k, name in enumerate(names):
        (tmp_path / f"vox1/masked_faces/{name}").mkdir(parents=True)
        (tmp_path / f"raw_wav/vox1/dev/id1{k:04}").mkdir(parents=True)
    members, notes = hq_voxceleb(tmp_path)
    assert len(notes) == 1 and "vox2/masked_faces" in notes[0]
    wanted: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i in range(len(names)):  # as its script has it
        if i % 10 == 8:
            wanted["test"].append(names[i])
        elif i % 10 == 9:
            wanted["val"].append(names[i])
        else:
            wanted["train"].append(names[i])
    assert {name: len(people) for name, people in wanted.items()} == {
        "train": 1001,
        "val": 125,
        "test": 125,
    }
    for split, people in wanted.items():
        found = [member.identity for member in members if member.split == split]
        assert found == sorted(f"vox1_{name}" for name in people)
    for member in hq_voxceleb(tmp_path, by_initial=True)[0]:
        assert member.split == ("test" if member.identity[5] in "AE" else "train")


def test_hq_voxceleb_becomes_a_tree(tmp_path: Path) -> None:
    root = write_hq_voxceleb(tmp_path / "VoxCeleb")
    broken = root / "raw_wav/vox1/dev/id10018/video/00000.wav"
    broken.write_bytes(b"no sound")
    framed: list[Path] = []

    def frame(path: Path) -> Image.Image:
        framed.append(path)
        if path.parent.name == "Ann_18":
            raise ImageError(f"{path}: has no face")
        return open_photo(path)

    tree = tmp_path / "tree"
    notes = gather_dataset("hq-voxceleb", root, tree, "test", most=2, frame=frame)
    names = sorted(path.name for path in (tree / "test").iterdir())
    zydrunas = unicodedata.normalize("NFD", "vox2_Žydrūnas_Savickas_Jr.")
    wanted = ["vox1_Ann_18", "vox1_Harry_Connick_Jr.", "vox2_Harry_Connick_Jr.", zydrunas]
    assert names == sorted(wanted)
    assert len(list((tree / "train").iterdir())) == 6
    assert not any("origin_faces" in path.parts for path in framed)
    assert len(notes) == 2 and str(broken) in notes[0] and "has no face" in notes[1]
    audios = tree / "test/vox1_Harry_Connick_Jr./audios"
    stored = np.load(audios / "id10008_video_00001.npy")
    sound = hear(root / "raw_wav/vox1/dev/id10008/video/00001.wav").waveform
    assert stored.dtype == np.int16 and stored.tolist() == to_int16(sound).tolist()
    people = read_people(tree, "test", MAKER, most=5)
    assert people.names == tuple(name for name in names if name != "vox1_Ann_18")
    labels = read_labels(find_sources(tree)[2], people.names, (), [])
    assert labels["sex"] == dict.fromkeys(people.names, "f")
    notes = gather_dataset(
        "hq-voxceleb-cmu", root, tmp_path / "cmu", "test", most=1, frame=open_photo
    )
    found = {path.name for path in (tmp_path / "cmu/test").iterdir()}
    assert found == {f"vox1_Ann_{k}" for k in (0, 1, 2, 9, 18)}
    with pytest.raises(UsageError, match="did not say who"):
        gather_dataset("hq-voxceleb-cmu", root, tree, "val", most=1, frame=open_photo)


def test_what_is_no_hq_voxceleb_is_told_with_what_is_missing(tmp_path: Path) -> None:
    root = write_hq_voxceleb(tmp_path / "VoxCeleb")
    with pytest.raises(DatasetError, match="nobody of HQ-VoxCeleb") as caught:
        hq_voxceleb(root / "raw_wav")
    assert "vox1_meta.csv" in (caught.value.hint or "")
    path = root / "vox2/full_vox2_meta.csv"
    path.write_text("VoxCeleb2 ID,VGGFace2 ID,Gender,Set\nid00012,n000012,m,dev\n")  # as it is now
    with pytest.raises(DatasetError, match="has columns VoxCeleb2 ID, VGGFace2 ID"):
        hq_voxceleb(root)
    path.unlink()
    with pytest.raises(DatasetError, match=r"photos of vox2 and no full_vox2_meta\.csv"):
        hq_voxceleb(root)


def test_stored_pictures_are_those_that_were_put_there(tmp_path: Path) -> None:
    stored = evaluation_data.StoredImages(tmp_path / "pictures")
    assert len(stored) == 0 and list(stored) == []
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    for one in pixels:
        stored.append(Image.fromarray(one))
    assert (tmp_path / "pictures").stat().st_size == pixels.nbytes  # and nothing in memory
    np.testing.assert_array_equal([np.asarray(image) for image in stored], pixels)
    np.testing.assert_array_equal(np.asarray(stored[-1]), pixels[2])
    np.testing.assert_array_equal([np.asarray(image) for image in stored[1:]], pixels[1:])
    with pytest.raises(IndexError):
        stored[3]


def test_the_counts_of_data_sets_are_those_published() -> None:
    """Vox2Face, Table 1, whose last row has the sums; Wen et al.: 1,225 people."""
    sums = tuple(map(sum, zip(*evaluation_data.HQ_COUNTS.values(), strict=True)))
    assert evaluation_data.HQ_COUNTS["test"] == (378, 794, 68_354) and sums == (3638, 8028, 609_700)
    assert evaluation_data.CMU_COUNTS == {"train": 924, "val": 112, "test": 189}
    assert sum(evaluation_data.CMU_COUNTS.values()) == 1225
