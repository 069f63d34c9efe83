"""Recordings and clips as items, on small made trees and packs."""

import math
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packs import write_pack
from PIL import Image
from torch.utils.data import DataLoader

from s2f import checkpoint, layout
from s2f.checkpoint import MODELS
from s2f.dataloader import Key, plan_steps
from s2f.embeddings import BATCH, Maker
from s2f.errors import CheckpointError, DatasetError
from s2f.face_encoder import FaceEncoder, batch_embedder
from s2f.pack import Identity, Index, Shard
from s2f.prep_faces import embeddings_step
from s2f.voice_data import PackedVoices, Pairing, Voices, clip_length

MAKER = Maker("the face encoder", 4, "squash", lambda photos: pytest.fail("makes embeddings"))
COLOURS = Maker("the face encoder", 3, "squash", lambda photos: photos.mean((2, 3)))


def make_voice(folder: Path, samples: np.ndarray) -> None:
    for name in ("audios", "images"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "audios" / "0.npy", samples)
    np.save(folder / "images" / "face.npy", np.array([1, 2, 3, 4], np.float32))


@pytest.mark.parametrize("n", [50, 100, 330])
def test_a_clip_has_its_length_whatever_the_recordings(tmp_path: Path, n: int) -> None:
    make_voice(tmp_path / "s", np.arange(n, dtype=np.int16))
    voices = Voices(tmp_path, MAKER, clip_samples=100)
    item = voices[Key(0, 5)]
    assert item["waveform"].shape == (100,) and item["waveform"].dtype == torch.float32
    assert item["waveform"].max() <= n / 32768
    assert item["embedding"].tolist() == [1, 2, 3, 4]


def test_the_seed_decides_where_a_clip_starts(tmp_path: Path) -> None:
    make_voice(tmp_path / "s", np.arange(5000, dtype=np.int16))
    voices = Voices(tmp_path, MAKER, clip_samples=100)
    starts = {float(voices[Key(0, seed)]["waveform"][0]) for seed in range(20)}
    assert len(starts) > 10
    assert torch.equal(voices[Key(0, 3)]["waveform"], voices[Key(0, 3)]["waveform"])


def test_the_share_decides_how_long_a_clip_is(tmp_path: Path, packed: Path) -> None:
    make_voice(tmp_path / "tree/s", np.arange(300, dtype=np.int16))
    tree = Voices(tmp_path / "tree", MAKER, clip_samples=100, shortest=25)
    pack = PackedVoices(packed, clip_samples=100, shortest=25, embedding_space="space")
    for share, n in ((0.0, 25), (0.5, 50), (1.0, 100)):
        for voices in (tree, pack):
            for seed in range(20):
                samples = voices[Key(0, seed, share)]["waveform"] * 32768
                assert torch.equal(samples, torch.arange(n) + samples[0])
    assert len({float(tree[Key(0, seed, 0.0)]["waveform"][0]) for seed in range(20)}) > 10
    fixed = Voices(tmp_path / "tree", MAKER, clip_samples=100)
    assert fixed[Key(0, 0, 0.0)]["waveform"].shape == (100,)


@given(
    share=st.floats(0, 1),
    lengths=st.tuples(st.integers(1, 200_000), st.integers(0, 200_000)),
)
def test_lengths_are_even_in_their_logarithm(share: float, lengths: tuple[int, int]) -> None:
    shortest, longest = lengths[0], sum(lengths)
    n = clip_length(longest, shortest, share)
    assert shortest <= n <= longest
    wanted = share * math.log(longest / shortest)
    assert math.log((n - 0.51) / shortest) <= wanted <= math.log((n + 0.51) / shortest)


def test_an_array_that_is_no_waveform_is_named(tmp_path: Path) -> None:
    make_voice(tmp_path / "s", np.zeros((2, 5)))
    with pytest.raises(DatasetError, match=r"0.npy: holds float64 values \[2, 5\]"):
        Voices(tmp_path, MAKER, clip_samples=100)[Key(0, 0)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_waveform_of_no_numbers_is_named(tmp_path: Path, value: float) -> None:
    make_voice(tmp_path / "s", np.full(100, value, np.float32))
    with pytest.raises(DatasetError, match=r"0\.npy: holds NaN or infinite samples"):
        Voices(tmp_path, MAKER, clip_samples=100)[Key(0, 0)]


def test_a_tree_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no speaker"):
        Voices(tmp_path, MAKER, clip_samples=100)
    (tmp_path / "ann/audios").mkdir(parents=True)
    (tmp_path / "ann/images").mkdir()
    with pytest.raises(DatasetError, match="1 are without a voice"):
        Voices(tmp_path, MAKER, clip_samples=100)


def test_an_embedding_of_another_length_is_named(tmp_path: Path) -> None:
    make_voice(tmp_path / "s", np.zeros(100, np.int16))
    np.save(tmp_path / "s/images/face.npy", np.ones(5, np.float32))
    with pytest.raises(DatasetError, match=r"face\.npy: holds float32 values \[5\]; wanted"):
        Voices(tmp_path, MAKER, clip_samples=100)


def paint(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Ann with 3 recordings and 2 photos, bob with one of each; whose photo says its red."""
    folder = tmp_path / "train"
    for k, name in enumerate(("ann/audios/v/1", "ann/audios/v/2", "ann/audios/w", "bob/audios/v")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", np.full(100, k, np.int16))
    for red, name in ((10, "ann/images/v_2"), (20, "ann/images/w"), (30, "bob/images/x")):
        paint(folder / f"{name}.png", red)
    return folder


def reds(voices: Voices) -> list[set[int]]:
    """The faces that each item may come with, by how red their photos are."""
    return [
        {round(255 * float(voices[Key(i, seed)]["embedding"][0])) for seed in range(20)}
        for i in range(len(voices))
    ]


@pytest.mark.parametrize(
    ("pairing", "recordings", "faces"),
    [
        ("all-to-all", [0, 1, 2, 3], [{10, 20}, {10, 20}, {10, 20}, {30}]),
        ("one-to-one", [0, 1, 3], [{10}, {20}, {30}]),
        ("all-to-one", [0, 1, 2, 3], [{10}, {10}, {10}, {30}]),
        ("same-clip", [1, 2], [{10}, {20}]),
    ],
)
def test_recordings_come_with_the_faces_of_their_pairing(
    tree: Path, pairing: Pairing, recordings: list[int], faces: list[set[int]]
) -> None:
    voices = Voices(tree, COLOURS, clip_samples=100, pairing=pairing)
    heard = [round(32768 * float(voices[Key(i, 0)]["waveform"][0])) for i in range(len(voices))]
    assert heard == recordings and reds(voices) == faces
    assert Path(voices.name(0)).exists()
    for i in range(len(voices)):
        with Image.open(voices.photo(i)) as photo:  # type: ignore[arg-type]
            red = photo.getpixel((0, 0))[0]  # type: ignore[index]
        assert red == round(255 * float(voices[Key(i, i)]["embedding"][0]))


def test_only_the_faces_that_are_paired_are_embedded(tree: Path) -> None:
    embedded: list[int] = []

    def embed(photos: torch.Tensor) -> torch.Tensor:
        embedded.append(len(photos))
        return photos.mean((2, 3))

    maker = Maker("the face encoder", 3, "squash", embed)
    Voices(tree, maker, clip_samples=100, pairing="all-to-one")
    assert embedded == [2]


def test_who_cannot_be_paired_is_told(tree: Path) -> None:
    voices = Voices(tree, COLOURS, clip_samples=100, pairing="same-clip", per_identity=1)
    assert voices.n_identities == 1
    assert voices.notes == [
        "train: 1 identity left out: 1 without a voice and a face of one clip (bob)",
        "train: 2 recordings and 1 face left out: the pairing is same-clip",
        "train: 1 recording left out: at most 1 of a person",
    ]
    shutil.rmtree(tree / "ann")
    with pytest.raises(DatasetError, match="train: no recording has a face to be paired with"):
        Voices(tree, COLOURS, clip_samples=100, pairing="same-clip")


def test_a_broken_photo_gives_way_to_the_next(tree: Path) -> None:
    (tree / "ann/images/v_2.png").write_bytes(b"no picture")
    for pairing, faces in (
        ("all-to-all", [{20}] * 3 + [{30}]),
        ("all-to-one", [{20}] * 3 + [{30}]),
    ):
        voices = Voices(tree, COLOURS, clip_samples=100, pairing=pairing)  # type: ignore[arg-type]
        assert reds(voices) == faces
        (note,) = [note for note in voices.notes if "photos" in note]
        assert note.startswith("train: photos left out, 1: ") and "v_2.png" in note
    (tree / "ann/images/w.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"ann: none of its photos can be read: .*png"):
        Voices(tree, COLOURS, clip_samples=100, pairing="all-to-one")


def test_embeddings_alone_have_no_photo_and_nobody_to_vouch_for_them(tree: Path) -> None:
    shutil.rmtree(tree / "bob/images")
    (tree / "bob/images").mkdir()
    np.save(tree / "bob/images/x.npy", np.array([[0.2, 0.0, 0.0]], np.float32))
    voices = Voices(tree, COLOURS, clip_samples=100)
    assert reds(voices)[3] == {51}
    assert voices.photo(3) is None and voices.photo(0) is not None
    assert voices.notes == [
        "train: embeddings without a photo, 1: nothing tells whether the face encoder made them"
    ]


def test_embeddings_of_another_space_are_refused(tree: Path) -> None:
    np.save(tree / "bob/images/x_embedding.npy", np.array([0.5, 0.5, 0.5], np.float32))
    with pytest.raises(CheckpointError, match=r"x_embedding\.npy: is not what the face encoder"):
        Voices(tree, COLOURS, clip_samples=100)


@pytest.mark.data
def test_real_faces_get_the_embeddings_that_prep_gives_them(tmp_path: Path) -> None:
    """By the bundled face encoder: made on the way, made before, and found not to be another's."""
    real_faces = Path(__file__).parents[2] / "shared/data/faces"
    if not real_faces.is_dir():
        pytest.skip("the real faces (shared/data/faces) are not beside the repository")
    encoder = MODELS / "demo/face_encoder.safetensors"
    network = checkpoint.load(encoder, "face_encoder").network
    assert isinstance(network, FaceEncoder)
    embed = batch_embedder(network, device=torch.device("cpu"), batch_size=BATCH)
    maker = Maker("it", network.config.embedding, network.preprocessing.fit, embed)
    tree, step = tmp_path / "train", embeddings_step(encoder, "cpu")
    for person in sorted(path for path in real_faces.iterdir() if path.is_dir())[:6]:
        (tree / person.name / "audios").mkdir(parents=True)
        np.save(tree / person.name / "audios/0.npy", np.zeros(100, np.int16))
        shutil.copytree(person, tree / person.name / "images")
    made = Voices(tree, maker, clip_samples=100)
    assert len(made.table) == 12
    for photo in sorted(tree.rglob("*.jpg")):
        (value,) = step.net([step.work(photo, photo)])
        step.save(value, layout.beside(photo.with_suffix(""), layout.EMBEDDING))
    read = Voices(tree, maker, clip_samples=100)
    assert [made.photo(i) for i in range(6)] == [read.photo(i) for i in range(6)]
    for i in range(6):
        torch.testing.assert_close(made[Key(i, i)]["embedding"], read[Key(i, i)]["embedding"])
    a, b = sorted(tree.rglob(f"*{layout.EMBEDDING}"))[:2]
    shutil.copy(b, a)  # of the same person, smiling: near, and still not it
    with pytest.raises(CheckpointError, match="is not what it makes of its photo"):
        Voices(tree, maker, clip_samples=100)


def test_a_tree_of_any_names_is_read_by_other_processes(tree: Path) -> None:
    strange = os.fsdecode(b"ann/audios/\xff\xc5\xbd.npy")
    np.save(tree / strange, np.full(100, 7, np.int16))
    voices = Voices(tree, COLOURS, clip_samples=100)
    (index,) = [i for i in range(len(voices)) if voices.name(i).endswith(strange)]
    loader = DataLoader(
        voices, batch_sampler=[[Key(index, 0)]], num_workers=1, multiprocessing_context="spawn"
    )
    (batch,) = loader
    assert (batch["waveform"] * 32768 == 7).all()


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A pack of 3 clips of 100 samples, of two people."""
    clips = np.arange(300, dtype=np.int16).reshape(3, 100)
    faces = np.array([[1, 2], [3, 4], [5, 6]], np.float16)
    write_pack(tmp_path / "p", [clips], [faces], [("a", 2, 1), ("b", 1, 2)])
    return tmp_path / "p"


def test_a_packed_clip_comes_with_an_embedding_of_its_person(packed: Path) -> None:
    voices = PackedVoices(packed, clip_samples=100, embedding_space="space")
    for i in range(3):
        expected = torch.arange(100 * i, 100 * i + 100) / 32768
        assert torch.equal(voices[Key(i, 7)]["waveform"], expected)
    assert {tuple(voices[Key(1, seed)]["embedding"].tolist()) for seed in range(20)} == {(1, 2)}
    assert {tuple(voices[Key(2, seed)]["embedding"].tolist()) for seed in range(20)} == {
        (3, 4),
        (5, 6),
    }
    assert [int(voices[Key(i, 0)]["identity"]) for i in range(3)] == [0, 0, 1]
    assert len(voices) == 3 and voices.n_identities == 2


def test_the_seed_decides_where_in_a_longer_packed_clip_a_clip_starts(packed: Path) -> None:
    voices = PackedVoices(packed, clip_samples=60, embedding_space="space")
    waveforms = [voices[Key(2, seed)]["waveform"] * 32768 for seed in range(60)]
    assert {w.shape for w in waveforms} == {(60,)}
    assert all(torch.equal(w, torch.arange(float(w[0]), float(w[0]) + 60)) for w in waveforms)
    starts = {int(w[0]) for w in waveforms}
    assert len(starts) > 20 and starts <= set(range(200, 241))
    assert torch.equal(voices[Key(2, 3)]["waveform"], waveforms[3] / 32768)


def test_packed_items_are_those_of_voices(tmp_path: Path, packed: Path) -> None:
    make_voice(tmp_path / "tree/s", np.arange(100, dtype=np.int16))
    np.save(tmp_path / "tree/s/images/face.npy", np.array([1, 2], np.float32))
    maker = Maker("the face encoder", 2, "squash", MAKER.embed)
    voices = Voices(tmp_path / "tree", maker, clip_samples=100)
    mine = PackedVoices(packed, clip_samples=100, embedding_space="space")[Key(0, 1)]
    theirs = voices[Key(0, 1)]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], v) and mine[k].dtype == v.dtype for k, v in theirs.items())


def test_a_pack_that_does_not_fit_is_refused(packed: Path) -> None:
    with pytest.raises(CheckpointError, match="of the space space; the face encoder's is other"):
        PackedVoices(packed, clip_samples=100, embedding_space="other")
    with pytest.raises(DatasetError, match="its clips have 100 samples; wanted 101"):
        PackedVoices(packed, clip_samples=101, embedding_space="space")


@pytest.mark.parametrize(
    ("pairing", "faces"),
    [
        ("all-to-all", [{1}, {1}, {3, 5}]),
        ("one-to-one", [{1}, {3}]),
        ("all-to-one", [{1}, {1}, {3}]),
    ],
)
def test_clips_of_a_pack_come_with_the_faces_of_their_pairing(
    packed: Path, pairing: Pairing, faces: list[set[float]]
) -> None:
    voices = PackedVoices(packed, clip_samples=100, embedding_space="space", pairing=pairing)
    assert [
        {float(voices[Key(i, seed)]["embedding"][0]) for seed in range(20)}
        for i in range(len(voices))
    ] == faces
    assert voices.name(len(voices) - 1) == "b (clip 2)" and voices.photo(0) is None


def test_a_pack_knows_no_clips_by_name(packed: Path) -> None:
    with pytest.raises(DatasetError, match="does not keep the names that same-clip goes by") as e:
        PackedVoices(packed, clip_samples=100, embedding_space="space", pairing="same-clip")
    assert "train from the tree" in str(e.value.hint)


def test_a_person_of_a_pack_without_clips_is_told(tmp_path: Path) -> None:
    clips, faces = np.zeros((2, 100), np.int16), np.ones((2, 2), np.float16)
    write_pack(tmp_path / "val", [clips], [faces], [("a", 0, 1), ("b", 2, 1)])
    voices = PackedVoices(
        tmp_path / "val", clip_samples=100, embedding_space="space", per_identity=1
    )
    assert len(voices) == voices.n_identities == 1
    assert voices.notes == [
        "val: 1 identity left out: 1 without a voice (a)",
        "val: 1 recording left out: at most 1 of a person",
    ]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_pack_is_read_by_other_processes(packed: Path, start: str) -> None:
    voices = PackedVoices(packed, clip_samples=100, embedding_space="space")
    expected = voices[Key(0, 0)]["waveform"]  # maps the file here first
    loader = DataLoader(
        voices, batch_sampler=[[Key(0, 0), Key(2, 0)]], num_workers=1, multiprocessing_context=start
    )
    (batch,) = loader
    assert torch.equal(batch["waveform"][0], expected) and batch["embedding"].shape == (2, 2)


def sparse_pack(folder: Path, clips: int, people: int) -> None:
    """A pack of silence: its files are as long as they say, and empty on the disk."""
    folder.mkdir()
    rows, shards = 5000, []
    for k in range(clips // rows):
        path = folder / f"clips-{k:05}.npy"
        array = np.lib.format.open_memmap(path, "w+", np.int16, (rows, 96_000))
        del array
        shards.append(Shard(path.name, rows, "0" * 64))
    np.save(folder / "embeddings-00000.npy", np.ones((people, 4096), np.float16))
    each = tuple(Identity(f"id{k:05}", clips // people, 1) for k in range(people))
    faces = (Shard("embeddings-00000.npy", people, "0" * 64),)
    index = Index(96_000, 4096, "space", 10**9, each, tuple(shards), faces)
    (folder / "index.json").write_bytes(index.encode())


@pytest.mark.parametrize("options", [{}, {"pairing": "all-to-one", "per_identity": 150}])
def test_a_million_clips_are_open_in_a_second(tmp_path: Path, options: dict) -> None:
    # VoxCeleb2 has 1,128,246 utterances of 6,112 people.
    people = 5650
    sparse_pack(tmp_path / "pack", 1_130_000, people)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    voices = PackedVoices(
        tmp_path / "pack", clip_samples=96_000, embedding_space="space", **options
    )
    order = plan_steps(len(voices), 32, seed=0, steps=range(1))
    batch = next(iter(DataLoader(voices, batch_sampler=order)))
    assert time.perf_counter() - started < 2
    assert batch["waveform"].shape == (32, 96_000) and batch["embedding"].shape == (32, 4096)
    assert len(voices) == people * options.get("per_identity", 200)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 100_000


def test_many_recordings_are_open_at_once(tmp_path: Path) -> None:
    people, each = 100, 200
    sound = tmp_path / "0.npy"
    np.save(sound, np.zeros(100, np.int16))
    for k in range(people):
        folder = tmp_path / f"train/id{k:03}"
        (folder / "audios").mkdir(parents=True)
        (folder / "images").mkdir()
        np.save(folder / "images/face.npy", np.ones(4, np.float32))
        for i in range(each):
            os.link(sound, folder / f"audios/{i:05}.npy")
    started = time.perf_counter()
    voices = Voices(tmp_path / "train", MAKER, clip_samples=100)
    assert time.perf_counter() - started < 2  # 20,000 of them: a second for 10,000
    assert len(voices) == people * each
