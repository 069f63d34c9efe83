"""Where the page lives: what is refused before anything slow is done."""

import importlib.util
import socket
from collections.abc import Iterator

import pytest

from s2f import app, face_detection
from s2f.app import Settings, check_settings
from s2f.errors import DependencyError, UsageError


@pytest.fixture(autouse=True)
def gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Gradio were installed."""
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        yield other.getsockname()[1]


def test_any_port_becomes_one_that_is_free() -> None:
    port = check_settings(Settings(port=0)).port
    assert port > 0
    assert check_settings(Settings(port=port)) == Settings(port=port)


def test_a_port_that_is_taken_is_refused_with_the_cure(taken: int) -> None:
    with pytest.raises(UsageError, match=f"port {taken} of 127.0.0.1 is taken") as told:
        check_settings(Settings(port=taken))
    assert told.value.hint and "--port" in told.value.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_what_is_no_address_of_this_machine_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=host):
        check_settings(Settings(host=host, port=0))


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError) as told:
        check_settings(Settings())
    assert told.value.hint == "pip install 's2f[app]'"


def test_faces_are_looked_for_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_detection, "installed_detector", lambda: "dlib")
    assert Settings().finder == "dlib"
    assert Settings(detector="face-alignment").finder == "face-alignment"
    assert Settings(align=False).finder is None
    monkeypatch.setattr(face_detection, "installed_detector", lambda: None)
    assert Settings().finder is None
