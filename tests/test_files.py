"""Files and folders: whole or absent, held, listed, linked, and arrays in them."""

import errno
import fcntl
import multiprocessing
import os
import resource
import subprocess
import threading
import time
from pathlib import Path
from unittest import mock

import filelock
import numpy as np
import pytest
from trees import contents, grow

from s2f import files
from s2f.errors import AudioError, DatasetError, InputError, OutputError, UsageError
from s2f.files import Folder, Link, alone_in, atomic_folder, list_files, place_all, place_file


def refusing(code: int) -> mock.Mock:
    return mock.Mock(side_effect=OSError(code, os.strerror(code)))


# Written whole, and held


def test_a_file_appears_whole_and_a_failure_leaves_the_old_one(tmp_path):
    with files.atomic_write(tmp_path / "new" / "file") as file:
        file.write(b"half")
        assert not (tmp_path / "new" / "file").exists()
        file.write(b" and half")
    with pytest.raises(KeyError), files.atomic_write(tmp_path / "new" / "file") as file:
        file.write(b"other")
        raise KeyError
    with pytest.raises(OutputError, match="new: cannot be written"):
        files.write_bytes(tmp_path / "new", b"in the way")
    assert contents(tmp_path) == {"new/file": b"half and half"}
    (tmp_path / "plain").touch()
    assert (tmp_path / "new/file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    for name in ("x" * 255, "語" * 85):  # as long as a name may be
        files.write_bytes(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_threads_that_write_at_once_leave_the_umask_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", None)  # who sets it for a moment, sets it for all threads
    files.write_bytes(tmp_path / "file", b"1")
    assert contents(tmp_path) == {"file": b"1"}


def test_what_is_half_written_goes_when_the_process_ends_at_once(tmp_path):
    with pytest.raises(OutputError), files.atomic_write(tmp_path / "file") as file:
        file.write(b"half")
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "half").touch()
            assert len(contents(tmp_path)) == 2
            files.put_away()
            assert list(tmp_path.iterdir()) == []


def test_a_folder_gives_way_whole_and_only_if_asked(tmp_path, monkeypatch):
    old, move = grow(tmp_path / "model", ["old"], b"mine"), Path.replace

    def fail_to_arrive(path: Path, target: Path) -> Path:
        if target == old and not path.name.endswith("-old"):
            raise OSError("full")
        return move(path, target)

    for path in (old / "old/x", old):
        with pytest.raises(OutputError, match="cannot be written"), atomic_folder(path) as folder:
            (folder / "new").touch()
    with pytest.raises(KeyError), atomic_folder(old, replace=True):
        raise KeyError
    assert contents(tmp_path) == {"model/old": b"mine"}
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="full"):
        patch.setattr(Path, "replace", fail_to_arrive)  # when it has moved the old one away
        with atomic_folder(old, replace=True):
            pass
    assert contents(tmp_path) == {"model/old": b"mine"}
    for path in (old, tmp_path / "fresh"):
        with atomic_folder(path, replace=path == old) as folder:
            (folder / "new").touch()
            assert not (path / "new").exists()
    assert contents(tmp_path) == {"model/new": b"", "fresh/new": b""}


def test_a_folder_that_gives_way_is_not_put_away_with_the_new_one(tmp_path, monkeypatch):
    path, move = grow(tmp_path / "model", ["old"], b"mine"), Path.replace
    ended = []

    def end_then(source: Path, target: Path) -> Path:
        moved = move(source, target)
        if source == path:  # between the two: as by a second signal
            ended.append(threading.Thread(target=files.put_away))
            ended[0].start()
            ended[0].join(0.2)
        return moved

    with monkeypatch.context() as patch, atomic_folder(path, replace=True) as folder:
        (folder / "new").touch()
        patch.setattr(Path, "replace", end_then)
    ended[0].join()
    assert contents(tmp_path) == {"model/new": b""}


def test_a_folder_is_held_but_where_a_network_has_no_locks(tmp_path, monkeypatch):
    for _ in range(2):
        with alone_in(tmp_path / "new/folder"):
            assert list(files.names(tmp_path)) == []
            with pytest.raises(UsageError, match="folder: another s2f is at work there"):
                with alone_in(tmp_path / "new/folder"):
                    pass
    for no_locks in (refusing(errno.ENOLCK), lambda file, how: None):
        monkeypatch.setattr(fcntl, "flock", no_locks)
        for lock in (None, tmp_path / "a/.s2f/step.lock"):
            for _ in range(2):
                with alone_in(tmp_path / "a", lock):
                    with pytest.raises(UsageError, match="at work there") as caught:
                        with alone_in(tmp_path / "a", lock):
                            pass
                    marker = str(caught.value.hint).partition("remove ")[2]
                    assert str(os.getpid()) in Path(marker).read_text().split()
                assert not list(tmp_path.rglob("*-held"))
    monkeypatch.setattr(filelock.FileLock, "acquire", refusing(errno.EIO))
    with pytest.raises(OutputError, match="a: cannot be written"), alone_in(tmp_path / "a"):
        pass


def test_what_a_killed_process_left_goes_when_the_next_writes_there(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    there = files._machine()

    def left(machine: str, process: int) -> Path:
        return tmp_path / f".s2f-{machine}-{process}-00000000"

    ours, theirs = [left(there, gone.pid)], [left(there, os.getppid()), left("0" * 8, gone.pid)]
    (tmp_path / "model").mkdir()
    grow(ours[0], ["new/model/half", "old/model/mine", "new/kept/half"])
    (tmp_path / "model").rmdir()  # it was killed when it had moved the old one away
    for path in (*theirs, tmp_path / ".s2f-mine"):
        path.write_text("half")
    files.write_bytes(tmp_path / "file", b"1")
    assert (tmp_path / "model/mine").read_bytes() == b"old/model/mine"
    assert {path.name for path in tmp_path.glob(".*")} == {p.name for p in theirs} | {".s2f-mine"}
    files.remove_rests(tmp_path)
    kept = {"file": b"1", "model/mine": b"old/model/mine", ".s2f-mine": b"half"}
    assert contents(tmp_path) == kept


def test_in_a_container_that_is_started_again_processes_have_the_same_numbers(tmp_path):
    (tmp_path / f".s2f-{files._machine()}-{os.getpid()}-00000000").write_text("half")
    with files.atomic_write(tmp_path / "whole") as file:
        file.write(b"1")
        with mock.patch.object(files, "_SWEPT", set()):
            files.write_bytes(tmp_path / "other", b"2")
    assert contents(tmp_path) == {"whole": b"1", "other": b"2"}


def test_what_a_rest_leads_to_or_cannot_be_put_back_stays(tmp_path, monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    grow(tmp_path / "theirs/old", ["file"], b"theirs")
    out = tmp_path / "out"
    rest = f".s2f-{files._machine()}-{gone.pid}-0000000"
    (out / f"{rest}0").mkdir(parents=True)
    (out / f"{rest}0/old").symlink_to(tmp_path / "theirs/old")
    (out / f"{rest}1").symlink_to(tmp_path / "theirs")
    grow(out / f"{rest}2", ["old/model/mine"], b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refusing(errno.EACCES))
        files.remove_rests(out)
    assert contents(tmp_path) == {
        "theirs/old/file": b"theirs",
        f"out/{rest}2/old/model/mine": b"mine",
    }
    files.remove_rests(out)
    assert contents(out) == {"model/mine": b"mine"}


def test_who_may_not_list_a_folder_may_write_there(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "listdir", refusing(errno.EACCES))
    files.write_bytes(tmp_path / "file", b"1")
    assert (tmp_path / "file").read_bytes() == b"1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_that_was_forked_does_not_hold_a_folder(tmp_path):
    """What reads for a run outlives its kill by seconds, and the run is to go on at once."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=lambda: (ready.set(), time.sleep(60)))
    with alone_in(tmp_path):
        child.start()
        ready.wait()
    try:
        with alone_in(tmp_path):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


# Listed


def wants(name: str) -> bool:
    return name.endswith(".a")


def test_files_come_sorted_with_size_and_time(tmp_path):
    grow(tmp_path, ["b/2.a", "b/10.a", "a.a", "b.a", "b.b"], b"123")
    found = list_files(tmp_path, wants)
    assert [file.path for file in found] == ["a.a", "b/10.a", "b/2.a", "b.a"]
    assert list(files.names(tmp_path, wants)) == [file.path for file in found]
    assert {file.size for file in found} == {3}
    assert found[0].mtime_ns == (tmp_path / "a.a").stat().st_mtime_ns
    assert [f.path for f in list_files(tmp_path, wants, without=tmp_path / "b")] == ["a.a", "b.a"]


def test_hidden_files_are_passed_over_links_followed_and_loops_end(tmp_path):
    grow(tmp_path, ["x/1.a", "y/2.a", ".x.a", ".y/x.a", "__MACOSX/x.a", "x.b"])
    for link, target in {"x/back": "", "x/y": "y", "y/x": "x", "self": "self", "z": "y"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    found = ["x/1.a", "x/y/2.a", "y/2.a", "y/x/1.a", "z/2.a", "z/x/1.a"]
    assert list(files.names(tmp_path, wants)) == found
    assert files.folders(tmp_path) == ["x", "y", "z"]
    (tmp_path / "x/gone.a").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "x/pipe.a")
    sizes = {file.path: file.size for file in list_files(tmp_path / "x", wants)}
    assert (sizes["gone.a"], sizes["pipe.a"], sizes["1.a"]) == (-1, -1, 5)
    with pytest.raises(DatasetError, match=r"gone\.a: cannot be listed"):
        list_files(tmp_path / "x/gone.a", wants)


def test_every_file_that_is_not_hidden_is_listed_or_counted_by_its_suffix(tmp_path):
    seen = ["1.a", "2.HEIC", "x/3.heic", "x/4.b.txt", "x/5", "y/6.heic"]
    grow(tmp_path, [*seen, ".7.txt", ".z/8.txt", "__MACOSX/9.txt"])
    for find in (
        lambda counts: list_files(tmp_path, wants, passed_over=counts),
        lambda counts: list(files.names(tmp_path, wants, passed_over=counts)),
        lambda counts: files.find_files([tmp_path], wants, "a", AudioError, passed_over=counts),
    ):
        counts = files.PassedOver()
        assert len(find(counts)) + counts.total() == len(seen)
        assert counts == {".heic": 3, ".txt": 1, "": 1}
        assert files.by_suffix(counts) == "5 (.heic 3, no suffix 1, .txt 1)"
    counts.clear()
    list_files(tmp_path, wants, without=tmp_path / "x", passed_over=counts)
    assert files.by_suffix(counts) == "2 (.heic 2)"
    kinds = {f".{k}": 9 - k for k in range(9)}
    assert files.by_suffix(kinds, shown=3) == "45 (.0 9, .1 8, .2 7, others 21)"
    with pytest.raises(AudioError, match=r"y: holds no recordings; passed over: 1 \(\.heic 1\)"):
        files.find_files([tmp_path / "y"], wants, "recordings", AudioError)


def test_finding_keeps_files_as_given_and_searches_folders(tmp_path):
    grow(tmp_path, ["x/1.a", "x/2.a", "odd.txt", "empty/x"])
    given = [tmp_path / name for name in ("odd.txt", "x/2.a", "x")]
    found = files.find_files(given, wants, "recordings", AudioError)
    assert found == [*given[:2], tmp_path / "x/1.a"]
    for name, message in (("nothing", "does not exist"), ("empty", "holds no recordings")):
        with pytest.raises(AudioError, match=f"{name}: {message}"):
            files.find_files([tmp_path / name], wants, "recordings", AudioError)


# Linked

HOSTILE = ("a\nb", "-rf", "e\u0301", "\u202eabc", "👩‍🎤", "x" * 255, "\udcff\udcfe", "%s")


@pytest.mark.parametrize("link", Link)
def test_a_placed_file_has_the_bytes_and_is_kept(link, tmp_path):
    grow(tmp_path / "in", HOSTILE)
    plan = [Folder(str(tmp_path / "in"), str(tmp_path / "out/x"), HOSTILE)]
    told = []
    first = place_all(plan, link, progress=lambda *now: told.append(now))
    assert told == [(0, 8, plan[0].source), (8, 8, "done")]
    before = [os.lstat(tmp_path / "out/x" / name) for name in HOSTILE]
    second = place_all(plan, link)
    assert (first.made, first.kept, second.made, second.kept) == (8, 0, 0, 8)
    assert [os.lstat(tmp_path / "out/x" / name) for name in HOSTILE] == before
    assert contents(tmp_path / "out/x") == contents(tmp_path / "in")


@pytest.mark.parametrize("link", Link)
def test_a_file_behind_a_link_is_placed_itself(link, tmp_path):
    grow(tmp_path, ["here/a"])
    (tmp_path / "here/link").symlink_to("a")
    source, target = str(tmp_path / "here/link"), tmp_path / "here/out/a"
    assert place_file(source, str(target), link) and not place_file(source, str(target), link)
    assert target.is_symlink() == (link is Link.SYMLINK)
    (tmp_path / "here").rename(tmp_path / "there")  # which links survive
    assert (tmp_path / "there/out/a").read_bytes() == b"here/a"


@pytest.mark.parametrize("link", Link)
def test_what_is_older_is_replaced_and_another_file_kept_and_named(link, tmp_path):
    grow(tmp_path, ["a", "b", "c", "out/a", "out/c"])
    os.utime(tmp_path / "a", (1, 1))
    os.utime(tmp_path / "out/c", (1, 1))
    os.mkfifo(tmp_path / "fifo")  # what is no file costs itself only
    (tmp_path / "dangling").symlink_to("nowhere")
    names = ("a", "b", "c", "dangling", "fifo")
    placed = place_all([Folder(str(tmp_path), str(tmp_path / "out"), names)], link)
    named = [Path(error.message.split(":")[0]).name for error in placed.failed]
    assert (placed.made, placed.kept, named) == (2, 0, ["a", "dangling", "fifo"])
    assert str(tmp_path / "out/a") in placed.failed[0].message
    assert contents(tmp_path / "out") == {"a": b"out/a", "b": b"b", "c": b"c"}


def test_what_costs_one_name_is_told_from_what_costs_all(tmp_path, monkeypatch):
    source = str(grow(tmp_path, ["a"]) / "a")
    with pytest.raises(InputError, match="cannot be written") as caught:
        place_file(source, str(tmp_path / ("x" * 300)), Link.HARD)
    assert caught.value.hint == "shorten the name"
    for code in (errno.EXDEV, errno.EPERM, errno.EMLINK):
        monkeypatch.setattr(os, "link", refusing(code))
        with pytest.raises(OutputError) as refused:
            place_file(source, str(tmp_path / "b"), Link.HARD)
        assert "--link copy" in (refused.value.hint or "")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing(errno.ENOSPC))
        with pytest.raises(OutputError, match="No space"):
            place_file(source, str(tmp_path / "out/a"), Link.COPY)
    assert contents(tmp_path) == {"a": b"a"}  # a copy that breaks off leaves nothing
    monkeypatch.setattr("builtins.open", refusing(errno.EACCES))
    with pytest.raises(InputError, match="a: cannot be read: Permission denied"):
        place_file(source, str(tmp_path / "b"), Link.COPY)


def test_an_output_inside_its_source_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for tree, out in [("", ""), ("", "out"), ("tree", ""), ("link", "out")]:
        with pytest.raises(UsageError, match="overlaps"):
            files.refuse_overlap(tmp_path / tree, tmp_path / out)
    files.refuse_overlap(tmp_path / "a", tmp_path / "ab")


# Arrays


NO_ARRAYS = {
    "missing": "No such file",
    "empty": "is empty",
    "text": "no .npy file of numbers",
    "cut": "magic string",
    "pickle": "pickled objects",
    "npz": "an archive of arrays",
    "broken zip": "an archive of arrays",
    "huge": "claims more values than its 158 bytes can hold",
    "long header": "longer than that of any array",
    "pipe": "no regular file",
    "folder": "no regular file",
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_is_no_array_is_named_for_what_it_is(tmp_path, kind):
    path = tmp_path / "a.npy"
    plain = {"empty": b"", "text": b"nothing", "cut": b"\x93NUMPY", "broken zip": b"PK\3\4"}
    if kind in plain:
        path.write_bytes(plain[kind])
    elif kind == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, np.zeros(9))
    elif kind == "huge":  # 4 TB, which would be asked for before a sample is read
        with path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(30))
    elif kind == "long header":  # NumPy would advise to allow pickles
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}".ljust(20_000) + b"\n"
        head = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little")
        path.write_bytes(head + header + bytes(4))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    for mmap in (False, True):
        with pytest.raises(DatasetError, match=r"a\.npy: cannot be read as an array") as raised:
            files.read_array(path, mmap=mmap)
        assert NO_ARRAYS[kind] in raised.value.message


def test_an_array_that_finds_no_room_says_why(tmp_path):
    """No file may grow larger, as if the disk were full: EFBIG stands for ENOSPC here."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            files.save_array(np.zeros(9000), tmp_path / "a.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG  # NumPy's own: "9000 requested and 1008 written"
    files.save_array(np.arange(3), tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
