"""Serving the page: what is refused, what a visit may cost; nothing stays. Gradio is not asked."""

import asyncio
import os
import socket
import stat
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from s2f import app_server, files
from s2f.app_server import Settings, check_settings
from s2f.errors import DependencyError, InputError, OutputError, UsageError


@pytest.fixture(autouse=True)
def gradio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if Gradio were installed, and visitors' files in a folder."""
    monkeypatch.setattr(app_server.metadata, "version", lambda name: f"{app_server.GRADIO}.0")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def test_a_port_or_a_host_that_cannot_be_had_is_refused_with_the_cure(monkeypatch):
    port = check_settings(Settings(port=0)).port  # any that is free
    assert port > 0 and check_settings(Settings(port=port)) == Settings(port=port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        taken = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {taken} of 127.0.0.1 is taken") as told:
            check_settings(Settings(port=taken))
    assert told.value.hint and "--port" in told.value.hint
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(UsageError, match=f"{host} is no address of this machine"):
            check_settings(Settings(host=host, port=0))

    for root in ("s2f", "/s2f?a=b", "ftp://example.org/s2f", "/a b"):
        with pytest.raises(UsageError, match="no path that a proxy"):
            check_settings(Settings(port=0, root_path=root))
    for root in ("", "/s2f", "/a/b", "https://example.org/s2f"):
        assert check_settings(Settings(port=0, root_path=root and f"{root}/")).root_path == root
    for root, plain in (("http://a:80", "http://a"), ("https://a:443/s2f", "https://a/s2f")):
        assert check_settings(Settings(port=0, root_path=root)).root_path == plain
    for root in ("https://a:80/s2f", "http://a:8080", "http://a/b:80"):
        assert check_settings(Settings(port=0, root_path=root)).root_path == root

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UsageError, match=r"port 80 of 127\.0\.0\.1 may not be used"):
        check_settings(Settings(port=80))


def test_an_address_may_be_of_ipv6_and_a_port_is_free_on_ipv4_too(monkeypatch):
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    for host in ("::1", "[::1]", "::"):
        assert check_settings(Settings(host=host, port=0)).host == host.strip("[]")
    with socket.socket() as other:  # where Gradio looks whether it is free
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        taken = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {taken} of 127.0.0.1 is taken"):
            check_settings(Settings(host="::1", port=taken))
        find = app_server._free_port
        given = iter([taken])
        patched = lambda host, port: next(given, None) or find(host, port)  # noqa: E731
        monkeypatch.setattr(app_server, "_free_port", patched)
        assert check_settings(Settings(host="::1", port=0)).port != taken


@pytest.mark.parametrize("version", ["6.30.9", "6.32.0", "6.310", "7.31", None])
def test_another_version_of_gradio_is_refused(version, monkeypatch):
    def installed(name: str) -> str:
        if version is None:
            raise app_server.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(app_server.metadata, "version", installed)
    said = f"gradio 6.31, .*installed is {version}" if version else "gradio, which is not installed"
    with pytest.raises(DependencyError, match=said) as told:
        check_settings(Settings())
    assert told.value.hint == "pip install 's2f[app]'"


def test_the_extra_installs_the_version_that_is_served_with():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (wanted,) = map(Requirement, project["optional-dependencies"]["app"])
    major, minor = map(int, app_server.GRADIO.split("."))
    assert wanted.name == "gradio"
    for version, is_wanted in ((minor - 1, False), (minor, True), (minor + 1, False)):
        assert wanted.specifier.contains(f"{major}.{version}.0") == is_wanted


def test_a_file_that_nobody_sent_is_neither_read_nor_deleted(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "in"))
    own, sent, link = tmp_path / "own.jpg", tmp_path / "in/a.wav", tmp_path / "in/link"
    own.write_bytes(b"mine")
    link.symlink_to(own)
    gone = tmp_path / "in/gone"
    for path in (own, tmp_path / "in/../own.jpg", link, tmp_path, "/dev/zero", gone):
        sent.write_bytes(b"a")
        with pytest.raises(InputError, match="deleted already") as told:
            app_server.take(path, sent)
        assert own.read_bytes() == b"mine" and not sent.exists()
        assert str(tmp_path) not in told.value.message


def test_the_folder_is_private_and_goes(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with app_server.private_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "x").mkdir()
        (folder / "x" / "y").write_bytes(b"1")
        files.put_away()  # as at a second signal
        assert not folder.exists()
        folder.mkdir()
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "before"

    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(app_server.tempfile, "mkdtemp", refuse)
    with pytest.raises(OutputError, match="Permission denied"), app_server.private_folder():
        pass


def test_what_is_old_is_swept_and_what_is_new_stays(tmp_path):
    for name in ("old", "new", "mixed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1")
    for old in ("old/file", "old", "mixed"):
        os.utime(tmp_path / old, (0, 0))
    assert app_server.has_room(tmp_path, 10**6) and not app_server.has_room(tmp_path, 3)
    app_server.sweep(tmp_path, 600)
    assert not (tmp_path / "old/file").exists()  # by which its folder is new again
    os.utime(tmp_path / "old", (0, 0))
    app_server.sweep(tmp_path, 600)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"new", "new/file", "mixed", "mixed/file"}


def ask(method, length, kind="http", path="/gradio_api/upload", room=True):
    """What a guard of 1000 bytes, with /s2f before it, lets out; behind it everything is well."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"a", b"b"), (b"path", scope["path"].encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        sent.append(dict(message))

    headers = [] if length is None else [(b"content-length", length)]
    scope = {"type": kind, "method": method, "headers": headers, "path": path}
    asyncio.run(app_server.Guard(application, 1000, lambda: room, "/s2f")(scope, None, send))
    return sent


CALLS = ("queue/join", "call/voice")  # only uploads may be large
UNNEEDED = ["POST process_recording", "POST component_server", "POST api/voice", "DELETE upload"]
OUTSIDE = ["GET file=https://example.org/a.jpg", "GET proxy=http://example.org/"]


@pytest.mark.parametrize(
    ("line", "length", "status"),
    [
        *(("POST upload", n, 413) for n in (None, b"", b"many", b"-1", b"66537", b"9" * 30)),
        *(("GET upload", None, 200), ("POST upload", b"0", 200), ("POST upload", b"66536", 200)),
        *((f"POST {call}", n, s) for call in CALLS for n, s in ((b"65536", 200), (b"66000", 413))),
        *((line, b"10", 404) for line in UNNEEDED + OUTSIDE),
    ],
)
def test_what_is_needed_and_not_too_large_passes_with_the_policy(line, length, status):
    method, path = line.split()
    start, *body = ask(method, length, path=f"/gradio_api/{path}")
    assert start["status"] == status and all(part["body"].endswith(b".") for part in body)
    assert bool(body) == (status != 200)
    if status == 200:
        headers = dict(start["headers"])
        assert headers[b"a"] == b"b"
        assert b"default-src 'self'" in headers[b"content-security-policy"]


def test_a_full_disk_refuses_and_what_is_no_request_passes():
    assert ask("POST", b"1000", room=False)[0]["status"] == 507
    assert ask("", None, kind="lifespan")[0]["headers"][0] == (b"a", b"b")


def test_where_a_proxy_has_the_page_is_left_out_of_what_is_asked():
    for path, inside in (("/s2f/config", "/config"), ("/s2f", "/"), ("/s2fa", "/s2fa")):
        assert dict(ask("GET", None, path=path)[0]["headers"])[b"path"].decode() == inside


def test_a_component_hands_over_the_path_alone():
    component: Any = SimpleNamespace()
    app_server.hand_over(component)
    move = component.async_move_resource_to_block_cache
    assert asyncio.run(move("http://example.org/a.wav")) == "http://example.org/a.wav"
    assert asyncio.run(move(None)) is None
    assert component.preprocess(None) is None


def status(method: str, *headers: tuple[str, str], hosts: Any = None, own: str = "") -> int:
    """With which status a guard lets out what was asked with some headers."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(dict(message))

    encoded = [(name.encode(), value.encode()) for name, value in headers]
    encoded += [(b"content-length", b"1")] if method == "POST" else []
    scope = {"type": "http", "method": method, "headers": encoded, "path": "/gradio_api/upload"}
    guard = app_server.Guard(application, 1000, hosts=hosts, own=own)
    asyncio.run(guard(scope, None, send))
    return int(sent[0]["status"])


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
    for host, expected in (("Example.org:80", 200), ("example.com", 421), ("[::1]", 421)):
        assert status("GET", ("host", host), hosts={"example.org"}) == expected


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

    async def serve() -> None:
        guard = app_server.Guard(application, 1000, watch=watch)
        await guard({"type": "lifespan"}, None, send)
        await asyncio.sleep(0)
        await guard({"type": "websocket"}, None, send)

    asyncio.run(serve())
    assert told == ["ended", "websocket.close"]
