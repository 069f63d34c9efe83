"""Recordings and their faces: pairings against ones written out, items of small trees and packs."""

import dataclasses
import math
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import noise
from hypothesis import given
from hypothesis import strategies as st
from line_task import Two
from packs import write_pack
from PIL import Image
from task_checks import batch_of
from torch.utils.data import DataLoader

from s2f import voice_data
from s2f.audio import check_waveform
from s2f.dataloader import Key, plan_steps
from s2f.embeddings import Maker
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.pack import Identities, Identity, Index, Shard, write_index
from s2f.voice_data import Sampling, Voices, pair

MAKER = Maker("the face encoder", 4, "squash", lambda photos: pytest.fail("makes embeddings"))
COLOURS = Maker("the face encoder", 3, "squash", lambda photos: photos.mean((2, 3)))
HUNDRED = Sampling(100)


def written_out(people, pairing, most):
    """What the pairings mean, in plain loops: recordings, their people and faces."""
    items, recording, face = [], 0, 0
    for person, (heard, n_faces) in enumerate(people):
        seen = list(range(face, face + n_faces))
        all_to = {"all-to-all": [seen] * heard, "all-to-one": [seen[:1]] * heard}
        faces = all_to.get(pairing, [[one] for one in seen])
        mine = [(recording + k, person, faces[k]) for k in range(min(heard, len(faces)))]
        mine = [item for item in mine if item[2]]
        if most is not None and len(mine) > most:
            mine = [mine[j * len(mine) // most] for j in range(most)]
        items += mine
        recording, face = recording + heard, face + n_faces
    return items


@pytest.mark.parametrize("pairing", ["all-to-all", "one-to-one", "all-to-one"])
@given(
    people=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=6),
    most=st.none() | st.integers(1, 6),
)
def test_a_pairing_is_what_it_means(pairing, people, most):
    found = pair(*zip(*people, strict=True), Sampling(1, None, pairing, most))
    expected = written_out(people, pairing, most)
    rows = zip(found.recordings, found.people, found.faces, found.choices, strict=True)
    assert [(r, p, list(range(f, f + n))) for r, p, f, n in rows] == expected
    assert found.all_faces() == sorted({face for _, _, faces in expected for face in faces})


def test_what_is_over_of_either_is_counted():
    one, each = Sampling(1, pairing="one-to-one"), Sampling(1, pairing="all-to-one")
    (both,), (faces,) = (pair([3, 1], [1, 4], sampling).notes for sampling in (one, each))
    assert both == "2 recordings and 3 faces left out: the pairing is one-to-one"
    assert faces == "3 faces left out: the pairing is all-to-one"
    assert pair([2, 1], [2, 1], one).notes == pair([3, 1], [1, 4], Sampling(1)).notes == []
    (over,) = pair([30, 5], [1, 1], Sampling(1, per_identity=10)).notes
    assert over == "20 recordings left out: at most 10 of a person"
    with pytest.raises(UsageError, match="at most 0 recordings of a person leaves none"):
        Sampling(100, per_identity=0)


@given(
    shares=st.lists(st.floats(0, 1)), shortest=st.integers(1, 200_000), more=st.integers(0, 200_000)
)
def test_lengths_are_few_and_even_in_their_logarithm(shares, shortest, more):
    sampling = Sampling(shortest + more, shortest)
    assert (sampling.length(0), sampling.length(1)) == (shortest, shortest + more)
    assert len({sampling.length(k / 1000) for k in range(1001)}) <= 17
    for share in shares:
        n = sampling.length(share)
        wanted = share * (whole := math.log((shortest + more) / shortest))
        assert math.log((n - 0.51) / shortest) <= wanted + whole / 17
        assert math.log((n + 0.51) / shortest) >= wanted - whole / 17


def test_a_million_recordings_are_paired_in_no_time():
    started = time.process_time()
    pairs = pair([200] * 5650, [1] * 5650, Sampling(1, None, "all-to-one", 100))
    assert len(pairs.all_faces()) == 5650 and time.process_time() - started < 2
    assert len(pairs.recordings) == 565_000
    assert np.array_equal(pairs.recordings[:4], [0, 2, 4, 6])


def one_voice(folder, samples, embedding=(1, 2, 3, 4)):
    """A tree of one person, with one recording and one embedding."""
    for name in ("audios", "images"):
        (folder / "s" / name).mkdir(parents=True)
    np.save(folder / "s/audios/0.npy", samples)
    np.save(folder / "s/images/face.npy", np.array(embedding, np.float32))
    return folder


def opened(folder, sampling=HUNDRED, maker=COLOURS, space="space"):
    return Voices(folder, sampling, maker, space)


@pytest.fixture
def packed(tmp_path):
    """A pack of 3 clips of 100 samples, 1000, 1001, ..., of two people."""
    clips = np.arange(1000, 1300, dtype=np.int16).reshape(3, 100)
    faces = np.array([[1, 2], [3, 4], [5, 6]], np.float16)
    write_pack(tmp_path / "p", [clips], [faces], [("a", 2, 1), ("b", 1, 2)])
    return tmp_path / "p"


@pytest.mark.parametrize("kind", ["tree", "pack"])
def test_share_and_seed_decide_what_is_heard(tmp_path, packed, kind):
    tree = one_voice(tmp_path / "tree", np.arange(9000, dtype=np.int16))
    folder = {"tree": tree, "pack": packed}[kind]
    voices = opened(folder, Sampling(100, 25), MAKER)
    for share, n in ((0.0, 25), (0.5, 50), (1.0, 100)):
        clips = [voices[Key(0, seed, share)]["waveform"] * 32768 for seed in range(30)]
        assert all(torch.equal(clip, torch.arange(n) + clip[0]) for clip in clips)
        assert len({float(clip[0]) for clip in clips}) > (10 if n < 100 or kind == "tree" else 0)
        assert torch.equal(voices[Key(0, 3, share)]["waveform"] * 32768, clips[3])
    assert opened(folder, maker=MAKER)[Key(0, 0, 0.0)]["waveform"].shape == (100,)


def test_what_cannot_be_heard_is_named(tmp_path):
    sound = noise(2)
    pause = np.where(np.arange(32_000) < 31_000, np.float32(0), sound)  # all but 0.06 s
    for k, (samples, why) in enumerate(
        (
            (np.zeros((2, 5)), "holds float64 values"),
            (np.zeros(7999, np.int16), r"lasts 0\.50 s; wanted 0\.5 s or more"),
            (np.full(9000, np.inf), "samples that are NaN or infinite"),
            (np.append(sound, np.nan), "samples that are NaN or infinite"),
            (np.append(sound, 1e30), r"up to 1e\+30; wanted -1 to 1"),
            (20_000 * sound, r"up to [345]\d\d\d\.?\d*; wanted -1 to 1"),
            (np.zeros(16_000, np.int16), "only silence"),
            (np.ones(16_000, np.int16), "only silence"),  # rounded without a factor of 32768
            (pause, r"hardly any sound: 0\.\d+ of 2\.0 s"),
        )
    ):
        voices = opened(one_voice(tmp_path / str(k), samples), Sampling(40_000), MAKER)
        (error,) = voices.broken  # before a step
        with pytest.raises(DatasetError, match=rf"0\.npy: .*{why}") as raised:
            voices[Key(0, 0)]
        assert str(error) == str(raised.value)
        assert ("divide by 32768" in error.hint) == ("wanted -1 to 1" in error.message)


def test_each_process_looks_at_a_share_of_the_waveforms(tree, monkeypatch):
    for name in ("ann/audios/v/2", "bob/audios/v"):
        np.save(tree / f"{name}.npy", np.zeros(9000, np.int16))
    seen, check = [], voice_data.check_waveform

    def checked(samples, name, **how):
        seen.append(name)
        check(samples, name, **how)

    monkeypatch.setattr(voice_data, "check_waveform", checked)

    def look(rank):
        maker = dataclasses.replace(COLOURS, ranks=Two(rank, 2))
        return [error.message for error in opened(tree, maker=maker).broken]

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(look, range(2))
    assert first == second and len(seen) == len({*seen}) == 4
    (early, late) = first
    assert "ann/audios/v/2.npy" in early and "bob/audios/v.npy" in late


def test_of_a_large_tree_the_middles_are_looked_at_and_the_rest_when_it_is_read(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(voice_data, "CHECKED_SAMPLES", 4000)
    late = np.append(noise(2), np.float32(np.nan))
    assert opened(one_voice(tmp_path / "late", late), maker=MAKER).broken == []
    quiet = noise(2)
    quiet[10_000:22_000] = 0  # a pause in the middle: all is looked at, and it is fine
    assert opened(one_voice(tmp_path / "quiet", quiet), maker=MAKER).broken == []
    quiet[-1] = np.nan
    (error,) = opened(one_voice(tmp_path / "both", quiet), maker=MAKER).broken
    assert "NaN" in error.message


@pytest.mark.parametrize("loudness", [1, 0.01])
def test_a_silent_clip_is_drawn_again_and_others_are_as_before(tmp_path, loudness):
    sound = noise(3)
    long = np.concatenate([1e-4 * noise(30, seed=1), sound, np.zeros(16_000 * 20)])
    voices = opened(one_voice(tmp_path / "long", loudness * long), Sampling(16_000), MAKER)
    assert voices.broken == []
    for seed in range(40):  # without a look, 15 of 16 of these are silent
        clip = voices[Key(0, seed)]["waveform"].numpy() / loudness
        assert np.count_nonzero(np.abs(clip) > 0.01) > 3000
    plain = opened(one_voice(tmp_path / "plain", loudness * sound), Sampling(16_000), MAKER)
    for seed in range(20):
        start = torch.Generator().manual_seed(seed)
        torch.randint(1, (), generator=start)  # of the face
        first = int(torch.randint(32_001, (), generator=start))
        wanted = (loudness * sound)[first : first + 16_000].astype(np.float32)
        assert np.array_equal(plain[Key(0, seed)]["waveform"], wanted)


def test_a_clip_that_packing_kept_is_judged_by_its_recording(tmp_path):
    """Noise at -45 dBFS and a word of 0.31 s: alone, it would hold hardly any sound."""
    clip = np.random.default_rng(0).normal(scale=10 ** (-45 / 20), size=96_000)
    clip[48_000:52_960] += 0.3 * noise(0.31)
    clips = np.rint(clip * 32768).clip(-32768, 32767).astype(np.int16)[None]
    with pytest.raises(DatasetError, match="hardly any sound"):
        check_waveform(clips[0], "alone")
    write_pack(tmp_path / "p", [clips], [np.zeros((1, 2), np.float16)], [("a", 1, 1)])
    voices = opened(tmp_path / "p", Sampling(96_000), MAKER)
    assert np.array_equal(voices[Key(0, 0)]["waveform"] * 32768, clips[0])


def paint(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Ann with 3 recordings and 2 photos, bob with one of each; whose photo says its red."""
    folder = tmp_path / "train"
    for k, name in enumerate(("ann/audios/v/1", "ann/audios/v/2", "ann/audios/w", "bob/audios/v")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", np.full(8000, 100 * (k + 1), np.int16))
    for red, name in ((10, "ann/images/v_2"), (20, "ann/images/w"), (30, "bob/images/x")):
        paint(folder / f"{name}.png", red)
    return folder


def reds(voices):
    """The faces that each item may come with, by how red their photos are."""
    each = [[voices[Key(i, k)]["embedding"][0] for k in range(20)] for i in range(len(voices))]
    return [{round(255 * float(red)) for red in seen} for seen in each]


@pytest.mark.parametrize(
    ("pairing", "recordings", "faces"),
    [
        ("all-to-all", [0, 1, 2, 3], [{10, 20}, {10, 20}, {10, 20}, {30}]),
        ("one-to-one", [0, 1, 3], [{10}, {20}, {30}]),
        ("all-to-one", [0, 1, 2, 3], [{10}, {10}, {10}, {30}]),
        ("same-clip", [1, 2], [{10}, {20}]),
    ],
)
def test_recordings_come_with_the_faces_of_their_pairing(tree, pairing, recordings, faces):
    embed = mock.Mock(side_effect=COLOURS.embed)
    voices = opened(tree, Sampling(100, pairing=pairing), Maker("it", 3, "squash", embed))
    assert [len(call.args[0]) for call in embed.mock_calls] == [len(set.union(*faces))]  # no others
    heard = [32768 * float(voices[Key(i, 0)]["waveform"][0]) for i in range(len(voices))]
    heard = [round(value) // 100 - 1 for value in heard]
    assert heard == recordings and reds(voices) == faces and Path(voices.name(0)).exists()
    for i in range(len(voices)):
        with Image.open(voices.photo(i)) as photo:
            red = photo.getpixel((0, 0))[0]
        assert red == round(255 * float(voices[Key(i, i)]["embedding"][0]))


def test_who_cannot_be_paired_is_told_and_who_has_two_faces_of_a_clip_has_the_first(tree):
    paint(tree / "ann/images/v/2.png", 15)
    paint(tree / "bob/images/w.png", 35)
    assert reds(opened(tree, Sampling(100, pairing="same-clip"))) == [{15}, {20}]
    for k in range(7):
        paint(tree / f"mute{k}/images/x.png", 0)
    same_clip = Sampling(100, pairing="same-clip", per_identity=1)
    voices = opened(tree, same_clip)
    assert voices.n_identities == 1
    mute = ", ".join(f"mute{k}" for k in range(5))
    assert voices.notes == [
        f"train: identities left out, 8: 7 without a voice ({mute} and 2 more), "
        "1 without a voice and a face of one clip (bob)",
        "train: 2 recordings and 3 faces left out: the pairing is same-clip",
        "train: 1 recording left out: at most 1 of a person",
    ]
    shutil.rmtree(tree / "ann")
    with pytest.raises(DatasetError, match="train: no recording has a face to be paired with"):
        opened(tree, same_clip)
    clips, faces = np.full((2, 100), 9, np.int16), np.ones((2, 2), np.float16)
    write_pack(tree.with_name("val"), [clips], [faces], [("a", 0, 1), ("b", 2, 1)])
    voices = opened(tree.with_name("val"))
    assert voices.n_identities == 1
    assert voices.notes == ["val: identities left out, 1: 1 without a voice (a)"]


def test_a_broken_photo_gives_way_to_the_next(tree):
    all_to_one = Sampling(100, pairing="all-to-one")
    (tree / "ann/images/v_2.png").write_bytes(b"no picture")
    voices = opened(tree, all_to_one)
    assert reds(voices) == [{20}] * 3 + [{30}]
    assert re.search(r"train: photos left out, 1: .*v_2\.png", "\n".join(voices.notes))
    (tree / "ann/images/w.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"ann: none of its photos can be read: .*png"):
        opened(tree, all_to_one)


def test_embeddings_alone_have_no_photo_and_nobody_to_vouch_for_them(tree):
    (tree / "bob/images/x.png").unlink()
    np.save(tree / "bob/images/x.npy", np.array([[0.2, 0.0, 0.0]], np.float32))
    voices = opened(tree)
    assert reds(voices)[3] == {51}
    assert voices.photo(3) is None and voices.photo(0) is not None
    told = "train: embeddings without a photo, 1: nothing tells whether the face encoder made them"
    assert voices.notes == [told]


def test_a_tree_of_any_names_is_read_by_other_processes(tree):
    strange = os.fsdecode(b"ann/audios/\xff\xc5\xbd.npy")
    np.save(tree / strange, np.full(8000, 700, np.int16))
    voices = opened(tree)
    (index,) = [i for i in range(len(voices)) if voices.name(i).endswith(strange)]
    # What makes embeddings is not pickled with what was made.
    how = {"num_workers": 1, "multiprocessing_context": "spawn"}
    (batch,) = DataLoader(voices, batch_sampler=[[Key(index, 0)]], **how)
    assert (batch["waveform"] * 32768 == 700).all()


def test_clips_of_a_pack_come_with_the_faces_of_their_people(tmp_path, packed):
    voices = opened(packed)
    seen = [{float(voices[Key(i, k)]["embedding"][0]) for k in range(20)} for i in range(3)]
    assert seen == [{1}, {1}, {3, 5}]
    items = batch_of(voices)
    assert (items["waveform"][:, 0] * 32768).tolist() == [1000, 1100, 1200]
    assert items["identity"].tolist() == [0, 0, 1] and voices.n_identities == 2
    assert voices.name(2) == "b (clip 2)" and voices.photo(0) is None
    # and are otherwise as those of a tree
    tree = one_voice(tmp_path / "tree", np.arange(8000, dtype=np.int16), (1, 2))  # looped
    looped = Sampling(10_000)
    theirs = opened(tree, looped, maker=Maker("it", 2, "squash", MAKER.embed))[Key(0, 1)]
    mine = voices[Key(0, 1)]
    assert torch.equal(theirs["waveform"] * 32768, torch.arange(10_000) % 8000)
    mine["waveform"] = theirs["waveform"]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], v) and mine[k].dtype == v.dtype for k, v in theirs.items())


def test_of_a_pack_the_beginnings_of_recordings_are_their_first_clips(tmp_path, packed):
    """Ann has recordings of 2 and 1 clips, bob one of 3; clip k holds 1000 + k."""
    clips = np.repeat(np.arange(1000, 1006, dtype=np.int16)[:, None], 100, 1)
    faces = np.array([[1, 2], [3, 4], [5, 6]], np.float16)
    people = [("ann", 3, 1, (2, 1)), ("bob", 3, 2, (3,))]
    write_pack(tmp_path / "q", [clips], [faces], people)
    for changes, heard in (
        ({"anywhere": True}, [1000, 1001, 1002, 1003, 1004, 1005]),
        ({}, [1000, 1002, 1003]),
        ({"pairing": "one-to-one"}, [1000, 1003]),
        ({"per_identity": 1}, [1000, 1003]),
    ):
        voices = opened(tmp_path / "q", Sampling(100, **({"anywhere": False} | changes)))
        items = batch_of(voices)
        assert (items["waveform"][:, 0] * 32768).tolist() == heard
        assert items["identity"].tolist() == [int(value > 1002) for value in heard]
    assert voices.name(1) == "bob (clip 3)"
    with pytest.raises(DatasetError, match="p: does not say which clips begin a recording") as e:
        opened(packed, Sampling(100, anywhere=False))
    # Its index will have another hash, by which a run knows its pack.
    assert "s2f prep pack" in e.value.hint and "begin anew, in another folder" in e.value.hint


def test_a_pack_that_does_not_fit_is_refused(packed):
    with pytest.raises(CheckpointError, match="of the space space; the face encoder's is other"):
        opened(packed, space="other")
    with pytest.raises(DatasetError, match="its clips have 100 samples; wanted 101"):
        opened(packed, Sampling(101))
    with pytest.raises(DatasetError, match="does not keep the names"):
        opened(packed, Sampling(100, pairing="same-clip"))


def test_a_million_clips_are_open_in_a_moment(tmp_path):
    # VoxCeleb2 has 1,128,246 utterances of 6,112 people. Files that are empty on disk, but for
    # the clips that are heard.
    clips, people, rows, folder = 1_130_000, 5650, 5000, tmp_path / "pack"
    folder.mkdir()
    shards = [Shard(f"clips-{k:05}.npy", rows, "0" * 64) for k in range(clips // rows)]
    for shard in shards:
        np.lib.format.open_memmap(folder / shard.name, "w+", np.int16, (rows, 96_000))
    np.save(folder / "embeddings-00000.npy", np.ones((people, 4096), np.float16))
    n = clips // people
    each = Identities.of(Identity(f"id{k:05}", n, 1, (1,) * n) for k in range(people))
    faces = (Shard("embeddings-00000.npy", people, "0" * 64),)
    index = Index(96_000, 4096, "space", 10**9, each, tuple(shards), faces)
    write_index(folder, index)
    started = time.process_time()
    voices = opened(folder, Sampling(96_000, None, "all-to-one", 150))
    order = list(plan_steps(len(voices), 32, seed=0, steps=range(1)))
    for key in order[0]:
        shard, row = divmod(int(voices.pairs.recordings[key.item]), rows)
        np.load(folder / shards[shard].name, mmap_mode="r+")[row] = 1000
    batch = next(iter(DataLoader(voices, batch_sampler=order)))
    assert time.process_time() - started < 4  # 0.6 s on a free core
    assert batch["waveform"].shape == (32, 96_000) and batch["embedding"].shape == (32, 4096)
    assert len(voices) == people * 150
