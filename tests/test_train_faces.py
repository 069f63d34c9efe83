"""The tasks on faces: what they learn, where their gradients go, what they save. Tiny networks."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from conftest import DECODER, EMBEDDING, ENCODER, PARTS, STAGED, some_landmarks
from face_trees import write_tree
from PIL import Image
from task_checks import CPU, batch_of, check_duplicates, check_gradients, check_learning
from torch.nn import functional

from s2f import appearance_model, checkpoint, face_decoder, face_encoder, losses
from s2f.checkpoint import Card
from s2f.dataloader import Key
from s2f.errors import CheckpointError, UsageError
from s2f.face_decoder import draw_faces
from s2f.images import PREPROCESSING, Preprocessing
from s2f.landmarks import MAP_72
from s2f.pipeline import SpeechToFace
from s2f.train import TrainConfig, train
from s2f.train_faces import (
    DECODERS,
    DecoderPreset,
    FaceDecoderTask,
    FaceEncoderTask,
    PartsEncoderTask,
)
from s2f.warp import warp

CARD = Card("tiny")
FULL = dict(face_decoder.CONFIGS)
SEED = dataclasses.replace(
    STAGED, batch_norm=True, landmarks=72, landmarks_68=MAP_72, is_face=True, trunk=(48, 64)
)
SHAPE = np.rint(some_landmarks())  # whole pixels: what is done with them is exact


@pytest.fixture(autouse=True)
def tiny(presets, monkeypatch):
    """Make all networks tiny; the paper's knows identities."""
    torch.manual_seed(0)
    monkeypatch.setitem(face_decoder.CONFIGS, "seed", SEED)
    paper = dataclasses.replace(ENCODER, hidden=32, identities=8)
    monkeypatch.setitem(face_encoder.CONFIGS, "paper", paper)


def load(models, part, name="demo"):
    return checkpoint.load(models / name / f"{part}.safetensors", part)


def decoder_task(faces, models, preset="paper", start=None, encoder=None, morph=0.0, **options):
    torch.manual_seed(0)
    encoder = encoder or load(models, "face_encoder")
    options |= {"morph": morph, "device": CPU}
    return FaceDecoderTask(faces, preset, encoder, start, CARD, **options)


def parts_task(faces, models=None):
    return PartsEncoderTask(faces, "compact", CARD)


TASKS = {
    "encoder": lambda faces, models: FaceEncoderTask(faces, "paper", CARD),
    "parts": parts_task,
    "decoder": decoder_task,
    "start": lambda faces, models: decoder_task(faces, models, start=load(models, "face_decoder")),
    "no_warp": lambda faces, models: decoder_task(faces, models, no_warp=True),
}
ENCODERS = pytest.mark.parametrize("kind", ["encoder", "parts"])


@pytest.mark.parametrize("kind", TASKS)
def test_losses_teach_the_network_and_change_little_by_halves(kind, faces, models, tmp_path):
    task = TASKS[kind](faces, models)
    check_gradients(task, [task.encoder] if task.name == "decoder" else [])
    check_duplicates(task)
    check_learning(TASKS[kind](faces, models), tmp_path / "run")
    task = TASKS[kind](faces, models)
    whole = task.losses(batch := batch_of(task.val_data), augmented=False)
    with torch.autocast("cpu", torch.bfloat16):
        half = task.losses(batch, augmented=False)
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, whole[name], rtol=0.05, atol=0.05)
    losses.total(half, task.loss_weights).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.network.parameters())


@ENCODERS
def test_a_trained_encoder_starts_a_decoder(kind, faces, models, tmp_path):
    config = TrainConfig(steps=2, batch_size=2, every=1)
    task = TASKS[kind](faces, models)
    best = train(task, tmp_path / "run", config, device=CPU).best
    encoder = checkpoint.load(best, "face_encoder")
    start = checkpoint.load(best.with_name("decoder.safetensors"), "face_decoder")
    assert encoder.network.config == task.encoder.config and encoder.card.metrics
    with torch.no_grad():
        face = batch_of(task.val_data)["face"]
        drawn = draw_faces(start.network, encoder.network(face))[1]
        torch.testing.assert_close(task.sample({"face": face})[:, 224:], torch.cat([*drawn], 2))
        task.save(tmp_path / "best.safetensors", torch.float16, {})  # of both networks
        half = checkpoint.load(tmp_path / "best.safetensors", "face_encoder").network(face)
        drawer = checkpoint.load(tmp_path / "decoder.safetensors", "face_decoder").network
        task.network.eval()
        expected = task.encoder(face)
        for a, b in ((half, expected), *zip(drawer(expected), task.decoder(expected), strict=True)):
            torch.testing.assert_close(a, b, atol=0.03, rtol=0.03)
    decoder = decoder_task(faces, models, "compact", start, encoder)
    assert all(p.requires_grad for p in decoder.network.parameters())
    check_gradients(decoder, [decoder.encoder])  # through what registers the faces


@ENCODERS
def test_without_a_template_there_are_68(kind, faces, models, monkeypatch):
    for preset in ("paper", "compact"):
        dense = dataclasses.replace(face_decoder.CONFIGS[preset], landmarks=189)
        monkeypatch.setitem(face_decoder.CONFIGS, preset, dense)
    task = TASKS[kind](faces, models)
    assert task.decoder.config.landmarks == 68
    assert task.decoder.landmarks_68(torch.zeros(1, 68, 2)).shape == (1, 68, 2)


def tell(task, points):
    """Have the finder tell the same landmarks of every face."""
    points = (points[None] + 0.5) / 2 - 0.5
    task.encoder.finder.forward = lambda faces: points.expand(len(faces), -1, -1)


def test_steps_teach_the_finder_alone_and_only_by_a_photos_own_landmarks(tmp_path):
    tree = write_tree(tmp_path, 3, photos=2)
    for path in tree.glob("*/*/1_landmarks.npy"):
        path.unlink()
    task = parts_task(tree)
    finder = {id(p) for p in task.encoder.finder.parameters()}
    assert {id(p) for group in task.groups for p in group.parameters} == finder
    batch, own = batch_of(task.train_data), torch.tensor([True, False] * 3)
    assert torch.equal(batch["own"], own)
    value = task.losses(batch, augmented=True)["landmarks/huber"]
    assert (value[own] > 0).all() and not value[~own].any()
    value[~own].sum().backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in task.network.parameters())
    value.sum().backward()
    assert all((p.grad is not None) == (id(p) in finder) for p in task.network.parameters())


def test_landmarks_that_are_found_lose_nothing(faces):
    task = parts_task(faces)
    batch = batch_of(task.val_data)
    tell(task, batch["landmarks"][0])
    told = batch["landmarks"][:1].expand(3, -1, -1)
    for points, expected in ((told, 0.0), (told + 3.0, 2.5)):  # |d| - 1/2
        value = task.losses(batch | {"landmarks": points}, augmented=False)["landmarks/huber"]
        torch.testing.assert_close(value, torch.full((3,), expected), atol=1e-4, rtol=0)


def write_people(tree, people, smiles):
    """Write people who differ in two large ways and, by a smile in photo 1, in a small one."""
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


@pytest.mark.parametrize("smiles", [0.0, 12.0])
def test_a_smile_is_taken_off(tmp_path, monkeypatch, smiles):
    wide = {"embedding": 16, "axes": 3}
    for configs, config in ((appearance_model.CONFIGS, PARTS), (face_decoder.CONFIGS, DECODER)):
        monkeypatch.setitem(configs, "compact", dataclasses.replace(config, **wide))
    task = parts_task(write_people(tmp_path, 16, smiles))
    tell(task, torch.from_numpy(SHAPE))
    batch = batch_of(task.train_data)

    @torch.no_grad()
    def codes():
        """Embeddings [n 2 d] of the two photos of everybody whom was learned from."""
        return task.encoder.eval()(batch["face"]).unflatten(0, (-1, 2))

    before = codes()
    task.finish(lambda k: iter([batch] * k))
    assert task.solves and task.encoder.training
    after = codes()
    if not smiles:
        torch.testing.assert_close(after, before, atol=0.05, rtol=0.05)
        return
    smile, rest = ((both[:, 1] - both[:, 0]).norm(dim=1).mean() for both in (before, after))
    assert rest < 0.6 * smile
    # who they are stays: what people differ by is much as it was
    people, kept = (both[:, 0] - both[:, 0].mean(0) for both in (before, after))
    assert (people - kept).norm() < 0.3 * people.norm()


def test_photos_are_fitted_as_the_face_encoder_wants_them(faces, models):
    encoder = load(models, "face_encoder")
    for fit in ("squash", "letterbox"):
        encoder.network.preprocessing = Preprocessing(fit=fit)
        task = decoder_task(faces, models, "compact", encoder=encoder)
        assert (task.train_data.fit, task.val_data.fit) == (fit, fit)


def test_eight_photos_are_learned(tmp_path, models, monkeypatch):
    encoder = dataclasses.replace(ENCODER, embedding=32, hidden=32, identities=8)
    monkeypatch.setitem(face_encoder.CONFIGS, "paper", encoder)
    task = TASKS["encoder"](write_tree(tmp_path / "faces", 8, texture=True), models)
    config = TrainConfig(steps=60, batch_size=8, lr=0.02, every=60, augment=False)
    train(task, tmp_path / "run", config, device=CPU)
    task.network.train()
    with torch.no_grad():
        values = task.losses(batch_of(task.train_data), augmented=False)
    after = {name: float(value.mean()) for name, value in values.items()}
    assert after["landmarks/mse"] < 0.5  # squared pixels
    assert after["texture/mae"] < 0.02
    assert after["identity/cross_entropy"] < 0.03  # ln 8 to begin with


def test_eight_photos_are_drawn(tmp_path, models):
    torch.manual_seed(2)  # of the seeds 0 to 5, three keep to the bounds in 60 steps
    # A random encoder hardly tells photos apart: let this one give each an axis of its own.
    network = face_encoder.VGGFace(dataclasses.replace(ENCODER, hidden=64), PREPROCESSING["paper"])
    network.requires_grad_(False).eval()
    encoder = dataclasses.replace(load(models, "face_encoder"), network=network)
    tree = write_tree(tmp_path / "faces", 8)
    task = decoder_task(tree, models, encoder=encoder, no_warp=True)
    features = network.features(batch_of(task.train_data)["face"])
    hidden = functional.pad(network.fc6(features).relu().flatten(1), (0, 1), value=1.0)
    solved = torch.linalg.lstsq(hidden, 3 * torch.eye(8), driver="gelsd").solution
    network.fc7.weight.copy_(solved[:-1].T[:, :, None, None])
    network.fc7.bias.copy_(solved[-1])
    config = TrainConfig(steps=60, batch_size=8, lr=0.02, every=60, augment=False)
    result = train(task, tmp_path / "run", config, device=CPU)
    assert result.losses["landmarks/mse"] < 0.1  # squared pixels
    assert result.losses["texture/mae"] < 0.02
    assert result.losses["identity/cosine"] < 0.001


def test_each_value_of_a_decoders_preset_has_its_source():
    # Cole et al. 2017: three losses, no disturbed photos, morphs. No values are published: the
    # weights, and the share of the morphs, are ours, and `TrainConfig` has the rest.
    ours = {"landmarks/mse": 0.02, "texture/mae": 10.0, "identity/cosine": 2.0}
    assert DecoderPreset(losses=ours, training={"augment": False}, morph=0.5) == DECODERS["paper"]
    # Kacper-Pietkun/Speech-to-face, src/train: losses.py has 1, 100 and 100 times torch's means, of
    # which that of landmarks is over both coordinates; train_face_decoder.py has the rest.
    theirs = {"landmarks/mse": 1 / 2, "texture/mae": 100.0, "identity/cosine": 100.0}
    adam = {"optimizer": "adam", "lr": 1e-3, "schedule": "constant", "weight_decay": 0.0}
    training = {**adam, "clip": 0.0, "batch_size": 16, "epochs": 1000, "augment": False}
    assert DecoderPreset(losses=theirs, training=training) == DECODERS["seed"]
    assert DecoderPreset(losses=ours) == DECODERS["compact"]


@pytest.mark.parametrize("augmented", [False, True])
def test_a_drawing_is_to_be_known_as_its_photo_or_as_the_best_drawing_of_it(
    faces, models, augmented
):
    tasks = {k: decoder_task(faces, models, identity_target=k) for k in ("photo", "drawn")}
    batch, mean = batch_of(tasks["photo"].val_data), tasks["photo"].decoder.mean_landmarks
    texture = warp(batch["drawing"], batch["landmarks"], mean[None]).clamp(0, 1)
    perfect = lambda embedding: (batch["landmarks"], texture)  # noqa: E731
    drawn = warp(texture, mean[None], batch["landmarks"])
    seen = [tasks["photo"].encoder(x) for x in (drawn, functional.avg_pool2d(batch["face"], 8))]
    expected = {"photo": 1 - functional.cosine_similarity(*seen), "drawn": torch.zeros(3)}
    for name, task in tasks.items():
        task.decoder.plain = perfect
        found = task.losses(batch, augmented=augmented)["identity/cosine"]
        torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=1e-5)
    assert (expected["photo"] > 1e-5).all()


def test_a_step_is_the_one_written_by_hand(tmp_path, models):
    """Adam's first step is lr g / |g|, whatever its betas: only g is to be found."""
    task = decoder_task(write_tree(tmp_path / "faces", 4), models)
    batch, mean = batch_of(task.train_data), task.network.mean_landmarks
    before = {k: v.detach().clone() for k, v in task.network.named_parameters()}
    p = {k: v.clone().requires_grad_() for k, v in before.items()}
    with torch.no_grad():
        embedding = task.encoder(batch["face"])
        target = warp(batch["drawing"], batch["landmarks"], mean[None])
    x = (embedding @ p["trunk.0.0.weight"].T + p["trunk.0.0.bias"]).relu()
    hidden = (x @ p["landmarks.0.0.weight"].T + p["landmarks.0.0.bias"]).relu()
    offsets = hidden @ p["landmarks.1.weight"].T + p["landmarks.1.bias"]
    points = mean + offsets.view(4, 68, 2)
    maps = (x @ p["seed.0.weight"].T + p["seed.0.bias"]).view(4, 24, 28, 28)
    texture = functional.conv_transpose2d(
        maps, p["stages.0.weight"], p["stages.0.bias"], stride=8, padding=4
    ).sigmoid()
    drawn = task.encoder(warp(texture, mean[None], points))
    cosine = (drawn * embedding).sum(1) / drawn.norm(dim=1) / embedding.norm(dim=1)
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
def test_full_size(tmp_path, models, monkeypatch):
    monkeypatch.setitem(face_decoder.CONFIGS, "paper", FULL["paper"])
    network = face_encoder.VGGFace(face_encoder.VGGFaceConfig(), PREPROCESSING["serengil"])
    encoder = load(models, "face_encoder")
    encoder = dataclasses.replace(encoder, network=network.requires_grad_(False).eval())
    task = decoder_task(write_tree(tmp_path, 2), models, encoder=encoder, morph=1.0)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=1e-4)
    batch, totals = batch_of(task.train_data), []
    for _ in range(3):
        loss = losses.total(task.losses(batch, augmented=False), task.loss_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert totals[-1] < totals[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.network.parameters())


def test_morphs_are_of_near_people_in_training_only(tmp_path, models):
    tree = write_tree(tmp_path, 12, photos=2)
    (tree / "train/id2/0.jpg").write_bytes(b"broken")
    for morph in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match=r"--morph .* is no probability"):
            decoder_task(tree, models, morph=morph)
    task = decoder_task(tree, models, morph=1.0)
    assert task.train_data.neighbours.shape == (24, 10)
    assert (task.train_data.neighbours // 2 != np.arange(24)[:, None] // 2).all()
    assert any("faces are not mixed with 1 photos:" in note for note in task.notes)
    assert task.train_data[Key(0, 0)]["mix"].all() and "mix" not in task.val_data[Key(0, 0)]


def test_options_that_are_not_used_do_not_change_the_settings(faces, models):
    plain = decoder_task(faces, models).settings
    files = {"photos", "train_files", "val_files"}
    assert set(plain) == {"preset", *files, "face_encoder", "start", "identity_target"}
    used = decoder_task(faces, models, "seed", morph=0.5, no_warp=True).settings
    assert used == {**plain, "preset": "seed", "morph": 0.5, "no_warp": True}
    # as of runs that were begun when there was no choice
    before = decoder_task(faces, models, identity_target="drawn").settings
    assert before == {k: v for k, v in plain.items() if k != "identity_target"}
    for preset, morph in (("paper", 0.5), ("seed", None), ("compact", None)):
        task = decoder_task(faces, models, preset, morph=None)
        assert task.settings.get("morph") == morph and (
            "mix" in task.train_data[Key(0, 0)]
        ) == bool(morph)


@pytest.mark.parametrize("preset", ["paper", "compact", "seed", "start"])
def test_no_warp_is_so_wherever_it_is_used(preset, tmp_path, models):
    tree, model = write_tree(tmp_path / "faces", 3, texture=True), tmp_path / "model"
    start = load(models, "face_decoder") if preset == "start" else None
    name = preset.replace("start", "compact")
    task = decoder_task(tree, models, name, start, no_warp=preset != "seed")
    shutil.copytree(models / "demo", model)
    task.save(model / "face_decoder.safetensors", torch.float32, {})
    loaded = SpeechToFace.load(model, device="cpu", kinds=("face_encoder", "face_decoder"))
    decoder, embedding = loaded.model.checkpoints["face_decoder"].network, torch.randn(1, EMBEDDING)
    assert decoder.config.is_face
    torch.testing.assert_close(draw_faces(decoder, embedding), decoder(embedding))
    assert loaded.reconstruct(tree / "val/id0/0.jpg", align=False).landmarks.shape == (68, 2)


def test_networks_that_do_not_fit_are_refused(faces, models, monkeypatch):
    with pytest.raises(CheckpointError, match="different embedding spaces"):
        decoder_task(faces, models, start=load(models, "face_decoder", "other"))
    start, encoder = load(models, "face_decoder"), load(models, "face_encoder")
    start.network.config = dataclasses.replace(DECODER, landmarks=189)
    with pytest.raises(CheckpointError, match=r"draws 189 landmarks; the photos in .* have 68"):
        decoder_task(faces, models, start=start)
    encoder.network.config = dataclasses.replace(ENCODER, final_relu=True)
    with pytest.raises(CheckpointError, match="is no code that the compact decoder draws from"):
        decoder_task(faces, models, "compact", encoder=encoder)
    wider = dataclasses.replace(DECODER, embedding=2 * EMBEDDING)
    monkeypatch.setitem(face_decoder.CONFIGS, "compact", wider)
    with pytest.raises(CheckpointError, match=r"8 values, is no code .* of 16"):
        decoder_task(faces, models, "compact")
