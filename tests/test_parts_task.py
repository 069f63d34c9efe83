"""The small encoder's task: what it learns, what it takes off, what it saves. Tiny networks."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DECODER, PARTS, some_landmarks
from face_trees import write_tree
from PIL import Image
from task_checks import CPU, check_duplicates, check_gradients, check_learning, sample_batch
from torch import nn

from s2f import appearance_model, checkpoint, face_decoder, losses
from s2f.appearance_model import PartsEncoder
from s2f.checkpoint import Card
from s2f.dataloader import Item, Key, load_batches
from s2f.errors import DatasetError
from s2f.train import TrainConfig, train
from s2f.train_faces import FaceDecoderTask, PartsEncoderTask

pytestmark = pytest.mark.usefixtures("presets")
CARD = Card("tiny")
SHAPE = np.rint(some_landmarks())  # whole pixels: what is done with them is exact


def make(faces: Path) -> PartsEncoderTask:
    torch.manual_seed(0)
    return PartsEncoderTask(faces, "compact", CARD)


def batches_of(task: PartsEncoderTask) -> Callable[[int], Iterator[Item]]:
    """Go k times through all training photos, one batch a time."""

    def batches(k: int) -> Iterator[Item]:
        keys = [[Key(i, seed) for i in range(len(task.train_data))] for seed in range(k)]
        for loaded in load_batches(task.train_data, keys, CPU, workers=0, max_bad=0):
            assert loaded.items is not None
            yield loaded.items

    return batches


class Told(nn.Module):
    """In the place of a finder: it tells the mean landmarks."""

    def __init__(self, points: torch.Tensor) -> None:
        super().__init__()
        self.points = (points[None] + 0.5) / 2 - 0.5

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return self.points.expand(len(faces), -1, -1)


def test_the_loss_reaches_the_finder(faces: Path) -> None:
    check_gradients(make(faces), [])


def test_duplicating_a_batch_does_not_change_its_loss(faces: Path) -> None:
    check_duplicates(make(faces))


def test_the_task_learns_its_few_examples(faces: Path, tmp_path: Path) -> None:
    check_learning(make(faces), tmp_path / "run")


def test_steps_teach_the_finder_and_nothing_else(faces: Path) -> None:
    task = make(faces)
    (group,) = task.groups
    taught = {id(p) for p in group.parameters}
    finder = {id(p) for p in task.encoder.finder.parameters()}
    assert taught == finder
    values = task.losses(sample_batch(task), augmented=True)
    losses.total(values, task.loss_weights).backward()
    for name, p in task.encoder.named_parameters():
        assert (p.grad is not None) == name.startswith("finder."), name
    assert all(p.grad is None for p in task.decoder.parameters())


def test_only_a_photo_with_landmarks_of_its_own_is_learned_from(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, 3, photos=2)
    for path in tree.glob("*/*/1_landmarks.npy"):
        path.unlink()
    task = make(tree)
    batch = next(batches_of(task)(1))
    own = torch.tensor([True, False] * 3)
    assert torch.equal(batch["own"], own)
    value = task.losses(batch, augmented=False)["landmarks/huber"]
    assert (value[own] > 0).all() and not value[~own].any()
    task.losses(batch, augmented=True)["landmarks/huber"][~own].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in task.encoder.finder.parameters())


def test_landmarks_that_are_found_lose_nothing(faces: Path) -> None:
    task = make(faces)
    batch = sample_batch(task)
    points = batch["landmarks"]
    task.encoder.finder = Told(points[0])
    off = batch | {"landmarks": points[:1].expand(3, -1, -1) + 3.0}
    for given, expected in ((off | {"landmarks": off["landmarks"] - 3}, 0.0), (off, 2.5)):
        value = task.losses(given, augmented=False)["landmarks/huber"]
        torch.testing.assert_close(value, torch.full((3,), expected), atol=1e-4, rtol=0)


def test_half_precision_does_not_change_where_losses_are_computed(faces: Path) -> None:
    task = make(faces)
    batch = sample_batch(task)
    with torch.autocast("cpu", torch.bfloat16):
        values = task.losses(batch, augmented=True)
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in values.values())


def write_people(tree: Path, people: int, smiles: float) -> Path:
    """Write people of one shape who differ in two large ways and one small one.

    Everybody's second photo, which has no landmarks, goes far along the small one: a smile.
    """
    rng = np.random.default_rng(0)
    ways = [Image.fromarray(rng.normal(size=(5, 5)).astype(np.float32)) for _ in range(3)]
    large = [np.asarray(way.resize((224, 224), Image.Resampling.BICUBIC)) for way in ways]
    for k in range(people):
        stem = tree / ("val" if k % 4 == 3 else "train") / f"id{k}" / "0"
        stem.parent.mkdir(parents=True)
        who = rng.normal(size=3) * (25, 20, 3)
        for photo in range(2):
            face = 128 + sum(w * way for w, way in zip(who, large, strict=True))
            pixels = np.repeat(face.clip(0, 255).astype(np.uint8)[..., None], 3, 2)
            Image.fromarray(pixels).save(stem.with_name(f"{photo}.jpg"), quality=95)
            who[2] += smiles
        np.save(stem.with_name("0_landmarks.npy"), SHAPE)
    return tree


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks with three values a window."""
    monkeypatch.setitem(
        appearance_model.CONFIGS, "compact", dataclasses.replace(PARTS, embedding=16, axes=3)
    )
    monkeypatch.setitem(
        face_decoder.CONFIGS, "compact", dataclasses.replace(DECODER, embedding=16, axes=3)
    )


def codes(task: PartsEncoderTask) -> torch.Tensor:
    """Embeddings [n 2 d] of the two photos of everybody whom was learned from."""
    task.encoder.eval()
    with torch.no_grad():
        return task.encoder(next(batches_of(task)(1))["face"]).unflatten(0, (-1, 2))


def test_a_smile_is_taken_off(tmp_path: Path, wide: None) -> None:
    task = make(write_people(tmp_path, 16, smiles=12.0))
    task.encoder.finder = Told(torch.from_numpy(SHAPE))
    before = codes(task)
    assert task.finish(batches_of(task))
    assert task.encoder.training
    after = codes(task)
    smile, rest = ((both[:, 1] - both[:, 0]).norm(dim=1).mean() for both in (before, after))
    assert rest < 0.6 * smile
    # who they are stays: what people differ by is much as it was
    people, kept = (both[:, 0] - both[:, 0].mean(0) for both in (before, after))
    assert (people - kept).norm() < 0.3 * people.norm()


def test_where_photos_are_alike_nothing_is_taken_off(tmp_path: Path, wide: None) -> None:
    task = make(write_people(tmp_path, 16, smiles=0.0))
    task.encoder.finder = Told(torch.from_numpy(SHAPE))
    before = codes(task)
    task.finish(batches_of(task))
    torch.testing.assert_close(codes(task), before, atol=0.05, rtol=0.05)


def test_the_decoder_draws_the_code_that_is_read(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, 6, texture=True)
    task = make(tree)
    _, textures, points = task.data.example(sample_batch(task), task.decoder)
    config = task.decoder.config
    assert (config.windows, config.axes) == (PARTS.windows, PARTS.axes)
    code = task.data.linear_decoder(config).code(textures, points)
    with torch.no_grad():
        drawn, _ = task.decoder(code)
    again = code[:, 4:] @ task.encoder.shape_axes
    torch.testing.assert_close(
        drawn, task.encoder.mean_landmarks + again.view_as(drawn), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
def test_what_is_saved_is_read_again_and_shares_a_space(
    faces: Path, tmp_path: Path, storage: torch.dtype
) -> None:
    task = make(faces)
    batch = sample_batch(task)
    with torch.no_grad():
        task.encoder.neutral.weight.normal_(std=0.1)
    task.save(tmp_path / "best.safetensors", storage, {"landmarks/huber": 0.5})
    encoder = checkpoint.load(tmp_path / "best.safetensors", "face_encoder")
    decoder = checkpoint.load(tmp_path / "decoder.safetensors", "face_decoder")
    checkpoint.check_space([encoder, decoder])
    assert isinstance(encoder.network, PartsEncoder)
    assert encoder.card.metrics == {"landmarks/huber": 0.5}
    assert encoder.network.config == task.encoder.config
    task.encoder.eval()
    with torch.no_grad():
        expected, found = task.encoder(batch["face"]), encoder.network(batch["face"])
        pairs = zip(task.decoder(expected), decoder.network(expected), strict=True)
        close = 0.03 if storage == torch.float16 else 1e-5
        torch.testing.assert_close(found, expected, atol=close, rtol=close)
        for a, b in pairs:
            torch.testing.assert_close(b, a, atol=close, rtol=close)


def test_a_trained_encoder_starts_a_decoder_of_the_same_space(faces: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=2, batch_size=2, every=1)
    best = train(make(faces), tmp_path / "run", config, device=CPU).best
    encoder = checkpoint.load(best, "face_encoder")
    start = checkpoint.load(best.with_name("decoder.safetensors"), "face_decoder")
    checkpoint.check_space([encoder, start])
    task = FaceDecoderTask(faces, "compact", encoder, start, CARD, device=CPU)
    assert all(p.requires_grad for p in task.network.parameters())
    check_gradients(task, [task.encoder])  # through what registers the faces that are drawn


def test_data_without_the_dense_template_train_networks_of_the_68(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = dataclasses.replace(DECODER, landmarks=189)
    monkeypatch.setitem(face_decoder.CONFIGS, "compact", dense)
    task = make(faces)
    assert task.decoder.config.landmarks == task.encoder.config.landmarks == 68
    with torch.no_grad():
        assert task.encoder.find(torch.rand(1, 3, 224, 224)).shape == (1, 68, 2)


def test_photos_and_reconstructions_are_shown(faces: Path) -> None:
    task = make(faces)
    picture = task.sample(sample_batch(task))
    assert picture.shape[0] == 3 and picture.isfinite().all()
    assert task.encoder.training


def test_one_person_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has one identity"):
        make(write_tree(tmp_path, 1, photos=4))
