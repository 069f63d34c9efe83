"""The recipe's second half, with tiny networks: one folder that is a model, and no work twice."""

from pathlib import Path

import pytest
import torch

from s2f import demo
from s2f.demo import train_demo
from s2f.errors import DatasetError
from s2f.pipeline import SpeechToFace
from s2f.train import TrainConfig

CPU = torch.device("cpu")


def test_two_trees_become_a_model_and_are_not_learned_from_again(
    presets: None, faces: Path, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = TrainConfig(steps=2, batch_size=2, every=1)
    monkeypatch.setattr(demo, "FACES", short)
    monkeypatch.setattr(demo, "VOICES", short)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/faces").symlink_to(faces)
    (tmp_path / "data/voices").symlink_to(voices)
    made = train_demo(tmp_path / "data", tmp_path / "out", device=CPU)
    photo = next((faces / "val").rglob("*.jpg"))
    face = SpeechToFace.load(made.model, device="cpu").reconstruct(photo, align=False)
    assert face.landmarks.shape == (68, 2)
    files = {path.name: path.read_bytes() for path in made.model.iterdir()}
    again = train_demo(tmp_path / "data", tmp_path / "out", device=CPU)
    assert again.encoder.samples_per_second == again.voice.samples_per_second == 0
    assert {path.name: path.read_bytes() for path in again.model.iterdir()} == files


def test_a_tree_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no folder faces"):
        train_demo(tmp_path, tmp_path / "out", device=CPU)
    assert not (tmp_path / "out").exists()
