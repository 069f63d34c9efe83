"""Order and items of the training data, on small made trees."""

import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_packed import write_pack
from torch.utils.data import DataLoader

from s2f import layout
from s2f.dataset import Faces, Order, PackedVoices, Voices
from s2f.errors import CheckpointError, DatasetError
from s2f.packed import Identity, Index, Shard


def make_face(stem: Path, points: int = 68, *, texture: bool = False) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (224, 224), (200, 100, 50))
    image.save(stem.with_suffix(".jpg"))
    suffix = layout.LANDMARKS if points == 68 else layout.TEMPLATE
    np.save(layout.beside(stem, layout.LANDMARKS), np.zeros((68, 2), np.float32))
    np.save(layout.beside(stem, suffix), np.full((points, 2), 7, np.float32))
    if texture:
        Image.new("RGB", (224, 224)).save(layout.beside(stem, layout.TEXTURE))


def make_voice(folder: Path, samples: np.ndarray) -> None:
    for name in ("audios", "images"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "audios" / "0.npy", samples)
    (folder / "images" / "face.jpg").touch()


def test_every_epoch_is_a_permutation() -> None:
    keys = [key for batch in Order(7, 3, seed=0, start=0, steps=7) for key in batch]
    indices = [index for index, _ in keys]
    for epoch in range(3):
        assert sorted(indices[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert indices[:7] != indices[7:14]
    assert len({seed for _, seed in keys}) == len(keys)


def test_a_resumed_order_goes_on_where_it_stopped() -> None:
    whole = list(Order(10, 4, seed=3, start=0, steps=9))
    assert list(Order(10, 4, seed=3, start=5, steps=9)) == whole[5:]


def test_a_face_comes_with_landmarks_and_drawing(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0", texture=True)
    faces = Faces(tmp_path, landmarks=68)
    item = faces[(0, 0)]
    assert faces.registered
    assert item["face"].shape == item["drawing"].shape == (3, 224, 224)
    assert item["drawing"].max() == 0 and item["face"].float().mean() > 100
    assert item["landmarks"].shape == (68, 2)


def test_only_the_encoders_photo_is_put_in_a_letterbox(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    Image.new("RGB", (224, 112), (200, 100, 50)).save(tmp_path / "a/0.jpg")
    item = Faces(tmp_path, landmarks=68, fit="letterbox")[(0, 0)]
    assert item["face"][:, :50].max() < 10 and item["face"][0, 60:160].min() > 190
    assert item["drawing"][0].min() > 190


def test_without_textures_the_photo_itself_is_to_be_drawn(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    faces = Faces(tmp_path, landmarks=68)
    assert not faces.registered
    assert torch.equal(faces[(0, 0)]["drawing"], faces[(0, 0)]["face"])


def test_a_dense_template_is_read_where_it_is_wanted(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0", points=189)
    mean = Faces(tmp_path, landmarks=189).mean_landmarks()
    torch.testing.assert_close(mean, torch.full((189, 2), 7.0))


def test_landmarks_of_another_number_are_named(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    np.save(tmp_path / "a/0_landmarks.npy", np.zeros((5, 2)))
    with pytest.raises(DatasetError, match=r"0_landmarks.npy: holds an array \[5, 2\]"):
        Faces(tmp_path, landmarks=68)[(0, 0)]


def test_broken_landmarks_are_named(tmp_path: Path) -> None:
    make_face(tmp_path / "a/0")
    (tmp_path / "a/0_landmarks.npy").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"0_landmarks\.npy: cannot be read"):
        Faces(tmp_path, landmarks=68)[(0, 0)]


@pytest.mark.parametrize("n", [50, 100, 330])
def test_a_clip_has_its_length_whatever_the_recordings(tmp_path: Path, n: int) -> None:
    make_voice(tmp_path / "s", np.arange(n, dtype=np.int16))
    voices = Voices(tmp_path, [torch.ones(1, 4)], clip_samples=100)
    item = voices[(0, 5)]
    assert item["waveform"].shape == (100,) and item["waveform"].dtype == torch.float32
    assert item["waveform"].max() <= n / 32768
    assert item["embedding"].shape == (4,)


def test_the_seed_decides_where_a_clip_starts(tmp_path: Path) -> None:
    make_voice(tmp_path / "s", np.arange(5000, dtype=np.int16))
    voices = Voices(tmp_path, [torch.ones(1, 4)], clip_samples=100)
    starts = {float(voices[(0, seed)]["waveform"][0]) for seed in range(20)}
    assert len(starts) > 10
    assert torch.equal(voices[(0, 3)]["waveform"], voices[(0, 3)]["waveform"])


def test_an_array_that_is_no_waveform_is_named(tmp_path: Path) -> None:
    make_voice(tmp_path / "s", np.zeros((2, 5)))
    with pytest.raises(DatasetError, match=r"0.npy: holds float64 values \[2, 5\]"):
        Voices(tmp_path, [torch.ones(1, 4)], clip_samples=100)[(0, 0)]


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
        assert torch.equal(voices[i, 7]["waveform"], expected)
    assert {tuple(voices[1, seed]["embedding"].tolist()) for seed in range(20)} == {(1, 2)}
    assert {tuple(voices[2, seed]["embedding"].tolist()) for seed in range(20)} == {(3, 4), (5, 6)}
    assert [int(voices[i, 0]["identity"]) for i in range(3)] == [0, 0, 1]
    assert len(voices) == 3 and voices.n_identities == 2


def test_the_seed_decides_where_in_a_longer_packed_clip_a_clip_starts(packed: Path) -> None:
    voices = PackedVoices(packed, clip_samples=60, embedding_space="space")
    waveforms = [voices[2, seed]["waveform"] * 32768 for seed in range(60)]
    assert {w.shape for w in waveforms} == {(60,)}
    assert all(torch.equal(w, torch.arange(float(w[0]), float(w[0]) + 60)) for w in waveforms)
    starts = {int(w[0]) for w in waveforms}
    assert len(starts) > 20 and starts <= set(range(200, 241))
    assert torch.equal(voices[2, 3]["waveform"], waveforms[3] / 32768)


def test_packed_items_are_those_of_voices(tmp_path: Path, packed: Path) -> None:
    make_voice(tmp_path / "tree/s", np.arange(100, dtype=np.int16))
    voices = Voices(tmp_path / "tree", [torch.tensor([[1.0, 2.0]])], clip_samples=100)
    mine = PackedVoices(packed, clip_samples=100, embedding_space="space")[0, 1]
    theirs = voices[0, 1]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], v) and mine[k].dtype == v.dtype for k, v in theirs.items())


def test_a_pack_that_does_not_fit_is_refused(packed: Path) -> None:
    with pytest.raises(CheckpointError, match="of the space space; the face encoder's is other"):
        PackedVoices(packed, clip_samples=100, embedding_space="other")
    with pytest.raises(DatasetError, match="its clips have 100 samples; wanted 101"):
        PackedVoices(packed, clip_samples=101, embedding_space="space")


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_pack_is_read_by_other_processes(packed: Path, start: str) -> None:
    voices = PackedVoices(packed, clip_samples=100, embedding_space="space")
    expected = voices[0, 0]["waveform"]  # maps the file here first
    loader = DataLoader(
        voices, batch_sampler=[[(0, 0), (2, 0)]], num_workers=1, multiprocessing_context=start
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


def test_a_million_clips_are_open_in_a_second(tmp_path: Path) -> None:
    # VoxCeleb2 has 1,128,246 utterances of 6,112 people.
    people = 5650
    sparse_pack(tmp_path / "pack", 1_130_000, people)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    voices = PackedVoices(tmp_path / "pack", clip_samples=96_000, embedding_space="space")
    order = Order(len(voices), 32, seed=0, start=0, steps=1)
    batch = next(iter(DataLoader(voices, batch_sampler=order)))
    assert time.perf_counter() - started < 2
    assert batch["waveform"].shape == (32, 96_000) and batch["embedding"].shape == (32, 4096)
    assert len(voices) == 1_130_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 100_000
