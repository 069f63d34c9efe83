"""`s2f train model`: two networks, their measures, and the folder that `--model` takes."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Done, assert_refused
from conftest import noise, some_landmarks, write_photo
from line_task import Killed
from trees import contents

from s2f import train_model
from s2f.checkpoint import EVALUATION, KINDS, verify
from s2f.train_model import ModelOptions

SHARED = Path(__file__).parents[2] / "shared/data"
CPU = torch.device("cpu")
OPTIONS = ModelOptions(decoder_steps=3, voice_steps=4)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A tree as `prep split` writes it: three people a split."""
    tree = tmp_path / "pairs"
    for split, k in itertools.product(("train", "val"), range(3)):
        identity = tree / split / f"id{k}"
        write_photo(identity / "images/a.jpg", seed=k)
        np.save(identity / "images/a_landmarks.npy", some_landmarks(k))
        (identity / "audios").mkdir()
        np.save(identity / "audios/a.npy", noise(1, seed=k))
    return tree


def whole(folder: Path) -> dict[str, bytes]:
    """What a finished model's folder holds."""
    assert {f"{kind}.safetensors" for kind in KINDS} < set(os.listdir(folder))
    return contents(folder)


@pytest.mark.usefixtures("bundled", "presets")
def test_a_tree_becomes_a_model_with_its_measures(pairs, speech, tmp_path):
    out = tmp_path / "m"
    command = ["train", "model", pairs, "-o", out, "--device", "cpu"]
    command += ["--decoder-steps", 3, "--voice-steps", 4]
    done = Done(*command)
    assert (done.code, done.out) == (0, f"{out}\n"), done.err
    assert "measuring" in done.err and "mean of 3 people of validation" in done.err
    assert Done("generate", speech, "-o", tmp_path / "f.png", "--model", out).code == 0
    files, times = (
        whole(out),
        {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")},
    )
    assert (
        verify(out / "face_decoder.safetensors").sha256
        == verify(out / "decoder/best.safetensors").sha256
    )
    assert files[EVALUATION] == files["report/report.md"] and b"pairs, val" in files[EVALUATION]

    again = Done(*command, "--json")
    told = again.json
    assert (told["model"], told["report"]) == (str(out), str(out / "report"))
    assert (told["decoder"]["steps"], told["voice"]["steps"], told["people"]) == (3, 4, 3)
    measured = json.loads(files["report/report.json"])["samples"]
    assert told["figures"].keys() == measured.keys() and "R@1, %" in measured
    for name, value in told["figures"].items():  # by hand: the mean of the people's
        assert value == pytest.approx(np.mean(list(measured[name].values())))
    assert whole(out) == files  # and nothing was made again
    best = {path: time for path, time in times.items() if path.parent.name != "last"}
    assert best == {path: path.stat().st_mtime_ns for path in best}
    assert "measuring" not in again.err

    # The parts are runs like others, and can be gone on with alone.
    other = Done(*command, "--seed", 1, "-q")
    assert_refused(other, 2, f"{out}: holds a run with seed 0; this one has 1")
    (out / "report/networks.json").write_text("{}")  # of another model
    assert "measuring" in Done(*command).err
    assert whole(out) == files


@pytest.mark.usefixtures("bundled", "presets")
@pytest.mark.parametrize("at", [1, 2, 4, 5, 9])
def test_a_model_whose_making_was_killed_becomes_the_same(pairs, tmp_path, at):
    """Of some twenty reports of progress, in each part."""
    train_model.train_model(pairs, tmp_path / "a/m", OPTIONS, device=CPU)
    left = at

    def kill(*_):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with pytest.raises(Killed):
        train_model.train_model(pairs, tmp_path / "b/m", OPTIONS, device=CPU, progress=kill)
    (tmp_path / "b/m/.s2f-left").mkdir()  # as kill -9 leaves it
    train_model.train_model(pairs, tmp_path / "b/m", OPTIONS, device=CPU)
    assert whole(tmp_path / "b/m") == whole(tmp_path / "a/m")


@pytest.mark.usefixtures("bundled", "presets")
def test_what_cannot_be_made_is_refused_before_anything_is_trained(pairs, models, tmp_path):
    out = tmp_path / "m"
    command = ["train", "model", pairs, "-o", out, "--device", "cpu", "-q"]
    assert_refused(Done(*command, "--arch", "speaker"), 2, "--arch speaker starts either")
    assert_refused(Done(*command, "--face-encoder", pairs), 4, pairs)
    val = pairs / "val"
    for name in ("id1", "id2"):
        (val / name).rename(tmp_path / name)
    assert_refused(Done(*command), 3, f"{val}: has 1 people to measure a model on")
    assert not out.exists()
    for name in ("id1", "id2"):
        (tmp_path / name).rename(val / name)
    theirs = contents(models / "demo")
    refused = Done(*command[:4], models / "demo", *command[5:])
    assert_refused(refused, 2, "demo: is no run")
    assert contents(models / "demo") == theirs
