"""The files of a pack, by themselves; what becomes of whole trees is in test_pack."""

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2f.errors import DatasetError, OutputError
from s2f.files import File
from s2f.pack import ShardSource, Split, find_splits, plan_shards, write_shard

SIZES = st.lists(st.integers(-1, 3000), min_size=1, max_size=40)


def sources(sizes: list[int]) -> list[ShardSource]:
    return [ShardSource(f"id{k // 3}", File(f"{k}.npy", size, 0)) for k, size in enumerate(sizes)]


@given(sizes=SIZES, width=st.integers(1, 400), shard_bytes=st.integers(1, 5000))
def test_a_plan_keeps_all_sources_in_order(sizes: list[int], width: int, shard_bytes: int) -> None:
    made = list(plan_shards("train/clips", "clips", sources(sizes), width, shard_bytes))
    assert [s for shard in made for s in shard.sources] == sources(sizes)
    assert [s.name for s in made] == [f"train/clips-{k:05}.npy" for k in range(len(made))]


@given(sizes=SIZES, width=st.integers(1, 400), shard_bytes=st.integers(1, 5000))
def test_a_shard_is_as_full_as_it_may_be(sizes: list[int], width: int, shard_bytes: int) -> None:
    made = list(plan_shards("c", "clips", sources(sizes), width, shard_bytes))
    needed = [[max(2 * width, s.file.size) for s in shard.sources] for shard in made]
    assert all(len(sizes) == 1 or sum(sizes) <= shard_bytes for sizes in needed)
    for this, following in itertools.pairwise(needed):
        assert sum(this) + following[0] > shard_bytes


def test_whatever_changes_of_a_source_changes_the_fingerprint() -> None:
    source = ShardSource("id0", File("a.npy", 10, 5))
    changed = [
        [],
        [source, source],
        [source._replace(identity="id1")],
        [source._replace(file=File("b.npy", 10, 5))],
        [source._replace(file=File("a.npy", 11, 5))],
        [source._replace(file=File("a.npy", 10, 6))],
    ]
    (wanted,) = plan_shards("c", "clips", [source], 1, 9)
    for other in changed:
        for found in plan_shards("c", "clips", other, 1, 99):
            assert found.fingerprint != wanted.fingerprint


def test_a_name_that_is_no_text_has_a_fingerprint() -> None:
    names = [os.fsdecode(name) for name in (b"a\xff.npy", b"a\xfe.npy", "a.npy")]
    plans = [list(plan_shards("c", "clips", [ShardSource(n, File(n, 1, 5))], 1, 9)) for n in names]
    assert len({one.fingerprint for (one,) in plans}) == 3


@pytest.mark.parametrize("n", [0, 1, 12345])
def test_a_shard_is_an_array_file_of_its_rows(tmp_path: Path, n: int) -> None:
    np.save(tmp_path / "a.npy", np.arange(max(1, n), dtype=np.int16))
    some = [ShardSource("id0", File("a.npy", 1, 0))] if n else []
    made = write_shard(tmp_path / "part", "clips", tmp_path, some, 10)
    found = np.load(tmp_path / "part")
    assert found.dtype == np.int16 and found.shape[1] == 10
    assert made.rows == ({"id0": len(found)} if n else {})
    assert made.sha256 == hashlib.sha256((tmp_path / "part").read_bytes()).hexdigest()


def test_floats_become_the_nearest_integers_and_are_clipped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([0, 1 / 32768, -2, 2, 0.4 / 32768], np.float64))
    write_shard(tmp_path / "part", "clips", tmp_path, [ShardSource("id0", File("a.npy", 1, 0))], 5)
    assert np.load(tmp_path / "part").tolist() == [[0, 1, -32768, 32767, 0]]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere/part: cannot be written"):
        write_shard(tmp_path / "nowhere/part", "clips", tmp_path, [], 10)


def test_both_names_of_the_validation_split_are_found(tmp_path: Path) -> None:
    for name in ("train", "validation", "other"):
        (tmp_path / name).mkdir()
    assert [name for name, _ in find_splits(tmp_path)] == ["train", "validation"]
    assert find_splits(tmp_path / "other") == [("", tmp_path / "other")]


def test_hidden_folders_and_other_files_are_no_sources(tmp_path: Path) -> None:
    for name in (".s2f/audios/a.npy", "__MACOSX/audios/a.npy", "id0/audios/.a.npy"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name in ("audios/deep/b.npy", "audios/c.wav", "images/a_embedding.npy", "images/a.jpg"):
        (tmp_path / "id0" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "id0" / name).touch()
    failed: list = []
    split = Split("", tmp_path, failed)
    assert not failed
    assert [s.file.path for s in split.audios] == ["id0/audios/deep/b.npy"]
    assert [s.file.path for s in split.embeddings] == ["id0/images/a_embedding.npy"]


def test_a_split_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds nobody"):
        Split("", tmp_path, [])
