"""Links: nothing forgotten, nothing twice, no partial file, no file lost."""

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import contents, grow

from s2f import files
from s2f.errors import InputError, OutputError, UsageError
from s2f.files import Folder, Link, place_all, place_file

HOSTILE = (
    "a\nb",
    "-rf",
    "é",
    "e\u0301",
    "\u202eabc",
    "👩‍🎤",
    "x" * 255,
    "\udcff\udcfe",
    "concat:a",
    "%s",
)


@pytest.mark.parametrize("link", Link)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_placed_file_has_the_bytes_and_is_kept(link: Link, name: str, tmp_path: Path) -> None:
    grow(tmp_path, [f"in/{name}"])
    plan = [Folder(str(tmp_path / "in"), str(tmp_path / "out/x"), (name,))]
    first = place_all(plan, link)
    before = os.lstat(tmp_path / "out/x" / name)
    second = place_all(plan, link)
    assert (first.made, first.kept, second.made, second.kept) == (1, 0, 0, 1)
    assert os.lstat(tmp_path / "out/x" / name) == before
    assert contents(tmp_path / "out/x") == contents(tmp_path / "in")


@pytest.mark.parametrize("link", Link)
def test_a_file_behind_a_link_is_placed_itself(link: Link, tmp_path: Path) -> None:
    grow(tmp_path, ["a"])
    (tmp_path / "link").symlink_to("a")
    place_file(str(tmp_path / "link"), str(tmp_path / "out/a"), link)
    assert (tmp_path / "out/a").read_bytes() == b"a"
    assert (tmp_path / "out/a").is_symlink() == (link is Link.SYMLINK)
    assert not place_file(str(tmp_path / "link"), str(tmp_path / "out/a"), link)


def test_a_hard_link_is_the_same_file_and_a_copy_is_not(tmp_path: Path) -> None:
    grow(tmp_path, ["a"])
    for link in (Link.HARD, Link.COPY):
        place_file(str(tmp_path / "a"), str(tmp_path / link), link)
    assert (tmp_path / "a").samefile(tmp_path / "hard")
    assert not (tmp_path / "a").samefile(tmp_path / "copy")


def test_symlinks_survive_moving_both_trees(tmp_path: Path) -> None:
    grow(tmp_path, ["here/in/a"])
    place_file(str(tmp_path / "here/in/a"), str(tmp_path / "here/out/b/a"), Link.SYMLINK)
    (tmp_path / "here").rename(tmp_path / "there")
    assert (tmp_path / "there/out/b/a").read_bytes() == b"here/in/a"


@pytest.mark.parametrize("link", [Link.HARD, Link.COPY])
def test_what_is_older_than_its_source_is_replaced(link: Link, tmp_path: Path) -> None:
    grow(tmp_path, ["a", "out/a"], b"old")
    os.utime(tmp_path / "out/a", (1, 1))
    (tmp_path / "a").write_bytes(b"new")
    assert place_file(str(tmp_path / "a"), str(tmp_path / "out/a"), link)
    assert contents(tmp_path / "out") == {"a": b"new"}


@pytest.mark.parametrize("link", Link)
def test_another_file_in_the_place_is_kept_and_named(link: Link, tmp_path: Path) -> None:
    grow(tmp_path, ["a", "b", "out/a"])
    os.utime(tmp_path / "a", (1, 1))
    plan = [Folder(str(tmp_path), str(tmp_path / "out"), ("a", "b"))]
    placed = place_all(plan, link)
    assert (placed.made, len(placed.failed)) == (1, 1)
    assert str(tmp_path / "out/a") in placed.failed[0].message
    assert contents(tmp_path / "out") == {"a": b"out/a", "b": b"b"}


def test_what_is_no_file_costs_itself_only(tmp_path: Path) -> None:
    grow(tmp_path, ["in/a"])
    os.mkfifo(tmp_path / "in/fifo")
    (tmp_path / "in/dangling").symlink_to("nowhere")
    names = ("a", "dangling", "fifo")
    placed = place_all([Folder(str(tmp_path / "in"), str(tmp_path / "out"), names)])
    assert placed.made == 1
    assert sorted(Path(error.message.split(":")[0]).name for error in placed.failed) == [
        "dangling",
        "fifo",
    ]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_a_file_system_that_refuses_hard_links_is_named_with_the_cure(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    grow(tmp_path, ["a"])
    with pytest.raises(OutputError) as caught:
        place_file(str(tmp_path / "a"), str(tmp_path / "out/a"), Link.HARD)
    assert "--link copy" in (caught.value.hint or "")


def test_a_copy_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    grow(tmp_path, ["a"])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space"):
        place_file(str(tmp_path / "a"), str(tmp_path / "out/a"), Link.COPY)
    assert contents(tmp_path / "out") == {}


def test_an_output_inside_its_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for tree, out in [("", ""), ("", "out"), ("tree", ""), ("link", "out")]:
        with pytest.raises(UsageError, match="overlaps"):
            files.refuse_overlap(tmp_path / tree, tmp_path / out)
    files.refuse_overlap(tmp_path / "a", tmp_path / "ab")


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone"):
        place_file(str(tmp_path / "gone"), str(tmp_path / "out"), Link.HARD)


@given(st.integers(0, 1000))
def test_progress_ends_at_the_total(n: int) -> None:
    seen = []
    names = tuple(map(str, range(n)))
    place_all([Folder("no/where", "no/out", names)], progress=lambda *a: seen.append(a[:2]))
    assert seen[-1] == (n, n)
    assert len(seen) <= n // 100 + 2
