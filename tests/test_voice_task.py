"""The task on voices: what it learns, and where its gradients go. Tiny networks and trees."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from task_checks import CPU, check_duplicates, check_gradients, check_learning

from s2f import balance, checkpoint, layout, losses, voice_task
from s2f.checkpoint import Card
from s2f.errors import CheckpointError, DatasetError, UsageError
from s2f.face_encoder import Preprocessing, VGGFace
from s2f.images import load_face
from s2f.pack import pack
from s2f.packed import read_index
from s2f.prep_embeddings import embeddings_step
from s2f.train import TrainConfig, TrainResult, _sample_batch, _to, train

pytestmark = pytest.mark.usefixtures("presets")


def make(voices: Path, models: Path, **options: object) -> voice_task.VoiceEncoderTask:
    encoder = checkpoint.load(models / "demo/face_encoder.safetensors", "face_encoder")
    decoder = checkpoint.load(models / "demo/face_decoder.safetensors", "face_decoder")
    torch.manual_seed(0)
    return voice_task.VoiceEncoderTask(
        *(voices, "compact", encoder, decoder, Card("tiny")),
        device=CPU,
        **options,  # type: ignore[arg-type]
    )


def test_every_loss_reaches_the_network_and_no_frozen_one(voices: Path, models: Path) -> None:
    task = make(voices, models)
    check_gradients(task, [task.encoder, task.decoder])


@pytest.fixture
def with_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every face encoder that is loaded identity logits, random ones."""
    load = checkpoint.load

    def loaded(path: Path, kind: str) -> checkpoint.Checkpoint:
        found = load(path, kind)
        if isinstance(found.network, VGGFace):
            torch.manual_seed(5)
            network = found.network
            network.config = dataclasses.replace(network.config, identities=6)
            network.fc8 = torch.nn.Conv2d(network.config.embedding, 6, 1)
            network.fc8.requires_grad_(False)
        return found

    monkeypatch.setattr(checkpoint, "load", loaded)


class Killed(Exception):
    pass


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


def test_duplicating_a_batch_does_not_change_its_contrastive_loss(
    voices: Path, models: Path
) -> None:
    task = make(voices, models, contrastive=0.5)
    batch = _sample_batch(task, CPU)
    task.network.eval()  # BatchNorm keeps its means; the task still trains
    task.network.training = True
    once = task.losses(batch, augmented=False)["contrastive/infonce"]
    twice = task.losses({k: torch.cat([v, v]) for k, v in batch.items()}, augmented=False)
    assert (once > 0).all()
    torch.testing.assert_close(twice["contrastive/infonce"], once.repeat(2))


def test_the_contrastive_loss_reaches_the_network_and_is_none_of_validation(
    voices: Path, models: Path
) -> None:
    task = make(voices, models, contrastive=0.5)
    assert task.loss_weights == {
        "embedding/mse": 1.0,
        "embedding/l2": 0.1,
        "contrastive/infonce": 0.5,
    }
    check_gradients(task, [task.encoder, task.decoder])
    check_duplicates(task)
    task.network.eval()
    assert "contrastive/infonce" not in task.losses(_sample_batch(task, CPU), augmented=False)


def test_one_identity_has_nothing_to_contrast(voices: Path, models: Path) -> None:
    for k in (1, 2):
        shutil.rmtree(voices / f"train/id{k}")
    make(voices, models)
    with pytest.raises(DatasetError, match="train: has one identity: nothing to contrast"):
        make(voices, models, contrastive=1.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_contrastive_weight_is_above_0(voices: Path, models: Path, weight: float) -> None:
    with pytest.raises(UsageError, match=r"--contrastive .*: is no weight above 0"):
        make(voices, models, contrastive=weight)


@pytest.mark.usefixtures("with_identities")
def test_the_sets_are_sets_of_this_tasks_losses(voices: Path, models: Path) -> None:
    task = make(voices, models, loss_weights="seed-ast")
    assert task.loss_weights == {
        "decoder/l1": 50 / 16,  # the tiny decoder's first layer is 16 wide
        "embedding/l2": 30.0,
        "encoder/distill": 2.0,
    }
    check_gradients(task, [task.encoder, task.decoder])


@pytest.mark.usefixtures("with_identities")
def test_calibrated_terms_have_equally_long_gradients(voices: Path, models: Path) -> None:
    task = make(voices, models, loss_weights="paper", contrastive=1.0)
    values = task.losses(_sample_batch(task, CPU), augmented=True)
    before = balance.gradient_norms(values, task.predicted)
    assert max(before.values()) > 2 * min(before.values())
    weights = balance.calibrate(task, values)
    assert list(weights) == ["decoder/l1", "embedding/l2", "encoder/distill"]
    assert weights["decoder/l1"] == 1.0
    weighted = {name: weight * values[name] for name, weight in weights.items()}
    norms = balance.gradient_norms(weighted, task.predicted)
    assert list(norms.values()) == pytest.approx(3 * [before["decoder/l1"]], rel=1e-4)
    losses.total(values, weights | {"contrastive/infonce": 1.0}).backward()  # the graph is there


@pytest.mark.parametrize("killed", [3, 4, 5, 7])
@pytest.mark.usefixtures("with_identities", "as_paper")
def test_a_run_killed_around_its_calibration_ends_with_the_same_bytes(
    voices: Path, models: Path, tmp_path: Path, killed: int
) -> None:
    config = TrainConfig(steps=9, batch_size=3, every=3, calibrate_at=4)
    notes: list[str] = []

    def run(name: str, stop: int | None) -> TrainResult:
        def kill(done: int, total: int, what: str) -> None:
            if done == stop:
                raise Killed

        task = make(voices, models, loss_weights="auto", contrastive=0.5)
        return train(task, tmp_path / name, config, device=CPU, progress=kill, note=notes.append)

    whole = run("whole", None)
    assert len(notes) == 1 and notes[0].startswith("loss weights from step 4 on: decoder/l1=1,")
    with pytest.raises(Killed):
        run("killed", killed)
    again = run("killed", None)
    assert again.loss_weights == whole.loss_weights
    for file in ("best.safetensors", "last/state.safetensors", "history.jsonl", "config.json"):
        expected = (tmp_path / "whole" / file).read_bytes()
        assert (tmp_path / "killed" / file).read_bytes() == expected, file
    lines = [json.loads(x) for x in (tmp_path / "whole/history.jsonl").read_text().splitlines()]
    assert "loss_weights" not in lines[0] and whole.step > 4
    stored = {k: v for k, v in whole.loss_weights.items() if k != "contrastive/infonce"}
    assert lines[1]["loss_weights"] == lines[2]["loss_weights"] == stored
    assert whole.loss_weights["contrastive/infonce"] == 0.5


def test_the_task_learns_its_few_examples(voices: Path, models: Path, tmp_path: Path) -> None:
    check_learning(make(voices, models), tmp_path / "run")


def test_faces_are_fitted_as_the_face_encoder_wants_them(
    voices: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []

    def load(path: Path, *, fit: str) -> torch.Tensor:
        fits.append(fit)
        return load_face(path, fit=fit)

    monkeypatch.setattr(voice_task, "load_face", load)
    task = make(voices, models)
    task.encoder.preprocessing = Preprocessing(fit="letterbox")
    task._voices(voices / "train", CPU)
    assert set(fits[:-3]) == {"squash"} and fits[-3:] == 3 * ["letterbox"]


def test_a_voice_is_given_the_embedding_of_its_own_face(voices: Path, models: Path) -> None:
    task = make(voices, models)
    item = task.train_data[(2, 0)]
    face = checkpoint.load_model(models / "demo", ("face_encoder",)).checkpoints["face_encoder"]
    photo = load_face(voices / "train/id2/images/a.jpg")[None]
    expected = face.network(_to({"x": photo}, CPU)["x"])[0]
    torch.testing.assert_close(item["embedding"], expected)


@pytest.fixture
def pack_of(voices: Path, models: Path, tmp_path: Path) -> Path:
    """The voice tree as a pack."""
    encoder = models / "demo/face_encoder.safetensors"
    step = embeddings_step(encoder, "cpu")
    for photo in sorted(voices.rglob("*.jpg")):
        (value,) = step.net([step.work(photo, photo)])
        step.save(value, layout.beside(photo.with_suffix(""), layout.EMBEDDING))
    pack(voices, tmp_path / "pack", face_encoder=encoder, clip_seconds=1, workers=1)
    return tmp_path / "pack"


def test_a_pack_gives_what_its_tree_gives(voices: Path, pack_of: Path, models: Path) -> None:
    packed, tree = make(pack_of, models), make(voices, models)
    for key in ((0, 0), (2, 5)):
        mine, theirs = packed.val_data[key], tree.val_data[key]
        # Rounded to 16 bits: the waveform by half a step, the embedding by half of 2^-10.
        torch.testing.assert_close(mine["waveform"], theirs["waveform"], rtol=0, atol=2**-16)
        torch.testing.assert_close(mine["embedding"], theirs["embedding"], rtol=2**-10, atol=1e-5)


def test_the_task_learns_from_a_pack(pack_of: Path, models: Path, tmp_path: Path) -> None:
    check_learning(make(pack_of, models), tmp_path / "run")


def test_a_run_knows_its_pack_by_the_hash_of_its_index(
    voices: Path, pack_of: Path, models: Path
) -> None:
    settings = make(pack_of, models).settings
    assert settings["train_pack"] == read_index(pack_of / "train").sha256
    assert settings["val_pack"] == read_index(pack_of / "val").sha256
    assert not any("pack" in name for name in make(voices, models).settings)


def test_a_pack_of_another_face_encoder_is_refused(pack_of: Path, models: Path) -> None:
    encoder, decoder = (
        checkpoint.load(models / f"other/{kind}.safetensors", kind)
        for kind in ("face_encoder", "face_decoder")
    )
    with pytest.raises(CheckpointError, match="its embeddings are of the space"):
        voice_task.VoiceEncoderTask(pack_of, "compact", encoder, decoder, Card("tiny"), device=CPU)


def test_a_split_that_was_not_finished_is_no_tree(pack_of: Path, models: Path) -> None:
    (pack_of / "val/index.json").unlink()
    with pytest.raises(DatasetError, match="it was not finished"):
        make(pack_of, models)
