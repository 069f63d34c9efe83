"""Trees made of trees: with a step that turns text to upper case in the place of a real one.

Then the workers, in which every item is answered once, whatever happens to the process that holds
it; and the journal: what it remembers over kills, settings and damage.
"""

import contextlib
import functools
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import interruptible

from s2f import prep
from s2f.errors import DatasetError, DeviceError, InputError, OutputError, UsageError, WorkerError
from s2f.files import File
from s2f.prep import Journal, PrepReport, Step

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
    made(tree)
    before = digest(tree / "out")
    again = prepare(tree)
    assert (again.made, again.skipped, made(tree)) == (0, 3, [])
    assert digest(tree / "out") == before


def test_an_output_is_made_again_if_anything_changed_or_it_is_gone(tree: Path) -> None:
    prepare(tree)
    (tree / "in/a/1.txt").write_text("new")
    (tree / "in/a/2.txt").write_text("texT a/2")  # of the same size, and older
    os.utime(tree / "in/a/2.txt", (1, 1))
    (tree / "out/b/1.out").unlink()
    report = prepare(tree)
    assert (report.made, report.skipped) == (3, 0)
    assert contents(tree / "out")["a/1.out"] == "NEW"
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
    (tree / "in/b/1.txt").write_text("bad")
    report = prepare(tree)
    assert (report.made, report.skipped, len(report.failed)) == (1, 0, 2)
    (tree / "in/b/1.txt").write_text("mended")  # and over what was made before, no --overwrite
    assert prepare(tree).made == 1
    assert contents(tree / "out") == {"a/1.out": "GOOD", "b/1.out": "MENDED"}


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


def test_an_output_that_cannot_have_its_name_costs_itself_only(tree: Path) -> None:
    (tree / "folder/a/1.out/x").mkdir(parents=True)
    report = prepare(tree, "folder", overwrite=True)
    assert report.made == 2
    assert "a/1.out: cannot be written" in report.failed[0].error.message
    (tree / "in" / f"{'x' * 251}.txt").write_text("long name")

    def rename(path: str) -> str:
        return f"{path.rpartition('.')[0]}{'_longer' * (len(path) > 99)}.out"

    for made_now, skipped in ((3, 0), (0, 3)):
        report = prepare(tree, step={"rename": rename})
        assert (report.made, report.skipped) == (made_now, skipped)
        (failure,) = report.failed
        assert failure.source.name.startswith("xx")
        assert isinstance(failure.error, InputError)


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


def test_two_sources_of_one_output_are_refused_before_any_work(tree: Path) -> None:
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


def test_a_step_may_make_notes_only(tree: Path) -> None:
    (tree / "in/a/2.txt").write_text("long text")
    for out in ("out", "in/a"):  # inside, too, they are of all the tree
        for made_now in (3, 0):
            report = prepare(tree, out, step={"rename": None})
            assert (report.made, report.notes) == (made_now, {"a/2.txt": {"length": 9}})
    assert contents(tree / "out") == {}
    for _ in range(2):
        assert prepare(tree).notes == {"a/2.out": {"length": 9}}


def test_a_net_gets_batches_and_may_refuse_one(tree: Path) -> None:
    (tree / "in/a/1.txt").write_text("")
    step = {"work": functools.partial(read, ""), "net": lengths, "save": save, "batch_size": 2}
    report = prepare(tree, step=step, workers=1)
    assert contents(tree / "out") == {"a/2.out": "8 of 2", "b/1.out": "8 of 1"}
    assert [failure.source.name for failure in report.failed] == ["1.txt"]


def test_an_error_of_the_net_ends_the_run(tree: Path) -> None:
    def broken(values: list[Any]) -> list[Any]:
        raise DeviceError("the device is gone")

    step = {"work": functools.partial(read, ""), "net": broken, "save": save}
    with pytest.raises(DeviceError):
        prepare(tree, step=step)
    assert not (tree / "out/.s2f/shout").exists()


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


def act(name: str, what: str) -> Any:
    """Do what the item says."""
    if what == "refuse":
        raise InputError(f"{name}: is wrong", hint="mend it")
    if what == "bug":
        raise ValueError("unforeseen")
    if what == "memory":
        raise MemoryError
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what == "no pickle":
        return lambda: None
    if what == "hang":
        time.sleep(60)
    return what.upper()


def outcomes(*whats: str, n: int = 2, **options: float) -> list[Any]:
    items = [(f"item{k}", what) for k, what in enumerate(whats)]
    results = dict(prep.run_in_workers(act, items, workers=n, **options))
    assert sorted(results) == list(range(len(whats)))
    return [results[k] for k in range(len(whats))]


@pytest.mark.parametrize(
    ("what", "message", "hint"),
    [
        ("refuse", "item1: is wrong", "mend it"),
        ("kill", r"item1: the process that read it died \(signal 9\)", "fewer --workers"),
        ("exit", r"item1: the process that read it died \(exit code 3\)", "check the file"),
        ("bug", r"item1: ValueError in act:\d+: unforeseen", "report it"),
        ("memory", "item1: needs more memory", "check the file"),
        ("hang", "item1: took more than 3 s", "damaged"),
        ("no pickle", "item1: the process that read it died", "check the file"),
    ],
)
def test_what_goes_wrong_costs_its_own_item_only(what: str, message: str, hint: str) -> None:
    a, error, b, c = outcomes("a", what, "b", "c", seconds=3)
    assert (a, b, c) == ("A", "B", "C")
    with pytest.raises(InputError if what == "refuse" else WorkerError, match=message) as raised:
        raise error
    assert hint in str(raised.value.hint)


def test_a_worker_holds_one_item() -> None:
    """Items are taken when a worker is free: what was taken and not answered is at most n.

    Also where several have ended at once.
    """
    taken: list[int] = []

    def items() -> Iterator[tuple[str, str]]:
        for k in range(20):
            taken.append(k)
            yield f"item{k}", "a"

    for answered, _ in enumerate(prep.run_in_workers(act, items(), workers=3), start=1):
        assert len(taken) <= answered + 3
        time.sleep(0.05)


def note_and_wait(name: str, folder: str) -> None:
    """Note the process; `b` never ends, and `a` when `b` is there."""
    Path(folder, name).write_text(str(os.getpid()))
    while name == "b" or not (Path(folder, "b").exists() and Path(folder, "b").read_text()):
        time.sleep(0.01)


def test_leaving_early_ends_the_processes(tmp_path: Path) -> None:
    run = prep.run_in_workers(
        note_and_wait, [("a", str(tmp_path)), ("b", str(tmp_path))], workers=2
    )
    assert next(run) == (0, None)
    run.close()
    for name in "ab":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / name).read_text()), 0)


SLOW_START = """
import time
print(flush=True)
time.sleep(3)
"""
INTERRUPTED = """
from s2f import prep
try:
    list(prep.run_in_workers(print, [(1,)], workers=1, preload=["slow_start"]))
except KeyboardInterrupt:
    pass
"""


def test_an_interruption_while_processes_start_is_for_the_parent_alone(tmp_path: Path) -> None:
    (tmp_path / "slow_start.py").write_text(SLOW_START)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=interruptible,
    )
    assert process.stdout
    process.stdout.readline()  # the module is being imported
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, b"")


A, B = File("a.wav", 10, 111), File("b.wav", 20, 222)
SETTINGS = {"rate": 16000}


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Let no file grow larger, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_killed_run_leaves_what_it_knew(tmp_path: Path) -> None:
    with Journal(tmp_path, "audio", SETTINGS) as journal:  # ends without `finish`
        journal.note("start", "a.npy", A)
        journal.note("done", "a.npy", A)
        journal.note("start", "b.npy", B)
        (journal.parts / "1.npy").touch()
        parts = journal.parts
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.entries.get("a.npy") == ("done", 10, 111, None)
        assert journal.entries.get("b.npy") == ("start", 20, 222, None)
        # Another folder: a worker that outlives the killed run writes into the old one.
        assert journal.parts != parts
        assert list(journal.parts.iterdir()) == []
    assert not journal.parts.parent.exists()


@pytest.mark.parametrize("cut", [1, 8])
def test_a_line_that_was_cut_off_is_forgotten(tmp_path: Path, cut: int) -> None:
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.note("done", "a.npy", A)
        journal.note("done", "b.npy", B)
    path = tmp_path / ".s2f/audio.journal"
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.entries.get("a.npy")
        assert journal.entries.get("b.npy") is None
        journal.note("done", "b.npy", B)
    assert len(path.read_text().splitlines()) == 3


def test_a_header_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / ".s2f/audio.journal"
    path.parent.mkdir()
    path.write_text('{"version')
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.finish()
    assert json.loads(path.read_text()) == {"version": 1, "step": "audio", "settings": SETTINGS}


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / ".s2f/audio.journal"
    path.parent.mkdir()
    path.write_text('{"version": 1}\nnonsense\n["done", "a.npy", 1, 2]\n')
    with pytest.raises(DatasetError, match=r"audio\.journal: is damaged: b'nonsense"):
        Journal(tmp_path, "audio", SETTINGS)


def test_two_runs_of_a_step_in_one_folder_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        for _ in range(2):
            with pytest.raises(UsageError, match="another s2f is at work"):
                Journal(tmp_path, "audio", SETTINGS)
            journal.finish()  # writes it anew
        with Journal(tmp_path, "landmarks", SETTINGS):
            pass
    with Journal(tmp_path, "audio", SETTINGS):
        pass


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = b"\xff\n\xc3\xa9".decode(errors="surrogateescape")
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        journal.note("done", name, A)
        journal.finish()
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.entries.get(name)


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: cannot be written"):
        Journal(tmp_path / "file", "audio", SETTINGS)


def test_a_line_that_cannot_be_written_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"audio\.journal"), limited_files(8192):
        with Journal(tmp_path, "audio", SETTINGS) as journal:
            for n in range(1000):
                journal.note("start", f"{n}.npy", A)
    with Journal(tmp_path, "audio", SETTINGS) as journal:
        assert journal.entries.get("0.npy") == ("start", 10, 111, None)
