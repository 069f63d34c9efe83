"""`s2f prep names`, `split`, `pair`, `pack`, `demo`: what users type, see, and get wrong."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Done, assert_refused, assert_wrong_usage
from trees import contents, grow

from s2f import demo
from s2f.files import Link


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return grow(tmp_path / "tree", [f"p{k}/1.jpg" for k in range(10)])


def test_names_prints_each_renaming(tmp_path: Path) -> None:
    grow(tmp_path, ["é/1", "Ann/1", "train\n/1"])
    done = Done("prep", "names", tmp_path)
    assert (done.code, done.out) == (0, "'train\\n' -> 'train_'\n'é' -> 'e'\n")
    assert "2 were renamed" in done.err


def test_names_exits_6_where_something_keeps_its_name(tmp_path: Path) -> None:
    grow(tmp_path, ["é/1", "e\u0301/2"])
    done = Done("prep", "names", tmp_path)
    assert (done.code, done.out) == (6, "")
    assert "cure: look at them, then give --merge" in done.err
    assert Done("prep", "names", tmp_path, "--merge", "--quiet").code == 0
    assert set(contents(tmp_path)) == {"e/1", "e/2"}


def test_names_dry_run_as_json_has_all_of_the_plan(tmp_path: Path) -> None:
    grow(tmp_path, ["é/1", "o/1", "ö/1"])
    done = Done("prep", "names", tmp_path, "--dry-run", "--json")
    assert (done.code, done.err) == (6, "")
    assert done.json["renamed"] == [{"parent": str(tmp_path), "old": ["é"], "new": "e"}]
    assert done.json["failed"][0]["error"] == "DatasetError"
    assert set(contents(tmp_path)) == {"é/1", "o/1", "ö/1"}


def test_split_prints_folders_and_counts(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = Done("prep", "split", people, out, "--train", 0.6)
    assert done.code == 0
    assert done.out.splitlines() == [f"{out}/train 6", f"{out}/val 2", f"{out}/test 2"]


def test_split_takes_all_its_options(people: Path, tmp_path: Path) -> None:
    labels = tmp_path / "l.csv"
    labels.write_text("id,sex,note\n" + "".join(f"p{k},F,x{k}\n" for k in range(8)))
    options = ("--by", labels, "--columns", "sex, note", "--seed", 3, "--val", 0.2)
    done = Done("prep", "split", people, tmp_path / "o", *options, "--link", "symlink", "--json")
    assert done.code == 0
    assert {name: len(who) for name, who in done.json["splits"].items()} == {
        "train": 8,
        "val": 2,
        "test": 0,
    }
    assert done.json["unlabelled"] == ["p8", "p9"]
    assert all(path.is_symlink() for path in (tmp_path / "o").rglob("*.jpg"))


def test_split_exits_6_where_a_file_cannot_be_used(people: Path, tmp_path: Path) -> None:
    (people / "p0/2.jpg").symlink_to("nowhere")
    done = Done("prep", "split", people, tmp_path / "out")
    assert done.code == 6
    assert "1 of 11 failed" in done.err
    assert str(people / "p0/2.jpg") in done.err


def test_split_refuses_an_output_of_other_options(people: Path, tmp_path: Path) -> None:
    assert Done("prep", "split", people, tmp_path / "out").code == 0
    done = Done("prep", "split", people, tmp_path / "out", "--seed", 1)
    assert_refused(done, 2, tmp_path / "out")


def test_pair_prints_where_the_tree_is(tmp_path: Path) -> None:
    grow(tmp_path, ["f/ann/1.jpg", "v/ann/1.wav", "v/bob/1.wav"])
    arguments = ("prep", "pair", "--faces", tmp_path / "f", "--voices", tmp_path / "v")
    planned = Done(*arguments, tmp_path / "out", "--dry-run")
    assert (planned.code, planned.out) == (0, "ann: 1 voices, 1 files of faces, by name\n")
    done = Done(*arguments, tmp_path / "out")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    assert "1 voice folders left out, no face: bob" in done.err
    report = Done(*arguments, tmp_path / "out", "--json").json
    assert [pair["identity"] for pair in report["pairs"]] == ["ann"]
    assert [one["why"] for one in report["unmatched"]] == ["no face"]


def test_pair_refuses_a_meta_file_that_is_none(tmp_path: Path) -> None:
    grow(tmp_path, ["f/ann/1.jpg", "v/ann/1.wav", "m.csv"])
    done = Done(
        *("prep", "pair", "--faces", tmp_path / "f", "--voices", tmp_path / "v"),
        *("--meta", tmp_path / "m.csv", tmp_path / "out"),
    )
    assert_refused(done, 3, tmp_path / "m.csv")


@pytest.mark.parametrize(
    "words",
    [
        ("names", "no/where"),
        ("split", "no/where", "out"),
        ("pair", "--faces", "no/where", "--voices", "no/where", "out"),
    ],
)
def test_a_tree_that_is_not_there_is_refused(words: tuple[str, ...]) -> None:
    assert_refused(Done("prep", *words), 3, "no/where")


@pytest.mark.parametrize(
    "words",
    [
        ("split", "tree", "out", "--train", "1.5"),
        ("split", "tree", "out", "--link", "soft"),
        ("pair", "out"),
    ],
)
def test_options_that_cannot_be_are_wrong_usage(words: tuple[str, ...]) -> None:
    assert_wrong_usage(Done("prep", *words))


def test_the_links_to_choose_from_are_the_librarys() -> None:
    from s2f import cli_prep

    choices = str(inspect.signature(cli_prep._split).parameters["link"].annotation)
    assert all(f"'{link}'" in choices for link in Link)


def test_prep_demo_prints_where_the_trees_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(faces: Path, voices: Path, out: Path, **options: Any) -> demo.DemoReport:
        options.pop("progress")(1, 2, "a")
        assert options == {"identities": 3, "seed": 1}
        return demo.DemoReport(out, {"train": 3}, {"train": 1})

    monkeypatch.setattr(demo, "prepare_demo", prepare)
    done = Done("prep", "demo", "f", "v", tmp_path / "out", "--identities", 3, "--seed", 1)
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")


def test_prep_demo_leaves_its_defaults_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(faces: Path, voices: Path, out: Path, **options: Any) -> demo.DemoReport:
        assert set(options) == {"progress"}
        return demo.DemoReport(out, {"train": 3}, {"train": 1})

    monkeypatch.setattr(demo, "prepare_demo", prepare)
    done = Done("prep", "demo", "f", "v", tmp_path / "out", "--json")
    assert done.json == {
        "out": str(tmp_path / "out"),
        "faces": {"train": 3},
        "voices": {"train": 1},
    }


def test_prep_demo_refuses_a_source_that_is_none(tmp_path: Path) -> None:
    done = Done("prep", "demo", tmp_path, tmp_path, tmp_path / "out")
    assert_refused(done, 3, tmp_path / "people.csv")


@pytest.fixture
def embedded(voices: Path, models: Path) -> tuple[Path, Path]:
    """A voice tree with embeddings, and the face encoder that made them."""
    encoder = models / "demo/face_encoder.safetensors"
    done = Done("prep", "embeddings", voices, voices, "--face-encoder", encoder, "--workers", 1)
    assert done.code == 0
    return voices, encoder


def test_pack_packs_and_checks(embedded: tuple[Path, Path], tmp_path: Path) -> None:
    tree, encoder = embedded
    arguments = ("prep", "pack", tree, tmp_path / "p", "--face-encoder", encoder)
    done = Done(*arguments, "--clip-seconds", 1, "--workers", 1, "--verify")
    assert (done.code, done.out) == (0, f"{tmp_path / 'p'}\n")
    assert "6 identities, 6 clips, 6 embeddings" in done.err
    assert "0 damaged" in done.err
    again = Done(*arguments, "--clip-seconds", 1, "--json").json
    assert (again["made"], again["clips"], again["failed"]) == (0, 6, [])


def test_pack_names_what_is_damaged(embedded: tuple[Path, Path], tmp_path: Path) -> None:
    tree, encoder = embedded
    pack = tmp_path / "pack"
    made = Done("prep", "pack", tree, pack, "--face-encoder", encoder, "--workers", 1)
    assert made.code == 0
    shard = sorted((pack / "train").glob("clips*.npy"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = Done("prep", "pack", pack, "--verify")
    assert done.code == 6
    assert str(shard) in done.err
    assert len(Done("prep", "pack", pack, "--verify", "--json").json["damaged"]) == 1


def test_pack_goes_on_past_people_without_voices(
    embedded: tuple[Path, Path], tmp_path: Path
) -> None:
    tree, encoder = embedded
    shutil.rmtree(tree / "train/id0/audios")
    done = Done("prep", "pack", tree, tmp_path / "p", "--face-encoder", encoder, "--workers", 1)
    assert done.code == 6
    assert "id0" in done.err


def test_pack_refuses_embeddings_of_another_encoder(
    embedded: tuple[Path, Path], models: Path, tmp_path: Path
) -> None:
    other = models / "other/face_encoder.safetensors"
    done = Done("prep", "pack", embedded[0], tmp_path / "p", "--face-encoder", other)
    assert_refused(done, 4, "other/face_encoder.safetensors")


@pytest.mark.parametrize(
    "words", [("a",), ("a", "b"), ("a", "--face-encoder", "c"), ("a", "b", "--verify")]
)
def test_pack_refuses_half_a_request(words: tuple[str, ...]) -> None:
    assert_refused(Done("prep", "pack", *words), 2, "packing takes TREE")


def test_pack_refuses_to_check_what_is_no_pack(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert_refused(Done("prep", "pack", tmp_path, "--verify"), 3, "is no pack")


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e9", "0"])
def test_clips_of_impossible_lengths_are_wrong_usage(tmp_path: Path, seconds: str) -> None:
    options = ["--face-encoder", tmp_path / "e.safetensors", "--clip-seconds", seconds]
    assert_wrong_usage(Done("prep", "pack", tmp_path, tmp_path / "out", *options))
