"""`s2f app`: what it prints, refuses and leaves, asked over HTTP as a browser asks it."""

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import Done, assert_refused, files
from conftest import noise, write_photo
from visitors import RefusedError, Server, Visitor, picture, pixels, vector

import s2f
from s2f import SpeechToFace
from s2f.app_server import HEADERS
from s2f.audio import SAMPLE_RATE

EXAMPLES = Path(__file__).parents[1] / "examples"


def ask_many(server: Server, voices: list[bytes], visitors: int = 4) -> list[dict[str, Any]]:
    """Have visitors ask at once, each one question after the other; the answers in order."""
    with ThreadPoolExecutor(visitors) as pool:
        return list(pool.map(lambda voice: Visitor(server).ask("/voice", voice), voices))


@pytest.fixture(scope="module")
def server(models: Path, temporary: Path, tmp_path_factory: Any) -> Iterator[Server]:
    """The page of two tiny models and of half a one, under a proxy's path; it hears 5 s."""
    folder = tmp_path_factory.mktemp("offered")
    for name in ("half", "other"):
        shutil.copytree(models / "other", folder / name)
    (folder / "half" / "voice_encoder.safetensors").unlink()
    options = ("--json", "--model", models / "demo", "--models", folder, "--root-path", "/s2f")
    with Server(*options, "--max-seconds", 5, "--max-mb", 1, TMPDIR=str(temporary)) as server:
        yield server
        code, out, errors = server.end(signal.SIGTERM)
        assert (code, out, errors) == (130, server.said, "")
    assert not list(temporary.iterdir())


@pytest.fixture
def visitor(server: Server) -> Visitor:
    return Visitor(server)


def speech(seconds: float = 2, seed: int = 0) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, noise(seconds, seed), SAMPLE_RATE, format="WAV")
    return content.getvalue()


def test_it_says_where_it_is_and_what_it_takes(server, visitor):
    said = json.loads(server.said)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/s2f/", said.pop("url"))
    assert said == {
        "s2f": s2f.__version__,
        "models": ["demo", "other"],  # and not the half one
        "max_mb": 1,
        "max_seconds": 5,
    }
    status, page = visitor.request("GET", "/")
    for words in ('lang="en"', "never a likeness of the speaker", "1 MB", "5 seconds"):
        assert status == 200 and words in re.sub(r"\s+", " ", page)
    assert '<base href="/s2f/">' in page and page == visitor.request("GET", "/s2f/")[1]
    assert "random weights" in visitor.request("GET", "/s2f/about")[1]  # of the tiny model's card


def test_it_has_all_that_it_refers_to(visitor):
    _, page = visitor.request("GET", "/")
    _, script = visitor.request("GET", "/page.js")
    named = set(re.findall(r'(?:href|src)="([^":]+\.\w+)"', page))
    named |= set(re.findall(r"'([\w.]+\.(?:js|wav|png))'", script)) - {"face.png", "faces.png"}
    assert {"page.css", "page.js", "capture.js", "example.wav", "example.png"} <= named
    kinds = {"js": "text/javascript", "css": "text/css", "wav": "audio/wav", "png": "image/png"}
    for name in named:
        status, headers, _ = visitor.fetch("GET", f"/{name}")
        assert status == 200 and headers.get_content_type() == kinds[name.rpartition(".")[2]]
    for name, path in (("example.wav", "speech.wav"), ("example.png", "face.png")):
        assert visitor.fetch("GET", f"/{name}")[2] == (EXAMPLES / path).read_bytes()


def test_a_voice_and_a_photo_are_answered(visitor, models, temporary, tmp_path):
    (tmp_path / "a.wav").write_bytes(speech())
    photo = write_photo(tmp_path / "photo.jpg")
    for name in ("demo", "other"):
        model = SpeechToFace.load(models / name, device="cpu")
        answer = visitor.ask(f"/voice?model={name}", speech())
        assert picture(answer["face"]) == model.generate(tmp_path / "a.wav").encoded()
        answer = visitor.ask(f"/photo?model={name}", photo.read_bytes())
        assert picture(answer["face"]) == model.reconstruct(photo, align=False).encoded()
    assert visitor.ask("/voice", speech(9))["remarks"] == ["only its first 5 s were heard"]
    first, *_, last = visitor.lines("/voice", speech())
    assert first == {"before": 0} and set(last) == {"answer"}
    assert not files(temporary)


SILENCE = speech()[:44] + bytes(2 * SAMPLE_RATE)


@pytest.mark.parametrize("sent", [b"", b"no sound\n" * 20, bytes(5000), speech()[:30], SILENCE])
def test_what_is_no_speech_is_answered_with_a_sentence(visitor, temporary, sent):
    for question in ("/voice", "/photo"):
        with pytest.raises(RefusedError) as refused:
            visitor.ask(question, sent)
        said = refused.value.said
        assert refused.value.status == 200 and said[0].isupper() and said.endswith(".")
        assert "Traceback" not in said and str(temporary) not in said
    assert not files(temporary)


def test_what_is_too_large_is_refused_and_leaves_nothing(visitor, temporary):
    with pytest.raises(RefusedError, match="too large") as refused:
        visitor.ask("/voice", bytes(2**20 + 1))
    assert refused.value.status == 413
    with contextlib.suppress(ConnectionError, BrokenPipeError):  # it is not even read
        assert visitor.request("POST", "/photo", bytes(2**24))[0] == 413
    assert visitor.request("POST", "/voice", bytes(2**20))[0] == 200
    assert not files(temporary)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /", 200), ("HEAD /", 200), ("GET /page.css", 200), ("GET /about", 200),
        ("POST /", 405), ("GET /voice", 405), ("GET /live", 405), ("POST /page.js", 405),
        ("DELETE /", 405), ("PUT /voice", 405), ("OPTIONS /", 405), ("BREW /", 405),
        ("GET /app.py", 404), ("GET /../app.py", 404), ("GET /%2e%2e/app.py", 404),
        ("GET /page.html", 404), ("GET //etc/passwd", 404), ("POST /nothing", 404),
        ("GET /?model=nobodys", 404), ("POST /save", 404), ("POST /live", 400), ("POST /draw", 400),
    ],
)  # fmt: skip
def test_every_answer_says_what_a_browser_may_do_with_it(visitor, line, status):
    answered, headers, content = visitor.fetch(*line.split())
    assert answered == status and b"Traceback" not in content
    for name, value in HEADERS:
        assert headers.get_all(name.decode()) == [value.decode()]
    assert "unsafe" not in headers["content-security-policy"]


def test_what_is_asked_by_another_name_or_from_another_site_is_refused(visitor):
    def status(method: str, **headers: str) -> int:
        connection = http.client.HTTPConnection(visitor.address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, "/s2f/", headers=headers)
            return connection.getresponse().status

    assert status("GET", Host="localhost:1") == 200
    assert status("GET", Host="example.org") == 421
    assert status("POST", Origin="https://example.org") == 403
    assert status("GET", **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert status("POST", Origin=f"http://{visitor.address}") == 405  # it passes


def test_twelve_visitors_at_once_each_get_their_own_face(server, temporary):
    """Twelve who send voices of their own, and four of them speak meanwhile."""
    voices = [speech(1 + k / 12, seed=k) for k in range(12)]
    alone = [Visitor(server).ask("/voice", voice) for voice in voices]
    assert len({answer["face"] for answer in alone}) == 12

    def speak(k: int) -> str:
        visitor = Visitor(server)
        said = (32767 * noise(2, seed=k)).astype(np.int16)
        pieces = [visitor.speak(piece, SAMPLE_RATE) for piece in np.split(said, 4)]
        return str(pieces[-1]["embedding"])

    spoken = [speak(k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        speaking = pool.map(speak, range(4))
        assert ask_many(server, voices, 12) == alone
        assert list(speaking) == spoken and len(set(spoken)) == 4
    assert not files(temporary)


def test_what_is_drawn_and_saved_is_the_answers_face(visitor):
    answer = visitor.ask("/voice", speech())
    embedding = vector(answer["embedding"]).tobytes()
    drawn = json.loads(visitor.request("POST", "/draw", embedding)[1])
    assert (drawn["landmarks"], drawn["embedding"]) == (answer["landmarks"], answer["embedding"])
    saved = visitor.fetch("POST", "/save?as=face", embedding)[2]
    assert np.array_equal(pixels(saved), pixels(picture(answer["face"])))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_memory_stays_flat(server):
    """An answer is about 0.7 MB: were each held, 40 of them would be 28 MB."""
    ask_many(server, [speech(2)] * 20)
    early = server.memory()
    assert all(answer["heard"] == 2 for answer in ask_many(server, [speech(2)] * 40))
    assert server.memory() - early < 20


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_the_middle_of_an_answer_and_leaves_nothing(models, tmp_path, number):
    options = ("--json", "--model", models / "demo", "--max-seconds", 600, "--max-mb", 50)
    with Server(*options, TMPDIR=str(tmp_path)) as server:
        asked = threading.Event()

        def ask() -> None:
            connection = http.client.HTTPConnection(Visitor(server).address, timeout=60)
            with contextlib.suppress(Exception), contextlib.closing(connection):
                connection.request("POST", "/voice", speech(300))
                answer = connection.getresponse()
                answer.readline()  # its place
                asked.set()
                answer.read()  # it ends meanwhile

        asking = threading.Thread(target=ask)
        asking.start()
        assert asked.wait(60)
        Visitor(server).speak(np.zeros(100, np.int16), SAMPLE_RATE)  # and one is speaking
        time.sleep(0.5)  # it is decoded, or already listened to
        code, _, errors = server.end(number)
        asking.join()
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("host", "address", "number"),
    [
        ("0.0.0.0", "127.0.0.1", signal.SIGINT),
        pytest.param("::", "[::1]", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("[::1]", "[::1]", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_the_address_is_all_that_it_prints(models, tmp_path, host, address, number):
    if ":" in host and not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    (tmp_path / "half").mkdir()
    for kind in ("face_encoder", "face_decoder"):
        shutil.copy(models / "other" / f"{kind}.safetensors", tmp_path / "half")
    shutil.copytree(models / "other", tmp_path / "other")
    options = ("--host", host, "--model", models / "demo", "--models", tmp_path)
    (tmp_path / "tmp").mkdir()
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    with Server(*options, TMPDIR=str(tmp_path / "tmp"), **nowhere) as server:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.said) as page:
            assert page.status == 200 and b'<option value="other">' in page.read()
        code, out, said = server.end(number)
    assert code == 130 and re.fullmatch(rf"http://{re.escape(address)}:\d+/\n", out)
    assert ("whoever reaches this machine reaches the page" in said) == (host != "[::1]")
    assert said.count("not offered") == 1 and "half" in said  # the one that lacks a network
    assert "nothing of its visitors is kept" in said and "Traceback" not in said
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_cannot_be_served_is_refused_before_anything_is_loaded(models, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        assert_refused(Done("app", "--quiet", "--port", port), 2, f"port {port}")
    assert_refused(Done("app", "--models", tmp_path), 4, tmp_path)
    assert_refused(Done("app", "--model", tmp_path), 4, tmp_path)
    assert_refused(Done("app", "--root-path", "s2f"), 2, "s2f")
    assert_refused(Done("app", "--host", "192.0.2.1", "--quiet"), 2, "192.0.2.1")


def test_the_environment_is_left_alone(models):
    from s2f.app import offered, serving
    from s2f.app_server import Settings, check_settings, listen

    before = dict(os.environ)
    settings = check_settings(Settings(port=0, align=False))
    with listen(settings) as listening:
        found = offered(str(models / "demo"), device="cpu")
        with serving(found, settings, listening) as url:
            assert dict(os.environ) == before
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as page:
                assert page.status == 200
    assert dict(os.environ) == before
