"""The page against visitors who mean harm: sockets of this machine, and `s2f app` in a process.

Nothing crashes, no file is read that its visitor did not send, and none stays.
"""

import contextlib
import importlib.util
import io
import json
import signal
import socket
import sys
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import soundfile
from command_line import files
from conftest import noise, write_photo
from damage import Count
from visitors import Server, Visitor

from s2f import app_server
from s2f.audio import SAMPLE_RATE

without_gradio = importlib.util.find_spec("gradio") is None
pytestmark = pytest.mark.skipif(without_gradio, reason="gradio is not installed: s2f[app]")
CANARY = "nobody sent this to the page"
UPLOAD = "/gradio_api/upload"
BREAK = "\r\n"


@pytest.fixture(scope="module")
def server(models: Path, temporary: Path) -> Iterator[Server]:
    """The page of a tiny model; at the end it has run all the time, and told of no bug."""
    options = ("--json", "--model", models / "demo", "--max-seconds", 5, "--max-mb", 1)
    with Server(*options, TMPDIR=str(temporary)) as server:
        yield server
        assert "The model heard" in Visitor(server).ask("voice", speech())
        code, _, said = server.end(signal.SIGTERM)
    assert code == 130 and "Traceback" not in said, said
    assert not list(temporary.iterdir())


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary.wav"
    path.write_text(CANARY)
    return path


def theirs(temporary: Path) -> Path:
    """The folder for what visitors send."""
    (folder,) = temporary.glob(f"{app_server.PREFIX}*")
    return folder


def speech(seconds: float = 2, seed: int = 0) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, noise(seconds, seed), SAMPLE_RATE, format="WAV")
    return content.getvalue()


def connect(server: Server) -> socket.socket:
    address = urllib.parse.urlsplit(json.loads(server.said)["url"])
    return socket.create_connection((address.hostname, address.port), timeout=120)


def head(line: str, *headers: str, host: str | None = "localhost") -> bytes:
    lines = [f"{line} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *headers]
    lines += [] if "Connection:" in "".join(headers) else ["Connection: close"]
    return BREAK.join([*lines, "", ""]).encode("latin-1")


def answer(server: Server, *sent: bytes) -> tuple[int, str]:
    """Send bytes, and read until the server has no more: its status, and all that it said.

    The status is 0 where it broke off before it had all, and its answer was lost.
    """
    with connect(server) as visitor:
        said = b""
        with contextlib.suppress(ConnectionError):  # it need not listen to all
            for part in sent:
                visitor.sendall(part)
        with contextlib.suppress(ConnectionError):
            while part := visitor.recv(1 << 16):
                said += part
    return int(said.split()[1]) if said else 0, said.decode("utf-8", "replace")


def form(content: bytes, name: str = "a.wav") -> tuple[list[str], bytes]:
    """A file that is sent: headers but for its length, and the body."""
    place = f'--x{BREAK}Content-Disposition: form-data; name="files"; filename="{name}"'
    body = b"%b\r\n\r\n%b\r\n--x--\r\n" % (place.encode(), content)
    return ["Content-Type: multipart/form-data; boundary=x"], body


def post(where: str, body: bytes, *headers: str, **how: Any) -> bytes:
    return head(f"POST {where}", f"Content-Length: {len(body)}", *headers, **how) + body


JSON = "Content-Type: application/json"


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org:{port}", "10.0.0.1", "", None]
)
def test_who_takes_another_name_for_this_machine_is_refused(server, host):
    """DNS rebinding: a name of a stranger's, which he has point here."""
    port = urllib.parse.urlsplit(json.loads(server.said)["url"]).port
    host = host and host.format(port=port)
    headers, body = form(speech())
    for request in (
        head("GET /", "X-Forwarded-Host: localhost", host=host),
        head("GET /config", host=host),
        post(UPLOAD, body, *headers, f"Origin: http://{host}", host=host),
    ):
        status, said = answer(server, request)
        assert status in (0, 400, 421) and "gradio" not in said


def test_this_machines_own_names_are_not(server):
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "[::1]:7860", "[::1]"):
        assert answer(server, head("GET /", host=host))[0] == 200, host


ELSEWHERE = [
    ["Origin: https://example.org"],
    ["Origin: http://localhost:3000"],
    ["Origin: null"],
    ["Sec-Fetch-Site: cross-site"],
    ["Sec-Fetch-Site: same-site", "Origin: http://localhost"],
    ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"],
]


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_what_a_page_of_another_site_posts_is_refused(server, temporary, headers):
    kind, body = form(speech())
    ask = json.dumps({"data": [None]}).encode()
    for request in (
        post(UPLOAD, body, *kind, *headers),
        post("/gradio_api/call/voice", ask, "Content-Type: text/plain", *headers),
        post("/gradio_api/queue/join", ask, JSON, *headers),
    ):
        assert answer(server, request)[0] in (0, 403)
    assert not files(temporary)


def test_a_link_from_another_site_and_what_is_no_browser_pass(server):
    for headers in (
        ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"],
        ["Sec-Fetch-Site: same-origin"],
        ["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"],
    ):
        assert answer(server, head("GET /", *headers))[0] == 200
    ask = json.dumps({"data": [None]}).encode()
    for own in (["Origin: http://localhost"], ["Sec-Fetch-Site: same-origin"], []):
        request = post("/gradio_api/call/voice", ask, JSON, *own)
        assert answer(server, request)[0] == 200
    assert answer(server, head("GET /config", "Sec-Fetch-Site: cross-site"))[0] == 403


def disguises(path: str) -> list[str]:
    """One path as routes of Gradio's may be asked for it."""
    up, quote = "../" * 12 + path.lstrip("/"), urllib.parse.quote
    climbing = [up, quote(up, safe=""), up.replace("../", "..%2f"), up.replace("/", "%5c")]
    climbing += [up.replace("../", "....//")]
    climbing += [up.replace("..", "%2e%2e"), up.replace("..", "%252e%252e")]
    names = [path, quote(path, safe=""), f"/{path}", f"//{path}", f"file://{path}"]
    names += [f"{path}%00.wav", *climbing]
    routes = ["file=", "file/", "deep_link?", "stream/a/1/1/"]
    routes += ["custom_component/1/client/component/"]
    where = [f"/gradio_api/{route}{name}" for route in routes for name in names]
    pages = ("static", "assets", "svelte")
    return where + [f"/{route}/{name}" for route in pages for name in climbing]


def test_no_path_leads_to_a_file_that_nobody_sent(server, canary, temporary):
    count, folder = Count(), theirs(temporary)
    own = "/etc/passwd", "/proc/self/environ", app_server.__file__, str(folder)
    leaks = (CANARY, "root:", "TMPDIR=", "def has_room", str(folder))
    for path in (str(canary), *own):
        for where in disguises(path):
            status, said = answer(server, head(f"GET {where}"))
            assert status in range(400, 500) or "<html" in said.lower(), (where, said[:500])
            body = said.replace(where, "").replace(path, "")  # it may say what is not there
            assert not [leak for leak in leaks if leak in body], (where, said[:500])
            count.tried, count.refused = count.tried + 1, count.refused + 1
    print(f"paths: {count}")
    assert canary.read_text() == CANARY


def test_no_value_of_a_field_leads_to_one(server, canary, temporary):
    """Whatever stands where a file's path is wanted, the answer is a refusal, and it is there."""
    count, visitor = Count(), Visitor(server)
    meta = {"_type": "gradio.FileData"}
    for path in (str(canary), "/etc/passwd", "/proc/self/mem", "/dev/zero", "../canary.wav", "."):
        for value in (
            {"path": path, "meta": meta},
            {"path": path, "url": None},
            {"path": path, "url": f"file://{path}", "meta": meta},
            {"path": f"/gradio_api/file={path}", "url": f"/gradio_api/file={path}", "meta": meta},
            {"url": f"http://localhost/gradio_api/file={path}", "path": "", "meta": meta},
            [{"path": path, "meta": meta}],
            path,
        ):
            for question in ("voice", "photo"):
                count.tried += 1
                body = json.dumps({"data": [value]}).encode()
                where = f"/gradio_api/call/{question}"
                status, said = visitor.request("POST", where, body)
                if status == 200:
                    _, said = visitor.request("GET", f"{where}/{json.loads(said)['event_id']}")
                assert CANARY not in said and "root:" not in said and "src=" not in said
                assert "error" in said or "refusal" in said or "alert" in said or status == 422
                count.refused += 1
    print(f"values of fields: {count}")
    assert canary.read_text() == CANARY and not files(temporary)


NAMES = [
    "../../canary.wav", "/etc/passwd", "..", ".", "", "a/../../b.wav", "a\\..\\b.wav", "a.wav/",
    "a\x01b.wav", "a" * 300 + ".wav", "a.wav" + "b" * 300, "\u202egnp.wav", "a.\U0001f600",
    "CON.wav", "a.wav%00.png", "a.wav:b", "~", "-rf",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_is_called_leads_nowhere(server, temporary, tmp_path, name):
    before = files(tmp_path)
    visitor, folder = Visitor(server), theirs(temporary)
    status, path = visitor.send(speech(1), name)
    if status == 200 and path:
        assert Path(path).resolve().is_relative_to(folder)
        assert "The model heard" in visitor.ask_of("voice", path)
    assert not files(temporary) and files(tmp_path) == before


def bodies() -> dict[str, bytes]:
    """What no browser sends."""
    headers, body = form(speech(1))
    (kind,) = headers
    field = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nno file\r\n--x--\r\n'
    deep = b'{"data": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    empty, long = form(b"")[1].removesuffix(b"--x--\r\n"), b"b" * 20_000
    waiting = "/gradio_api/queue/data?session_hash"
    join, call = "/gradio_api/queue/join", "/gradio_api/call/voice"
    requests = {
        "no type": post(UPLOAD, body),
        "text": post(UPLOAD, body, "Content-Type: text/plain"),
        "no boundary": post(UPLOAD, body, "Content-Type: multipart/form-data"),
        "another boundary": post(UPLOAD, body, kind.replace("=x", "=y")),
        "a charset that is none": post(UPLOAD, body, f"{kind}; charset=none"),
        "a charset that does not fit": post(
            UPLOAD, body.replace(b"a.wav", b"\xff\xfe"), f"{kind}; charset=utf-16"
        ),
        "a field for a file": post(UPLOAD, field, kind),
        "nothing": post(UPLOAD, b"", kind),
        "half a part": post(UPLOAD, body[:40], kind),
        "no end": post(UPLOAD, body[:-9], kind),
        "no name": post(UPLOAD, body.replace(b'name="files"', b"a=b"), kind),
        "headers": post(UPLOAD, body.replace(b"\r\n\r\n", b"\r\nA: %b\r\n\r\n" % long), kind),
        "two thousand files": post(UPLOAD, empty * 2000 + b"--x--\r\n", kind),
        "deep": post(join, deep, JSON),
        "deep call": post(call, deep, JSON),
        "a number": post(join, b"1", JSON),
        "no JSON": post(join, b"\xff{", JSON),
        "nothing asked": post(call, b"{}", JSON),
        "a negative length": head(f"POST {UPLOAD}", "Content-Length: -1", kind),
        "two lengths": head(f"POST {UPLOAD}", "Content-Length: 1", "Content-Length: 2", kind),
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        "a WebSocket": head(
            f"GET {waiting}=a", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        "a method": head("BREW /"),
        "a large head": head("GET /", *(f"A{k}: {'b' * 1000}" for k in range(100))),
        "no session": head(f"GET {waiting}=nobodys"),
        "no event": head("GET /gradio_api/call/voice/nobodys"),
        "no upload": head("GET /gradio_api/upload_progress?upload_id=nobodys"),
    }  # fmt: skip
    for n, value in enumerate((-1, 2**70, "0", None, [], 1e400, 99)):
        asked = {"data": [None], "fn_index": value, "session_hash": "s"}
        requests[f"function {n}"] = post(join, json.dumps(asked).encode(), JSON)
    datas = [], [None] * 99, None, {}, [{}], ["a"], [1], [[None]], [{"path": 1}]
    for n, data in enumerate(datas):
        asked = {"data": data, "fn_index": 0, "session_hash": f"s{n}", "trigger_id": data}
        requests[f"data {n}"] = post(join, json.dumps(asked).encode(), JSON)
    return requests


@pytest.mark.parametrize("name", bodies())
def test_what_no_browser_sends_is_refused(server, temporary, name):
    status, said = answer(server, bodies()[name])
    assert "Traceback" not in said and status < 500, said[:500]
    for path in files(temporary):  # what is a file all the same, under another name say
        assert status == 200 and path.name in said, (status, path)
        path.unlink()
    assert status == 200 or str(temporary) not in said


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def test_who_sends_more_than_he_says_is_cut_off(server, temporary):
    """Of two lengths the one that the page looks at is not the one that counts."""
    kind, body = form(bytes(2**20))
    lengths = ("Content-Length: 10", "Transfer-Encoding: chunked")
    status, _ = answer(server, head(f"POST {UPLOAD}", *kind, *lengths), *[chunked(body)] * 40)
    assert status in (400, 413) and not files(temporary)
    asked = b'{"data": ["' + bytes(2**20) + b'"]}'
    where = "POST /gradio_api/queue/join"
    status, _ = answer(server, head(where, JSON, *lengths), *[chunked(asked)] * 40)
    assert status in (400, 413)
    status, _ = answer(server, head(f"POST {UPLOAD}", *kind, "Content-Length: 999999999"), body)
    assert status == 413 and not files(temporary)


def test_what_did_not_arrive_whole_does_not_stay(server, temporary):
    """Half a file, two of three, or a last part without its end."""
    kind, body = form(speech(2))
    part = body.removesuffix(b"--x--\r\n")
    for sent in (body[:2000], part, part + part + body[:9000], body[:-3]):
        with connect(server) as visitor:
            length = f"Content-Length: {len(sent) + 10_000}"
            visitor.sendall(head(f"POST {UPLOAD}", *kind, length) + sent)
            end = time.monotonic() + 60
            while not files(temporary) and time.monotonic() < end:
                time.sleep(0.01)
            assert files(temporary)
        while files(temporary) and time.monotonic() < end:
            time.sleep(0.01)
        assert not files(temporary)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_what_a_killed_server_left_goes_when_the_next_one_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(app_server.tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{app_server.PREFIX}link").symlink_to(tmp_path / "own")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/file").write_text(CANARY)
    with app_server.private_folder() as living:
        (living / "sent.wav").write_bytes(b"1")
        left = tmp_path / f"{app_server.PREFIX}left"
        (left / "x").mkdir(parents=True)
        (left / "x/sent.wav").write_bytes(b"1")
        with app_server.private_folder() as other:
            assert not left.exists() and (living / "sent.wav").exists() and other != living
    assert {path.name for path in tmp_path.iterdir()} == {"own", f"{app_server.PREFIX}link"}
    assert (tmp_path / "own/file").read_text() == CANARY


def test_where_locks_keep_nobody_out_no_server_takes_anothers_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(app_server.tempfile, "tempdir", str(tmp_path))
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # as some networks have it
    with app_server.private_folder() as living, app_server.private_folder() as other:
        assert living.is_dir() and other.is_dir()


def test_patience_ends_for_what_has_not_moved(monkeypatch):
    now = 0.0
    monkeypatch.setattr(app_server.time, "monotonic", lambda: now)
    patience, found = app_server.Patience(), []
    for now in (0.0, 50.0, 61.0, 70.0, 132.0, 140.0):  # b moves at 61, c comes at 70
        states = {"a": 1, "b": now >= 61} | ({"c": 1} if now >= 70 else {})
        found.append(patience.ends_for(states if now < 140 else {}))
    assert found == [[], [], ["a"], ["a"], ["a", "b", "c"], []]


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at a process in /proc")


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def wait_until(is_so: Any, seconds: float) -> float:
    """Wait, at most some seconds, and say how long it was."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < seconds
        time.sleep(0.1)
    return time.monotonic() - start


def drip(visitors: list[socket.socket], seconds: float) -> None:
    """Send a byte more for each of many now and then, to those who still listen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for visitor in visitors:
            with contextlib.suppress(OSError):
                visitor.send(b"a")
        time.sleep(5)


def ended(visitor: socket.socket) -> bool:
    visitor.settimeout(0.01)
    try:
        return not visitor.recv(1 << 16)
    except TimeoutError:
        return False
    except OSError:
        return True


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_who_is_slow_is_broken_off_and_holds_nobody_up(server, temporary):
    """Heads that drip, bodies that stop, connections that say nothing; 300 at once."""
    before, (kind, body) = open_files(server), form(bytes(10**6))
    start = head(f"POST {UPLOAD}", *kind, f"Content-Length: {len(body)}")
    with contextlib.ExitStack() as stack:
        visitors = [stack.enter_context(connect(server)) for _ in range(300)]
        dripping, stopped = visitors[:100], visitors[100:200]
        for visitor in dripping:
            visitor.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ")
        for visitor in stopped:
            visitor.sendall(start + body[:100_000])
        wait_until(lambda: len(files(temporary)) == 100, 60)
        began, waits = time.monotonic(), []
        for _ in range(10):
            asked = time.monotonic()
            assert "The model heard" in Visitor(server).ask("voice", speech())
            waits.append(time.monotonic() - asked)
        drip(dripping, 60)
        wait_until(lambda: all(ended(visitor) for visitor in visitors), 60)
        seconds = time.monotonic() - began
    wait_until(lambda: open_files(server) <= before + 5, 30)
    assert not files(temporary)
    print(f"300 slow: all broken off after {seconds:.0f} s; others waited {max(waits):.2f} s")


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_who_takes_more_connections_than_there_are_is_broken_off(models, tmp_path):
    import resource

    with Server("--json", "--model", models / "demo", TMPDIR=str(tmp_path)) as server:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (128, 128))
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(connect(server)).sendall(b"GET /")
            start = time.monotonic()
            assert "The model heard" in Visitor(server).ask("voice", speech())
            print(f"200 connections where 128 files may be: {time.monotonic() - start:.0f} s")
        assert server.end(signal.SIGTERM)[0] == 130
    assert not files(tmp_path)


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_a_page_behind_a_proxy_is_asked_by_the_name_of_that(models):
    where = ("--root-path", "https://example.org/s2f")
    with Server("--json", "--model", models / "demo", *where) as server:
        kind, body = form(speech())
        for host in ("example.org", "localhost"):
            assert answer(server, head("GET /s2f/", host=host))[0] == 200
            sent = post(UPLOAD, body, *kind, "Origin: https://example.org", host=host)
            assert answer(server, sent)[0] == 200
        assert answer(server, head("GET /s2f/", host="example.com"))[0] == 421
        assert server.end(signal.SIGTERM)[0] == 130


def ask_and_leave(server: Server, n: int, reads: bool) -> list[socket.socket]:
    """Ask many times, and do not come for the answers, or not read them to their end."""
    waiting = []
    for _ in range(n):
        visitor = Visitor(server)
        data = [{"path": visitor.send(speech(), "a.wav")[1], "meta": {"_type": "gradio.FileData"}}]
        where = "/gradio_api/call/voice"
        _, said = visitor.request("POST", where, json.dumps({"data": data}).encode())
        if reads:
            address = urllib.parse.urlsplit(json.loads(server.said)["url"])
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            listening.connect((address.hostname, address.port))
            listening.sendall(head(f"GET {where}/{json.loads(said)['event_id']}"))
            waiting.append(listening)
        while files(Path(data[0]["path"]).parent.parent):
            time.sleep(0.02)  # it is answered in turn
    return waiting


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("reads", [False, True])
def test_answers_that_nobody_takes_are_forgotten(server, temporary, reads):
    """Each is about 0.7 MB: the memory of those who came before serves for the next ones."""
    before, memory = open_files(server), [server.memory()]
    for _ in range(3):
        waiting = ask_and_leave(server, 60, reads)
        most = server.memory()
        wait_until(lambda: open_files(server) <= before + 5, 120)
        time.sleep(0 if reads else 75)
        memory.append(server.memory())
        for visitor in waiting:
            visitor.close()
    told = ", ".join(f"{m:.0f}" for m in memory)
    what = "read" if reads else "fetched"
    print(f"60 answers that are not {what}, 3 times: {told} MB; {most:.0f} before they went")
    assert memory[-1] - memory[1] < 20 and not files(temporary)


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_fifty_at_once_are_answered_or_told_that_the_queue_is_full(server, temporary):
    voices = [speech(1 + k % 3, seed=k % 5) for k in range(50)]
    alone = {k: Visitor(server).ask("voice", voices[k]) for k in range(15)}
    count, paths = Count(), {}

    def ask(k: int) -> str:
        visitor = Visitor(server)
        paths[k] = visitor.send(voices[k], "a.wav")[1]
        try:
            return visitor.ask_of("voice", paths[k])
        except KeyError:  # there is no event: it was refused
            return ""

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    for k, said in enumerate(answers):
        count.tried += 1
        count.done += bool(said)
        if not said:
            count.refused += 1
            answers[k] = Visitor(server).ask_of("voice", paths[k])
    print(f"50 at once: {count}")
    assert [answers[k] for k in range(50)] == [alone[k % 15] for k in range(50)]
    assert count.done >= 32 and not files(temporary)


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_five_hundred_requests(server, temporary, tmp_path):
    """Of which a tenth each is a photo, is none, is broken off, has a long name of a session."""
    photo = write_photo(tmp_path / "photo.jpg").read_bytes()
    kind, body = form(speech())

    def ask(k: int) -> str:
        visitor = Visitor(server)
        if k % 10 == 0:
            return visitor.ask("photo", photo, name="photo.jpg")
        if k % 10 == 1:
            return visitor.ask("voice", b"no sound" * 100)
        if k % 10 == 2:
            with connect(server) as broken:
                broken.sendall(post(UPLOAD, body, *kind)[:-1000])
            return ""
        if k % 10 == 3:
            asked = {"data": [None], "fn_index": 0, "session_hash": f"{k}" * 10_000}
            visitor.request("POST", "/gradio_api/queue/join", json.dumps(asked).encode())
            return ""
        return visitor.ask("voice", speech(1 + k % 4))

    memory = [server.memory()]
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, 600, 100):
            answers = list(pool.map(ask, range(start, start + 100)))
            assert sum("The model heard" in answer for answer in answers) == 60
            memory.append(server.memory())
    print(f"500 requests after 100: {', '.join(f'{m:.0f}' for m in memory)} MB")
    wait_until(lambda: not files(temporary), 10)
    assert memory[-1] - memory[1] < 20


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_what_was_sent_goes_with_the_next_start_after_a_kill(models, tmp_path):
    options = ("--json", "--model", models / "demo", "--max-seconds", 600, "--max-mb", 50)
    for _ in range(5):
        with Server(*options, TMPDIR=str(tmp_path)) as server:
            assert theirs(tmp_path).is_dir() and not files(tmp_path)  # the one folder
            kind, body = form(speech(20))
            with connect(server) as broken:
                broken.sendall(post(UPLOAD, body, *kind)[:-1000])
                visitor = Visitor(server)
                sent = [visitor.send(speech(n), "a.wav")[1] for n in (2, 300)]
                asked = {"data": [{"path": sent[1], "meta": {"_type": "gradio.FileData"}}]}
                where = "/gradio_api/call/voice"
                visitor.request("POST", where, json.dumps(asked).encode())
                wait_until(lambda: len(files(tmp_path)) == 2, 60)  # the half and the first
                server.kill()
                server.wait()
            assert len(files(tmp_path)) == 2
            wait_until(lambda: not processes(tmp_path), 60)
    with Server(*options, TMPDIR=str(tmp_path)) as server:
        assert not files(tmp_path)
        server.end(signal.SIGTERM)
    assert not list(tmp_path.glob(f"{app_server.PREFIX}*"))


def processes(folder: Path) -> list[str]:
    """Processes, of any kind, whose temporary files are in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended
            if f"TMPDIR={folder}\0".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found
