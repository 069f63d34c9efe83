"""`s2f generate` and `s2f reconstruct`, and everything that users give them by mistake."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import conftest
import numpy as np
import pytest
import soundfile
import torch
from command_line import Done, assert_refused, assert_wrong_usage, commands, files
from PIL import Image
from safetensors.torch import save_file

import s2f
from s2f import audio
from s2f.console import Progress

pytestmark = pytest.mark.usefixtures("bundled")
REPOSITORY = Path(__file__).parents[1]


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


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
    done = Done("reconstruct", photo, "-o", target, "--no-align")
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


@pytest.mark.parametrize(("form", "wanted"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_format_is_that_of_the_pictures(
    form: str, wanted: str, speech: Path, tmp_path: Path
) -> None:
    done = Done("generate", speech, "-o", tmp_path / "out", "--format", form, "--landmarks")
    made = [tmp_path / f"out/speech.{form}", tmp_path / f"out/speech_landmarks.{form}"]
    assert (done.code, done.out.splitlines()) == (0, [str(path) for path in made])
    for path in made:
        with Image.open(path) as image:
            assert image.format == wanted
    assert Done("generate", speech, "-o", tmp_path / f"me.{form}").code == 0
    with Image.open(tmp_path / f"me.{form}") as image:
        assert image.format == wanted


def test_embedding_writes_what_the_face_was_drawn_from(speech: Path, tmp_path: Path) -> None:
    done = Done("generate", speech, "-o", tmp_path / "face.jpg", "--embedding")
    assert done.out.splitlines() == [str(tmp_path / n) for n in ("face.jpg", "face_embedding.npy")]
    wanted = s2f.SpeechToFace.load(device="cpu").embed_voice(speech)
    np.testing.assert_array_equal(np.load(tmp_path / "face_embedding.npy"), wanted)


def test_compare_shows_photo_and_both_faces(speech: Path, photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "face.png"
    done = Done("generate", speech, "-o", target, "--compare", photo, "--no-align")
    sheet = picture(tmp_path / "face_compare.png")
    assert (done.code, done.out.splitlines()[1]) == (0, str(tmp_path / "face_compare.png"))
    gap = (sheet.width - 3 * 224) // 4
    columns = [
        np.asarray(sheet.crop((x, gap, x + 224, gap + 224)))
        for x in (gap, 2 * gap + 224, 3 * gap + 448)
    ]
    np.testing.assert_array_equal(columns[0], np.asarray(picture(photo)))
    np.testing.assert_array_equal(columns[2], np.asarray(picture(target)))
    assert Done("reconstruct", photo, "-o", tmp_path / "photo.png", "--no-align").code == 0
    np.testing.assert_array_equal(columns[1], np.asarray(picture(tmp_path / "photo.png")))


def test_a_photo_to_compare_with_that_cannot_be_read_costs_nothing(
    speech: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_text("text")
    before = files(tmp_path)
    args = ["--compare", tmp_path / "bad.jpg", "--no-align"]
    done = Done("generate", speech, "-o", tmp_path / "face.png", *args)
    assert_refused(done, 3, tmp_path / "bad.jpg")
    assert files(tmp_path) == before


def test_sheet_shows_the_faces_of_a_batch(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        conftest.write_speech(tmp_path / f"in/{name}.wav", seed=ord(name) - 97)
    (tmp_path / "in/broken.wav").write_text("text")
    args = ["generate", tmp_path / "in", "-o", tmp_path / "out"]
    assert Done(*args).code == 6
    (tmp_path / "out/b.png").unlink()  # the others are skipped, and are on the sheet all the same
    done = Done(*args, "--sheet", tmp_path / "sheet.png", "--json")
    assert done.code == 6
    assert done.json["sheet"] == str(tmp_path / "sheet.png")
    sheet = np.asarray(picture(tmp_path / "sheet.png"), np.int16)
    for name in ("a", "b", "c"):
        face = np.asarray(picture(tmp_path / f"out/{name}.png"), np.int16)
        places = [
            (y, x)
            for y in range(sheet.shape[0] - 223)
            for x in range(sheet.shape[1] - 223)
            if (sheet[y, x] == face[0, 0]).all() and (sheet[y : y + 224, x : x + 224] == face).all()
        ]
        assert len(places) == 1
    refused = Done(*args, "--sheet", tmp_path / "sheet.png")
    assert_refused(refused, 2, tmp_path / "sheet.png")
    (tmp_path / "out/b.png").write_text("text")  # a face that is there, and is none
    done = Done(*args, "--sheet", tmp_path / "sheet2.png", "--json")
    assert done.code == 6 and len(done.json["results"]) == 4
    assert_refused(Done(*args, "--sheet", tmp_path / "sheet.txt"), 2, "sheet.txt")


def test_morph_is_an_animation_from_one_face_to_another(tmp_path: Path) -> None:
    a, b = (conftest.write_speech(tmp_path / f"{k}.wav", seed=k) for k in (0, 1))
    target = tmp_path / "m.webp"
    done = Done("generate", "--morph", a, b, "--frames", 7, "-o", target, "--size", 112)
    assert (done.code, done.out, done.err) == (0, f"{target}\n", "")
    with Image.open(target) as movie:
        assert (movie.n_frames, movie.size) == (7, (112, 112))
        shown = []
        for k in (0, 6):
            movie.seek(k)
            shown.append(np.asarray(movie.convert("RGB"), np.int16))
    for k, frame in zip((a, b), shown, strict=True):
        assert Done("generate", k, "-o", tmp_path / "f.png", "--size", 112, "--overwrite").code == 0
        assert (
            np.abs(np.asarray(picture(tmp_path / "f.png"), np.int16) - frame).mean() < 6
        )  # of lossy noise
    assert_refused(Done("generate", "--morph", a, b, "-o", target), 2, target)
    done = Done("generate", "--morph", a, b, "-o", target, "--overwrite", "--json")
    assert done.json["morph"] == str(target) and done.json["frames"] == 24


def test_standard_input_is_a_recording_or_a_photo(
    speech: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Done("generate", speech, "-o", "file.png").code == 0
    done = Done("generate", "-", stdin=speech.read_bytes())
    assert (done.code, done.out) == (0, "stdin.png\n")
    assert Path("stdin.png").read_bytes() == Path("file.png").read_bytes()
    assert Done("reconstruct", photo, "-o", "photo.png", "--no-align").code == 0
    done = Done("reconstruct", "-", "-o", "in.png", "--no-align", stdin=photo.read_bytes())
    assert (done.code, done.out) == (0, "in.png\n")
    assert Path("in.png").read_bytes() == Path("photo.png").read_bytes()
    for stdin, why in ((b"", "empty"), (b"text" * 99, "no sound")):
        done = Done("generate", "-", "-o", "out", stdin=stdin)
        assert_refused(done, 3, "")
        assert why in done.err
    assert_refused(Done("generate", "-", stdin=speech.read_bytes()), 2, "stdin.png")


def test_closed_standard_streams_are_no_traceback(speech: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m s2f generate"
    for line, code, why in (
        (f"{command} - -o a.png <&-", 2, "standard input is closed"),
        (f"{command} {speech} -o b.png >/dev/full", 2, "cannot be written"),
        (f"{command} {speech} -o c.png >&-", 0, ""),
    ):
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert why in done.stderr


def test_sigterm_ends_a_batch_with_nothing_half_written(tmp_path: Path) -> None:
    for k in range(40):
        conftest.write_speech(tmp_path / f"in/{k:02}.wav", 6, seed=k)
    command = [sys.executable, "-m", "s2f", "generate", "in", "-o", "out", "--landmarks"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first is made
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err and "Traceback" not in err
    made = files(tmp_path / "out")
    assert 0 < len(made) < 80
    assert all(picture(path).size == (224, 224) for path in made)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0  # what is missing is made
    assert len(files(tmp_path / "out")) == 80


def test_record_listens_to_the_microphone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s2f import audio

    monkeypatch.chdir(tmp_path)

    def record(seconds: float, progress: Progress) -> s2f.Waveform:
        progress(0, 2, "recording from a test")
        return s2f.Waveform(conftest.noise(seconds), 16_000)

    monkeypatch.setattr(audio, "record", record)
    done = Done("generate", "--record", 2)
    assert (done.code, done.out) == (0, "recording.png\n")
    assert "speak now" in done.err
    assert_refused(Done("generate", "--record", 2), 2, "recording.png")
    done = Done("generate", "--record", 2, "--overwrite", "--json")
    assert done.json["results"][0]["clips"] == 2


def test_start_and_duration_choose_a_part(tmp_path: Path) -> None:
    samples = conftest.noise(3)
    for name, part in (("all", samples), ("part", samples[16_000:32_000])):
        soundfile.write(tmp_path / f"{name}.wav", part, 16_000, subtype="FLOAT")
    cut = ["--start", 1, "--duration", 1]
    assert Done("generate", tmp_path / "all.wav", "-o", tmp_path / "a.png", *cut).code == 0
    assert Done("generate", tmp_path / "part.wav", "-o", tmp_path / "b.png").code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    done = Done("generate", tmp_path / "all.wav", "-o", tmp_path / "c.png", "--start", 9)
    assert_refused(done, 3, "all.wav")
    assert "3.00 s" in done.err
    done = Done("generate", tmp_path / "all.wav", "-o", tmp_path / "c.png", "--duration", 0)
    assert_refused(done, 2, "0 s")


def test_one_checkpoint_takes_the_place_of_the_models(
    speech: Path, tmp_path: Path, models: Path
) -> None:
    own = models / "other" / "voice_encoder.safetensors"
    done = Done("generate", speech, "-o", tmp_path / "a.png", "--voice-encoder", own)
    assert_refused(done, 4, own)
    both = [
        part
        for kind in ("voice-encoder", "face-decoder")
        for part in (f"--{kind}", models / "other" / f"{kind.replace('-', '_')}.safetensors")
    ]
    assert Done("generate", speech, "-o", tmp_path / "a.png", *both).code == 0
    model = ["--model", models / "other"]
    assert Done("generate", speech, "-o", tmp_path / "b.png", *model).code == 0
    assert picture(tmp_path / "a.png").tobytes() == picture(tmp_path / "b.png").tobytes()


def test_without_a_detector_the_cure_is_named(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s2f import face_detection

    monkeypatch.setattr(face_detection, "installed_detector", lambda: None)
    done = Done("reconstruct", photo, "-o", tmp_path / "a.png")
    assert_refused(done, 5, "detector")
    assert "s2f[dlib]" in done.err and "--no-align" in done.err


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--quiet"], "nothing to generate"),
        (["a.wav", "--record", "6"], "speech and record"),
        (["a.wav", "--morph", "a.wav", "b.wav"], "speech and morph"),
        (["a.wav", "--frames", "9"], "--frames does not go without --morph"),
        (["--morph", "a.wav", "b.wav", "--landmarks"], "--landmarks does not go with --morph"),
        (["--morph", "a.wav", "b.wav", "-o", "a.png"], "does not end in .webp"),
        (["examples.wav", "-o", "a.png", "--format", "jpg"], "--format jpg"),
        (["--record", "0.1"], "0.1 s"),
        (["examples.wav", "--start", "-1"], "-1 s"),
        (["examples.wav", "--no-align"], "--compare"),
        (["examples.wav", "--face-encoder", "a.safetensors"], "a.safetensors"),
        (["examples.wav", "-o", "a.png", "--sheet", "a.png"], "a.png"),
    ],
)
def test_requests_that_cannot_be_right_exit_2(
    args: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    conftest.write_speech(Path("examples.wav"))
    assert_refused(Done("generate", *args), 2, why)
    assert files(tmp_path) == {tmp_path / "examples.wav"}


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
    source = {"generate": [speech], "reconstruct": [photo, "--no-align"]}[command]
    done = Done(command, *source, "-o", tmp_path / "face.png", "--model", tmp_path / "model")
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
        "embedding": None,
        "compare": None,
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
    soundfile.write(path, np.zeros(audio.SAMPLE_RATE, np.float32), audio.SAMPLE_RATE)


def not_numbers(path: Path) -> None:
    samples = conftest.noise(1)
    samples[100] = np.nan
    soundfile.write(path, samples, audio.SAMPLE_RATE, subtype="FLOAT")


def empty_folder(path: Path) -> None:
    path.mkdir()


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


def test_a_precision_that_a_device_lacks_exits_5(speech: Path, tmp_path: Path) -> None:
    target = tmp_path / "face.png"
    done = Done("generate", speech, "-o", target, "--device", "cpu", "--precision", "fp16")
    assert_refused(done, 5, "fp16")


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_exits_5(device: str, speech: Path, tmp_path: Path) -> None:
    done = Done("generate", speech, "-o", tmp_path / "face.png", "--device", device)
    assert_refused(done, 5, device)


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "--nonsense"],
        ["generate", "a.wav", "--size", "0"],
        ["generate", "a.wav", "--format", "gif"],
        ["generate", "--morph", "a.wav"],
        ["generate", "a.wav", "--size", "1000000"],
    ],
)
def test_wrong_usage_exits_2(args: list[str]) -> None:
    assert_wrong_usage(Done(*args))
