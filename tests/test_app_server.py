"""Serving the page: where it is, who may ask, and what a visit may cost; with no page behind it."""

import asyncio
import errno
import http.client
import logging
import os
import socket
import urllib.parse
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from s2f import app_server
from s2f.app_server import HEADERS, Guard, Patience, Settings, check_settings, listen, serve
from s2f.errors import DeviceError, UsageError

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6 here")


def test_a_port_or_a_host_that_cannot_be_had_is_refused_with_the_cure(monkeypatch):
    with listen(Settings(port=0)) as listening:  # any that is free
        taken = listening.getsockname()[1]
        assert listening.getsockname()[0] == "127.0.0.1" and taken > 0
        with pytest.raises(UsageError, match=f"port {taken} of 127.0.0.1 is taken") as told:
            listen(Settings(port=taken))
    assert told.value.hint and "--port" in told.value.hint
    with listen(Settings(port=taken)) as listening:  # as soon as it is free again
        assert listening.getsockname()[1] == taken
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(UsageError, match=f"{host} is no address of this machine"):
            listen(Settings(host=host, port=0))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UsageError, match=r"port 80 of 127\.0\.0\.1 may not be used") as told:
        listen(Settings(port=80))
    assert told.value.hint and "1024 or more" in told.value.hint


def test_where_a_proxy_has_the_page_is_a_path_or_an_address():
    for root in ("s2f", "/s2f?a=b", "ftp://example.org/s2f", "/a b", "https://"):
        with pytest.raises(UsageError, match="no path that a proxy"):
            check_settings(Settings(root_path=root))
    for root in ("", "/s2f", "/a/b", "https://example.org/s2f"):
        assert check_settings(Settings(root_path=root and f"{root}/")).root_path == root
    for root, plain in (("http://a:80", "http://a"), ("https://a:443/s2f", "https://a/s2f")):
        assert check_settings(Settings(root_path=root)).root_path == plain
    for root in ("https://a:80/s2f", "http://a:8080", "http://a/b:80"):
        assert check_settings(Settings(root_path=root)).root_path == root
    assert check_settings(Settings(root_path="https://a/b/")).root == "/b"


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_an_address_may_be_of_ipv6(host):
    settings = check_settings(Settings(host=host, port=0))
    assert settings.host == host.strip("[]")
    with listen(settings) as listening:
        assert listening.family == socket.AF_INET6


def request(method: str, *headers: tuple[str, str], path: str = "/voice") -> Any:
    """What ASGI says of a request."""
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    return {"type": "http", "method": method, "headers": encoded, "path": path}


def ask(guard: Guard, scope: Any, *parts: bytes, pause: float = 0) -> list[dict[str, Any]]:
    """What a guard lets out, where parts of a body come and, after a pause, nothing more."""
    sent: list[dict[str, Any]] = []
    coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive() -> Any:
        if coming:
            return coming.pop(0)
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    asyncio.run(guard(scope, receive, send))
    return sent[:2] if sent[1].get("more_body") else sent  # the end comes after the rest was taken


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An app with which everything is well, once it has read all."""
    body, more = b"", scope["type"] == "http" and scope["method"] == "POST"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("gone")
        body, more = body + message["body"], message["more_body"]
    headers = [(b"a", b"b"), (b"path", scope["path"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


LENGTHS = [("0", 200), ("1000", 200), ("1001", 413), ("9" * 30, 413), ("", 413), ("many", 413)]
LENGTHS += [("-1", 413), ("+1", 413), ("1e2", 413), ("1_0", 413), ("10, 10", 413)]
LENGTHS += [(str(chr(0x0663)), 413)]  # a digit elsewhere


@pytest.mark.parametrize(("length", "status"), LENGTHS)
def test_what_says_how_large_it_is_and_is_not_too_large_passes(length, status):
    start, end = ask(Guard(echo, 1000), request("POST", ("content-length", length)))
    assert start["status"] == status
    assert set(HEADERS) <= set(start["headers"])  # of a refusal, too
    assert ((b"a", b"b") in start["headers"]) == (status == 200)
    assert status == 200 or end["body"].endswith(b"how large it is.")


def test_a_length_that_is_not_the_one_that_counts_is_refused():
    ten = ("content-length", "10")
    for headers in ([], [ten, ten], [ten, ("transfer-encoding", "chunked")]):
        assert ask(Guard(echo, 1000), request("POST", *headers))[0]["status"] == 413
    whole = ask(Guard(echo, 1000), request("POST", ten), b"12345", b"67890")
    assert whole[0]["status"] == 200 and whole[1]["body"] == b"1234567890"
    more = ask(Guard(echo, 1000), request("POST", ten), b"12345", b"678901", b"2" * 10**6)
    assert more[0]["status"] == 413 and (b"connection", b"close") in more[0]["headers"]


@pytest.mark.parametrize("method", ["DELETE", "PUT", "OPTIONS", "TRACE", "BREW"])
def test_there_is_nothing_else_to_do(method):
    start, end = ask(Guard(echo, 1000), request(method))
    assert start["status"] == 405 and end["body"] == b"There is nothing to do so with here."
    assert ask(Guard(echo, 1000), request("HEAD"))[0]["status"] == 200


@pytest.mark.parametrize(("name", "value"), [("PATIENCE", 0.05), ("FORGOTTEN", -1)])
def test_who_sends_slowly_is_broken_off(monkeypatch, name, value):
    """By a pause that is too long, or as it takes too long in all."""
    monkeypatch.setattr(app_server, name, value)
    guard = Guard(echo, 1000)
    start, end = ask(guard, request("POST", ("content-length", "10")), b"12345", pause=60)
    assert (start["status"], end["body"]) == (408, b"What you sent did not arrive in time.")
    assert set(HEADERS) <= set(start["headers"]) and guard.under_way == 0


def test_who_has_sent_all_may_wait_for_long(monkeypatch):
    monkeypatch.setattr(app_server, "PATIENCE", 0.05)

    async def listens(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        assert (await receive())["type"] == "http.request"  # waited for, 0.2 s
        await echo({**scope, "method": "GET"}, receive, send)

    sent: list[Any] = []
    coming = [{"type": "http.request", "body": b"1", "more_body": False}]

    async def receive() -> Any:
        if not coming:
            await asyncio.sleep(0.2)
        return coming.pop() if coming else {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = request("POST", ("content-length", "1"))
    asyncio.run(Guard(listens, 1000)(scope, receive, send))
    assert sent[0]["status"] == 200


def test_more_than_memory_is_for_is_refused_until_there_is_room(monkeypatch):
    """Of two files of the largest size at a time: a third, and one byte more, have to wait."""
    monkeypatch.setattr(app_server, "TOGETHER", 2)
    told: list[int] = []

    async def run() -> None:
        end = asyncio.Event()

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            await end.wait()
            await send({"type": "http.response.start", "status": 200})

        async def send(message: Any) -> None:
            told.append(message.get("status", 0))

        guard = Guard(waits, 1000)

        async def post(n: int) -> None:
            await guard(request("POST", ("content-length", str(n))), None, send)

        first = [asyncio.ensure_future(post(n)) for n in (1000, 999)]
        await asyncio.sleep(0)
        await post(2)
        assert told == [503, 0] and guard.under_way == 1999
        first.append(asyncio.ensure_future(post(1)))
        await asyncio.sleep(0)
        end.set()
        await asyncio.gather(*first)
        assert guard.under_way == 0
        await post(1000)

    asyncio.run(run())
    assert told == [503, 0, 200, 200, 200, 200]


@pytest.mark.parametrize("is_answered", [False, True])
def test_what_cannot_be_understood_costs_one_answer_and_is_logged(caplog, is_answered):
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        if is_answered:
            await echo(scope, receive, send)
        raise ValueError("a\nb" + 999 * "c")

    with caplog.at_level(logging.WARNING):
        start, *rest = ask(Guard(fails, 1000), request("GET"))
    assert len(rest) == 1 and start["status"] == (200 if is_answered else 400)
    (record,) = caplog.records
    assert "ValueError" in record.message and len(record.message) <= 300
    assert "\n" not in record.message


def test_where_a_proxy_has_the_page_is_left_out_of_what_is_asked():
    guard = Guard(echo, 1000, root="/s2f")
    for path, inside in (("/s2f/about", "/about"), ("/s2f", "/"), ("/s2fa", "/s2fa"), ("/", "/")):
        assert dict(ask(guard, request("GET", path=path))[0]["headers"])[b"path"].decode() == inside
    guard = Guard(echo, 1000, root="/my%20page")  # a server takes a path's escapes away
    head = ask(guard, request("GET", path="/my page/about"))[0]["headers"]
    assert dict(head)[b"path"] == b"/about"


def status(method: str, *headers: tuple[str, str], hosts: Any = None, own: str = "") -> int:
    """With which status a guard lets out what was asked with some headers."""
    length = [("content-length", "0")] if method == "POST" else []
    guard = Guard(echo, 1000, hosts=hosts, own=own)
    return int(ask(guard, request(method, *headers, *length))[0]["status"])


def test_a_proxy_may_have_the_page_under_a_name_of_its_own():
    """It passes its name on as the host, or not; a browser, where it asks safely, says more."""
    origin = ("origin", "https://Example.org")
    for host in ("example.org", "127.0.0.1:7860"):
        named = ("host", host)
        assert status("POST", named, origin, own="example.org") == 200
        assert status("POST", named, ("sec-fetch-site", "same-origin"), origin) == 200
        assert status("POST", named, ("sec-fetch-site", "cross-site"), own="example.org") == 403
        assert status("POST", named, ("origin", "https://evil.example"), own="example.org") == 403
    assert status("POST", ("host", "example.org"), origin) == 200
    assert status("POST", ("host", "127.0.0.1:7860"), origin) == 403


def test_a_page_of_another_site_may_only_link_here():
    elsewhere = ("sec-fetch-site", "cross-site")
    for site in (elsewhere, ("sec-fetch-site", "same-site"), ("origin", "null")):
        assert status("POST", site) == 403
    assert status("GET", elsewhere) == 403  # as a picture of that page, say
    assert status("GET", elsewhere, ("sec-fetch-mode", "navigate")) == 200
    assert status("POST", elsewhere, ("sec-fetch-mode", "navigate")) == 403
    for site in ("none", "same-origin"):
        assert status("GET", ("sec-fetch-site", site)) == 200
    assert status("POST") == 200  # no browser


def test_a_name_that_a_stranger_points_here_is_refused():
    hosts = {"example.org", "::1"}
    for host, expected in (("Example.org:80", 200), ("example.com", 421), ("[::1]:1", 200)):
        assert status("GET", ("host", host), hosts=hosts) == expected
    assert status("GET", hosts=hosts) == 421
    two = ("host", "example.org"), ("host", "example.com")
    assert status("GET", *two, hosts=hosts) == 421
    assert status("GET", ("host", "example.com")) == 200  # where any name may be the page's


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_what_only_this_machine_reaches_is_known(host):
    assert app_server.is_here_alone(host)
    assert not any(map(app_server.is_here_alone, ("0.0.0.0", "::", "192.0.2.1")))


def test_what_is_run_beside_the_server_ends_with_it_and_sockets_are_closed():
    told: list[Any] = []

    async def watch() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            told.append("ended")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)  # the server is served

    async def send(message: Any) -> None:
        told.append(message["type"])

    async def run() -> None:
        guard = Guard(application, 1000, watch=watch)
        await guard({"type": "lifespan"}, None, send)
        await asyncio.sleep(0)
        await guard({"type": "websocket"}, None, send)

    asyncio.run(run())
    assert told == ["ended", "websocket.close"]


def test_what_does_not_move_ends_for_who_waits(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(app_server.time, "monotonic", lambda: now[0])
    patience, moves = Patience(), {"still": 1, "moves": 0}
    for second in range(0, 61, 20):
        now[0], moves["moves"] = 100.0 + second, second
        assert patience.ends_for(moves) == []
    now[0] += 1
    assert patience.ends_for({**moves, "new": 1}) == ["still"]
    assert patience.ends_for({"new": 1}, 0) == []
    now[0] += 0.1
    assert patience.ends_for({"new": 1}, 0) == ["new"]


def connected(cycle: Any, unsent: int = 0) -> Any:
    """A connection as uvicorn has it."""
    transport = SimpleNamespace(get_write_buffer_size=lambda: unsent, aborted=False)
    transport.abort = lambda: setattr(transport, "aborted", True)
    return type("Connection", (), {"cycle": cycle, "transport": transport})()


def test_connections_that_send_nothing_or_do_not_read_are_broken_off(monkeypatch, caplog):
    """After `PATIENCE`, or soon where they are many; not those who are being answered."""
    asked = SimpleNamespace(response_complete=False)
    over = SimpleNamespace(response_complete=True)
    silent, kept, unread = connected(None), connected(over), connected(asked, unsent=9)
    waiting = connected(asked)
    server: Any = SimpleNamespace(server_state=SimpleNamespace(connections=None))

    async def run(seconds: float, connections: Any) -> None:
        server.server_state.connections = connections
        watching = asyncio.ensure_future(app_server.watch(server, pause=0.01))
        await asyncio.sleep(seconds)
        watching.cancel()

    slow = [silent, kept, unread]
    asyncio.run(run(0.1, [*slow, waiting]))
    assert not any(each.transport.aborted for each in slow)
    monkeypatch.setattr(app_server, "CROWD", 3)
    with caplog.at_level(logging.ERROR):
        asyncio.run(run(0.05, None))  # what fails is told of, and it goes on
        assert "could not be looked for" in caplog.text
    asyncio.run(run(0.1, [*slow, waiting]))
    assert all(each.transport.aborted for each in slow) and not waiting.transport.aborted


async def small(scope: Any, receive: Any, send: Any) -> None:
    """An app that is served: it starts, says where it is asked, and ends."""
    if scope["type"] == "http":
        await echo(scope, receive, send)
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


@pytest.fixture
def before() -> Iterator[None]:
    """The environment, which serving leaves alone."""
    own = {"PYTEST_CURRENT_TEST": ""}  # pytest's, of which phase it is
    there = os.environ | own
    yield
    assert os.environ | own == there


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),  # which is no address to visit
        pytest.param("[::1]", "[::1]", marks=needs_ipv6),
        pytest.param("::", "[::1]", marks=needs_ipv6),
    ],
)
def test_the_address_is_one_to_visit_and_nobody_listens_there_afterwards(before, host, shown):
    settings = check_settings(Settings(host=host, port=0, root_path="https://a.org/s2f"))
    with listen(settings) as listening:
        with serve(small, settings, listening) as url:
            where = urllib.parse.urlsplit(url)
            assert where.netloc == f"{shown}:{listening.getsockname()[1]}"
            assert (where.scheme, where.path) == ("http", "/s2f/")
            for name, status in (("a.org", 200), ("b.org", 421 if "1" in host else 200)):
                connection = http.client.HTTPConnection(where.netloc, timeout=60)
                connection.request("GET", where.path, headers={"Host": name})
                answer = connection.getresponse()
                assert answer.status == status
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert answer.headers["path"] == ("/" if status == 200 else None)
                connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((where.hostname, where.port)).close()


# uvicorn leaves its thread by SystemExit, which threads ignore.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_app_that_does_not_start_is_an_error():
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with listen(Settings(port=0)) as listening:
        with pytest.raises(DeviceError, match="cannot be served"):
            with serve(fails, Settings(port=0), listening):
                pass
