"""The task on voices: what it learns, and where its gradients go. Tiny networks and trees."""

from pathlib import Path

import pytest
import torch
from task_checks import CPU, check_duplicates, check_gradients, check_learning

from s2f import checkpoint, voice_task
from s2f.checkpoint import Card
from s2f.images import load_face
from s2f.train import _sample_batch, _to

pytestmark = pytest.mark.usefixtures("presets")


def make(voices: Path, models: Path) -> voice_task.VoiceEncoderTask:
    encoder = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder")
    decoder = checkpoint.load(models / "demo/face_decoder.safetensors", "face_decoder")
    torch.manual_seed(0)
    return voice_task.VoiceEncoderTask(
        voices, "compact", encoder, decoder, Card("tiny"), device=CPU
    )


def test_every_loss_reaches_the_network_and_no_frozen_one(voices: Path, models: Path) -> None:
    task = make(voices, models)
    check_gradients(task, [task.encoder, task.decoder])


@pytest.fixture
def as_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train as the paper does, whatever the preset."""
    monkeypatch.setattr(voice_task, "PASSES", {})


@pytest.mark.usefixtures("as_paper")
def test_the_papers_losses_reach_the_network(voices: Path, models: Path) -> None:
    task = make(voices, models)
    assert set(task.losses(_sample_batch(task, CPU), augmented=False)) == {
        "decoder/l1",
        "embedding/l2",
    }
    check_gradients(task, [task.encoder, task.decoder])


@pytest.mark.usefixtures("as_paper")
def test_the_paper_learns_by_gradient_steps_alone(voices: Path, models: Path) -> None:
    task = make(voices, models)
    before = {k: v.clone() for k, v in task.network.state_dict().items()}
    task.finish(lambda k: iter([]))
    assert all(torch.equal(v, before[k]) for k, v in task.network.state_dict().items())


def test_duplicating_a_batch_does_not_change_its_loss(voices: Path, models: Path) -> None:
    check_duplicates(make(voices, models))


def test_the_task_learns_its_few_examples(voices: Path, models: Path, tmp_path: Path) -> None:
    check_learning(make(voices, models), tmp_path / "run")


def test_a_voice_is_given_the_embedding_of_its_own_face(voices: Path, models: Path) -> None:
    task = make(voices, models)
    item = task.train_data[(2, 0)]
    face = checkpoint.load_model(models / "demo", ("face_encoder",)).checkpoints["face_encoder"]
    photo = load_face(voices / "train/id2/images/a.jpg")[None]
    expected = face.network(_to({"x": photo}, CPU)["x"])[0]
    torch.testing.assert_close(item["embedding"], expected)
