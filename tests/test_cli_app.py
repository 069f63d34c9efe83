"""`s2f app`: what it prints, refuses and leaves, asked over HTTP as a browser asks it."""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from app import Server, Visitor, ask_many
from command_line import Done, assert_refused
from conftest import noise, write_photo

from s2f import app_server
from s2f.audio import SAMPLE_RATE

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed: s2f[app]"
)
RECORDINGS = 4
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for temporary files of the server."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(models: Path, temporary: Path) -> Iterator[Server]:
    """The page of a tiny model, that hears 5 s, where a proxy leads nowhere."""
    options = ("--model", models / "demo", "--no-align", "--max-seconds", 5, "--max-mb", 1)
    with Server(*options, environment={"TMPDIR": str(temporary), **NOWHERE}) as server:
        yield server


@pytest.fixture
def visitor(server: Server) -> Visitor:
    return Visitor(server.url)


def speech(seconds: float = 2, seed: int = 0) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, noise(seconds, seed), SAMPLE_RATE, format="WAV")
    return content.getvalue()


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_port_that_is_taken_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_server.metadata, "version", lambda name: app_server.GRADIO)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        assert_refused(Done("app", "--port", port), 2, f"port {port} of 127.0.0.1 is taken")


def test_without_the_extra_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise app_server.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(app_server.metadata, "version", missing)
    done = Done("app")
    assert_refused(done, 5, "gradio")
    assert "pip install 's2f[app]'" in done.err


@needs_gradio
def test_without_a_folder_for_temporary_files_there_is_a_sentence(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(app_server.tempfile, "mkdtemp", refuse)
    done = Done("app", "--port", 0, "--quiet", "--model", models / "demo")
    assert_refused(done, 2, "Read-only file system")


@needs_gradio
def test_it_says_where_it_is_and_what_it_takes(server: Server) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", server.said["url"])
    assert server.said["public_url"] is None
    assert (server.said["max_mb"], server.said["max_seconds"]) == (1, 5)
    _, page = Visitor(server.url).request("GET", "/")
    assert 'lang="en"' in page
    assert "never a likeness of the speaker" in page
    assert "1 MB" in page
    assert "random weights" in page  # of the tiny model's card


@needs_gradio
def test_a_voice_two_voices_and_a_photo_are_answered(
    visitor: Visitor, temporary: Path, tmp_path: Path
) -> None:
    assert "The model heard 2 seconds of speech" in visitor.ask("voice", speech())
    assert "s2f-between" in visitor.ask("voices", speech(), speech(3, seed=1))
    photo = write_photo(tmp_path / "photo.jpg").read_bytes()
    assert "Drawn again" in visitor.ask("photo", photo, name="photo.jpg")
    assert left(temporary) == []


@needs_gradio
def test_only_the_beginning_of_a_long_recording_is_heard(visitor: Visitor) -> None:
    content = io.BytesIO()
    samples = np.zeros(600 * SAMPLE_RATE)  # mostly silent, or it would be too large to be sent
    samples[: 6 * SAMPLE_RATE] = noise(6)
    soundfile.write(content, samples, SAMPLE_RATE, format="FLAC")
    said = visitor.ask("voice", content.getvalue(), name="long.sound")
    assert "Only the first 5 seconds of the recording were heard" in said


ODD = {
    "empty": b"",
    "text": b"This is no sound at all.\n" * 20,
    "zeros": bytes(5000),
    "cut": speech()[:30],
    "silence": speech()[:44] + bytes(2 * SAMPLE_RATE),
}


@needs_gradio
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_speech_is_answered_with_a_sentence(
    visitor: Visitor, temporary: Path, kind: str
) -> None:
    answer = visitor.ask("voice", ODD[kind])
    assert 'role="alert"' in answer
    assert text(answer).strip().endswith(".")
    assert str(temporary) not in answer
    assert "Traceback" not in answer
    assert 'role="alert"' in visitor.ask("photo", ODD[kind], name="photo.jpg")
    assert left(temporary) == []


@needs_gradio
def test_what_is_too_large_is_refused_and_leaves_nothing(visitor: Visitor, temporary: Path) -> None:
    status, said = visitor.send(bytes(2**20 + 1), "large.wav")
    assert (status, "maximum allowed size" in said) == (413, True)
    with contextlib.suppress(ConnectionError, BrokenPipeError):  # it is not even read
        assert visitor.send(bytes(2**24), "huge.wav")[0] == 413
    assert left(temporary) == []


@needs_gradio
def test_no_file_but_a_visitors_own_is_read_and_no_address_is_asked(
    visitor: Visitor, tmp_path: Path
) -> None:
    with socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen(1)
        outside.settimeout(0.5)
        address = f"http://127.0.0.1:{outside.getsockname()[1]}/a.wav"
        assert "deleted already" in visitor.ask_of("voice", address)
        with pytest.raises(TimeoutError):
            outside.accept()
    with pytest.raises(RuntimeError):
        visitor.ask_of("voice", __file__)
    own = write_photo(tmp_path / "own.jpg")  # Gradio checks no path of a picture
    where, body = "/gradio_api/call/photo", json.dumps({"data": [{"path": str(own)}]}).encode()
    _, text = visitor.request("POST", where, body, "application/json")
    _, text = visitor.request("GET", f"{where}/{json.loads(text)['event_id']}")
    assert "deleted already" in text
    assert Path(__file__).is_file() and own.is_file()


@needs_gradio
def test_nothing_given_is_a_sentence_and_what_was_given_stays(
    visitor: Visitor, temporary: Path
) -> None:
    assert "There is nothing to look at" in visitor.ask_of("voice", None)
    _, path = visitor.send(speech(), "anna secret.wav")
    assert "anna" not in path and path.endswith(".wav")
    assert "There is nothing to look at" in visitor.ask_of("voices", path, None)
    assert left(temporary) == [Path(path)]
    assert "The model heard" in visitor.ask_of("voice", path)
    assert "deleted already" in visitor.ask_of("voice", path)


@needs_gradio
def test_visitors_at_once_each_get_their_own_face(server: Server, temporary: Path) -> None:
    """20 requests of 4 visitors; every other one sends the same recording as another."""
    voices = [speech(1 + k / 4, seed=k) for k in range(RECORDINGS)]
    alone = [Visitor(server.url).ask("voice", voice) for voice in voices]
    assert len(set(alone)) == RECORDINGS
    order = [k % RECORDINGS // (1 + k % 2) for k in range(20)]
    together = ask_many(server.url, [("voice", (voices[k],)) for k in order], 4)
    assert together == [alone[k] for k in order]
    assert left(temporary) == []


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_memory_stays_flat(server: Server) -> None:
    """An answer is about 0.7 MB: were each held, 60 of them would be 40 MB."""
    questions = [("voice", (speech(4),))] * 60
    ask_many(server.url, questions[:20], 4)
    early = server.memory()
    assert not [a for a in ask_many(server.url, questions, 4) if "The model heard" not in a]
    assert server.memory() - early < 20


@needs_gradio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_the_middle_of_an_answer_and_leaves_nothing(
    models: Path, tmp_path: Path, number: int
) -> None:
    options = ("--model", models / "demo", "--no-align", "--max-seconds", 600, "--max-mb", 50)
    with Server(*options, environment={"TMPDIR": str(tmp_path)}) as server:
        visitor = Visitor(server.url)
        _, unasked = visitor.send(speech(), "unasked.wav")
        _, path = visitor.send(speech(300), "a.wav")
        assert {Path(unasked), Path(path)} <= set(left(tmp_path))

        def ask() -> None:
            with contextlib.suppress(Exception):  # it ends meanwhile
                visitor.ask_of("voice", path)

        asking = threading.Thread(target=ask)
        asking.start()
        while Path(path).exists():
            time.sleep(0.01)
        assert server.end(number) == 130
        asking.join()
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in "".join(server.errors)


@needs_gradio
def test_without_a_network_there_is_no_public_link_but_a_sentence(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "s2f", "app", "--port", "0", "--no-align", "--share"]
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, "--quiet", "--model", str(models / "demo")],
        capture_output=True,
        text=True,
        env={**os.environ, **NOWHERE, "PYTHONPATH": path},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.splitlines()[0].startswith("error: no public link could be made")
    assert "Traceback" not in done.stderr


@needs_gradio
def test_the_address_is_all_that_it_prints(models: Path) -> None:
    command = [sys.executable, "-m", "s2f", "app", "--port", "0", "--no-align", "--host", "0.0.0.0"]
    with subprocess.Popen(
        [*command, "--model", str(models / "demo")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
    ) as process:
        assert process.stdout
        assert re.fullmatch(r"http://\S+:\d+/\n", process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", 130)
    assert "whoever reaches this machine reaches the page" in said
    assert "nothing of its visitors is kept" in said
