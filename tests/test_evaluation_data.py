"""The people, photos and labels that a model is evaluated on."""

from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_photo

from s2f import evaluation_data
from s2f.embeddings import Maker
from s2f.errors import DatasetError, UsageError
from s2f.evaluation_data import find_sources, photos_of, read_labels, read_people, spread

MAKER = Maker("a test", 2, "squash", lambda faces: faces.mean((2, 3))[:, :2])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
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
    assert [path.parent.parent.name for path in people.recordings[:3]] == ["ann", "ben", "ben"]
    assert people.notes == ("1 identities without a voice",)
    wanted = [people.embeddings[people.owners == k].mean(0) for k in range(3)]
    np.testing.assert_allclose(people.means(), wanted, rtol=1e-6)
    people = read_people(tree, "test", MAKER, most=1)
    assert people.speakers.tolist() == people.owners.tolist() == [0, 1, 2]
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

    names = [f"p{k}" for k in range(20)]
    rows = "\n".join(f"{name},{'FM'[k % 2]},land {k}" for k, name in enumerate(names))
    (tmp_path / "a.csv").write_text(f"who,sex,nationality\n{rows}\n")
    notes: list[str] = []
    found = read_labels([tmp_path / "a.csv"], names, (), notes)
    assert set(found) == {"sex"} and "nationality" in notes[0]
    with pytest.raises(DatasetError, match="nationality"):
        read_labels([tmp_path / "a.csv"], names, ["nationality"], [])
