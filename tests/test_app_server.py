"""Serving the page: what is refused before it begins, what a visit may cost, and what stays of it.

Nothing stays. The tests ask no Gradio but for the version that `app_server` is written for.
"""

import asyncio
import os
import socket
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from s2f import app_server
from s2f.app_server import Settings, check_settings
from s2f.errors import DependencyError, InputError, OutputError, UsageError


@pytest.fixture
def gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Gradio were installed."""
    monkeypatch.setattr(app_server.metadata, "version", lambda name: f"{app_server.GRADIO}.0")


@pytest.mark.usefixtures("gradio")
def test_any_port_becomes_one_that_is_free() -> None:
    port = check_settings(Settings(port=0)).port
    assert port > 0
    assert check_settings(Settings(port=port)) == Settings(port=port)


@pytest.mark.usefixtures("gradio")
def test_a_port_that_is_taken_is_refused_with_the_cure() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        taken = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {taken} of 127.0.0.1 is taken") as told:
            check_settings(Settings(port=taken))
    assert told.value.hint and "--port" in told.value.hint


@pytest.mark.usefixtures("gradio")
@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_what_is_no_address_of_this_machine_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=host):
        check_settings(Settings(host=host, port=0))


@pytest.mark.usefixtures("gradio")
def test_a_port_that_may_not_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UsageError, match=r"port 80 of 127\.0\.0\.1 may not be used"):
        check_settings(Settings(port=80))


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise app_server.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(app_server.metadata, "version", missing)
    with pytest.raises(DependencyError, match="not installed") as told:
        check_settings(Settings())
    assert told.value.hint == "pip install 's2f[app]'"


@pytest.mark.parametrize("version", ["6.30.9", "6.32.0", "6.310", "7.31"])
def test_another_version_of_gradio_is_refused(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may keep what visitors send and are answered: parts of it that are its own are changed."""
    monkeypatch.setattr(app_server.metadata, "version", lambda name: version)
    with pytest.raises(DependencyError, match=f"gradio 6.31, .*installed is {version}"):
        check_settings(Settings())


def test_the_extra_installs_the_version_that_is_served_with() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (wanted,) = map(Requirement, project["optional-dependencies"]["app"])
    major, minor = map(int, app_server.GRADIO.split("."))
    assert wanted.name == "gradio"
    for version, is_wanted in ((minor - 1, False), (minor, True), (minor + 1, False)):
        assert wanted.specifier.contains(f"{major}.{version}.0") == is_wanted


def test_what_is_changed_of_gradio_is_there() -> None:
    pytest.importorskip("gradio")
    from gradio import Audio, Image, route_utils, state_holder

    assert isinstance(route_utils.GradioUploadFile, type)
    assert callable(state_holder.SessionState._update_value_in_config)
    for component in (Audio, Image):
        assert callable(component.async_move_resource_to_block_cache)
        assert callable(component.preprocess)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that visitors' files are in."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def test_a_file_that_nobody_sent_is_neither_read_nor_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "in"))
    own, sent, link = tmp_path / "own.jpg", tmp_path / "in/a.wav", tmp_path / "in/link"
    own.write_bytes(b"mine")
    link.symlink_to(own)
    for path in (own, tmp_path / "in/../own.jpg", link, tmp_path, "/dev/zero"):
        sent.write_bytes(b"a")
        with pytest.raises(InputError, match="deleted already"):
            app_server.take(path, sent)
        assert own.read_bytes() == b"mine" and not sent.exists()


def test_a_full_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(bytes(1000))
    assert app_server.has_room(tmp_path, 10**6) and not app_server.has_room(tmp_path, 1000)


def test_a_file_that_is_gone_is_told_and_the_others_go_too(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x")
    with pytest.raises(InputError, match="deleted already") as told:
        app_server.take(tmp_path / "gone", other)
    assert str(tmp_path) not in told.value.message
    assert not other.exists()


def test_the_folder_is_private_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with app_server.private_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "x").mkdir()
        (folder / "x" / "y").write_bytes(b"1")
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "before"


def test_without_a_place_for_it_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(app_server.tempfile, "mkdtemp", refuse)
    with pytest.raises(OutputError, match="Permission denied"), app_server.private_folder():
        pass


def test_what_is_old_is_swept_and_what_is_new_stays(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/new").write_bytes(b"1")
    for old in ("old/file", "old", "mixed"):
        os.utime(tmp_path / old, (0, 0))
    app_server.sweep(tmp_path, 600)
    app_server.sweep(tmp_path, 600)  # a folder is new again when a file in it has gone
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left - {"old"} == {"new", "new/file", "mixed", "mixed/new"}
    os.utime(tmp_path / "old", (0, 0))
    app_server.sweep(tmp_path, 600)
    assert not (tmp_path / "old").exists()


def ask(
    method: str,
    length: bytes | None,
    kind: str = "http",
    path: str = "/gradio_api/upload",
    room: bool = True,
) -> list[dict[str, Any]]:
    """What a guard of 1000 bytes lets out; behind it everything is well."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"well"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    headers = [] if length is None else [(b"content-length", length)]
    scope = {"type": kind, "method": method, "headers": headers, "path": path}
    asyncio.run(app_server.Guard(application, 1000, lambda: room)(scope, receive, send))
    return sent


@pytest.mark.parametrize("length", [None, b"", b"many", b"-1", b"66537", b"9" * 30])
def test_what_is_too_large_or_of_no_size_is_refused(length: bytes | None) -> None:
    start, body = ask("POST", length)
    assert start["status"] == 413
    assert body["body"].endswith(b".")


@pytest.mark.parametrize(("method", "length"), [("GET", None), ("POST", b"0"), ("POST", b"66536")])
def test_the_rest_passes_with_the_policy(method: str, length: bytes | None) -> None:
    start, _ = ask(method, length)
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"a"] == b"b"
    assert b"default-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/api/voice"),
        ("DELETE", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=https://example.org/a.jpg"),
        ("GET", "/gradio_api/proxy=http://example.org/"),
    ],
)
def test_what_the_page_does_not_need_is_not_there(method: str, path: str) -> None:
    assert ask(method, b"10", path=path)[0]["status"] == 404


def test_only_uploads_may_be_large_and_only_while_there_is_room() -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/call/voice"):
        assert ask("POST", b"65536", path=path)[0]["status"] == 200
        assert ask("POST", b"66000", path=path)[0]["status"] == 413
    assert ask("POST", b"1000", room=False)[0]["status"] == 507


def test_what_is_no_request_passes_as_it_is() -> None:
    assert ask("", None, kind="lifespan")[0]["headers"] == [(b"a", b"b")]


def test_a_component_hands_over_the_path_alone() -> None:
    class Component:
        async_move_resource_to_block_cache: Any = None
        preprocess: Any = None

    component = Component()
    app_server.hand_over(component)
    move = component.async_move_resource_to_block_cache
    assert asyncio.run(move("http://example.org/a.wav")) == "http://example.org/a.wav"
    assert asyncio.run(move(None)) is None
    assert component.preprocess(None) is None
