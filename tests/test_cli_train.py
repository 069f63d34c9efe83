"""`s2f train`: its options, its runs, and everything that users give it by mistake."""

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Done, assert_refused, assert_wrong_usage, files
from conftest import noise
from published_files import SPEAKER, Resemblyzers, randomise, write_pretrained

from s2f import checkpoint, speaker_encoder, train

pytestmark = pytest.mark.usefixtures("bundled")
TRAINING = ["--steps", "2", "--batch-size", "2", "--every", "2", "--device", "cpu"]
TASKS = ["encoder", "decoder", "voice"]
Networks = dict[str, list[object]]


@pytest.fixture
def networks(models: Path, faces: Path, voices: Path, presets: None) -> Networks:
    """The arguments of each training command."""
    encoder = ["--face-encoder", models / "demo/face_encoder.safetensors"]
    decoder = ["--face-decoder", models / "demo/face_decoder.safetensors"]
    return {
        "encoder": ["train", "encoder", faces, *TRAINING],
        "decoder": ["train", "decoder", faces, *encoder, *TRAINING],
        "voice": ["train", "voice", voices, *encoder, *decoder, *TRAINING],
    }


@pytest.mark.parametrize("task", TASKS)
def test_training_tells_and_goes_on(task, networks, tmp_path):
    run, before = tmp_path / "run", files(tmp_path)
    command = [*networks[task], "-o", run]
    tried = Done(*command, "--dry-run")
    assert (tried.code, tried.err) == (0, "")
    facts = dict(line.split(None, 1) for line in tried.out.splitlines() if line[0] != " ")
    assert facts["train"].startswith("3 samples, 3 identities")
    assert facts["steps"] == "2 of 2 samples, 1.33 epochs"
    assert {"device", "parameters", "reading", "speed", "memory", "losses"} <= set(facts)
    told = Done(*command, "--dry-run", "--json").json
    assert (told["task"], told["data"]["val"]["samples"]) == (task, 3)
    assert files(tmp_path) == before  # a dry run tells, and writes nothing

    done = Done(*command)
    assert (done.code, done.out) == (0, f"{run / 'best.safetensors'}\n")
    assert f"training in {run} on cpu" in done.err and "samples/s" in done.err
    lines = [line.split() for line in done.err.splitlines()]
    told = Done(*command, "--json").json
    columns = told["loss_weights"], told["train_losses"], told["losses"]
    wanted = [[name, *(f"{values[name]:.4g}" for values in columns)] for name in told["losses"]]
    wanted += [["loss", "weight", "training", "validation"], ["written", told["best"]]]
    wanted += [["steps", "2,", "best", "at", "2"], ["samples", "4"], [str(run / "samples")]]
    assert all(line in lines for line in wanted)
    last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    assert (told["losses"], told["train_losses"]) == (last["val"], last["train"])
    assert (told["step"], told["steps"], told["samples"], told["bad"]) == (2, 2, 4, 0)

    again = Done(*command)
    assert (again.code, again.out) == (0, done.out)
    assert f"going on with {run}" in again.err and "there was nothing left to do" in again.err
    other = Done(*command, "--seed", 2, "-q")
    assert_refused(other, 2, f"{run}: holds a run with seed 0; this one has 2")
    assert_refused(Done(*command, "--no-resume"), 2, "--no-resume was given")


def test_training_takes_the_model_it_made(networks, faces, voices, speech, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    Done(*networks["encoder"], "-o", tmp_path / "e", "--half")
    encoder = shutil.move(tmp_path / "e/best.safetensors", model / "face_encoder.safetensors")
    options = [*TRAINING, "--face-encoder", encoder]
    start = tmp_path / "e/decoder.safetensors"
    options += ["--half"]
    Done("train", "decoder", faces, *options, "--start", start, "-o", tmp_path / "d")
    decoder = shutil.move(tmp_path / "d/best.safetensors", model / "face_decoder.safetensors")
    (voices / "card.json").write_text('{"licence": "CC BY 4.0"}')
    Done("train", "voice", voices, *options, "--face-decoder", decoder, "-o", tmp_path / "v")
    shutil.move(tmp_path / "v/best.safetensors", model / "voice_encoder.safetensors")
    assert Done("generate", speech, "-o", tmp_path / "f.png", "--model", model).code == 0
    card = checkpoint.load(model / "voice_encoder.safetensors", "voice_encoder").card
    assert (card.name, card.licence) == ("v", "CC BY 4.0")
    assert card.metrics and all(name.startswith("val/") for name in card.metrics)
    for kind in checkpoint.KINDS:  # what is large; biases and statistics stay whole
        assert checkpoint.verify(model / f"{kind}.safetensors").storage == "float16, float32"


def test_a_published_speaker_encoder_becomes_ears(networks, speech, tmp_path, monkeypatch):
    monkeypatch.setitem(speaker_encoder.CONFIGS, "resemblyzer", SPEAKER)
    pretrained, start, run = (tmp_path / name for name in ("p.pt", "s.safetensors", "run"))
    write_pretrained(pretrained, randomise(Resemblyzers()).state_dict())
    assert Done("convert", "resemblyzer", pretrained, "-o", start, "-q").code == 0
    command = [*networks["voice"], "--arch", "speaker", "--pretrained", start, "-o", run]
    told = Done(*command, "--dry-run", "--json").json
    (stage,) = told["stages"]
    assert stage["trained"] == 8 * (12 + 1)  # a linear head
    done = Done(*command)
    assert (done.code, done.out) == (0, f"{run / 'best.safetensors'}\n")
    ears = ("--voice-encoder", run / "best.safetensors")
    assert Done("generate", speech, "-o", tmp_path / "f.png", *ears).code == 0
    licence = checkpoint.load(run / "best.safetensors", "voice_encoder").card.licence
    assert "Resemblyzer, copyright 2019 Resemble.AI, Apache-2.0" in licence
    more = "--hidden 5 --unfreeze 2 --head-steps 3 --steps 5 --dry-run --json".split()
    told = Done(*command[:-1], tmp_path / "b", *more).json
    assert [stage["start"] for stage in told["stages"]] == [0, 3]
    assert told["stages"][0]["trained"] == 12 * 5 + 5 + 5 * 8 + 8
    assert told["stages"][1]["trained"] == told["parameters"]
    assert_refused(Done(*command[:-1], tmp_path / "c", "--preset", "seed"), 2, "there is none of")
    assert_refused(Done(*command[:-3], pretrained, "-o", tmp_path / "c"), 4, pretrained)


@pytest.mark.parametrize("task", ["voice", "decoder"])
def test_a_run_that_starts_as_another_goes_on_without_its_file(task, networks, models, tmp_path):
    name = {"voice": "voice_encoder", "decoder": "face_decoder"}[task]
    file, run = tmp_path / "mine.safetensors", tmp_path / "run"
    shutil.copy(models / f"demo/{name}.safetensors", file)
    command = [*networks[task], "-o", run]
    key = "init" if task == "voice" else "start"
    done = Done(*command, "--init", file)
    assert done.code == 0, done.err
    assert (f"start as those of {file}; none are new" in done.err) == (task == "voice")
    assert json.loads((run / "config.json").read_text())[key] == checkpoint.verify(file).sha256
    card = checkpoint.load(run / "best.safetensors", name).card
    assert card.data == "Its weights started as those of tiny." and card.licence == "none"
    file.unlink()
    (run / "last/state.safetensors").unlink()  # killed before it was saved
    before = (run / "best.safetensors").read_bytes()
    (run / "history.jsonl").unlink()
    for words in ((), ("--init", file)):
        again = Done(*command, *words)
        assert (again.code, again.out) == (0, done.out)
        assert (run / "best.safetensors").read_bytes() == before
    other = shutil.copy(models / f"other/{name}.safetensors", file)
    refused = Done(*command, "--init", other, "-q")
    assert refused.code == (2 if task == "voice" else 4)
    assert f"holds a run with {key} " in refused.err or "different embedding spaces" in refused.err


def test_a_dry_run_names_what_is_broken(networks, faces, tmp_path):
    (tmp_path / "config.json").write_text('{"task": "encoder"}')
    command = [*networks["encoder"], "-o", tmp_path, "--no-resume", "--batch-size", 3, "--dry-run"]
    photo = faces / "train/id1/a.jpg"
    photo.write_bytes(photo.read_bytes()[:500])
    assert_refused(Done(*command), 3, photo)
    assert f"left out      {photo}" in Done(*command, "--max-bad", 1).out


def test_tensorboard_is_written_beside_the_run_or_its_lack_told(networks, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="pip install 's2f[train]'")
    command = [*networks["encoder"], "-q", "--tensorboard", "-o"]
    assert Done(*command, tmp_path / "run").code == 0
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = Done(*command, tmp_path / "other")
    assert_refused(done, 5, "--tensorboard needs TensorBoard")
    assert "cure: pip install 's2f[train]'" in done.err
    assert not (tmp_path / "other").exists()


def test_options_reach_the_training(networks, tmp_path):
    said = "--lr 0.01 --schedule paper --weight-decay 0.5 --seed 7 --half --augment none "
    said += "--loss-weight embedding/l2=4 --betas 0.5 0.99 --eps 1e-4 --clip 2 --accumulate 1 "
    said += "--optimizer adam --patience 3 --max-bad 1 --precision bf16 --pairing all-to-one "
    said += "--per-identity 1 --deterministic --val-samples 2 --best-by r10"
    Done(*networks["voice"], *said.split(), "-o", tmp_path / "run")
    Done(*networks["voice"], "-o", tmp_path / "plain")
    seen, plain = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("run", "plain"))
    wanted = {"task": "voice", "steps": 2, "batch_size": 2, "every": 2, "lr": 0.01, "half": True}
    wanted |= {"schedule": "paper", "weight_decay": 0.5, "seed": 7, "augment": False, "clip": 2}
    wanted |= {"betas": [0.5, 0.99], "eps": 1e-4, "optimizer": "adam", "patience": 3}
    wanted |= {"precision": "bf16", "deterministic": True, "pairing": "all-to-one"}
    wanted |= {"val_samples": 2, "best_by": "r10"}
    wanted |= {"per_identity": 1, "loss_weights": {"embedding/mse": 1.0, "embedding/l2": 4.0}}
    assert {key: seen[key] for key in wanted} == wanted
    told = Done(*networks["voice"], "-o", tmp_path / "plain")
    assert "recall   R@1 " in told.err and "R@10 100.0%, among 3 people" in told.err
    assert set(Done(*networks["voice"], "-o", tmp_path / "plain", "--json").json["recall"]) == {
        *("people", "samples"), *train.RECALLS
    }  # fmt: skip
    for name in ("lr", "schedule", "weight_decay", "seed", "augment", "half", "clip"):
        assert plain[name] == getattr(train.TrainConfig(), name)


def test_epochs_and_losses_reach_it_too(networks, tmp_path):
    line = [word for word in networks["voice"] if word not in ("--steps", "2")]
    line += ["--batch-size", 2, "--epochs", 1.5, "--loss-weights", "published"]
    done = Done(*line, "--loss-weight", "decoder/l1=4", "-o", tmp_path / "run", "--json")
    weights = {"decoder/l1": 4.0, "embedding/l2": 0.025}
    assert done.json["loss_weights"] == weights and set(done.json["losses"]) == set(weights)
    assert done.json["steps"] == 3  # 3 recordings, 2 a step
    assert json.loads((tmp_path / "run/config.json").read_text())["loss_weights"] == weights


def test_calibrated_weights_are_told_and_kept(networks, tmp_path):
    options = ["--loss-weights", "auto", "--calibrate-at", 1, "--contrastive", 0.3]
    command = [*networks["voice"], *options, "-o", tmp_path / "run"]
    told = Done(*command).err
    assert "loss weights from step 1 on: embedding/mse=1,embedding/l2=" in told
    weights = Done(*command, "--json").json["loss_weights"]  # of the stored run
    assert weights["embedding/mse"] == 1.0 and weights["embedding/l2"] not in (0.1, 1.0)
    assert weights["contrastive/infonce"] == 0.3


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ("", 0),
        ("--calibrate-at 1", 1),
        ("--loss-weights published", None),
        ("--loss-weight embedding/l2=0.025", None),
    ],
)
def test_the_papers_preset_weighs_as_the_paper_found_its_weights(networks, tmp_path, options, at):
    command = [*networks["voice"], "--preset", "paper", *options.split(), "-o", tmp_path / "run"]
    told = Done(*command)
    seen = json.loads((tmp_path / "run/config.json").read_text())
    assert (seen["calibrate_at"], seen["clip"], seen["eps"]) == (at, 0.0, 1e-4)
    assert seen["loss_weights"] == {"decoder/l1": 1.0, "embedding/l2": 0.025}  # until then
    assert (f"loss weights from step {at} on: decoder/l1=1,embedding/l2=" in told.err) == (
        at is not None
    )
    state = Done(*command, "--json").json["loss_weights"]  # of what is stored
    assert (state["embedding/l2"] == 0.025) == (at is None) and state["decoder/l1"] == 1.0


def test_a_step_beyond_the_usual_number_is_no_mistake_where_epochs_make_more(networks, tmp_path):
    line = [word for word in networks["voice"] if word not in ("--steps", "2")]
    line += ["--batch-size", 2, "--epochs", 10_000, "--loss-weights", "auto", "--dry-run", "--json"]
    assert Done(*line, "--calibrate-at", 14_999, "-o", tmp_path / "run").json["steps"] == 15_000


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--loss-weights auto --calibrate-at 2", "weights calibrated at step 2 of 2 are never"),
        ("--calibrate-at 1", "--calibrate-at 1: there is nothing to calibrate"),
        ("--loss-weight texture/mse=1", "wanted one of embedding/l2, embedding/mse"),
        ("--loss-weight texture/mae=nan", "is not NAME=VALUE with a value of 0 or more"),
        ("--epochs 1", "--epochs and --steps say the same"),
        ("--optimizer sgd", "optimizer 'sgd': wanted one of adamw, adam"),
        ("-o card.json/run", "card.json/run"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run(networks, tmp_path, monkeypatch, options, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.json").touch()
    command = [*networks["voice"], "-o", "run", *options.split()]
    assert_refused(Done(*command, "-q"), 2, why)
    told = Done(*command, "--json")
    assert (told.code, told.json["error"][-5:]) == (2, "Error")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_says_so_and_goes_on(number, networks, tmp_path, monkeypatch):
    def stop(step: int, config: train.TrainConfig) -> float:
        signal.raise_signal(number)
        return config.lr

    command = [*networks["encoder"], "-q", "-o", tmp_path / "run"]
    with monkeypatch.context() as patched:
        patched.setattr(train, "lr_at", stop)
        done = Done(*command)
    assert_refused(done, 130, tmp_path / "run")
    assert "saved" in done.err
    assert Done(*command).code == 0


def test_the_help_says_what_a_paper_does_not():
    told = {task: " ".join(Done("train", task, "--help").out.split()) for task in TASKS}
    for task, words in {
        "decoder": "Cole et al. 2017 as far as it is published|Not published, as far as we know, "
        "and ours: the weights of the losses, the share of morphs, optimizer, learning rate, batch",
        "voice": "recipe of Oh et al. 2019|batches of 8, 3 epochs, no clipping|not published, "
        "Adam's second beta",
    }.items():
        assert all(part in told[task] for part in words.split("|")), told[task]


USAGE = (
    "--preset huge,--steps 0,--loss-weights published,--clip -1,--betas 0.9,--patience 0,--epochs 0"
)


@pytest.mark.parametrize("options", USAGE.split(","))
def test_wrong_usage_exits_2(options):
    assert_wrong_usage(Done("train", "encoder", "data", *options.split()))


def test_all_waveforms_of_a_tree_are_looked_at_before_the_first_step(networks, voices, tmp_path):
    """An int16 recording saved as float, one that is all zero, an .npz: in both splits."""
    command = [*networks["voice"], "-o", tmp_path / "run"]
    bad = [voices / f"{name}/audios/b.npy" for name in ("train/id0", "train/id2", "val/id1")]
    np.save(bad[0], 20_000 * noise(1))
    np.save(bad[1], np.zeros(16_000, np.int16))
    with bad[2].open("wb") as file:
        np.savez(file, noise(1))
    for more in ((), ("--dry-run",), ("--max-bad", 2)):
        done = Done(*command, *more, "-q")
        first, *lines, cure = done.err.splitlines()
        assert (done.code, done.out) == (3, "")
        assert first == "error: of the waveforms to be trained on 3 cannot be used"
        assert [line.partition(": ")[0] for line in lines] == [f"  {path}" for path in bad]
        assert cure.startswith("cure: divide by 32768") and cure.endswith("--max-bad 3")
        assert not (tmp_path / "run").exists()
    assert len(Done(*command, "--json").json["details"]) == 3
    assert Done(*command, "--max-bad", 3).code == 0
