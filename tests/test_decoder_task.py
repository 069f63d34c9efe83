"""The face decoder's task: what it learns, with morphs, without warp. Tiny networks."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER, EMBEDDING, ENCODER, STAGED
from face_trees import write_tree
from task_checks import CPU, check_duplicates, check_gradients, check_learning
from torch.nn import functional

from s2f import checkpoint, face_decoder, face_encoder, losses
from s2f.checkpoint import Card, Checkpoint
from s2f.dataloader import Item, Key, load_batches
from s2f.errors import CheckpointError, DatasetError, S2FError, UsageError
from s2f.face_decoder import draw_faces
from s2f.images import PREPROCESSING
from s2f.landmarks import MAP_72
from s2f.pipeline import SpeechToFace
from s2f.train import TrainConfig, train
from s2f.train_faces import FaceDecoderTask
from s2f.warp import warp

pytestmark = pytest.mark.usefixtures("presets")
CARD = Card("tiny")
FULL = dict(face_decoder.CONFIGS)
WITHOUT = pytest.mark.parametrize("no_warp", [False, True], ids=["warped", "direct"])
PAPER = STAGED
SEED = dataclasses.replace(
    PAPER, batch_norm=True, landmarks=72, landmarks_68=MAP_72, is_face=True, trunk=(48, 64)
)


@pytest.fixture(autouse=True)
def tiny(presets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in (("paper", PAPER), ("seed", SEED)):
        monkeypatch.setitem(face_decoder.CONFIGS, name, config)


def encoder_of(models: Path) -> Checkpoint:
    return checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder")


def start_of(models: Path) -> Checkpoint:
    return checkpoint.load(models / "demo/face_decoder.safetensors", "face_decoder")


def make(
    faces: Path,
    models: Path,
    preset: str = "paper",
    start: Checkpoint | None = None,
    **options: Any,
) -> FaceDecoderTask:
    torch.manual_seed(0)
    encoder = encoder_of(models)
    return FaceDecoderTask(faces, preset, encoder, start, CARD, device=CPU, **options)


def batch_of(task: FaceDecoderTask, seed: int = 0) -> Item:
    """All training photos."""
    keys = [[Key(i, seed + i) for i in range(len(task.train_data))]]
    items = next(load_batches(task.train_data, keys, CPU, workers=0, max_bad=0)).items
    assert items is not None
    return items


@pytest.mark.parametrize("options", [{}, {"morph": 0.5}, {"no_warp": True}], ids=str)
def test_every_loss_reaches_the_network_and_none_the_frozen_encoder(
    options: dict[str, Any], faces: Path, models: Path
) -> None:
    task = make(faces, models, start=start_of(models), **options)
    check_gradients(task, [task.encoder])


def test_identity_reaches_landmarks_and_texture_through_the_warp(faces: Path, models: Path) -> None:
    task = make(faces, models)
    task.losses(batch_of(task), augmented=False)["identity/cosine"].sum().backward()
    for head in (task.network.landmarks, task.network.stages):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_photos_are_fitted_as_the_face_encoder_wants_them(faces: Path, models: Path) -> None:
    encoder = encoder_of(models)
    for fit in ("squash", "letterbox"):
        network = encoder.network
        network.preprocessing = dataclasses.replace(network.preprocessing, fit=fit)
        task = FaceDecoderTask(faces, "compact", encoder, None, CARD, device=CPU)
        assert (task.train_data.fit, task.val_data.fit) == (fit, fit)


def test_duplicating_a_batch_does_not_change_its_loss(faces: Path, models: Path) -> None:
    check_duplicates(make(faces, models))


def test_duplicating_a_batch_of_morphs_does_not_change_its_loss(faces: Path, models: Path) -> None:
    task = make(faces, models, morph=0.5)
    batch = next(b for seed in range(9) if (b := batch_of(task, seed))["mix"].any(1).sum() == 2)
    twice = {k: torch.cat([v, v]) for k, v in batch.items()}
    once, both = (task.losses(b, augmented=False) for b in (batch, twice))
    for name, value in once.items():
        torch.testing.assert_close(both[name], torch.cat([value, value]))


@WITHOUT
def test_the_task_learns_its_few_examples(
    faces: Path, models: Path, tmp_path: Path, no_warp: bool
) -> None:
    task = make(faces, models, "paper", no_warp=no_warp)
    check_learning(task, tmp_path / "run")


@pytest.mark.parametrize("no_warp", [pytest.param(False, marks=pytest.mark.slow), True])
def test_eight_photos_are_learned_to_near_zero(tmp_path: Path, models: Path, no_warp: bool) -> None:
    tree, encoder = write_tree(tmp_path / "faces", 8), encoder_of(models)
    # A random encoder hardly tells photos apart: let this one give each an axis of its own.
    network = face_encoder.VGGFace(dataclasses.replace(ENCODER, hidden=64), PREPROCESSING["paper"])
    network.requires_grad_(False).eval()
    encoder = dataclasses.replace(encoder, network=network)
    task = FaceDecoderTask(tree, "paper", encoder, None, CARD, device=CPU, no_warp=no_warp)
    features = network.features(batch_of(task)["face"])
    hidden = functional.pad(network.fc6(features).relu().flatten(1), (0, 1), value=1.0)
    solved = torch.linalg.lstsq(hidden, 3 * torch.eye(8), driver="gelsd").solution
    network.fc7.weight.copy_(solved[:-1].T[:, :, None, None])
    network.fc7.bias.copy_(solved[-1])
    config = TrainConfig(steps=60, batch_size=8, lr=0.02, every=60, augment=False)
    result = train(task, tmp_path / "run", config, device=CPU)
    assert result.losses["landmarks/mse"] < 0.1  # squared pixels
    assert result.losses["texture/mae"] < 0.02
    assert result.losses["identity/cosine"] < 0.001


def test_a_step_is_the_one_written_by_hand(tmp_path: Path, models: Path) -> None:
    """Adam's first step is lr g / |g|, whatever its betas: only g is to be found."""
    task = make(write_tree(tmp_path / "faces", 4), models)
    batch, mean = batch_of(task), task.network.mean_landmarks
    before = {k: v.detach().clone() for k, v in task.network.named_parameters()}
    p = {k: v.detach().clone().requires_grad_() for k, v in before.items()}
    with torch.no_grad():
        embedding = task.encoder(batch["face"])
        target = warp(batch["drawing"], batch["landmarks"], mean[None])
        aim = task.encoder(warp(target, mean[None], batch["landmarks"]))
    x = (embedding @ p["trunk.0.0.weight"].T + p["trunk.0.0.bias"]).relu()
    hidden = (x @ p["landmarks.0.0.weight"].T + p["landmarks.0.0.bias"]).relu()
    offsets = hidden @ p["landmarks.1.weight"].T + p["landmarks.1.bias"]
    points = mean + offsets.view(4, 68, 2)
    maps = (x @ p["seed.0.weight"].T + p["seed.0.bias"]).view(4, 24, 28, 28)
    texture = functional.conv_transpose2d(
        maps, p["stages.0.weight"], p["stages.0.bias"], stride=8, padding=4
    ).sigmoid()
    drawn = task.encoder(warp(texture, mean[None], points))
    cosine = (drawn * aim).sum(1) / drawn.norm(dim=1) / aim.norm(dim=1)
    loss = 0.02 * ((points - batch["landmarks"]) ** 2).sum(2).mean()
    loss = loss + 10 * (texture - target).abs().mean() + 2 * (1 - cosine).mean()
    loss.backward()
    values = task.losses(batch, augmented=False)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=1e-3)
    losses.total(values, task.loss_weights).backward()
    optimizer.step()
    for name, after in task.network.named_parameters():
        gradient = p[name].grad
        assert gradient is not None and after.grad is not None
        largest = gradient.abs().max()
        torch.testing.assert_close(after.grad, gradient, rtol=1e-3, atol=1e-3 * float(largest))
        clear = gradient.abs() > 0.01 * largest  # elsewhere rounding decides the sign
        step = 1e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after[clear], (before[name] - step)[clear], atol=5e-6, rtol=0)
        assert clear.float().mean() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "seed"])
def test_the_full_size_networks_take_a_step(
    preset: str, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(face_decoder.CONFIGS, preset, FULL[preset])
    preprocessing = PREPROCESSING["serengil"]
    network = face_encoder.VGGFace(face_encoder.CONFIGS["paper"], preprocessing)
    encoder = dataclasses.replace(encoder_of(models), network=network.requires_grad_(False).eval())
    tree = write_tree(tmp_path, 2)
    task = FaceDecoderTask(tree, preset, encoder, None, CARD, device=CPU, morph=1.0)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=1e-4)
    batch, totals = batch_of(task), []
    for _ in range(3):
        values = task.losses(batch, augmented=False)
        loss = losses.total(values, task.loss_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert totals[-1] < totals[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.network.parameters())


def test_half_precision_leaves_the_warp_and_the_landmarks_alone(faces: Path, models: Path) -> None:
    task = make(faces, models)
    batch = batch_of(task)
    with torch.no_grad():
        whole = task.losses(batch, augmented=False)
        embedding = task.encoder(batch["face"])
        exact, _ = task.network(embedding)
        with torch.autocast("cpu", torch.bfloat16):
            points, texture = task.network(embedding)
    assert (points - exact).abs().max() < 0.05  # bfloat16 knows no parts of a pixel above 128
    assert points.dtype == texture.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        half = task.losses(batch, augmented=False)
        losses.total(half, task.loss_weights).backward()
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, whole[name], rtol=0.05, atol=0.01)
    assert all(p.grad.isfinite().all() for p in task.network.parameters())


def test_morphs_are_of_near_people_and_never_of_one(tmp_path: Path, models: Path) -> None:
    tree = write_tree(tmp_path, 12, photos=3)
    morphs = make(tree, models, morph=0.25).train_data.morphs
    assert morphs is not None and morphs.probability == 0.25
    assert morphs.neighbours.shape == (36, 10)
    assert all((row // 3 != k // 3).all() for k, row in enumerate(morphs.neighbours))


def test_photos_that_cannot_be_read_are_no_neighbours(tmp_path: Path, models: Path) -> None:
    tree = write_tree(tmp_path, 4)
    (tree / "train/id2/0.jpg").write_bytes(b"broken")
    task = make(tree, models, morph=1.0)
    assert task.train_data.morphs is not None
    assert 2 not in task.train_data.morphs.neighbours
    assert any("faces are not mixed with 1 photos:" in note for note in task.notes)


def test_prepared_embeddings_choose_the_neighbours(tmp_path: Path, models: Path) -> None:
    tree = write_tree(tmp_path, 12)
    for k in range(12):  # each nearest to those beside it
        angle = 0.2 * k
        embedding = np.array([np.cos(angle), np.sin(angle), *6 * [0.0]], np.float32)
        np.save(tree / f"train/id{k}/0_embedding.npy", embedding)
    morphs = make(tree, models, morph=1.0).train_data.morphs
    order = sorted(range(12), key=lambda k: f"id{k}")  # of the folders
    assert morphs is not None
    for row, near in enumerate(morphs.neighbours):
        assert abs(order[near[0]] - order[row]) == 1


def test_validation_has_no_morphs(faces: Path, models: Path) -> None:
    task = make(faces, models, morph=1.0)
    assert "mix" in task.train_data[Key(0, 0)]
    assert "mix" not in task.val_data[Key(0, 0)]


def test_options_that_are_not_used_do_not_change_the_settings(faces: Path, models: Path) -> None:
    plain = make(faces, models).settings
    assert plain == make(faces, models, morph=0.0, no_warp=False).settings
    assert set(plain) == {"preset", "photos", "face_encoder", "start"}
    used = make(faces, models, morph=0.5, no_warp=True).settings
    assert used == {**plain, "morph": 0.5, "no_warp": True}
    assert make(faces, models, "seed").settings == {**plain, "preset": "seed"}


@pytest.mark.parametrize("preset", ["paper", "compact", "seed", "start"])
def test_what_is_drawn_without_warp_is_so_wherever_it_is_used(
    preset: str, tmp_path: Path, models: Path
) -> None:
    tree = write_tree(tmp_path / "faces", 3, texture=True)
    start = start_of(models) if preset == "start" else None
    task = make(tree, models, preset.replace("start", "compact"), start, no_warp=preset != "seed")
    train(task, tmp_path / "run", TrainConfig(steps=2, batch_size=3, every=2), device=CPU)
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "run/best.safetensors").rename(model / "face_decoder.safetensors")
    encoder = models / "demo/face_encoder.safetensors"
    (model / "face_encoder.safetensors").write_bytes(encoder.read_bytes())
    loaded = SpeechToFace.load(model, device="cpu", kinds=("face_encoder", "face_decoder"))
    decoder = loaded.model.checkpoints["face_decoder"].network
    assert isinstance(decoder, face_decoder.FaceDecoder) and decoder.config.is_face
    embedding = torch.randn(1, EMBEDDING)
    torch.testing.assert_close(draw_faces(decoder, embedding), decoder(embedding))
    assert loaded.reconstruct(tree / "val/id0/0.jpg", align=False).landmarks.shape == (68, 2)


def test_without_warp_the_photo_is_the_target_even_where_there_are_textures(
    tmp_path: Path, models: Path
) -> None:
    task = make(write_tree(tmp_path, 3, texture=True), models, "seed")
    batch = batch_of(task)
    found = task.losses(batch, augmented=False)["texture/mae"]
    with torch.no_grad():
        points, texture = task.network(task.encoder(batch["face"]))
    assert points.shape == (3, 72, 2)
    expected = (texture - batch["face"]).abs().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)


def test_a_linear_decoder_refuses_an_embedding_that_is_no_code(faces: Path, models: Path) -> None:
    encoder = encoder_of(models)
    rectified = dataclasses.replace(encoder.network.config, final_relu=True)
    encoder.network.config = rectified
    with pytest.raises(CheckpointError, match="is no code that the compact decoder draws from"):
        FaceDecoderTask(faces, "compact", encoder, None, CARD, device=CPU)


def test_a_linear_decoder_refuses_an_embedding_of_another_size(
    faces: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wider = dataclasses.replace(DECODER, embedding=2 * EMBEDDING)
    monkeypatch.setitem(face_decoder.CONFIGS, "compact", wider)
    with pytest.raises(CheckpointError, match=r"8 values, is no code .* of 16"):
        make(faces, models, "compact")


def test_a_start_of_another_space_is_refused(faces: Path, models: Path) -> None:
    other = checkpoint.load(models / "other/face_decoder.safetensors", "face_decoder")
    with pytest.raises(CheckpointError, match="different embedding spaces"):
        make(faces, models, start=other)


def test_a_start_of_more_landmarks_than_the_photos_have_is_refused(
    faces: Path, models: Path
) -> None:
    start = start_of(models)
    dense = face_decoder.FaceDecoder(dataclasses.replace(DECODER, landmarks=189))
    with pytest.raises(CheckpointError, match=r"draws 189 landmarks; the photos .* have 68"):
        make(faces, models, start=dataclasses.replace(start, network=dense))


@pytest.mark.parametrize("morph", [-0.1, 1.1, float("nan")])
def test_a_share_of_morphs_outside_0_and_1_is_refused(
    morph: float, faces: Path, models: Path
) -> None:
    with pytest.raises(UsageError, match=f"--morph {morph}: is no probability"):
        make(faces, models, morph=morph)


@pytest.mark.parametrize(
    ("break_tree", "error", "why"),
    [
        (lambda train: train.joinpath("id1").rename(train / ".id1"), DatasetError, "one identity"),
        (
            lambda train: train.joinpath("id1/0.jpg").write_bytes(b"broken"),
            DatasetError,
            "photos that can be read are of one identity",
        ),
        (
            lambda train: np.save(train / "id0/0_landmarks.npy", np.zeros((5, 2))),
            DatasetError,
            r"id0/0_landmarks\.npy: holds an array \[5, 2\]",
        ),
        (
            lambda train: np.save(train / "id0/0_embedding.npy", np.zeros(5)),
            DatasetError,
            r"id0/0_embedding\.npy: holds an array \[5\]",
        ),
    ],
    ids=["one identity", "one readable", "landmarks", "embedding"],
)
def test_a_tree_that_cannot_be_learned_from_is_refused(
    break_tree: Any, error: type[S2FError], why: str, tmp_path: Path, models: Path
) -> None:
    tree = write_tree(tmp_path, 2)
    break_tree(tree / "train")
    with pytest.raises(error, match=why):
        make(tree, models, morph=0.5)
