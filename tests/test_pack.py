"""Packs: what goes in comes out, and whatever happens to a run or a file is seen."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_photo

from s2f import checkpoint, files, layout
from s2f.audio import clips
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.pack import INDEX, Pack, PackReport, pack, read_index, verify_pack
from s2f.prep_faces import embeddings_step

CLIP = 1600  # samples: 0.1 s
SECONDS = {"id0": (0.05, 0.1, 0.34), "id1": (0.16,), "id2": (0.2, 0.14)}


@pytest.fixture
def encoder(models: Path) -> Path:
    return models / "demo/face_encoder.safetensors"


@pytest.fixture
def tree(tmp_path: Path, encoder: Path) -> Path:
    """A voice tree of two splits, waveforms int16 and float32, with embeddings."""
    step = embeddings_step(encoder, "cpu")
    for split in ("train", "val"):
        for k, (person, lengths) in enumerate(SECONDS.items()):
            folder = tmp_path / "tree" / split / person
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
    return tmp_path / "tree"


def make(tree: Path, out: Path, encoder: Path, **options: object) -> PackReport:
    options = {"clip_seconds": 0.1, "shard_bytes": 10_000, "workers": 1, **options}
    return pack(tree, out, face_encoder=encoder, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_pack_holds_every_clip_and_embedding_of_the_tree(
    tree: Path, tmp_path: Path, encoder: Path
) -> None:
    report = make(tree, tmp_path / "out", encoder)
    assert not report.failed and report.made == len(list((tmp_path / "out").glob("*/*.npy")))
    total = 0
    for split in ("train", "val"):
        read = Pack(tmp_path / "out" / split)
        found = [
            (read.index.identities[read.identity(i)].name, read[i][0]) for i in range(len(read))
        ]
        expected = []
        for person in SECONDS:  # oracle: audio.clips on each file, in sorted order
            folder = tree / split / person
            for path in sorted((folder / "audios").rglob("*.npy")):
                waveform = np.load(path)
                if waveform.dtype != np.int16:
                    waveform = np.rint(waveform * 32768).clip(-32768, 32767)
                expected += [(person, clip) for clip in clips(waveform, CLIP)]
        assert [name for name, _ in found] == [name for name, _ in expected]
        for (_, clip), (_, wanted) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(clip, wanted)
        for i, (person, _) in enumerate(found):
            files = sorted((tree / split / person).rglob("*" + layout.EMBEDDING))
            known = [read.embedding(k) for k in read[i][1]]
            np.testing.assert_array_equal(known, [np.load(f).astype(np.float16) for f in files])
        total += len(read)
    assert report.clips == total and report.identities == 6 and report.embeddings == 12


def test_anyone_can_open_the_files(tree: Path, tmp_path: Path, encoder: Path) -> None:
    make(tree, tmp_path / "out", encoder)
    for path in (tmp_path / "out/train").glob("*.npy"):
        array = np.load(path, mmap_mode="r")
        kind = np.int16 if path.name.startswith("clips") else np.float16
        assert array.dtype == kind and array.shape[1] == (CLIP if kind == np.int16 else 8)
        offset = path.stat().st_size - array.nbytes
        assert offset == 128  # row i is at 128 + i x 2 x width


def test_a_single_split_is_packed_too(tree: Path, tmp_path: Path, encoder: Path) -> None:
    make(tree, tmp_path / "both", encoder)
    make(tree / "val", tmp_path / "one", encoder)
    names = [path.name for path in (tmp_path / "both/val").iterdir()]
    assert "index.json" in names
    for name in names:
        one, both = tmp_path / "one" / name, tmp_path / "both/val" / name
        assert one.read_bytes() == both.read_bytes()


def test_a_second_run_has_nothing_to_do(
    tree: Path, tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tree, tmp_path / "out", encoder)
    before = content(tmp_path / "out")
    monkeypatch.setattr("s2f.pack.check_embeddings", lambda *_: pytest.fail("loads the network"))
    second = make(tree, tmp_path / "out", encoder)
    assert (second.made, second.skipped) == (0, first.made)
    assert second.clips == first.clips and content(tmp_path / "out") == before


def test_the_number_of_workers_does_not_matter(tree: Path, tmp_path: Path, encoder: Path) -> None:
    make(tree, tmp_path / "a", encoder)
    make(tree, tmp_path / "b", encoder, workers=3)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_only_the_files_of_what_changed_are_made_again(
    tree: Path, tmp_path: Path, encoder: Path
) -> None:
    first = make(tree, tmp_path / "out", encoder)
    path = tree / "train/id2/audios/v0/1.npy"
    np.save(path, noise(0.1, seed=7))
    os.utime(path, ns=(1, 1))
    second = make(tree, tmp_path / "out", encoder)
    assert 0 < second.made <= 2 and second.made + second.skipped == first.made
    make(tree, tmp_path / "new", encoder)
    assert content(tmp_path / "out") == content(tmp_path / "new")


def test_what_the_tree_no_longer_has_leaves_the_pack(
    tree: Path, tmp_path: Path, encoder: Path
) -> None:
    make(tree, tmp_path / "out", encoder)
    for path in (tree / "train/id2").rglob("*.npy"):
        path.unlink()
    report = make(tree, tmp_path / "out", encoder)
    assert [failure.source.name for failure in report.failed] == ["id2"]
    make(tree, tmp_path / "new", encoder)
    old, new = ({p.name for p in (tmp_path / n / "train").iterdir()} for n in ("out", "new"))
    assert old == new
    assert read_index(tmp_path / "out/train") == read_index(tmp_path / "new/train")


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
    monkeypatch.setattr("s2f.pack.check_embeddings", lambda *_: None)
    report = make(tree, tmp_path / "out", encoder)
    again = make(tree, tmp_path / "out", encoder)
    found = {str(f.source.relative_to(tree)): str(f.error) for f in report.failed}
    assert found.keys() == bad.keys()
    for path, message in bad.items():
        assert str(tree / path) in found[path]
        assert re.search(message, found[path])
    assert [str(f.error) for f in again.failed] == [str(f.error) for f in report.failed]
    assert [p.name for p in read_index(tmp_path / "out/val").identities] == ["id2"]
    assert not verify_pack(tmp_path / "out").damaged


def test_embeddings_of_another_face_encoder_are_refused(
    tree: Path, tmp_path: Path, models: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"is not what .* makes of its photo"):
        make(tree, tmp_path / "out", models / "other/face_encoder.safetensors")
    assert not list(tmp_path.glob("out/**/*.npy"))


def test_embeddings_without_photos_cannot_be_checked(
    tree: Path, tmp_path: Path, encoder: Path
) -> None:
    for path in tree.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DatasetError, match="no photo beside it"):
        make(tree, tmp_path / "out", encoder)


def test_a_pack_with_other_settings_is_refused_and_replaced_on_demand(
    tree: Path, tmp_path: Path, encoder: Path
) -> None:
    make(tree, tmp_path / "out", encoder)
    with pytest.raises(UsageError, match="is a pack with clip_samples 1600; this one has 800"):
        make(tree, tmp_path / "out", encoder, clip_seconds=0.05)
    make(tree, tmp_path / "out", encoder, clip_seconds=0.05, overwrite=True)
    make(tree, tmp_path / "new", encoder, clip_seconds=0.05)
    assert content(tmp_path / "out/train") == content(tmp_path / "new/train")


def test_files_of_others_are_refused(tree: Path, tmp_path: Path, encoder: Path) -> None:
    (tmp_path / "out/val").mkdir(parents=True)
    (tmp_path / "out/val/clips-00000.npy").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already, and was not made by this command"):
        make(tree, tmp_path / "out", encoder)
    assert (tmp_path / "out/val/clips-00000.npy").read_bytes() == b"mine"
    make(tree, tmp_path / "out", encoder, overwrite=True)
    assert not verify_pack(tmp_path / "out").damaged


@pytest.mark.parametrize("missing", ["audios", "images", "everything"])
def test_a_tree_of_nobody_is_refused(tmp_path: Path, encoder: Path, missing: str) -> None:
    folder = tmp_path / "tree/id0"
    for kind in {"audios", "images"} - {missing}:
        (folder / kind).mkdir(parents=True)
    if missing == "everything":
        folder = tmp_path / "nowhere"
    with pytest.raises(DatasetError, match=r"holds nobody|is no folder"):
        make(folder.parent if folder.exists() else folder, tmp_path / "out", encoder)


@pytest.mark.parametrize("place", [".", "train", "train/id0/pack", ".."])
def test_the_tree_itself_is_no_place_for_the_pack(tree: Path, encoder: Path, place: str) -> None:
    before = content(tree)
    with pytest.raises(UsageError, match="overlaps with"):
        make(tree, tree / place, encoder)
    assert content(tree) == before


def test_the_half_of_an_index_that_a_killed_run_left_is_removed(
    tree: Path, tmp_path: Path, encoder: Path
) -> None:
    with files.part(tmp_path / "out/train" / INDEX) as left:
        left.touch()
    (tmp_path / "out/train" / INDEX).rename(left)
    make(tree, tmp_path / "out", encoder)
    assert not left.exists()


def test_the_card_of_the_data_goes_along(tree: Path, tmp_path: Path, encoder: Path) -> None:
    (tree / "card.json").write_text(json.dumps({"licence": "CC BY"}))
    make(tree, tmp_path / "out", encoder)
    assert checkpoint.Card.of_data(tmp_path / "out", "m").licence == "CC BY"


def test_the_name_and_size_of_a_file_are_what_was_asked_for(
    tree: Path, tmp_path: Path, encoder: Path
) -> None:
    make(tree, tmp_path / "out", encoder, shard_bytes=20_000)
    files = sorted((tmp_path / "out/train").glob("clips-*.npy"))
    assert [path.name for path in files] == [f"clips-{k:05}.npy" for k in range(len(files))]
    assert len(files) > 1 and all(path.stat().st_size < 20_000 for path in files)


KILLED = """
import sys, time
from pathlib import Path
from s2f import shards
from s2f.pack import pack
pack(Path(sys.argv[1]), Path(sys.argv[2]), face_encoder=Path(sys.argv[3]), clip_seconds=0.1,
     shard_bytes=4_000, workers=2, progress=lambda *_: (print(flush=True), time.sleep(0.02)))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    tree: Path, tmp_path: Path, encoder: Path
) -> None:
    make(tree, tmp_path / "whole", encoder, shard_bytes=4_000)
    for lines in (1, 3, 6, 10):
        out = tmp_path / f"out{lines}"
        command = [sys.executable, "-c", KILLED, str(tree), str(out), str(encoder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        process.communicate()
        report = make(tree, out, encoder, shard_bytes=4_000)
        if lines == 10:
            assert report.skipped > 0
        assert content(out) == content(tmp_path / "whole")
