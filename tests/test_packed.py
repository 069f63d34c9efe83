"""Reading packs: whatever happens to a file is seen. The packs are written by hand."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2f import pack
from s2f.errors import DatasetError
from s2f.pack import Pack, read_index, verify_pack


def write_pack(folder: Path, clip_files: list, embedding_files: list, people: list) -> None:
    folder.mkdir(parents=True)
    shards: dict[str, list] = {"clips": [], "embeddings": []}
    for table, files in (("clips", clip_files), ("embeddings", embedding_files)):
        for k, array in enumerate(files):
            path = folder / f"{table}-{k:05}.npy"
            np.save(path, array)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            shards[table].append(pack.Shard(path.name, len(array), sha256))
    index = pack.Index(
        clip_files[0].shape[1],
        embedding_files[0].shape[1],
        "space",
        1,
        tuple(pack.Identity(*person) for person in people),
        tuple(shards["clips"]),
        tuple(shards["embeddings"]),
    )
    (folder / "index.json").write_bytes(index.encode())


@pytest.fixture(scope="module")
def flippable(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """A small pack, written by hand: of two splits, with two files of clips each."""
    folder = tmp_path_factory.mktemp("flippable")
    for k, split in enumerate(("train", "val")):
        rng = np.random.default_rng(k)
        write_pack(
            folder / split,
            [rng.integers(-9, 9, (n, 50)).astype(np.int16) for n in (3, 2)],
            [rng.normal(size=(4, 8)).astype(np.float16)],
            [("a", 4, 1), ("b", 1, 3)],
        )
    return folder


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_is_found(flippable: Path, data: st.DataObject) -> None:
    files = sorted(path for path in flippable.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from([p for p in files if p.parent.name in ("train", "val")]))
    original = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    changed = bytearray(original)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        damaged = verify_pack(flippable).damaged
        assert len(damaged) == 1 and str(path) in damaged[0].message
    finally:
        path.write_bytes(original)
    assert not verify_pack(flippable).damaged


def test_a_file_that_is_missing_or_short_is_found_at_once(flippable: Path) -> None:
    path = flippable / "train/clips-00001.npy"
    original = path.read_bytes()
    path.write_bytes(original[:-1])
    with pytest.raises(DatasetError, match=r"clips-00001\.npy: has 327 bytes; wanted 328"):
        Pack(flippable / "train")
    path.unlink()
    with pytest.raises(DatasetError, match=r"clips-00001\.npy: is missing"):
        Pack(flippable / "train")
    assert "clips-00001.npy: cannot be read" in verify_pack(flippable).damaged[0].message
    path.write_bytes(original)


def test_an_unfinished_pack_and_none_are_told_apart(flippable: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no pack"):
        verify_pack(tmp_path)
    (tmp_path / "embeddings-00000.npy").touch()
    assert "it was not finished" in verify_pack(tmp_path).damaged[0].message
    with pytest.raises(DatasetError, match="it was not finished"):
        Pack(tmp_path)


def test_an_index_of_another_version_is_refused(flippable: Path, tmp_path: Path) -> None:
    fields = json.loads((flippable / "val/index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(fields | {"version": 9}))
    with pytest.raises(DatasetError, match="has format version 9; this program reads 1"):
        read_index(tmp_path)


def test_an_open_pack_is_pickled_without_its_data(flippable: Path) -> None:
    read = Pack(flippable / "train")
    before = [read[i][0].tolist() for i in range(len(read))]
    assert len(pickle.dumps(read)) < 3000
    copy = pickle.loads(pickle.dumps(read))
    assert [copy[i][0].tolist() for i in range(len(copy))] == before
    with pytest.raises(IndexError):
        read[len(read)]


def test_clips_and_embeddings_come_by_number_across_files(flippable: Path) -> None:
    read = Pack(flippable / "train")
    clips = np.concatenate([np.load(p) for p in sorted(flippable.glob("train/clips*"))])
    embeddings = np.load(flippable / "train/embeddings-00000.npy").astype(np.float32)
    assert len(read) == 5
    for i, wanted in enumerate(clips):
        clip, known = read[i]
        np.testing.assert_array_equal(clip, wanted)
        assert known == (range(1) if i < 4 else range(1, 4))
        assert read.identity(i) == (0 if i < 4 else 1)
    for k, wanted in enumerate(embeddings):
        np.testing.assert_array_equal(read.embedding(k), wanted)


def test_people_without_clips_are_passed_over(tmp_path: Path) -> None:
    clips, embeddings = np.zeros((3, 5), np.int16), np.zeros((4, 2), np.float16)
    write_pack(
        tmp_path / "p", [clips], [embeddings], [("a", 0, 1), ("b", 2, 1), ("c", 0, 1), ("d", 1, 1)]
    )
    read = Pack(tmp_path / "p")
    assert [read[i][1] for i in range(3)] == [range(1, 2), range(1, 2), range(3, 4)]
