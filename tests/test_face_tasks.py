"""The two tasks on faces: what they learn, and where their gradients go. Tiny networks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import DECODER
from task_checks import CPU, check_duplicates, check_gradients, check_learning

from s2f import checkpoint, face_decoder
from s2f.checkpoint import Card
from s2f.dataset import Item, collate
from s2f.errors import CheckpointError
from s2f.face_tasks import FaceDecoderTask, FaceEncoderTask
from s2f.train import TrainConfig, _sample_batch, _to, train

pytestmark = pytest.mark.usefixtures("presets")
CARD = Card("tiny")
NAMES = ["encoder", "decoder"]


def make(name: str, faces: Path, models: Path) -> FaceEncoderTask | FaceDecoderTask:
    encoder = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder")
    decoder = checkpoint.load(models / "demo/face_decoder.safetensors", "face_decoder")
    torch.manual_seed(0)
    if name == "encoder":
        return FaceEncoderTask(faces, "compact", CARD)
    return FaceDecoderTask(faces, "compact", encoder, decoder, CARD)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_reaches_the_network_and_no_frozen_one(
    name: str, faces: Path, models: Path
) -> None:
    task = make(name, faces, models)
    check_gradients(task, [] if isinstance(task, FaceEncoderTask) else [task.encoder])


def test_photos_are_fitted_as_the_face_encoder_wants_them(faces: Path, models: Path) -> None:
    encoder = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder")
    for fit in ("squash", "letterbox"):
        network = encoder.network
        network.preprocessing = dataclasses.replace(network.preprocessing, fit=fit)
        task = FaceDecoderTask(faces, "compact", encoder, None, CARD)
        assert (task.train_data.fit, task.val_data.fit) == (fit, fit)


@pytest.mark.parametrize("name", NAMES)
def test_duplicating_a_batch_does_not_change_its_loss(name: str, faces: Path, models: Path) -> None:
    check_duplicates(make(name, faces, models))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_learns_its_few_examples(
    name: str, faces: Path, models: Path, tmp_path: Path
) -> None:
    check_learning(make(name, faces, models), tmp_path / "run")


def test_a_trained_encoder_starts_a_decoder_of_the_same_space(
    faces: Path, models: Path, tmp_path: Path
) -> None:
    config = TrainConfig(steps=2, batch_size=2, every=1)
    best = train(make("encoder", faces, models), tmp_path, config, device=CPU).best
    encoder = checkpoint.load(best, "face_encoder")
    start = checkpoint.load(best.with_name("decoder.safetensors"), "face_decoder")
    checkpoint.check_space([encoder, start])
    task = FaceDecoderTask(faces, "compact", encoder, start, CARD)
    assert all(p.requires_grad for p in task.network.parameters())


def test_the_last_layers_of_an_encoder_are_solved_not_only_stepped_to(
    faces: Path, models: Path, tmp_path: Path
) -> None:
    task = make("encoder", faces, models)
    assert isinstance(task, FaceEncoderTask)
    task.network.eval()
    batch = _sample_batch(task, CPU)
    with torch.no_grad():
        before = float(task.losses(batch, augmented=False)["embedding/mse"].mean())

        def batches(k: int) -> Iterator[Item]:
            for seed in range(20 * k):
                torch.manual_seed(seed)
                yield _to(collate([task.train_data[i, seed] for i in range(3)]), CPU)

        task.finish(batches)
        task.network.eval()
        after = float(task.losses(batch, augmented=False)["embedding/mse"].mean())
    assert after < 0.5 * before


def test_data_without_the_dense_template_train_a_decoder_of_the_68(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = dataclasses.replace(DECODER, landmarks=189)
    monkeypatch.setitem(face_decoder.CONFIGS, "compact", dense)
    task = FaceEncoderTask(faces, "compact", Card("tiny"))
    assert task.decoder.config.landmarks == 68
    assert task.decoder.landmarks_68(torch.zeros(1, 68, 2)).shape == (1, 68, 2)


def test_a_linear_decoder_refuses_an_embedding_that_is_no_code(faces: Path, models: Path) -> None:
    encoder = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder")
    rectified = dataclasses.replace(encoder.network.config, final_relu=True)
    encoder.network.config = rectified
    with pytest.raises(CheckpointError, match="is no code that the compact decoder draws from"):
        FaceDecoderTask(faces, "compact", encoder, None, CARD)
