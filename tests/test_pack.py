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

from s2f import checkpoint, files, layout
from s2f.audio import clips
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.files import File
from s2f.pack import INDEX, Pack, ShardPlan, pack_tree, read_index, verify_pack, write_shard
from s2f.prep_faces import embeddings_step

CLIP = 16_000  # samples: 1 s
SECONDS = {"id0": (0.5, 1.0, 3.4), "id1": (1.6,), "id2": (2.0, 1.4)}


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
    options = {"clip_seconds": 1.0, "shard_bytes": 100_000, "workers": 1, **options}
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
        recordings = {person: [] for person in SECONDS}
        for person in SECONDS:  # oracle: audio.clips on each file, in sorted order
            for path in sorted((made_tree / split / person / "audios").rglob("[0-9].npy")):
                waveform = np.load(path)
                if waveform.dtype != np.int16:
                    waveform = np.rint(waveform * 32768).clip(-32768, 32767)
                cut = clips(waveform, CLIP)
                expected += [(person, clip) for clip in cut]
                recordings[person].append(len(cut))
        assert len(read) == len(expected)
        assert {p.name: [*p.recordings] for p in read.index.identities} == recordings
        assert max(map(max, recordings.values())) > 1
        for i, (person, wanted) in enumerate(expected):
            clip, embeddings = read[i]
            assert read.index.identities[read.identity(i)].name == person
            np.testing.assert_array_equal(clip, wanted)
            paths = sorted((made_tree / split / person).rglob("*" + layout.EMBEDDING))
            known = [read.embedding(k) for k in embeddings]
            np.testing.assert_array_equal(known, [np.load(p).astype(np.float16) for p in paths])


def test_the_files_are_what_they_are_said_to_be(made_pack):
    """Version 3, by its definition: JSON whose hash is that of all else in it, in this order.

    And beside it arrays: of people, where their clips, embeddings and recordings begin.
    """
    for split in ("train", "val"):
        fields = json.loads((made_pack / split / INDEX).read_text())
        assert list(fields) == [
            *("version", "clip_samples", "embedding", "embedding_space", "shard_bytes"),
            *("identities", "clips", "embeddings", "sha256"),
        ]
        assert fields["version"] == 3
        arrays = {
            path.stem: np.load(path) for path in (made_pack / split / "index.arrays").iterdir()
        }
        assert {*arrays} == {*fields["identities"]}
        for name, array in arrays.items():
            told, path = fields["identities"][name], made_pack / split / f"index.arrays/{name}.npy"
            assert (array.dtype.str, [*array.shape]) == (told["dtype"], told["shape"])
            assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert arrays["names"].tobytes() == b"id0\0id1\0id2\0"
        assert arrays["names_starts"].tolist() == [0, 4, 8, 12]
        n_rows = [sum(shard["rows"] for shard in fields[t]) for t in ("clips", "embeddings")]
        n_recordings = len(arrays["recordings"]) - 1
        assert arrays["starts"][:, [0, -1]].T.tolist() == [[0] * 3, [*n_rows, n_recordings]]
        assert arrays["recordings"][arrays["starts"][2]].tolist() == arrays["starts"][0].tolist()
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
                assert size - array.nbytes == 128 and size < 110_000  # row i: 128 + i x 2 x width


def test_a_shard_holds_what_can_be_used_and_names_the_rest(tmp_path):
    """Floats become the nearest integers and are clipped: 2^15 times them, by hand."""
    store(tmp_path / "a.npy", np.tile([0, 1 / 32768, -2, 2, 0.4 / 32768], 1800))
    store(tmp_path / "b.npy", np.tile(np.arange(10, dtype=np.int16), 900))
    for name, value in (("nan", np.nan), ("good", 0.1), ("huge", 1e6)):
        store(tmp_path / f"{name}.npy", np.full(5, value, np.float32))
    rows = 1800 * [[0, 1, -32768, 32767, 0]] + 900 * [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
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
    np.save(path, noise(1.0, seed=7))
    os.utime(path, ns=(1, 1))
    (tree / "card.json").write_text(json.dumps({"licence": "CC BY"}))
    n_files = len(list(out.glob("*/*.npy")))
    report = make(tree, out, encoder, overwrite=True)  # of a copy of its tree, and so from now on
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


def test_of_a_pack_of_version_1_the_files_of_embeddings_are_kept(made_tree, out, encoder):
    """Its journal noted sums of rows, and a hash of the sources alone, as is written here."""
    path, before = out / ".s2f/pack.journal", [contents(out / name) for name in ("train", "val")]
    header, *lines = path.read_text().splitlines()
    for k, line in enumerate(lines):
        entry = json.loads(line[: line.rindex("]") + 1])  # without its checksum
        (note,) = (part for part in entry if isinstance(part, dict))
        table = "embeddings" if "/embeddings-" in entry[1] else "clips"
        note["rows"] = {name: sum(each) for name, each in note["rows"].items()}
        split = made_tree / entry[1].partition("/")[0]
        digest = hashlib.sha256()
        for name in note["rows"] if table == "embeddings" else ():
            for source in sorted((split / name).rglob("*" + layout.EMBEDDING)):
                at = source.relative_to(split), source.stat().st_size, source.stat().st_mtime_ns
                digest.update("{}\0{}\0{}\0{}\n".format(name, *at).encode())
        note["sources"] = digest.hexdigest()
        lines[k] = json.dumps(entry)
    path.write_text("\n".join([header, *lines, ""]))
    n_clips = len(list(out.glob("*/clips-*.npy")))
    report = make(made_tree, out, encoder)
    assert (report.made, report.skipped) == (n_clips, len(list(out.glob("*/embeddings-*.npy"))))
    assert [contents(out / name) for name in ("train", "val")] == before


def test_what_cannot_be_used_is_named_and_costs_itself_only(tree, tmp_path, encoder, monkeypatch):
    bad = {
        "train/id0/audios/v0/0.npy": "cannot be read as an array",
        "train/id2/audios/v0/1.npy": "holds samples that are NaN",
        "train/id2/images/1_embedding.npy": r"\[3\]; wanted an embedding \[8\]",
        "val/id0/images/0_embedding.npy": "not finite in half precision",
        "val/id1": "has 1 files in audios and 0 embeddings",
        "val/id0": "none of its embeddings",
        "val/id2/audios/pipe.npy": "no regular file",
    }
    (tree / "train/id0/audios/v0/0.npy").write_bytes(b"nothing")
    np.save(tree / "train/id2/audios/v0/1.npy", np.full(20_000, np.nan, np.float32))
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
    with pytest.raises(UsageError, match="is a pack with clip_samples 16000; this one has 8000"):
        make(made_tree, out, encoder, clip_seconds=0.5)
    make(made_tree, out, encoder, clip_seconds=0.5, overwrite=True)
    assert Pack(out / "val")[0][0].shape == (8000,)
    copy = shutil.copytree(made_tree, tmp_path / "copy")
    with pytest.raises(UsageError, match=f"is a pack of {made_tree}, not of {copy}"):
        make(copy, out, encoder, clip_seconds=0.5)
    make(copy, out, encoder, clip_seconds=0.5, overwrite=True)
    moved = copy.rename(tmp_path / "moved")
    assert make(moved, out, encoder, clip_seconds=0.5).made == 0
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
pack_tree(Path(sys.argv[1]), Path(sys.argv[2]), face_encoder=Path(sys.argv[3]), clip_seconds=1.0,
     shard_bytes=40_000, workers=2, progress=lambda *_: (print(flush=True), time.sleep(0.02)))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(made_tree, tmp_path, encoder):
    make(made_tree, tmp_path / "whole", encoder, shard_bytes=40_000)
    for lines in (1, 3, 6, 10):
        out = tmp_path / f"out{lines}"
        command = [sys.executable, "-c", KILLED, made_tree, out, encoder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        process.communicate()
        report = make(made_tree, out, encoder, shard_bytes=40_000)
        assert report.skipped > 0 or lines < 10
        assert contents(out) == contents(tmp_path / "whole")


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_is_found(made_pack, data):
    path = data.draw(st.sampled_from(sorted(made_pack.glob("[tv]*/**/*.[jn]*"))))
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
        ({"version": 9}, "has format version 9; this program reads 1 to 3"),
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


@pytest.mark.parametrize("version", [1, 2])
def test_a_pack_of_before_is_read_and_packed_again_is_one_of_now(
    made_tree, made_pack, out, encoder, version
):
    """Made by what s2f of before wrote; 1: three values a person, counts alone in the journal."""
    for split in ("train", "val"):
        now, fields = read_index(made_pack / split), json.loads((out / split / INDEX).read_text())
        people = [[*person[: version + 2]] for person in now.identities]
        fields |= {"version": version, "identities": people}
        del fields["sha256"]
        sha256 = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
        (out / split / INDEX).write_text(json.dumps({**fields, "sha256": sha256}) + "\n")
        shutil.rmtree(out / split / "index.arrays")
        index = read_index(out / split)
        told = [person.recordings if version == 2 else None for person in now.identities]
        assert [person.recordings for person in index.identities] == told
        assert (index.sha256, index.clips, index.embeddings) == (sha256, now.clips, now.embeddings)
    assert not verify_pack(out).damaged
    if version == 1:
        (journal,) = out.glob(".s2f/*.journal")
        bare = re.sub(r"(?m) [0-9a-f]{8}$", "", journal.read_text())  # without checksums
        lines = [json.loads(line) for line in bare.splitlines()]
        for line in lines[1:]:
            sums = {name: sum(n) for name, n in line[4]["rows"].items()}
            line[4] |= {"sources": "of before", "rows": sums}
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (make(made_tree, out, encoder).made == 0) == (version == 2)
    assert contents(out) == contents(made_pack)


def test_of_arrays_that_are_not_read_at_once_the_rest_is_verified(out, monkeypatch):
    monkeypatch.setattr(files, "CHECKED", 0)
    path = out / "train/index.arrays/recordings.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    Pack(out / "train")
    (error,) = verify_pack(out).damaged
    assert error.message == f"{path}: is damaged: its SHA-256 is another"
    for content in (whole[:-8], whole.replace(b"'<i8'", b"'<u8'")):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"index\.json: is damaged: .*recordings\.npy"):
            Pack(out / "train")
    path.unlink()
    with pytest.raises(DatasetError, match=r"recordings\.npy: is missing"):
        Pack(out / "train")


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


def test_silent_clips_are_left_out(tmp_path):
    """Of 6 s of pause, speech from 6 to 10.1 s, 8 s of pause: the clips of 1 s that hold speech."""
    speech = noise(4.1, seed=1)
    store(tmp_path / "a.npy", np.concatenate([np.zeros(96_000), speech, 1e-4 * noise(8)]))
    plan = ShardPlan("name", "clips", CLIP, tmp_path, (File("a/a.npy", 1, 0),))
    (tmp_path / "a").mkdir()
    (tmp_path / "a.npy").rename(tmp_path / "a/a.npy")
    note = write_shard(plan, tmp_path / "part")
    assert (note["rows"], note["failed"]) == ({"a": [4]}, [])
    wanted = np.rint(speech[: 4 * CLIP] * 32768).reshape(4, CLIP)
    np.testing.assert_array_equal(np.load(tmp_path / "part"), wanted)
