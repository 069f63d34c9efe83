"""Every command, every exit code, and everything that users give by mistake."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import av
import conftest
import numpy as np
import pytest
import soundfile
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import s2f
from s2f import checkpoint, cli, decoding, demo, infer, train
from s2f.cli import app

pytestmark = pytest.mark.usefixtures("bundled")
REPOSITORY = Path(__file__).parents[1]
TRAINING = ["--steps", "2", "--batch-size", "2", "--every", "2", "--device", "cpu"]


class Done:
    """What a command left: exit code, stdout and stderr, and the exception if it was a bug."""

    def __init__(self, *args: object) -> None:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.exception = result.exception

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_no_arguments_show_the_help() -> None:
    done = Done()
    assert done.code == 2
    assert "generate" in done.out + done.err


def test_the_version_is_the_packages() -> None:
    done = Done("--version")
    assert (done.code, done.out) == (0, f"s2f {s2f.__version__}\n")


def test_the_panels_of_the_help_are_the_three_jobs() -> None:
    out = Done("--help").out
    assert all(panel in out for panel in ("Prepare data", "Train", "Use"))


def commands(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    group = group or typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():
        nested = hasattr(command, "commands")
        found += commands(command, (*path, name)) if nested else [((*path, name), command)]
    return found


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    done = Done(*path, "--help")
    assert done.code == 0
    assert f"s2f {' '.join(path)}" in done.out.split("Examples:")[1]


@pytest.mark.parametrize(("path", "command"), commands())
def test_every_example_in_the_help_parses(path: tuple[str, ...], command: Any) -> None:
    lines = [line.strip("`") for line in command.epilog.splitlines() if line.startswith("`s2f")]
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        assert (program, *words[: len(path)]) == ("s2f", *path)
        command.make_context("s2f", words[len(path) :])


def test_the_examples_of_use_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "examples", "examples")
    conftest.write_speech(Path("recordings/ann/hello.wav"))
    conftest.write_photo(Path("photo.jpg"))
    conftest.write_photo(Path("photos/me.jpg"))
    for path, command in commands():
        if path[0] not in ("generate", "reconstruct"):
            continue
        for line in command.epilog.splitlines():
            if line.startswith("`s2f"):
                done = Done(*shlex.split(line.strip("`"))[1:], "--overwrite")
                assert (done.code, done.err) == (0, "")
                assert all(Path(made).is_file() for made in done.out.splitlines())


def test_generate_writes_the_picture_and_prints_its_path(speech: Path, tmp_path: Path) -> None:
    target = tmp_path / "face.png"
    done = Done("generate", speech, "-o", target)
    assert (done.code, done.out, done.err) == (0, f"{target}\n", "")
    assert picture(target).size == (224, 224)


def test_reconstruct_writes_the_picture_and_prints_its_path(photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "face.png"
    done = Done("reconstruct", photo, "-o", target)
    assert (done.code, done.out, done.err) == (0, f"{target}\n", "")
    assert picture(target).size == (224, 224)


def test_a_picture_says_what_made_it(speech: Path, tmp_path: Path) -> None:
    Done("generate", speech, "-o", tmp_path / "face.png")
    text = picture(tmp_path / "face.png").text
    assert text["Software"] == f"s2f {s2f.__version__}"
    assert text["Model"] == "demo"
    assert text["Source"] == "made from speech"
    assert "Synthetic" in text["Comment"]


def test_without_an_output_the_picture_lies_in_the_current_folder(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Done("generate", speech).out == "speech.png\n"
    assert (tmp_path / "here/speech.png").is_file()


def test_the_same_input_gives_the_same_bytes(speech: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        assert Done("generate", speech, "-o", tmp_path / name).code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_different_speech_gives_different_faces(speech: Path, tmp_path: Path) -> None:
    other = conftest.write_speech(tmp_path / "other.wav", seed=1)
    Done("generate", speech, other, "-o", tmp_path / "out")
    faces = [np.asarray(picture(tmp_path / f"out/{n}.png")) for n in ("speech", "other")]
    assert (faces[0] != faces[1]).any()


@pytest.mark.parametrize("size", [16, 448])
def test_size_is_the_side_of_the_pictures(size: int, speech: Path, tmp_path: Path) -> None:
    Done("generate", speech, "-o", tmp_path / "face.png", "--size", size, "--landmarks")
    for name in ("face.png", "face_landmarks.png"):
        assert picture(tmp_path / name).size == (size, size)


def test_landmarks_write_the_marked_face_beside_it(speech: Path, tmp_path: Path) -> None:
    face, marked = tmp_path / "face.png", tmp_path / "face_landmarks.png"
    done = Done("generate", speech, "-o", face, "--landmarks")
    assert done.out == f"{face}\n{marked}\n"
    assert (np.asarray(picture(face)) != np.asarray(picture(marked))).any()


def test_model_takes_a_folder(speech: Path, tmp_path: Path, models: Path) -> None:
    Done("generate", speech, "-o", tmp_path / "a.png")
    done = Done("generate", speech, "-o", tmp_path / "b.png", "--model", models / "other")
    assert done.code == 0
    assert picture(tmp_path / "b.png").text["Model"] == "other"


@pytest.mark.parametrize("command", ["generate", "reconstruct"])
def test_only_the_networks_that_are_needed_are_read(
    command: str, speech: Path, photo: Path, tmp_path: Path, models: Path
) -> None:
    shutil.copytree(models / "demo", tmp_path / "model")
    unneeded = {"generate": "face_encoder", "reconstruct": "voice_encoder"}[command]
    (tmp_path / f"model/{unneeded}.safetensors").unlink()
    source = {"generate": speech, "reconstruct": photo}[command]
    done = Done(command, source, "-o", tmp_path / "face.png", "--model", tmp_path / "model")
    assert done.code == 0


def test_a_folder_is_mirrored(tmp_path: Path) -> None:
    conftest.write_speech(tmp_path / "in/ann/one.wav")
    conftest.write_speech(tmp_path / "in/bob/two.flac")
    done = Done("generate", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 0
    made = {tmp_path / "out/ann/one.png", tmp_path / "out/bob/two.png"}
    assert files(tmp_path / "out") == made
    assert set(done.out.splitlines()) == {str(path) for path in made}


def test_recordings_of_one_name_give_two_pictures(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac"):
        conftest.write_speech(tmp_path / "in" / name)
    assert Done("generate", tmp_path / "in", "-o", tmp_path / "out").code == 0
    assert {path.name for path in files(tmp_path / "out")} == {"a.wav.png", "a.flac.png"}


def test_an_existing_picture_is_refused(speech: Path, tmp_path: Path) -> None:
    target = tmp_path / "face.png"
    target.write_bytes(b"mine")
    done = Done("generate", speech, "-o", target)
    assert done.code == 2
    assert str(target) in done.err.splitlines()[0]
    assert "--overwrite" in done.err
    assert target.read_bytes() == b"mine"


def test_overwrite_replaces_an_existing_picture(speech: Path, tmp_path: Path) -> None:
    target = tmp_path / "face.png"
    target.write_bytes(b"mine")
    assert Done("generate", speech, "-o", target, "--overwrite").code == 0
    assert picture(target).size == (224, 224)


def test_an_existing_picture_is_refused_before_the_model_is_read(
    speech: Path, tmp_path: Path
) -> None:
    (tmp_path / "face.png").touch()
    done = Done("generate", speech, "-o", tmp_path / "face.png", "--model", tmp_path / "none")
    assert done.code == 2


def test_a_missing_recording_is_reported_before_the_model_is_read(tmp_path: Path) -> None:
    assert Done("generate", tmp_path / "none.wav", "--model", tmp_path / "none").code == 3


def batch(folder: Path) -> Path:
    """Two good recordings around a bad one."""
    conftest.write_speech(folder / "a.wav")
    (folder / "b.wav").write_text("not sound")
    conftest.write_speech(folder / "c.wav")
    return folder


def test_a_batch_goes_on_past_a_bad_file_and_exits_6(tmp_path: Path) -> None:
    done = Done("generate", batch(tmp_path / "in"), "-o", tmp_path / "out")
    assert done.code == 6
    assert done.out == f"{tmp_path / 'out/a.png'}\n{tmp_path / 'out/c.png'}\n"
    first, second, *_ = done.err.splitlines()
    assert first == "error: 1 of 3 failed"
    assert str(tmp_path / "in/b.wav") in second


def test_a_batch_skips_what_is_up_to_date(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        conftest.write_speech(tmp_path / "in" / name)
    Done("generate", tmp_path / "in", "-o", tmp_path / "out")
    (tmp_path / "out/b.png").unlink()
    done = Done("generate", tmp_path / "in", "-o", tmp_path / "out")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out/b.png'}\n")
    assert f"skipped {tmp_path / 'in/a.wav'}" in done.err


def test_a_batch_that_is_up_to_date_reads_no_model(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        conftest.write_speech(tmp_path / "in" / name)
    Done("generate", tmp_path / "in", "-o", tmp_path / "out")
    command = ["generate", tmp_path / "in", "-o", tmp_path / "out", "--model", tmp_path / "none"]
    assert Done(*command).code == 0


def test_a_batch_refuses_a_picture_that_is_older_than_its_source(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        conftest.write_speech(tmp_path / "in" / name)
    Done("generate", tmp_path / "in", "-o", tmp_path / "out")
    os.utime(tmp_path / "out/a.png", (0, 0))
    done = Done("generate", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 6
    assert "--overwrite" in done.err


def test_several_files_do_not_become_one_picture(speech: Path, tmp_path: Path) -> None:
    other = conftest.write_speech(tmp_path / "other.wav")
    done = Done("generate", speech, other, "-o", tmp_path / "face.png")
    assert done.code == 2
    assert "face.png" in done.err.splitlines()[0]


def test_quiet_prints_results_and_failures_only(tmp_path: Path) -> None:
    Done("generate", batch(tmp_path / "in"), "-o", tmp_path / "out")
    (tmp_path / "out/a.png").unlink()
    done = Done("generate", tmp_path / "in", "-o", tmp_path / "out", "--quiet")
    assert done.out == f"{tmp_path / 'out/a.png'}\n"
    assert "skipped" not in done.err
    assert "b.wav" in done.err


def test_json_is_one_object_with_model_and_results(speech: Path, tmp_path: Path) -> None:
    target = tmp_path / "face.png"
    done = Done("generate", speech, "-o", target, "--landmarks", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["s2f"] == s2f.__version__
    assert done.json["model"]["name"] == "demo"
    assert set(done.json["model"]["cards"]) == {"voice_encoder", "face_decoder"}
    assert done.json["model"]["cards"]["face_decoder"]["licence"] == "none"
    (result,) = done.json["results"]
    assert result.pop("seconds") > 0
    assert result == {
        "source": str(speech),
        "face": str(target),
        "landmarks": str(tmp_path / "face_landmarks.png"),
        "status": "made",
        "clips": 1,
        "error": None,
    }


def test_json_of_a_batch_holds_its_failures(tmp_path: Path) -> None:
    done = Done("generate", batch(tmp_path / "in"), "-o", tmp_path / "out", "--json")
    assert (done.code, done.err) == (6, "")
    results = done.json["results"]
    assert [result["status"] for result in results] == ["made", "failed", "made"]
    assert results[1]["error"]["error"] == "AudioError"
    assert str(tmp_path / "in/b.wav") in results[1]["error"]["message"]


def test_json_of_an_error_is_one_object(tmp_path: Path) -> None:
    done = Done("generate", tmp_path / "none.wav", "--json")
    assert (done.code, done.err) == (3, "")
    assert set(done.json) == {"error", "message", "hint"}
    assert done.json["error"] == "AudioError"


def nothing(path: Path) -> None:
    pass


def text(path: Path) -> None:
    path.write_text("this is no sound\n" * 100)


def empty(path: Path) -> None:
    path.touch()


def mute_video(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        grey = np.full((32, 32, 3), 128, np.uint8)
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


def short(path: Path) -> None:
    conftest.write_speech(path, seconds=0.4)


def silence(path: Path) -> None:
    soundfile.write(path, np.zeros(decoding.SAMPLE_RATE, np.float32), decoding.SAMPLE_RATE)


def not_numbers(path: Path) -> None:
    samples = conftest.noise(1)
    samples[100] = np.nan
    soundfile.write(path, samples, decoding.SAMPLE_RATE, subtype="FLOAT")


def empty_folder(path: Path) -> None:
    path.mkdir()


def assert_refused(done: Done, code: int, name: object) -> None:
    """One line that names the file, perhaps a cure, and no traceback."""
    assert done.code == code
    assert done.out == ""
    message, *rest = done.err.splitlines()
    assert message.startswith("error: ")
    assert str(name) in message
    assert len(rest) <= 1
    assert all(line.startswith("cure: ") for line in rest)
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("missing.wav", nothing, "does not exist"),
        ("text.wav", text, "no sound"),
        ("empty.wav", empty, "empty"),
        ("mute.mp4", mute_video, "no sound track"),
        ("short.wav", short, "0.40 s"),
        ("silence.wav", silence, "silence"),
        ("nan.wav", not_numbers, "NaN"),
        ("folder", empty_folder, "no recording"),
    ],
)
def test_what_is_no_speech_is_refused(
    name: str, make: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    before = files(tmp_path)
    done = Done("generate", tmp_path / name, "-o", tmp_path / "out")
    assert_refused(done, 3, tmp_path / name)
    assert why in done.err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("missing.jpg", nothing, "does not exist"),
        ("text.jpg", text, "not a picture"),
        ("empty.jpg", empty, "not a picture"),
        ("folder", empty_folder, "no photo"),
    ],
)
def test_what_is_no_photo_is_refused(
    name: str, make: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    before = files(tmp_path)
    done = Done("reconstruct", tmp_path / name, "-o", tmp_path / "out")
    assert_refused(done, 3, tmp_path / name)
    assert why in done.err
    assert files(tmp_path) == before


def test_an_output_that_cannot_be_written_is_refused(speech: Path, tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    before = files(tmp_path)
    target = tmp_path / "file.txt/face.png"
    assert_refused(Done("generate", speech, "-o", target), 2, target)
    assert files(tmp_path) == before


def foreign(folder: Path, models: Path) -> None:
    save_file({"weight": torch.zeros(2)}, folder / "voice_encoder.safetensors")


def no_safetensors(folder: Path, models: Path) -> None:
    (folder / "voice_encoder.safetensors").write_bytes(b"PK\x03\x04 a pickle perhaps")


def other_space(folder: Path, models: Path) -> None:
    name = "voice_encoder.safetensors"
    shutil.copy(models / "other" / name, folder / name)


def flipped_byte(folder: Path, models: Path) -> None:
    path = folder / "voice_encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def wrong_kind(folder: Path, models: Path) -> None:
    shutil.copy(folder / "face_encoder.safetensors", folder / "voice_encoder.safetensors")


def no_network(folder: Path, models: Path) -> None:
    (folder / "voice_encoder.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "names", "why"),
    [
        (foreign, "voice_encoder.safetensors", "not one that s2f wrote"),
        (no_safetensors, "voice_encoder.safetensors", "not a checkpoint"),
        (other_space, "", "different embedding spaces"),
        (flipped_byte, "voice_encoder.safetensors", "damaged"),
        (wrong_kind, "voice_encoder.safetensors", "is a face_encoder"),
        (no_network, "voice_encoder.safetensors", "no such checkpoint"),
    ],
)
def test_a_bad_checkpoint_is_refused(
    spoil: Callable[[Path, Path], None],
    names: str,
    why: str,
    speech: Path,
    tmp_path: Path,
    models: Path,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(models / "demo", model)
    spoil(model, models)
    before = files(tmp_path)
    done = Done("generate", speech, "-o", tmp_path / "face.png", "--model", model)
    assert_refused(done, 4, model / names)
    assert why in done.err
    assert files(tmp_path) == before


def test_a_model_that_is_not_there_is_refused(speech: Path, tmp_path: Path) -> None:
    done = Done("generate", speech, "-o", tmp_path / "face.png", "--model", "nobody")
    assert_refused(done, 4, "nobody")
    assert "demo" in done.err


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_exits_5(device: str, speech: Path, tmp_path: Path) -> None:
    done = Done("generate", speech, "-o", tmp_path / "face.png", "--device", device)
    assert_refused(done, 5, device)


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["generate", "--nonsense"],
        ["generate", "a.wav", "--size", "0"],
        ["generate", "a.wav", "--size", "1000000"],
        ["train", "voice", "data"],
        ["train", "encoder", "data", "--preset", "huge"],
        ["train", "encoder", "data", "--steps", "0"],
        ["train", "encoder", "data", "--schedule", "random"],
        ["train", "encoder", "data", "--loss-weight", "texture/mae"],
        ["train", "encoder", "data", "--loss-weight", "texture/mae=-1"],
        ["train", "encoder", "data", "--loss-weight", "texture/mae=nan"],
    ],
)
def test_wrong_usage_exits_2(args: list[str]) -> None:
    done = Done(*args)
    assert done.code == 2
    assert done.out == ""
    assert done.err
    assert "Traceback" not in done.err


def test_a_bug_keeps_its_traceback(speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(infer, "plan", broken)
    done = Done("generate", speech)
    assert done.code == 1
    assert isinstance(done.exception, ZeroDivisionError)


def test_an_interruption_exits_130(speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(infer, "plan", interrupted)
    done = Done("generate", speech)
    assert done.code == 130
    assert done.err.startswith("error: interrupted")


def test_prep_demo_prints_where_the_trees_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(faces: Path, voices: Path, out: Path, **options: Any) -> demo.DemoReport:
        options.pop("progress")(1, 2, "a")
        assert options == {"identities": 3, "seed": 1}
        return demo.DemoReport(out, {"train": 3}, {"train": 1})

    monkeypatch.setattr(demo, "prepare", prepare)
    done = Done("prep", "demo", "f", "v", tmp_path / "out", "--identities", 3, "--seed", 1)
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")


def test_prep_demo_leaves_its_defaults_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(faces: Path, voices: Path, out: Path, **options: Any) -> demo.DemoReport:
        assert set(options) == {"progress"}
        return demo.DemoReport(out, {"train": 3}, {"train": 1})

    monkeypatch.setattr(demo, "prepare", prepare)
    done = Done("prep", "demo", "f", "v", tmp_path / "out", "--json")
    assert done.json == {
        "out": str(tmp_path / "out"),
        "faces": {"train": 3},
        "voices": {"train": 1},
    }


def test_prep_demo_refuses_a_source_that_is_none(tmp_path: Path) -> None:
    done = Done("prep", "demo", tmp_path, tmp_path, tmp_path / "out")
    assert_refused(done, 3, tmp_path / "people.csv")


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
    assert set(done.json["losses"]) == {"decoder/l1", "embedding/l2"}


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
    options += ["--seed", 7, "--half", "--no-augment", "--loss-weight", "embedding/l2=4"]
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
    }
    assert {key: seen[key] for key in wanted} == wanted
    assert seen["loss_weights"] == {"decoder/l1": 0.01, "embedding/l2": 4.0}


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
    options = ["--loss-weight", "texture/mse=1", "-o", tmp_path / "run"]
    done = Done("train", *networks["encoder"], *TRAINING, *options)
    assert_refused(done, 2, "texture/mse")
    assert "wanted one of embedding/mse" in done.err
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


def program(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "s2f", *(str(arg) for arg in args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_program_generates(speech: Path, tmp_path: Path, models: Path) -> None:
    done = program("generate", speech, "-o", tmp_path / "f.png", "--model", models / "demo")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'f.png'}\n", "")


def test_the_program_says_what_is_wrong_in_two_lines(tmp_path: Path, models: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    done = program("generate", "text.wav", "--model", models / "demo", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "cure"]


def test_the_program_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["anything", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
