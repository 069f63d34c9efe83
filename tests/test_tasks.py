"""The three tasks: what they learn, and where their gradients go. Tiny networks and trees."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from s2f import checkpoint, losses, tasks
from s2f.checkpoint import Card
from s2f.dataset import Item, collate
from s2f.train import Task, TrainConfig, _sample_batch, _to, train

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("presets")
CARD = Card("tiny")


def make(name: str, faces: Path, voices: Path, models: Path) -> Task:
    encoder = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder")
    decoder = checkpoint.load(models / "demo/face_decoder.safetensors", "face_decoder")
    torch.manual_seed(0)
    if name == "encoder":
        return tasks.FaceEncoderTask(faces, "compact", CARD)
    if name == "decoder":
        return tasks.FaceDecoderTask(faces, "compact", encoder, decoder, CARD)
    return tasks.VoiceEncoderTask(voices, "compact", encoder, decoder, CARD, device=CPU)


def frozen(task: Task) -> list[nn.Module]:
    """Networks that a task uses and must not change."""
    return [
        network
        for network in (getattr(task, "encoder", None), getattr(task, "decoder", None))
        if isinstance(network, nn.Module) and task.name != "encoder"
    ]


@pytest.mark.parametrize("name", ["encoder", "decoder", "voice"])
def test_every_loss_reaches_the_network_and_no_frozen_one(
    name: str, faces: Path, voices: Path, models: Path
) -> None:
    task = make(name, faces, voices, models)
    batch = _sample_batch(task, CPU)
    for loss in task.losses(batch, augmented=True):
        task.network.zero_grad()
        task.losses(batch, augmented=True)[loss].sum().backward()
        reached = sum(
            float(p.grad.abs().sum()) for p in task.network.parameters() if p.grad is not None
        )
        assert reached > 0, loss
    for network in frozen(task):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert not network.training


@pytest.mark.parametrize("name", ["encoder", "decoder", "voice"])
def test_duplicating_a_batch_does_not_change_its_loss(
    name: str, faces: Path, voices: Path, models: Path
) -> None:
    task = make(name, faces, voices, models)
    task.network.eval()
    batch = _sample_batch(task, CPU)
    twice = {k: torch.cat([v, v]) for k, v in batch.items()}
    once = losses.total(task.losses(batch, augmented=False), task.loss_weights)
    torch.testing.assert_close(
        losses.total(task.losses(twice, augmented=False), task.loss_weights), once
    )


@pytest.mark.parametrize("name", ["encoder", "decoder", "voice"])
def test_a_task_learns_its_few_examples(
    name: str, faces: Path, voices: Path, models: Path, tmp_path: Path
) -> None:
    task = make(name, faces, voices, models)
    task.network.eval()
    with torch.no_grad():
        values = task.losses(_sample_batch(task, CPU), augmented=False)
        before = float(losses.total(values, task.loss_weights))
    config = TrainConfig(steps=60, batch_size=3, lr=0.02, every=60, augment=False)
    result = train(task, tmp_path / "run", config, device=CPU)
    after = sum(task.loss_weights[k] * v for k, v in result.losses.items())
    assert after < 0.7 * before
    assert (tmp_path / "run/samples/0000060.png").is_file()


def test_a_trained_encoder_starts_a_decoder_of_the_same_space(
    faces: Path, voices: Path, models: Path, tmp_path: Path
) -> None:
    config = TrainConfig(steps=2, batch_size=2, every=1)
    best = train(make("encoder", faces, voices, models), tmp_path, config, device=CPU).best
    encoder = checkpoint.load(best, "face_encoder")
    start = checkpoint.load(best.with_name("decoder.safetensors"), "face_decoder")
    checkpoint.check_space([encoder, start])
    task = tasks.FaceDecoderTask(faces, "compact", encoder, start, CARD)
    assert all(p.requires_grad for p in task.network.parameters())


def test_a_voice_is_given_the_embedding_of_its_own_face(
    faces: Path, voices: Path, models: Path
) -> None:
    task = make("voice", faces, voices, models)
    assert isinstance(task, tasks.VoiceEncoderTask)
    item = task.train_data[(2, 0)]
    face = checkpoint.load_model(models / "demo", ("face_encoder",)).checkpoints["face_encoder"]
    photo = tasks.load_face(voices / "train/id2/images/a.jpg")[None]
    expected = face.network(_to({"x": photo}, CPU)["x"])[0]
    torch.testing.assert_close(item["embedding"], expected)


def test_the_last_layers_of_an_encoder_are_solved_not_only_stepped_to(
    faces: Path, voices: Path, models: Path, tmp_path: Path
) -> None:
    task = make("encoder", faces, voices, models)
    assert isinstance(task, tasks.FaceEncoderTask)
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
