"""Order and items of the training data, on small made trees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2f import layout
from s2f.dataset import Faces, Order, Voices
from s2f.errors import DatasetError


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
