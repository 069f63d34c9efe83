"""`s2f app`: what it prints, refuses and leaves, asked over HTTP as a browser asks it."""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile
from command_line import files
from conftest import noise, write_photo
from visitors import Server, Visitor

from s2f import SpeechToFace
from s2f.audio import SAMPLE_RATE

without_gradio = importlib.util.find_spec("gradio") is None
pytestmark = pytest.mark.skipif(without_gradio, reason="gradio is not installed: s2f[app]")
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")


def ask_many(server: Server, voices: list[bytes]) -> list[str]:
    """Have four visitors ask at once, each one question after the other; the answers in order."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda voice: Visitor(server).ask("voice", voice), voices))


@pytest.fixture(scope="module")
def server(models: Path, temporary: Path) -> Iterator[Server]:
    """The page of a tiny model, that hears 5 s, where a proxy leads nowhere."""
    options = ("--json", "--model", models / "demo", "--max-seconds", 5, "--max-mb", 1)
    with Server(*options, TMPDIR=str(temporary), **NOWHERE) as server:
        yield server
        server.end(signal.SIGTERM)


@pytest.fixture
def visitor(server: Server) -> Visitor:
    return Visitor(server)


def speech(seconds: float = 2, seed: int = 0) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, noise(seconds, seed), SAMPLE_RATE, format="WAV")
    return content.getvalue()


def test_it_says_where_it_is_and_what_it_takes(server, visitor):
    said = json.loads(server.said)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", said["url"])
    assert (said["public_url"], said["max_mb"], said["max_seconds"]) == (None, 1, 5)
    _, page = visitor.request("GET", "/")
    for words in ('lang="en"', "never a likeness of the speaker", "1 MB", "random weights"):
        assert words in page  # the last is of the tiny model's card


def test_a_voice_two_voices_and_a_photo_are_answered(visitor, temporary, tmp_path):
    assert "The model heard 2 seconds of speech" in visitor.ask("voice", speech())
    assert "s2f-between" in visitor.ask("voices", speech(), speech(3, seed=1))
    photo = write_photo(tmp_path / "photo.jpg").read_bytes()
    assert "Drawn again" in visitor.ask("photo", photo, name="photo.jpg")
    assert not files(temporary)


SILENCE = speech()[:44] + bytes(2 * SAMPLE_RATE)


@pytest.mark.parametrize("sent", [b"", b"no sound\n" * 20, bytes(5000), speech()[:30], SILENCE])
def test_what_is_no_speech_is_answered_with_a_sentence(visitor, temporary, sent):
    answer = visitor.ask("voice", sent)
    assert 'role="alert"' in answer and "Traceback" not in answer
    assert re.sub(r"<[^>]+>", " ", answer).strip().endswith(".")
    assert str(temporary) not in answer
    assert 'role="alert"' in visitor.ask("photo", sent, name="photo.jpg")
    assert not files(temporary)


def test_what_is_too_large_is_refused_and_leaves_nothing(visitor, temporary):
    status, said = visitor.send(bytes(2**20 + 1), "large.wav")
    assert (status, "maximum allowed size" in said) == (413, True)
    with contextlib.suppress(ConnectionError, BrokenPipeError):  # it is not even read
        assert visitor.send(bytes(2**24), "huge.wav")[0] == 413
    assert not files(temporary)


def test_no_file_but_a_visitors_own_is_read_and_no_address_is_asked(visitor, tmp_path):
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
    assert "deleted already" in visitor.ask_of("photo", str(own), url=None)
    assert Path(__file__).is_file() and own.is_file()


def test_nothing_given_is_a_sentence_and_what_was_given_stays(visitor, temporary):
    assert "There is nothing to look at" in visitor.ask_of("voice", None)
    _, path = visitor.send(speech(), "anna secret.wav")
    assert "anna" not in path and path.endswith(".wav")
    assert "There is nothing to look at" in visitor.ask_of("voices", path, None)
    assert files(temporary) == {Path(path)}
    assert "The model heard" in visitor.ask_of("voice", path)
    assert "deleted already" in visitor.ask_of("voice", path)


def test_visitors_at_once_each_get_their_own_face(server, temporary):
    """20 requests of 4 visitors; every other one sends the same recording as another."""
    voices = [speech(1 + k / 4, seed=k) for k in range(4)]
    alone = [Visitor(server).ask("voice", voice) for voice in voices]
    assert len(set(alone)) == 4
    order = [k % 4 // (1 + k % 2) for k in range(20)]
    assert ask_many(server, [voices[k] for k in order]) == [alone[k] for k in order]
    assert not files(temporary)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_memory_stays_flat(server):
    """An answer is about 0.7 MB: were each held, 40 of them would be 28 MB."""
    ask_many(server, [speech(2)] * 20)
    early = server.memory()
    assert all("The model heard" in answer for answer in ask_many(server, [speech(2)] * 40))
    assert server.memory() - early < 20


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_the_middle_of_an_answer_and_leaves_nothing(models, tmp_path, number):
    options = ("--json", "--model", models / "demo", "--max-seconds", 600, "--max-mb", 50)
    with Server(*options, TMPDIR=str(tmp_path)) as server:
        visitor = Visitor(server)
        sent = [visitor.send(speech(n), "a.wav")[1] for n in (2, 300)]  # one is not asked about
        assert set(map(Path, sent)) <= files(tmp_path)

        def ask() -> None:
            with contextlib.suppress(Exception):  # it ends meanwhile
                visitor.ask_of("voice", sent[1])

        asking = threading.Thread(target=ask)
        asking.start()
        while Path(sent[1]).exists():
            time.sleep(0.01)
        code, _, errors = server.end(number)
        asking.join()
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert "Traceback" not in errors


def test_without_a_network_there_is_no_public_link_but_a_sentence(models, tmp_path, monkeypatch):
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.getenv("PYTHONPATH")]))
    monkeypatch.chdir(tmp_path)
    options = ("--share", "--quiet", "--model", models / "demo")
    with Server(*options, PYTHONPATH=path, **NOWHERE) as server:
        server.wait(timeout=120)
        code, out, errors = server.end(signal.SIGTERM)
    assert (code, out) == (5, "")
    assert errors.startswith("error: no public link could be made") and "Traceback" not in errors


@pytest.mark.parametrize(
    ("host", "address", "number"),
    [
        ("0.0.0.0", "localhost", signal.SIGTERM),
        pytest.param("::", "[::1]", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("[::1]", "[::1]", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_the_address_is_all_that_it_prints(models, tmp_path, host, address, number):
    if ":" in host and not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    options = ("--host", host, "--model", models / "demo")
    with Server(*options, TMPDIR=str(tmp_path), **NOWHERE) as server:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.said) as page:
            assert page.status == 200 and list(tmp_path.iterdir())
        code, out, said = server.end(number)
    assert code == 130 and re.fullmatch(rf"http://{re.escape(address)}:\d+/\n", out)
    assert ("whoever reaches this machine reaches the page" in said) == (host != "[::1]")
    assert "nothing of its visitors is kept" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_given_back_when_the_page_has_gone(models, monkeypatch):
    from s2f.app import serving
    from s2f.app_server import Settings, check_settings

    monkeypatch.setenv("NO_PROXY", "example.org")
    before = dict(os.environ)
    model = SpeechToFace.load(models / "demo", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Gradio uses
        with serving(model, check_settings(Settings(port=0))):
            assert dict(os.environ) != before
    assert dict(os.environ) == before
