"""The face encoder's task: what it learns, and where its gradients go. Tiny networks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import DECODER, ENCODER
from face_trees import write_tree
from task_checks import CPU, check_duplicates, check_gradients, check_learning, sample_batch
from torch.nn import functional

from s2f import checkpoint, face_decoder, face_encoder, losses
from s2f.checkpoint import Card
from s2f.decoder_task import FaceDecoderTask
from s2f.encoder_task import FaceEncoderTask
from s2f.errors import DatasetError
from s2f.feed import Item, Key, load
from s2f.recipe import TrainConfig
from s2f.train import train

pytestmark = pytest.mark.usefixtures("presets")
CARD = Card("tiny")


def make(faces: Path) -> FaceEncoderTask:
    torch.manual_seed(0)
    return FaceEncoderTask(faces, "compact", CARD)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that learns with its decoder and knows the identities, as the paper's preset."""
    encoder = dataclasses.replace(ENCODER, embedding=32, hidden=32, identities=8)
    decoder = dataclasses.replace(
        DECODER, embedding=32, trunk=(64,), rank=0, seed_channels=24, output="sigmoid"
    )
    monkeypatch.setitem(face_encoder.CONFIGS, "compact", encoder)
    monkeypatch.setitem(face_decoder.CONFIGS, "compact", decoder)


def batches_of(task: FaceEncoderTask, n: int) -> Iterator[Item]:
    """All training photos at once, n times, disturbed anew."""
    for seed in range(n):
        torch.manual_seed(seed)
        keys = [[Key(i, seed) for i in range(len(task.train_data))]]
        items = next(load(task.train_data, keys, CPU, workers=0, max_bad=0)).items
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


def test_the_linear_code_of_eight_photos_is_learned_to_near_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = dataclasses.replace(ENCODER, hidden=128)
    monkeypatch.setitem(face_encoder.CONFIGS, "compact", wide)
    task = make(write_tree(tmp_path / "faces", 8, texture=True))
    (batch,) = batches_of(task, 1)
    optimizer = torch.optim.Adam(task.encoder.parameters())
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 100)
        optimizer.zero_grad()
        loss = task.losses(batch, augmented=False)["embedding/mse"].mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01  # of a code whose variance is 1


def test_a_step_is_the_one_written_by_hand(tmp_path: Path) -> None:
    """Adam's first step is lr g / |g|, whatever its betas: only g is to be found."""
    task = make(write_tree(tmp_path / "faces", 4))
    (batch,) = batches_of(task, 1)
    before = {k: v.detach().clone() for k, v in task.encoder.named_parameters()}
    p = {k: v.detach().clone().requires_grad_() for k, v in before.items()}
    x = functional.avg_pool2d(batch["face"], 8) * 4 - 2  # the preset's range, 28 pixels
    for layer in (0, 4):
        x = functional.conv2d(x, p[f"convs.{layer}.weight"], padding=1)
        norm = p[f"convs.{layer + 1}.weight"], p[f"convs.{layer + 1}.bias"]
        x = functional.batch_norm(x, None, None, *norm, training=True)
        x = functional.max_pool2d(x.relu(), 2)
    hidden = (x.flatten(1) @ p["fc6.weight"].flatten(1).T + p["fc6.bias"]).relu()
    embedding = hidden @ p["fc7.weight"].flatten(1).T + p["fc7.bias"]
    assert task.code is not None
    _, textures, points = task.data.example(batch, task.decoder)
    ((embedding - task.code(textures, points)) ** 2).mean().backward()
    values = task.losses(batch, augmented=False)
    optimizer = torch.optim.Adam(task.encoder.parameters(), lr=1e-3)
    losses.total(values, task.loss_weights).backward()
    optimizer.step()
    compared = 0
    for name, after in task.encoder.named_parameters():
        gradient = p[name].grad
        assert gradient is not None
        clear = gradient.abs() > 1e-4  # elsewhere rounding decides the sign
        step = 1e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after[clear], (before[name] - step)[clear], atol=1e-6, rtol=0)
        compared += int(clear.sum())
    assert compared > 0.8 * sum(v.numel() for v in before.values())


def test_half_precision_changes_neither_the_code_nor_where_losses_are_computed(
    faces: Path,
) -> None:
    task = make(faces)
    (batch,) = batches_of(task, 1)
    _, textures, points = task.data.example(batch, task.decoder)
    assert task.code is not None
    code = task.code(textures, points)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(task.code(textures, points), code, atol=0, rtol=0)
        values = task.losses(batch, augmented=True)
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in values.values())


def test_a_trained_encoder_starts_a_decoder_of_the_same_space(faces: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=2, batch_size=2, every=1)
    best = train(make(faces), tmp_path / "run", config, device=CPU).best
    encoder = checkpoint.load(best, "face_encoder")
    start = checkpoint.load(best.with_name("decoder.safetensors"), "face_decoder")
    checkpoint.check_space([encoder, start])
    task = FaceDecoderTask(faces, "compact", encoder, start, CARD, device=CPU)
    assert all(p.requires_grad for p in task.network.parameters())


def test_the_last_layers_are_solved_not_only_stepped_to(faces: Path) -> None:
    task = make(faces)
    task.network.eval()
    batch = sample_batch(task)
    with torch.no_grad():
        before = float(task.losses(batch, augmented=False)["embedding/mse"].mean())
        assert task.finish(lambda k: batches_of(task, 20 * k))
        task.network.eval()
        after = float(task.losses(batch, augmented=False)["embedding/mse"].mean())
    assert after < 0.5 * before


def test_a_broken_photo_in_validation_does_not_lose_the_solution(faces: Path) -> None:
    task = make(faces)
    (faces / "val/id1/a.jpg").write_bytes(b"broken")
    assert task.finish(lambda k: batches_of(task, k))


def test_data_without_the_dense_template_train_a_decoder_of_the_68(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = dataclasses.replace(DECODER, landmarks=189)
    monkeypatch.setitem(face_decoder.CONFIGS, "compact", dense)
    task = make(faces)
    assert task.decoder.config.landmarks == 68
    assert task.decoder.landmarks_68(torch.zeros(1, 68, 2)).shape == (1, 68, 2)


def test_one_person_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has one identity"):
        make(write_tree(tmp_path, 1, photos=4))
