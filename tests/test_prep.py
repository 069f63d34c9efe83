"""Trees made of trees: with a step that turns text to upper case in the place of a real one."""

import dataclasses
import functools
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2f import prep
from s2f.errors import DatasetError, DeviceError, InputError, OutputError, UsageError, WorkerError
from s2f.prep import PrepReport, Step

MADE = "made"  # what `work` adds to, so that tests see what was made again


def shout(log: str, source: Path, part: Path) -> Any:
    """Write a text in upper case, or do what it says."""
    text = source.read_text()
    with Path(log).open("a") as file:
        file.write(f"{source.name}\n")
    if text == "bad":
        raise InputError(f"{source}: is bad")
    if text == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "full":
        raise OSError(28, "No space left on device")
    time.sleep(0.004)
    part.write_text(text.upper())
    return {"length": len(text)} if text.startswith("long") else None


def read(log: str, source: Path, part: Path) -> Any:
    return source.read_text()


def lengths(texts: list[str]) -> list[Any]:
    return [
        InputError("is empty") if not text else f"{len(text)} of {len(texts)}" for text in texts
    ]


def save(text: str, part: Path) -> None:
    if text.startswith("4 of 1"):
        raise OSError(28, "No space left on device")
    part.write_text(text)


def make_step(folder: Path, **changes: Any) -> Step:
    defaults: dict[str, Any] = {
        "name": "shout",
        "wants": lambda name: name.endswith((".txt", ".text")),
        "sources": "texts",
        "rename": lambda path: f"{path.rpartition('.')[0]}.out",
        "settings": {"loud": True},
        "work": functools.partial(shout, str(folder / MADE)),
    }
    return Step(**{**defaults, **changes})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/1", "a/2", "b/1"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{name}.txt").write_text(f"text {name}")
    return tmp_path


def prepare(tree: Path, out: str = "out", **options: Any) -> PrepReport:
    changes = options.pop("step", {})
    return prep.prepare(make_step(tree, **changes), tree / "in", tree / out, **options)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".s2f" not in path.parts
    }


def made(tree: Path) -> list[str]:
    log = tree / MADE
    names = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def test_the_tree_is_mirrored(tree: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = prepare(tree, progress=lambda *event: seen.append(event))
    assert contents(tree / "out") == {
        "a/1.out": "TEXT A/1",
        "a/2.out": "TEXT A/2",
        "b/1.out": "TEXT B/1",
    }
    assert (report.made, report.skipped, report.failed, report.notes) == (3, 0, (), {})
    assert seen[-1][:2] == (3, 3)


def test_a_second_run_makes_nothing_and_changes_nothing(tree: Path) -> None:
    prepare(tree)
    made(tree)
    before = digest(tree / "out")
    report = prepare(tree)
    assert (report.made, report.skipped) == (0, 3)
    assert made(tree) == []
    assert digest(tree / "out") == before


def test_an_output_is_made_again_if_its_source_changed_or_it_is_gone(tree: Path) -> None:
    prepare(tree)
    made(tree)
    (tree / "in/a/1.txt").write_text("new")
    (tree / "out/b/1.out").unlink()
    report = prepare(tree)
    assert (report.made, report.skipped) == (2, 1)
    assert contents(tree / "out")["a/1.out"] == "NEW"


def test_an_older_source_in_the_place_of_another_is_a_change_too(tree: Path) -> None:
    prepare(tree)
    (tree / "in/a/1.txt").write_text("texT a/1")  # of the same size
    os.utime(tree / "in/a/1.txt", (1, 1))
    assert prepare(tree).made == 1


def test_other_settings_make_everything_again(tree: Path) -> None:
    prepare(tree)
    assert prepare(tree, step={"settings": {"loud": False}}).made == 3


def test_a_bad_source_costs_itself_only_and_is_tried_again(tree: Path) -> None:
    (tree / "in/a/1.txt").write_text("bad")
    (tree / "in/a/2.txt").write_text("kill")
    for _ in range(2):
        report = prepare(tree)
        assert [failure.source.name for failure in report.failed] == ["1.txt", "2.txt"]
        assert "is bad" in report.failed[0].error.message
        assert isinstance(report.failed[1].error, WorkerError)
    assert contents(tree / "out") == {"b/1.out": "TEXT B/1"}
    (tree / "in/a/1.txt").write_text("good")
    report = prepare(tree)
    assert (report.made, report.skipped, len(report.failed)) == (1, 1, 1)


def test_a_source_that_went_bad_and_was_mended_is_made_without_overwrite(tree: Path) -> None:
    prepare(tree)
    (tree / "in/a/1.txt").write_text("bad")
    assert len(prepare(tree).failed) == 1
    (tree / "in/a/1.txt").write_text("mended")
    assert prepare(tree).failed == ()
    assert contents(tree / "out")["a/1.out"] == "MENDED"


def test_what_is_no_regular_file_is_named(tree: Path) -> None:
    os.mkfifo(tree / "in/pipe.txt")
    (tree / "in/gone.txt").symlink_to("nothing")
    report = prepare(tree)
    assert [failure.source.name for failure in report.failed] == ["gone.txt", "pipe.txt"]
    assert report.made == 3


def test_a_disk_that_is_full_ends_the_run(tree: Path) -> None:
    (tree / "in/a/1.txt").write_text("full")
    with pytest.raises(OutputError, match="No space left"):
        prepare(tree, workers=1)
    work = functools.partial(read, str(tree))
    with pytest.raises(OutputError, match=r"a/1\.out: cannot be written: No space left"):
        prepare(tree, step={"work": work, "net": lengths, "save": save})


def test_an_output_whose_name_is_too_long_costs_itself_only(tree: Path) -> None:
    (tree / "in" / f"{'x' * 251}.txt").write_text("long name")

    def rename(path: str) -> str:
        return f"{path.rpartition('.')[0]}{'_longer' * (len(path) > 99)}.out"

    for made_now, skipped in ((3, 0), (0, 3)):
        report = prepare(tree, step={"rename": rename})
        assert (report.made, report.skipped) == (made_now, skipped)
        (failure,) = report.failed
        assert failure.source.name.startswith("xx")
        assert isinstance(failure.error, InputError)


def test_a_folder_in_the_place_of_an_output_costs_itself_only(tree: Path) -> None:
    (tree / "out/a/1.out/x").mkdir(parents=True)
    report = prepare(tree, overwrite=True)
    assert report.made == 2
    assert "a/1.out: cannot be written" in report.failed[0].error.message


@pytest.mark.parametrize("inside", ["y.out", "y.out/deeper/still"])
def test_an_output_that_would_be_a_folder_too_is_refused_before_any_work(
    tree: Path, inside: str
) -> None:
    (tree / "in/y.txt").write_text("where a folder is")
    (tree / "in" / inside).mkdir(parents=True)
    (tree / "in" / inside / "z.txt").write_text("in that folder")
    with pytest.raises(DatasetError, match=r"y\.out: would be made of y\.txt, and be a folder"):
        prepare(tree)
    assert made(tree) == []


def test_files_of_others_are_not_replaced_unless_told(tree: Path) -> None:
    (tree / "out/a").mkdir(parents=True)
    (tree / "out/a/1.out").write_text("by hand")
    report = prepare(tree)
    assert report.made == 2
    assert "was not made by this command" in report.failed[0].error.message
    assert contents(tree / "out")["a/1.out"] == "by hand"
    assert prepare(tree, overwrite=True).made == 1
    assert contents(tree / "out")["a/1.out"] == "TEXT A/1"


@pytest.mark.parametrize("name", ["a/1.text", "a/1.txt"])
def test_two_sources_of_one_output_are_refused_before_any_work(tree: Path, name: str) -> None:
    (tree / "in/a/1.text").write_text("other")
    with pytest.raises(DatasetError, match=r"a/1\.out: would be made of both a/1\.te?xt and"):
        prepare(tree)
    assert made(tree) == []
    assert contents(tree / "out") == {}


def test_one_file_may_be_the_source(tree: Path) -> None:
    (tree / "in/odd").write_text("odd")
    step = make_step(tree, rename=lambda path: f"{path}.out")
    report = prep.prepare(step, tree / "in/odd", tree / "out")
    assert report.made == 1
    assert contents(tree / "out") == {"odd.out": "ODD"}


@pytest.mark.parametrize(
    ("source", "message"), [("nothing", "does not exist"), ("empty", "holds no texts")]
)
def test_nothing_to_do_is_an_error(tree: Path, source: str, message: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DatasetError, match=message):
        prep.prepare(make_step(tree), tree / source, tree / "out")


def test_outputs_inside_the_sources_are_not_taken_for_sources(tree: Path) -> None:
    same = {"rename": lambda path: path}
    for _ in range(2):
        report = prepare(tree, "in/out", step=same)
        assert report.made + report.skipped == 3


def test_outputs_may_stand_beside_their_sources(tree: Path) -> None:
    assert prepare(tree, "in").made == 3
    assert prepare(tree, "in").skipped == 3
    assert (tree / "in/a/1.out").exists()


def test_sources_are_replaced_only_if_told_and_only_once(tree: Path) -> None:
    same = {"rename": lambda path: path}
    with pytest.raises(UsageError, match="would be replaced"):
        prepare(tree, "in", step=same)
    assert made(tree) == []
    assert prepare(tree, "in", step=same, overwrite=True).made == 3
    assert contents(tree / "in")["a/1.txt"] == "TEXT A/1"
    assert prepare(tree, "in", step=same, overwrite=True).skipped == 3


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_kill_before_or_after_a_source_is_replaced_makes_it_once(
    tree: Path, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    replace = Path.replace

    def be_killed(part: Path, target: Path) -> None:
        if is_replaced:
            replace(part, target)
        raise KeyboardInterrupt

    options = {"step": {"rename": lambda path: path}, "overwrite": True, "workers": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", be_killed)
        prepare(tree, "in", **options)
    (tree / "in/b/1.txt").write_text("changed meanwhile")
    report = prepare(tree, "in", **options)
    assert (report.made, report.skipped) == ((2, 1) if is_replaced else (3, 0))
    assert contents(tree / "in") == {
        "a/1.txt": "TEXT A/1",
        "a/2.txt": "TEXT A/2",
        "b/1.txt": "CHANGED MEANWHILE",
    }


def test_a_source_that_changed_after_a_kill_is_not_taken_for_an_output(tree: Path) -> None:
    options = {"step": {"rename": lambda path: path}, "overwrite": True}
    (tree / "in/a/1.txt").write_text("kill")
    assert len(prepare(tree, "in", **options).failed) == 1
    journal = tree / "in/.s2f/shout.journal"
    journal.write_text(journal.read_text().replace('["due", "a/1.txt"', '["start", "a/1.txt"'))
    (tree / "in/a/1.txt").write_text("mended")
    assert prepare(tree, "in", **options).made == 1
    assert contents(tree / "in")["a/1.txt"] == "MENDED"


def test_notes_are_kept_over_runs(tree: Path) -> None:
    (tree / "in/a/2.txt").write_text("long text")
    for _ in range(2):
        assert prepare(tree).notes == {"a/2.out": {"length": 9}}


def test_a_step_may_make_notes_only(tree: Path) -> None:
    (tree / "in/a/2.txt").write_text("long text")
    report = prepare(tree, step={"rename": None})
    assert (report.made, report.notes) == (3, {"a/2.txt": {"length": 9}})
    assert contents(tree / "out") == {}
    assert prepare(tree, step={"rename": None}).skipped == 3


def test_notes_written_inside_the_tree_are_of_all_of_it(tree: Path) -> None:
    assert prepare(tree, "in/a", step={"rename": None}).made == 3


def test_a_net_gets_batches_and_may_refuse_one(tree: Path) -> None:
    (tree / "in/a/1.txt").write_text("")
    step = {
        "work": functools.partial(read, ""),
        "net": lengths,
        "save": save,
        "batch_size": 2,
    }
    report = prepare(tree, step=step, workers=1)
    assert contents(tree / "out") == {"a/2.out": "8 of 2", "b/1.out": "8 of 1"}
    assert [failure.source.name for failure in report.failed] == ["1.txt"]


def test_an_error_of_the_net_ends_the_run(tree: Path) -> None:
    def broken(values: list[Any]) -> list[Any]:
        raise DeviceError("the device is gone")

    step = {"work": functools.partial(read, ""), "net": broken, "save": save}
    with pytest.raises(DeviceError):
        prepare(tree, step=step)
    assert [path.name for path in (tree / "out/.s2f").iterdir()] == ["shout.journal"]


def test_a_step_is_plain_data(tree: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_step(tree).name = "x"  # type: ignore[misc]


def digest(folder: Path) -> str:
    """Hash every file of a tree, hidden ones too."""
    hashed = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        hashed.update(str(path.relative_to(folder)).encode())
        hashed.update(path.read_bytes() if path.is_file() else b"")
    return hashed.hexdigest()


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_prep
if __name__ == "__main__":
    tree = Path(sys.argv[2])
    test_prep.prepare(tree, sys.argv[3], workers=2)
"""


@pytest.mark.slow
def test_killed_at_random_moments_the_tree_is_the_same(tmp_path: Path) -> None:
    """`kill -9` twenty times, every other time of the workers too; then a run to the end."""
    for k in range(80):
        path = tmp_path / f"in/{k % 7}/{k}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("bad" if k == 50 else f"text {k}" * k)
    (tmp_path / "script.py").write_text(SCRIPT)
    tests = str(Path(__file__).parent)
    command = [sys.executable, str(tmp_path / "script.py"), tests, str(tmp_path)]
    started = time.perf_counter()
    subprocess.run([*command, "whole"], check=True)
    seconds = time.perf_counter() - started
    assert sorted(made(tmp_path)) == sorted(f"{k}.txt" for k in range(80))
    rng = np.random.default_rng(0)
    for kill in range(20):
        process = subprocess.Popen([*command, "out"], start_new_session=True)
        time.sleep(seconds * rng.uniform(0.2, 1))
        os.killpg(process.pid, signal.SIGKILL) if kill % 2 else process.kill()
        process.wait()
    subprocess.run([*command, "out"], check=True)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    # Each kill costs at most the item of each of the two workers; the bad one is tried each time.
    again = len([name for name in made(tmp_path) if name != "50.txt"]) - 79
    assert 0 <= again <= 2 * 20
