"""The face encoder's task: what it learns, and where its gradients go. Tiny networks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ENCODER, STAGED
from face_trees import write_tree
from task_checks import CPU, check_duplicates, check_gradients, check_learning

from s2f import checkpoint, face_decoder, face_encoder
from s2f.checkpoint import Card
from s2f.dataloader import Item, Key, load_batches
from s2f.errors import DatasetError
from s2f.train import TrainConfig, train
from s2f.train_faces import FaceDecoderTask, FaceEncoderTask

pytestmark = pytest.mark.usefixtures("presets")
CARD = Card("tiny")


def make(faces: Path) -> FaceEncoderTask:
    torch.manual_seed(0)
    return FaceEncoderTask(faces, "paper", CARD)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that knows the identities, as the paper's preset."""
    encoder = dataclasses.replace(ENCODER, embedding=32, hidden=32, identities=8)
    monkeypatch.setitem(face_encoder.CONFIGS, "paper", encoder)
    monkeypatch.setitem(face_decoder.CONFIGS, "paper", dataclasses.replace(STAGED, embedding=32))


def batches_of(task: FaceEncoderTask, n: int) -> Iterator[Item]:
    """All training photos at once, n times, disturbed anew."""
    for seed in range(n):
        torch.manual_seed(seed)
        keys = [[Key(i, seed) for i in range(len(task.train_data))]]
        items = next(load_batches(task.train_data, keys, CPU, workers=0, max_bad=0)).items
        assert items is not None
        yield items


def test_every_loss_reaches_the_network(faces: Path) -> None:
    check_gradients(make(faces), [])


def test_every_loss_reaches_a_network_that_learns_with_its_decoder(
    faces: Path, drawn: None
) -> None:
    check_gradients(make(faces), [])


def test_duplicating_a_batch_does_not_change_its_loss(faces: Path) -> None:
    check_duplicates(make(faces))


def test_the_task_learns_its_few_examples(faces: Path, tmp_path: Path) -> None:
    check_learning(make(faces), tmp_path / "run")


def test_eight_photos_are_learned_to_near_zero(tmp_path: Path, drawn: None) -> None:
    task = make(write_tree(tmp_path / "faces", 8, texture=True))
    config = TrainConfig(steps=60, batch_size=8, lr=0.02, every=60, augment=False)
    train(task, tmp_path / "run", config, device=CPU)
    (batch,) = batches_of(task, 1)
    task.network.train()
    with torch.no_grad():
        after = {k: float(v.mean()) for k, v in task.losses(batch, augmented=False).items()}
    assert after["landmarks/mse"] < 0.5  # squared pixels
    assert after["texture/mae"] < 0.02
    assert after["identity/cross_entropy"] < 0.03  # ln 8 to begin with


def test_half_precision_does_not_change_where_losses_are_computed(faces: Path) -> None:
    task = make(faces)
    (batch,) = batches_of(task, 1)
    with torch.autocast("cpu", torch.bfloat16):
        values = task.losses(batch, augmented=True)
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in values.values())


def test_a_trained_encoder_starts_a_decoder_of_the_same_space(faces: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=2, batch_size=2, every=1)
    best = train(make(faces), tmp_path / "run", config, device=CPU).best
    encoder = checkpoint.load(best, "face_encoder")
    start = checkpoint.load(best.with_name("decoder.safetensors"), "face_decoder")
    checkpoint.check_space([encoder, start])
    task = FaceDecoderTask(faces, "paper", encoder, start, CARD, device=CPU)
    assert all(p.requires_grad for p in task.network.parameters())


def test_data_without_the_dense_template_train_a_decoder_of_the_68(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = dataclasses.replace(STAGED, landmarks=189)
    monkeypatch.setitem(face_decoder.CONFIGS, "paper", dense)
    task = make(faces)
    assert task.decoder.config.landmarks == 68
    assert task.decoder.landmarks_68(torch.zeros(1, 68, 2)).shape == (1, 68, 2)


def test_one_person_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has one identity"):
        make(write_tree(tmp_path, 1, photos=4))
