"""`s2f train`: its options, its runs, and everything that users give it by mistake."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
from command_line import Done, assert_refused, assert_wrong_usage, files

from s2f import checkpoint, train

pytestmark = pytest.mark.usefixtures("bundled")
TRAINING = ["--steps", "2", "--batch-size", "2", "--every", "2", "--device", "cpu"]


@pytest.fixture
def networks(models: Path, faces: Path, voices: Path, presets: None) -> dict[str, list[object]]:
    """The arguments of each training command."""
    encoder = ["--face-encoder", models / "demo/face_encoder.safetensors"]
    decoder = ["--face-decoder", models / "demo/face_decoder.safetensors"]
    return {
        "encoder": ["encoder", faces],
        "decoder": ["decoder", faces, *encoder],
        "voice": ["voice", voices, *encoder, *decoder],
    }


@pytest.mark.parametrize("task", ["encoder", "decoder", "voice"])
def test_training_prints_where_the_best_is_and_goes_on_when_asked_again(
    task: str, networks: dict[str, list[object]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = Done("train", *networks[task], *TRAINING, "-o", run)
    assert (done.code, done.out) == (0, f"{run / 'best.safetensors'}\n")
    assert f"training in {run} on cpu" in done.err
    assert (run / "best.safetensors").is_file()
    again = Done("train", *networks[task], *TRAINING, "-o", run)
    assert (again.code, again.out) == (0, done.out)
    assert f"going on with {run}" in again.err


def test_training_takes_the_model_it_made(
    networks: dict[str, list[object]], voices: Path, speech: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    faces = networks["encoder"][1]
    Done("train", "encoder", faces, *TRAINING, "-o", tmp_path / "e", "--half")
    encoder = shutil.move(tmp_path / "e/best.safetensors", model / "face_encoder.safetensors")
    start = tmp_path / "e/decoder.safetensors"
    options = [*TRAINING, "--face-encoder", encoder]
    Done("train", "decoder", faces, *options, "--start", start, "-o", tmp_path / "d")
    decoder = shutil.move(tmp_path / "d/best.safetensors", model / "face_decoder.safetensors")
    Done("train", "voice", voices, *options, "--face-decoder", decoder, "-o", tmp_path / "v")
    shutil.move(tmp_path / "v/best.safetensors", model / "voice_encoder.safetensors")
    assert Done("generate", speech, "-o", tmp_path / "f.png", "--model", model).code == 0


def test_training_tells_json_its_losses(networks: dict[str, list[object]], tmp_path: Path) -> None:
    done = Done("train", *networks["voice"], *TRAINING, "-o", tmp_path / "run", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["best"] == str(tmp_path / "run/best.safetensors")
    assert done.json["step"] == 2
    assert set(done.json["losses"]) == {"embedding/mse", "embedding/l2"}


def test_training_ends_with_tables_for_people(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["train", *networks["voice"], *TRAINING, "-o", run]
    lines = [line.split() for line in Done(*command).err.splitlines()]
    assert ["steps", "2,", "best", "at", "2"] in lines
    assert ["samples", "4"] in lines
    (time,) = [line for line in lines if line[:1] == ["time"]]
    assert time[-1] == "samples/s"
    assert ["loss", "weight", "training", "validation"] in lines
    solved = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    for name, weight in (("embedding/mse", "1"), ("embedding/l2", "0.1")):
        losses = [f"{solved[part][name]:.4g}" for part in ("train", "val")]
        assert [name, weight, *losses] in lines
    assert ["written", str(run / "best.safetensors")] in lines and [str(run / "samples")] in lines
    again = Done(*command).err
    assert "there was nothing left to do" in again and "samples/s" not in again


def test_json_has_what_the_tables_have(networks: dict[str, list[object]], tmp_path: Path) -> None:
    done = Done("train", *networks["voice"], *TRAINING, "-o", tmp_path / "run", "--json").json
    assert (done["steps"], done["samples"], done["bad"]) == (2, 4, 0)
    assert done["seconds"] > 0 and 0 < done["samples_per_second"] <= 4 / done["seconds"] * 1.001
    assert set(done["train_losses"]) == set(done["losses"]) == set(done["loss_weights"])


@pytest.mark.parametrize("task", ["encoder", "decoder", "voice"])
def test_a_dry_run_tells_and_writes_nothing(
    task: str, networks: dict[str, list[object]], tmp_path: Path
) -> None:
    before = files(tmp_path)
    command = ["train", *networks[task], *TRAINING, "-o", tmp_path / "run", "--dry-run"]
    done = Done(*command)
    assert (done.code, done.err) == (0, "")
    told = dict(line.split(None, 1) for line in done.out.splitlines() if line[0] != " ")
    assert told["train"].startswith("3 samples, 3 identities")
    assert told["steps"] == "2 of 2 samples, 1.33 epochs"
    assert {"device", "parameters", "reading", "speed", "memory", "losses"} <= set(told)
    assert files(tmp_path) == before
    told = Done(*command, "--json").json
    assert told["task"] == task and told["device"] == "cpu"
    assert told["data"]["val"]["samples"] == 3 and told["memory"]["weights"] > 0
    assert files(tmp_path) == before


def test_a_dry_run_is_not_hindered_by_a_run_that_is_there(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    command = ["train", *networks["encoder"], *TRAINING, "-o", tmp_path / "run"]
    assert Done(*command).code == 0
    before = {path: path.read_bytes() for path in files(tmp_path / "run")}
    assert Done(*command, "--seed", 9, "--no-resume", "--dry-run").code == 0
    assert {path: path.read_bytes() for path in files(tmp_path / "run")} == before


def test_a_dry_run_names_a_broken_item(
    networks: dict[str, list[object]], faces: Path, tmp_path: Path
) -> None:
    command = ["train", *networks["encoder"], *TRAINING, "-o", tmp_path / "run", "--dry-run"]
    command += ["--preset", "compact", "--batch-size", "3"]
    photo = faces / "train/id1/a.jpg"
    photo.write_bytes(photo.read_bytes()[:500])
    done = Done(*command, "-q")
    assert_refused(done, 3, photo)


def test_tensorboard_is_written_beside_the_run(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="pip install 's2f[train]'")
    command = ["train", *networks["encoder"], *TRAINING, "-o", tmp_path / "run"]
    assert Done(*command, "--tensorboard").code == 0
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    assert Done(*command).code == 0  # the same run without is the same run


def test_tensorboard_that_is_not_there_is_told_before_there_is_a_run(
    networks: dict[str, list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    command = ["train", *networks["encoder"], *TRAINING, "-o", tmp_path / "run", "-q"]
    done = Done(*command, "--tensorboard")
    assert_refused(done, 5, "--tensorboard needs TensorBoard")
    assert "cure: pip install 's2f[train]'" in done.err
    assert not (tmp_path / "run").exists()


def test_the_same_seed_trains_the_same_network(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    runs = [tmp_path / name for name in "ab"]
    for run in runs:
        Done("train", *networks["voice"], *TRAINING, "--seed", 3, "-o", run)
    states = [(run / "last/state.safetensors").read_bytes() for run in runs]
    assert states[0] == states[1]


def test_options_reach_the_training(networks: dict[str, list[object]], tmp_path: Path) -> None:
    options: list[object] = ["--lr", 0.01, "--schedule", "paper", "--weight-decay", 0.5]
    options += ["--seed", 7, "--half", "--augment", "none", "--loss-weight", "embedding/l2=4"]
    options += ["--betas", 0.5, 0.99, "--eps", 1e-4, "--clip", 2, "--accumulate", 1]
    options += ["--optimizer", "adam", "--patience", 3, "--max-bad", 1, "--precision", "bf16"]
    options += ["--pairing", "all-to-one", "--per-identity", 1, "--deterministic"]
    Done("train", *networks["voice"], *TRAINING, *options, "-o", tmp_path / "run")
    seen = json.loads((tmp_path / "run/config.json").read_text())
    wanted = {
        "task": "voice",
        "steps": 2,
        "batch_size": 2,
        "every": 2,
        "lr": 0.01,
        "schedule": "paper",
        "weight_decay": 0.5,
        "seed": 7,
        "half": True,
        "augment": False,
        "betas": [0.5, 0.99],
        "eps": 1e-4,
        "clip": 2,
        "optimizer": "adam",
        "patience": 3,
        "precision": "bf16",
        "deterministic": True,
        "pairing": "all-to-one",
        "per_identity": 1,
    }
    assert {key: seen[key] for key in wanted} == wanted
    assert seen["loss_weights"] == {"embedding/mse": 1.0, "embedding/l2": 4.0}


def test_calibrated_weights_are_told_and_kept(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    options = ["--loss-weights", "auto", "--calibrate-at", 1, "--contrastive", 0.3]
    command = ["train", *networks["voice"], *TRAINING, *options, "-o", tmp_path / "run"]
    done = Done(*command)
    assert done.code == 0
    assert "loss weights from step 1 on: embedding/mse=1,embedding/l2=" in done.err
    assert "contrastive/infonce=0.3" in done.err
    weights = Done(*command, "--json").json["loss_weights"]  # of the stored run
    line, solved = (tmp_path / "run/history.jsonl").read_text().splitlines()
    assert json.loads(solved)["solved"] and "solved" not in json.loads(line)
    assert json.loads(line)["loss_weights"] | {"contrastive/infonce": 0.3} == weights
    assert weights["embedding/mse"] == 1.0 and weights["embedding/l2"] not in (0.1, 1.0)


def test_auto_calibrates_at_the_papers_step(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    options = ["--loss-weights", "auto", "-o", tmp_path / "run"]
    done = Done("train", *networks["voice"], *TRAINING, *options)
    assert_refused(done, 2, "weights calibrated at step 1000 of 2 are never used")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        (["paper"], {"decoder/l1": 1.0, "embedding/l2": 0.025}),
        (["decoder/l1=2,embedding/mse=3"], {"decoder/l1": 2.0, "embedding/mse": 3.0}),
        (
            ["paper", "--loss-weight", "decoder/l1=4"],
            {"decoder/l1": 4.0, "embedding/l2": 0.025},
        ),
    ],
)
def test_the_choice_of_losses_reaches_the_training(
    networks: dict[str, list[object]],
    tmp_path: Path,
    options: list[str],
    weights: dict[str, float],
) -> None:
    done = Done(
        *("train", *networks["voice"], *TRAINING),
        *("--loss-weights", *options, "-o", tmp_path / "run", "--json"),
    )
    assert done.json["loss_weights"] == weights
    assert set(done.json["losses"]) == set(weights)
    assert json.loads((tmp_path / "run/config.json").read_text())["loss_weights"] == weights


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--loss-weights", "papers"], "is none of auto, paper, seed, seed-ast"),
        (["--loss-weights", "a=1"], "wanted some of decoder/l1, embedding/l2, embedding/mse"),
        (["--calibrate-at", "1"], "--calibrate-at 1: there is nothing to calibrate"),
        (["--loss-weights", "paper", "--calibrate-at", "1"], "there is nothing to calibrate"),
        (
            ["--loss-weights", "auto", "--loss-weight", "embedding/l2=1"],
            "--loss-weights auto finds the weights itself",
        ),
        (["--contrastive", "0"], "--contrastive 0.0: is no weight above 0"),
        (["--contrastive", "1", "--batch-size", "1"], "a batch of 1 has nothing to contrast"),
    ],
)
def test_weights_that_cannot_be_are_refused_before_there_is_a_run(
    networks: dict[str, list[object]], tmp_path: Path, options: list[str], why: str
) -> None:
    done = Done("train", *networks["voice"], *TRAINING, *options, "-o", tmp_path / "run", "-q")
    assert_refused(done, 2, why)
    assert not (tmp_path / "run").exists()


def test_options_that_are_not_given_are_the_trainings_own(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    Done("train", *networks["voice"], *TRAINING, "-o", tmp_path / "run")
    seen = json.loads((tmp_path / "run/config.json").read_text())
    default = train.TrainConfig()
    for name in ("lr", "schedule", "weight_decay", "seed", "augment", "half", "clip"):
        assert seen[name] == getattr(default, name)


def test_the_card_of_the_data_goes_into_the_checkpoint(
    networks: dict[str, list[object]], voices: Path, tmp_path: Path
) -> None:
    (voices / "card.json").write_text('{"licence": "CC BY 4.0"}')
    Done("train", *networks["voice"], *TRAINING, "-o", tmp_path / "run")
    card = checkpoint.load(tmp_path / "run/best.safetensors", "voice_encoder").card
    assert (card.name, card.licence) == ("run", "CC BY 4.0")


def test_an_unknown_loss_is_refused_with_the_known_ones(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    options = ["--loss-weight", "texture/mse=1", "-q", "-o", tmp_path / "run"]
    done = Done("train", *networks["encoder"], *TRAINING, *options)
    assert_refused(done, 2, "texture/mse")
    assert "wanted one of landmarks/huber" in done.err
    assert not (tmp_path / "run").exists()


def test_another_config_in_the_same_run_is_refused_with_the_difference(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    command = ["train", *networks["encoder"], *TRAINING, "-o", tmp_path / "run"]
    Done(*command, "--seed", 1)
    done = Done(*command, "--seed", 2, "--quiet")
    assert_refused(done, 2, tmp_path / "run")
    assert "seed 1; this one has 2" in done.err


def test_networks_of_different_spaces_are_refused(
    networks: dict[str, list[object]], models: Path, tmp_path: Path
) -> None:
    other = models / "other/face_decoder.safetensors"
    command = ["train", *networks["voice"][:-1], other, "-o", tmp_path / "run"]
    assert_refused(Done(*command, *TRAINING), 4, other)


def test_a_decoder_start_of_another_space_is_refused(
    networks: dict[str, list[object]], models: Path, tmp_path: Path
) -> None:
    other = models / "other/face_decoder.safetensors"
    done = Done("train", *networks["decoder"], "--start", other, *TRAINING, "-o", tmp_path / "run")
    assert_refused(done, 4, other)


def test_a_tree_without_splits_is_refused(
    networks: dict[str, list[object]], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = Done("train", "encoder", tmp_path / "empty", "-o", tmp_path / "run")
    assert_refused(done, 3, tmp_path / "empty")
    assert not (tmp_path / "run").exists()


def test_a_run_below_a_file_is_refused(networks: dict[str, list[object]], tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    run = tmp_path / "file.txt/run"
    assert_refused(Done("train", *networks["encoder"], *TRAINING, "-q", "-o", run), 2, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_and_says_so_and_goes_on(
    number: signal.Signals,
    networks: dict[str, list[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lr_at = train.lr_at

    def stop(step: int, config: train.TrainConfig) -> float:
        signal.raise_signal(number)
        return lr_at(step, config)

    command = ["train", *networks["encoder"], *TRAINING, "-q", "-o", tmp_path / "run"]
    monkeypatch.setattr(train, "lr_at", stop)
    done = Done(*command)
    assert_refused(done, 130, tmp_path / "run")
    assert "saved" in done.err
    monkeypatch.setattr(train, "lr_at", lr_at)
    assert Done(*command).code == 0


@pytest.mark.parametrize(
    "args",
    [
        ["train", "voice", "data"],
        ["train", "encoder", "data", "--preset", "huge"],
        ["train", "encoder", "data", "--steps", "0"],
        ["train", "encoder", "data", "--schedule", "random"],
        ["train", "encoder", "data", "--loss-weight", "texture/mae"],
        ["train", "encoder", "data", "--loss-weight", "texture/mae=-1"],
        ["train", "encoder", "data", "--loss-weight", "texture/mae=nan"],
        ["train", "encoder", "data", "--loss-weights", "paper"],
        ["train", "encoder", "data", "--epochs", "1", "--steps", "3"],
        ["train", "encoder", "data", "--epochs", "0"],
        ["train", "encoder", "data", "--optimizer", "sgd"],
        ["train", "encoder", "data", "--precision", "fp16"],
        ["train", "encoder", "data", "--betas", "0.9"],
        ["train", "encoder", "data", "--clip", "0"],
        ["train", "encoder", "data", "--patience", "0"],
    ],
)
def test_wrong_usage_exits_2(args: list[str]) -> None:
    assert_wrong_usage(Done(*args))


def test_contradicting_weights_are_told_as_json(tmp_path: Path) -> None:
    line = ["voice", tmp_path, "--face-encoder", "e", "--face-decoder", "d", "--calibrate-at", "1"]
    done = Done("train", *line, "--json")
    assert (done.code, done.json["error"]) == (2, "UsageError")
