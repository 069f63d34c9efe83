"""The task on voices: what it learns, and where its gradients go. Tiny networks and trees."""

from pathlib import Path

import pytest
import torch
from task_checks import CPU, check_duplicates, check_gradients, check_learning

from s2f import checkpoint, layout, voice_task
from s2f.checkpoint import Card
from s2f.errors import CheckpointError, DatasetError
from s2f.face_encoder import Preprocessing
from s2f.images import load_face
from s2f.pack import pack
from s2f.packed import read_index
from s2f.prep_embeddings import embeddings_step
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
