"""The commands at the root as users call them: what they print, their JSON, and exit codes."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import conftest
import pytest
from command_line import Done, assert_refused, assert_wrong_usage, commands, files
from evaluation_cases import write_hq_voxceleb, write_people
from PIL import Image
from recordings import write_microphone
from trees import interruptible

import s2f
from s2f import checkpoint, cli, face_detection, generate
from s2f.checkpoint import KINDS, Card, read_header

pytestmark = pytest.mark.usefixtures("bundled")
REPOSITORY = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "s2f"]
Patch = pytest.MonkeyPatch
TEXT: dict[str, Any] = {"capture_output": True, "text": True, "check": False}


def lines_of_epilog(command: Any) -> list[str]:
    return [line.strip("`") for line in command.epilog.splitlines() if line.startswith("`s2f")]


def test_the_program_has_a_help_and_a_version(monkeypatch: Patch, capsys: Any) -> None:
    done = Done()
    assert done.code == 2
    assert all(word in done.out + done.err for word in ("Prepare data", "Train", "Use", "generate"))
    monkeypatch.setattr(sys, "argv", ["anything", "--version"])
    monkeypatch.setattr(cli, "end_by_signals", Mock())  # of this process they are the tests'
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"s2f {s2f.__version__}\n")


@pytest.mark.parametrize(("name", "handled"), [("RANK", True), ("TORCHELASTIC_RUN_ID", False)])
def test_signals_are_left_to_torchrun_alone(monkeypatch, name: str, handled: bool) -> None:
    ended = Mock()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv(name, "0")
    monkeypatch.setattr(cli, "end_by_signals", ended)
    monkeypatch.setattr(sys, "argv", ["s2f", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert ended.called == handled


@pytest.mark.parametrize(("path", "command"), commands())
def test_every_command_has_help_with_examples_that_parse(path: Any, command: Any) -> None:
    assert f"s2f {' '.join(path)}" in Done(*path, "--help").out.split("Examples:")[1]
    lines = lines_of_epilog(command)
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        assert (program, *words[: len(path)]) == ("s2f", *path)
        command.make_context("s2f", words[len(path) :])


def test_wrong_usage_exits_2() -> None:
    wrong = ["nonsense", "app --port 70000", "app --max-mb 0", "evaluate data --detector nothing"]
    for options in ("--nonsense", "a.wav --size 0", "a.wav --format gif", "--morph a.wav"):
        wrong.append(f"generate {options}")
    for args in wrong:
        assert_wrong_usage(Done(*args.split()))


def test_only_a_bug_keeps_its_traceback(speech: Path, monkeypatch: Patch) -> None:
    for error, code in ((ZeroDivisionError, 1), (KeyboardInterrupt, 130)):
        monkeypatch.setattr(generate, "run", Mock(side_effect=error))
        done = Done("generate", speech)
        assert done.code == code
        assert isinstance(done.exception, ZeroDivisionError) == (code == 1)
        assert done.err.startswith("error: interrupted") == (code == 130)


def test_a_path_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / ("y/" * 2500)):
        for arguments in ((path, tmp_path / "out"), (tmp_path, path)):
            assert_refused(Done("prep", "resize", *arguments), 3, path)


TROUBLE = [
    (errno.EMFILE, None, 1),  # nobody's fault that gave a path
    (errno.EMFILE, "speech.wav", 1),
    (errno.ENOENT, "/nowhere/of/a/package.so", 1),
    (errno.EACCES, "/dev/shm/sem.x", 1),
    (errno.EACCES, "speech.wav", 3),
    (errno.ENOSPC, None, 2),
    (errno.EDQUOT, "/var/cache/x", 2),
]


@pytest.mark.parametrize(("number", "path", "code"), TROUBLE)
def test_an_error_of_the_system_is_only_a_users_where_it_is_of_what_was_given(
    number: int, path: str | None, code: int, tmp_path: Path, monkeypatch: Patch
) -> None:
    speech = tmp_path / "speech.wav"
    where = path and str(tmp_path / path)  # one that begins with / stays
    error = OSError(number, os.strerror(number), where)
    monkeypatch.setattr(generate, "run", Mock(side_effect=error))
    done = Done("generate", speech)
    if code == 1:
        assert done.exception is error
    else:
        assert_refused(done, code, where or "a file")
        assert os.strerror(number) in done.err
        assert code == 3 or "free some space" in done.err


@pytest.mark.parametrize("command", ["audio", "faces --detector dlib", "pack --verify"])
def test_without_a_working_folder_nothing_begins(tmp_path: Path, command: str) -> None:
    gone = f"mkdir gone; cd gone; rmdir ../gone; {shlex.join(PROGRAM)} prep {command} --json"
    done = subprocess.run(f"{gone} {tmp_path} {tmp_path}/out", cwd=tmp_path, shell=True, **TEXT)
    assert done.returncode == 2
    assert json.loads(done.stdout)["message"].startswith("the working folder cannot be used")
    assert not (tmp_path / "out").exists()


def test_the_examples_of_use_run_as_printed(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "examples", "examples")
    conftest.write_speech(Path("recordings/ann/hello.wav"))
    for name in ("photo.jpg", "photos/me.jpg"):
        conftest.write_photo(Path(name))
    monkeypatch.syspath_prepend(write_microphone(tmp_path / "device", conftest.noise(6), pace=20))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for path, command in commands():
        for line in lines_of_epilog(command) if path[0] in ("generate", "reconstruct") else ():
            done = Done(*shlex.split(line)[1:], "--overwrite", "--quiet")
            assert (done.code, done.err) == (0, "")
            assert all(Path(made).is_file() for made in done.out.splitlines())


def test_json_is_one_object_and_the_program_makes_the_same_bytes(
    speech: Path, tmp_path: Path, models: Path
) -> None:
    face, landmarks, again = (tmp_path / f"{name}.png" for name in ("a", "a_landmarks", "b"))
    done = Done("generate", speech, "-o", face, "--landmarks", "--json")
    assert (done.code, done.err, done.json["s2f"]) == (0, "", s2f.__version__)
    model, (result,) = done.json["model"], done.json["results"]
    assert (model["name"], model["precision"], done.json["sheet"]) == ("demo", "fp32", None)
    assert (result.pop("remarks"), done.json["remarks"], done.json["passed_over"]) == ([], [], {})
    assert set(model["cards"]) == {"voice_encoder", "face_decoder"}
    assert model["cards"]["face_decoder"]["licence"] == "none"
    assert done.json["seconds"] > 0 and result.pop("seconds") > 0
    wanted = {"source": str(speech), "face": str(face), "landmarks": str(landmarks), "clips": 1}
    wanted["frames"] = []
    wanted |= {"embedding": None, "compare": None, "status": "made", "error": None, "voice": {}}
    assert result == wanted
    command = [*PROGRAM, "generate", speech, "-o", again, "--model", models / "demo"]
    program = subprocess.run(command, **TEXT)
    assert (program.returncode, program.stdout, program.stderr) == (0, f"{again}\n", "")
    assert face.read_bytes() == again.read_bytes()


def test_a_batch_names_what_it_made_skipped_and_could_not_use(tmp_path: Path) -> None:
    source, a, c = (tmp_path / name for name in ("in", "out/a.png", "out/c.png"))
    for name in ("a", "c"):
        conftest.write_speech(source / f"{name}.wav")
    (source / "b.wav").write_text("not sound")
    command = ("generate", source, "-o", tmp_path / "out")
    done = Done(*command)
    assert (done.code, done.out) == (6, f"{a}\n{c}\n")
    counts, first, second, *_ = done.err.splitlines()
    assert counts.startswith("made 2, kept 0, failed 1 in ") and "passed" not in counts
    assert first == "error: 1 of 3 failed" and str(source / "b.wav") in second
    for name in ("photo.heic", "x/a.heic", "notes.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    c.unlink()
    done = Done(*command, "--sheet", tmp_path / "sheet.png")
    assert done.out == f"{c}\n{tmp_path / 'sheet.png'}\n"
    assert f"skipped {source / 'a.wav'}: {a} is there, the same" in done.err
    assert "made 1, kept 1, failed 1 in " in done.err
    assert "; passed over: 3 (.heic 2, .txt 1)\n" in done.err
    done = Done(*command, "--size", 64)
    assert (done.code, done.out) == (6, f"{a}\n{c}\n")
    assert f"{source / 'a.wav'}: {a} is made anew: it was made with size 224" in done.err
    assert Done(*command).out == f"{a}\n{c}\n"  # back again
    done = Done(*command, "--quiet")
    assert done.out == "" and "skipped" not in done.err and "b.wav" in done.err
    done = Done(*command, "--json")
    assert (done.code, done.err, done.json["model"]["name"]) == (6, "", "demo")
    assert [result["status"] for result in done.json["results"]] == ["skipped", "failed", "skipped"]
    assert done.json["results"][1]["error"]["error"] == "AudioError"
    assert done.json["passed_over"] == {".heic": 2, ".txt": 1}
    (source / "b.wav").unlink()
    done = Done(*command, "--json")
    assert (done.code, done.json["model"]) == (0, None)
    assert Done(*command, "--model", tmp_path / "none").code == 4  # of which nothing is there


def test_a_morph_is_told_of(tmp_path: Path) -> None:
    ends = [conftest.write_speech(tmp_path / f"{k}.wav", seed=k) for k in (0, 1)]
    command = ("generate", "--morph", *ends, "--frames", 3, "-o", tmp_path)
    target = tmp_path / "morph.webp"
    done = Done(*command)
    assert (done.code, done.out, done.err) == (0, f"{target}\n", "")
    told = Done(*command, "--overwrite", "--json").json
    assert (told["morph"], told["frames"]) == (str(target), 3)
    assert told["sources"] == [str(path) for path in ends]


def test_a_recording_is_announced_once(tmp_path: Path, monkeypatch: Patch) -> None:
    def record(seconds: float, progress: Any) -> s2f.Waveform:
        progress(0, 2, "recording from a test")
        progress(1, 2, "recording from a test")
        return s2f.Waveform(conftest.noise(seconds), 16_000)

    monkeypatch.setattr("s2f.audio.record", record)
    monkeypatch.chdir(tmp_path)
    done = Done("generate", "--record", 2)
    assert (done.code, done.out) == (0, "recording.png\n")
    assert done.err == "recording from a test, 2 s: speak now\n"


@pytest.mark.parametrize(
    ("args", "code", "name"),
    [
        ("generate --quiet", 2, "there is nothing to generate a face from"),
        ("generate speech.wav -o there.png --model nobody", 2, "there.png: exists already"),
        ("generate speech.wav -o file.txt/face.png", 2, "file.txt/face.png"),
        ("generate none.wav --model nobody", 3, "none.wav: does not exist"),
        ("generate text.wav", 3, "text.wav holds no sound"),
        ("generate -", 3, "the recording is empty"),
        ("reconstruct text.wav --no-align", 3, "text.wav: is not a picture"),
        ("reconstruct photo.jpg", 5, "no detector of faces is installed"),
        ("generate speech.wav --model nobody", 4, "nobody"),
        ("generate speech.wav --voice-encoder other.safetensors", 4, "different embedding spaces"),
        ("generate speech.wav --voice-encoder damaged.safetensors", 4, "is damaged"),
        ("generate speech.wav --device abacus", 5, "abacus"),
        ("generate speech.wav --device cpu --precision fp16", 5, "fp16"),
        ("app --model nobody --port 0", 4, "nobody"),
        ("evaluate --quiet", 2, "nothing to evaluate"),
        ("evaluate . --compare a b", 2, "DATA does not go with --compare"),
        ("evaluate . --model nobody", 4, "nobody"),
        ("evaluate --compare a b", 3, "is no report"),
        ("evaluate --compare a b --model demo", 2, "--model does not go with"),
    ],
)
def test_what_cannot_be_is_refused_and_costs_nothing(
    args: str, code: int, name: str, tmp_path: Path, models: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = dict.fromkeys(face_detection.DETECTORS, (("no_such_package",), "none"))
    monkeypatch.setattr(face_detection, "DETECTORS", nothing)
    conftest.write_speech(Path("speech.wav"))
    conftest.write_photo(Path("photo.jpg"))
    shutil.copy(models / "other/voice_encoder.safetensors", "other.safetensors")
    damage(Path(shutil.copy(models / "demo/voice_encoder.safetensors", "damaged.safetensors")))
    Path("text.wav").write_text("no sound, and no picture")
    for path in ("there.png", "file.txt"):
        Path(path).touch()
    before = files(tmp_path)
    assert_refused(Done(*args.split()), code, name)
    assert files(tmp_path) == before
    done = Done(*args.split(), "--json")
    assert (done.code, done.err, set(done.json)) == (code, "", {"error", "message", "hint"})


def test_closed_standard_streams_are_no_traceback(speech: Path, tmp_path: Path) -> None:
    command = f"{shlex.join(PROGRAM)} generate {speech}"
    for end, code, why in (("b.png >/dev/full", 2, "cannot be written"), ("c.png >&-", 0, "")):
        done = subprocess.run(f"{command} -o {end}", cwd=tmp_path, shell=True, **TEXT)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert why in done.stderr


def test_sigterm_ends_a_batch_with_nothing_half_written(tmp_path: Path) -> None:
    for k in range(40):
        conftest.write_speech(tmp_path / f"in/{k:02}.wav", 6, seed=k)
    command = [*PROGRAM, "generate", "in", "-o", "out", "--landmarks"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, text=True, **pipes)
    assert process.stdout is not None
    process.stdout.readline()  # the first is made
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err and "Traceback" not in err
    made = files(tmp_path / "out")
    assert 0 < len(made) < 80
    for path in made:
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (224, 224)
    done = subprocess.run(command, cwd=tmp_path, **TEXT)
    assert done.returncode == 0  # what is missing is made
    assert len(files(tmp_path / "out")) == 80


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate in -o out", "prep audio in out"])
def test_two_signals_end_a_command_at_once_with_nothing_half_written(
    command: str, tmp_path: Path
) -> None:
    for k in range(40):
        conftest.write_speech(tmp_path / f"in/{k:02}.wav", 20, seed=k)
    process = subprocess.Popen(
        [*PROGRAM, *command.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    while not list((tmp_path / "out").glob("*.*")):
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGHUP):  # the same so soon would be one
        process.send_signal(number)
        time.sleep(0.05)
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 5
    assert process.returncode in (130, 129, -signal.SIGHUP)  # the last of an ending Python
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob(".s2f-*") if path.is_file()]


def test_two_evaluations_stand_side_by_side(tmp_path: Path) -> None:
    tree = write_people(tmp_path / "tree")
    for name in ("demo", "other"):
        report = tmp_path / name
        one = ("--protocol", "ours") if name == "other" else ()
        done = Done("evaluate", tree, "--model", name, *one, "-o", report)
        made = [report / f"report.{suffix}" for suffix in ("html", "md", "json")]
        assert (done.code, done.out.splitlines()) == (0, [str(path) for path in made])
        assert "Ours: recall among all 8 people" in done.err
        assert ("Wen: one voice" in done.err) == (not one)
        assert "data:image/png;base64," in made[0].read_text(encoding="utf-8")
    assert_refused(Done("evaluate", tree, "-o", report), 2, made[0])
    assert_refused(Done("evaluate", tree, "--columns", "height", "-o", tmp_path / "r"), 2, "height")
    both = ["--compare", tmp_path / "demo", tmp_path / "other/report.json"]
    done = Done("evaluate", *both, "-o", report, "--overwrite", "--json")
    assert (done.code, done.err) == (0, "")
    tables = {part["title"]: part for s in done.json["sections"] for part in s["parts"]}
    metrics = {row[0]: row for row in tables["Metrics"]["rows"]}
    assert "R@1, %" in metrics and metrics["angle, degrees"][-2] == 8  # people


def test_a_data_set_as_downloaded_takes_one_command(tmp_path: Path) -> None:
    root, out = write_hq_voxceleb(tmp_path / "VoxCeleb"), tmp_path / "report"
    line = ("evaluate", root, "--per-identity", 1, "-o", out, "--dataset")
    assert_refused(Done(*line, "hq-voxceleb-cmu", "--split", "val"), 2, "did not say who")
    done = Done(*line, "hq-voxceleb-cmu", "--protocol", "wen", "--json")
    tables = {part["title"]: part for s in done.json["sections"] for part in s["parts"]}
    rows = {row[0]: row for row in tables["Wen: closed-set identification"]["rows"]}
    assert rows["published: Wen et al., people of training"][1] == 0.617
    assert done.json["facts"]["recordings"] == "5"  # those of VoxCeleb1 named A to E
    assert "189 test" in done.json["facts"]["published"]


@pytest.fixture
def mine(models: Path, tmp_path: Path) -> Path:
    """A copy of the model `demo`."""
    return Path(shutil.copytree(models / "demo", tmp_path / "mine"))


def damage(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return path


def test_the_names_are_the_result_and_the_table_is_for_people(models: Path) -> None:
    done = Done("models")
    assert (done.code, done.out) == (0, "demo\nother\n")
    rows = [line.split() for line in done.err.splitlines() if "bundled" in line]
    wanted = [[m, "bundled", k] for m in ("demo", "other") for k in KINDS]
    assert [row[:3] for row in rows] == wanted
    assert Done("models", "--quiet").err == ""
    listed = Done("models", "--json").json
    network = listed["models"][0]["networks"]["voice_encoder"]
    header = read_header(models / "demo/voice_encoder.safetensors")
    for name in ("card", "sha256", "embedding_space", "kind"):
        assert network[name] == header[name]
    assert Path(listed["cache"]) == Path(os.environ["S2F_MODELS"])


def test_a_name_or_a_folder_shows_the_whole_cards(mine: Path) -> None:
    assert Done("models", mine, "--json").json["models"][0]["evaluation"] is None
    (mine / "evaluation.md").write_text("# Evaluation\n\n| a\x1b | 1 |\n")
    for model in ("demo", mine):
        done = Done("models", model)
        assert (done.code, done.err) == (0, "")
        assert all(kind in done.out for kind in KINDS)
        assert done.out.count("licence: none") == done.out.count("random weights") == 3
    assert "# Evaluation\n" in done.out and "| a\\x1b | 1 |\n" in done.out
    assert_refused(Done("models", "cat"), 4, "cat")
    network = checkpoint.load(mine / "face_encoder.safetensors", "face_encoder").network
    card = Card("a\x1b[2J", metrics={"x\ny": [1, {"deep": "\x07"}]}, licence="\x1b]0;t\x07")
    checkpoint.save(mine / "face_encoder.safetensors", network, card=card)
    shown = Done("models", mine).out  # which cannot command the terminal
    assert "\x1b" not in shown and "\x07" not in shown
    assert "  name: a\\x1b[2J\n" in shown and "    x\\ny: [1, {'deep': '\\x07'}]\n" in shown


def test_a_damaged_network_is_listed(mine: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("S2F_MODELS", str(tmp_path))
    path = mine / "voice_encoder.safetensors"
    path.write_bytes(b"broken")
    done = Done("models")
    assert (done.code, done.out) == (0, "demo\nother\nmine\n")
    assert f"{path}: is a text and neither HDF5 nor an archive of PyTorch" in done.err
    named = Done("models", "mine")
    assert named.code == 6
    assert "face_decoder: " in named.out and "error: 1 of 3 failed" in named.err
    (error,) = Done("models", "mine", "--json").json["models"][0]["errors"].values()
    assert error["error"] == "CheckpointError"
    for kind in ("face_encoder", "face_decoder"):
        (mine / f"{kind}.safetensors").unlink()
    assert Done("models", "mine").code == 4


def test_bad_files_are_named(models: Path, mine: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bad = damage(mine / "face_encoder.safetensors")
    for path, why in ((tmp_path / "none", "no such"), (tmp_path / "empty", ""), (bad, "damaged")):
        done = Done("verify", path)
        assert_refused(done, 4, path)
        assert why in done.err
    sources = (mine, tmp_path / "empty", tmp_path / "none", models / "demo")
    done = Done("verify", *sources)
    assert (done.code, len(done.out.splitlines())) == (6, 5)
    assert done.err.startswith("error: 3 of 8 failed\n")
    assert f"{bad}: is damaged" in done.err and f"{tmp_path / 'none'}: no such" in done.err
    results = Done("verify", *sources, "--json").json["results"]
    assert [r["status"] for r in results].count("failed") == 3
    assert all((r["error"] is None) == (r["status"] == "ok") for r in results)
    assert {r["kind"] for r in results if r["status"] == "ok"} == set(KINDS)


def test_networks_of_two_spaces_in_one_folder_are_found(models: Path, mine: Path) -> None:
    shutil.copy(models / "other/face_decoder.safetensors", mine)
    done = Done("verify", mine)
    assert (done.code, len(done.out.splitlines())) == (6, 3)
    assert "different embedding spaces" in done.err
    # In two folders they are two models; by other names they are no model.
    path = models / "other/face_decoder.safetensors"
    done = Done("verify", models / "demo", path)
    assert (done.code, done.err, len(done.out.splitlines())) == (0, "", 4)
    sha256 = read_header(path)["sha256"]
    assert done.out.splitlines()[-1] == f"{path}: ok: face_decoder, sha256 {sha256[:12]}"
    (mine / "face_decoder.safetensors").rename(mine / "best.safetensors")
    assert Done("verify", mine).code == 0
