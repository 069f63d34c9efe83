"""`s2f prep audio` and the like: what users type, see, and get wrong."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import Done, assert_refused, assert_wrong_usage
from conftest import write_photo, write_speech

from s2f import face_detection
from s2f.cli_prep import app
from s2f.images import open_photo

REAL = Path(__file__).parents[2] / "shared/data"


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for k in range(3):
        write_speech(tmp_path / f"in/id{k}/a.wav", seed=k)
    return tmp_path / "in"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for k in range(3):
        write_photo(tmp_path / f"photos/id{k}/a.jpg", seed=k)
    return tmp_path / "photos"


def test_audio_stores_waveforms_and_prints_where(recordings: Path, tmp_path: Path) -> None:
    done = Done("prep", "audio", recordings, tmp_path / "out", "--workers", 1)
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    assert "made 3, up to date 0, failed 0" in done.err
    assert np.load(tmp_path / "out/id0/a.npy").dtype == np.int16
    again = Done("prep", "audio", recordings, tmp_path / "out", "--json")
    assert (again.json["made"], again.json["skipped"], again.json["failed"]) == (0, 3, [])
    assert again.err == ""


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (("--preset", "seed"), (2, 257, 601)),
        (("--store", "spectrogram"), (2, 257, 598)),
        (("--preset", "ast", "--store", "spectrogram"), (1, 128, 1024)),
        (("--preset", "ast", "--store", "waveform"), (16000,)),
        (("--trim-silence", "40"), (16000,)),
    ],
)
def test_audio_stores_what_was_asked_for(
    recordings: Path, tmp_path: Path, options: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    done = Done("prep", "audio", recordings / "id0", tmp_path / "out", "--workers", 1, *options)
    assert done.code == 0
    assert np.load(tmp_path / "out/a.npy").shape == shape


def test_stats_go_into_the_ast_front_end(recordings: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    done = Done("prep", "stats", recordings, "-o", stats, "--workers", 1, "--json")
    assert done.code == 0
    assert done.json["frames"] == 3 * 98
    assert json.loads(stats.read_text())["mean"] == done.json["mean"]
    out = tmp_path / "out"
    arguments = ("prep", "audio", recordings, out, "--preset", "ast", "--workers", 1)
    assert Done(*arguments, "--stats", stats).code == 0
    stored = np.stack([np.load(path) for path in out.rglob("*.npy")])
    assert stored.shape == (3, 1, 128, 1024)
    assert abs(stored.mean()) < 0.1
    assert stored.std() == pytest.approx(0.5, abs=0.05)  # AST's: (x - mean) / (2 std)


def test_statistics_that_are_none_are_refused(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    done = Done(
        *("prep", "audio", recordings, tmp_path / "out", "--preset", "ast"),
        *("--stats", tmp_path / "notes.json"),
    )
    assert_refused(done, 3, "notes.json")


def test_a_bad_file_costs_itself_and_the_command_exits_6(recordings: Path, tmp_path: Path) -> None:
    (recordings / "id1/a.wav").write_bytes(b"RIFF nonsense")
    arguments = ("prep", "audio", recordings, tmp_path / "out", "--workers", 1)
    done = Done(*arguments)
    assert done.code == 6
    assert done.out == f"{tmp_path / 'out'}\n"
    assert "error: 1 of 3 failed" in done.err
    assert str(recordings / "id1/a.wav") in done.err
    assert "Traceback" not in done.err
    failed = Done(*arguments, "--json").json["failed"]
    assert [item["source"] for item in failed] == [str(recordings / "id1/a.wav")]
    assert failed[0]["error"] == "AudioError"


def test_one_file_that_cannot_be_used_exits_with_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    done = Done("prep", "audio", tmp_path / "a.wav", tmp_path / "out")
    assert_refused(done, 3, "a.wav")


def test_faces_and_landmarks_of_a_real_photo(tmp_path: Path) -> None:
    """The dlib detector finds a real face; a drawing has none."""
    if not (REAL / "faces").is_dir():
        pytest.skip("needs the real faces beside the repository")
    for package in face_detection.DETECTORS["dlib"][0]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    person = min((REAL / "faces").glob("*/neutral.jpg"))
    (tmp_path / "in").mkdir()
    open_photo(person).save(tmp_path / "in/real.png")
    write_photo(tmp_path / "in/drawn.jpg")
    dlib = ("--detector", "dlib", "--workers", 1)
    done = Done("prep", "faces", tmp_path / "in", tmp_path / "out", *dlib)
    assert done.code == 6
    assert "drawn.jpg: no face was found" in done.err
    assert open_photo(tmp_path / "out/real.png").size == (224, 224)
    assert Done("prep", "landmarks", tmp_path / "out", tmp_path / "out", *dlib).code == 0
    assert np.load(tmp_path / "out/real_landmarks.npy").shape == (68, 2)


@pytest.mark.parametrize("command", ["faces", "landmarks"])
def test_a_detector_that_is_not_installed_exits_5(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = Done("prep", command, photos, tmp_path / "out")
    assert_refused(done, 5, "face_alignment")
    assert "pip install 's2f[landmarks]'" in done.err


def test_resize_squashes_and_replaces_only_if_told(photos: Path, tmp_path: Path) -> None:
    arguments = ("prep", "resize", photos, photos, "--size", 64, "--workers", 1)
    assert_refused(Done(*arguments), 2, "would be replaced")
    assert open_photo(photos / "id0/a.jpg").size == (224, 224)
    assert Done(*arguments, "--overwrite").code == 0
    assert open_photo(photos / "id0/a.jpg").size == (64, 64)
    assert Done(*arguments, "--overwrite", "--json").json["skipped"] == 3


def test_embeddings_lie_beside_their_photos(photos: Path, models: Path) -> None:
    encoder = models / "demo/face_encoder.safetensors"
    arguments = ("prep", "embeddings", photos, photos, "--face-encoder", encoder)
    assert Done(*arguments, "--workers", 1, "--batch-size", 2, "--device", "cpu").code == 0
    assert np.load(photos / "id0/a_embedding.npy").shape == (8,)
    other = models / "other/face_encoder.safetensors"
    assert Done(*arguments[:-1], other, "--workers", 1, "--json").json["made"] == 3


def test_embeddings_of_a_checkpoint_of_another_kind_exit_4(photos: Path, models: Path) -> None:
    decoder = models / "demo/face_decoder.safetensors"
    done = Done("prep", "embeddings", photos, photos, "--face-encoder", decoder)
    assert_refused(done, 4, "face_decoder.safetensors")


def test_an_absent_device_exits_5(photos: Path, models: Path, tmp_path: Path) -> None:
    encoder = models / "demo/face_encoder.safetensors"
    done = Done(
        *("prep", "embeddings", photos, tmp_path / "out", "--face-encoder", encoder),
        *("--device", "cuda:99"),
    )
    assert_refused(done, 5, "cuda:99")


@pytest.mark.parametrize("command", [info.name for info in app.registered_commands])
def test_a_missing_source_exits_3(tmp_path: Path, models: Path, command: str) -> None:
    out = ("-o", tmp_path / "o.json") if command == "stats" else (tmp_path / "out",)
    encoder = models / "demo/face_encoder.safetensors"
    more = ("--face-encoder", encoder) if command == "embeddings" else ()
    if command in ("faces", "landmarks"):
        more = ("--detector", "dlib")
        if importlib.util.find_spec("dlib") is None:
            pytest.skip("needs the package dlib")
    done = Done("prep", command, tmp_path / "nowhere", *out, *more)
    assert_refused(done, 3, "nowhere: does not exist")


@pytest.mark.parametrize(
    "words",
    [
        ("audio", "a"),
        ("audio", "a", "b", "--preset", "mine"),
        ("audio", "a", "b", "--workers", "0"),
        ("resize", "a", "b", "--size", "3"),
        ("landmarks", "a", "b", "--detector", "mine"),
        ("embeddings", "a", "b"),
    ],
)
def test_wrong_usage_exits_2(words: tuple[str, ...]) -> None:
    assert_wrong_usage(Done("prep", *words))


def test_an_interrupt_exits_130_and_the_next_run_goes_on(tmp_path: Path) -> None:
    for k in range(400):
        write_speech(tmp_path / f"in/{k}.wav", seed=k % 3)
    words = ["prep", "audio", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "s2f", *words],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((tmp_path / "out").glob("*.npy")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "interrupted" in said
    done = Done(*words, "--json").json
    assert done["skipped"] > 0
    assert done["made"] + done["skipped"] == 400
