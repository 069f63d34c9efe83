"""Packs: what goes in comes out, and whatever happens to a run or a file is seen."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import noise, write_photo
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import write_pack
from trees import contents, grow

from s2f import checkpoint, layout
from s2f.audio import clips
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.files import File
from s2f.pack import INDEX, Pack, ShardPlan, pack_tree, read_index, verify_pack, write_shard
from s2f.prep_faces import embeddings_step

CLIP = 1600  # samples: 0.1 s
SECONDS = {"id0": (0.05, 0.1, 0.34), "id1": (0.16,), "id2": (0.2, 0.14)}


@pytest.fixture(scope="module")
def encoder(models):
    return models / "demo/face_encoder.safetensors"


def store(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


@pytest.fixture(scope="module")
def made_tree(tmp_path_factory, encoder):
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
                store(folder / "audios" / f"v{i // 2}" / f"{i}.npy", waveform)
            for i in range(k + 1):
                photo = write_photo(folder / "images" / f"{i}.jpg", seed=k + i)
                (value,) = step.net([step.work(photo, photo)])
                np.save(layout.beside(photo.with_suffix(""), layout.EMBEDDING), value)
    grow(tree / "train", [".s2f/audios/a.npy", "id0/audios/.a.npy", "id0/audios/b.wav"], b"")
    return tree  # the last three are no sources


def make(tree, out, encoder, **options):
    options = {"clip_seconds": 0.1, "shard_bytes": 10_000, "workers": 1, **options}
    return pack_tree(tree, out, face_encoder=encoder, **options)


@pytest.fixture(scope="module")
def made_pack(tmp_path_factory, made_tree, encoder):
    """The pack of that tree. Not to change."""
    out = tmp_path_factory.mktemp("packs") / "pack"
    report = make(made_tree, out, encoder)
    assert (report.identities, report.embeddings, report.failed) == (6, 12, ())
    assert report.made == len(list(out.glob("*/*.npy")))
    assert report.clips == sum(len(Pack(out / split)) for split in ("train", "val"))
    return out


@pytest.fixture
def tree(made_tree, tmp_path):
    """A copy to change, the same to a journal."""
    return shutil.copytree(made_tree, tmp_path / "tree")


@pytest.fixture
def out(made_pack, tmp_path):
    """A pack to change."""
    return shutil.copytree(made_pack, tmp_path / "out")


def test_a_pack_holds_every_clip_and_embedding_of_the_tree(made_tree, made_pack):
    for split in ("train", "val"):
        read = Pack(made_pack / split)
        expected = []
        for person in SECONDS:  # oracle: audio.clips on each file, in sorted order
            for path in sorted((made_tree / split / person / "audios").rglob("[0-9].npy")):
                waveform = np.load(path)
                if waveform.dtype != np.int16:
                    waveform = np.rint(waveform * 32768).clip(-32768, 32767)
                expected += [(person, clip) for clip in clips(waveform, CLIP)]
        assert len(read) == len(expected)
        for i, (person, wanted) in enumerate(expected):
            clip, embeddings = read[i]
            assert read.index.identities[read.identity(i)].name == person
            np.testing.assert_array_equal(clip, wanted)
            paths = sorted((made_tree / split / person).rglob("*" + layout.EMBEDDING))
            known = [read.embedding(k) for k in embeddings]
            np.testing.assert_array_equal(known, [np.load(p).astype(np.float16) for p in paths])


def test_the_files_are_what_they_are_said_to_be(made_pack):
    """Version 1, by its definition: JSON whose hash is that of all else in it, in this order."""
    for split in ("train", "val"):
        fields = json.loads((made_pack / split / INDEX).read_text())
        assert list(fields) == [
            *("version", "clip_samples", "embedding", "embedding_space", "shard_bytes"),
            *("identities", "clips", "embeddings", "sha256"),
        ]
        sha256 = fields.pop("sha256")
        assert sha256 == hashlib.sha256(json.dumps(fields).encode()).hexdigest()
        for table, kind, width in (("clips", np.int16, CLIP), ("embeddings", np.float16, 8)):
            names = [shard["name"] for shard in fields[table]]
            assert names == [f"{table}-{k:05}.npy" for k in range(len(names))]
            for shard in fields[table]:
                path = made_pack / split / shard["name"]
                assert shard["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
                array, size = np.load(path, mmap_mode="r"), path.stat().st_size
                assert array.dtype == kind and array.shape == (shard["rows"], width)
                assert size - array.nbytes == 128 and size < 11_000  # row i: 128 + i x 2 x width


def test_a_shard_holds_what_can_be_used_and_names_the_rest(tmp_path):
    """Floats become the nearest integers and are clipped: 2^15 times them, by hand."""
    store(tmp_path / "a.npy", np.array([0, 1 / 32768, -2, 2, 0.4 / 32768]))
    store(tmp_path / "b.npy", np.arange(10, dtype=np.int16))
    for name, value in (("nan", np.nan), ("good", 0.1), ("huge", 1e6)):
        store(tmp_path / f"{name}.npy", np.full(5, value, np.float32))
    rows = [[0, 1, -32768, 32767, 0], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    for table, names, wanted in (
        ("clips", ("a.npy", "b.npy", "nan.npy", "gone.npy"), rows),
        ("embeddings", ("good.npy", "huge.npy", "gone.npy"), [[float(np.float16(0.1))] * 5]),
    ):
        sources = tuple(File(name, 1, 0) for name in names)
        note = write_shard(ShardPlan("name", table, 5, tmp_path, sources), tmp_path / "part")
        assert np.load(tmp_path / "part").tolist() == wanted
        assert [path for path, _, _ in note["failed"]] == [*names[-2:]]


def test_a_second_run_has_nothing_to_do_and_one_split_is_packed_alike(
    made_tree, made_pack, tmp_path, encoder, monkeypatch
):
    make(made_tree / "val", tmp_path / "one", encoder, workers=3)
    both = contents(made_pack / "val")
    assert {name: (tmp_path / "one" / name).read_bytes() for name in both} == both
    before = contents(made_pack)
    monkeypatch.setattr("s2f.pack.check_photo_embeddings", lambda *_: pytest.fail("loads"))
    report = make(made_tree, made_pack, encoder)
    assert (report.made, report.skipped) == (0, len(list(made_pack.glob("*/*.npy"))))
    assert contents(made_pack) == before


def test_only_what_changed_is_made_again_and_what_is_gone_leaves(tree, out, tmp_path, encoder):
    path = tree / "train/id2/audios/v0/1.npy"
    np.save(path, noise(0.1, seed=7))
    os.utime(path, ns=(1, 1))
    (tree / "card.json").write_text(json.dumps({"licence": "CC BY"}))
    n_files = len(list(out.glob("*/*.npy")))
    report = make(tree, out, encoder)
    assert 0 < report.made <= 2 and report.made + report.skipped == n_files
    make(tree, tmp_path / "new", encoder)
    assert contents(out) == contents(tmp_path / "new")
    assert checkpoint.Card.of_data(out, "m").licence == "CC BY"  # of the data: it goes along
    for path in (tree / "train/id2").rglob("*.npy"):
        path.unlink()
    assert [failure.source.name for failure in make(tree, out, encoder).failed] == ["id2"]
    index = read_index(out / "train")
    assert [person.name for person in index.identities] == ["id0", "id1"]
    left = {path.name for path in (out / "train").glob("*.npy")}
    assert left == {shard.name for shard in (*index.clips, *index.embeddings)}


def test_what_cannot_be_used_is_named_and_costs_itself_only(tree, tmp_path, encoder, monkeypatch):
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
    failed, again = (make(tree, tmp_path / "out", encoder).failed for _ in range(2))
    found = {str(f.source.relative_to(tree)): str(f.error) for f in failed}
    assert found.keys() == bad.keys() and list(map(str, again)) == list(map(str, failed))
    for path, message in bad.items():
        assert str(tree / path) in found[path] and re.search(message, found[path])
    assert [p.name for p in read_index(tmp_path / "out/val").identities] == ["id2"]
    assert not verify_pack(tmp_path / "out").damaged
    for path in tree.glob("val/id*/audios/*/*.npy"):
        path.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="none of its waveforms can be used with an embedding"):
        make(tree / "val", tmp_path / "none", encoder)
    with pytest.raises(DatasetError, match="it was not finished"):
        read_index(tmp_path / "none")


def test_what_is_there_is_refused_and_replaced_on_demand(made_tree, out, tmp_path, encoder):
    with pytest.raises(UsageError, match="is a pack with clip_samples 1600; this one has 800"):
        make(made_tree, out, encoder, clip_seconds=0.05)
    make(made_tree, out, encoder, clip_seconds=0.05, overwrite=True)
    assert Pack(out / "val")[0][0].shape == (800,)
    other = grow(tmp_path / "other", ["val/clips-00000.npy"], b"mine")
    with pytest.raises(UsageError, match="exists already, and was not made by this command"):
        make(made_tree, other, encoder)
    assert (other / "val/clips-00000.npy").read_bytes() == b"mine"
    make(made_tree, other, encoder, overwrite=True)
    assert not verify_pack(out).damaged and not verify_pack(other).damaged


def test_what_is_no_voice_tree_or_of_another_face_encoder_is_refused(
    made_tree, tmp_path, models, encoder
):
    (tmp_path / "empty/id0/audios").mkdir(parents=True)
    for place, why in (("empty", "holds nobody"), ("nowhere", "is no folder")):
        with pytest.raises(DatasetError, match=why):
            make(tmp_path / place, tmp_path / "out", encoder)
    with pytest.raises(UsageError, match="overlaps with"):
        make(made_tree, made_tree / "train/id0/pack", encoder)
    with pytest.raises(CheckpointError, match=r"is not what .* makes of its photo"):
        make(made_tree, tmp_path / "out", models / "other/face_encoder.safetensors")
    assert not list(tmp_path.glob("out/**/*.npy"))


KILLED = """
import sys, time
from pathlib import Path
from s2f.pack import pack_tree
pack_tree(Path(sys.argv[1]), Path(sys.argv[2]), face_encoder=Path(sys.argv[3]), clip_seconds=0.1,
     shard_bytes=4_000, workers=2, progress=lambda *_: (print(flush=True), time.sleep(0.02)))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(made_tree, tmp_path, encoder):
    make(made_tree, tmp_path / "whole", encoder, shard_bytes=4_000)
    for lines in (1, 3, 6, 10):
        out = tmp_path / f"out{lines}"
        command = [sys.executable, "-c", KILLED, made_tree, out, encoder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        process.communicate()
        report = make(made_tree, out, encoder, shard_bytes=4_000)
        assert report.skipped > 0 or lines < 10
        assert contents(out) == contents(tmp_path / "whole")


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_is_found(made_pack, data):
    path = data.draw(st.sampled_from(sorted(made_pack.glob("[tv]*/*.*"))))
    original, before = path.read_bytes(), path.stat()
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    changed = bytearray(original)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        (error,) = verify_pack(made_pack).damaged
        assert str(path) in error.message
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_is_missing_or_short_is_found_at_once(out):
    path = out / "train/clips-00000.npy"
    for content, why in (
        (path.read_bytes()[:-1], r"has \d+ bytes; wanted \d+"),
        (None, "is missing"),
    ):
        path.write_bytes(content) if content else path.unlink()
        with pytest.raises(DatasetError, match=rf"clips-00000\.npy: {why}"):
            Pack(out / "train")
    assert "clips-00000.npy: cannot be read" in verify_pack(out).damaged[0].message


def test_an_index_that_is_not_ours_is_refused(made_pack, tmp_path):
    fields = json.loads((made_pack / "val" / INDEX).read_text())
    for change, why in (
        ({"version": 9}, "has format version 9; this program reads 1"),
        ({"clip_samples": 5}, "its SHA-256 is another"),
        ({"identities": 5}, "is damaged"),
    ):
        (tmp_path / INDEX).write_text(json.dumps(fields | change))
        with pytest.raises(DatasetError, match=why):
            read_index(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / INDEX).mkdir()
    with pytest.raises(DatasetError, match="cannot be read"):
        read_index(tmp_path)
    with pytest.raises(DatasetError, match="is no pack"):
        verify_pack(tmp_path)
    (tmp_path / "embeddings-00000.npy").touch()
    (tmp_path / INDEX).rmdir()
    assert "it was not finished" in verify_pack(tmp_path).damaged[0].message


def test_an_open_pack_is_pickled_without_its_data_and_people_may_lack_clips(made_pack, tmp_path):
    read = Pack(made_pack / "train")
    before = [read[i][0].tolist() for i in range(len(read))]
    assert len(pickle.dumps(read)) < 4000
    copy = pickle.loads(pickle.dumps(read))
    assert [copy[i][0].tolist() for i in range(len(copy))] == before
    with pytest.raises(IndexError):
        read[len(read)]
    arrays = np.zeros((3, 5), np.int16), np.zeros((4, 2), np.float16)
    people = [("a", 0, 1), ("b", 2, 1), ("c", 0, 1), ("d", 1, 1)]
    write_pack(tmp_path / "p", [arrays[0]], [arrays[1]], people)
    read = Pack(tmp_path / "p")
    assert [read[i][1] for i in range(3)] == [range(1, 2), range(1, 2), range(3, 4)]
