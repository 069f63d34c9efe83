"""The page against visitors who mean harm: sockets of this machine, and `s2f app` in a process.

Nothing crashes, no file is read that is not the page's, and none is written.
"""

import asyncio
import contextlib
import ctypes
import io
import json
import math
import os
import secrets
import signal
import socket
import struct
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import EMBEDDING, noise, write_photo
from damage import Count
from visitors import RefusedError, Server, Visitor

from s2f import SpeechToFace, app, app_server
from s2f.app_server import Settings
from s2f.audio import SAMPLE_RATE

CANARY = "nobody sent this to the page"
BREAK = "\r\n"
PIECE = (noise(0.5) * 32767).astype("<i2")  # of sound, as a browser sends them
FACE = np.ones(EMBEDDING, "<f4").tobytes()
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at a process in /proc")


@pytest.fixture(scope="module")
def server(models: Path, temporary: Path) -> Iterator[Server]:
    """The page of a tiny model; at the end it has run all the time, and written no file."""
    options = ("--json", "--model", models / "demo", "--max-seconds", 5, "--max-mb", 1)
    with Server(*options, TMPDIR=str(temporary)) as server:
        with Changes(temporary) as changes:
            yield server
            assert Visitor(server).ask("/voice", speech())["heard"] == 2
            assert not changes.names()
        code, _, said = server.end(signal.SIGTERM)
    assert code == 130 and "Traceback" not in said, said
    assert not list(temporary.iterdir())


class Changes:
    """Sees every file that is made in a folder or a folder in it, be it for a moment; on Linux."""

    def __init__(self, folder: Path) -> None:
        self.folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]

    def __enter__(self) -> "Changes":
        if sys.platform == "linux":
            system = ctypes.CDLL(None)
            self.file = system.inotify_init1(os.O_NONBLOCK)
            for folder in self.folders:  # that are made, moved here, or written to
                assert system.inotify_add_watch(self.file, os.fsencode(folder), 0x182) > 0
        return self

    def names(self) -> list[str]:
        """Names of what was made since the last time."""
        found = []
        with contextlib.suppress(BlockingIOError, AttributeError):
            while data := os.read(self.file, 1 << 16):
                while data:
                    (length,) = struct.unpack_from("I", data, 12)
                    found.append(data[16 : 16 + length].rstrip(b"\0").decode())
                    data = data[16 + length :]
        return found

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self.file)


def test_what_is_made_in_a_folder_for_a_moment_is_seen(tmp_path):
    with Changes(tmp_path) as changes:
        assert not changes.names()
        (tmp_path / "a").touch()
        (tmp_path / "a").unlink()
        assert changes.names() == ["a"] or sys.platform != "linux"


def speech(seconds: float = 2, seed: int = 0) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, noise(seconds, seed), SAMPLE_RATE, format="WAV")
    return content.getvalue()


def live(**asked: object) -> str:
    """Where a piece of sound is sent to, by default of a new visitor."""
    asked = {"visit": secrets.token_hex(16), "rate": SAMPLE_RATE} | asked
    return f"/live?{urllib.parse.urlencode(asked)}"


def posts() -> dict[str, bytes]:
    """All that can be sent, and where to."""
    sound = {"/voice": speech(), live(): PIECE.tobytes()}
    return sound | {"/photo": b"no photo", "/draw": FACE, "/save?as=face": FACE}


def connect(server: Server, listens: int | None = None) -> socket.socket:
    """Connect; who `listens` only to so many bytes at a time soon takes no more of an answer."""
    address = urllib.parse.urlsplit(json.loads(server.said)["url"])
    visitor = socket.socket()
    if listens:
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, listens)
    visitor.settimeout(120)
    visitor.connect((address.hostname, address.port))
    return visitor


def head(line: str, *headers: str, host: str | None = "localhost") -> bytes:
    lines = [f"{line} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *headers]
    lines += [] if "Connection:" in "".join(headers) else ["Connection: close"]
    return BREAK.join([*lines, "", ""]).encode("latin-1")


def post(where: str, body: bytes, *headers: str, **how: Any) -> bytes:
    return head(f"POST {where}", f"Content-Length: {len(body)}", *headers, **how) + body


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


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org:{port}", "10.0.0.1", "", "localhost/?", None]
)
def test_who_takes_another_name_for_this_machine_is_refused(server, host):
    """DNS rebinding: a name of a stranger's, which he has point here."""
    port = urllib.parse.urlsplit(json.loads(server.said)["url"]).port
    host = host and host.format(port=port)
    own = [f"Origin: http://{host}", "X-Forwarded-Host: localhost", "Forwarded: host=localhost"]
    for request in (
        *(head(f"GET {where}", *own, host=host) for where in ("/", "/about", "/page.js")),
        *(post(where, body, *own, host=host) for where, body in posts().items()),
    ):
        status, said = answer(server, request)
        assert status in (0, 400, 421) and "face" not in said


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
def test_what_a_page_of_another_site_posts_is_refused(server, headers):
    for where, body in posts().items():
        assert answer(server, post(where, body, *headers))[0] in (0, 403), where


def test_a_link_from_another_site_and_what_is_no_browser_pass(server):
    for headers in (
        ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"],
        ["Sec-Fetch-Site: same-origin"],
        ["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"],
    ):
        assert answer(server, head("GET /", *headers))[0] == 200
    for own in (["Origin: http://localhost"], ["Sec-Fetch-Site: same-origin"], []):
        for where, body in posts().items():
            assert answer(server, post(where, body, *own))[0] == 200, where
    for where in ("/about", "/page.js", "/example.wav"):
        assert answer(server, head(f"GET {where}", "Sec-Fetch-Site: cross-site"))[0] == 403


def disguises(path: str) -> list[str]:
    """One path, as it may be asked for."""
    up, quote = "../" * 12 + path.lstrip("/"), urllib.parse.quote
    climbing = [up, quote(up, safe=""), up.replace("../", "..%2f"), up.replace("/", "%5c")]
    climbing += [up.replace("../", "....//"), up.replace("../", "..\\"), up.replace("../", "..;/")]
    climbing += [up.replace("..", "%2e%2e"), up.replace("..", "%252e%252e")]
    climbing += [up.replace("/", "%c0%af"), up.replace("/", "%ef%bc%8f")]
    names = [path, quote(path, safe=""), f"/{path}", f"//{path}", f"file://{path}"]
    names += [f"{path}%00.css", f"{path}?page.css", f"{path}#page.css", *climbing]
    folders = ("", "page.css", "page.js/..", "example.wav", "static", "file=", "about", "voice")
    where = [f"/{folder}/{name}" for folder in folders for name in names]
    whole = ("http://localhost/", "http://example.org/", "//localhost/", "localhost/", "")
    return where + [f"{start}{name}" for start in whole for name in names]


END = ("/", "/.", "%00", "%2f..", ";", "%20")
OWN = ("app.py", "page.html", "about.html", "__init__.py", "cli.py", "models", "speech.wav")
LEAKS = (CANARY, "root:", "TMPDIR=", "def has_room", "import asyncio", "{%")


def test_no_path_leads_to_a_file_that_is_not_the_pages(server, tmp_path):
    count, canary = Count(), tmp_path / "canary.css"
    canary.write_text(CANARY)
    paths = [str(canary), "/etc/passwd", "/proc/self/environ", app_server.__file__]
    for where in (
        *(where for path in paths for where in disguises(path)),
        *(f"{start}{name}" for start in ("/", "/./", "//", "/page.css/../") for name in OWN),
        *(f"/{name}{end}" for name in app.FILES for end in END),
        "/PAGE.CSS", "/example", "/example.txt", "/capture.py", "/s2f/page.css",
    ):  # fmt: skip
        status, said = answer(server, head(f"GET {urllib.parse.quote(where, safe='/%:?#=;&')}"))
        is_home = urllib.parse.urlsplit(where).path in ("", "/")
        assert status in range(400, 500) or is_home, (where, said[:500])
        assert not [leak for leak in LEAKS if leak in said], (where, said[:500])
        count.tried, count.refused = count.tried + 1, count.refused + 1
    print(f"paths: {count}")
    assert canary.read_text() == CANARY


async def inside(page: app.Page, where: str, body: bytes | None = None, host: str = "a"):
    """Ask a page that no guard stands before: the status, and what came."""
    sent: list[Any] = []
    came = [{"type": "http.request", "body": body or b""}]

    async def receive() -> Any:
        return came.pop() if came else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = where.partition("?")
    scope = {"type": "http", "method": "GET" if body is None else "POST", "path": path}
    scope |= {"raw_path": path.encode(), "query_string": query.encode(), "root_path": ""}
    await page.app()({**scope, "headers": [(b"host", host.encode())]}, receive, send)
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize("host", ["a/app.py?", "a/about.html#", "a\\app.py", "[", "a/..", "@a/"])
def test_no_name_of_a_host_leads_to_another_file(host):
    """With `--host 0.0.0.0` the page is asked by any name, of which some make addresses."""
    style = Path(app.__file__).with_name("page.css").read_bytes()
    page = app.Page({"demo": lambda: pytest.fail("no model is wanted")}, Settings())
    assert asyncio.run(inside(page, "/page.css", host=host)) == (200, style)
    assert asyncio.run(inside(page, "/page.css/", host=host))[0] == 404  # it is sent nowhere


TRICKS = (
    "../demo", "/etc", "demo/", "demo\0", "..", "__class__", "<script>alert(1)</script>",
    "none\r\nSet-Cookie: a=b", "\u202eomed", "a" * 20_000,
)  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_no_name_of_a_model_leads_to_another(server, name):
    query = urllib.parse.urlencode({"model": name})
    for where in ("/", "/about"):
        status, said = answer(server, head(f"GET {where}?{query}"))
        assert status == 404 and "text/plain" in said and "nosniff" in said
    for where, body in posts().items():
        how = "&" if "?" in where else "?"
        status, said = answer(server, post(f"{where}{how}{query}", body))
        started = said.partition(BREAK * 2)
        assert "Set-Cookie" not in started[0] and "root:" not in said
        refused = "refused" in started[2] and "answer" not in started[2]
        assert status == 400 or (status == 200 and refused), where


def requests() -> dict[str, bytes]:
    """What no browser sends."""
    body = speech(1)
    form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n1\r\n--x--\r\n'
    return {
        "nothing": post("/voice", b""),
        "half a file": post("/voice", body[:1000]),
        "no sound": post("/voice", b"no sound" * 100),
        "no photo": post("/photo", b"\x89PNG\r\n\x1a\n" + bytes(99)),
        "a form": post("/voice", form, "Content-Type: multipart/form-data; boundary=x"),
        "JSON": post("/voice", b'{"a": ' * 9999, "Content-Type: application/json"),
        "a charset that is none": post("/voice", b"a", "Content-Type: text/plain; charset=none"),
        "a negative length": head("POST /voice", "Content-Length: -1"),
        "two lengths": head("POST /voice", "Content-Length: 1", "Content-Length: 2") + b"a",
        "two lengths in one": head("POST /voice", "Content-Length: 1, 2") + b"a",
        "a length that is none": head("POST /voice", "Content-Length: 0x10") + b"a",
        "a length of other digits": head("POST /voice", "Content-Length: \xb2\xb3") + b"a",
        "a long length": head("POST /voice", "Content-Length: " + "9" * 5000),
        "no length": head("POST /voice"),
        "chunks": head("POST /voice", "Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n\r\n",
        "strange chunks": head("POST /voice", "Transfer-Encoding: chunked, identity") + b"1",
        "a request in another": post("/draw", head("GET /about"), "Transfer-Encoding : chunked"),
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a WebSocket": head(
            "GET /live", "Upgrade: websocket", "Connection: Upgrade, close",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        "a method": head("BREW /"),
        "another method": head("GET /voice"),
        "a method that the page has not": head("DELETE /page.css"),
        "a large head": head("GET /page", *(f"A{k}: {'b' * 1000}" for k in range(100))),
        "a long path": head(f"GET /{'a' * 10**6}"),
        "a proxy's": head("CONNECT localhost:22"),
        "no visit": post("/live?rate=16000", b"ab"),
        "half a sample": post(live(), PIECE.tobytes()[:-1]),
        "no form": post("/save", FACE),
        "another form": post("/save?as=../face", FACE),
        "no face": post("/draw", b""),
        "half a number": post("/draw", FACE[:-1]),
        "two faces": post("/draw", FACE * 2),
        "two faces in one": post("/save?as=face", FACE * 2),
        "many faces": post("/save?as=animation", FACE * 301),
        "a large sheet": post(f"/save?as=sheet{'&name=a' * 13}", FACE * 13),
        "a sheet without names": post("/save?as=sheet", FACE * 2),
        "a sheet of too many names": post("/save?as=sheet&name=a&name=b", FACE),
        "a name of a megabyte": post(f"/save?as=sheet&name={'a' * 10**6}", FACE),
    }  # fmt: skip


@pytest.mark.parametrize("name", requests())
def test_what_no_browser_sends_is_refused(server, name):
    status, said = answer(server, requests()[name])
    assert status in (0, *range(400, 500)) or '{"refused": ' in said, said[:500]
    assert '{"answer"' not in said and "Traceback" not in said
    assert said.count("HTTP/1.1") <= 1  # it is one request


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, -1e20, 1e9])
def test_embeddings_of_no_face_are_refused(server, value):
    wrong = np.full(EMBEDDING, value, "<f4").tobytes()
    one = np.frombuffer(FACE, "<f4").copy()
    one[-1] = value
    for body in (wrong, one.tobytes()):
        for where, sent in (
            ("/draw", body),
            ("/save?as=face", body),
            ("/save?as=animation", FACE + body),
            ("/save?as=sheet&name=a&name=b", FACE + body),
        ):
            status, said = answer(server, post(where, sent))
            assert status == 400 and "drawn" in said.lower(), (where, said)


def test_whatever_the_faces_of_a_sheet_are_called_it_is_a_picture(server):
    names = ["", "\0\n\r\x1b[2J\x7f", "\u202egnp.a", "\U0001f600" * 99, "a" * 50_000, "{{ 1 }}"]
    names += ["\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "%s", "../../a"]
    for name in names:
        query = urllib.parse.urlencode({"as": "sheet", "name": name})
        status, headers, sheet = Visitor(server).fetch("POST", f"/save?{query}", FACE)
        assert status == 200 and headers["Content-Type"] == "image/png"
        assert sheet.startswith(b"\x89PNG")


RATES = (
    "",
    0,
    1,
    7999,
    192_001,
    10**9,
    "9" * 5000,
    -1,
    "1e4",
    "\u0967\u0968",
    "1\u06600000",
    "16000 ",
)
VISITS = "", "a", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n", "\uff10" * 32, "../" * 11, "\0"


@pytest.mark.parametrize(
    "asked", [{"rate": rate} for rate in RATES] + [{"visit": visit} for visit in VISITS], ids=ascii
)
def test_what_is_no_sound_of_a_visitors_is_refused(server, asked):
    status, said = answer(server, post(live(**asked), PIECE.tobytes()))
    assert status == 400 and ("no sound of a visitor" in said or "samples a second" in said)


def test_sound_has_its_limit_in_one_piece_or_in_many(server):
    """5 seconds are heard, and one more that may be on its way."""
    hours = np.tile(PIECE, 13)
    with pytest.raises(RefusedError, match="Only 5 seconds are heard"):
        Visitor(server).speak(hours, SAMPLE_RATE)
    visitor = Visitor(server)
    for _ in range(12):
        assert "seconds" in visitor.speak(PIECE, SAMPLE_RATE)
    for _ in range(2):
        with pytest.raises(RefusedError, match="Only 5 seconds are heard"):
            visitor.speak(PIECE, SAMPLE_RATE)
    status, _ = answer(server, post(live(rate=192_000), bytes(2 * 10**6)))
    assert status == 413  # of more bytes than a file has


def test_one_piece_comes_after_the_other(server):
    """Of a visitor who sends several at once, each is heard or refused, and none twice."""
    visitor = Visitor(server)
    with ThreadPoolExecutor(8) as pool:
        where = live(visit=visitor.visit)
        sent = [post(where, PIECE.tobytes())] * 16
        statuses = [status for status, _ in pool.map(lambda one: answer(server, one), sent)]
    assert set(statuses) <= {200, 409} and 200 in statuses
    heard = 0.5 * (statuses.count(200) + 1)
    assert visitor.speak(PIECE, SAMPLE_RATE)["seconds"] == pytest.approx(heard, abs=0.1)


def wait_until(is_so: Callable[[], bool], seconds: float, pause: float = 0.1) -> float:
    """Wait, at most some seconds, and say how long it was."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < seconds
        time.sleep(pause)
    return time.monotonic() - start


def has_room(server: Server) -> bool:
    """Whether a new speaker is listened to."""
    return answer(server, post(live(), b""))[0] == 200


def test_of_a_thousand_made_up_visits_few_are_kept_and_none_for_two_seconds(server):
    time.sleep(2)  # whoever was there has gone
    names = [post(live(), PIECE.tobytes()) for _ in range(1000)]
    with ThreadPoolExecutor(16) as pool:
        start = time.monotonic()
        statuses = [status for status, _ in pool.map(lambda one: answer(server, one), names)]
        rounds = 1 + (time.monotonic() - start) / app.GONE
    assert set(statuses) == {200, 503}
    assert app.SPEAKERS <= statuses.count(200) <= app.SPEAKERS * rounds
    assert wait_until(lambda: has_room(server), 5, pause=0.02) < 2
    time.sleep(2)


@pytest.mark.parametrize("said", [0, 1 << 16])
def test_a_closed_tab_is_forgotten_within_two_seconds(server, said):
    """The connection is dropped before all of a piece has come, or before the answer is read."""
    visitor, second = Visitor(server), np.tile(PIECE, 2)
    before = visitor.speak(second, SAMPLE_RATE)["seconds"]
    with connect(server) as broken:
        broken.sendall(post(live(visit=visitor.visit), PIECE.tobytes())[: said - 20])
    time.sleep(2)
    assert before == pytest.approx(1, abs=0.01)
    assert visitor.speak(PIECE, SAMPLE_RATE)["seconds"] < 0.6  # from the beginning


def test_who_goes_while_he_waits_holds_nobody_up(server):
    """Forty ask for long answers and go, some before theirs has begun; a queue has 32 places."""
    long = speech(5)
    for _ in range(4):
        with contextlib.ExitStack() as stack:
            for where in ("/voice", "/save?as=animation") * 5:
                visitor = stack.enter_context(connect(server))
                visitor.sendall(post(where, long if where == "/voice" else FACE * 300))
            time.sleep(0.1)
    start = time.monotonic()
    assert Visitor(server).ask("/voice", speech(1))["heard"] == 1
    seconds = time.monotonic() - start
    print(f"behind forty who have gone: {seconds:.1f} s")
    assert seconds < 15


def test_who_speaks_waits_for_one_long_answer_at_most(models):
    """Of three animations that were asked for before a piece of sound, one is made before it."""
    model = SpeechToFace.load(models / "demo", device="cpu")
    page, where, done = app.Page({"demo": lambda: (model, None)}, Settings()), live(), []

    async def ask(where: str, body: bytes) -> None:
        status, _ = await inside(page, where, body)
        assert status == 200
        done.append(where)

    async def ask_all() -> None:
        await ask(where, b"")
        saves = [asyncio.ensure_future(ask("/save?as=animation", FACE)) for _ in range(3)]
        await asyncio.sleep(0.01)
        await ask(where, PIECE.tobytes())
        await asyncio.gather(*saves)

    asyncio.run(ask_all())
    assert len(done) == 5 and done[0] == where and where in done[1:3]


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def test_who_sends_more_than_he_says_is_cut_off(server):
    """Of two lengths the one that the page looks at is not the one that counts."""
    body = bytes(2**20)
    lengths = ("Content-Length: 10", "Transfer-Encoding: chunked")
    for where in posts():
        status, _ = answer(server, head(f"POST {where}", *lengths), *[chunked(body)] * 40)
        assert status in (0, 400, 413)
        status, _ = answer(server, head(f"POST {where}", "Content-Length: 999999999"), body)
        assert status in (0, 413)
    memory = server.memory() if sys.platform == "linux" else 0
    status, said = answer(server, head("GET /", lengths[1]), *[chunked(body)] * 40)
    assert status == 200 and said.count("HTTP/1.1") == 1
    assert sys.platform != "linux" or server.memory() - memory < 20


def test_what_did_not_arrive_whole_takes_no_room(server):
    """Of the 20 files of the largest size that may be under way."""
    for _ in range(30):
        for where in posts():
            with connect(server) as visitor:
                visitor.sendall(head(f"POST {where}", f"Content-Length: {2**20}") + bytes(2000))

    def is_heard() -> bool:
        try:
            return bool(Visitor(server).ask("/voice", speech())["heard"] == 2)
        except RefusedError as error:  # of the last ones the server may not know yet
            assert "Too much is being sent" in str(error)
            return False

    wait_until(is_heard, 10)


@linux
def test_where_no_file_can_be_written_everything_is_answered(models, tmp_path):
    """A limit of the system on the size of files, for the server and its processes: no byte."""
    import resource

    with Server("--json", "--model", models / "demo", TMPDIR=str(tmp_path)) as server:
        for process in processes(tmp_path):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (0, 0))
        visitor, photo = Visitor(server), write_photo(tmp_path / "photo.jpg").read_bytes()
        assert visitor.ask("/voice", speech())["heard"] == 2
        assert "photo" in visitor.ask("/photo", photo)
        assert "face" in visitor.speak(np.tile(PIECE, 4), SAMPLE_RATE)
        for path in ("/draw", "/save?as=face", "/save?as=animation"):
            assert visitor.fetch("POST", path, FACE)[0] == 200
        assert server.end(signal.SIGTERM)[0] == 130


def speak_and_go(server: Server, n: int) -> None:
    """Speak 2 seconds each, 8 at a time; a third breaks off. Then all are forgotten."""

    def one(k: int) -> None:
        visitor = Visitor(server)
        said = [visitor.speak(PIECE, SAMPLE_RATE) for _ in range(4)]
        assert sum("face" in answer for answer in said) >= 2
        if k % 3 == 0:
            with connect(server) as broken:
                broken.sendall(post(live(visit=visitor.visit), PIECE.tobytes())[:-99])

    with ThreadPoolExecutor(8) as pool:
        for start in range(0, n, 20):  # there is room for 32
            list(pool.map(one, range(start, min(start + 20, n))))
            time.sleep(2)


@linux
def test_twenty_who_spoke_leave_nothing(server):
    """The tiny network's memory is flat within 10 MB; of a visitor's sound 30 MB would be left."""
    speak_and_go(server, 10)
    before = server.memory()
    speak_and_go(server, 20)
    assert server.memory() - before < 10


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_two_hundred_who_speak(server, temporary):
    speak_and_go(server, 20)
    memory = [server.memory()]
    with Changes(temporary) as changes:
        for _ in range(4):
            speak_and_go(server, 50)
            memory.append(server.memory())
            assert not changes.names()
    print(f"200 who speak after 20: {', '.join(f'{m:.0f}' for m in memory)} MB")
    assert memory[-1] - memory[0] < 10


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


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
def test_who_is_slow_is_broken_off_and_holds_nobody_up(server):
    """Heads that drip, bodies that stop, connections that say nothing; 300 at once."""
    before = open_files(server)
    with contextlib.ExitStack() as stack:
        visitors = [stack.enter_context(connect(server)) for _ in range(300)]
        dripping, stopped = visitors[:100], visitors[100:200]
        for visitor in dripping:
            visitor.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ")
        for visitor in stopped:
            visitor.sendall(head("POST /voice", "Content-Length: 100000") + bytes(50_000))
        began, waits = time.monotonic(), []
        for _ in range(10):
            asked = time.monotonic()
            assert Visitor(server).ask("/voice", speech())["heard"] == 2
            assert "seconds" in Visitor(server).speak(PIECE, SAMPLE_RATE)
            waits.append(time.monotonic() - asked)
        drip(dripping, 60)
        wait_until(lambda: all(ended(visitor) for visitor in visitors), 60)
        seconds = time.monotonic() - began
    wait_until(lambda: open_files(server) <= before + 5, 30)
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
            assert Visitor(server).ask("/voice", speech())["heard"] == 2
            print(f"200 connections where 128 files may be: {time.monotonic() - start:.0f} s")
        assert server.end(signal.SIGTERM)[0] == 130


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_a_page_behind_a_proxy_is_asked_by_the_name_of_that(models):
    where = ("--root-path", "https://example.org/s2f")
    with Server("--json", "--model", models / "demo", *where) as server:
        for host in ("example.org", "localhost"):
            assert answer(server, head("GET /s2f/", host=host))[0] == 200
            sent = post("/s2f/draw", FACE, "Origin: https://example.org", host=host)
            assert answer(server, sent)[0] == 200
            for path in ("/s2f/../app.py", "/s2f//etc/passwd", "/s2f/app.py", "/s2fpage.css"):
                assert answer(server, head(f"GET {path}", host=host))[0] == 404, path
        assert answer(server, head("GET /s2f/", host="example.com"))[0] == 421
        assert server.end(signal.SIGTERM)[0] == 130


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_answers_that_nobody_reads_are_forgotten(server):
    """Sixty times: the memory of those who came before serves for the next ones."""
    before, memory = open_files(server), [server.memory()]
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                visitor = stack.enter_context(connect(server, listens=2048))
                visitor.sendall(post("/voice", speech(5)))
                assert Visitor(server).ask("/voice", speech(1))["heard"] == 1  # it has its turn
            most = server.memory()
            wait_until(lambda: open_files(server) <= before + 5, 120)
        memory.append(server.memory())
    told = ", ".join(f"{m:.0f}" for m in memory)
    print(f"60 answers that are not read, 3 times: {told} MB; {most:.0f} before they went")
    assert memory[-1] - memory[1] < 20


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_fifty_at_once_are_answered_or_told_that_the_queue_is_full(server):
    voices = [speech(1 + k % 3, seed=k % 5) for k in range(15)]
    alone = [Visitor(server).ask("/voice", voice) for voice in voices]
    count = Count()

    def ask(k: int) -> dict[str, Any] | None:
        try:
            return Visitor(server).ask("/voice", voices[k % 15])
        except RefusedError as refused:
            assert refused.status == 503
            return None

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    for k, said in enumerate(answers):
        count.tried += 1
        count.done += bool(said)
        count.refused += not said
        assert (said or ask(k)) == alone[k % 15]
    print(f"50 at once: {count}")
    assert count.done >= 32


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_five_hundred_requests(server, temporary, tmp_path):
    """Of which a tenth each is a photo, is none, is broken off, is a sheet and an animation."""
    photo = write_photo(tmp_path / "photo.jpg").read_bytes()

    def ask(k: int) -> str:
        visitor = Visitor(server)
        with contextlib.suppress(RefusedError):
            if k % 10 == 0:
                return str(visitor.ask("/photo", photo))
            if k % 10 == 1:
                return str(visitor.ask("/voice", b"no sound" * 100))
            if k % 10 == 2:
                with connect(server) as broken:
                    broken.sendall(post("/voice", speech())[:-1000])
                return ""
            if k % 10 == 3:
                visitor.fetch("POST", f"/save?as=sheet{f'&name={k}' * 12}", FACE * 12)
                visitor.fetch("POST", "/save?as=animation", FACE * 20)
                return ""
            return str(visitor.ask("/voice", speech(1 + k % 4)))
        return ""

    memory = [server.memory()]
    with ThreadPoolExecutor(4) as pool, Changes(temporary) as changes:
        for start in range(0, 600, 100):
            answers = list(pool.map(ask, range(start, start + 100)))
            assert sum("'heard'" in answer for answer in answers) == 60
            assert not changes.names()
            memory.append(server.memory())
    print(f"500 requests after 100: {', '.join(f'{m:.0f}' for m in memory)} MB")
    assert memory[-1] - memory[1] < 20


@linux
@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_a_killed_server_leaves_no_file_and_no_process(models, tmp_path):
    """Killed with half a file, an answer and a voice under way."""
    options = ("--json", "--model", models / "demo", "--max-seconds", 600, "--max-mb", 50)
    for _ in range(5):
        with Server(*options, TMPDIR=str(tmp_path)) as server:
            with Changes(tmp_path) as changes, connect(server) as broken, connect(server) as asks:
                broken.sendall(post("/voice", speech(20))[:-1000])
                asks.sendall(post("/voice", speech(300)))
                Visitor(server).speak(np.tile(PIECE, 4), SAMPLE_RATE)
                server.kill()
                server.wait()
                assert not changes.names()
            wait_until(lambda: not processes(tmp_path), 60)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def processes(folder: Path) -> list[int]:
    """Processes, of any kind, whose temporary files are in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended
            if f"TMPDIR={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
