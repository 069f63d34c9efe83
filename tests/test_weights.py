"""Weight files of others: found, fetched from a folder in the place of a server, refused."""

import hashlib
import socket
from pathlib import Path

import pytest

from s2f import checkpoint
from s2f.checkpoint import WeightFile
from s2f.errors import DependencyError

CONTENT = bytes(range(256)) * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "socket", refuse)


def served(tmp_path: Path, content: bytes, sha256: str = SHA256) -> WeightFile:
    (tmp_path / "net.pth").write_bytes(content)
    return WeightFile((tmp_path / "net.pth").as_uri(), sha256)


@pytest.mark.usefixtures("offline")
def test_a_file_that_is_there_is_used_without_a_network(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "net.pth").write_bytes(CONTENT)
    assert checkpoint.locate(WeightFile("https://nowhere/net.pth", SHA256)) == cache / "net.pth"


def test_a_file_that_is_not_there_is_fetched_once(cache: Path, tmp_path: Path) -> None:
    wanted = served(tmp_path, CONTENT)
    assert checkpoint.locate(wanted).read_bytes() == CONTENT
    (tmp_path / "net.pth").unlink()
    assert checkpoint.locate(wanted) == cache / "net.pth"
    assert [path.name for path in cache.iterdir()] == ["net.pth"]


@pytest.mark.usefixtures("offline")
def test_offline_the_error_says_which_file_goes_where(cache: Path) -> None:
    with pytest.raises(DependencyError) as caught:
        checkpoint.locate(WeightFile("https://nowhere/net.pth", SHA256))
    assert caught.value.hint == f"put https://nowhere/net.pth there, as {cache / 'net.pth'}"
    assert str(cache / "net.pth") in caught.value.message and caught.value.exit_code == 5
    assert not list(cache.iterdir())


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", b"<html>moved</html>"])
def test_another_file_is_not_kept(cache: Path, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DependencyError, match=f"SHA-256 is .*wanted {SHA256}"):
        checkpoint.locate(served(tmp_path, content))
    assert not list(cache.iterdir())


def test_a_damaged_file_in_the_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "net.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(DependencyError, match=r"net\.pth: its SHA-256 is"):
        checkpoint.locate(served(tmp_path, CONTENT))
    assert (cache / "net.pth").read_bytes() == CONTENT[:-1]


def test_a_folder_in_the_place_of_the_file_is_refused(cache: Path, tmp_path: Path) -> None:
    (cache / "net.pth").mkdir(parents=True)
    with pytest.raises(DependencyError, match="cannot be read"):
        checkpoint.locate(served(tmp_path, CONTENT))
