"""Listings: what is passed over, in which order files come, where links lead."""

import os
from pathlib import Path

import pytest

from s2f import files
from s2f.errors import AudioError, DatasetError


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")


def wants(name: str) -> bool:
    return name.endswith(".a")


def paths(folder: Path, **options: Path) -> list[str]:
    return [file.path for file in files.files(folder, wants, **options)]


def test_files_come_sorted_with_size_and_time(tmp_path: Path) -> None:
    write(tmp_path / "b/2.a", tmp_path / "b/10.a", tmp_path / "a.a", tmp_path / "b.a")
    found = files.files(tmp_path, wants)
    assert list(files.names(tmp_path, wants)) == [file.path for file in found]
    assert [file.path for file in found] == ["a.a", "b/10.a", "b/2.a", "b.a"]
    assert {file.size for file in found} == {3}
    assert found[0].mtime_ns == (tmp_path / "a.a").stat().st_mtime_ns


def test_hidden_files_and_what_macs_add_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / ".x.a", tmp_path / ".y/x.a", tmp_path / "__MACOSX/x.a", tmp_path / "x.b")
    (tmp_path / "z").mkdir()
    (tmp_path / "y").symlink_to(tmp_path / "z")
    assert paths(tmp_path) == []
    assert files.folders(tmp_path) == ["y", "z"]


def test_a_folder_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "in.a", tmp_path / "out/in.a")
    assert paths(tmp_path, without=tmp_path / "out") == ["in.a"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "x/1.a", tmp_path / "y/2.a")
    (tmp_path / "x/back").symlink_to(tmp_path)
    (tmp_path / "x/y").symlink_to(tmp_path / "y")
    (tmp_path / "y/x").symlink_to(tmp_path / "x")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert paths(tmp_path) == ["x/1.a", "x/y/2.a", "y/2.a", "y/x/1.a"]


def test_what_is_no_regular_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "gone.a").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.a")
    assert [(file.path, file.size) for file in files.files(tmp_path, wants)] == [
        ("gone.a", -1),
        ("pipe.a", -1),
    ]


def test_names_that_are_no_text_are_listed(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n.a")
    write(tmp_path / name)
    assert paths(tmp_path) == [name]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.a")
    with pytest.raises(DatasetError, match=r"x\.a: cannot be listed"):
        files.files(tmp_path / "x.a", wants)


def test_finding_keeps_files_as_given_and_searches_folders(tmp_path: Path) -> None:
    write(tmp_path / "x/1.a", tmp_path / "x/2.a", tmp_path / "odd.txt")
    given = [tmp_path / "odd.txt", tmp_path / "x/2.a", tmp_path / "x"]
    found = files.find_files(given, wants, "recordings", AudioError)
    assert found == [tmp_path / "odd.txt", tmp_path / "x/2.a", tmp_path / "x/1.a"]


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "does not exist"), ("empty", "holds no recordings")]
)
def test_finding_nothing_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match=f"{name}: {message}"):
        files.find_files([tmp_path / name], wants, "recordings", AudioError)
