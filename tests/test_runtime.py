"""Files that are whole or absent."""

import os
from pathlib import Path

import pytest

from s2f.errors import OutputError, UsageError
from s2f.files import alone_in, atomic_folder, atomic_write, part, write_bytes


def test_a_written_file_appears_whole(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new" / "file") as file:
        file.write(b"half")
        assert not (tmp_path / "new" / "file").exists()
        file.write(b" and half")
    assert (tmp_path / "new" / "file").read_bytes() == b"half and half"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="midway"), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError("midway")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_can_be_read_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "ours"):
        pass
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(OutputError, match="file/below: cannot be written"),
        atomic_write(tmp_path / "file" / "below"),
    ):
        pass


def test_a_folder_in_the_way_is_named_and_no_temporary_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(OutputError, match="folder: cannot be written"),
        atomic_write(tmp_path / "folder"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_a_killed_run_left_is_taken_by_the_next(tmp_path: Path) -> None:
    with part(tmp_path / "a") as temporary:
        temporary.write_bytes(b"")
        left = temporary
    left.write_bytes(b"half")
    write_bytes(tmp_path / "a", b"whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_name_as_long_as_may_be_is_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "語" * 85):
        write_bytes(tmp_path / name, b"1")
        with atomic_write(tmp_path / name) as file:
            file.write(b"2")
        assert (tmp_path / name).read_bytes() == b"2"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file/below: cannot be written"):
        write_bytes(tmp_path / "file" / "below", b"")


def test_a_folder_is_held_against_other_runs_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        with alone_in(folder):
            assert list(folder.iterdir()) == []
            with pytest.raises(UsageError, match="another s2f is at work there"), alone_in(folder):
                pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/folder: cannot be written"):
        with alone_in(tmp_path / "file/folder"):
            pass


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_appears_whole(tmp_path: Path, replace: bool) -> None:
    with atomic_folder(tmp_path / "new", replace=replace) as folder:
        (folder / "file").write_text("a")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "file").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_folder_gives_way_whole_and_only_if_asked(tmp_path: Path) -> None:
    old = tmp_path / "model"
    old.mkdir()
    (old / "old").write_text("mine")
    with pytest.raises(OutputError, match="model: cannot be written"):
        with atomic_folder(old) as folder:
            (folder / "new").write_text("a")
    with pytest.raises(KeyError):
        with atomic_folder(old, replace=True):
            raise KeyError
    assert [path.name for path in old.iterdir()] == ["old"]
    with atomic_folder(old, replace=True) as folder:
        (folder / "new").write_text("a")
    assert [path.name for path in old.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [old]


def test_a_folder_that_cannot_be_replaced_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, move = tmp_path / "model", Path.replace
    old.mkdir()
    (old / "old").write_text("mine")

    def fail_to_arrive(path: Path, target: Path) -> Path:
        if target == old and not path.name.endswith(".old"):
            raise OSError("full")
        return move(path, target)

    monkeypatch.setattr(Path, "replace", fail_to_arrive)
    with pytest.raises(OutputError, match="full"), atomic_folder(old, replace=True):
        pass
    assert (old / "old").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_that_was_forked_does_not_hold_a_folder(tmp_path: Path) -> None:
    """What reads for a run outlives its kill by seconds, and the run is to go on at once."""
    (hold, held), (ready, told) = os.pipe(), os.pipe()
    with alone_in(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(told, b"x")
            os.read(hold, 1)
            os._exit(0)
        os.read(ready, 1)
    try:
        with alone_in(tmp_path):
            pass
    finally:
        os.write(held, b"x")
        os.waitpid(child, 0)
        for descriptor in (hold, held, ready, told):
            os.close(descriptor)
