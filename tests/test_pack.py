"""Packs: what goes in comes out, and whatever happens to a run or a file is seen."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_photo
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import write_pack
from trees import contents

from s2f import checkpoint, layout
from s2f.audio import clips
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.files import File
from s2f.pack import (
    INDEX,
    Pack,
    PackReport,
    ShardPlan,
    pack_tree,
    read_index,
    verify_pack,
    write_shard,
)
from s2f.prep_faces import embeddings_step

CLIP = 1600  # samples: 0.1 s
SECONDS = {"id0": (0.05, 0.1, 0.34), "id1": (0.16,), "id2": (0.2, 0.14)}


@pytest.fixture(scope="module")
def encoder(models: Path) -> Path:
    return models / "demo/face_encoder.safetensors"


@pytest.fixture(scope="module")
def made_tree(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A voice tree of two splits, waveforms int16 and float32, with embeddings. Not to change."""
    step = embeddings_step(encoder, "cpu")
    tree = tmp_path_factory.mktemp("voices") / "tree"
    for split in ("train", "val"):
        for k, (person, lengths) in enumerate(SECONDS.items()):
            folder = tree / split / person
            for i, seconds in enumerate(lengths):
                waveform = noise(seconds, seed=k + 3 * i)
                if i % 2:
                    waveform = (32768 * waveform).astype(np.int16)
                path = folder / "audios" / f"v{i // 2}" / f"{i}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, waveform)
            for i in range(k + 1):
                photo = write_photo(folder / "images" / f"{i}.jpg", seed=k + i)
                (value,) = step.net([step.work(photo, photo)])
                np.save(layout.beside(photo.with_suffix(""), layout.EMBEDDING), value)
    for name in (".s2f/audios/a.npy", "id0/audios/.a.npy", "id0/audios/b.wav"):  # no sources
        (tree / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "train" / name).touch()
    return tree


def make(tree: Path, out: Path, encoder: Path, **options: object) -> PackReport:
    options = {"clip_seconds": 0.1, "shard_bytes": 10_000, "workers": 1, **options}
    return pack_tree(tree, out, face_encoder=encoder, **options)


@pytest.fixture(scope="module")
def made_pack(tmp_path_factory: pytest.TempPathFactory, made_tree: Path, encoder: Path) -> Path:
    """The pack of that tree. Not to change."""
    out = tmp_path_factory.mktemp("packs") / "pack"
    report = make(made_tree, out, encoder)
    assert not report.failed
    assert (report.identities, report.embeddings) == (6, 12)
    assert report.made == len(list(out.glob("*/*.npy")))
    assert report.clips == sum(len(Pack(out / split)) for split in ("train", "val"))
    return out


@pytest.fixture
def tree(made_tree: Path, tmp_path: Path) -> Path:
    """A copy to change, the same to a journal."""
    return Path(shutil.copytree(made_tree, tmp_path / "tree"))


@pytest.fixture
def out(made_pack: Path, tmp_path: Path) -> Path:
    """A pack to change."""
    return Path(shutil.copytree(made_pack, tmp_path / "out"))


def test_a_pack_holds_every_clip_and_embedding_of_the_tree(
    made_tree: Path, made_pack: Path
) -> None:
    for split in ("train", "val"):
        read = Pack(made_pack / split)
        found = [
            (read.index.identities[read.identity(i)].name, read[i][0]) for i in range(len(read))
        ]
        expected = []
        for person in SECONDS:  # oracle: audio.clips on each file, in sorted order
            for path in sorted((made_tree / split / person / "audios").rglob("[0-9].npy")):
                waveform = np.load(path)
                if waveform.dtype != np.int16:
                    waveform = np.rint(waveform * 32768).clip(-32768, 32767)
                expected += [(person, clip) for clip in clips(waveform, CLIP)]
        assert [name for name, _ in found] == [name for name, _ in expected]
        for (_, clip), (_, wanted) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(clip, wanted)
        for i, (person, _) in enumerate(found):
            paths = sorted((made_tree / split / person).rglob("*" + layout.EMBEDDING))
            known = [read.embedding(k) for k in read[i][1]]
            np.testing.assert_array_equal(known, [np.load(p).astype(np.float16) for p in paths])


def test_anyone_can_open_the_files(made_pack: Path) -> None:
    for split in ("train", "val"):
        names = sorted(path.name for path in (made_pack / split).glob("clips-*.npy"))
        assert names == [f"clips-{k:05}.npy" for k in range(len(names))]
    for path in made_pack.glob("*/*.npy"):
        array = np.load(path, mmap_mode="r")
        kind = np.int16 if path.name.startswith("clips") else np.float16
        assert array.dtype == kind and array.shape[1] == (CLIP if kind == np.int16 else 8)
        size = path.stat().st_size
        assert size - array.nbytes == 128 and size < 11_000  # row i is at 128 + i x 2 x width


def test_a_shard_holds_what_can_be_used_and_names_the_rest(tmp_path: Path) -> None:
    """Floats become the nearest integers and are clipped: 2^15 times them, by hand."""
    arrays = {
        "a": np.array([0, 1 / 32768, -2, 2, 0.4 / 32768], np.float64),
        "b": np.full(5, np.nan, np.float32),
        "c": np.arange(10, dtype=np.int16),
        "d_embedding": np.full(5, 0.1, np.float32),
        "e_embedding": np.full(5, 1e6, np.float32),
    }
    for place in ("id0", "id1"):
        (tmp_path / place / "folder.npy").mkdir(parents=True)
        for name, array in arrays.items():
            np.save(tmp_path / place / f"{name}.npy", array)

    def shard(table: str, *names: str) -> tuple[list, dict]:
        sources = tuple(File(f"id{k // 2}/{n}.npy", 1, 0) for k, n in enumerate(names))
        plan = ShardPlan(f"{table}-00000.npy", table, 5, tmp_path, sources)
        note = write_shard(plan, tmp_path / "part")
        data = (tmp_path / "part").read_bytes()
        assert note["sha256"] == hashlib.sha256(data).hexdigest()
        return np.load(tmp_path / "part").tolist(), note

    rows, note = shard("clips", "a", "b", "c", "folder")
    assert rows == [[0, 1, -32768, 32767, 0], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert note["rows"] == {"id0": 1, "id1": 2}
    assert [path for path, _, _ in note["failed"]] == ["id0/b.npy", "id1/folder.npy"]
    rows, note = shard("embeddings", "d_embedding", "e_embedding")
    assert rows == [[float(np.float16(0.1))] * 5]
    assert "half precision" in note["failed"][0][1]
    assert shard("clips")[0] == []


def test_a_single_split_is_packed_too_by_any_number_of_workers(
    made_tree: Path, made_pack: Path, tmp_path: Path, encoder: Path
) -> None:
    make(made_tree / "val", tmp_path / "one", encoder, workers=3)
    both = contents(made_pack / "val")
    assert {name: (tmp_path / "one" / name).read_bytes() for name in both} == both


def test_a_second_run_has_nothing_to_do(
    made_tree: Path, made_pack: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(made_pack)
    monkeypatch.setattr(
        "s2f.pack.check_photo_embeddings", lambda *_: pytest.fail("loads the network")
    )
    report = make(made_tree, made_pack, encoder)
    assert (report.made, report.skipped) == (0, len(list(made_pack.glob("*/*.npy"))))
    assert contents(made_pack) == before


def test_only_the_files_of_what_changed_are_made_again(
    tree: Path, out: Path, tmp_path: Path, encoder: Path
) -> None:
    path = tree / "train/id2/audios/v0/1.npy"
    np.save(path, noise(0.1, seed=7))
    os.utime(path, ns=(1, 1))
    n_files = len(list(out.glob("*/*.npy")))
    report = make(tree, out, encoder)
    assert 0 < report.made <= 2 and report.made + report.skipped == n_files
    make(tree, tmp_path / "new", encoder)
    assert contents(out) == contents(tmp_path / "new")


def test_what_the_tree_no_longer_has_leaves_the_pack(tree: Path, out: Path, encoder: Path) -> None:
    for path in (tree / "train/id2").rglob("*.npy"):
        path.unlink()
    report = make(tree, out, encoder)
    assert [failure.source.name for failure in report.failed] == ["id2"]
    index = read_index(out / "train")
    assert [person.name for person in index.identities] == ["id0", "id1"]
    left = {path.name for path in (out / "train").glob("*.npy")}
    assert left == {shard.name for shard in (*index.clips, *index.embeddings)}


def test_what_cannot_be_used_is_named_and_costs_itself_only(
    tree: Path, tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {
        "train/id0/audios/v0/0.npy": "cannot be read as an array",
        "train/id2/audios/v0/1.npy": "holds NaN",
        "train/id2/images/1_embedding.npy": r"\[3\]; wanted an embedding \[8\]",
        "val/id0/images/0_embedding.npy": "not finite in half precision",
        "val/id1": "has 1 files in audios and 0 embeddings",
        "val/id0": "none of its embeddings",
        "val/id2/audios/pipe.npy": "no regular file",
    }
    (tree / "train/id0/audios/v0/0.npy").write_bytes(b"nothing")
    np.save(tree / "train/id2/audios/v0/1.npy", np.full(2000, np.nan, np.float32))
    np.save(tree / "train/id2/images/1_embedding.npy", np.zeros(3, np.float32))
    np.save(tree / "val/id0/images/0_embedding.npy", np.full(8, 1e6, np.float32))
    for path in (tree / "val/id1").rglob("*" + layout.EMBEDDING):
        path.unlink()
    os.mkfifo(tree / "val/id2/audios/pipe.npy")
    monkeypatch.setattr("s2f.pack.check_photo_embeddings", lambda *_: None)
    reports = [make(tree, tmp_path / "out", encoder) for _ in range(2)]
    found = {str(f.source.relative_to(tree)): str(f.error) for f in reports[0].failed}
    assert found.keys() == bad.keys()
    for path, message in bad.items():
        assert str(tree / path) in found[path]
        assert re.search(message, found[path])
    assert [str(f.error) for f in reports[1].failed] == [str(f.error) for f in reports[0].failed]
    assert [p.name for p in read_index(tmp_path / "out/val").identities] == ["id2"]
    assert not verify_pack(tmp_path / "out").damaged


def test_nothing_that_can_be_used_is_an_error(
    tree: Path, tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2f.pack.check_photo_embeddings", lambda *_: None)
    for path in tree.glob("val/id*/audios/*/*.npy"):
        path.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="none of its waveforms can be used with an embedding"):
        make(tree / "val", tmp_path / "out", encoder)
    with pytest.raises(DatasetError, match="it was not finished"):
        read_index(tmp_path / "out")


def test_embeddings_are_checked_with_their_face_encoder(
    tree: Path, tmp_path: Path, models: Path, encoder: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"is not what .* makes of its photo"):
        make(tree, tmp_path / "out", models / "other/face_encoder.safetensors")
    for path in tree.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DatasetError, match="no photo beside it"):
        make(tree, tmp_path / "out", encoder)
    assert not list(tmp_path.glob("out/**/*.npy"))


def test_a_pack_with_other_settings_is_refused_and_replaced_on_demand(
    made_tree: Path, out: Path, encoder: Path
) -> None:
    with pytest.raises(UsageError, match="is a pack with clip_samples 1600; this one has 800"):
        make(made_tree, out, encoder, clip_seconds=0.05)
    make(made_tree, out, encoder, clip_seconds=0.05, overwrite=True)
    assert Pack(out / "val")[0][0].shape == (800,)
    assert not verify_pack(out).damaged


def test_files_of_others_are_refused(made_tree: Path, tmp_path: Path, encoder: Path) -> None:
    mine = tmp_path / "out/val/clips-00000.npy"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already, and was not made by this command"):
        make(made_tree, tmp_path / "out", encoder)
    assert mine.read_bytes() == b"mine"
    make(made_tree, tmp_path / "out", encoder, overwrite=True)
    assert not verify_pack(tmp_path / "out").damaged


@pytest.mark.parametrize(("place", "why"), [("empty", "holds nobody"), ("nowhere", "is no folder")])
def test_a_tree_of_nobody_is_refused(tmp_path: Path, encoder: Path, place: str, why: str) -> None:
    (tmp_path / "empty/id0/audios").mkdir(parents=True)
    with pytest.raises(DatasetError, match=why):
        make(tmp_path / place, tmp_path / "out", encoder)


@pytest.mark.parametrize("place", [".", "train/id0/pack", ".."])
def test_the_tree_itself_is_no_place_for_the_pack(
    made_tree: Path, encoder: Path, place: str
) -> None:
    with pytest.raises(UsageError, match="overlaps with"):
        make(made_tree, made_tree / place, encoder)


def test_the_card_of_the_data_goes_along(tree: Path, out: Path, encoder: Path) -> None:
    (tree / "card.json").write_text(json.dumps({"licence": "CC BY"}))
    make(tree, out, encoder)
    assert checkpoint.Card.of_data(out, "m").licence == "CC BY"


KILLED = """
import sys, time
from pathlib import Path
from s2f.pack import pack_tree
pack_tree(Path(sys.argv[1]), Path(sys.argv[2]), face_encoder=Path(sys.argv[3]), clip_seconds=0.1,
     shard_bytes=4_000, workers=2, progress=lambda *_: (print(flush=True), time.sleep(0.02)))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    made_tree: Path, tmp_path: Path, encoder: Path
) -> None:
    make(made_tree, tmp_path / "whole", encoder, shard_bytes=4_000)
    for lines in (1, 3, 6, 10):
        out = tmp_path / f"out{lines}"
        command = [sys.executable, "-c", KILLED, str(made_tree), str(out), str(encoder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        process.communicate()
        report = make(made_tree, out, encoder, shard_bytes=4_000)
        if lines == 10:
            assert report.skipped > 0
        assert contents(out) == contents(tmp_path / "whole")


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_is_found(made_pack: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(made_pack.glob("[tv]*/*.*"))))
    original = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    changed = bytearray(original)
    changed[bit // 8] ^= 1 << bit % 8
    before = path.stat()
    path.write_bytes(changed)
    try:
        damaged = verify_pack(made_pack).damaged
        assert len(damaged) == 1 and str(path) in damaged[0].message
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_is_missing_or_short_is_found_at_once(out: Path) -> None:
    path = out / "train/clips-00000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"clips-00000\.npy: has \d+ bytes; wanted \d+"):
        Pack(out / "train")
    path.unlink()
    with pytest.raises(DatasetError, match=r"clips-00000\.npy: is missing"):
        Pack(out / "train")
    assert "clips-00000.npy: cannot be read" in verify_pack(out).damaged[0].message


def test_an_unfinished_pack_and_none_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no pack"):
        verify_pack(tmp_path)
    (tmp_path / "embeddings-00000.npy").touch()
    assert "it was not finished" in verify_pack(tmp_path).damaged[0].message


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 9}, "has format version 9; this program reads 1"),
        ({"clip_samples": 5}, "its SHA-256 is another"),
        ({"identities": 5}, "is damaged"),
    ],
)
def test_an_index_that_is_not_ours_is_refused(
    made_pack: Path, tmp_path: Path, change: dict[str, int], why: str
) -> None:
    fields = json.loads((made_pack / "val" / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(fields | change))
    with pytest.raises(DatasetError, match=why):
        read_index(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / INDEX).mkdir()
    with pytest.raises(DatasetError, match="cannot be read"):
        read_index(tmp_path)


def test_the_index_of_today_stays_readable(made_pack: Path) -> None:
    """Version 1, by its definition: JSON whose hash is that of all else in it, in this order."""
    fields = json.loads((made_pack / "val" / INDEX).read_text())
    assert list(fields) == [
        *("version", "clip_samples", "embedding", "embedding_space", "shard_bytes"),
        *("identities", "clips", "embeddings", "sha256"),
    ]
    sha256 = fields.pop("sha256")
    assert sha256 == hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    for shard in fields["clips"]:
        data = (made_pack / "val" / shard["name"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()


def test_an_open_pack_is_pickled_without_its_data(made_pack: Path) -> None:
    read = Pack(made_pack / "train")
    before = [read[i][0].tolist() for i in range(len(read))]
    assert len(pickle.dumps(read)) < 4000
    copy = pickle.loads(pickle.dumps(read))
    assert [copy[i][0].tolist() for i in range(len(copy))] == before
    with pytest.raises(IndexError):
        read[len(read)]


def test_people_without_clips_are_passed_over(tmp_path: Path) -> None:
    arrays = np.zeros((3, 5), np.int16), np.zeros((4, 2), np.float16)
    people = [("a", 0, 1), ("b", 2, 1), ("c", 0, 1), ("d", 1, 1)]
    write_pack(tmp_path / "p", [arrays[0]], [arrays[1]], people)
    read = Pack(tmp_path / "p")
    assert [read[i][1] for i in range(3)] == [range(1, 2), range(1, 2), range(3, 4)]
