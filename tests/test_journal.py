"""The journal: what it remembers over kills, settings and damage."""

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2f.errors import DatasetError, OutputError, UsageError
from s2f.files import File
from s2f.prep import Journal

A, B = File("a.wav", 10, 111), File("b.wav", 20, 222)
SETTINGS = {"rate": 16000}


def lines(folder: Path) -> list[object]:
    return [json.loads(line) for line in (folder / ".s2f/audio.journal").read_text().splitlines()]


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Let no file grow larger, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def events(folder: Path) -> list[object]:
    return [line for line in lines(folder) if isinstance(line, list)]


def test_what_was_done_is_known_to_the_next_run(tmp_path: Path) -> None:
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.known("a.npy") is None
        journal.start("a.npy", A)
        journal.done("a.npy", A, {"n": 3})
        journal.finish()
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.known("a.npy") == ("done", 10, 111, {"n": 3})


def test_a_killed_run_leaves_what_it_knew(tmp_path: Path) -> None:
    with Journal(tmp_path, "audio", SETTINGS) as journal:  # ends without `finish`
        journal.start("a.npy", A)
        journal.done("a.npy", A)
        journal.start("b.npy", B)
        (journal.parts / "1.npy").touch()
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.known("a.npy") == ("done", 10, 111, None)
        assert journal.known("b.npy") == ("start", 20, 222, None)
        assert list(journal.parts.iterdir()) == []
    assert [path.name for path in (tmp_path / ".s2f").iterdir()] == ["audio.journal"]


def test_a_finished_journal_does_not_tell_how_it_came_about(tmp_path: Path) -> None:
    for name, order in (("x", (A, B)), ("y", (B, A))):
        with Journal(tmp_path / name, "audio", SETTINGS) as journal:
            for file in order:
                journal.start(file.path, file)
            for file in reversed(order):
                journal.due(file.path, file)
                journal.start(file.path, file)
                journal.done(file.path, file)
            journal.finish()
    journals = [(tmp_path / name / ".s2f/audio.journal").read_bytes() for name in "xy"]
    assert journals[0] == journals[1]
    assert [event[:2] for event in events(tmp_path / "x")] == [["done", "a.wav"], ["done", "b.wav"]]


def test_with_other_settings_all_is_due(tmp_path: Path) -> None:
    for settings in (SETTINGS, {"rate": 8000}):
        with Journal(tmp_path, "audio", settings) as journal:
            entry = journal.known("a.npy")
            journal.start("a.npy", A)
            journal.done("a.npy", A)
    assert entry == ("due", 10, 111, None)


@pytest.mark.parametrize("cut", [1, 8])
def test_a_line_that_was_cut_off_is_forgotten(tmp_path: Path, cut: int) -> None:
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.done("a.npy", A)
        journal.done("b.npy", B)
    path = tmp_path / ".s2f/audio.journal"
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.known("a.npy")
        assert journal.known("b.npy") is None
        journal.done("b.npy", B)
    assert len(events(tmp_path)) == 2


def test_a_header_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / ".s2f/audio.journal"
    path.parent.mkdir()
    path.write_text('{"version')
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.finish()
    assert lines(tmp_path) == [{"version": 1, "step": "audio", "settings": SETTINGS}]


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / ".s2f/audio.journal"
    path.parent.mkdir()
    path.write_text('{"version": 1}\nnonsense\n["done", "a.npy", 1, 2]\n')
    with pytest.raises(DatasetError, match=r"audio\.journal: is damaged: b'nonsense"):
        Journal(tmp_path, "audio", SETTINGS)


def test_two_runs_of_a_step_in_one_folder_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, "audio", SETTINGS):
        with pytest.raises(UsageError, match="another s2f is at work"):
            Journal(tmp_path, "audio", SETTINGS)
        with Journal(tmp_path, "landmarks", SETTINGS):
            pass
    with Journal(tmp_path, "audio", SETTINGS):
        pass


def test_a_journal_that_is_rewritten_stays_locked(tmp_path: Path) -> None:
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.done("a.npy", A)
        journal.finish()
        with pytest.raises(UsageError, match="another s2f is at work"):
            Journal(tmp_path, "audio", SETTINGS)


def test_no_other_run_gets_in_while_a_journal_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def replace_and_try(path: Path, target: Path) -> None:
        replace(path, target)
        with pytest.raises(UsageError, match="another s2f is at work"):
            Journal(tmp_path, "audio", SETTINGS)

    monkeypatch.setattr(Path, "replace", replace_and_try)
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.done("a.npy", A)
        journal.finish()
        journal.done("b.npy", B)
    assert len(events(tmp_path)) == 2


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = b"\xff\n\xc3\xa9".decode(errors="surrogateescape")
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.done(name, A)
        journal.finish()
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.known(name)


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"audio\.journal: cannot be written"):
        Journal(tmp_path / "file", "audio", SETTINGS)


def test_a_worker_that_outlives_a_killed_run_cannot_write_into_the_next(tmp_path: Path) -> None:
    killed = Journal(tmp_path, "audio", SETTINGS)
    killed._file.close()  # as the system does
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.parts != killed.parts
        assert not killed.parts.exists()
    assert [path.name for path in (tmp_path / ".s2f").iterdir()] == ["audio.journal"]


def test_a_line_that_cannot_be_written_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"audio\.journal"), limited_files(8192):
        with Journal(tmp_path, "audio", SETTINGS) as journal:
            for n in range(1000):
                journal.start(f"{n}.npy", A)
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.known("0.npy") == ("start", 10, 111, None)
